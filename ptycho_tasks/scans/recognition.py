"""Which reader reads a file: the one that is named, or the one that knows the file by its content.

A reader is a plugin: an entry point of the group `ptycho_tasks.readers`, or a module in the
project's `readers/` that defines `reader`. None is imported before a scan is read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ptycho_tasks.errors import PtychoTasksError, ReaderError, ScanError
from ptycho_tasks.system.files import file_stamp, find_file_problem
from ptycho_tasks.system.plugins import Plugin, PluginKind, import_failure, list_plugins
from ptycho_tasks.system.processes import Overdue, Stopped, catch_hard_exits, limit_time
from ptycho_tasks.system.terminal import print_text

if TYPE_CHECKING:
    from ptycho_tasks.scans.raw_scan import RawScan, Reading

KIND = PluginKind("reader", "ptycho_tasks.readers", "readers")
_OURS = "ptycho-tasks "
"""What the origin of the core's own readers begins with."""
CLAIM_S = 30.0
"""How long a reader may look whether a file is its own."""
OPENING_S, BYTES_A_SECOND = 600.0, 10e6
"""How long it may take to open a scan, and how many bytes more it may read in each second more."""


class ReaderStoppedError(ScanError):
    """A reader that hung, and would do so again."""


class Reader(Protocol):
    """Reads scans of one format. It gives the arrays as the file holds them; the core checks and
    converts them."""

    @property
    def name(self) -> str:
        """What `source.reader` calls it: the name of the entry point, or of the local file."""

    def claims(self, path: Path) -> bool:
        """Whether a file is of this format, by its content and in milliseconds. Never raises for
        a file of another one."""

    def files(self, path: Path, reading: Reading) -> Sequence[Path]:
        """The further files that are read for a scan; they are inputs as the scan itself is.

        Where `reading.positions` or `reading.probe` is among them, the reader reads it, and not
        the core. A mask that it reads from `reading.bad_pixels` has that as its key.
        """

    def open(self, path: Path, reading: Reading) -> AbstractContextManager[RawScan]:
        """The arrays of a scan, which can be read until the block ends.

        Where `reading.frames_only`, a product gives the positions and the probe.

        Raises:
            ScanError: one line that names the file, what is wrong with it, and what to do.
        """


