"""AutoTokenizer reads what we write, and we read what it writes."""

import pytest

from plmjax.tokenizers import Tokenizer, TokenizerConfig, train_tokenizer

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore"),  # transformers' own
]

TEXTS = [
    "The café’s owner—an old sailor—told us about the sea and the ships.",
    "It isn't  in\tits place,\nis it? 東京 2024 Ünïcode",
    "",
    "İstanbul x" + "y" * 120,
]
CONFIGS = [
    TokenizerConfig(vocab_size=110),
    TokenizerConfig(vocab_size=110, lowercase=False),
    TokenizerConfig(vocab_size=110, strip_accents=False),
    TokenizerConfig(kind="bpe", vocab_size=300, lowercase=False),
    TokenizerConfig(kind="bpe", vocab_size=300, lowercase=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("model_type", [None, "bert", "roberta"])
def test_auto_tokenizer_gives_our_ids(config, model_type, tmp_path):
    from transformers import AutoTokenizer

    ours = train_tokenizer(config, TEXTS * 3)
    ours.save(tmp_path, max_length=77)
    if model_type is not None:
        (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        expected = ours.encode_batch([text]).tokens.tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == expected
        framed = [ours.cls_id, *expected, ours.sep_id]
        assert theirs(text)["input_ids"] == framed
    assert theirs.model_max_length == 77
    roles = ["pad", "unk", "cls", "sep", "mask"]
    found = [getattr(theirs, f"{role}_token_id") for role in roles]
    assert found == [getattr(ours, f"{role}_id") for role in roles]
    if config.kind == "wordpiece":
        assert type(theirs).__name__ == "BertTokenizer"
        pair = theirs("old", "sea")
        assert sorted(set(pair["token_type_ids"])) == [0, 1]
    elif not config.lowercase:
        assert type(theirs).__name__ == "RobertaTokenizer"
    prompt = f"The {theirs.mask_token} and the sea"
    assert theirs(prompt, add_special_tokens=False)["input_ids"] == (
        ours.encode_prompt(prompt)
    )
    batch = theirs(["old", "old sea"], padding=True, truncation=True)
    assert len({len(ids) for ids in batch["input_ids"]}) == 1

    theirs.save_pretrained(tmp_path / "theirs")
    back = Tokenizer.load(tmp_path / "theirs")
    for text in TEXTS:
        assert back.encode_batch([text]).tokens.tolist() == (
            ours.encode_batch([text]).tokens.tolist()
        )
    assert back.special_ids == ours.special_ids
