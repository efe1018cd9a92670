"""The runs of a study: every model x task x setting, with the same seeds and folds.

DIR/study.json                               the definition of the study
DIR/seed-0/                                  of `plmjax finetune --seeds`
DIR/TASK/MODEL/SETTING/seed-0/               of `plmjax compare`
  log.txt  failure.json                      the printed output, the error
  config.json  scores.json  export/ ...      the workdir of `plmjax finetune`
With folds, the last folder is seed-0-fold-0.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError
from plmjax import config as config_lib
from plmjax.experiments.budget import Budget
from plmjax.experiments.runs import Run, naming
from plmjax.finetune.config import FinetuneConfig, SeedsConfig
from plmjax.finetune.safe import safe_for
from plmjax.models import EncoderConfig

VARY = tuple(field.name for field in dataclasses.fields(SeedsConfig))
BUILT_IN = ("plain", "safe")
# Pairs of keys that set the same thing: a later override of one removes the other.
_RIVALS = {
    "train.steps": "train.epochs",
    "train.epochs": "train.steps",
    "train.ema_decay": "train.average_from_percent",
    "train.average_from_percent": "train.ema_decay",
}

# Keys that all settings must share: otherwise their scores could not be compared.
_SHARED = re.compile(
    r"(model|checkpoint|select\.metric|(seeds|folds)\..*|train\.seed"
    r"|task\.(kind|format|train|held_out|test|dataset|labels|held_out_percent"
    r"|columns\..*))"
)

# (path of a model, its checkpoint) -> its encoder.
Encoders = Callable[[str, str], EncoderConfig]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way of fine-tuning: by the safe recipe or not, with overrides on top."""

    name: str = "plain"
    safe: bool = False
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to fine-tune: one path for all seeds, or one pretrained model per seed.

    `definition` is its entry in study.json.
    """

    name: str
    paths: tuple[str, ...]
    definition: str

    def path(self, seed: int) -> str:
        """Returns the path of the model for a seed."""
        return self.paths[seed % len(self.paths)]


@dataclasses.dataclass(frozen=True)
class Repetition(Run):
    """One fine-tuning of a study, by one seed and fold."""

    task: str
    model: str
    setting: str
    seed: int
    fold: int | None
    directory: Path
    config: dict[str, Any]

    @property
    def cell(self) -> tuple[str, str, str]:
        """The (task, model, setting) of the run, which its repetitions share."""
        return self.task, self.model, self.setting

    @property
    def pair(self) -> tuple[int, int | None]:
        """The seed and fold, by which runs of different models are paired."""
        return self.seed, self.fold

    @property
    def label(self) -> str:
        """The run's name in messages, with seed and fold."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.task}, {self.model}, {self.setting}, seed {self.seed}{fold}"


