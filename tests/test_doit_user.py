"""What someone meets who knows doit, and has tasks of their own beside ours."""

import json
import os
import re

import pytest

from ptycho_tasks.system.lock import ProjectLock

OURS = "from ptycho_tasks.tasks import DOIT_CONFIG\n"
ALL = f"{OURS}from ptycho_tasks.tasks import task_fixture, task_infer, task_source, task_train\n"


@pytest.fixture
def own(tmp_path, doit):
    """Run doit on tasks that have nothing to do with ours; gives exit status and output."""

    def run(dodo, *arguments, **options):
        (tmp_path / "dodo.py").write_text(OURS + dodo)
        done = doit(tmp_path, *arguments, **options)
        return done.returncode, done.stdout + done.stderr

    return run


MISSING = """
def task_mine():
    return {"actions": ["echo > made"], "file_dep": ["nope"], "targets": ["made"]}
"""


def test_a_missing_input_is_an_error_as_in_plain_doit(own):
    for _ in range(2):
        status, said = own(MISSING, "mine")
        assert status == 2
        assert "'nope' does not exist" in said
        assert "Traceback" not in said


def test_why_says_that_a_run_would_fail(own, write_project, doit):
    _, said = own(MISSING, "why", "mine")
    assert "it would fail: there is no nope" in said
    root = write_project("source: {file: gone.npz}\nbackend: epie\n")
    said = doit(root, "why").stdout
    assert "it would fail: ptycho.yaml:1: source.file: there is no" in said


@pytest.mark.parametrize("backend", ["sqlite3", "json", "dbm"])
@pytest.mark.parametrize("command", [["run"], ["clean", "-n"]])
def test_another_database_is_refused_in_one_line(built_project, doit, backend, command):
    done = doit(built_project, command[0], "--backend", backend, *command[1:])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert doit(built_project, "why", "train").stdout.count("up to date") == 3


@pytest.mark.parametrize("command", ["run", "list", "why", "forget", "info train"])
def test_a_dodo_without_our_settings_is_told_what_to_add(project, doit, command):
    (project / "dodo.py").write_text("from ptycho_tasks.tasks import task_source, task_train\n")
    done = doit(project, *command.split())
    assert done.returncode == 2
    assert "from ptycho_tasks.tasks import DOIT_CONFIG" in done.stderr
    assert done.stderr.count("\n") == 1


MANY = """
def task_first():
    return {"actions": ["true"], "targets": []}
def task_part():
    for name in "edcba":
        action = f"echo > {name}"
        yield {"name": name, "actions": [action], "targets": [name], "task_dep": ["first"]}
def task_all():
    return {"actions": ["true"], "file_dep": list("abcde")}
"""


def test_the_order_is_that_of_dry_run_whatever_the_hash_seed(own):
    orders = set()
    for seed in "123":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        for command in ("dry-run", "run"):
            _, said = own(MANY, command, "all", env=environment)
            orders.add(tuple(re.findall(r"^[.?]  (\S+)(?!.* only if )", said, re.M)))
        own(MANY, "forget", "-a")
    assert orders == {("first", *(f"part:{name}" for name in "edcba"), "all")}


FAILING = """
def task_part():
    for name in "ab":
        yield {"name": name, "actions": ["false" if name == "a" else "true"]}
def task_next():
    return {"actions": ["true"], "task_dep": ["part:a"]}
"""


def test_a_run_that_goes_on_ends_with_1_and_says_what_failed(own):
    status, said = own(FAILING, "run", "--continue", "part", "next")
    assert status == 1
    assert "failed: part:a\nnot run because of that: part, next\n" in said
    assert "UnmetDependency" not in said


@pytest.mark.parametrize("command", [["ignore", "train"], ["reset-dep"], ["forget", "train"]])
def test_nothing_is_set_while_a_run_is_at_work(built_project, doit, monkeypatch, command):
    monkeypatch.chdir(built_project)
    config = built_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 4"))
    lock = ProjectLock()
    lock.acquire()
    try:
        done = doit(built_project, *command)
    finally:
        lock.release()
    assert done.returncode == 1
    assert done.stderr.startswith("error: another run is at work")


def test_a_stage_has_a_result_to_depend_on(built_project, doit):
    (built_project / "dodo.py").write_text(
        f"{ALL}from doit.tools import result_dep\n"
        'def task_mine():\n    return {"actions": ["true"], "uptodate": [result_dep("train")]}\n'
    )
    assert ".  mine" in doit(built_project, "mine").stdout
    assert "-- mine" in doit(built_project, "mine").stdout
    config = built_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 4"))
    assert ".  mine" in doit(built_project, "mine").stdout


def test_a_silent_run_is_silent_but_for_its_errors(project, doit):
    done = doit(project, "run", "-v0", "fixture")
    assert done.stdout == ".  source\n.  fixture\n"
    (project / "fixtures" / "tiny_source.npz").write_bytes(b"")
    config = project / "ptycho.yaml"
    config.write_text(config.read_text().replace("subset_size: 25", "subset_size: 26"))
    done = doit(project, "run", "-v0", "-s", "fixture")
    assert done.stderr.startswith("error: ")


def test_the_database_can_be_shown(built_project, doit):
    done = doit(built_project, "dumpdb")
    assert done.returncode == 0, done.stderr
    shown = dict(part.split(" -> ", 1) for part in done.stdout.split("\n}\n") if " -> " in part)
    assert list(shown) == ["fixture", "infer", "source", "train"]
    assert json.loads(f"{shown['train']}\n}}")["checker:"] == "Checker"
