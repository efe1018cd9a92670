"""`plmjax embed`: vectors of texts, or of their words."""

import contextlib
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

_LOAD = {
    ".npy": """\
  import numpy as np
  vectors = np.load({path!r}, mmap_mode="r")""",
    ".parquet": """\
  import numpy as np, pyarrow.parquet as pq
  vectors = np.stack(pq.read_table({path!r})["vector"].to_numpy())""",
}


def add(verb) -> None:
    added = verb(
        "embed",
        _embed,
        "turn texts into vectors, or each word in its place in a text",
        "plmjax embed --model=runs/docstrings --input=texts.txt --output=texts.npy",
    )
    model_option(added)
    add = added.add_argument
    add(
        "--input",
        required=True,
        metavar="FILE",
        help="a .txt, a text a line; or .csv, .tsv, .jsonl, .parquet; .gz too",
    )
    add(
        "--output",
        required=True,
        metavar="FILE",
        help=".npy, or .parquet with the columns row and vector",
    )
    add("--column", default="text", help="of records, the one that holds the text")
    add(
        "--pooling",
        choices=("mean", "cls", "max"),
        help="how the vectors of a text's tokens become one (as the model was "
        "trained for embeddings, else mean)",
    )
    add(
        "--words",
        action="store_true",
        help="a vector for each word instead, the mean of its pieces; .parquet alone",
    )
    add(
        "--layer",
        type=int,
        default=-1,
        help="whose vectors: -1 is the last (default), 0 the embeddings",
    )
    add("--normalize", action="store_true", help="scale each vector to length 1")
    add(
        "--length",
        type=int,
        help="tokens a row at most (default: what the model was trained with)",
    )
    add(
        "--long",
        choices=("window", "truncate"),
        default="window",
        help="longer texts: averaged over windows (default), or cut",
    )
    add("--stride", type=int, help="tokens from one window to the next")
    add(
        "--batch_tokens",
        type=int,
        default=16384,
        help="tokens at once, padding included (16384)",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the model computes in; bfloat16 is less exact, for accelerators",
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
        open_encoder,
    )

    at_least_one(args, "batch_tokens", "stride")
    if args.words and args.pooling:
        raise PlmjaxError(
            f"--words makes no vector of a text, so --pooling={args.pooling} says "
            "nothing.",
            hint="Leave one of the two out.",
        )
    output = Path(args.output)
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
        bars: list[Bar] = []

        def seen(now: Seen) -> None:
            if not bars:
                bar = Bar("tokens", now.all_tokens, now.tokens, active=not args.json)
                bars.append(stack.enter_context(bar))
            bars[0].show(now.tokens, f"{now.texts:,} texts")

        found = embed_file(
            model,
            longest,
            args.input,
            output,
            config,
            column=args.column,
            log=log if args.json else print,
            seen=seen,
        )
    if args.json:
        print(json.dumps(found.figures() | {"output": args.output}))
    else:
        _tell(found, output, "words" if args.words else "texts")
    return Exit.RESUMABLE if found.stopped else Exit.OK


def _tell(found, output: Path, what: str) -> None:
    if found.finished:
        print(f"{output} is finished: {found.vectors:,} vectors of the same job.")
    else:
        print(
            f"Embedded {found.texts:,} texts, {found.tokens:,} tokens, in "
            f"{found.seconds:.1f} s, {found.compile_seconds:.1f} of them compiling; "
            f"else {found.texts_per_second:,.1f} docs/s, "
            f"{found.tokens_per_second:,.0f} tokens/s."
        )
    if found.stopped:
        done, all_texts = found.before + found.texts, found.report["texts"]
        print(
            f"Stopped by {found.stopped}: {done:,} of {all_texts:,} texts are done. "
            "The same command goes on."
        )
        return
    if not found.finished:
        print(f"{output}: {found.vectors:,} {what}, {found.width} numbers each.")
    print("\nIn Python:\n" + _LOAD[output.suffix].format(path=str(output)))
