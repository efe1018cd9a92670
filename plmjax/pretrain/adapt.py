"""Gives a trained model another vocabulary and carries its rows over.

Legend: V pieces, E width of a row, N new pieces, O pieces that both vocabularies have.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from plmjax import Exit, PlmjaxError, tree
from plmjax.baselines.static_vectors import from_tokens
from plmjax.data.sources import SourceConfig, open_source
from plmjax.evaluate.model import (
    Model,
    finished,
    is_finetuned,
    longest_row,
    open_models,
)
from plmjax.files import check_new
from plmjax.interop.config_keys import KEYS
from plmjax.interop.folder import TASK, hub_name
from plmjax.interop.huggingface import export_folder
from plmjax.models.config import with_global_ids
from plmjax.pretrain.export import folders_for, save_start
from plmjax.tokenizers import Encoded, Tokenizer, resize
from plmjax.tokenizers.train import sample_documents
from plmjax.workdir import Workdir

# How the rows of new pieces begin.
NEW = ("mean", "focus", "draw")
_CHANGES = ("vocabulary", "add", "keep", "min_frequency")
_TABLES = ("encoder/embeddings/token", "head/decoder", "head/bias")  # [V, ...]
_SAMPLE_BYTES = 16_000_000  # of the text; 64 MB would need gigabytes for FOCUS
_UNKNOWN = 0.1  # of the words; a vocabulary that cannot write more is refused
_FIRST_PADDING = 64  # the largest padding id before RoBERTa's positions
_SHOWN = 5  # examples in the report
_BLOCK = 512  # new pieces that are compared with all shared ones at once


@dataclasses.dataclass(frozen=True)
class Change:
    """What becomes of a vocabulary: exactly one of the first four, and its new rows.

    `vocabulary` is a folder or file; `add` a number of pieces; `keep` the largest
    number of pieces that stay; `min_frequency` how often they must occur in the text.
    `new` is how rows of new pieces begin: "mean" of those of the pieces that spelt
    them, "focus" (Dobler & de Melo 2023, arXiv:2305.14481) or "draw", as untrained.
    """

    vocabulary: str | None = None
    add: int | None = None
    keep: int | None = None
    min_frequency: int | None = None
    new: str = "mean"

    def __post_init__(self):
        given = [n for n in _CHANGES if getattr(self, n) is not None]
        if len(given) != 1:
            raise PlmjaxError(
                "it is not clear what the vocabulary should become: "
                f"{' and '.join(f'--{n}' for n in given) or 'no change'} is given.",
                hint=f"Give one of {', '.join(f'--{n}' for n in _CHANGES)}.",
            )
        for name in _CHANGES[1:]:
            if (value := getattr(self, name)) is not None and value < 1:
                raise PlmjaxError(f"--{name}={value} must be at least 1.")


def adapt(
    source: str,
    texts: Sequence[str],
    change: Change,
    to: Path | Workdir,
    *,
    log: Callable[[str], Any],
    checkpoint: str = "newest",
) -> dict[str, Any]:
    """Changes the vocabulary of a run's or folder's models; returns a report.

    They are written to the folder `to`, or as the start of a run.

    Raises:
      PlmjaxError: the target exists, the text is empty, or the vocabulary cannot become
        what is asked.
    """
    if isinstance(to, Workdir):
        check_new(to.path, "--workdir")
    else:
        check_new(to)
    models = open_models(source, checkpoint)
    first = next(iter(models.values()))
    old = first.tokenizer
    tokenizer = change.vocabulary and _ready(change.vocabulary, old)
    corpus = open_source(SourceConfig(paths=tuple(texts)))
    sample = sample_documents(corpus.documents(), _SAMPLE_BYTES)
    tokenizer = tokenizer or _changed(old, sample, change, log)
    encoded = [each.encode_batch(sample) for each in (old, tokenizer)]
    text = [
        _figures(*pair, sample) for pair in zip((old, tokenizer), encoded, strict=True)
    ]
    if (unknown := text[1]["unknown_share"]) > _UNKNOWN:
        raise PlmjaxError(
            f"the new vocabulary cannot write {unknown:.1%} of the words of --text.",
            hint="Give one that was trained on this text.",
            code=Exit.DATA,
        )
    weights_VO, equal_V = row_weights(tokenizer, old, change.new, encoded[1])
    adapted = {n: carried(m, tokenizer, weights_VO) for n, m in models.items()}
    sizes = [sum(tree.count(m.params) for m in x.values()) for x in (models, adapted)]
    report = {"pieces": [old.vocab_size, tokenizer.vocab_size], "parameters": sizes}
    report |= {"text": {"before": text[0], "after": text[1]}}
    counts_V = np.bincount(encoded[1].tokens, minlength=tokenizer.vocab_size)
    report |= _rows(tokenizer, old, weights_VO, equal_V, counts_V)
    how = f"Its vocabulary of {old.vocab_size:,} pieces was changed by plmjax."
    length = longest_row(source, first)
    if isinstance(to, Workdir):
        record = {"base_model": hub_name(source), "length": length}
        save_start(to, adapted, record, how, log)
    else:
        _export(source, adapted, folders_for(to, models), how, length)
    return report


def _ready(path: str, old: Tokenizer) -> Tokenizer:
    """Returns the tokenizer of a folder or file, in place of another one.

    Raises:
      PlmjaxError: it cannot be read, or lacks or repeats a special token.
    """
    tokenizer = Tokenizer.load(path)
    specials = tokenizer.specials
    if old.mask_id is not None:
        tokenizer.require_mask()
        others = (specials.pad, specials.unk, specials.cls, specials.sep)
        if specials.mask in others:
            raise _repeated(path, str(specials.mask), "for two roles")
    file = Path(path)
    if file.is_dir() and not (file / "tokenizer.json").is_file():
        file /= "vocab.txt"
    if file.is_file() and file.suffix == ".txt":  # of equal lines the last one counts
        lines = file.read_text(encoding="utf-8").split("\n")
        for token in specials.tokens():
            if lines.count(token) > 1:
                raise _repeated(path, token, "in two lines")
    return tokenizer


def _repeated(path: str, token: str, how: str) -> PlmjaxError:
    return PlmjaxError(
        f"--vocabulary={path} has the special token {token} {how}.",
        hint="Each needs an id of its own.",
        code=Exit.MODEL,
    )


def _changed(
    old: Tokenizer, sample: list[str], change: Change, log: Callable[[str], Any]
) -> Tokenizer:
    words = resize.words_of(old, sample)
    if change.add is not None:
        tokenizer = resize.extended(old, words, change.add)
        if (found := tokenizer.vocab_size - old.vocab_size) < change.add:
            log(f"The text has {found:,} pieces to add, fewer than {change.add:,}.")
    else:
        tokenizer = resize.shrunk(old, words, change.min_frequency or 1, change.keep)
    if tokenizer.vocab == old.vocab:
        raise PlmjaxError(
            f"the text leaves the vocabulary as it is, of {old.vocab_size:,} pieces.",
            hint="Give more text, or another change.",
            code=Exit.DATA,
        )
    return tokenizer


def _figures(
    tokenizer: Tokenizer, encoded: Encoded, sample: list[str]
) -> dict[str, float]:
    """Returns what a tokenizer makes of the text; unknown_share is of its words."""
    words, word = sum(len(text.split()) for text in sample), encoded.word_start.cumsum()
    unknown = np.unique(word[encoded.tokens == tokenizer.unk_id]).size
    return {
        "tokens": len(encoded.tokens),
        "tokens_per_word": len(encoded.tokens) / max(words, 1),
        "unknown_share": unknown / max(int(encoded.word_start.sum()), 1),
    }


# --- rows


def row_weights(
    tokenizer: Tokenizer, old: Tokenizer, new: str, encoded: Encoded
) -> tuple[sparse.csr_array, np.ndarray]:
    """Returns the weights [V, old V] of the old rows in the new ones, and equal pieces.

    `new` is one of NEW, `encoded` the text in the new pieces. Rows sum to 1; those of
    drawn pieces are empty. bool [V] marks the equal pieces.
    """
    ids, equal_V = resize.sources(tokenizer, old)
    kept = [of if new != "draw" or equal_V[n] else of[:0] for n, of in enumerate(ids)]
    sizes = np.array([len(of) for of in kept])
    share = np.repeat(1 / np.maximum(sizes, 1), sizes).astype(np.float32)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    shape = (tokenizer.vocab_size, old.vocab_size)
    weights_VO = sparse.csr_array((share, np.concatenate(kept), ends), shape)
    if new == "focus":
        vectors_VE = from_tokens(encoded.tokens, encoded.lengths, shape[0])
        weights_VO = focus(weights_VO, equal_V, vectors_VE)
    return weights_VO, equal_V


def focus(
    weights_VO: sparse.csr_array, equal_V: np.ndarray, vectors_VE: np.ndarray
) -> sparse.csr_array:
    """Returns weights with those of new pieces by similarity to the shared ones.

    They are the sparsemax (Martins & Astudillo 2016, arXiv:1602.02068) of the cosines
    of their vectors (FOCUS; Dobler & de Melo 2023, arXiv:2305.14481). A new piece
    without a vector, one that the text lacks, keeps its weights.
    """
    norm_V = np.linalg.norm(vectors_VE, axis=1)
    unit_VE = vectors_VE / np.maximum(norm_V, 1e-12)[:, None]
    shared, new = (np.flatnonzero((norm_V > 0) & e) for e in (equal_V, ~equal_V))
    if not len(shared) or not len(new):
        return weights_VO
    blocks = [
        sparse.csr_array(sparsemax(unit_VE[some] @ unit_VE[shared].T))
        for some in np.array_split(new, -(-len(new) // _BLOCK))
    ]
    similar = sparse.vstack(blocks, format="csr") @ weights_VO[shared]
    row_V = np.arange(len(equal_V))
    row_V[new] = len(equal_V) + np.arange(len(new))
    return sparse.csr_array(sparse.vstack([weights_VO, similar]))[row_V]


def sparsemax(x_NO: np.ndarray) -> np.ndarray:
    """Returns the nearest point of the simplex to each row, which has few non-zeros."""
    sorted_NO = -np.sort(-x_NO, axis=1)
    sums_NO = np.cumsum(sorted_NO, axis=1) - 1
    count_O = np.arange(1, x_NO.shape[1] + 1)
    size_N = (sorted_NO * count_O > sums_NO).sum(1)
    limit_N = sums_NO[np.arange(len(x_NO)), size_N - 1] / size_N
    return np.maximum(x_NO - limit_N[:, None], 0).astype(np.float32)


def carried(model: Model, tokenizer: Tokenizer, weights_VO: sparse.csr_array) -> Model:
    """Returns the model with another vocabulary: token table, decoder and its bias.

    Rows without weights are drawn as in an untrained model, their bias is 0. All else
    stays, a fine-tuned head too, but positions counted from the padding's id move.

    Raises:
      PlmjaxError: the padding's id is too large for such positions.
    """
    encoder, params = model.encoder, tree.flatten(model.params)
    drawn = np.flatnonzero(np.diff(weights_VO.indptr) == 0)
    for name in _TABLES:
        if name not in params:
            continue
        table = np.asarray(params[name])[: model.tokenizer.vocab_size]
        rows = np.asarray(weights_VO @ table, np.float32)
        if name != "head/bias":
            random = np.random.default_rng(0)  # equal for tables that are shared
            size = (len(drawn), table.shape[1])
            rows[drawn] = random.normal(scale=encoder.init_std, size=size)
        params[name] = rows
    changed: dict[str, Any] = {"vocab_size": tokenizer.vocab_size, "global_ids": ()}
    offset, pad = encoder.position_offset, tokenizer.pad_id
    if KEYS[encoder.family].offset and pad + 1 != offset:
        if pad >= _FIRST_PADDING:
            raise PlmjaxError(
                f"the padding of the new vocabulary has id {pad:,}, and positions of "
                f"{encoder.family} begin after it.",
                hint="Give a vocabulary that begins with its special tokens.",
                code=Exit.MODEL,
            )
        name = "encoder/embeddings/position"
        table = np.asarray(params[name])
        unused = np.resize(table[:offset], (pad + 1, table.shape[1]))
        params[name] = np.concatenate([unused, table[offset:]])
        changed["max_positions"] = encoder.max_positions + pad + 1 - offset
        changed["position_offset"] = pad + 1
    encoder = dataclasses.replace(encoder, **changed)
    return dataclasses.replace(
        model,
        encoder=with_global_ids(encoder, tokenizer.global_ids),
        params={head: {} for head in model.params} | tree.unflatten(params),
        tokenizer=tokenizer,
    )


def _export(
    source: str,
    models: Mapping[str, Model],
    folders: Mapping[str, Path],
    how: str,
    length: int,
) -> None:
    """Writes models as folders, with the input settings of a fine-tuned one."""
    folder = Path(source)
    task = (finished(folder) if is_finetuned(folder) else folder) / TASK
    files = {TASK: task.read_text(encoding="utf-8")} if task.is_file() else {}
    for name, model in models.items():
        export_folder(
            folders[name],
            model.encoder,
            model.params,
            model.tokenizer,
            f"# {model.name}\n\n{how}\n",
            length=length,
            task=model.task,
            files=files,
        )


# --- the report


def _rows(
    tokenizer: Tokenizer,
    old: Tokenizer,
    weights_VO: sparse.csr_array,
    equal_V: np.ndarray,
    counts_V: np.ndarray,
) -> dict[str, Any]:
    """Returns how many rows were copied, averaged and drawn, with the commonest."""
    piece_of = [{n: p for p, n in t.vocab.items()} for t in (tokenizer, old)]
    filled_V = np.diff(weights_VO.indptr) > 0
    order = np.argsort(-counts_V, kind="stable")
    kinds = {"copied": equal_V, "averaged": filled_V & ~equal_V, "drawn": ~filled_V}
    report: dict[str, Any] = {}
    for kind, chosen_V in kinds.items():
        examples = []
        for number in order[chosen_V[order]][:_SHOWN].tolist():
            row = weights_VO[[number]]
            top = np.argsort(-row.data, kind="stable")[:_SHOWN]
            parts = [
                (piece_of[1][int(row.indices[i])], float(row.data[i])) for i in top
            ]
            more = len(row.data) - len(parts)
            examples.append({"piece": piece_of[0][number], "of": parts, "more": more})
        report[kind] = {"count": int(chosen_V.sum()), "examples": examples}
    used = np.unique(weights_VO[equal_V].indices)
    return report | {"left_out": len(old.vocab) - len(used)}


def lines(report: Mapping[str, Any]) -> list[str]:
    """Returns a report as lines of text."""
    (old, new), (less, more) = report["pieces"], report["parameters"]
    before, after = report["text"]["before"], report["text"]["after"]
    text = [
        f"Vocabulary: {old:,} -> {new:,} pieces; {less:,} -> {more:,} parameters.",
        f"The text: {before['tokens_per_word']:.2f} -> {after['tokens_per_word']:.2f} "
        f"tokens a word, {before['unknown_share']:.2%} -> "
        f"{after['unknown_share']:.2%} of the words unknown.",
    ]
    for kind in ("copied", "averaged", "drawn"):
        some = report[kind]
        shown = [_example(kind, **example) for example in some["examples"]]
        more = f"  e.g. {', '.join(shown)}" if shown else ""
        text.append(f"  {kind:9}{some['count']:>8,}{more}")
    text.append(f"  left out {report['left_out']:>8,}")
    return text


def _example(
    kind: str, piece: str, of: Collection[tuple[str, float]], more: int
) -> str:
    if kind != "averaged":
        return piece
    equal = len({round(weight, 4) for _, weight in of}) == 1
    shown = [name if equal else f"{weight:.2f} {name}" for name, weight in of]
    return f"{piece} = {' + '.join(shown + ['…'] * bool(more))}"
