"""TPU VMs: the decisions, the calls of gcloud, and what runs on the hosts."""

import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from plmjax import Exit, PlmjaxError
from plmjax.cli import main
from plmjax.launch import tpu_vm
from plmjax.launch.tpu_states import Action, Progress, Seen, after, decide

# The launcher has one thread and no jax; this process may have both.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning"),
    pytest.mark.timeout(60),
]

READY = Seen("ACTIVE", "READY")
FRESH, INSTALLED = Progress(), Progress(installed=True)


@pytest.mark.parametrize(
    "seen, progress, action",
    [
        (Seen(None), FRESH, Action.CREATE),
        (Seen("CREATING"), FRESH, Action.WAIT),
        (Seen("ACCEPTED"), FRESH, Action.WAIT),
        (Seen("WAITING_FOR_RESOURCES"), FRESH, Action.WAIT),
        (Seen("PROVISIONING"), FRESH, Action.WAIT),
        (Seen("ACTIVE"), FRESH, Action.WAIT),  # the VM is not there yet
        (Seen("ACTIVE", "CREATING"), FRESH, Action.WAIT),
        (READY, FRESH, Action.INSTALL),
        (READY, INSTALLED, Action.RUN),
        (Seen("ACTIVE", "REPAIRING"), INSTALLED, Action.WAIT),
        (Seen("ACTIVE", "PREEMPTED"), INSTALLED, Action.DELETE),
        (Seen("ACTIVE", "TERMINATED"), INSTALLED, Action.DELETE),
        (Seen("SUSPENDING", "PREEMPTED"), INSTALLED, Action.WAIT),
        (Seen("SUSPENDED"), INSTALLED, Action.DELETE),
        (Seen("DELETING"), INSTALLED, Action.WAIT),
        (Seen("FAILED"), FRESH, Action.DELETE),
        (Seen("A_NEW_STATE"), FRESH, Action.WAIT),
        (READY, Progress(installed=True, pause=True), Action.WAIT),
        (READY, Progress(code=0), Action.DELETE),
        (Seen("DELETING"), Progress(code=0), Action.WAIT),
        (Seen(None), Progress(code=0), Action.END),
    ],
)
def test_what_is_done_next(seen, progress, action):
    assert decide(seen, progress) is action


def test_at_the_end_the_tpu_may_stay():
    assert decide(READY, Progress(code=0), keep=True) is Action.END
    assert decide(READY, INSTALLED, keep=True) is Action.RUN


def ended(codes, restarts=1, failures=0, ok=False) -> Progress:
    progress = Progress(installed=True, failures=failures)
    return after(progress, Action.RUN, ok, codes, restarts)


def test_the_codes_of_a_run_decide():
    assert ended((0, 0), ok=True).code == 0
    assert ended((75, 75)) == Progress(True, failures=1, pause=True)
    # One that fails for good matters more than those that it pulled down.
    assert ended((134, 3, 137)).code == 3
    assert ended((137, None)) == Progress(True, failures=1, pause=True)
    assert ended((None,)).code is None and ended(()).code is None
    # gcloud failed although every process ended well: nothing is known for sure.
    assert ended((0, 0)) == Progress(True, failures=1, pause=True)
    assert ended((75,), failures=1).code == Exit.RESUMABLE


def test_what_else_counts_as_a_failure():
    lost = after(INSTALLED, Action.DELETE, True)
    assert lost == FRESH  # the run that ended was counted
    assert after(FRESH, Action.DELETE, True, restarts=1).failures == 1
    assert after(FRESH, Action.DELETE, True, restarts=0).code == Exit.RESUMABLE
    assert after(FRESH, Action.INSTALL, True) == INSTALLED
    assert after(FRESH, Action.INSTALL, False, restarts=1) == Progress(
        failures=1, pause=True
    )
    assert after(Progress(code=3), Action.DELETE, True) == Progress(code=3)
    assert after(Progress(pause=True), Action.WAIT, True) == FRESH
    assert after(FRESH, Action.CREATE, True) == FRESH


