import bz2
import contextlib
import gzip
import json
import lzma
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from plmjax import PlmjaxError
from plmjax.data import blocks
from plmjax.data.config import DataConfig
from plmjax.data.sentences import split_sentences
from plmjax.data.sources import SourceConfig, open_source
from plmjax.data.tables import choose_field
from plmjax.data.text import Survey, choose_document, text_lines

PACKED = {
    # Without the time of day, which would be in the names of tests.
    ".gz": lambda raw: gzip.compress(raw, mtime=0),
    ".bz2": lambda raw: bz2.compress(raw, 1),
    ".xz": lzma.compress,
    ".zst": lambda raw: pyarrow.Codec("zstd").compress(raw, asbytes=True),
}
LINES = ["first line", "second line", "", "after a blank line"]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def documents(errors="strict", encoding="utf-8", **config):
    return list(open_source(SourceConfig(**config), errors, encoding).documents())


@contextlib.contextmanager
def fails_with(code, *words):
    with pytest.raises(PlmjaxError) as info:
        yield
    assert info.value.code == code, str(info.value)
    assert info.value.hint and "\n" not in str(info.value)
    for word in words:
        assert word in str(info.value)


def fails(code, *words, errors="strict", encoding="utf-8", **config):
    with fails_with(code, *words):
        documents(errors, encoding, **config)


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
        "utf16.txt": clean.encode("utf-16"),
        **{f"packed.txt{end}": pack(clean.encode()) for end, pack in PACKED.items()},
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
    assert source.description["why"] == "2 blank lines between 5 lines in 1 file"
    line = write(tmp_path / "b.txt", "one\ntwo\n")
    source = open_source(SourceConfig(kind="text", paths=line))
    assert source.description["document"] == "line"
    both = open_source(SourceConfig(kind="text", paths=f"{line},{blank}"))
    assert both.description["why"] == "2 blank lines between 7 lines in 2 files"
    assert (both.description["lines"], both.description["blank_lines"]) == (7, 2)
    assert both.description["document"] == "blank"
    for number in range(100):
        write(tmp_path / f"many{number}.txt", f"file {number}\n\nmore\n")
    source = open_source(SourceConfig(kind="text", paths=f"{tmp_path}/many*.txt"))
    assert source.description["document"] == "file"
    assert source.description["why"] == "100 small files"
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
        "longest_document_bytes": 1,
        "empty_files": 1,
        "empty_records": 0,
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


def test_lines_are_joined_over_blocks():
    blocks = ["a", "b\nc", "", "d\n", "\n", "e", "f"]
    assert [*text_lines(blocks)] == ["ab\n", "cd\n", "\n", "ef"]
    assert [*text_lines(["a\n", ""])] == ["a\n"]


def test_bad_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(2, "paths is empty", kind="text")
    fails(2, "'no.txt' matches no file", str(tmp_path), kind="text", paths="no.txt")
    fails(2, "matches no file", kind="text", paths="*.txt")
    fails(2, "holds no files", kind="text", paths=str(tmp_path))
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
    fails(3, "c.gz cannot be read", paths=write(tmp_path / "c.gz", b"plain text"))
    monkeypatch.setattr(blocks, "UNPACK_RATIO", 2)
    for ending, compress in PACKED.items():
        text = compress(b"a line of text\n" * 150_000)
        path = write(tmp_path / f"c.txt{ending}", text)
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
    texts = [f"document {number}" for number in range(2500)]
    path = str(tmp_path / "a.parquet")
    table = pyarrow.table({"body": texts, "id": range(2500)})
    pyarrow.parquet.write_table(table, path)
    assert documents(kind="parquet", paths=path, field="body") == texts
    assert documents(kind="parquet", paths=path) == texts  # the only texts
    fails(3, "'test'", "body, id", kind="parquet", paths=path, field="test")
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
    # The kind is recognised; a comma in its name needs a tuple.
    table.save_to_disk(tmp_path / "a, b")
    assert documents(paths=(str(tmp_path / "a, b"),)) == texts
    assert documents(paths=str(tmp_path / "split")) == texts
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
    assert found == documents(paths=folder, dataset="plmjax_words")
    parts = documents(**common, dataset="plmjax_words", field="parts")
    assert parts == [f"{text}\nend" for text in found]
    fails(2, "dataset is empty", **common)
    fails(3, "not found", **common, dataset="no_such_words")
    fails(3, "split 'test'", **common, dataset="plmjax_words", split="test")
    fails(3, "no field 'body'", **common, dataset="plmjax_words", field="body")
    assert "tensorflow" not in sys.modules