@dataclasses.dataclass(frozen=True)
class Repeats(config_lib.Block, prefix="--"):
    """Number of repetitions of each run; `vary` names the seeds that differ."""

    seeds: int = config_lib.number(1, at_least=1)
    folds: int | None = config_lib.number(None, at_least=2)
    vary: tuple[str, ...] = VARY

    def __post_init__(self):
        super().__post_init__()
        for name in self.vary:
            if name not in VARY:
                raise PlmjaxError(
                    f"--vary={name} is no seed.", hint=config_lib.nearest(name, VARY)
                )


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of a study, in their order, and its definition as JSON (`stands_on`).

    `budgets` are the pretraining costs of its models, if the study pretrains them.
    """

    root: Path
    runs: tuple[Repetition, ...]
    repeats: Repeats
    stands_on: dict[str, Any]
    budgets: tuple[Budget, ...] = ()

    def cells(self) -> dict[tuple[str, str, str], list[Repetition]]:
        """Returns {(task, model, setting): its runs}."""
        cells: dict[tuple[str, str, str], list[Repetition]] = {}
        for run in self.runs:
            cells.setdefault(run.cell, []).append(run)
        return cells


def parse_setting(text: str) -> Setting:
    """Parses plain, safe, NAME:key=value,key=value or NAME:safe,key=value.

    Raises:
      PlmjaxError: the text has none of these forms.
    """
    name, colon, rest = text.partition(":")
    if not colon:
        if name not in BUILT_IN:
            raise PlmjaxError(
                f"--setting={text} is no setting that plmjax has.",
                hint=f"It has {' and '.join(BUILT_IN)}; write your own as "
                f"{name}:key=value,key=value.",
            )
        return Setting(name, name == "safe")
    if name in BUILT_IN or not re.fullmatch(r"[\w.+-]+", name):
        raise PlmjaxError(
            f"--setting={text}: {name!r} cannot be the name of a setting of yours.",
            hint="Take letters, digits, '_', '-', '+' or '.', and neither plain nor "
            "safe.",
        )
    # A value may hold commas: (32,64).
    base, *overrides = re.split(r",(?=[a-z0-9_.]+=)", rest)
    if "=" in base:
        return Setting(name, False, (base, *overrides))
    if base not in BUILT_IN:
        raise PlmjaxError(
            f"--setting={text}: {base!r} is neither key=value nor plain or safe.",
            hint="Write NAME:key=value,key=value, or NAME:safe,key=value.",
        )
    return Setting(name, base == "safe", tuple(overrides))


def named_models(paths: Sequence[str]) -> list[Model]:
    """Returns the models of several paths, with short names.

    Raises:
      PlmjaxError: a path is given twice.
    """
    return [Model(name, (p,), p) for p, name in distinct(paths, "model").items()]


def compare_plan(
    root: Path,
    models: Sequence[Model],
    tasks: Sequence[str],
    settings: Sequence[Setting],
    repeats: Repeats,
    overrides: Sequence[str],
    encoders: Encoders,
) -> Plan:
    """Returns the runs of every model x task file x setting.

    Raises:
      PlmjaxError: a file, key or name is wrong.
    """
    _check_once("--setting", [setting.name for setting in settings])
    for setting in settings:
        for key in map(_key, setting.overrides):
            if _SHARED.fullmatch(key):
                raise PlmjaxError(
                    f"setting {setting.name}: {key} is the same for all settings, or "
                    "there is nothing to compare.",
                    hint=f"Give --config.{key} for all, or another task file.",
                )
    if "model" in map(_key, overrides):
        raise PlmjaxError(
            "--config.model names one model, but several are compared.",
            hint="Give the models themselves: plmjax compare MODEL MODEL ...",
        )
    task_names = distinct(tasks, "task file")
    runs = []
    for file in tasks:
        with naming(file):
            config_lib.load(FinetuneConfig, file)
        for model in models:
            configs: dict[str, FinetuneConfig] = {}
            for setting in settings:
                given = [*overrides, f"model={model.path(0)}"]
                config = config_of(file, given, setting, encoders)
                same = [name for name, other in configs.items() if other == config]
                if same:
                    raise PlmjaxError(
                        f"the settings {same[0]} and {setting.name} come to the same "
                        f"config for {task_names[file]} and {model.name}.",
                        hint="Leave one of them out.",
                    )
                configs[setting.name] = config
                cell = task_names[file], model.name, setting.name
                directory = root.joinpath(*map(_slug, cell))
                # The baselines do not depend on the setting: one run of them is enough.
                baselines = len(configs) == 1
                for run in repetitions(config, repeats, cell, directory, baselines):
                    run.config["model"] = model.path(run.seed)
                    runs.append(run)
    return _plan(
        root,
        runs,
        repeats,
        models={model.name: model.definition for model in models},
        tasks={name: file for file, name in task_names.items()},
        settings=settings,
    )


def _plan(
    root: Path,
    runs: Sequence[Repetition],
    repeats: Repeats,
    models: dict[str, str],
    tasks: dict[str, str],
    settings: Sequence[Setting],
) -> Plan:
    named = {s.name: [s.safe, *s.overrides] for s in settings}
    stands_on = {"models": models, "tasks": tasks, "settings": named}
    return Plan(root, tuple(runs), repeats, stands_on | dataclasses.asdict(repeats))


def finetune_plan(
    root: Path, task: str, setting: Setting, config: FinetuneConfig, repeats: Repeats
) -> Plan:
    """Returns the runs of one config."""
    (model,) = named_models([str(config.model)])
    cell = task, model.name, setting.name
    return _plan(
        root,
        [*repetitions(config, repeats, cell, root, baselines=True)],
        repeats,
        models={model.name: model.definition},
        tasks={task: task},
        settings=[setting],
    )


def config_of(
    file: str | None, overrides: Sequence[str], setting: Setting, encoders: Encoders
) -> FinetuneConfig:
    """Returns the config of a setting.

    The safe recipe overrides the file, the overrides of all settings override both, and
    the setting's overrides come last.

    Raises:
      PlmjaxError: a key or value is wrong; the error names the setting if it set it.
    """
    plain = config_lib.load(FinetuneConfig, file, overrides)
    if setting == Setting(setting.name):
        return plain
    with naming(f"setting {setting.name}"):
        all_overrides = _layered(overrides, setting.overrides)
        config = config_lib.load(FinetuneConfig, file, all_overrides)
        if setting.safe and config.model is not None:
            encoder = encoders(str(config.model), config.checkpoint)
            recipe = [f"{k}={v}" for k, v in safe_for(encoder, config).items()]
            all_overrides = _layered(recipe, all_overrides)
            config = config_lib.load(FinetuneConfig, file, all_overrides)
    return config


def repetitions(
    config: FinetuneConfig,
    repeats: Repeats,
    cell: tuple[str, str, str],
    directory: Path,
    baselines: bool,
) -> Iterator[Repetition]:
    """Yields a config's runs by seed and fold.

    Raises:
      PlmjaxError: all runs would share one folder of checkpoints; a seed is too large.
    """
    checkpoints = config.train.checkpoints or ""
    if "://" in checkpoints or Path(checkpoints).is_absolute():
        raise PlmjaxError(
            f"train.checkpoints={checkpoints} would be shared by all runs of a study.",
            hint="Leave it out; each run keeps them in its own directory.",
        )
    folds = [None] if repeats.folds is None else range(repeats.folds)
    for seed in range(repeats.seeds):
        for fold in folds:
            values = config_lib.to_dict(config)
            for name in VARY:
                offset = seed if name in repeats.vary else 0
                values["seeds"][name] = config.seed(name) + offset
            values["baselines"] = config.baselines and baselines and seed == 0
            name = f"seed-{seed}"
            if fold is not None:
                values["folds"] |= {"count": repeats.folds, "fold": fold}
                name += f"-fold-{fold}"
            values = config_lib.to_dict(config_lib.build(FinetuneConfig, values))
            yield Repetition(*cell, seed, fold, directory / name, values)


def distinct(paths: Sequence[str], what: str) -> dict[str, str]:
    """Returns {path: a short name}: its last part, or as many as make it unique.

    Raises:
      PlmjaxError: a path is given twice.
    """
    absolute = {path: Path(path).absolute() for path in paths}
    _check_once(what, [str(Path(path).absolute()) for path in paths])
    parts = {path: _parts(location) for path, location in absolute.items()}
    # The paths runs/a/export and runs/b/export are named a and b.
    while len(parts) > 1 and len({names[-1] for names in parts.values()}) == 1:
        parts = {path: names[:-1] for path, names in parts.items()}
    longest = max(map(len, parts.values()))
    for length in range(1, longest + 1):
        names = {path: "/".join(names[-length:]) for path, names in parts.items()}
        if len(set(map(_slug, names.values()))) == len(names):
            return names
    raise PlmjaxError(
        f"the {what}s {', '.join(paths)} have the same name.",
        hint="Rename one of them.",
    )


def _parts(path: Path) -> tuple[str, ...]:
    """Returns the parts of a path; FILE.py:argument ends in FILE-argument."""
    file, colon, argument = path.name.partition(".py:")
    last = f"{file}-{argument}" if colon else path.name.removesuffix(".py")
    return (*path.parts[:-1], last)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-")


def _check_once(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise PlmjaxError(
                f"the {what} {name} is there twice.", hint="Name each once."
            )


def _layered(below: Sequence[str], above: Sequence[str]) -> list[str]:
    """Returns both lists of overrides, without those that `above` replaces."""
    void = set(map(_key, above))
    for override in above:
        key, _, value = override.partition("=")
        if key in _RIVALS and value.lower() not in ("", "none"):
            void.add(_RIVALS[key])
    return [*(o for o in below if _key(o) not in void), *above]


def _key(override: str) -> str:
    return override.partition("=")[0]
