"""Every recipe in configs/ is valid and shards; the tiny ones dry-run."""

import dataclasses
import functools
import importlib.util
import inspect
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tests_common import campaign, sentences

from plmjax import PlmjaxError, tree
from plmjax import config as config_lib
from plmjax.cli import main, recipes
from plmjax.experiments import sweep_plan
from plmjax.finetune.config import FinetuneConfig
from plmjax.models import PRESETS
from plmjax.models.config import resolve
from plmjax.objectives import OBJECTIVES, Pieces
from plmjax.pretrain import run as pretrain
from plmjax.pretrain.build import check
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.train.step import init_state
from plmjax.workdir import RunConfig

CONFIGS = Path(__file__).parents[1] / "configs"
# Sweeps are no recipes; tests/experiments/test_plan.py has them.
FILES = sorted([*CONFIGS.glob("pretrain/*.py"), *CONFIGS.glob("distill/*.py")])
FINETUNE = {
    "choices": ("", "swag"),
    "classes": ("", "base", "small"),
    "embeddings": ("", "base", "small"),
    "glue": ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"),
    "squad": ("", "cmrc"),
    "tags": ("", "upos", "xpos"),
    "tinybert_task": ("",),
}
ALBERT = [f"{n}-{v}" for v in ("v1", "v2") for n in ("base", "large", "xlarge")]
# "" is a recipe without an argument, or with its default.
ARGUMENTS = {
    "pretrain/albert": ("tiny", *ALBERT, "xxlarge-v1", "xxlarge-v2"),
    "pretrain/bigbird": ("tiny", "base", "large"),
    "pretrain/bert": ("tiny", "mini", "small", "medium", "base", "large"),
    "pretrain/bert_chinese": ("tiny", "base"),
    "pretrain/bert_mini": ("",),
    "pretrain/deberta_v3": ("tiny", "xsmall", "small", "base", "large"),
    "pretrain/dna": ("tiny", "base"),
    "pretrain/docstrings": ("",),
    "pretrain/electra": ("tiny", "small", "base", "large"),
    "pretrain/gpt2": ("tiny", "small", "medium", "large", "xl"),
    "pretrain/longformer": ("tiny", "base", "large"),
    "pretrain/modern": tuple(
        f"{kind}{size}"
        for kind in ("", "rtd-", "causal-")
        for size in ("tiny", "small", "base")
    ),
    "pretrain/nsp": ("",),
    "pretrain/nystromformer": ("tiny", "512", "1024", "2048", "4096"),
    "pretrain/roberta": ("tiny", "base", "large"),
    "pretrain/spanbert": ("tiny", "base", "large"),
    "pretrain/xlm_roberta": ("tiny", "base", "large"),
    # Their argument is the teacher.
    "distill/distilbert": ("",),
    "distill/docstrings": ("",),
    "distill/minilm": ("",),
    "distill/tinybert": ("",),
}
RECIPES = [
    f"{name}.py:{argument}".rstrip(":")
    for name, arguments in ARGUMENTS.items()
    for argument in arguments
]


SWEEPS = ("albert", "depth_width", "electra_ablation", "nsp", "static_masks")
TAKE_ONE = [
    *(f"finetune/{name}" for name, some in FINETUNE.items() if len(some) > 1),
    *(name for name, some in ARGUMENTS.items() if len(some) > 1),
    *(f"sweeps/{name}" for name in SWEEPS),
]


@pytest.mark.parametrize("name", TAKE_ONE)
def test_an_unknown_argument_is_not_taken_for_another(name):
    path = f"{CONFIGS}/{name}.py:nonsense"
    load = sweep_plan.load if name.startswith("sweeps/") else config_lib.load_file
    with pytest.raises(PlmjaxError, match="argument 'nonsense'. It has") as caught:
        load(path)
    known = FINETUNE.get(Path(name).name) or ARGUMENTS.get(name) or ("small", "gpu")
    assert all(f" {a}," in f"{caught.value.hint[:-1]}," for a in known if a)


