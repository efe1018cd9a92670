"""Longer texts: what `plmjax extend` makes of a model, and what it refuses."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetune_common import make_folder, one_device, records, write
from interop.cases import draw
from tests_common import once

from plmjax import PlmjaxError
from plmjax.cli import main
from plmjax.evaluate.model import Model, open_models
from plmjax.interop import export_folder, read_folder
from plmjax.models import PRESETS, EncoderConfig
from plmjax.models.heads import encode
from plmjax.models.positions import frequencies
from plmjax.pretrain.export import imported_layer
from plmjax.pretrain.extend import Extension, extend, grow, plan, stretched
from plmjax.workdir import Workdir

TINY = {"vocab_size": 40, "layers": 1, "width": 16, "heads": 2, "ffn_width": 16}
SHORT = 12  # tokens that the tiny models were trained on


def tiny(family: str = "bert", **more) -> EncoderConfig:
    preset = next(config for config in PRESETS.values() if config.family == family)
    offset = preset.position_offset
    sizes = {**TINY, "max_positions": SHORT + offset, "dtype": "float32", **more}
    return dataclasses.replace(preset, kv_heads=None, **sizes)


def extended(config: EncoderConfig, params: dict, **asked):
    """Returns the config and parameters of an extended model."""
    wanted = Extension(length=40, **asked)
    longer, _ = plan(config, SHORT, wanted, "it")
    model = Model(config, params, None, "it")  # type: ignore[arg-type]
    return longer, grow(model, longer, SHORT, wanted)


def states(config: EncoderConfig, params: dict) -> np.ndarray:
    """The hidden states of a row as long as the tiny models were trained on."""
    tokens = np.random.default_rng(0).integers(5, 40, (1, SHORT))
    rows = (tokens, np.ones_like(tokens), np.arange(SHORT)[None], np.zeros_like(tokens))
    names = ("tokens", "segments", "positions", "types")
    batch = {n: jnp.asarray(x, jnp.int32) for n, x in zip(names, rows, strict=True)}
    quick = {"xla_backend_optimization_level": 0}
    read = jax.jit(encode, static_argnums=(0, 3), compiler_options=quick)
    return np.asarray(read(config, params, batch, None))


def test_a_table_is_repeated_whole_or_interpolated():
    table = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    seven = stretched(table, Extension(length=7))
    assert np.array_equal(seven, table[[0, 1, 2, 0, 1, 2, 0]])
    five = stretched(table, Extension(length=5, positions="interpolate"))
    assert five.dtype == np.float32
    assert np.array_equal(five, [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]])


def test_the_rows_before_the_first_position_stay():
    """RoBERTa's first two are not of the text; those never trained are dropped."""
    config = tiny("roberta", max_positions=SHORT + 7)
    params = draw(config, ("head",))
    longer, grown = extended(config, params)
    before = params["encoder"]["embeddings"]["position"]
    after = grown["encoder"]["embeddings"]["position"]
    assert longer.max_length == 40 and after.shape == (42, 16)
    assert np.array_equal(after[:2], before[:2])
    text = before[2 : 2 + SHORT]
    assert np.array_equal(after[2:], np.concatenate([text, text, text, text[:4]]))
    assert grown["head"] is not params["head"]
    assert np.array_equal(grown["head"]["bias"], params["head"]["bias"])


@pytest.mark.parametrize(
    ("family", "asked"),
    [
        ("bert", {}),
        ("roberta", {"attention": "window", "window": 2 * SHORT}),
        ("eurobert", {"attention": "window", "window": 2 * SHORT}),
    ],
)
def test_short_rows_are_read_as_before(family, asked):
    """A window of twice a row's length shows all of it, to global tokens as to others.

    Unless its projections are copies, the first token reads something else.
    """
    config = tiny(family)
    params = draw(config, ("head",))
    longer, grown = extended(config, params, **asked)
    before, after = states(config, params), states(longer, grown)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
    if family == "roberta":
        assert (longer.family, longer.global_tokens) == ("longformer", "first")


def test_rotations_are_rescaled_from_the_trained_length():
    config = tiny("modernbert", max_positions=64)
    times = 40 / SHORT
    for rope in ("ntk", "yarn"):
        longer, _ = plan(config, SHORT, Extension(length=40, rope=rope), "it")
        assert longer.layer_kinds == config.layer_kinds and longer.max_length == 40
        ratio = frequencies(longer, "global")[0] / frequencies(config, "global")[0]
        # The slowest pair turns as far in the longer row as it did in the short one.
        assert ratio[-1] == pytest.approx(1 / times, rel=1e-5)
        assert ratio[0] == pytest.approx(1)
    # Again: the two factors are one.
    more, _ = plan(longer, 40, Extension(length=80), "it")
    assert (more.rope_scaling, more.max_length) == ("yarn", 80)
    assert more.rope_factor == pytest.approx(80 / SHORT)
    base, _ = plan(config, SHORT, Extension(length=40, rope="250000"), "it")
    assert (base.rope_theta, base.rope_scaling) == (250_000, "none")


REFUSED = [
    ("bert", {"length": SHORT}, "does not extend it, which reads rows of 12"),
    ("deberta-v2", {}, "buckets of distances"),
    ("bert", {"rope": "ntk"}, "--rope=ntk has no effect"),
    ("modernbert", {"positions": "repeat"}, "--positions=repeat has no effect"),
    ("modernbert", {"rope": "9"}, "not above the base"),
    ("modernbert", {"attention": "window"}, "model.layer_kinds="),
    ("albert", {"attention": "window"}, "model.sharing='all'"),
    ("bert", {"attention": "window", "global_tokens": "first"}, "no bert with global"),
]


