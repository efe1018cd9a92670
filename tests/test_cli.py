"""The command line, as people and scripts use it: one run, and all verbs on it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
from finetune_common import one_device
from tests_common import TINY, environment, once, run_cli, sentences
from train.test_resume import assert_same_run
from train.test_resume import records as run_records

import plmjax
from plmjax import Exit, __main__, cli
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.cli import inference
from plmjax.objectives import MLM

PACKAGE = Path(plmjax.__file__).parent


@pytest.fixture
def call(capsys):
    """call(*arguments) -> (exit code, stdout, stderr) of main, in this process."""

    def run(*arguments) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder where `pretrain` ran, the workdir given relative to it; its output."""
    # White space and letters of other alphabets are nothing special in a path.
    folder = once(tmp_path_factory, "ein läuf", train)
    return folder, (folder / "said").read_text()


def train(folder):
    (folder / "corpus.txt").write_text("\n".join(sentences(400)) + "\n")
    arguments = [*TINY, "--config.data.source.paths=*.txt", "--workdir=runs/mine"]
    found = subprocess.run(
        [sys.executable, "-m", "plmjax", "pretrain", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env={k: v for k, v in environment(LC_ALL="C").items() if k != "HOME"},
    )
    assert found.returncode == Exit.OK, found.stderr
    assert found.stderr == ""
    (folder / "said").write_text(found.stdout)


def test_a_run_says_where_it_is_and_holds_what_the_docs_say(trained):
    folder, output = trained
    assert output.startswith("Run directory: runs/mine\n")
    assert "unigram baseline" in output and "plmjax fill" in output
    names = {path.name for path in (folder / "runs/mine").iterdir()}
    assert names >= {
        "config.json",
        "environment.json",
        "examples.json",
        "metrics.jsonl",
        "starts.json",
        "checkpoints",
        "tokenizer",
        "plots",
        "export",
    }


@pytest.mark.slow
def test_the_printed_commands_make_the_same_run_again(trained, tmp_path):
    folder, _ = trained
    run = tmp_path / "my run"
    shutil.copytree(folder / "runs/mine", run)
    found = run_cli("repro", run)
    assert found.returncode == Exit.OK, found.stderr
    lines = found.stdout
    assert "# The code is the same" in lines and "# The text is the same" in lines
    assert "WARNING" not in lines and "pip install" not in lines
    shell = f'set -e; plmjax() {{ "{sys.executable}" -m plmjax "$@"; }}\n{lines}'
    again = subprocess.run(
        ["bash", "-c", shell],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(PYTHONPATH=str(PACKAGE.parent)),
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Equal bit for bit: data, weights, and 12 records." in again.stdout
    # Another seed is another run.
    path = run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 7, ', '"step": 7, "loss2": 1, '))
    found = run_cli("repro", run, f"--against={run}-again")
    assert (
        found.returncode == Exit.DATA and "the record train of step 7" in found.stderr
    )


def test_repro_names_what_is_not_the_same(trained, call, tmp_path):
    folder, _ = trained
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "environment.json", "run.json"):
        shutil.copy(folder / "runs/mine" / name, run / name)
    noted = json.loads((run / "environment.json").read_text())
    commit = "0123456789" * 4
    packages = noted["packages"] | {"optax": "0.0.1"}
    noted |= {"commit": f"{commit}-dirty", "diff": "a diff", "packages": packages}
    noted |= {"devices": ["TPU v4"] * 4, "variables": {"XLA_FLAGS": "--a b"}}
    (run / "environment.json").write_text(json.dumps(noted))
    code, out, _ = call("repro", run)
    assert code == Exit.OK
    clone, checkout, apply, install, variable, *more = out.splitlines()
    assert clone.endswith(" plmjax-0123456789") and checkout.endswith(f" {commit}")
    assert apply.endswith(f"{run} --diff | git -C plmjax-0123456789 apply")
    assert install == "pip install -e ./plmjax-0123456789 optax==0.0.1"
    assert variable == "export XLA_FLAGS='--a b'"
    assert "devices was ['TPU v4', " in more[0] and "is not what the run" in out
    assert call("repro", run, "--diff")[1] == "a diff"
    (run / "objective.json").write_text('{"objective": "Smoothed"}')
    *_, made, _, python, then = call("repro", run)[1].splitlines()
    assert "plmjax.fit made this run in Python" in made and "Smoothed" in made
    assert f"plmjax.fit(Smoothed, config='{run}/config.json', workdir=" in python
    assert f"plmjax repro {run} --against={run}-again" in then
    (run / "environment.json").unlink()
    code, _, err = call("repro", run)
    assert code == Exit.USAGE and "does not say how it was made" in err
    code, _, err = call("repro", tmp_path)
    assert code == Exit.USAGE and "holds no run" in err


@pytest.fixture
def resumed(trained, call, monkeypatch):
    """resumed(workdir, *more) -> the same command again, on one device as before."""
    monkeypatch.chdir(trained[0])
    arguments = [*TINY, "--config.data.source.paths=*.txt"]

    def run(workdir, *more) -> tuple[int, str, str]:
        with one_device():
            return call("pretrain", *arguments, f"--workdir={workdir}", *more)

    return run


def test_a_finished_run_says_so_and_a_changed_one_is_refused(trained, resumed):
    workdir = trained[0] / "runs/mine"
    evaluated = [r for r in run_records(workdir) if r["kind"] == "evaluation"]
    lowest = min(evaluated, key=lambda record: record["loss"])
    best, loss = Checkpoints(workdir / "checkpoints").best()
    assert (best, loss) == (lowest["step"], lowest["loss"])
    code, out, _ = resumed("runs/mine")
    assert code == Exit.OK and "is finished: 10 of 10" in out
    code, _, err = resumed("runs/mine", "--config.train.batch=16")
    assert code == Exit.USAGE
    assert "train.batch: 8 -> 16" in err and "Traceback" not in err


def test_a_damaged_newest_checkpoint_is_set_aside(trained, resumed, tmp_path):
    shutil.copytree(trained[0] / "runs/mine", tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    newest = checkpoints.path(checkpoints.steps()[-1])
    data = max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    code, out, err = resumed(tmp_path / "run")
    assert code == Exit.OK, err
    assert "does not match its SHA-256" in out and "Going on from step 5" in out
    assert (tmp_path / "run/checkpoints/damaged/step_00000010").is_dir()
    # Bit for bit, as if it had not been interrupted.
    assert_same_run(trained[0] / "runs/mine", tmp_path / "run")


def test_evaluate_gives_one_number_whatever_the_batch(trained, call):
    workdir = trained[0] / "runs/mine"
    losses = []
    for batch in (8, 24):
        code, out, _ = call(
            "evaluate", f"--workdir={workdir}", f"--batch={batch}", "--json"
        )
        assert code == Exit.OK
        losses.append(json.loads(out)["loss"])
    # The model computes in bfloat16, whose roundings depend on the shape.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    code, out, _ = call("evaluate", f"--workdir={workdir}", "--batch=24", "--json")
    assert json.loads(out)["loss"] == losses[1]
    shown = json.loads((workdir / "scores.json").read_text())["loss"]
    assert shown == pytest.approx(losses[0], rel=1e-4)


def test_evaluate_looks_at_the_first_rows_only(trained, call):
    workdir = trained[0] / "runs/mine"
    code, out, _ = call("evaluate", f"--workdir={workdir}", "--batch=8", "--rows=5")
    assert code == Exit.OK and "5 held-out rows" in out
    assert "bits per byte" in out


def test_fill_takes_a_workdir_or_a_folder_and_several_masks(trained, call):
    workdir = trained[0] / "runs/mine"
    code, out, _ = call("fill", "the [MASK] of a [MASK]", f"--model={workdir}")
    assert code == Exit.OK
    assert out.count("%") == 10 and "[MASK] 2" in out
    # A folder is computed in float32, so probabilities differ in the last digit shown.
    code, again, _ = call("fill", "the [MASK] of a", f"--model={workdir / 'export'}")
    assert code == Exit.OK and again.count("%") == 5
    code, out, _ = call("fill", "a [MASK]", f"--model={workdir}", "--top=9999")
    assert code == Exit.OK and out.count("%") == 120


def test_export_of_any_checkpoint_and_never_over_foreign_files(trained, call, tmp_path):
    workdir = trained[0] / "runs/mine"
    for checkpoint in ("newest", "best", "5", "newest"):
        options = (f"--to={tmp_path / 'out'}", f"--checkpoint={checkpoint}")
        code, out, _ = call("export", f"--workdir={workdir}", *options)
        assert code == Exit.OK and "Exported step" in out
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (workdir / "export" / path.name).read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    code, _, err = call("export", f"--workdir={workdir}", f"--to={tmp_path / 'mine'}")
    assert code == Exit.USAGE and "thesis.tex" in err
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


def test_an_extended_run_guesses_as_before(trained, call, tmp_path):
    """Its rows had 32 tokens, of 512 positions."""
    workdir, long = trained[0] / "runs/mine", tmp_path / "long"
    options = (f"--from={workdir}", "--length=64", f"--workdir={long}")
    code, out, _ = call("extend", *options)
    assert code == Exit.OK and "32 trained ones, repeated to 64" in out
    guess = ("fill", "the [MASK] of a word")
    before = call(*guess, f"--model={workdir / 'export'}")
    assert before == call(*guess, f"--model={long / 'import'}")


@pytest.mark.slow
def test_an_imported_folder_is_trained_on_filled_and_exported(trained, tmp_path):
    folder, workdir = trained[0], tmp_path / "run"
    source = f"--from={folder / 'runs/mine/export'}"
    found = run_cli("import", source, f"--workdir={workdir}")
    assert found.returncode == Exit.OK, found.stderr
    kept = [a for a in TINY if not a.startswith(("--config.model", "--config.token"))]
    data = f"--config.data.source.paths={folder / 'corpus.txt'}"
    found = run_cli("pretrain", *kept, data, f"--workdir={workdir}")
    assert found.returncode == Exit.OK, found.stderr
    export = workdir / "export" / "model.safetensors"
    assert (
        export.stat().st_size
        == (folder / "runs/mine/export" / export.name).stat().st_size
    )
    assert (
        export.read_bytes() != (folder / "runs/mine/export" / export.name).read_bytes()
    )
    found = run_cli("import", source, f"--workdir={workdir}")
    assert found.returncode == Exit.USAGE and "already holds a run" in found.stderr


def test_two_runs_on_one_workdir(trained, call):
    import fcntl

    workdir = trained[0] / "runs/mine"
    with open(workdir / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        paths = f"--config.data.source.paths={trained[0] / '*.txt'}"
        code, _, err = call("pretrain", *TINY, paths, f"--workdir={workdir}")
    assert code == Exit.USAGE and "is in use by process" in err


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_while_training_saves_and_says_so(trained, tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "plmjax", "pretrain", *TINY]
        + [f"--config.data.source.paths={trained[0] / 'corpus.txt'}"]
        + ["--config.train.steps=100000", f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    end = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == Exit.RESUMABLE, err
    assert f"Stopped by {number.name}" in out and "Run the same command again" in out
    assert "Traceback" not in err


def test_an_interrupt_before_the_verb(monkeypatch, capsys):
    # A shell's job in the background ignores SIGINT, and so would these tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(cli, "main", lambda: signal.raise_signal(signal.SIGINT))
    assert __main__.main() == Exit.RESUMABLE
    assert capsys.readouterr().err == "\nInterrupted. Run the same command again.\n"


def test_huge_pages_restart_the_process_as_it_was_started(monkeypatch):
    """`python -m` would import a tokenizers.py of the current folder."""
    for name in ("GLIBC_TUNABLES", "PLMJAX_HUGE_PAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["/bin/plmjax", "doctor"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "/bin/plmjax", "doctor"])
    monkeypatch.setattr(os, "execve", lambda _, argv, env: sys.exit(argv[1:]))
    monkeypatch.setattr(cli.machine, "has_tpu", lambda: False)
    monkeypatch.setattr(cli.Path, "exists", lambda _: False)
    with pytest.raises(SystemExit) as restart:
        cli.main()
    assert restart.value.code == ["/bin/plmjax", "doctor"]


def _importing(_):
    """Compiled modules make an ImportError of what interrupts their import."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        raise ImportError("while initializing the extension") from None


class _Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def _finalizing(_):
    """Python ignores what a finalizer raises, and so what a signal raises in it."""
    _Finalized()
    time.sleep(60)


@pytest.mark.parametrize("run", [_importing, _finalizing])
def test_a_signal_interrupts_whatever_python_does(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(inference, "_fill", run)
    assert cli.main(["fill", "a [MASK]", "--model=a"]) == Exit.RESUMABLE
    assert "Interrupted" in capsys.readouterr().err


def test_a_signal_after_the_end_leaves_the_exit_code(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from plmjax import cli\n"
        "from plmjax.cli import inference\n"
        "inference._fill = lambda _: int(sys.argv[2])\n"
        "class Late:\n"
        "    numbers = 2, 12, 15\n"
        "    def __del__(self, kill=os.kill, me=os.getpid()):\n"
        "        [kill(me, number) for number in self.numbers]\n"
        "late = Late()\n"
        "sys.exit(cli.main())\n"
    )
    for code in (Exit.OK, Exit.RESUMABLE):
        command = [sys.executable, "-c", program, "fill", str(int(code)), "--model=a"]
        ended = subprocess.run(command, capture_output=True, env=environment())
        assert (ended.returncode, ended.stderr) == (code, b"")


def _starting_devices(_):
    """jax (0.10) asserts that one of the platforms that are asked for is there."""
    exec(compile("assert False", "site-packages/jax/_src/xla_bridge.py", "exec"))


def test_a_device_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(inference, "_fill", _starting_devices)
    assert cli.main(["fill", "a [MASK]", "--model=a"]) == Exit.USAGE
    assert "JAX_PLATFORMS=cuda. Unset it" in capsys.readouterr().err


def test_a_signal_in_executed_text_leaves_the_exit_code_as_it_is(tmp_path):
    """dataclasses and namedtuples are made of text, which exec runs."""
    (tmp_path / "interrupted.py").write_text(
        "import os, sys, time\n"
        "from plmjax import cli\n"
        "from plmjax.cli import inference\n"
        "inference._fill = lambda _: exec('os.kill(os.getpid(), 15); time.sleep(60)')\n"
        "sys.exit(cli.main(['fill', 'a [MASK]', '--model=a']))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env=environment(PLMJAX_HUGE_PAGES="0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == Exit.RESUMABLE, ended.stderr
    assert "Interrupted" in ended.stderr


def test_the_reader_of_the_output_leaves(trained, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "plmjax", "pretrain", *TINY]
        + [f"--config.data.source.paths={trained[0] / 'corpus.txt'}"]
        + [f"--workdir={tmp_path / 'run'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read().decode()
    assert process.wait(timeout=120) == Exit.RESUMABLE
    assert "Run the same command again" in err and "Traceback" not in err


def test_a_dry_run_shows_the_plan_and_the_run_follows(trained, call, tmp_path):
    paths = f"--config.data.source.paths={trained[0] / 'corpus.txt'}"
    options = (*TINY, paths, f"--workdir={tmp_path / 'run'}", "--dry_run=shapes")
    code, out, err = call("pretrain", *options)
    assert (code, err) == (Exit.OK, "")
    assert "[MASK=" in out and "memory a device" in out and "Dry run" in out
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert "Prepared data found" in call("pretrain", *options)[1]


def test_help_names_the_verbs_in_order(call):
    out = call("--help")[1]
    verbs = ("pretrain", "evaluate", "fill", "export", "import", "extend", "bench")
    places = [out.index(f"\n    {verb} ") for verb in verbs]
    assert places == sorted(places)
    for verb in verbs[:-1]:
        code, out, _ = call(verb, "--help")
        assert code == Exit.OK and f"plmjax {verb} " in out.split("example:")[1]


@pytest.mark.peer
def test_transformers_loads_the_export_and_guesses_the_same(trained, call):
    import torch
    import transformers

    folder = trained[0] / "runs/mine/export"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys"))
    inputs = tokenizer("the [MASK] of a word", return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[0]
    mask = inputs["input_ids"][0] == tokenizer.mask_token_id
    theirs = tokenizer.decode(logits[mask].argmax(-1))
    _, out, _ = call("fill", "the [MASK] of a word", f"--model={folder}", "--top=1")
    assert out.split("%")[1].strip() == theirs


@pytest.mark.slow
def test_a_workdir_may_be_moved(trained, call, tmp_path):
    shutil.copytree(trained[0] / "runs/mine", tmp_path / "elsewhere")
    found = run_cli("evaluate", f"--workdir={tmp_path / 'elsewhere'}")
    assert found.returncode == Exit.OK, found.stderr


class Seen(BaseException):
    """Ends a run in the midst of what it traces."""


def test_the_loss_is_seven_calls_from_main(corpus, call, tmp_path, monkeypatch):
    """What a reader meets on the way, jax's own calls left out."""
    way = []

    def loss(*_):
        files = [(f.name, Path(f.filename)) for f in traceback.extract_stack()]
        way.extend(name for name, file in files if file.is_relative_to(PACKAGE))
        raise Seen

    monkeypatch.setattr(MLM, "loss", loss)
    arguments = [*TINY, f"--config.data.source.paths={corpus}"]
    with pytest.raises(Seen):
        call("pretrain", *arguments, f"--workdir={tmp_path}/run")
    assert way == ["main", "_pretrain", "pretrain", "fit", "step", "step", "summed"]