@pytest.mark.parametrize(
    "name, argument", [(n, a) for n, some in FINETUNE.items() for a in some]
)
def test_a_recipe_of_fine_tuning_is_valid(name, argument):
    path = f"{CONFIGS}/finetune/{name}.py:{argument}".rstrip(":")
    config_lib.load(FinetuneConfig, path)
    assert {path.stem for path in CONFIGS.glob("finetune/*.py")} == FINETUNE.keys()


IDS = jax.ShapeDtypeStruct((8, 128), np.int32)
BATCH = {name: IDS for name in ("tokens", "segments", "positions", "types")}


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS).with_suffix(""))


def load(recipe: str, overrides=()) -> dict:
    return config_lib.to_dict(
        config_lib.load(RunConfig, f"{CONFIGS}/{recipe}", overrides)
    )


def teacher_of(recipe: str):
    """Returns the encoder that a recipe of configs/distill follows; None elsewhere."""
    if recipe in [f"distill/{n}.py" for n in ("distilbert", "minilm", "tinybert")]:
        return PRESETS["bert-base"]
    if recipe == "distill/docstrings.py":
        built = config_lib.load(RunConfig, base=pretrain.DEFAULT_CONFIG)
        return resolve(built.model, built.tokenizer.vocab_size, 0)
    return None


def test_every_recipe_is_here():
    assert {name_of(file) for file in FILES} == ARGUMENTS.keys()


@functools.cache
def a_mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(MeshConfig("auto", 2, 2))


def checked(recipe: str) -> RunConfig:
    values = load(recipe)
    assert json.loads(json.dumps(values))
    if importlib.util.find_spec("jieba") is None:
        values["tokenizer"]["segmenter"] = "none"
    config = config_lib.build(RunConfig, values)
    check(config, a_mesh())
    return config


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_valid(recipe):
    checked(recipe)


# The smallest and the largest of each file at every change.
ENDS = {
    f"{name}.py:{argument}".rstrip(":")
    for name, arguments in ARGUMENTS.items()
    for argument in (arguments[0], arguments[-1])
}


