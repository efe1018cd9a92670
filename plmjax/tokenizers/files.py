"""Reads and writes vocabularies in the file formats of Hugging Face."""

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plmjax import Exit, PlmjaxError
from plmjax.files import did_you_mean
from plmjax.tokenizers import sentencepiece
from plmjax.tokenizers.backends import (
    ALBERT,
    BERT,
    GEMMA,
    GPT2,
    ROBERTA,
    Specials,
    bpe_backend,
    finish,
    wordpiece_backend,
    writes_blanks,
)

if TYPE_CHECKING:
    import tokenizers

# Uncased vocabularies may have a few capitals that lower-casing cannot give: SciBERT's
# has 0.5 % (Greek letters and "TM" of compatibility characters), cased BERT's 29 %.
CASED_SHARE = 0.02
SPECIAL = re.compile(r"\[.+\]|<.+>")  # [MASK], [unused7], <s>
ROLES = [field.name for field in dataclasses.fields(Specials)]

# The usual spellings of special tokens by kind, for those that the settings do not
# name. ALBERT, DeBERTa and XLM-R are unigram.
_SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "spm.model")
_WORDPIECE, _BPE, _UNIGRAM = (BERT,), (ROBERTA, GPT2), (ALBERT, BERT, ROBERTA)


def read(
    path: Path, lowercase: bool, strip_accents: bool | None
) -> "tuple[tokenizers.Tokenizer, Specials, list[str]]":
    """Reads a folder, a tokenizer.json, a vocab.txt or a SentencePiece model.

    Returns the backend, its special tokens, and a line for each guess.

    Raises:
      PlmjaxError: path does not exist, or its vocabulary cannot be used (code 4).
    """
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        names = ["tokenizer.json", "vocab.txt", "vocab.json", *_SENTENCEPIECE]
        paths = [folder / name for name in names if (folder / name).is_file()]
        if not paths:
            raise _bad(f"{path} holds none of {', '.join(names)}.")
        path = paths[0]
    elif not path.is_file():
        raise PlmjaxError(
            f"tokenizer.path={str(path)!r} does not exist (in {Path.cwd()}).",
            hint=f"{did_you_mean(path)}Give a folder, a tokenizer.json, vocab.txt, "
            ".spm or .model file.",
        )
    settings = _settings(folder)
    if path.suffix in (".model", ".spm"):
        return _read_sentencepiece(path, settings)
    if path.suffix == ".txt":
        vocab = _vocab_txt(path)
        specials = _specials(vocab, settings, _WORDPIECE, path)
        cased = _cased_share(vocab)
        notes = []
        if lowercase and cased >= CASED_SHARE and settings.get("do_lower_case") is None:
            lowercase = False
            notes = [
                f"{path.name} is cased: {cased:.0%} of its pieces have capitals, so "
                "text is not lower-cased. If that is not meant, set "
                '"do_lower_case": true in tokenizer_config.json beside it.'
            ]
        options = {
            "do_lower_case": lowercase,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": True,
        } | {key: value for key, value in settings.items() if value is not None}
        backend = wordpiece_backend(
            vocab,
            specials,
            lowercase=options["do_lower_case"],
            strip_accents=options["strip_accents"],
            chinese_characters=options["tokenize_chinese_chars"],
        )
        return backend, specials, notes
    if path.name == "vocab.json":
        vocab = _json(path)
        specials = _specials(vocab, settings, _BPE, path)
        merges = _merges_txt(folder / "merges.txt")
        return bpe_backend(vocab, merges, specials), specials, []
    return *_read_tokenizer_json(path, settings), []


def _read_sentencepiece(path: Path, settings: dict[str, Any]):
    """Reads a SentencePiece model as the class does that the folder names."""
    model = sentencepiece.read_model(path)
    config = path.parent / "config.json"
    body = _json(config) if config.is_file() else {}
    names = {
        "tokenizer_config.json": str(settings.get("tokenizer_class")),
        "config.json": str(body.get("model_type")),
    }
    kind, why = sentencepiece.family(model, names)
    vocab = {text: n for n, (text, _) in enumerate(sentencepiece.numbered(model, kind))}
    specials = _specials(vocab, settings, _UNIGRAM, path)
    cased = _cased_share(vocab) >= CASED_SHARE
    lower, keep = settings.get("do_lower_case"), settings.get("keep_accents")
    if kind == "xlmroberta":
        lower = False  # its class has no such setting
    elif lower is None:
        lower = kind == "albert" and not cased
    strip = kind == "albert" and not (cased if keep is None else keep)
    backend = sentencepiece.backend(
        model, kind, specials, lowercase=lower, strip_accents=strip
    )
    notes = [
        f"{path.name}: the ids are {sentencepiece.IDS[kind]} ({why}); text is "
        f"{'' if lower else 'not '}lower-cased, accents are "
        f"{'dropped' if strip else 'kept'} before the model's own normalisation."
    ]
    if model.kind != "unigram":
        notes.append(
            f"{path.name} holds a {model.kind} model; it is used as a unigram model, "
            "as transformers' classes do."
        )
    return backend, specials, notes


