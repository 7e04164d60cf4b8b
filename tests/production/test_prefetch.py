"""Reading ahead changes nothing but when things are read."""

import threading

import pytest

from xpbayes.production.prefetch import prefetched


def test_items_come_in_order():
    with prefetched(iter(range(50))) as items:
        assert list(items) == list(range(50))


def test_an_error_comes_in_its_place():
    def failing():
        yield 1
        raise OSError("gone")

    with prefetched(failing()) as items:
        assert next(items) == 1
        with pytest.raises(OSError, match="gone"):
            next(items)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    with prefetched(iter(range(10_000))) as items:
        next(items)
    assert threading.active_count() == before
