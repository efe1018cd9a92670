"""Hugging Face folders: out and in again, bit for bit, and transformers reads them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plmjax import PlmjaxError
from plmjax.interop import read_folder
from plmjax.interop.config_json import from_json
from plmjax.models import PRESETS, Encoder
from plmjax.models.heads import VocabularyHead
from plmjax.tree import flatten

FAMILIES = ["bert", "roberta"]


def assert_same(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == np.asarray(wanted[name]).tobytes(), name


def rewrite(folder, change):
    """Replaces the folder's tensors by change(tensors)."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_export_and_import_are_exact(tiny, tmp_path, family):
    model = tiny(family)
    imported = read_folder(model.export(tmp_path / "new" / "model"))
    assert_same(imported.params, model.params)
    assert imported.config == model.config
    assert imported.tokenizer.digest == model.tokenizer.digest
    assert imported.notes == []
    assert (tmp_path / "new/model/README.md").read_text() == "# Card\n"
    settings = json.loads((tmp_path / "new/model/tokenizer_config.json").read_text())
    assert settings["model_max_length"] == model.config.max_length
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_the_same_model_gives_the_same_bytes(tiny, tmp_path):
    for name in "ab":
        tiny().export(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_config_json(name):
    from plmjax.interop.config_json import to_json

    pad = 1 if PRESETS[name].family == "roberta" else 0
    body = json.loads(json.dumps(to_json(PRESETS[name], pad, 0, 2)))
    assert from_json(body, "config.json") == (PRESETS[name], pad, [])


def test_gelu_tanh_is_called_gelu_new(tiny, tmp_path):
    folder = tiny("bert", activation="gelu_tanh").export(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["hidden_act"] == "gelu_new"
    assert read_folder(folder).config.activation == "gelu_tanh"


def test_shards(tiny, tmp_path):
    model = tiny()
    folder = model.export(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(places.values()):
        held = {name: tensors[name] for name in tensors if places[name] == shard}
        save_file(held, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(read_folder(folder).params, model.params)

    first = next(iter(tensors))
    moved = places | {first: f"model-{1 - int(places[first][6])}.safetensors"}
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(PlmjaxError, match=f"disagree about {first}"):
        read_folder(folder)
    index.write_text(json.dumps({"weight_map": places | {first: "../x.safetensors"}}))
    with pytest.raises(PlmjaxError, match="no safetensors file of this folder"):
        read_folder(folder)
    index.write_text(json.dumps({"weight_map": places}))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(PlmjaxError, match="lacks the shard model-1"):
        read_folder(folder)


def test_old_names_and_left_out_parts(tiny, tmp_path):
    model = tiny()
    folder = model.export(tmp_path / "model")

    def age(tensors):
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): array
            for name, array in tensors.items()
        }
        table = tensors["bert.embeddings.word_embeddings.weight"]
        old["cls.predictions.decoder.weight"] = table.copy()
        # Some files have the decoder's bias only under its second name.
        old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
        old["bert.embeddings.position_ids"] = np.arange(24)[None]
        old["bert.pooler.dense.bias"] = np.zeros(10, np.float32)
        old["cls.seq_relationship.bias"] = np.zeros(2, np.float32)
        return old

    rewrite(folder, age)
    imported = read_folder(folder)
    assert_same(imported.params, model.params)
    said = "\n".join(imported.notes)
    for name in ("position_ids", "bert.pooler.dense.bias", "cls.seq_relationship.bias"):
        assert name in said
    assert len(imported.notes) == 3


def test_a_bare_encoder_has_no_head(tiny, tmp_path):
    model = tiny("roberta")
    folder = model.export(tmp_path / "model")
    rewrite(
        folder,
        lambda tensors: {
            name.removeprefix("roberta."): array
            for name, array in tensors.items()
            if name.startswith("roberta.")
        },
    )
    imported = read_folder(folder)
    assert imported.params["head"] is None
    assert_same(imported.params["encoder"], model.params["encoder"])
    assert "no vocabulary head (none of lm_head.dense.weight" in imported.notes[0]


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_other_precisions_become_float32(tiny, tmp_path, dtype):
    import ml_dtypes

    model = tiny()
    folder = model.export(tmp_path / "model")
    types = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
    rewrite(folder, lambda found: {n: a.astype(types[dtype]) for n, a in found.items()})
    imported = read_folder(folder)
    rounded = jax.tree.map(
        lambda array: np.asarray(array).astype(types[dtype]).astype(np.float32),
        model.params,
    )
    assert_same(imported.params, rounded)
    assert imported.notes == [f"Weights stored as {dtype} became float32."]


@pytest.mark.parametrize(
    "change",
    [
        {"gated": True},
        {"bias": False},
        {"norm_place": "pre"},
        {"sharing": "all"},
        {"embedding_width": 5},
        {"causal": True},
        {"token_types": 0},
        {"position_offset": 2},
    ],
    ids=str,
)
def test_what_bert_cannot_express_is_refused(tiny, tmp_path, change):
    model = tiny()
    config = dataclasses.replace(model.config, **change)
    with pytest.raises(PlmjaxError, match=f"model.{next(iter(change))}") as caught:
        model.export(tmp_path / "model", config=config)
    assert caught.value.code == 2
    assert not list(tmp_path.iterdir())


def test_roberta_with_another_gelu_is_refused(tiny, tmp_path):
    model = tiny("roberta", activation="gelu_tanh")
    with pytest.raises(PlmjaxError, match="model.activation='gelu_tanh'"):
        model.export(tmp_path / "model")


def test_parameters_that_do_not_fit_are_refused(tiny, tmp_path):
    model = tiny()
    wider = dataclasses.replace(model.config, ffn_width=16)
    with pytest.raises(PlmjaxError, match="layer_0/ffn/up/kernel is float32"):
        model.export(tmp_path / "model", config=wider)
    fewer = dataclasses.replace(model.config, layers=2)
    with pytest.raises(PlmjaxError, match="config does not have encoder/layer_2"):
        model.export(tmp_path / "model", config=fewer)
    with pytest.raises(PlmjaxError, match="parameters lack head/transform/kernel"):
        model.export(tmp_path / "model", params=model.params | {"head": None})
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(np.nan), model.params)
    with pytest.raises(PlmjaxError, match="not finite") as caught:
        model.export(tmp_path / "model", params=broken)
    assert caught.value.code == 6
    with pytest.raises(PlmjaxError, match="rows of 25 tokens"):
        model.export(tmp_path / "model", length=25)
    assert not list(tmp_path.iterdir())


def test_only_an_export_of_ours_is_replaced(tiny, tmp_path):
    model = tiny()
    folder = model.export(tmp_path / "model")
    model.export(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(PlmjaxError, match="holds notes.txt, which no export") as caught:
        model.export(folder)
    assert caught.value.code == 2
    (folder / "notes.txt").unlink()
    body = json.loads((folder / "config.json").read_text())
    del body["plmjax_version"]
    (folder / "config.json").write_text(json.dumps(body))
    with pytest.raises(PlmjaxError, match="no config.json with plmjax_version"):
        model.export(folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PlmjaxError, match="file is not a folder"):
        model.export(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failed_export_leaves_the_earlier_one(tiny, tmp_path, monkeypatch):
    model = tiny()
    folder = model.export(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plmjax.interop.huggingface.save_file", full)
    with pytest.raises(PlmjaxError, match="No space left") as caught:
        model.export(folder)
    assert caught.value.code == 5
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.peer
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_an_export(tiny, tmp_path, family, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = tiny(family)
    folder = model.export(tmp_path / "model", length=20)
    theirs, info = AutoModelForMaskedLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    print({key: sorted(value) for key, value in info.items()})
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.model_max_length == 20
    assert tokenizer.pad_token_id == theirs.config.pad_token_id
    rows = tokenizer(
        ["the rows of a " + tokenizer.mask_token, "a vector"],
        return_tensors="pt",
        padding=True,
    )
    with torch.no_grad():
        wanted = theirs.eval()(**rows).logits.numpy()
    mask = rows["attention_mask"].numpy().astype(np.int32)
    tokens = rows["input_ids"].numpy().astype(np.int32)
    positions = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    hidden = Encoder(model.config).apply(
        {"params": model.params["encoder"]}, tokens, mask, positions, 0 * mask
    )
    found = VocabularyHead(model.config).apply(
        {"params": model.params["head"]},
        hidden.reshape(-1, model.config.width),
        model.params["encoder"]["embeddings"]["token"],
    )
    apart = np.abs(np.asarray(found).reshape(wanted.shape) - wanted)[mask > 0].max()
    print(family, "logits", apart)
    assert apart < 1e-5


@pytest.mark.peer
@pytest.mark.parametrize("family", FAMILIES)
def test_we_load_what_transformers_saves(tiny, tmp_path, family):
    from transformers import AutoModelForMaskedLM

    model = tiny(family)
    folder = model.export(tmp_path / "model")
    theirs = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
    theirs.save_pretrained(folder, max_shard_size="3KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    imported = read_folder(folder)
    assert_same(imported.params, model.params)
    assert imported.config == model.config
