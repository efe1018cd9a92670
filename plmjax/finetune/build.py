"""Builds all that a fine-tuning needs, before anything is on a device."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from plmjax import DataError, PlmjaxError, counted, tree
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.data.examples import Example
from plmjax.data.features import Features
from plmjax.data.folds import make_folds
from plmjax.data.quality import MOST_UNKNOWN, SOME_UNKNOWN, why_unknown
from plmjax.data.task_batches import TaskBatches
from plmjax.data.task_packs import pack_features
from plmjax.evaluate import predictions
from plmjax.evaluate.model import Model, open_models
from plmjax.finetune import lora, mixout
from plmjax.finetune.added import NOTHING, Added, added_features
from plmjax.finetune.config import FinetuneConfig
from plmjax.finetune.start import describe, start
from plmjax.models import EncoderConfig, task_heads
from plmjax.models.blocks import short_rows
from plmjax.models.flops import activation_bytes
from plmjax.models.global_tokens import with_room
from plmjax.models.platform import training_platform
from plmjax.objectives import Contrastive, Objective
from plmjax.objectives.supervised import Supervised, row_losses
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import Labelled, load_labelled
from plmjax.tasks.remarks import remarks
from plmjax.tasks.task import Task
from plmjax.tokenizers import Tokenizer, unknown_words
from plmjax.train import sharding, trackers
from plmjax.train.config import TrainConfig
from plmjax.train.groups import without_frozen


@dataclasses.dataclass(frozen=True)
class FinetuneSetup:
    """All that a fine-tuning needs.

    `params` are the start parameters, `frozen` the further inputs of the loss, both
    numpy; merge(params, frozen) -> the plain model's parameters. `data.config` is the
    task's block with all defaults resolved. `added` is trained on beside `data.train`.
    """

    config: FinetuneConfig
    mesh: jax.sharding.Mesh
    model: Model
    data: Labelled
    task: Task
    encoder: EncoderConfig
    objective: Objective
    params: dict
    frozen: dict
    merge: Callable[[dict, Any], dict]
    features: dict[str, Features]
    batches: TaskBatches
    metric: str
    added: Added
    teacher: str | None = None  # a digest of the weights of the task's teacher

    @property
    def train(self) -> TrainConfig:
        """The training block, with the seed of the dropout."""
        return dataclasses.replace(self.config.train, seed=self.config.seed("dropout"))

    @property
    def steps(self) -> int:
        """The number of training steps; epochs are rounded up."""
        train = self.config.train
        if train.steps is not None:
            return train.steps
        return math.ceil((train.epochs or 0) * self.batches.steps)

    def activation_bytes(self) -> int:
        """Estimates the bytes of the encoder's activations of a step on a device."""
        shards = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        rows = self.batches.size // self.config.train.accumulation // shards
        texts = math.prod(self.features["train"].arrays["segments"].shape[1:-1])
        length = self.batches.lengths[-1]
        given = rows * texts, length, 0
        return activation_bytes(
            self.encoder,
            *given,
            kind=self.mesh.devices.flat[0].platform,
            attention=self.config.train.attention,
        )

    @property
    def origin(self) -> dict[str, str]:
        """Digests of the data that a checkpoint is bound to."""
        leaves = [x.tobytes() for _, x in sorted(tree.flatten(self.params).items())]
        texts = [repr(e).encode() for e in (*self.data.train, *self.data.held_out)]
        texts += self.added.bytes()
        return {
            "start": digest_of([*leaves, repr(self.encoder).encode()]),
            "labelled data": digest_of([*texts, repr(self.data.labels).encode()]),
            "tokenizer": self.model.tokenizer.digest,
        } | ({"teacher": self.teacher} if self.teacher else {})

    @property
    def last(self) -> str:
        """The split that is reported: test, or held_out if there is no test."""
        return "test" if self.data.test else "held_out"

    def examples(self, split: str) -> tuple[Example, ...]:
        """Returns the examples of train, held_out or test."""
        return getattr(self.data, split)


