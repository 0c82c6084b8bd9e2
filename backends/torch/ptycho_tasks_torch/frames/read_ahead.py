"""Read frames in threads, ahead of the computation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Read each item, in order, in threads that are up to two items ahead each.

    Threads and not processes: while one copies frames out of a mapped file, others compute, and no
    signal that ends this process leaves a thread behind.

    Args:
        read: reads one item; several threads may call it at once.
        items: only the calling thread iterates over them.
        workers: number of threads; 0 reads every item when it is needed.
    """
    if not workers:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read-ahead") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
