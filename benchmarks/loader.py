"""How many tokens a second one core lays out in rows: python benchmarks/loader.py RUN.

RUN is a workdir of `plmjax pretrain`, whose text is read as in training; of a mixture,
each source alone is measured, too. The clock is that of the process, so that others on
the machine hardly matter; one BLAS thread or many make no difference.
"""

import argparse
import statistics
import time

from plmjax.data.loader import Loader, Phase
from plmjax.data.mixture import JoinedStore
from plmjax.pretrain import mixtures
from plmjax.workdir import Workdir, row_plan


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the program's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=65_536, help="in a batch")
    parser.add_argument("--batches", type=int, default=30)
    return parser


def main() -> None:
    options = make_parser().parse_args()
    workdir = Workdir(options.run)
    config, store, tokenizer = workdir.config(), workdir.store(), workdir.tokenizer()
    rows = options.tokens // options.length
    for name, some in {"all": store, **store.parts}.items():
        plan = row_plan(config, some.split("train"), options.length, some)
        phases = [Phase(options.batches + 1, rows, plan)]
        if isinstance(some, JoinedStore):
            phases, _ = mixtures.mix(config.data, some, phases)
        loader = Loader(some.split("train"), phases, tokenizer, config.train.seed)
        loader.batch(0)  # maps the files
        seconds = []
        for step in range(options.batches):
            begin = time.process_time()
            loader.batch(1 + step)
            seconds.append(time.process_time() - begin)
        speed = rows * options.length * plan.fill / statistics.median(seconds)
        print(f"{name}: rows of {options.length}, {speed / 1e6:.1f} M tokens/s a core")


if __name__ == "__main__":
    main()
