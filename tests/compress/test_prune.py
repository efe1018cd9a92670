"""Pruning: what is cut adds nothing, what is left is as before, and folders load."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetune_common import make_folder, one_device, records, run, write
from interop.cases import CASES, PATTERNS, draw
from tests_common import batch_of, campaign

from plmjax import PlmjaxError, tree
from plmjax.compress import prune
from plmjax.compress.run import compress
from plmjax.evaluate.model import Model, open_models
from plmjax.models import PRESETS, encoder, heads

SIZES = {"layers": 3, "width": 16, "heads": 4, "ffn_width": 12, "vocab_size": 40}
SIZES |= {"max_positions": 24, "dropout": 0.0, "attention_dropout": 0.0}
ALL = """bert eurobert albert distilbert deberta-v2 modernbert-long longformer bigbird
nystromformer gpt2""".split()
random = np.random.default_rng(3)
BATCH = batch_of(
    random.integers(5, 40, (2, 9)),
    segments=np.array([[1] * 9, [1] * 6 + [0] * 3], np.int32),
)


@functools.cache
def model_of(case: str) -> Model:
    family, parts, changes, _ = CASES[case]
    preset = PRESETS[PATTERNS[family]]
    sizes = SIZES | {"kv_heads": 2 if preset.kv_heads else None}
    sizes |= {"embedding_width": 8 if family == "albert" else None}
    config = dataclasses.replace(preset, **sizes | {"window": 4} | changes)
    return Model(config, draw(config, parts), None, case)  # type: ignore[arg-type]


def states(model: Model) -> np.ndarray:
    batch: Any = BATCH
    real = BATCH["segments"][:, :, None] > 0
    return np.where(real, heads.encode(model.encoder, model.params, batch, None), 0)


@pytest.mark.parametrize("case", campaign(ALL, "bert", "eurobert"))
def test_a_model_without_heads_is_the_model_with_their_gates_at_zero(case, monkeypatch):
    model = model_of(case)
    gates = np.ones((3, 4), np.float32)
    gates[0, 1] = gates[1, :2] = gates[2] = 0
    if case == "albert":
        gates[:] = gates[0]
    cut = {
        f"encoder/layer_{i}/attention": np.flatnonzero(gate == 0)
        for i, gate in enumerate(gates[: 1 if case == "albert" else 3])
    }
    small = prune.with_zero_heads(model, cut)
    changed = states(small)
    kind, number = model.encoder.attention, iter(range(3))
    attend = encoder.ATTENTION[kind]

    def gated(*arguments, **options):
        gate_N = gates[next(number)]
        return attend(*arguments, **options) * gate_N[None, :, None, None]

    monkeypatch.setitem(encoder.ATTENTION, kind, gated)
    np.testing.assert_array_equal(changed, states(model))
    zeros, total = prune.zero_share(small)
    assert total == tree.count(model.params)
    # Those that read the head, and those that make its queries, keys and values.
    if case == "bert":
        assert zeros == (gates == 0).sum() * 4 * 4 * 16
    if case == "eurobert":  # two queries share a key and a value
        assert zeros == 7 * 2 * 4 * 16 + (1 + 2) * 2 * 4 * 16


@pytest.mark.parametrize("case", campaign(ALL, "bert", "eurobert"))
def test_a_model_without_neurons_is_the_model_with_their_gates_at_zero(case):
    model = model_of(case)
    blocks = [n for n in tree.flatten(model.params) if n.endswith("ffn/down/kernel")]
    scores = {b.removesuffix("/down/kernel"): random.random(12) for b in blocks}
    small = prune.without_neurons(model, scores, 0.4)
    assert small.encoder.ffn_width == 7
    gated = prune.without_neurons(model, scores, 0.4, as_zeros=True)
    for block, score in scores.items():
        kernel = tree.flatten(gated.params)[f"{block}/down/kernel"]
        weakest = np.argsort(score)[:5]
        np.testing.assert_array_equal(np.flatnonzero(~kernel.any(1)), np.sort(weakest))
    np.testing.assert_allclose(states(small), states(gated), atol=2e-6)


@pytest.mark.parametrize("case", campaign(ALL, "modernbert-long"))
def test_a_model_without_layers_is_the_model_that_skips_them(case, monkeypatch):
    model = model_of(case)
    small = prune.without_layers(model, [1])
    assert small.encoder.layers == 2
    changed = states(small)
    for name in ("attend", "feed"):
        inner = getattr(encoder.Layer, name)

        def skipping(self, site, x_TH, *more, inner=inner):
            return x_TH if site == "layer_1" else inner(self, site, x_TH, *more)

        monkeypatch.setattr(encoder.Layer, name, skipping)
    np.testing.assert_array_equal(changed, states(model))


def test_importance_is_the_slope_of_the_loss_along_a_gate():
    model = model_of("bert")

    def loss(config, params, batch):
        x_BLH = heads.encode(config, params, batch, None)
        return jnp.sum(jnp.square(x_BLH[:, 0, :3])) + jnp.sum(x_BLH[:, 1, 0])

    value = jax.jit(loss, static_argnums=0)

    def slope(name: str, gate_I, row: int) -> float:
        flat, values = tree.flatten(model.params), []
        for step in (1e-2, -1e-2):
            scaled = flat[name] * (1 + step * gate_I)[:, None]
            params = tree.unflatten(flat | {name: scaled.astype(np.float32)})
            one = {name: x[row : row + 1] for name, x in BATCH.items()}
            values.append(float(value(model.encoder, params, one)))
        return (values[0] - values[1]) / 2e-2

    found = prune.importance(loss, BATCH, 1, model)
    block = "encoder/layer_1/ffn"
    expected = [
        np.mean([abs(slope(f"{block}/down/kernel", gate, row)) for row in (0, 1)])
        for gate in np.eye(12)[:3]
    ]
    np.testing.assert_allclose(found[block][:3], expected, rtol=2e-2, atol=2e-4)
    block = "encoder/layer_2/attention"
    gates = np.repeat(np.eye(4), 4, axis=1)
    expected = np.array(
        [
            np.mean([abs(slope(f"{block}/output/kernel", gate, r)) for r in (0, 1)])
            for gate in gates
        ]
    )
    expected /= np.sqrt(np.square(expected).sum())
    np.testing.assert_allclose(found[block], expected, rtol=2e-2, atol=2e-3)


def test_the_layer_that_matters_least_is_left_out_first():
    model = model_of("eurobert")
    flat = tree.flatten(model.params)
    for name, leaf in flat.items():
        if name.startswith("encoder/layer_1/") and ("output" in name or "down" in name):
            flat[name] = np.zeros_like(leaf)  # a layer that adds nothing
    silent = dataclasses.replace(model, params=tree.unflatten(flat))
    truth = states(silent)
    real = BATCH["segments"][:, :, None] > 0

    def loss(config, params, batch):
        x_BLH = heads.encode(config, params, batch, None)
        return jnp.sum(jnp.where(real, jnp.square(x_BLH - truth), 0))

    assert prune.weakest_layers(loss, BATCH, silent, 1) == [1]


# --- the command

OPTIONS = dict.fromkeys(
    "data calibrate target_ms length layers heads neurons sparsity".split()
) | {"max_drop": 1.0, "layers_by": "loss", "curve": False, "format": "prune"}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Returns the workdir of a fine-tuning of two layers."""
    root = tmp_path_factory.mktemp("prune")
    folder = make_folder(root / "folder", layers=2)
    write(root / "train.jsonl", records("classes", 40))
    write(root / "held_out.jsonl", records("classes", 16, seed=1))
    with one_device():
        run(root / "tuned", folder, root)
    return root / "tuned"


