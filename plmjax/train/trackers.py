"""Trackers that get a run's records beside metrics.jsonl, if train.trackers names them.

Each has `write(step, values)`, `rewind(step)` and `close(how)`, where `how` is
"finished", "stopped" (by a signal) or "failed". Their own environment
variables say where records go and as whom: no secret passes through a config.
"""

import importlib.util
import json
import math
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plmjax import PlmjaxError
from plmjax.config import flatten
from plmjax.files import write_json
from plmjax.train.config import TRACKERS, TrainConfig

_WAITING = 10_000  # records; a tracker that is further behind is given up
_OPEN_SECONDS, _CLOSE_SECONDS = 20.0, 60.0
_EXPERIMENTS = ("sweep.json", "study.json", "pseudo.json")
_NAMES = r"(?:key|token(?!s|iz)|secret|passw|pwd|credential|signature|\bsig\b)"
_SECRET = re.compile(_NAMES, re.IGNORECASE)
_USERINFO = re.compile(r"(\w://)[^/\s]+@")  # up to the last @: passwords may have some
# Of a URL, and of a connection string as Azure's: AccountKey=...;
_PARAMETER = re.compile(rf"([?&;][^=&;\s]*{_NAMES}[^=&;\s]*=)[^&;\s#]+", re.IGNORECASE)


def redacted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {dotted key: value} of a config without secrets.

    These are texts whose key names one, users and passwords of URLs, and parameters of
    URLs that name one. A number is none: num_tokens stays.
    """

    def clean(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):  # a source of a mixture
            return {name: clean(name, one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [clean(key, item) for item in value]
        if isinstance(value, str):
            return "[redacted]" if _SECRET.search(key) else without_secrets(value)
        return value

    return {key: clean(key, value) for key, value in flatten(config).items()}


def without_secrets(text: str) -> str:
    """Returns a text whose URLs have no user, password or secret parameter."""
    return _PARAMETER.sub(r"\1[redacted]", _USERINFO.sub(r"\1", text))


def check(config: TrainConfig) -> None:
    """Raises PlmjaxError if a tracker is named whose package is not installed."""
    for name in config.tracker_names:
        module = {"tensorboard": "tensorboardX"}.get(name, name)
        package = {"mlflow": "mlflow-skinny"}.get(name, module)
        if importlib.util.find_spec(module) is None:
            raise PlmjaxError(
                f"train.trackers names {name}, which is not installed.",
                hint=f"pip install {package}, or leave it out.",
            )


class Outlet:
    """A tracker fed by a thread: if it fails or hangs, one warning, and no delay.

    Only its begin is waited for, some seconds: imports in two threads may collide.
    """

    def __init__(self, name: str, make: Callable[[], Any], log: Callable[[str], Any]):
        self._name, self._log, self._ended = name, log, False
        self._calls: queue.Queue = queue.Queue(_WAITING)
        self._thread = threading.Thread(
            target=self._feed, args=(make,), daemon=True, name=name
        )
        self._made = threading.Event()
        self._thread.start()
        self._made.wait(_OPEN_SECONDS)

    def call(self, method: str, *arguments: Any) -> None:
        """Queues a call of the tracker."""
        if not self._ended:
            try:
                self._calls.put_nowait((method, arguments))
            except queue.Full:
                self._give_up("it does not keep up")

    def close(self, how: str = "finished") -> None:
        """Waits for the queued calls, up to a minute; `how` the training ended."""
        self.call("close", how)
        if not self._ended:
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                self._give_up(f"it has not ended after {_CLOSE_SECONDS:g} s")
        self._ended = True

    def _feed(self, make: Callable[[], Any]) -> None:
        method = ""
        try:
            tracker = make()
            self._made.set()
            while method != "close" and not self._ended:
                method, arguments = self._calls.get()
                getattr(tracker, method)(*arguments)
        except (Exception, SystemExit) as error:
            self._give_up(error)
        finally:
            self._made.set()

    def _give_up(self, why: Any) -> None:
        if not self._ended:
            self._ended = True
            text = without_secrets(" ".join(str(why).split()) or repr(why))[:300]
            self._log(f"WARNING: {self._name} gets no more records: {text}.")


def open_outlets(
    names: tuple[str, ...], directory: Path, step: int, log: Callable[[str], Any]
) -> list[Outlet]:
    """Returns the outlets of a run in `directory` that goes on after `step`.

    trackers.json keeps the ids by which a later start goes on in the same runs.
    """
    path, one_writes = directory / "trackers.json", threading.Lock()

    def read(file: Path) -> dict:
        return json.loads(file.read_text()) if file.exists() else {}

    def make(name: str) -> Any:
        saved = read(path)
        config = redacted(read(directory / "config.json"))
        about = {"directory": directory, "step": step, "config": config}
        tracker = _KINDS[TRACKERS.index(name)](
            saved.get(name), **about, **_names(directory)
        )
        if tracker.id != saved.get(name):
            with one_writes:
                write_json(path, read(path) | {name: tracker.id})
        return tracker

    return [Outlet(name, lambda name=name: make(name), log) for name in names]


def _names(directory: Path) -> dict[str, Any]:
    """Returns name and root of a run, and the sweep or study that is its group."""
    here = directory.resolve()
    above = [a for a in here.parents if any((a / n).exists() for n in _EXPERIMENTS)]
    root = above[0] if above else here
    name = "-".join([root.name, *here.relative_to(root).parts])
    return {"name": name, "group": root.name if above else None, "root": root}


class _TensorBoard:
    id = None

    def __init__(self, saved: str | None, *, directory: Path, step: int, **_: Any):
        self._folder, self._board = str(directory / "tensorboard"), None
        self.rewind(step)

    def rewind(self, step: int) -> None:
        """Tells TensorBoard to drop what comes after `step`."""
        import tensorboardX

        self.close("")
        # If its writer's thread dies, one more record still fits the queue.
        more: Any = {"max_queue": 1000, "purge_step": step + 1}
        self._board: Any = tensorboardX.SummaryWriter(self._folder, **more)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._board.file_writer.event_writer._worker.is_alive():
            self._board = None  # its full queue would block us
            raise OSError(f"{self._folder} cannot be written")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self, how: str) -> None:
        if self._board is not None:
            self._board.close()


class _WandB:
    def __init__(self, saved, *, directory, config, name, group, **_: Any):
        import wandb

        self.id = saved or uuid.uuid4().hex
        # Neither the command line nor the machine: they may name secrets.
        private: Any = {"x_disable_meta": True, "disable_git": True}
        private |= {"save_code": False, "x_save_requirements": False}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "plmjax"),
            dir=os.environ.get("WANDB_DIR", str(directory)),
            id=self.id,
            resume="allow",
            name=name,
            group=group,
            config=config,
            settings=wandb.Settings(console="off", **private),
        )
        # Its own steps cannot go back, as ours do after a kill.
        self._run.define_metric("*", step_metric="step")

    def rewind(self, step: int) -> None:
        """Does nothing: steps that are run again have the values they had."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self, how: str) -> None:
        self._run.finish(exit_code=int(how == "failed"))


