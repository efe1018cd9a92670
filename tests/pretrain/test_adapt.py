"""Other vocabularies for trained models: which rows are copied, averaged and drawn."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from finetune_common import make_folder
from interop.cases import draw
from scipy import sparse
from tests_common import once, sentences

from plmjax.baselines.static_vectors import from_tokens
from plmjax.cli import main
from plmjax.evaluate.model import Model, open_models
from plmjax.evaluate.texts import Contender, make_plan, score_texts
from plmjax.interop import export_folder, read_folder
from plmjax.models import PRESETS, EncoderConfig
from plmjax.models.task_heads import init_head
from plmjax.pretrain.adapt import carried, focus, row_weights, sparsemax
from plmjax.pretrain.export import imported_layer
from plmjax.tasks.task import Task
from plmjax.tokenizers import TokenizerConfig, resize, train_tokenizer
from plmjax.tree import flatten
from plmjax.workdir import Workdir

HOME = sentences(200)
AWAY = [text.replace("matrix", "antimatrices") for text in sentences(200, seed=5)]
TINY = {"layers": 1, "width": 16, "heads": 2, "ffn_width": 16, "dtype": "float32"}
TOKENIZER = train_tokenizer(TokenizerConfig(vocab_size=80), HOME)
LARGER = resize.extended(TOKENIZER, resize.words_of(TOKENIZER, AWAY), 30)
NUMBER = LARGER.vocab["antimatrices"]


def model(preset: str, heads=("head",), tokenizer=TOKENIZER, **more) -> Model:
    sizes = {"vocab_size": tokenizer.vocab_size, **TINY, **more}
    config = dataclasses.replace(PRESETS[preset], **sizes)
    return Model(config, draw(config, heads), tokenizer, "it")


def weights(how: str = "mean", tokenizer=LARGER, old=TOKENIZER):
    return row_weights(tokenizer, old, how, tokenizer.encode_batch(AWAY))[0]


def test_rows_are_copied_or_the_mean_of_the_old_pieces():
    """In a factorised table, an own decoder, and the bias; all else stays."""
    albert = model("albert-base-v2", embedding_width=8, groups=1)
    eurobert = model("eurobert-210m", kv_heads=None)
    spelt = [
        TOKENIZER.vocab[p] for p in TOKENIZER.backend.encode("antimatrices").tokens
    ]
    assert spelt[0] == TOKENIZER.cls_id
    spelt = spelt[1:-1]
    for old in (albert, eurobert):
        new = carried(old, LARGER, weights())
        assert new.encoder.vocab_size == LARGER.vocab_size
        before, after = flatten(old.params), flatten(new.params)
        changed = set()
        for name, table in before.items():
            if np.array_equal(table, after[name]):
                continue
            changed.add(name)
            assert np.array_equal(after[name][: len(table)], table)
            mean = table[spelt].astype(float).mean(0)
            np.testing.assert_allclose(after[name][NUMBER], mean, rtol=0, atol=1e-6)
        own = {"head/decoder"} if old is eurobert else {"head/bias"}
        assert changed == {"encoder/embeddings/token", *own}


def test_drawn_rows_are_those_of_an_untrained_model():
    old = model("bert-base")
    new = carried(old, LARGER, weights("draw")).params
    rows = new["encoder"]["embeddings"]["token"][TOKENIZER.vocab_size :]
    assert 0.01 < rows.std() < 0.03 and np.abs(rows.mean()) < 0.01
    assert not new["head"]["bias"][TOKENIZER.vocab_size :].any()


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    x = np.random.default_rng(0).normal(size=(20, 7))
    p = sparsemax(x)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    assert (p >= 0).all() and (p == 0).any()
    np.testing.assert_allclose(sparsemax(np.array([[0.5, 0.3, -1]])), [[0.6, 0.4, 0]])
    # What is positive differs from x by the same number, which is no less elsewhere.
    limit = (x - p).max(1, where=p > 0, initial=-9)
    np.testing.assert_allclose(
        (x - p)[p > 0], np.repeat(limit, (p > 0).sum(1)), atol=1e-6
    )
    assert (x <= limit[:, None] + 1e-6)[p == 0].all()


def test_focus_weights_shared_pieces_by_their_cosines():
    """Three shared pieces, one without a vector; two new ones, one without."""
    plain = sparse.csr_array(np.eye(5, 4, dtype=np.float32)[[0, 1, 2, 3, 3]])
    equal = np.array([True, True, True, False, False])
    vectors = np.array([[2, 0], [0, 3], [0, 0], [3, 4], [0, 0]], np.float32)
    found = focus(plain, equal, vectors).toarray()
    assert np.array_equal(found[[0, 1, 2, 4]], plain.toarray()[[0, 1, 2, 4]])
    # Cosines .6 and .8: both less .2 make 1.
    np.testing.assert_allclose(found[3], [0.4, 0.6, 0, 0], atol=1e-6)


def test_pieces_with_the_same_neighbours_have_similar_vectors():
    """0 X 1 and 2 Y 3, where X is 4 or 5 and Y is 6 or 7; 8 is in no text."""
    random = np.random.default_rng(0)
    middle = random.integers([4, 6], [6, 8], (50, 2))
    ends = np.tile([[0, 2], [1, 3]], (50, 1, 1))
    texts = np.stack([ends[:, 0], middle, ends[:, 1]], axis=-1)
    vectors = from_tokens(texts.ravel(), np.full(100, 3), 9, width=4)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)[:, None]
    cosine = unit @ unit.T
    assert min(cosine[4, 5], cosine[6, 7]) > 0.9
    assert np.abs(cosine[4:6, 6:8]).max() < 0.1 and not cosine[8].any()


def test_a_mean_predicts_better_than_a_drawn_row():
    """By biases alone, log frequencies, an untrained one's 0 takes all probability."""
    old = model("bert-base")
    counts = np.bincount(TOKENIZER.encode_batch(HOME).tokens, minlength=80) + 0.1
    head = {"bias": np.log(counts / counts.sum()).astype(np.float32)}
    head |= {"norm": {n: np.zeros(16, np.float32) for n in ("scale", "bias")}}
    params = old.params | {"head": old.params["head"] | head}
    old = dataclasses.replace(old, params=params)
    models = [old, *(carried(old, LARGER, weights(how)) for how in ("mean", "draw"))]
    contenders = [Contender(str(n), m, 32) for n, m in enumerate(models)]
    records = score_texts(contenders, make_plan(contenders, AWAY[:20]), batch=20)
    _, mean, drawn = (record["bits_per_byte"] for record in records)
    assert mean < drawn - 0.2


