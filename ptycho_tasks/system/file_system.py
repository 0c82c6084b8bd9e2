"""What the file system under a path can do."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from ptycho_tasks.system.cache import cached

_LOCAL = frozenset(
    {"apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "ntfs"}
    | {"ntfs3", "overlay", "ramfs", "reiserfs", "tmpfs", "vfat", "xfs", "zfs"}
)
"""Types of file systems that only one machine sees."""

_WITHOUT = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""


def is_local(path: Path) -> bool:
    """Whether only this machine sees a file; False if that cannot be known."""
    return _is_local(path.absolute())


@cached
def _is_local(path: Path) -> bool:
    whole = str(path.resolve())
    kind, longest = "", -1
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            mount, _, rest = line.partition(" - ")
            place = mount.split(" ")[4].encode().decode("unicode_escape")
            if len(place) >= longest and f"{whole}/".startswith(f"{place.rstrip('/')}/"):
                kind, longest = rest.split(" ")[0], len(place)
    return kind in _LOCAL


def has_record_locks(path: Path) -> bool:
    """Whether the file system has POSIX record locks, which SQLite needs.

    Asked before a file is opened by others in this process: with this look at it, their locks go.

    Args:
        path: a file, or where one may be made in its folder.
    """
    try:
        import fcntl
    except ImportError:  # Windows, which has locks of its own
        return True
    try:
        with path.open("rb") if path.exists() else TemporaryFile(dir=path.parent) as file:
            # The first byte, which SQLite never locks.
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1)
    except OSError as error:  # others are for who opens it to report
        return error.errno not in _WITHOUT
    return True
