"""Cross-validation: k splits of examples that share no group or text."""

import warnings
from collections.abc import Sequence

import numpy as np

from plmjax import DataError, PlmjaxError
from plmjax.data.examples import Example

Fold = tuple[np.ndarray, np.ndarray]


def make_folds(
    examples: Sequence[Example], count: int, seed: int, *, stratified: bool = False
) -> list[Fold]:
    """Returns `count` pairs (train, fold) of sorted indices; each is in one fold.

    Examples of one group or one text stay in the same fold. `stratified` spreads the
    labels evenly, if a label is one name (classes) or number (choices).

    Raises:
      PlmjaxError: fewer groups and texts than folds, an empty fold, or labels that
        cannot be stratified.
    """
    from sklearn import model_selection as sk

    _, unit = np.unique([example.unit for example in examples], return_inverse=True)
    units = int(unit.max()) + 1
    if not 2 <= count <= units:
        raise DataError(
            f"{len(examples):,} examples cannot be split into {count} folds: "
            f"they have {units:,} groups or texts that must stay together.",
            hint="Set at least 2 folds and at most as many as groups or texts.",
        )
    distinct = units == len(examples)
    groups = None if distinct else unit
    chance = {"shuffle": True, "random_state": seed}
    if stratified:
        kind = sk.StratifiedKFold if distinct else sk.StratifiedGroupKFold
        labels = _strata(examples, count)
    else:
        kind = sk.KFold if distinct else sk.GroupKFold
        labels = None
    with warnings.catch_warnings():
        # A label with fewer examples than folds is necessarily missing in some.
        warnings.filterwarnings("ignore", message="The least populated class")
        pairs = kind(n_splits=count, **chance).split(unit, labels, groups)
        folds = [(np.asarray(train), np.asarray(fold)) for train, fold in pairs]
    if any(not len(fold) for _, fold in folds):
        raise DataError(
            f"one of {count} folds would be empty: a few groups hold nearly all.",
            hint="Set fewer folds.",
        )
    return folds


def _strata(examples: Sequence[Example], count: int) -> np.ndarray:
    labels = [example.label for example in examples]
    if not all(isinstance(label, str | int) for label in labels):
        raise PlmjaxError(
            "folds are stratified by labels that are one name each.",
            hint="Set stratified=False for tags, answers, several labels and numbers.",
        )
    names, number, sizes = np.unique(
        list(map(str, labels)), return_inverse=True, return_counts=True
    )
    if sizes.max() < count:
        raise DataError(
            f"no label has {count} examples, one a fold; the most "
            f"frequent, {str(names[sizes.argmax()])!r}, has {sizes.max()}.",
            hint="Set fewer folds, or stratified=False.",
        )
    return number
