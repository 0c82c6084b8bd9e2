import errno
import fcntl
from pathlib import Path

import pytest

from ptycho_tasks.system.cache import forget_all
from ptycho_tasks.system.file_system import has_record_locks, is_local

MOUNTS = """\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:5 / /beam\\040line rw - nfs4 server:/x rw
22 21 0:6 / /beam\\040line/scratch rw - xfs /dev/sdb rw
23 20 0:7 / /gpfs rw - gpfs gpfs0 rw
"""


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("/home/me/state", True),
        ("/beam line/state", False),
        ("/beam line/scratch/state", True),
        ("/gpfs/state", False),
        ("/gpfs2/state", True),
    ],
)
def test_the_innermost_mount_says_whether_others_see_a_file(path, local, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda self, **how: MOUNTS)
    forget_all()
    assert is_local(Path(path)) is local
    forget_all()


@pytest.mark.parametrize("missing", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_from_one_with(tmp_path, monkeypatch, missing):
    assert has_record_locks(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []

    def refuse(*anything):
        raise OSError(missing, "no locks")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert not has_record_locks(tmp_path / "new")
