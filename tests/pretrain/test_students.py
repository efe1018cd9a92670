"""Teachers and students: start weights, vocabularies, comparison, and a whole run."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests_common import TINY, batch_of, run_cli

from plmjax import PlmjaxError, tree
from plmjax import config as config_lib
from plmjax.evaluate import model as model_lib
from plmjax.evaluate.model import Model, open_model
from plmjax.models import PRESETS, EncoderConfig, heads
from plmjax.models.config import resolve
from plmjax.objectives import Distill, DistillConfig, Pieces
from plmjax.pretrain import students, teachers
from plmjax.workdir import RunConfig, Workdir

TEACHER = EncoderConfig(
    vocab_size=40, layers=5, width=16, heads=2, ffn_width=24, max_positions=24
)
STUDENT = dataclasses.replace(TEACHER, family="distilbert", layers=3, token_types=0)
CONFIG = DistillConfig(teacher="somewhere")


def make_batch(rows: int = 4, length: int = 16) -> dict:
    tokens = np.random.default_rng(0).integers(5, 40, (rows, length)).astype(np.int32)
    return batch_of(tokens)


def model(config: EncoderConfig, seed: int) -> dict:
    params = heads.init_model(config, jax.random.key(seed), make_batch(), ("head",))
    # Biases and scales start alike in every layer: copies must show.
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x) + random.standard_normal(x.shape).astype(np.float32),
        params,
    )


@pytest.mark.parametrize("layers", [(), (4, 1, 0)])
def test_a_student_starts_with_exactly_the_chosen_layers(layers):
    config = dataclasses.replace(CONFIG, layers=layers)
    theirs, fresh = model(TEACHER, 1), model(STUDENT, 2)
    frozen = {"teacher": theirs}
    ours = students.start(config, STUDENT, fresh, TEACHER, frozen)
    assert not tree.differences(fresh, ours)
    expected = {
        f"layer_{i}": theirs["encoder"][f"layer_{j}"]
        for i, j in enumerate(layers or (0, 2, 4))
    }
    embeddings = dict(theirs["encoder"]["embeddings"])
    del embeddings["type"]
    expected["embeddings"] = embeddings
    jax.tree.map(np.testing.assert_array_equal, ours["encoder"], expected)
    jax.tree.map(np.testing.assert_array_equal, ours["head"], theirs["head"])


def test_a_student_may_start_from_a_teacher_that_shares_its_layers():
    """Each layer is what the teacher's layer of that number uses."""
    shared = dataclasses.replace(TEACHER, layers=4, sharing="ffn", groups=2)
    config = dataclasses.replace(CONFIG, layers=(3, 0, 1))
    theirs = model(shared, 1)
    ours = students.start(
        config, STUDENT, model(STUDENT, 2), shared, {"teacher": theirs}
    )
    first = ours["encoder"]["layer_0"]
    np.testing.assert_array_equal(
        first["ffn"]["up"]["kernel"],
        theirs["encoder"]["layer_1"]["ffn"]["up"]["kernel"],
    )
    np.testing.assert_array_equal(
        first["attention"]["query"]["kernel"],
        theirs["encoder"]["layer_3"]["attention"]["query"]["kernel"],
    )


def test_a_student_of_local_attention_starts_from_a_teacher_of_full_attention():
    local = {"layers": 1, "layer_kinds": ("local",), "window": 4}
    long = {"family": "longformer", "global_tokens": "first", "token_types": 2}
    blocks = {"layers": 1, "attention": "blocks", "block": 1, "random_blocks": 1}
    theirs = model(TEACHER, 1)
    layer = theirs["encoder"][f"layer_{TEACHER.layers - 1}"]
    for changes in (local | long, blocks):
        encoder = dataclasses.replace(STUDENT, **changes)
        Distill(CONFIG, encoder, Pieces(4, (0,), (1,) * 8), TEACHER)
        fresh = model(encoder, 2)
        ours = students.start(CONFIG, encoder, fresh, TEACHER, {"teacher": theirs})
        ours = ours["encoder"]["layer_0"]["attention"]
        for name, block in ours.items():
            expected = layer["attention"][name.removeprefix("global_")]["kernel"]
            np.testing.assert_array_equal(block["kernel"], expected)
        assert ("global_key" in ours) == ("layer_kinds" in changes)