def test_positions_move_with_the_id_of_padding():
    bpe = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=270), HOME)
    old = model("roberta-base", tokenizer=bpe, max_positions=34)
    new = carried(old, TOKENIZER, weights(tokenizer=TOKENIZER, old=bpe))
    assert (bpe.pad_id, TOKENIZER.pad_id) == (1, 0)
    assert new.encoder.position_offset == 1 and new.encoder.max_length == 32
    before, after = (m.params["encoder"]["embeddings"] for m in (old, new))
    assert np.array_equal(after["position"][1:], before["position"][2:])
    for role in ("mask_id", "pad_id", "cls_id"):
        ours, theirs = getattr(TOKENIZER, role), getattr(bpe, role)
        assert np.array_equal(after["token"][ours], before["token"][theirs])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def make(path):
        make_folder(path / "bert")
        (path / "away.txt").write_text("\n".join(AWAY))
        (path / "empty.txt").write_text(" \n")
        (path / "chinese.txt").write_text("矩阵的行是向量。\n" * 20)
        order = sorted(TOKENIZER.vocab, key=TOKENIZER.vocab.__getitem__)
        for name, text in (("twice", [*order, "[MASK]"]), ("small", order[:9])):
            (path / name).mkdir()
            (path / name / "vocab.txt").write_text("\n".join(text) + "\n")

    return once(tmp_path_factory, "adapted", make)