# --- the kind of the files

ROWS = [{"id": n, "body": f"The cat no. {n} sits, and sees."} for n in range(30)]
BODIES = [row["body"] for row in ROWS]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table(separator, quote='"', end="\n"):
    rows = [
        ("id", "body"),
        *((n, quote + text + quote) for n, text in enumerate(BODIES)),
    ]
    return "".join(f"{separator.join(map(str, row))}{end}" for row in rows)


def kind_of(path, **config):
    source = open_source(SourceConfig(paths=str(path), **config))
    return source.description["kind"], list(source.documents())


def test_the_kind_follows_from_name_and_content(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.bin")
    for name, content, kind in (
        ("a.jsonl", JSON_LINES, "jsonl"),
        ("a.json", JSON_LINES, "jsonl"),
        ("a.dump", JSON_LINES, "jsonl"),
        ("a", JSON_LINES, "jsonl"),
        ("b.csv", table(","), "csv"),
        ("b.CSV", table(",", end="\r\n"), "csv"),
        ("b2.csv", "\ufeff" + table(";"), "csv"),
        ("b3.csv", table("\t", quote=""), "csv"),
        ("b4.csv", table("|"), "csv"),
        ("c.tsv", table("\t", quote=""), "tsv"),
        ("d.parquet", None, "parquet"),
        ("d.bin", None, "parquet"),
        ("e.txt", "\n".join(BODIES), "text"),
        ("e", "\n".join(BODIES), "text"),
        ("e.log", "\n".join(BODIES), "text"),
        ("e.md", "\n".join(BODIES), "text"),
    ):
        if content is not None:
            write(tmp_path / name, content)
        assert kind_of(tmp_path / name) == (kind, BODIES), name
    for ending, compress in PACKED.items():
        path = write(tmp_path / f"f.jsonl{ending}", compress(JSON_LINES.encode()))
        assert kind_of(path) == ("jsonl", BODIES)
    assert open_source(SourceConfig()).description["kind"] == "docstrings"
    fails(2, "kind=none", kind="docstrings", paths=path)


def test_an_explicit_kind_gives_the_fingerprint_it_gave_before(tmp_path):
    def fingerprint(name, content, **config):
        path = write(tmp_path / name, content)
        return open_source(SourceConfig(paths=path, **config)).fingerprint[:16]

    # Computed before data.encoding and data.source.column existed.
    text = fingerprint("a.txt", "one\ntwo\n", kind="text")
    jsonl = fingerprint("a.jsonl", '{"text": "one"}\n', kind="jsonl", field="text")
    assert (text, jsonl) == ("eac1ae886e649739", "3ceb8605d41b351d")
    assert fingerprint("a.txt", "one\ntwo\n") == text
    assert fingerprint("a.jsonl", '{"text": "one"}\n') == jsonl
    latin = SourceConfig(paths=str(tmp_path / "a.txt"))
    assert open_source(latin, encoding="latin-1").fingerprint[:16] != text


def test_a_folder_is_its_files_of_one_kind(tmp_path):
    (tmp_path / "deep" / ".git").mkdir(parents=True)
    write(tmp_path / "a.jsonl", '{"text": "a"}')
    write(tmp_path / "deep" / "b.jsonl.gz", gzip.compress(b'{"text": "b"}'))
    for name in ("logo.png", "README.md", ".hidden.jsonl", "deep/.git/c.jsonl"):
        write(tmp_path / name, "nothing of this is read")
    source = open_source(SourceConfig(paths=str(tmp_path)))
    assert list(source.documents()) == ["a", "b"]
    (note,) = source.description["notes"]
    assert "files read: 2; left out: 2 hidden, 2 of other kinds" in note
    write(tmp_path / "more.txt", "text")
    glob = f"{tmp_path}/**/*.txt"
    source = open_source(SourceConfig(paths=str(tmp_path)))
    # Each by its kind, as one corpus.
    assert list(source.documents()) == ["a", "b", "text"]
    assert source.description["counts"]["documents"] == 3
    note = "2 files of jsonl (a.jsonl, ...), 1 file of text (more.txt)"
    assert note in source.description["notes"][-1]
    assert documents(kind="jsonl", paths=str(tmp_path)) == ["a", "b"]
    both = f"{tmp_path}/more.txt,{tmp_path}/a.jsonl"
    assert documents(paths=both) == ["a", "text"]
    assert documents(paths=glob) == documents(kind="text", paths=glob) == ["text"]
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "logo.png", "")
    fails(2, "no files of a known kind", ".png", paths=f"{tmp_path}/images")


