"""One thread that runs the model: what arrives together shares batches, by length."""

import contextlib
import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

from plmjax import PlmjaxError
from plmjax.serve.answers import Asked, Endpoint, Row


class Busy(Exception):
    """The queue is full, or the server stops."""


class TooMuch(PlmjaxError):
    """A request with more than a server does at once."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for, and what may wait.

    At most `batch` rows run at once; a request waits `wait_ms` for others, and at most
    `queue` wait for the model. A request has at most `max_bytes`, `inputs`, of at most
    `characters` each, and `rows`; its body must arrive within `timeout` seconds, and
    its answer within as many more.
    """

    batch: int = 32
    wait_ms: float = 3.0
    queue: int = 256
    max_bytes: int = 1 << 20
    timeout: float = 10.0
    inputs: int = 128
    characters: int = 100_000
    rows: int = 512


@dataclasses.dataclass(eq=False)
class _Job:
    inputs: Sequence[Any]
    future: Future
    asked: Asked | None = None
    scores: list = dataclasses.field(default_factory=list)
    left: int = 0  # rows without scores


@contextlib.contextmanager
def _errors_to(jobs: Iterable[_Job]) -> Iterator[None]:
    """Makes an error the result of requests; that of cancelled ones is lost."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, PlmjaxError):
            traceback.print_exc()
        for job in jobs:
            with contextlib.suppress(InvalidStateError):
                job.future.set_exception(error)


class Worker:
    """The thread, its queue, and `seen`, which is called with the rows of each batch."""

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits,
        seen: Callable[[int], Any] = lambda rows: None,
    ):
        self.endpoint, self.limits, self._seen = endpoint, limits, seen
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Refuses new requests, and ends the thread after those that wait."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(self.limits.timeout)

    @property
    def ready(self) -> bool:
        """Whether the thread takes requests."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a batch."""
        return self._queue.qsize()

    def submit(self, inputs: Sequence[Any]) -> Future:
        """Returns the future (answers, report) of a request.

        Raises:
          Busy: too many requests wait, or the thread has ended.
        """
        if not self.ready or self.waiting >= self.limits.queue:
            raise Busy
        job = _Job(inputs, Future())
        self._queue.put(job)
        return job.future

    def _run(self) -> None:
        while jobs := self._next():
            self._answer(jobs)

    def _next(self) -> list[_Job]:
        """Waits for a request, and a little for more; [] at the end."""
        jobs, job = [], self._queue.get()
        until = time.monotonic() + self.limits.wait_ms / 1000
        while job is not None:
            jobs.append(job)
            if len(jobs) >= self.limits.batch:
                return jobs
            try:
                job = self._queue.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                return jobs
        if jobs:
            self._queue.put(None)  # for the next call
        return jobs

    def _answer(self, jobs: list[_Job]) -> None:
        rows: list[tuple[_Job, int]] = []
        for job in jobs:
            if job.future.cancelled():  # its time is over
                continue
            with _errors_to([job]):
                job.asked = self._ask(job.inputs)
                job.left = len(job.asked.rows)
                job.scores = [None] * job.left
                rows += [(job, number) for number in range(job.left)]
        for batch in self._batches(rows):
            self._score(batch)

    def _ask(self, inputs: Sequence[Any]) -> Asked:
        asked = self.endpoint.ask(inputs)
        if len(asked.rows) > self.limits.rows:
            longest = max(len(ids) for ids, _ in asked.rows)
            raise TooMuch(
                f"the request needs {len(asked.rows):,} rows of {longest} tokens; at "
                f"most {self.limits.rows} are read at once.",
                hint="Send shorter texts, or fewer at once.",
            )
        return asked

    def _batches(
        self, rows: list[tuple[_Job, int]]
    ) -> Iterator[list[tuple[_Job, int, Row]]]:
        """Yields rows of similar length, the shortest first."""
        sized = [(job, n, job.asked.rows[n]) for job, n in rows if job.asked]
        batch: list[tuple[_Job, int, Row]] = []
        for one in sorted(sized, key=lambda one: len(one[2][0])):
            tokens = (len(batch) + 1) * len(one[2][0])
            full = tokens > self.endpoint.most_tokens
            if batch and (full or len(batch) >= self.limits.batch):
                yield batch
                batch = []
            batch.append(one)
        if batch:
            yield batch

    def _score(self, batch: list[tuple[_Job, int, Row]]) -> None:
        """Scores rows, and answers the requests of which they are the last."""
        batch = [one for one in batch if not one[0].future.done()]
        if not batch:
            return
        jobs = {job: None for job, *_ in batch}  # in order, each once
        with _errors_to(jobs):
            scores = self.endpoint.score([row for *_, row in batch])
            self._seen(len(batch))
            for (job, number, _), value in zip(batch, scores, strict=True):
                job.scores[number] = value
                job.left -= 1
        for job in jobs:
            if job.asked and not job.left and not job.future.done():
                with _errors_to([job]):
                    answers = self.endpoint.answers(job.asked, job.scores)
                    job.future.set_result((answers, job.asked.report))
