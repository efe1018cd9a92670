"""Text that would be trained on by mistake is refused before the first step."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from tests_common import WORDS, batch_of, campaign, sentences

from plmjax import Exit, PlmjaxError
from plmjax import config as config_lib
from plmjax.evaluate.examples import masked
from plmjax.models import EncoderConfig
from plmjax.objectives import MLM, MLMConfig, Pieces
from plmjax.pretrain import checks
from plmjax.pretrain.build import build
from plmjax.pretrain.run import DEFAULT_CONFIG
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.workdir import RunConfig, Workdir

ENCODER = EncoderConfig(vocab_size=40, layers=1, width=8, heads=2, max_positions=32)
PIECES = Pieces(4, (0, 1, 2, 3, 4), (3,) * 36)
LENGTH = 32


def objective(unit: Any = "token", **keys) -> MLM:
    return MLM(MLMConfig(unit=unit, **keys), ENCODER, PIECES)


def rows(*words: list[int], tokens: int = LENGTH - 2) -> dict[str, np.ndarray]:
    """Returns a row for each list of words' sizes; 0 is one [UNK]."""
    shape = (len(words), LENGTH)
    none, starts = np.zeros(shape, np.int32), np.zeros(shape, bool)
    batch = batch_of(none, segments=none.copy(), word_start=starts)
    for row, sizes in enumerate(words):
        at = 1
        for size in sizes:
            batch["word_start"][row, at] = True
            end = at + max(size, 1)
            batch["tokens"][row, at:end] = 7 if size else 1
            at = end
        batch["tokens"][row, [0, at]] = 2, 3
        batch["segments"][row, : at + 1] = 1
    return batch


@pytest.mark.parametrize("unit", campaign(["word", "span", "ngram"], "word"))
def test_rows_without_masks_are_those_of_the_objective(unit):
    random = np.random.default_rng(0)
    sizes = [random.integers(3, 9, random.integers(1, 4)).tolist() for _ in range(60)]
    batch = rows([0, 0], [1], [5], [5, 1], [0, 6], *sizes)
    one = objective(unit)
    bare, empty = checks.rows_without_masks(one, batch)
    weights = masked(one, batch)["weights"]
    np.testing.assert_array_equal(bare, ~(weights > 0).any(1))
    assert bare[:5].tolist() == [True, False, True, False, True]
    assert empty.tolist() == [True] + [False] * 64


def test_masks_are_drawn_only_where_words_are_long(monkeypatch):
    monkeypatch.setattr(checks, "masked", None)
    # Of 30 tokens at least four are chosen, of 7 at least one.
    batch = rows([4] * 7, [1] * 30, [1, 6])
    for unit in ("token", "word", "ngram"):
        assert not np.any(checks.rows_without_masks(objective(unit), batch))
    assert checks.rows_without_masks(objective(), rows([0]))[0].all()
    # A share that falls to 10 % leaves room for three.
    with pytest.raises(TypeError):
        checks.rows_without_masks(objective("word", final_probability=0.1), batch)


def test_a_share_of_rows_without_masks_is_named():
    train, held_out = rows([0], [0], [3], [2, 2]), rows([3])
    (problem,) = checks.unmasked(objective(), train, held_out)
    assert "50.0% of the rows (2 of 4) have no mask" in problem.text
    assert "only special pieces such as [UNK]" in problem.text
    assert not problem.refused and not problem.final
    few = rows([0], *[[3]] * 150)
    assert checks.unmasked(objective(), few, held_out) == []


def test_tokens_that_are_never_masked_are_named():
    # 15 % of 22 tokens are three, or four: the words of seven are never chosen.
    batch = rows([7, 7, 7, 1])
    assert checks.never_masked(objective("word"), batch) == 21 / 22
    assert checks.never_masked(objective("word", probability=0.3), batch) == 0
    assert checks.never_masked(objective(), batch) == 0
    assert checks.never_masked(objective("word"), rows([0])) == 0
    (problem,) = checks.unmasked(objective("word"), rows([7, 7, 7, 1]), batch)
    assert "95.5% of the tokens are never masked: their words" in problem.text
    assert not problem.refused and not problem.final


def test_without_any_mask_there_is_nothing_to_learn(monkeypatch):
    monkeypatch.setattr(checks, "masked", lambda *_: {"weights": np.zeros((2, 5))})
    (problem,) = checks.unmasked(objective("word"), rows([9, 9, 9], [20]), rows([1]))
    assert problem.final
    assert "None of 2 rows has a mask: their words are longer than 15%" in problem.text
    assert "--config.objective.unit=token" in problem.text


