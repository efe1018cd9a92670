"""Labelled texts that the model's vocabulary does not know."""

from types import SimpleNamespace
from typing import Any

import pytest
from tests_common import sentences

from plmjax import Exit, PlmjaxError
from plmjax.data.layout import encode_texts, lay_out, plan_rows
from plmjax.finetune.build import _check_vocabulary
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

TOKENIZER = train_tokenizer(TokenizerConfig(vocab_size=80), sentences(60))


def check(texts: list[str], tokenizer: Any = TOKENIZER) -> list[str]:
    """Checks the texts as those of held_out; returns what is logged."""
    stream = encode_texts(TOKENIZER, texts)
    plan = plan_rows([stream.sizes], TOKENIZER, 32)
    rows = SimpleNamespace(arrays=lay_out([stream], plan, 32, TOKENIZER).arrays)
    examples = tuple(SimpleNamespace(texts=(text,)) for text in texts)
    data: Any = SimpleNamespace(held_out=examples)
    model: Any = SimpleNamespace(tokenizer=tokenizer, name="base")
    logged: list[str] = []
    _check_vocabulary(data, {"held_out": rows}, model, logged.append)  # type: ignore
    return logged


def test_texts_of_another_script_are_refused():
    with pytest.raises(PlmjaxError) as caught:
        check(["дом у воды", "the"])
    assert caught.value.code == Exit.DATA
    text = str(caught.value)
    assert "of the tokens of task.held_out are [UNK] to the tokenizer of base" in text
    assert "'дом'" in text and "--config.model" in text


def test_some_unknown_words_are_named_and_few_are_not():
    (line,) = check([*sentences(1), "_"])
    assert line.startswith("WARNING: ") and "lacks '_'" in line
    assert check([*sentences(60), "_"]) == []


def test_the_end_of_a_text_is_not_unknown():
    # GPT-2 has one special piece for all roles.
    one = SimpleNamespace(unk_id=2, cls_id=2, sep_id=2, special_ids=(2,))
    assert check(["дом у воды"], one) == []
