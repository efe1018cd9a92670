"""Predicts new examples from files, and writes the predictions to a file."""

import csv
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax

from plmjax import DataError, Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.data.blocks import ending
from plmjax.data.corpus import find_inputs
from plmjax.data.examples import Example
from plmjax.data.features import Features
from plmjax.data.inputs import lines_of
from plmjax.evaluate import predictions
from plmjax.evaluate.model import Model, finished, is_finetuned, open_models
from plmjax.files import disk_errors, replacing
from plmjax.finetune.build import split_of
from plmjax.finetune.config import FinetuneConfig
from plmjax.models import EncoderConfig, task_heads
from plmjax.models.global_tokens import with_room
from plmjax.tasks import KINDS
from plmjax.tasks.base import Prediction
from plmjax.tasks.config import TaskConfig, read_task
from plmjax.tasks.features import make_features
from plmjax.tasks.labelled import check_labels, load_labelled, read_examples
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.workdir import Workdir

_CHUNK = 4096  # examples whose rows are in memory at once
ENDINGS = (".jsonl", ".csv", ".tsv")


class Predictor:
    """Fine-tuned models of one task, ready to predict; several are averaged.

    `config` describes the input: the settings of the first model, with overrides.
    """

    def __init__(
        self,
        paths: Sequence[str],
        overrides: Sequence[str] = (),
        file: str | None = None,
        batch: int = 32,
    ):
        """Opens the models.

        Raises:
          PlmjaxError: one has no head of a task, or they are of several tasks.
        """
        self.paths = paths
        opened = [(path, *_open(path)) for path in paths]
        (first, one, values), *others = opened
        for path, model, _ in others:
            if _task_of(model) != _task_of(one):
                raise PlmjaxError(
                    f"{path} and {first} are of different tasks or labels.",
                    hint="Average models of one task.",
                )
        self.config = config_lib.load(TaskConfig, file, overrides, values)
        _, self.labels = _task_of(one)
        if (self.config.kind, self.config.labels or ()) != _task_of(one):
            raise PlmjaxError(
                "kind and labels of the task are those of the model.",
                hint="Leave --config.kind and --config.labels out.",
            )
        self.mesh = sharding.make_mesh(MeshConfig())
        sharding.check_batch(self.mesh, batch, 1, "--batch")
        self._batch = batch
        self._models = [
            (model.tokenizer, self._scorer(model)) for _, model, _ in opened
        ]

    def _scorer(self, model: Model) -> Callable:
        task = model.task
        assert task is not None
        if self.config.length > model.encoder.max_length:
            raise PlmjaxError(
                f"length={self.config.length}, but {model.name} has positions for "
                f"{model.encoder.max_length} tokens.",
                hint=f"Set --config.length={model.encoder.max_length}.",
            )
        if self.config.rows == "packed":
            task_heads.check_packing(model.encoder, task)
        params = jax.device_put(model.params, sharding.replicated(self.mesh))

        @functools.cache
        def call(encoder: EncoderConfig) -> Callable:
            made = predictions.make_predict(encoder, task, self.mesh)
            return functools.partial(made, params, {})

        def scorer(features: Features) -> Callable:
            names = ("tokens", "segments")
            rows = (features.arrays[name] for name in names)
            return call(with_room(model.encoder, *rows))

        return scorer

    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Returns the models' joint prediction for each example."""
        several = []
        kind = KINDS[self.config.kind]
        with jax.set_mesh(self.mesh):
            for tokenizer, scorer in self._models:
                features = make_features(self.config, examples, tokenizer, self.labels)
                scored = predictions.score_rows(
                    scorer(features),
                    self.mesh,
                    features,
                    self._batch,
                    self.config,
                )
                several.append(kind.decode(self.config, features, examples, scored))
        if len(several) == 1:
            return several[0]
        return predictions.mean_of(self.config.kind, several)


def _task_of(model: Model) -> tuple[str, tuple[str, ...]]:
    assert model.task is not None
    return model.task.kind, model.task.labels


def _open(path: str) -> tuple[Model, dict]:
    model = next(iter(open_models(path).values()))
    if model.task is None:
        raise PlmjaxError(
            f"{path} has no head of a task.",
            hint="Give a model from `plmjax finetune`.",
            code=Exit.MODEL,
        )
    folder = Path(path)
    if is_finetuned(folder):
        folder = finished(folder)
    task = read_task(folder, model.task.kind, model.task.labels)
    return model, config_lib.to_dict(task)


def predict(
    models: Sequence[str] | Predictor,
    source: str | list[str],
    to: Path | Callable[[dict], Any],
    overrides: Sequence[str] = (),
    file: str | None = None,
    batch: int = 32,
    log: Callable[[str], Any] = print,
) -> int:
    """Writes the models' predictions for files or texts; returns their number.

    `to` is a file, which is written atomically, or is called with each record.

    Raises:
      PlmjaxError: an error that the user can fix.
    """
    if isinstance(to, Path):
        _check_output(to)
    open_already = isinstance(models, Predictor)
    predictor = models if open_already else Predictor(models, overrides, file, batch)
    if KINDS[predictor.config.kind].head is None:
        raise PlmjaxError(
            f"--model={','.join(predictor.paths)} makes vectors of texts; it has "
            "nothing to predict.",
            hint=f"`plmjax embed --model={predictor.paths[0]} --input="
            f"{source if isinstance(source, str) else 'TEXTS.txt'} "
            "--output=FILE.npy` writes them.",
        )
    examples = read_input(predictor.config, source)

    def records() -> Iterator[dict]:
        for begin in range(0, len(examples), _CHUNK):
            some = examples[begin : begin + _CHUNK]
            predicted = predictor.predict(some)
            yield from predictions.records_of(
                predictor.config, predictor.labels, some, predicted
            )
            if len(examples) > _CHUNK:
                log(f"{begin + len(some):,} of {len(examples):,} examples")

    if not isinstance(to, Path):
        for record in records():
            to(record)
        return len(examples)
    with disk_errors(to), replacing(to, "w", encoding="utf-8", newline="") as output:
        if to.suffix == ".jsonl":
            for record in records():
                output.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            dialect = "excel-tab" if to.suffix == ".tsv" else "excel"
            _write_table(output, records(), dialect)
    return len(examples)