def test_paths_with_commas_and_in_tuples(tmp_path):
    one, two = write(tmp_path / "One, too.txt", "1"), write(tmp_path / "[b].txt", "2")
    assert documents(paths=one) == ["1"]
    assert documents(paths=(one,)) == ["1"]
    assert documents(paths=(one, two)) == ["1", "2"]
    assert SourceConfig(paths=("a", "b*")) == SourceConfig(paths="a,b*")
    assert SourceConfig(paths=()) == SourceConfig()
    with pytest.raises(PlmjaxError, match="must hold strings"):
        SourceConfig(paths=(1,))


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("a.csv", table(","), "text", ("a table", "id,body", "kind=csv")),
        ("a.csv", "text\n", "text", ("a table", "kind=csv")),
        ("a.txt", table(","), None, ("a table", "kind=csv")),
        ("a.txt", table(";"), "text", ("a table", "kind=csv")),
        ("a.txt", JSON_LINES, None, ("JSON lines", "kind=jsonl")),
        ("a.txt", "# comment\n" + JSON_LINES, None, ("30 of the 31", "kind=jsonl")),
        ("a.json", json.dumps(ROWS), "text", ("a single JSON value", "jq -c")),
        ("a.json", json.dumps(ROWS, indent=1), None, ("a single JSON value", "jq -c")),
        ("a.txt", "\n".join(BODIES), "jsonl", ("it is text", "kind=text")),
        ("a.jsonl", JSON_LINES, "csv", ("JSON lines", "kind=jsonl")),
        ("a.txt", table("\t"), None, ("tabs", "column=2", "kind=tsv")),
        (
            "a.txt",
            "x\n\n" + "".join(f"{n}\t{text}\n\n" for n, text in enumerate(BODIES)),
            "text",
            ("tabs", "column=2"),
        ),
        ("a.txt", "1\tOne cat.\n2\tTwo cats.\n", "text", ("2 of the 2", "column=2")),
    ],
)
def test_no_format_is_read_as_another(tmp_path, name, content, kind, words):
    path = write(tmp_path / name, content)
    fails(3, name if "of the" not in words[0] else "", *words, kind=kind, paths=path)
    config = SourceConfig(kind="text", paths=path)
    assert next(open_source(config, unchecked=True).documents())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_column_of_numbered_lines(tmp_path, end):
    lines = [f"{n}\t{text}\t{n}" for n, text in enumerate(BODIES)]
    path = write(tmp_path / "a.tsv", end.join([*lines, "", ""]))
    assert documents(paths=path, column=2) == BODIES
    assert documents(kind="text", paths=path, column=1)[-1] == "29"
    fails(3, "a.tsv:1", "3 of the 4 columns", "column", paths=path, column=4)


