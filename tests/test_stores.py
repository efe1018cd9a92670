"""Every verb that opens a token store verifies all of it first, as `pretrain` does."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tests_common import sentences

import ours
import plmjax
from plmjax import Exit, PlmjaxError, cli
from plmjax import config as config_lib
from plmjax.checkpoint.checkpoints import Checkpoints
from plmjax.files import write_json
from plmjax.pretrain.build import prepare_data
from plmjax.pretrain.run import DEFAULT_CONFIG
from plmjax.train.job import initialise
from plmjax.workdir import RunConfig, Workdir, encoder_config, make_objective
from sides import Spec

OPTIONS = (
    "data.source.kind=text",
    "data.source.document=line",
    "data.length=16",
    "data.held_out_percent=10",
    "tokenizer.vocab_size=80",
    "model.layers=1",
    "model.width=8",
    "model.heads=1",
    "model.ffn_width=8",
    "model.max_positions=16",
    "train.batch=8",
    "train.steps=2",
    "train.tensorboard=False",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(overrides, workdir) of a run that stands at its first step."""
    root = tmp_path_factory.mktemp("stores")
    corpus = root / "corpus.txt"
    corpus.write_text("\n".join(sentences(60)) + "\n")
    overrides = [*OPTIONS, f"data.source.paths={corpus}", "data.sentences=punctuation"]
    config = config_lib.load(RunConfig, None, overrides, DEFAULT_CONFIG)
    workdir = Workdir(root / "a")
    workdir.create()
    tokenizer, store = prepare_data(config, workdir, lambda _: None, lambda _: None)
    write_json(workdir / "config.json", config_lib.to_dict(config))
    objective = make_objective(config, encoder_config(config, tokenizer), tokenizer)
    ids = np.zeros((1, 8), np.int32)
    batch = dict.fromkeys(("tokens", "segments", "positions", "types"), ids)
    state = jax.jit(initialise(objective, config.train))(batch)
    with Checkpoints(workdir.checkpoints) as checkpoints:
        meta = {"loss": 1.0, "store": store.key, "tokenizer": tokenizer.digest}
        checkpoints.save(1, state, meta)
        checkpoints.wait()
    return overrides, workdir.path


def of_cli(*arguments: str):
    """Returns (workdir, overrides) -> the code with which a verb leaves."""

    def run(workdir: Path, overrides: list[str]) -> int:
        config = [f"--config.{one}" for one in overrides]
        given = {"WORKDIR": [f"--workdir={workdir}"], "CONFIG": config}
        return cli.main([word for a in arguments for word in given.get(a, [a])])

    return run


def peer_side(workdir: Path, _) -> int:
    """Opens a run as a side of benchmarks/peer.py does; says errors as the verbs do."""
    try:
        ours.open_run(Spec(str(workdir), "float32", 8, 16, 1))
    except PlmjaxError as error:
        return cli._fail(error.message, error.hint, error.code)
    return Exit.OK


def not_begun(workdir: Path, overrides: list[str]) -> int:
    """Starts a run whose store another start has made."""
    shutil.rmtree(workdir / "checkpoints")
    return of_cli("pretrain", "CONFIG", "WORKDIR", "--dry_run=shapes")(
        workdir, overrides
    )


VERBS = {
    "pretrain": of_cli("pretrain", "CONFIG", "WORKDIR"),
    "dry_run": of_cli("pretrain", "CONFIG", "WORKDIR", "--dry_run=shapes"),
    "not_begun": not_begun,
    "evaluate": of_cli("evaluate", "WORKDIR", "--batch=8"),
    "export": of_cli("export", "WORKDIR", "--to=exported"),
    "bench train": of_cli("bench", "train", "WORKDIR", "--steps=1"),
    "peer": peer_side,
}


@pytest.fixture
def broken(made, tmp_path, monkeypatch):
    """(overrides, workdir, store) that a test may spoil."""
    monkeypatch.chdir(tmp_path)
    overrides, whole = made
    workdir = shutil.copytree(whole, tmp_path / "run")
    (store,) = (path for path in (workdir / "data").iterdir() if path.is_dir())
    return overrides, workdir, store


def array(name: str, change):
    """Returns store -> the name of the file, whose array is changed in its place."""

    def damage(store: Path) -> str:
        values = np.load(store / name, mmap_mode="r+")
        before = np.array(values)
        change(values)
        assert not np.array_equal(before, values)
        values.flush()
        return name

    return damage


def beyond(tokens) -> None:
    tokens[3] = np.iinfo(tokens.dtype).max


