"""Vectors of texts and words: right, whatever their neighbours, and never lost."""

import dataclasses
import errno
import gzip
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow.parquet
import pytest
from interop.cases import draw
from tests_common import batch_of, environment, sentences

from plmjax import Exit, PlmjaxError, cli
from plmjax.data.inputs import read_inputs
from plmjax.embed.rows import arrays, make_rows
from plmjax.embed.run import embed_file, embed_texts, open_encoder
from plmjax.embed.vectors import EmbedConfig
from plmjax.evaluate import batches as batches_lib
from plmjax.evaluate.batches import Batch, make_batches
from plmjax.evaluate.model import Model
from plmjax.interop import export_folder
from plmjax.models import EncoderConfig, heads
from plmjax.tasks.task import Task
from plmjax.tokenizers import TokenizerConfig, train_tokenizer

SMALL = EmbedConfig(batch_tokens=256)  # several batches, of two lengths
CLOSE = {"rtol": 0, "atol": 1e-5}
LONGEST = 32
LONG = -2  # the place of a text of several windows
TEXTS = [
    "",
    "the model",
    *(" ".join(line.split()[: 2 + n % 9]) for n, line in enumerate(sentences(20))),
    " ".join(sentences(6, seed=5)),  # longer than a row: windows
    "every row, of a matrix; and wordlist values!",
]


@pytest.fixture(scope="module")
def model() -> Model:
    """Two layers of random weights, and words of several pieces."""
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=120, min_frequency=1), sentences(50)
    )
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        layers=2,
        width=8,
        heads=2,
        ffn_width=12,
        max_positions=LONGEST,
    )
    # Large ones, so that a token's neighbours matter much.
    params = jax.tree.map(lambda x: 10 * x, draw(config, ()))
    return Model(config, params, tokenizer, "tiny")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    export_folder(path, model.encoder, model.params, model.tokenizer, "# Card\n")
    return path


reference = jax.jit(heads.encode, static_argnums=0)


def states(model: Model, text: str, layers: int = 2) -> np.ndarray:
    """[L, H]: the states of a text after its first layers, on one device, unpadded."""
    return token_states(model, model.tokenizer.encode_batch([text]).tokens, layers)


def token_states(model: Model, tokens: np.ndarray, layers: int = 2) -> np.ndarray:
    tokenizer = model.tokenizer
    ids = np.array([[tokenizer.cls_id, *tokens, tokenizer.sep_id]], np.int32)
    batch = batch_of(ids)
    if layers == 0:
        table, place, kind, norm = (
            model.params["encoder"]["embeddings"][name]
            for name in ("token", "position", "type", "norm")
        )
        x = table[ids[0]] + place[: ids.shape[1]] + kind[0]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * norm["scale"] + norm["bias"]
    cut = dataclasses.replace(model.encoder, layers=layers)
    return np.asarray(reference(cut, model.params, batch, None))[0]


# --- what the vectors are


POOL = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.max(0)}


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_vectors_are_those_of_each_text_alone(model, pooling):
    """Rows of other texts, padding, and eight devices change nothing."""
    found = embed_texts(model, TEXTS, EmbedConfig(pooling=pooling))
    assert found.shape == (len(TEXTS), 8)
    for number in (0, len(TEXTS) - 1):
        alone = POOL[pooling](states(model, TEXTS[number]))
        np.testing.assert_allclose(found[number], alone, **CLOSE)


