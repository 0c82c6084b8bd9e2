"""Files that appear whole or not at all, and errors of the file system as one line."""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from ptycho_tasks.errors import ConfigError, FileWriteError, PtychoTasksError

_CHUNK_BYTES = 1 << 20
_RANDOM = "[a-z0-9_]" * 8
"""What `tempfile` puts into a name."""

FileStamp = tuple[int, int, int, int]
"""Size in bytes, times of modification and of the last change of any kind in ns, inode. The
second time is the kernel's own: it tells a change after which the first was put back."""


_Written = TypeVar("_Written")
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Numbers of errors that free space mends."""
_TRIES, _PAUSE_S = 100, 0.01
"""How often something is written at most, and how long after each time."""


def _misses_file(error: Exception) -> bool:
    return isinstance(error.__cause__ or error, FileNotFoundError)


@contextmanager
def report_write_errors(path: Path) -> Iterator[None]:
    """Turn any OSError inside the block into a FileWriteError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise FileWriteError(
            f"cannot write {path}: {reason}; {_find_remedy(error)}choose another folder; "
            "what was there is unchanged"
        ) from error


def _find_remedy(error: OSError) -> str:
    """What to do where a file cannot be written, besides choosing another place."""
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "allow writing there or "
    # Libraries do not tell the number of a full disk.
    return "free space or " if error.errno in (None, *_FULL) else ""


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Yield a new, empty file in the folder of `path`; it is gone after the block.

    Missing folders are made. The file's mode is what the umask gives any new file.

    Raises:
        FileWriteError: the folder or the file cannot be written, now or inside the block.
    """
    path = Path(path)
    with report_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        try:
            os.chmod(name, 0o666 & ~_umask())  # noqa: PTH101 (a mkstemp file is private)
            yield Path(name)
        finally:
            with suppress(OSError):
                os.unlink(name)  # noqa: PTH108


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove the temporary files that a killed process left beside `paths`: see
    `temporary_file`."""
    for path in paths:
        for left in path.parent.glob(f".{glob.escape(path.name)}.{_RANDOM}.tmp"):
            left.unlink(missing_ok=True)


def despite_removal(
    write: Callable[[], _Written], is_removed: Callable[[Exception], bool] = _misses_file
) -> _Written:
    """Write files, and again where a command removes their folder at the same moment.

    Args:
        write: what writes; called again, for a second at most.
        is_removed: whether an error of it comes of such a removal; unless given, if a file is
            missing.

    Raises:
        Exception: as `write` does at last, or at once for another reason.
    """
    for left in reversed(range(_TRIES)):
        try:
            return write()
        except Exception as error:
            if not left or not is_removed(error):
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; after the block it takes the place of `path`.

    On any error inside the block, the temporary file is removed and what stood at `path` is
    unchanged.

    Raises:
        FileWriteError: for any OSError, also one raised inside the block.
    """
    path = Path(path)
    with temporary_file(path) as temp:
        yield temp
        flush(temp)
        temp.replace(path)
        flush_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all.

    Raises:
        FileWriteError: the file cannot be written; what was there is unchanged.
    """
    with replace_file(path) as temp:
        temp.write_bytes(data)


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, all or none; raises as `stage_files`."""
    with stage_files(contents) as place:
        place()


@contextmanager
def stage_files(contents: Mapping[Path, bytes]) -> Iterator[Callable[[], None]]:
    """Write files beside their places; yields a function that puts all in place, or none.

    A file that takes the place of another gets its mode.

    Raises:
        FileWriteError: one cannot be written, now or when they are put in place; all is as it was.
        PtychoTasksError: likewise, but what was there before cannot be put back.
    """
    with ExitStack() as stack:
        new = {path: stack.enter_context(temporary_file(path)) for path in contents}
        old: dict[Path, Path] = {}
        for path, temp in new.items():
            with report_write_errors(path):
                temp.write_bytes(contents[path])
                if path.is_file():
                    old[path] = stack.enter_context(temporary_file(path))
                    shutil.copyfile(path, old[path])
                    for copy in (temp, old[path]):
                        copy.chmod(stat.S_IMODE(path.stat().st_mode))
                        flush(copy)
                flush(temp)
        yield functools.partial(_place, new, old)


def _place(new: Mapping[Path, Path], old: Mapping[Path, Path]) -> None:
    placed: list[Path] = []
    try:
        for path, temp in new.items():
            with report_write_errors(path):
                temp.replace(path)
            placed.append(path)
    except BaseException:
        for path in placed:
            _put_back(path, old.get(path))
        raise
    for folder in {path.parent for path in new}:
        flush_folder(folder)


def _put_back(path: Path, old: Path | None) -> None:
    try:
        if old is None:
            path.unlink()
        else:
            old.replace(path)
    except OSError as error:
        raise PtychoTasksError(
            f"cannot put {path} back as it was: {error.strerror or error}; allow writing there and "
            "run again"
        ) from error


def check_replaceable(path: Path, *, force: bool) -> None:
    """Refuse to replace what is no regular file, and without `force` any file.

    Raises:
        ConfigError: one line that names the path.
    """
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise ConfigError(f"{path} is there and is no regular file; choose another path")
    if not force:
        raise ConfigError(f"{path} is already there; choose another path, or --force to replace it")


def find_file_problem(path: Path) -> str:
    """Why a path cannot be read as a file, as `is a folder`; empty for a file, or for nothing.

    Asked before a file is opened: to open a named pipe would wait for ever.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return ""
    if stat.S_ISREG(mode):
        return ""
    return "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"


