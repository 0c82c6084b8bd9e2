"""One run at a time in a project: a lock that ends with the process that holds it."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.system.files import is_file_at
from ptycho_tasks.system.terminal import echo

STATE_DIR = ".ptycho"
"""The folder in a project that holds what no other program needs."""
LOCK_NAME = f"{STATE_DIR}/lock"
RUN_VARIABLE = "PTYCHO_TASKS_RUN"
"""In the environment of a command that a run waits for: whose lock runs of that command share."""
_BUILDING = f"{STATE_DIR}/building"
"""Held by a run that shares another's lock; and by each task of that other that runs beside it."""
_DYING_S = 3.0
"""How long the worker processes of a killed run may take to end."""
_LOOK_S = 0.3
_MOST_DEAD = 20


class LockedError(PtychoTasksError):
    """Another run is at work in the project."""


class ProjectLock:
    """The lock of the project in the current folder.

    The kernel's own lock on a file (flock), which ends with its holder however that dies; what
    the file says is for people. The project's folder is locked too, as a command that the run
    starts may remove the file. A library for this costs a third of doit's start-up.
    """

    def __init__(self, path: Path | None = None, place: str = "this project") -> None:
        """Make a lock that is not taken yet; messages call the locked folder `place`."""
        self.path = path or Path(LOCK_NAME)
        self.place = place
        self._file: IO[str] | None = None
        self._folder: int | None = None
        self._info: dict[str, Any] = {}
        self._shared = ExitStack()

    def acquire(self) -> None:
        """Take the lock. A lock of a run that died counts as free; one of a run that waits for this
        process is shared, by one process at a time.

        Raises:
            LockedError: another run holds it; the message says which.
            PtychoTasksError: the file cannot be made.
        """
        file = self._open()
        if not has_flock(file):
            echo(
                f"warning: {self.path}: this file system has no locks: two runs in {self.place} "
                "are not kept apart; start one at a time",
                err=True,
            )
        folder = _open_folder(self.path)
        until = time.monotonic() + _DYING_S
        while not (take_flock(file) and take_flock(folder)):
            holder = _read(self.path)
            if not _is_dead(holder) or time.monotonic() > until:
                _close(file, folder)
                if _is_lent(self.path):
                    return self._share()
                raise LockedError(_sentence(holder, self.place))
            time.sleep(0.05)
        if not is_file_at(file, self.path):  # its last holder removed it
            _close(file, folder)
            return self.acquire()
        self._file, self._folder = file, folder
        self._info = {
            "pid": os.getpid(),
            "host": _host(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "task": "",
        }
        self._write()

    def _share(self) -> None:
        global _shares
        # A run that this one waits for in turn would wait for it for ever.
        del os.environ[RUN_VARIABLE]
        self._shared.enter_context(hold_lock(Path(_BUILDING)))
        _shares = True

    def _open(self) -> IO[str]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self.path.open("a+")
        except OSError as error:
            raise PtychoTasksError(
                f"cannot write {self.path}: {error.strerror or error}; allow writing here, or "
                "work in a copy of the project"
            ) from error

    def note_task(self, task: str) -> None:
        """Write into the lock which task runs."""
        if self._file is not None:
            self._info["task"] = task
            self._take_again()
            self._write()

    def _take_again(self) -> None:
        """Make and lock the file anew, if a command removed it."""
        assert self._file is not None
        if is_file_at(self._file, self.path):
            return
        with suppress(PtychoTasksError):
            file = self._open()
            if take_flock(file):
                self._file.close()
                self._file = file
                return
            file.close()
            echo(
                f"warning: {self.path} was removed, and another run began: the two are not kept "
                "apart; stop one",
                err=True,
            )

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back, and remove its file if that is asked for."""
        global _shares
        self._shared.close()
        _shares = False
        if self._file is not None and remove:
            with suppress(OSError):
                self.path.unlink()
        if self._file is not None:
            with suppress(OSError):  # a full disk must not end a run that is done
                self._file.truncate(0)
            _close(self._file, self._folder)
            self._file = self._folder = None

    def _write(self) -> None:
        assert self._file is not None
        with suppress(OSError):  # a full disk must not end a run that needs no more space
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(self._info) + "\n")
            self._file.flush()


_shares = False
"""Whether this process, or the one that it is a worker of, shares the lock of another run."""


def shares_lock() -> bool:
    """Whether this process belongs to a run that shares the lock of the run that waits for it."""
    return _shares


def lend_lock(pid: int) -> Mapping[str, str]:
    """What a command finds in its environment, whose own runs may share the lock of the run that
    waits for it, in the current folder.

    Args:
        pid: of the run.
    """
    return {RUN_VARIABLE: f"{pid}:{Path.cwd()}"}


def _is_lent(path: Path) -> bool:
    pid, _, folder = os.environ.get(RUN_VARIABLE, "").partition(":")
    if path != Path(LOCK_NAME) or not folder or not pid.isdecimal() or not is_alive(int(pid)):
        return False
    with suppress(OSError):
        return Path(folder).samefile(Path.cwd())
    return False


@contextmanager
def build_beside() -> Iterator[None]:
    """In the block, keep the runs waiting that share the lock of this one, as a worker of which
    this process makes something."""
    if _shares:  # its own run keeps all others waiting
        yield
    else:
        with hold_lock(Path(_BUILDING), shared=True):
            yield


@contextmanager
def hold_lock(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock for the block; others wait. It ends with the process that holds it.

    Args:
        path: the lock's file, which is made; or a folder that is there.
        shared: whether others may hold it too who share it.

    Raises:
        PtychoTasksError: the file cannot be made.
    """
    file = _open_lock(path)
    try:
        # As in take_flock: a system or file system without locks leaves it to the user.
        with suppress(ImportError, OSError, ValueError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        if file >= 0:
            os.close(file)


@contextmanager
def hold_signed_lock(path: Path, waits: Callable[[str], None]) -> Iterator[bool]:
    """Hold a lock whose file says who holds it, and is removed after the block.

    Args:
        path: the lock's file, which is made.
        waits: is told who holds it, as `process 12 on node7`, where another does; once.

    Yields:
        Whether another held it before.

    Raises:
        PtychoTasksError: the file cannot be made.
    """
    has_waited = False
    while not (take_flock(file := _open_lock(path)) and is_file_at(file, path)):
        # Held by another, or removed by its last holder.
        holder = _read(path)
        os.close(file)
        if holder and not has_waited:
            waits(f"process {holder.get('pid')} on {holder.get('host')}")
            has_waited = True
        time.sleep(_LOOK_S)
    try:
        with suppress(OSError):  # a full disk
            os.truncate(file, 0)  # of a holder that was killed
            os.write(file, json.dumps({"pid": os.getpid(), "host": _host()}).encode())
        yield has_waited
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(file)


def remove_dead_locks(folder: Path) -> None:
    """Remove lock files of holders that were killed. Of many it looks at some: others come by."""
    for path in itertools.islice(folder.glob("*.lock"), _MOST_DEAD):
        with suppress(OSError), path.open("r+") as file:
            if take_flock(file) and is_file_at(file, path):
                path.unlink()


def _open_lock(path: Path) -> int:
    if path.is_dir():
        with suppress(OSError):  # not every system opens a folder
            return os.open(path, os.O_RDONLY)
        return -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        if isinstance(error, PermissionError):
            with suppress(OSError):  # of another user: it can be locked all the same
                return os.open(path, os.O_RDONLY)
        raise PtychoTasksError(
            f"cannot write {path}: {error.strerror or error}; allow writing there"
        ) from error


def _open_folder(path: Path) -> int | None:
    """The project's folder, by its lock's path; None where it cannot be opened."""
    try:
        return os.open(path.parent.parent, os.O_RDONLY)
    except OSError:
        return None


def _close(file: IO[str], folder: int | None) -> None:
    with suppress(OSError):
        file.close()
    if folder is not None:
        os.close(folder)


def describe_holder(path: Path | None = None) -> str | None:
    """A sentence about the run that holds a project's lock; None if no run does."""
    path = path or Path(LOCK_NAME)
    try:
        with path.open("r+") as file:
            if not take_flock(file):
                return _sentence(_read(path))
    except FileNotFoundError:
        pass
    except OSError:  # who may not write here cannot be in anyone's way
        return None
    folder = _open_folder(path)
    try:
        return None if take_flock(folder) else _sentence(_read(path))
    finally:
        if folder is not None:
            os.close(folder)


def exit_if_held() -> None:
    """End a command that must not meddle with a run at work, with one line that names the run.

    Raises:
        SystemExit: a run holds the lock.
    """
    at_work = describe_holder()
    if at_work is not None:
        echo(f"error: {at_work}", err=True)
        raise SystemExit(LockedError.exit_code)


def take_flock(file: IO[str] | int | None) -> bool:
    """Take the kernel's lock of an open file or folder, if there is one; False where another
    process holds it."""
    if file is None:
        return True
    try:
        import fcntl
    except ImportError:  # Windows: runs are not kept apart
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the user keeps runs apart
        return True
    return True


def has_flock(file: IO[str]) -> bool:
    """Whether the kernel has locks for an open file."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)
    except (ImportError, OSError):
        return False
    return True


def _host() -> str:
    # The module socket would cost as much time as all else that is imported for a lock.
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "?")


def _read(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        info = None
    return info if isinstance(info, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    if holder.get("host") != _host() or not isinstance(holder.get("pid"), int):
        return False
    return not is_alive(holder["pid"])


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there; True where that cannot be known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sentence(holder: dict[str, Any], place: str = "this project") -> str:
    if not holder:
        return f"another run is at work in {place}; wait for it"
    task = f", task {holder['task']}" if holder.get("task") else ""
    return (
        f"another run is at work in {place}: process {holder.get('pid')} on "
        f"{holder.get('host')}, since {holder.get('since')}{task}; wait for it, or stop it"
    )
