"""Texts in archives, folders of several kinds, crawls and named data sets."""

import dataclasses
import gzip
import io
import stat
import tarfile
import zipfile

import pytest
from test_sources import BODIES, JSON_LINES, documents, fails, table, write

from plmjax import PlmjaxError, machine
from plmjax.data import archives
from plmjax.data.config import DataConfig
from plmjax.data.sources import SourceConfig, open_source

MEMBERS = {
    "z.txt": b"last by name\nbut first",
    "b/one.txt.gz": gzip.compress(b"packed twice", mtime=0),
    "b/.hidden.txt": b"hidden",
    "README": b"about the others",
    "a.txt": b"first by name",
}
TEXTS = ["last by name", "but first", "packed twice", "first by name"]


def make_zip(path, files=MEMBERS, **attributes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("b")
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return str(path)


def make_tar(path, files=MEMBERS, kind=tarfile.REGTYPE):
    mode = {".gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", ".xz": "w:xz"}
    with tarfile.open(path, mode.get(str(path)[-3:], "w")) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize(
    "name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz"]
)
def test_members_are_read_in_their_order(tmp_path, name):
    path = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name)
    source = open_source(SourceConfig(paths=path))
    assert list(source.documents()) == list(source.documents()) == TEXTS
    (note,) = source.description["notes"]
    assert "files read: 3; left out: 1 hidden, 1 of other kinds (README" in note
    assert source.description["files"] == 1 and len(list(tmp_path.iterdir())) == 1
    # In a folder, beside a file and another archive.
    write(tmp_path / "0.txt", "zero")
    make_zip(tmp_path / "b.zip", {"x.txt": b"in b"})
    assert documents(paths=str(tmp_path)) == ["zero", *TEXTS, "in b"]


def test_a_packed_tar_is_unpacked_once_a_pass(tmp_path, monkeypatch):
    files = {f"{n:03}.txt": b"x %d\n" % n * 9 for n in range(200, 0, -1)}
    path = make_tar(tmp_path / "a.tar.gz", files)
    opened, rewound = [], []
    read = archives._read_index
    monkeypatch.setattr(
        archives, "_read_index", lambda *a: opened.append(a) or read(*a)
    )
    rewind = gzip._GzipReader._rewind  # type: ignore
    monkeypatch.setattr(
        gzip._GzipReader,  # type: ignore
        "_rewind",
        lambda self: rewound.append(self) or rewind(self),
    )
    assert len(documents(paths=path)) == len(files) and len(opened) == 1
    assert len(rewound) < 10


