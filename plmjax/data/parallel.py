"""Work spread over processes, with its order kept and its memory bounded."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    start: Callable[..., None] | None = None,
    start_arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """function of each item, in order; start(*start_arguments) runs once a process.

    With one worker all happens in this process. At most two items a worker are under
    way, so an endless iterator of items is fine.
    """
    if workers == 1:
        if start is not None:
            start(*start_arguments)
        yield from map(function, items)
        return
    # Spawned, not forked: jax and the tokenizers library have threads by now.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (start, start_arguments),
    )
    try:
        under_way: deque = deque()
        for item in items:
            under_way.append(pool.submit(function, item))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(
    start: Callable[..., None] | None, start_arguments: tuple[Any, ...]
) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if start is not None:
        start(*start_arguments)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