_ZIP_START, _ZIP_END, _ZIP_END_BYTES = b"PK\x03\x04", b"PK\x05\x06", 22
"""Of a zip that holds something and has no comment: first bytes, and those of its last part."""


def find_zip_problem(path: Path | str) -> str:
    """Why a file is no zip such as a bundle is, as `is no zip`; empty where it looks like one.

    Cheap, and no proof: its two ends alone are looked at.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (asked for thousands of tasks)
            start = file.read(len(_ZIP_START))
            end = file.seek(0, os.SEEK_END) - _ZIP_END_BYTES
            file.seek(max(end, 0))
            is_zip = start == _ZIP_START and file.read(len(_ZIP_END)) == _ZIP_END
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return "" if is_zip else "is damaged, or no zip"


def is_file_at(file: IO[Any] | int, path: Path) -> bool:
    """Whether an open file, or the one of a descriptor, is the file at a path."""
    number = file if isinstance(file, int) else file.fileno()
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False


def file_stamp(path: Path | str) -> FileStamp | None:
    """The stamp of a file, which changes when the file does; None if there is no file."""
    try:
        stat = os.stat(path)  # noqa: PTH116 (asked for thousands of paths)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def real_path(path: Path) -> Path:
    """The path with all links followed; a loop of links ends at the loop.

    `Path.resolve` raises for a loop, and not the same error in every Python.
    """
    return Path(os.path.realpath(path))


def flush(path: Path) -> None:
    """Force a file's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the platform can."""
    # Windows cannot open a folder, and some network file systems refuse the fsync.
    with suppress(OSError):
        flush(folder)


def sha256_file(path: Path) -> str:
    """The hexadecimal sha256 of a file, read in pieces.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    problem = find_file_problem(path)
    if problem:
        raise OSError(errno.EINVAL, problem, str(path))
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def link_files(places: Mapping[Path, Path]) -> None:
    """Put files at further places: all are there before the first takes its place.

    Args:
        places: each place, to the file that is to be there too; see `copy_or_link`.

    Raises:
        FileWriteError: one cannot be written; what was there is unchanged.
    """
    # Where place and source are links to one file, the rename does nothing: the stack tidies up.
    with ExitStack() as stack:
        new = {place: stack.enter_context(temporary_file(place)) for place in places}
        for place, temp in new.items():
            with report_write_errors(place):
                temp.unlink()
                copy_or_link(places[place], temp)
        for place, temp in new.items():
            with report_write_errors(place):
                temp.replace(place)
    for folder in {place.parent for place in places}:
        flush_folder(folder)


def copy_or_link(source: str | Path, target: str | Path) -> None:
    """Give a file a second place, without a second copy of its content where that is possible and
    safe: by a clone, else by a hard link, else by a copy.

    Who may write to every file gets no link, since the mode of the file would not keep that user
    from changing the content at both places.

    Raises:
        OSError: the target cannot be written.
    """
    if _clone(source, target):
        return
    if os.name != "posix" or os.geteuid() != 0:
        with suppress(OSError):  # other file system, or one without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)
    flush(Path(target))


def _clone(source: str | Path, target: str | Path) -> bool:
    """Whether the file system could copy a file by reference (btrfs, XFS)."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    with open(source, "rb") as old, open(target, "wb") as new:  # noqa: PTH123
        try:
            fcntl.ioctl(new, _FICLONE, old.fileno())
        except OSError:
            pass
        else:
            return True
    os.unlink(target)  # noqa: PTH108
    return False


_FICLONE = 0x40049409
"""Linux's ioctl that has two files share their blocks until one of them is written to."""


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