def test_vectors_depend_on_neither_order_nor_batch_nor_bucket(model):
    order = np.random.default_rng(0).permutation(len(TEXTS))
    found = embed_texts(model, [TEXTS[n] for n in order], EmbedConfig())
    np.testing.assert_allclose(found, embed_texts(model, TEXTS, SMALL)[order], **CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_windows_hold_all_of_a_long_text(model, pooling):
    config = EmbedConfig(pooling=pooling, normalize=True)
    found = embed_texts(model, TEXTS, config)[LONG]
    # Without overlap each token is in one window, and the windows are texts in a frame.
    tokens = model.tokenizer.encode_batch([TEXTS[LONG]]).tokens
    parts = [tokens[begin : begin + 30] for begin in range(0, len(tokens), 30)]
    assert len(parts) > 2
    every = np.concatenate([token_states(model, part) for part in parts])
    wanted = POOL[pooling](every)
    np.testing.assert_allclose(found, wanted / np.linalg.norm(wanted), **CLOSE)


def test_a_text_that_is_cut_is_its_first_window_and_is_counted(model):
    windows = make_rows(model.tokenizer, TEXTS, LONGEST, "window", 30)
    cut = make_rows(model.tokenizer, TEXTS, LONGEST, "truncate", 30)
    tokens = len(model.tokenizer.encode_batch([TEXTS[LONG]]).tokens)
    assert len(cut) == len(TEXTS) < len(windows)
    assert (windows.report["windowed_texts"], windows.report["cut_texts"]) == (1, 0)
    assert (cut.report["cut_texts"], cut.report["cut_tokens"]) == (1, tokens - 30)
    rows = (cut, LONG), (windows, int(windows.begin.searchsorted(cut.begin[LONG])))
    first, second = (
        arrays(of, Batch(LONGEST, 1, np.array([row])), model.tokenizer, 1)
        for of, row in rows
    )
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("layer, real", [(0, 0), (1, 1), (-2, 1), (-1, 2)])
def test_a_layer_is_the_last_of_a_model_cut_there(model, layer, real):
    found = embed_texts(model, TEXTS, EmbedConfig(layer=layer))[-1]
    wanted = states(model, TEXTS[-1], real).mean(0)
    np.testing.assert_allclose(found, wanted, **CLOSE)


def test_a_word_is_the_mean_of_its_pieces_in_its_text(model):
    texts = ["", "The  wordlist matrix, row.", "matrix"]
    rows = make_rows(model.tokenizer, texts, LONGEST, "window", 15, words=True)
    words = rows.words
    named = [
        (int(t), texts[t][b:e])
        for t, b, e in zip(words.text, words.begin, words.end, strict=True)
    ]
    assert named == [
        (1, "The"),
        (1, "wordlist"),
        (1, "matrix"),
        (1, ","),
        (1, "row"),
        (1, "."),
        (2, "matrix"),
    ]
    found = embed_texts(model, texts, EmbedConfig(words=True))
    whole = states(model, texts[1])
    pieces = words.count[1]
    assert pieces > 2 and words.first[1] == 1 + words.count[0]
    first = words.first[1]
    wanted = whole[first : first + pieces].mean(0)
    np.testing.assert_allclose(found[1], wanted, **CLOSE)
    assert np.abs(found[2] - found[6]).max() > 1e-3  # one word in two places


def test_each_word_of_a_long_text_is_taken_where_most_stands_around_it(model):
    text = " ".join(sentences(8, seed=3))
    split = make_rows(model.tokenizer, [text], LONGEST, "window", 15, words=True)
    whole = make_rows(model.tokenizer, [text], 4096, "window", 4094, words=True)
    assert len(split) > 3 and split.report["lost_words"] == 0
    for name in ("text", "begin", "end", "count"):
        found, wanted = getattr(split.words, name), getattr(whole.words, name)
        np.testing.assert_array_equal(found, wanted)
    tokens, sizes = whole.words.first - 1, split.sizes[split.words.row]
    start = split.plan.start[split.words.row, 0]
    np.testing.assert_array_equal(start + split.words.first - 1, tokens)
    # Nothing but the ends of the text is nearer to an end of its window than a quarter.
    before, after = split.words.first - 1, sizes - 1 - split.words.first
    middle = (tokens > 8) & (tokens < tokens[-1] - 30)
    assert middle.any() and (np.minimum(before, after)[middle] >= 4).all()
    cut = make_rows(model.tokenizer, [text], LONGEST, "truncate", 15, words=True)
    assert len(cut.words) + cut.report["lost_words"] == len(whole.words)


def test_batches_hold_each_row_once_in_few_shapes(monkeypatch):
    sizes = np.random.default_rng(0).integers(2, 200, 3000)
    batches = make_batches(sizes, 256, 2048)
    rows = np.concatenate([batch.rows for batch in batches])
    np.testing.assert_array_equal(np.sort(rows), np.arange(3000))
    for batch in batches:
        assert sizes[batch.rows].max() <= batch.length <= 256
        assert len(batch.rows) <= batch.size <= max(2048 // batch.length, 1)
    lengths = [batch.length for batch in batches]
    assert lengths == sorted(lengths, reverse=True)
    shapes = {(batch.length, batch.size) for batch in batches}
    assert len(shapes) == len(set(lengths)) <= 10
    padded = sum(batch.length * batch.size for batch in batches)
    assert sizes.sum() < padded < 1.25 * sizes.sum() < 0.7 * 3000 * 200
    # A few rows are not worth a compilation.
    assert len({batch.length for batch in make_batches(sizes[:9], 256, 2048)}) == 1
    # Of all choices of lengths, that with the fewest tokens, four batches a length.
    few, known = sizes[:60], [64, 128, 192, 256]

    def cost(chosen):
        length = np.array(chosen)[np.searchsorted(chosen, few)]
        return length.sum() + 4 * 500 * len(chosen)

    monkeypatch.setattr(batches_lib, "_LENGTHS", np.array(known[:3]))
    found = sorted({batch.length for batch in make_batches(few, 256, 500)})
    some = (c for n in range(4) for c in itertools.combinations(known[:3], n))
    assert found == min(([*c, 256] for c in some), key=cost) and 1 < len(found) < 4
    (one,) = make_batches(np.array([256]), 256, 64)
    assert (one.length, one.size) == (256, 1)


# --- files


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def write(model, text_file, output, config=SMALL, **more):
    log: list[str] = []
    found = embed_file(
        model, LONGEST, str(text_file), output, config, log=log.append, **more
    )
    return found, log


def test_files_hold_what_embed_texts_returns(model, text_file, tmp_path):
    wanted = embed_texts(model, TEXTS, SMALL)
    found, log = write(model, text_file, tmp_path / "a.npy")
    assert (found.vectors, found.width, found.texts) == (*wanted.shape, len(TEXTS))
    assert found.tokens == found.report["tokens"] > len(TEXTS) * 2
    assert "1 empty texts" in log[0] and "1 of 24 texts are longer" in log[1]
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), wanted)
    write(model, text_file, tmp_path / "a.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["row", "vector"]
    assert table["row"].to_pylist() == list(range(len(TEXTS)))
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), wanted)
    words = dataclasses.replace(SMALL, words=True)
    write(model, text_file, tmp_path / "w.parquet", words)
    table = pyarrow.parquet.read_table(tmp_path / "w.parquet")
    np.testing.assert_array_equal(
        np.stack(table["vector"].to_numpy()), embed_texts(model, TEXTS, words)
    )
    for row in table.slice(0, 30).to_pylist():
        assert TEXTS[row["row"]][row["begin"] : row["end"]] == row["word"] != ""
    names = {path.name for path in tmp_path.iterdir()} - {"texts.txt"}
    files = ("a.npy", "a.parquet", "w.parquet")
    assert names == {*files, *(f"{name}.progress.json" for name in files)}


