"""Settings of pretraining, each trained by every seed and then fine-tuned: one command.

`plmjax compare --pretrain`; what equal compute is, test_compute.py says.
"""

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import jax
import pytest
from finetune_common import one_device, records, write
from tests_common import TINY, sentences

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.cli import main
from plmjax.experiments import budget, sweep_plan
from plmjax.experiments import sweep as drive
from plmjax.experiments.compare_plan import Setting
from plmjax.experiments.pretrained import check_data, pretrained_plan
from plmjax.pretrain.dry_run import dry_run
from plmjax.pretrain.run import pretrain
from plmjax.workdir import RunConfig

SETTINGS = """
def get_config():
    return {"train": {"steps": 100, "batch": 8}}

def get_settings():
    return {
        "dynamic": {},
        "static": {"objective.masks": "static", "objective.copies": 1},
        "wide": {"model.ffn_width": 2048},
    }
"""


@pytest.fixture
def settings(tmp_path) -> str:
    path = tmp_path / "settings.py"
    path.write_text(SETTINGS)
    return str(path)


@pytest.fixture
def task(tmp_path) -> str:
    """A task file, its data beside it."""
    for name, count, seed in (("train", 48, 0), ("held_out", 16, 1), ("test", 16, 2)):
        write(tmp_path / f"{name}.jsonl", records("classes", count, seed))
    files = {n: f"{tmp_path}/{n}.jsonl" for n in ("train", "held_out", "test")}
    values = {
        "task": {"kind": "classes", "length": 16} | files,
        "baselines": False,
        "train": {
            "steps": 2,
            "batch": 16,
            "evaluate_every_steps": 2,
            "checkpoint_every_steps": 2,
            "tensorboard": False,
        },
    }
    path = tmp_path / "words.py"
    path.write_text(f"def get_config():\n    return {values}\n")
    return str(path)


def planned(root: Path, settings: str, task: str, seeds: int = 2, safe: bool = False):
    found = sweep_plan.load(settings, seeds=seeds)
    recipe = [Setting("safe", True) if safe else Setting()]
    return pretrained_plan(root, found, [task], recipe, None, [])


def test_a_seed_starts_from_the_pretraining_of_that_seed(tmp_path, settings, task):
    plan = planned(tmp_path / "s", settings, task)
    assert [run.model for run in plan.runs] == [
        name for name in ("dynamic", "static", "wide") for _ in range(2)
    ]
    assert [run.seed for run in plan.runs] == [0, 1] * 3
    trials = [Path(str(run.config["model"])) for run in plan.runs]
    assert [path.name for path in trials] == [f"000{n}" for n in range(6)]
    assert trials[0].parent == tmp_path / "s" / "pretrained" / "trials"
    assert {run.config["seeds"]["init"] for run in plan.runs} == {0, 1}
    told = plan.stands_on["models"]
    assert (
        told["static"].startswith("objective.masks=static") and "steps" in told["wide"]
    )
    # One seed more: those that were there keep their places.
    more = planned(tmp_path / "s", settings, task, seeds=3)
    assert len(more.runs) == 9 and more.stands_on["models"] == told


def test_planning_starts_no_device(tmp_path, settings, task, monkeypatch):
    """The pretrainings, processes of their own, want all of its memory."""

    def refuse(*_):
        raise AssertionError("a device was asked for")

    for name in ("devices", "default_backend", "local_devices", "device_put"):
        monkeypatch.setattr(jax, name, refuse)
    plan = planned(tmp_path / "s", settings, task, safe=True)
    first, _, wide = plan.budgets
    steps, tokens, *_ = (text for _, text in budget.row(first, first))
    assert (steps, tokens) == ("100", f"{100 * 8 * 128:,}")
    assert wide.cost.steps < 80 and first.parameters is None
    assert wide.cost.flops == pytest.approx(first.cost.flops, rel=0.01)
    # Of two layers the safe recipe draws none anew: the encoder was known.
    assert plan.runs[0].config["start"]["reinit_layers"] == 0


def test_labelled_data_is_read_before_any_pretraining(tmp_path, settings, task):
    plan = planned(tmp_path / "s", settings, task)
    check_data(plan)
    (tmp_path / "test.jsonl").write_text('{"text": "no label"}\n')
    with pytest.raises(PlmjaxError, match="label"):
        check_data(plan)


