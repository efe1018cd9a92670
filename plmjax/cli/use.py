"""Verbs that use trained models: evaluate, fill, next, detect."""

import json
from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import (
    at_least_one,
    checkpoint_option,
    json_option,
    log,
    model_option,
    start_jax,
)


def add(verb) -> None:
    added = verb(
        "evaluate",
        _evaluate,
        "score a run on its held-out text: loss, accuracy, perplexity, bits per byte; "
        "or a fine-tuned model on labelled data",
        "plmjax evaluate --workdir=runs/docstrings --batch=64\n"
        "  plmjax evaluate --workdir=runs/sentiment --input=test.csv",
    )
    added.add_argument(
        "--workdir", required=True, help="or a folder with a task's head"
    )
    added.add_argument(
        "--input",
        metavar="FILE",
        help="fine-tuned models: labelled data (default: its)",
    )
    added.add_argument("--batch", type=int, default=32, help="rows at once")
    added.add_argument("--rows", type=int, help="the first so many rows only")
    checkpoint_option(added)
    json_option(added)

    added = verb(
        "fill",
        _fill,
        "guess the masked words of a text",
        'plmjax fill "The [MASK] of a matrix" --model=runs/docstrings',
    )
    added.add_argument("text", help="text with one or more [MASK]")
    model_option(added)
    added.add_argument("--top", type=int, default=5, help="guesses for each mask")
    checkpoint_option(added)

    added = verb(
        "next",
        _next,
        "say how likely one sentence follows another, by a model trained with pairs",
        'plmjax next "It was late." "We went home." --model=runs/meditations',
    )
    added.add_argument("first", metavar="A")
    added.add_argument("second", metavar="B")
    model_option(added)
    checkpoint_option(added)

    added = verb(
        "detect",
        _detect,
        "show which words an ELECTRA discriminator thinks were replaced",
        'plmjax detect "The rows of a banana" --model=runs/electra',
    )
    added.add_argument("text")
    model_option(added)
    checkpoint_option(added)


def _evaluate(args) -> int:
    start_jax()
    from plmjax.evaluate.held_out import score_run
    from plmjax.evaluate.model import is_finetuned, is_folder, open_run
    from plmjax.pretrain.start import teacher_arrays
    from plmjax.report.scores import as_text
    from plmjax.workdir import Workdir

    at_least_one(args, "batch", "rows")
    if is_finetuned(Path(args.workdir)) or is_folder(Path(args.workdir)):
        return _evaluate_task(args)
    if args.input is not None:
        raise PlmjaxError(
            f"{args.workdir} is not fine-tuned; --input is for models with a task."
        )
    workdir = Workdir(args.workdir)
    run = open_run(workdir, args.checkpoint)
    frozen = teacher_arrays(run.config, workdir)
    found = score_run(run, frozen, workdir, args.batch, args.rows)
    if args.json:
        print(json.dumps({"step": run.step} | found))
        return Exit.OK
    rows = int(found.pop("rows"))
    print(f"{args.workdir}, step {run.step:,}, {rows:,} held-out rows")
    _print_scores(found, lambda name, value: as_text(name, value, 4))
    return Exit.OK


def _evaluate_task(args) -> int:
    from plmjax.finetune.predict import evaluate

    if args.rows is not None or args.checkpoint != "newest":
        raise PlmjaxError("--rows and --checkpoint are for runs of pretraining.")
    found = evaluate(args.workdir, args.input, batch=args.batch, log=log)
    if args.json:
        print(json.dumps(found))
        return Exit.OK
    among = found.pop("candidates", None)
    told = f"{args.workdir}, {int(found.pop('examples')):,} examples"
    print(told if among is None else f"{told}, {int(among):,} candidates each")
    _print_scores(found, lambda name, value: f"{value:.4f}")
    return Exit.OK


def _print_scores(found: dict, text) -> None:
    width = max(map(len, found)) + 2
    for name, value in found.items():
        print(f"{name.replace('_', ' '):{width}}{text(name, value)}")


def _fill(args) -> int:
    start_jax()
    from plmjax.evaluate.fill import fill
    from plmjax.evaluate.model import open_model

    at_least_one(args, "top")
    model = open_model(args.model, args.checkpoint)
    found = fill(model, args.text, args.top)
    for number, guesses in enumerate(found, 1):
        if len(found) > 1:
            print(f"[MASK] {number}")
        for guess in guesses:
            print(f"{guess.probability:7.2%}  {guess.text}")
    return Exit.OK


def _next(args) -> int:
    start_jax()
    from plmjax.evaluate.judge import follows
    from plmjax.evaluate.model import open_model

    model = open_model(args.model, args.checkpoint, head="pair")
    print(f"{follows(model, args.first, args.second):.2%}  that B follows A")
    return Exit.OK


def _detect(args) -> int:
    start_jax()
    from plmjax.evaluate.judge import detect
    from plmjax.evaluate.model import open_model

    model = open_model(args.model, args.checkpoint, head="detector")
    for suspect in detect(model, args.text):
        mark = "<- replaced?" if suspect.probability > 0.5 else ""
        text = suspect.text if suspect.begins_word else f"  {suspect.text}"
        print(f"{suspect.probability:7.2%}  {text}  {mark}".rstrip())
    return Exit.OK
