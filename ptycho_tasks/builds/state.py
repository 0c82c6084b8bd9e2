"""What was built, from what: a doit database in SQLite, committed as each task completes.

doit keeps one mapping a task in it (its dependencies, their hashes, the task's values). Beside
them stand the hashes of files by size, modification time and inode, so that a file is read once
and then recognised, and what the last `ptycho.yaml` came to as tasks.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from doit.dependency import FileChangedChecker

from ptycho_tasks.errors import FileWriteError
from ptycho_tasks.layout import spelled
from ptycho_tasks.system.clock import now_ns
from ptycho_tasks.system.file_system import has_record_locks, is_local
from ptycho_tasks.system.files import Stamp, not_a_file, sha256_file, stamp_of
from ptycho_tasks.system.lock import exit_if_held
from ptycho_tasks.system.terminal import echo

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
_TASK = "INSERT OR REPLACE INTO task VALUES (?, ?)"
_FILE = "INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?, ?, ?)"
_NOTE = "INSERT OR REPLACE INTO note VALUES (?, ?)"
_SETTLED_NS = 20_000_000
"""A file younger than this could change again within one tick of its file system's clock."""
_COARSE_SETTLED_NS = 2_000_000_000
"""Likewise, where the clock has whole seconds only."""
_BUSY_S = 5.0

_decode = json.JSONDecoder().raw_decode
Digest = Callable[[Path], str]
Files = dict[str, dict[str, tuple[int, int, int, int, str]]]
"""Kind of digest, to path, to the file's stamp and its digest."""
_UNKNOWN = (-1, -1, -1, -1, "")


def _no_files() -> Files:
    return {"sha256": {}, "python": {}}


