"""Compares vectors a second with transformers and sentence-transformers, on CPUs.

  python benchmarks/embed.py --input=texts.txt --dtype=both

Each side reads the same texts and the same Hugging Face folder in a process of its own,
and returns the mean of each text's tokens. A measurement begins with strings and ends
with float32 vectors, so tokenizing counts. transformers gets batches of 32 texts of
similar length, as sentence-transformers forms them; plmjax runs with its defaults.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import Exit, PlmjaxError, machine
from plmjax.cli import run_program
from plmjax.cli.options import at_least_one, json_option
from plmjax.cli.parser import program_parser
from sides import DTYPES, Spec, Worker

PEERS = {
    "transformers": "Transformers",
    "sentence-transformers": "SentenceTransformers",
}
BATCH = 32
# MiniLM-L6 (Wang et al. 2020, arXiv:2002.10957), whose vectors many people use.
SHAPE = {"layers": 6, "width": 384, "heads": 12, "ffn_width": 1536}
# The largest difference of vectors of length 1, of the right order for each precision.
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}


class Side:
    """Embeds the texts of `folder`/texts.json by the model in `folder`/model."""

    def __init__(self, spec: Spec):
        self.spec, self.folder = spec, Path(spec.folder)
        self.texts: list[str] = json.loads((self.folder / "texts.json").read_text())
        self.open(str(self.folder / "model"))

    def open(self, folder: str) -> None:
        raise NotImplementedError

    def embed(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError

    def run(self) -> dict[str, float]:
        """Returns the seconds and processor seconds that all texts took."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.embed(self.texts)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"seconds": wall, "cpu_seconds": cpu}

    def first(self, name: str) -> float:
        """Embeds and saves all vectors, of length 1; returns the seconds it took."""
        begin = time.perf_counter()
        vectors = np.asarray(self.embed(self.texts), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(self.folder / f"{name}.npy", vectors)
        return time.perf_counter() - begin


class Plmjax(Side):
    def open(self, folder: str) -> None:
        from plmjax.embed.run import open_encoder
        from plmjax.embed.vectors import EmbedConfig

        dtype: Any = self.spec.dtype
        self.model, _ = open_encoder(folder)
        self.config = EmbedConfig(pooling="mean", long="truncate", dtype=dtype)

    def embed(self, texts: list[str]) -> np.ndarray:
        from plmjax.embed.run import embed_texts

        return embed_texts(self.model, texts, self.config, self.spec.length)


class Transformers(Side):
    def open(self, folder: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        dtype = getattr(torch, self.spec.dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=dtype).eval()

    def embed(self, texts: list[str]) -> np.ndarray:
        import torch

        vectors: list[Any] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        with torch.inference_mode():
            for begin in range(0, len(order), BATCH):
                some = order[begin : begin + BATCH]
                inputs = self.tokenizer(
                    [texts[i] for i in some],
                    padding=True,
                    truncation=True,
                    max_length=self.spec.length,
                    return_tensors="pt",
                )
                states = self.model(**inputs).last_hidden_state.float()
                mask = inputs["attention_mask"][..., None].float()
                means = (states * mask).sum(1) / mask.sum(1)
                for i, mean in zip(some, means.numpy(), strict=True):
                    vectors[i] = mean
        return np.stack(vectors)


class SentenceTransformers(Side):
    def open(self, folder: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        # Of a folder without modules.json it makes a model that takes the mean.
        dtype = getattr(torch, self.spec.dtype)
        self.model = SentenceTransformer(
            folder, device="cpu", model_kwargs={"dtype": dtype}
        )
        self.model.max_seq_length = self.spec.length

    def embed(self, texts: list[str]) -> np.ndarray:
        vectors = self.model.encode(
            texts, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True
        )
        return vectors.float().numpy()


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "vectors a second beside transformers and sentence-transformers",
        "python benchmarks/embed.py --input=texts.txt --dtype=both",
    )
    parser.add_argument("--input", required=True, help="a file with a text a line")
    parser.add_argument(
        "--model", metavar="DIR", help="a Hugging Face folder (default: random weights "
        "of MiniLM-L6's shape, with a vocabulary from the texts)"
    )  # fmt: skip
    parser.add_argument("--dtype", choices=(*DTYPES, "both"), default="float32")
    parser.add_argument(
        "--length", type=int, default=256, help="longest row, in tokens"
    )
    parser.add_argument("--texts", type=int, default=2000, help="texts of the file")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of a side")
    json_option(parser)
    return parser


def _run(args) -> int:
    at_least_one(args, "texts", "rounds", "length")
    lines = Path(args.input).read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()][: args.texts]
    if not texts:
        raise PlmjaxError(f"--input={args.input} holds no text.", code=Exit.DATA)
    peers = [name for name in PEERS if machine.version(name)]
    dtypes = DTYPES if args.dtype == "both" else (args.dtype,)
    before = machine.load_average()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "texts.json").write_text(json.dumps(texts))
        _link_model(args.model, texts, args.length, Path(folder) / "model")
        rows = [
            row
            for dtype in dtypes
            for row in _compare(
                Spec(folder, dtype, BATCH, args.length, 1), peers, args.rounds
            )
        ]
    result = {
        "machine": machine.facts(),
        "load": (before, machine.load_average()),
        "texts": len(texts),
        "words": sum(len(text.split()) for text in texts),
        "results": rows,
    }
    print(json.dumps(result, indent=2) if args.json else _as_text(result))
    return 0


