"""The model card tells what it must, and nothing that it must not."""

import dataclasses
import json
import re

import pytest
from huggingface_hub import ModelCard

from plmjax import PlmjaxError, counted
from plmjax.interop import CardFacts, model_card
from plmjax.interop.card import CardConfig
from plmjax.interop.folder import hub_name

FACTS = CardFacts(
    name="first",
    family="bert",
    parameters=5_123_456,
    mask_token="[MASK]",
    data={
        "kind": "docstrings",
        "document": "one docstring",
        "packages": [
            {"name": "numpy", "version": "2.3.1", "licence": "BSD-3-Clause"},
            {"name": "odd|name", "version": "1", "licence": ""},
        ],
        "counts": {"documents": 70_000, "bytes": 9_000_000},
    },
    recipe={
        "train": {"steps": 1600, "optimizer": {"learning_rate": 1e-3}},
        "tokenizer": {"path": "/home/me/my secret place/vocab.txt"},
        "wandb": {"api_key": "CANARY", "num_tokens": 12, "hf_token": "CANARY"},
        "data": {"paths": "/data/CANARY/a.txt, ~/CANARY/*.jsonl,../CANARY/b"},
        "mirror": "https://me:CANARY@host/models/x",
    },
    figures=[
        ("held-out loss (nats)", 4.69, "500 rows, fixed masks"),
        ("unigram baseline (nats)", 5.98, "same tokens; see /home/CANARY/log.txt"),
    ],
    card=CardConfig(
        license="apache-2.0",
        language="en",
        datasets="wikimedia/wikipedia, bookcorpus",
        base_model="bert-base-uncased",
    ),
)


def front_matter(card: str) -> dict:
    """What the hub reads from a card."""
    return ModelCard(card, ignore_metadata_errors=False).data.to_dict()


def test_card_tells_what_it_must():
    card = model_card(FACTS)
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["plmjax", "masked-lm", "bert"],
        "license": "apache-2.0",
        "language": "en",
        "datasets": ["wikimedia/wikipedia", "bookcorpus"],
        "base_model": "bert-base-uncased",
    }
    for text in (
        "A BERT model of 5,123,456 parameters",
        "AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)",
        "docstrings) of the Python packages",
        "| numpy | 2.3.1 | BSD-3-Clause |",
        "| odd\\|name | 1 | unknown |",
        "| documents | 70,000 |",
        "| train.optimizer.learning_rate | 0.001 |",
        "| held-out loss (nats) | 4.69 | 500 rows, fixed masks |",
        "## Limitations",
    ):
        assert text in card
    assert model_card(FACTS) == card


def test_card_does_not_tell_where_and_who():
    card = model_card(FACTS)
    assert "CANARY" not in card
    assert "/home" not in card
    assert "| wandb.num_tokens | 12 |" in card
    assert "| wandb.api_key | (withheld) |" in card
    assert "| data.paths | a.txt, *.jsonl, b |" in card
    assert "| tokenizer.path | vocab.txt |" in card
    assert "https://host/models/x" in card


@pytest.mark.parametrize("name", ["x\n---\nevil: true", "a: b"])
def test_names_do_not_break_out(name):
    keys = dataclasses.replace(FACTS.card, base_model=name, datasets=name)
    card = model_card(dataclasses.replace(FACTS, family=name, card=keys))
    assert card.split("\n").count("---") == 2
    data = front_matter(card)
    assert data["base_model"] == data["datasets"] == " ".join(name.split())
    assert data["tags"][2] == data["base_model"]


def test_what_is_not_known_is_left_out():
    facts = dataclasses.replace(FACTS, card=CardConfig(), task="detector")
    assert front_matter(model_card(facts)) == {
        "library_name": "transformers",
        "tags": ["plmjax", "detector", "bert"],
    }


def test_numbers_and_lists_in_texts_stay_as_they_are():
    data = {"documents": 10_889, "why": "10,889 lines, most of them short"}
    card = model_card(dataclasses.replace(FACTS, data=data))
    assert "| documents | 10,889 |" in card
    assert "| how documents were found | 10,889 lines, most of them short |" in card