class _Trackio(_WandB):
    def __init__(self, saved, *, config, name, group, **_: Any):
        import trackio

        self.id = saved or f"{name}-{uuid.uuid4().hex[:6]}"
        about = {"group": group, "config": config, "embed": False}
        about |= {"auto_log_cpu": False, "auto_log_gpu": False}
        project = os.environ.get("TRACKIO_PROJECT", "plmjax")
        self._run = trackio.init(project, self.id, resume="allow", **about)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, how: str) -> None:
        self._run.finish()  # it knows no other end


class _MLflow(_WandB):
    def __init__(self, saved, *, config, name, group, root, **_: Any):
        from mlflow import MlflowClient, entities

        self._metric, where = entities.Metric, os.environ.get("MLFLOW_TRACKING_URI")
        if where is None:  # mlflow-skinny lacks what its default, SQLite, needs
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            where = (root / "mlruns").as_uri()
        self._client, self.id = MlflowClient(where), saved
        if saved is not None:
            self._client.update_run(saved, "RUNNING")
            return
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "plmjax")
        known = self._client.get_experiment_by_name(title)
        at = known.experiment_id if known else self._client.create_experiment(title)
        tags = {"group": group} if group else {}
        self.id = self._client.create_run(at, run_name=name, tags=tags).info.run_id
        params = [entities.Param(k, str(v)[:6000]) for k, v in config.items()]
        for begin in range(0, len(params), 100):  # it takes no more at once
            self._client.log_batch(self.id, params=params[begin : begin + 100])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(k, v, now, step) for k, v in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, how: str) -> None:
        status = {"failed": "FAILED", "stopped": "KILLED"}.get(how, "FINISHED")
        self._client.set_terminated(self.id, status)


def scalars(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Returns {kind/name: number} of a record's finite numbers."""
    return {
        f"{kind}/{name}": value
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


_KINDS = (_TensorBoard, _WandB, _MLflow, _Trackio)