@pytest.mark.parametrize(
    "text",
    [
        "He said, she said, they said.\n" * 20,
        "\tAn indented line of a code.\n" * 20,
        "| a | table | of markdown |\n" * 20,
        "Chapter 1\n\nIt was 1,000 miles; we went.\n" * 20,
        '{"This" is no JSON, he said.}\n' * 20,
        "[[Category:Cats]]\n" * 20,
        "苹果,梨,桃。\n我们去,他们来。\n" * 20,
    ],
)
def test_prose_is_no_table(tmp_path, text):
    path = write(tmp_path / "a.txt", text)
    assert documents(paths=path, document="file") == [text.strip()]


# --- the field with the text


def test_words_that_mean_nothing_elsewhere_stay_and_empty_cells_are_counted(tmp_path):
    import datasets

    texts = ["null", "NA", "N/A", "None", "nan", "a cat"]
    rows = [*({"text": t, "n": "x"} for t in texts), {"text": "", "n": "x"}]
    csv_text = "".join(f"{row['text']},{row['n']}\n" for row in [*rows, rows[-1]])
    rows.append({"text": None, "n": "x"})
    write(tmp_path / "a.csv", "text,n\n" + csv_text)
    write(tmp_path / "a.tsv", "text\tn\n" + csv_text.replace(",", "\t"))
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.csv", "text,n\n" + csv_text)
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet", "saved", "folder"):
        kind = "hf" if name == "folder" else None
        source = open_source(SourceConfig(kind=kind, paths=str(tmp_path / name)))
        assert list(source.documents()) == texts, name
        assert source.description["counts"]["empty_records"] == 2, name
    write(tmp_path / "b.jsonl", '{"text": null}\n')
    fails(3, "is empty", "(records: 1)", paths=str(tmp_path / "b.jsonl"))


def test_the_only_field_with_texts(tmp_path):
    def field(*rows):
        return choose_field([{"id": n} | row for n, row in enumerate(rows)], "a.csv")

    text = "A cat sits here."
    other = {
        "date": "12 March 2020 10:00",
        "url": "https://a.b/c",
        "animal": "cat",
        "score": 0.5,
        "size": "12 kg",
        "tags": ["cat", "dog"],
        "empty": None,
    }
    assert field({**other, "body": text}) == "body"
    assert field({**other, "body": [text, text]}) == "body"
    assert field({**other, "body": "我们今天去北京大学学习"}) == "body"
    assert field({**other, "body": None}, {**other, "body": text}) == "body"
    assert field({"body": text, "text": "x"}) == "text"
    assert choose_field([{"word": "cat"}], "a.csv") == "word"
    breeds = [{"breed": "main coon", "body": f"{text} {n}"} for n in range(30)]
    assert field(*breeds) == "body"
    with fails_with(3, "2 fields", f"title ('{text}'), body ('{text}')", "field"):
        field({"title": text, "body": text})
    with fails_with(3, "no field that looks", "id (0), date ('12 March", "field"):
        field(other)


def test_tables_that_are_broken(tmp_path):
    def bad(name, content, *words):
        fails(3, *words, paths=write(tmp_path / name, content))

    bad("a.csv", "id,text\n1,a\n2,b,c\n", "a.csv:3", "3 fields where 2", "','")
    bad("a.csv", "text,text\na,b\n", "a.csv:1", "two columns", "'text'")
    bad("a.csv", '1,"A cat, here"\n2,b\n', "a.csv:1", "'1' is data", "first line")
    bad("a.csv", 'text\n"open\n', "a.csv:2", "quotation")
    bad("a.csv", "", "empty")
    bad("a.csv", "A cat\n", "empty", "below a line of column names")
    bad("a.tsv", "id\ttext\n1\n", "a.tsv:2", "1 fields where 2")
    path = write(tmp_path / "b.csv", "sep=;\nn; text\n1;A cat, sitting\n")
    assert documents(paths=path) == ["A cat, sitting"]
    path = write(tmp_path / "b.csv", 'n,text\n1,"two\nlines, one text"\n\n2,""\n')
    assert documents(paths=path) == ["two\nlines, one text"]