class Killed(BaseException):
    """Leaves everything as a kill would."""


@pytest.mark.parametrize("name, words", [("a.npy", False), ("a.parquet", True)])
def test_a_job_goes_on_where_it_was_to_the_same_bytes(
    model, text_file, tmp_path, name, words
):
    config = dataclasses.replace(SMALL, words=words)
    (tmp_path / "unbroken").mkdir()
    whole, _ = write(model, text_file, tmp_path / "unbroken" / name, config)
    output, calls = tmp_path / name, 0

    def dies(seen):
        nonlocal calls
        calls += 1
        if calls % 3 == 0:  # one batch is saved, the next only written
            raise Killed

    starts = 0
    while not output.exists():
        starts += 1
        calls = 0
        try:
            found, log = write(
                model, text_file, output, config, seen=dies, save_seconds=0
            )
        except Killed:
            assert (tmp_path / f"{name}.part").exists() and not output.exists()
    assert starts > 2 and found.before > 0 and "Resumes after batch" in log[-1]
    assert found.before + found.texts == whole.texts
    assert output.read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    note = json.loads((tmp_path / f"{name}.progress.json").read_text())
    assert note["finished"] and note["done"] == note["batches"]


@pytest.mark.parametrize("moment", ["replaced", "noted"])
def test_a_kill_between_the_last_steps_of_a_job(
    model, text_file, tmp_path, monkeypatch, moment
):
    output = tmp_path / "a.parquet"
    write(model, text_file, output)
    wanted = output.read_bytes()
    for path in tmp_path.glob("a.parquet*"):
        path.unlink()
    module = sys.modules["plmjax.embed.file"]
    real = module.VectorFile._write_note

    def note(self, finished):
        if finished and moment == "replaced":
            raise Killed
        real(self, finished)
        if finished:
            raise Killed

    monkeypatch.setattr(module.VectorFile, "_write_note", note)
    with pytest.raises(Killed):
        write(model, text_file, output)
    monkeypatch.undo()
    assert (tmp_path / "a.parquet.part").exists()
    found, _ = write(model, text_file, output)
    assert found.finished == (moment == "noted") and found.texts == 0
    assert output.read_bytes() == wanted
    assert not (tmp_path / "a.parquet.part").exists()


