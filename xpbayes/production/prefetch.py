"""Read ahead: the next piece is read and calibrated in a thread while this one is solved."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


@contextmanager
def prefetched(items: Iterator[Item], ahead: int = 1) -> Iterator[Iterator[Item]]:
    """Run an iterator in a thread, at most `ahead` items in front of whoever uses them.

    An error of the iterator is raised where its item would have come. Leaving the context early ends the thread.
    """
    waiting: queue.Queue[tuple[str, Item | BaseException | None]] = queue.Queue(maxsize=ahead)
    left = threading.Event()

    def put(kind: str, value: Item | BaseException | None) -> bool:
        while not left.is_set():
            try:
                waiting.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
        except BaseException as error:
            put("error", error)
        else:
            put("end", None)

    def drain() -> Iterator[Item]:
        while True:
            kind, value = waiting.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield drain()
    finally:
        left.set()
        thread.join()
