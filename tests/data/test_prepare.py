import errno
import functools
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.data import prepare as room
from plmjax.data import writing
from plmjax.data.corpus import SourceConfig, make_source
from plmjax.data.parallel import ordered_map
from plmjax.data.prepare import open_store, prepare, store_key
from plmjax.data.sentences import split_sentences
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

DOCUMENTS = [
    f"Document {n} tells of {n % 7} ships, and of the sea." * (n % 5 + 1)
    for n in range(300)
] + ["\u200b"]  # BERT's cleaner leaves nothing of the last one


def make(documents=DOCUMENTS, name="test"):
    return make_source(SourceConfig(), lambda tally: iter(documents), name, {})


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(vocab_size=100), DOCUMENTS)


def quiet(text):
    pass


def build(tokenizer, directory, documents=DOCUMENTS, percent=10, workers=1):
    return prepare(make(documents), tokenizer, directory, percent, workers, quiet)


def contents(store):
    return {path.name: path.read_bytes() for path in store.directory.iterdir()}


def fails(code, *words):
    return pytest.raises(
        PlmjaxError, check=lambda e: e.code == code and all(w in str(e) for w in words)
    )


def test_every_token_is_there_once_and_in_order(tokenizer, tmp_path):
    store = build(tokenizer, tmp_path)
    for name, held_out in (("train", False), ("held_out", True)):
        texts = [t for t in DOCUMENTS[:-1] if room.is_held_out(t, 10) == held_out]
        expected = tokenizer.encode_batch(texts)
        split = store.split(name)
        tokens, starts = split.read(np.arange(split.tokens))
        assert (tokens.dtype, starts.dtype) == (np.int32, bool)
        np.testing.assert_array_equal(tokens, expected.tokens)
        np.testing.assert_array_equal(starts, expected.word_start)
        np.testing.assert_array_equal(np.diff(split.offsets), expected.lengths)
        assert split.offsets.dtype == np.int64
        assert split.documents == len(texts) > 10
    assert store.manifest["empty_documents"] == 1
    train = store.split("train")
    counts = np.bincount(train.read(np.arange(train.tokens))[0], minlength=100)
    np.testing.assert_array_equal(store.unigram, counts)


def test_take_over_shards(tokenizer, tmp_path, monkeypatch):
    whole = build(tokenizer, tmp_path / "whole").split("train")
    monkeypatch.setattr(writing, "SHARD_TOKENS", 1000)
    monkeypatch.setattr(room, "BATCH_BYTES", 3000)
    sharded = build(tokenizer, tmp_path / "sharded").split("train")
    assert len(list((tmp_path / "sharded").glob("*/train.*.tokens.npy"))) > 3
    index = np.random.default_rng(0).integers(0, whole.tokens, (7, 50))
    for mine, theirs in zip(sharded.read(index), whole.read(index), strict=True):
        assert mine.shape == index.shape
        np.testing.assert_array_equal(mine, theirs)
    tokens, starts = sharded.read(np.empty((0, 3), np.int64))
    assert tokens.shape == starts.shape == (0, 3)


def test_same_bytes_for_every_number_of_workers(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "BATCH_BYTES", 2000)
    stores = [build(tokenizer, tmp_path / str(w), workers=w) for w in (1, 2, 3)]
    assert contents(stores[0]) == contents(stores[1]) == contents(stores[2])


def test_a_ctrl_c_of_the_terminal_reaches_no_worker():
    blocked = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK)
    assert all(signal.SIGINT in of for of in ordered_map(blocked, [(), ()], 2))
    assert signal.SIGINT not in blocked(())


def test_errors_of_the_corpus_come_through_workers(tokenizer, tmp_path):
    def broken(tally):
        yield from DOCUMENTS
        raise PlmjaxError("a.txt is broken.", hint="Mend it.", code=3)

    source = make_source(SourceConfig(), broken, "broken", {})
    with fails(3, "a.txt is broken"):
        prepare(source, tokenizer, tmp_path, 10, 2, quiet)
    assert list(tmp_path.iterdir()) == []


def test_key_knows_what_shaped_the_store(tokenizer):
    other = train_tokenizer(TokenizerConfig(vocab_size=101), DOCUMENTS)
    keys = {
        store_key(make(), tokenizer, 10),
        store_key(make(), tokenizer, 11),
        store_key(make(), other, 10),
        store_key(make(name="other"), tokenizer, 10),
    }
    assert len(keys) == 4
    assert store_key(make(), tokenizer, 10) in keys


def test_found_again_and_pickled(tokenizer, tmp_path, monkeypatch):
    store = build(tokenizer, tmp_path)
    monkeypatch.setattr(room, "write_part", None)  # nothing is made a second time
    said = []
    again = prepare(make(), tokenizer, tmp_path, 10, log=said.append)
    assert again.key == store.key and "found" in said[0]
    there = pickle.loads(pickle.dumps(store))
    split = pickle.loads(pickle.dumps(there.split("train")))
    assert len(pickle.dumps(split)) < 1000
    index = np.arange(50)
    np.testing.assert_array_equal(
        split.read(index)[0], store.split("train").read(index)[0]
    )