def tokenizer(pieces, kind="wordpiece"):
    """What of a tokenizer alignment reads; special tokens first."""
    vocab = {piece: number for number, piece in enumerate(pieces)}
    roles = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
    return SimpleNamespace(
        vocab=vocab,
        kind=kind,
        vocabulary_digest=f"{kind} {vocab}",
        vocab_size=len(vocab),
        special_ids=tuple(range(5)),
        **{role: number for number, role in enumerate(roles)},
    )


OURS = tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "cat"])
THEIRS = tokenizer(["<pad>", "<unk>", "<s>", "</s>", "<mask>", "##s", "dog", "the"])


def test_pieces_meet_by_spelling_and_special_tokens_by_role():
    found = teachers.align(OURS, THEIRS, 9)  # type: ignore
    assert found["ids"].tolist() == [0, 1, 2, 3, 4, 7, 5, 4, 4]
    assert found["known"].tolist() == [True] * 7 + [False] * 2


def test_an_aligned_start_takes_the_known_pieces():
    config = dataclasses.replace(CONFIG, align="strings")
    sizes = [dataclasses.replace(c, vocab_size=8) for c in (STUDENT, TEACHER)]
    fresh, theirs = model(sizes[0], 2), model(sizes[1], 1)
    frozen = {"teacher": theirs, "pieces": teachers.align(OURS, THEIRS, 8)}  # type: ignore
    ours = students.start(config, sizes[0], fresh, sizes[1], frozen)
    for get in (heads.token_table, lambda p: p["head"]["bias"]):
        np.testing.assert_array_equal(get(ours)[5:7], get(theirs)[[7, 5]])
        np.testing.assert_array_equal(get(ours)[7], get(fresh)[7])


def check(student, teacher, **more):
    config = RunConfig(objective=dataclasses.replace(CONFIG, **more))
    model = Model(TEACHER, {}, teacher, "teacher")
    return teachers.check_vocabulary(config, student, model)


def test_vocabularies_are_compared():
    assert check(OURS, OURS) == []
    with pytest.raises(PlmjaxError, match="is not that of its teacher") as caught:
        check(OURS, THEIRS)
    assert "objective.align=strings" in str(caught.value.hint)
    (line,) = check(OURS, THEIRS, align="strings")
    assert "7 of the student's 8 pieces" in line
    foreign = tokenizer([*OURS.vocab][:5] + [f"p{i}" for i in range(9)])
    with pytest.raises(PlmjaxError, match=r"knows only 5 of the student's 14 pieces"):
        check(foreign, THEIRS, align="strings")
    other = tokenizer([*"abcdefgh"], kind="bpe")
    with pytest.raises(PlmjaxError, match="pieces of one kind"):
        check(OURS, other, align="strings")
    far = tokenizer([*list(OURS.vocab)[:5], *(f"w{i}" for i in range(20))])
    with pytest.raises(PlmjaxError, match=r"knows only 5 of the student's 25 .* \(20%"):
        check(far, OURS, align="strings")


@pytest.mark.slow
def test_a_comparison_of_a_model_with_itself_and_with_a_half():
    still = dataclasses.replace(TEACHER, layers=2)
    half = dataclasses.replace(STUDENT, layers=1)
    theirs = model(still, 1)
    teacher = Model(still, theirs, None, "teacher")  # type: ignore
    objective = Distill(
        dataclasses.replace(CONFIG, start="fresh"),
        half,
        Pieces(4, (0, 1, 2, 3, 4), (1,) * 40),
        still,
    )
    batches = [make_batch(64)]  # enough that some of the guesses are right
    same = students.compare(teacher, teacher, batches, objective)
    assert same["kept"] == 1 and same["smaller"] == 0
    assert same["student_loss"] == same["teacher_loss"]
    student = Model(half, model(half, 2), None, "student")  # type: ignore
    found = students.compare(teacher, student, batches, objective)
    assert found["student_parameters"] == tree.count(student.params)
    assert 0 < found["smaller"] < 1 and found["faster"] > -1
    assert found["student_loss"] != found["teacher_loss"]
    told = "\n".join(students.lines(found))
    assert "DistilBERT: 40%" in told and "97%" in told and "60%" in told