# --- what ends a document


def survey(*texts, block=10_000):
    counts = Survey()
    for text in texts:
        counts.add(text[i : i + block] for i in range(0, len(text), block))
    return counts


def test_a_survey_counts_all_of_every_file():
    text = "\n \n" + "one\ntwo\n\n \t\n\nthree\n" * 40 + "\n\n"
    texts = (text, "1\ta\n", '{"a": 1}\n{"b" : 2}', "", " \n")
    for block in (10_000, 7, 2, 1):
        counts = survey(*texts, block=block)
        assert (counts.files, counts.lines, counts.gaps) == (5, 123, 40)
        assert str(counts) == "120 blank lines between 123 lines in 5 files"
    counts = survey(*texts)
    assert (counts.blank_lines, counts.numbered, counts.records) == (120, 1, 2)
    assert str(survey("a")) == "no blank lines between 1 line in 1 file"


PAPER = "A paragraph of a paper.\n" * 150 + "\n"
WRAPPED = "the fox, which was quick and brown, jumped over\nand " * 150 + "ran.\n\n"


@pytest.mark.parametrize(
    ("text", "document", "words"),
    [
        ("A paragraph.\n" * 5000 + PAPER * 115, "blank", "114 blank lines"),
        (PAPER * 20, "line", "19 blank lines between 3,001 lines in 2 files, too few"),
        ("Line.\n" * 50 + "\n\n\n", "line", "no blank lines between 51 lines"),
        ("Line.\n" * 50 + "\n" + "Line.\n" * 50, "line", "1 blank line between 101"),
        ("One chapter.\n" * 40 + ("\n" + "A line.\n" * 40) * 5, "blank", "5 blank"),
        (WRAPPED * 4, "blank", "hard-wrapped"),
        (WRAPPED.strip() + "\n", "line", "hard-wrapped"),
        ("A line.\n" * 2000 + "\n" + "A line.\n" * 250_000, "line", "too few"),
    ],
    ids=[*"abcdefgh"],
)
def test_what_ends_a_document_is_chosen_from_all_of_the_text(text, document, words):
    chosen, reason = choose_document([], survey(text, "x"))
    assert chosen == document and words in reason


def test_the_longest_document_is_counted_before_it_is_cut(tmp_path):
    path = write(tmp_path / "a.txt", "short\n" + "word " * 2000 + "\nshort\n")
    source = open_source(SourceConfig(paths=path, max_document_bytes=1000))
    assert len(list(source.documents())) >= 10
    counts = source.description["counts"]
    assert counts["cut_documents"] == 1
    assert 9900 < counts["longest_document_bytes"] <= 10_000
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "word " * 2000}))
    source = open_source(SourceConfig(paths=path, max_document_bytes=1000))
    assert len(list(source.documents())) >= 10
    assert source.description["counts"]["longest_document_bytes"] > 9900


# --- encodings

LETTERS = {
    "latin-1": "L'été, les élèves français mangent à la forêt.",
    "cp1252": "L’été, les « élèves » mangent…",
    "cp1250": "Zażółć gęślą jaźń, książę. Wąż pełznie przez źdźbła trawy.",
    "cp1251": "Красная кошка стоит возле старого дома.",
    "koi8_r": "Красная кошка стоит возле старого дома.",
    "gb18030": "红色的猫站在老房子旁边，狗睡在树下。",
    "shift_jis": "赤い猫は古い家の近くに立っています。",
    "euc_kr": "빨간 고양이가 오래된 집 근처에 서 있습니다.",
    "utf-16-le": "Красная кошка стоит возле старого дома.",
    "utf-16-be": "The red cat sits near the house.",
}


