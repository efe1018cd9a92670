"""Work distributed over processes, in order and with bounded memory."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from plmjax.children import interrupted_later

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    start: Callable[..., None] | None = None,
    start_arguments: tuple[Any, ...] = (),
) -> Iterator[Result]:
    """Yields function(item) in order; each process first runs start(*start_arguments).

    With one worker, everything runs in this process. At most two items per worker are
    in progress, so the items may be endless.
    """
    if workers == 1:
        if start is not None:
            start(*start_arguments)
        yield from map(function, items)
        return
    # Forking is unsafe: jax and the tokenizers library have already started threads.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (start, start_arguments),
    )
    try:
        under_way: deque = deque()
        for item in items:
            with interrupted_later():  # here the pool starts its processes
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
    """Ends a worker with its parent; it would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
