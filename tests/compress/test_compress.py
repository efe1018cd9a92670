"""Forms of fewer bits: each is what it says, and failures leave nothing behind."""

import json

import numpy as np
import onnx
import pytest
from finetune_common import make_folder, one_device, records, run, write
from safetensors import safe_open
from serve_common import make
from tests_common import campaign, sentences

from plmjax import Exit, PlmjaxError, machine
from plmjax.compress import run as compress_lib
from plmjax.compress import score
from plmjax.compress.run import compress
from plmjax.data.sources import SourceConfig, open_source
from plmjax.evaluate.latency import Latency
from plmjax.evaluate.model import open_models
from plmjax.evaluate.texts import make_plan, open_contender, score_texts
from plmjax.finetune.predict import evaluate
from plmjax.onnx import export as export_lib
from plmjax.onnx.session import Session

FORMATS = "onnx,float16,int8,int8-static,hf-bfloat16,hf-float16"
OPTIONS = {"format": None, "data": None, "calibrate": None, "target_ms": None}
OPTIONS |= {"max_drop": 1.0, "length": None, "layers": None, "heads": None}
OPTIONS |= {"neurons": None, "sparsity": None, "layers_by": "top", "curve": False}


@pytest.fixture(autouse=True)
def device():
    with one_device():
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    root = tmp_path_factory.mktemp("compress")
    write(root / "train.jsonl", records("classes", 64))
    write(root / "held_out.jsonl", records("classes", 24, seed=1))
    (root / "texts.txt").write_text("\n".join(sentences(40)) + "\n")
    (root / "few.txt").write_text("the row of a matrix\n")
    (root / "empty.txt").write_text("\n")
    with one_device():
        run(root / "tuned", make_folder(root / "folder", layers=2), root)
    return root / "tuned"


def table(name, to, **options) -> dict:
    shown: list[dict] = []
    compress(str(name), to, OPTIONS | options, lambda line: None, shown.append)
    return shown[0]


@pytest.fixture(scope="module")
def all_formats(tuned, tmp_path_factory):
    to = tmp_path_factory.mktemp("to") / "small"
    texts = str(tuned.parent / "texts.txt")
    with one_device():
        return to, table(tuned, to, format=FORMATS, calibrate=texts)


def test_every_format_is_scored_beside_the_original(tuned, all_formats):
    to, result = all_formats
    rows = {row["format"]: row for row in result["rows"]}
    assert [*rows] == ["original", *FORMATS.split(",")]
    assert json.loads((to / "compress.json").read_text()) == result
    score = evaluate(str(tuned), log=lambda line: None)[result["metric"]]
    assert rows["original"]["score"] == pytest.approx(100 * score)
    assert rows["onnx"]["agreement"] == rows["hf-float16"]["agreement"] == 100
    for row in rows.values():
        assert row["drop"] == pytest.approx(rows["original"]["score"] - row["score"])
        assert row["agreement"] >= 75 and row["bytes"] > 0 < row["median_ms"]
    assert not [*to.parent.glob(".*")] and not (to / ".forms").exists()


def test_the_files_hold_numbers_of_so_many_bits(tuned, all_formats):
    to, _ = all_formats

    def types(file: str) -> set[int]:
        return {x.data_type for x in onnx.load(to / "onnx" / file).graph.initializer}

    kind = onnx.TensorProto
    assert kind.FLOAT16 in types("model_fp16.onnx")
    assert kind.FLOAT not in types("model_fp16.onnx")
    assert kind.INT8 in types("model_quantized.onnx")
    # Ranges of states are known beforehand only if they were measured on text.
    nodes = {
        file: {node.op_type for node in onnx.load(to / "onnx" / file).graph.node}
        for file in ("model_quantized.onnx", "model_static.onnx")
    }
    assert "DynamicQuantizeLinear" in nodes["model_quantized.onnx"]
    assert "DynamicQuantizeLinear" not in nodes["model_static.onnx"]
    assert "QuantizeLinear" in nodes["model_static.onnx"]
    plain = next(iter(open_models(str(tuned)).values()))
    for name, dtype in (("hf-bfloat16", "BF16"), ("hf-float16", "F16")):
        folder = to / name
        assert json.loads((folder / "config.json").read_text())["dtype"] == name[3:]
        with safe_open(folder / "model.safetensors", "numpy") as file:
            assert {file.get_slice(x).get_dtype() for x in file.keys()} == {dtype}
        half = next(iter(open_models(str(folder)).values()))
        one, two = (m.params["encoder"]["embeddings"]["token"] for m in (plain, half))
        assert 0 < np.abs(one - two).max() <= np.abs(one).max() / 256


@pytest.mark.parametrize(
    "kept", campaign(["onnx,float16,int8,int8-static", "int8", "float16"], "int8")
)
def test_large_graphs_have_their_weights_in_a_second_file(
    tuned, all_formats, tmp_path, monkeypatch, kept
):
    """Each is complete without the others, and has the scores of a small one."""
    monkeypatch.setattr(export_lib, "_FILE_BYTES", 1000)
    texts = str(tuned.parent / "texts.txt")
    result = table(tuned, tmp_path / "to", format=kept, calibrate=texts)
    small = {row["format"]: row["score"] for row in all_formats[1]["rows"]}
    assert {row["format"]: row["score"] for row in result["rows"][1:]} == {
        name: small[name] for name in kept.split(",")
    }
    files = [path.name for path in (tmp_path / "to" / "onnx").iterdir()]
    models = [name for name in files if name.endswith(".onnx")]
    assert len(models) == len(files) / 2 == len(kept.split(","))
    for name in models:
        Session(tmp_path / "to", name).run(["the row"])


