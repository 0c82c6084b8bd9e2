"""What commands remove of a run's results is put back."""

from __future__ import annotations

import os
import shutil

import pytest

from ptycho_tasks.errors import FileWriteError
from ptycho_tasks.evidence.backup import Backup
from ptycho_tasks.system.files import despite_removal, write_atomic


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / ".ptycho" / "evidence"
    folder.mkdir(parents=True)
    (folder / "old.json").write_text("{}")
    return folder


def test_what_was_removed_is_put_back_as_it_was_last(folder):
    backup = Backup(folder)
    for text in ("first", "last"):
        (folder / "a.log").write_text(text)
        backup.add([folder / "a.log"])
    shutil.rmtree(folder.parent)
    backup.restore()
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"a.log": "last", "old.json": "{}"}


def test_what_is_there_and_what_was_dropped_is_left_alone(folder):
    (folder / "a.log").write_text("kept")
    backup = Backup(folder)
    backup.discard([folder / "old.json"])
    (folder / "old.json").unlink()
    (folder / "a.log").write_text("newer")
    backup.restore()
    assert {p.name: p.read_text() for p in folder.iterdir()} == {"a.log": "newer"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_of_a_run_share_it(folder):
    backup = Backup(folder)
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            (folder / f"{number}.json").write_text(str(number))
            backup.add([folder / f"{number}.json"])
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    shutil.rmtree(folder.parent)
    backup.restore()
    texts = sorted(path.read_text() for path in folder.iterdir())
    assert texts == ["0", "1", "2", "3", "{}"]


def test_without_a_temporary_folder_nothing_is_kept_and_nothing_fails(folder, monkeypatch):
    def refuse(*args, **more):
        raise FileNotFoundError

    monkeypatch.setattr("ptycho_tasks.evidence.backup.tempfile.TemporaryFile", refuse)
    backup = Backup(folder)
    shutil.rmtree(folder)
    backup.restore()
    assert not folder.exists()


def test_a_copy_of_what_is_gone_is_none(folder):
    backup = Backup(folder)
    backup.add([folder / "gone.log"])
    backup.restore()
    assert [path.name for path in folder.iterdir()] == ["old.json"]


def test_what_a_command_removes_while_it_is_written_is_written_again(folder):
    def write():
        if (folder / "old.json").exists():
            shutil.rmtree(folder)
        (folder / "a.json").write_text("{}")
        return "written"

    def make_folder_again(seconds):
        folder.mkdir()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", make_folder_again)
        assert despite_removal(write) == "written"


def test_what_cannot_be_written_for_another_reason_is_tried_once(folder):
    tried = []

    def write():
        tried.append(1)
        write_atomic(folder / "old.json" / "a.json", b"{}")

    with pytest.raises(FileWriteError):
        despite_removal(write)
    assert tried == [1]
