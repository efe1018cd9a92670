"""Models as ONNX graphs: built from the encoder, checked, and run without JAX."""
