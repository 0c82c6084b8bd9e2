"""The store: results by what they were made from, each in a folder named by its identity's key.

    STORE/store.json            the format of the store
    STORE/train/KEY/record.json what the result was made from, when, and its files' sha256
    STORE/train/KEY/wts.h5.zip  the result itself, read-only

An entry appears whole or not at all, by a rename, and is never changed; so programs on several
machines may share a store without a lock. Where there are locks, they spare work: KEY.lock is held
by who makes an entry. It is checked when it is read; one that is damaged is
set aside.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from stat import S_IMODE
from typing import Any, NamedTuple

from ptycho_tasks.builds.identity import Identity, read_identity
from ptycho_tasks.errors import ConfigError, FileWriteError, PtychoTasksError
from ptycho_tasks.system.cache import cached
from ptycho_tasks.system.clock import parse_stamp, utc_now
from ptycho_tasks.system.files import (
    copy_or_link,
    flush,
    flush_folder,
    report_write_errors,
    sha256_file,
    write_atomic,
)
from ptycho_tasks.system.lock import hold_signed_lock, is_alive, remove_dead_locks
from ptycho_tasks.system.terminal import echo

FORMAT = 1
RECORD = "record.json"
_HEAD = "store.json"
DAMAGED = "damaged"
"""The folder for entries that were set aside."""
LINKS = ".links.json"
"""How a file ends that lists further files which results were made from."""
NEW = "new-"
"""How the folder of an entry begins that is not whole yet."""
Hash = Callable[[str], "str | None"]
"""Gives the sha256 of the file at a path; None where there is no file."""


class Record(NamedTuple):
    """What is known of an entry besides its files."""

    identity: Identity
    files: Mapping[str, str]
    """Path in the entry's folder, to sha256."""
    made: str
    """When, in UTC."""
    seconds: float
    """How long the stage took; zero where it was not seen run, as for its memory."""
    memory_bytes: int
    """The most memory that the process had while the stage ran."""
    machine: str
    version: str
    """Of the program."""
    label: str = ""
    """The name that the task had in the project that made it."""
    sizes: Mapping[str, int] = {}
    """Bytes of the files, by path; empty in records of older versions."""
    commit: str | None = None
    """That the project was at; empty outside git; None where it was not seen made."""
    is_dirty: bool = False
    """Whether files that git tracks were changed since."""
    pixels: int = 0
    """Of all frames of its scans together; zero where that is not known."""
    libraries: Mapping[str, str] = {}
    """Versions of what it was computed with, by name; no part of what decides it. Empty where it
    was not seen made, and in records of older versions."""


class Entry(NamedTuple):
    """A result that the store has."""

    stage: str
    key: str
    folder: Path
    record: Record

    @property
    def moment(self) -> datetime:
        """When it was made."""
        return parse_stamp(self.record.made)

    @property
    def age(self) -> str:
        """How long ago it was made: `3 days ago`."""
        return format_age((utc_now() - self.moment).total_seconds())


