"""Functions that keep their answers while a process works in one project."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_caches: list[Any] = []


def cached(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Call a function once for each set of hashable arguments; `forget_all` starts anew."""
    kept: Any = functools.cache(function)
    _caches.append(kept)
    return kept  # type: ignore[no-any-return]


def forget_all() -> None:
    """Forget the answers of all cached functions: files or installed code may have changed."""
    for kept in _caches:
        kept.cache_clear()