def test_archives_hold_other_kinds(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a.jsonl": JSON_LINES, "b.csv": table(",")})
    assert documents(paths=path, field="body") == BODIES * 2
    make_zip(tmp_path / "c.zip", {"a.png": b"x"})
    fails(2, "the archive", "no files of a known kind", paths=f"{tmp_path}/c.zip")
    inner = (tmp_path / make_tar(tmp_path / "d.tar.gz")).read_bytes()
    path = make_zip(tmp_path / "e.zip", {"a.png": b"x", "b/D.tar.gz": inner})
    fails(2, f"an archive, which are not read: {path}/b/D.tar.gz", paths=path)
    path = make_zip(tmp_path / "f.zip", MEMBERS | {"c.zip": inner})
    (note,) = open_source(SourceConfig(paths=path)).description["notes"]
    assert "2 of other kinds (c.zip, ...)" in note


@pytest.mark.parametrize(
    "name",
    ["../x.txt", "/etc/x.txt", "a/../../x.txt", "a/..", "C:\\x.txt", "..\\x.txt"],
)
def test_no_path_leaves_an_archive(tmp_path, name):
    for path in (
        make_zip(tmp_path / "a.zip", {"a.txt": b"fine", name: b"canary"}),
        make_tar(tmp_path / "a.tar.gz", {"a.txt": b"fine", name: b"canary"}),
    ):
        fails(3, "leads out of the archive", repr(name), paths=path)


def test_links_devices_bombs_and_damage_are_refused(tmp_path, monkeypatch):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        path = make_tar(tmp_path / "l.tar", {"l.txt": b""}, kind)
        fails(3, "'l.txt' is a link or a device", paths=path)
    link = {"external_attr": (stat.S_IFLNK | 0o777) << 16}
    path = make_zip(tmp_path / "l.zip", {"l.txt": b"/etc/passwd"}, **link)
    fails(3, "'l.txt' is a link or a device", paths=path)
    fine = make_zip(tmp_path / "fine.zip")
    whole = (tmp_path / "fine.zip").read_bytes()
    fails(3, "cannot be read", paths=write(tmp_path / "cut.zip", whole[:200]))
    at = whole.index(b"b/one.txt.gz") + 30
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    fails(3, "b/one.txt.gz cannot", paths=write(tmp_path / "flip.zip", flipped))
    packed = (tmp_path / make_tar(tmp_path / "a.tar.gz")).read_bytes()[:150]
    fails(3, "cannot be read", paths=write(tmp_path / "cut.tar.gz", packed))
    bomb = tarfile.TarInfo("a.txt")
    bomb.size = 201 << 20
    path = write(tmp_path / "bomb.tar.gz", gzip.compress(bomb.tobuf(), mtime=0))
    fails(3, "more than 200 times", paths=path)
    monkeypatch.setattr(archives, "TOTAL_BYTES", 20)
    archives._latest.clear()
    fails(3, "more than 20 bytes", paths=fine)


def test_quotation_marks_are_text_where_asked(tmp_path):
    path = write(tmp_path / "a.csv", 'id,text\n1,"A cat, said\n2,a "dog" barked\n')
    fails(3, "a.csv:2", paths=path)
    fails(3, "3 fields where 2", quoting=False, paths=path)
    path = write(tmp_path / "a.csv", 'id,text\n1,"A cat said\n2,a "dog" barked\n')
    assert documents(paths=path, quoting=False) == ['"A cat said', 'a "dog" barked']
    path = write(tmp_path / "a.tsv", 'id\ttext\n1\t"A cat\tsaid"\n')
    assert documents(paths=path, quoting=True) == ["A cat\tsaid"]
    fails(2, "quoting is for csv, tsv", kind="text", paths=path, quoting=True)


def record(kind: str, body: bytes, content: str = "") -> bytes:
    """Returns a record of WARC; `content` is the type and status of a response."""
    inner = "text/plain"
    if content:
        inner, (status, type_) = "application/http", content.split(" ", 1)
        body = f"HTTP/1.1 {status} X\r\nContent-Type: {type_}\r\n\r\n".encode() + body
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
    head += f"WARC-Date: 2026-01-01T00:00:00Z\r\nContent-Type: {inner}\r\n"
    head += "WARC-Target-URI: http://example.org/\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


PAGE = b"""<html><body><nav><a href="/">Home</a> <a href="/b">About</a></nav><article>
<h1>The rows of a matrix</h1><p>Every row of the matrix holds one vector for each token
in the list, and that is why the rows are so long.</p><p>A second paragraph says more of
it: the columns are shorter than the rows, as anyone can count.</p></article></body>"""


def test_the_main_text_of_a_crawl_is_read(tmp_path):
    pytest.importorskip("warcio", reason="of the extra `data`")
    pytest.importorskip("trafilatura", reason="of the extra `data`")
    records = [
        record("warcinfo", b"software: x"),
        record("response", PAGE, "200 text/html; charset=utf-8"),
        record("response", PAGE, "404 text/html"),
        record("response", b"\x89PNG", "200 image/png"),
        record("response", b"A plain page.", "200 text/plain"),
        record("conversion", "Of a WET file: ŭ.".encode()),
    ]
    plain = write(tmp_path / "a.warc", b"".join(records))
    packed = b"".join(gzip.compress(one, mtime=0) for one in records)
    for path in (plain, write(tmp_path / "b.warc.gz", packed)):
        source = open_source(SourceConfig(paths=path))
        page, *others = source.documents()
        assert page.startswith("The rows of a matrix") and page.endswith("can count.")
        assert "Home" not in page and len(page.split("\n")) == 3
        assert others == ["A plain page.", "Of a WET file: ŭ."]
        assert source.description["counts"]["empty_records"] == 3
        assert "by trafilatura" in source.description["notes"][-1]
    path = write(tmp_path / "cut.warc.gz", packed[:900])
    fails(3, "cut.warc.gz cannot be read", paths=path)
    path = write(tmp_path / "no.warc", b"no crawl\n" * 9)
    fails(3, "no.warc cannot be read", paths=path)
    plain = b"".join(records).replace(b"WARC-Target-URI: ", b"X: ")
    fails(3, "a.warc cannot be read", paths=write(tmp_path / "a.warc", plain))


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    def missing(module):
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr(machine.importlib, "import_module", missing)
    path = write(tmp_path / "a.warc", b"")
    fails(2, "the package warcio", "plmjax[data]", paths=path)


def test_a_data_set_is_streamed_from_the_hub(tmp_path, monkeypatch):
    """From a folder that stands for it: tests have no network."""
    import datasets
    import huggingface_hub

    write(tmp_path / "train.jsonl", JSON_LINES)
    load, asked = datasets.load_dataset, []

    class Facts:
        sha = "c0ffee"

    def opened(name, subset, **options):
        asked.append((name, subset, options.pop("revision")))
        return load(str(tmp_path), **options)

    config = SourceConfig(dataset="who/what", subset="eo", license="cc-by-4.0")
    fails(
        3,
        "who/what",
        "subset eo",
        "offline",
        "--config.data.source.paths",
        **{"dataset": "who/what", "subset": "eo"},
    )
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: Facts)
        patch.setattr(datasets, "load_dataset", opened)
        source = open_source(config)
        assert list(source.documents()) == BODIES
        assert asked == [("who/what", "eo", "c0ffee")]
        assert source.description["commit"] == "c0ffee"
        assert source.description["dataset"] == "who/what"
        first = source.fingerprint
        few = open_source(dataclasses.replace(config, max_documents=3))
        assert list(few.documents()) == BODIES[:3] and few.fingerprint != first
        Facts.sha = "beef"
        assert open_source(config).fingerprint != first
    fails(2, "names a data set of the hub", kind="hf", dataset="a", paths="b")


def test_nothing_is_left_of_a_mixture_that_is_refused(tmp_path):
    from plmjax import config as config_lib
    from plmjax.pretrain.build import prepare_data
    from plmjax.workdir import RunConfig, Workdir

    write(tmp_path / "a.txt", "\n".join(BODIES))
    for name, content, words in (
        ("b.txt", b" \n", "is empty or only white space"),
        ("b.zip", b"", "cannot be read"),
        ("b.jsonl", JSON_LINES, "has no field 'txet'"),
    ):
        path = write(tmp_path / name, content)
        mixture = (
            {"name": "a", "paths": f"{tmp_path}/a.txt"},
            {
                "name": "bad",
                "paths": path,
                **({"field": "txet"} if name.endswith("jsonl") else {}),
            },
        )
        config = config_lib.build(RunConfig, {"data": {"mixture": mixture}})
        assert isinstance(config.data, DataConfig)
        workdir = Workdir(tmp_path / "run")
        workdir.create()
        with pytest.raises(PlmjaxError, match="data.mixture, source 'bad': ") as info:
            prepare_data(config, workdir, lambda _: None, lambda _: None)
        assert words in str(info.value) and info.value.code == 3
        assert not any(workdir.path.iterdir())
