"""A file at work in a reader of Ptychodus: what it opens, warns of, and fails with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ptycho_tasks.errors import ScanError, one_line
from ptycho_tasks.reader import has_hdf5_signature
from ptycho_tasks.scans.hdf5_content import list_datasets
from ptycho_tasks_ptychodus.watch import Watch

_LOG = logging.getLogger("ptychodus")


@dataclass(frozen=True)
class Opening:
    """One of Ptychodus' readers, and the file that it is given."""

    path: Path
    reader: str
    """Ptychodus' name of it."""
    watch: Watch
    warnings: list[str] = field(default_factory=list)
    """What Ptychodus' log warned of so far, a line each."""

    @contextmanager
    def read(self) -> Iterator[None]:
        """A block in which the reader is at work.

        Raises:
            ScanError: whatever it raises, or a file is read that the scan may not reach.
        """
        listener = _Listener(self.warnings)
        propagates, _LOG.propagate = _LOG.propagate, False
        _LOG.addHandler(listener)
        try:
            with self.watch.watch():
                yield
        except (ScanError, MemoryError):
            raise
        except Exception as error:
            raise self._explain(error) from error
        finally:
            _LOG.removeHandler(listener)
            _LOG.propagate = propagates

    def _explain(self, error: Exception) -> ScanError:
        text = " ".join(str(error).strip("\"'").split()) or type(error).__name__
        hint = f" ({self.warnings[-1]})" if self.warnings else ""
        held = ""
        if self.path.is_file() and has_hdf5_signature(self.path):
            held = f"; it holds {list_datasets(self.path).describe()}"
        return ScanError(
            f"{self.path}: Ptychodus' reader `{self.reader}` cannot read it: {text}{hint}{held}; "
            "give a file of that format, or name another reader"
        )


class _Listener(logging.Handler):
    """Keeps warnings, each as one line."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(one_line(" ".join(record.getMessage().split())))
