"""The ONNX graph of an encoder of any family, with its heads.

It mirrors models/encoder.py and the heads in operators of ONNX, for rows of any number
and length; a row is one document from its first token on, with padding after it.

Legend: B rows, L tokens a row, H width, V vocabulary, C choices.
"""

from collections.abc import Mapping

import numpy as np
import onnx

from plmjax import PlmjaxError, __version__, tree
from plmjax.models import EncoderConfig
from plmjax.models.task_heads import OUT_OF_REACH, POOLERS, pooler_of
from plmjax.onnx.attention import ATTENTION, UNSEEN, Rows, View
from plmjax.onnx.ops import Ops, Value
from plmjax.tasks.task import Task

_ROWS = ["batch", "length"]
# {output: (its value, its axes)}
Outputs = dict[str, tuple[Value, list]]


class Model:
    """Layers of a config as nodes; a parameter is named by its path in our tree."""

    def __init__(self, config: EncoderConfig, weights: dict[str, np.ndarray]):
        self.config, self.ops = config, Ops(weights)

    def _bias(self, path: str) -> list[Value]:
        name = f"{path}/bias"
        return [self.ops.weight(name)] if name in self.ops.weights else []

    def dense(self, x: Value, path: str) -> Value:
        """x [..., I] @ kernel [I, O], plus a bias if there is one."""
        return sum(self._bias(path), x @ self.ops.weight(f"{path}/kernel"))

    def norm(self, x: Value, path: str) -> Value:
        """LayerNorm, or RMSNorm, of the last axis."""
        eps, scale = self.config.norm_eps, self.ops.weight(f"{path}/scale")
        if self.config.norm == "rms":
            square = self.ops("Pow", x, 2.0).reduce("Mean", -1, keep=True)
            return x / self.ops("Sqrt", square + eps) * scale
        read = (x, scale, *self._bias(path))
        return self.ops("LayerNormalization", *read, axis=-1, epsilon=eps)

    def activate(self, x: Value, kind: str | None = None) -> Value:
        """The activation of the config, or of the kind."""
        kind = kind or self.config.activation
        if kind == "silu":
            return x * self.ops("Sigmoid", x)
        if kind in ("tanh", "relu"):
            return self.ops(kind.capitalize(), x)
        approximate = "tanh" if kind == "gelu_tanh" else "none"
        return self.ops("Gelu", x, approximate=approximate)

    def feed(self, x: Value, path: str) -> Value:
        """The feed-forward block."""
        y = self.activate(self.dense(x, f"{path}/up"))
        y = y * self.dense(x, f"{path}/gate") if self.config.gated else y
        return self.dense(y, f"{path}/down")

    def embed(self, rows: Rows) -> Value:
        """Token, position and type vectors, summed; [B, L, H]."""
        config, ops, path = self.config, self.ops, "encoder/embeddings"
        x = ops("Gather", ops.weight(f"{path}/token"), rows.tokens_BL)
        if config.positions == "learned":
            first = config.position_offset
            x += ops.weight(f"{path}/position").cut(0, first, rows.length + first)
        if config.token_types:
            table = ops.weight(f"{path}/type")
            # With one type there is no input: all tokens have it.
            x += ops("Gather", table, rows.types_BL) if rows.types_BL else table
        if config.norm_place == "post" or config.norm_embeddings:
            x = self.norm(x, f"{path}/norm")
        wide = config.input_width == config.width
        return x if wide else self.dense(x, f"{path}/projection")

    def encode(self, rows: Rows) -> Value:
        """The hidden states [B, L, H]."""
        config = self.config
        x = embedded = self.embed(rows)
        if config.attention == "disentangled":
            self.distances = self.ops.weight("encoder/relative/table")
            if config.position_norm:
                self.distances = self.norm(self.distances, "encoder/relative/norm")
        kinds = [config.layer_kind(i) for i in range(config.layers)]
        views = {kind: View(config, rows, kind) for kind in dict.fromkeys(kinds)}
        for i in range(config.layers):
            shared = i * config.groups // config.layers
            attends = shared if config.sharing in ("attention", "all") else i
            feeds = shared if config.sharing in ("ffn", "all") else i
            x = self._around(x, f"encoder/layer_{attends}/attention", views[kinds[i]])
            x = self._around(x, f"encoder/layer_{feeds}/ffn", None)
            if i == 0 and config.convolution_width:
                x = self._convolve(embedded, x, rows)
        return self.norm(x, "encoder/final_norm") if config.norm_place == "pre" else x

    def _around(self, x: Value, path: str, view: View | None) -> Value:
        """A block of a layer, attention or feed-forward, with its residual and norm."""
        config, pre = self.config, self.config.norm_place == "pre"
        # With a norm of the embeddings, the first layer has none.
        normed = pre and f"{path}_norm/scale" in self.ops.weights
        y = self.norm(x, f"{path}_norm") if normed else x
        if view is None:
            y = self.feed(y, path)
        else:
            y = ATTENTION[config.attention](self, y, path, view)
            y = y.transpose(0, 2, 1, 3).reshape(0, 0, config.width)
            y = self.dense(y, f"{path}/output")
        return x + y if pre else self.norm(x + y, f"{path}_norm")

    def _convolve(self, x: Value, y: Value, rows: Rows) -> Value:
        """DeBERTa-v2's convolution over embeddings, added to the first layer."""
        path, half = "encoder/convolution", self.config.convolution_width // 2
        kernel = self.ops.weight(f"{path}/kernel").transpose(2, 1, 0)
        x = (x * rows.real_BL1).transpose(0, 2, 1)
        z = self.ops("Conv", x, kernel, *self._bias(path), pads=[half, half])
        return self.norm(y + self.activate(z.transpose(0, 2, 1)), f"{path}/norm")

    def vocabulary(self, x: Value, rows: Rows) -> Value:
        """The scores of all pieces, [B, L, V]."""
        config, ops = self.config, self.ops
        untied = config.head == "untied"
        table = ops.weight("head/decoder" if untied else "encoder/embeddings/token")
        if config.head == "transform":
            x = self.activate(self.dense(x, "head/transform"))
            x = self.norm(x, "head/norm")
        x = x.reshape(-1, config.width if untied else config.input_width)
        # Unlike MatMul, Gemm reads the table as it is: it is stored once.
        y = ops("Gemm", x, table, *self._bias("head"), transB=1)
        return y.reshape(-1, rows.length, config.vocab_size)

    def pair(self, x: Value, rows: Rows) -> Value:
        """The scores of two sentences, [B, 2]."""
        first_BH = self.pooled(x, rows, "cls")
        pooled = self.activate(self.dense(first_BH, "pair/pooler/dense"), "tanh")
        return self.dense(pooled, "pair/classifier")

    def detector(self, x: Value) -> Value:
        """The score of each token as replaced, [B, L]."""
        x = self.activate(self.dense(x, "detector/dense"))
        return self.ops("Squeeze", self.dense(x, "detector/prediction"), [2])

    def pooled(self, x: Value, rows: Rows, pooling: str) -> Value:
        """One vector a row, [B, H]: mean or max of its tokens, or "cls"."""
        if pooling == "cls":
            return self.ops("Gather", x, np.array(0), axis=1)
        if pooling == "max":
            return rows.real_BL1.to(bool).where(x, UNSEEN).reduce("Max", 1)
        count_B1 = rows.real_BL1.reduce("Sum", 1).at_least(1.0)
        return (x * rows.real_BL1).reduce("Sum", 1) / count_B1

    def task(self, x: Value, rows: Rows, task: Task) -> Value:
        """The scores of a fine-tuning head, for rows or tokens."""
        head, late = str(task.head), task.head_pooling == "late"
        if head in POOLERS and not late:
            x = self.pooled(x, rows, task.head_pooling)
        if (pooling := pooler_of(self.config.family, head)) is not None:
            kind = getattr(pooling.activation, "__name__", None)
            x = self.activate(self.dense(x, f"{head}/pooler/dense"), kind)
            x = self.norm(x, f"{head}/pooler/norm") if pooling.normed else x
        if f"{head}/ffn/up/kernel" in self.ops.weights:
            x = self.norm(x + self.feed(x, f"{head}/ffn"), f"{head}/norm")
        y = self.dense(x, f"{head}/classifier")
        return self.pooled(y, rows, "mean") if head == "sequence" and late else y