def digest_of(pieces: list[bytes]) -> str:
    """Returns a digest of a list of bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(hashlib.blake2b(piece).digest())
    return digest.hexdigest()


def with_arrays(
    setup: FinetuneSetup, arrays: dict[str, np.ndarray], **more: Any
) -> FinetuneSetup:
    """Returns a setup whose training batches hold further arrays, a row a row."""
    old = setup.features["train"]
    features = dataclasses.replace(old, arrays=old.arrays | arrays)
    batches = TaskBatches(
        features,
        setup.batches.size,
        setup.batches.seed,
        lengths=setup.data.config.buckets,
        mine=setup.batches.mine,
    )
    return dataclasses.replace(
        setup, features=setup.features | {"train": features}, batches=batches, **more
    )


def build(
    config: FinetuneConfig,
    mesh: jax.sharding.Mesh,
    log: Callable[[str], Any],
    added: Added = NOTHING,
) -> FinetuneSetup:
    """Reads and checks the data, opens the model, and builds the setup from the two.

    `added` examples are trained on beside those of the files.

    Raises:
      PlmjaxError: an error that the user can fix.
    """
    check(config, mesh)
    data, metric = read_data(config)
    for line in remarks(data):
        log(line)
    settings = data.config
    model = next(iter(open_models(str(config.model), config.checkpoint).values()))
    if settings.length > model.encoder.max_length:
        raise PlmjaxError(
            f"task.length={settings.length}, but {model.name} has positions for "
            f"{model.encoder.max_length} tokens.",
            hint=f"Set --config.task.length={model.encoder.max_length}, and "
            "task.long=window reads all of a long text.",
        )
    platform = training_platform(
        mesh.devices.flat, config.train.attention, [model.encoder], log
    )
    task = make_task(config, data, model.task)
    log(describe(model, task, config.start))
    silent = config.cache_features or config.start.dropout is not None
    if not model.encoder.dropout and not silent:
        log(
            "Note: the model was pretrained without dropout, and is fine-tuned so; "
            "--config.start.dropout=0.1 often helps."
        )
    encoder, params = start(model, task, config.start, config.seed("init"))
    if settings.rows == "packed":
        task_heads.check_packing(encoder, task)
    features = _features(data, added, model.tokenizer, log)
    for rows in features.values():
        encoder = with_room(encoder, rows.arrays["tokens"], rows.arrays["segments"])
    _check_vocabulary(data, features, model, log)
    batches = _batches(config, settings, features["train"], mesh, log)
    if short := short_rows(encoder, batches.lengths):
        log(short)
    if task.head is None:
        objective = Contrastive(
            config.objective,
            encoder,
            task,
            settings.temperature,
            len(data.train[0].texts),
            platform=platform,
        )
    else:
        objective = Supervised(
            config.objective, encoder, task, config.cache_features, platform=platform
        )
    objective, params, frozen, merge = _remedied(config, objective, params)
    return FinetuneSetup(
        config=config,
        mesh=mesh,
        model=model,
        data=data,
        task=task,
        encoder=encoder,
        objective=objective,
        params=params,
        frozen=frozen,
        merge=merge,
        features=features,
        batches=batches,
        metric=metric,
        added=added,
    )


def _batches(
    config: FinetuneConfig,
    settings: TaskConfig,
    features: Features,
    mesh: jax.sharding.Mesh,
    log: Callable[[str], Any],
) -> TaskBatches:
    """Returns the training batches; a step has train.batch rows before packing."""
    rows, seed = config.train.batch, config.seed("data")
    if settings.rows == "packed":
        before, tokens = features.rows, features.sizes().sum()
        features = pack_features(features, seed).features
        # Of each micro-batch, every device has as many.
        least = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.accumulation
        rows = least * max(round(rows * features.rows / before / least), 1)
        log(
            f"Packed: {before:,} rows into {counted(features.rows, 'row')} of "
            f"{features.length} tokens, {tokens / features.rows / features.length:.1%} "
            f"full instead of {tokens / before / features.length:.1%}. A step has "
            f"{rows:,} of them, with {rows * before / features.rows:,.1f} of the rows "
            f"before on average (train.batch={config.train.batch})."
        )
    return TaskBatches(
        features,
        rows,
        seed,
        lengths=settings.buckets,
        mine=functools.partial(sharding.local_rows, mesh),
    )


def _features(
    data: Labelled, added: Added, tokenizer: Tokenizer, log: Callable[[str], Any]
) -> dict[str, Features]:
    """Returns the rows of each split, and logs how its examples became rows."""
    features = {}
    kind = KINDS[data.config.kind]
    for split in ("train", "held_out", "test"):
        if examples := getattr(data, split):
            more = added if split == "train" else NOTHING
            rows = added_features(data.config, examples, more, tokenizer, data.labels)
            features[split] = rows
            log(f"{split.replace('_', ' ').capitalize()}: {describe_rows(rows)}")
            line = kind.describe_split(examples) if split != "train" else None
            if line is not None:
                log(line)
    return features


def _check_vocabulary(
    data: Labelled,
    features: dict[str, Features],
    model: Model,
    log: Callable[[str], Any],
) -> None:
    """Logs the share of [UNK] in each split, if it is not small.

    Raises:
      PlmjaxError: most tokens of a split are [UNK].
    """
    tokenizer = model.tokenizer
    unk = tokenizer.unk_id
    if unk in (None, tokenizer.cls_id, tokenizer.sep_id):  # GPT-2's ends texts, too
        return
    for split, rows in features.items():
        tokens = rows.arrays["tokens"][rows.arrays["segments"] > 0]
        unknown = np.count_nonzero(tokens == unk)
        ordinary = np.count_nonzero(~np.isin(tokens, tokenizer.special_ids))
        share = unknown / max(unknown + ordinary, 1)
        if share <= SOME_UNKNOWN:
            continue
        texts = [t for example in getattr(data, split)[:1000] for t in example.texts]
        why, _ = why_unknown(unknown_words(tokenizer, texts))
        message = f"{share:.1%} of the tokens of task.{split} are [UNK] to "
        message += f"the tokenizer of {model.name}. {why}"
        if share > MOST_UNKNOWN:
            hint = "Set --config.model to one with a vocabulary of these texts."
            raise DataError(message, hint=hint)
        log(f"WARNING: {message}")


def read_data(config: FinetuneConfig) -> tuple[Labelled, str]:
    """Returns the labelled data, and the name of the score that selects the best step.

    Raises:
      PlmjaxError: data that cannot be read or do not have this score.
    """
    data = split_of(config, load_labelled(config.task))
    kind = KINDS[data.config.kind]
    settings = kind.complete(data.config, data.train)
    data = dataclasses.replace(data, config=settings)
    metric = config.select.metric or kind.usual_metric(data.labels)
    truth = [example.label for example in data.held_out]
    predictions.check_metric(settings, data.labels, truth, metric)
    return data, metric


def check(config: FinetuneConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises PlmjaxError for values that cannot work together, before any work."""
    if config.model is None:
        raise PlmjaxError(
            "no model is named to start from.",
            hint="Set --config.model to a run's workdir or a Hugging Face folder.",
        )
    if config.train.steps is None and config.train.epochs is None:
        raise PlmjaxError(
            "nothing says how long to train.",
            hint="Set --config.train.steps or --config.train.epochs.",
        )
    if config.baselines and config.vectors and not Path(config.vectors).is_file():
        raise PlmjaxError(
            f"vectors={config.vectors} is not a file.",
            hint="Give a word2vec file, or leave it out.",
        )
    train = config.train
    trackers.check(train)
    if train.checkpoints is not None:
        Checkpoints(train.checkpoints)  # refuses a URL of another kind
    sharding.check_batch(mesh, train.batch, train.accumulation)
    pairs = KINDS[config.task.kind].head is None
    if pairs and train.batch // train.accumulation < 2:
        raise PlmjaxError(
            f"train.batch={train.batch} with train.accumulation={train.accumulation} "
            "is one row at once; a pair is compared with those of other rows.",
            hint="Give a larger batch: the more rows, the better.",
        )


