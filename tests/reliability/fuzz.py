"""Changes files that plmjax reads, and sees that it says what is wrong with them.

    python tests/reliability/fuzz.py --cases=10000 --seed=0

Each case changes one file of a run, of a Hugging Face folder or of a corpus and reads
it as the verbs do. It may succeed, for not every change is wrong, or raise PlmjaxError;
any other exception, a case of more than five seconds of the processor, one that hangs,
or one that wants gigabytes, is a finding. Exit code 0 without findings.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import runs
from mutations import bytes_changed, either, header_changed, json_changed, lines_changed

_LIMIT_SECONDS = 5.0
_HANGS_SECONDS = 120.0
# What a case may take beyond what the process has.
_MEMORY_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """A file inside a folder, how it is changed, and who reads the folder."""

    folder: str
    file: str
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[Path], object]


class TooLong(BaseException):
    """Not an Exception: nothing that plmjax catches by mistake."""


def make_targets(root: Path) -> list[Target]:
    """Makes a small run and its export in root; returns all that can be changed."""
    from plmjax.interop import read_folder

    _make(root)
    (checkpoint,) = (root / "run" / "checkpoints").glob("step_*")
    at = checkpoint.relative_to(root / "run").as_posix()
    text = either(json_changed, bytes_changed)
    found = [
        Target("export", "config.json", text, read_folder),
        Target("export", "model.safetensors", header_changed, read_folder),
        Target("export", "model.safetensors", bytes_changed, read_folder),
        *(
            Target("export", path.name, text, read_folder)
            for path in sorted((root / "export").glob("*.json"))
            if path.name != "config.json"
        ),
        Target("export", "vocab.txt", bytes_changed, read_folder),
        Target("export", "config.json", text, _open_models),
        *(
            Target("run", name, text, read)
            for name, read in (
                ("config.json", _export),
                ("config.json", _go_on),
                ("run.json", _go_on),
                ("run.json", _export),
                ("scores.json", _export),
                ("examples.json", _examples),
                (f"{at}/meta.json", _go_on),
                (f"{at}/DIGESTS.json", _go_on),
            )
        ),
        Target("run", "metrics.jsonl", either(lines_changed, bytes_changed), _records),
        *(
            Target("run", path.relative_to(root / "run").as_posix(), text, _go_on)
            for path in sorted((root / "run" / "data").rglob("manifest.json"))
        ),
        *(
            Target(
                "run", path.relative_to(root / "run").as_posix(), bytes_changed, _go_on
            )
            for pattern in ("*.npy", "*.npz")
            for path in sorted((root / "run" / "data").rglob(pattern))
        ),
        Target("corpus", "a.txt", bytes_changed, _documents),
        Target("corpus", "a.jsonl", either(lines_changed, bytes_changed), _documents),
        Target("corpus", "a.parquet", bytes_changed, _documents),
        Target("configs", "a.json", text, _config),
    ]
    return [t for t in found if (root / t.folder / t.file).is_file()]


def _make(root: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    case = runs.Case(root, "nsp", steps=5, evaluate_every=5, checkpoint_every=5)
    case.write_corpus(200)
    with case.pretrain(root / "run") as group:
        (finished,) = group.finish(300)
    assert finished.code == 0, finished.output
    shutil.copytree(root / "run" / "export", root / "export")
    shutil.rmtree(root / "run" / "export")
    (root / "corpus").mkdir()
    lines = case.corpus.read_text().split("\n\n")[:50]
    (root / "corpus" / "a.txt").write_text("\n".join(lines))
    records = [{"text": line, "id": i} for i, line in enumerate(lines)]
    (root / "corpus" / "a.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records)
    )
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, root / "corpus" / "a.parquet")
    (root / "configs").mkdir()
    shutil.copy(root / "run" / "config.json", root / "configs" / "a.json")


# --- readers, as the verbs use them


def _open_models(folder: Path):
    from plmjax.evaluate.model import open_models

    return open_models(str(folder))


def _export(workdir: Path):
    from plmjax.pretrain.export import export
    from plmjax.workdir import Workdir

    export(Workdir(workdir), workdir.with_name("out"), _silent)


def _go_on(workdir: Path):
    """What `plmjax pretrain` reads before the first step of a run that goes on."""
    import jax

    from plmjax.checkpoint.checkpoints import Checkpoints
    from plmjax.pretrain.build import build, check
    from plmjax.train import sharding
    from plmjax.train.job import shapes_of
    from plmjax.workdir import Workdir

    run = Workdir(workdir)
    config = run.config()
    mesh = sharding.make_mesh(config.mesh)
    check(config, mesh)
    with jax.set_mesh(mesh):
        made = build(config, run, mesh, _silent)
        zero1, first = config.mesh.zero1, made.loader.batch(0)
        shapes = shapes_of(made.objective, config.train, mesh, zero1, first)
        checkpoints = Checkpoints(run.checkpoints, log=_silent)
        step = checkpoints.good_step()
        if step is not None:
            meta = checkpoints.meta(step)
            run.check_origin(made.origin, meta)
            checkpoints.load(step, shapes)


def _examples(workdir: Path):
    from plmjax.workdir import Workdir

    return Workdir(workdir).read("examples.json", guesses=list)


def _records(workdir: Path):
    from plmjax.report.curves import plot_curves
    from plmjax.train.metrics import MetricWriter

    MetricWriter(workdir, (), 3).close()
    plot_curves(workdir, "loss")


def _documents(folder: Path):
    from plmjax.data.config import SourceConfig
    from plmjax.data.sources import open_source

    (path,) = folder.iterdir()
    kind = {"txt": "text"}.get(path.suffix[1:], path.suffix[1:])
    source = open_source(SourceConfig(kind=kind, paths=str(path)), "strict")
    return sum(len(document) for document in source.documents())


def _config(folder: Path):
    from plmjax import config
    from plmjax.workdir import RunConfig

    found = config.load(RunConfig, str(folder / "a.json"), [], {})
    return found


def _silent(*_, **__):
    pass


# --- the program


def fuzz(root: Path, cases: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """Returns how the cases ended, by file, and the findings."""
    targets = make_targets(root)
    counts: collections.Counter = collections.Counter()
    findings: dict[str, str] = {}
    for number in range(cases):
        target = targets[number % len(targets)]
        ended, finding = _case(root, target, random.Random(f"{seed}/{number}"))
        counts[ended] += 1
        if finding and finding not in findings:
            findings[finding] = f"case {number}: {target.file}: {finding}"
            print(f"FINDING {findings[finding]}", flush=True)
    return counts, list(findings.values())


def _case(root: Path, target: Target, chance: random.Random) -> tuple[str, str]:
    """Returns how a case ended, and the finding if it is one."""
    from plmjax import PlmjaxError

    folder = root / "case" / target.folder
    shutil.rmtree(root / "case", ignore_errors=True)
    if target.folder == "corpus":
        folder.mkdir(parents=True)
        content = (root / "corpus" / target.file).read_bytes()
    else:
        shutil.copytree(root / target.folder, folder)
        content = (folder / target.file).read_bytes()
    (folder / target.file).write_bytes(target.change(content, chance))
    # Of the processor: other work on the machine is no finding. What hangs is.
    begin = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, _HANGS_SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            target.read(folder)
        ended, finding = "read", ""
    except PlmjaxError as error:
        ended = "refused"
        finding = "" if error.message else f"{target.file}: refused without a word"
    except TooLong:
        ended, finding = "hung", f"more than {_HANGS_SECONDS} s"
    except BaseException as error:  # a panic of a Rust library is no Exception
        where = traceback.extract_tb(error.__traceback__)
        ours = [f for f in where if "/plmjax/" in f.filename][-1]
        place = f"{Path(ours.filename).name}:{ours.lineno}"
        ended = "traceback"
        finding = f"{type(error).__name__} at {place}: {str(error)[:100]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.process_time() - begin
    if not finding and seconds > _LIMIT_SECONDS:
        ended, finding = "slow", f"{seconds:.0f} s"
    return ended, finding


def _too_long(*_):
    raise TooLong


def limit_memory() -> None:
    """Lets the process have so much more than it has, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    begin = time.monotonic()
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory(prefix="plmjax-fuzz-") as folder:
        import jax

        jax.devices()
        limit_memory()
        counts, findings = fuzz(Path(folder), args.cases, args.seed)
    result = {
        "cases": args.cases,
        "seed": args.seed,
        **counts,
        "findings": len(findings),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(result))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
