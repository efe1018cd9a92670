"""The verbs as functions: plmjax.pretrain("my.txt", steps=200, workdir="runs/mine").

The command line's parser is the only list of options and of their defaults: what is
--steps=200 there is steps=200 here, words that follow a verb come first, and
--config.KEY=VALUE is keys={KEY: VALUE}. What --json would print is returned.
"""

import argparse
import ast
import contextlib
import functools
import json
import keyword
import re
import reprlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmjax import VERBS, Exit, PlmjaxError, machine, unknown
from plmjax import config as config_lib
from plmjax.cli.options import COLLECTED, start_jax
from plmjax.cli.parser import make_parser

if TYPE_CHECKING:
    import numpy as np

    from plmjax.evaluate.fill import Guess
    from plmjax.evaluate.judge import Suspect
    from plmjax.evaluate.model import Model
    from plmjax.objectives import Objective

Keys = Mapping[str, Any]


def pretrain(*texts: str | Path, keys: Keys | None = None, **options: Any) -> dict:
    """Trains a model on text files, or resumes the run in `workdir`.

    Returns the held-out scores by name; {"stopped": signal, "step": saved} of a run
    that a signal stopped. `plmjax pretrain --help` describes the options,
    docs/config.md the `keys`.

    Raises:
      PlmjaxError: an error that the user can fix; so do all functions here.
    """
    return call("pretrain", *texts, keys=keys, **options)


def finetune(*, keys: Keys | None = None, **options: Any) -> dict:
    """Fine-tunes a model on labelled data; `keys` name both (docs/finetuning.md).

    Returns {"held_out": scores, "test": scores, "step", "metric"}.
    """
    return call("finetune", keys=keys, **options)


def evaluate(**options: Any) -> dict:
    """Scores a run on its held-out text, models on a text, or a fine-tuned model."""
    return call("evaluate", **options)


def predict(*, keys: Keys | None = None, **options: Any) -> list[dict]:
    """Predicts the labels of `text` or of the file `input`; returns a record each.

    With output=FILE it writes them, and returns [].
    """
    return _run("predict", (), keys, options)


def embed(**options: Any) -> Any:
    """Writes the vectors of the texts in `input` to `output`; returns figures.

    `load(model).embed(texts)` returns vectors as an array.
    """
    return call("embed", **options)


def export(**options: Any) -> None:
    """Exports the model of the run in `workdir` as the Hugging Face folder `to`."""
    return call("export", **options)


def import_(**options: Any) -> None:
    """Imports a Hugging Face folder, `from_`, as the start of a run in `workdir`."""
    return call("import", **options)


def fit(
    objective: "Callable[..., Objective]",
    *texts: str | Path,
    keys: Keys | None = None,
    **options: Any,
) -> dict:
    """Pretrains with the user's own objective; otherwise as `pretrain`.

    `objective(block, encoder, pieces, platform=...)` returns an `Objective`
    (objectives/base.py): `block` is the config's block `objective`, `encoder` the
    model's EncoderConfig, `pieces` the special ids and bytes of the vocabulary. A class
    with these fields is one. A run is resumed with the same objective.
    """
    if not callable(objective):
        hint = "Give a function or a class; `plmjax.pretrain` has those of the config."
        raise PlmjaxError(f"the objective {objective!r} cannot be called.", hint=hint)
    result = _run("pretrain", texts, keys, options, own_objective=objective)
    return result[0] if result else {}


def load(path: str | Path, checkpoint: str | int = "newest") -> "Loaded":
    """Opens a run's workdir, a fine-tuning's, or a Hugging Face folder.

    `checkpoint` of a run is "newest", "best" or a step.
    """
    return Loaded(path, checkpoint)


