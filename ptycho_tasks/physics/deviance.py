"""Deviances side by side; imports nothing that takes time."""

from __future__ import annotations

_LEAST = 1e-12


def compare_deviances(found: float, noise: float) -> float:
    """The Poisson deviance of a reconstruction over that of photon noise alone."""
    return found / max(noise, _LEAST)
