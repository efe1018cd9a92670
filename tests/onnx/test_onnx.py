"""ONNX graphs of all families and heads: transformers' numbers and ours, no JAX."""

import dataclasses
import json

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from interop.cases import CASES, PATTERNS, draw
from interop.test_parity import GOLDEN, GOLDENS
from tests_common import campaign, sentences

from plmjax import Exit, PlmjaxError
from plmjax.evaluate.model import Model
from plmjax.interop.config_json import from_json
from plmjax.interop.huggingface import export_folder
from plmjax.interop.weights import from_tensors, model_entries
from plmjax.models import PRESETS, EncoderConfig
from plmjax.models.heads import HEADS
from plmjax.models.task_heads import POOLERS, POOLINGS, check, init_head
from plmjax.onnx import export as export_file
from plmjax.onnx import graph
from plmjax.onnx.export import export, write_model
from plmjax.onnx.session import Session, scores_of
from plmjax.tasks.task import Task
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

TOKENIZER = train_tokenizer(TokenizerConfig(vocab_size=160), sentences(100))
SIZES = {"layers": 2, "width": 16, "heads": 2, "ffn_width": 24, "max_positions": 30}
# What makes rows of 28 tokens use all of a family's attention.
MORE = {
    "longformer": {"window": 4, "global_tokens": "first"},
    "modernbert": {"window": 6},
    "bigbird": {"block": 2, "random_blocks": 1},
    "nystromformer": {"landmarks": 8, "value_convolution": 5},
    "deberta-v2": {"position_buckets": 8},
    "eurobert": {"kv_heads": 1},
}
TASKS = {
    "classes": Task("classes", ("a", "b", "c")),
    "multilabel": Task("multilabel", ("a", "b")),
    "regression": Task("regression"),
    "tags": Task("tags", ("O", "B", "I")),
    "answers": Task("answers"),
    "choices": Task("choices"),
    **{pooling: Task("embeddings", pooling=pooling) for pooling in ("mean", "max")},
    "of-mean": Task("classes", ("a", "b"), head_pooling="mean"),
    "late": Task("classes", ("a", "b"), head_pooling="late"),
}


def config_of(family="bert", **changes):
    pattern = PRESETS[PATTERNS[family]]
    sizes = SIZES | {"vocab_size": TOKENIZER.vocab_size} | MORE.get(family, {})
    if pattern.position_offset:
        sizes["position_offset"] = 2
    if pattern.embedding_width:
        sizes["embedding_width"] = 8
    return dataclasses.replace(pattern, **sizes | changes)


def model_of(config, heads=(), task=None):
    params = draw(config, heads)
    if config.attention == "nystrom":
        # So that attention is far from uniform, and sees which are its landmarks.
        params = jax.tree.map(lambda x: 3 * x, params)
    if task is not None and task.head is not None:
        shapes = jax.eval_shape(
            lambda key: init_head(config, task.head, task.outputs, key),
            jax.random.key(0),
        )
        random = np.random.default_rng(1)
        params = params | {
            task.head: jax.tree.map(
                lambda x: random.normal(0, 1, x.shape).astype(np.float32), shapes
            )
        }
    return Model(config, params, TOKENIZER, "tiny", task=task)


def folder_of(path, heads=("head",), task=None, **changes):
    model = model_of(EncoderConfig(**config_of(**changes).__dict__), heads, task)
    parts = model.encoder, model.params, TOKENIZER
    export_folder(path, *parts, "A card.", task=task, length=24)
    return path


def apart(model, folder):
    largest = write_model(model, 24, folder, {})
    onnx.checker.check_model(folder / "onnx/model.onnx", full_check=True)
    return largest


def feed_of(session, rows):
    given = {
        "input_ids": rows["tokens"],
        "attention_mask": rows["mask"],
        "token_type_ids": rows["types"],
    }
    return {x.name: given[x.name].astype(np.int64) for x in session.get_inputs()}


@pytest.mark.parametrize("case", GOLDENS.GOLDEN)
def test_each_family_has_the_logits_of_transformers(case):
    with np.load(GOLDEN / f"{case}.npz") as file:
        theirs = GOLDENS.unpack(file)
    rows = {n.removeprefix("batch/"): x for n, x in theirs.items() if "batch/" in n}
    config, _, _ = from_json(json.loads(str(theirs["config"])), "golden")
    heads = [name for name in HEADS if name in rows]
    entries = model_entries(config, heads)
    params = from_tensors(entries, heads, lambda name: theirs[f"before/{name}"])
    built = graph.build(config, params)
    session = onnxruntime.InferenceSession(built.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, feed_of(session, rows)), strict=True))
    assert names[0] == "logits" and len(names) == len(heads)
    for head, logits in zip(heads, found.values(), strict=True):
        difference = np.abs(logits - theirs[f"logits/{head}"])
        real = ... if head == "pair" else rows["mask"] > 0
        assert difference[real].max() < 1e-5


ALL = [(family, kind) for family in POOLERS["sequence"] for kind in TASKS]
KEPT = [("bert", "choices"), ("bigbird", "answers"), ("eurobert", "late")]
KEPT += [("modernbert", "tags"), ("roberta", "max"), ("nystromformer", "classes")]


def has(family, kind):
    task = TASKS[kind]
    poolings = POOLINGS.get((family, str(task.head)), ("cls",))
    eurobert = family == "eurobert" and task.head in ("answers", "choices")
    return task.head_pooling in poolings and not eurobert


