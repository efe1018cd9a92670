"""Names of leaves and rules over them."""

import numpy as np
import pytest

from plmjax import PlmjaxError, tree

PARAMS = {"encoder": {"layer_0": {"kernel": np.zeros((2, 3))}}, "bias": np.ones(4)}


def test_flatten_and_unflatten_are_inverse():
    flat = tree.flatten(PARAMS)
    assert list(flat) == ["encoder/layer_0/kernel", "bias"]
    assert tree.flatten(tree.unflatten(flat)).keys() == flat.keys()


def test_first_match_wins_and_an_uncovered_name_is_an_error():
    rules = ((".*/kernel", 1), (".*kernel", 2), ("bias", 3))
    names = tree.map_named(lambda name, _: tree.match(rules, name), PARAMS)
    assert names == {"encoder": {"layer_0": {"kernel": 1}}, "bias": 3}
    with pytest.raises(PlmjaxError, match="no rule covers the parameter 'scale'"):
        tree.match(rules, "scale")


def test_sizes_and_differences():
    assert tree.count(PARAMS) == 10
    assert tree.size_in_bytes(PARAMS) == 80
    other = {"encoder": {"layer_0": {"kernel": np.zeros((2, 4))}}, "more": np.ones(1)}
    assert tree.differences(PARAMS, PARAMS) == []
    assert tree.differences(PARAMS, other) == [
        "encoder/layer_0/kernel is float64[2, 4], not float64[2, 3]",
        "missing bias",
        "unexpected more",
    ]