OPTIONS = tpu_vm.Options(zone="z", accelerator="v6e-16", runtime="r", restarts=2)


class Cloud:
    """Plays gcloud: `script` lists what is seen, and how each call in between ends."""

    def __init__(self, *script):
        self.script = list(script)
        self.done: list[str] = []
        self.slept = 0

    def __call__(self, arguments, quiet):
        resources = "queued-resources" in arguments
        verb = arguments[4]
        if verb == "list":
            if resources:
                self.seen = self.script.pop(0)
            if self.seen is None:
                return 1, ""
            state = self.seen.resource if resources else self.seen.vm
            rows = f"other\tACTIVE\nplmjax\t{state}\n" if state else "other\tACTIVE\n"
            return 0, rows
        done = verb if verb != "ssh" else arguments[-1].split(" ", 2)[2].split("-")[0]
        self.done.append(done)
        code, text = self.script.pop(0)
        return code, text

    def sleep(self, seconds):
        assert seconds == OPTIONS.poll_seconds
        self.slept += 1


def watched(cloud, **options) -> int:
    changed = tpu_vm.dataclasses.replace(OPTIONS, **options)
    code = tpu_vm.watch(changed, cloud, cloud.sleep, "9")
    assert cloud.script == []
    return code


OK = (0, "")


def test_a_run_without_trouble():
    cloud = Cloud(
        Seen(None), OK, Seen("WAITING_FOR_RESOURCES"), Seen("PROVISIONING"),
        READY, OK, OK, READY, OK, READY, OK, Seen("DELETING"), Seen(None),
    )  # fmt: skip
    assert watched(cloud) == 0
    assert cloud.done == ["create", "scp", "install", "run 9", "delete"]
    assert cloud.slept == 3


def test_a_preempted_tpu_is_asked_for_again(capsys):
    cloud = Cloud(
        Seen(None), OK, READY, OK, OK,
        READY, (255, ""), (1, ""),  # the ssh broke, and nobody can be asked
        READY, Seen("SUSPENDING"), Seen("SUSPENDED"), OK,
        Seen(None), OK, READY, OK, OK, READY, OK, READY, OK, Seen(None),
    )  # fmt: skip
    assert watched(cloud) == 0
    once = ["create", "scp", "install", "run 9"]
    assert cloud.done == [*once, "code 9", "delete", *once, "delete"]
    assert "TPU plmjax: SUSPENDED" in capsys.readouterr().err


def test_a_run_that_is_there_is_watched_and_a_dead_one_started_again():
    cloud = Cloud(
        READY, OK, OK, READY, (134, ""), (0, "134\n75\n"),
        READY, READY, OK, READY, OK, Seen(None),
    )  # fmt: skip
    assert watched(cloud) == 0
    assert cloud.done == ["scp", "install", "run 9", "code 9", "run 9", "delete"]


def test_a_failure_for_good_ends_it_and_deletes_the_tpu():
    died = (134, ""), (0, "134\n3\n")
    cloud = Cloud(READY, OK, OK, READY, *died, READY, OK, Seen(None))
    assert watched(cloud) == 3
    assert cloud.done[-1] == "delete"


def test_kept_and_given_up():
    cloud = Cloud(READY, OK, OK, READY, (75, ""), (0, "75\n75\n"), READY, READY)
    assert watched(cloud, restarts=0, keep=True) == Exit.RESUMABLE
    assert "delete" not in cloud.done


def test_requests_that_fail_come_to_an_end():
    cloud = Cloud(Seen(None), (1, ""))
    with pytest.raises(PlmjaxError, match="did not accept the request"):
        watched(cloud)
    again = (Seen(None), OK, Seen("FAILED"), OK)
    cloud = Cloud(*again, *again, *again, Seen(None))
    assert watched(cloud) == Exit.RESUMABLE


def test_a_delete_that_fails_is_tried_again():
    cloud = Cloud(
        READY, OK, OK, READY, OK, READY, (1, ""), READY, READY, OK, Seen(None)
    )
    assert watched(cloud) == 0 and cloud.slept == 1


