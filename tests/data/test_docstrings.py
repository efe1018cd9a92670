import ast
import hashlib
from pathlib import Path

import pytest

from plmjax.data import docstrings
from plmjax.data.docstrings import Package, harvest, licence
from plmjax.data.sources import SourceConfig, open_source

PROSE = "Return the rank of a matrix, which is the number of its rows that are free."
MODULE = f'''"""{PROSE}

    >>> rank(the_matrix_of_the_example_that_is_not_prose_at_all_for_sure)
    3

Parameters
----------
x : array_like
    The input that is given to the function, as it was in the file.
"""

class A:
    """Short."""

    async def f(self):
        """{PROSE} And this is the second sentence of it, for good measure."""
        def g():
            """{PROSE}"""
'''


def package(folder, files):
    for name, content in files.items():
        (folder / name).write_text(content)
    paths = {name: folder / name for name in files}
    return Package("p", "1.0", "MIT", "digest", paths, 0)


def test_harvests_english_docstrings_once(tmp_path, capfd):
    files = {
        "a.py": MODULE,
        "b.py": MODULE,
        "table.py": '"""' + "alpha 1 beta 2 gamma 3 delta 4\n" * 9 + '"""',
        "broken.py": 'def f(:\n    """' + PROSE + '"""',
        "escape.py": '"""A \\d is an invalid escape, of which nobody wants to hear."""',
    }
    texts, counts = harvest([package(tmp_path, files)])
    whole = ast.get_docstring(ast.parse(MODULE))
    assert texts == [
        whole,
        PROSE + " And this is the second sentence of it, for good measure.",
        PROSE,
        "A \\d is an invalid escape, of which nobody wants to hear.",
    ]
    assert counts == {"files": 5, "skipped_files": 1}
    assert capfd.readouterr() == ("", "")


def test_order_of_the_file_system_does_not_matter(tmp_path):
    names = ["b.py", "a.py", "c.py"]
    files = {name: MODULE.replace("rank", name[0] * 4) for name in names}
    one = harvest([package(tmp_path, files)])
    other = harvest([package(tmp_path, dict(sorted(files.items(), reverse=True)))])
    assert one == other and len(one[0]) > 3


def test_only_the_richest_files_are_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "DOCSTRING_BYTES", 100)
    files = {
        "rich.py": f'"""{PROSE * 2}"""',
        "poor.py": f'"""{PROSE}"""' + "\nx=1" * 99,
    }
    texts, counts = harvest([package(tmp_path, files)])
    assert counts["files"] == 1 and len(texts) == 1


def test_surrogates_do_not_get_through(tmp_path):
    text = PROSE + " A lone \\ud800 is no text, so that it must be replaced."
    texts, _ = harvest([package(tmp_path, {"a.py": f'"""{text}"""'})])
    assert "A lone ? is" in texts[0]


def test_source_of_this_machine(monkeypatch):
    monkeypatch.setattr(docstrings, "DOCSTRING_BYTES", 1_500_000)
    monkeypatch.setattr(docstrings, "cores", lambda: 1)
    source = open_source(SourceConfig())
    names = {p["name"] for p in source.description["packages"]}
    assert "numpy" in names and "plmjax" not in names
    assert all(p["licence"] for p in source.description["packages"])
    texts = list(source.documents())
    assert len(texts) > 20
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    again = open_source(SourceConfig())
    assert again.fingerprint == source.fingerprint
    repeated = hashlib.sha256("\0".join(again.documents()).encode()).hexdigest()
    assert repeated == digest


def test_standard_library_steps_in_when_packages_are_few(monkeypatch):
    monkeypatch.setattr(docstrings, "SOURCE_BYTES", 10**12)
    packages = open_source(SourceConfig()).description["packages"]
    assert packages[-1]["name"] == "Python"


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"License-Expression": "MIT"}, "MIT"),
        ({"License": "BSD"}, "BSD"),
        ({"License": "a\nlong\ntext", "Classifier": "License :: OSI :: X"}, "X"),
        ({}, "not stated"),
    ],
)
def test_licence(fields, expected):
    from email.message import Message

    message = Message()
    for key, value in fields.items():
        message[key] = value
    assert licence(message) == expected


def test_paths_left_out():
    for name in ("numpy/tests/a.py", "pip/_vendor/b.py", "../bin/x.py", "a_pb2.py"):
        assert docstrings._LEFT_OUT.search(name), name
    assert not docstrings._LEFT_OUT.search(Path("numpy/testsuite.py").as_posix())
