"""Every recipe in configs/ is valid and dry-runs; large ones without compiling."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tests_common import TINY, sentences

from plmjax import config as config_lib
from plmjax import pretrain, tree
from plmjax.cli import main
from plmjax.models.config import resolve
from plmjax.objectives import OBJECTIVES, Pieces
from plmjax.run import check
from plmjax.train import sharding
from plmjax.train.config import MeshConfig
from plmjax.train.optimizer import make_optimizer
from plmjax.train.step import init_state
from plmjax.train.workdir import RunConfig

CONFIGS = Path(__file__).parents[1] / "configs"
ARGUMENTS = {
    "bert": ("tiny", "mini", "small", "medium", "base", "large"),
    "roberta": ("tiny", "base", "large"),
}
RECIPES = [
    f"{path}:{argument}" if argument else str(path)
    for path in sorted((CONFIGS / "pretrain").glob("*.py"))
    for argument in ARGUMENTS.get(path.stem, ("",))
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.split("pretrain/")[-1])
def test_a_recipe_builds_its_state_and_shards_it(recipe):
    """Everything but text and compilation: schedule, mesh, optimizer, shapes."""
    values = config_lib.load(RunConfig, recipe).to_dict()
    config = config_lib.build(RunConfig, values)
    assert json.loads(json.dumps(values))
    mesh = sharding.make_mesh(MeshConfig("auto", 2, 2))
    check(config, mesh)
    size = config.tokenizer.vocab_size
    encoder = resolve(config.model, size, 1)
    make = OBJECTIVES[config.objective.kind]
    objective = make(config.objective, encoder, Pieces(4, range(5), (1,) * size))
    ids = jax.ShapeDtypeStruct((8, 128), np.int32)
    batch = {name: ids for name in ("tokens", "segments", "positions", "types")}
    optimizer = make_optimizer(config.train.optimizer)
    state = jax.eval_shape(
        lambda batch: init_state(objective, optimizer, 0, batch, True), batch
    )
    used = sharding.bytes_per_device(mesh, state)
    # Eight devices hold the state twice (two data shards), and share each copy by four.
    assert used < 0.35 * tree.size_in_bytes(state)


@pytest.mark.parametrize("recipe", sorted((CONFIGS / "pretrain").glob("*.py")))
def test_a_recipe_opens_with_its_command(recipe):
    text = recipe.read_text()
    assert f"--config=configs/pretrain/{recipe.name}" in text.split('"""')[1]


def test_the_written_out_default_is_the_embedded_one():
    written = config_lib.load(RunConfig, str(CONFIGS / "pretrain/docstrings.py"))
    embedded = config_lib.load(RunConfig, base=pretrain.EMBEDDED)
    assert written.to_dict() == embedded.to_dict()


@pytest.mark.parametrize("recipe", ["bert.py:mini", "roberta.py:tiny"])
def test_a_recipe_dry_runs_on_a_small_text(recipe, tmp_path, capsys):
    kind = "jsonl" if "roberta" in recipe else "text"
    corpus = tmp_path / "corpus"
    lines = sentences(300)
    if kind == "jsonl":
        lines = [json.dumps({"text": line}) for line in lines]
    corpus.write_text("\n\n".join(lines) if kind == "text" else "\n".join(lines))
    arguments = [a for a in TINY if "vocab_size" in a or "held_out" in a]
    if kind == "jsonl":
        arguments = ["--config.tokenizer.vocab_size=300", *arguments[:1]]
    status = main(
        [
            "pretrain",
            f"--config={CONFIGS}/pretrain/{recipe}",
            f"--config.data.source.paths={corpus}",
            f"--workdir={tmp_path / 'run'}",
            "--dry_run",
            *arguments,
        ]
    )
    shown = capsys.readouterr().out
    assert status == 0
    assert re.search(r"all +│ +[\d,]+", shown)
    assert "MASK=" in shown and "nothing was trained" in shown
    assert not (tmp_path / "run" / "checkpoints").exists()