@dataclass(frozen=True)
class ReaderEntry(Plugin):
    """A reader that could be loaded."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"reader `{self.name}` ({self.origin})"

    @property
    def is_ours(self) -> bool:
        """Whether it is one of the core's own."""
        return self.origin.startswith(_OURS)

    def load(self) -> Reader:
        """Import the reader and check that it is one.

        Raises:
            ReaderError: another reader has the same name, the import failed (the missing module is
                named), or something that a reader must have is missing (named too).
        """
        if self.namesake:
            raise ReaderError(
                f"reader `{self.name}` is there twice: {self.origin} and {self.namesake}; rename "
                "or remove one"
            )
        try:
            with catch_hard_exits():
                reader = self.importer()
                methods = [key for key in ("claims", "files", "open") if not _has(reader, key)]
                name = getattr(reader, "name", None)
        except Stopped:
            raise
        except (Exception, SystemExit) as error:
            why = import_failure(error, self.source, KIND.word)
            raise ReaderError(f"{self.label} cannot be loaded: {why}") from error
        if methods or isinstance(reader, type):
            what = f"lacks {', '.join(methods)}" if methods else "is a class; give an instance"
            raise ReaderError(
                f"{self.label} {what}; a reader has a `name` and the methods `claims(path)`, "
                "`files(path, reading)` and `open(path, reading)`"
            )
        if name != self.name:
            raise ReaderError(f"{self.label} calls itself `{name}`; the two names must agree")
        return reader  # type: ignore[no-any-return]

    @contextmanager
    def explain_failures(self, path: Path) -> Iterator[None]:
        """Turn what the code of a reader raises in the block into one line for the user, and say
        which it was where the block is interrupted.

        Raises:
            ScanError: names the reader and the file. What the core's own raise unforeseen passes.
        """
        try:
            with catch_hard_exits():
                yield
        except Stopped:
            if not self.is_ours:
                print_text(f"{path}: was being read by the {self.label}\n", sys.stderr)
            raise
        except (PtychoTasksError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if self.is_ours:
                raise
            raise ScanError(
                f"{path}: the {self.label} failed: {import_failure(error, self.source)}; correct "
                "it, or name another with source.reader"
            ) from error

    @contextmanager
    def limit_claim(self, path: Path) -> Iterator[None]:
        """A block in which the reader looks whether a file is its own.

        Raises:
            ScanError: it hangs.
        """
        with self._limit(path, CLAIM_S, "does not say whether the file is its own"):
            yield

    @contextmanager
    def limit_opening(self, path: Path) -> Iterator[None]:
        """A block in which the reader opens a scan, of which it may read all.

        Raises:
            ScanError: it hangs.
        """
        stamp = file_stamp(path)
        limit_s = OPENING_S + (stamp[0] / BYTES_A_SECOND if stamp else 0.0)
        with self._limit(path, limit_s, "does not come to an end with opening the file"):
            yield

    @contextmanager
    def _limit(self, path: Path, limit_s: float, what: str) -> Iterator[None]:
        if self.is_ours:
            yield
            return
        try:
            with limit_time(limit_s):
                yield
        except Overdue:
            raise ReaderStoppedError(
                f"{path}: the {self.label} {what}, and was stopped after {limit_s:.3g} s; correct "
                "it, or name another with source.reader"
            ) from None

    def refuse(self, path: Path, found: str, expected: str) -> ScanError:
        """The error that says that what a reader gave for a file is of no use."""
        return ScanError(f"{path}: the {self.label} gave {found}; expected {expected}; correct it")


def _has(reader: Any, method: str) -> bool:
    return callable(getattr(reader, method, None))


def list_readers(root: Path | None) -> dict[str, ReaderEntry]:
    """Every reader, by name, those of a project at `root` included; none is imported."""
    return {name: ReaderEntry(**vars(plugin)) for name, plugin in list_plugins(KIND, root).items()}


def find_reader(name: str, root: Path | None) -> ReaderEntry:
    """The reader of a name, not yet imported.

    Raises:
        ReaderError: there is none; the message lists those that are there.
    """
    entries = list_readers(root)
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none is installed"
        raise ReaderError(
            f"source.reader: unknown reader `{name}`; known here: {known}; install one, or write "
            f"{KIND.folder}/{name}.py"
        )
    return entries[name]


def choose_reader(path: Path, name: str | None, root: Path | None) -> tuple[ReaderEntry, Reader]:
    """The reader of a file.

    Args:
        path: the scan.
        name: of the reader, where the user names one.
        root: of the project, whose own readers count too.

    Raises:
        ReaderError: no reader has that name, or one cannot be loaded.
        ScanError: the file cannot be read, no reader knows it, or several do.
    """
    _refuse_unreadable(path)
    if name is not None:
        entry = find_reader(name, root)
        return entry, entry.load()
    claiming = []
    for entry in list_readers(root).values():
        with entry.explain_failures(path):
            reader = entry.load()
            with entry.limit_claim(path):
                claim = reader.claims(path)
            if claim is not True and claim is not False:
                raise entry.refuse(path, f"{claim!r} as the answer of `claims`", "True or False")
        if claim:
            claiming.append((entry, reader))
    if len(claiming) > 1:
        names = " and ".join(entry.label for entry, _ in claiming)
        raise ScanError(
            f"{path}: {names} both say that this file is theirs; set source.reader to one"
        )
    if not claiming:
        raise _unknown(path, root)
    return claiming[0]


def _refuse_unreadable(path: Path) -> None:
    problem = find_file_problem(path)
    if problem:
        raise ScanError(f"{path}: {problem}; give the scan's file")
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        from ptycho_tasks.scans.content import explain_unreadable

        raise explain_unreadable(path, error) from error


def _unknown(path: Path, root: Path | None) -> ScanError:
    from ptycho_tasks.scans.content import has_hdf5_signature

    if has_hdf5_signature(path):
        from ptycho_tasks.scans.hdf5_content import list_datasets

        return ScanError(
            f"{path}: no reader knows this HDF5 file; it holds "
            f"{list_datasets(path).describe()}; name "
            "what is needed, as in `source.datasets: {diff3d: PATH, xcoords: PATH, ycoords: PATH, "
            "probeGuess: PATH}`"
        )
    if not path.stat().st_size:
        return ScanError(f"{path}: neither NPZ nor HDF5: the file is empty; copy it again")
    if path.suffix.lower() in (".csv", ".txt", ".dat"):
        return ScanError(
            f"{path}: neither NPZ nor HDF5, but text, it seems; give the file of the frames, and "
            "this one in source.positions if it holds the positions"
        )
    known = ", ".join(sorted(list_readers(root)))
    return ScanError(
        f"{path}: neither NPZ (a zip) nor CXI (HDF5), and no reader knows it ({known}); give "
        "another file, or copy it again if it should be one"
    )
