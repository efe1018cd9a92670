"""Stores that are verified, merged, copied to object stores, and trained on."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from tests_common import sentences

from plmjax import PlmjaxError, cli
from plmjax import config as config_lib
from plmjax.checkpoint.storage import Remote
from plmjax.files import digest, write_json
from plmjax.pretrain import stores
from plmjax.pretrain.build import prepare_data
from plmjax.pretrain.run import DEFAULT_CONFIG
from plmjax.workdir import RunConfig, Workdir

LINES = sentences(400)
OPTIONS = ["data.source.kind=text", "data.held_out_percent=10", "data.length=16"]


def quiet(_):
    pass


def make(folder, lines, *overrides, text=True):
    """Prepares a ready store in a folder."""
    folder.mkdir()
    given = []
    if text:
        path = folder.parent / f"{folder.name}.txt"
        path.write_text("\n".join(lines) + "\n")
        given = [f"data.source.paths={path}", "data.source.document=line"]
    config = config_lib.load(
        RunConfig, None, [*OPTIONS, *given, *overrides], DEFAULT_CONFIG
    )
    return prepare_data(config, Workdir(folder), quiet, quiet)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the stores a, b, and both: of their texts one behind the other."""
    root = tmp_path_factory.mktemp("ready")
    make(root / "both", LINES, "tokenizer.vocab_size=90")
    path = f"tokenizer.path={root / 'both' / 'tokenizer'}"
    make(root / "a", LINES[:250], path)
    make(root / "b", LINES[250:], path)
    make(root / "other", LINES[250:], "tokenizer.vocab_size=80")
    return root


def contents(folder):
    """The files of a store by name, but for the manifest."""
    (store,) = (folder / "data").iterdir()
    files = {p.name: p.read_bytes() for p in store.iterdir() if p.suffix == ".npy"}
    return files, json.loads((store / "manifest.json").read_text())


def test_merged_stores_are_the_store_of_both_texts(made, tmp_path):
    stores.merge([str(made / "a"), str(made / "b")], str(tmp_path / "c"))
    (files, manifest), (wanted, whole) = (
        contents(tmp_path / "c"),
        contents(made / "both"),
    )
    assert files == wanted
    # A line of a stands in b, too: what is distinct is so in its own store.
    assert manifest["quality"].pop("distinct_documents") == 400
    assert whole["quality"].pop("distinct_documents") == 399
    for name in ("splits", "quality", "empty_documents", "tokenizer", "files"):
        assert manifest[name] == whole[name]
    for name, count in whole["source"]["counts"].items():
        assert manifest["source"]["counts"][name] == count
    assert [s["kind"] for s in manifest["source"]["stores"]] == ["text", "text"]