def test_gcloud_may_be_blind_for_a_while_but_not_at_first():
    with pytest.raises(PlmjaxError, match="gcloud failed with exit code 1"):
        watched(Cloud(None))
    cloud = Cloud(
        Seen("PROVISIONING"),
        None,
        None,
        READY,
        OK,
        OK,
        READY,
        OK,
        READY,
        OK,
        Seen(None),
    )
    assert watched(cloud) == 0 and cloud.slept == 3
    blind = Cloud(Seen("PROVISIONING"), *[None] * 21)
    with pytest.raises(PlmjaxError) as error:
        watched(blind)
    assert error.value.code == Exit.RESUMABLE


@pytest.mark.parametrize(
    "code, text, codes",
    [(0, "75\n0\n", (75, 0)), (1, "", (None,)), (255, "134\n", (134, None))],
)
def test_codes_are_read(code, text, codes):
    assert tpu_vm.exit_codes(code, text) == codes


GCLOUD = """#!/bin/bash
printf '%s\\n' "$*" >> {calls}
case "$*" in
  *queued-resources\\ create*) echo ACTIVE > {state};;
  *queued-resources\\ delete*) rm {state};;
  *queued-resources\\ list*) [ ! -e {state} ] || printf 'plmjax\\tACTIVE\\n';;
  *tpu-vm\\ list*) printf 'plmjax\\tREADY\\n';;
esac
"""
FLAGS = ("--zone=z", "--accelerator=v6e-16", "--runtime=r", "--spot")


def test_the_command_line_calls_gcloud_in_order(here, tools, tmp_path, capfd):
    calls, state = tmp_path / "calls", tmp_path / "state"
    tools.add("gcloud", GCLOUD.format(calls=calls, state=state))
    (here / "texts").mkdir()
    (here / "texts" / "a b.txt").write_text("x")
    options = ["--target=tpu-vm", *FLAGS, "--copy=texts", "--poll_seconds=1"]
    arguments = ["launch", *options, "--", "pretrain", "--workdir=runs/a"]
    assert main(arguments) == 0
    place = "--zone=z --worker=all"
    called = calls.read_text().splitlines()
    attempt = called[8].rpartition(" ")[2]
    look = [
        "queued-resources list --zone=z --format=value(name.basename(),state.state)",
        "tpu-vm list --zone=z --format=value(name.basename(),state)",
    ]
    assert called == [
        f"compute tpus {line}"
        for line in [
            look[0],
            "queued-resources create plmjax --node-id=plmjax --zone=z "
            "--accelerator-type=v6e-16 --runtime-version=r --spot --quiet",
            *look,
            "tpu-vm scp plmjax-launch/plmjax.sh plmjax-launch/plmjax.tar.gz plmjax: "
            + place,
            f"tpu-vm ssh plmjax {place} --command=bash plmjax.sh install",
            *look,
            f"tpu-vm ssh plmjax {place} --command=bash plmjax.sh run {attempt}",
            *look,
            "queued-resources delete plmjax --zone=z --force --quiet",
            look[0],
        ]
    ]
    with tarfile.open("plmjax-launch/plmjax.tar.gz") as tar:
        names = set(tar.getnames())
        assert names >= {"pyproject.toml", "plmjax/__init__.py", "launch/tpu_vm.sh"}
        assert names >= {"texts/a b.txt", "plmjax/launch/templates"}
        assert not any("__pycache__" in name or ".git" in name for name in names)
        assert tar.getmember("plmjax/launch/templates").issym()
    text = Path("plmjax-launch/plmjax.sh").read_text()
    assert "command=(venv/bin/python -m plmjax pretrain --workdir=runs/a)" in text


