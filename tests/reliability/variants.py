"""Runs that must be equal, and one that must not: seeds, intervals, workers.

    python tests/reliability/variants.py --objective=electra

Everything that only watches a run (how often it logs, evaluates, saves; TensorBoard;
how many processes tokenise) leaves its weights and optimizer as they are, bit for bit.
Another seed gives another model.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import runs
from test_resume import flat_state

NEVER = 10**6
WATCHED = {
    "logged seldom": ("--config.train.log_every_steps=9",),
    "evaluated seldom": (f"--config.train.evaluate_every_steps={NEVER}",),
    "saved often": ("--config.train.checkpoint_every_steps=2",),
    "not saved": (f"--config.train.checkpoint_every_steps={NEVER}",),
    "two workers": ("--config.data.workers=2",),
    "TensorBoard": ("--config.train.tensorboard=True",),
}
ALL_AT_ONCE = {
    "all at once": tuple(
        argument for name in list(WATCHED)[::-1] for argument in WATCHED[name]
    )
}


def finish(case: runs.Case, name: str, more: tuple[str, ...] = ()) -> Path:
    """Lets a run of the case go from its beginning to its end; returns its workdir."""
    workdir = case.folder / name.replace(" ", "_") / "model"
    with dataclasses.replace(case, more=more).pretrain(workdir) as group:
        for process in group.finish(300):
            assert process.code == 0, process.output
    return workdir


def same_state(one: Path, two: Path) -> bool:
    """Says whether weights and optimizer of two runs are equal, bit for bit."""
    a, b = flat_state(one), flat_state(two)
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


def check(case: runs.Case, watched: dict[str, tuple[str, ...]]) -> list[str]:
    """Returns what was not as it must be."""
    case.write_corpus()
    reference, problems = finish(case, "reference"), []
    if found := runs.differences(reference, finish(case, "again")):
        problems.append(f"the same run again differs: {found}")
    for name, more in watched.items():
        if not same_state(reference, finish(case, name, more)):
            problems.append(f"{name}: another state")
    other = finish(case, "other seed", ("--config.train.seed=1",))
    one, two = flat_state(reference), flat_state(other)
    same = [n for n in one if one[n].tobytes() == two[n].tobytes()]
    # The number of steps, and what starts at zero or one and has no gradient.
    if any(n.startswith("params") and n.endswith("kernel") for n in same):
        problems.append(f"another seed gives the same {same}")
    if len(same) == len(one):
        problems.append("another seed gives the same state")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", choices=list(runs.OBJECTIVES), default="nsp")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plmjax-variants-") as folder:
        case = runs.Case(Path(folder), args.objective, args.steps)
        problems = check(case, WATCHED)
    result = {
        "objective": args.objective,
        "equal": list(WATCHED),
        "problems": problems,
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(result))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
