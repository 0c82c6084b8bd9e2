"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_tasks.errors import ConfigError, FileWriteError
from ptycho_tasks.system.files import (
    check_replaceable,
    find_file_problem,
    replace_file,
    report_write_errors,
    sha256_file,
    write_atomic,
    write_files,
)


def test_a_file_is_written_and_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_the_old_file_and_no_other(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with replace_file(path) as temp:
            temp.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileWriteError, match="cannot write") as caught:
        write_atomic(tmp_path / "file" / "below", b"x")
    assert "\n" not in str(caught.value)


def with_little_space(code: str) -> str:
    """Run code for which no file can become larger than 1000 bytes; gives what it complains."""
    done = subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )
    return done.stderr


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    said = with_little_space(
        "from ptycho_tasks.system.files import write_atomic\n"
        f"write_atomic(Path({str(path)!r}), b'x' * 100_000)"
    )
    assert f"FileWriteError: cannot write {path}: File too large" in said
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_several_files_are_written_or_none(tmp_path: Path) -> None:
    said = with_little_space(
        "from ptycho_tasks.system.files import write_files\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "write_files({folder / 'a': b'small', folder / 'b': b'x' * 100_000})"
    )
    assert f"FileWriteError: cannot write {tmp_path / 'b'}" in said
    (tmp_path / "b").mkdir()
    with pytest.raises(FileWriteError):
        write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    (tmp_path / "b").rmdir()
    write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a": b"1", "b": b"2"}


def test_what_is_there_is_replaced_only_where_it_is_a_file_and_wanted(tmp_path: Path) -> None:
    for name, make in (("folder", os.mkdir), ("pipe", os.mkfifo)):
        make(tmp_path / name)
    (tmp_path / "nowhere").symlink_to("absent")
    for path in tmp_path.iterdir():
        with pytest.raises(ConfigError, match="no regular file"):
            check_replaceable(path, force=True)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--force"):
        check_replaceable(tmp_path / "file", force=False)
    check_replaceable(tmp_path / "file", force=True)
    check_replaceable(tmp_path / "new", force=False)


def test_only_a_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert find_file_problem(tmp_path) == "is a folder"
    assert find_file_problem(tmp_path / "pipe") == "is not a regular file"
    assert find_file_problem(tmp_path / "absent") == find_file_problem(Path("a\0b")) == ""
    with pytest.raises(OSError, match="not a regular file"):
        sha256_file(tmp_path / "pipe")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    data = b"x" * 3_000_000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space or choose another folder"),
        (errno.EACCES, "allow writing there or choose another folder"),
        (errno.EROFS, "allow writing there or choose another folder"),
        (errno.EISDIR, "choose another folder"),
    ],
)
def test_what_cannot_be_written_says_what_mends_it(number: int, remedy: str) -> None:
    said = f"cannot write a: {os.strerror(number)}; {remedy}; what was there is unchanged"
    with pytest.raises(FileWriteError) as error, report_write_errors(Path("a")):
        raise OSError(number, os.strerror(number))
    assert str(error.value) == said
