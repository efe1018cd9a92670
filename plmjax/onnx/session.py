"""Runs an exported folder by onnxruntime, without JAX, torch or onnx."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.data.layout import encode_texts, lay_out, plan_rows
from plmjax.tokenizers import Tokenizer

FOLDER, MODEL = "onnx", "model.onnx"
FACTS = "plmjax"  # the key of what a file knows of its model
_BATCH_TOKENS = 4096  # at once, with padding
# What models are used for; the first output that is there. Some detectors have a
# vocabulary head, too, that was never trained on masks.
_SCORES = ("sentence_embedding", "detector_logits", "logits", "last_hidden_state")


class Session:
    """An exported model: `kind` says what for, `config` is its config.json.

    Kinds are those of tasks (classes, multilabel, regression, tags, answers, choices),
    fill, next (the next token), detect, pair (do two texts follow each other?) and
    embed. `labels` are those of the task, `length` the tokens of its longest row.
    """

    def __init__(
        self, folder: str | Path, file: str = MODEL, threads: int | None = None
    ):
        """Opens FOLDER/onnx/FILE; `threads` of onnxruntime, None: one a core.

        Raises:
          PlmjaxError: the folder holds no such model (code 4), or there is none.
        """
        import onnxruntime

        folder = Path(folder)
        makes = "`plmjax compress --format=onnx --model=RUN --to=DIR` makes one."
        if not folder.is_dir():
            raise PlmjaxError(f"the model {folder} is not a folder.", hint=makes)
        path = folder / FOLDER / file
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that wait would take a processor from all others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.config = json.loads((folder / "config.json").read_text())
            have = onnxruntime.get_available_providers()
            wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=[p for p in wanted if p in have]
            )
            saved = self.session.get_modelmeta().custom_metadata_map[FACTS]
        except Exception as error:  # onnxruntime has a class for each of its errors
            there = sorted(other.name for other in path.parent.glob("*.onnx"))
            if there and not path.exists():
                makes = f"There is {' and '.join(there)}."
            raise PlmjaxError(
                f"{folder} holds no {FOLDER}/{file} beside a config.json that plmjax "
                "exported.",
                hint=makes,
                code=Exit.MODEL,
            ) from error
        self.facts: dict[str, Any] = json.loads(saved)
        self.kind: str = self.facts["kind"]
        self.labels: tuple[str, ...] = tuple(self.facts["labels"])
        self.length: int = self.facts["length"]
        self.tokenizer = Tokenizer.load(folder)
        outputs = self.session.get_outputs()
        self.outputs = [each.name for each in outputs]
        self._per_token = [x.name for x in outputs if x.shape[1:2] == ["length"]]

    def run(
        self,
        texts: Sequence[str | tuple[str, str]],
        length: int | None = None,
        batch_tokens: int = _BATCH_TOKENS,
    ) -> dict[str, list[np.ndarray]]:
        """Returns each output by name, an array a text or pair, in order.

        Long texts are cut to `length` tokens (None: the model's). Outputs of tokens are
        [L, ...] of a text's L tokens with the special ones.
        """
        rows = [text if isinstance(text, tuple) else (text,) for text in texts]
        found: dict[str, list] = {name: [None] * len(rows) for name in self.outputs}
        for count in {len(row) for row in rows}:  # singles and pairs
            which = np.array([i for i, row in enumerate(rows) if len(row) == count])
            streams = [
                encode_texts(self.tokenizer, some)
                for some in zip(*(rows[i] for i in which), strict=True)
            ]
            sizes = [stream.sizes for stream in streams]
            plan = plan_rows(sizes, self.tokenizer, length or self.length)
            laid = lay_out(streams, plan, length or self.length, self.tokenizer)
            filled = laid.arrays["segments"].sum(-1)
            for index, scores in self.batches(laid.arrays, batch_tokens):
                for name, values in scores.items():
                    cut = name in self._per_token
                    for row, value in zip(index, values, strict=True):
                        value = value[: filled[row]] if cut else value
                        found[name][which[row]] = value
        return found

    def batches(
        self,
        arrays: dict[str, np.ndarray],
        batch_tokens: int = _BATCH_TOKENS,
        lengths: Sequence[int] = (),
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yields (rows, their outputs by name) of tokens, segments and types [N, L].

        Rows of similar length share a batch, as long as its longest, or one row if that
        has more tokens. If states depend on padding, only rows of equal length do,
        each first padded to the next of `lengths`, if there are any.
        """
        sizes = (arrays["segments"] > 0).sum(-1)
        sizes = sizes if sizes.ndim == 1 else sizes.max(1)
        if (apart := self.facts["pads"]) and lengths:
            known = np.unique(lengths)
            sizes = known[np.searchsorted(known, sizes)]
        texts = arrays["tokens"][:1, ..., 0].size  # choices of a row
        order = np.argsort(-sizes, kind="stable")
        while len(order):
            length = int(max(sizes[order[0]], 1))
            count = max(batch_tokens // (length * texts), 1)
            if apart:
                count = min(count, np.count_nonzero(sizes[order] == length))
            rows, order = order[:count], order[count:]
            some = {name: x[rows][..., :length] for name, x in arrays.items()}
            yield rows, self.score(some)

    def score(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs by name for tokens, segments and types of a batch."""
        ours = [arrays[name] for name in ("tokens", "segments", "types")]
        # The last input is there only in models with several types.
        given = zip(self.session.get_inputs(), ours, strict=False)
        feed = {each.name: array.astype(np.int64) for each, array in given}
        found: Any = self.session.run(None, feed)
        return dict(zip(self.outputs, found, strict=True))


def scores_of(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the scores among a batch's outputs: [N, L, ...], of rows [N, ...]."""
    if "start_logits" in outputs:
        return np.stack([outputs["start_logits"], outputs["end_logits"]], -1)
    return next(outputs[name] for name in _SCORES if name in outputs)
