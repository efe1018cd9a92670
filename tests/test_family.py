"""Every kind of model from text to folder and back, by the command line's own words."""

import json
import re

import pytest
from tests_common import TINY, campaign, sentences

from plmjax.cli import main
from plmjax.interop import read_folder

ELECTRA = (
    "--config.objective.kind=electra",
    "--config.model.preset=electra-tiny",
    "--config.model.embedding_width=16",
    "--config.model.layers=1",
    "--config.objective.generator.width_fraction=0.5",
)


@pytest.fixture
def story(tmp_path):
    """A text of paragraphs, a line each, of four sentences."""
    lines = [line.capitalize() for line in sentences(400)]
    path = tmp_path / "story.txt"
    path.write_text("\n".join(" ".join(lines[i : i + 4]) for i in range(0, 400, 4)))
    return path


def pretrain(text, workdir, *more: str) -> int:
    paths = f"--config.data.source.paths={text}"
    # The last word on a key wins, so a test may change any of TINY.
    return main(["pretrain", f"--workdir={workdir}", paths, *TINY, *more])


def scores(workdir) -> dict:
    return json.loads((workdir / "scores.json").read_text())


@pytest.mark.slow
def test_electra_is_trained_exported_by_part_and_detects(corpus, tmp_path, capsys):
    run = tmp_path / "run"
    assert pretrain(corpus, run, *ELECTRA) == 0
    found = scores(run)
    assert found["loss"] == pytest.approx(
        found["generator_loss"] + 50 * found["detector_loss"], rel=1e-5
    )
    generator = read_folder(run / "export" / "generator")
    discriminator = read_folder(run / "export" / "discriminator")
    assert (generator.config.width, discriminator.config.width) == (16, 32)
    assert set(generator.params) == {"encoder", "head"}
    assert set(discriminator.params) == {"encoder", "detector"}
    tables = [m.params["encoder"]["embeddings"] for m in (generator, discriminator)]
    assert (tables[0]["token"] == tables[1]["token"]).all()
    capsys.readouterr()

    alone = tmp_path / "alone"
    export = ["export", f"--workdir={run}", f"--to={alone}", "--part=discriminator"]
    assert main([*export, "--checkpoint=5"]) == 0
    assert set(read_folder(alone).params) == {"encoder", "detector"}
    # One folder is one model, or holds both; a run is no folder.
    assert main(["export", f"--workdir={run}", f"--to={alone}"]) == 2
    assert main([*export[:2], f"--to={run / 'export'}", "--part=generator"]) == 2
    assert main(["export", f"--workdir={run}", f"--to={run}"]) == 2
    assert main(["export", f"--workdir={run}", f"--to={corpus}"]) == 2
    assert "is a file" in capsys.readouterr().err
    assert main([*export[:-1], "--part=teacher"]) == 2
    assert "It has: discriminator, generator." in capsys.readouterr().err

    for model in (run, alone):
        assert main(["detect", "the rows of the list", f"--model={model}"]) == 0
        assert capsys.readouterr().out.count("%") >= 5
    assert main(["fill", "the [MASK] of the list", f"--model={run / 'export'}"]) == 0
    capsys.readouterr()
    assert main(["fill", "the [MASK] of the list", f"--model={alone}"]) == 4
    assert "no vocabulary head" in capsys.readouterr().err
    assert main(["next", "the row.", "the list.", f"--model={run}"]) == 4
    assert "objective.pairs" in capsys.readouterr().err


@pytest.mark.campaign
def test_an_electra_export_is_imported_and_trained_on(corpus, tmp_path, capsys):
    run, again = tmp_path / "run", tmp_path / "again"
    assert pretrain(corpus, run, *ELECTRA) == 0
    assert main(["import", f"--from={run / 'export'}", f"--workdir={again}"]) == 0
    paths = f"--config.data.source.paths={corpus}"
    few = [word for word in TINY if "model" not in word and "tokenizer" not in word]
    assert main(["pretrain", f"--workdir={again}", paths, *few]) == 0
    out = capsys.readouterr().out
    assert "Start weights of the generator" in out and "new:" not in out
    before, after = scores(run), scores(again)
    assert after["loss"] < before["loss"]


@pytest.mark.campaign
def test_two_stages_join_by_init_from(corpus, tmp_path, capsys):
    """A masked language model starts a discriminator and a generator of its size."""
    first, second = tmp_path / "first", tmp_path / "second"
    size = ELECTRA[1:4]
    assert pretrain(corpus, first, *size) == 0
    more = [
        *size,
        "--config.objective.kind=electra",
        "--config.objective.generator.width_fraction=1.0",
        "--config.objective.generator.embedding_width=16",
        "--config.objective.generator_weight=0",
        "--config.objective.tie=none",
        # Else the weight decay would move it.
        "--config.train.optimizer.no_decay=.*/(bias|scale)|.*generator/.*",
        f"--config.train.init_from={first}",
        f"--config.tokenizer.path={first / 'tokenizer'}",
    ]
    assert pretrain(corpus, second, *more) == 0
    out = capsys.readouterr().out
    assert "Start weights of the discriminator" in out and "new: detector" in out
    assert "Start weights of the generator" in out