class State:
    """A project's database, in the form that doit asks of its backends."""

    desc = "SQLite, committed as each task completes; for ptycho-tasks"

    def __init__(self, name: str, codec: Any = None, *, module_name: str | None = None) -> None:
        """The database at `name`; it is read at first use, and made when there is something
        to write."""
        self.name = name
        self.running = False
        """Whether tasks are being run, and not merely asked about."""
        self.snapshots: dict[str, dict[str, str | None]] = {}
        """Of tasks that were checked: their inputs' hashes at that time."""
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._tasks: dict[str, dict[str, Any]] | None = None
        self._raw: dict[str, str] = {}
        self._files = _no_files()
        self._notes: dict[str, str] = {}
        self._sources: dict[str, str | None] = {}
        self._opened_ns = now_ns()
        self._new_files: dict[tuple[str, str], tuple[int, int, int, int, str]] = {}
        self._new_notes: dict[str, str] = {}
        self._has_locks: bool | None = None
        self._source_lists = functools.cache(self._read_sources)

    # ---------------------------------------------------------------------------------- for doit

    def get(self, task: str, key: str) -> Any:
        """A value of a task; None where there is none."""
        if key == "result:":
            return self._result(task)
        try:
            return self._tasks[task].get(key)  # type: ignore[index]
        except (KeyError, TypeError):
            return self._record(task).get(key)

    def set(self, task: str, key: str, value: Any) -> None:
        """Set a value of a task. `deps:` is the last of a task that succeeded: it is committed.

        Raises:
            SystemExit: a run is at work, which this is not of.
        """
        if not self.running and key in ("_values_:", "ignore:"):
            exit_if_held()
        record = self._record(task, make=True)
        if key == "_values_:":  # the first of a task that succeeded
            record.clear()
        # An input that was changed while its task ran was not what the task has seen.
        seen = self.snapshots.get(task, {}).get(key)
        record[key] = value if seen is None else seen
        if key in ("deps:", "ignore:"):
            self._commit_task(task)

    def _result(self, task: str) -> Any:
        """What a task came to, for doit's `result_dep`: of a stage, what its files hold."""
        built = self.built(task)
        if built is None:
            return self._record(task).get("result:")
        inputs = self._record(task).get("deps:") or ()
        return built["outputs"] or {path: self.get(task, path) for path in inputs}

    def in_(self, task: str) -> bool:
        """Whether something is known of a task."""
        return bool(self._record(task))

    def remove(self, task: str) -> None:
        """Forget a task.

        A stage that fails is not forgotten: what was built before is still there, and still
        described by its record.
        """
        if self.running and self.built(task) is not None:
            return
        if not self.running:
            exit_if_held()
        if self._record(task):
            self._loaded().pop(task)
            self._write("DELETE FROM task WHERE name = ?", (task,))
        if not self.running:
            self.note(f"forgotten {task}", "yes")

    def remove_all(self) -> None:
        """Forget every task."""
        for task in [*self._loaded(), *self._raw]:
            self.remove(task)

    def dump(self) -> None:
        """Write what is left to write, and close."""
        self._keep()
        with suppress(sqlite3.Error, OSError):
            if self._is_removed():
                self._transact(None, ())
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    # ------------------------------------------------------------------------------------- ours

    def built(self, task: str) -> dict[str, Any] | None:
        """What a stage's outputs were built from, besides its inputs; None for other tasks."""
        return whole((self._record(task).get("_values_:") or {}).get("built"))

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every task, with all that is known of it."""
        for task in {**self._loaded(), **self._raw}:
            yield task, self._record(task)

    def is_forgotten(self, task: str) -> bool:
        """Whether the user asked to forget a task, and it was not built since."""
        return self.note(f"forgotten {task}") == "yes"

    def note(self, name: str, text: str | None = None) -> str | None:
        """Get a note of the whole project, or set it."""
        self._loaded()
        if text is not None:
            self._notes[name] = text
            self._write(_NOTE, (name, text))
        return self._notes.get(name)

    def keep_note(self, name: str, text: str) -> None:
        """Set a note that only saves time: a database that cannot be written is none the worse."""
        self._notes[name] = self._new_notes[name] = text
        self._keep()

    def adopt(self, task: str, record: Mapping[str, Any]) -> None:
        """Take a record of a task that this database did not see run; who only asks about tasks
        writes nothing."""
        self._loaded()[task] = dict(record)
        if self.running:
            self._commit_task(task)

    def sha256(self, path: str) -> str | None:
        """sha256 of a file's content; None where there is no file.

        The file is read only if its size, modification time or inode are not those it had.
        """
        return self._digest(path, "sha256", sha256_file)

    def source_digest(self, path: str) -> str | None:
        """The digest of what a Python file says; see `ptycho_tasks.code.source_digest`.

        Settled at the first call, which belongs where the tasks are loaded: what is changed
        later is not what runs, or not what was noted, and shows as a change in the next run.
        """
        if path not in self._sources:
            from ptycho_tasks.system.sources import source_digest

            digest = self._digest(path, "python", source_digest)
            with suppress(OSError):
                changed_ns = os.stat(path).st_mtime_ns  # noqa: PTH116
                if self._opened_ns < changed_ns < now_ns() + _COARSE_SETTLED_NS:
                    digest = f"changed while it was loaded, at {changed_ns}"
            self._sources[path] = digest
        return self._sources[path]

    def _digest(self, path: str, kind: str, compute: Digest) -> str | None:
        if self._tasks is None:
            self._loaded()
        stamp = stamp_of(path)
        if stamp is None:
            return None
        known = self._files[kind].get(path, _UNKNOWN)
        if known[:4] == stamp:
            return known[4]
        try:
            digest = compute(Path(path))
        except OSError:
            return None
        if stamp == stamp_of(path) and _is_settled(stamp) and _can_keep(path, stamp):
            self._files[kind][path] = self._new_files[path, kind] = (*stamp, digest)
        return digest

    # ---------------------------------------------------------------------------------- storage

    def _record(self, task: str, *, make: bool = False) -> dict[str, Any]:
        tasks = self._loaded() if self._tasks is None else self._tasks
        record = tasks.get(task)
        if record is None:
            text = self._raw.pop(task, None)
            record = {} if text is None else self._decoded(text)
            if text is not None or make:
                tasks[task] = record
        return record

    def _decoded(self, text: str) -> dict[str, Any]:
        try:
            record = _decode(text)[0]
        except (ValueError, TypeError, RecursionError):
            record = None
        return self._with_sources(record) if _is_record(record) else {}

    def _loaded(self) -> dict[str, dict[str, Any]]:
        if self._tasks is None:
            self._tasks = {}
            unfit = not_a_file(Path(self.name))
            if unfit:
                self._set_aside(f"it {unfit}")
            elif Path(self.name).exists():
                try:
                    self._read()
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        echo(f"error: cannot read {self.name}: {error}", err=True)
                        raise SystemExit(FileWriteError.exit_code) from error
                    self._set_aside(str(error))
        return self._tasks

    def _read(self) -> None:
        """Read everything, in the first way that goes; only a transaction that was cut short and
        has to be undone makes it write.

        Raises:
            sqlite3.DatabaseError: none goes.
        """
        ways = list(self._ways_to_read())
        for way in ways:
            try:
                with closing(self._opened(way)) as connection:
                    return self._read_from(connection)
            except sqlite3.DatabaseError as error:
                if way == ways[-1] or _is_damage(error):
                    raise
        return None

    def _ways_to_read(self) -> Iterator[str]:
        if not _has_write_ahead_log(self.name):
            yield f"mode=ro{self._without_locks()}"
            yield f"mode=rw{self._without_locks()}"
        elif os.access(Path(self.name).parent, os.W_OK) and is_local(Path(self.name)):
            # With the files beside it that its readers share.
            yield "mode=rw"
        yield "immutable=1"  # what there is at rest, without a lock, a journal, or a look at either

    def _read_from(self, connection: sqlite3.Connection) -> None:
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if (found, version) != (_APPLICATION_ID, _VERSION):
            raise sqlite3.DatabaseError("it is not a database of this version of ptycho-tasks")
        self._raw = dict(connection.execute("SELECT name, record FROM task"))
        for kind, files in self._files.items():
            rows = connection.execute(
                "SELECT path, size, mtime_ns, ctime_ns, inode, digest FROM file WHERE kind = ?",
                (kind,),
            )
            files.update((row[0], row[1:]) for row in rows if _is_digest(row[5]))
        self._notes = dict(connection.execute("SELECT name, text FROM note"))

    def _opened(self, way: str) -> sqlite3.Connection:
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
        if self._is_removed():
            self._close()
        if self._connection is None:
            path = Path(self.name)
            new = not path.exists()
            if new:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._remove_journals()
            self._connection = self._opened(f"mode=rwc{self._without_locks()}")
            if new or _has_write_ahead_log(self.name):
                self._set_journal(self._connection)
            if new:
                self._connection.executescript(
                    f"BEGIN; PRAGMA application_id={_APPLICATION_ID};"
                    f"PRAGMA user_version={_VERSION}; {_TABLES} COMMIT;"
                )
                self._write_all(self._connection)
            self._inode = _inode(self.name)
        return self._connection

    def _is_removed(self) -> bool:
        """Whether the file of the open database was removed, as by a command of a task."""
        return self._connection is not None and _inode(self.name) != self._inode

    def _remove_journals(self) -> None:
        for ending in ("-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                Path(f"{self.name}{ending}").unlink()

    def _write_all(self, connection: sqlite3.Connection) -> None:
        """Write all that this process knows into a database that is new."""
        made = {name: self._text(record) for name, record in (self._tasks or {}).items() if record}
        files = {
            (path, kind): row for kind, rows in self._files.items() for path, row in rows.items()
        }
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_TASK, {**self._raw, **made}.items())
        connection.executemany(_FILE, _rows(files))
        connection.executemany(_NOTE, self._notes.items())
        connection.execute("COMMIT")

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
        """Give a file that is no database of ours another name, and begin with an empty one."""
        self._close()
        self._raw, self._files, self._notes = {}, _no_files(), {}
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

    def _commit_task(self, task: str) -> None:
        if self.is_forgotten(task):
            self.note(f"forgotten {task}", "no")
        self._write(_TASK, (task, self._text(self._loaded()[task])))

    def _text(self, record: dict[str, Any]) -> str:
        return json.dumps(self._with_sources_apart(record), separators=(",", ":"))

    def _with_sources_apart(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record in which the digests of source files, a hundred that most tasks have in
        common, are but the name of a note."""
        values = record.get("_values_:") or {}
        built = whole(values.get("built"))
        if built is None or not built["sources"]:
            return record
        text = json.dumps(built["sources"], sort_keys=True)
        name = f"sources {hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if self._notes.get(name) != text:
            self._notes[name] = self._new_notes[name] = text
        return {**record, "_values_:": {**values, "built": {**built, "sources": name}}}

    def _with_sources(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record that `_with_sources_apart` was given."""
        built = (record.get("_values_:") or {}).get("built")
        if isinstance(built, dict) and isinstance(built.get("sources"), str):
            built["sources"] = self._source_lists(built["sources"])
        return record

    def _read_sources(self, name: str) -> Any:
        try:
            return json.loads(self._notes[name])
        except (KeyError, ValueError, TypeError, RecursionError):
            return None

    def _keep(self) -> None:
        """Write what only saves time; who merely asks writes nothing where another machine may
        be at work."""
        path = Path(self.name)
        if not (self._new_files or self._new_notes):
            return
        if self.running or (path.exists() and is_local(path)):
            # Only time is lost: files are hashed, and tasks are settled again.
            with suppress(sqlite3.Error, OSError):
                self._transact(None, ())

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        """Write one row and the hashes found since the last time, in one transaction.

        Raises:
            SystemExit: the database cannot be written, and the user was told; it is as it was.
                (doit would show any other error as a defect.)
        """
        try:
            self._transact(statement, values)
        except (sqlite3.Error, OSError) as error:
            echo(
                f"error: cannot write {self.name}: {error}; free space or allow writing, then run "
                "again: what is finished is recognised",
                err=True,
            )
            raise SystemExit(FileWriteError.exit_code) from error

    def _transact(self, statement: str | None, values: tuple[Any, ...]) -> None:
        try:
            self._transact_once(statement, values)
        except sqlite3.Error:
            if not self._is_removed():
                raise
            self._transact_once(statement, values)

    def _transact_once(self, statement: str | None, values: tuple[Any, ...]) -> None:
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_FILE, _rows(self._new_files))
            connection.executemany(_NOTE, self._new_notes.items())
            if statement is not None:
                connection.execute(statement, values)
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        self._new_files.clear()
        self._new_notes.clear()


class Checker(FileChangedChecker):  # type: ignore[misc]
    """Tells by sha256 whether an input changed; for every task of the project's dodo.py."""

    def info(self, file_path: str) -> str:
        """sha256 of a file's content.

        Raises:
            FileNotFoundError: there is none, which is how doit learns of it.
        """
        state = current()
        found = None if state is None else state.sha256(file_path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file_path)
        return found

    def check_modified(self, file_path: str, file_stat: Any, state: Any) -> bool:
        """Whether a file's content (`file_stat` is what `info` gave) is not what it was."""
        return bool(file_stat != state)

    def get_state(self, dep: str, current_state: Any) -> str:
        """What is kept of a file's content; raises as `info`."""
        return self.info(dep)


def current() -> State | None:
    """The database of the doit command that runs in this process, if one does."""
    from doit.globals import Globals

    state = getattr(Globals.dep_manager, "backend", None)
    return state if isinstance(state, State) else None


def known_sha256(root: Path, path: Path) -> str:
    """sha256 of a file's content, which a run of doit in the project need not read again."""
    state = current()
    known = None if state is None else state.sha256(spelled(root, path))
    return known or sha256_file(path)


def known_source_digest(path: Path) -> str | None:
    """The digest of a source file as it was when a run of doit loaded its tasks."""
    from ptycho_tasks.system.sources import source_digest

    state = current()
    return source_digest(path) if state is None else state.source_digest(str(path))


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether a database is none, or none of ours; else it only cannot be read just now."""
    if not isinstance(error, sqlite3.OperationalError):
        return True
    return str(error).startswith(("no such", "Could not decode"))


def is_database(name: str) -> bool:
    """Whether a file is one of ours, by its header."""
    return _header(name)[68:72] == _APPLICATION_ID.to_bytes(4, "big")


def _has_write_ahead_log(name: str) -> bool:
    """Whether a database is in SQLite's WAL mode, by its header."""
    return _header(name)[18:20] == b"\2\2"


def _header(name: str) -> bytes:
    if not_a_file(Path(name)):
        return b""
    try:
        with open(name, "rb") as file:  # noqa: PTH123
            return file.read(100)
    except OSError:
        return b""


def _inode(path: str) -> int | None:
    stamp = stamp_of(path)
    return None if stamp is None else stamp[3]


def _rows(files: Mapping[tuple[str, str], tuple[int, int, int, int, str]]) -> list[tuple[Any, ...]]:
    return [(*key, *value) for key, value in files.items()]


def _can_keep(path: str, stamp: Stamp) -> bool:
    """Whether SQLite can hold what is known of a file: its name may be no UTF-8, and its time may
    lie 300 years ahead."""
    is_text = path.isascii() or path == path.encode("utf-8", "replace").decode()
    return is_text and all(-(1 << 63) <= number < 1 << 63 for number in stamp)


def _is_digest(value: Any) -> bool:
    """Whether a value may be a sha256, as 64 digits."""
    return type(value) is str and len(value) == 64


def _is_record(record: Any) -> bool:
    """Whether a record is one that doit can work with."""
    return (
        isinstance(record, dict)
        and isinstance(record.get("_values_:", {}), dict)
        and isinstance(record.get("deps:", []), list)
        and all(isinstance(path, str) for path in record.get("deps:", ()))
    )


_BUILT = {"settings": str, "versions": dict, "sources": dict, "outputs": dict}


def whole(built: Any) -> dict[str, Any] | None:
    """A note of what a stage was built from, if it is one; anything else counts as none."""
    if not isinstance(built, dict):
        return None
    return built if all(isinstance(built.get(k), kind) for k, kind in _BUILT.items()) else None


def _is_settled(stamp: Stamp) -> bool:
    """Whether a later change of the file would show in its modification time."""
    age = now_ns() - stamp[1]
    coarse = stamp[1] % 1_000_000_000 == 0
    # A file from the future, by a clock that is wrong, must not be read again for ever.
    return age < -_COARSE_SETTLED_NS or age > (_COARSE_SETTLED_NS if coarse else _SETTLED_NS)