def test_held_out_text_without_any_mask_is_refused():
    (problem,) = checks.unmasked(objective(), rows([3], [4]), rows([0], [0]))
    assert problem.refused and not problem.final
    assert "No held-out row has a mask" in problem.text


def test_masks_of_weight_0_do_not_matter():
    assert objective().masks_matter
    assert not objective(mlm_weight=0.0, pairs="nsp").masks_matter


# --- of a run


def start(folder, lines: list[str], *overrides: str) -> list[str]:
    """Builds a run on these lines; returns what it logs."""
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n")
    keys = [
        "data.source.kind=text",
        "data.source.document=line",
        f"data.source.paths={folder / 'corpus.txt'}",
        "data.held_out_percent=10",
        "data.length=32",
        "tokenizer.vocab_size=80",
        "model.layers=1",
        "train.steps=2",
    ]
    config = config_lib.load(RunConfig, None, [*keys, *overrides], DEFAULT_CONFIG)
    workdir = Workdir(folder / "run")
    workdir.create()
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    logged: list[str] = []
    build(config, workdir, mesh, logged.append)
    return logged


DNA = ["acgt" * 30 + "acgt"[n % 4] * (n + 1) for n in range(80)]
# Most tokens are unknown, but every row has words.
MIXED = [
    f"{' '.join(WORDS[n % 7 : n % 7 + 4])} {' '.join(DNA[:20])}" for n in range(80)
]


def test_a_run_on_unknown_words_does_not_begin(tmp_path):
    with pytest.raises(PlmjaxError) as caught:
        start(tmp_path, DNA, "tokenizer.vocab_size=20", "data.accept_warnings=True")
    assert caught.value.code == Exit.DATA
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  - 100.0% of the tokens are [UNK] (80 of 80).")
    assert "None of " in lines[2]
    assert lines[3].startswith("  The first row: [CLS] [UNK] [SEP] [CLS] [UNK] [SEP]")
    assert "--yes" not in lines[-1]


def test_what_is_refused_can_be_accepted_and_a_resumed_run_is_not_asked(
    tmp_path, monkeypatch
):
    with pytest.raises(PlmjaxError, match=r"(?s)are \[UNK\].*--yes") as caught:
        start(tmp_path, MIXED)
    assert caught.value.code == Exit.DATA
    logged = start(tmp_path, MIXED, "data.accept_warnings=True")
    assert "found" in "".join(logged)  # the store is not written again
    (block,) = [line for line in logged if line.startswith("WARNING: The text may")]
    assert "tokens are [UNK]" in block and "\n  The first row: [CLS]" in block
    monkeypatch.setattr(Workdir, "begun", True)
    assert start(tmp_path, MIXED) == [logged[-2]]


def test_rows_of_padding_are_named_and_ordinary_text_is_not(tmp_path):
    logged = start(tmp_path, sentences(90))
    assert not any(line.startswith("WARNING: The text") for line in logged)
    single = start(tmp_path, sentences(90), "data.length=256", "data.rows=single")
    (block,) = [line for line in single if line.startswith("WARNING: The text")]
    assert "Rows of 256 tokens are " in block and "data.rows=packed" in block


@pytest.mark.parametrize("rule", ["first", "sentences"])
def test_rows_with_more_global_tokens_than_places_are_refused(tmp_path, rule):
    keys = ("model.layer_kinds=('local',)", "model.window=8")
    keys += (f"model.global_tokens={rule}",)
    with pytest.raises(PlmjaxError, match=r"(?s)of 32 tokens has 5 global.*limit=6"):
        start(tmp_path, sentences(90), *keys, "model.global_limit=1")
    start(tmp_path, sentences(90), *keys)


def test_projections_that_no_token_trains_are_counted(tmp_path):
    keys = "model.preset=longformer-tiny", "model.window=8", "model.width=8"
    logged = start(tmp_path, sentences(90), *keys, "model.heads=2")
    (line,) = [line for line in logged if "global tokens alone" in line]
    assert line.startswith("WARNING: 216 parameters are for global")  # 3 x 9 x 8


def test_records_are_read_as_text_only_with_consent(tmp_path):
    lines = [f'{{"text": "{line}"}}' for line in sentences(90)]
    with pytest.raises(PlmjaxError, match="JSON lines.* --yes reads all as text") as e:
        start(tmp_path, lines)
    assert e.value.code == Exit.DATA
    start(tmp_path, lines, "data.accept_warnings=True")
    (manifest,) = tmp_path.rglob("manifest.json")
    source = json.loads(manifest.read_text())["source"]
    assert (source["kind"], source["lines"]) == ("text", 90)
