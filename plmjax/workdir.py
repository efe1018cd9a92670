"""A run's directory: its layout, its config, and its lock.

workdir/
  config.json  environment.json  run.json  metrics.jsonl  teacher.json (distillation)
  mixture.json (data.mixture)  objective.json (plmjax.fit)  budget.json (--minutes)
  tokenizer/  data/  checkpoints/  tensorboard/  plots/  export/
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from plmjax import Exit, PlmjaxError, __version__, processes
from plmjax import config as config_lib
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.data.config import DataConfig
from plmjax.data.mixture import JoinedSplit, JoinedStore, join_plans
from plmjax.data.rows import load_plan
from plmjax.data.store import Split, Store, open_store
from plmjax.files import (
    did_you_mean,
    flocked,
    missing,
    no_empty_directory,
    write_json,
)
from plmjax.interop.card import CardConfig
from plmjax.models.config import EncoderConfig, ModelConfig, resolve
from plmjax.models.platform import ANY, Platform
from plmjax.objectives import (
    OBJECTIVES,
    CLMConfig,
    DistillConfig,
    ElectraConfig,
    MLMConfig,
    Objective,
    Pieces,
)
from plmjax.tasks import KINDS
from plmjax.tokenizers import Tokenizer, TokenizerConfig
from plmjax.train.config import MeshConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The config of a pretraining run."""

    # Without --workdir the run goes to runs/NAME; none: named after the first path of
    # the text, else after the kind of source.
    name: str | None = None
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)  # type: ignore
    objective: MLMConfig | CLMConfig | ElectraConfig | DistillConfig = (
        dataclasses.field(default_factory=MLMConfig)
    )
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    card: CardConfig = dataclasses.field(default_factory=CardConfig)

    def check_overrides(self, keys: Sequence[str]) -> None:
        """Raises PlmjaxError for a key of a command that has no effect."""
        for key in ("train.batch", "data.length"):
            if key in keys and self.data.phases:
                raise PlmjaxError(
                    f"--config.{key} has no effect: data.phases sets steps, length "
                    f"and batch of each phase, {self.data.phases}.",
                    hint="Change them there, or train in one phase: "
                    "--config.data.phases='()' --config.train.steps=N.",
                )


# Keys that may change between two starts of a run: they set the length and monitoring
# of training, and do not affect steps already done.
MAY_CHANGE = frozenset(
    """
    train.steps train.epochs train.log_every_steps train.evaluate_every_steps
    train.checkpoint_every_steps train.keep_checkpoints train.max_bad_steps
    train.on_bad_step train.spike_sigmas train.rollback_batches train.max_rollbacks
    train.hang_after_seconds train.patience_evaluations train.tensorboard train.trackers
    data.workers data.accept_warnings objective.teacher mesh.data mesh.fsdp mesh.tensor
    mesh.zero1 data.source.license data.source.rights data.source.url card.license
    card.language card.datasets card.base_model train.accumulation model.remat
    train.attention train.schedule.ends
    """.split()
)
# Those of them that change the order of sums, and so the last digits of each step.
_ROUNDING = ("train.accumulation", "train.attention", "model.remat", "mesh.zero1")


def _ways_to_continue(directory: Path, verb: str, keeps_weights: bool = False) -> str:
    """Returns a hint for a run whose config would change: how to continue.

    `keeps_weights`: its weights fit the changed config.
    """
    hint = f"`{verb} --workdir={directory}` resumes it with the config it has; the "
    hint += "changed config needs another --workdir"
    if keeps_weights:
        hint += ", and starts from these weights by --config.train.init_from="
        hint += f"{directory} --config.tokenizer.path={directory / 'tokenizer'}"
    return f"{hint}."


# Keys whose value none means that the files decide, at the first start of a run.
INFERRED = ("data.source.kind", "data.source.field")


def names_texts(overrides: Iterable[str], config: Any) -> bool:
    """Returns whether "key=value" overrides name texts, unless of a kind of data sets.

    Texts that a command names are read by their own kind, not by the config's.
    """
    named = any(one.startswith("data.source.paths=") for one in overrides)
    return named and config.data.source.kind not in ("hf", "tfds")


