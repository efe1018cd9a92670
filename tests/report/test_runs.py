"""`plmjax report` on runs that are made up: figures, damage, and what is refused."""

import fcntl
import json
import re
import threading
import time

import pytest

from plmjax import Exit, cli
from plmjax import config as config_lib
from plmjax.cli import report as verbs
from plmjax.finetune.config import FinetuneConfig
from plmjax.workdir import RunConfig

CANARY = "c4n4ry"
MANIFEST = {
    "source": {"kind": "text", "names": ["a<b>.txt"]},
    "splits": {"train": {"documents": 90, "tokens": 4000}},
    "quality": {"unknown_tokens": 20},
}
EXAMPLES = {
    "texts": [["to be or [ ? ] to be", "not"]],
    "seen": "[CLS] to be or [MASK=not] [<i>=to] [=be] [SEP] \n[=x]: x is shown.",
    "causal": False,
    "guesses": [
        {"step": step, "lines": [f"word {step}%"], "right": step // 10}
        for step in (0, 10, 20)
    ],
}


def make(folder, schema=RunConfig, losses=(3.0, 2.0), **config):
    """Writes a run of 20 steps that was killed at 15 and went on from 10."""
    folder.mkdir(parents=True)
    values = config_lib.to_dict(schema())
    for key, value in config.items():
        block, name = key.split("__")
        values[block] = {**values[block], name: value}
    write = {
        "config.json": values,
        "environment.json": {"devices": ["cpu", "cpu"], "commit": "abc"},
        "run.json": {"store": "k"},
        "data/k/manifest.json": MANIFEST,
        "examples.json": EXAMPLES,
        "starts.json": {
            "starts": [
                {"step": 0, "began": 1000.0, "ended": 1040.0, "reached": 15},
                {"step": 10, "began": 1100.0, "ended": 1160.0, "reached": 20},
            ]
        },
        "scores.json": {"step": 20},
    }
    for name, content in write.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    lines = []
    for step, loss in zip((10, 20), losses, strict=True):
        totals = {"step": step, "tokens": 100 * step, "seconds": 3.5 * step}
        figures = {"loss": loss, "accuracy": None, "tokens_per_second": 50.0 * step}
        lines.append({"kind": "train"} | totals | figures | {"mfu": 0.25})
        lines.append({"kind": "evaluation"} | totals | {"loss": loss + 0.125})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_against_compares_all_that_is_made_again(tmp_path, capsys):
    def weights(run, content):
        (run / "export").mkdir(exist_ok=True)
        (run / "export" / "model.safetensors").write_bytes(content)

    def against():
        return call(capsys, "repro", tmp_path / "a", f"--against={tmp_path}/b")

    for name in "ab":
        weights(make(tmp_path / name), b"1")
    metrics = tmp_path / "b" / "metrics.jsonl"
    text = metrics.read_text()
    metrics.write_text(text.replace("50.0", "51.0"))  # steps a second
    code, out, _ = against()
    assert code == Exit.OK and "data, weights, and 4 records" in out
    weights(tmp_path / "b", b"2")
    assert "export/model.safetensors differs." in against()[2]
    metrics.write_text(text.replace("3.0", "4.0"))
    code, _, err = against()
    assert code == Exit.DATA and "train of step 10 differs, and 1 more" in err
    weights(tmp_path / "b", b"1")
    metrics.write_text(text + '{"kind": "rollback", "step": 10}\n')
    assert "the record rollback of step 10 differs." in against()[2]
    assert (
        "gone holds no run"
        in call(capsys, "repro", tmp_path / "a", f"--against={tmp_path}/gone")[2]
    )


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def figures_of(page) -> dict[str, dict]:
    """Returns {title: figure} of a page."""
    pattern = r"<figcaption>(.*?)</figcaption>.*?json\">(.*?)</script>"
    return {t: json.loads(f) for t, f in re.findall(pattern, page.read_text(), re.S)}


def test_a_page_of_several_runs_has_all_that_they_tell(tmp_path, capsys):
    place = f"https://me:{CANARY}@host/b?api_key={CANARY}&x=1"
    runs_ = [
        make(tmp_path / "runs" / f"s{seed}", losses=(3.0, 2.0 + seed), train__seed=seed)
        for seed in (0, 1)
    ]
    runs_.append(make(tmp_path / "runs" / "b", train__batch=4, card__license=place))
    code, out, _ = call(capsys, "report", tmp_path / "runs", f"--to={tmp_path}/to")
    page = tmp_path / "to" / "runs.html"
    assert code == Exit.OK and f"3 runs: {page} (" in out
    text, twin = page.read_text(), (tmp_path / "to" / "runs.md").read_text()
    assert CANARY not in text + twin and "https://host/b" in twin
    titles = "Runs|Curves|Seeds: pretraining|What differs|Guesses over time: b"
    titles += "|Guesses over time: s0|Guesses over time: s1"
    titles += "|Masks as the model sees them|Data|Time"
    assert re.findall("<h2>(.*?)</h2>", text) == titles.split("|")
    assert re.findall("^## (.*)$", twin, re.M) == titles.split("|")
    assert "| train.batch | 4 | 16 | 16 |" in twin
    assert "| s1 | pretraining | finished | 20 | 2,000 | 1:10 | loss | 3.1250 |" in twin
    # 100 s in processes, 70 of them training; steps 10 to 15 were done again.
    assert "| s0 | 2 | 1:40 | 1:10 | 0:30 | 70.0% | 1:00 | 5 |" in twin
    assert "| s0 | a\\<b>.txt | train | 90 | 4,000 | 0.5% | k |" in twin
    assert "| to be or [ ? ] to be | not | word 0% | word 10% | word 20% |" in twin
    assert (
        "<mark>[MASK=not]</mark> <mark>[&lt;i&gt;=to]</mark> <mark>[=be]</mark>" in text
    )
    figures = figures_of(page)
    assert [*figures][:2] == ["loss", "tokens per second"] and "mfu" in figures
    axes = json.loads(re.search(r"const axes = (\{.*?\}), live = 0;", text)[1])
    assert axes["1.train"] == {
        "step": [10, 20], "tokens": [1000, 2000], "seconds": [35, 70],
    }  # fmt: skip
    curves = {t["meta"]["axes"]: t["y"] for t in figures["loss"]["data"]}
    assert curves["2.train"] == [3, 3] and curves["1.evaluation"] == [3.125, 2.125]
    boxes = figures["best held-out loss"]["data"]
    assert [box["y"] for box in boxes] == [[2.125], [2.125, 3.125]]
    assert not re.findall(r'(?:src|href)="?http', text)


def test_json_has_the_figures_and_damage_is_said(tmp_path, capsys):
    run = make(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train"}\n{"kind": "evaluation", "st')
    (run / "examples.json").write_text("{")
    code, out, _ = call(capsys, "report", run, "--json")
    result = json.loads(out)
    assert code == Exit.OK and result["page"] == str(run / "runs.html")
    said = " ".join(result["remarks"])
    assert "metrics.jsonl:5 is left out" in said and "metrics.jsonl:6 is" in said
    assert "examples.json is not valid JSON" in said
    (facts,) = result["runs"]
    wanted = {"last": 2.125, "best": 2.125, "step": 20, "goodput": 0.7, "starts": 2}
    assert facts.items() >= wanted.items() and facts["devices"] == "2 cpu"


def test_runs_of_two_kinds_share_what_both_have(tmp_path, capsys):
    make(tmp_path / "runs" / "a")
    tuned = make(tmp_path / "runs" / "b", FinetuneConfig)
    lines = (tuned / "metrics.jsonl").read_text().replace("mfu", "f1")
    (tuned / "metrics.jsonl").write_text(lines)
    (tuned / "scores.json").write_text(json.dumps({"metric": "f1", "step": 20}))
    (tmp_path / "runs" / "c").mkdir()
    config = (tuned / "config.json").read_text()
    (tmp_path / "runs" / "c" / "config.json").write_text(config)
    code, out, _ = call(capsys, "report", tmp_path / "runs")
    assert code == Exit.OK and "c has no metrics yet" in out
    drawn = figures_of(tmp_path / "runs" / "runs.html")
    assert {"loss", "tokens per second"} <= drawn.keys()
    assert not {"mfu", "f1"} & drawn.keys()
    twin = (tmp_path / "runs" / "runs.md").read_text()
    assert "only figures that both have" in twin and "| b | fine-tuning |" in twin


def test_only_finished_runs_of_one_kind_share_a_box(tmp_path, capsys):
    hows = ("finished", "finished", "stopped", "failed", None)
    for seed, how in enumerate(hows):
        run = tmp_path / "runs" / f"<img src=x>|{seed}"
        make(run, losses=(3.0, 2.0 + seed), train__seed=seed)
        start = {"step": 0, "began": 1.0, "ended": how and 60.0, "reached": 20}
        (run / "starts.json").write_text(json.dumps({"starts": [start | {"how": how}]}))
    for seed in (0, 1):
        make(tmp_path / "runs" / f"t{seed}", FinetuneConfig, train__seed=seed)
    assert call(capsys, "report", tmp_path / "runs")[0] == Exit.OK
    twin = (tmp_path / "runs" / "runs.md").read_text()
    states = re.findall(r"^\| \\<img src=x>\\\|\d \| pretraining \| (\w+)", twin, re.M)
    assert states == ["finished", "finished", "stopped", "failed", "killed"]
    ours, tuned = re.findall(
        r"^## Seeds: (?:pretraining|fine-tuning)\n.*?\n\nD", twin, re.M | re.S
    )
    assert ours.count("\n| ") == 3 and tuned.count("\n| ") == 3
    assert "| 1 | all runs | 2 | 2.6250 | 2.1250 | 3.1250 |" in ours
    assert "| 1 | all runs | 2 | 2.1250 | 2.1250 | 2.1250 |" in tuned
    assert "<img" not in (tmp_path / "runs" / "runs.html").read_text()


@pytest.mark.parametrize(
    "name, content, code, said",
    [
        ("gone", None, Exit.USAGE, "does not exist"),
        ("empty", {}, Exit.USAGE, "holds no run"),
        ("hub", {"config.json": '{"model_type": "bert"}'}, Exit.USAGE, "Hugging Face"),
        ("new", {"config.json": '{"objective": {}, "train": {}}'}, Exit.DATA, "no met"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, capsys, name, content, code, said):
    for file, text in (content or {}).items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
    (tmp_path / "empty").mkdir()
    got, _, err = call(capsys, "report", tmp_path / name)
    assert got == code and said in err and "Traceback" not in err
    assert not [*tmp_path.rglob("runs.*")]


def test_a_live_page_follows_the_run_and_ends_with_it(tmp_path, capsys, monkeypatch):
    run = make(tmp_path / "run")
    monkeypatch.setattr(verbs, "_POLL_SECONDS", 0.05)
    seen, said = [], []
    monkeypatch.setattr(verbs, "log", said.append)
    (run / "metrics.jsonl").rename(run / "later")

    def train():
        with open(run / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            begun.set()
            for _ in range(200):
                time.sleep(0.05 * (not said))
            (run / "later").rename(run / "metrics.jsonl")
            for _ in range(200):
                if (run / "runs.html").exists() and not seen:
                    seen.append((run / "runs.html").read_text())
                    text = (run / "metrics.jsonl").read_text()
                    (run / "metrics.jsonl").write_text(text.replace("3.0", "9.75"))
                if seen and "9.75" in (run / "runs.html").read_text():
                    return
                time.sleep(0.05)

    begun, thread = threading.Event(), threading.Thread(target=train)
    thread.start()
    begun.wait(10)
    assert call(capsys, "report", run, "--live")[0] == Exit.OK
    thread.join(20)
    end = (run / "runs.html").read_text()
    assert "run has no metrics yet. Ctrl-C ends" in said[0] and "open" in said[1]
    assert "live = 1;" in seen[0] and "live = 0;" in end and "9.75" in end
    # Ctrl-C ends it, too, with a last page.
    monkeypatch.setattr(
        verbs, "_watch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert call(capsys, "report", run, "--live")[0] == Exit.OK
