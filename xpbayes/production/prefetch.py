"""Read ahead: the next piece is read and calibrated in a thread while this one is solved."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def prefetched(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """Run an iterator in a thread, two items in front of whoever uses them: one is read, one waits.

    An error of the iterator is raised where its item would have come. Leaving the context early ends the thread.
    """
    pool, end = ThreadPoolExecutor(1), object()
    waiting = deque(pool.submit(next, items, end) for _ in range(2))

    def drain() -> Iterator[Item]:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]

    try:
        yield drain()
    finally:
        pool.shutdown(cancel_futures=True)