def exchange(values) -> None:
    """Swaps the first value with the next one that differs."""
    other = int(np.flatnonzero(values != values[0])[0])
    values[[0, other]] = values[[other, 0]]


def cut(store: Path) -> str:
    path = store / "held_out.0000.tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])
    return path.name


def remove(store: Path) -> str:
    (store / "held_out.0000.starts.npy").unlink()
    return "held_out.0000.starts.npy"


def manifest(*place: str, add: int | None = None, to=None):
    """Returns store -> manifest.json, a value of which is another, or gone."""

    def damage(store: Path) -> str:
        found = json.loads((store / "manifest.json").read_text())
        *outer, last = place
        block = found
        for name in outer:
            block = block[name]
        if add is None and to is None:
            del block[last]
        else:
            block[last] = to if add is None else block[last] + add
        (store / "manifest.json").write_text(json.dumps(found))
        # What is wrong about a file is said of that file.
        return (
            outer[1] if outer[:1] == ["files"] and len(outer) > 1 else "manifest.json"
        )

    return damage


HELD_OUT = "held_out.0000.tokens.npy"
DAMAGE = {
    "ids past the pieces": array(HELD_OUT, beyond),
    "ids exchanged": array(HELD_OUT, exchange),
    "ids of train exchanged": array("train.0000.tokens.npy", exchange),
    "beginnings of words": array("held_out.0000.starts.npy", exchange),
    "documents": array("held_out.offsets.npy", lambda x: exchange(x[1:-1])),
    "sentences": array("held_out.sentences.npy", lambda x: exchange(x[1:-1])),
    "counts": array("unigram.npy", exchange),
    "cut": cut,
    "removed": remove,
    "no manifest": lambda store: (store / "manifest.json").unlink() or "manifest.json",
    "fewer tokens": manifest("splits", "held_out", "tokens", add=-1),
    "more tokens": manifest("splits", "held_out", "tokens", add=1),
    "fewer documents": manifest("splits", "held_out", "documents", add=-1),
    "more documents": manifest("splits", "train", "documents", add=1),
    "fewer sentences": manifest("splits", "held_out", "sentences", add=-1),
    "more shards": manifest("splits", "train", "shards", add=1),
    "another key": manifest("key", to="0" * 24),
    "another format": manifest("format", add=1),
    "a digest": manifest("files", "unigram.npy", "sha256", to="0" * 64),
    "a size": manifest("files", "unigram.npy", "bytes", add=1),
    "counts without digest": manifest("files", "unigram.npy"),
    "sentences without digest": manifest("files", "train.sentences.npy"),
}
# Each verb meets one kind of damage; each kind of damage the verb that is done soonest.
CASES = [(verb, "ids exchanged") for verb in VERBS] + [
    ("peer", kind) for kind in DAMAGE if kind != "ids exchanged"
]


@pytest.mark.parametrize(("verb", "kind"), CASES)
def test_no_verb_works_with_a_damaged_store(broken, capsys, verb, kind):
    overrides, workdir, store = broken
    named = DAMAGE[kind](store)
    assert VERBS[verb](workdir, overrides) == Exit.DATA
    (error,) = capsys.readouterr().err.splitlines()[-1:]
    assert error.startswith(f"error: The prepared data are damaged: {store / named} is")
    assert error.endswith(f"with its text and config; first delete {store}.")
    assert not Path("exported").exists()


def test_a_whole_store_is_opened(broken, capsys):
    overrides, workdir, _ = broken
    for verb in ("dry_run", "export", "peer", "not_begun"):
        assert VERBS[verb](workdir, overrides) == Exit.OK, capsys.readouterr().err
    assert Path("exported/model.safetensors").exists()


def test_several_shards_are_of_one_size_but_the_last(tmp_path, monkeypatch, made):
    """A store of many shards is whole; one whose shards were moved is not."""
    from plmjax.data import writing

    overrides, _ = made
    config = config_lib.load(RunConfig, None, overrides)
    monkeypatch.setattr(writing, "SHARD_TOKENS", 100)
    workdir = Workdir(tmp_path)
    _, store = prepare_data(config, workdir, lambda _: None, lambda _: None)
    assert store.manifest["splits"]["train"]["shards"] > 2
    assert workdir.store().key == store.key
    manifest("splits", "train", "shard_tokens", add=1)(store.directory)
    with pytest.raises(PlmjaxError, match="not of the size of the train split"):
        workdir.store()


def test_stores_are_opened_in_one_place():
    """Whoever else opens one must go through Workdir.store, which verifies."""
    package = Path(plmjax.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\b(open_store|Store)\(", path.read_text())
    }
    assert found == {"data/store.py", "data/prepare.py", "workdir.py"}
