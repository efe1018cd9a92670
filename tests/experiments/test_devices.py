"""How a machine is divided among trials."""

import pytest

from plmjax import PlmjaxError
from plmjax.experiments.devices import divide


def parts(slots):
    return [slot.cores for slot in slots]


def test_cores_are_divided_and_what_is_left_goes_to_the_first():
    assert parts(divide(3, range(8), [])) == [(0, 1, 2), (3, 4, 5), (6, 7)]
    assert parts(divide(3, [4, 7], [])) == [(4,), (7,), (4,)]
    assert all(not slot.environment for slot in divide(3, range(8), []))


def test_one_trial_at_a_time_has_the_machine():
    (slot,) = divide(1, range(8), ["0", "1"])
    assert slot.cores == () and slot.environment == {} and slot.name == ""


def test_gpus_are_divided_and_shared_where_they_are_few():
    slots = divide(2, range(4), ["0", "1", "2"])
    visible = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots]
    assert visible == ["0,1", "2"]
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in slots[0].environment
    assert slots[1].name == "GPU 2, cores 2,3"
    slots = divide(4, range(4), ["GPU-a", "GPU-b"])
    visible = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots]
    assert visible == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]
    shares = {slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in slots}
    assert shares == {"0.450"}


def test_a_tpu_is_not_divided():
    with pytest.raises(PlmjaxError, match="takes all TPU chips"):
        divide(2, range(4), [], tpus=True)
    assert len(divide(1, range(4), [], tpus=True)) == 1
