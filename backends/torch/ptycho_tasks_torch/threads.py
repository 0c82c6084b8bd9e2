"""Work in threads, whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_threads: ContextVar[int] = ContextVar("threads", default=1)


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
    with ThreadPoolExecutor(workers, thread_name_prefix="work-ahead") as pool:
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


@contextmanager
def chunks_on_threads() -> Iterator[None]:
    """In the block, `compute_ahead` has torch's threads, and torch a single one.

    Torch spreads each operation over its threads. With data that fit into a cache, these wait for
    each other longer than they work. The result does not depend on their number.
    """
    threads = torch.get_num_threads()
    token = _threads.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _threads.reset(token)


def compute_ahead(
    compute: Callable[[T], R], items: Sequence[T], most: int | None = None
) -> Iterator[R]:
    """`work_ahead` without gradients, in the threads of `chunks_on_threads`, or `most` of them."""
    is_inference = torch.is_inference_mode_enabled()

    def work(item: T) -> R:
        with torch.inference_mode(is_inference), torch.no_grad():
            return compute(item)

    threads = min(_threads.get(), len(items), most or len(items))
    return work_ahead(work, items, threads if threads > 1 else 0)