@contextlib.contextmanager
def _errors_as_python(options: Mapping[str, argparse.Action] = {}) -> Iterator[None]:
    """Lets errors speak of a call: steps=2 for --steps=2, keys={...} for --config.KEY.

    `options` are those of the verb: flags among them are NAME=True.
    """

    def value(text: str) -> str:
        text = text.strip("'")
        try:
            return repr(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            return {"none": "None", "": "..."}.get(text, repr(text))

    def name(text: str) -> str:
        return text + "_" * keyword.iskeyword(text)

    def option(match: re.Match) -> str:
        flag = getattr(options.get(match[0]), "const", None) is not None
        return f"{name(match[1])}={'True' * flag}"

    def key(match: re.Match) -> str:
        return f"keys={{{match[1]!r}: {value(match[2] or '')}}}"

    def command(match: re.Match) -> str:
        verb, *words = match[1].split()
        pairs = [word.partition("=")[::2] for word in words]
        words = [f"{k}={value(v)}" if v else k for k, v in pairs]
        words = [word if word.startswith("--") else repr(word) for word in words]
        return f"plmjax.{name(verb)}({', '.join(words)})"

    def python(text: str) -> str:
        text = re.sub(r"`plmjax ((?:(?!--help)[^`])+)`", command, text)
        end = r"(?=[.,:;?)]*(?:\s|$))"  # punctuation of the sentence is no value
        given = rf"(?:=('[^']*'|\S*?{end}))?"
        text = re.sub(rf"--config\.([\w.]*\w){given}", key, text)
        text = re.sub(r"--(?!help)(\w+)\b(?![-=:])", option, text)
        text = re.sub(r"--(?!help)(\w+)(?![\w-])", lambda match: name(match[1]), text)
        return text.replace("has no option", "has no argument")

    try:
        yield
    except PlmjaxError as error:
        error.message, error.hint = python(error.message), python(error.hint)
        error.args = (error.message,)
        raise


class Loaded:
    """The models of a workdir or folder; a text alone stands for a list of one."""

    @_errors_as_python()
    def __init__(self, path: str | Path, checkpoint: str | int = "newest"):
        """Opens the models; PlmjaxError if there are none."""
        if not isinstance(path, str | Path) or not str(path):
            raise PlmjaxError(f"{path!r} must be the path of a workdir or a folder.")
        if type(checkpoint) not in (str, int):
            hint = 'Give "newest", "best" or a step.'
            raise PlmjaxError(f"checkpoint={checkpoint!r} must be a name.", hint=hint)
        machine.hide_absent_tpu()
        start_jax()
        from plmjax.evaluate.model import open_models

        self.path, self.models = str(path), open_models(str(path), str(checkpoint))

    def _model(self, head: str) -> "Model":
        from plmjax.evaluate.model import require_head

        return require_head(self.models, self.path, head)

    @_errors_as_python()
    def fill(
        self, texts: str | Sequence[str], top: int = 5
    ) -> "list[list[list[Guess]]]":
        """Returns the `top` guesses (text, probability, piece) of each [MASK]."""
        from plmjax.evaluate.fill import fill

        if type(top) is not int or top < 1:
            raise PlmjaxError(f"top={top!r} must be a whole number above 0.")
        return [fill(self._model("head"), text, top) for text in _listed(texts)]

    @_errors_as_python()
    def detect(self, texts: str | Sequence[str]) -> "list[list[Suspect]]":
        """Returns each piece of the texts with its probability of a replacement."""
        from plmjax.evaluate.judge import detect

        return [detect(self._model("detector"), text) for text in _listed(texts)]

    @_errors_as_python()
    def next(self, first: str, second: str) -> float:
        """Returns the probability that the second sentence follows the first."""
        from plmjax.evaluate.judge import follows

        return follows(self._model("pair"), *_listed([first, second]))

    @_errors_as_python()
    def embed(self, texts: str | Sequence[str], **options: Any) -> "np.ndarray":
        """Returns a float32 vector a text, [texts, width].

        The options are those of embed/vectors.py's EmbedConfig: pooling, normalize ...
        """
        from plmjax.embed.run import embed_texts
        from plmjax.embed.vectors import EmbedConfig
        from plmjax.evaluate.model import longest_row

        model = next(iter(self.models.values()))
        settings = config_lib.build(EmbedConfig, options)
        return embed_texts(
            model, _listed(texts), settings, longest_row(self.path, model)
        )

    @_errors_as_python()
    def predict(self, examples: str | Mapping | Sequence) -> list[dict]:
        """Returns a prediction for each text, or each record of a task's columns."""
        from plmjax.finetune.predict import predict

        given, found = _listed(examples, str | Mapping, "text or a record"), []
        if not any(isinstance(example, Mapping) for example in given):
            predict(self._predictor, given, found.append)
            return found
        with tempfile.TemporaryDirectory() as folder:
            file, given = (
                Path(folder) / "examples.jsonl",
                _listed(given, Mapping, "record"),
            )
            try:
                lines = (json.dumps(dict(example)) for example in given)
                file.write_text("".join(f"{line}\n" for line in lines))
                predict(self._predictor, str(file), found.append)
            except TypeError as error:  # of json
                message = f"a record holds what JSON cannot: {error}."
                raise PlmjaxError(message, code=Exit.DATA) from error
            except PlmjaxError as error:
                error.message = error.message.replace(f"{file}:", "example ")
                raise
        return found

    @functools.cached_property
    def _predictor(self):
        from plmjax.finetune.predict import Predictor

        return Predictor([self.path])


def _listed(values: Any, kind: Any = str, name: str = "text") -> list:
    """Returns a text, or several, as a list; of `predict` a record, or several."""
    if isinstance(values, kind):
        return [values]
    if isinstance(values, Iterable) and not isinstance(values, Mapping):
        values = list(values)
        if all(isinstance(value, kind) for value in values):
            return values
    wrong = reprlib.repr(values)
    raise PlmjaxError(f"{wrong} must be a {name}, or a list of such.")


def call(verb: str, *words: Any, keys: Keys | None = None, **options: Any) -> Any:
    """Runs a verb; returns its record, a list of several, or None if it has none."""
    records = _run(verb, words, keys, options)
    return records[0] if len(records) == 1 else records or None


def _run(
    verb: str, words: Sequence, keys: Keys | None, options: Mapping, **more: Any
) -> list:
    """Runs a verb with the parser's defaults and returns what it would print as JSON.

    `more` are attributes of the parsed options that no option of the command line sets.
    """
    parser, results = make_parser(), []
    if not isinstance(keys, Mapping | None):
        hint = "For example keys={'train.batch': 16}."
        raise PlmjaxError(f"keys={keys!r} must be a dict.", hint=hint)
    for word in words:
        if not isinstance(word, str | Path):
            hint = f"Several are given as plmjax.{verb}('a', 'b')."
            raise PlmjaxError(f"plmjax.{verb}({word!r}) must be a text.", hint=hint)
    command = [verb.rstrip("_"), *map(str, words)]
    chosen = parser.of(*command)
    known = chosen._option_string_actions
    given = {name.rstrip("_"): value for name, value in options.items()}
    # Without a file, what `output` writes is returned.
    output = given.get("output", chosen.get_default("output"))
    if "--json" in known and output != "-":
        given.setdefault("json", True)
    for name, value in given.items():
        several = isinstance(value, list | tuple)
        if several and isinstance(known.get(f"--{name}"), argparse._AppendAction):
            command += [f"--{name}={one}" for one in value]
        elif value is True:
            command.append(f"--{name}")
        elif value is not None and value is not False:
            text = ",".join(map(str, value)) if several else value
            command.append(f"--{name}={text}")
    for key, value in config_lib.flatten(keys or {}).items():
        command.append(f"--config.{key}={value}")
    with _errors_as_python(known):
        args = parser.read(command)
        vars(args).update(command=[], parser=parser, **more)
        machine.hide_absent_tpu()
        token = COLLECTED.set(results)
        try:
            code = args.run(args)
        finally:
            COLLECTED.reset(token)
    if code not in (None, Exit.OK, Exit.RESUMABLE) and not results:
        raise PlmjaxError(f"plmjax.{verb} did not succeed.", code=Exit(code))
    return results


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in VERBS:
        raise unknown(__name__, name, VERBS)
    verb = functools.partial(call, name)
    verb.__doc__ = f"Runs `plmjax {name}`; `plmjax {name} --help` has its options."
    return verb
