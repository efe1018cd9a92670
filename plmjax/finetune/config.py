"""The config of a fine-tuning run."""

import dataclasses
from typing import Literal

from plmjax import PlmjaxError
from plmjax.config import Block, number
from plmjax.finetune.lora import LoraConfig
from plmjax.finetune.start import StartConfig
from plmjax.interop.card import CardConfig
from plmjax.objectives.supervised import SupervisedConfig
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.train.config import SEED, MeshConfig, OptimizerConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class SeedsConfig(Block, prefix="seeds."):
    """Seeds of random numbers; none: train.seed. They can be varied one at a time."""

    data: int | None = number(None, **SEED)  # the order of the rows
    init: int | None = number(None, **SEED)  # the new head, and re-initialised layers
    dropout: int | None = number(None, **SEED)


@dataclasses.dataclass(frozen=True)
class SelectConfig:
    """The choice of the step whose weights are kept."""

    # One of the task's scores, or loss; none: the task's usual one (docs/tasks.md).
    metric: str | None = None
    keep: Literal["best", "last"] = "best"


@dataclasses.dataclass(frozen=True)
class FoldsConfig(Block, prefix="folds."):
    """Cross-validation: the held-out part is one of `count` folds of train."""

    count: int | None = number(None, at_least=2)
    fold: int = number(0, at_least=0)  # index of the fold, from 0
    stratified: bool = False
    # The seed of the split into folds, the same for all folds of a study.
    seed: int = number(0, **SEED)

    def __post_init__(self):
        super().__post_init__()
        if self.count is not None and self.fold >= self.count:
            raise PlmjaxError(
                f"folds.fold={self.fold}, but there are {self.count} folds.",
                hint=f"Give 0 to {self.count - 1}.",
            )


def _train() -> TrainConfig:
    return TrainConfig(
        epochs=3.0,
        batch=32,
        optimizer=OptimizerConfig(learning_rate=5e-5, b2=0.999),
        evaluate_every_steps=100,
        checkpoint_every_steps=100,
    )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Block):
    """All settings of a fine-tuning run."""

    # Without --workdir the run goes to runs/NAME.
    name: str | None = None
    # A run's workdir, of pretraining or of another task, or a Hugging Face folder.
    model: str | None = None
    checkpoint: str = "newest"  # of a pretraining run: newest, best, or a step
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    start: StartConfig = dataclasses.field(default_factory=StartConfig)
    objective: SupervisedConfig = dataclasses.field(default_factory=SupervisedConfig)
    # Share of the encoder's kernel entries that have their start values in a step (Lee
    # et al. 2020, arXiv:1909.11299).
    mixout: float = number(0.0, at_least=0, below=1)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    # With train.optimizer.freeze=encoder: the encoder runs once on each training row,
    # without dropout, and the head learns from its states.
    cache_features: bool = False
    train: TrainConfig = dataclasses.field(default_factory=_train)
    select: SelectConfig = dataclasses.field(default_factory=SelectConfig)
    seeds: SeedsConfig = dataclasses.field(default_factory=SeedsConfig)
    folds: FoldsConfig = dataclasses.field(default_factory=FoldsConfig)
    # Trains simple models first, for comparison with the encoder.
    baselines: bool = True
    # Those that would end later are left out. None: all are fitted.
    baselines_seconds: float | None = number(120.0, above=0)
    vectors: str | None = None  # a word2vec file for one of them
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    card: CardConfig = dataclasses.field(default_factory=CardConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.mixout and self.lora.rank:
            raise PlmjaxError(
                f"mixout={self.mixout} keeps the encoder's kernels near their start, "
                f"but lora.rank={self.lora.rank} does not train them anyway.",
                hint="Give one of them.",
            )
        for name, on in (("mixout", self.mixout), ("lora.rank", self.lora.rank)):
            if on and self.train.prune.on:
                raise PlmjaxError(
                    f"train.prune makes weights of the trained kernels 0, and {name}="
                    f"{on} adds others to them.",
                    hint="Give one of them.",
                )
        optimizer = self.train.optimizer
        if self.lora.rank and (
            optimizer.freeze is not None
            or optimizer.unfreeze_every_steps is not None
            or optimizer.layer_decay != 1
        ):
            raise PlmjaxError(
                f"lora.rank={self.lora.rank} trains adapters and the head alone; "
                "freeze, unfreeze_every_steps and layer_decay are for whole encoders.",
                hint="Leave them out.",
            )
        if self.cache_features:
            self._check_cache()
        if self.train.init_from is not None:
            raise PlmjaxError(
                f"train.init_from={self.train.init_from} is a key of pretraining.",
                hint="Name the model by --config.model.",
            )

    def _check_cache(self) -> None:
        if (frozen := self.train.optimizer.freeze) != "encoder":
            raise PlmjaxError(
                "cache_features keeps the encoder's states of the rows, so it must not "
                f"learn, but train.optimizer.freeze={frozen}.",
                hint="Set --config.train.optimizer.freeze=encoder.",
            )
        if self.mixout:
            raise PlmjaxError(
                f"mixout={self.mixout} changes the encoder in every step: there is "
                "nothing to keep for cache_features.",
                hint="Leave one of them out.",
            )
        if self.task.rows == "packed":
            raise PlmjaxError(
                "task.rows=packed saves time of the encoder in each step, and with "
                "cache_features no step has one.",
                hint="Leave one of them out.",
            )
        if KINDS[self.task.kind].head is None:
            raise PlmjaxError(
                "cache_features is for a head above a frozen encoder, and a model of "
                f"{self.task.kind} has none.",
                hint="Leave it out.",
            )

    def seed(self, name: str) -> int:
        """Returns the seed of data, init or dropout."""
        seed = getattr(self.seeds, name)
        return self.train.seed if seed is None else seed