def _read_tokenizer_json(path: Path, settings: dict[str, Any]):
    import tokenizers
    from tokenizers import decoders, models

    text = _text(path)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises no narrower class
        raise _bad(f"{path} is not a tokenizer.json: {error}.") from None
    model = backend.model
    if isinstance(model, models.WordPiece):
        standards = _WORDPIECE
    elif isinstance(model, models.Unigram):
        standards = _UNIGRAM
    elif isinstance(model, models.BPE) and isinstance(
        backend.decoder, decoders.ByteLevel
    ):
        standards = _BPE
    elif writes_blanks(backend):
        standards = (GEMMA,)
    else:
        raise PlmjaxError(
            f"{path} holds a {type(model).__name__} model, neither WordPiece, "
            "byte-level BPE, Gemma's BPE nor unigram.",
            hint="Other kinds are not supported; train one of these instead.",
            code=Exit.MODEL,
        )
    if isinstance(model, models.BPE) and model.dropout:
        raise _bad(f"{path} has BPE dropout: the same text would differ each time.")
    if isinstance(model, models.Unigram):
        _check_unigram(json.loads(text), path)
    vocab = backend.get_vocab(with_added_tokens=True)
    _check_ids(vocab, path)
    specials = _specials(vocab, settings, standards, path)
    # plmjax truncates and pads rows itself; a length set in the file would drop text.
    backend.no_truncation()
    backend.no_padding()
    return finish(backend, specials), specials