def make_task(config: FinetuneConfig, data: Labelled, before: Task | None) -> Task:
    """Returns the task; `before` is that of the model to start from."""
    kind, head = data.config.kind, KINDS[data.config.kind].head
    dropout, pooling = config.start.classifier_dropout, config.start.classifier_pooling
    if head is not None:
        if pooling is None:
            pooling = before.head_pooling if before and before.head == head else "cls"
        return Task(kind, data.labels, dropout, head_pooling=pooling)
    for name, value in (("dropout", dropout), ("pooling", pooling)):
        if value is not None:
            raise PlmjaxError(
                f"start.classifier_{name}={value}, but a model of {kind} has no "
                "classifier.",
                hint=f"Leave it out; {'start' if name == 'dropout' else 'task'}.{name} "
                "is that of the encoder.",
            )
    return Task(kind, pooling="cls" if data.config.pooling == "cls" else "mean")


def split_of(config: FinetuneConfig, data: Labelled) -> Labelled:
    """Returns the data; with folds, the held-out part is one fold of train."""
    if config.folds.count is None:
        return data
    examples = data.train
    if config.task.held_out is None:  # the held-out part is a share of train
        examples = examples + data.held_out
    folds = make_folds(
        examples,
        config.folds.count,
        config.folds.seed,
        stratified=config.folds.stratified,
    )
    train, fold = folds[config.folds.fold]
    return dataclasses.replace(
        data,
        train=tuple(examples[index] for index in train),
        held_out=tuple(examples[index] for index in fold),
    )


