"""Makes a trained model read longer texts: the start of a run, as an import is.

Legend: P positions, E embedding width.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from plmjax import PlmjaxError, tree
from plmjax.evaluate.model import Model, longest_row, open_models
from plmjax.files import check_new
from plmjax.interop.folder import hub_name
from plmjax.models import EncoderConfig
from plmjax.pretrain.export import IMPORTED, save_start
from plmjax.workdir import Workdir

# {family: the family that it becomes with windows and global tokens}.
_WITH_GLOBALS = {"roberta": "longformer"}
_LONGEST = 1_000_000


@dataclasses.dataclass(frozen=True)
class Extension:
    """What a model is to become; None: what fits it.

    `attention` is "window", which makes every layer local, or "full", which leaves the
    layers as they are. `positions` (repeat, interpolate) is for a learned table, `rope`
    (ntk, yarn, or a base) for rotations, `global_tokens` (none, first) for windows.
    """

    length: int
    attention: str = "full"
    window: int | None = None
    positions: str | None = None
    rope: str | None = None
    global_tokens: str | None = None

    def __post_init__(self):
        window = self.window
        if self.length > _LONGEST:
            raise PlmjaxError(
                f"--length={self.length} is more than {_LONGEST:,} tokens.",
                hint="Set a --length that your texts have.",
            )
        for name, needed in (
            ("window", "window"),
            ("global_tokens", "window"),
            ("rope", "full"),  # within a window no distance is new
        ):
            value = getattr(self, name)
            if value is not None and self.attention != needed:
                raise PlmjaxError(
                    f"--{name}={value} has no effect with "
                    f"--attention={self.attention}.",
                    hint=f"Leave it out, or set --attention={needed}.",
                )
        if window is not None and (window < 2 or window % 2):
            raise PlmjaxError(
                f"--window={window} must be even: half of the tokens are on each side.",
                hint=f"Set --window={max(window + window % 2, 2)}.",
            )
        if window is not None and window > self.length:
            raise PlmjaxError(
                f"--window={window} is more than --length={self.length}.",
                hint="Set a smaller window, or --attention=full.",
            )
        if self.rope not in (None, "ntk", "yarn") and not _number(self.rope):
            raise PlmjaxError(
                f"--rope={self.rope} is not known.",
                hint="Give ntk, yarn, or the base of the rotations, such as 160000.",
            )


def _number(text: str | None) -> float:
    """Returns a positive number, or 0."""
    try:
        number = float(text or 0)
    except ValueError:
        return 0.0
    return number if 0 < number < float("inf") else 0.0


def extend(
    source: str,
    workdir: Workdir,
    asked: Extension,
    log: Callable[[str], Any],
    checkpoint: str = "newest",
) -> None:
    """Extends the models of a run or folder, and saves them as the start of a run.

    Raises:
      PlmjaxError: the model cannot become what is asked, or the workdir is not empty.
    """
    check_new(workdir.path, "--workdir")
    extended = {}
    for name, model in open_models(source, checkpoint).items():
        trained = longest_row(source, model)
        encoder, lines = plan(model.encoder, trained, asked, source)
        params = grow(model, encoder, trained, asked)
        more, count = tree.count(params) - tree.count(model.params), tree.count(params)
        lines.append(f"Parameters: {more:,} more, {count:,} in all.")
        log("\n".join([f"The {name} read rows of {trained:,} tokens.", *lines]))
        extended[name] = dataclasses.replace(model, encoder=encoder, params=params)
    record = {"base_model": hub_name(source), "length": asked.length}
    how = f"Extended by plmjax to {asked.length} tokens, as the start of a run."
    save_start(workdir, extended, record, how, log)
    batch = max(32_768 // asked.length, 1)
    log(
        f"Written to {workdir / IMPORTED}.\n\nNext, with {batch * asked.length:,} "
        f"tokens a step:\n  plmjax pretrain texts/ --workdir={workdir.path} "
        f"--config.train.batch={batch}"
    )


def plan(
    encoder: EncoderConfig, trained: int, asked: Extension, name: str
) -> tuple[EncoderConfig, list[str]]:
    """Returns the config of an extended model, and lines that say what changes.

    `trained` is the longest row that the model was trained on.

    Raises:
      PlmjaxError: the model cannot become what is asked.
    """
    if asked.length <= trained:
        raise PlmjaxError(
            f"--length={asked.length} does not extend {name}, which reads rows of "
            f"{trained} tokens.",
            hint=f"Set a --length above {trained}.",
        )
    if encoder.attention == "disentangled":
        raise PlmjaxError(
            f"{name} is a {encoder.family}: its buckets of distances were trained for "
            f"rows of {trained} tokens, and cannot be repeated or rescaled.",
            hint="Extend a model with positions, rotations or ALiBi.",
        )
    for option, value, kind in (
        ("positions", asked.positions, "learned"),
        ("rope", asked.rope, "rope"),
    ):
        if value is not None and encoder.positions != kind:
            raise PlmjaxError(
                f"--{option}={value} has no effect: the positions of {name} are "
                f"{encoder.positions!r}.",
                hint=f"Leave --{option} out.",
            )
    layers, line = _layers(encoder, trained, asked, name)
    places, more = _positions(encoder, trained, asked, name)
    positions = asked.length + encoder.position_offset
    changed = {"max_positions": positions, **places, **layers}
    return dataclasses.replace(encoder, **changed), [more, line]


def _layers(
    encoder: EncoderConfig, trained: int, asked: Extension, name: str
) -> tuple[dict[str, Any], str]:
    """Returns the changed fields of the layers, and a line about them."""
    if asked.attention == "full":
        times = (asked.length / trained) ** 2
        return {}, (
            f"Attention: as it was; a layer that sees all of a row has {times:,.0f} "
            f"times the scores of a row of {trained:,}."
        )
    for field, wanted in (
        ("attention", "full"),
        ("layer_kinds", ()),
        ("sharing", "none"),
        ("rope_scaling", "none"),
    ):
        if (value := getattr(encoder, field)) != wanted:
            raise PlmjaxError(
                f"--attention=window cannot change {name}, which has "
                f"model.{field}={value!r}.",
                hint="Set --attention=full, which leaves its layers as they are.",
            )
    window = asked.window or max(min(512, trained) // 2 * 2, 2)
    line = f"Attention: windows of {window:,} tokens in each layer."
    if window > trained:
        line += f" WARNING: the model was trained on {trained:,} only."
    changed = {"layer_kinds": ("local",), "window": window, "rope_local_theta": None}
    wanted = asked.global_tokens
    if encoder.family in _WITH_GLOBALS:
        wanted = wanted or "first"
        changed |= {"family": _WITH_GLOBALS[encoder.family], "global_tokens": wanted}
        line += f" Global tokens: {wanted}, with copies of the projections."
    elif wanted not in (None, "none"):
        raise PlmjaxError(
            f"--global_tokens={wanted}: transformers has no {encoder.family} with "
            f"global tokens, only {', '.join(_WITH_GLOBALS)} (as Longformer).",
            hint="Leave --global_tokens out.",
        )
    return changed, line


def _positions(
    encoder: EncoderConfig, trained: int, asked: Extension, name: str
) -> tuple[dict[str, Any], str]:
    """Returns the changed fields of the positions, and a line about them."""
    if encoder.positions == "learned":
        how = {"interpolate": "interpolated"}.get(asked.positions or "", "repeated")
        return {}, f"Positions: {trained:,} trained ones, {how} to {asked.length:,}."
    if encoder.positions != "rope" or asked.attention == "window":
        return {}, f"Positions: {encoder.positions}, unchanged."
    scaling = encoder.rope_scaling
    rope = asked.rope or ("ntk" if scaling == "none" else scaling)
    if scaling not in ("none", rope):
        raise PlmjaxError(
            f"--rope={rope} cannot change {name}, which is scaled by {scaling!r}.",
            hint=f"Set --rope={scaling}.",
        )
    if base := _number(rope):
        if base <= encoder.rope_theta:
            raise PlmjaxError(
                f"--rope={rope} is not above the base of {name}, "
                f"{encoder.rope_theta:g}.",
                hint="Longer rows need a larger base; ModernBERT has 160000 for 8192.",
            )
        line = f"Rotations: base {encoder.rope_theta:g} -> {base:g}."
        return {"rope_theta": base}, line
    factor = asked.length / trained
    if scaling != "none":
        factor *= encoder.rope_factor
    changed = {"rope_scaling": rope, "rope_factor": factor}
    return changed, f"Rotations: {trained:,} -> {asked.length:,} tokens, {rope}."


def grow(
    model: Model, encoder: EncoderConfig, trained: int, asked: Extension
) -> dict[str, Any]:
    """Returns the parameters of the extended model, with the heads of the model."""
    params = tree.flatten(model.params)
    if encoder.positions == "learned":
        name, offset = "encoder/embeddings/position", encoder.position_offset
        table = np.asarray(params[name])
        rows = stretched(table[offset : offset + trained], asked)
        params[name] = np.concatenate([table[:offset], rows])
    if encoder.global_projections and not model.encoder.global_projections:
        for name in [*params]:
            if match := re.fullmatch(r"(.*/attention/)((query|key|value)/.*)", name):
                params[f"{match[1]}global_{match[2]}"] = params[name]
    return {head: {} for head in model.params} | tree.unflatten(params)


def stretched(table_PE: np.ndarray, asked: Extension) -> np.ndarray:
    """Returns a table of `asked.length` positions, repeated or interpolated.

    Repeated (the default; Longformer, arXiv:2004.05150), the first rows stay as they
    are; interpolated, the first and the last do.
    """
    count, width = table_PE.shape
    if asked.positions != "interpolate":
        return np.resize(table_PE, (asked.length, width))
    at = np.linspace(0, count - 1, asked.length)
    columns = [np.interp(at, np.arange(count), column) for column in table_PE.T]
    return np.stack(columns, axis=-1).astype(table_PE.dtype)
