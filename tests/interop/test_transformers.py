"""transformers 5 reads what we write, and we read what it writes: every family."""

import numpy as np
import pytest
from interop.cases import CASES
from tests_common import batch_of

from plmjax.interop import read_folder
from plmjax.interop.names import FAMILIES, head_entries
from plmjax.interop.task_names import CLASSES
from plmjax.models.heads import outputs
from plmjax.tree import flatten

pytestmark = pytest.mark.peer

# What each class of transformers has that no pretraining trains: its own head, and
# poolers; {family: {Auto class: prefixes}}. "": every family not named.
CLASSIFIER = ("classifier.",)
TASKS = {
    "AutoModelForSequenceClassification": {
        "": (*CLASSIFIER, "bert.pooler.", "albert.pooler.", "pooler."),
        "distilbert": (*CLASSIFIER, "pre_classifier."),
        "gpt2": ("score.",),
        "modernbert-decoder": (*CLASSIFIER, "head."),
        "eurobert": (*CLASSIFIER, "dense."),
    },
    "AutoModelForTokenClassification": {
        "": CLASSIFIER,
        "bigbird": (*CLASSIFIER, "bert.pooler."),
    },
    "AutoModelForQuestionAnswering": {
        "": ("qa_outputs.",),
        "modernbert": CLASSIFIER,
        "bigbird": ("qa_classifier.",),
    },
    "AutoModel": {"": ("pooler.",)},
}
# Classes that transformers does not have.
LACKING = {
    ("modernbert-decoder", "AutoModelForTokenClassification"),
    *(
        (family, f"AutoModelFor{kind}")
        for family in ("modernbert-decoder", "eurobert")
        for kind in ("QuestionAnswering", "MultipleChoice")
    ),
    *(
        (family, "AutoModelForPreTraining")
        for family in ("modernbert", "modernbert-decoder", "eurobert", "nystromformer")
    ),
}
CAUSAL = ("gpt2", "modernbert-decoder")
# Any one case a family will do: the encoder is what these take.
ENCODERS = {family: case for case, (family, *_) in reversed(CASES.items())}


def load(name, folder):
    """The model that a class reads from the folder, and what it says of the keys."""
    import transformers

    model, info = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    return model.eval(), {key: set(value) for key, value in info.items()}


def theirs_of(folder, rows, model):
    """What the class computes, by the head it is of."""
    import torch

    names = {"input_ids": "tokens", "attention_mask": "mask", "token_type_ids": "types"}
    if not getattr(model.config, "type_vocab_size", 0):
        del names["token_type_ids"]
    given = {n: torch.from_numpy(rows[k]) for n, k in names.items()}
    if getattr(model.config, "global_tokens", "none") == "first":
        given["global_attention_mask"] = torch.zeros_like(given["input_ids"])
        given["global_attention_mask"][:, 0] = 1
    with torch.no_grad():
        found = model(**given)
    kind = type(model).__name__
    by_head = {
        "pair": ("seq_relationship_logits", "sop_logits"),
        "head": ("prediction_logits",),
        "states": ("last_hidden_state",),
    }
    if "logits" in found:
        head = "head"
        if kind == "ElectraForPreTraining":
            head = "detector"
        if kind == "BertForNextSentencePrediction":
            head = "pair"
        return {head: found["logits"].numpy()}
    return {
        head: found[name].numpy()
        for head, names in by_head.items()
        for name in names
        if name in found
    }


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_an_export(tiny, tmp_path, case):
    from transformers import AutoTokenizer

    from plmjax.models.heads import encode

    model, name = tiny(case), CASES[case][3]
    folder = model.export(tmp_path / "model", length=20)
    theirs, info = load(name, folder)
    # Poolers are of no use in pretraining: the bare classes have them all the same.
    # BigBird's vocabulary class, too, though it does not use it.
    pooler = "bert.pooler." if name == "BigBirdForMaskedLM" else "pooler."
    missing = {key for key in info.pop("missing_keys") if not key.startswith(pooler)}
    assert not missing and not any(info.values()), (missing, info)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.model_max_length == 20
    assert tokenizer.pad_token_id == theirs.config.pad_token_id

    texts = ["the rows of a matrix", "a vector"]
    # Nyströmformer's convolution takes padding for values.
    given = tokenizer(texts[: 2 - case.startswith("nystrom")], padding=True)
    mask = np.array(given["attention_mask"])
    rows = {"tokens": np.array(given["input_ids"]), "mask": mask, "types": 0 * mask}
    batch = batch_of(rows["tokens"], segments=mask.astype(np.int32))
    batch |= {"mask_positions": batch["positions"], "cls": batch["types"][:, :1]}
    found = outputs(model.config, model.params, batch)
    found["states"] = encode(model.config, model.params, batch, None)
    wanted = theirs_of(folder, rows, theirs)
    for head, array in wanted.items():
        ours = np.asarray(found[head])
        apart = np.abs(
            ours[:, 0] - array if head == "pair" else (ours - array)[mask > 0]
        )
        print(case, head, apart.max())
        assert apart.max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", TASKS)