@pytest.mark.parametrize(
    "family, kind", campaign([case for case in ALL if has(*case)], *KEPT)
)
def test_each_head_has_our_outputs(family, kind, tmp_path):
    config, task = config_of(family), TASKS[kind]
    if task.head is not None:
        check(config, task.head, task.head_pooling)
    assert apart(model_of(config, task=task), tmp_path) < 3e-6


VARIANTS = {
    "question": {"global_tokens": "question", "global_ids": (TOKENIZER.sep_id,)},
    "second": {"global_tokens": "second", "global_ids": (TOKENIZER.sep_id,)},
    "sentences": {"global_tokens": "sentences", "global_ids": (5, 9, 17)},
    "listed": {"global_tokens": "listed", "global_ids": (5, 9, 17)},
    "alibi": {"positions": "alibi", "global_tokens": "none"},
    "causal": {"causal": True, "global_tokens": "none"},
    "turned": {"positions": "rope", "kv_heads": 1},
    "convolved": {"family": "deberta-v2"},
}


@pytest.mark.parametrize("name", campaign([*VARIANTS], "second", "turned"))
def test_what_only_plmjax_has(name, tmp_path):
    changes = {"family": "longformer"} | VARIANTS[name]
    if name == "convolved":
        changes |= {"convolution_width": 3, "positions": "learned", "token_types": 2}
    config = config_of(changes.pop("family"), **changes)
    assert apart(model_of(config, ("detector", "pair")), tmp_path) < 3e-6


def test_a_folder_is_what_optimum_reads_and_runs_texts_of_all_lengths(tmp_path, capsys):
    hub = folder_of(tmp_path / "hub", ("head", "pair"))
    to = export(hub, tmp_path / "to")
    assert "opset 20" in capsys.readouterr().out
    assert {p.name for p in to.iterdir()} == {
        *("config.json", "README.md", "onnx", "tokenizer.json", "vocab.txt"),
        *("tokenizer_config.json", "special_tokens_map.json"),
    }
    assert (to / "config.json").read_bytes() == (hub / "config.json").read_bytes()
    built = onnx.load(to / "onnx/model.onnx").graph
    axes = {
        value.name: [
            d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim
        ]
        for value in (*built.input, *built.output)
    }
    rows = ["batch", "length"]
    inputs = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), rows)
    logits = [*rows, TOKENIZER.vocab_size]
    assert axes == inputs | {"logits": logits, "seq_relationship_logits": ["batch", 2]}
    # The table of tokens, which is the decoder, too, is stored once.
    table = [x for x in built.initializer if list(x.dims) == [logits[2], 16]]
    assert len(table) == 1

    session = Session(to, threads=1)
    assert (session.kind, session.length) == ("fill", 24)
    texts = ["the matrix", ("a word", "the row"), " ".join(["list"] * 40), "a"]
    found = session.run(texts, batch_tokens=50)
    for index, text in enumerate(texts):
        alone = session.run([text])
        for name, values in alone.items():
            assert values[0].shape == found[name][index].shape
            assert np.abs(values[0] - found[name][index]).max() < 1e-5
    assert len(found["logits"][2]) == 24


def test_models_of_two_parts_and_with_external_data(tmp_path, monkeypatch):
    folder_of(tmp_path / "hub/generator", family="electra")
    # A vocabulary head is not what a detector is for.
    folder_of(tmp_path / "hub/discriminator", ("head", "detector"), family="electra")
    monkeypatch.setattr(export_file, "_FILE_BYTES", 1000)
    to = export(tmp_path / "hub", tmp_path / "to")
    kinds = {"generator": "fill", "discriminator": "detect"}
    assert {p.name for p in to.iterdir()} == set(kinds)
    for name, kind in kinds.items():
        files = {p.name for p in (to / name / "onnx").iterdir()}
        assert files == {"model.onnx", "model.onnx_data"}
        session = Session(to / name)
        assert session.kind == kind
        found = session.run(["the row of a matrix"])
        assert np.isfinite(found["logits"][0]).all()
        scores = scores_of({output: x[0][None] for output, x in found.items()})
        assert scores.ndim == (3 if kind == "fill" else 2)


def test_what_differs_from_ours_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    hub = folder_of(tmp_path / "hub", ("pair",))

    def faulty(config, params, *more):
        changed = jax.tree.map(np.array, params)
        changed["encoder"]["layer_1"]["ffn"]["up"]["bias"][3] += 0.1
        return graph.build(config, changed, *more)

    monkeypatch.setattr(export_file, "build", faulty)
    with pytest.raises(PlmjaxError, match="differs from ours by") as caught:
        export(hub, tmp_path / "to")
    assert caught.value.code == Exit.NUMERIC
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_bad_input_is_refused_before_work(tmp_path, monkeypatch):
    hub = folder_of(tmp_path / "hub")
    with pytest.raises(PlmjaxError, match="holds no run and no model"):
        export(tmp_path, tmp_path / "to")
    with pytest.raises(PlmjaxError, match="exists and is not empty"):
        export(hub, hub)
    with pytest.raises(PlmjaxError, match="holds no onnx/model.onnx") as caught:
        Session(hub)
    assert caught.value.code == Exit.MODEL
    monkeypatch.delitem(graph.ATTENTION, "full")
    with pytest.raises(PlmjaxError, match="model.attention='full' has no form") as no:
        export(hub, tmp_path / "to")
    assert "disentangled" in no.value.hint
    assert not (tmp_path / "to").exists()


def test_every_preset_has_a_form():
    assert {config.attention for config in PRESETS.values()} == {*graph.ATTENTION}
    assert {family for family, *_ in CASES.values()} == {*PATTERNS}
