"""What a user may get wrong: the code, one line that says the mend, no traceback."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests_common import TINY, environment, run_cli, sentences

from plmjax import Exit, PlmjaxError, cli
from plmjax.experiments.outcomes import check_study


@pytest.fixture
def fail(capsys, tmp_path, monkeypatch):
    """fail(code, verb, *arguments) -> the error line of a main that must fail so."""
    monkeypatch.chdir(tmp_path)

    def run(code: Exit, *arguments) -> str:
        found = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert found == code, err
        # Where nothing runs; a damaged checkpoint is found when the run has begun.
        assert code == Exit.MODEL or "Run directory" not in out
        assert err.startswith("error: ") and "bug" not in err
        return err

    return run


def pretrain(path, *more: str) -> tuple[str, ...]:
    return ("pretrain", *TINY, f"--config.data.source.paths={path}", *more)


TEXT = "\n".join(sentences(400)).encode() + b"\n"

FILES = [
    ("empty.txt", b"", "is empty or only white space", ()),
    ("white.txt", b" \n\t\n" * 99, "is empty or only white space", ()),
    ("latin.txt", TEXT[:3000] + b"\xff" + TEXT, "latin.txt: byte 3,000 (0xff)", ()),
    ("a.jsonl", b'{"text": "a"}\n{"text"', "a.jsonl:2 is not valid JSON", ("jsonl",)),
    (
        "b.jsonl",
        b'{"text": "a"}\n{"t": 1}',
        "b.jsonl:2 has no field 'text'",
        ("jsonl",),
    ),
    ("c.parquet", b"PAR1", "c.parquet cannot be read", ("parquet",)),
]


@pytest.mark.parametrize(("name", "content", "words", "kind"), FILES)
def test_files(fail, name, content, words, kind):
    Path(name).write_bytes(content)
    kinds = [f"--config.data.source.kind={k}" for k in kind]
    command = pretrain(name, *kinds, "--workdir=run", "--dry_run=shapes")
    assert words in fail(Exit.DATA, *command)
    assert not Path("run/data").exists() and not Path("run/tokenizer").exists()
    # The same command works once the file is mended.
    if not kind:
        Path(name).write_bytes(TEXT)
        assert cli.main(list(command)) == Exit.OK


def test_paths(fail):
    Path("folder").mkdir()
    assert "matches no file" in fail(Exit.USAGE, *pretrain("no.txt"))
    assert "folder holds no files of kind text" in fail(Exit.USAGE, *pretrain("folder"))
    assert "matches no file" in fail(Exit.USAGE, *pretrain("folder/*.txt"))
    Path("folder/books.txt").write_bytes(TEXT)
    for wrong in ("folder/boks.txt", "flder/books.txt", "folder/books.csv"):
        assert "Did you mean folder/books.txt?" in fail(Exit.USAGE, *pretrain(wrong))


@pytest.mark.parametrize("junk", [b"\xff\xfe", b"\0"])
def test_bytes_that_are_replaced_or_dropped(junk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_bytes(TEXT[:3000] + junk + TEXT[3000:])
    replace = "--config.data.errors=replace"
    assert cli.main([*pretrain("text.txt", replace, "--dry_run=shapes")]) == Exit.OK


CONFIGS = [
    (("--config.data.length=1024",), Exit.USAGE, "model.max_positions=1024"),
    (("--config.model.heads=3",), Exit.USAGE, "does not divide model.width=32"),
    (("--config.model.window=7",), Exit.USAGE, "window is 7; it must be even"),
    (
        ("--config.model.layer_kinds=('local',)", "--config.model.window=4096"),
        Exit.USAGE,
        "model.window=4096 is larger than a row of",
    ),
    (("--config.model.rope_theta=0",), Exit.USAGE, "model.rope_theta is 0"),
    (("--config.train.batch=12",), Exit.USAGE, "12"),
    (("--config.mesh.data=3",), Exit.USAGE, "8 devices"),
    (("--config.train.stepz=3",), Exit.USAGE, "Did you mean train.steps"),
    (("--config.train.steps",), Exit.USAGE, "has no value"),
    (("--config.train.steps=many",), Exit.USAGE, "must be: int"),
    (("--config.train=3",), Exit.USAGE, "no key train"),
    (("--config.train.batch=",), Exit.USAGE, "train.batch is None"),
    (("--config.train.accumulation=3",), Exit.USAGE, "does not divide"),
    (("--config.data.phases=((4,16),)",), Exit.USAGE, "(steps, length, batch)"),
    (("--config.tokenizer.path=nowhere",), Exit.USAGE, "nowhere"),
    (
        ("--config=nowhere.py",),
        Exit.USAGE,
        "the config file 'nowhere.py' does not exist",
    ),
    (("--workdir=/proc/run",), Exit.DISK, "cannot be written"),
    (("--workdir=text.txt",), Exit.DISK, "cannot be written"),
    (("--workdir=text.txt/run",), Exit.DISK, "cannot be written"),
]


@pytest.mark.parametrize(("options", "code", "words"), CONFIGS)
def test_configs(fail, options, code, words):
    Path("text.txt").write_bytes(TEXT)
    assert words in fail(code, *pretrain("text.txt", *options))


CONFIG_FILES = [
    ("a.py", "def get_config(:", "SyntaxError"),
    ("b.py", "raise SystemExit(0)", "SystemExit"),
    ("c.py", "x = 1", "get_config"),
    ("d.py", "def get_config(): pass", "holds a NoneType"),
    ("e.py", "def get_config(): return {1: 2}", "no key 1"),
    ("f.json", "[1]", "holds a list"),
    ("g.json", "{", "is not valid JSON"),
    ("i.json", "[" * 100_000, "is not valid JSON"),
    ("h.txt", "", "neither a .py nor a .json"),
]


@pytest.mark.parametrize(("name", "content", "words"), CONFIG_FILES)
def test_config_files(fail, name, content, words):
    Path(name).write_text(content)
    assert words in fail(Exit.USAGE, "pretrain", f"--config={name}")
    assert not Path("runs").exists()


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
@pytest.mark.parametrize("name", ["sweep", "study", "pseudo"])
def test_a_run_refuses_the_directory_of_several(fail, verb, name):
    Path("runs").mkdir()
    Path(f"runs/{name}.json").write_text("{}")
    assert "not a single run" in fail(Exit.USAGE, verb, "--workdir=runs")


def test_compare_refuses_the_directory_of_another_verb(tmp_path):
    for name in ("sweep.json", "pseudo.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(PlmjaxError, match="not a study of several runs"):
            check_study(SimpleNamespace(root=tmp_path))
        (tmp_path / name).unlink()


MODELS = [
    (("fill", "[MASK]", "--model=nowhere"), Exit.USAGE, "is not a folder"),
    (("fill", "[MASK]", "--model=."), Exit.USAGE, "run's workdir or a Hugging Face"),
    (("evaluate", "--workdir=nowhere"), Exit.USAGE, "holds no run"),
    (("evaluate", "--workdir=.", "--batch=0"), Exit.USAGE, "at least 1"),
    (("evaluate", "--workdir=folder"), Exit.MODEL, "model_type is 't5'"),
    (("fill", "[MASK]", "--model=foldr"), Exit.USAGE, "Did you mean folder?"),
    (("evaluate", "--workdir=foldr"), Exit.USAGE, "Did you mean folder?"),
    (("report", "foldr"), Exit.USAGE, "Did you mean folder?"),
    (("export", "--workdir=folder", "--to=x"), Exit.USAGE, "holds no run"),
    (("export", "--workdir=nowhere", "--to=x"), Exit.USAGE, "holds no run"),
    (("import", "--from=nowhere", "--workdir=x"), Exit.USAGE, "is not a folder"),
    (("import", "--from=folder", "--workdir=x"), Exit.MODEL, "model_type is 't5'"),
    (("extend", "--from=no", "--length=9", "--workdir=x"), Exit.USAGE, "not a folder"),
    (("fill", "[MASK]", "--model=folder"), Exit.MODEL, "model_type is 't5'"),
    (("fill", "a", "--model=folder", "--checkpoint=5"), Exit.USAGE, "--checkpoint=5"),
    (("fill", "a", "--model=.", "--config.a=1"), Exit.USAGE, "has no --config"),
]


@pytest.mark.parametrize(("command", "code", "words"), MODELS)
def test_models(fail, command, code, words):
    Path("folder").mkdir()
    Path("folder/config.json").write_text(json.dumps({"model_type": "t5"}))
    assert words in fail(code, *command)
    assert not Path("x").exists()


USAGE = [
    (["pretrian", "x"], "`plmjax` has no verb 'pretrian'. Did you mean pretrain?"),
    (["pretrain", "--nope"], "`plmjax pretrain` has no option --nope. `plmjax pretrai"),
    (["fill"], "the following arguments are required: text, --model. `plmjax fill"),
    (["bench", "trian"], "`plmjax bench` has no verb 'trian'. Did you mean train?"),
]


@pytest.mark.parametrize(("line", "words"), USAGE)
def test_usage(line, words, fail):
    assert words in (error := fail(Exit.USAGE, *line)) and error.count("\n") == 1


def test_no_verb_prints_the_help(capsys):
    assert cli.main([]) == Exit.USAGE
    assert "usage" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_a_run_without_a_checkpoint_may_change_its_config(fail):
    Path("text.txt").write_bytes(TEXT)
    more = ("--workdir=run", "--config.tokenizer.vocab_size=9")
    fail(Exit.DATA, *pretrain("text.txt", *more))
    found = run_cli(*pretrain("text.txt", "--workdir=run", "--config.train.batch=16"))
    assert found.returncode == Exit.OK, found.stderr
    err = fail(Exit.USAGE, *pretrain("text.txt", "--workdir=run"))
    assert "train.batch: 16 -> 8" in err
    # No good checkpoint left is an error each time, never a start from nothing.
    for digests in Path("run/checkpoints").glob("step_*/DIGESTS.json"):
        digests.write_text("{")
    again = pretrain("text.txt", "--workdir=run", "--config.train.batch=16")
    for _ in range(2):
        assert "no readable checkpoint" in fail(Exit.MODEL, *again)


FULL = """
mkdir disk && mount -t tmpfs -o size=3m none disk || exit 99
run() {{ {python} -m plmjax {options} --workdir=disk/run "$@"; }}
run --config.train.steps=5 >&2 || exit 98
free=$(df -k --output=avail disk | tail -1)
dd if=/dev/zero of=disk/filler bs=1k count=$((free - 200)) status=none
run >&2
echo $? disk/run/checkpoints/step_*
rm disk/filler
run | grep Going >&2
echo ${{PIPESTATUS[0]}} disk/run/checkpoints/step_*
"""


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_full_disk(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    (tmp_path / "text.txt").write_bytes(TEXT)
    options = " ".join(pretrain("text.txt"))
    found = subprocess.run(
        [
            "unshare",
            "-rm",
            "bash",
            "-c",
            FULL.format(python=sys.executable, options=options),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment(),
    )
    checkpoints = "disk/run/checkpoints/step_"
    assert found.stdout.splitlines() == [
        f"5 {checkpoints}00000005",
        f"0 {checkpoints}00000005 {checkpoints}00000010",
    ], found.stderr
    assert "last good checkpoint is step 5" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_one_line_of_20_megabytes(tmp_path):
    line = b" ".join(TEXT.split()) + b" "
    (tmp_path / "line.txt").write_bytes(line * (20_000_000 // len(line)))
    arguments = pretrain(
        tmp_path / "line.txt", "--dry_run=shapes", f"--workdir={tmp_path / 'r'}"
    )
    # Not getrusage: its maximum counts the parent's memory from before exec.
    program = (
        "import re, sys; from plmjax import cli; code = cli.main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]);"
        "sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env=environment(PLMJAX_HUGE_PAGES="0"),
    )
    assert found.returncode == Exit.OK, found.stderr
    assert int(found.stdout.split()[-1]) < 1_000_000  # kB
