"""The model card tells what it must, and nothing that it must not."""

import dataclasses
import json
import re

import pytest

from plmjax.interop import CardFacts, model_card

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
    language="en",
    licence="apache-2.0",
)


def test_card_tells_what_it_must():
    card = model_card(FACTS)
    head = card.split("---")[1]
    lines = dict(line.split(": ") for line in head.strip().splitlines() if ": " in line)
    assert lines["library_name"] == "transformers"
    assert lines["pipeline_tag"] == "fill-mask"
    assert json.loads(lines["language"]) == "en"
    assert json.loads(lines["license"]) == "apache-2.0"
    for text in (
        "5,123,456 parameters",
        "AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)",
        "docstrings) of the Python packages",
        "| numpy | 2.3.1 | BSD-3-Clause |",
        "| odd\\|name | 1 | unknown |",
        "| counts.documents | 70,000 |",
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
    card = model_card(dataclasses.replace(FACTS, family=name, language=name))
    assert card.split("\n").count("---") == 2


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
        ("bert-detector", "detector"),
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