@pytest.mark.parametrize(
    "more, says",
    [
        (["runs/mine"], "did not cost the same"),
        (["--vary=data"], "a pretraining of its own"),
        (["--seeds=0"], "--seeds=0"),
        (["--parallel=0"], "--parallel=0"),
        (["--pretrain.train.step=5"], "Did you mean train.steps"),
        (["--config.train.step=5"], "Did you mean train.steps"),
    ],
)
def test_what_makes_no_comparison(more, says, tmp_path, settings, task, capsys):
    command = ["compare", f"--pretrain={settings}", f"--tasks={task}"]
    command += [f"--workdir={tmp_path / 's'}"]
    assert main([*command, *more]) == Exit.USAGE
    assert says in capsys.readouterr().err
    assert not (tmp_path / "s" / "pretrained").exists()


def test_what_is_for_pretrainings_needs_them(tmp_path, task, capsys):
    command = ["compare", "x", f"--tasks={task}", f"--workdir={tmp_path / 's'}"]
    assert main([*command, "--parallel=2"]) == Exit.USAGE
    assert "there are none" in capsys.readouterr().err
    assert main([*command, "--pretrain.train.steps=2"]) == Exit.USAGE
    assert "compare --pretrain=FILE" in capsys.readouterr().err
    rates = Path(__file__).parents[2] / "configs" / "sweeps" / "learning_rate.py"
    command[1] = f"--pretrain={rates}"
    assert main(command) == Exit.USAGE
    assert "no get_settings" in capsys.readouterr().err


def trained_here(arguments, log, slot, environment) -> "Ended":
    """Does what `plmjax pretrain ARGUMENT...` does, but in this process."""
    prefix = "--config."
    overrides = [a.removeprefix(prefix) for a in arguments if a.startswith(prefix)]
    given = dict(a.split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
    config = config_lib.load(RunConfig, given["--config"], overrides)
    with open(log, "a") as file, contextlib.redirect_stdout(file):
        if "--dry_run" in arguments:
            dry_run(config, Path(given["--workdir"]), compiles=False)
        else:
            assert "stopped" not in pretrain(config, Path(given["--workdir"]))
    return Ended()


class Ended:
    """A process that has ended well."""

    def poll(self) -> int:
        return 0

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_one_command_pretrains_stops_goes_on_and_compares(
    tmp_path, task, monkeypatch, capsys
):
    corpus, root = tmp_path / "corpus.txt", tmp_path / "s"
    corpus.write_text("\n".join(sentences(300)) + "\n")
    text = """
def get_config():
    return {"model": {"preset": "bert-tiny", "layers": 1}, "train": {"steps": 50}}

def get_settings():
    return {"plain": {}, "wide": {"model.ffn_width": 1024}}
"""
    (tmp_path / "settings.py").write_text(text)
    command = ["compare", f"--pretrain={tmp_path}/settings.py", f"--tasks={task}"]
    command += [f"--workdir={root}", "--seeds=2"]
    command += ["--setting=probe:train.optimizer.freeze=encoder"]
    own = ("train.steps", "every", "ffn_width")
    tiny = (option for option in TINY if not any(key in option for key in own))
    command += [option.replace("--config.", "--pretrain.") for option in tiny]
    command += [f"--pretrain.data.source.paths={corpus}"]
    sweep, started = drive.sweep, []

    def start(arguments, log, slot, environment):
        started.append(log.parent.name)
        ended = trained_here(arguments, log, slot, environment)
        if len(started) == 2:  # the text, and a trial
            os.kill(os.getpid(), signal.SIGINT)
        return ended

    monkeypatch.setattr(drive, "sweep", lambda *told: sweep(*told, start=start))
    trials = root / "pretrained" / "trials"
    with one_device():
        assert main(command) == Exit.RESUMABLE
        assert [path.parent.name for path in trials.glob("*/scores.json")] == ["0000"]
        assert not (root / "study.json").exists()
        capsys.readouterr()
        assert main(command) == Exit.OK
    assert started[1:] == ["0000", "0001", "0002", "0003"]
    said = " ".join(capsys.readouterr().out.split())
    verdict = r"wide: (not distinguishable from|better than|worse than) plain: [+-]"
    assert "PFLOPs" in said and re.search(verdict, said)
    found = json.loads((root / "results.json").read_text())
    assert [cell["summary"]["n"] for cell in found["cells"]] == [2, 2]
    run = found["cells"][1]["runs"][1]
    config = json.loads((Path(run["workdir"]) / "config.json").read_text())
    assert config["model"] == str(trials / "0003")
    plain, wide = found["pretraining"]
    assert wide["cost"]["flops"] == pytest.approx(plain["cost"]["flops"], rel=0.02)
    assert wide["parameters"] > plain["parameters"]
    assert "Pretraining, each seed" in (root / "report.html").read_text()
    assert (root / "plots" / "boxes.png").stat().st_size > 300
