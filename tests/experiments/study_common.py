"""A fine-tuning that writes what a real one writes, without training."""

import json
from pathlib import Path

import numpy as np

from plmjax import Exit, PlmjaxError
from plmjax.config import to_dict

LABELS = ("no", "yes")
TRUTH = ["no", "no", "yes", "yes", "no", "yes", "no", "yes", "yes", "no"]


def probabilities(right: int, seed: int) -> np.ndarray:
    """Returns [10, 2] of which `right` examples have the truth on top."""
    random = np.random.default_rng(seed)
    good = random.permutation(len(TRUTH))[:right]
    sure = random.uniform(0.55, 0.95, len(TRUTH))
    truth = np.array([LABELS.index(label) for label in TRUTH])
    top = np.where(np.isin(np.arange(len(TRUTH)), good), truth, 1 - truth)
    return np.where(np.arange(2) == top[:, None], sure[:, None], 1 - sure[:, None])


def write_run(directory: Path, values: dict, said: np.ndarray) -> dict:
    """Writes a finished run whose model gave these probabilities of TRUTH."""
    top = [LABELS[place] for place in said.argmax(1)]
    accuracy = float(np.mean([a == b for a, b in zip(top, TRUTH, strict=True)]))
    scores = {"loss": 1 - accuracy, "accuracy": accuracy}
    result = {"held_out": scores, "test": scores, "step": 20, "metric": "accuracy"}
    (directory / "export").mkdir(parents=True, exist_ok=True)
    (directory / "export" / "config.json").write_text('{"model_type": "bert"}')
    (directory / "config.json").write_text(json.dumps(values))
    records = [
        {"kind": "evaluation", "step": step, **scores, "seconds": 1.5 * step}
        for step in (10, 20)
    ]
    lines = [
        {
            "id": str(n),
            "label": top[n],
            "probabilities": dict(zip(LABELS, own.tolist(), strict=True)),
            "truth": TRUTH[n],
        }
        for n, own in enumerate(said)
    ]
    for name, found in (("metrics", records), ("predictions-test", lines)):
        text = "".join(json.dumps(one) + "\n" for one in found)
        (directory / f"{name}.jsonl").write_text(text)
    (directory / "scores.json").write_text(json.dumps(result))
    return result


class Pretended:
    """Stands in for `finetune`: how many answers are right, by directory's end.

    A number of right answers, "nan" for a loss that is not finite, "stop" for a signal,
    or an error to raise. `seen` lists the directories.
    """

    def __init__(self, right: dict[str, int | str | Exception]):
        self.right, self.seen = right, []

    def __call__(self, config, path: Path, log=None) -> dict:
        name = f"{path.parent.name}/{path.name}"
        self.seen.append(name)
        print("what a run says")
        what = self.right.get(name, self.right.get("others", 8))
        if what == "nan":
            raise PlmjaxError("the loss is not finite.", code=Exit.NUMERIC)
        if isinstance(what, Exception):
            raise what
        if what == "stop":
            return {"stopped": "SIGTERM", "step": 10}
        (path / "checkpoints" / "step").mkdir(parents=True)
        assert isinstance(what, int)
        seed = config.seeds.data
        return write_run(path, to_dict(config), probabilities(what, seed))