def test_a_signal_stops_after_a_batch_and_the_command_goes_on(
    model, folder, text_file, tmp_path, capsys
):
    output = tmp_path / "a.npy"
    calls = 0

    def stops(seen):
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    old = signal.getsignal(signal.SIGTERM)
    opened, longest = open_encoder(str(folder))
    assert longest == LONGEST
    found = embed_file(opened, longest, str(text_file), output, SMALL, seen=stops)
    assert found.stopped == "SIGTERM" and 0 < found.texts < len(TEXTS)
    assert signal.getsignal(signal.SIGTERM) == old
    assert json.loads((tmp_path / "a.npy.progress.json").read_text())["done"] == 2
    options = [f"--model={folder}", f"--input={text_file}", f"--output={output}"]
    try:
        assert cli.main(["embed", *options, "--batch_tokens=256"]) == Exit.OK
        out = capsys.readouterr().out
        assert "Resumes after batch 2 of" in out and "docs/s" in out
        assert f"np.load('{output}'" in out
        assert cli.main(["embed", *options, "--batch_tokens=256", "--json"]) == Exit.OK
        figures = json.loads(capsys.readouterr().out)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert figures["finished_before"] and figures["texts_now"] == 0
    np.testing.assert_array_equal(np.load(output), embed_texts(model, TEXTS, SMALL))


def test_an_output_of_something_else_is_refused(model, text_file, tmp_path):
    output = tmp_path / "a.npy"

    def refused(config=SMALL, match="another job", **more):
        with pytest.raises(PlmjaxError, match=match) as caught:
            write(model, text_file, output, config, **more)
        assert caught.value.code == Exit.USAGE and caught.value.hint
        return str(caught.value)

    def dies(seen):
        raise Killed

    np.save(output, np.zeros(3))
    refused(match="exists without the a.npy.progress.json")
    output.unlink()
    with pytest.raises(Killed):
        write(model, text_file, output, seen=dies)
    (tmp_path / "a.npy").write_text("mine")  # it appeared while the job was stopped
    refused(match="exists without")
    output.unlink()
    other = dataclasses.replace(SMALL, stride=15, normalize=True)
    assert "part is of another job: normalize, stride differ" in refused(other)
    write(model, text_file, output)
    again, _ = write(model, text_file, output)
    assert again.finished
    text_file.write_text("other texts\n")
    assert "another job: input differ" in refused()
    text_file.write_text("\n".join(TEXTS) + "\n")
    changed = jax.tree.map(lambda x: x + 1, model.params)
    with pytest.raises(PlmjaxError, match="model differ.*--checkpoint names a step"):
        write(dataclasses.replace(model, params=changed), text_file, output)
    with open(output, "ab") as file:
        file.write(b"x")
    refused(match="is not as it was written")
    output.unlink()
    found, _ = write(model, text_file, output, other)  # nothing is left to protect
    assert not found.finished and found.texts == len(TEXTS)


def test_two_processes_on_one_output(model, text_file, tmp_path):
    def inner(seen):
        with pytest.raises(PlmjaxError, match="in use by another process"):
            write(model, text_file, tmp_path / "a.npy")

    found, _ = write(model, text_file, tmp_path / "a.npy", seen=inner)
    assert found.texts == len(TEXTS)


def test_a_full_disk_is_said_and_costs_nothing(model, text_file, tmp_path, monkeypatch):
    output = tmp_path / "a.npy"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(PlmjaxError, match="No space left") as caught:
            write(model, text_file, output)
    assert caught.value.code == Exit.DISK and not list(tmp_path.glob("*.part"))

    def fills(seen):
        if seen.tokens > 0:
            monkeypatch.setattr(os, "pwrite", full)

    with pytest.raises(PlmjaxError, match="No space left") as caught:
        write(model, text_file, output, seen=fills, save_seconds=0)
    monkeypatch.undo()
    assert caught.value.code == Exit.DISK
    found, _ = write(model, text_file, output)
    assert found.before > 0
    np.testing.assert_array_equal(np.load(output), embed_texts(model, TEXTS, SMALL))


# --- inputs


