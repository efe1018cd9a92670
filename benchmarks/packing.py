"""Times an epoch of a fine-tuning in rows of one example, in buckets, and packed.

  python benchmarks/packing.py model=DIR task.kind=tags task.train=train.conll

The arguments are keys of the finetune config. Each way takes STEPS steps of each of its
row lengths, in turns with the others; the epoch's time is that of its steps' median.
"""

import argparse
import statistics
import sys
import time

import jax
from jax.sharding import Mesh

from plmjax import config as config_lib
from plmjax import machine
from plmjax.cli import run_program
from plmjax.cli.parser import program_parser
from plmjax.finetune.build import FinetuneSetup, build
from plmjax.finetune.config import FinetuneConfig
from plmjax.train import sharding
from plmjax.train.job import initialise, step_for

STEPS = 6
WAYS = {
    "one length": (),
    "buckets": ("task.buckets=(32,64)",),
    "packed": ("task.rows=packed",),
}


class Way:
    """A training of its own, and the seconds of its steps by their length."""

    def __init__(self, mesh: Mesh, overrides: list[str]):
        config = config_lib.load(FinetuneConfig, None, ["train.epochs=1", *overrides])
        self.setup: FinetuneSetup = build(config, mesh, print)
        batches, objective = self.setup.batches, self.setup.objective
        arguments = objective, config.train, mesh, False
        self.step = step_for(*arguments, batches.steps)
        self.state = initialise(objective, config.train)(batches.batch(0))
        self.lengths = [batches.rows(step)[0] for step in range(batches.steps)]
        self.seconds = {length: [] for length in set(self.lengths)}

    def run(self, number: int) -> None:
        """Takes one step of each length; the first, which compiles, is not counted."""
        for length, seconds in self.seconds.items():
            steps = [at for at, n in enumerate(self.lengths) if n == length]
            batch = self.setup.batches.batch(steps[number % len(steps)])
            rows = sharding.put_rows(self.setup.mesh, batch)
            begin = time.perf_counter()
            self.state, metrics = self.step(self.state, {}, rows)
            jax.block_until_ready(metrics)
            if number:
                seconds.append(time.perf_counter() - begin)

    def figures(self) -> str:
        size = self.setup.batches.size
        places = size * sum(self.lengths)
        real = int(self.setup.features["train"].sizes().sum())
        median = {n: statistics.median(some) for n, some in self.seconds.items()}
        epoch = sum(median[length] for length in self.lengths)
        return (
            f"{1 - real / places:6.1%} padding, {len(self.lengths):4} steps of {size} "
            f"rows, {epoch:6.1f} s an epoch"
        )


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser(
        _run,
        "an epoch of a fine-tuning in rows of one example, in buckets, and packed",
        "python benchmarks/packing.py model=DIR task.kind=tags task.train=train.conll",
    )
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE")
    return parser


def _run(args) -> int:
    mesh = sharding.make_mesh(FinetuneConfig().mesh)
    print(f"load before: {machine.load_average()}")
    with jax.set_mesh(mesh):
        ways = {
            name: Way(mesh, [*args.overrides, *more]) for name, more in WAYS.items()
        }
        for number in range(STEPS + 1):
            for way in ways.values():
                way.run(number)
    for name, way in ways.items():
        print(f"{name:10} {way.figures()}")
    print(f"load after: {machine.load_average()}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(make_parser(), __file__))