@pytest.mark.parametrize("name", LETTERS)
def test_an_encoding_is_recognised_offered_and_read(tmp_path, name):
    lines = [f"{LETTERS[name]} {n}" for n in range(20)]
    path = write(tmp_path / "a.txt", "\n".join(lines).encode(name))
    fails(3, "a.txt", f"--config.data.encoding={name}.", paths=path)
    assert documents(encoding=name, paths=path) == lines
    rows = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in lines)
    path = write(tmp_path / "a.jsonl", rows.encode(name))
    fails(3, "a.jsonl", f"--config.data.encoding={name}.", paths=path)
    assert documents(encoding=name, paths=path) == lines
    path = write(
        tmp_path / "a.csv",
        "\n".join(["id,text", *(f'1,"{t}"' for t in lines)]).encode(name),
    )
    assert documents(encoding=name, paths=path) == lines


def test_keys_of_other_kinds(tmp_path):
    path = write(tmp_path / "a.jsonl", JSON_LINES)
    fails(2, "column is for text, not", "jsonl", kind="jsonl", paths=path, column=2)
    fails(2, "data.encoding is for text, jsonl", "docstrings", encoding="latin-1")


def test_encodings_that_are_wrong(tmp_path):
    path = write(tmp_path / "a.txt", "Les élèves mangent.\n" * 9)
    fails(3, "a.txt is UTF-8, not", encoding="latin-1", paths=path)
    fails(2, "data.encoding=latn-1", "latin-1?", encoding="latn-1", paths=path)
    fails(2, "data.encoding=rot13", encoding="rot13", paths=path)
    with pytest.raises(PlmjaxError, match="data.encoding=utf-88"):
        DataConfig(encoding="utf-88")
    path = write(tmp_path / "b.txt", "Les élèves.\n".encode("latin-1"))
    fails(3, "b.txt: byte 0", "BOM", "data.encoding", encoding="utf-16", paths=path)
    fails(3, "b.txt: byte 4", "not ascii", encoding="ascii", paths=path)
    source = open_source(SourceConfig(paths=path), "replace", "ascii")
    assert list(source.documents()) == ["Les \ufffdl\ufffdves."]
    assert source.description["counts"]["replaced_characters"] == 2
    # Damaged UTF-8 is no other encoding.
    path = write(tmp_path / "c.txt", "Les élèves.\n".encode() + b"\xff")
    fails(3, "c.txt: byte 14", "Convert", "data.errors=replace", paths=path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((pack(b"a cat\n" * 9), f"a.txt{end}") for end, pack in PACKED.items()),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PK\x03\x04rest", "docx"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"PAR1", "kind=parquet"),
        (b"\0" * 257 + b"ustar\x0000", "tar archive"),
        (b"\0" * 99 + b"abc", "binary"),
        (bytes(range(128, 256)) * 9, "the file is binary, or"),
    ],
)
def test_bytes_that_are_no_text_are_named(tmp_path, content, words):
    path = write(tmp_path / "a.txt", content)
    fails(3, "a.txt", words, kind="text", paths=path)
    if "binary, or" not in words:  # else it might be text in another encoding
        fails(3, "a.txt", words, kind="text", paths=path, errors="replace")
    packed = write(tmp_path / "b.txt.gz", gzip.compress(content))
    fails(3, "b.txt.gz", words.partition("a.txt")[0], kind="text", paths=packed)


@pytest.mark.filterwarnings("ignore")
def test_folders_that_datasets_cannot_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, content, words in (
        ("a.jsonl.zst", PACKED[".zst"](b'{"text": "a"}'), "(a.jsonl.zst)"),
        ("a.jsonl", b"{bad", "JSON"),
        ("a.parquet", b"PAR1PAR1", "arquet"),
        ("a.xyz", b"", "data files"),
    ):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        write(folder / name, content)
        fails(3, folder.name, words, kind="hf", paths=str(folder))