def describe_rows(features: Features) -> str:
    """Returns a sentence on how examples became rows, and on what was left out."""
    report = features.report
    text = f"{report['examples']:,} examples in {report['rows']:,} rows"
    if windowed := report.get("windowed_examples"):
        text += f", {windowed:,} longer than a row and in several windows"
    if cut := report.get("cut_examples"):
        text += f"; {cut:,} were cut, by {report['cut_tokens']:,} tokens in all"
    for name, what in (
        ("lost_words", "words fit in no row"),
        ("answers_outside", "answers are complete in no row"),
        ("answers_misplaced", "answers are not at their answer_start"),
    ):
        if count := report.get(name):
            text += f"; {count:,} {what}"
    return f"{text}."


def _remedied(config: FinetuneConfig, objective: Objective, params: dict):
    """Applies mixout, LoRA and freezing.

    Returns the objective, first parameters, frozen arrays and merge.
    """

    def plain(params: dict, frozen) -> dict:
        del frozen
        return params

    merge, frozen = plain, {}
    if config.mixout:
        frozen = mixout.anchor(params)
        objective = mixout.mixout(objective, config.mixout)
    if config.lora.rank:
        frozen = lora.base(params)
        objective = lora.lora(objective, config.lora)
        merge = functools.partial(lora.merged, config.lora)
        key = jax.random.key(config.seed("init"))
        # Keeps only the kernels of LoRA, so that no other parameters are initialised.
        thin = jax.device_get(lora.adapters(config.lora, params["encoder"], key))
        heads = {name: head for name, head in params.items() if name != "encoder"}
        params = {"lora": thin} | heads
    objective = without_frozen(config.train.optimizer, objective)
    return objective, params, frozen, merge


def score_split(
    setup: FinetuneSetup,
    read: Callable,
    split: str,
    watched: Callable[[Iterator], Iterator] = iter,
) -> tuple[list, dict[str, float]]:
    """Returns the predictions for the examples of a split, and the scores.

    `read` returns the scores of a batch of rows. Both results are empty if `watched`
    stopped the rows too soon.
    """
    features, examples = setup.features[split], setup.examples(split)
    config, labels = setup.data.config, setup.data.labels
    kind, train = KINDS[config.kind], setup.config.train
    losses, seen = np.zeros(2), 0

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal losses, seen
        scored = predictions.score_rows(
            read,
            setup.mesh,
            features,
            setup.batches.size // train.accumulation,
            config,
            watched=watched,
        )
        for index, scores in scored:
            seen += len(index)
            # Without a head, losses come from all rows together, with the predictions.
            if kind.head is not None:
                label = features.arrays["label"][index]
                label = label[:, : scores.shape[1]] if kind.per_word else label
                batch = {"label": label, "weight": np.ones(len(index), np.float32)}
                losses += np.array(row_losses(config.kind, scores, batch), np.float64)
            yield index, scores

    predicted = kind.decode(config, features, examples, rows())
    if seen < features.rows:
        return [], {}
    if kind.head is None:
        losses += [sum(one.loss for one in predicted), len(predicted)]
    truth = [example.label for example in examples]
    answers = predictions.read(config, labels, examples, predicted)
    scores = kind.scores(truth, answers, labels, config)
    loss = float(losses[0] / losses[1]) if losses[1] else math.nan
    return predicted, {"loss": loss} | scores