def test_digests_tell_weights_apart():
    teacher = Model(TEACHER, model(TEACHER, 1), Vocabulary(), "teacher")  # type: ignore
    first = teachers.digest(teacher)
    params = jax.tree.map(jnp.asarray, teacher.params)
    assert first == teachers.digest(dataclasses.replace(teacher, params=params))
    # What it computes in may change from start to start; what it computes, not.
    half = dataclasses.replace(TEACHER, dtype="bfloat16")
    assert first == teachers.digest(dataclasses.replace(teacher, encoder=half))
    other = dataclasses.replace(TEACHER, norm_eps=1e-5)
    assert first != teachers.digest(dataclasses.replace(teacher, encoder=other))
    teacher.params["head"]["bias"][3] += 1e-6
    assert teachers.digest(teacher) != first


class Vocabulary:
    """Stands for a Tokenizer."""

    vocabulary_digest = "a"


@pytest.fixture
def taught(tmp_path, monkeypatch):
    """A config with a teacher, whose files are made up, and an empty workdir."""
    (tmp_path / "teacher").mkdir()
    params = model(TEACHER, 1)
    opened = Model(TEACHER, params, OURS, "teacher")  # type: ignore
    opened = dataclasses.replace(opened, encoder=resized(TEACHER, len(OURS.vocab)))
    monkeypatch.setattr(teachers, "open_model", lambda path: opened)
    values = {
        "data": {"length": 16},
        "tokenizer": {"path": "some"},
        "model": {"preset": "distilbert-tiny", "layers": 3} | SIZES,
        "objective": {"kind": "distill", "teacher": str(tmp_path / "teacher")},
    }
    return values, Workdir(tmp_path / "run")


SIZES = {"width": 16, "heads": 2, "ffn_width": 24, "max_positions": 24}


def resized(config: EncoderConfig, vocabulary: int) -> EncoderConfig:
    return dataclasses.replace(config, vocab_size=vocabulary)


def loaded(values: dict, workdir: Workdir, *overrides: str):
    config = config_lib.load(RunConfig, None, overrides, values)
    teacher = teachers.load(config, workdir)
    teachers.record(config, workdir, teacher)
    return teacher


def test_a_run_notes_its_teacher_and_holds_on_to_it(taught, monkeypatch):
    values, workdir = taught
    workdir.create()
    teacher = loaded(values, workdir)
    assert teacher is not None and teacher.params.keys() == {"encoder", "head"}
    noted = workdir.read("teacher.json")
    assert noted == {
        "encoder": json.loads(json.dumps(dataclasses.asdict(teacher.encoder))),
        "digest": teachers.digest(teacher),
        "path": values["objective"]["teacher"],
    }
    assert workdir.teacher() == teacher.encoder
    cast = loaded(values, workdir, "objective.teacher_dtype=bfloat16")
    assert cast is not None and cast.encoder.dtype == "bfloat16"
    # Once there is a checkpoint, another teacher is refused, and nothing overwritten.
    monkeypatch.setattr(Workdir, "begun", True)
    assert loaded(values, workdir) is not None
    teacher.params["head"]["bias"][0] += 1
    with pytest.raises(PlmjaxError, match="is not the one"):
        loaded(values, workdir)
    assert workdir.read("teacher.json")["digest"] == noted["digest"]


def test_a_run_without_a_teacher_forgets_one(taught):
    values, workdir = taught
    workdir.create()
    loaded(values, workdir)
    assert loaded({}, workdir) is None and workdir.teacher() is None


@pytest.mark.parametrize(
    "override, message",
    [
        ("tokenizer.path=none", "trains a new tokenizer"),
        ("objective.teacher=none", "has no teacher"),
        ("objective.teacher=/nowhere", "is not a folder"),
        ("objective.layers=(0, 1, 9)", "numbers from 0 to 4"),
        ("train.init_from=x", "both set the student"),
        ("model.width=48", r"model.width=48 \(teacher: 16\)"),
        ("data.length=64", "24 positions of the teacher"),
    ],
)
def test_bad_settings_end_before_any_text_is_read(taught, override, message):
    with pytest.raises(PlmjaxError, match=message):
        loaded(*taught, override)