@pytest.mark.parametrize(("family", "asked", "words"), REFUSED)
def test_what_a_model_cannot_become_is_refused(family, asked, words):
    with pytest.raises(PlmjaxError, match=re.escape(words)):
        plan(tiny(family), SHORT, Extension(**{"length": 40, **asked}), "it")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"attention": "window", "window": 7}, "Set --window=8"),
        ({"attention": "window", "window": 64}, "more than --length=40"),
        ({"length": 10**9}, "more than 1,000,000 tokens"),
        ({"window": 8}, "no effect with --attention=full"),
        ({"global_tokens": "first"}, "no effect with --attention=full"),
        ({"attention": "window", "rope": "ntk"}, "effect with --attention=window"),
        ({"rope": "linear"}, "--rope=linear is not known"),
    ],
)
def test_options_that_fit_no_model_are_refused(asked, words):
    with pytest.raises(PlmjaxError) as error:
        Extension(**{"length": 40, **asked})
    assert words in f"{error.value} {error.value.hint}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return once(tmp_path_factory, "short", lambda path: make_folder(path / "bert"))


def test_an_extended_bert_is_the_start_of_a_run(folder, tmp_path, capsys):
    """With windows, which transformers' BERT lacks, only plmjax reads it."""
    source, run = folder / "bert", tmp_path / "run"
    options = ["extend", f"--from={source}", "--length=64", f"--workdir={run}"]
    assert main([*options, "--attention=window", "--window=16"]) == 0
    out = capsys.readouterr().out
    assert "32 trained ones, repeated to 64" in out and "512 more, 6,642 in" in out
    assert "Only plmjax can read the model: model.layer_kinds=('local',)" in out
    assert f"plmjax pretrain texts/ --workdir={run} --config.train.batch=512" in out
    model = open_models(str(run / "import"))["model"]
    assert (model.encoder.layer_kinds, model.encoder.window) == (("local",), 16)
    assert model.params.keys() == {"encoder", "head", "pair"}
    layer = imported_layer(Workdir(run))
    assert layer["data"] == {"length": 64}
    assert layer["model"]["window"] == 16 and layer["model"]["max_positions"] == 64
    # Nothing is overwritten.
    assert main([*options, "--attention=full"]) == 2
    assert "is not empty" in capsys.readouterr().err
    # What was changed by hand is an error as in any config.
    path = run / "import" / "config.json"
    body = json.loads(path.read_text())
    body["encoder"]["window"] = 7
    for encoder, words in ((body["encoder"], "must be even"), ([], "block of values")):
        path.write_text(json.dumps(body | {"encoder": encoder}))
        with pytest.raises(PlmjaxError, match=words):
            read_folder(run / "import")


def test_full_attention_needs_no_folder_of_our_own(folder, tmp_path):
    lines: list[str] = []
    run = Workdir(tmp_path / "run")
    extend(str(folder / "bert"), run, Extension(length=64), lines.append)
    body = json.loads((run / "import" / "config.json").read_text())
    assert (body["model_type"], body["max_position_embeddings"]) == ("bert", 64)
    assert "4 times the scores of a row of 32" in lines[0]


@pytest.mark.campaign
def test_a_bert_with_windows_is_fine_tuned_and_predicts(folder, tmp_path, capsys):
    start, run = Workdir(tmp_path / "start"), tmp_path / "run"
    asked = Extension(length=64, attention="window", window=16)
    extend(str(folder / "bert"), start, asked, print)
    data = write(tmp_path / "train.jsonl", records("classes", 40))
    keys = {"model": start / "import", "task.train": data, "task.length": 48}
    more = [f"--config.{key}={value}" for key, value in keys.items()]
    options = ["--steps=2", "--config.baselines=False", f"--workdir={run}"]
    with one_device():
        assert main(["finetune", "--config=classes:small", *more, *options]) == 0
        assert "Only plmjax can read it" in capsys.readouterr().out
        assert main(["predict", f"--model={run}", "--text=the rows of a list"]) == 0
    assert "probabilities" in capsys.readouterr().out
    assert open_models(str(run))["model"].encoder.layer_kinds == ("local",)


@pytest.mark.peer
def test_transformers_reads_short_rows_as_before(folder, tmp_path):
    """Its RoBERTa, and the Longformer that it became, with the same first token."""
    import torch
    import transformers

    tokenizer = read_folder(folder / "bert").tokenizer
    size = {"vocab_size": tokenizer.vocab_size, "position_offset": tokenizer.pad_id + 1}
    config = tiny("roberta", **size)
    source, run = tmp_path / "short", Workdir(tmp_path / "run")
    export_folder(source, config, draw(config, ("head",)), tokenizer, "A card.")
    asked = Extension(length=40, attention="window", window=2 * SHORT)
    extend(str(source), run, asked, print)
    tokens = torch.randint(5, 40, (2, SHORT - 1))
    load = transformers.AutoModelForMaskedLM.from_pretrained
    before, after = load(source).eval(), load(run / "import").eval()
    assert type(after).__name__ == "LongformerForMaskedLM"
    first = torch.zeros_like(tokens)
    first[:, 0] = 1
    with torch.no_grad():
        expected = before(tokens).logits
        logits = after(tokens, global_attention_mask=first).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
