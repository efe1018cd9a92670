"""`plmjax embed`: vectors of texts, or of their words."""

import contextlib
from pathlib import Path

from plmjax import RESUME, Exit, PlmjaxError, counted
from plmjax.cli.options import (
    at_least_one,
    checkpoint_option,
    chosen_input,
    input_options,
    json_option,
    log,
    model_option,
    print_json_line,
    start_jax,
)

_LOAD = {
    ".npy": """\
  import numpy as np
  vectors = np.load({path!r}, mmap_mode="r")""",
    ".parquet": """\
  import numpy as np, pyarrow.parquet as pq
  vectors = np.stack(pq.read_table({path!r})["vector"].to_numpy())""",
}


def add(verb) -> None:
    """Adds the parser of `plmjax embed`."""
    added = verb(
        "embed",
        _embed,
        "turn texts, or the words in them, into vectors",
        "plmjax embed --model=runs/docstrings --input=texts.txt --output=texts.npy",
    )
    model_option(added)
    add = added.add_argument
    input_options(
        added,
        "texts: .txt (one per line), .csv, .tsv, .jsonl or .parquet; also .gz",
        "vectors: .npy, or .parquet with the columns row and vector",
    )
    add(
        "--column",
        default="text",
        help="column of the text, for all formats but .txt (default: text)",
    )
    add(
        "--pooling",
        choices=("mean", "cls", "max"),
        help="how a text's token vectors become one vector (default: as the model "
        "was trained for embeddings, else mean)",
    )
    add(
        "--words",
        action="store_true",
        help="write a vector for each word, the mean of its pieces; needs .parquet",
    )
    add(
        "--layer",
        type=int,
        default=-1,
        help="layer of the vectors: -1 is the last (default), 0 the embeddings",
    )
    add("--normalize", action="store_true", help="scale each vector to length 1")
    add(
        "--length",
        type=int,
        help="largest number of tokens in a row (default: as in training)",
    )
    add(
        "--long",
        choices=("window", "truncate"),
        default="window",
        help="longer texts: average over windows (default), or cut them",
    )
    add("--stride", type=int, help="tokens from the start of a window to the next")
    add(
        "--batch_tokens",
        type=int,
        help="number of tokens in a batch, with padding (default: 1024 on a CPU, else "
        "16384)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the computation (default: float32); bfloat16 is faster on "
        "accelerators, and less exact",
    )
    checkpoint_option(added)
    json_option(added)


def _embed(args) -> int:
    start_jax()
    from plmjax.console import Bar
    from plmjax.embed.file import check_output
    from plmjax.embed.run import (
        EmbedConfig,
        Seen,
        embed_file,
        embed_records,
        open_encoder,
    )

    at_least_one(args, "batch_tokens", "stride")
    if args.words and args.pooling:
        raise PlmjaxError(
            f"--words writes vectors of words, so --pooling={args.pooling} has no "
            "effect.",
            hint="Remove one of the two.",
        )
    output, streams = Path(args.output), args.output == "-"
    if streams and args.json:
        raise PlmjaxError(
            "--json prints figures where --output=- prints vectors.",
            hint="Remove --json, or give --output=FILE.npy.",
        )
    if not streams:
        check_output(output, args.words)
    config = EmbedConfig(
        pooling=args.pooling,
        words=args.words,
        layer=args.layer,
        normalize=args.normalize,
        length=args.length,
        long=args.long,
        stride=args.stride,
        batch_tokens=args.batch_tokens,
        dtype=args.dtype,
    )
    model, longest = open_encoder(args.model, args.checkpoint)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(chosen_input(args))
        if streams:
            more = {"column": args.column, "log": log}
            for record in embed_records(model, longest, source, config, **more):
                print_json_line(record)
            return Exit.OK
        bars: list[Bar] = []

        def seen(now: Seen) -> None:
            if not bars:
                bar = Bar("tokens", now.all_tokens, now.tokens, active=not args.json)
                bars.append(stack.enter_context(bar))
            bars[0].show(now.tokens, f"{now.texts:,} texts")

        result = embed_file(
            model,
            longest,
            source,
            output,
            config,
            column=args.column,
            log=log if args.json else print,
            seen=seen,
        )
    if args.json:
        print_json_line(result.figures() | {"output": args.output})
    else:
        _print_summary(result, output, "words" if args.words else "texts")
    return Exit.RESUMABLE if result.stopped else Exit.OK


def _print_summary(result, output: Path, what: str) -> None:
    if result.finished:
        print(f"{output} is already finished: {result.vectors:,} vectors.")
    else:
        print(
            f"Embedded {counted(result.texts, 'text')}, {result.tokens:,} tokens, in "
            f"{result.seconds:.1f} s, of which compiling took "
            f"{result.compile_seconds:.1f} s; without it "
            f"{result.texts_per_second:,.1f} docs/s, "
            f"{result.tokens_per_second:,.0f} tokens/s."
        )
    if result.stopped:
        done, all_texts = result.before + result.texts, result.report["texts"]
        print(
            f"Stopped by {result.stopped}: {done:,} of {all_texts:,} texts are done. "
            f"{RESUME}"
        )
        return
    if not result.finished:
        print(f"{output}: {result.vectors:,} {what}, {result.width} numbers each.")
    print("\nIn Python:\n" + _LOAD[output.suffix].format(path=str(output)))
