"""What was built, from what: a doit database in SQLite, committed as each task completes.

doit keeps one mapping a task in it (its dependencies, their hashes, the task's values). Beside
them stand the hashes of files by size, modification time and inode, so that a file is read once
and then recognised, and what the last `ptycho.yaml` came to as tasks.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from doit.dependency import FileChangedChecker

from ptycho_tasks.builds.database import PUT_NOTE, PUT_TASK, REMOVE_TASK, Contents, Database
from ptycho_tasks.builds.digests import Digests
from ptycho_tasks.errors import FileWriteError
from ptycho_tasks.layout import project_path
from ptycho_tasks.system.files import sha256_file
from ptycho_tasks.system.lock import exit_if_held
from ptycho_tasks.system.terminal import echo

_decode = json.JSONDecoder().raw_decode


class State:
    """A project's database, in the form that doit asks of its backends."""

    desc = "SQLite, committed as each task completes; for ptycho-tasks"
    is_read_only = False
    """Whether nothing is to be written, not even what only saves time."""
    skips_strays = False
    """Whether the tasks are those without files that cannot be told from other scans by name."""

    def __init__(self, name: str, codec: Any = None, *, module_name: str | None = None) -> None:
        """The database at `name`; it is read at first use, and made when there is something
        to write."""
        self.name = name
        self.running = False
        """Whether tasks are being run, and not merely asked about."""
        self.ignores_code: bool | None = None
        """Whether what was built is to be taken as made by the code as it is; None: not known."""
        self.snapshots: dict[str, dict[str, str | None]] = {}
        """Of tasks that were checked: their inputs' hashes at that time."""
        self._group = ""
        self._database = Database(name, self._everything)
        self._digests = Digests()
        self._tasks: dict[str, dict[str, Any]] | None = None
        self._raw: dict[str, str] = {}
        """Records that nobody asked for yet, as JSON."""
        self._notes: dict[str, str] = {}
        self._new_notes: dict[str, str] = {}
        self.expected: dict[str, str | None] = {}
        """Digests that outputs will have, path to sha256, where a question is asked and the store
        has them."""
        self._source_digests: dict[int, tuple[Mapping[str, str], dict[str, str | None]]] = {}

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
        if key == "_values_:":
            # A group of tasks may be called like a stage, of which the record is to stay.
            is_group = "built" not in (value or {}) and self.outputs(task) is not None
            self._group = task if is_group else ""
        if task == self._group:
            return
        if key == "result:" and self.outputs(task) is not None:
            return  # it says the same as the values: see `_result`
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
        outputs = self.outputs(task)
        if outputs is None:
            return self._record(task).get("result:")
        inputs = self._record(task).get("deps:") or ()
        return outputs or {path: self.get(task, path) for path in inputs}

    def in_(self, task: str) -> bool:
        """Whether something is known of a task."""
        return bool(self._record(task))

    def remove(self, task: str) -> None:
        """Forget a task.

        A stage that fails is not forgotten: what was built before is still there, and still
        described by its record.
        """
        if self.running and self.outputs(task) is not None:
            return
        if not self.running:
            exit_if_held()
        if self._record(task):
            self._loaded().pop(task)
            self._write(REMOVE_TASK, (task,))
        if not self.running:
            self.note(f"forgotten {task}", "yes")

    def remove_all(self) -> None:
        """Forget every task."""
        for task in [*self._loaded(), *self._raw]:
            self.remove(task)

    def dump(self) -> None:
        """Write what is left to write, and close."""
        self._keep()
        if self._database.is_removed() and not self.is_read_only:
            with suppress(sqlite3.Error, OSError):
                self._transact()
        self._database.close()

    # ------------------------------------------------------------------------------------- ours

    def outputs(self, task: str) -> Mapping[str, str | None] | None:
        """What a stage's outputs were when it had built them, path to sha256; None where it was
        not built, and of other tasks."""
        built = read_built(self._record(task).get("_values_:"))
        return None if built is None else built.outputs

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
            self._write(PUT_NOTE, (name, text))
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
        if self._tasks is None:
            self._loaded()
        return self._digests.sha256(path)

    def source_digest(self, path: str) -> str | None:
        """The digest of what a Python file says; see `ptycho_tasks.system.sources.source_digest`.

        Settled at the first call, which belongs where the tasks are loaded: what is changed
        later is not what runs, or not what was noted, and shows as a change in the next run.
        """
        self._loaded()
        return self._digests.source_digest(path)

    def source_digests(self, sources: Mapping[str, str]) -> Mapping[str, str | None]:
        """The digests of source files, name to digest.

        Args:
            sources: name to path; a mapping that a thousand tasks share is looked at once.
        """
        known = self._source_digests.get(id(sources))
        if known is None or known[0] is not sources:
            digests = {name: self.source_digest(path) for name, path in sources.items()}
            known = self._source_digests[id(sources)] = sources, digests
        return known[1]

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
        return record if _is_record(record) else {}

    def _loaded(self) -> dict[str, dict[str, Any]]:
        if self._tasks is None:
            self._tasks = {}
            contents = self._database.read()
            self._raw, self._notes = contents.tasks, contents.notes
            self._digests.known = contents.files
        return self._tasks

    def _everything(self) -> Contents:
        """All that this process knows, for a database that is new."""
        known = {name: self._text(record) for name, record in (self._tasks or {}).items() if record}
        return Contents({**self._raw, **known}, self._digests.known, self._notes)

    def _commit_task(self, task: str) -> None:
        if self.is_forgotten(task):
            self.note(f"forgotten {task}", "no")
        self._write(PUT_TASK, (task, self._text(self._loaded()[task])))

    def _text(self, record: dict[str, Any]) -> str:
        return json.dumps(record, separators=(",", ":"))

    def _keep(self) -> None:
        """Write what only saves time; who merely asks writes nothing where another machine may
        be at work."""
        if self.is_read_only or not (self._digests.new or self._new_notes):
            return
        if self.running or self._database.has_local_file():
            # Only time is lost: files are hashed, and tasks are settled again.
            with suppress(sqlite3.Error, OSError):
                self._transact()

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        """Write one row and the digests found since the last time, in one transaction.

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

    def _transact(self, statement: str | None = None, values: tuple[Any, ...] = ()) -> None:
        new = Contents(files=self._digests.new, notes=self._new_notes)
        self._database.write(new, statement, values)
        self._digests.new, self._new_notes = {}, {}


class Checker(FileChangedChecker):  # type: ignore[misc]
    """Tells by sha256 whether an input changed; for every task of the project's dodo.py."""

    def info(self, file_path: str) -> str:
        """sha256 of a file's content.

        Raises:
            FileNotFoundError: there is none, which is how doit learns of it.
        """
        state = current_state()
        digest = None if state is None else state.sha256(file_path)
        if digest is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file_path)
        return digest

    def check_modified(self, file_path: str, file_stat: Any, state: Any) -> bool:
        """Whether a file's content (`file_stat` is what `info` gave) is not what it was."""
        return bool(file_stat != state)

    def get_state(self, dep: str, current_state: Any) -> str:
        """What is kept of a file's content; raises as `info`."""
        return self.info(dep)