@pytest.mark.parametrize(
    "family, named",
    [
        ("albert", "An ALBERT"),
        ("xlm-roberta", "An XLM-RoBERTa"),
        ("eurobert", "A EuroBERT"),
    ],
)
def test_the_article_of_a_family(family, named):
    card = model_card(dataclasses.replace(FACTS, family=family))
    assert f"{named} model of 5,123,456 parameters, pretrained by" in card


@pytest.mark.parametrize(
    "key, value, code",
    [
        ("license", "Apache 2.0", "apache-2.0"),
        ("language", "English", "eo,en"),
        ("language", "en,", "eo,en"),
    ],
)
def test_values_that_the_hub_would_refuse(key, value, code):
    with pytest.raises(PlmjaxError, match=f"card.{key} is {value!r}.*{code}"):
        CardConfig(**{key: value})
    assert CardConfig(language="eo, en,code").language == "eo, en,code"


def test_the_name_of_a_model_on_the_hub(tmp_path, monkeypatch):
    def write(name, **body):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(body))

    monkeypatch.chdir(tmp_path)
    write("bert-base", model_type="bert")
    write("models/bert-base", model_type="bert")
    write("mine", model_type="bert", plmjax_version="0.1.0")
    write("run", objective={}, task={})
    assert hub_name("bert-base") == hub_name("./bert-base/") == "bert-base"
    assert hub_name("models/bert-base") is None
    assert hub_name("mine") is hub_name("run") is hub_name("nowhere") is None


@pytest.mark.parametrize(
    "task, pipeline, loader",
    [
        ("masked-lm", "fill-mask", "AutoModelForMaskedLM"),
        ("causal-lm", "text-generation", "AutoModelForCausalLM"),
        ("detector", None, "ElectraForPreTraining"),
        ("encoder", "feature-extraction", "AutoModel"),
        ("embeddings", "sentence-similarity", "AutoModel"),
    ],
)
def test_each_kind_of_model_has_its_own_words(task, pipeline, loader):
    facts = dataclasses.replace(FACTS, task=task, family="electra")
    card = model_card(facts)
    assert f"model = {loader}.from_pretrained(" in card
    assert ("pipeline_tag" in card) == (pipeline is not None)
    assert f"pipeline_tag: {pipeline}" in card or pipeline is None
    assert f"- {task}\n" in card
    library = "sentence-transformers" if task == "embeddings" else "transformers"
    assert front_matter(card)["library_name"] == library
    assert ("masked language modelling" in card) == (task == "masked-lm")
    named = model_card(dataclasses.replace(facts, objective="SpanBERT (Joshi 2020)"))
    how = "fine-tuned" if task == "embeddings" else "pretrained"
    assert f"{how} by SpanBERT (Joshi 2020) with plmjax" in named


@pytest.mark.peer
@pytest.mark.parametrize(
    "case, task",
    [
        ("bert", "masked-lm"),
        ("roberta", "masked-lm"),
        ("gpt2", "causal-lm"),
        ("electra", "detector"),
        ("deberta-detector", "detector"),
        ("modernbert-detector", "detector"),
        ("albert-bare", "encoder"),
        ("albert-bare", "embeddings"),
    ],
)
def test_its_lines_of_code_run(tiny, tmp_path, capsys, case, task):
    model = tiny(case, max_positions=64)
    mask = model.tokenizer.specials.mask
    facts = dataclasses.replace(
        FACTS, task=task, family=model.config.family, mask_token=mask
    )
    folder = model.export(tmp_path / "model")
    (code,) = re.findall(r"```python\n(.*?)```", model_card(facts), re.DOTALL)
    exec(code.replace("PATH/TO/THIS/FOLDER", str(folder)), {})
    said = capsys.readouterr().out
    print(said)
    assert said


def test_numbers_with_their_nouns():
    assert counted(1, "step") == "1 step"
    assert [counted(n, "row") for n in (0, 2, 1200)] == [
        "0 rows",
        "2 rows",
        "1,200 rows",
    ]
    assert counted(2, "process", "es") == "2 processes"
