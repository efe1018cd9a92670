"""The format `prune`: a smaller folder, or one with zeros, and the curve beside it."""

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError, tree
from plmjax.compress import prune
from plmjax.compress.judge import Judge, make_judge
from plmjax.compress.score import Given, run_by_jax
from plmjax.console import as_lines, as_table
from plmjax.evaluate.model import Model, longest_row, open_models
from plmjax.files import write_json
from plmjax.interop.folder import CARD, TASK
from plmjax.interop.huggingface import export_folder
from plmjax.report.curves import plot_pruning

OPTIONS = ("layers", "heads", "neurons", "sparsity")


def write_pruned(given: Given, source: Path, to: Path) -> None:
    """Writes the model without what the options name; with --curve, the curve, too.

    Raises:
      PlmjaxError: an option that cuts nothing or all, or nothing to choose by.
    """
    model = next(iter(open_models(str(source)).values()))
    asked = {n: v for n in OPTIONS if (v := given.options[n]) is not None}
    if not asked:
        raise PlmjaxError(
            "--format=prune does not say what to cut.",
            hint="Give --layers=2, --heads=.25, --neurons=.25 or --sparsity=.5.",
        )
    prune.check(model, asked)
    pruner = _Pruner(given, source, model)
    lines, small = [], model
    for name, value in asked.items():
        small, line = pruner.cut(small, name, value)
        lines.append(line)
    zeros, left = prune.zero_share(small)
    before = tree.count(model.params)
    lines.append(
        f"{left:,} parameters are left of {before:,} ({left / before:.1%})"
        + (f", {zeros:,} of them are 0 ({zeros / left:.1%})." if zeros else ".")
    )
    for line in lines:
        given.log(line)
    texts = {
        name: (source / name).read_text(encoding="utf-8")
        for name in (CARD, TASK)
        if (source / name).exists()
    }
    card = [texts.pop(CARD, ""), "## Pruned\n", *(f"- {line}" for line in lines), ""]
    problem = export_folder(
        to,
        small.encoder,
        small.params,
        small.tokenizer,
        card="\n".join(card),
        length=longest_row(str(source), model),
        task=small.task,
        files=texts,
    )
    if problem is not None:
        given.log(f"Only plmjax can read it: {problem}")
    if given.options["curve"]:
        curves = {name: [*pruner.curve(name)] for name in asked}
        _show(given, curves, to)
        if given.part and pruner.chance:
            given.log(
                f"Scored on {given.part.size}: what is lost is known to "
                f"{pruner.chance:.1f} points (95 %), or better where it is little."
            )


class _Pruner:
    """Cuts parts out of models of one family; what to cut is chosen by one loss."""

    def __init__(self, given: Given, source: Path, model: Model):
        self.given, self.source, self.model = given, source, model
        self._scored: tuple[Any, Any] = None, None
        self._order: list[int] = []
        self.chance = 0.0  # half of the widest interval of a loss in the curves

    @functools.cached_property
    def judge(self) -> Judge:
        return make_judge(self.given, self.source, self.model)

    def order(self, count: int) -> list[int]:
        """Returns so many layers in the order in which they are left out."""
        layers = self.model.encoder.layers
        if self.given.options["layers_by"] == "top":
            return [*range(layers - 1, layers - 1 - count, -1)]
        if len(self._order) < count:
            self._order = prune.weakest_layers(
                self.judge.loss, self.judge.rows, self.model, count
            )
        return self._order[:count]

    def scores(self, model: Model) -> prune.Scores:
        if model is not self._scored[0]:
            self._scored = model, prune.importance(*self.judge, model)
        return self._scored[1]

    def cut(self, model: Model, name: str, value: Any) -> tuple[Model, str]:
        """Returns the model without a part, and a sentence on what is gone."""
        encoder = model.encoder
        if name == "layers":
            cut = sorted(self.order(value))
            line = f"Layers: {encoder.layers - value} of {encoder.layers} are left, "
            line += f"without {', '.join(map(str, cut))} (counted from 0)."
            return prune.without_layers(model, cut), line
        if name == "neurons":
            small = prune.without_neurons(model, self.scores(model), value)
            widths = f"{small.encoder.ffn_width:,} of {encoder.ffn_width:,}"
            return small, f"Neurons: {widths} are left in each layer."
        if name == "heads":
            heads = prune.weakest_heads(model, self.scores(model), value)
            each = ", ".join(f"{len(cut)}" for cut in heads.values())
            count = sum(map(len, heads.values()))
            return prune.with_zero_heads(model, heads), (
                f"Heads: {count} of {len(heads) * encoder.heads} are cut (layer by "
                f"layer: {each}). The configs of transformers have one number of heads "
                "for all layers, and their width follows from it, so the weights of "
                "these are 0: the file and the work stay as they are."
            )
        return prune.sparse(model, value), (
            f"Weights: {value} of each kernel of the layers are 0. The file and the "
            "work stay as they are, unless what runs the model uses zeros."
        )

    def curve(self, name: str) -> Iterator[tuple[float, float]]:
        """Yields (share that is left of a part, score of the model)."""
        part = self.given.part
        if part is None:
            raise PlmjaxError("--curve needs a score.", hint="Give --data=FILE.")
        whole = part.score(run_by_jax(self.model))
        if whole.score is None:
            raise PlmjaxError(
                f"{self.given.name} has no score, which --curve needs.",
                hint="Leave --curve out.",
            )
        yield 1, whole.score
        predicted = whole.predicted
        total = prune.totals(self.model)[name]
        cuts: list[Any] = [x / 10 for x in range(1, 10) if 0 < round(x / 10 * total)]
        if name == "layers":
            self.order(total - 1)
            cuts = [*range(1, total)]
        for value in cuts:
            if name == "neurons":  # by one program for all of them
                scores = self.scores(self.model)
                model = prune.without_neurons(self.model, scores, value, as_zeros=True)
            else:
                model, _ = self.cut(self.model, name, value)
            score, predicted, _ = part.score(run_by_jax(model))
            assert score is not None
            yield 1 - (value / total if name == "layers" else value), score
        # Where most is cut, most predictions are others.
        low, high = part.interval(predicted, whole.predicted) or (0, 0)
        self.chance = max(self.chance, (high - low) / 2)


def _show(given: Given, curves: dict[str, list[tuple[float, float]]], to: Path) -> None:
    metric = (given.part and given.part.metric) or "score"
    points = {name: dict(curve) for name, curve in curves.items()}
    rows = [
        (
            f"{left:.0%}",
            *(f"{p[left]:.2f}" if left in p else "" for p in points.values()),
        )
        for left in sorted({*itertools.chain(*points.values())}, reverse=True)
    ]
    title = f"{metric.replace('_', ' ')} %, by what is left"
    given.log(as_lines(as_table(title, ["left", *curves], rows)))
    write_json(to / "curve.json", {"metric": metric, "curves": curves})
    plot_pruning(to / "curve.png", metric, curves)
    given.log("The curve is in curve.png and curve.json beside the model.")
