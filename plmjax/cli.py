"""The command line: verbs in the order in which people use them.

Nothing heavy is imported before a verb needs it, so that --help is quick.
"""

import argparse
import errno
import os
import signal
import sys
import traceback
from pathlib import Path

from plmjax import Exit, PlmjaxError, __version__

_CONFIG_HELP = """\
  --config=FILE.py[:argument]   a config file (Python: it is executed) or config.json
  --config.KEY=VALUE            any value in its place, e.g. --config.train.steps=2000
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the process's exit code (docs/cli.md lists them)."""
    argv = sys.argv[1:] if argv is None else argv
    overrides = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    rest = [a for a in argv if not a.startswith("--config.")]
    parser = _parser()
    try:
        args = parser.parse_args(rest)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    args.overrides = overrides
    if args.verb is None:
        parser.print_help()
        return Exit.USAGE
    if overrides and not hasattr(args, "config"):
        return _fail(f"`plmjax {args.verb}` takes no --config.", "", Exit.USAGE)
    _prepare_process(argv, args.debug)
    # A text may hold letters that the terminal's encoding lacks.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # Ctrl-C and SIGTERM are the same to a person; training handles both itself.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.default_int_handler)
    try:
        return args.run(args)
    except PlmjaxError as error:
        if args.debug:
            traceback.print_exc()
        return _fail(error.message, error.hint, error.code)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        return Exit.RESUMABLE
    except BrokenPipeError:
        # The reader of our output left (| head); say nothing more to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if args.verb != "pretrain":
            return Exit.OK
        message = "the reader of the output left, and the run stopped."
        return _fail(message, "The same command goes on.", Exit.RESUMABLE)
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in _DISK:
            return _fail(f"{error}.", "Free some space and run again.", Exit.DISK)
        return _fail(
            f"a bug in plmjax: {type(error).__name__}: {error}",
            "Please report it with what --debug prints.",
            Exit.INTERNAL,
        )


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def _fail(message: str, hint: str, code: Exit) -> int:
    print(f"error: {message} {hint}".rstrip(), file=sys.stderr)
    return int(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plmjax",
        description="Train encoder language models: raw text in, a model of your own "
        "in the Hugging Face format out.",
        epilog="`plmjax VERB --help` has an example for each verb.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"plmjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(name: str, run, help: str, example: str, config: bool = False, of=verbs):
        added = of.add_parser(
            name,
            help=help,
            description=help,
            epilog=(_CONFIG_HELP if config else "") + f"\nexample:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        added.add_argument(
            "--debug", action="store_true", help="show tracebacks and what is tuned"
        )
        if config:
            added.add_argument("--config", metavar="FILE", help=argparse.SUPPRESS)
        return added

    added = verb(
        "pretrain",
        _pretrain,
        "train a model from text, or go on with a run; without a config, on the "
        "documentation of the installed Python packages",
        "plmjax pretrain --config=configs/pretrain/bert_mini.py "
        "--config.data.source.paths='texts/*.txt' --workdir=runs/mine",
        config=True,
    )
    added.add_argument("--workdir", help="where the run lives (default: runs/NAME)")
    added.add_argument(
        "--dry_run",
        action="store_true",
        help="build everything, print sizes, memory, steps and the first row; stop",
    )
    added.add_argument(
        "--show_config",
        action="store_true",
        help="print every key with its type and value, and stop",
    )

    added = verb(
        "evaluate",
        _evaluate,
        "score a run on its held-out text: loss, accuracy, perplexity, bits per byte",
        "plmjax evaluate --workdir=runs/docstrings --batch=64",
    )
    added.add_argument("--workdir", required=True)
    added.add_argument("--batch", type=int, default=32, help="rows at once")
    added.add_argument("--rows", type=int, help="the first so many rows only")
    _checkpoint(added)
    _json(added)

    added = verb(
        "fill",
        _fill,
        "guess the masked words of a text",
        'plmjax fill "The [MASK] of a matrix" --model=runs/docstrings',
    )
    added.add_argument("text", help="text with one or more [MASK]")
    _model(added)
    added.add_argument("--top", type=int, default=5, help="guesses for each mask")
    _checkpoint(added)

    added = verb(
        "next",
        _next,
        "say how likely one sentence follows another, by a model trained with pairs",
        'plmjax next "It was late." "We went home." --model=runs/meditations',
    )
    added.add_argument("first", metavar="A")
    added.add_argument("second", metavar="B")
    _model(added)
    _checkpoint(added)

    added = verb(
        "detect",
        _detect,
        "show which words an ELECTRA discriminator thinks were replaced",
        'plmjax detect "The rows of a banana" --model=runs/electra',
    )
    added.add_argument("text")
    _model(added)
    _checkpoint(added)

    added = verb(
        "export",
        _export,
        "write a run as a folder that Hugging Face transformers loads",
        "plmjax export --workdir=runs/docstrings --to=my-bert",
    )
    added.add_argument("--workdir", required=True)
    added.add_argument("--to", required=True, metavar="DIR")
    added.add_argument(
        "--part",
        help="of a run with several models, generator or discriminator alone "
        "(default: each in a folder of its name)",
    )
    _checkpoint(added)

    added = verb(
        "import",
        _import,
        "take a Hugging Face folder as the start of a run",
        "plmjax import --from=bert-base-uncased --workdir=runs/continued",
    )
    added.add_argument("--from", dest="source", required=True, metavar="DIR")
    added.add_argument("--workdir", required=True)

    added = verb(
        "bench",
        None,
        "measure speed: of training, of preparing text, against Hugging Face",
        "plmjax bench peer --dtype=both --compile",
    )
    _bench_verbs(verb, added.add_subparsers(dest="what", metavar="WHAT", required=True))
    return parser


def _bench_verbs(verb, benches) -> None:
    added = verb(
        "train",
        _bench_train,
        "time the training step of a config on its own data",
        "plmjax bench train --config=configs/pretrain/bert_mini.py --steps=50",
        config=True,
        of=benches,
    )
    added.add_argument("--steps", type=int, default=20, help="steps that are timed")
    added.add_argument("--workdir", help="a run whose config and data are used")
    _json(added)

    added = verb(
        "peer",
        _bench_peer,
        "train the same model on the same text with plmjax and with Hugging Face",
        "plmjax bench peer --preset=bert-mini --dtype=both --compile --padding=both",
        of=benches,
    )
    add = added.add_argument
    kinds = ("mlm", "electra", "distill")
    add("--objective", choices=kinds, default="mlm", help="what is trained")
    add(
        "--preset",
        help="model; electra's discriminator, distill's teacher (default: bert-mini, "
        "electra-small)",
    )
    add("--length", type=int, default=128, help="tokens a row")
    add("--batch", type=int, default=16, help="rows a step")
    add("--dtype", choices=("float32", "bfloat16", "both"), default="both")
    padding = ("group_texts", "line_by_line", "both")
    add("--padding", choices=padding, default="group_texts", help="the peer's rows")
    add("--compile", action="store_true", help="measure torch.compile, too")
    add("--rounds", type=int, default=5, help="how often the sides take turns")
    add("--steps", type=int, default=10, help="steps a turn")
    add("--to_loss", type=int, default=0, metavar="STEPS", help="race so many steps")
    add("--paths", help="text files (default: docstrings of installed packages)")
    add("--vocab", metavar="PATH", help="a tokenizer (default: made from the text)")
    add("--vocab_size", type=int, help="rows of the model's table (default: 30522)")
    _json(added)

    added = verb(
        "prepare",
        _bench_prepare,
        "time text to tokens against datasets.map(tokenizer) + group_texts",
        "plmjax bench prepare --paths='texts/*.txt' --workers=2",
        of=benches,
    )
    added.add_argument("--paths", required=True, help="text files")
    added.add_argument("--rounds", type=int, default=3)
    added.add_argument("--workers", type=int, default=1, help="processes a side")
    _json(added)


def _model(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "--model", required=True, help="a run's workdir or a Hugging Face folder"
    )


def _json(added: argparse.ArgumentParser) -> None:
    added.add_argument("--json", action="store_true", help="print JSON alone")


def _checkpoint(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "--checkpoint", default="newest", help="newest (default), best, or a step"
    )


def _prepare_process(argv: list[str], debug: bool) -> None:
    """Sets what must be set before jax is imported or before the process starts."""
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if devices.isdigit() and int(devices) > 1:
        # Collectives between virtual devices block a thread each; with fewer threads
        # than that they wait for each other for ever.
        threads = max(os.cpu_count() or 1, 4 * int(devices))
        os.environ.setdefault("NPROC", str(threads))
    tunables = os.environ.get("GLIBC_TUNABLES")
    if (
        sys.platform != "linux"
        or tunables is not None
        or os.environ.get("PLMJAX_HUGE_PAGES") == "0"
        or any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/accel0", "/dev/vfio"))
    ):
        return
    # On a CPU, page faults cost a fifth of a training step; malloc reads this at start.
    if debug:
        print("Restarting with huge pages (PLMJAX_HUGE_PAGES=0 turns this off).")
    sys.stdout.flush()
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, [sys.executable, "-m", "plmjax", *argv], environment)


