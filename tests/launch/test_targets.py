"""What is written for other machines: golden text, quoting, schemas, and mistakes."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import launch_cases as cases
import launch_schemas as schemas
import pytest
import yaml

import plmjax
from plmjax import Exit, PlmjaxError
from plmjax.cli import main
from plmjax.launch import templates

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in cases.GOLDEN.glob("*.txt"))
PLMJAX = ["-m", "plmjax", *cases.ARGUMENTS]


@pytest.fixture
def plans(tmp_path):
    return cases.plans(tmp_path)


def written(plan, suffix: str) -> str:
    (text,) = (text for path, text in plan.files.items() if path.suffix == suffix)
    return text


def test_every_case_has_a_golden_file(plans):
    assert sorted(plans) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_the_golden_one(plans, name):
    golden = (cases.GOLDEN / f"{name}.txt").read_text()
    assert cases.text(plans[name]) == golden, (
        "python tests/launch/launch_cases.py writes anew"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_shell_script_parses(plans, name):
    for path, text in plans[name].files.items():
        if path.suffix in (".sbatch", ".sh"):
            found = subprocess.run(["bash", "-n"], input=text.encode(), timeout=10)
            assert found.returncode == 0


def words(line: str) -> list[str]:
    """Returns the words that bash makes of a line."""
    script = f'set -- {line}\nprintf "%s\\0" "$@"'
    found = subprocess.run(["bash", "-c", script], capture_output=True, timeout=10)
    return found.stdout.decode().split("\0")[:-1]


def test_arguments_survive_bash(plans):
    script = written(plans["slurm_gpu"], ".sbatch")
    (line,) = re.findall(r"^set -- (.*)$", script, re.MULTILINE)
    assert words(line) == shlex.split(line) == ["python", *PLMJAX]
    (line,) = re.findall(r"^cd (.*) \|\| exit 2$", script, re.MULTILINE)
    assert words(line) == [str(cases.DIRECTORY)]
    script = written(plans["tpu_vm"], ".sh")
    (line,) = re.findall(r"^command=\((.*)\)$", script, re.MULTILINE)
    assert words(line) == ["venv/bin/python", *PLMJAX]


def test_commands_of_an_array_are_one_a_line(plans):
    lines = written(plans["slurm_commands"], ".commands").splitlines()
    assert [words(line) for line in lines] == [
        ["python", "-m", "plmjax", "pretrain", f"--config.train.learning_rate={rate}"]
        + [f"--workdir={workdir}"]
        for rate, workdir in (("1e-4", "runs/a b"), ("3e-4", "runs/$c"))
    ]
    assert "#SBATCH --array=0-1%2\n" in written(plans["slurm_commands"], ".sbatch")


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("gke")])
def test_a_jobset_holds_what_it_should(plans, name):
    jobset = yaml.safe_load(written(plans[name], ".yaml"))
    jsonschema.validate(jobset, schemas.JOBSET)
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["python", *PLMJAX]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    if name == "gke_gpu":
        assert jobset["metadata"]["name"] == "no"  # which YAML would take for false
        # The pod that DNS names first is the one of index 0.
        assert env["JAX_COORDINATOR_ADDRESS"] == "no-workers-0-0.no:12355"
        assert env["PLMJAX_NUM_PROCESSES"] == str(spec["completions"]) == "2"
        assert "PLMJAX_PROCESS_ID" in env
        assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    if name == "gke_tpu":
        assert env.keys() == {"PYTHONUNBUFFERED"}
        assert container["resources"]["limits"] == {"google.com/tpu": 4}


def fails(code: int, rule: dict) -> bool:
    inside = code in rule["values"]
    return inside if rule["operator"] == "In" else not inside


def test_a_jobset_starts_again_after_the_codes_that_may(plans):
    jobset = yaml.safe_load(written(plans["gke_gpu"], ".yaml"))
    (job,) = jobset["spec"]["replicatedJobs"]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    for code in (75, 134, 137, 143):
        assert not fails(code, rule["onExitCodes"]), code
    for code in (1, 2, 3, 4, 5, 6, 70, 126, 127, 139):
        assert fails(code, rule["onExitCodes"]), code
    assert rule["action"] == "FailJob"
    policy = jobset["spec"]["failurePolicy"]
    (whole,) = policy["rules"]
    assert whole["action"] == "FailJobSet"
    assert whole["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] == 2


def places(value, at=()):
    """Yields the path of every mapping within a document."""
    if isinstance(value, dict):
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))


@pytest.mark.parametrize(
    "name, schema", [("gke_tpu", schemas.JOBSET), ("sky_gpu", schemas.SKY)]
)
def test_the_schemas_are_strict(plans, name, schema):
    """A field more, or a value of another type, anywhere, is refused."""
    document = yaml.safe_load(written(plans[name], ".yaml"))
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(document)
    found = list(places(document))
    assert len(found) > 2
    for place in found:
        for key, value in (("paralelism", 1), (None, None)):
            changed = copy.deepcopy(document)
            inner = changed
            for step in place:
                inner = inner[step]
            if key is None:
                key, value = next(iter(inner)), [None]
            inner[key] = value
            assert not validator.is_valid(changed), (place, key)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("sky")])
def test_a_task_of_skypilot_runs(plans, name, tools):
    task = yaml.safe_load(written(plans[name], ".yaml"))
    jsonschema.validate(task, schemas.SKY)
    assert task["workdir"] == str(cases.DIRECTORY)
    show = "echo $JAX_COORDINATOR_ADDRESS $PLMJAX_NUM_PROCESSES $PLMJAX_PROCESS_ID"
    tools.add("python3", f'#!/bin/bash\n{show}; printf "%s\\n" "$@"; exit 75')
    environment = {
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.9",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_NODES": "2",
    }
    found = subprocess.run(
        ["bash", "-c", task["run"]],
        capture_output=True,
        text=True,
        timeout=10,
        env=os.environ | environment,
    )
    assert found.returncode == 75
    assert found.stdout.splitlines() == ["10.0.0.7:12355 2 1", *PLMJAX]


AWKWARD = ["", " ", "a'b", 'a"b', "$HOME", "`id`", "\\", "é ☃ 😀", "- x: #y", "{{a}}"]


@pytest.mark.parametrize("text", [*AWKWARD, "*", "~", "!", "null", "1e3", "\u00a0"])
def test_quoting_is_undone_by_bash_and_yaml(text):
    assert words(templates.shell(text)) == [text]
    assert yaml.safe_load(f"{{a: {templates.yaml([text])} }}") == {"a": [text]}
    assert json.loads(templates.yaml(text)) == text


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "\x00", "\x85", "\u2028", "\udc80"])
def test_what_cannot_be_written_is_refused(text):
    for write in (templates.shell, templates.yaml, lambda t: templates.yaml([t])):
        with pytest.raises(PlmjaxError, match="cannot be in a script"):
            write(text)


def test_words_without_a_value_take_their_line_away(tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    (tmp_path / "t").write_text("# {x} ${y} $z\na={{a}} b={{b}}\n- {{c}} {{a}}\nend")
    values = {"a": "{{b}}", "b": None, "c": ["1", "2"]}
    assert templates.fill("t", values) == "# {x} ${y} $z\n- 1 {{b}}\n- 2 {{b}}\nend\n"
    with pytest.raises(AssertionError, match="more"):
        templates.fill("t", {**values, "more": 1})
    with pytest.raises(KeyError):
        templates.fill("t", {"a": 1})


def test_templates_are_the_files_of_launch():
    """A link in a checkout; tests/test_package.py builds a wheel."""
    assert templates.FOLDER.resolve() == ROOT / "launch"
    used = {"local.sh", "slurm.sh", "tpu_vm.sh", "gke.yaml", "sky.yaml"}
    assert {path.name for path in (ROOT / "launch").iterdir()} == used | {
        "README.md",
        "container",
    }
    for name in used:
        assert "-m plmjax" not in (ROOT / "launch" / name).read_text()


@pytest.mark.slow
def test_a_wheel_holds_the_templates(tmp_path):
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*pip, "wheel", "-q", *options, "-w", tmp_path, ROOT], check=True, timeout=120
    )
    (wheel,) = tmp_path.glob("plmjax-*.whl")
    target = tmp_path / "installed"
    subprocess.run(
        [*pip, "install", "-q", *options, "--target", target, wheel],
        check=True,
        timeout=120,
    )
    found = target / "plmjax" / "launch" / "templates"
    assert not found.is_symlink()
    for path in filter(Path.is_file, (ROOT / "launch").iterdir()):
        assert (found / path.name).read_bytes() == path.read_bytes()
    # Nor does it hold anything else of a checkout.
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {
        "plmjax",
        "bin",
    }


GKE = ("--target=gke", "--image=i")
SLICE = (*GKE, "--accelerator=a", "--devices_per_node=4", "--nodes=2")
TPU = ("--target=tpu-vm", "--zone=z", "--accelerator=v6e-16", "--runtime=r")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--target=slurm", "--name=Bert"), "--name=Bert must be lower-case"),
        (("--target=slurm", "--name=-x"), "must be lower-case"),
        (("--target=slurm", f"--name={'x' * 41}"), "at most 40"),
        (("--target=slurm", "--partition=a b"), "--partition=a b may hold"),
        (("--target=slurm", "--time=1\n#SBATCH -x"), "--time=1"),
        (("--target=slurm", "--to=a b"), "--to=a b may hold"),
        (("--target=slurm", "--array=0"), "--array=0 must be at least 1"),
        (("--target=slurm", "--extra=a\nb"), "cannot be in a script"),
        (("--target=gke",), "needs --image"),
        ((*GKE, "--accelerator=a"), "go together"),
        ((*GKE, "--topology=2x2"), "--topology needs"),
        ((*SLICE, "--topology=4by4"), "must be like 4x4"),
        ((*SLICE, "--topology=4x4"), "has 16 chips, but --nodes=2"),
        ((*SLICE, "--topologie=2x4"), "Did you mean --topology=2x4?"),
        (("--target=sky",), "not its source"),
        (("--target=sky", "--accelerator=tpu-v6e-8"), "not for --target=sky"),
        ((*TPU[:2],), "needs --accelerator"),
        ((*TPU, "--copy=/etc"), "must lie in this directory"),
        ((*TPU, "--copy=a/../.."), "must lie in this directory"),
        ((*TPU, "--copy=absent"), "--copy=absent does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(options, message, here, capsys):
    assert main(["launch", *options, "--", "pretrain"]) == Exit.USAGE
    assert message in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "lines, message",
    [
        ("", "holds no command"),
        ("# nothing\n\n", "holds no command"),
        ("plmjax pretrain\nrm -rf x", "c:2: a line must begin with plmjax, not 'rm'"),
        ("plmjax pretrain 'x", "c:1: No closing quotation"),
        (
            "\nplmjax pretran",
            "c:2: `plmjax` has no verb 'pretran'. Did you mean pretrain",
        ),
    ],
)
def test_a_file_of_commands_is_checked(lines, message, here, capsys):
    (here / "c").write_text(lines)
    assert main(["launch", "--target=slurm", "--commands=c"]) == Exit.USAGE
    assert message in capsys.readouterr().err


def test_a_file_of_commands_that_is_not_there(here, capsys):
    assert main(["launch", "--target=slurm", "--commands=nothing"]) == Exit.USAGE
    assert "--commands=nothing" in capsys.readouterr().err


def test_a_command_and_a_file_of_them_are_too_much(here, capsys):
    (here / "c").write_text("plmjax pretrain")
    options = ["--target=slurm", "--commands=c", "--", "pretrain"]
    assert main(["launch", *options]) == Exit.USAGE
    assert "either a command after --" in capsys.readouterr().err


CALLS = {
    "slurm": (["sbatch", "plmjax-launch/plmjax.sbatch"], ()),
    "gke": (["kubectl", "create", "-f", "plmjax-launch/plmjax.yaml"], GKE[1:]),
    "sky": (
        "sky jobs launch --yes --name plmjax plmjax-launch/plmjax.yaml".split(),
        ("--install=pip install plmjax",),
    ),
}


@pytest.mark.parametrize("target", CALLS)
def test_the_tool_is_called(target, here, tools, capfd):
    call, options = CALLS[target]
    tools.add(call[0])
    arguments = ["launch", f"--target={target}", *options]
    assert main([*arguments, "--dry_run", "--", "pretrain"]) == 0
    shown = capfd.readouterr().out
    assert not tools.calls() and list(here.iterdir()) == []
    assert main([*arguments, "--", "pretrain"]) == 0
    assert tools.calls() == [call]
    path = here / call[-1]
    assert shown.startswith(f"# would write {call[-1]}:\n{path.read_text()}")
    assert shown.endswith(f"# would run:\n{shlex.join(call)}\n")


@pytest.mark.parametrize("target", CALLS)
def test_a_tool_that_fails_or_is_not_there(target, here, tools, monkeypatch, capfd):
    call, options = CALLS[target]
    arguments = ["launch", f"--target={target}", *options, "--", "pretrain"]
    tools.add(call[0], code=5)
    assert main(arguments) == Exit.USAGE
    assert "failed with exit code 5" in capfd.readouterr().err
    monkeypatch.setenv("PATH", str(here))
    assert main(arguments) == Exit.USAGE
    said = capfd.readouterr().err
    assert f"`{call[0]}` is not on this machine's PATH." in said
    assert shlex.join(call) in said
    assert (here / call[-1]).exists()


def test_an_installed_plmjax_has_no_source_to_copy(here, monkeypatch, capsys):
    monkeypatch.setattr(plmjax, "__file__", "/somewhere/plmjax/__init__.py")
    assert main(["launch", *TPU, "--", "pretrain"]) == Exit.USAGE
    assert "--install='pip install ...'" in capsys.readouterr().err
