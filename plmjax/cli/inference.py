"""Verbs that use trained models: evaluate, fill, next, detect."""

from pathlib import Path

from plmjax import Exit, PlmjaxError
from plmjax.cli.options import (
    at_least_one,
    checkpoint_option,
    json_option,
    log,
    model_option,
    not_empty,
    print_json_line,
    print_result,
    renamed,
    standard_input,
    start_jax,
)


def add(verb) -> None:
    """Adds the parser of `plmjax evaluate`, `fill`, `next` and `detect`."""
    added = verb(
        "evaluate",
        _evaluate,
        "score a run on its held-out text: loss, accuracy, perplexity, bits per byte; "
        "any models on a text; or a fine-tuned model on labelled data",
        "plmjax evaluate --workdir=runs/docstrings --batch=64\n"
        "  plmjax evaluate --model=runs/mine,models/bert-base --text=test.txt\n"
        "  plmjax evaluate --workdir=runs/sentiment --input=test.csv",
    )
    added.add_argument("--workdir", help="a run, or a folder of a fine-tuned model")
    added.add_argument(
        "--model",
        type=not_empty("--model"),
        action="append",
        default=[],
        help="with --text: workdirs or Hugging Face folders; the first is compared "
        "with the others",
    )
    added.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="FILES",
        help="text of which the same words are hidden from every model",
    )
    added.add_argument(
        "--input",
        metavar="FILE",
        help="labelled data for a fine-tuned model (default: the data of its config)",
    )
    added.add_argument(
        "--batch", type=int, default=32, help="rows per batch (default: 32)"
    )
    added.add_argument(
        "--rows", type=int, help="score only the first ROWS rows, or windows of text"
    )
    checkpoint_option(added)
    json_option(added)

    added = verb(
        "fill",
        _fill,
        "predict the masked words of a text",
        'plmjax fill "The [MASK] of a matrix" --model=runs/docstrings',
    )
    added.add_argument(
        "text",
        help="text with one or more [MASK]; - for a text a line of standard input",
    )
    model_option(added)
    added.add_argument("--top", type=int, default=5, help="words per mask (default: 5)")
    checkpoint_option(added)
    json_option(added)

    added = verb(
        "next",
        _next,
        "print how likely sentence B follows sentence A, by a model trained on pairs",
        'plmjax next "It was late." "We went home." --model=runs/meditations',
    )
    added.add_argument("first", metavar="A", help="the first sentence")
    added.add_argument("second", metavar="B", help="the second sentence")
    model_option(added)
    checkpoint_option(added)
    json_option(added)

    added = verb(
        "detect",
        _detect,
        "print how likely each word was replaced, by an ELECTRA discriminator",
        'plmjax detect "The rows of a banana" --model=runs/electra',
    )
    added.add_argument("text", help="a text in which words may have been replaced")
    model_option(added)
    checkpoint_option(added)
    json_option(added)


def _evaluate(args) -> int:
    start_jax()
    from plmjax.evaluate.held_out import score_run
    from plmjax.evaluate.model import is_finetuned, is_folder, open_run
    from plmjax.pretrain.start import teacher_arrays
    from plmjax.report.scores import as_text
    from plmjax.workdir import Workdir

    at_least_one(args, "batch", "rows")
    models = [name for some in args.model for name in some.split(",")]
    if args.text:
        return _evaluate_text(args, [args.workdir] * bool(args.workdir) + models)
    if args.workdir is None and len(models) == 1:
        args.workdir, models = models[0], []
    if args.workdir is None or models:
        raise PlmjaxError(
            "it is not clear what to score.",
            hint="Give --workdir=RUN for its held-out text, or --model=A,B and "
            "--text=FILES.",
        )
    if is_finetuned(Path(args.workdir)) or is_folder(Path(args.workdir)):
        return _evaluate_task(args)
    if args.input is not None:
        raise PlmjaxError(
            f"--input needs a fine-tuned model; {args.workdir} is not one.",
            hint="Remove --input to score the held-out text.",
        )
    workdir = Workdir(args.workdir)
    run = open_run(workdir, args.checkpoint)
    frozen = teacher_arrays(run.config, workdir)
    scores = score_run(run, frozen, workdir, args.batch, args.rows)

    def lines(scores: dict) -> str:
        step, rows = scores.pop("step"), int(scores.pop("rows"))
        header = f"{args.workdir}, step {step:,}, {rows:,} held-out rows"
        return _table(header, scores, lambda name, value: as_text(name, value, 4))

    return print_result(args, {"step": run.step} | scores, lines)


