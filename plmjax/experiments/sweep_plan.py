"""The trials of a sweep file, all checked before anything starts.

A sweep file is Python, and has

  get_config([argument])  the config that all trials start from: a ConfigDict, the
                          path of a recipe, relative to the sweep file, its name
                          (pretrain/electra:tiny), or a pair of one of these and
                          {key: value} of the changes to it; with a
                          block `task` its trials are fine-tunings
  get_hyper(hyper)        a list of {key: value}, made with hyper.py
  get_space(space)        or {key: range}, made with space.py
  get_settings([argument])  or {name: {key: value}}: each is trained with the same
                          seeds, for as many FLOPs as the first
  get_study()             optional: a dict with the fields of StudyConfig
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.experiments import budget, hyper
from plmjax.experiments import space as space_lib
from plmjax.experiments.runs import as_json, naming
from plmjax.experiments.verbs import PRETRAIN, choose_objective, verb_of
from plmjax.workdir import RunConfig, names_texts

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StudyConfig(config_lib.Block):
    """The objective, the options of a search, and the pruning of trials."""

    # A figure of scores.json, or of the evaluations in metrics.jsonl. If the file names
    # none: the loss in pretraining, else the score that selects a fine-tuning's step.
    objective: str = "loss"
    maximise: bool = False
    # Options of a search: number of trials, sampler and its seed.
    trials: int | None = config_lib.number(None, at_least=1)
    sampler: Literal["tpe", "random"] = "tpe"
    seed: int = 0
    # Successive halving: at this step, and each time at `prune_factor` times as many, a
    # trial that is not among the best 1/prune_factor ends. None: no trial ends early.
    prune_from_step: int | None = config_lib.number(None, at_least=1)
    prune_factor: int = config_lib.number(3, at_least=2)
    # Number of seeds with which each setting of get_settings is trained.
    seeds: int = config_lib.number(3, at_least=1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep as its file and the command line describe it."""

    # Values that override the defaults, and "key=value" overrides of every trial.
    base: dict[str, Any]
    fixed: tuple[str, ...]
    study: StudyConfig
    # One of the two is None: the values of each trial, or the ranges to draw from.
    listed: tuple[Values, ...] | None
    space: Mapping[str, space_lib.Range] | None
    # The config of each listed trial.
    configs: tuple[dict[str, Any], ...] = ()
    # From get_settings: {name: its values and steps}; `listed` has each setting with
    # all seeds, one setting after the other.
    settings: Mapping[str, Values] = dataclasses.field(default_factory=dict)

    def config(self, values: Values) -> dict[str, Any]:
        """Returns the full config of a trial, in the form of JSON.

        Raises:
          PlmjaxError: a key or value is wrong, or the values cannot work together.
        """
        overrides = (*self.fixed, *overrides_of(values))
        verb = verb_of(self.base)
        built = config_lib.load(verb.config, None, overrides, self.base)
        if names_texts(overrides, built):  # as in the trial's command
            given = {"data": {"source": {"kind": None}}}
            built = config_lib.load(verb.config, None, overrides, self.base, given)
        flat = config_lib.flatten(config_lib.to_dict(built))
        for key, value in values.items():
            if flat[key] != _plain(value):
                raise PlmjaxError(
                    f"{key} is given as {value!r} and read as {flat[key]!r}.",
                    hint="Give the value itself, not its spelling.",
                )
        verb.check(built)
        if self.study.prune_from_step is not None and built.train.steps is None:
            raise PlmjaxError(
                "prune_from_step compares trials at steps, and nobody knows how many "
                "train.epochs are: a trial could be given up at its last.",
                hint="Set train.steps.",
            )
        # The values as built: a 10 given for a key with float values becomes 10.0.
        return as_json(config_lib.to_dict(built))


_WANTS = ("get_hyper", "get_space", "get_settings")