class Store:
    """One folder, or two: the project's own, and one that it shares with others."""

    def __init__(self, own: Path, shared: Path | None = None, *, mends: bool = True) -> None:
        """The store of a project.

        Args:
            own: a folder in the project; nothing is written until there is a result.
            shared: a folder that several projects use, which may be read-only. What is made goes
                there if it can.
            mends: whether damaged entries are set aside; who only asks changes nothing.
        """
        self.own, self.shared, self._mends = own, shared, mends

    @property
    def roots(self) -> list[Path]:
        """The folders, in the order in which they are looked at."""
        return [self.own, *([] if self.shared is None else [self.shared])]

    def find(self, stage: str, identity: Identity, sha256: Hash) -> Entry | None:
        """The result that an identity has, if the store holds it.

        Args:
            stage: of the result.
            identity: `read` may be empty where the files are not known yet: then those count that
                were read when the result was made.
            sha256: hashes a file of the project.

        Raises:
            ConfigError: the store is of a newer format.
        """
        for root in self.roots:
            _refuse_newer(root)
        keys = dict.fromkeys([identity.key(), *self._keys_with_links(stage, identity, sha256)])
        for root, key in itertools.product(self.roots, keys):
            entry = self.read(stage, key, root)
            if entry is not None:
                return entry
        return None

    def _keys_with_links(self, stage: str, identity: Identity, sha256: Hash) -> Iterator[str]:
        """Keys with the further files that results of this identity were made from."""
        plain = identity.without_links()
        for root in self.roots:
            for paths in _read_links(root / stage / f"{plain.key()}{LINKS}"):
                yield plain._replace(read={path: sha256(path) for path in paths}).key()

    def read(self, stage: str, key: str, root: Path | None = None) -> Entry | None:
        """The entry of a key; None where there is none. `check` looks at its files, not this."""
        for place in self.roots if root is None else [root]:
            folder = place / stage / key
            try:
                data = json.loads((folder / RECORD).read_text())
                record = _parse_record(data)
            except (FileNotFoundError, NotADirectoryError):
                if folder.is_dir():
                    self.set_aside(folder, f"it has no {RECORD}")
                continue
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                record = None
            if record is not None and record.identity.key() == key:
                return Entry(stage, key, folder, record)
            self.set_aside(folder, f"{RECORD} is damaged")
        return None

    def check(self, entry: Entry, sha256: Callable[[Path], str] = sha256_file) -> bool:
        """Whether an entry's files are what its record says; sets it aside if not."""
        for name, digest in entry.record.files.items():
            try:
                is_whole = sha256(entry.folder / name) == digest
            except OSError:
                is_whole = False
            if not is_whole:
                self.set_aside(entry.folder, f"{name} is missing or damaged")
                return False
        return True

    def seems_whole(self, entry: Entry) -> bool:
        """Whether an entry's files are there and as long as they were; a look that costs little.
        What is not in the store yet has no folder, and is whole."""
        if entry.folder == Path():
            return True
        try:
            sizes = {name: (entry.folder / name).stat().st_size for name in entry.record.files}
        except OSError:
            return False
        return all(sizes.get(name) == size for name, size in entry.record.sizes.items())

    def set_aside(self, folder: Path, problem: str) -> None:
        """Move a damaged entry out of the way, and say so."""
        if not self._mends:
            return
        aside = folder.parents[1] / DAMAGED
        try:
            aside.mkdir(exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix=f"{folder.parent.name}-", dir=aside))
            folder.rename(place / folder.name)
        except OSError:
            echo(f"store      {folder}: {problem}; it is not used", err=True)
        else:
            echo(f"store      {folder}: {problem}; set aside in {place}, and made again", err=True)

    def add(self, stage: str, record: Record, files: Mapping[str, Path]) -> Entry:
        """Make an entry of files that lie elsewhere.

        Args:
            stage: of the result.
            record: what is known of it.
            files: where the files lie, by the name that they get.

        Raises:
            FileWriteError: it cannot be written.
        """
        with self.begin(stage) as folder:
            with report_write_errors(folder):
                for name, path in files.items():
                    (folder / name).parent.mkdir(exist_ok=True)
                    copy_or_link(path, folder / name)
            return self.publish(folder, stage, record, replace=False)

    @contextmanager
    def hold(self, stage: str, key: str) -> Iterator[bool]:
        """Have others that share the store wait, in the block, to make what has this key, or wait
        for them. Where one may not write, or a file system has no locks, nobody waits: a result is
        made twice then, and taken once.

        Yields:
            Whether another was waited for.
        """
        with ExitStack() as lock:
            has_waited = False
            with suppress(PtychoTasksError, OSError):
                place = self.own / stage if self.shared is None else _make_place(self.shared, stage)
                remove_dead_locks(place)
                signed = hold_signed_lock(place / f"{key}.lock", _say_waiting)
                has_waited = lock.enter_context(signed)
            yield has_waited

    @contextmanager
    def begin(self, stage: str) -> Iterator[Path]:
        """A new, empty folder for the files of a result; gone after the block if not published.

        Raises:
            FileWriteError: it cannot be made.
        """
        place = self.own / stage
        _refuse_newer(self.own)
        with report_write_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            _mark(self.own)
            _remove_unfinished(place)
            folder = Path(tempfile.mkdtemp(prefix=f"{NEW}{os.getpid()}-", dir=place))
            folder.chmod(0o755)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, stage: str, record: Record, *, replace: bool) -> Entry:
        """Make an entry of the files in a folder that `begin` gave.

        Args:
            folder: holds the result's files.
            stage: of the result.
            record: what is known of it; `files` is settled here.
            replace: take the place of an entry that is there. Otherwise that one is taken, if it
                is whole: another program was faster.

        Returns:
            The entry that the store has now.

        Raises:
            FileWriteError: it cannot be written.
        """
        record = describe_folder(folder, stage, record).record
        with report_write_errors(folder):
            write_atomic(folder / RECORD, _format_record(record))
            for name in record.files:
                (folder / name).chmod(0o444)
                flush(folder / name)
        if self.shared is not None:
            entry = self._publish_shared(folder, stage, record, replace)
            if entry is not None:
                return entry
        with report_write_errors(self.own):
            return self._place(folder, self.own, stage, record, replace)

    def _publish_shared(
        self, folder: Path, stage: str, record: Record, replace: bool
    ) -> Entry | None:
        """Publish into the shared folder; None where it cannot be written."""
        assert self.shared is not None
        copy = None
        try:
            _refuse_newer(self.shared)
            place = _make_place(self.shared, stage)
            _mark(self.shared)
            copy = Path(tempfile.mkdtemp(prefix=NEW, dir=place))
            copy.chmod(0o755)
            for name in (RECORD, *record.files):
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                copy_or_link(folder / name, copy / name)
                (copy / name).chmod(0o444)
            return self._place(copy, self.shared, stage, record, replace)
        except (OSError, FileWriteError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            _tell_once(
                f"store      {self.shared}: cannot be written ({reason}); results are kept in "
                f"{self.own}"
            )
            return None
        finally:
            if copy is not None:
                shutil.rmtree(copy, ignore_errors=True)

    def _place(self, folder: Path, root: Path, stage: str, record: Record, replace: bool) -> Entry:
        key = record.identity.key()
        final = root / stage / key
        if record.identity.read:
            plain = record.identity.without_links()
            _add_links(root / stage / f"{plain.key()}{LINKS}", list(record.identity.read))
        for _ in range(3):
            with suppress(OSError):  # there is one already
                folder.rename(final)
                flush_folder(final.parent)
                return Entry(stage, key, final, record)
            there = None if replace else self.read(stage, key, root)
            if there is not None and self.check(there):
                return there
            if replace and final.is_dir():
                remove_entry(final)
        raise FileWriteError(f"cannot write {final}; check its permissions and run again")

    def entries(self) -> Iterator[Entry]:
        """Every entry of the store that is whole."""
        for folder in self.list_folders(self.roots):
            entry = self.read(folder.parent.name, folder.name, folder.parents[1])
            if entry is not None:
                yield entry

    def list_folders(self, roots: Iterable[Path]) -> Iterator[Path]:
        """The folders of entries, be they whole or damaged."""
        for root in roots:
            for folder in sorted(root.glob(f"*/{'[0-9a-f]' * 64}")):
                if folder.parent.name != DAMAGED:
                    yield folder


def describe_folder(folder: Path, stage: str, record: Record) -> Entry:
    """What an entry would be of the files in a folder; the store need not have it.

    Raises:
        FileWriteError: a file cannot be read back.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with report_write_errors(folder):
        files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
        sizes = {name: (folder / name).stat().st_size for name in files}
    record = record._replace(files=files, sizes=sizes)
    return Entry(stage, record.identity.key(), folder, record)


def remove_entry(folder: Path) -> None:
    """Remove an entry, which nobody finds from the first moment on.

    Raises:
        OSError: it cannot be removed.
    """
    away = Path(tempfile.mkdtemp(prefix=NEW, dir=folder.parent))
    folder.rename(away / folder.name)
    shutil.rmtree(away)


def _say_waiting(holder: str) -> None:
    echo(f"waits for {holder}, which makes it in the same store")


@cached
def _tell_once(text: str) -> None:
    echo(text, err=True)


def _mark(root: Path) -> None:
    if not (root / _HEAD).exists():
        write_atomic(root / _HEAD, json.dumps({"format": FORMAT}).encode())


def _refuse_newer(root: Path) -> None:
    """Refuse a store that a newer program made otherwise.

    Raises:
        ConfigError: names the folder.
    """
    try:
        head = json.loads((root / _HEAD).read_text())
        number = head["format"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return
    if not isinstance(number, int) or number > FORMAT:
        raise ConfigError(
            f"{root}: this store is of format {number}, and this ptycho-tasks knows {FORMAT}; "
            "update ptycho-tasks, or name another folder with `store:`"
        )


def _parse_record(data: Any) -> Record | None:
    identity = read_identity(data["identity"])
    files = data["files"]
    if identity is None or not all(map(_is_file_entry, files.items())):
        return None
    parse_stamp(data["made"])
    numbers = float(data["seconds"]), int(data["memory_bytes"])
    machine, made_by, label = (str(data[key]) for key in ("machine", "version", "label"))
    sizes = {name: int(size) for name, size in data.get("sizes", {}).items() if name in files}
    commit, is_dirty = data.get("commit"), bool(data.get("is_dirty"))
    revision = None if commit is None else str(commit), is_dirty
    return Record(
        identity,
        files,
        data["made"],
        *numbers,
        machine,
        made_by,
        label,
        sizes,
        *revision,
        int(data.get("pixels", 0)),
        {str(name): str(text) for name, text in data.get("libraries", {}).items()},
    )


def _is_file_entry(item: tuple[str, Any]) -> bool:
    """Whether an item of `files` names a file in the entry's own folder, and has a digest."""
    path = PurePosixPath(item[0])
    return not path.is_absolute() and ".." not in path.parts and isinstance(item[1], str)


def _format_record(record: Record) -> bytes:
    data = {**record._asdict(), "identity": record.identity.to_record()}
    return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


def _read_links(path: Path) -> list[list[str]]:
    """Lists of further files that results were made from."""
    try:
        lists = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return []
    is_right = isinstance(lists, list) and all(
        isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in lists
    )
    return lists if is_right else []


def _make_place(shared: Path, stage: str) -> Path:
    """The folder for results of a stage, which those may write who may write the shared folder,
    whatever their umask."""
    place = shared / stage
    if not place.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # a file system without modes
            place.chmod(S_IMODE(shared.stat().st_mode))
    return place


def _add_links(path: Path, links: list[str]) -> None:
    known = _read_links(path)
    if links not in known:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps([*known, links]).encode())


def _remove_unfinished(place: Path) -> None:
    """Remove what runs of the project left that were killed."""
    for folder in place.glob(f"{NEW}*-*"):
        number = folder.name.removeprefix(NEW).partition("-")[0]
        if number.isdecimal() and not is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def format_age(seconds: float) -> str:
    """How long ago something was: `3 days ago`."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(max(seconds, 0) // length)
        if count:
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"
