"""Answers that are kept while a process works in one project, and forgotten together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_caches: list[Any] = []


def cached(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Ask a function once for each set of hashable arguments, until `forget_all`."""
    kept: Any = functools.cache(function)
    _caches.append(kept)
    return kept  # type: ignore[no-any-return]


def forget_all() -> None:
    """Ask every cached function anew: files or installed code may have changed."""
    for kept in _caches:
        kept.cache_clear()