def test_texts_of_every_kind_of_file(tmp_path):
    texts = ["a b", "", "ç"]
    (tmp_path / "a.txt").write_bytes("\ufeffa b\r\n\r\nç".encode())
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("a b\n\nç\n")
    rows = [{"text": text, "n": 1} for text in texts]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "c.jsonl").write_text(lines)
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "d.csv").write_text('n,text\n1,a b\n2,""\n3,ç\n')
    (tmp_path / "e.tsv").write_text("n\ttext\n1\ta b\n2\t\n3\tç\n")
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    digests = set()
    for path in sorted(tmp_path.iterdir()):
        found = read_inputs(str(path), "text")
        assert found.texts == texts, path
        digests.add(found.digest)
    assert len(digests) == 7
    assert read_inputs(f"{tmp_path}/*.txt*", "text").texts == texts * 2


@pytest.mark.parametrize(
    "name, content, column, said, code",
    [
        ("none.txt", None, "text", "matches no file", Exit.USAGE),
        ("a.txt", b"", "text", "holds no texts", Exit.DATA),
        ("a.txt", b"a\n\xff\n", "text", "a.txt:2: byte 0xff is not UTF-8", Exit.DATA),
        ("a.doc", b"a", "text", "an unknown ending", Exit.USAGE),
        (
            "a.csv",
            b"id,body\n1,a\n",
            "text",
            "a.csv:2: there is no column 'text'. Known: id, body. Set --column.$",
            Exit.DATA,
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": 5}\n',
            "text",
            "a.jsonl:2: the column 'text' is an int, not text",
            Exit.DATA,
        ),
        ("a.jsonl", b'{"text": null}\n', "text", "a.jsonl:1: .* is empty", Exit.DATA),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "text", "half a surrogate", Exit.DATA),
        ("a.parquet", b"PAR1", "text", "cannot be read", Exit.DATA),
    ],
)
def test_inputs_that_cannot_be_read(tmp_path, name, content, column, said, code):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PlmjaxError, match=said) as caught:
        read_inputs(str(tmp_path / name), column)
    assert caught.value.code == code and caught.value.hint


@pytest.mark.parametrize(
    "options, said",
    [
        (["--output={d}/a.pkl"], "a.pkl has an unknown ending"),
        (["--output={d}/none/a.npy"], "there is no directory"),
        (["--output={d}/folder.npy"], "is a directory"),
        (["--output={d}/a.npy", "--words"], "cannot hold the words"),
        (["--output={d}/a.parquet", "--words", "--pooling=cls"], "has no effect"),
        (["--output={d}/a.npy", "--layer=3"], "tiny has layers 1 to 2"),
        (["--output={d}/a.npy", "--layer=-4"], "0 is the embeddings"),
        (["--output={d}/a.npy", "--length=33"], "from 8 to 32"),
        (["--output={d}/a.npy", "--stride=31"], "from 1 to 30"),
        (["--output={d}/a.npy", "--batch_tokens=0"], "at least 1"),
        (["--output={d}/a.npy", "--checkpoint=5"], "without --checkpoint=5"),
    ],
)
def test_options_that_do_not_go(folder, text_file, tmp_path, capsys, options, said):
    (tmp_path / "folder.npy").mkdir()
    old = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    given = [option.format(d=tmp_path) for option in options]
    try:
        code = cli.main(["embed", f"--model={folder}", f"--input={text_file}", *given])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    err = capsys.readouterr().err
    assert code == Exit.USAGE and said in err and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"texts.txt", "folder.npy"}


def test_a_model_that_reads_one_side_has_no_cls(model):
    causal = dataclasses.replace(model.encoder, causal=True)
    with pytest.raises(PlmjaxError, match="one side only"):
        EmbedConfig(pooling="cls").resolved(
            dataclasses.replace(model, encoder=causal), LONGEST
        )


def test_of_a_fine_tuned_model_the_encoder_is_used(model, tmp_path):
    task = Task("classes", ("no", "yes"))
    random = np.random.default_rng(0)
    dense = {"kernel": random.normal(size=(8, 8)), "bias": random.normal(size=8)}
    last = {"kernel": random.normal(size=(8, 2)), "bias": random.normal(size=2)}
    head = {"pooler": {"dense": dense}, "classifier": last}
    head = jax.tree.map(lambda x: x.astype(np.float32), head)
    export_folder(
        tmp_path / "tuned",
        model.encoder,
        model.params | {"sequence": head},
        model.tokenizer,
        "# Card\n",
        task=task,
        length=16,
    )
    tuned, longest = open_encoder(str(tmp_path / "tuned"))
    assert tuned.task is not None and longest == 16
    np.testing.assert_array_equal(
        embed_texts(tuned, TEXTS, SMALL), embed_texts(model, TEXTS, SMALL)
    )


