"""Versions of the libraries that a result was computed with."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from ptycho_tasks.system.cache import cached

LIBRARIES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "scikit-image": "skimage",
    "h5py": "h5py",
    "torch": "torch",
    "lightning": "lightning",
    "ptychi": "ptychi",
    "tensorflow": "tensorflow",
    "jax": "jax",
    "cupy": "cupy",
    "numba": "numba",
}
"""Distributions that compute, and the module that each is imported as."""


@cached
def find_version(name: str) -> str | None:
    """The version of a distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def list_loaded_libraries() -> dict[str, str]:
    """The version of Python, and of each library that computes and that this process has loaded."""
    loaded = [name for name, module in LIBRARIES.items() if module in sys.modules]
    found = {name: version for name in loaded if (version := find_version(name))}
    return {"python": platform.python_version(), **found}