def write(
    backend: "tokenizers.Tokenizer",
    specials: Specials,
    directory: Path,
    max_length: int,
    token_types: bool | None,
) -> None:
    """Writes tokenizer.json, its settings and the vocabulary in the older format."""
    from tokenizers import models

    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / "tokenizer.json"), pretty=True)
    # The older format of unigram is SentencePiece's, which the library cannot write.
    if isinstance(backend.model, models.WordPiece):
        _write_vocab_txt(directory, backend.get_vocab(with_added_tokens=False))
    elif not isinstance(backend.model, models.Unigram):
        backend.model.save(str(directory))
    added = backend.get_added_tokens_decoder()
    tokens = {f"{role}_token": getattr(specials, role) for role in ROLES}
    tokens = {key: token for key, token in tokens.items() if token is not None}
    settings = {
        **_class_settings(backend, specials),
        **_inputs(backend, token_types),
        **tokens,
        "added_tokens_decoder": {
            str(number): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for number, token in sorted(added.items())
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    _write_json(directory / "tokenizer_config.json", settings)
    _write_json(directory / "special_tokens_map.json", tokens)


def _write_vocab_txt(directory: Path, vocab: dict[str, int]) -> None:
    """Writes each piece in the line of its id, where the library closes gaps.

    A gap, left by equal lines, repeats the last piece: its last line counts.
    """
    piece_of = {number: piece for piece, number in vocab.items()}
    last = max(piece_of)
    lines = [piece_of.get(number, piece_of[last]) + "\n" for number in range(last + 1)]
    (directory / "vocab.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def _inputs(backend, token_types: bool | None) -> dict[str, Any]:
    """The setting of transformers that names the inputs of the model."""
    from tokenizers import models

    if token_types is None:
        # RoBERTa and GPT-2 use byte-level BPE and have one token type or none.
        token_types = not isinstance(backend.model, models.BPE)
    types = ["token_type_ids"] if token_types else []
    return {"model_input_names": ["input_ids", *types, "attention_mask"]}


def _class_settings(backend, specials: Specials) -> dict[str, Any]:
    """The transformers class that rebuilds exactly this tokenizer, and its arguments.

    BertTokenizer and similar classes take only the vocabulary from tokenizer.json and
    build all else themselves. Other settings need the class that reads the full file;
    so do all unigram tokenizers, as the families' classes use other normalisers.
    """
    from tokenizers import models, normalizers, pre_tokenizers

    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    if (
        isinstance(backend.model, models.WordPiece)
        and backend.model.max_input_chars_per_word == 100
        and isinstance(normalizer, normalizers.BertNormalizer)
        and normalizer.clean_text
        and isinstance(pre_tokenizer, pre_tokenizers.BertPreTokenizer)
    ):
        return {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer.lowercase,
            "strip_accents": normalizer.strip_accents,
            "tokenize_chinese_chars": normalizer.handle_chinese_chars,
        }
    if (
        isinstance(backend.model, models.BPE)
        and normalizer is None
        and isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        and pre_tokenizer.use_regex
    ):
        causal = specials.mask is None
        return {
            "tokenizer_class": "GPT2Tokenizer" if causal else "RobertaTokenizer",
            "add_prefix_space": pre_tokenizer.add_prefix_space,
            "bos_token": specials.cls,
            "eos_token": specials.sep,
        }
    return {"tokenizer_class": "PreTrainedTokenizerFast"}


def _settings(folder: Path) -> dict[str, Any]:
    """The keys of tokenizer_config.json; special_tokens_map.json adds missing ones."""
    names = ["special_tokens_map.json", "tokenizer_config.json"]
    settings: dict[str, Any] = {}
    for path in (folder / name for name in names):
        if path.is_file():
            settings |= _json(path)
    return settings


def _specials(
    vocab: dict[str, int],
    settings: dict[str, Any],
    standards: tuple[Specials, ...],
    path: Path,
) -> Specials:
    """The special tokens that the settings name, else those of a usual spelling.

    Takes the first of `standards` whose tokens are all in the vocabulary.
    """
    given: dict[str, str] = {}
    # Llama's layout, EuroBERT's too, has no cls and sep.
    others = {"cls": "bos_token", "sep": "eos_token"}
    for role in ROLES:
        token = settings.get(f"{role}_token") or settings.get(others.get(role, ""))
        if isinstance(token, dict) and "content" in token:
            token = token["content"]
        if isinstance(token, str):
            given[role] = token
    problems = []
    for standard in standards:
        named: dict[str, str | None] = dataclasses.asdict(standard) | given
        if standards is _BPE and named["unk"] not in vocab:
            named["unk"] = None  # bytes are never unknown
        problems.append(
            [f"{t} ({role})" for role, t in named.items() if t and t not in vocab]
        )
        if not problems[-1]:
            return Specials(**named)  # type: ignore[arg-type]
    raise _bad(f"{path} lacks the special token {', '.join(problems[0])}.")


def _check_unigram(content: dict[str, Any], path: Path) -> None:
    """Raises PlmjaxError unless blanks become "▁" and unknown characters unk."""
    step: dict[str, Any] = content["pre_tokenizer"] or {"type": None}
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    spaces = [one for one in steps if one["type"] == "Metaspace"]
    if not spaces or not all("split" not in one or one["split"] for one in spaces):
        raise _bad(f"{path}: no Metaspace pre-tokenizer splits its words.")
    if content["model"]["unk_id"] is None:
        raise _bad(f"{path}: the unigram model has no piece for unknown characters.")


def _vocab_txt(path: Path) -> dict[str, int]:
    """Reads pieces as transformers does: an id is a line's number, from 0.

    An empty line is a piece that no text gives; of equal lines the last one counts.
    """
    # splitlines() would also split at U+2028, which may be a piece.
    lines = re.split("\r\n|\r|\n", _text(path))
    if not lines[-1]:
        del lines[-1]
    return {piece: number for number, piece in enumerate(lines)}


def _cased_share(vocab: dict[str, int]) -> float:
    """The share of the ordinary pieces that have capitals."""
    ordinary = [piece for piece in vocab if not SPECIAL.fullmatch(piece)]
    capitals = sum(piece != piece.lower() for piece in ordinary)
    return capitals / max(len(ordinary), 1)


def _merges_txt(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise _bad(f"{path}:{number}: {line!r} is not a pair of pieces.")
        merges.append((pair[0], pair[1]))
    return merges


def _check_ids(vocab: dict[str, int], path: Path) -> None:
    piece_of: dict[int, str] = {}
    for piece, number in vocab.items():
        if number in piece_of:
            raise _bad(f"{path}: {piece!r} and {piece_of[number]!r} share id {number}.")
        piece_of[number] = piece


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad(f"{path}: byte {error.start} is not UTF-8.") from None
    except OSError as error:
        raise _bad(f"{path} cannot be read: {error.strerror}.") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise _bad(f"{path}:{error.lineno}: invalid JSON: {error.msg}.") from None
    except RecursionError:
        raise _bad(f"{path}: invalid JSON: nested too deeply.") from None
    if not isinstance(value, dict):
        raise _bad(f"{path} is not a JSON object.")
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _bad(message: str) -> PlmjaxError:
    hint = "Fix the file, or leave tokenizer.path empty to train a vocabulary."
    return PlmjaxError(message, hint=hint, code=Exit.MODEL)
