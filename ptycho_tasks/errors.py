"""The errors that a user can cause.

Their text is shown as one line, never as a traceback:

    PtychoTasksError        exit 1: the work failed
    +-- ScanError           a scan file that cannot be used
    +-- BundleError         a bundle that cannot be used
    +-- TrainingError       training that cannot go on (NaN loss, collapsed output, too few groups)
    +-- FileWriteError      a file that cannot be written (full disk, read-only folder)
    +-- ConfigError         exit 2: wrong configuration or usage; nothing was started
        +-- BackendError    a backend that is unknown or cannot be loaded
        +-- ReaderError     a reader that is unknown or cannot be loaded
        +-- PlanError       a plan or ledger whose rows are not what was asked for
"""

from __future__ import annotations

DEBUG = "PTYCHO_TASKS_DEBUG"
"""Environment variable: not empty shows the traceback of every error."""


def one_line(text: str) -> str:
    """A text that may hold names from files, with what is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class PtychoTasksError(Exception):
    """Base of all errors meant for the user: what is wrong, where, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """The message; names in it, which may hold anything, are escaped."""
        return one_line(super().__str__())


class ScanError(PtychoTasksError):
    """A scan file that is missing, unreadable or against the raw-scan contract."""


class BundleError(PtychoTasksError):
    """A model bundle that is missing, damaged, foreign or not trustworthy."""


class TrainingError(PtychoTasksError):
    """Training or inference that cannot give a meaningful result."""


class FileWriteError(PtychoTasksError):
    """A file that could not be written; what stood in its place before is untouched."""


class ConfigError(PtychoTasksError):
    """A wrong value in ptycho.yaml, on the command line or in an override."""

    exit_code = 2


class PlanError(ConfigError):
    """A plan without the row that is asked for, with two of it, or with one that has no state."""


class BackendError(ConfigError):
    """A backend that is not installed or cannot be imported."""


class ReaderError(ConfigError):
    """A reader of scans that is not installed or cannot be imported."""
