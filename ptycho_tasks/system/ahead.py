"""Make the next of some things while one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def make_ahead(items: Iterator[T]) -> Iterator[T]:
    """Give items, of which the next is made in a thread meanwhile: for arrays, whose operations let
    other threads run."""
    nothing = object()

    def make() -> T | object:
        return next(items, nothing)

    # What is set for this thread, such as which errors of arithmetic are told, holds in the other.
    with ThreadPoolExecutor(1, thread_name_prefix="make-ahead") as pool:
        future = pool.submit(copy_context().run, make)
        while (item := future.result()) is not nothing:
            future = pool.submit(copy_context().run, make)
            yield item  # type: ignore[misc]
