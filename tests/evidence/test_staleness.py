"""What makes an item stale, and what `why` says of it."""

from __future__ import annotations

import json
import os
import shutil

import pytest


def altered_log(project):
    with (project.report / "data_green.log").open("a") as log:
        log.write("all is well\n")


STALE = {
    "command": (lambda p: p.edit("evidence.yaml", "cat data", "cat ./data"), "C4.D3", "command"),
    "env": (lambda p: p.edit("evidence.yaml", '""}', '"", A: 1}'), "C4.D1", "env.A not there ->"),
    "test": (lambda p: p.edit("tests/test_a.py", "pass", "assert 1"), "C4.D1", "tests/test_a.py"),
    "conftest": (lambda p: p.write("conftest.py", ""), "C4.D2", "conftest.py is new as an input"),
    "file": (lambda p: p.write("data.txt", "other\n"), "C4.D3", "data.txt changed: sha256"),
    "log": (altered_log, "C4.D3", "data_green.log was altered: sha256"),
    "no log": (lambda p: shutil.rmtree(p.report.parent), "C4.D3", "data_green.log is missing"),
    "rows": (lambda p: p.edit("evidence.yaml", "[C4.D1, C4.D2]", "[C4.D1]"), "C4.D1", "ids"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "id", "reason"), STALE.values(), ids=STALE)
def test_what_changed_is_said(proved_project, change, id, reason):
    change(proved_project)
    why = proved_project.doit("why", f"evidence:{id}").stdout
    assert why.startswith(f"evidence:{id}  stale\n")
    assert reason in why


def test_what_is_stale_is_run_again(proved_project):
    for change, *_ in (STALE["env"], STALE["test"], STALE["log"]):
        change(proved_project)
    done = proved_project.doit("evidence")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("green ") == 2
    assert "still good" not in done.stdout
    assert proved_project.ledger.count("### Attempt") == 2
    assert "stale" not in proved_project.doit("why", "evidence").stdout


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("python tests/check.py data.txt", "tests/check.py"),
        ("cd tests && cd .. && X=1 python -m tests.check", "tests/check.py"),
        ("./check data.txt", "check"),
        ("true python -m pytest tests/test_a.py::test_more -q | cat", "tests/test_a.py"),
    ],
)
def test_a_script_that_a_command_names_is_depended_on(project, command, path):
    (project.root / "tests/check.py").write_text("print('measured')\n")
    (project.root / "check").write_text("#!/bin/sh\ncat $1\n")
    (project.root / "check").chmod(0o755)
    project.write_items(f"id: C4.D3, command: '{command}', log: t")
    assert project.doit("evidence").returncode == 0
    with (project.root / path).open("a") as file:
        file.write("# edited\n")
    assert f"{path} changed: sha256" in project.doit("why", "evidence").stdout


def test_what_is_merely_touched_is_not_stale(proved_project):
    project = proved_project
    os.utime(project.root / "data.txt", (9, 9))
    project.edit("evidence.yaml", "by_hand: read it", "by_hand: read it twice")
    assert project.doit("why", "evidence").stdout == "evidence  up to date\n"


def test_a_folder_and_a_glob_are_depended_on(project):
    project.write_items("id: C4.D3, command: 'true', log: t, depends: [tests, '*.txt']")
    project.doit("evidence")
    (record,) = json.loads(project.read("reports/manifests/C4.D3.json"))["items"]
    assert record["inputs"].keys() == {"tests/test_a.py", "data.txt"}
    (project.root / "more.txt").touch()
    assert "more.txt is new as an input" in project.doit("why", "evidence").stdout
