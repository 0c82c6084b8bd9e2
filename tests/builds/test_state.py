"""The database: what it keeps, when it reads a file, and what it does with one that is damaged."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from doit.task import Task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptycho_tasks.builds import database, digests
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.staleness import UpToDate
from ptycho_tasks.builds.state import State
from ptycho_tasks.layout import project_path

BUILT = {"key": "k", "entry": "k", "read": {}, "outputs": {}}
OLD_NS = 10**9


@pytest.fixture
def opened(monkeypatch):
    """Every database that the test opens is closed after it."""
    made = []
    real = State.__init__
    monkeypatch.setattr(State, "__init__", lambda self, name: made.append(self) or real(self, name))
    yield
    for state in made:
        state.dump()


@pytest.fixture
def state(tmp_path, opened):
    return State(str(tmp_path / "state.sqlite"))


@pytest.fixture
def reads(monkeypatch):
    """The files whose content was read."""
    paths = []
    real = digests.sha256_file
    monkeypatch.setattr(digests, "sha256_file", lambda path: paths.append(path.name) or real(path))
    return paths


def again(state):
    """The database as another process finds it."""
    state.dump()
    return State(state.name)


def old_file(path, content=b"content", at_ns=OLD_NS):
    path.write_bytes(content)
    os.utime(path, ns=(at_ns, at_ns))
    return str(path)


def finish(state, task, **values):
    """What doit sets of a task that succeeded."""
    state.set(task, "_values_:", {"built": BUILT})
    for key, value in values.items():
        state.set(task, key, value)
    state.set(task, "deps:", list(values))


def test_nothing_is_written_until_there_is_something_to_write(state, tmp_path):
    assert state.get("train", "deps:") is None
    assert state.sha256(str(tmp_path / "none")) is None
    state.dump()
    assert list(tmp_path.iterdir()) == []


def test_a_finished_task_is_there_for_others_at_once(state):
    finish(state, "train", file="abc")
    other = State(state.name)
    assert other.get("train", "file") == "abc"
    assert other.in_("train")


def test_an_unfinished_task_is_not_there(state):
    finish(state, "fixture", file="abc")
    state.set("train", "_values_:", {})
    state.set("train", "file", "abc")
    assert not State(state.name).in_("train")


def test_a_task_that_finishes_again_leaves_nothing_of_before(state):
    finish(state, "train", one="a", two="b")
    finish(state, "train", one="c")
    other = again(state)
    assert (other.get("train", "one"), other.get("train", "two")) == ("c", None)


def test_an_input_counts_as_it_was_when_its_task_was_checked(state):
    state.snapshots["train"] = {"file": "before"}
    finish(state, "train", file="after")
    assert again(state).get("train", "file") == "before"


def test_a_large_file_is_read_once_and_a_touched_one_once_more(state, tmp_path, reads):
    path = tmp_path / "scan.npz"
    digest = state.sha256(old_file(path))
    finish(state, "source", file=digest)
    state = again(state)
    assert [state.sha256(str(path)) for _ in range(3)] == [digest] * 3
    assert reads == ["scan.npz"]
    old_file(path, at_ns=2 * OLD_NS)
    assert state.sha256(str(path)) == digest
    state = again(state)
    assert state.sha256(str(path)) == digest
    assert reads == ["scan.npz"] * 2


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_change_of_size_time_or_inode_is_noticed(state, tmp_path, change):
    path = tmp_path / "scan.npz"
    before = state.sha256(old_file(path, b"one"))
    if change == "size":
        old_file(path, b"three")
    elif change == "time":
        old_file(path, b"two", 3 * OLD_NS)
    else:
        old_file(tmp_path / "new", b"two")
        (tmp_path / "new").replace(path)
    assert state.sha256(str(path)) != before


def test_a_file_that_may_still_change_unnoticed_is_not_remembered(
    state, tmp_path, reads, monkeypatch
):
    now = time.time_ns()
    monkeypatch.setattr(digests, "now_ns", lambda: now)  # stands still
    path = old_file(tmp_path / "young", at_ns=now)
    state.sha256(path)
    state.sha256(path)
    assert reads == ["young"] * 2


def test_a_file_from_the_future_is_remembered(state, tmp_path, reads):
    path = old_file(tmp_path / "future", at_ns=time.time_ns() + 10**12)
    state.sha256(path)
    state.sha256(path)
    assert reads == ["future"]


def test_a_failing_stage_is_not_forgotten_but_a_forgotten_one_is(state):
    finish(state, "train", file="abc")
    state.running = True
    state.remove("train")
    assert again(state).in_("train")
    state = again(state)
    state.remove("train")
    other = again(state)
    assert not other.in_("train")
    assert other.is_forgotten("train")
    finish(other, "train", file="abc")
    assert not again(other).is_forgotten("train")


def test_a_failing_task_of_the_users_own_runs_again(state):
    state.set("mine", "_values_:", {})
    state.set("mine", "deps:", [])
    state.running = True
    state.remove("mine")
    assert not again(state).in_("mine")


def test_all_can_be_forgotten(state):
    finish(state, "train", file="abc")
    finish(state, "infer", file="abc")
    state = again(state)
    state.remove_all()
    assert not any(again(state).in_(task) for task in ("train", "infer"))


def test_a_newer_version_of_the_database_is_set_aside(state, capsys):
    finish(state, "train", file="abc")
    state.dump()
    with closing(sqlite3.connect(state.name)) as connection:
        connection.execute("PRAGMA user_version=99")
    assert not State(state.name).in_("train")
    assert "state.sqlite.bad1" in capsys.readouterr().err


def test_a_database_that_cannot_be_written_ends_the_run_with_one_line(state, capsys, monkeypatch):
    def full(statement, values):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(state, "_transact", full)
    with pytest.raises(SystemExit) as caught:
        finish(state, "train", file="abc")
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: cannot write {state.name}: database or")
    state.keep_note("tasks", "[]")


def test_paths_have_one_spelling(tmp_path):
    assert project_path(tmp_path, tmp_path / "fixtures" / ".." / "a.npz") == "a.npz"
    assert project_path(tmp_path, tmp_path.parent / "b.npz") == str(tmp_path.parent / "b.npz")
    assert project_path(tmp_path, tmp_path.with_name(f"{tmp_path.name}2") / "c").startswith("/")


def is_in_wal_mode(state):
    return Path(state.name).read_bytes()[18:20] == b"\2\2"


@pytest.mark.parametrize(("local", "locks", "wal"), [(1, 1, True), (0, 1, False), (1, 0, False)])
def test_the_journal_is_one_that_the_file_system_can_keep(state, monkeypatch, local, locks, wal):
    monkeypatch.setattr(database, "is_local", lambda path: bool(local))
    monkeypatch.setattr(database, "has_record_locks", lambda path: bool(locks))
    finish(state, "train", file="abc")
    assert is_in_wal_mode(state) is wal
    assert again(state).get("train", "file") == "abc"
    # A database of before, or of another place, is converted by the next run.
    monkeypatch.setattr(database, "is_local", lambda path: not local)
    monkeypatch.setattr(database, "has_record_locks", lambda path: True)
    state = again(state)
    finish(state, "infer", file="abc")
    assert not is_in_wal_mode(state)
    assert again(state).get("train", "file") == "abc"


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_who_asks_writes_nothing_where_another_machine_may_be_at_work(
    state, tmp_path, monkeypatch, mode
):
    finish(state, "train", file="abc")
    state.dump()
    with closing(sqlite3.connect(state.name)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
    scan = old_file(tmp_path / "scan.npz")
    monkeypatch.setattr(database, "is_local", lambda path: False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    asking = State(state.name)
    assert asking.get("train", "file") == "abc"
    assert asking.sha256(scan)
    asking.keep_note("tasks", "[]")
    asking.dump()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_saves_time_is_kept_by_the_run_that_comes_after(state, monkeypatch):
    monkeypatch.setattr(database, "is_local", lambda path: False)
    state.keep_note("tasks", "[]")
    assert again(state).note("tasks") is None
    state = State(state.name)
    state.keep_note("tasks", "[]")
    finish(state, "train", file="abc")
    assert again(state).note("tasks") == "[]"


@contextmanager
def dumped(path):
    state = State(str(path))
    yield state
    state.dump()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = ["_values_:", "deps:", "checker:", "ignore:", "scan.npz"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    record=JSON
    | st.dictionaries(st.sampled_from(KEYS), JSON)
    | st.fixed_dictionaries({"_values_:": st.fixed_dictionaries({"built": JSON})})
    | st.fixed_dictionaries(dict.fromkeys(BUILT, JSON)).map(
        lambda built: {"_values_:": {"built": built}, "deps:": []}
    )
)
def test_a_record_of_any_shape_is_one_or_counts_as_unknown(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "state.sqlite"
    with dumped(path) as state:
        finish(state, "train", file="abc")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE task SET record = ?", (json.dumps(record),))
        connection.commit()
    with dumped(path) as state:
        row = Row(
            name="train",
            stage="train",
            variant="default",
            scan="",
            doc="",
            inputs={"scan": "scan.npz"},
            outputs=["out"],
            after="",
            settings="{}",
            at_default=(),
            versions={},
            sources={},
        )
        answer = UpToDate(row)
        answer.setup(SimpleNamespace(backend=state), {})
        task = Task("train", None, file_dep=["scan.npz"], targets=["out"], uptodate=[answer])
        assert not answer(task, state.get("train", "_values_:") or {})
        assert answer.reasons


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("task", "record", "[" * 100_000),
        ("task", "record", b"\xff\xfe"),
        ("task", "record", 7),
        ("file", "digest", 7),
        ("file", "size", "x"),
        ("note", "text", b"\xff"),
        ("note", "text", "[" * 100_000),
    ],
)
def test_rows_of_other_types_count_as_unknown(state, tmp_path, table, column, value):
    scan = old_file(tmp_path / "scan.npz")
    known = state.sha256(scan)
    finish(state, "train", file="abc")
    state.note("tasks", "[]")
    state.dump()
    with closing(sqlite3.connect(state.name)) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
        connection.commit()
    state = State(state.name)
    assert state.get("train", "file") in ("abc", None)
    assert state.sha256(scan) == known
    finish(state, "train", file="abd")
    assert again(state).get("train", "file") == "abd"


# --- what commands do to it, and files from any time and of any name ------------------------------


def test_a_database_whose_folder_is_removed_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    folder, left = tmp_path / ".ptycho", [1, 2]
    real = sqlite3.connect

    def remove_and_connect(*args, **options):
        if left and left.pop():
            shutil.rmtree(folder)
        return real(*args, **options)

    monkeypatch.setattr(sqlite3, "connect", remove_and_connect)
    made = database.Database(str(folder / "state.sqlite"), database.Contents)
    with closing(made):
        made.write(database.Contents(notes={"name": "text"}))
        assert made.read().notes == {"name": "text"}
    assert not left


def test_a_database_that_is_removed_is_made_anew_with_all_that_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = str(tmp_path / ".ptycho" / "state.sqlite")
    state = State(name)
    state.running = True
    state.note("first", "1")
    state.set("a", "deps:", ["x"])
    shutil.rmtree(".ptycho")
    state.set("b", "deps:", ["y"])
    shutil.rmtree(".ptycho")
    state.dump()
    again = State(name)
    assert (again.get("a", "deps:"), again.get("b", "deps:")) == (["x"], ["y"])
    assert again.note("first") == "1"


def test_a_database_that_is_removed_before_anything_is_written_keeps_what_was_read(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = str(tmp_path / ".ptycho" / "state.sqlite")
    for task in ("a", "b"):
        state = State(name)
        state.running = True
        assert state.get("a", "deps:") == (None if task == "a" else ["x"])
        if task == "b":
            shutil.rmtree(".ptycho")
        state.set(task, "deps:", ["x"])
        state.dump()
    assert State(name).get("a", "deps:") == ["x"]


@pytest.mark.parametrize("seconds", [0, -5_000_000_000, 9_300_000_000, 15_000_000_000])
@pytest.mark.parametrize("file", [b"plain", b"not-utf8-\xff"])
def test_a_file_of_any_time_and_name_is_hashed(tmp_path, monkeypatch, seconds, file):
    monkeypatch.chdir(tmp_path)
    path = os.fsdecode(file)
    contents = set()
    for text in ("one", "two"):
        Path(path).write_text(text)
        os.utime(path, (seconds, seconds))
        state = State(str(tmp_path / "state.sqlite"))
        state.running = True
        contents.add(state.sha256(path))
        state.note("any", "thing")
        state.dump()
    assert len(contents) == 2


def test_a_pipe_in_place_of_the_database_is_set_aside(tmp_path, capsys):
    os.mkfifo(tmp_path / "state.sqlite")
    state = State(str(tmp_path / "state.sqlite"))
    assert state.get("a", "deps:") is None
    assert "is not a regular file" in capsys.readouterr().err