def test_a_run_starts_with_the_adapted_model(folder, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["tokenizer", "adapt", f"--model={folder / 'bert'}", "--add=30"]
    options += [f"--text={folder / 'away.txt'}", f"--workdir={run}"]
    assert main(options) == 0
    out = capsys.readouterr().out
    assert "antimatrices = an + " in out and f"--workdir={run}" in out
    layer = imported_layer(Workdir(run))
    found = open_models(str(run / "import"))["model"]
    assert layer["model"]["vocab_size"] == found.tokenizer.vocab_size > 160
    assert layer["data"] == {"length": 32}
    assert found.params.keys() == {"encoder", "head", "pair"}
    assert main(options) == 2 and "is not empty" in capsys.readouterr().err


def test_a_fine_tuned_head_stays(folder, tmp_path, capsys):
    source, to = tmp_path / "tuned", tmp_path / "adapted"
    tokenizer = read_folder(folder / "bert").tokenizer
    config = EncoderConfig(vocab_size=tokenizer.vocab_size, max_positions=32, **TINY)
    params = draw(config, ())
    tuned = init_head(config, "sequence", 2, jax.random.key(0))
    params |= {"sequence": jax.device_get(tuned)}
    task = Task("classes", ("no", "yes"))
    settings = {"kind": "classes", "labels": ["no", "yes"], "length": 32}
    settings = {"plmjax_task.json": json.dumps(settings)}
    export_folder(
        source, config, params, tokenizer, "A card.", task=task, files=settings
    )
    options = ["tokenizer", "adapt", f"--model={source}", f"--to={to}", "--json"]
    assert main([*options, f"--text={folder / 'away.txt'}", "--min_frequency=1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pieces"][1] < report["pieces"][0] == tokenizer.vocab_size
    assert report["copied"]["count"] == report["pieces"][1]
    assert report["text"]["before"]["tokens"] == report["text"]["after"]["tokens"]
    found = read_folder(to)
    assert found.task == task
    before, after = flatten(params["sequence"]), flatten(found.params["sequence"])
    assert before.keys() == after.keys()
    assert all(np.array_equal(leaf, after[name]) for name, leaf in before.items())
    assert main(["predict", f"--model={to}", "--text=the antimatrices"]) == 0


WRONG = [
    (["--add=9", "--keep=9"], "not clear what the vocabulary should become"),
    ([], "no change is given"),
    (["--add=0"], "--add=0 must be at least 1"),
    (["--keep=9"], "less than the special tokens"),
    (["--add=9", "--text={}/empty.txt"], "is empty or only white space"),
    (["--vocabulary={}/small"], "cannot write 100.0% of the words"),
    (["--vocabulary={}/twice"], "the special token [MASK] in two lines"),
    (["--vocabulary={}/nothing"], "does not exist"),
    (["--add=9", "--to={}"], "exists and is not empty"),
    (["--add=9", "--to={}/bert"], "exists and is not empty"),
    (["--add=9", "--to={}/away.txt/x"], "which is a file"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_bad_input_is_refused_before_anything_is_written(
    folder, tmp_path, capsys, options, words
):
    given = [option.format(folder) for option in options]
    usual = [f"--text={folder / 'chinese.txt'}"] * ("empty" not in str(given))
    usual += [f"--to={tmp_path / 'new'}"] * ("--to" not in str(given))
    assert (
        main(["tokenizer", "adapt", f"--model={folder / 'bert'}", *usual, *given]) > 1
    )
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err
    assert not (tmp_path / "new").exists()


@pytest.mark.peer
def test_transformers_loads_the_result_and_scores_old_pieces_as_before(tmp_path):
    import torch
    import transformers

    (tmp_path / "away.txt").write_text("\n".join(AWAY))
    bpe = TokenizerConfig(kind="bpe", vocab_size=290)
    unigram = TokenizerConfig(kind="unigram", vocab_size=80)
    for config, preset in ((bpe, "roberta-base"), (unigram, "albert-base-v2")):
        kind, tokenizer = config.kind, train_tokenizer(config, HOME)
        old = model(preset, tokenizer=tokenizer, max_positions=34, groups=1)
        source, to = tmp_path / kind, tmp_path / f"{kind}-adapted"
        export_folder(source, old.encoder, old.params, tokenizer, "A card.")
        options = [f"--text={tmp_path / 'away.txt'}", "--add=20", f"--to={to}"]
        assert main(["tokenizer", "adapt", f"--model={source}", *options]) == 0
        load = transformers.AutoModelForMaskedLM.from_pretrained
        before, after = load(source).eval(), load(to).eval()
        tokens = torch.randint(5, tokenizer.vocab_size, (2, 12))
        with torch.no_grad():
            expected, logits = before(tokens).logits, after(tokens).logits
        torch.testing.assert_close(logits[..., : tokenizer.vocab_size], expected)
        ours, theirs = read_folder(to), transformers.AutoTokenizer.from_pretrained(to)
        assert theirs.mask_token_id == ours.tokenizer.mask_id
        for text in AWAY[:20]:
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ids == ours.tokenizer.encode_batch([text]).tokens.tolist()
        assert ours.config.vocab_size == after.config.vocab_size > tokenizer.vocab_size
