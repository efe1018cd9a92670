"""All that is to be known of a GPU or TPU, in one run of ten minutes, as JSON.

    python benchmarks/device.py > device.json

In turns, as long as --minutes last: two short trainings, each in a process of its own,
from an empty compilation cache and from the first one's (seconds to the first step; are
the weights equal, bit for bit?); the error of the kernels of attention against XLA's;
and the speed of models with either. The text is made up: words at random, in documents
of geometric lengths. --smoke tries it all with small models, also on a CPU.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from plmjax import PlmjaxError, machine
from plmjax.cli import run_program
from plmjax.cli.options import at_least_one, json_option, log, print_result, start_jax
from plmjax.cli.parser import program_parser

# Model, length and rows of a step.
CASES = (
    ("bert-base", 128, 256),
    ("bert-base", 512, 64),
    ("modernbert-base", 1024, 32),
    ("modernbert-base", 8192, 4),
    ("electra-small", 128, 512),
    ("bert-large", 512, 32),
)
SMOKE = (("bert-tiny", 32, 4), ("modernbert-tiny", 160, 2))
# Sums into a table have no order on a GPU unless they are told to, and a product may be
# another kernel in another process.
EXACT = "--xla_gpu_deterministic_ops=true"
SIDES = ("xla", "auto")


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "speed, start, equality and kernels of a GPU or TPU",
        "python benchmarks/device.py > device.json",
    )
    add = parser.add_argument
    add("--minutes", type=int, default=10, help="begins nothing later (default: 10)")
    add("--steps", type=int, default=20, help="timed steps of a model (default: 20)")
    add("--words", type=int, default=400, help="of a document, on average")
    add("--smoke", action="store_true", help="small models, to try the program")
    json_option(parser)
    return parser


def _run(args) -> int:
    at_least_one(args, "minutes", "steps", "words")
    args.json = True  # there is no other form
    return print_result(args, bench_device(args), str)


def bench_device(args) -> dict[str, Any]:
    """Returns the figures of all parts, ready for JSON."""
    end = time.monotonic() + 60 * args.minutes
    result: dict[str, Any] = {"machine": machine.facts()}
    cases = SMOKE if args.smoke else CASES
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        write_text(text, 200_000 if args.smoke else 3_000_000, args.words)
        parts["start"] = lambda: starts(cases[0], text, Path(folder))
        parts["kernels"] = lambda: errors(args.smoke)
        for case in cases:
            for side in SIDES:
                name = f"{case[0]} {case[1]} {side}"
                parts[name] = lambda c=case, s=side: speed(c, s, text, args.steps)
        for name, part in parts.items():
            if time.monotonic() > end:
                result[name] = {"left out": f"after {args.minutes} minutes"}
                continue
            log(f"{name} ...")
            begin = time.monotonic()
            try:
                result[name] = part()
            except (PlmjaxError, RuntimeError) as error:  # the next part may do
                result[name] = {"error": str(error)[:2000]}
            result[name]["seconds"] = round(time.monotonic() - begin, 1)
            log(f"{name}: {result[name]}")
    return result


def write_text(path: Path, words: int, mean: int) -> None:
    """Writes documents, a line each, of a geometric number of words."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    known = ["".join(rng.choice(letters, n)) for n in rng.integers(2, 8, 5000)]
    lengths = rng.geometric(1 / mean, words // mean)
    with path.open("w") as file:
        for length in lengths:
            file.write(" ".join(rng.choice(known, length)) + "\n")


def options(case: tuple[str, int, int], side: str, text: Path) -> list[str]:
    """Returns the options of a training of a case."""
    preset, length, rows = case
    given = {
        "data.source.paths": text,
        "data.source.kind": "text",
        "data.source.document": "line",
        "data.length": length,
        "data.accept_warnings": "True",
        "tokenizer.vocab_size": 2000,
        "model.preset": preset,
        "model.vocab_size": 50_368 if "modern" in preset else 30_522,
        "model.dtype": "bfloat16",
        "train.batch": rows,
        "train.steps": 10,
        "train.log_every_steps": 1,
        "train.attention": side,
        "train.tensorboard": "False",
    }
    if "electra" in preset:
        given["objective.kind"] = "electra"
    if "modern" in preset:
        given["model.max_positions"] = max(length, 1024)
    return [f"--config.{name}={value}" for name, value in given.items()]


def starts(case, text: Path, folder: Path) -> dict[str, Any]:
    """Returns seconds to the first step, cold and warm; are the weights equal?"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {EXACT}".strip()
    child = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "XLA_FLAGS": flags,
    }
    command = [sys.executable, "-m", "plmjax", "pretrain", *options(case, "auto", text)]
    runs = [folder / "cold", folder / "warm"]

    def call(workdir: Path, *more: str) -> subprocess.Popen:
        given = [*command, f"--workdir={workdir}", *more]
        with (folder / "output").open("w") as output:
            return subprocess.Popen(given, env=child, stdout=output, stderr=output)

    def finish(process: subprocess.Popen) -> None:
        if process.wait():
            raise PlmjaxError((folder / "output").read_text()[-2000:])

    finish(call(runs[0], "--dry_run=shapes"))
    shutil.copytree(runs[0], runs[1])
    found: dict[str, Any] = {"XLA_FLAGS": flags}
    digests = []
    for workdir in runs:
        begin, metrics = time.monotonic(), workdir / "metrics.jsonl"
        process = call(workdir)
        while process.poll() is None and not (
            metrics.exists() and metrics.stat().st_size
        ):
            time.sleep(0.05)
        found[f"{workdir.name}_s"] = round(time.monotonic() - begin, 2)
        finish(process)
        weights = sorted((workdir / "export").rglob("*.safetensors"))
        assert weights
        digests.append([hashlib.sha256(x.read_bytes()).hexdigest() for x in weights])
    return found | {"equal": digests[0] == digests[1]}


def errors(smoke: bool) -> dict[str, Any]:
    """Returns the errors of the kernels and of XLA, against float32 products.

    Each is the largest difference, of the result and of the three gradients, in parts
    of the largest value. On a CPU the kernels are interpreted.
    """
    import jax
    import jax.numpy as jnp

    from plmjax.models import Noise, Platform
    from plmjax.models.attention import attend
    from plmjax.models.positions import reach
    from plmjax.models.tiles import Way

    rows, heads, length, width = (1, 2, 64, 32) if smoke else (2, 12, 1024, 64)
    rng = np.random.default_rng(0)
    arrays = [
        jnp.asarray(rng.normal(size=(rows, heads, length, width)), jnp.bfloat16)
        for _ in range(4)
    ]
    segments = jnp.asarray(np.sort(rng.integers(0, 4, (rows, length)), axis=1))
    noise = Noise(jnp.uint32(1), jnp.uint32(2), jnp.arange(rows, dtype=jnp.int32))
    one = Platform.of(jax.devices()[:1])

    def run(kernels: bool, dtype: str, window: int, rate: float) -> list:
        platform = Platform(one.kind, one.multiplies_bf16, True, kernels)
        way = Way(platform, rate, "site", window)
        bounds = reach(segments, window=window)

        def loss(query, key, value, weights):
            found: Any = attend(way, query, (key, value), bounds, noise)
            return (found * weights).astype(jnp.float32).sum(), found

        given = [x.astype(dtype) for x in arrays]
        with jax.default_matmul_precision("highest"):
            grads, found = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*given)
        return [np.asarray(x, np.float64) for x in (found, *grads)]

    result = {}
    for window, rate in ((0, 0.0), (length // 8, 0.0), (0, 0.1)):
        exact = run(False, "float32", window, rate)
        for kernels in (False, True):
            for dtype in ("float32", "bfloat16"):
                pairs = zip(run(kernels, dtype, window, rate), exact, strict=True)
                side = "kernels" if kernels else "XLA"
                result[f"{side} {dtype}, window {window}, dropout {rate}"] = [
                    float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs
                ]
    return result


def speed(case, side: str, text: Path, steps: int) -> dict[str, Any]:
    """Returns the figures of `plmjax bench train`, and what computes the attention."""
    from plmjax import config as config_lib
    from plmjax.bench.train import bench_train
    from plmjax.pretrain.run import DEFAULT_CONFIG
    from plmjax.workdir import RunConfig

    start_jax()
    given = options(case, side, text)
    lines: list[str] = []
    overrides = [option.removeprefix("--config.") for option in given]
    config = config_lib.load(RunConfig, None, overrides, DEFAULT_CONFIG)
    result = bench_train(config, steps, log=lines.append)
    attention = [line for line in lines if line.startswith("Attention: ")]
    return {
        "attention": attention[0] if attention else "Attention: XLA.",
        "devices": result["devices"],
        **result["phases"][0],
    }


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
