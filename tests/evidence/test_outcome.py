"""Which runs are red, and what is said of them."""

from __future__ import annotations

import json

import pytest

from ptycho_tasks.evidence.summaries import find_attempts

COLOURED_TEST = r"""
def test_a():
    raise ValueError("\x1b[31mred\x1b[0m C:\\dir")
"""


PASSING = "def test_a():\n    pass\n"
PROBLEMS = {
    "colours": ({"tests/test_b.py": COLOURED_TEST}, "tests.test_b.test_a: ValueError: red C:\\dir"),
    "no import": (
        {"tests/test_b.py": "import os\nimport nothing_such\n"},
        "tests.test_b: ModuleNotFoundError: No module named 'nothing_such'",
    ),
    "no Python": ({"tests/test_b.py": "def test(:\n"}, "tests.test_b: SyntaxError: invalid syntax"),
    "conftest": (
        {"tests/test_b.py": PASSING, "tests/conftest.py": "import nothing_such\n"},
        "ModuleNotFoundError: No module named 'nothing_such'",
    ),
    "no option": ({"tests/test_b.py": PASSING, "pytest.ini": "[pytest]\naddopts = --nonsense\n"},
        "python -m pytest: error: unrecognized arguments: --nonsense"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_the_first_error_is_what_is_said_of_a_red_item(project, files, problem):
    project.write_items("id: C4.D1, pytest: [tests/test_b.py, --color=yes], log: t")
    for name, text in files.items():
        (project.root / name).write_text(text)
    assert project.doit("evidence").returncode == 1
    assert f"# problem: {problem}\n" in (project.report / "t_red.log").read_text()
    assert f"t was red: {problem}\n" in project.doit("why", "evidence").stdout
    assert f"; {problem})".replace("\\", "/") in project.plan


def test_a_pipe_does_not_hide_a_failure(project):
    project.write_items("id: C4.D3, command: cat none.txt | cat, log: piped")
    assert project.doit("evidence").returncode == 1
    assert (project.report / "piped_red.log").exists()


SKIPPED = "import pytest\n\n\n@pytest.mark.skip\ndef test_a():\n    pass\n"


@pytest.mark.parametrize("item", ["pytest: [tests]", "command: python -m pytest tests"])
def test_a_run_of_no_test_is_red(project, item):
    project.write_items(f"id: C4.D3, {item}, log: tests")
    (project.root / "tests/test_a.py").write_text(SKIPPED)
    project.assert_one_line(project.doit("evidence"), 1, "red: C4.D3")
    assert "no test ran: 0 passed, 0 failed, 1 skipped" in (
        (project.report / "tests_red.log").read_text()
    )


@pytest.mark.parametrize(
    "given", ["pytest: ['tests/test_a.py::test_none']", "pytest: [tests, -k, none]",
              "command: python -m pytest tests/test_a.py::test_none",
              "command: 'python -m pytest tests/test_a.py::test_none | cat'"],
)  # fmt: skip
def test_a_selector_that_selects_nothing_is_one_line(project, given):
    project.write_items(f"id: C4.D3, {given}, log: t")
    expected = (
        "2 deselected"
        if "-k" in given
        else f"there is no {project.root}/tests/test_a.py::test_none"
    )
    project.assert_refused(1, "C4.D3: `python -m pytest tests", f"selects no test: {expected};")


def test_a_command_that_is_not_found_when_it_runs_is_one_line(project):
    project.write_items(
        "id: C4.D3, command: 'true && catt', log: t", "id: C4.D1, command: echo done, log: other"
    )
    project.assert_refused(1, "C4.D3: `true && catt` the command was not found", "catt")
    project.edit("evidence.yaml", "catt", "true")
    done = project.doit("evidence")
    assert done.returncode == 0, done.stderr
    assert "done\n" not in done.stdout  # the other result was kept
    assert "[x] **C4.D3" in project.plan


def test_a_row_may_be_proved_by_a_failure_a_status_or_a_collection(project, ours):
    project.write("tests/test_b.py", "def test_b():\n    assert not 1\n")
    project.write_items(
        "id: C4.D1, pytest: [tests/test_b.py], log: b_red.log, expect: red",
        "id: C4.D2, pytest: [tests/test_b.py, --collect-only], log: b.log, expect: collected",
        "id: C4.D3, command: exit 3, log: status.log, expect: {exit: 3}",
        "id: C4.F, command: 'true', log: passes, expect: red",
    )
    done = project.doit("evidence")
    project.assert_one_line(done, 1, "red: C4.F")
    assert "b_red.log (red as expected)\n" in done.stdout
    assert {"b_red.log", "b_green.log", "status_green.log", "passes_not_red.log"} < {
        path.name for path in project.report.iterdir()
    }
    assert project.plan.count("[x]") == 4  # one of them in a code span
    assert "passes_red is expected" not in project.plan
    assert "is expected to be red, and is green" in project.plan
    assert "- C4.D1: red as expected, 0 passed, 1 failed, 0 skipped, " in project.ledger
    assert "- C4.F: red, " in project.ledger
    attempts = {
        a.item: a.outcome for a in find_attempts((project.report / "summary.md").read_text())
    }
    assert attempts["b_red"].startswith("red as expected, 0 passed, 1 failed")
    assert attempts["passes_red"].startswith("red, ")
    shown = json.loads(ours(project.root, "plan", "show", "--json").stdout)
    rows = {row["id"]: row["outcome"] for row in shown}
    assert rows["C4.D1"] == "red as expected"
    assert (rows["C4.D2"], rows["C4.F"]) == ("green", "red")
    # What summaries once said of such a test.
    older = (project.report / "summary.md").read_text().replace("red as expected", "green")
    assert {a.outcome.split(",")[0] for a in find_attempts(older) if a.item == "b_red"} == {
        "red as expected"
    }


def test_an_item_of_no_row_is_run_and_kept(project):
    project.write_items("ids: [], command: echo kept, log: kept", "id: C4.D3, command: ls, log: ls")
    done = project.doit("evidence")
    assert done.returncode == 0, done.stderr
    assert "green  kept  reports/" in done.stdout
    assert "kept\n" in (project.report / "kept_green.log").read_text()
    assert "- kept: green" in project.ledger
    assert (project.root / "reports/manifests/_kept.json").exists()
    assert "still good" in project.doit("evidence").stdout