def _start_jax(workdir: Path | None = None) -> None:
    """Quietens the libraries, and keeps compiled programs in the workdir."""
    import logging

    import jax

    # Orbax logs a failed save from several threads, each with a traceback; we say it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("jax").setLevel(logging.ERROR)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if workdir is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(workdir / ".xla"))


def _load_config(args, workdir: Path | None):
    from plmjax import config as config_lib
    from plmjax.pretrain import EMBEDDED
    from plmjax.train.workdir import RunConfig, Workdir
    from plmjax.transfer import imported_layer

    base = imported_layer(Workdir(workdir)) if workdir else {}
    if args.config is None and not base:
        base = EMBEDDED
    return config_lib.load(RunConfig, args.config, args.overrides, base)


def _pretrain(args) -> int:
    from plmjax import config as config_lib

    workdir = Path(args.workdir) if args.workdir else None
    config = _load_config(args, workdir)
    if args.show_config:
        from plmjax.train.workdir import RunConfig

        values = config_lib.flatten(config.to_dict())
        for key, kind in config_lib.fields(RunConfig):
            if key in values:  # others belong to another kind of objective
                print(f"{key} = {values[key]!r}  ({config_lib.describe(kind)})")
        return Exit.OK
    values = config.to_dict()
    name = values["name"] or values["data"]["source"]["kind"]
    workdir = workdir or Path("runs") / name
    print(f"Run directory: {workdir}", flush=True)
    _start_jax(workdir)
    from plmjax import pretrain

    if args.dry_run:
        pretrain.dry_run(config, workdir)
        return Exit.OK
    result = pretrain.pretrain(config, workdir)
    if "stopped" in result:
        print(
            f"Stopped by {result['stopped']}; step {result['step']:,} is saved. "
            "The same command goes on from there."
        )
        return Exit.RESUMABLE
    return Exit.OK