def _check_output(to: Path) -> None:
    if to.suffix not in ENDINGS:
        raise PlmjaxError(
            f"--output={to} has an unknown ending.",
            hint=f"Give a name that ends in one of {', '.join(ENDINGS)}, or -.",
        )
    if not to.parent.is_dir():
        raise PlmjaxError(
            f"--output={to}: there is no directory {to.parent} (in {Path.cwd()}).",
            hint="Create it first, or check the spelling.",
        )


def evaluate(
    path: str,
    source: str | None = None,
    overrides: Sequence[str] = (),
    batch: int = 32,
    log: Callable[[str], Any] = print,
) -> dict[str, float]:
    """Returns the scores of a fine-tuned model on labelled files, and "examples".

    For embeddings also "candidates", the number of candidates for a text's pair.

    Without files it scores the test part of the fine-tuning's data, or the held-out
    part if there is no test.

    Raises:
      PlmjaxError: a folder without files, a label that the model does not know.
    """
    predictor = Predictor([path], overrides, batch=batch)
    settings, labels = predictor.config, predictor.labels
    kind = KINDS[settings.kind]
    examples = labelled_examples(predictor, path, source, ("test", "held_out"), log)
    predicted = predictions.read(
        settings, labels, examples, predictor.predict(examples)
    )
    truth = [example.label for example in examples]
    scores = kind.scores(truth, predicted, labels, settings)
    return scores | {"examples": len(examples)} | kind.score_context(examples)


def labelled_examples(
    predictor: Predictor,
    path: str,
    source: str | None,
    parts: Sequence[str],
    log: Callable[[str], Any] = print,
    option: str = "--input",
) -> tuple[Example, ...]:
    """Returns the examples of labelled files.

    Without files they are the first of these parts that the data of the fine-tuning in
    `path` has.

    Raises:
      PlmjaxError: a folder without files, a label that the model does not know.
    """
    settings = predictor.config
    if source is not None:
        examples = read_input(settings, source, labelled=True, option=option)
        check_labels(settings.kind, examples, predictor.labels, source)
        return examples
    if not is_finetuned(Path(path)):
        raise PlmjaxError(
            f"{path} is a folder without labelled data.", hint=f"Give {option}=FILE."
        )
    saved = Workdir(path, FinetuneConfig).read("config.json") or {}
    config = config_lib.build(FinetuneConfig, saved)
    data = split_of(config, load_labelled(config.task))
    part = next(part for part in parts if getattr(data, part))
    log(f"The {part.replace('_', '-')} part of its own data.")
    return getattr(data, part)


def read_input(
    config: TaskConfig,
    source: str | list[str],
    *,
    labelled: bool = False,
    option: str = "--input",
) -> tuple[Example, ...]:
    """Returns the examples of files, or of texts, with blanks between words.

    A .txt has one text a line. `option` is the command-line option that names files.
    """
    files = isinstance(source, str)
    if files and (labelled or ending(Path(source)) != "txt"):
        config = dataclasses.replace(config, test=source)
        try:
            return read_examples(config, "test", labelled=labelled, option=option)
        except DataError as error:
            # In `plmjax predict`, the keys of the task are those of --config.
            hint = error.hint.replace("--config.task.", "--config.")
            raise DataError(error.message, hint=hint) from None
    kind = KINDS[config.kind]
    lacks = kind.line_lacks
    if config.columns.entities is not None:
        lacks = "the positions of its entities"
    if lacks is not None:
        raise PlmjaxError(
            f"{source if files else 'the input'} is plain text, but a text needs "
            f"{lacks}.",
            hint="Give JSON lines (.jsonl) with the columns of the task.",
        )
    if files:
        lines = [
            (f"{path}:{number}", line)
            for path in find_inputs(source, option)
            for number, line in enumerate(lines_of(path), 1)
        ]
    else:
        lines = [(f"text {number}", text) for number, text in enumerate(source, 1)]
    examples = []
    for where, line in lines:
        if not line.strip():
            raise DataError(
                f"{where} is empty.",
                hint="Give a text a line, so that lines and predictions agree.",
            )
        texts = tuple(line.split()) if kind.per_word else (line,)
        examples.append(Example(str(len(examples)), where, texts, None, line))
    if not examples:
        raise DataError(f"{source} holds no text.")
    return tuple(examples)


def _write_table(file: IO[str], records: Iterator[dict], dialect: str) -> None:
    """Writes one column a value: probabilities by label; lists as JSON."""
    first = _flat(next(records))
    writer = csv.DictWriter(file, [*first], dialect=dialect)
    writer.writeheader()
    writer.writerows(itertools.chain([first], map(_flat, records)))


def _flat(record: dict) -> dict:
    row = {}
    for name, value in record.items():
        if isinstance(value, dict):
            row |= {f"probability of {label}": v for label, v in value.items()}
        elif isinstance(value, list | tuple):
            row[name] = json.dumps(value, ensure_ascii=False)
        else:
            row[name] = value
    return row
