"""How fast text becomes rows: prepare against the usual Hugging Face pipeline."""

import itertools
import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from plmjax.data.prepare import is_held_out, prepare
from plmjax.data.sources import SourceConfig, open_source
from plmjax.tokenizers import Tokenizer, TokenizerConfig, get_tokenizer

LENGTH = 128  # of the rows that group_texts makes
HELD_OUT_PERCENT = 2.0


def bench_prepare(
    paths: str,
    tokenizer: TokenizerConfig | None = None,
    rounds: int = 3,
    workers: int = 1,
) -> dict[str, Any]:
    """MB/s of prepare and of datasets.map(tokenizer) + group_texts, interleaved.

    Both read the same documents with the same tokenizer and processes, each round from
    a cold cache, with one thread a process (as datasets has it for several processes);
    ours also writes the store, theirs stays in memory. Medians of rounds. The ids are
    compared too; they must be identical.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    source = open_source(SourceConfig(kind="text", paths=paths))
    texts = list(source.documents())
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    config = TokenizerConfig() if tokenizer is None else tokenizer
    ours = get_tokenizer(config, texts)
    ours_s, theirs_s = [], []
    with tempfile.TemporaryDirectory() as folder:
        theirs = _transformers_tokenizer(ours, folder)
        for round_ in range(rounds):
            fresh = Tokenizer(ours.backend, ours.specials)
            begin = time.perf_counter()
            store = prepare(
                source,
                fresh,
                f"{folder}/{round_}",
                HELD_OUT_PERCENT,
                workers,
                log=lambda line: None,
            )
            ours_s.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            tokenised = _group_texts(texts, theirs, workers)
            theirs_s.append(time.perf_counter() - begin)
            if round_ == 0:
                identical = _same_ids(store, texts, tokenised)
    ours_rate = megabytes / statistics.median(ours_s)
    theirs_rate = megabytes / statistics.median(theirs_s)
    return {
        "megabytes": round(megabytes, 2),
        "documents": len(texts),
        "kind": ours.kind,
        "vocab_size": ours.vocab_size,
        "workers": workers,
        "rounds": rounds,
        "identical_ids": identical,
        "plmjax_mb_per_s": round(ours_rate, 2),
        "datasets_mb_per_s": round(theirs_rate, 2),
        "ratio": round(ours_rate / theirs_rate, 2),
    }


def as_text(result: dict[str, Any]) -> str:
    """The result of bench_prepare for a person."""
    same = "identical" if result["identical_ids"] else "DIFFERENT"
    return (
        f"{result['megabytes']} MB, {result['documents']:,} documents, "
        f"{result['kind']} of {result['vocab_size']:,}, processes {result['workers']}, "
        f"median of {result['rounds']}; ids {same}\n"
        f"  plmjax prepare               {result['plmjax_mb_per_s']:6.2f} MB/s\n"
        f"  datasets.map + group_texts   {result['datasets_mb_per_s']:6.2f} MB/s\n"
        f"  ratio                        {result['ratio']:6.2f}"
    )


def _transformers_tokenizer(tokenizer: Tokenizer, folder: str):
    import transformers

    tokenizer.save(folder, max_length=1_000_000_000)
    return transformers.AutoTokenizer.from_pretrained(folder)


def _group_texts(texts: list[str], tokenizer, workers: int):
    """As in transformers' run_mlm: tokenise, join, cut; returns the tokenised texts."""
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
            if is_held_out(text, HELD_OUT_PERCENT) == held_out
        ]
        tokens, _ = split.take(np.arange(split.tokens))
        if not np.array_equal(tokens, np.concatenate(theirs)):
            return False
    return True
