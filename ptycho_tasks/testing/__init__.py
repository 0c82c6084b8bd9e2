"""Help for the tests of backends: the conformance suite."""

try:
    import pytest  # noqa: F401
except ImportError:
    raise ImportError(
        "ptycho_tasks.testing needs pytest; run `pip install 'ptycho-tasks[test]'`"
    ) from None

from ptycho_tasks.testing.conformance import BackendConformance

__all__ = ["BackendConformance"]