def check(config: EncoderConfig) -> None:
    """Raises PlmjaxError if the attention has no form in ONNX."""
    if config.attention not in ATTENTION:
        raise PlmjaxError(
            f"model.attention={config.attention!r} has no form in ONNX.",
            hint=f"These have one: {', '.join(ATTENTION)}.",
        )


def _of_task(model: Model, x: Value, rows: Rows, task: Task) -> Outputs:
    """The outputs of a fine-tuned model."""
    width = model.config.width
    if task.head is None:
        vector = model.pooled(x, rows, task.pooling), ["batch", width]
        return {"last_hidden_state": (x, [*_ROWS, width]), "sentence_embedding": vector}
    scores = model.task(x, rows, task)
    if task.head != "answers":
        axes = _ROWS if task.head == "tags" else ["batch"]
        return {"logits": (scores, [*axes, task.outputs])}
    real = rows.real_BL1.to(bool)
    if model.config.family == "bigbird" and rows.types_BL:
        # No answer is in the question.
        first_L1 = rows.index_L.equals(0).unsqueeze(1)
        real &= rows.types_BL.to(bool).unsqueeze(2) | first_L1
    scores = real.where(scores, OUT_OF_REACH)
    ends = [model.ops("Gather", scores, np.array(n), axis=2) for n in (0, 1)]
    return {"start_logits": (ends[0], _ROWS), "end_logits": (ends[1], _ROWS)}