def test_stores_that_do_not_fit_are_refused(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for inputs, to, code, words in (
        ((made / "a", made / "other"), "c", 3, "prepared with another tokenizer than"),
        ((made / "a", made / "a"), "c", 2, "given twice"),
        ((made / "a", tmp_path), "c", 3, "is no store: it has no run.json"),
        ((made / "a", made / "b"), "full", 2, "is not empty"),
        ((made / "a",), "s3:/x/y", 2, "Write --to=s3://x/y."),
        ((made / "a",), "GS:x/y", 2, "Write --to=gs://x/y."),
        ((made / "a", made / "b"), "ftp://a/b", 2, "cannot be saved to ftp://a/b"),
    ):
        assert cli.main(["data", "merge", *map(str, inputs), f"--to={to}"]) == code
        assert words in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def files_of(folder):
    """The content and the time of each file below a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in paths if p.suffix}


def test_a_finished_store_is_kept(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, lines in (("one", LINES[:250]), ("two", LINES[250:]), ("none", ())):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")

    def prepare(*given, to="a"):
        config = ["data.source.document=line", "tokenizer.vocab_size=80"]
        options = [f"--config.{one}" for one in config]
        code = cli.main(["data", "prepare", f"--to={to}", *options, *given])
        return code, capsys.readouterr().err

    assert prepare("one.txt")[0] == 0
    before = files_of(tmp_path / "a")
    for given in (
        ["two.txt"],
        ["one.txt", "--config.tokenizer.vocab_size=90"],
        ["one.txt", "--config.data.held_out_percent=20"],
        ["one.txt", "--config.data.sentences=punctuation"],
        [f"--config.data.store={made / 'b'}"],
    ):
        code, said = prepare(*given)
        assert code == 2 and "a holds a finished store of other text, or of" in said
        assert files_of(tmp_path / "a") == before
    # A run in its folder reads it, and no other text.
    paths = "data.source.paths=one.txt", "data.source.document=line"
    for key, refused in (("data.held_out_percent", True), ("data.length", False)):
        given = [*paths, "tokenizer.vocab_size=80", f"{key}=16"]
        config = config_lib.load(RunConfig, None, given, DEFAULT_CONFIG)
        with pytest.raises(PlmjaxError) if refused else contextlib.nullcontext():
            prepare_data(config, Workdir("a"), quiet, quiet)
    code, said = prepare("one.txt")
    assert code == 0 and "Prepared data found" in said
    assert files_of(tmp_path / "a") == before
    (tmp_path / "a" / "run.json").unlink()  # as one that was interrupted
    assert prepare("one.txt")[0] == 0
    assert {*files_of(tmp_path / "a")} == {*before}
    # Of a text that cannot be prepared, nothing stays.
    (tmp_path / "empty").mkdir()
    assert prepare("none.txt", to="empty")[0] == 3
    assert [*(tmp_path / "empty").iterdir()] == []
    assert prepare("none.txt", to="new/deep")[0] == 3
    assert not (tmp_path / "new").exists()


def test_verify(made, tmp_path, capsys):
    assert cli.main(["data", "verify", str(made / "a"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (store,) = (made / "a" / "data").iterdir()
    assert result["key"] == store.name and result["splits"]["train"]["documents"] > 200
    assert cli.main(["data", "verify", str(store)]) == 0
    assert "is whole: train " in capsys.readouterr().out


def redigest(store, name):
    """Makes the manifest right for a file that was changed."""
    manifest = json.loads((store / "manifest.json").read_text())
    size, sha = digest(store / name)
    manifest["files"][name] = {"bytes": size, "sha256": sha}
    write_json(store / "manifest.json", manifest)


@pytest.mark.parametrize(
    "name, at, value, right, words",
    [
        ("held_out.0000.tokens.npy", 3, 1, False, "SHA-256 differs"),
        ("held_out.0000.tokens.npy", 3, 90, True, "the id 90, but the vocabulary"),
        ("train.0000.tokens.npy", 3, 1, True, "unigram.npy holds other counts"),
        ("train.offsets.npy", 0, 1, True, "positions that do not ascend from 0"),
        ("train.offsets.npy", 2, 1, True, "positions that do not ascend from 0"),
        ("tokenizer", 0, 0, True, "a store of another tokenizer"),
    ],
)
def test_damage_is_named(made, tmp_path, capsys, name, at, value, right, words):
    shutil.copytree(made / "a", tmp_path / "a")
    (store,) = (tmp_path / "a" / "data").iterdir()
    if name == "tokenizer":
        shutil.rmtree(tmp_path / "a" / "tokenizer")
        shutil.copytree(made / "other" / "tokenizer", tmp_path / "a" / "tokenizer")
    else:
        array = np.load(store / name)
        array[at] = value
        np.save(store / name, array)
        if right:
            redigest(store, name)
    assert cli.main(["data", "verify", str(tmp_path / "a")]) == 3
    error = capsys.readouterr().err
    assert words in error and (name in error or "unigram" in error)


def test_one_store_of_a_mixture_is_copied(made, tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("\n".join(LINES[:200]) + f"\nThe end of {name}.\n")
    mixture = tuple({"name": n, "paths": str(tmp_path / n)} for n in "ab")
    path = f"tokenizer.path={made / 'both' / 'tokenizer'}"
    _, store = make(tmp_path / "run", (), f"data.mixture={mixture}", path, text=False)
    one = store.parts["b"]
    stores.merge([str(one.directory)], str(tmp_path / "copy"))
    with stores.opened(str(tmp_path / "copy")) as (_, copy):
        assert copy.manifest == one.manifest
    with pytest.raises(PlmjaxError, match="several stores"):
        stores.merge([str(tmp_path / "run")], str(tmp_path / "more"))
    assert not (tmp_path / "more").exists()


# --- trained on


def taken(where, folder, *overrides):
    store = f"data.store={where}"
    return make(folder, (), store, "data.source.kind=none", *overrides, text=False)


def test_a_run_takes_a_ready_store(made, tmp_path):
    tokenizer, store = taken(made / "a", tmp_path / "run")
    assert contents(tmp_path / "run") == contents(made / "a")
    assert tokenizer.digest == store.manifest["tokenizer"]
    # The second start finds it, and what the run writes is not in the ready store.
    taken_again = prepare_data(
        config_lib.load(
            RunConfig,
            None,
            [*OPTIONS, f"data.store={made / 'a'}", "data.source.kind=none"],
        ),
        Workdir(tmp_path / "run"),
        quiet,
        quiet,
    )
    assert taken_again[1].key == store.key
    (store.directory / "rows.npz").touch()
    assert not [*(made / "a").rglob("rows.npz")]


@pytest.mark.parametrize(
    "override, words",
    [
        ("data.held_out_percent=5", "held_out_percent is 5.0, but the store .* 10.0"),
        ("data.sentences=lines", "sentences is lines, but .* with None"),
        ("tokenizer.path={other}/tokenizer", "a store of another tokenizer than"),
        ("data.source.paths=x.txt", "both name the text"),
    ],
)
def test_a_run_refuses_another_store(made, tmp_path, override, words):
    with pytest.raises(PlmjaxError, match=words):
        taken(made / "a", tmp_path / "run", override.format(other=made / "other"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_cannot_take_the_store_of_its_own_folder(made, tmp_path):
    shutil.copytree(made / "b", tmp_path / "b")
    before = files_of(tmp_path / "b")
    (store,) = (tmp_path / "b" / "data").iterdir()
    for where in (tmp_path / "b", store):
        config = config_lib.load(RunConfig, None, [*OPTIONS, f"data.store={where}"])
        with pytest.raises(PlmjaxError, match="is the folder of the run itself"):
            prepare_data(config, Workdir(tmp_path / "b"), quiet, quiet)
    assert files_of(tmp_path / "b") == before


def there_and_back(made, tmp_path, where):
    stores.merge([str(made / "a")], where)
    with pytest.raises(PlmjaxError, match="is not empty"):
        stores.merge([str(made / "a")], where)
    _, store = taken(where, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(made / "a")
    assert not (store.directory / "unigram.npy").is_symlink()
    with stores.opened(where) as (_, copy):
        assert copy.key == store.key


def test_a_store_in_an_object_store(made, tmp_path, monkeypatch):
    remote = Remote({"driver": "memory", "path": "ready/"}, "s3://memory/ready")
    monkeypatch.setattr(stores, "open_storage", lambda _: remote)
    there_and_back(made, tmp_path, "s3://memory/ready")
    broken = Remote({"driver": "memory", "path": "broken/"}, "s3://memory/broken")

    def write(name, data):
        Remote.write(broken, name, data)
        if name.endswith("unigram.npy"):
            raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(stores, "open_storage", lambda _: broken)
        patch.setattr(broken, "write", write)
        with pytest.raises(PlmjaxError, match="s3://memory/broken fails: no answer"):
            stores.merge([str(made / "a")], "s3://memory/broken")
    assert broken.entries() == []
    name = next(n for n in remote.files("data") if n.endswith("unigram.npy"))
    raw = bytearray(remote.read(f"data/{name}"))
    raw[-1] ^= 1
    remote.write(f"data/{name}", bytes(raw))
    with pytest.raises(PlmjaxError, match="unigram.npy is not as it was written"):
        taken("s3://memory/ready", tmp_path / "again")
    run = json.loads(remote.read("run.json")) | {"store": "../../mine"}
    remote.write("run.json", json.dumps(run).encode())
    with pytest.raises(PlmjaxError, match="s3://memory/ready"):
        taken("s3://memory/ready", tmp_path / "outside")


@pytest.mark.slow
def test_a_store_in_s3(made, tmp_path, s3):
    there_and_back(made, tmp_path, s3)
    with pytest.raises(PlmjaxError, match="s3://nobody/a fails") as caught:
        stores.merge([str(made / "a")], "s3://nobody/a")
    assert caught.value.code == 5
