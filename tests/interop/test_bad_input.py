"""Folders that must not be read: one line that says what and how to mend, code 4."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from plmjax import Exit, PlmjaxError
from plmjax.interop import read_folder, safetensors_file, weights
from plmjax.interop.safetensors_file import read_header

TOKEN = "bert.embeddings.word_embeddings.weight"
BIAS = "cls.predictions.bias"


def refused(path, message, read=read_folder, code=Exit.MODEL):
    with pytest.raises(PlmjaxError, match=message) as caught:
        read(path)
    assert caught.value.code == code
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tiny, tmp_path):
    return tiny().export(tmp_path / "model")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "t5"}, "model_type is 't5'; plmjax reads bert, roberta,"),
        ({"model_type": None}, "model_type is None"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"rope_theta": 1.0}, "does not know in bert: 'rope_theta'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; it must"),
        ({"num_hidden_layers": 10_001}, "a whole number from 1 to 10,000"),
        (
            {"num_hidden_layers": 10_000},
            "10,000 layers, but the weights are 58 tensors",
        ),
        ({"num_hidden_layers": 2}, "unexpected bert.encoder.layer.2"),
        ({"num_hidden_layers": 4}, "missing bert.encoder.layer.3"),
        ({"hidden_size": -10}, "hidden_size is -10"),
        ({"hidden_size": 10.0}, "hidden_size is 10.0"),
        ({"hidden_size": 10**400}, "hidden_size is 1000"),
        ({"hidden_size": 10**7}, r"is \[60, 10\], not \[60, 10000000\]"),
        ({"num_attention_heads": 3}, "3 does not divide hidden_size 10"),
        ({"vocab_size": 10**7}, "not \\[10000000, 10\\]"),
        ({"vocab_size": 50}, "not \\[50, 10\\]"),
        ({"type_vocab_size": True}, "type_vocab_size is True"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is 'small'"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"pad_token_id": 60}, "pad_token_id is 60"),
        ({"is_decoder": True}, "is_decoder is True; plmjax supports only False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ],
    ids=str,
)
def test_config(folder, changes, message):
    change_config(folder, **changes)
    refused(folder, message)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "broken JSON"),
        ("[1]", "not an object"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"layer_norm_eps": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "broken JSON"),
        ('{"a": %s}' % ("1" * 5000), "broken JSON"),
        ("{}", "model_type is None"),
        ('{"model_type": "bert"}', "has no vocab_size"),
    ],
    ids=range(8),
)
def test_config_text(folder, text, message):
    (folder / "config.json").write_text(text)
    refused(folder, message)


def test_roberta_counts_positions_from_its_padding(tiny, tmp_path):
    folder = tiny("roberta").export(tmp_path / "model")
    change_config(folder, hidden_act="gelu_new")
    refused(folder, "activation is 'gelu_new', but the head of RobertaForMaskedLM")
    change_config(folder, hidden_act="gelu", pad_token_id=0)
    refused(folder, "pad_token_id is 0 in config.json, but 1 in the tokenizer")
    change_config(folder, pad_token_id=None)
    refused(folder, "pad_token_id is None")


def test_transformers_defaults_are_said(folder):
    body = json.loads((folder / "config.json").read_text())
    del body["layer_norm_eps"]
    (folder / "config.json").write_text(json.dumps(body))
    imported = read_folder(folder)
    assert imported.config.norm_eps == 1e-12
    assert "has no layer_norm_eps: 1e-12" in imported.notes[0]


def test_missing_files(folder, tmp_path):
    message = "is not a folder.*hf download NAME"
    refused(tmp_path / "bert-base-uncased", message, code=Exit.USAGE)
    for name in ("bert-base-uncased", "google/electra-small"):
        command = f"`hf download {name} --local-dir={name}`"
        refused(name, f"{name} is not a folder.*{command}", code=Exit.USAGE)
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").unlink()
    refused(folder, "holds none of tokenizer.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "optimizer.pt").write_bytes(b"")
    refused(
        folder,
        "as a pickle .pytorch_model.bin.*import BertForMaskedLM as M; "
        f"M.from_pretrained.'{folder}'..save_pretrained.'{folder}'",
    )
    (folder / "pytorch_model.bin").rename(folder / "tf_model.h5")
    (folder / "optimizer.pt").unlink()
    refused(folder, r"has no model.safetensors, only tf_model.h5\.")
    (folder / "tf_model.h5").unlink()
    refused(folder, r"has no model.safetensors\.")
    snapshot = tmp_path / "models--bert" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (folder / "config.json").rename(snapshot / "config.json")
    refused(folder, "has no config.json. Give a folder that holds one")
    refused(tmp_path / "models--bert", f"no config.json. Did you mean {snapshot}")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "has no config.json. It is an adapter: merge it into its model")


def test_the_folder_inside_an_older_one_of_sentence_transformers(folder, tmp_path):
    folder.rename(tmp_path / "0_Transformer")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    refused(tmp_path, r"Did you mean \S+0_Transformer\?$")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(BIAS), f"missing {BIAS}"),
        (lambda t: t.update(extra=t[BIAS]), "unexpected extra"),
        (lambda t: t.update({BIAS: np.zeros(7, np.float32)}), r"is \[7\], not \[60\]"),
        (lambda t: t.update({BIAS: np.zeros(60, np.int64)}), "holds I64"),
        (lambda t: t.update({BIAS: t[BIAS] * np.float32(np.nan)}), "nan at index 0"),
        (
            lambda t: t.update({BIAS: t[BIAS].astype(np.float64) + 1e300}),
            "holds inf at index 0 of 60",
        ),
        (
            lambda t: t.update({"cls.predictions.decoder.weight": t[TOKEN] + 1}),
            "decoder.weight differs from bert.embeddings",
        ),
        (
            lambda t: t.update(
                {"cls.predictions.transform.LayerNorm.gamma": np.ones(10, np.float32)}
            ),
            "LayerNorm.weight twice",
        ),
    ],
    ids=range(8),
)
def test_tensors(folder, change, message):
    change_tensors(folder, change)
    refused(folder, message)


def test_another_model_is_guessed(folder):
    def become_gpt2(tensors):
        tensors.clear()
        for i in range(3):
            tensors[f"h.{i}.attn.c_attn.weight"] = np.zeros((10, 30), np.float32)
        for i in range(9):
            tensors[f"h.{i}.ln_1.bias"] = np.zeros(10, np.float32)

    change_tensors(folder, become_gpt2)
    refused(folder, r"missing.*\(\d+ in all\).*look like GPT-2")


def test_a_tokenizer_of_another_model(tiny, folder, tmp_path):
    tiny("roberta").tokenizer.save(folder)
    (folder / "vocab.txt").unlink()
    refused(folder, r"tokenizer has 2\d\d pieces, the embeddings have 60")


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "truncated: its header says 8 bytes, the file has 0"),
        (b"\x00\x01", "truncated"),
        (safetensors({"a": entry()}, b"1234"), "says 77 bytes, the file has 73"),
        (safetensors(b"{}", length=500), "truncated: its header says 508 bytes"),
        (safetensors(b"{}", length=2**62), "announce a header"),
        (b"PK\x03\x04" + b"1" * 60, "renamed pickle"),
        (b"\x80\x02\x8a\x0a" + b"1" * 60, "renamed pickle"),
        (safetensors(b"not json"), "broken JSON"),
        (safetensors(b'{"a":' * 50_000), "broken JSON"),
        (safetensors([1]), "not an object"),
        (
            safetensors(
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
                b"1234",
            ),
            "'a' twice",
        ),
        (
            safetensors({"../../etc/x": entry()}, b"12345678"),
            "no parameter has such a name",
        ),
        (safetensors({"a..b": entry()}, b"12345678"), "no parameter has such a name"),
        (
            safetensors({"a" * 300: entry()}, b"12345678"),
            "no parameter has such a name",
        ),
        (safetensors({"a": entry(shape=(3,))}, b"12345678"), "wrong about a"),
        (safetensors({"a": entry(shape=(2**62, 2**62))}, b"1" * 8), "wrong about a"),
        (safetensors({"a": entry(1, 9)}, b"123456789"), "wrong about a"),
        (safetensors({"a": entry(), "b": entry(4, 12)}, b"1" * 12), "wrong about b"),
        (safetensors({"a": entry(), "b": entry(9, 17)}, b"1" * 17), "wrong about b"),
        (safetensors({"a": entry(8, 0)}, b"12345678"), "wrong about a"),
        (safetensors({"a": entry(shape=(-2,))}, b"12345678"), "entry of a is broken"),
        (safetensors({"a": entry(end=True)}, b"12345678"), "entry of a is broken"),
        (safetensors({"a": 5}), "entry of a is broken"),
        (
            safetensors(
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}', b"1234"
            ),
            "entry of a is broken",
        ),
        (safetensors({"a": entry(dtype="F4")}, b"12345678"), "the type 'F4'"),
        (safetensors({"a": entry()}, b"12345678trailing"), "model.safetensors: "),
    ],
    ids=range(26),
)
def test_safetensors_that_lie(folder, content, message):
    path = folder / "model.safetensors"
    path.write_bytes(content)
    refused(path, message, read=read_header)
    refused(folder, message)


def test_a_file_that_shrinks_while_it_is_read(folder, monkeypatch):
    path, read = folder / "model.safetensors", weights.read_tensor

    def shrink_and_read(name, tensor):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1)
        return read(name, tensor)

    monkeypatch.setattr(weights, "read_tensor", shrink_and_read)
    refused(folder, "model cannot be read: .*not fully covered")


def test_random_damage_never_ends_in_a_traceback(folder):
    path, random = folder / "model.safetensors", np.random.default_rng(0)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, header, random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged[: random.integers(header, len(whole) + 1)])
        with pytest.raises(PlmjaxError) as caught:
            read_folder(folder)
            raise PlmjaxError("harmless", code=Exit.MODEL)
        assert caught.value.code == Exit.MODEL
    text = (folder / "config.json").read_bytes()
    path.write_bytes(whole)
    for _ in range(300):
        damaged = bytearray(text)
        damaged[random.integers(len(text))] = random.integers(0, 256)
        (folder / "config.json").write_bytes(damaged)
        with pytest.raises(PlmjaxError) as caught:
            read_folder(folder)
            raise PlmjaxError("harmless", code=Exit.MODEL)
        assert caught.value.code == Exit.MODEL


def test_a_head_in_two_files(tiny, tmp_path):
    folder = tiny("electra").export(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "discriminator_predictions.dense.bias"
    save_file({name: tensors[name]}, folder / "detector_head.safetensors")
    refused(folder, f"detector_head.safetensors holds {name}, which the model")


def test_a_detector_beside_is_read_with_the_same_suspicion(tiny, tmp_path):
    folder = tiny("deberta-detector").export(tmp_path / "model")
    path = folder / "detector_head.safetensors"
    tensors = load_file(path)
    name = "discriminator_predictions.dense.bias"
    save_file({n: a for n, a in tensors.items() if n != name}, path)
    refused(folder, f"missing {name}")
    save_file(tensors | {"extra": tensors[name]}, path)
    refused(folder, "unexpected extra")
    path.write_bytes(b"PK\x03\x04" + b"1" * 60)
    refused(folder, "renamed pickle")


@pytest.mark.parametrize(
    "case, other",
    [
        ("albert", "xlm-roberta"),
        ("electra", "bert"),
        ("electra", "albert"),
        ("bert", "deberta-v2"),
    ],
)
def test_the_config_of_another_family(tiny, tmp_path, case, other):
    families = {"xlm-roberta": "xlm-roberta", "deberta-v2": "deberta"}
    donor = tiny(families[other] if other in families else other)
    there = donor.export(tmp_path / "donor")
    folder = tiny(case).export(tmp_path / "model")
    (there / "config.json").replace(folder / "config.json")
    (there / "tokenizer.json").replace(folder / "tokenizer.json")
    refused(folder, f"weights are not those of the {other} in config.json: missing")


def test_a_torn_head_is_no_head_that_was_left_out(tiny, tmp_path):
    for case, name in (
        ("electra", "discriminator_predictions.dense.weight"),
        ("distilbert", "vocab_layer_norm.bias"),
        ("albert", "predictions.dense.bias"),
    ):
        folder = tiny(case).export(tmp_path / case)
        change_tensors(folder, lambda tensors, name=name: tensors.pop(name))
        refused(folder, f"missing {name}")


def test_untied_decoders(tiny, tmp_path):
    for case, duplicate, source in (
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        (
            "electra-generator",
            "generator_lm_head.weight",
            "electra.embeddings.word_embeddings.weight",
        ),
        (
            "distilbert",
            "vocab_projector.weight",
            "distilbert.embeddings.word_embeddings.weight",
        ),
    ):
        folder = tiny(case).export(tmp_path / case)

        def untie(tensors, duplicate=duplicate, source=source):
            tensors[duplicate] = tensors[source] + 1

        change_tensors(folder, untie)
        refused(folder, f"{duplicate} differs from {source}")


def test_query_key_and_value_of_another_width(tiny, tmp_path):
    folder = tiny("gpt2").export(tmp_path / "model")
    name = "transformer.h.0.attn.c_attn.weight"
    # As torch.nn.Linear would keep it.
    change_tensors(folder, lambda t: t.update({name: np.ascontiguousarray(t[name].T)}))
    refused(folder, r"is \[30, 10\], not \[10, 30\]")


def with_header(path, length: int) -> None:
    """Writes one tensor behind a header of so many bytes, blanks at its end."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
    path.write_bytes(
        struct.pack("<Q", length) + text.ljust(length).encode() + b"\0" * 8
    )


def test_a_header_is_as_long_as_its_limit_at_most(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    for limit in (200, 5000):
        monkeypatch.setattr(safetensors_file, "_MAX_HEADER_BYTES", limit)
        with_header(path, limit)
        assert set(safetensors_file.read_header(path)) == {"a"}
        with_header(path, limit + 1)
        with pytest.raises(
            PlmjaxError, match=f"header of {limit + 1:,} bytes"
        ) as caught:
            safetensors_file.read_header(path)
        assert caught.value.code == Exit.MODEL


def test_the_limit_of_a_header_itself(tmp_path):
    """A sparse file takes no room; beyond the limit nothing of it is read."""
    path, limit = tmp_path / "model.safetensors", 10_000_000
    for length, words in ((limit, "broken JSON"), (limit + 1, "announce a header")):
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", length))
            file.truncate(8 + length + 8)
        with pytest.raises(PlmjaxError, match=words):
            safetensors_file.read_header(path)