def load(path: str, fixed: Sequence[str] = (), seeds: int | None = None) -> Plan:
    """Reads a sweep, a recipe or FILE.py[:argument], and checks every trial it lists.

    `seeds` overrides the number of seeds that the file has for its settings.

    Raises:
      PlmjaxError: the file or a trial is wrong; the message names the trial.
    """
    name = path.partition(":")[0]
    if name.endswith(".json"):
        raise PlmjaxError(
            f"{name} is the config of one run; a sweep is a .py file that says what "
            "varies.",
            hint=f"Let get_config in it return {str(Path(name).resolve())!r}, beside "
            "get_hyper or get_space; `plmjax sweep --list` has examples.",
        )
    module, given = config_lib.load_module(path)
    wants = [w for w in _WANTS if hasattr(module, w)]
    if len(wants) != 1 or not hasattr(module, "get_config"):
        raise PlmjaxError(
            f"{name} is no sweep: it has {' and '.join(wants) or 'no get_hyper'}.",
            hint="It needs get_config, and one of get_hyper(hyper), get_space(space), "
            "get_settings(); `plmjax sweep --list` has examples.",
        )
    listed = space = None
    settings: dict[str, Values] = {}
    with config_lib.errors_of(path):
        base = module.get_config(*given)
        base, changed = base if isinstance(base, tuple) else (base, {})
        study = module.get_study() if hasattr(module, "get_study") else {}
        study = study if seeds is None else study | {"seeds": seeds}
        if hasattr(module, "get_hyper"):
            listed = tuple(_cleaned(trial) for trial in module.get_hyper(hyper))
        elif hasattr(module, "get_settings"):
            named = module.get_settings(*given).items()
            settings = {setting: _cleaned(values) for setting, values in named}
            listed = tuple(settings.values())
        else:
            space = _cleaned(module.get_space(space_lib))
    plan = Plan(
        _layer(base, name),
        (*overrides_of(_cleaned(changed)), *fixed),
        config_lib.build(StudyConfig, study),
        listed,
        space,
    )
    _check_keys(plan)
    pretrains = verb_of(plan.base) is PRETRAIN
    if settings and not pretrains:
        raise PlmjaxError(
            f"{name}: get_settings is for pretraining, at equal compute.",
            hint="List fine-tunings in get_hyper, or compare them by "
            "`plmjax compare --setting=NAME:key=value`.",
        )
    if settings:
        plan = _at_equal_compute(plan, settings)
    if listed is not None:
        plan = dataclasses.replace(plan, configs=tuple(_configs(plan)))
        first = plan.configs[0]
    else:
        first = _check_space(plan)
    if pretrains:
        return plan
    objective, maximise = choose_objective(first, study)
    goal = dataclasses.replace(plan.study, objective=objective, maximise=maximise)
    return dataclasses.replace(plan, study=goal)


def _layer(base: Any, name: str) -> dict[str, Any]:
    """Returns the values of get_config; a string is a path beside it, or a recipe."""
    if isinstance(base, str):
        beside = config_lib.find_file(name).parent / base
        is_file = Path(str(beside).partition(":")[0]).is_file()
        return config_lib.load_file(str(beside) if is_file else base)
    if isinstance(base, ConfigDict):
        base = base.to_dict()
    try:
        return as_json(base)
    except TypeError as error:
        raise PlmjaxError(f"get_config of {name}: {error}.") from error


def _cleaned(trial: Any) -> dict[str, Any]:
    """Returns a trial's values, or a space's ranges, with keys without "config."."""
    if not isinstance(trial, Mapping):
        raise PlmjaxError(f"{trial!r} is no {{key: value}}.")
    # Numpy scalars become Python numbers; sweep files often use np.logspace.
    return {
        key.removeprefix("config."): value.item() if hasattr(value, "item") else value
        for key, value in trial.items()
    }


