"""Models as ONNX graphs: built from the encoder, checked, and run without JAX."""

import os

# onnxruntime would send events to its maker, and keep an id in a file; it reads this
# when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
