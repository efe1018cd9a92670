"""ONNX nodes written as Python's operators, and the arrays that they read."""

import dataclasses
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# LayerNormalization is in ONNX since 17, Gelu since 20; the file format is that of 20.
OPSET, FORMAT = 20, 9
_TYPES = {bool: TensorProto.BOOL, int: TensorProto.INT64, float: TensorProto.FLOAT}


def _operator(kind: str) -> Any:
    return lambda left, right: left.ops(kind, left, right)


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A value of a graph; the other operand may be one, a number or an array."""

    ops: "Ops"
    name: str

    __add__, __sub__, __mul__ = map(_operator, ("Add", "Sub", "Mul"))
    __truediv__ = __floordiv__ = _operator("Div")
    __matmul__, __and__, __or__ = map(_operator, ("MatMul", "And", "Or"))
    __lt__, __le__, __ge__ = map(_operator, ("Less", "LessOrEqual", "GreaterOrEqual"))
    equals, at_least = _operator("Equal"), _operator("Max")

    def __invert__(self) -> "Value":
        return self.ops("Not", self)

    def where(self, yes: Any, no: Any) -> "Value":
        """`yes` where this is true, `no` elsewhere."""
        return self.ops("Where", self, yes, no)

    def to(self, kind: type) -> "Value":
        """Casts to bool, int or float."""
        return self.ops("Cast", self, to=_TYPES[kind])

    def reshape(self, *shape: Any) -> "Value":
        """Reshapes; 0 keeps an axis, -1 is what is left; or int64 values [n]."""
        if any(isinstance(size, Value) for size in shape):
            parts = [x if isinstance(x, Value) else [x] for x in shape]
            return self.ops("Reshape", self, self.ops("Concat", *parts, axis=0))
        return self.ops("Reshape", self, list(shape))

    def transpose(self, *axes: int) -> "Value":
        """Permutes the axes."""
        return self.ops("Transpose", self, perm=axes)

    def unsqueeze(self, *axes: int) -> "Value":
        """Adds axes of size 1."""
        return self.ops("Unsqueeze", self, list(axes))

    def cut(self, axis: int, begin: Any, end: Any) -> "Value":
        """Slices one axis; bounds are integers, or int64 [1]."""
        bounds = [x if isinstance(x, Value) else [x] for x in (begin, end)]
        return self.ops("Slice", self, *bounds, [axis])

    def reduce(self, how: str, axis: int, keep: bool = False) -> "Value":
        """The Sum, Max or Mean along an axis."""
        return self.ops(f"Reduce{how}", self, [axis], keepdims=int(keep))


class Ops:
    """The nodes of a graph; arrays become constants, equal nodes one.

    `weights` are a model's parameters by name; one that several nodes read is stored
    once, and one that none reads not at all.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: dict[str, np.ndarray] = {}
        self._known: dict[tuple, Any] = {}

    def __call__(self, kind: str, *inputs: Any, outputs: int = 1, **attributes) -> Any:
        """Adds a node; returns its output, or a list of several."""
        read = [(x if isinstance(x, Value) else self.constant(x)).name for x in inputs]
        key = (kind, *read, outputs, str(attributes))
        if key not in self._known:
            name = f"{kind}_{len(self._nodes)}"
            names = [f"{name}_{n}" for n in range(outputs)]
            node = helper.make_node(kind, read, names, name=name, **attributes)
            self._nodes.append(node)
            self._known[key] = [Value(self, each) for each in names]
        made = self._known[key]
        return made if outputs > 1 else made[0]

    def constant(self, value: Any) -> Value:
        """Returns a constant; Python's integers are int64, its floats float32."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        key = (array.dtype.str, array.shape, array.tobytes())
        name = self._known.setdefault(key, f"constant_{len(self._arrays)}")
        self._arrays[name] = array
        return Value(self, name)

    def weight(self, name: str) -> Value:
        """Returns a parameter."""
        self._arrays[name] = self.weights[name]
        return Value(self, name)

    def model(
        self,
        inputs: dict[str, list],
        outputs: dict[str, tuple[Value, list]],
        facts: dict[str, str],
    ) -> onnx.ModelProto:
        """Returns the model; inputs and outputs have axes, the file keeps `facts`."""
        for name, (value, _) in outputs.items():
            same = helper.make_node("Identity", [value.name], [name], name=name)
            self._nodes.append(same)
        typed, floats = helper.make_tensor_value_info, TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            "plmjax",
            [typed(name, TensorProto.INT64, axes) for name, axes in inputs.items()],
            [typed(name, floats, axes) for name, (_, axes) in outputs.items()],
            [numpy_helper.from_array(a, name) for name, a in self._arrays.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=FORMAT)
        helper.set_model_props(model, facts)
        return model
