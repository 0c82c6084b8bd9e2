"""Read ahead of who computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`read` of each item, in order, by threads that are up to two items each ahead.

    Threads and not processes: copying frames out of a mapped file lets others compute, and no
    signal, however it ends this process, leaves one behind.

    Args:
        read: may be called by several threads at once.
        items: taken by the calling thread alone.
        workers: number of threads; 0 reads an item when it is asked for.
    """
    if not workers:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read-ahead") as pool:
        begun: deque[Future[R]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(read, item))
                if len(begun) > 2 * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
