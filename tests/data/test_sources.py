import gzip
import json
import os
import subprocess
import sys

import pytest

from plmjax import PlmjaxError
from plmjax.data.sentences import split_sentences
from plmjax.data.sources import SourceConfig, open_source

LINES = ["first line", "second line", "", "after a blank line"]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def documents(errors="strict", **config):
    return list(open_source(SourceConfig(**config), errors).documents())


def fails(code, *words, errors="strict", **config):
    with pytest.raises(PlmjaxError) as info:
        documents(errors, **config)
    assert info.value.code == code, str(info.value)
    assert info.value.hint and "\n" not in str(info.value)
    for word in words:
        assert word in str(info.value)


# --- text


@pytest.mark.parametrize(
    "document, expected",
    [
        ("line", [line for line in LINES if line]),
        ("blank", ["first line\nsecond line", "after a blank line"]),
        ("file", ["\n".join(LINES)]),
    ],
)
def test_what_ends_a_document(tmp_path, document, expected):
    path = write(tmp_path / "a.txt", "\n".join(LINES))
    assert documents(kind="text", paths=path, document=document) == expected


@pytest.mark.parametrize("document", ["line", "blank", "file"])
def test_dirty_files_give_the_documents_of_clean_ones(tmp_path, document):
    clean = "\n".join(LINES) + "\n"
    variants = {
        "clean.txt": clean,
        "crlf.txt": clean.replace("\n", "\r\n"),
        "cr.txt": clean.replace("\n", "\r"),
        "bom.txt": "\ufeff" + clean,
        "open.txt": clean.rstrip(),
        "nul.txt": clean.replace("line", "li\x00ne\x07"),
        "packed.txt.gz": gzip.compress(clean.encode()),
    }
    found = {
        name: documents(
            kind="text", paths=write(tmp_path / name, content), document=document
        )
        for name, content in variants.items()
    }
    for name in variants:
        assert found[name] == found["clean.txt"], name


def test_chosen_document_is_said(tmp_path):
    blank = write(tmp_path / "a.txt", "one\nmore\n\ntwo\nmore\n\nthree\n")
    source = open_source(SourceConfig(kind="text", paths=blank))
    assert source.description["document"] == "blank"
    assert "a.txt" in source.description["why"]
    line = write(tmp_path / "b.txt", "one\ntwo\n")
    source = open_source(SourceConfig(kind="text", paths=line))
    assert source.description["document"] == "line"
    for number in range(100):
        write(tmp_path / f"many{number}.txt", f"file {number}\n\nmore\n")
    source = open_source(SourceConfig(kind="text", paths=f"{tmp_path}/many*.txt"))
    assert source.description["document"] == "file"
    assert len(list(source.documents())) == 100