@contextmanager
def skip_strays() -> Iterator[None]:
    """In the block, a command of doit leaves out files that cannot be told from other scans by
    name, which others refuse."""
    State.skips_strays = True
    try:
        yield
    finally:
        State.skips_strays = False


def current_state() -> State | None:
    """The database of the doit command that runs in this process, if one does."""
    from doit.globals import Globals

    state = getattr(Globals.dep_manager, "backend", None)
    return state if isinstance(state, State) else None


def sha256_of_input(root: Path, path: Path) -> str:
    """sha256 of a file's content, which a run of doit in the project need not read again."""
    state = current_state()
    known = None if state is None else state.sha256(project_path(root, path))
    return known or sha256_file(path)


def digest_of_source(path: Path) -> str | None:
    """The digest of a source file as it was when a run of doit loaded its tasks."""
    from ptycho_tasks.system.sources import source_digest

    state = current_state()
    return source_digest(path) if state is None else state.source_digest(str(path))


def _is_record(record: Any) -> bool:
    """Whether a record is one that doit can work with."""
    return (
        isinstance(record, dict)
        and isinstance(record.get("_values_:", {}), dict)
        and isinstance(record.get("deps:", []), list)
        and all(isinstance(path, str) for path in record.get("deps:", ()))
    )


class Built(NamedTuple):
    """What the database knows of a task's outputs."""

    key: str
    """Of the identity that they have."""
    entry: str
    """The key in the store under which stands what they were made from; another one where the
    user had code ignored that is new; empty where the store has it not."""
    read: Mapping[str, str | None]
    """Further files that were read, as those behind links, by path, to sha256."""
    outputs: Mapping[str, str | None]
    """Path to sha256."""

    def to_values(self) -> dict[str, Any]:
        """What is kept of it; see `read_built`."""
        built: dict[str, Any] = {"key": self.key, "outputs": dict(self.outputs)}
        if self.entry != self.key:
            built["entry"] = self.entry
        if self.read:
            built["read"] = dict(self.read)
        return {"built": built}


def read_built(values: Mapping[str, Any] | None) -> Built | None:
    """What the values of a task's record say of its outputs; None where they say nothing."""
    built = (values or {}).get("built")
    if not isinstance(built, dict):
        return None
    key, outputs = built.get("key"), built.get("outputs")
    entry, read = built.get("entry", key), built.get("read", {})
    if not (isinstance(key, str) and isinstance(entry, str)):
        return None
    if not (isinstance(outputs, dict) and isinstance(read, dict)):
        return None
    return Built(key, entry, read, outputs)
