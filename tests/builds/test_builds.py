"""Runs that are killed, run twice, or find their state damaged: nothing is lost or half done."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress

import pytest

from ptycho_tasks.builds import database
from ptycho_tasks.builds.state import State
from ptycho_tasks.layout import STATE_NAME
from ptycho_tasks.system.lock import LOCK_NAME
from ptycho_tasks.testing.project import DOIT, OURS, run_command
from started_commands import is_alive, start_command

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and locks are those of POSIX")

BUNDLE = "runs/default/training/wts.h5.zip"
WAIT_S = 300
WAITING = """
def wait(stage):
    import os, pathlib, time
    pathlib.Path(f"in-{stage}").write_text(str(os.getpid()))
    while not pathlib.Path(f"go-{stage}").exists():
        time.sleep(0.01)


class Waiting(EPIE):
    def train(self, request):
        wait("train")
        return super().train(request)

    def infer(self, request):
        wait("infer")
        return super().infer(request)


backend = Waiting()
"""


@pytest.fixture
def waiting(project):
    """A project whose training and inference wait until a file says `go`."""
    with (project / "backends" / "epie.py").open("a") as stream:
        stream.write(WAITING)
    return project


@pytest.fixture
def start():
    """Start doit in the background; nothing of it is left after the test."""
    begun = []

    def start(root, *arguments):
        process = start_command(
            [*DOIT, *arguments], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(true):
    """Wait until a function gives something true; gives that."""
    end = time.monotonic() + WAIT_S
    while not (value := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return value


def reached(root, stage):
    """Wait until a stage runs; gives the process that runs it."""
    marker = root / f"in-{stage}"  # a second task of the stage may be writing it anew
    return int(until(lambda: marker.exists() and marker.read_text()))


def go(root, *stages):
    for stage in stages:
        (root / f"go-{stage}").touch()


def executed(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith(".  ")]


def leftovers(root):
    return list(root.rglob(".*.tmp"))


# --- killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_loses_no_finished_task(waiting, start, doit, number):
    go(waiting, "train")
    run = start(waiting)
    reached(waiting, "infer")
    run.send_signal(number)
    out, err = run.communicate(timeout=WAIT_S)
    assert run.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in out + err
    go(waiting, "infer")
    assert executed(doit(waiting)) == ["infer"]
    assert executed(doit(waiting)) == []
    assert leftovers(waiting) == []


def test_an_interrupted_task_runs_again(waiting, start, doit):
    run = start(waiting)
    reached(waiting, "train")
    run.kill()
    run.wait(WAIT_S)
    assert not (waiting / BUNDLE).exists()
    go(waiting, "train", "infer")
    assert executed(doit(waiting)) == ["train", "infer"]


def test_a_kill_after_publishing_but_before_noting_it_trains_no_second_time(built_project, doit):
    with closing(sqlite3.connect(built_project / STATE_NAME)) as connection, connection:
        connection.execute("DELETE FROM task WHERE name IN ('train', 'infer')")
    assert executed(doit(built_project)) == []
    assert executed(doit(built_project)) == []


def test_what_a_killed_run_was_writing_is_removed(built_project, doit):
    left = built_project / "runs/default/training/.wts.h5.zip.abcd12_3.tmp"
    left.write_bytes(b"half")
    shutil.rmtree(built_project / ".ptycho")
    (built_project / BUNDLE).unlink()
    assert "train" in executed(doit(built_project))
    assert leftovers(built_project) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parallel_run_leaves_no_process(waiting, start, number):
    with (waiting / "ptycho.yaml").open("a") as stream:
        stream.write("matrix: {training.seed: [0, 1]}\n")
    run = start(waiting, "-n", "2")
    worker = reached(waiting, "train")
    assert worker != run.pid
    run.send_signal(number)
    run.wait(WAIT_S)

    until(lambda: not is_alive(worker))
    until(lambda: not holds_the_lock(waiting))


def holds_the_lock(root):
    import fcntl

    with (root / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# --- two at once -----------------------------------------------------------------------------


def test_a_second_run_is_refused_and_questions_are_answered(waiting, start, doit):
    run = start(waiting)
    reached(waiting, "train")
    second = doit(waiting)
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert f"process {run.pid} on " in line
    assert ", task train;" in line
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", line)
    for question in (["list"], ["why"], ["dry-run"], ["info", "train"], ["list", "-s"]):
        assert doit(waiting, *question).stderr == ""
    for other in (["-r", "json"], ["-n", "2", "-r", "json"]):
        refused = doit(waiting, "run", *other, "train")
        assert refused.returncode == 1
        assert f"process {run.pid} on " in refused.stdout + refused.stderr
    cleaning = doit(waiting, "clean", "-a")
    assert "process" in cleaning.stderr
    assert (waiting / "fixtures/tiny.npz").exists()
    go(waiting, "train", "infer")
    run.communicate(timeout=WAIT_S)
    assert run.returncode == 0
    assert executed(doit(waiting)) == []


def test_an_input_that_is_replaced_while_its_task_runs_makes_it_stale(waiting, start, doit):
    source = waiting / "fixtures" / "tiny_source.npz"
    text = (waiting / "ptycho.yaml").read_text()
    go(waiting, "train", "infer")
    doit(waiting, "fixture")
    shutil.copy(source, waiting / "scan.npz")
    (waiting / "ptycho.yaml").write_text(re.sub(r"simulate: .*", "file: scan.npz", text))
    (waiting / "go-infer").unlink()
    run = start(waiting)
    reached(waiting, "infer")
    shutil.copy(waiting / "fixtures" / "tiny.npz", waiting / "new.npz")
    (waiting / "new.npz").replace(waiting / "scan.npz")
    go(waiting, "infer")
    assert run.wait(WAIT_S) == 0
    assert executed(doit(waiting)) == ["source", "fixture", "infer"]
    assert executed(doit(waiting)) == []


def test_code_that_is_edited_while_it_runs_makes_its_tasks_stale(waiting, start, doit):
    doit(waiting, "fixture")
    run = start(waiting)
    reached(waiting, "train")
    backend = waiting / "backends" / "epie.py"
    backend.write_text(backend.read_text().replace("x64)\n", "x64) + 0\n"))
    go(waiting, "train", "infer")
    assert run.wait(WAIT_S) == 0
    assert executed(doit(waiting)) == ["train", "infer"]
    assert executed(doit(waiting)) == []


def test_a_killed_worker_ends_a_parallel_run(waiting, start):
    with (waiting / "ptycho.yaml").open("a") as stream:
        stream.write("matrix: {training.seed: [0, 1]}\n")
    run = start(waiting, "-n", "2")
    os.kill(reached(waiting, "train"), signal.SIGKILL)
    _, err = run.communicate(timeout=WAIT_S)
    assert run.returncode == 1
    assert "error: a worker process was killed by signal 9" in err
    assert "Traceback" not in err


def test_lines_of_parallel_tasks_are_whole_and_name_their_task(project, doit):
    with (project / "ptycho.yaml").open("a") as stream:
        stream.write("matrix: {training.seed: [0, 1, 2, 3]}\n")
    done = doit(project, "-n", "4")
    assert done.returncode == 0, done.stderr
    named = r"(source|fixture|(train|infer):(default|seed[1-3]))"
    *lines, last = done.stdout.splitlines()
    assert last.startswith("made 10 (")
    for line in lines:
        assert re.fullmatch(rf"\.  {named}|{named}: \w+ +\S.*|{named}: +\S.*", line), line
    assert sum("amplitude_ssim" in line for line in done.stdout.splitlines()) == 4
    assert executed(doit(project)) == []


# --- state that is lost or damaged -----------------------------------------------------------


def foreign(path):
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE doit (task_id TEXT, task_data TEXT)")


def middle(path):
    data = bytearray(path.read_bytes())
    data[4096 : len(data) - 4096] = b"\xff" * (len(data) - 8192)
    path.write_bytes(data)


DAMAGE = {
    "garbage": lambda path: path.write_bytes(b"no database" * 1000),
    "truncated": lambda path: os.truncate(path, 5000),
    "damaged inside": middle,
    "another program's": foreign,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_database_is_set_aside_and_nothing_is_trained_again(built_project, doit, damage):
    damage(built_project / STATE_NAME)
    done = doit(built_project)
    assert executed(done) == []
    (line,) = [line for line in done.stderr.splitlines() if "state.sqlite" in line]
    assert line.startswith("warning: ")
    assert "state.sqlite.bad1" in line
    assert (built_project / f"{STATE_NAME}.bad1").exists()
    done = doit(built_project)
    assert executed(done) == []
    assert done.stderr == ""


def test_without_its_database_a_changed_model_is_not_believed(built_project, doit):
    shutil.rmtree(built_project / ".ptycho")
    config = built_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 6"))
    assert executed(doit(built_project)) == ["source", "train", "infer"]


def test_without_its_database_other_code_is_not_believed(built_project, doit):
    shutil.rmtree(built_project / ".ptycho")
    backend = built_project / "backends" / "epie.py"
    text = backend.read_text().replace("x64)\n", "x64) + 0\n")
    backend.write_text(text)
    os.utime(backend, (1, 1))
    assert executed(doit(built_project)) == ["source", "train", "infer"]


def test_a_full_disk_is_no_damage(built_project, monkeypatch):
    real, calls = database._contents, []

    def full_at_first(connection):
        calls.append(1)
        if len(calls) == 1:
            raise sqlite3.OperationalError("disk I/O error")
        return real(connection)

    monkeypatch.setattr(database, "_contents", full_at_first)
    state = State(str(built_project / STATE_NAME))
    assert state.in_("train")
    assert not list((built_project / ".ptycho").glob("*.bad*"))
    state.dump()


def test_what_is_forgotten_runs_again(built_project, doit):
    doit(built_project, "forget", "train")
    assert executed(doit(built_project)) == ["train"]
    assert executed(doit(built_project)) == []


def test_a_failed_task_keeps_what_was_built_before(built_project, doit):
    config = built_project / "ptycho.yaml"
    before = config.read_text()
    config.write_text(before.replace("subset_size: 25", "subset_size: 37"))
    assert doit(built_project).returncode == 1
    config.write_text(before)
    assert executed(doit(built_project)) == []


# --- variants, code, clean -------------------------------------------------------------------


def test_variants_share_what_is_the_same(project, doit):
    with (project / "ptycho.yaml").open("a") as stream:
        stream.write("matrix: {training.epochs: [2, 3]}\n")
        stream.write("variants: [{name: few, fixture.subset_size: 20}]\n")
    ran = executed(doit(project))
    assert sorted(ran) == sorted(
        ["source", "fixture:default", "fixture:subset_size20"]
        + [
            f"{stage}:{name}"
            for stage in ("train", "infer")
            for name in ("epochs2", "epochs3", "few")
        ]
    )
    assert executed(doit(project, "train")) == []
    config = project / "ptycho.yaml"
    config.write_text(config.read_text().replace("[2, 3]", "[2, 4]"))
    assert executed(doit(project, "train:epochs4")) == ["train:epochs4"]
    assert executed(doit(project)) == ["infer:epochs4"]


def test_code_can_be_taken_as_it_is(built_project, doit):
    backend = built_project / "backends" / "epie.py"
    backend.write_text(backend.read_text().replace("x64)\n", "x64) + 0\n"))
    assert executed(doit(built_project, "infer", "--ignore-code")) == []
    assert executed(doit(built_project)) == []


def test_clean_keeps_what_the_project_did_not_build(project, doit):
    mine = project / BUNDLE
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = doit(project, "clean", "-a")
    assert done.returncode == 0
    assert f"keeping {BUNDLE}" in done.stdout
    assert mine.read_text() == "mine"


def test_a_scan_is_never_overwritten_by_its_fixture(built_project, doit):
    shutil.rmtree(built_project / ".ptycho")
    data = built_project / "data"
    data.mkdir()
    (built_project / "fixtures/tiny_source.npz").replace(data / "tiny.npz")
    before = (data / "tiny.npz").read_bytes()
    shutil.rmtree(built_project / "fixtures")
    (built_project / "fixtures").symlink_to("data")
    config = built_project / "ptycho.yaml"
    config.write_text(re.sub(r"simulate: .*", "file: data/tiny.npz", config.read_text()))
    done = doit(built_project)
    assert done.returncode == 2
    assert "would be overwritten" in done.stderr
    config.write_text(config.read_text().replace("data/tiny.npz", "fixtures/tiny.npz"))
    done = doit(built_project, "list")
    assert done.returncode == 2
    assert "ptycho.yaml:3: source.file: fixtures/tiny.npz would be overwritten" in done.stderr
    assert (data / "tiny.npz").read_bytes() == before


def test_a_missing_scan_to_infer_is_found_before_the_training(project, doit):
    with (project / "ptycho.yaml").open("a") as stream:
        stream.write("inference: {scan: nope.npz}\n")
    done = doit(project)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ptycho.yaml:7: inference.scan: there is no ")
    assert executed(doit(project, "train")) == ["source", "fixture", "train"]


def test_who_stops_reading_stops_no_work(project, doit):
    ran = subprocess.Popen(
        [*DOIT], cwd=project, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert ran.stdout.readline() == ".  source\n"
    ran.stdout.close()
    assert ran.stderr.read() == ""
    ran.stderr.close()
    assert ran.wait(WAIT_S) == 0
    assert executed(doit(project)) == []


# --- why -------------------------------------------------------------------------------------


def test_why_names_settings_files_code_and_tasks(built_project, doit):
    config = built_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 6"))
    backend = built_project / "backends" / "epie.py"
    backend.write_text(backend.read_text().replace("x64)\n", "x64) + 0\n"))
    (built_project / "fixtures/tiny.json").unlink()
    before = sorted(built_project.rglob("*"))
    lines = [line.strip() for line in doit(built_project, "why").stdout.splitlines()]
    assert "source   up to date" in lines
    assert "fixtures/tiny.json is missing" in lines
    assert "training.epochs 5 -> 6" in lines
    assert any(re.fullmatch(r"backends/epie.py changed: sha256 \w{12} -> \w{12}", x) for x in lines)
    assert "train would run before" in lines
    plan = doit(built_project, "dry-run").stdout.splitlines()
    assert [line.split()[:2] for line in plan[:-1]] == [
        ["=", "fixture"], [".", "train"], [".", "infer"]
    ]  # fmt: skip
    assert sorted(built_project.rglob("*")) == before
    assert executed(doit(built_project)) == ["train", "infer"]
    assert doit(built_project, "dry-run").stdout == "nothing would run: all is up to date\n"


def test_why_tells_programs_in_json(built_project):
    config = built_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("strategy", "strategy").replace("25", "24"))
    done = run_command([*OURS, "why", "train", "--json"], cwd=built_project)
    said = {verdict["task"]: verdict for verdict in json.loads(done.stdout)}
    assert list(said) == ["source", "fixture", "train"]
    assert said["fixture"]["status"] == "stale"
    assert said["fixture"]["reasons"] == [
        {
            "kind": "setting",
            "subject": "fixture.subset_size",
            "text": "fixture.subset_size 25 -> 24",
            "old": 25,
            "new": 24,
        }
    ]
    assert said["train"]["status"] == "depends"
