"""The export of open weights: its folders, what is in their way, and their cards."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from finetune_common import make_folder, one_device, records, write
from huggingface_hub import ModelCard
from tests_common import TINY

from plmjax import PlmjaxError
from plmjax.cli import main
from plmjax.evaluate.model import Trained
from plmjax.interop import read_folder
from plmjax.models import EncoderConfig
from plmjax.objectives import MLM, Electra, ElectraConfig, MLMConfig, Pieces
from plmjax.objectives.generator import GeneratorConfig
from plmjax.pretrain.export import export_trained, import_folder, imported_layer
from plmjax.tokenizers import TokenizerConfig, train_tokenizer
from plmjax.workdir import RunConfig, Workdir

ENCODER = EncoderConfig(
    vocab_size=40, layers=1, width=8, heads=2, ffn_width=8, max_positions=130
)
HALF = ElectraConfig(generator=GeneratorConfig(width_fraction=0.5))
ONE_MODEL = MLMConfig()
MANIFEST = {
    "source": {"kind": "text", "document": "line"},
    "splits": {"train": {"documents": 10_889, "tokens": 123_456}},
}


@pytest.fixture(scope="module")
def tokenizer():
    words = ["the rows of a matrix are vectors", "a vector has a row of numbers"]
    return train_tokenizer(TokenizerConfig(vocab_size=40, min_frequency=1), words)


@pytest.fixture
def trained(tokenizer):
    """Makes weights of zeros, of an objective."""

    def make(objective=ONE_MODEL, family="bert", **changes) -> Trained:
        encoder = dataclasses.replace(ENCODER, family=family)
        pieces = Pieces(tokenizer.mask_id, (0, 1, 2, 3, 4), (3,) * 36)
        kind = Electra if isinstance(objective, ElectraConfig) else MLM
        made = kind(objective, encoder, pieces)
        batch = dict.fromkeys(
            ("tokens", "segments", "positions", "types"),
            jax.ShapeDtypeStruct((1, 8), "int32"),
        )
        shapes = jax.eval_shape(lambda b: made.init(jax.random.key(0), b), batch)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
        config = RunConfig(objective=objective, **changes)
        return Trained(config, made, params, tokenizer, "mine", 7)

    return make


@pytest.fixture
def export(tmp_path):
    """Exports weights; returns the lines that it prints."""

    def call(trained, to, part=None) -> list[str]:
        lines: list[str] = []
        run = Workdir(tmp_path / "run")
        export_trained(trained, run, MANIFEST, to=to, log=lines.append, part=part)
        return lines

    return call


def test_a_folder_with_other_things_stays_as_it_is(trained, export, tmp_path):
    to = tmp_path / "to"
    (to / "photos").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c.txt"):
        (to / name).write_text("mine")
    before = sorted(to.rglob("*"))
    for weights in (trained(), trained(HALF, "electra")):
        with pytest.raises(PlmjaxError, match=r"a.txt, b.txt, c.txt and 1 more"):
            export(weights, to)
        assert sorted(to.rglob("*")) == before


@pytest.mark.parametrize(
    "verb", ["pretrain", pytest.param("finetune", marks=pytest.mark.slow)]
)
def test_a_run_whose_export_has_no_room_does_not_begin(verb, corpus, tmp_path, capsys):
    """It would be refused after the last step."""
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "export" / "notes.txt").write_text("mine")
    more = [*TINY, f"--config.data.source.paths={corpus}"]
    if verb == "finetune":
        data = write(tmp_path / "data.jsonl", records("classes", 40))
        more = [f"--config.task.train={data}", "--config.task.length=32"]
        more.append(f"--config.model={make_folder(tmp_path / 'model')}")
    with one_device():
        assert main([verb, f"--workdir={run}", *more]) == 2
    assert "export holds notes.txt, which plmjax" in capsys.readouterr().err
    assert not (run / "config.json").exists()


def test_no_part_is_written_if_one_has_no_room(trained, export, tmp_path):
    to = tmp_path / "to"
    (to / "generator").mkdir(parents=True)
    (to / "generator" / "notes.txt").write_text("mine")
    with pytest.raises(PlmjaxError, match="generator holds notes.txt"):
        export(trained(HALF, "electra"), to)
    assert [path.name for path in to.rglob("*.*")] == ["notes.txt"]


def test_what_transformers_cannot_express_only_plmjax_reads(trained, export, tmp_path):
    """The generator of a BERT has the discriminator's wider embeddings."""
    to = tmp_path / "to"
    assert export(trained(HALF, "electra"), to) == [
        f"Exported step 7 to {to / 'discriminator'}.",
        f"Exported step 7 to {to / 'generator'}.",
    ]
    run = trained(HALF)
    *lines, last = export(run, to)
    assert lines[1] == f"Exported step 7 to {to / 'generator'}."
    assert "Only plmjax can read it: model.embedding_width=8 cannot" in last
    assert read_folder(to / "discriminator").params.keys() == {"encoder", "detector"}
    found, model = read_folder(to / "generator"), run.models()["generator"]
    assert found.config == model.encoder
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
    card = ModelCard.load(to / "generator" / "README.md")
    assert card.data.to_dict()["library_name"] == "plmjax"
    assert "transformers import" not in card.text
    assert 'plmjax fill "The [MASK] of a matrix."' in card.text


def test_a_card_has_the_counts_and_what_the_config_sets(trained, export, tmp_path):
    keys = {"language": "eo", "license": "mit", "base_model": "google/x"}
    config = dataclasses.replace(RunConfig().card, **keys)
    export(trained(card=config), tmp_path / "to")
    card = ModelCard.load(tmp_path / "to" / "README.md")
    assert {**keys, "pipeline_tag": "fill-mask"}.items() <= card.data.to_dict().items()
    assert "| train documents | 10,889 |" in card.text
    assert "with plmjax" in card.text and "Its base model is google/x." in card.text
    assert "card." not in card.text


def test_an_import_keeps_the_name_of_its_model(trained, export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "bert-base"
    export(trained(), source)
    lines: list[str] = []
    imported = Workdir(tmp_path / "own")
    import_folder(source.relative_to(tmp_path), imported, lines.append)
    assert imported_layer(imported)["card"] == {"base_model": None}
    # As others write it.
    body = json.loads((source / "config.json").read_text())
    del body["plmjax_version"]
    (source / "config.json").write_text(json.dumps(body))
    imported = Workdir(tmp_path / "theirs")
    import_folder(source.relative_to(tmp_path), imported, lines.append)
    assert imported_layer(imported)["card"] == {"base_model": "bert-base"}


def test_a_run_is_no_folder_to_import(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"objective": {}}')
    with pytest.raises(PlmjaxError, match="run is a run's workdir.*run/export, or"):
        import_folder(tmp_path / "run", Workdir(tmp_path / "new"), print)
    assert not (tmp_path / "new").exists()