def test_without_gcloud_it_says_what_to_call(here, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(here))
    assert main(["launch", "--target=tpu-vm", *FLAGS, "--", "pretrain"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "`gcloud` is not on this machine's PATH." in said
    assert "gcloud compute tpus queued-resources create plmjax" in said


TASK = """#!/bin/bash
trap 'echo saved; exit 75' TERM
echo "started $$ $*"
for i in {1..600}; do [ -e go ] && break; sleep .05; done
exit "$(cat go)"
"""


class Host:
    """A host of the TPU: a home directory here, and a stand-in for Python."""

    def __init__(self, home: Path):
        self.home = home
        self.folder = home / "plmjax"
        self.started: list[subprocess.Popen] = []
        self.write(["pretrain", "--workdir=it's $HOME"])

    def write(self, arguments) -> None:
        options = tpu_vm.dataclasses.replace(
            OPTIONS,
            python="./task",
            install="tar --version > version && echo made",
            grace_seconds=5,
        )
        made = tpu_vm.plan(options, arguments, None)
        (text,) = made.files.values()
        (self.home / "plmjax.sh").write_text(text)

    def start(self, *words: str) -> subprocess.Popen:
        process = subprocess.Popen(
            ["bash", self.home / "plmjax.sh", *words],
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=os.environ | {"HOME": str(self.home)},
        )
        self.started.append(process)
        return process

    def call(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        out, _ = process.communicate(timeout=30)
        return process.returncode, out

    def pid(self, process: subprocess.Popen) -> int:
        assert process.stdout
        line = process.stdout.readline().split()
        assert line[0] == "started", line
        return int(line[1])

    def go(self, code: int) -> None:
        (self.folder / "new").write_text(str(code))
        (self.folder / "new").rename(self.folder / "go")


@pytest.fixture
def host(tmp_path):
    """A host on which plmjax is installed."""
    home = tmp_path / "ho me"
    home.mkdir()
    with tarfile.open(home / "plmjax.tar.gz", "w:gz") as tar:
        (tmp_path / "task").write_text(TASK)
        (tmp_path / "task").chmod(0o755)
        tar.add(tmp_path / "task", arcname="task")
    made = Host(home)
    assert made.call("install") == (0, "made\n")
    yield made
    for path in (made.folder / "attempts").glob("*/pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass
    for process in made.started:
        process.kill()
        process.communicate()


def test_a_run_ends_with_its_code_and_is_not_run_twice(host):
    host.go(6)
    code, out = host.call("run", "9-0")
    assert code == 6
    assert out.endswith("-m plmjax pretrain --workdir=it's $HOME\n")
    # gcloud calls again when the connection broke, though the run has ended since.
    host.go(0)
    assert host.call("run", "9-0") == (6, out)
    assert host.call("code", "9-0") == (0, "6\n")
    assert host.call("code", "9-1") == (0, "137\n")
    assert host.call("run", "9-1")[0] == 0


def test_a_run_outlives_the_connection_and_the_launcher(host):
    watching = host.start("run", "9-0")
    pid = host.pid(watching)
    watching.kill()
    again, other = host.start("run", "9-0"), host.start("run", "77-0")
    assert host.pid(again) == pid and host.pid(other) == pid
    assert host.call("code", "9-0") == (0, "137\n")
    host.go(75)
    assert again.wait(timeout=20) == 75 and other.wait(timeout=20) == 75
    assert host.call("code", "77-0") == (0, "75\n")


def test_a_run_of_another_command_is_stopped_first(host):
    watching = host.start("run", "9-0")
    pid = host.pid(watching)
    host.write(["pretrain", "--workdir=other"])
    other = host.start("run", "10-0")
    assert host.pid(other) != pid
    assert watching.wait(timeout=20) == 75
    assert watching.stdout.read().endswith("saved\n")
    host.go(0)
    assert other.wait(timeout=20) == 0


def test_a_run_whose_shell_is_killed_counts_as_killed(host):
    watching = host.start("run", "9-0")
    host.pid(watching)
    os.killpg(int((host.folder / "attempts/9-0/pid").read_text()), signal.SIGKILL)
    assert watching.wait(timeout=20) == 137
    until = time.monotonic() + 10
    host.go(0)
    assert host.call("run", "9-1")[0] == 0 and time.monotonic() < until
