"""Learning rates, three seeds each, for the small BERT on docstrings.

  plmjax sweep --config=learning_rate --workdir=runs/rates \\
      --parallel=2

Twelve trials, 2,400 steps each. Two CPU cores and nothing to download; docs/log.md has
the time of one such run on both cores. None is claimed for the sweep.
"""


def get_config():
    return "../pretrain/docstrings.py"


def get_hyper(hyper):
    rates = [3e-4, 6e-4, 1e-3, 1.4e-3]
    return hyper.product(
        [hyper.sweep("config.train.optimizer.learning_rate", rates), hyper.seeds(3)]
    )
