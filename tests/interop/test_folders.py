"""Hugging Face folders: out and in again, bit for bit, and transformers reads them."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from interop.cases import CASES, draw
from safetensors.numpy import load_file, save_file

from plmjax import PlmjaxError
from plmjax.evaluate.model import open_model
from plmjax.interop import read_folder
from plmjax.interop.config_json import to_json
from plmjax.interop.folder import replacing_export
from plmjax.interop.weights import model_entries
from plmjax.models.heads import HEADS
from plmjax.tree import flatten


def assert_same(found, wanted):
    found, wanted = flatten(found), flatten(wanted)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == np.asarray(wanted[name]).tobytes(), name


def expressed(config, params, tokenizer):
    """The config.json of transformers for a model."""
    heads = [name for name in params if name != "encoder"]
    return to_json(config, heads, tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)


def rewrite(folder, change):
    """Replaces the folder's tensors by change(tensors)."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_cased_vocabulary_alone_is_cased_and_said(tiny, tmp_path, capsys):
    """As the only file of a tokenizer, in every verb that opens the folder."""
    folder = tiny().export(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    lines = (folder / "vocab.txt").read_text().splitlines()
    lines[10:12] = ["The", "Cat"]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    model = open_model(str(folder))
    assert model.tokenizer.encode_batch(["The Cat"]).tokens.tolist() == [10, 11]
    out, said = capsys.readouterr()
    assert out == "" and said.count("\n") == 1
    assert "vocab.txt is cased: 4% of its pieces have capitals" in said
    assert any("vocab.txt is cased" in note for note in read_folder(folder).notes)


@pytest.mark.parametrize("case", CASES)
def test_export_and_import_are_exact(tiny, tmp_path, case):
    model = tiny(case)
    folder = model.export(tmp_path / "new" / "model")
    imported = read_folder(folder)
    assert imported.params.keys() == model.params.keys()
    assert_same(imported.params, model.params)
    assert imported.config == model.config
    assert imported.tokenizer.digest == model.tokenizer.digest
    # Of a bare encoder it says that there is no head.
    assert len(imported.notes) == (len(model.params) == 1), imported.notes
    assert (folder / "README.md").read_text() == "# Card\n"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == model.config.max_length
    body = json.loads((folder / "config.json").read_text())
    assert body["architectures"] == [CASES[case][3]]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_the_same_model_gives_the_same_bytes(tiny, tmp_path):
    for name in "ab":
        tiny().export(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_one_name(tiny, case):
    model = tiny(case)
    found = model_entries(model.config, [h for h in HEADS if h in model.params])
    ours = [name for entry in found for name in entry.ours]
    assert sorted(ours) == sorted(flatten(model.params))
    assert len({entry.theirs for entry in found}) == len(found)


@pytest.mark.parametrize("sharing", ["attention", "ffn"])
@pytest.mark.parametrize("groups", [1, 2])
def test_albert_that_shares_in_part_goes_out_as_sharing_nothing(
    tiny, tmp_path, sharing, groups
):
    model = tiny("albert", sharing=sharing, groups=groups, layers=4)
    folder = model.export(tmp_path / "model")
    body = json.loads((folder / "config.json").read_text())
    assert (body["num_hidden_layers"], body["num_hidden_groups"]) == (4, 4)
    imported = read_folder(folder)
    assert imported.config == dataclasses.replace(
        model.config, sharing="none", groups=1
    )
    found, wanted = imported.params["encoder"], model.params["encoder"]
    for i in range(4):
        shared = i * groups // 4
        a, f = (shared, i) if sharing == "attention" else (i, shared)
        for name, j in (("attention", a), ("attention_norm", a), ("ffn", f)):
            assert_same(found[f"layer_{i}"][name], wanted[f"layer_{j}"][name])


def test_groups_are_numbered_as_transformers_numbers_them(tiny, tmp_path):
    model = tiny("albert", layers=6, groups=2)
    tensors = load_file(model.export(tmp_path / "model") / "model.safetensors")
    name = "albert.encoder.albert_layer_groups.1.albert_layers.0.ffn.bias"
    assert (
        tensors[name] == model.params["encoder"]["layer_1"]["ffn"]["up"]["bias"]
    ).all()
    assert not any("layer_groups.2" in name for name in tensors)


def test_gpt2_keeps_query_key_and_value_side_by_side(tiny, tmp_path):
    model = tiny("gpt2")
    tensors = load_file(model.export(tmp_path / "model") / "model.safetensors")
    attention = model.params["encoder"]["layer_2"]["attention"]
    fused = tensors["transformer.h.2.attn.c_attn.weight"]
    assert fused.shape == (10, 30)
    for i, name in enumerate(("query", "key", "value")):
        assert (fused[:, 10 * i : 10 * i + 10] == attention[name]["kernel"]).all()


def test_a_detector_without_a_class_stands_beside_the_model(tiny, tmp_path):
    model = tiny("deberta-detector")
    folder = model.export(tmp_path / "model")
    beside = load_file(folder / "detector_head.safetensors")
    assert all(name.startswith("discriminator_predictions.") for name in beside)
    inside = load_file(folder / "model.safetensors")
    assert not inside.keys() & beside.keys()
    # Replaced as a whole: an encoder alone leaves no head of the model before it.
    model.export(folder, params={"encoder": model.params["encoder"]})
    assert not (folder / "detector_head.safetensors").exists()
    assert read_folder(folder).params.keys() == {"encoder"}


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
    with pytest.raises(PlmjaxError, match="not a safetensors file of this folder"):
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


PREFIXES = {
    "bert-bare": "bert.",
    "roberta-bare": "roberta.",
    "albert-bare": "albert.",
    "distilbert-bare": "distilbert.",
    "electra-bare": "electra.",
    "gpt2": "transformer.",
}


@pytest.mark.parametrize("case", PREFIXES)
def test_a_bare_encoder_without_prefix(tiny, tmp_path, case):
    model, prefix = tiny(case), PREFIXES[case]
    folder = model.export(tmp_path / "model")
    rewrite(folder, lambda held: {n.removeprefix(prefix): a for n, a in held.items()})
    imported = read_folder(folder)
    assert imported.params.keys() == model.params.keys()
    assert_same(imported.params, model.params)


def read_renamed(model, folder, rename):
    """The notes about a folder whose tensors were renamed; its values are the same."""
    model.export(folder)
    rewrite(folder, lambda held: {rename(name): array for name, array in held.items()})
    imported = read_folder(folder)
    assert imported.params.keys() == model.params.keys()
    assert_same(imported.params, model.params)
    return imported.notes


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "0.auto_model."])
@pytest.mark.parametrize("case", ["bert-nsp", "electra", "gpt2", "distilbert"])
def test_a_prefix_that_all_names_share_is_removed(tiny, tmp_path, case, prefix):
    model = tiny(case)
    (note,) = read_renamed(model, tmp_path / "model", lambda name: prefix + name)
    count = len(model_entries(model.config, model.params.keys() - {"encoder"}))
    first, _, removed = note.partition(": ")
    assert first == f"Removed from {count} of {count} tensor names"
    removed = removed.removesuffix(" (wrappers of the model).").split(", ")
    assert sorted(removed) == sorted(f"{one}." for one in prefix.split(".")[:-1])