def test_held_out_documents_do_not_depend_on_the_others(tokenizer, tmp_path):
    fewer = build(tokenizer, tmp_path, DOCUMENTS[::2], percent=20).split("held_out")
    texts = [t for t in DOCUMENTS[::2] if room.is_held_out(t, 20)]
    assert fewer.documents == len(texts)
    share = np.mean([room.is_held_out(str(n), 20) for n in range(5000)])
    assert abs(share - 0.2) < 0.02


def test_wide_ids(tmp_path):
    from plmjax.tokenizers import Tokenizer
    from plmjax.tokenizers.backends import BERT, WORDPIECE_ORDER, wordpiece_backend

    words = [*WORDPIECE_ORDER, *(f"w{n}" for n in range(70_000))]
    vocab = {word: number for number, word in enumerate(words)}
    wide = Tokenizer(wordpiece_backend(vocab, lowercase=True, strip_accents=None), BERT)
    store = build(wide, tmp_path, [f"w{n} w69999" for n in range(100)])
    tokens, _ = store.split("train").read(np.arange(4))
    assert 70_004 in tokens
    assert np.load(store.directory / "train.0000.tokens.npy").dtype == np.uint32


# --- sentences

SENTENCES = [
    f"Ship {n} sails. The sea is {n % 7}!\n\u200b\nNo. Yes" for n in range(300)
]
SENTENCES += ["The sea.\n\u200b"]  # BERT's cleaner leaves nothing of a line


def build_sentences(tokenizer, directory, workers=1, rule="punctuation"):
    source = make(SENTENCES, "sentences")
    return prepare(source, tokenizer, directory, 10, workers, quiet, sentences=rule)


