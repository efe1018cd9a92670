"""`plmjax pseudo`."""

from pathlib import Path

from plmjax import PlmjaxError
from plmjax.cli.options import (
    at_least_one,
    log,
    start_jax,
    stopped,
)


def add(verb) -> None:
    """Adds the parser of `plmjax pseudo`."""
    added = verb(
        "pseudo",
        _pseudo,
        "fine-tune on labelled data and on the model's own predictions for unlabelled "
        "texts, in rounds",
        "plmjax pseudo --config.model=runs/mine --config.task.train=few.csv "
        "--unlabelled=many.txt --threshold=0.9 --rates=0,0.5,1 --seeds=3 "
        "--workdir=runs/pseudo",
        config=True,
    )
    add = added.add_argument
    add("--workdir", required=True, help="directory of the rounds")
    add("--unlabelled", required=True, help="texts, as for `plmjax predict --input`")
    add(
        "--threshold",
        type=float,
        default=0.9,
        help="smallest probability of a pseudo-label, 0 to 1 (default: 0.9)",
    )
    rates = added.add_mutually_exclusive_group()
    rates.add_argument(
        "--rate", type=float, default=1.0, help="share of the sure texts to learn from"
    )
    rates.add_argument("--rates", help="several rates to compare, separated by commas")
    kinds = added.add_mutually_exclusive_group()
    kinds.add_argument(
        "--hard", action="store_true", help="learn the likeliest label (default)"
    )
    kinds.add_argument("--soft", action="store_true", help="learn the probabilities")
    add("--rounds", type=int, default=1, help="number of rounds (default: 1)")
    add(
        "--weight",
        type=float,
        default=1.0,
        help="weight of a pseudo-label; a label weighs 1 (default: 1)",
    )
    add(
        "--proportions",
        choices=("labelled", "kept"),
        default="labelled",
        help="no label's share above that of the labelled (default), or as they come",
    )
    chains = added.add_mutually_exclusive_group()
    chains.add_argument(
        "--folds", type=int, metavar="K", help="cross-validation: all rounds in each"
    )
    chains.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="run all rounds with N seeds"
    )


def _pseudo(args) -> int:
    from plmjax import config as config_lib
    from plmjax.finetune.config import FinetuneConfig

    at_least_one(args, "rounds", "seeds")
    config = config_lib.load(FinetuneConfig, args.config, args.overrides)
    workdir = Path(args.workdir)
    start_jax(workdir)
    from plmjax.experiments.pseudo import Plan, pseudo
    from plmjax.experiments.pseudo_labels import PseudoConfig
    from plmjax.files import missing, no_empty_directory

    plan = Plan(
        unlabelled=args.unlabelled,
        settings=PseudoConfig(args.threshold, args.soft, args.weight, args.proportions),
        rates=_rates(args),
        rounds=args.rounds,
        folds=args.folds,
        seeds=args.seeds,
    )
    with no_empty_directory(missing(workdir)):
        return stopped(pseudo(config, plan, workdir, log))


def _rates(args) -> tuple[float, ...]:
    """Returns the rates, ascending, without 0: round 0 always runs."""
    if args.rates is None:
        rates = {args.rate}
    else:
        try:
            rates = {float(part) for part in args.rates.split(",")}
        except ValueError:
            raise PlmjaxError(
                f"--rates={args.rates} must be numbers, joined by commas."
            ) from None
    return tuple(sorted(rates - {0.0}))