def test_wrappers_inside_names_are_removed(tiny, tmp_path):
    """torch.compile of one module; FSDP and recomputation of each layer."""

    def wrap(name):
        name = name.replace("bert.embed", "bert._orig_mod.embed")
        inner = "_fsdp_wrapped_module._checkpoint_wrapped_module."
        return name.replace("layer.1.", f"layer.1.{inner}")

    (note,) = read_renamed(tiny(), tmp_path / "model", wrap)
    assert note.startswith("Removed from 21 of 58 tensor names: _orig_mod., _fsdp")


@pytest.mark.parametrize(
    "case, inner, prefix",
    [
        ("bert-bare", "bert.", "encoder."),
        ("bert-bare", "bert.", "transformer."),
        ("bert-bare", "bert.", "bert.bert."),
        ("gpt2", "transformer.", "roberta."),
        ("gpt2", "transformer.", "transformer.transformer."),
    ],
)
def test_a_bare_encoder_in_an_attribute_of_a_module(
    tiny, tmp_path, case, inner, prefix
):
    """Also where the attribute has the name of another family, or of this one."""
    notes = read_renamed(
        tiny(case), tmp_path / "model", lambda name: prefix + name.removeprefix(inner)
    )
    assert f": {prefix.split('.')[0]}. (" in notes[0]


def test_names_of_another_family_are_no_wrapper(tiny, tmp_path):
    """A bare RoBERTa has BERT's names behind its prefix, but counts other positions."""
    model = tiny("bert-bare")
    with pytest.raises(PlmjaxError, match="names look like RoBERTa"):
        read_renamed(
            model, tmp_path / "a", lambda name: name.replace("bert.", "roberta.")
        )


