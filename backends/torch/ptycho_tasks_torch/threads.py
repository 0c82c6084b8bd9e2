"""Work in threads, whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class _Pool(NamedTuple):
    threads: ThreadPoolExecutor
    size: int


_pool: ContextVar[_Pool | None] = ContextVar("pool", default=None)


def work_ahead(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Give what `work` makes of each item, in order, in threads up to two items ahead each.

    Threads and not processes: while one copies frames out of a mapped file, others compute, and no
    signal that ends this process leaves a thread behind.

    Args:
        work: several threads may call it at once.
        items: only the calling thread iterates over them.
        workers: number of threads; 0 makes every result when it is needed.
    """
    if not workers:
        yield from map(work, items)
        return
    with _start_threads(workers) as pool:
        yield from _work_in(pool, workers, work, items)


def _start_threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="work-ahead")


def _work_in(
    pool: ThreadPoolExecutor, workers: int, work: Callable[[T], R], items: Iterable[T]
) -> Iterator[R]:
    """`work_ahead` in threads of a pool, which others may use too."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        if pending:
            wait(pending)


@contextmanager
def chunks_on_threads() -> Iterator[None]:
    """In the block, `compute_ahead` has torch's threads, and torch a single one.

    Torch spreads each operation over its threads. With data that fit into a cache, these wait for
    each other longer than they work. The result does not depend on their number.
    """
    count = torch.get_num_threads()
    with _start_threads(count) as threads:
        token = _pool.set(_Pool(threads, count))
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(count)
            _pool.reset(token)


@contextmanager
def operations_on_threads() -> Iterator[None]:
    """In the block, which is in one of `chunks_on_threads`, torch has its threads again: for a few
    operations on data that fit into no cache."""
    pool = _pool.get()
    if pool is None:
        yield
        return
    torch.set_num_threads(pool.size)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def compute_ahead(
    compute: Callable[[T], R], items: Sequence[T], most: int | None = None
) -> Iterator[R]:
    """`work_ahead` without gradients, in the threads of `chunks_on_threads`, or `most` of them."""
    is_inference = torch.is_inference_mode_enabled()

    def work(item: T) -> R:
        with torch.inference_mode(is_inference), torch.no_grad():
            return compute(item)

    pool, most = _pool.get(), min(most or len(items), len(items))
    if pool is None or pool.size == 1 or most <= 1:
        return map(work, items)
    if most < min(pool.size, len(items)):
        return work_ahead(work, items, most)
    return _work_in(pool.threads, pool.size, work, items)
