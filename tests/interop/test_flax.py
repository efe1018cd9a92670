"""flax_model.msgpack: the same parameters as safetensors have; what is refused."""

import shutil

import msgpack
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from interop.test_bad_input import refused
from safetensors.numpy import load_file
from tests_common import batch_of, campaign

from plmjax.interop import read_folder
from plmjax.tree import flatten

FILE = "flax_model.msgpack"


def as_flax(folder, tensors=None, kinds=None):
    """Replaces the weights of a folder by a file as Flax's serialization writes it.

    `kinds` has the kind of each tensor that is called weight, where it is known.
    """
    path, tree = folder / "model.safetensors", {}
    for name, array in (tensors or load_file(path)).items():
        *scope, last = name.split(".")
        if last == "weight":
            norm, table = "norm" in scope[-1].lower(), "embeddings" in scope[-1]
            last = "scale" if norm else "embedding" if table else "kernel"
            last = (kinds or {}).get(name, last)
        tree[(*scope, last)] = array.T if last == "kernel" else array
    path.unlink(missing_ok=True)
    (folder / FILE).write_bytes(msgpack_serialize(unflatten_dict(tree)))
    return folder


FAMILIES = ["bert-nsp", "roberta", "albert-sop", "distilbert", "electra"]


@pytest.mark.parametrize("case", campaign(FAMILIES, "bert-nsp", "electra"))
def test_it_has_the_parameters_of_the_same_model(case, tiny, tmp_path):
    ours = tiny(case).export(tmp_path / "ours")
    theirs = as_flax(shutil.copytree(ours, tmp_path / "theirs"))
    wanted, found = read_folder(ours), read_folder(theirs)
    assert found.config == wanted.config
    wanted, params = flatten(wanted.params), flatten(found.params)
    assert params.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(params[name], wanted[name])
    assert f"Weights are read from {FILE}." in found.notes


def damaged(what: str, content: bytes) -> bytes:
    """The content of a file with a fault."""
    tree = msgpack.unpackb(content)
    bias = tree["cls"]["predictions"]
    if what == "cut":
        return content[: len(content) // 2]
    if what == "longer":
        return content + b"\0"
    if what == "bytes":
        shape, dtype, values = msgpack.unpackb(bias["bias"].data)
        packed = msgpack.packb((shape, dtype, values[:-4]))
        bias["bias"] = msgpack.ExtType(1, packed)
    if what == "code":
        bias["bias"] = msgpack.ExtType(2, bias["bias"].data)
    if what == "objects":
        bias["bias"] = msgpack.ExtType(1, msgpack.packb(((1,), "object", b"\0" * 8)))
    if what == "text":
        bias["bias"] = "import os"
    if what == "shape":
        shape, dtype, values = msgpack.unpackb(bias["bias"].data)
        packed = msgpack.packb(((-1, -shape[0]), dtype, values))
        bias["bias"] = msgpack.ExtType(1, packed)
    return msgpack.packb(tree)


FAULTS = {
    "cut": "is damaged: .*incomplete input",
    "longer": "is damaged: .*extra data",
    "bytes": r"is damaged: an array of \[60\] has 236 bytes",
    "code": "an extension 2, which is no array",
    "objects": "an array of object; weights are floats",
    "text": "cls/predictions/bias is no array",
    "shape": "is damaged: an array of",
}


def test_a_damaged_file_is_refused(tiny, tmp_path):
    folder = as_flax(tiny("bert").export(tmp_path / "model"))
    content = (folder / FILE).read_bytes()
    for what, message in FAULTS.items():
        (folder / FILE).write_bytes(damaged(what, content))
        refused(folder, message)
    tensors = {"bert.embeddings.word_embeddings.weight": np.zeros((60, 10), "float32")}
    refused(as_flax(folder, tensors), "the weights are 1 tensor")


@pytest.mark.peer
def test_the_weights_of_a_torch_model_give_its_logits(tiny, tmp_path):
    import torch
    import transformers

    from plmjax.evaluate.fill import outputs

    folder = tiny("bert").export(tmp_path / "model")
    model = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    kinds = {torch.nn.Embedding: "embedding", torch.nn.LayerNorm: "scale"}
    by_name = {
        f"{name}.weight": kinds.get(type(module), "kernel")
        for name, module in model.named_modules()
    }
    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    tensors = {n: t for n, t in tensors.items() if "decoder" not in n and t.ndim}
    tensors.pop("bert.embeddings.position_ids", None)
    found = read_folder(as_flax(folder, tensors, by_name))
    ids = np.arange(5, 13, dtype=np.int32)[None]
    batch = batch_of(ids, mask_positions=np.arange(8, dtype=np.int32)[None])
    ours = outputs(found.config, found.params, batch)["head"]
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
