"""Trackers behind the one writer, by fakes of their packages."""

import importlib.util
import json
import sys
import threading
import types

import pytest
from tests_common import run_python

from plmjax import Exit, PlmjaxError, cli
from plmjax import config as config_lib
from plmjax.train import trackers
from plmjax.train.config import TrainConfig
from plmjax.train.metrics import MetricWriter, read_starts
from plmjax.workdir import RunConfig

CANARY = "c4n4ry"


class Log(list):
    """Records calls of any method as (name, arguments)."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*given, **named):
            self.append((name, (*given, named) if named else given))
            return self

        return call


@pytest.fixture
def fakes(monkeypatch):
    """{name: calls} of a fake of each package."""
    logs = {name: Log() for name in ("wandb", "trackio", "mlflow")}
    for name, log in logs.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)
        module.init, module.Settings = log.init, lambda **more: more
        module.MlflowClient = lambda where, log=log: log.client(where)
    entities = types.ModuleType("mlflow.entities")
    entities.Metric = entities.Param = lambda *given: given
    sys.modules["mlflow"].entities = entities
    log = logs["mlflow"]
    log.info = types.SimpleNamespace(run_id="the-run")
    log.experiment_id = 3
    for name in ("WANDB_DIR", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return logs


NAMES = ("wandb", "trackio", "mlflow")


def run_of_a_sweep(tmp_path):
    """Returns the directory of a trial whose config holds secrets."""
    run = tmp_path / "rates" / "0003"
    run.mkdir(parents=True)
    (tmp_path / "rates" / "sweep.json").write_text("{}")
    values = config_lib.to_dict(RunConfig())
    values["train"]["checkpoints"] = f"s3://me:{CANARY}@host/b?sig=1&X-Token={CANARY}"
    values["data"]["source"]["api_key"] = [CANARY]
    source = {"paths": f"s3://me:{CANARY}@host/x", "api_key": CANARY}
    values["data"]["mixture"] = [source]
    values["model"]["num_tokens"] = 7
    (run / "config.json").write_text(json.dumps(values))
    return run


def test_each_tracker_gets_the_records_and_goes_on_in_its_run(tmp_path, fakes):
    run, said = run_of_a_sweep(tmp_path), []
    for step in (0, 2):
        writer = MetricWriter(run, NAMES, step, said.append)
        record = {"loss": 1.5, "accuracy": None}
        writer.write("train", step + 1, record)
        writer.rewind(step + 1)  # after a bad step
        writer.write("evaluation", step + 2, {"loss": 0.5})
        writer.close("failed" if step else "finished")
    assert said == []
    assert CANARY not in repr([*fakes.values()])
    first, again = (given[-1] for name, given in fakes["wandb"] if name == "init")
    assert first["id"] == again["id"] and first["resume"] == "allow"
    assert (first["name"], first["group"]) == ("rates-0003", "rates")
    assert (
        first["config"]["train.checkpoints"]
        == "s3://host/b?sig=[redacted]&X-Token=[redacted]"
    )
    assert first["config"]["data.source.api_key"] == ["[redacted]"]
    assert first["config"]["model.num_tokens"] == 7
    assert first["settings"]["x_disable_meta"] and first["dir"] == str(run)
    logged = [given[0] for name, given in fakes["wandb"] if name == "log"]
    assert logged[:2] == [
        {"train/loss": 1.5, "step": 1},
        {"evaluation/loss": 0.5, "step": 2},
    ]
    assert [name for name, _ in fakes["wandb"]].count("finish") == 2
    (_, name, _), (_, same, _) = (g for n, g in fakes["trackio"] if n == "init")
    assert name == same and name.startswith("rates-0003-")
    assert ("log", ({"train/loss": 1.5}, {"step": 3})) in fakes["trackio"]
    calls = [name for name, _ in fakes["mlflow"]]
    assert calls.count("create_run") == 1 and calls.count("update_run") == 1
    batches = [g[-1] for name, g in fakes["mlflow"] if name == "log_batch"]
    metrics = [m for batch in batches for m in batch.get("metrics", ())]
    assert [(key, value, step) for key, value, _, step in metrics][:2] == [
        ("train/loss", 1.5, 1),
        ("evaluation/loss", 0.5, 2),
    ]
    assert all(len(batch.get("params", ())) <= 100 for batch in batches)
    ends = [given[1] for name, given in fakes["mlflow"] if name == "set_terminated"]
    codes = [
        given[0]["exit_code"] for name, given in fakes["wandb"] if name == "finish"
    ]
    assert (ends, codes) == (["FINISHED", "FAILED"], [0, 1])


@pytest.mark.parametrize(
    "text",
    [
        f"https://a.blob.core.windows.net/b?sv=2024&sig={CANARY}%3D&se=1",
        f"https://user:{CANARY}@host/c and s3://me:p@{CANARY}@host/b",
        f"hdfs://{CANARY}@host/x?Password={CANARY}#part",
        f"BlobEndpoint=x;AccountKey={CANARY}==;EndpointSuffix=net",
    ],
)
def test_a_text_keeps_no_secret_of_a_url(text):
    shown = trackers.without_secrets(text)
    assert CANARY not in shown and not shown.endswith("[redacted]")


def test_a_tracker_that_fails_or_hangs_warns_once_and_delays_nobody(
    tmp_path, fakes, monkeypatch
):
    run, said, hold = run_of_a_sweep(tmp_path), [], threading.Event()

    def fail(values, step):
        raise ConnectionError(f"no route to https://me:{CANARY}@host")

    fakes["trackio"].log = fail
    fakes["wandb"].log = lambda values: hold.wait(10)
    monkeypatch.setattr(trackers, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(trackers, "_WAITING", 3)
    sys.modules["mlflow"].MlflowClient = lambda where: 1 / 0
    writer = MetricWriter(run, NAMES, 0, said.append)
    writer.write("train", 1, {"loss": 1.0})
    writer._outlets[1]._thread.join(10)
    for step in range(2, 9):
        writer.write("train", step, {"loss": 1.0})
    writer.close()
    slow: list[str] = []
    writer = MetricWriter(run, ("wandb",), 8, slow.append)
    writer.write("train", 9, {"loss": 1.0})
    writer.close()
    hold.set()
    assert "wandb gets no more records: it has not ended" in slow[0]
    assert sorted(line.split()[1] for line in said) == ["mlflow", "trackio", "wandb"]
    assert CANARY not in " ".join(said) and "https://host" in " ".join(said)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 9


def test_a_tracker_that_is_slow_to_begin_holds_nobody_up(tmp_path, fakes, monkeypatch):
    run, said, hold = run_of_a_sweep(tmp_path), [], threading.Event()
    begin, main = sys.modules["wandb"].init, threading.current_thread()
    monkeypatch.setattr(trackers, "_OPEN_SECONDS", 0.1)

    def init(**given):
        assert threading.current_thread() is not main
        hold.wait(10)
        return begin(**given)

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    writer = MetricWriter(run, NAMES, 0, said.append)
    writer.write("train", 1, {"loss": 1.0})
    assert not fakes["wandb"]
    hold.set()
    writer.close()
    assert said == []
    assert [name for name, _ in fakes["wandb"]].count("log") == 1
    saved = json.loads((run / "trackers.json").read_text())
    assert sorted(saved) == sorted(NAMES)


def test_a_tracker_that_is_missing_is_an_error_before_work(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("a text\n")
    given = [f"--workdir={tmp_path}/run", str(tmp_path / "t.txt")]
    for name, package in (("wandb", "wandb"), ("mlflow", "mlflow-skinny")):
        if importlib.util.find_spec(name) is None:
            option = f"--config.train.trackers={name}"
            assert cli.main(["pretrain", *given, option]) == Exit.USAGE
            err = capsys.readouterr().err
            assert f"names {name}, which is not installed. pip install {package}" in err
    assert not (tmp_path / "run").exists()
    with pytest.raises(PlmjaxError, match=r"'aim'.*may name tensorboard, wandb"):
        TrainConfig(trackers="wandb, aim")
    assert TrainConfig(trackers=("mlflow",)).tracker_names == ("tensorboard", "mlflow")
    assert TrainConfig(tensorboard=False, trackers="").tracker_names == ()


def test_starts_are_noted_also_those_that_were_killed(tmp_path):
    writer = MetricWriter(tmp_path, (), 0)
    writer.write("train", 15, {"loss": 1.0})  # and it is killed
    writer = MetricWriter(tmp_path, (), 10)
    writer.write("train", 20, {"loss": 1.0})
    writer.close()
    first, second = read_starts(tmp_path)
    assert (first["step"], first["reached"]) == (0, 15)
    assert (second["step"], second["reached"]) == (10, 20)
    assert first["began"] <= first["ended"] <= second["ended"]
    (tmp_path / "starts.json").write_text('{"starts": [{}]}')
    MetricWriter(tmp_path, (), 20).close()  # damage stops nobody
    assert [start["step"] for start in read_starts(tmp_path)] == [20]


REAL = """
import sys
from plmjax.train.metrics import MetricWriter
for step in (0, 2):
    writer = MetricWriter(sys.argv[1], (sys.argv[2],), step)
    writer.write("train", step + 1, {"loss": 1.5})
    writer.close()
"""


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
def test_the_real_packages_take_the_records_and_no_secret(tmp_path, name):
    pytest.importorskip(name)
    run = run_of_a_sweep(tmp_path)
    offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    secret = f"--key={CANARY}"
    found = run_python("-c", REAL, run, name, secret, PYTHONWARNINGS="", **offline)
    assert found.returncode == 0 and "gets no more" not in found.stdout, found.stdout
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = {path: path.read_bytes() for path in files if path.name != "config.json"}
    assert not [path for path, data in written.items() if CANARY.encode() in data]
    assert any(b"train/loss" in data for data in written.values()) or name == "mlflow"
