"""Measures text to tokens: plmjax's prepare against the usual Hugging Face pipeline.

    python benchmarks/prepare.py --paths='texts/*.txt' --workers=2
    python benchmarks/prepare.py --paths='texts/*.txt' --kind=bpe --datatrove

All read the same documents with the same tokenizer and processes, each round from a
cold cache, with one thread per process; plmjax also writes the store, the peer's rows
stay in memory. Medians of interleaved rounds. The ids must be identical. --datatrove
adds datatrove's DocumentTokenizer, in one process, without shuffling; it writes the ids
and the ends of documents.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from plmjax import PlmjaxError
from plmjax.bench import prepare as ours
from plmjax.cli import run_program
from plmjax.cli.bench import prepare_options
from plmjax.cli.options import at_least_one, print_result
from plmjax.cli.parser import program_parser
from plmjax.data.prepare import is_held_out
from plmjax.tokenizers import TokenizerConfig

LENGTH = 128  # tokens in a row of group_texts


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "time text to tokens against datasets.map(tokenizer) + group_texts",
        "python benchmarks/prepare.py --paths='texts/*.txt' --workers=2",
    )
    prepare_options(parser)
    kinds = ("wordpiece", "bpe", "unigram")
    parser.add_argument("--kind", choices=kinds, default="wordpiece")
    parser.add_argument("--vocab_size", type=int, default=8192, help="default: 8192")
    parser.add_argument("--datatrove", action="store_true", help="time its step, too")
    return parser


def _run(args) -> int:
    at_least_one(args, "rounds", "workers", "vocab_size")
    if args.datatrove and args.workers > 1:
        raise PlmjaxError("--datatrove is timed in one process.", hint="--workers=1")
    tokenizer = TokenizerConfig(kind=args.kind, vocab_size=args.vocab_size)
    case = ours.open_case(args.paths, tokenizer)
    result = compare(case, args.rounds, args.workers, args.datatrove)
    return print_result(args, result, as_text)


def compare(
    case: ours.Case, rounds: int, workers: int, datatrove: bool = False
) -> dict[str, Any]:
    """Returns MB/s of all sides, the ratio, and whether the ids are identical."""
    seconds: dict[str, list[float]] = {}
    identical = True
    with tempfile.TemporaryDirectory() as folder:
        theirs = _transformers_tokenizer(case, folder)
        for round_ in range(rounds):
            store, took = case.prepare(f"{folder}/{round_}", workers)
            seconds.setdefault("plmjax", []).append(took)
            begin = time.perf_counter()
            tokenised = _group_texts(case.texts, theirs, workers)
            seconds.setdefault("datasets", []).append(time.perf_counter() - begin)
            rows = tokenised["input_ids"] if round_ == 0 else None
            if datatrove:
                ids, took = _datatrove(case, f"{folder}/trove-{round_}")
                seconds.setdefault("datatrove", []).append(took)
                if rows is not None:
                    joined = np.concatenate([np.asarray(row, np.int64) for row in rows])
                    identical = np.array_equal(ids, joined)
            if rows is not None:
                identical = identical and _same_ids(store, case.texts, rows)
    rates = {
        side: case.megabytes / statistics.median(each) for side, each in seconds.items()
    }
    return {
        **case.facts(),
        "workers": workers,
        "rounds": rounds,
        "identical_ids": identical,
        **{f"{side}_mb_per_s": round(rate, 2) for side, rate in rates.items()},
        "ratio": round(rates["plmjax"] / rates["datasets"], 2),
    }


def as_text(result: dict[str, Any]) -> str:
    """Returns the result as readable lines."""
    same = "identical" if result["identical_ids"] else "DIFFERENT"
    head, speed = ours.as_text(result).splitlines()
    trove = result.get("datatrove_mb_per_s")
    line = (
        "" if trove is None else f"  datatrove's tokenizer step   {trove:6.2f} MB/s\n"
    )
    return (
        f"{head}; ids {same}\n"
        f"{speed}\n"
        f"  datasets.map + group_texts   {result['datasets_mb_per_s']:6.2f} MB/s\n"
        f"{line}"
        f"  ratio                        {result['ratio']:6.2f}"
    )


def _transformers_tokenizer(case: ours.Case, folder: str):
    import transformers

    case.tokenizer.save(folder, max_length=1_000_000_000)
    return transformers.AutoTokenizer.from_pretrained(folder)


def _group_texts(texts: list[str], tokenizer, workers: int):
    """Tokenises, joins and cuts as transformers' run_mlm; returns the token lists."""
    import datasets

    datasets.disable_progress_bars()
    processes = workers if workers > 1 else None

    def tokenise(rows):
        return tokenizer(
            rows["text"], add_special_tokens=False, return_special_tokens_mask=True
        )

    def group(rows):
        joined = {key: list(itertools.chain(*rows[key])) for key in rows}
        total = len(joined["input_ids"]) // LENGTH * LENGTH
        return {
            key: [values[i : i + LENGTH] for i in range(0, total, LENGTH)]
            for key, values in joined.items()
        }

    table = datasets.Dataset.from_dict({"text": texts})
    tokenised = table.map(
        tokenise, batched=True, remove_columns=["text"], num_proc=processes
    )
    tokenised.map(group, batched=True, num_proc=processes)
    return tokenised


def _datatrove(case: ours.Case, folder: str) -> tuple[np.ndarray, float]:
    """Returns the ids that datatrove's step writes, [n], and the seconds taken."""
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    bare = tokenizers.Tokenizer.from_str(case.tokenizer.backend.to_str())
    bare.post_processor = tokenizers.processors.Sequence([])  # no [CLS] and [SEP]
    bare.save(path := f"{folder}.json")
    step = DocumentTokenizer(folder, path, shuffle_documents=False)
    begin = time.perf_counter()
    documents = (Document(text, str(n)) for n, text in enumerate(case.texts))
    for _ in step.run(documents) or ():
        pass
    took = time.perf_counter() - begin
    (file,) = Path(folder).glob("*.ds")
    return np.fromfile(file, np.uint16 if step.token_size == 2 else np.uint32), took


def _same_ids(store, texts: list[str], rows: list) -> bool:
    for name, held_out in (("train", False), ("held_out", True)):
        split = store.split(name)
        theirs = [
            np.asarray(row, np.int32)
            for text, row in zip(texts, rows, strict=True)
            if is_held_out(text, ours.HELD_OUT_PERCENT) == held_out
        ]
        tokens, _ = split.read(np.arange(split.tokens))
        if not np.array_equal(tokens, np.concatenate(theirs)):
            return False
    return True


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
