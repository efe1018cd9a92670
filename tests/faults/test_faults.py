"""The list of faults goes with the code: .ci/nightly plants what it names."""

import re
from collections import Counter

import pytest
from plant import LIST, ROOT, read_faults

FAULTS = read_faults()


def test_names_are_there_once():
    twice = [n for n, c in Counter(fault["name"] for fault in FAULTS).items() if c > 1]
    assert not twice and len(FAULTS) > 100, LIST


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["name"])
def test_its_place_and_its_tests_are_there(fault):
    text = (ROOT / fault["file"]).read_text()
    assert text.count(fault["old"]) == 1, "Write it anew where the code went."
    assert fault["new"] != fault["old"]
    for test in fault["tests"]:
        path, _, name = test.partition("::")
        source = (ROOT / path).read_text()
        assert not name or re.search(rf"^def {name.partition('[')[0]}\(", source, re.M)
