"""The project's SQLite file: three tables, read whole at first use, written in transactions.

It works on file systems that machines share, on some without locks, and while another process
writes; and a file that is damaged is set aside.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptycho_tasks.builds.digests import Entry
from ptycho_tasks.errors import FileWriteError
from ptycho_tasks.system.file_system import has_record_locks, is_local
from ptycho_tasks.system.files import despite_removal, file_stamp, find_file_problem
from ptycho_tasks.system.terminal import echo

PUT_TASK = "INSERT OR REPLACE INTO task VALUES (?, ?)"
REMOVE_TASK = "DELETE FROM task WHERE name = ?"
PUT_NOTE = "INSERT OR REPLACE INTO note VALUES (?, ?)"
_PUT_FILE = "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?)"
_APPLICATION_ID = 0x70747963
_VERSION = 1
_TABLES = """
CREATE TABLE task (name TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE file (
    path TEXT, kind TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER,
    digest TEXT NOT NULL, PRIMARY KEY (path, kind)
) WITHOUT ROWID;
CREATE TABLE note (name TEXT PRIMARY KEY, text TEXT NOT NULL);
"""
_BUSY_S = 5.0


@dataclass
class Contents:
    """Rows of the three tables."""

    tasks: dict[str, str] = field(default_factory=dict)
    """Name of a task to its record, as JSON."""
    files: dict[tuple[str, str], Entry] = field(default_factory=dict)
    """Path and kind of digest to stamp and digest."""
    notes: dict[str, str] = field(default_factory=dict)


class Database:
    """A SQLite file of ours, which need not be there yet."""

    def __init__(self, name: str, read_all: Callable[[], Contents]) -> None:
        """The database at `name`.

        Args:
            name: its path.
            read_all: gives all that a new file has to hold.
        """
        self.name = name
        self._read_all = read_all
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._has_locks: bool | None = None

    def read(self) -> Contents:
        """All that it holds. What is no database of ours is set aside, and counts as empty.

        Raises:
            SystemExit: it cannot be read just now, and the user was told.
        """
        unfit = find_file_problem(Path(self.name))
        if unfit:
            self._set_aside(f"it {unfit}")
        elif Path(self.name).exists():
            try:
                return self._read()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    echo(f"error: cannot read {self.name}: {error}", err=True)
                    raise SystemExit(FileWriteError.exit_code) from error
                self._set_aside(str(error))
        return Contents()

    def write(self, new: Contents, statement: str | None = None, values: Any = ()) -> None:
        """Write new digests and notes, and one row more, in one transaction.

        Raises:
            sqlite3.Error, OSError: it cannot be written; it is as it was.
        """
        despite_removal(lambda: self._transact(new, statement, values), self._let_go_of_removed)

    def has_local_file(self) -> bool:
        """Whether the file is there, and no other machine sees it."""
        return Path(self.name).exists() and is_local(Path(self.name))

    def is_removed(self) -> bool:
        """Whether the file of the open database was removed, as by a command of a task."""
        return self._connection is not None and _inode(self.name) != self._inode

    def _let_go_of_removed(self, error: Exception) -> bool:
        """Whether an error comes of a file that was removed, or could not be made in a folder
        that was; closes the connection to it."""
        folder = Path(self.name).parent
        is_missing = _inode(self.name) is None and (
            not folder.exists() or os.access(folder, os.W_OK)
        )
        if not isinstance(error, (sqlite3.Error, FileNotFoundError)) or not (
            is_missing or self.is_removed()
        ):
            return False
        self.close()
        return True

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _read(self) -> Contents:
        """Read everything, in the first way that goes; only a transaction that was cut short and
        has to be undone makes it write.

        Raises:
            sqlite3.DatabaseError: none goes.
        """
        ways = list(self._ways_to_read())
        for way in ways:
            try:
                with closing(self._open(way)) as connection:
                    return _contents(connection)
            except sqlite3.DatabaseError as error:
                if way == ways[-1] or _is_damage(error):
                    raise
        return Contents()

    def _ways_to_read(self) -> Iterator[str]:
        if not _has_write_ahead_log(self.name):
            yield f"mode=ro{self._without_locks()}"
            yield f"mode=rw{self._without_locks()}"
        elif os.access(Path(self.name).parent, os.W_OK) and is_local(Path(self.name)):
            # With the files beside it that its readers share.
            yield "mode=rw"
        yield "immutable=1"  # what there is at rest, without a lock, a journal, or a look at either

    def _open(self, way: str) -> sqlite3.Connection:
        # Without a transaction of Python's own making: each is begun and ended below.
        return sqlite3.connect(
            f"{Path(self.name).absolute().as_uri()}?{way}",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
        )

    def _without_locks(self) -> str:
        """What to add to a way where the file system has no locks."""
        if self._has_locks is None:
            self._has_locks = has_record_locks(Path(self.name))
        return "" if self._has_locks else "&vfs=unix-none"

    def _connect(self) -> sqlite3.Connection:
        """The connection for writing."""
        if self.is_removed():
            self.close()
        if self._connection is None:
            path = Path(self.name)
            is_new = not path.exists()
            if is_new:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._remove_journals()
            self._connection = self._open(f"mode=rwc{self._without_locks()}")
            if is_new or _has_write_ahead_log(self.name):
                self._set_journal(self._connection)
            if is_new:
                self._fill(self._connection)
            self._inode = _inode(self.name)
        return self._connection

    def _fill(self, connection: sqlite3.Connection) -> None:
        """Make the tables, and write all that this process knows."""
        connection.executescript(
            f"BEGIN; PRAGMA application_id={_APPLICATION_ID};"
            f"PRAGMA user_version={_VERSION}; {_TABLES} COMMIT;"
        )
        everything = self._read_all()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(PUT_TASK, everything.tasks.items())
        _put(connection, everything)
        connection.execute("COMMIT")

    def _remove_journals(self) -> None:
        for ending in ("-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                Path(f"{self.name}{ending}").unlink()

    def _set_journal(self, connection: sqlite3.Connection) -> None:
        """Have the fastest journal only where one machine alone sees it, and has locks for it;
        others read a shared folder too, with SQLite's oldest."""
        if is_local(Path(self.name)) and self._has_locks:
            connection.execute("PRAGMA journal_mode=WAL")
        else:
            # Without memory that its users share, as the journal of another machine needs.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA locking_mode=NORMAL")

    def _set_aside(self, reason: str) -> None:
        """Give a file that is no database of ours another name."""
        self.close()
        path = Path(self.name)
        names = (path.with_name(f"{path.name}.bad{n}") for n in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        self._remove_journals()
        echo(
            f"warning: {path} cannot be used ({reason}); it is now {aside.name}, and what was "
            "built is recognised by what the files say of themselves",
            err=True,
        )

    def _transact(self, new: Contents, statement: str | None, values: Any) -> None:
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            _put(connection, new)
            if statement is not None:
                connection.execute(statement, values)
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise


def is_database(name: str) -> bool:
    """Whether a file is one of ours, by its header."""
    return _header(name)[68:72] == _APPLICATION_ID.to_bytes(4, "big")


def _put(connection: sqlite3.Connection, new: Contents) -> None:
    connection.executemany(_PUT_FILE, [(*key, *entry) for key, entry in new.files.items()])
    connection.executemany(PUT_NOTE, new.notes.items())


def _contents(connection: sqlite3.Connection) -> Contents:
    """All rows of a database.

    Raises:
        sqlite3.DatabaseError: it is none of ours, or damaged.
    """
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if (application_id, version) != (_APPLICATION_ID, _VERSION):
        raise sqlite3.DatabaseError("it is not a database of this version of ptycho-tasks")
    rows = connection.execute(
        "SELECT path, kind, size, mtime_ns, ctime_ns, inode, digest FROM file"
    )
    return Contents(
        dict(connection.execute("SELECT name, record FROM task")),
        {row[:2]: row[2:] for row in rows if _is_digest(row[6])},
        dict(connection.execute("SELECT name, text FROM note")),
    )


def _is_digest(value: Any) -> bool:
    """Whether a value may be a sha256, as 64 digits."""
    return type(value) is str and len(value) == 64


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether a database is none, or none of ours; else it only cannot be read just now."""
    if not isinstance(error, sqlite3.OperationalError):
        return True
    return str(error).startswith(("no such", "Could not decode"))


def _has_write_ahead_log(name: str) -> bool:
    """Whether a database is in SQLite's WAL mode, by its header."""
    return _header(name)[18:20] == b"\2\2"


def _header(name: str) -> bytes:
    if find_file_problem(Path(name)):
        return b""
    try:
        with open(name, "rb") as file:  # noqa: PTH123
            return file.read(100)
    except OSError:
        return b""


def _inode(path: str) -> int | None:
    stamp = file_stamp(path)
    return None if stamp is None else stamp[3]