def test_files_globs_and_counts(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a.txt", "a\x07")
    write(tmp_path / "deep" / "er" / "c.txt", "c")
    write(tmp_path / "empty.txt", "")
    paths = f"{tmp_path}/**/*.txt, {tmp_path}/b.txt"
    source = open_source(SourceConfig(kind="text", paths=paths))
    assert list(source.documents()) == ["a", "b", "c"] == list(source.documents())
    assert source.description["files"] == 4
    assert source.description["counts"] == {
        "documents": 3,
        "bytes": 3,
        "empty_files": 1,
        "cut_documents": 0,
        "replaced_characters": 0,
        "control_characters": 1,
    }
    json.dumps(source.description)


def test_fingerprint_knows_content_and_settings_not_the_place(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()

    def fingerprint(folder="x", content="hello", errors="strict", **config):
        path = write(tmp_path / folder / "a.txt", content)
        return open_source(
            SourceConfig(kind="text", paths=path, **config), errors
        ).fingerprint

    same = {fingerprint(), fingerprint("y"), fingerprint(document="line")}
    others = {
        fingerprint(content="hallo"),
        fingerprint(document="file"),
        fingerprint(errors="replace"),
        fingerprint(max_document_bytes=100),
    }
    assert len(same) == 1 and len(same | others) == 5


def test_invalid_utf8(tmp_path):
    text = "é" * 600_000  # beyond one block, a character across its border
    content = ("x" + text).encode() + b"\xff\n"
    path = write(tmp_path / "a.txt", content)
    fails(
        3,
        "a.txt: byte 1,200,001 (0xff)",
        "--config.data.errors=replace",
        kind="text",
        paths=path,
        document="file",
    )
    config = SourceConfig(
        kind="text", paths=path, document="line", max_document_bytes=10_000_000
    )
    source = open_source(config, "replace")
    assert list(source.documents()) == ["x" + text + "\ufffd"]
    assert source.description["counts"]["replaced_characters"] == 1
    path = write(tmp_path / "b.txt", b"cut \xc3")
    fails(3, "b.txt: byte 4", kind="text", paths=path, document="line")


def test_long_documents_are_cut_at_white_space(tmp_path):
    words = [f"word{number}é" for number in range(2000)]
    path = write(tmp_path / "a.txt", " ".join(words))
    pieces = documents(
        kind="text", paths=path, document="line", max_document_bytes=1000
    )
    assert " ".join(pieces).split() == words
    assert all(500 < len(piece.encode()) <= 1000 for piece in pieces[:-1])
    path = write(tmp_path / "b.txt", "é" * 5000)
    pieces = documents(
        kind="text", paths=path, document="line", max_document_bytes=1000
    )
    assert "".join(pieces) == "é" * 5000 and len(pieces) == 10


def test_one_long_line_in_bounded_memory(tmp_path):
    path = tmp_path / "long.txt"
    with open(path, "w") as stream:
        for _ in range(40):
            stream.write("a long line goes on " * 50_000)  # 40 MB in all
    program = (
        "import sys, resource\n"
        "from plmjax.data.sources import SourceConfig, open_source\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before = peak()\n"
        "s = open_source(SourceConfig(kind='text', paths=sys.argv[1]))\n"
        "n = sum(len(d) for d in s.documents())\n"
        "print(n, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    size, growth_mb = map(int, done.stdout.split())
    assert size > 39_900_000
    assert growth_mb < 25


def test_bad_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(2, "paths is empty", kind="text")
    fails(2, "'no.txt' matches no file", str(tmp_path), kind="text", paths="no.txt")
    fails(2, "matches no file", kind="text", paths="*.txt")
    fails(2, "is a directory", "**", kind="text", paths=str(tmp_path))
    write(tmp_path / "a.txt", " \n\n")
    fails(3, "empty or only white space", kind="text", paths="a.txt")
    write(tmp_path / "a.txt", "")
    fails(3, "empty or only white space", kind="text", paths="a.txt")
    fails(2, "'word'", "line, blank, file", kind="text", paths="a.txt", document="word")
    fails(2, "'txt'", "text, jsonl", kind="txt", paths="a.txt")
    fails(2, "'ignore'", kind="text", paths="a.txt", errors="ignore")


def test_broken_and_bomb_gzip(tmp_path, monkeypatch):
    whole = gzip.compress(b"text " * 1000)
    path = write(tmp_path / "a.txt.gz", whole[:-20])
    fails(3, "a.txt.gz cannot be read", kind="text", paths=path)
    path = write(tmp_path / "b.txt.gz", b"plain text")
    fails(3, "b.txt.gz cannot be read", kind="text", paths=path)
    from plmjax.data import text

    monkeypatch.setattr(text, "GZIP_RATIO", 2)
    path = write(tmp_path / "c.txt.gz", gzip.compress(b"a\n" * 3_000_000))
    fails(3, "unpacks to more", kind="text", paths=path, document="line")


# --- records


def test_jsonl(tmp_path):
    rows = ['{"text": "one\\ntwo"}', "", '{"text": "drei é", "id": 3}']
    for name, content in {
        "a.jsonl": "\n".join(rows),
        "b.jsonl": "\ufeff" + "\r\n".join(rows) + "\r\n",
        "c.jsonl.gz": gzip.compress("\n".join(rows).encode()),
    }.items():
        path = write(tmp_path / name, content)
        assert documents(kind="jsonl", paths=path) == ["one\ntwo", "drei é"]


def test_bad_jsonl(tmp_path):
    good = '{"text": "fine"}\n'

    def bad(line, *words, code=3, **options):
        content = line if isinstance(line, bytes) else line.encode()
        path = write(tmp_path / "a.jsonl", good.encode() + content)
        fails(code, *words, kind="jsonl", paths=path, **options)

    bad("{nonsense", "a.jsonl:2 is not valid JSON")
    bad('["a"]', "a.jsonl:2 holds a list")
    bad('{"body": "x", "id": 1}', "a.jsonl:2", "'text'", "body, id")
    bad('{"text": 5}', "a.jsonl:2", "int, not text")
    bad(b'{"text": "\xff"}', "a.jsonl:2", "UTF-8", "data.errors=replace")
    bad('{"text": "\\ud800"}', "a.jsonl:2", "surrogate", "data.errors=replace")
    path = str(tmp_path / "a.jsonl")
    assert documents("replace", kind="jsonl", paths=path) == ["fine", "\ufffd" * 3]


def test_lists_of_sentences_are_documents_of_lines(tmp_path):
    import pyarrow
    import pyarrow.parquet

    lists = [["One, \r\n or so. Two?", " three", ""], ["他。", "她\x0b。"], [], ["x"]]
    expected = ["One,   or so. Two?\n three", "他。\n她 。", "x"]
    content = "\n".join(json.dumps({"text": sentences}) for sentences in lists)
    path = write(tmp_path / "a.jsonl", content)
    assert documents(kind="jsonl", paths=path) == expected
    found = [split_sentences(text, "lines") for text in expected]
    assert [len(sentences) for sentences in found] == [2, 2, 1]
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": lists}), path)
    assert documents(kind="parquet", paths=path) == expected
    path = write(tmp_path / "b.jsonl", '{"text": ["fine", 5]}')
    fails(3, "b.jsonl:1", "item 1", "int, not text", kind="jsonl", paths=path)


def test_parquet_that_calls_bytes_text(tmp_path):
    import pyarrow
    import pyarrow.parquet

    content = [
        None,
        pyarrow.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 3, 5))),
        pyarrow.py_buffer(b"abc\xff\xfe"),
    ]
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, content)
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    fails(3, "row 1", "not UTF-8", kind="parquet", paths=path)
    found = documents("replace", kind="parquet", paths=path)
    assert found == ["abc", "\ufffd\ufffd"]


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = [f"document {number}" for number in range(2500)]
    path = str(tmp_path / "a.parquet")
    table = pyarrow.table({"body": texts, "id": range(2500)})
    pyarrow.parquet.write_table(table, path)
    assert documents(kind="parquet", paths=path, field="body") == texts
    fails(3, "'text'", "body, id", kind="parquet", paths=path)
    fails(3, "int, not text", "row 0", kind="parquet", paths=path, field="id")
    broken = write(tmp_path / "b.parquet", "PAR1 this is not parquet")
    fails(3, "b.parquet cannot be read", kind="parquet", paths=broken)


