"""Ptychodus' readers by name."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

from ptycho_tasks.errors import ReaderError

_SUFFIX = re.compile(r"\*(\.\w+)")


@functools.cache
def load_registry() -> Any:
    """Ptychodus' `PluginRegistry`; a second, and no window.

    Raises:
        ReaderError: Ptychodus is not installed, or of another kind than is known here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports
            from ptychodus.api.plugins import PluginRegistry

            return PluginRegistry.load_plugins()
    except (ImportError, AttributeError) as error:
        raise ReaderError(
            f"Ptychodus cannot be loaded ({' '.join(str(error).split())}); install it with "
            "`pip install --no-deps ptychodus==1.7.0`"
        ) from error


def find_plugin(kind: str, name: str) -> Any:
    """A reader of Ptychodus.

    Args:
        kind: `diffraction`, `probe_position`, `probe` or `bad_pixels`.
        name: Ptychodus' own short name.

    Raises:
        ReaderError: Ptychodus has none of that name, or could not load it.
    """
    plugin = getattr(load_registry(), f"{kind}_file_readers").find_plugin(name)
    if plugin is None:
        raise ReaderError(
            f"Ptychodus has no reader `{name}` of {kind.replace('_', ' ')} files; install "
            "Ptychodus 1.7, and what its log says is missing"
        )
    return plugin


def has_plugin(kind: str, name: str) -> bool:
    """Whether Ptychodus has such a reader."""
    return getattr(load_registry(), f"{kind}_file_readers").find_plugin(name) is not None


def list_suffixes(plugin: Any) -> list[str]:
    """The endings of files that a reader is for, as `.mda`: its name for people holds them."""
    suffixes: list[str] = _SUFFIX.findall(plugin.display_name)
    return suffixes
