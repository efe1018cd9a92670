"""The ONNX graph of an encoder of any family, with its heads.

It mirrors models/encoder.py and the heads in operators of ONNX, for rows of any number
and length; a row is one document from its first token on, with padding after it.

Legend: B rows, L tokens a row, H width, N heads, V vocabulary, C choices.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from plmjax import PlmjaxError, __version__, tree
from plmjax.models import EncoderConfig
from plmjax.models.task_heads import OUT_OF_REACH, POOLERS, pooler_of
from plmjax.onnx.attention import ATTENTION, UNSEEN, Rows, View
from plmjax.onnx.ops import Ops
from plmjax.tasks.task import Task


class Model:
    """Layers of a config as nodes; a parameter is named by its path in our tree."""

    def __init__(self, config: EncoderConfig, weights: dict[str, np.ndarray]):
        self.config, self.ops = config, Ops(weights)

    def dense(self, x: str, path: str) -> str:
        """x [..., I] @ kernel [I, O], plus a bias if there is one."""
        y = self.ops("MatMul", x, self.ops.weight(f"{path}/kernel"))
        if f"{path}/bias" in self.ops.weights:
            y = self.ops("Add", y, self.ops.weight(f"{path}/bias"))
        return y

    def norm(self, x: str, path: str) -> str:
        """LayerNorm, or RMSNorm, of the last axis."""
        ops, eps = self.ops, self.config.norm_eps
        scale = ops.weight(f"{path}/scale")
        if self.config.norm == "rms":
            mean = ops("ReduceMean", ops("Pow", x, 2.0), [-1])
            root = ops("Sqrt", ops("Add", mean, eps))
            return ops("Mul", ops("Div", x, root), scale)
        bias = f"{path}/bias"
        more = [ops.weight(bias)] if bias in ops.weights else []
        return ops("LayerNormalization", x, scale, *more, axis=-1, epsilon=eps)

    def activate(self, x: str, kind: str | None = None) -> str:
        """The activation of the config, or of the kind."""
        kind, ops = kind or self.config.activation, self.ops
        if kind == "silu":
            return ops("Mul", x, ops("Sigmoid", x))
        if kind in ("gelu", "gelu_tanh"):
            return ops("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")
        return ops(kind.capitalize(), x)

    def feed(self, x: str, path: str) -> str:
        """The feed-forward block."""
        y = self.activate(self.dense(x, f"{path}/up"))
        if self.config.gated:
            y = self.ops("Mul", y, self.dense(x, f"{path}/gate"))
        return self.dense(y, f"{path}/down")

    def embed(self, rows: Rows, types_BL: str | None) -> str:
        """Token, position and type vectors, summed; [B, L, H]."""
        config, ops, path = self.config, self.ops, "encoder/embeddings"
        x = ops("Gather", ops.weight(f"{path}/token"), rows.tokens_BL)
        if config.positions == "learned":
            first = config.position_offset
            end = ops("Add", rows.length, first)
            table = ops.weight(f"{path}/position")
            x = ops("Add", x, ops.cut(table, 0, first, end))
        if config.token_types:
            table = ops.weight(f"{path}/type")
            # With one type there is no input: all tokens have it.
            x = ops("Add", x, ops("Gather", table, types_BL) if types_BL else table)
        if config.norm_place == "post" or config.norm_embeddings:
            x = self.norm(x, f"{path}/norm")
        if config.input_width != config.width:
            x = self.dense(x, f"{path}/projection")
        return x

    def encode(self, rows: Rows, types_BL: str | None) -> str:
        """The hidden states [B, L, H]."""
        config, ops = self.config, self.ops
        x = embedded = self.embed(rows, types_BL)
        if config.attention == "disentangled":
            self.distances = ops.weight("encoder/relative/table")
            if config.position_norm:
                self.distances = self.norm(self.distances, "encoder/relative/norm")
        kinds = [config.layer_kind(i) for i in range(config.layers)]
        views = {kind: View(config, rows, kind) for kind in dict.fromkeys(kinds)}
        for i in range(config.layers):
            shared = i * config.groups // config.layers
            attends = shared if config.sharing in ("attention", "all") else i
            feeds = shared if config.sharing in ("ffn", "all") else i
            x = self._around(x, attends, "attention", views[kinds[i]])
            x = self._around(x, feeds, "ffn", None)
            if i == 0 and config.convolution_width:
                x = self._convolve(embedded, x, rows)
        return self.norm(x, "encoder/final_norm") if config.norm_place == "pre" else x

    def _around(self, x: str, layer: int, block: str, view: View | None) -> str:
        """A block of a layer with its residual and norm."""
        config, path = self.config, f"encoder/layer_{layer}/{block}"
        pre = config.norm_place == "pre"
        # With a norm of the embeddings, the first layer has none.
        normed = f"{path}_norm/scale" in self.ops.weights
        y = self.norm(x, f"{path}_norm") if pre and normed else x
        if view is None:
            y = self.feed(y, path)
        else:
            y = ATTENTION[config.attention](self, y, path, view)
            y = self.ops.reshape(self.ops.transpose(y, 0, 2, 1, 3), 0, 0, config.width)
            y = self.dense(y, f"{path}/output")
        y = self.ops("Add", y, x)
        return y if pre else self.norm(y, f"{path}_norm")

    def _convolve(self, x: str, y: str, rows: Rows) -> str:
        """DeBERTa-v2's convolution over embeddings, added to the first layer."""
        ops, path, half = self.ops, "encoder/convolution", self.config.convolution_width
        kernel = ops.transpose(ops.weight(f"{path}/kernel"), 2, 1, 0)
        bias = f"{path}/bias"
        more = [ops.weight(bias)] if bias in ops.weights else []
        x = ops.transpose(ops("Mul", x, rows.real_BL1), 0, 2, 1)
        z = ops("Conv", x, kernel, *more, pads=[half // 2] * 2)
        z = self.activate(ops.transpose(z, 0, 2, 1))
        return self.norm(ops("Add", y, z), f"{path}/norm")

    def vocabulary(self, x: str, rows: Rows) -> str:
        """The scores of all pieces, [B, L, V]."""
        config, ops = self.config, self.ops
        table = ops.weight("encoder/embeddings/token")
        if config.head == "untied":
            table = ops.weight("head/decoder")
        bias = []
        if config.head == "transform":
            x = self.activate(self.dense(x, "head/transform"))
            x, bias = self.norm(x, "head/norm"), [ops.weight("head/bias")]
        width = config.width if config.head == "untied" else config.input_width
        # Unlike MatMul, Gemm reads the table as it is: it is stored once.
        y = ops("Gemm", ops.reshape(x, -1, width), table, *bias, transB=1)
        shape = ops("Concat", rows.shape, [config.vocab_size], axis=0)
        return ops("Reshape", y, shape)

    def pair(self, x: str) -> str:
        """The scores of two sentences, [B, 2]."""
        first_BH = self.ops("Gather", x, np.array(0, np.int64), axis=1)
        pooled = self.activate(self.dense(first_BH, "pair/pooler/dense"), "tanh")
        return self.dense(pooled, "pair/classifier")

    def detector(self, x: str) -> str:
        """The score of each token as replaced, [B, L]."""
        x = self.activate(self.dense(x, "detector/dense"))
        return self.ops("Squeeze", self.dense(x, "detector/prediction"), [2])

    def pooled(self, x: str, rows: Rows, pooling: str) -> str:
        """One vector a row, [B, H]: mean or max of its tokens, or "cls"."""
        ops = self.ops
        if pooling == "cls":
            return ops("Gather", x, np.array(0, np.int64), axis=1)
        if pooling == "max":
            real = ops("Cast", rows.real_BL1, to=TensorProto.BOOL)
            x = ops("Where", real, x, UNSEEN)
            return ops("ReduceMax", x, [1], keepdims=0)
        total = ops("ReduceSum", ops("Mul", x, rows.real_BL1), [1], keepdims=0)
        count = ops("ReduceSum", rows.real_BL1, [1], keepdims=0)
        return ops("Div", total, ops("Max", count, 1.0))

    def task(self, x: str, rows: Rows, task: Task) -> str:
        """The scores of a fine-tuning head, for rows or tokens."""
        config, head = self.config, str(task.head)
        if head in POOLERS and task.head_pooling != "late":
            x = self.pooled(x, rows, task.head_pooling)
        if (pooling := pooler_of(config.family, head)) is not None:
            kind = getattr(pooling.activation, "__name__", None)
            x = self.activate(self.dense(x, f"{head}/pooler/dense"), kind)
            x = self.norm(x, f"{head}/pooler/norm") if pooling.normed else x
        if f"{head}/ffn/up/kernel" in self.ops.weights:
            y = self.ops("Add", x, self.feed(x, f"{head}/ffn"))
            x = self.norm(y, f"{head}/norm")
        y = self.dense(x, f"{head}/classifier")
        if head == "sequence" and task.head_pooling == "late":
            return self.pooled(y, rows, "mean")
        return y


def check(config: EncoderConfig) -> None:
    """Raises PlmjaxError if the attention has no form in ONNX."""
    if config.attention not in ATTENTION:
        raise PlmjaxError(
            f"model.attention={config.attention!r} has no form in ONNX here.",
            hint=f"Known: {', '.join(ATTENTION)}.",
        )


def _outputs(
    model: Model, x: str, rows: Rows, params: Mapping, task: Task | None
) -> dict[str, tuple[str, list]]:
    """Returns {name: (value, axes)} of all outputs."""
    ops, tokens = model.ops, ["batch", "length"]
    if task is not None and task.head is None:
        vector = model.pooled(x, rows, task.pooling)
        width: list = ["batch", model.config.width]
        states = (x, [*tokens, model.config.width])
        return {"last_hidden_state": states, "sentence_embedding": (vector, width)}
    if task is not None and task.head == "answers":
        real = ops("Cast", rows.real_BL1, to=TensorProto.BOOL)
        if model.config.family == "bigbird":  # no answer is in the question
            first = ops("Equal", ops("Unsqueeze", rows.index_L, [1]), 0)
            second = ops("Unsqueeze", ops("Cast", "token_type_ids", to=9), [2])
            real = ops("And", real, ops("Or", second, first))
        y = ops("Where", real, model.task(x, rows, task), OUT_OF_REACH)
        ends = ops("Split", y, outputs=2, axis=-1, num_outputs=2)
        names = ("start_logits", "end_logits")
        return {
            name: (ops("Squeeze", end, [2]), tokens)
            for name, end in zip(names, ends, strict=True)
        }
    if task is not None:
        axes = tokens if task.head == "tags" else ["batch"]
        return {"logits": (model.task(x, rows, task), [*axes, task.outputs])}
    found: dict[str, tuple[str, list]] = {}
    if "head" in params:
        vocabulary = model.config.vocab_size
        found["logits"] = (model.vocabulary(x, rows), [*tokens, vocabulary])
    if "detector" in params:
        name = "detector_logits" if found else "logits"
        found[name] = (model.detector(x), tokens)
    if "pair" in params:
        name = "seq_relationship_logits" if found else "logits"
        found[name] = (model.pair(x), ["batch", 2])
    return found or {"last_hidden_state": (x, [*tokens, model.config.width])}


def build(
    config: EncoderConfig,
    params: Mapping,
    task: Task | None = None,
    facts: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Returns the model of an encoder and the heads that `params` holds.

    Inputs are int64 [batch, length]: input_ids, attention_mask and, with several types,
    token_type_ids; for choices [batch, choices, length]. Outputs are float32: "logits",
    or "start_logits" and "end_logits", or without a head "last_hidden_state" and for
    vectors of texts "sentence_embedding".

    Raises:
      PlmjaxError: the attention has no form in ONNX.
    """
    check(config)
    weights = {k: np.asarray(v, np.float32) for k, v in tree.flatten(params).items()}
    model = Model(config, weights)
    ops, choices = model.ops, task is not None and task.head == "choices"
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if config.token_types > 1 else []
    axes = ["batch", "choices", "length"] if choices else ["batch", "length"]
    given = names
    if choices:
        shape_BC = ops.cut(ops("Shape", names[0]), 0, 0, 2)
        shape = ops("Concat", [-1], ops.cut(ops("Shape", names[0]), 0, 2, 3), axis=0)
        given = [ops("Reshape", name, shape) for name in names]
    rows = Rows(ops, *given[:2])
    x = model.encode(rows, given[2] if len(given) > 2 else None)
    outputs = _outputs(model, x, rows, params, task)
    if choices:
        real = ops("ReduceMax", names[1], [2], keepdims=0)
        scores = ops("Reshape", outputs["logits"][0], shape_BC)
        real = ops("Cast", real, to=TensorProto.BOOL)
        scores = ops("Where", real, scores, OUT_OF_REACH)
        outputs = {"logits": (scores, ["batch", "choices"])}
    for name, (value, _) in outputs.items():
        ops.rename(value, name)
    typed = helper.make_tensor_value_info
    return ops.model(
        [typed(name, TensorProto.INT64, axes) for name in names],
        [typed(n, TensorProto.FLOAT, shape) for n, (_, shape) in outputs.items()],
        {"plmjax_version": __version__, **(facts or {})},
    )