def _link_model(given: str | None, texts: list[str], length: int, to: Path) -> None:
    """Makes `to` the folder of the model, one with random weights if none is given."""
    if given is not None:
        to.symlink_to(Path(given).resolve(), target_is_directory=True)
        return
    import jax
    import jax.numpy as jnp

    from plmjax.interop.huggingface import export_folder
    from plmjax.models import heads
    from plmjax.models.config import ModelConfig, resolve
    from plmjax.tokenizers import TokenizerConfig, get_tokenizer

    tokenizer = get_tokenizer(TokenizerConfig("wordpiece", 4096, 1), texts)
    block = ModelConfig(preset="bert-base", **SHAPE)
    encoder = resolve(block, tokenizer.vocab_size, tokenizer.pad_id)
    names = ("tokens", "segments", "positions", "types")
    batch = {name: jnp.zeros((1, length), jnp.int32) for name in names}
    params = heads.init_model(encoder, jax.random.key(0), batch, ("head",))
    card = "# Random weights of a benchmark\n"
    export_folder(to, encoder, jax.device_get(params), tokenizer, card, length)


def _compare(spec: Spec, peers: list[str], rounds: int) -> list[dict[str, Any]]:
    """Returns rates and ratios of each peer, measured between two of plmjax's runs."""
    with ExitStack() as stack:
        sides = [
            stack.enter_context(Worker(f"embed:{name}", spec))
            for name in ("Plmjax", *(PEERS[peer] for peer in peers))
        ]
        ours, *others = sides
        ours.call("first", "plmjax")  # compiles the shapes
        for peer, side in zip(peers, others, strict=True):
            side.call("first", peer)
            _check_same(Path(spec.folder), peer, spec.dtype)
        runs: dict[str, list] = {peer: [] for peer in peers}
        last = ours.call("run")
        for _ in range(rounds):
            for peer, side in zip(peers, others, strict=True):
                between = side.call("run")
                earlier, last = last, ours.call("run")
                runs[peer].append((earlier, between, last))
    return [
        {"dtype": spec.dtype, "peer": peer, **_figures(windows)}
        for peer, windows in runs.items()
    ]


def _check_same(folder: Path, peer: str, dtype: str) -> None:
    """Raises PlmjaxError if a peer's vectors are not ours."""
    here, there = (np.load(folder / f"{name}.npy") for name in ("plmjax", peer))
    if (worst := np.abs(here - there).max()) > BOUNDS[dtype]:
        raise PlmjaxError(
            f"the vectors of plmjax and {peer} in {dtype} differ by up to {worst:.2g}.",
            hint="Nothing was measured. Please report it.",
            code=Exit.NUMERIC,
        )


def _figures(windows: list[tuple[dict, dict, dict]]) -> dict[str, Any]:
    """Returns median seconds, and the ratios of the peer's time to ours."""
    figures: dict[str, Any] = {
        "plmjax_seconds": statistics.median(w["seconds"] for a, _, w in windows),
        "peer_seconds": statistics.median(w["seconds"] for _, w, _ in windows),
    }
    for name, key in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds")):
        values = [2 * b[key] / (a[key] + c[key]) for a, b, c in windows]
        figures[name] = (statistics.median(values), min(values), max(values))
    return figures


def _as_text(result: dict[str, Any]) -> str:
    before, after = result["load"]
    lines = [
        machine.as_text(result["machine"]),
        f"{result['texts']:,} texts of {result['words']:,} words; load average "
        f"{before} before, {after} after",
    ]
    for row in result["results"]:
        rates = (
            f"{result['texts'] / row[f'{name}_seconds']:,.0f}"
            for name in ("plmjax", "peer")
        )
        ratio, cpu = (
            "{:.2f} ({:.2f} to {:.2f})".format(*row[name])
            for name in ("ratio", "cpu_ratio")
        )
        lines.append(
            f"{row['dtype']}: plmjax {next(rates)} texts/s, {row['peer']} "
            f"{next(rates)}; ratio {ratio}, by CPU time {cpu}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
