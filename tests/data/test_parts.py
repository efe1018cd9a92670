"""A corpus that is prepared in tasks gives the store of one process, byte for byte."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest
from tasks_common import Watching
from tests_common import sentences

from plmjax import PlmjaxError, cli
from plmjax.data import prepare as room
from plmjax.data import stages
from plmjax.data.clean import CleanConfig
from plmjax.data.clean_corpus import clean_corpus
from plmjax.data.corpus import make_source
from plmjax.data.parts import Tasks, divide
from plmjax.data.prepare import prepare
from plmjax.data.sources import SourceConfig, open_source
from plmjax.data.stages import Executor
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

LINES = sentences(240)
HERE = Executor("local", workers=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of six files: text, one of them blank, and records."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(4):
        # Cyrillic letters are not in the vocabulary, and U+FFFD is damage.
        lines = [*LINES[number * 40 :][:40], f"слово {number}", "a \ufffd b"]
        (folder / f"{number}.txt").write_text("\n".join(lines) + "\n")
    (folder / "2a.txt").write_text(" \n \n")
    records = (json.dumps({"id": n, "body": LINES[160 + n]}) for n in range(60))
    (folder / "5.jsonl").write_text("\n".join([*records, '{"id": 9, "body": ""}']))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(vocab_size=90), LINES)


@pytest.fixture
def build(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "BATCH_BYTES", 700)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def build(name, tasks=None, executor=HERE, log=lambda _: None):
        source = open_source(SourceConfig(paths=(str(corpus),)))
        several = tasks and Tasks(tmp_path / name / ".tasks", executor, tasks, log)
        store = prepare(
            *(source, tokenizer, tmp_path / name, 10, 1, lambda _: None),
            sentences="punctuation",
            tasks=several,
        )
        return {p.name: p.read_bytes() for p in store.directory.iterdir()}

    return build


@pytest.fixture
def whole(build):
    return build("whole")


def test_same_bytes_for_every_number_of_tasks(build, whole, tmp_path):
    said = []
    stores = [build(str(tasks), tasks, log=said.append) for tasks in (1, 3, 100)]
    assert stores == [whole] * 3
    assert "5 tasks, not 100" in said[-1]
    for tasks in ("1", "3", "100"):  # neither parts nor logs stay
        assert len([*(tmp_path / tasks).iterdir()]) == 1
    manifest = json.loads(whole["manifest.json"])
    assert manifest["source"]["counts"]["empty_records"] == 1
    assert manifest["quality"]["damaged"] == "a \ufffd b"


@pytest.mark.slow
def test_a_killed_worker_is_an_error_and_its_task_is_done_again(build, whole, tmp_path):
    several = Executor("local", workers=2)
    with pytest.raises(PlmjaxError, match="was killed.*Run the same command again"):
        build("b", 100, Watching(several, tmp_path, 3, "kill"))
    (work,) = (tmp_path / "b").glob(".tasks-*")
    done = {int(p.name) for p in work.glob("0*")}
    assert 3 not in done
    assert build("b", 100, watching := Watching(several, tmp_path)) == whole
    ran = watching.ran()
    assert ran[3] == 2 and all(ran[rank] == 1 for rank in done)


@pytest.mark.parametrize("how", ["nothing", "cut"])
def test_a_task_that_ends_without_its_part_is_an_error(build, whole, tmp_path, how):
    watching = Watching(HERE, tmp_path, 1, "nothing" if how == "nothing" else "")
    if how == "cut":
        run = Executor.run

        class Cutting(Executor):
            def run(self, task, tasks, folder):
                run(self, task, tasks, folder)
                part = folder.parent / "00001" / "train.0000.tokens.npy"
                if not (tmp_path / "cut").exists():
                    part.write_bytes(part.read_bytes()[:-2])
                    (tmp_path / "cut").touch()

        watching = Watching(Cutting(*HERE), tmp_path)
    with pytest.raises(PlmjaxError, match="00001 is not a whole part.*Task 1 ended"):
        build("b", 3, watching)
    assert build("b", 3, watching) == whole
    ran = watching.ran()
    assert ran.pop(1) == 2 and {*ran.values()} == {1}


def test_cleaned_in_tasks_is_the_same(corpus, tmp_path):
    (corpus / "2b.txt").write_text("\n".join([*LINES[:30], "caf\u00c3\u00a9 noir"]))
    config = CleanConfig(steps=("unicode", "exact"))
    try:
        for tasks in (0, 3, 100):
            source = open_source(SourceConfig(paths=(str(corpus),)))
            clean_corpus(
                *(source, config, tmp_path / str(tasks)),
                workers=1,
                dropped=tmp_path / f"{tasks}.jsonl",
                tasks=tasks and Tasks(tmp_path / ".tasks", HERE, tasks, len) or None,
            )
    finally:
        (corpus / "2b.txt").unlink()
    wanted = {p.name: p.read_bytes() for p in (tmp_path / "0").iterdir()}
    assert len((tmp_path / "0.jsonl").read_text().splitlines()) >= 30
    for tasks in ("3", "100"):
        got = {p.name: p.read_bytes() for p in (tmp_path / tasks).iterdir()}
        assert got == wanted
        dropped = tmp_path / f"{tasks}.jsonl"
        assert dropped.read_bytes() == (tmp_path / "0.jsonl").read_bytes()
    assert not [*tmp_path.glob(".tasks*")]


def test_an_error_of_the_text_comes_through(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "a b"}\n' * 300 + "{")
    source = open_source(SourceConfig(paths=(str(path),)))
    tasks = Tasks(tmp_path / "b" / ".tasks", HERE, 1, print)
    with pytest.raises(PlmjaxError, match="a.jsonl:301 is not valid JSON") as caught:
        prepare(source, tokenizer, tmp_path / "b", 10, tasks=tasks)
    assert caught.value.code == 3


def test_only_files_are_divided():
    source = make_source(SourceConfig(), lambda tally: iter(LINES), "test", {})
    with pytest.raises(PlmjaxError, match="kind docstrings is not divided into tasks"):
        divide(source, 3)


def test_a_limit_of_documents_is_not_that_of_each_task(corpus):
    source = open_source(SourceConfig(paths=(str(corpus),), max_documents=50))
    with pytest.raises(PlmjaxError, match="max_documents .* not divided into tasks"):
        divide(source, 3)


SLURM = {
    "sbatch": """
