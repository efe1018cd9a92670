import collections

import numpy as np
import pytest

from plmjax import PlmjaxError
from plmjax.data.examples import Example
from plmjax.data.folds import make_folds


def examples(units, labels):
    return [
        Example(str(n), f"a:{n}", (f"text {n}",), label, str(unit))
        for n, (unit, label) in enumerate(zip(units, labels, strict=True))
    ]


CASES = {
    "apart": (range(60), "ab" * 30),
    "groups": ([n // 4 for n in range(60)], "ab" * 30),
    "twins": ([n // 2 * 2 if n < 10 else n for n in range(60)], "aab" * 20),
}


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_on_both_sides_and_each_example_in_one_fold(case, stratified):
    data = examples(*CASES[case])
    folds = make_folds(data, 5, seed=1, stratified=stratified)
    assert len(folds) == 5
    assert sorted(np.concatenate([fold for _, fold in folds])) == [*range(60)]
    for rest, fold in folds:
        assert sorted([*rest, *fold]) == [*range(60)]
        assert not {data[n].unit for n in rest} & {data[n].unit for n in fold}
    again = make_folds(data, 5, seed=1, stratified=stratified)
    other = make_folds(data, 5, seed=2, stratified=stratified)
    assert [f.tolist() for _, f in folds] == [f.tolist() for _, f in again]
    assert [f.tolist() for _, f in folds] != [f.tolist() for _, f in other]


def test_stratified_folds_have_the_same_share_of_each_label():
    data = examples(range(50), "a" * 40 + "b" * 10)
    for _, fold in make_folds(data, 5, seed=0, stratified=True):
        assert collections.Counter(data[n].label for n in fold) == {"a": 8, "b": 2}
    rare = examples(range(50), "a" * 48 + "b" * 2)
    assert len(make_folds(rare, 5, seed=0, stratified=True)) == 5


def test_folds_that_cannot_be_made():
    data = examples([n // 10 for n in range(30)], "ab" * 15)
    for count in (1, 4):
        with pytest.raises(PlmjaxError, match="3 groups or texts"):
            make_folds(data, count, seed=0)
    with pytest.raises(PlmjaxError, match="'b', has 2"):
        make_folds(examples(range(3), "abb"), 3, seed=0, stratified=True)
    with pytest.raises(PlmjaxError, match="stratified=False"):
        make_folds(examples(range(3), [(), (), ()]), 3, seed=0, stratified=True)