def _of_heads(model: Model, x: Value, rows: Rows, heads: Mapping) -> Outputs:
    """The outputs of heads of pretraining; the first of several is "logits"."""
    outputs: Outputs = {}
    if "head" in heads:
        axes = [*_ROWS, model.config.vocab_size]
        outputs["logits"] = model.vocabulary(x, rows), axes
    if "detector" in heads:
        name = "detector_logits" if outputs else "logits"
        outputs[name] = model.detector(x), _ROWS
    if "pair" in heads:
        name = "seq_relationship_logits" if outputs else "logits"
        outputs[name] = model.pair(x, rows), ["batch", 2]
    return outputs or {"last_hidden_state": (x, [*_ROWS, model.config.width])}


def build(
    config: EncoderConfig,
    params: Mapping,
    task: Task | None = None,
    facts: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """Returns the model of an encoder and the heads that `params` holds.

    Inputs are int64 [batch, length]: input_ids, attention_mask and, with several types,
    token_type_ids; for choices [batch, choices, length]. Outputs are float32: "logits",
    or "start_logits" and "end_logits", or without a head "last_hidden_state" and for
    vectors of texts "sentence_embedding". `facts` are strings that the file keeps.

    Raises:
      PlmjaxError: the attention has no form in ONNX.
    """
    check(config)
    weights = {k: np.asarray(v, np.float32) for k, v in tree.flatten(params).items()}
    model = Model(config, weights)
    choices = task is not None and task.head == "choices"
    axes = ["batch", "choices", "length"] if choices else _ROWS
    names = ("input_ids", "attention_mask", "token_type_ids")
    names = names if config.token_types > 1 else names[:2]
    inputs = [Value(model.ops, name) for name in names]
    shape, mask = model.ops("Shape", inputs[0]), inputs[1]
    if choices:
        inputs = [x.reshape(-1, shape.cut(0, 2, 3)) for x in inputs]
    rows = Rows(model.ops, *inputs)
    x = model.encode(rows)
    if task is None:
        outputs = _of_heads(model, x, rows, params)
    else:
        outputs = _of_task(model, x, rows, task)
    if choices:
        scores = outputs["logits"][0].reshape(shape.cut(0, 0, 2))
        real = mask.reduce("Max", 2).to(bool)
        outputs = {"logits": (real.where(scores, OUT_OF_REACH), axes[:2])}
    given = {name: axes for name in names}
    return model.ops.model(
        given, outputs, {"plmjax_version": __version__} | (facts or {})
    )
