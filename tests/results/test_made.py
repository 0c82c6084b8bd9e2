"""What the product made is known by record and content; nothing else is removed or replaced."""

from __future__ import annotations

import shutil
import zipfile

import numpy as np
import pytest

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.results.folder_record import (
    RECORD_NAME,
    list_recorded,
    record_changes,
    remove_recorded,
    write_record,
)
from ptycho_tasks.results.ownership import check_ours, is_ours

INFERENCE = "runs/default/inference"
OUTPUTS = (
    "fixtures/tiny_source.npz",
    "fixtures/tiny.npz",
    "fixtures/tiny.json",
    "runs/default/training/wts.h5.zip",
    f"{INFERENCE}/reconstruction.h5",
    f"{INFERENCE}/reconstructed_amplitude.png",
    f"{INFERENCE}/metrics.json",
)


def test_what_was_built_is_ours_wherever_its_record_went(built_project):
    shutil.rmtree(built_project / ".ptycho")
    check_ours([built_project / name for name in OUTPUTS], "")


def a_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", '{"backend": {"name": "mine"}}')


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def arrays(path):
    with path.open("wb") as stream:
        np.savez(stream, a=np.ones(3))


FOREIGN = {
    "text": lambda path: path.write_text("mine"),
    "nothing": lambda path: path.write_bytes(b""),
    "nested JSON": lambda path: path.write_text("[" * 100_000),
    "other JSON": lambda path: path.write_text('{"made_from": {"files": 3}, "npz": []}'),
    "arrays": arrays,
    "zip": a_zip,
    "cut short": cut_short,
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_ours_is_not_taken_for_it(built_project, make):
    for name in OUTPUTS:
        if name.endswith(".png") and make is cut_short:
            continue  # who made it is said at its head
        whole = (built_project / name).read_bytes()
        make(built_project / name)
        assert not is_ours(built_project / name), name
        with pytest.raises(ConfigError, match=r"was not made by .*; move it away, or"):
            check_ours([built_project / name], ", or do this")
        (built_project / name).write_bytes(whole)


def test_a_file_of_another_kind_is_not_ours(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert not is_ours(tmp_path / "notes.txt")
    check_ours([tmp_path / "nothing.txt"], "")


@pytest.fixture
def logs(tmp_path):
    """A folder in which someone keeps a file, and a run wrote two and changed one."""
    folder = tmp_path / "logs"
    (folder / "csv").mkdir(parents=True)
    (folder / "csv" / "mine.txt").write_text("mine")
    (folder / "old.csv").write_text("of a run that was killed")
    with record_changes(folder):
        (folder / "csv" / "metrics.csv").write_text("1,2")
        (folder / "edited.csv").write_text("1,2")
        (folder / "old.csv").write_text("of this run")
    (folder / "edited.csv").write_text("mine by now")
    return folder


def names(paths):
    return {path.name for path in paths}


def test_of_a_folder_only_what_was_recorded_goes(logs):
    assert names(list_recorded(logs)) == {"metrics.csv", "old.csv"}
    assert names(remove_recorded(logs)) == {"mine.txt", "edited.csv"}
    assert names(path for path in logs.rglob("*") if path.is_file()) == {"mine.txt", "edited.csv"}
    assert remove_recorded(logs) == sorted([logs / "csv" / "mine.txt", logs / "edited.csv"])


def test_a_later_run_adds_to_the_record_and_a_failed_one_does_too(logs):
    def fail():
        with record_changes(logs):
            (logs / "second.csv").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(list_recorded(logs)) == {"metrics.csv", "old.csv", "second.csv"}


def test_a_folder_with_nothing_else_goes_too(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "x").write_text("x")
    write_record(folder, [folder / "best" / "x"])
    assert remove_recorded(folder) == []
    assert not folder.exists()
    assert remove_recorded(folder) == []


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"best": 3}', '{"../out": "x"}'])
def test_a_damaged_record_removes_nothing(logs, text):
    (logs / RECORD_NAME).write_text(text)
    assert list_recorded(logs) == []
    assert len(remove_recorded(logs)) == 4


def test_nothing_is_recorded_where_nothing_was_written(tmp_path):
    with record_changes(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