@pytest.mark.parametrize("rule, count", [("punctuation", 4), ("lines", 2)])
def test_sentences_are_stored_and_tokens_stay_what_they_were(
    tokenizer, tmp_path, rule, count, monkeypatch
):
    monkeypatch.setattr(room, "BATCH_BYTES", 2000)
    plain = build_sentences(tokenizer, tmp_path, rule=None)
    cut = build_sentences(tokenizer, tmp_path, rule=rule)
    assert plain.key != cut.key and cut.manifest["sentences"] == rule
    for name, held_out in (("train", False), ("held_out", True)):
        one, other = plain.split(name), cut.split(name)
        everything = np.arange(one.tokens)
        for mine, theirs in zip(
            one.read(everything), other.read(everything), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(one.offsets, other.offsets)
        assert one.sentences is None
        sentences = np.asarray(other.sentences)
        assert sentences.dtype == np.int64 and (np.diff(sentences) > 0).all()
        assert np.isin(other.offsets, sentences).all()
        texts = [t for t in SENTENCES if room.is_held_out(t, 10) == held_out]
        parts = [p for t in texts for p in split_sentences(t, rule)]
        lengths = tokenizer.encode_batch(parts).lengths
        np.testing.assert_array_equal(np.diff(sentences), lengths[lengths > 0])
        # An empty line is none, also where it is the last one.
        counts = np.bincount(other.document(sentences[:-1]))
        expected = np.full(other.documents, count)
        expected[-1] = count if held_out else 1
        np.testing.assert_array_equal(counts, expected)


def test_sentences_are_the_same_for_every_number_of_workers(
    tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(room, "BATCH_BYTES", 2000)
    monkeypatch.setattr(writing, "SHARD_TOKENS", 1000)
    one, two = (build_sentences(tokenizer, tmp_path / str(w), w) for w in (1, 2))
    assert contents(one) == contents(two)
    assert {"train.sentences.npy", "held_out.sentences.npy"} <= contents(one).keys()


def test_keys_of_stores_without_sentences_stay_what_they_were(tokenizer):
    shape = [1, make().fingerprint, tokenizer.digest, 10.0]
    expected = hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:24]
    assert store_key(make(), tokenizer, 10) == expected
    rules = (None, "lines", "punctuation")
    assert len({store_key(make(), tokenizer, 10, rule) for rule in rules}) == 3


# --- what may go wrong


def test_splits_must_not_be_empty(tokenizer, tmp_path):
    with fails(3, "held_out split is empty", "Give more documents"):
        build(tokenizer, tmp_path, ["one document"], percent=0.001)
    twenty = [f"the document {n}" for n in range(20)]
    with fails(3, "20 documents, and all", "Set --config.data.held_out_percent=25"):
        build(tokenizer, tmp_path, twenty, percent=0.001)
    with fails(3, "train split is empty"):
        build(tokenizer, tmp_path, ["one document"], percent=99.999)
    with fails(2, "held_out_percent=0"):
        build(tokenizer, tmp_path, percent=0)
    with fails(2, "data.sentences='words'", "lines, punctuation"):
        build_sentences(tokenizer, tmp_path, rule="words")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest"])
def test_damage_is_found(tokenizer, tmp_path, damage):
    store = build(tokenizer, tmp_path)
    path = store.directory / "train.0000.tokens.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    if damage == "cut":
        path.write_bytes(raw[:-2])
    elif damage == "flip":
        path.write_bytes(raw)
        open_store(store.directory)  # sizes alone do not show it
    elif damage == "remove":
        path.unlink()
    else:
        path = store.directory / "manifest.json"
        path.write_text("{")
    with fails(3, path.name, "first delete"):
        open_store(store.directory, verify=True)
    with fails(3, path.name, "first delete"):
        build(tokenizer, tmp_path)


@pytest.mark.parametrize(
    "place, value",
    [
        (("splits",), []),
        (("splits", "train", "tokens"), None),
        (("splits", "train", "shards"), 10**9),
        (("splits", "train", "shards"), 0),
        (("splits", "train", "shard_tokens"), 1),
        (("splits", "held_out", "documents"), -1),
        (("files",), 5),
        (("files", "unigram.npy"), "a"),
        (("key",), 7),
        (("source",), {}),
        (("quality",), []),
        (("quality", "words"), "a"),
        (("quality",), {"words": 3}),
    ],
    ids=str,
)
def test_a_manifest_that_lacks_something(tokenizer, tmp_path, place, value):
    store = build(tokenizer, tmp_path)
    manifest = json.loads((store.directory / "manifest.json").read_text())
    *holders, last = place
    holder = manifest
    for name in holders:
        holder = holder[name]
    holder[last] = value
    (store.directory / "manifest.json").write_text(json.dumps(manifest))
    with fails(3, "manifest.json", "not complete", "first delete"):
        open_store(store.directory)


def test_full_disk(tokenizer, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with fails(5, "No space left", "Free some space"):
        build(tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with fails(5, "cannot be written"):
        build(tokenizer, tmp_path / "file")


KILLED = """
import os, sys
from plmjax.data import prepare as room
from plmjax.data import writing
from plmjax.data.corpus import SourceConfig, make_source
from plmjax.tokenizers import TokenizerConfig, train_tokenizer
documents = [f"document {n} of the sea" for n in range(100)]
tokenizer = train_tokenizer(TokenizerConfig(vocab_size=55), documents)
source = make_source(SourceConfig(), lambda tally: iter(documents), "killed", {})
if sys.argv[2] == "kill":
    writing._write_manifest = lambda *a: os.kill(os.getpid(), 9)
room.prepare(source, tokenizer, sys.argv[1], 10, 1, lambda text: None)
"""


def test_a_killed_run_leaves_nothing_that_is_trusted(tmp_path):
    def run(how):
        command = [sys.executable, "-c", KILLED, str(tmp_path), how]
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(command, env=environment).returncode

    assert run("kill") == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".") and ".tmp-" in left.name
    assert run("go on") == 0
    (store,) = tmp_path.iterdir()
    open_store(store, verify=True)


BOUNDED = """
import re, resource, sys
from plmjax.data.corpus import SourceConfig, make_source
from plmjax.data.prepare import prepare
from plmjax.tokenizers import TokenizerConfig, train_tokenizer
lines = [f"ship {n} sails to the sea" for n in range(1000)]
tokenizer = train_tokenizer(TokenizerConfig(vocab_size=200), lines)
tokenizer.encode_batch(lines * 50)
def read(tally):
    for _ in range(int(sys.argv[2])):
        yield from lines
with open("/proc/self/status") as file:
    used = int(re.search("VmData:.* ([0-9]+) kB", file.read())[1]) << 10
limit = used + (48 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
source = make_source(SourceConfig(), read, "bounded", {})
prepare(source, tokenizer, sys.argv[1], 10, 1, print)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    # 14 MB in 600,000 documents: 5 million tokens and their marks are 16 MB, their
    # offsets and digests 10 MB; held in memory and joined, they would not fit.
    command = [sys.executable, "-c", BOUNDED, str(tmp_path), "600"]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "documents" in done.stdout
    (store,) = tmp_path.iterdir()
    assert sum(p.stat().st_size for p in store.iterdir()) > 15 << 20


def test_two_runs_that_make_the_same_store(tokenizer, tmp_path, monkeypatch):
    publish = writing._publish

    def late(part, final):
        monkeypatch.setattr(writing, "_publish", publish)
        build(tokenizer, tmp_path)  # another run is first
        publish(part, final)

    mine = tmp_path / f".{store_key(make(), tokenizer, 10)}.tmp-{writing.this_run()}"
    monkeypatch.setattr(writing, "_publish", late)
    monkeypatch.setattr(os, "getpid", iter([os.getpid(), 1, 1, 1, 1]).__next__)
    store = build(tokenizer, tmp_path)
    assert not mine.exists()
    open_store(store.directory, verify=True)