@pytest.mark.slow
def test_pairs_are_trained_judged_and_exported(story, tmp_path, capsys):
    run = tmp_path / "run"
    assert pretrain(story, run, "--config.objective.pairs=sop") == 0
    out = capsys.readouterr().out
    assert "Sentences end at punctuation" in out and "plmjax next" in out
    found = scores(run)
    total = found["mlm_loss"] + found["pair_loss"]
    assert found["loss"] == pytest.approx(total, rel=1e-5)
    assert "pair" in read_folder(run / "export").params
    for model in (run, run / "export"):
        assert main(["next", "the row.", "the list.", f"--model={model}"]) == 0
        assert "that B follows A" in capsys.readouterr().out
    assert main(["evaluate", f"--workdir={run}", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["pair_loss"] == pytest.approx(found["pair_loss"], rel=1e-4)


def test_pairs_want_documents_of_two_sentences(corpus, tmp_path, capsys):
    assert pretrain(corpus, tmp_path / "run", "--config.objective.pairs=nsp") == 3
    assert "two sentences" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_causal_model_says_what_comes_next(corpus, tmp_path, capsys):
    run = tmp_path / "run"
    more = ["--config.objective.kind=clm", "--config.model.preset=gpt2-tiny"]
    assert pretrain(corpus, run, *more, "--config.model.layers=1") == 0
    # The beginning of a held-out sentence.
    assert re.search(r"  plmjax fill '?\w+", capsys.readouterr().out)
    for model in (run, run / "export"):
        assert main(["fill", "the rows of the", f"--model={model}", "--top=2"]) == 0
        assert capsys.readouterr().out.count("%") == 2
        assert main(["fill", "the [MASK] of", f"--model={model}"]) == 2
        assert "reads one side only" in capsys.readouterr().err


@pytest.mark.slow
def test_a_student_follows_its_teacher(corpus, tmp_path, capsys):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert pretrain(corpus, teacher) == 0
    more = [
        "--config.objective.kind=distill",
        f"--config.objective.teacher={teacher}",
        f"--config.tokenizer.path={teacher / 'tokenizer'}",
        "--config.model.preset=distilbert-tiny",
        "--config.model.layers=1",
    ]
    assert pretrain(corpus, student, *more) == 0
    assert read_folder(student / "export").config.family == "distilbert"
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={student}"]) == 0
    # The teacher is needed for the loss, so its absence is said.
    teacher.rename(tmp_path / "gone")
    assert main(["evaluate", f"--workdir={student}"]) == 2
    assert "teacher" in capsys.readouterr().err
    assert main(["fill", "the [MASK] of", f"--model={student}"]) == 0


FAMILIES = [
    ("albert-tiny", ["--config.model.embedding_width=16"]),
    ("deberta-v3-tiny", []),
    ("distilbert-tiny", []),
    ("xlm-roberta-tiny", ["--config.tokenizer.kind=unigram"]),
]


@pytest.mark.slow
@pytest.mark.parametrize("preset, more", campaign(FAMILIES, FAMILIES[0], FAMILIES[3]))
def test_every_family_trains_and_comes_back(preset, more, corpus, tmp_path, capsys):
    run = tmp_path / "run"
    preset = [f"--config.model.preset={preset}", "--config.model.layers=2"]
    assert pretrain(corpus, run, *preset, *more) == 0
    capsys.readouterr()
    guesses = []
    for model in (run, run / "export"):
        assert main(["fill", "the [MASK] of the list", f"--model={model}"]) == 0
        guesses.append(capsys.readouterr().out)
    assert guesses[0] == guesses[1]


def test_what_cannot_be_exported_is_said_before_and_after(story, tmp_path, capsys):
    run = tmp_path / "run"
    more = ["--config.objective.pairs=nsp", "--config.model.gated=True"]
    assert pretrain(story, run, *more, "--dry_run=shapes") == 0
    assert "only plmjax will read this model: model.gated" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_is_older_than_a_key_goes_on(corpus, tmp_path, capsys):
    """A key that config.json lacks has its default, which is what the run did."""
    run = tmp_path / "run"
    assert pretrain(corpus, run) == 0
    config = json.loads((run / "config.json").read_text())
    for key in ("pairs", "negatives", "short_share", "mlm_weight", "pair_weight"):
        del config["objective"][key]
    (run / "config.json").write_text(json.dumps(config))
    assert pretrain(corpus, run) == 0
    assert "is finished" in capsys.readouterr().out
    assert pretrain(corpus, run, "--config.objective.mlm_weight=2") == 2
    assert "objective.mlm_weight: 1.0 -> 2.0" in capsys.readouterr().err
    # A benchmark leaves the run as it is.
    teacher = run / "teacher.json"
    teacher.write_text(json.dumps({"encoder": {}, "digest": "", "path": ""}))
    assert main(["bench", "train", f"--workdir={run}", "--steps=1"]) == 0
    assert teacher.exists()


@pytest.mark.campaign
def test_a_model_that_sees_no_mask_is_shown_too(corpus, tmp_path, capsys):
    shares = ["--config.objective.mask_share=0", "--config.objective.random_share=1"]
    assert pretrain(corpus, tmp_path / "random", *shares) == 0
    assert "guesses after" in capsys.readouterr().out
    uniform = [
        *ELECTRA[:-1],
        "--config.objective.generator.kind=uniform",
        "--config.objective.variant=replace_mlm",
    ]
    assert pretrain(corpus, tmp_path / "uniform", *uniform) == 0
    assert "guesses after" in capsys.readouterr().out


@pytest.mark.campaign
def test_tables_apart_do_not_start_a_run_that_ties_them(corpus, tmp_path, capsys):
    apart, tied = tmp_path / "apart", tmp_path / "tied"
    assert pretrain(corpus, apart, *ELECTRA, "--config.objective.tie=disentangled") == 0
    start = [
        f"--config.train.init_from={apart}",
        f"--config.tokenizer.path={apart / 'tokenizer'}",
    ]
    assert pretrain(corpus, tied, *ELECTRA, *start) == 4
    assert "generator and discriminator share" in capsys.readouterr().err
    more = [*ELECTRA, *start, "--config.objective.tie=disentangled"]
    assert pretrain(corpus, tied, *more) == 0
