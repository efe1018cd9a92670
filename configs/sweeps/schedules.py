"""Schedules, each with its own settings, for BERT-mini on a text of your own.

  plmjax sweep --config=schedules \\
      --config.data.source.paths='texts/*.txt' --workdir=runs/schedules --parallel=2

Seven trials. One GPU each, or CPU cores and patience; no time is claimed, since the
text is yours.
"""


def get_config():
    return "../pretrain/bert_mini.py"


def get_hyper(hyper):
    kind = "config.train.schedule.kind"
    decaying = hyper.product(
        [
            hyper.sweep(kind, ["linear", "cosine"]),
            hyper.sweep("config.train.schedule.warmup_percent", [2.0, 6.0]),
        ]
    )
    # Schedules that hold their peak differ only at the end.
    holding = hyper.product(
        [
            hyper.fixed(kind, "wsd"),
            hyper.sweep("config.train.schedule.decay_percent", [10.0, 20.0]),
        ]
    )
    averaged = hyper.zipit(
        [
            hyper.fixed(kind, "constant"),
            hyper.fixed("config.train.ema_decay", 0.999),
        ]
    )
    return hyper.chainit([decaying, holding, averaged])