def _evaluate(args) -> int:
    import json

    _start_jax()
    from plmjax.evaluate.held_out import score_run
    from plmjax.evaluate.model import open_run
    from plmjax.show import as_text
    from plmjax.start import teacher_arrays
    from plmjax.train.workdir import Workdir

    _at_least_one(args, "batch", "rows")
    workdir = Workdir(args.workdir)
    run = open_run(workdir, args.checkpoint)
    frozen = teacher_arrays(run.config, workdir)
    found = score_run(run, frozen, workdir, args.batch, args.rows)
    if args.json:
        print(json.dumps({"step": run.step} | found))
        return Exit.OK
    rows = int(found.pop("rows"))
    print(f"{args.workdir}, step {run.step:,}, {rows:,} held-out rows")
    width = max(map(len, found)) + 2
    for name, value in found.items():
        print(f"{name.replace('_', ' '):{width}}{as_text(name, value, 4)}")
    return Exit.OK


def _at_least_one(args, *names: str) -> None:
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise PlmjaxError(f"--{name}={value} must be at least 1.")


def _fill(args) -> int:
    _start_jax()
    from plmjax.evaluate.fill import fill
    from plmjax.evaluate.model import open_model

    _at_least_one(args, "top")
    model = open_model(args.model, args.checkpoint)
    found = fill(model, args.text, args.top)
    for number, guesses in enumerate(found, 1):
        if len(found) > 1:
            print(f"[MASK] {number}")
        for guess in guesses:
            print(f"{guess.probability:7.2%}  {guess.text}")
    return Exit.OK


