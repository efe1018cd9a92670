"""Measures text to tokens: plmjax's prepare against the usual Hugging Face pipeline.

    python benchmarks/prepare.py --paths='texts/*.txt' --workers=2

Both read the same documents with the same tokenizer and processes, each round from a
cold cache, with one thread per process; plmjax also writes the store, the peer's rows
stay in memory. Medians of interleaved rounds. The ids must be identical.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np

from plmjax.bench import prepare as ours
from plmjax.cli import run_program
from plmjax.cli.bench import prepare_options
from plmjax.cli.options import at_least_one, print_result
from plmjax.cli.parser import program_parser
from plmjax.data.prepare import is_held_out

LENGTH = 128  # tokens in a row of group_texts


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "time text to tokens against datasets.map(tokenizer) + group_texts",
        "python benchmarks/prepare.py --paths='texts/*.txt' --workers=2",
    )
    prepare_options(parser)
    return parser


def _run(args) -> int:
    at_least_one(args, "rounds", "workers")
    result = compare(ours.open_case(args.paths), args.rounds, args.workers)
    return print_result(args, result, as_text)


def compare(case: ours.Case, rounds: int, workers: int) -> dict[str, Any]:
    """Returns MB/s of both sides, the ratio, and whether the ids are identical."""
    ours_s, theirs_s, identical = [], [], True
    with tempfile.TemporaryDirectory() as folder:
        theirs = _transformers_tokenizer(case, folder)
        for round_ in range(rounds):
            store, seconds = case.prepare(f"{folder}/{round_}", workers)
            ours_s.append(seconds)
            begin = time.perf_counter()
            tokenised = _group_texts(case.texts, theirs, workers)
            theirs_s.append(time.perf_counter() - begin)
            if round_ == 0:
                identical = _same_ids(store, case.texts, tokenised)
    ours_rate, theirs_rate = (
        case.megabytes / statistics.median(seconds) for seconds in (ours_s, theirs_s)
    )
    return {
        **case.facts(),
        "workers": workers,
        "rounds": rounds,
        "identical_ids": identical,
        "plmjax_mb_per_s": round(ours_rate, 2),
        "datasets_mb_per_s": round(theirs_rate, 2),
        "ratio": round(ours_rate / theirs_rate, 2),
    }


def as_text(result: dict[str, Any]) -> str:
    """Returns the result as readable lines."""
    same = "identical" if result["identical_ids"] else "DIFFERENT"
    head, speed = ours.as_text(result).splitlines()
    return (
        f"{head}; ids {same}\n"
        f"{speed}\n"
        f"  datasets.map + group_texts   {result['datasets_mb_per_s']:6.2f} MB/s\n"
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


def _same_ids(store, texts: list[str], tokenised) -> bool:
    rows = tokenised["input_ids"]
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