class Workdir:
    """The paths and files of a run.

    `schema` is the dataclass of the run's config.
    """

    def __init__(self, path: str | Path, schema: type = RunConfig):
        self.path, self.schema = Path(path), schema

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def checkpoints(self) -> str | Path:
        """The path or URL of the checkpoints of the run in this directory."""
        config = self.read("config.json") or {}
        return self._inside(config_lib.flatten(config).get("train.checkpoints"))

    def checkpoints_of(self, config: TrainConfig) -> str | Path:
        """The path or URL of the checkpoints of a run with this config."""
        return self._inside(config.checkpoints)

    def _inside(self, where: str | None) -> str | Path:
        if isinstance(where, str) and "://" in where:
            return where
        return self.path / (where or "checkpoints")

    @property
    def begun(self) -> bool:
        """True if the run has checkpoints, which a changed config would invalidate."""
        return bool(Checkpoints(self.checkpoints).steps())

    def create(self) -> list[Path]:
        """Creates the directory; returns what is new, as `files.missing` does.

        Raises:
          PlmjaxError: it cannot be written.
        """
        new = missing(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise PlmjaxError(
                f"--workdir={self.path} cannot be written: {error.strerror}.",
                hint="Choose another directory, or change its permissions.",
                code=Exit.DISK,
            ) from error
        return new

    def resolve(self, path: str) -> Path:
        """Returns the path inside the workdir if it exists there, else unchanged."""
        inside = self.path / path
        return inside if inside.exists() else Path(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the directory for this process; the system unlocks it when we die.

        Raises:
          PlmjaxError: another run has locked it.
        """
        with open(self.path / ".lock", "a+") as file:
            while not flocked(file, fcntl.LOCK_EX):
                if not flocked(file, fcntl.LOCK_SH):
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise PlmjaxError(
                        f"{self.path} is in use by {holder}.",
                        hint="Wait for it, stop it, or choose another --workdir.",
                    )
                # A reader has it for a moment (locked_by).
                fcntl.flock(file, fcntl.LOCK_UN)
                time.sleep(0.01)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def read(self, name: str, **needed: type) -> dict | None:
        """Returns the content of a JSON file of the directory, or None if missing.

        Raises:
          PlmjaxError: it is not a JSON object, or a `needed` key has another type.
        """
        path = self.path / name
        if not path.is_file():
            return None
        trouble = "is not a JSON object"
        try:
            content = json.loads(path.read_text())
            # Escapes can encode half a surrogate pair, which no file could store.
            json.dumps(content, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            content, trouble = None, f"is not valid JSON: {error}"
        if isinstance(content, dict):
            wrong = [k for k, t in needed.items() if type(content.get(k)) is not t]
            if not wrong:
                return content
            trouble = f"is damaged: its {wrong[0]!r} is missing or of another type"
        raise PlmjaxError(f"{path} {trouble}.", hint="Restore it from a copy.")

    def config(self) -> RunConfig:
        """Returns the run's config.

        Raises:
          PlmjaxError: the directory holds no run.
        """
        saved = self.read("config.json")
        if saved is None or "model_type" in saved:
            what = "no config.json" if saved is None else "a Hugging Face config.json"
            raise PlmjaxError(
                f"{self.path} holds no run: it has {what}.",
                hint=did_you_mean(self.path)
                + "Give the --workdir of `plmjax pretrain`.",
            )
        if "task" in saved:
            raise PlmjaxError(
                f"{self.path} holds a fine-tuned model.",
                hint="Give the --workdir of `plmjax pretrain`.",
            )
        return config_lib.build(RunConfig, saved)

    def tokenizer(self) -> Tokenizer:
        """Returns the run's tokenizer."""
        return Tokenizer.load(self.path / "tokenizer")

    def store(self) -> Store:
        """Opens the run's token store and verifies every byte.

        Raises:
          PlmjaxError: it is missing or damaged.
        """
        run = self.read("run.json", store=str)
        if run is None:
            raise PlmjaxError(
                f"{self.path} has no run.json, which names its token store.",
                hint="Start `plmjax pretrain` on it again.",
                code=Exit.DATA,
            )
        parts = run.get("parts") or {"": run["store"]}
        stores = {
            name: open_store(self.path / "data" / key, verify=True)
            for name, key in parts.items()
        }
        return JoinedStore(stores) if "parts" in run else stores[""]

    def teacher(self) -> EncoderConfig | None:
        """Returns the encoder config of the run's teacher, or None."""
        record = self.read("teacher.json", encoder=dict, digest=str)
        if record is None:
            return None
        return config_lib.build(EncoderConfig, record["encoder"])

    def check_same_config(self, config: Any) -> dict[str, tuple]:
        """Returns {key: (old, new)} of permitted changes to the run in the directory.

        Any key may change before the first checkpoint.

        Raises:
          PlmjaxError: something else changed, with the difference.
        """
        saved = self.read("config.json")
        if saved is not None and "model_type" in saved:
            raise PlmjaxError(
                f"{self.path} is a Hugging Face folder, not a run.",
                hint="Choose another --workdir; `plmjax import` starts from a folder.",
            )
        if saved is None or not self.begun:
            return {}
        return self.compare(saved, config_lib.to_dict(config))

    def compare(self, saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict:
        """Returns {key: (old, new)} of permitted changes to a run's saved config.

        Raises:
          PlmjaxError: something else changed, with the difference.
        """
        names = {False: "plmjax pretrain", True: "plmjax finetune"}
        before, now = (names["task" in c] for c in (saved, config))
        if before != now:
            raise PlmjaxError(
                f"{self.path} holds a run of `{before}`, not of `{now}`.",
                hint="Choose another --workdir.",
            )
        # Both get defaults for missing keys: a key newer than the run has the value
        # by which the run behaved without it.
        old, new = (
            json.loads(json.dumps(config_lib.to_dict(config_lib.build(self.schema, c))))
            for c in (saved, config)
        )
        changed = {
            key: pair
            for key, pair in config_lib.changes(old, new).items()
            if key not in INFERRED or None not in pair
        }
        refused = {k: v for k, v in changed.items() if k not in MAY_CHANGE}
        if (kind := "objective.kind") in refused:
            # Another kind changes all other keys of the block, so only it is shown.
            others = {k: v for k, v in refused.items() if "objective." not in k}
            refused = {kind: refused[kind]} | others
        refused |= self._changed_loss(new, changed)
        if refused:
            lines = [f"  {k}: {a!r} -> {b!r}" for k, (a, b) in refused.items()]
            other = any(key.startswith(("model.", "tokenizer.")) for key in refused)
            fits = before == names[False] and not other
            raise PlmjaxError(
                f"{self.path} holds a run with another config:\n" + "\n".join(lines),
                hint=f"\n{_ways_to_continue(self.path, before, fits)}",
            )
        return changed

    def _changed_loss(self, config: Mapping[str, Any], changed: dict) -> dict:
        """Returns the number of micro-batches, if it changed and changes the loss."""
        # Without a head, a text is compared with the others of its micro-batch.
        paired = "task" in config and KINDS[config["task"]["kind"]].head is None
        return {k: v for k, v in changed.items() if paired and k == _ROUNDING[0]}

    def continues(self, config: Any) -> bool:
        """Whether the run in the directory could be resumed with this config."""
        try:
            self.compare(self.read("config.json") or {}, config_lib.to_dict(config))
        except PlmjaxError:
            return False
        return True

    @property
    def done(self) -> int:
        """The steps of the newest checkpoint; 0 without one."""
        return max(Checkpoints(self.checkpoints).steps(), default=0)

    def is_finished(self, steps: int | None) -> bool:
        """Whether the run in the directory has so many steps."""
        return steps is not None and self.done >= steps

    @property
    def own_objective(self) -> str | None:
        """The name of the objective that plmjax.fit was given for the run, or None."""
        return (self.read("objective.json", objective=str) or {}).get("objective")

    def check_objective(self, name: str | None) -> None:
        """Raises PlmjaxError if the run here was begun with another own objective."""
        if name != (before := self.own_objective) and self.begun:
            names = (one or "that of its config" for one in (before, name))
            raise PlmjaxError(
                "{} was begun with another objective: {}, not {}.".format(
                    self.path, *names
                ),
                hint="plmjax.fit with the first one resumes it.",
            )

    def check_origin(self, ours: Mapping[str, str], meta: Mapping[str, Any]) -> None:
        """Raises PlmjaxError if a checkpoint's digests (origin) are not `ours`."""
        for what, digest in ours.items():
            if meta.get(what) != digest:
                raise PlmjaxError(
                    f"the checkpoint in {self.checkpoints} was trained with another "
                    f"{what} than {self.path} now holds.",
                    hint=f"Restore the first {what}, or start again in another "
                    "--workdir.",
                    code=Exit.MODEL,
                )

    def check_length(self, steps: int) -> None:
        """Raises PlmjaxError if the run in the directory has more steps than these."""
        if self.done > steps:
            raise PlmjaxError(
                f"{self.path} has {self.done:,} steps done already, and the config "
                f"asks for {steps:,}.",
                hint=f"Set --config.train.steps={self.done} or more, or leave it out.",
            )

    def write_config(self, config: Any) -> None:
        """Writes the run's config."""
        values = config_lib.to_dict(config)
        write_json(self.path / "config.json", values, sort_keys=True)

    def write_environment(self) -> None:
        """Writes the environment of the run: `environment()`."""
        write_json(self.path / "environment.json", environment())


@contextlib.contextmanager
def training_session(
    workdir: Workdir, config: Any, mesh, log: Callable[[str], Any]
) -> Iterator[tuple[bool, set[str]]]:
    """Locks a workdir for a training by all processes, with the mesh set.

    Yields (leads, changed): whether this process writes the files that all processes
    on this directory read, and the keys that differ from the run's saved config.

    Raises:
      PlmjaxError: it cannot be written, is in use, or has a run of another config.
    """
    import jax

    new = processes.run_on_all(workdir.create)
    leads = processes.leader(workdir.path) == jax.process_index()
    with contextlib.ExitStack() as stack:

        def begin() -> dict:
            if leads:
                stack.enter_context(workdir.locked())
            return workdir.check_same_config(config)

        changed = processes.run_on_all(begin)
        stack.enter_context(no_empty_directory(new))  # with the lock
        stack.enter_context(_naming_the_saved_step(workdir))
        stack.enter_context(jax.set_mesh(mesh))
        for key, (old, new) in changed.items():
            how = " The steps are the same, equal to rounding." * (key in _ROUNDING)
            log(f"{key} changes from {old} to {new}.{how}")
        yield leads, set(changed)


@contextlib.contextmanager
def _naming_the_saved_step(workdir: Workdir) -> Iterator[None]:
    """Names the saved step after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as error:
        saved = Checkpoints(workdir.checkpoints).steps()
        text = f"Step {saved[-1]:,} is saved." if saved else "No step is saved."
        raise KeyboardInterrupt(text) from error


CHECKOUT = Path(__file__).parents[1]
PACKAGES = "jax jaxlib flax optax orbax-checkpoint tensorstore numpy tokenizers grain"
# They change what is computed, and hold no secrets; others are not recorded.
VARIABLES = "XLA_FLAGS LIBTPU_INIT_ARGS JAX_PLATFORMS JAX_NUM_CPU_DEVICES"
_DIFF_BYTES = 500_000


def environment() -> dict[str, Any]:
    """Returns versions, devices, host, directory, git commit and changes since it."""
    import jax

    diff = _git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-color") or ""
    commit = _git("describe", "--always", "--dirty", "--abbrev=40") or ""
    return {
        "plmjax": __version__,
        "commit": commit.strip() or None,
        # Of tracked files alone: others may hold secrets.
        "diff": diff if len(diff.encode()) <= _DIFF_BYTES else None,
        "diff_bytes": len(diff.encode()),
        "directory": os.getcwd(),
        "variables": {k: v for k in VARIABLES.split() if (v := os.environ.get(k))},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "packages": {name: metadata.version(name) for name in PACKAGES.split()},
    }


def _git(*arguments: str) -> str | None:
    """Returns what git says of plmjax's checkout, or None if there is none."""
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, timeout=10)
        return result.stdout.decode()
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None


def encoder_config(
    config: RunConfig, tokenizer: Tokenizer, done: int | None = None
) -> EncoderConfig:
    """Returns the encoder config of a run after `done` steps; None: at its end."""
    ids = tokenizer.vocab_size, tokenizer.pad_id, tokenizer.global_ids
    encoder = resolve(config.model, *ids)
    data = config.data
    phase = data.shapes[-1] if done is None else data.phase_at(max(done - 1, 0))
    if phase.rope_theta is None:
        return encoder
    return dataclasses.replace(encoder, rope_theta=phase.rope_theta)


def row_plan(config: RunConfig, split: Split, length: int, store: Store):
    """Returns the packing of documents, or pairs of sentences, into rows."""
    packed, pairs = config.data.rows == "packed", config.objective.pairs_config
    if isinstance(split, JoinedSplit):
        folders = [part.directory for part in store.parts.values()]
        parts = zip(split.parts, folders, strict=True)
        return join_plans(split, [load_plan(p, length, packed, at) for p, at in parts])
    more = () if pairs is None else (pairs,)
    return load_plan(split, length, packed, store.directory, *more)


def make_objective(
    config: RunConfig,
    encoder: EncoderConfig,
    tokenizer: Tokenizer,
    teacher: EncoderConfig | None = None,
    platform: Platform = ANY,
    make: Callable[..., Objective] | None = None,
) -> Objective:
    """Returns the objective of a run; distillation needs the teacher's encoder.

    `make` is a user's own, in place of the one that the config names.
    """
    pieces = Pieces(
        tokenizer.mask_id, tokenizer.special_ids, tuple(tokenizer.token_bytes.tolist())
    )
    make = make or OBJECTIVES[config.objective.kind]
    more = (teacher,) if isinstance(config.objective, DistillConfig) else ()
    return make(config.objective, encoder, pieces, *more, platform=platform)
