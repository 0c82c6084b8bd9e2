"""One run at a time in a project."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.system.lock import (
    RUN_VARIABLE,
    LockedError,
    ProjectLock,
    build_beside,
    describe_holder,
    hold_signed_lock,
    lend_lock,
    shares_lock,
    take_flock,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="flock is of POSIX")
HOLD = """
import sys
from pathlib import Path
from ptycho_tasks.system.lock import ProjectLock
lock = ProjectLock(Path(sys.argv[1]))
lock.acquire()
lock.note_task("train:wide")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".ptycho" / "lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_holder_is_named(path, holder):
    with pytest.raises(LockedError) as caught:
        ProjectLock(path).acquire()
    assert f"process {holder.pid} on {os.uname().nodename}, since " in str(caught.value)
    assert "task train:wide" in str(caught.value)
    assert describe_holder(path) == str(caught.value)


@pytest.fixture
def lent(path, holder, monkeypatch):
    """The lock of another process, as the command that it waits for finds it."""
    monkeypatch.chdir(path.parent.parent)
    for name, value in lend_lock(holder.pid).items():
        monkeypatch.setenv(name, value)
    return path


def test_a_command_that_a_run_waits_for_shares_its_lock(lent, holder):
    lock = ProjectLock()
    lock.acquire()
    assert shares_lock()
    assert RUN_VARIABLE not in os.environ  # what it starts would wait for it
    lock.note_task("infer")
    lock.release()
    assert not shares_lock()
    assert "task train:wide" in describe_holder(lent)


def test_those_who_share_a_lock_do_so_one_at_a_time(lent):
    lock = ProjectLock()
    lock.acquire()
    with (lent.parent / "building").open() as file:
        assert not take_flock(file)
    lock.release()
    with (lent.parent / "building").open() as file:
        assert take_flock(file)


def test_workers_keep_those_waiting_who_share_the_lock_and_not_one_another(path, monkeypatch):
    path.parent.mkdir()
    monkeypatch.chdir(path.parent.parent)
    with build_beside(), build_beside(), (path.parent / "building").open() as file:
        assert not take_flock(file)
    with (path.parent / "building").open() as file:
        assert take_flock(file)


@pytest.mark.parametrize("value", ["", "x", "1x:.", "999999999:.", "{pid}:", "{pid}:elsewhere"])
def test_nobody_else_shares_a_lock(lent, holder, monkeypatch, value):
    monkeypatch.setenv(RUN_VARIABLE, value.format(pid=holder.pid))
    with pytest.raises(LockedError):
        ProjectLock().acquire()


def test_a_lock_of_a_dead_process_is_taken_over(path, holder):
    holder.kill()
    holder.wait()
    assert describe_holder(path) is None
    lock = ProjectLock(path)
    lock.acquire()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_a_released_lock_is_free(path):
    lock = ProjectLock(path)
    lock.acquire()
    lock.release()
    assert path.read_text() == ""
    assert describe_holder(path) is None
    lock.acquire()
    lock.release()


def test_a_lock_whose_file_its_holder_removed_is_taken_anew(path, monkeypatch):
    first, second = ProjectLock(path), ProjectLock(path)
    first.acquire()
    opened = second._open()  # in time to see the file that goes
    first.release(remove=True)
    assert not path.exists()
    files = iter([opened])
    again = second._open
    monkeypatch.setattr(second, "_open", lambda: next(files, None) or again())
    second.acquire()
    with pytest.raises(LockedError):
        ProjectLock(path).acquire()
    second.release()


def test_without_a_lock_file_nobody_holds_it_and_none_is_made(path):
    assert describe_holder(path) is None
    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PtychoTasksError, match=r"cannot write .*lock: .*; allow writing"):
        ProjectLock(tmp_path / "file" / "lock").acquire()


@pytest.mark.parametrize("text", ["", "half {", "[1]", '{"pid": "x"}'])
def test_what_the_file_says_may_be_anything(path, holder, text):
    path.write_text(text)
    with pytest.raises(LockedError, match="another run is at work in this project"):
        ProjectLock(path).acquire()


def test_without_locks_a_line_says_that_runs_are_not_kept_apart(path, monkeypatch, capsys):
    def refuse(*anything):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    locks = [ProjectLock(path), ProjectLock(path)]
    for lock in locks:
        lock.acquire()
        assert "two runs in this project are not kept apart" in capsys.readouterr().err
    assert describe_holder(path) is None
    for lock in locks:
        lock.release()


def test_a_lock_whose_file_was_removed_still_holds_and_is_made_again(path, capsys):
    lock = ProjectLock(path)
    lock.acquire()
    shutil.rmtree(path.parent)
    assert "another run is at work" in describe_holder(path)
    with pytest.raises(LockedError):
        ProjectLock(path).acquire()
    lock.note_task("train:wide")
    assert "task train:wide" in describe_holder(path)
    lock.release()
    assert describe_holder(path) is None
    assert capsys.readouterr().err == ""


def test_two_runs_that_are_not_kept_apart_are_told_so(path, monkeypatch, capsys):
    monkeypatch.setattr("ptycho_tasks.system.lock._open_folder", lambda path: None)
    first, second = ProjectLock(path), ProjectLock(path)
    first.acquire()
    shutil.rmtree(path.parent)
    second.acquire()
    first.note_task("train:wide")
    assert "not kept apart" in capsys.readouterr().err
    first.release()
    second.release()


def test_a_lock_whose_file_is_removed_is_held_by_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("ptycho_tasks.system.lock._LOOK_S", 0.0)
    path = tmp_path / "lock"
    inside, most = [0], [0]

    def work():
        for _ in range(50):
            with hold_signed_lock(path, lambda holder: None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not path.exists()