def test_a_prefix_that_some_names_have_is_refused(tiny, tmp_path):
    folder = tiny().export(tmp_path / "model")

    def wrap(tensors):
        return {f"model.{n}": a for n, a in tensors.items()} | {
            "criterion.weight": np.zeros(2, np.float32)
        }

    rewrite(folder, wrap)
    words = "58 of the 59 names begin with 'model.', but not criterion.weight"
    with pytest.raises(PlmjaxError, match=words):
        read_folder(folder)


BUFFERS = {family: case for case, (family, *_) in reversed(CASES.items())}


@pytest.mark.parametrize("family", sorted(BUFFERS.keys() - {"gpt2"}))
def test_buffers_are_left_out_behind_any_prefix(tiny, tmp_path, family):
    model = tiny(BUFFERS[family])
    prefix = model_entries(model.config, [])[0].theirs.partition(".")[0]
    folder = model.export(tmp_path / "model")

    def wrap(tensors):
        buffer = {f"{prefix}.embeddings.position_ids": np.arange(24)[None]}
        return {f"module.{name}": a for name, a in (tensors | buffer).items()}

    rewrite(folder, wrap)
    imported = read_folder(folder)
    assert_same(imported.params, model.params)
    assert any("module." + prefix in note for note in imported.notes)


def test_gpt2_as_it_was_published(tiny, tmp_path):
    model = tiny("gpt2")
    folder = model.export(tmp_path / "model")

    def publish(tensors):
        found = {n.removeprefix("transformer."): a for n, a in tensors.items()}
        found["lm_head.weight"] = found["wte.weight"].copy()
        for i in range(3):
            found[f"h.{i}.attn.bias"] = np.ones((1, 1, 24, 24), bool)
            found[f"h.{i}.attn.masked_bias"] = np.full((), -1e4, np.float32)
        return found

    rewrite(folder, publish)
    body = json.loads((folder / "config.json").read_text())
    body |= {"n_inner": None, "n_ctx": 24, "task_specific_params": {"a": {"b": 1}}}
    body |= {"summary_type": "cls_index", "pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(body))
    with pytest.raises(PlmjaxError, match=r"c_fc.weight is \[10, 14\], not \[10, 40\]"):
        read_folder(folder)
    (folder / "config.json").write_text(json.dumps(body | {"n_inner": 14}))
    imported = read_folder(folder)
    assert_same(imported.params, model.params)
    assert imported.params["head"] == {}
    assert len(imported.notes) == 1 and "h.0.attn.bias" in imported.notes[0]


def test_deberta_as_it_was_published(tiny, tmp_path):
    model = tiny("deberta")
    folder = model.export(tmp_path / "model")

    def publish(tensors):
        theirs = "lm_predictions.lm_head."
        found = {
            name.replace("cls.predictions.transform.", theirs).replace(
                "cls.predictions.", theirs
            ): array
            for name, array in tensors.items()
        }
        for name in ("dense", "LayerNorm", "classifier"):
            found[f"mask_predictions.{name}.bias"] = np.ones(3, np.float32)
        name = "deberta.embeddings.position_embeddings.weight"
        return found | {name: np.ones((24, 10), np.float32)}

    rewrite(folder, publish)
    body = json.loads((folder / "config.json").read_text())
    body |= {"pos_att_type": "p2c|c2p", "max_relative_positions": 24}
    del body["legacy"]
    (folder / "config.json").write_text(json.dumps(body))
    imported = read_folder(folder)
    assert_same(imported.params, model.params)
    said = "\n".join(imported.notes)
    assert "mask_predictions.dense.bias" in said
    assert "position_embeddings" in said
    assert "enhanced mask decoder" in said


def test_a_pooler_without_its_classifier_is_no_head(tiny, tmp_path):
    model = tiny("bert-nsp")
    folder = model.export(tmp_path / "model")

    def without(tensors):
        return {n: a for n, a in tensors.items() if "seq_relationship" not in n}

    rewrite(folder, without)
    imported = read_folder(folder)
    assert imported.params.keys() == {"encoder", "head"}
    assert "pooler (bert.pooler.dense.bias" in imported.notes[0]
    assert_same(imported.params["encoder"], model.params["encoder"])


def test_a_segmenter_stays_at_home(tiny, tmp_path):
    """No other reader knows it; a later run names it again."""
    from plmjax.tokenizers.segmenters import Segmenter

    model = tiny()
    tokenizer = model.tokenizer.with_segmenter(Segmenter("spaces"))
    folder = dataclasses.replace(model, tokenizer=tokenizer).export(tmp_path / "model")
    model.export(folder)
    assert read_folder(folder).tokenizer.segmenter is None


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
    "case, change",
    [
        ("bert", {"gated": True}),
        ("bert", {"bias": False}),
        ("bert", {"norm_place": "pre"}),
        ("bert", {"sharing": "all"}),
        ("bert", {"embedding_width": 5}),
        ("bert", {"causal": True}),
        ("bert", {"token_types": 0}),
        ("bert", {"position_offset": 2}),
        ("bert", {"attention": "disentangled"}),
        ("bert", {"head": "plain"}),
        ("bert", {"convolution_width": 3}),
        ("roberta", {"activation": "gelu_tanh"}),
        ("roberta", {"position_offset": 0}),
        ("xlm-roberta", {"activation": "gelu_tanh"}),
        ("electra-generator", {"activation": "gelu_tanh"}),
        ("albert", {"embedding_width": 10}),
        ("albert", {"embedding_width": None}),
        ("distilbert", {"norm_eps": 1e-5}),
        ("distilbert", {"token_types": 2}),
        ("deberta", {"attention": "full", "positions": "learned"}),
        ("deberta", {"embedding_width": 5}),
        ("gpt2", {"causal": False}),
        ("gpt2", {"head": "transform"}),
    ],
    ids=str,
)
def test_what_a_class_cannot_express_is_said(tiny, case, change):
    model = tiny(case)
    config = dataclasses.replace(model.config, **change)
    with pytest.raises(PlmjaxError, match=f"model.{next(iter(change))}"):
        expressed(config, model.params, model.tokenizer)