# --- in processes of their own


# As the command does, but what a kill can cost is less.
COMMAND = """
import sys
from plmjax import cli
from plmjax.embed.run import embed_file
embed_file.__kwdefaults__["save_seconds"] = 0.1
sys.exit(cli.main(["embed", *sys.argv[1:]]))
"""


def start(folder, text_file, output, devices=1):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, f"--model={folder}", f"--input={text_file}"]
        + [f"--output={output}", "--batch_tokens=256"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(JAX_NUM_CPU_DEVICES=str(devices)),
    )


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_kills_and_signals_of_a_real_process(folder, tmp_path):
    text_file = tmp_path / "many.txt"
    text_file.write_text("\n".join(sentences(8_000)) + "\n")
    whole = start(folder, text_file, tmp_path / "whole.npy")
    said, _ = whole.communicate(timeout=120)
    assert whole.returncode == Exit.OK, said
    output, codes = tmp_path / "a.npy", []
    for number in (signal.SIGKILL, signal.SIGTERM, None):
        process = start(folder, text_file, output)
        try:
            note = tmp_path / "a.npy.progress.json"
            before, end = _done(note), time.monotonic() + 60
            while number and _done(note) <= before and time.monotonic() < end:
                time.sleep(0.02)
            if number:
                process.send_signal(number)
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
        codes.append(process.returncode)
    assert codes == [-signal.SIGKILL, Exit.RESUMABLE, Exit.OK], said
    assert "Resumes after batch" in said
    assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def _done(note) -> int:
    return json.loads(note.read_text())["done"] if note.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_four_devices_give_the_vectors_of_one(folder, text_file, tmp_path):
    for devices in (1, 4):
        process = start(folder, text_file, tmp_path / f"{devices}.npy", devices)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == Exit.OK, said
    one, four = (np.load(tmp_path / f"{devices}.npy") for devices in (1, 4))
    np.testing.assert_allclose(four, one, **CLOSE)


@pytest.mark.peer
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_mean_pooling_is_that_of_transformers(family, tmp_path):
    import torch
    import transformers

    kind, size = {"bert": ("wordpiece", 120), "roberta": ("bpe", 300)}[family]
    tokenizer = train_tokenizer(
        TokenizerConfig(kind=kind, vocab_size=size, min_frequency=1), sentences(50)
    )
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": tokenizer.pad_id,
    }
    if family == "bert":
        theirs = transformers.BertModel(transformers.BertConfig(**sizes))
    else:
        sizes |= {"type_vocab_size": 1}
        theirs = transformers.RobertaModel(transformers.RobertaConfig(**sizes))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.1)
    theirs.eval().save_pretrained(tmp_path)
    tokenizer.save(tmp_path, max_length=32)
    texts = [text for text in TEXTS if len(text) < 100]
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    inputs = auto(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = theirs(**inputs, output_hidden_states=True).hidden_states
    mask = inputs["attention_mask"][..., None]
    model, longest = open_encoder(str(tmp_path))
    for layer in (0, 1, -1):
        wanted = ((hidden[layer] * mask).sum(1) / mask.sum(1)).numpy()
        found = embed_texts(model, texts, EmbedConfig(layer=layer), longest)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_vectors_of_options_and_pipes_are_those_of_a_file(
    folder, model, monkeypatch, capsys
):
    def embed(*options: str):
        capsys.readouterr()
        code = cli.main(["embed", f"--model={folder}", *options])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    texts = ["the model", "every row, of a matrix"]
    code, found, err = embed(*(f"--text={text}" for text in texts))
    assert code == Exit.OK and err == ""
    assert [record["row"] for record in found] == [0, 1]
    vectors = np.array([record["vector"] for record in found], np.float32)
    np.testing.assert_array_equal(vectors, embed_texts(model, texts, EmbedConfig()))
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts)
    for typed, more in (("\n".join(texts), ()), (lines, ("--column=body",))):
        raw = io.TextIOWrapper(io.BytesIO(typed.encode()))
        monkeypatch.setattr("sys.stdin", raw)
        code, again, err = embed("--input=-", "--output=-", *more)
        assert (code, again) == (Exit.OK, found) and "Standard input" in err
    _, words, _ = embed(f"--text={texts[1]}", "--words")
    assert [record["word"] for record in words] == ["every", "row", ",", "of"] + [
        "a",
        "matrix",
    ]
    code, found, err = embed("--text=a", "--json")
    assert code == Exit.USAGE and "Remove --json" in err