def _evaluate_text(args, models: list[str]) -> int:
    from plmjax.console import Bar
    from plmjax.data.sources import SourceConfig, open_source
    from plmjax.evaluate.texts import (
        make_plan,
        notes,
        open_contender,
        score_texts,
        trained_on,
    )
    from plmjax.report.scores import text_lines

    if not models or args.input is not None:
        raise PlmjaxError(
            "--text needs --model=RUN_OR_FOLDER, and no --input.",
            hint="Several models, joined by commas, are compared.",
        )
    contenders = [open_contender(path, args.checkpoint) for path in models]
    with renamed("data.source.paths", "--text"):
        source = open_source(SourceConfig(paths=tuple(args.text)))
        plan = make_plan(contenders, source.documents(), args.rows)
    warnings = [line for path in models if (line := trained_on(path, source))]
    lines = warnings + notes(contenders, plan)
    figures = {
        "documents": plan.documents,
        "windows": len(plan.windows.bytes),
        "words": len(plan.words.bytes),
    }
    log(
        f"{figures['documents']:,} documents in {figures['windows']:,} windows; "
        f"{figures['words']:,} words are hidden from every model."
    )
    bars: dict[str, Bar] = {}

    def seen(name: str, total: int, done: int) -> None:
        bar = bars.setdefault(name, Bar("windows", total, active=not args.json))
        bar.show(done, name)

    records = score_texts(contenders, plan, args.batch, seen)
    return print_result(
        args,
        figures | {"models": records, "notes": lines},
        lambda _: "\n".join([*text_lines(records), *lines]),
    )


def _evaluate_task(args) -> int:
    from plmjax.finetune.predict import evaluate

    if args.rows is not None or args.checkpoint != "newest":
        raise PlmjaxError(
            "--rows and --checkpoint need a pretraining; "
            f"{args.workdir} is a fine-tuned model.",
            hint="Remove them.",
        )
    scores = evaluate(args.workdir, args.input, batch=args.batch, log=log)

    def lines(scores: dict) -> str:
        among = scores.pop("candidates", None)
        header = f"{args.workdir}, {int(scores.pop('examples')):,} examples"
        header += "" if among is None else f", {int(among):,} candidates each"
        return _table(header, scores, lambda name, value: f"{value:.4f}")

    return print_result(args, scores, lines)


def _table(header: str, scores: dict, text) -> str:
    width = max(map(len, scores)) + 2
    lines = (f"{n.replace('_', ' '):{width}}{text(n, v)}" for n, v in scores.items())
    return "\n".join([header, *lines])


def _fill(args) -> int:
    start_jax()
    from plmjax.evaluate.fill import fill
    from plmjax.evaluate.model import open_model

    at_least_one(args, "top")
    model = open_model(args.model, args.checkpoint)
    if args.json or args.text == "-":
        for text in standard_input() if args.text == "-" else [args.text]:
            masks = [
                [g._asdict() for g in mask] for mask in fill(model, text, args.top)
            ]
            print_json_line({"text": text, "masks": masks})
        return Exit.OK
    guesses_of_masks = fill(model, args.text, args.top)
    for number, guesses in enumerate(guesses_of_masks, 1):
        if len(guesses_of_masks) > 1:
            print(f"[MASK] {number}")
        for guess in guesses:
            print(f"{guess.probability:7.2%}  {guess.text}")
    return Exit.OK


def _next(args) -> int:
    start_jax()
    from plmjax.evaluate.judge import follows
    from plmjax.evaluate.model import open_model

    model = open_model(args.model, args.checkpoint, head="pair")
    share = follows(model, args.first, args.second)
    result = {"probability": share}
    return print_result(args, result, lambda _: f"{share:.2%}  that B follows A")


def _detect(args) -> int:
    start_jax()
    from plmjax.evaluate.judge import detect
    from plmjax.evaluate.model import open_model

    model = open_model(args.model, args.checkpoint, head="detector")
    suspects = detect(model, args.text)

    def lines(_) -> str:
        return "\n".join(
            f"{suspect.probability:7.2%}  {' ' * 2 * (not suspect.begins_word)}"
            f"{suspect.text}{'  <- replaced?' * (suspect.probability > 0.5)}".rstrip()
            for suspect in suspects
        )

    pieces = [suspect._asdict() for suspect in suspects]
    return print_result(args, {"text": args.text, "pieces": pieces}, lines)