import os, subprocess, sys
script = sys.argv[-1]
lines = open(script).read().splitlines()
(array,) = [l.split("=")[1] for l in lines if l.startswith("#SBATCH --array=")]
open("submitted", "a").write(" ".join(l for l in lines if l[0:1] == "#") + "\\n")
if "merge_stats" not in open(script).read():
    for number in range(int(array.split("%")[0].split("-")[1]) + 1):
        more = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_NODELIST": "n1"}
        code = subprocess.run(["bash", script], env=os.environ | more,
                              stdout=subprocess.DEVNULL).returncode
        if code:
            sys.exit(code)
print("Submitted batch job 7")
""",
    "srun": "import os, sys; os.execvp(sys.argv[4], sys.argv[4:])",
    "scontrol": "print('n1')",
}


@pytest.mark.slow
def test_tasks_of_slurm(build, whole, tmp_path, monkeypatch):
    """sbatch, srun and scontrol are programs of this test: there is no Slurm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(stat.S_IRWXU)
    # Where datatrove is, its launcher may be elsewhere.
    launcher = "from datatrove.tools.launch_pickled_pipeline import main; main()"
    path = folder / "launch_pickled_pipeline"
    path.write_text(f"#!{sys.executable}\n{launcher}")
    path.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.chdir(tmp_path)
    sbatch = {"time": "1:00:00", "partition": "cpu", "account": "lab"}
    executor = Executor("slurm", workers=2, sbatch=sbatch)
    executor.check()
    assert build("b", 3, executor) == whole
    submitted = (tmp_path / "submitted").read_text()
    for option in ("partition=cpu", "account=lab", "wait", "array=0-1%2"):
        assert f"#SBATCH --{option}" in submitted
    with pytest.raises(PlmjaxError, match="sbatch ended with 1.*slurm_logs"):
        executor.run(len, 1, tmp_path / "c")  # no rank has a length


@pytest.mark.parametrize(
    "options, words",
    [
        (["--tasks=0", "--executor=local"], "--tasks=0 must be at least 1"),
        (["--tasks=2"], "need --executor"),
        (["--executor=local"], "needs --tasks"),
        (["--executor=ray", "--tasks=2"], "needs ray, which is not installed"),
        (["--executor=slurm", "--tasks=2"], "`sbatch` is not on this machine"),
        (["--executor=local", "--tasks=2", "--sbatch=time=1"], "has no --sbatch"),
        (["--executor=local", "--tasks=2"], "docstrings is not divided into tasks"),
        (["--to=there"], "holds notes.txt, and is no store"),
        (["--to=s3://a/b"], "must be a directory"),
    ],
)
def test_bad_options(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("there/notes.txt").write_text("mine")
    real = stages.importlib.util.find_spec
    monkeypatch.setattr(
        stages.importlib.util, "find_spec", lambda n: None if n == "ray" else real(n)
    )
    code = cli.main(["data", "prepare", "--to=a", *options])
    assert code in (2, 3)
    assert words in capsys.readouterr().err
    assert not Path("a").exists()
    assert [p.name for p in Path("there").iterdir()] == ["notes.txt"]
