"""A list of ONNX nodes that grows by calls, and the arrays that they read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

# LayerNormalization is in ONNX since 17, Gelu since 20; the file format is that of 20.
OPSET, FORMAT = 20, 9


class Ops:
    """The nodes of a graph; values are names, and arrays become constants.

    `weights` are a model's parameters by name; one that several nodes read is stored
    once, and one that none reads not at all.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._constants: dict[tuple, str] = {}

    def __call__(self, kind: str, *inputs: Any, outputs: int = 1, **attributes) -> Any:
        """Adds a node; returns its output's name, or a list of several."""
        number = len(self._nodes)
        names = [f"{kind.lower()}_{number}"]
        if outputs > 1:
            names = [f"{names[0]}_{n}" for n in range(outputs)]
        read = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        name = f"{kind}_{number}"
        node = helper.make_node(kind, read, names, name=name, **attributes)
        self._nodes.append(node)
        return names if outputs > 1 else names[0]

    def constant(self, value: Any) -> str:
        """Returns the name of a constant: Python's integers are int64, floats float32."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key], self._arrays[name] = name, array
        return self._constants[key]

    def weight(self, name: str) -> str:
        """Returns the name of a parameter."""
        self._arrays[name] = self.weights[name]
        return name

    def reshape(self, x: str, *shape: int) -> str:
        """Reshapes; 0 keeps an axis, -1 is what is left."""
        return self("Reshape", x, list(shape))

    def transpose(self, x: str, *axes: int) -> str:
        """Permutes the axes."""
        return self("Transpose", x, perm=axes)

    def cut(self, x: str, axis: int, begin: Any, end: Any) -> str:
        """Slices one axis; bounds are integers, or names of int64 [1]."""
        bounds = [[b] if isinstance(b, int) else b for b in (begin, end)]
        return self("Slice", x, *bounds, [axis])

    def rename(self, x: str, name: str) -> None:
        """Gives a value the name of an output of the model."""
        self._nodes.append(helper.make_node("Identity", [x], [name], name=name))

    def model(
        self, inputs: Sequence, outputs: Sequence, facts: dict
    ) -> onnx.ModelProto:
        """Returns the model; `facts` are strings that are kept in the file."""
        arrays = [numpy_helper.from_array(a, name) for name, a in self._arrays.items()]
        graph = helper.make_graph(self._nodes, "plmjax", inputs, outputs, arrays)
        model = helper.make_model(
            graph,
            producer_name="plmjax",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=FORMAT,
        )
        helper.set_model_props(model, facts)
        return model