@pytest.mark.parametrize(
    "case, heads, change",
    [
        ("bert", ("head",), {"gated": True, "norm_place": "pre"}),
        ("bert", (), {"layer_kinds": ("global", "local"), "global_tokens": "first"}),
        ("bert", ("pair", "head"), {"head": "untied", "embedding_width": 5}),
        ("electra", ("pair", "detector"), {"sharing": "all", "groups": 1}),
        ("gpt2", ("head",), {"causal": False}),
    ],
)
def test_only_plmjax_reads_what_no_class_expresses(tiny, tmp_path, case, heads, change):
    model, folder = tiny(case), tmp_path / "model"
    config = dataclasses.replace(model.config, **change)
    params = draw(config, heads)
    found = read_folder(model.export(folder, config=config, params=params))
    assert found.config == config
    assert_same(found.params, params)
    assert found.params.keys() == params.keys()
    rewrite(folder, lambda tensors: dict(list(tensors.items())[1:]))
    with pytest.raises(PlmjaxError, match=r"is missing, not \(.*1 such tensors"):
        read_folder(folder)
    body = json.loads((folder / "config.json").read_text())
    assert body["model_type"] == "plmjax" and body["only_plmjax"]
    (folder / "config.json").write_text(json.dumps(body | {"heads": ["tail"]}))
    with pytest.raises(PlmjaxError, match="heads is .* a list of names of heads"):
        read_folder(folder)


def test_another_gelu_is_the_heads_affair(tiny, tmp_path):
    for case in ("roberta-bare", "electra"):
        model = tiny(case, activation="gelu_tanh")
        imported = read_folder(model.export(tmp_path / case))
        assert imported.config.activation == "gelu_tanh"


@pytest.mark.parametrize(
    "case, heads",
    [
        ("roberta", ("head", "pair")),
        ("albert", ("pair",)),
        ("electra", ("pair", "detector")),
        ("gpt2", ("head", "pair")),
    ],
)
def test_heads_without_a_class_are_said(tiny, case, heads):
    model = tiny(case)
    with pytest.raises(PlmjaxError, match="has no class for an? .* with"):
        expressed(model.config, dict.fromkeys(heads), model.tokenizer)


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
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), model.params)
    with pytest.raises(PlmjaxError, match="not finite") as caught:
        model.export(tmp_path / "model", params=broken)
    assert caught.value.code == 6
    with pytest.raises(PlmjaxError, match="rows of 25 tokens"):
        model.export(tmp_path / "model", length=25)
    assert not list(tmp_path.iterdir())


def test_an_export_killed_between_its_two_renames_is_put_back(tiny, tmp_path):
    folder = tiny().export(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.rename(tmp_path / ".model.plmjax-old")
    (tmp_path / ".model.plmjax-new").mkdir()
    with pytest.raises(PlmjaxError, match="cannot be written"):
        with replacing_export(folder):
            raise OSError("the disk is full this time")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_only_an_export_of_ours_is_replaced(tiny, tmp_path):
    model = tiny()
    folder = model.export(tmp_path / "model")
    model.export(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(PlmjaxError, match="holds notes.txt, which plmjax") as caught:
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