def _next(args) -> int:
    _start_jax()
    from plmjax.evaluate.judge import follows
    from plmjax.evaluate.model import open_model

    model = open_model(args.model, args.checkpoint, head="pair")
    print(f"{follows(model, args.first, args.second):.2%}  that B follows A")
    return Exit.OK


def _detect(args) -> int:
    _start_jax()
    from plmjax.evaluate.judge import detect
    from plmjax.evaluate.model import open_model

    model = open_model(args.model, args.checkpoint, head="detector")
    for suspect in detect(model, args.text):
        mark = "<- replaced?" if suspect.probability > 0.5 else ""
        text = suspect.text if suspect.begins_word else f"  {suspect.text}"
        print(f"{suspect.probability:7.2%}  {text}  {mark}".rstrip())
    return Exit.OK


def _export(args) -> int:
    _start_jax()
    from plmjax.train.workdir import Workdir
    from plmjax.transfer import export

    workdir = Workdir(args.workdir)
    export(workdir, Path(args.to), print, args.checkpoint, args.part)
    return Exit.OK


def _import(args) -> int:
    _start_jax()
    from plmjax.train.workdir import Workdir
    from plmjax.transfer import import_folder

    import_folder(Path(args.source), Workdir(args.workdir), print)
    return Exit.OK


def _bench_train(args) -> int:
    from plmjax import config as config_lib
    from plmjax.train.workdir import RunConfig, Workdir

    _at_least_one(args, "steps")
    workdir = Path(args.workdir) if args.workdir else None
    if workdir and args.config is None:
        base = config_lib.to_dict(Workdir(workdir).config())
        config = config_lib.load(RunConfig, None, args.overrides, base)
    else:
        config = _load_config(args, workdir)
    _start_jax()
    from plmjax.bench import train

    return _bench_result(
        args, train, train.bench_train(config, args.steps, workdir, _log)
    )


def _bench_peer(args) -> int:
    # One device a side, whatever the machine has.
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    _start_jax()
    from plmjax.bench import case, peer

    config = case.PeerConfig(
        paths=args.paths,
        vocab=args.vocab,
        vocab_size=args.vocab_size,
        objective=args.objective,
        preset=args.preset,
        length=args.length,
        batch=args.batch,
        dtypes=case.DTYPES if args.dtype == "both" else (args.dtype,),
        paddings=case.PADDINGS if args.padding == "both" else (args.padding,),
        compile=args.compile,
        rounds=args.rounds,
        steps=args.steps,
        to_loss=args.to_loss,
    )
    return _bench_result(args, peer, peer.bench_peer(config, _log))


def _bench_prepare(args) -> int:
    from plmjax.bench import prepare

    _at_least_one(args, "rounds", "workers")
    result = prepare.bench_prepare(args.paths, None, args.rounds, args.workers)
    return _bench_result(args, prepare, result)


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _bench_result(args, bench, result: dict) -> int:
    import json

    print(json.dumps(result) if args.json else bench.as_text(result))
    return Exit.OK
