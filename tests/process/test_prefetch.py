import threading
from collections.abc import Iterator

import pytest

from lightning_lance.process.prefetch import read_ahead


def test_items_come_in_order_and_threads_end():
    before = threading.active_count()
    assert list(read_ahead(iter(range(100)), 3)) == list(range(100))
    assert threading.active_count() == before


def test_an_error_of_the_source_is_raised_after_its_items():
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("source")

    ahead = read_ahead(items(), 2)
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="source"):
        next(ahead)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_closes_the_source_and_waits_for_the_thread(taken: int):
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    before = threading.active_count()
    ahead = read_ahead(items(), 2)
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    ahead.close()
    assert threading.active_count() == before
    assert closed.is_set() or taken == 0


def test_only_so_many_items_are_held():
    made = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    ahead = read_ahead(items(), 2)
    next(ahead)
    threading.Event().wait(0.3)
    assert len(made) <= 1 + 2 + 1
    ahead.close()