def _check_keys(plan: Plan) -> None:
    """Raises for a key that is both varied and fixed for every trial."""
    keys = {key for trial in plan.listed or () for key in trial} | {*(plan.space or ())}
    both = keys & {override.partition("=")[0] for override in plan.fixed}
    if both:
        key = min(both)
        raise PlmjaxError(
            f"{key} is what the sweep varies, and fixed as well.",
            hint="Say one of the two.",
        )


def _at_equal_compute(plan: Plan, settings: Mapping[str, Values]) -> Plan:
    """Sets each setting's steps to the cost of the first one, and adds the seeds."""
    flops, sized = None, {}
    for name, values in settings.items():
        with naming(f"setting {name}"):
            if not re.fullmatch(r"[\w.+-]+", name):
                raise PlmjaxError(
                    "this cannot be its name.",
                    hint="Take letters, digits, '_', '-', '+' or '.'.",
                )
            if fixed := {"train.steps", "train.seed"} & values.keys():
                raise PlmjaxError(
                    f"it sets {min(fixed)}, which is not its to set: steps follow from "
                    "the compute of the first setting, seeds are those of all.",
                    hint="Set it in get_config.",
                )
            config = config_lib.build(RunConfig, plan.config(values))
            cost = budget.cost_of(config)
            flops = cost.flops if flops is None else flops
            sized[name] = values | {"train.steps": budget.steps_for(config, flops)}
    first = plan.config({})["train"]["seed"]
    listed = tuple(
        values | {"train.seed": first + seed}
        for values in sized.values()
        for seed in range(plan.study.seeds)
    )
    return dataclasses.replace(plan, listed=listed, settings=sized)


def _configs(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yields the config of each listed trial."""
    if not plan.listed:
        raise PlmjaxError("the file lists no trials.")
    seen: dict[str, int] = {}
    for number, values in enumerate(plan.listed):
        with naming(f"trial {number} ({describe(values)})"):
            config = plan.config(values)
            same = seen.setdefault(json.dumps(config), number)
            if same != number:
                raise PlmjaxError(f"it is trial {same} again.")
        yield config


def _check_space(plan: Plan) -> dict[str, Any]:
    """Checks the ends of every range, and returns the config of all first ends.

    Values between the ends are checked when they are drawn.
    """
    assert plan.space is not None
    if not plan.space:
        raise PlmjaxError("get_space names no key to vary.")
    if plan.study.trials is None:
        raise PlmjaxError(
            "nothing says how many trials to search with.",
            hint='Let get_study return {"trials": 20}.',
        )
    for key, values in plan.space.items():
        if not isinstance(values, space_lib.Range):
            raise PlmjaxError(
                f"get_space: {key} is {values!r}, which is no range.",
                hint="Use space.log, space.uniform, space.integers or space.choice.",
            )
    first = {key: values.ends[0] for key, values in plan.space.items()}
    for key, values in plan.space.items():
        for value in values.ends:
            with naming(f"{key}={value!r} of get_space"):
                plan.config(first | {key: value})
    return plan.config(first)


def overrides_of(values: Values) -> list[str]:
    """Returns the values as "key=value", in the form of the command line."""
    return [f"{key}={_text(value)}" for key, value in values.items()]


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else repr(_plain(value))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Returns {key: its shortest ending that no other key has}."""
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        names[key] = next(
            ending
            for ending in endings
            if ending == key
            or not any(k != key and f".{k}".endswith(f".{ending}") for k in keys)
        )
    return names


def describe(values: Values) -> str:
    """Returns the values of a trial as text: "learning_rate 0.001, seed 0"."""
    names = short_names([*values])
    texts = [f"{names[key]} {as_text(value)}" for key, value in values.items()]
    return ", ".join(texts) or "as the config is"


def as_text(value: Any) -> str:
    """Returns a value as text: numbers with four digits, of long paths the end."""
    if value is None:
        return "none"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"


# Most characters that a column of a table has room for.
_LONGEST = 24