@pytest.mark.parametrize(
    ("fast", "options", "winner"),
    [
        ("int8", {}, "int8"),
        ("prune+int8 --layers=1", {"max_drop": 100.0}, "prune+int8 --layers=1"),
        ("none", {"format": "onnx,int8"}, None),
        ("int8", {"format": "onnx,int8", "max_drop": -1.0}, None),
    ],
)
def test_the_first_form_that_meets_the_target_is_written(
    tuned, tmp_path, monkeypatch, fast, options, winner
):
    """Only the form that is called `fast` is, whatever the machine does."""
    said: list[str] = []

    def measured(call):
        last = [line for line in said if line.endswith(" ...")][-1]
        median = 1.0 if last == f"{fast} ..." else 9.0
        return Latency(median, 9.0, 9.0, 1.0, rounds=1, spread=0.0)

    monkeypatch.setattr(compress_lib, "measure", measured)
    to, shown = tmp_path / "to", []
    given = OPTIONS | {"target_ms": 2.0} | options
    if winner is not None:
        compress(str(tuned), to, given, said.append, shown.append)
        assert shown[0]["winner"] == shown[0]["rows"][-1]["format"] == winner
        files = [path.name for path in to.glob("onnx/*")]
        assert files == ["model_quantized.onnx"]
        return
    with pytest.raises(PlmjaxError, match=r"nearest is \w+: [19]\.00 ms") as error:
        compress(str(tuned), to, given, said.append, shown.append)
    assert error.value.code == Exit.MODEL and len(shown[0]["rows"]) == 3
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "not clear what to write"),
        ({"format": "int4"}, "int8-static"),
        ({"format": "onnx+prune"}, "not of a folder"),
        ({"format": "int8-static"}, "--calibrate=TEXTS"),
        ({"format": "int8-static", "calibrate": "few.txt"}, "fills 1 row"),
        ({"format": "int8-static", "calibrate": "empty.txt"}, "empty.txt"),
        ({"model": "folder", "target_ms": 5.0}, "--data=FILE"),
        ({"model": ".", "format": "onnx"}, "holds no run and no model"),
        ({"model": "absent", "format": "onnx"}, "is not a folder"),
        ({"format": "onnx", "to": "tuned"}, "exists and is not empty"),
    ],
)
def test_errors_name_what_is_wrong_and_leave_nothing(tuned, tmp_path, options, words):
    root = tuned.parent
    name = root / options.get("model", "tuned")
    to = root / options["to"] if "to" in options else tmp_path / "to"
    given = {k: v for k, v in options.items() if k not in ("model", "to")}
    if "calibrate" in given:
        given["calibrate"] = str(root / given["calibrate"])
    with pytest.raises(PlmjaxError) as error:
        table(name, to, **given)
    assert words in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_named_with_its_extra(tuned, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(machine.importlib, "import_module", missing)
    with pytest.raises(PlmjaxError, match=r"plmjax\[onnx\]"):
        table(tuned, tmp_path / "to", format="int8")


def test_an_output_that_is_not_finite_is_refused(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "_outputs", lambda *given: np.full((16, 2), np.nan))
    with pytest.raises(PlmjaxError, match="not finite") as error:
        table(tuned, tmp_path / "to", format="hf-float16")
    assert error.value.code == Exit.NUMERIC


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fill", "fill-gpt2", "detect"])
def test_language_models_have_the_bits_of_evaluate(kind, tmp_path):
    hub, _ = make(kind, tmp_path)
    (tmp_path / "text.txt").write_text("\n".join(sentences(40)) + "\n")
    text = str(tmp_path / "text.txt")
    result = table(hub, tmp_path / "to", format="onnx,int8", data=text)
    whole, onnx, _ = result["rows"]
    assert "A graph also holds its operations" in compress_lib.as_text(result)
    if kind == "detect":
        assert whole["score"] is whole["bits_per_byte"] is onnx["interval"] is None
        return
    contender = open_contender(str(hub))
    source = open_source(SourceConfig(paths=(text,)))
    plan = make_plan([contender], source.documents())
    (record,) = score_texts([contender], plan, 16)
    assert whole["bits_per_byte"] == pytest.approx(record["bits_per_byte"], rel=1e-5)
    assert onnx["bits_per_byte"] == pytest.approx(record["bits_per_byte"], rel=1e-4)
    if kind == "fill-gpt2":
        assert result["metric"] == "next tokens"
        assert whole["score"] == pytest.approx(100 * record["accuracy"])


@pytest.mark.slow
def test_pairs_are_scored_as_evaluate_does_with_an_interval(tuned, tmp_path):
    random = np.random.default_rng(0)
    for name, count in (("train", 64), ("held_out", 40)):
        lines = records("classes", count, seed=count)
        for one in lines:
            same = random.integers(2)
            one["pair"] = one["text"] if same else "the row of a matrix"
            one["label"] = ("other", "same")[same]
        write(tmp_path / f"{name}.jsonl", lines)
    work = tmp_path / "work"
    folder = tuned.parent / "folder"
    pair = "task.columns.pair=pair", "train.steps=40"
    run(work, folder, tmp_path, *pair)
    result = table(work, tmp_path / "to", format="int8,prune", neurons=0.9)
    assert result["scored"] == "40 examples"
    first, int8, pruned = result["rows"]
    score = evaluate(str(work), log=lambda line: None)["accuracy"]
    assert first["score"] == pytest.approx(100 * score)
    assert first["interval"] is None and int8["run"] == "onnxruntime"
    for row in (int8, pruned):
        low, high = row["interval"]
        assert low <= row["drop"] <= high
        assert (low < high) == (row["agreement"] < 100)
    assert "±" in compress_lib.as_text(result)
