"""Things are made in a thread while others are used, in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from ptycho_tasks.system.ahead import make_ahead


def test_the_next_is_made_while_one_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def make() -> Iterator[int]:
        for number, event in enumerate(begun):
            event.set()
            yield number

    for number in make_ahead(make()):
        if number + 1 < len(begun):
            assert begun[number + 1].wait(10)
        assert not any(event.is_set() for event in begun[number + 2 :])


def test_an_error_comes_where_the_item_would() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    items = make_ahead(make())
    assert next(items) == 1
    with pytest.raises(KeyError, match="two"):
        next(items)


def test_none_is_an_item_and_nothing_is_none() -> None:
    assert list(make_ahead(iter([None, 0]))) == [None, 0]
    assert list(make_ahead(iter(()))) == []


@pytest.mark.skipif(np.__version__ < "2", reason="settings are each thread's own there")
def test_what_is_set_for_the_caller_holds() -> None:
    def divide() -> Iterator[np.ndarray]:
        yield np.ones(1) / np.zeros(1)

    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        list(make_ahead(divide()))