def test_task_classes_lack_nothing_but_their_own(tiny, tmp_path, family, name):
    if (family, name) in LACKING:
        return
    model = tiny(ENCODERS[family])
    folder = model.export(tmp_path / "model")
    _, info = load(name, folder)
    new = TASKS[name][family if family in TASKS[name] else ""]
    assert not {key for key in info["missing_keys"] if not key.startswith(new)}
    assert not info["mismatched_keys"]
    # Our heads are left behind, and nothing else.
    heads = {
        entry.theirs
        for head in FAMILIES[family].heads
        for entry in head_entries(family, head)
    }
    assert info["unexpected_keys"] <= heads


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pretraining_and_vocabulary_classes(tiny, tmp_path, family):
    model = tiny(ENCODERS[family])
    folder = model.export(tmp_path / "model")
    auto = "AutoModelForCausalLM" if family in CAUSAL else "AutoModelForMaskedLM"
    for name in (auto, "AutoModelForPreTraining"):
        if (family, name) in LACKING:
            continue
        _, info = load(name, folder)
        # BERT, ALBERT and ELECTRA have heads there that this model was not trained for.
        allowed = {
            entry.theirs
            for head in ("pair", "detector")
            if head in FAMILIES[family].heads and name == "AutoModelForPreTraining"
            for entry in head_entries(family, head)
        }
        if family == "bigbird":  # its vocabulary class has a pooler, too
            allowed |= {"bert.pooler.weight", "bert.pooler.bias"}
        assert info["missing_keys"] <= allowed


@pytest.mark.parametrize("case", CASES)
def test_we_load_what_transformers_saves(tiny, tmp_path, case):
    model = tiny(case)
    folder = model.export(tmp_path / "model")
    theirs, _ = load(CASES[case][3], folder)
    theirs.save_pretrained(folder, max_shard_size="3KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    imported = read_folder(folder)
    assert imported.config == model.config
    found, wanted = flatten(imported.params), flatten(model.params)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].tobytes() == wanted[name].tobytes(), name


def test_albert_that_shares_in_part_computes_the_same(tiny, tmp_path):
    model = tiny("albert", sharing="attention", groups=2, layers=4)
    folder = model.export(tmp_path / "model")
    theirs, info = load("AlbertForMaskedLM", folder)
    assert not any(info.values())
    tokens = np.arange(12).reshape(2, 6)
    rows = {"tokens": tokens, "mask": 1 + 0 * tokens, "types": 0 * tokens}
    wanted = theirs_of(folder, rows, theirs)["head"]
    batch = batch_of(tokens)
    batch["mask_positions"] = batch["positions"]
    found = outputs(model.config, model.params, batch)["head"]
    assert np.abs(np.asarray(found) - wanted).max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*TASKS, "AutoModelForMultipleChoice"])
def test_we_load_what_was_fine_tuned(tiny, tmp_path, family, name):
    """With the head that its class names, where plmjax has one of the kind."""
    if (family, name) == ("gpt2", "AutoModelForMultipleChoice"):
        name = "GPT2DoubleHeadsModel"
    if (family, name) in LACKING:
        return
    model = tiny(ENCODERS[family])
    folder = model.export(tmp_path / "model")
    theirs, _ = load(name, folder)
    if (family, name) == ("eurobert", "AutoModelForSequenceClassification"):
        # By default it takes the mean over the tokens' scores, which ours never does.
        theirs.config.classifier_pooling = "bos"
    theirs.save_pretrained(folder)
    imported = read_folder(folder)
    if family == "modernbert-decoder":
        heads = set()  # its class scores the last token, which no head of ours does
    elif family == "gpt2":
        # Its vocabulary head is its token table: the bare class alone is without.
        heads = set() if name == "AutoModel" else {"head"}
    else:
        heads = {head for head, end in CLASSES.items() if name.endswith(end)}
        assert {imported.task.head} == heads if imported.task else not heads
    assert imported.params.keys() == {"encoder"} | heads
    found, wanted = (
        flatten(imported.params["encoder"]),
        flatten(model.params["encoder"]),
    )
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert found[key].tobytes() == wanted[key].tobytes(), key