def pruned(tuned, to, **options) -> list[str]:
    said: list[str] = []
    with one_device():
        compress(str(tuned), to, OPTIONS | options, said.append)
    return said


@pytest.fixture(scope="module")
def small(tuned, tmp_path_factory):
    """Returns a folder of which all kinds of parts are cut, and what was said."""
    to = tmp_path_factory.mktemp("small") / "to"
    how = {"layers": 1, "heads": 0.5, "neurons": 0.25, "sparsity": "2:4"}
    return to, pruned(tuned, to, **how, curve=True)


def test_a_smaller_folder_is_written_with_the_curve(tuned, small):
    folder, said = small
    model = next(iter(open_models(str(folder)).values()))
    config = model.encoder
    assert (config.layers, config.ffn_width, config.heads) == (1, 24, 2)
    before = next(iter(open_models(str(tuned)).values()))
    text = "\n".join(said)
    assert f"{tree.count(model.params):,} parameters are left of" in text
    assert f"{tree.count(before.params):,} (" in text
    assert "Heads: 1 of 2 are cut" in text and "weights of these are 0" in text
    for name, leaf in tree.flatten(model.params).items():
        if name.startswith("encoder/layer_") and name.endswith("/kernel"):
            fours = np.count_nonzero(np.asarray(leaf).reshape(-1, 4, leaf.shape[1]), 1)
            assert (fours <= 2).all(), name
    assert "## Pruned" in (folder / "README.md").read_text()
    assert (folder / "curve.png").stat().st_size > 1000
    curves = json.loads((folder / "curve.json").read_text())["curves"]
    assert [left for left, _ in curves["layers"]] == [1, 0.5]
    scores = json.loads((folder / "compress.json").read_text())["rows"]
    assert {curve[0][1] for curve in curves.values()} == {scores[0]["score"]}


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "what to cut"),
        ({"heads": 1.0}, "would cut 4 of 4"),
        ({"heads": 0.01}, "would cut 0 of 4"),
        ({"neurons": 1.5}, "would cut 48 of 32"),
        ({"sparsity": -0.1}, "would cut -"),
        ({"layers": 2}, "layers=2 would cut 2 of 2"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_any_work(
    tuned, tmp_path, options, message
):
    with pytest.raises(PlmjaxError, match=message):
        pruned(tuned, tmp_path / "to", **options)
    assert not (tmp_path / "to").exists()


def test_odd_widths_shared_layers_and_missing_data_are_refused(tuned, tmp_path):
    odd = model_of("bert")
    odd = prune.without_neurons(odd, {"encoder/layer_0/ffn": np.arange(12)}, 0.1)
    with pytest.raises(PlmjaxError, match="has one of 11"):
        prune.check(odd, {"sparsity": "2:4"})
    shared = dataclasses.replace(model_of("albert").encoder, sharing="ffn")
    with pytest.raises(PlmjaxError, match="share parameters"):
        prune.check(dataclasses.replace(odd, encoder=shared), {"layers": 1})
    with pytest.raises(PlmjaxError, match="no data"):
        pruned(tuned / "export", tmp_path / "to", heads=0.5)


@pytest.mark.peer
def test_transformers_loads_a_pruned_folder(small):
    import torch
    import transformers

    folder, _ = small
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    theirs.eval()
    ours = next(iter(open_models(str(folder)).values()))
    from plmjax.models.task_heads import task_logits

    rows = {name: x[:1] for name, x in BATCH.items()}
    assert ours.task is not None
    expected = task_logits(ours.encoder, ours.task, ours.params, rows, None)  # type: ignore
    with torch.no_grad():
        found = theirs(input_ids=torch.tensor(rows["tokens"], dtype=torch.long)).logits
    assert (
        theirs.config.num_hidden_layers == 1 and theirs.config.intermediate_size == 24
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
