"""The watchdog: it bites what hangs, and nothing that only is slow."""

import os
import signal
import time

import pytest

from plmjax import Exit
from plmjax.stop import Watchdog, deferred


class Ended(list):
    """Takes the exit codes that a watchdog would end the process with."""


def watch(tmp_path, seconds: float, **more) -> tuple[Watchdog, Ended]:
    ended = Ended()
    dog = Watchdog(seconds, tmp_path / "hang.txt", ended.append, **more)
    return dog, ended


def wait_for(ended: Ended) -> None:
    end = time.monotonic() + 30
    while not ended and time.monotonic() < end:
        time.sleep(0.02)


def test_what_hangs_is_ended_with_its_stacks(tmp_path, capfd):
    dog, ended = watch(tmp_path, 0.2)
    with dog:
        for step in range(1, 6):
            dog.moved(step)
        wait_for(ended)
    assert ended == [Exit.RESUMABLE]
    text = (tmp_path / "hang.txt").read_text()
    assert "after step 5 " in text and "wait_for" in text  # where this thread stands
    assert "nothing has moved" in capfd.readouterr().err


def test_a_slow_run_is_not_a_hung_one(tmp_path):
    dog, ended = watch(tmp_path, 0.2)
    for step in range(1, 6):
        dog.moved(step)
    for step in range(6, 10):
        time.sleep(0.1)
        dog.moved(step)
    assert dog.patience() >= 1.0  # ten steps, not a fifth of a second
    assert not ended


def test_the_first_step_may_compile(tmp_path):
    dog, _ = watch(tmp_path, 60, first=10)
    assert dog.patience() == 600
    for step in range(1, 5):  # another process may compile for longer
        dog.moved(step)
        assert dog.patience() == 600
    dog.moved(5)
    assert dog.patience() == 60
    dog.compiles()  # the first evaluation, rows of another length
    dog.moved()
    assert dog.patience() == 600
    for step in range(6, 11):
        dog.moved(step)
    assert dog.patience() == 60


def test_it_can_be_off(tmp_path):
    ended = Ended()
    with Watchdog(None, tmp_path / "hang.txt", ended.append) as dog:
        dog.moved(1)
    assert not ended and not (tmp_path / "hang.txt").exists()


@pytest.fixture
def interrupts():
    """Ctrl-C interrupts, even where these tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_for_what_must_not_be_broken_off(interrupts):
    done = []
    with pytest.raises(KeyboardInterrupt):
        with deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the rest")
        done.append("what comes after")
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_does_not_wait(interrupts):
    done = []
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the first waits")
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the second does not")
    assert done == ["the first waits"]