@pytest.mark.parametrize("recipe", campaign(RECIPES, *ENDS))
def test_a_recipe_builds_its_state_and_shards_it(recipe):
    """Everything but text and compilation: schedule, mesh, optimizer, shapes."""
    config = checked(recipe)
    teacher = teacher_of(recipe)
    size = config.tokenizer.vocab_size if teacher is None else teacher.vocab_size
    encoder = resolve(config.model, size, 1)
    pieces, more = (
        Pieces(4, range(5), (1,) * size),
        () if teacher is None else (teacher,),
    )
    make = functools.partial(OBJECTIVES[config.objective.kind], config.objective)
    make(encoder, pieces, *more)
    if getattr(config.objective, "layers", ()):  # named for as many as the student has
        block = dataclasses.replace(config.objective, layers=())  # type: ignore
        make = functools.partial(OBJECTIVES[block.kind], block)
    optimizer = make_optimizer(config.train.optimizer)

    def sizes(layers: int) -> np.ndarray:
        """Returns the bytes of the state on a device, and of all of it."""
        few = dataclasses.replace(encoder, layers=layers)
        objective = make(few, pieces, *more)
        state = jax.eval_shape(
            lambda batch: init_state(objective, optimizer, 0, batch, True), BATCH
        )
        return np.array(
            [sharding.bytes_per_device(a_mesh(), state), tree.size_in_bytes(state)]
        )

    few = min(encoder.layers, 2)
    found = sizes(few)
    if encoder.layers > few:
        # Further layers are like the first; gpt2-xl has 48 to trace.
        found = found + (sizes(2 * few) - found) * (encoder.layers - few) // few
    # Eight devices hold the state twice (two data shards), and share each copy by four.
    assert found[0] < 0.35 * found[1]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_recipe_opens_with_its_command_and_arguments(file):
    spec = importlib.util.spec_from_file_location("recipe", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = " ".join((module.__doc__ or "").split())
    names = {full: name for name, full in recipes.names("pretrain").items()}
    assert f"--config={names[name_of(file)]}" in text
    arguments = [a for a in ARGUMENTS[name_of(file)] if a]
    assert sorted(arguments) == sorted(getattr(module, "ARGUMENTS", ()))
    if arguments:
        assert "Argument: " in text
        default = inspect.signature(module.get_config).parameters["size"].default
        assert default in arguments and f"{default} (default" in text.replace(
            f"(default {default}", f"{default} (default"
        )


def test_the_written_out_default_is_the_embedded_one():
    written = config_lib.load(RunConfig, str(CONFIGS / "pretrain/docstrings.py"))
    embedded = config_lib.load(RunConfig, base=pretrain.DEFAULT_CONFIG)
    assert written == embedded


CHINESE = ("我们", "今天", "去", "北京", "大学", "学习", "语言", "模型", "天气", "很好")


def documents(chinese: bool) -> list[str]:
    """Returns made-up documents of three sentences."""
    if chinese:
        random = np.random.default_rng(0)
        lines = ["".join(random.permutation(CHINESE)) + "。" for _ in range(300)]
    else:
        lines = [line.capitalize() + " " for line in sentences(300)]
    return ["".join(lines[i : i + 3]).strip() for i in range(0, 300, 3)]


def write_corpus(path: Path, source: dict, chinese: bool) -> None:
    """Writes documents as the source of a recipe expects them."""
    texts = documents(chinese)
    if source["kind"] == "jsonl":
        texts = [json.dumps({"text": text}) for text in texts]
    path.write_text(("\n\n" if source["document"] == "blank" else "\n").join(texts))


def dry_run(recipe: str, tmp_path: Path, *more: str) -> int:
    source, corpus = load(recipe)["data"]["source"], tmp_path / "corpus"
    chinese = "chinese" in recipe
    write_corpus(corpus, source, chinese)
    # Byte-level BPE has 256 pieces to begin with.
    size = 300 if load(recipe)["tokenizer"]["kind"] == "bpe" else 23 if chinese else 90
    return main(
        [
            "pretrain",
            f"--config={CONFIGS}/{recipe}",
            f"--config.data.source.paths={corpus}",
            "--config.data.held_out_percent=10",
            f"--config.tokenizer.vocab_size={size}",
            f"--workdir={tmp_path / 'run'}",
            "--dry_run=shapes",
            *more,
        ]
    )


# At every change one of each tokenizer and of each objective that trains anew.
QUICK = ("albert.py:tiny", "electra.py:tiny", "gpt2.py:tiny")
OTHERS = (
    "bert.py:mini",
    "bert_chinese.py:tiny",
    "bert_mini.py",
    "deberta_v3.py:tiny",
    "nsp.py",
    "nystromformer.py:tiny",
    "roberta.py:tiny",
    "spanbert.py:tiny",
    "xlm_roberta.py:tiny",
)


@pytest.mark.parametrize("recipe", campaign(QUICK + OTHERS, *QUICK, *OTHERS[1:2]))
def test_a_recipe_dry_runs_on_a_small_text(recipe, tmp_path, capsys):
    if "chinese" in recipe:
        pytest.importorskip("jieba")
    status = dry_run(f"pretrain/{recipe}", tmp_path)
    shown, error = capsys.readouterr()
    assert status == 0, error
    assert re.search(r"all +│ +[\d,]+", shown)
    assert ("MASK=" in shown) == ("gpt2" not in recipe)
    assert "nothing was trained" in shown
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.campaign
def test_the_tiny_distillation_dry_runs_beside_its_teacher(tmp_path, capsys):
    corpus, teacher = tmp_path / "corpus", tmp_path / "teacher"
    write_corpus(corpus, {"kind": "text", "document": None}, False)
    text = ["--config.data.source.kind=text", "--config.data.source.document=line"]
    text += [f"--config.data.source.paths={corpus}"]
    short = ["--config.tokenizer.vocab_size=90", "--config.train.steps=1"]
    short += ["--config.data.held_out_percent=10"]
    assert main(["pretrain", f"--workdir={teacher}", *text, *short]) == 0
    recipe = f"distill/docstrings.py:{teacher}"
    assert dry_run(recipe, tmp_path, *text) == 0
    assert "nothing was trained" in capsys.readouterr().out