@pytest.mark.filterwarnings("ignore")  # of datasets and tfds
def test_hugging_face_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    lists = datasets.Dataset.from_dict({"text": [["one", "1"], ["two"]]})
    lists.save_to_disk(tmp_path / "lists")
    found = documents(kind="hf", paths=str(tmp_path / "lists"))
    assert found == ["one\n1", "two"]
    texts = ["one", "two é"]
    table = datasets.Dataset.from_dict({"text": texts, "id": [1, 2]})
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "split")
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.jsonl", '{"text": "one"}\n{"text": "two é"}\n')
    for name in ("one", "split", "files"):
        folder = str(tmp_path / name)
        assert documents(kind="hf", paths=folder) == texts
        fails(3, "'body'", "text", kind="hf", paths=folder, field="body")
    for name in ("split", "files"):
        folder = str(tmp_path / name)
        fails(3, "split 'test'", kind="hf", paths=folder, split="test")
    fails(2, "not a folder", "downloaded", kind="hf", paths="wikitext")


TFDS_BUILDER = """
import sys
import tensorflow_datasets as tfds

class PlmjaxWords(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        parts = tfds.features.Sequence(text)
        features = tfds.features.FeaturesDict({"text": text, "parts": parts})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(3):
            text = f"document {number} é"
            yield number, {"text": text, "parts": [text, "end"]}

PlmjaxWords(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.mark.filterwarnings("ignore")
def test_tensorflow_datasets(tmp_path):
    # In a process of its own: tfds wants the builder's class to be in a script.
    script = write(tmp_path / "builder.py", TFDS_BUILDER)
    (tmp_path / "data").mkdir()
    folder = str(tmp_path / "data")
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    common = {"kind": "tfds", "paths": folder}
    found = documents(**common, dataset="plmjax_words")
    assert sorted(found) == [f"document {number} é" for number in range(3)]
    assert found == documents(**common, dataset="plmjax_words")
    parts = documents(**common, dataset="plmjax_words", field="parts")
    assert parts == [f"{text}\nend" for text in found]
    fails(2, "dataset is empty", **common)
    fails(3, "not found", **common, dataset="no_such_words")
    fails(3, "split 'test'", **common, dataset="plmjax_words", split="test")
    fails(3, "no field 'body'", **common, dataset="plmjax_words", field="body")
    assert "tensorflow" not in sys.modules
