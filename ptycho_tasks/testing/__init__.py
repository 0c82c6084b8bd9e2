"""Help for the tests of backends, executors and readers: the conformance suites."""

try:
    import pytest  # noqa: F401
except ImportError:
    raise ImportError(
        "ptycho_tasks.testing needs pytest; run `pip install 'ptycho-tasks[test]'`"
    ) from None

from ptycho_tasks.testing.conformance import BackendConformance
from ptycho_tasks.testing.executor import ExecutorConformance
from ptycho_tasks.testing.reader import ReaderConformance

__all__ = ["BackendConformance", "ExecutorConformance", "ReaderConformance"]
