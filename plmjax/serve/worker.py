"""One thread that runs the model: requests that arrive together share its batches."""

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from plmjax.serve.answers import Asked, Endpoint

_Job = tuple[Sequence[Any], Future]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for, and what may wait.

    At most `batch` requests run at once; a request waits `wait_ms` for others, and at
    most `queue` wait for the model. A request has at most `max_bytes`, `inputs` and
    `characters`; its body must arrive within `timeout` seconds, and its answer within
    as many more.
    """

    batch: int = 32
    wait_ms: float = 3
    queue: int = 256
    max_bytes: int = 1 << 20
    timeout: float = 10
    inputs: int = 128
    characters: int = 100_000


class Worker:
    """The thread and its queue; `sizes` gets how many requests each batch has."""

    def __init__(self, endpoint: Endpoint, limits: Limits, sizes: Any):
        self._endpoint, self._limits, self._sizes = endpoint, limits, sizes
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.start = self._thread.start

    def close(self) -> None:
        """Refuses new requests, and ends the thread after those that wait."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(self._limits.timeout)

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a batch."""
        return self._queue.qsize()

    def submit(self, inputs: Sequence[Any]) -> Future:
        """Returns the future answers of a request, and its report.

        Raises:
          queue.Full: too many requests wait, or the thread has ended.
        """
        if not self.ready or self.waiting >= self._limits.queue:
            raise queue.Full
        future: Future = Future()
        self._queue.put((inputs, future))
        return future

    def _run(self) -> None:
        while jobs := self._next():
            self._sizes.observe(len(jobs))
            self._answer([job for job in jobs if not job[1].cancelled()])

    def _next(self) -> list[_Job]:
        """Waits for a request, and a little for more; [] at the end."""
        jobs = [self._queue.get()]
        until = time.monotonic() + self._limits.wait_ms / 1000
        with contextlib.suppress(queue.Empty):
            while jobs[-1] is not None and len(jobs) < self._limits.batch:
                jobs.append(self._queue.get(timeout=max(until - time.monotonic(), 0)))
        if jobs[-1] is None and len(jobs) > 1:
            self._queue.put(None)  # for the next call
        return [job for job in jobs if job is not None]

    def _answer(self, jobs: list[_Job]) -> None:
        asked: list[tuple[Asked, Future]] = []
        for inputs, future in jobs:
            with _errors_to([future]):
                asked.append((self._endpoint.ask(inputs), future))
        if not asked:
            return
        with _errors_to([future for _, future in asked]):
            scores = iter(self._endpoint.score([one for one, _ in asked]))
            for one, future in asked:
                mine = [next(scores) for _ in one.arrays["tokens"]]
                with _errors_to([future]):
                    answers = self._endpoint.answers(one, mine)
                    future.set_result((answers, one.report))


@contextlib.contextmanager
def _errors_to(futures: Sequence[Future]) -> Iterator[None]:
    """Makes an error the result of requests; nobody reads that of cancelled ones."""
    try:
        yield
    except Exception as error:
        for future in futures:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
