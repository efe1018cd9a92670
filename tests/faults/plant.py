"""Plants small faults one at a time and says which of them the tests see.

    python tests/faults/plant.py [--only=NAME,NAME] [--jobs=2]

A line of faults.jsonl is a fault: its name, a file, `old`, which stands once in that
file, `new`, which takes its place, and the tests that must notice. Each is planted in a
copy of the working tree; those tests run there. Its verdict: RED (a test failed), GREEN
(none did), BROKEN (pytest ran none of them), MOVED (`old` is not there once; write the
fault anew where the code went). The exit code is 1 unless all are RED.
"""

import argparse
import concurrent.futures
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("faults.jsonl")
# `-n 0`: the tests of a fault are few; the faults run beside each other instead.
PYTEST = (
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-x",
    "-n",
    "0",
    "-m",
    "not accelerator",
)


def read_faults() -> list[dict]:
    """Returns the faults of the list, in its order."""
    return [json.loads(line) for line in LIST.read_text().splitlines()]


def copy_tree(to: Path) -> Path:
    """Copies the files that git tracks or would track; returns the folder."""
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(asked, cwd=ROOT, text=True).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    return to


def plant(fault: dict, tree: Path) -> tuple[str, str]:
    """Returns the verdict on a fault and the test that failed; restores the tree."""
    path = tree / fault["file"]
    text = path.read_text() if path.exists() else ""
    if text.count(fault["old"]) != 1:
        return "MOVED", fault["file"]
    path.write_text(text.replace(fault["old"], fault["new"]))
    try:
        ran = subprocess.run(
            [*PYTEST, "-p", "no:cacheprovider", *fault["tests"]],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    finally:
        path.write_text(text)
    lines = ran.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if ran.returncode == 0:
        return "GREEN", " ".join(fault["tests"])
    if ran.returncode == 1 and failed:
        return "RED", failed[0].split(" - ")[0]
    return "BROKEN", (lines or ran.stderr.splitlines() or [""])[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="names, with commas between them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    faults = read_faults()
    if wanted := set(filter(None, options.only.split(","))):
        if unknown := wanted - {fault["name"] for fault in faults}:
            parser.error(f"the list has no fault {', '.join(sorted(unknown))}.")
        faults = [fault for fault in faults if fault["name"] in wanted]
    counts, trees = Counter(), queue.SimpleQueue()

    def run(fault: dict) -> None:
        tree, begun = trees.get(), time.monotonic()
        try:
            verdict, where = plant(fault, tree)
        finally:
            trees.put(tree)
        counts[verdict] += 1
        seconds = time.monotonic() - begun
        print(f"{verdict:6} {fault['name']:36} {seconds:4.0f} s  {where}", flush=True)

    with tempfile.TemporaryDirectory(prefix="plmjax-faults-") as folder:
        for number in range(options.jobs):
            trees.put(copy_tree(Path(folder) / str(number)))
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(run, faults))
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    return 0 if set(counts) == {"RED"} else 1


if __name__ == "__main__":
    sys.exit(main())