def test_a_teacher_that_mixes_documents_refuses_packed_rows(taught, monkeypatch):
    values, workdir = taught
    teacher = teachers.open_model(None)
    mixing = dataclasses.replace(teacher.encoder, attention="nystrom", landmarks=4)
    teacher = dataclasses.replace(teacher, encoder=mixing)
    monkeypatch.setattr(teachers, "open_model", lambda path: teacher)
    workdir.create()
    with pytest.raises(PlmjaxError, match="teacher's model.attention='nystrom' mixes"):
        loaded(values, workdir)
    loaded(values, workdir, "data.rows=single", "objective.start=fresh")


def test_a_teacher_without_a_vocabulary_head_is_refused(taught, monkeypatch):
    values, workdir = taught
    bare = Model(TEACHER, {"encoder": {}}, OURS, "bare")  # type: ignore
    monkeypatch.setattr(teachers, "open_model", open_model)
    monkeypatch.setattr(model_lib, "open_models", lambda *_: {"model": bare})
    with pytest.raises(PlmjaxError, match="no vocabulary head"):
        loaded(values, workdir)


RECIPES = Path(__file__).parents[2] / "configs" / "distill"
# The teacher that a recipe is for, and the student's parameters with its head.
BERT = PRESETS["bert-base"]
MINI = dataclasses.replace(PRESETS["bert-tiny"], width=256, heads=4, ffn_width=1024)
EXPECTED = {"distilbert": (BERT, 66_985_530), "docstrings": (MINI, 8_831_802)}
# The published encoders of 22.7M and 14.35M without their poolers, with our head; the
# projection to 768, too, for hidden states.
EXPECTED |= {"minilm": (BERT, 22_565_376 + 179_130)}
EXPECTED |= {"tinybert": (BERT, 14_252_592 + 128_802 + 312 * 768)}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.py")), ids=lambda p: p.stem)
def test_a_recipe_fits_its_teacher(recipe):
    """The student of each recipe, started from the teacher that it names."""
    assert f"{recipe.stem}" in recipe.read_text().partition("--config=")[2]
    values = config_lib.to_dict(config_lib.load(RunConfig, str(recipe)))
    config = config_lib.build(RunConfig, values)
    teacher, count = EXPECTED[recipe.stem]
    encoder = resolve(config.model, teacher.vocab_size, 0)
    pieces = Pieces(4, (0, 1, 2, 3, 4), (1,) * teacher.vocab_size)
    assert isinstance(config.objective, DistillConfig)
    objective = Distill(config.objective, encoder, pieces, teacher)
    params = jax.eval_shape(objective.init, jax.random.key(0), make_batch())
    assert tree.count(params) == count


@pytest.mark.campaign
@pytest.mark.timeout(600)
def test_a_run_distils_resumes_and_is_evaluated(tmp_path, corpus):
    shared = [*TINY, f"--config.data.source.paths={corpus}"]
    teacher, run = tmp_path / "teacher", tmp_path / "student"
    found = run_cli("pretrain", f"--workdir={teacher}", *shared)
    assert found.returncode == 0, found.stderr
    arguments = [
        "pretrain",
        f"--workdir={run}",
        *shared,
        f"--config.tokenizer.path={teacher / 'tokenizer'}",
        "--config.objective.kind=distill",
        f"--config.objective.teacher={teacher}",
        "--config.model.layers=1",
    ]
    found = run_cli(*arguments)
    assert found.returncode == 0, found.stderr
    scores = json.loads((run / "scores.json").read_text())
    total = 5 * scores["soft_loss"] + 2 * scores["mlm_loss"] + scores["cosine_loss"]
    np.testing.assert_allclose(scores["loss"], total, rtol=1e-5)
    found = run_cli("evaluate", f"--workdir={run}", "--json")
    again = json.loads(found.stdout.splitlines()[-1])
    np.testing.assert_allclose(again["loss"], scores["loss"], rtol=1e-5)
    found = run_cli(*arguments, "--config.train.steps=12")
    assert found.returncode == 0 and "Going on from step 10" in found.stdout
