import pytest

from plmjax import PlmjaxError, config
from plmjax.data.columns import ColumnsConfig
from plmjax.tasks import KINDS
from plmjax.tasks.config import TaskConfig
from plmjax.tasks.labelled import FILES, FOLDERS


def test_every_kind_can_be_configured():
    assert [*KINDS] == [kind.name for kind in KINDS.values()]
    choices = config.describe(dict(config.fields(TaskConfig))["kind"])
    assert choices.split(" | ") == [*KINDS]


def test_every_format_has_its_reader():
    choices = config.describe(dict(config.fields(TaskConfig))["format"]).split(" | ")
    assert choices == ["auto", *FILES, *FOLDERS]
    assert {f for kind in KINDS.values() for f in kind.formats} == {*FILES, *FOLDERS}
    for kind in KINDS.values():
        assert {*kind.suffixes.values()} <= {*kind.formats}


def test_a_config_is_built_from_what_a_file_and_overrides_say():
    overrides = ["columns.text=1", "header=False", "labels=('no', 'yes')"]
    loaded = config.load(TaskConfig, None, overrides)
    built = loaded
    assert built == TaskConfig(
        header=False, columns=ColumnsConfig(text="1"), labels=("no", "yes")
    )


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"kind": "tags", "format": "csv"}, "task.format=csv"),
        ({"held_out_percent": 0.0}, "task.held_out_percent"),
        ({"length": 4}, "task.length"),
        ({"stride": 0}, "task.stride"),
        ({"label_separator": ""}, "task.label_separator"),
        ({"separator": ";;"}, "task.separator"),
        ({"separator": ""}, "task.separator"),
        ({"labels": ("a",)}, "task.labels"),
        ({"labels": ("a", "a")}, "task.labels"),
        ({"kind": "regression", "labels": ("a", "b")}, "task.labels"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong, word):
    with pytest.raises(PlmjaxError, match=word) as info:
        TaskConfig(**wrong)
    assert info.value.hint and info.value.code == 2
