"""`doit evidence`, end to end: what runs, what is published, and what bad input gets."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ptycho_tasks.config.dodo import EVIDENCE_DODO
from ptycho_tasks.evidence.loading import load_evidence

EVIDENCE = """\
initiative: ADR-003
phase: phase_c4
plan: plan.md
ledger: docs/fix_plan.md
items:
  - ids: [C4.D1, C4.D2]
    pytest: [tests/test_a.py, -q]
    log: pytest_a_green.log
    env: {CUDA_VISIBLE_DEVICES: ""}
  - id: C4.D3
    command: cat data.txt
    log: data.log
    depends: [data.txt]
  - id: C4.F
    by_hand: read it
"""
PLAN = """\
# Plan\r
\r
| ID | What | State | How |
|---|---|---|---|
| C4.D1 | CLI tests | [ ] | guidance \\| `[x]`  |\r
| C4.D2 | more | [ ] | |
- [ ] **C4.D3:** data
- [ ] **C4.F:** by hand   \r
last line, \xe9"""
TEST = """\
import os


def test_neutral():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_more():
    pass
"""
DOIT = [sys.executable, "-m", "doit"]
NOTE = r"\(evidence [0-9T:Z-]+ (green|red): ([^()|]*)\)"


@pytest.fixture
def root(tmp_path):
    """A project that has evidence and no scan."""
    return write(tmp_path / "project")


def write(root: Path, evidence: str = EVIDENCE) -> Path:
    (root / "tests").mkdir(parents=True)
    (root / "docs").mkdir()
    (root / "evidence.yaml").write_text(evidence)
    (root / "dodo.py").write_text(EVIDENCE_DODO)
    (root / "plan.md").write_bytes(PLAN.encode())
    (root / "docs" / "fix_plan.md").write_text("# Ledger\n\nAttempt #7, long ago")
    (root / "tests" / "test_a.py").write_text(TEST)
    (root / "data.txt").write_text("measured\n")
    return root


ITEMS = EVIDENCE.partition("items:\n")[0] + "items:\n"


def items(root: Path, *given: str) -> None:
    (root / "evidence.yaml").write_text(ITEMS + "".join(f"  - {{{item}}}\n" for item in given))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())


def report(root: Path) -> Path:
    """The newest report folder."""
    return max((root / "reports").glob("2*Z")) / "phase_c4"


def visible(root: Path) -> dict[str, bytes]:
    """Every file but those that no other program needs."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not {".ptycho", "__pycache__", ".pytest_cache"} & {*path.parts}
        and not path.name.endswith(".lock")
    }


def changed_lines(before: bytes, after: bytes) -> list[tuple[str, str]]:
    old, new = before.decode().split("\n"), after.decode().split("\n")
    assert len(old) == len(new)
    return [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]


def assert_one_line(done, code, *expected):
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(errors) == 1, done.stderr
    for part in expected:
        assert part in errors[0]


def test_the_readme_shows_evidence_that_can_be_read(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    example = readme.partition("```yaml evidence.yaml\n")[2].partition("```")[0]
    (tmp_path / "evidence.yaml").write_text(example)
    evidence = load_evidence(tmp_path)
    assert evidence.ids == ["C4.D1", "C4.D2", "C4.D3", "C4.F"]
    assert [item.stages for item in evidence.items] == [(), ("infer",)]


# --- green -----------------------------------------------------------------------------------


def test_a_green_run_brings_report_plan_and_ledger_up_to_date(root, doit):
    before = visible(root)
    done = doit(root, "evidence")
    assert done.returncode == 0, done.stderr
    assert "measured\n" in done.stdout
    folder = report(root)
    assert {path.name for path in folder.iterdir()} == {
        "pytest_a_green.log", "data_green.log", "plan_updates.md", "summary.md",
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z", folder.parent.name)
    changes = changed_lines(before["plan.md"], (root / "plan.md").read_bytes())
    log = f"{folder.relative_to(root)}/pytest_a_green.log"
    assert len(changes) == 3
    for old, new in changes[:2]:
        assert log in new
        bare = re.sub(f" {NOTE}", "", new).replace("[x] |", "[ ] |", 1)
        assert bare.replace(" ", "") == old.replace(" ", "")
    assert changes[2] == ("- [ ] **C4.D3:** data", "- [x] **C4.D3:** data")
    ledger = (root / "docs/fix_plan.md").read_text()
    assert ledger.startswith("# Ledger\n\nAttempt #7, long ago\n\n### Attempt 8: ")
    assert "- C4.D1, C4.D2: green, 2 passed, 0 failed, 0 skipped, " in ledger
    assert ledger.count("### Attempt") == 1
    updates = (folder / "plan_updates.md").read_text()
    assert "| C4.D3 | `[ ]` open | `[x]` done | all that it needs is green |" in updates
    assert "sha256" in (folder / "summary.md").read_text()
    after = visible(root)
    new = {name for name in after if name not in before}
    assert all(name.startswith("reports/") for name in new)
    assert {name for name in before if after[name] != before[name]} == {
        "plan.md", "docs/fix_plan.md",
    }  # fmt: skip


def test_a_manifest_says_what_a_row_stands_on(root, doit):
    doit(root, "evidence:C4.D2")
    manifest = json.loads((root / "reports/manifests/C4.D2.json").read_text())
    (item,) = manifest["items"]
    assert (manifest["outcome"], item["command"]) == (
        "green",
        "python -m pytest tests/test_a.py -q",
    )
    assert item["inputs"].keys() == {"tests/test_a.py"}
    assert (root / item["log"]).is_file()
    assert item["counts"] == {"passed": 2, "failed": 0, "skipped": 0}
    assert not (root / "reports/manifests/C4.D3.json").exists()


def test_a_log_has_a_head_and_a_foot(root, doit):
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    doit(root, "evidence:C4.D1")
    log = (report(root) / "pytest_a_green.log").read_text("ascii")
    head, output, foot = log.split("-" * 72 + "\n")
    for part in (
        "# command: python -m pytest tests/test_a.py -q\n", "# directory: .", "# start: 2",
        "# commit: none\n", f"# python: {sys.version.split()[0]}; ptycho-tasks ",
        "# CUDA_VISIBLE_DEVICES: ''\n",
    ):  # fmt: skip
        assert part in head
    assert "2 passed" in output
    assert "# ended: exit status 0\n" in foot
    assert "# tests: 2 passed, 0 failed, 0 skipped\n# outcome: green\n" in foot


def test_a_second_run_runs_nothing_and_names_the_logs(root, doit):
    doit(root, "evidence")
    before = visible(root)
    done = doit(root, "evidence")
    assert done.returncode == 0
    assert "measured" not in done.stdout
    assert f"{report(root).relative_to(root)}/data_green.log" in done.stdout
    assert visible(root) == before


def test_a_row_that_someone_opened_is_marked_again(root, doit):
    doit(root, "evidence")
    edit(root / "plan.md", "[x] **C4.D3", "[ ] **C4.D3")
    assert "C4.D3 is proved, and plan.md or its manifest" in doit(root, "why", "evidence").stdout
    done = doit(root, "evidence:C4.D3")
    assert done.returncode == 0
    assert "measured" not in done.stdout
    assert "- [x] **C4.D3" in (root / "plan.md").read_text()
    assert doit(root, "why", "evidence").stdout == "evidence  up to date\n"


def test_a_clone_knows_what_was_proved(root, doit):
    doit(root, "evidence")
    shutil.rmtree(root / ".ptycho")
    before = visible(root)
    assert doit(root, "evidence").returncode == 0
    assert visible(root) == before


def test_the_items_are_listed_and_one_can_be_run(root, doit):
    listed = doit(root, "list", "--all").stdout
    assert [line.split()[0] for line in listed.splitlines()] == [
        "evidence", "evidence:C4.D1", "evidence:C4.D2", "evidence:C4.D3",
    ]  # fmt: skip
    done = doit(root, "evidence:C4.D3")
    assert done.returncode == 0
    assert [path.name for path in report(root).glob("*.log")] == ["data_green.log"]
    assert "[x] **C4.D3" in (root / "plan.md").read_text()
    assert "[ ]" in (root / "plan.md").read_text().splitlines()[4]


# --- stale -----------------------------------------------------------------------------------


def altered_log(root):
    with (report(root) / "data_green.log").open("a") as log:
        log.write("all is well\n")


STALE = {
    "command": (lambda r: edit(r / "evidence.yaml", "cat data", "cat ./data"), "C4.D3", "command"),
    "env": (lambda r: edit(r / "evidence.yaml", '""}', '"", A: 1}'), "C4.D1", "env.A not there ->"),
    "test": (lambda r: edit(r / "tests/test_a.py", "pass", "assert 1"), "C4.D1", "tests/test_a.py"),
    "conftest": (lambda r: (r / "conftest.py").touch(), "C4.D2", "conftest.py is new as an input"),
    "file": (lambda r: (r / "data.txt").write_text("other\n"), "C4.D3", "data.txt changed: sha256"),
    "log": (altered_log, "C4.D3", "data_green.log was altered: sha256"),
    "no log": (lambda r: shutil.rmtree(report(r).parent), "C4.D3", "data_green.log is missing"),
    "rows": (lambda r: edit(r / "evidence.yaml", "[C4.D1, C4.D2]", "[C4.D1]"), "C4.D1", "ids"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "id", "reason"), STALE.values(), ids=STALE)
def test_what_changed_is_said_and_run_again(root, doit, change, id, reason):
    doit(root, "evidence")
    change(root)
    why = doit(root, "why", f"evidence:{id}").stdout
    assert why.startswith(f"evidence:{id}  stale\n")
    assert reason in why
    done = doit(root, "evidence")
    assert done.returncode == 0, done.stderr
    assert len([*(root / "docs/fix_plan.md").read_text().split("### Attempt")]) == 3
    assert "stale" not in doit(root, "why", "evidence").stdout


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("python tests/check.py data.txt", "tests/check.py"),
        ("cd tests && cd .. && X=1 python -m tests.check", "tests/check.py"),
        ("./check data.txt", "check"),
        ("python -m pytest tests/test_a.py::test_more -q | cat", "tests/test_a.py"),
    ],
)
def test_a_script_that_a_command_names_is_depended_on(root, doit, command, path):
    (root / "tests/check.py").write_text("print('measured')\n")
    (root / "check").write_text("#!/bin/sh\ncat $1\n")
    (root / "check").chmod(0o755)
    items(root, f"id: C4.D3, command: '{command}', log: t")
    assert doit(root, "evidence").returncode == 0
    with (root / path).open("a") as file:
        file.write("# edited\n")
    assert f"{path} changed: sha256" in doit(root, "why", "evidence").stdout
    assert doit(root, "evidence").returncode == 0
    assert doit(root, "why", "evidence").stdout == "evidence  up to date\n"


def test_what_is_merely_touched_is_not_stale(root, doit):
    doit(root, "evidence")
    os.utime(root / "data.txt", (9, 9))
    edit(root / "evidence.yaml", "by_hand: read it", "by_hand: read it twice")
    assert doit(root, "why", "evidence").stdout == "evidence  up to date\n"


def test_a_folder_and_a_glob_are_depended_on(root, doit):
    items(root, "id: C4.D3, command: 'true', log: t, depends: [tests, '*.txt']")
    doit(root, "evidence")
    seen = json.loads((root / "reports/manifests/C4.D3.json").read_text())["items"][0]["inputs"]
    assert seen.keys() == {"tests/test_a.py", "data.txt"}
    (root / "more.txt").touch()
    assert "more.txt is new as an input" in doit(root, "why", "evidence").stdout


ON_A_STAGE = """
evidence:
  initiative: i
  phase: p
  plan: plan.md
  ledger: ledger.md
  items:
    - {id: C4.D3, command: ls fixtures, log: ls.log, depends: [fixture]}
"""


def test_evidence_about_a_stage_builds_it_and_follows_it(built_project, doit):
    config = built_project / "ptycho.yaml"
    with config.open("a") as file:
        file.write(ON_A_STAGE)
    (built_project / "plan.md").write_bytes(PLAN.encode())
    (built_project / "ledger.md").touch()
    assert doit(built_project, "dry-run").stdout.startswith("nothing would run")
    done = doit(built_project, "evidence")
    assert done.returncode == 0, done.stderr
    assert "tiny.npz" in done.stdout
    edit(config, "seed: 3", "seed: 4")
    assert "fixture would run before" in doit(built_project, "why", "evidence").stdout
    done = doit(built_project, "evidence")
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith(".  ")] == [
        "source", "fixture", "evidence",
    ]  # fmt: skip
    config.write_text(config.read_text().partition("\nevidence:")[0])
    assert ".  train" in doit(built_project, "dry-run").stdout
    assert doit(built_project, "list").stdout.split()[0] == "fixture"


# --- red -------------------------------------------------------------------------------------


def test_a_red_item_is_blocked_and_the_others_still_run(root, doit):
    edit(root / "tests/test_a.py", "    pass", "    assert 1 == (2 | 3), 'no `x`'")
    done = doit(root, "evidence")
    assert_one_line(done, 1, "red: C4.D1, C4.D2")
    folder = report(root)
    assert {path.name for path in folder.iterdir()} == {
        "pytest_a_red.log", "data_green.log", "plan_updates.md", "summary.md", "blocker.log",
    }  # fmt: skip
    blocker = (folder / "blocker.log").read_text()
    assert "# command: python -m pytest tests/test_a.py -q\n" in blocker
    assert "1 failed, 1 passed" in blocker
    plan = (root / "plan.md").read_text().splitlines()
    assert plan[4].startswith("| C4.D1 | CLI tests | [P] | guidance \\| `[x]` (evidence 2")
    assert "pytest_a_red.log; tests.test_a.test_more: AssertionError: no 'x'" in plan[4]
    assert plan[6] == "- [x] **C4.D3:** data"
    ledger = (root / "docs/fix_plan.md").read_text()
    assert f"`{folder.relative_to(root)}/` (plan_updates.md, summary.md, blocker.log)" in ledger
    assert f"see {folder.relative_to(root)}/blocker.log" in done.stderr
    assert "- C4.D1, C4.D2: red, 1 passed, 1 failed, 0 skipped, " in ledger
    assert doit(root, "why", "evidence:C4.D1").stdout.splitlines()[1].strip() == (
        "pytest_a was red: tests.test_a.test_more: AssertionError: no `x`"
    )


COLOURED_TEST = r"""
def test_a():
    raise ValueError("\x1b[31mred\x1b[0m C:\\dir")
"""
PROBLEMS = {
    "colours": ({"tests/test_b.py": COLOURED_TEST}, "tests.test_b.test_a: ValueError: red C:\\dir"),
    "no import": (
        {"tests/test_b.py": "import os\nimport nothing_such\n"},
        "tests.test_b: ModuleNotFoundError: No module named 'nothing_such'",
    ),
    "no Python": ({"tests/test_b.py": "def test(:\n"}, "tests.test_b: SyntaxError: invalid syntax"),
    "conftest": (
        {"tests/test_b.py": TEST, "tests/conftest.py": "import nothing_such\n"},
        "ModuleNotFoundError: No module named 'nothing_such'",
    ),
    "no option": ({"tests/test_b.py": TEST, "pytest.ini": "[pytest]\naddopts = --nonsense\n"},
        "python -m pytest: error: unrecognized arguments: --nonsense"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "problem"), PROBLEMS.values(), ids=PROBLEMS)
def test_the_first_error_is_what_is_said_of_a_red_item(root, doit, files, problem):
    items(root, "id: C4.D1, pytest: [tests/test_b.py, --color=yes], log: t")
    for name, text in files.items():
        (root / name).write_text(text)
    assert doit(root, "evidence").returncode == 1
    assert f"# problem: {problem}\n" in (report(root) / "t_red.log").read_text()
    assert f"t was red: {problem}\n" in doit(root, "why", "evidence").stdout
    assert f"; {problem})".replace("\\", "/") in (root / "plan.md").read_text()


def test_a_red_item_is_run_again_until_it_is_green(root, doit):
    items(root, "id: C4.D3, command: 'test -e ready || ! echo Error: not ready', log: r")
    assert doit(root, "evidence").returncode == 1
    assert doit(root, "evidence:C4.D3").returncode == 1
    assert "[P] **C4.D3" in (root / "plan.md").read_text()
    assert "Error: not ready" in (root / "docs/fix_plan.md").read_text()
    (root / "ready").touch()
    assert doit(root, "evidence").returncode == 0
    assert "[x] **C4.D3" in (root / "plan.md").read_text()
    assert (root / "docs/fix_plan.md").read_text().count("### Attempt") == 3


def test_a_row_of_several_commands_is_done_when_all_are_green(root, doit):
    one = "ids: [C4.D1, C4.D3], command: 'true', log: one"
    two = "id: C4.D3, command: test -e ready, log: two"
    items(root, one, two)
    doit(root, "evidence:C4.D1")
    plan = (root / "plan.md").read_text()
    assert "| [x] | guidance" in plan
    assert "- [P] **C4.D3" in plan  # `two` was not run yet
    assert "two was not run yet" in (report(root) / "plan_updates.md").read_text()
    assert doit(root, "evidence").returncode == 1
    assert "- [P] **C4.D3" in (root / "plan.md").read_text()
    (root / "ready").touch()
    assert doit(root, "evidence").returncode == 0
    assert "- [x] **C4.D3" in (root / "plan.md").read_text()
    manifest = json.loads((root / "reports/manifests/C4.D3.json").read_text())
    assert [item["item"] for item in manifest["items"]] == ["one", "two"]


def test_a_row_of_which_a_person_does_a_part_is_theirs_to_mark(root, doit):
    items(root, "id: C4.D3, command: 'true', log: one", "id: C4.D3, by_hand: look at it")
    assert doit(root, "evidence").returncode == 0
    assert "- [P] **C4.D3" in (root / "plan.md").read_text()
    edit(root / "plan.md", "[P] **C4.D3", "[x] **C4.D3")
    assert doit(root, "-a", "evidence").returncode == 0
    assert "- [x] **C4.D3" in (root / "plan.md").read_text()


def test_a_pipe_does_not_hide_a_failure(root, doit):
    items(root, "id: C4.D3, command: cat none.txt | cat, log: piped")
    assert doit(root, "evidence").returncode == 1
    assert (report(root) / "piped_red.log").exists()


SKIPPED = "import pytest\n\n\n@pytest.mark.skip\ndef test_a():\n    pass\n"


@pytest.mark.parametrize("item", ["pytest: [tests]", "command: python -m pytest tests"])
def test_a_run_of_no_test_is_red(root, doit, item):
    items(root, f"id: C4.D3, {item}, log: tests")
    (root / "tests/test_a.py").write_text(SKIPPED)
    assert_one_line(doit(root, "evidence"), 1, "red: C4.D3")
    assert "no test ran: 0 passed, 0 failed, 1 skipped" in (
        (report(root) / "tests_red.log").read_text()
    )


# --- stages that fail -------------------------------------------------------------------------

FAILING = """\
from pathlib import Path

from ptycho_tasks.options import TrainingOptions
from ptycho_tasks.errors import ConfigError, TrainingError


class Failing:
    name, version, options_type = "failing", "1", TrainingOptions

    def train(self, request):
        raise TrainingError("the loss is NaN (epoch 3)")

    def infer(self, request):
        raise NotImplementedError


backend = Failing()
"""
BEHIND_STAGES = (
    ON_A_STAGE
    + """\
    - {id: C4.D1, command: ls runs, log: infer.log, depends: [infer]}
    - {id: C4.D2, command: echo alone, log: alone.log}
"""
)


@pytest.fixture
def failing(built_project):
    """A project of which a row needs a training that fails, and others do not."""
    (built_project / "backends/failing.py").write_text(FAILING)
    config = built_project / "ptycho.yaml"
    edit(config, "backend: epie", "backend: failing")
    config.write_text(config.read_text() + BEHIND_STAGES.replace("phase: p", "phase: phase_c4"))
    (built_project / "plan.md").write_bytes(PLAN.encode())
    (built_project / "ledger.md").touch()
    return built_project


@pytest.mark.parametrize("options", [(), ("--continue",), ("-n", "2")], ids=str)
def test_a_stage_that_fails_blocks_the_rows_behind_it_and_no_others(failing, doit, options):
    done = doit(failing, *options, "evidence")
    assert done.returncode == 1
    assert "error: red: C4.D1; see reports/" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "failed: train\nnot run because of that: infer\n" in done.stdout
    names = {path.name for path in report(failing).iterdir()}
    assert {"infer_red.log", "ls_green.log", "alone_green.log", "blocker.log"} < names
    problem = "train failed: the loss is NaN (epoch 3)"
    log = (report(failing) / "infer_red.log").read_text()
    assert f"# ended: not run\n# duration: 0.0 s\n# problem: {problem}\n" in log
    assert f"# not run: {problem}\n" in (report(failing) / "blocker.log").read_text()
    plan = (failing / "plan.md").read_text().splitlines()
    assert "| [P] | guidance" in plan[4]
    assert "infer_red.log; train failed: the loss is NaN [epoch 3])" in plan[4]
    assert "| [x] |" in plan[5]
    assert plan[6] == "- [x] **C4.D3:** data"
    ledger = (failing / "ledger.md").read_text()
    assert "- C4.D1: red, 0.0 s: train failed: the loss is NaN [epoch 3]; `" in ledger
    assert ledger.count("### Attempt") == 1
    edit(failing / "ptycho.yaml", "backend: failing", "backend: epie")
    assert doit(failing, "evidence:C4.D1").returncode == 0
    assert "| [x] | guidance" in (failing / "plan.md").read_text()


def test_a_stage_that_is_configured_wrongly_leaves_no_trace(failing, doit):
    edit(failing / "backends/failing.py", "TrainingError(", "ConfigError(")
    refused(failing, doit, 2, "the loss is NaN")


def test_a_failure_of_what_no_row_needs_ends_the_run(failing, doit):
    before = visible(failing)
    done = doit(failing, "train", "evidence:C4.D2")
    assert_one_line(done, 1, "the loss is NaN")
    assert visible(failing) == before


def test_a_run_that_is_stopped_after_a_stage_failed_publishes_nothing(failing):
    edit(failing / "ptycho.yaml", "command: echo alone", "command: echo begun; sleep 600")
    before = (failing / "plan.md").read_bytes()
    run = subprocess.Popen(
        [*DOIT, "evidence"], cwd=failing, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert next(line for line in run.stdout if "begun" in line)
    os.killpg(run.pid, signal.SIGTERM)
    _, errors = run.communicate()
    assert run.returncode == 128 + signal.SIGTERM
    assert "the loss is NaN" in errors
    assert (failing / "plan.md").read_bytes() == before
    assert not (failing / "reports").exists()


# --- running ---------------------------------------------------------------------------------

SAYING = r"""
import os, sys
print("\x1b[31mred\x1b[0m out", end="")
print(" err", file=sys.stderr)
print("\x1b]0;title\x07out \u00e9")
os.write(2, b"bytes \xff\xfe\n1%\r2%\r\n")
print("end", end="")
"""


def test_output_keeps_its_order_and_colours_and_the_log_is_plain_ascii(root):
    (root / "say.py").write_text(SAYING)
    items(root, "id: C4.D3, command: python say.py, log: said")
    done = subprocess.run([*DOIT, "evidence"], cwd=root, capture_output=True, check=True)
    assert b"\x1b[31mred\x1b[0m out err\n" in done.stdout
    assert "out \u00e9\n".encode() in done.stdout
    assert b"\nend\n" in done.stdout
    log = (report(root) / "said_green.log").read_text("ascii")
    assert log.split("-" * 72 + "\n")[1] == (
        "red out err\nout \\xe9\nbytes \\xff\\xfe\n1%\n2%\nend\n"
    )


COLOURED = "import sys; print(chr(27) + '[31mred' if sys.stdout.isatty() else 'plain')"


def test_a_command_has_a_terminal_where_the_run_has_one(root):
    items(root, f'id: C4.D3, command: "python -c \\"{COLOURED}\\"", log: said')
    ours, theirs = pty.openpty()
    run = subprocess.Popen([*DOIT, "evidence"], cwd=root, stdout=theirs)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the other side was closed
        while piece := os.read(ours, 4096):
            said += piece
    os.close(ours)
    assert run.wait() == 0
    assert b"\x1b[31mred" in said
    assert "\nred\n" in (report(root) / "said_green.log").read_text()


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_time_limit_ends_all_that_was_started(root, doit):
    command = "sleep 600 & echo $! > pid; echo begun; wait"
    items(root, f"id: C4.D3, command: '{command}', log: slow, time_limit_s: 0.5")
    assert_one_line(doit(root, "evidence"), 1, "red: C4.D3")
    assert not is_alive(int((root / "pid").read_text()))
    log = (report(root) / "slow_red.log").read_text()
    assert "begun\n" in log
    assert "# ended: time limit of 0.5 s\n" in log
    assert "time limit of 0.5 s" in (root / "docs/fix_plan.md").read_text()


@pytest.mark.parametrize("jobs", [[], ["-n", "2"]], ids=["alone", "parallel"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_a_log_that_says_so(root, doit, number, jobs):
    items(
        root,
        "id: C4.D3, command: 'echo $$ > pid; echo begun; sleep 600', log: slow",
        "id: C4.D1, command: 'true', log: quick",
    )
    before = (root / "plan.md").read_bytes()
    run = subprocess.Popen(
        [*DOIT, *jobs, "evidence"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert next(line for line in run.stdout if "begun" in line)
    os.killpg(run.pid, number)  # as a terminal does
    _, errors = run.communicate()
    assert run.returncode == 128 + number
    assert "Traceback" not in errors
    assert not is_alive(int((root / "pid").read_text()))
    log = (root / ".ptycho/evidence/slow.log").read_text()
    assert log.endswith("# outcome: none\n")
    assert f"# ended: stopped by {number.name}\n" in log
    assert (root / "plan.md").read_bytes() == before
    items(root, "id: C4.D3, command: 'true', log: slow", "id: C4.D1, command: 'true', log: quick")
    assert doit(root, "evidence").returncode == 0


@pytest.mark.parametrize("jobs", [[], ["-n", "2"]], ids=["alone", "parallel"])
def test_nothing_outlives_a_run_that_is_killed(root, jobs):
    os.mkfifo(root / "alive")
    command = "exec > alive; (trap '' TERM; sleep 30; touch survived) & echo begun; wait"
    items(
        root,
        f'id: C4.D3, command: "{command}", log: slow',
        "id: C4.D1, command: 'true', log: quick",
    )
    run = subprocess.Popen([*DOIT, *jobs, "evidence"], cwd=root, stdout=subprocess.DEVNULL)
    with (root / "alive").open() as alive:
        assert alive.readline() == "begun\n"
        run.kill()
        assert alive.read() == ""  # all that could write have ended
    assert not (root / "survived").exists()
    assert run.wait() == -signal.SIGKILL


def test_items_run_side_by_side_and_are_published_once(root, doit):
    os.mkfifo(root / "pipe")  # each end waits for the other
    items(
        root,
        "id: C4.D1, command: echo met > pipe, log: one",
        "id: C4.D3, command: cat pipe, log: two",
    )
    done = doit(root, "-n", "2", "evidence")
    assert done.returncode == 0, done.stderr
    assert "two: met\n" in done.stdout
    assert len([*(root / "reports").glob("2*")]) == 1
    assert (root / "docs/fix_plan.md").read_text().count("### Attempt") == 1
    assert len([*(root / "reports/manifests").iterdir()]) == 2


def test_two_runs_in_one_second_get_two_folders(root, doit):
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1760936700"}
    doit(root, "evidence:C4.D3", env=env)
    doit(root, "evidence:C4.D1", env=env)
    assert sorted(path.name for path in (root / "reports").glob("2*")) == [
        "2025-10-20T050500Z", "2025-10-20T050501Z",
    ]  # fmt: skip
    assert (root / "docs/fix_plan.md").read_text().count(": 2025-10-20T05:05:00Z, ADR-003") == 2


# --- what bad input gets ---------------------------------------------------------------------


def refused(root: Path, doit, code: int, *expected: str, tasks=("evidence",), **options) -> None:
    """The run is refused in one line, and nothing that anyone sees changed."""
    before = visible(root)
    assert_one_line(doit(root, *tasks, **options), code, *expected)
    assert visible(root) == before


BAD = {
    "unknown id": ("C4.D3\n", "C4.X\n", "plan.md: has no row `C4.X`; rows: C4.D1, C4.D2, C4.D3"),
    "a command that is not there": (
        "cat data.txt", "catt data.txt", "evidence.yaml: data: there is no command `catt`"
    ),
    "a log with a path": ("data.log", "../data.log", "evidence.yaml:10: items[1]: `log` must be"),
    "no log": ("    log: data.log\n", "", "items[1]: `log` must be a plain file name"),
    "two of one log": ("data.log", "pytest_a.log", "evidence.yaml:12: items[1].log"),
    "unknown key": ("log: data", "logs: data", "evidence.yaml:12: items[1].logs: unknown key; did"),
    "no number": ("log: data.log", "log: d\n    time_limit_s: 1 h", "time_limit_s: expected"),
    "no stage": ("[data.txt]", "[trane]", "`trane` is neither a stage nor a file; did you mean"),
    "nothing to depend on": ("[data.txt]", "[data.csv]", "`data.csv` is neither a stage nor"),
    "a glob of nothing": ("[data.txt]", "['data/*.txt']", "depends: `data/*.txt` is neither"),
    "a blank selector": ("[tests/test_a.py, -q]", "[' ']", "items[0].pytest[0]: expected a text"),
    "a blank command": ("cat data.txt", "' '", "items[1].command: expected a text that is not"),
    "a comment": ("cat data.txt", "'# later'", "items[1].command: is only a comment, so that"),
    "an id of no kind": ("id: C4.D3", "id: 'C4\\D'", "items[1].id: expected the id of a row: let"),
    "a log with a backslash": ("data.log", "'a\\b'", "first is a letter or digit, not 'a\\b'; the"),
    "no file of tests": ("tests/test_a", "tests/test_b", "no test file or folder tests/test_b.py"),
    "id and ids": ("id: C4.D3", "id: C4.D3\n    ids: [a.1]", "give exactly one of `id` and `ids`"),
    "nothing to run": ("    command: cat data.txt\n", "", "exactly one of `command`, `pytest` and"),
    "no plan": ("plan: plan.md", "plan: plans.md", "plans.md: No such file"),
    "no ledger": ("ledger: docs/fix", "ledger: docs/fax", "docs/fax_plan.md: no such file; make"),
    "one file for both": ("docs/fix_plan.md", "plan.md", "ledger: is the plan itself"),
    "a folder as ledger": ("docs/fix_plan.md", "docs", "ledger: docs: is a folder"),
    "an open quote": ("cat data.txt", "'echo \"'", "data: the shell cannot read the command"),
    "its own XML": ("-q]", "--junitxml=a.xml]", "evidence.yaml:7: items[0].pytest: the program"),
    "a phase with a path": ("phase: phase_c4", "phase: a/b", "evidence.yaml:2: phase: expected at"),
    "an empty file": (EVIDENCE, "", "evidence.yaml: initiative: must be given"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line_and_starts_nothing(root, doit, old, new, expected):
    edit(root / "evidence.yaml", old, new)
    refused(root, doit, 2, expected)
    assert not (root / "reports").exists()


@pytest.mark.parametrize("name", ["plan.md", "docs/fix_plan.md"])
def test_a_loop_of_links_is_one_line(root, doit, name):
    (root / name).unlink()
    (root / name).symlink_to(Path(name).name)
    refused(root, doit, 2, name)


def test_a_row_that_stands_twice_starts_nothing(root, doit):
    edit(root / "plan.md", "last line", "- [ ] C4.D3: again")
    refused(root, doit, 2, "plan.md:9: row `C4.D3` stands in line 7 already")


def test_a_row_that_nobody_listed_and_that_stands_twice_starts_nothing(root, doit):
    edit(root / "plan.md", "last line", "- [ ] C5.A: once\n- [x] C5.A: again")
    refused(root, doit, 2, "plan.md:10: row `C5.A` stands in line 9 already")


def test_rows_that_nobody_listed_with_a_state_that_is_none_are_mentioned(root, doit):
    edit(root / "plan.md", "last line", "- [D] C5.A: deferred\n- [~] C5.B: half\n")
    done = doit(root, "evidence")
    assert done.returncode == 0
    assert done.stderr.count("warning: ") == 1
    assert "warning: plan.md:9: row `C5.A` has the state [D], which is none of" in done.stderr
    assert "; so has line 10\n" in done.stderr


def test_numbers_and_words_may_stand_twice(root, doit):
    edit(root / "plan.md", "last line", 2 * "- [ ] 1: once\n- [x] Note: this\n")
    assert doit(root, "evidence").returncode == 0


def test_what_another_item_makes_can_be_depended_on(root, doit):
    items(
        root,
        "id: C4.D3, command: mkdir out && cp data.txt --target-directory=out, log: one",
        "id: C4.D3, command: ls out, log: two, depends: [out]",
        "id: C4.D1, command: cat out/data.txt, log: three, depends: ['out/*.txt', out/data.txt]",
    )
    done = doit(root, "evidence")
    assert_one_line(done, 2, "three: depends: `out/*.txt` is neither a stage nor a file")
    edit(root / "evidence.yaml", "mkdir out &&", "mkdir out; echo out/data.txt;")
    assert doit(root, "evidence").returncode == 0
    assert "two" not in doit(root, "why", "evidence:C4.D1").stdout


def test_a_row_without_a_state_starts_nothing(root, doit):
    edit(root / "plan.md", "- [ ] **C4.D3", "- **C4.D3")
    refused(root, doit, 2, "plan.md:7: row `C4.D3` has no state; write `[ ]` into it")


def test_evidence_in_two_files_is_refused(root, doit):
    section = "".join(f"  {line}\n" for line in EVIDENCE.splitlines())
    (root / "ptycho.yaml").write_text(f"source: {{simulate: {{}}}}\nevidence:\n{section}")
    refused(root, doit, 2, "ptycho.yaml:2: evidence: there is evidence.yaml too; keep one")


@pytest.mark.parametrize(
    "given", ["pytest: ['tests/test_a.py::test_none']", "pytest: [tests, -k, none]",
              "command: python -m pytest tests/test_a.py::test_none",
              "command: 'python -m pytest tests/test_a.py::test_none | cat'"],
)  # fmt: skip
def test_a_selector_that_selects_nothing_is_one_line(root, doit, given):
    items(root, f"id: C4.D3, {given}, log: t", "id: C4.D1, command: echo done, log: other")
    expected = "2 deselected" if "-k" in given else f"there is no {root}/tests/test_a.py::test_none"
    refused(root, doit, 1, "C4.D3: `python -m pytest tests", f"selects no test: {expected};")
    edit(root / "evidence.yaml", "none", "more")
    done = doit(root, "evidence")
    assert done.returncode == 0, done.stderr
    assert "done\n" not in done.stdout.replace("data done", "")  # it was kept
    assert "[x] **C4.D3" in (root / "plan.md").read_text()


def test_a_command_that_is_not_found_when_it_runs_is_one_line(root, doit):
    items(root, "id: C4.D3, command: 'true && catt', log: t")
    refused(root, doit, 1, "C4.D3: `true && catt` the command was not found", "catt")


def test_a_plan_that_changed_meanwhile_is_left_alone(root, doit):
    items(root, "id: C4.D3, command: echo mine >> plan.md, log: t")
    ledger = (root / "docs/fix_plan.md").read_bytes()
    done = doit(root, "evidence")
    assert_one_line(done, 1, "plan.md: was changed while the items ran")
    assert (root / "plan.md").read_bytes() == PLAN.encode() + b"mine\n"
    assert (root / "docs/fix_plan.md").read_bytes() == ledger
    assert not [*(root / "reports").glob("2*")] if (root / "reports").exists() else True
    assert "the result of t is not published yet" in doit(root, "why", "evidence").stdout
    assert doit(root, "evidence").returncode == 0
    assert (root / "plan.md").read_text().endswith("\xe9mine\n")  # it was not run again
    assert "[x] **C4.D3" in (root / "plan.md").read_text()


def without_overriding_permissions() -> None:
    """Make even root respect a folder's mode: drop CAP_DAC_OVERRIDE with PR_CAPBSET_DROP."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
@pytest.mark.parametrize("name", ["reports", "docs", "docs/fix_plan.md", "plan.md"])
def test_a_place_that_cannot_be_written_starts_nothing(root, doit, name):
    (root / "reports").mkdir()
    (root / name).chmod(0o555)
    refused(
        root, doit, 1, f"cannot write {root / name}", "Permission denied",
        preexec_fn=without_overriding_permissions,
    )  # fmt: skip
    (root / name).chmod(0o755)


@pytest.mark.parametrize("name", ["reports", "reports/manifests"])
def test_a_file_in_place_of_a_folder_starts_nothing(root, doit, name):
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).touch()
    refused(root, doit, 1, f"cannot write {root / name}", "File exists")


def test_a_report_of_doit_s_own_frames_a_run_too(root, doit):
    done = doit(root, "-r", "zero", "evidence")
    assert done.returncode == 0, done.stderr
    assert "[x] **C4.D3" in (root / "plan.md").read_text()
    edit(root / "plan.md", "[x] **C4.D3", "**C4.D3")
    refused(root, doit, 2, "row `C4.D3` has no state", tasks=("-r", "zero", "evidence"))


def test_the_command_line_says_why(root):
    command = [sys.executable, "-m", "ptycho_tasks.commands.cli", "why", "evidence:C4.D1"]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True, check=True)
    assert " ".join(done.stdout.split()) == "evidence:C4.D1 stale pytest_a was not run yet"


def test_evidence_that_stands_alone_needs_one_line_and_no_task_names(root, doit):
    (root / "dodo.py").write_text("from ptycho_tasks.tasks import DOIT_CONFIG, task_evidence\n")
    assert doit(root, "why").stdout.startswith("evidence  stale\n")
    assert doit(root, "dry-run").stdout.startswith(".  evidence  (")
    assert doit(root).returncode == 0
    assert "[x] **C4.D3" in (root / "plan.md").read_text()
    assert doit(root, "dry-run").stdout == "nothing would run: all is up to date\n"


def test_without_evidence_there_is_no_task(project, doit):
    assert "evidence" not in doit(project, "list", "--all").stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no subreaper")
def test_a_session_of_its_own_ends_with_the_command(root, doit):
    command = "setsid -f sh -c 'trap \"\" TERM; echo $$ > pid; exec sleep 600' & sleep 0.5"
    (root / "start.sh").write_text(command)
    items(root, "id: C4.D3, command: sh start.sh, log: quick")
    assert doit(root, "evidence").returncode == 0
    assert not is_alive(int((root / "pid").read_text()))


# --- what commands and names do ------------------------------------------------------------------


@pytest.mark.parametrize("processes", [[], ["-n", "2"]])
def test_an_item_that_removes_our_files_costs_the_others_nothing(root, doit, processes):
    items(
        root,
        "id: C4.D1, command: echo one, log: one",
        "id: C4.D2, command: rm -rf .ptycho, log: two",
        "id: C4.D3, command: echo three, log: three",
    )
    done = doit(root, *processes, "evidence")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in report(root).glob("*.log")} == {
        "one_green.log", "two_green.log", "three_green.log",
    }  # fmt: skip
    again = doit(root, "evidence")
    assert again.returncode == 0
    assert again.stdout.count("still good") == 3


def test_what_names_hold_reaches_neither_terminal_nor_report_raw(root, doit):
    strange = "in/new\nline\x1b[31m\u202e`.txt", os.fsdecode(b"in/\xff.txt")
    (root / "in").mkdir()
    for name in strange:
        (root / name).write_text("x")
    items(root, r'id: C4.D3, command: "echo \u202e\e[31m >/dev/null", log: a, depends: [in]')
    assert doit(root, "evidence").returncode == 0
    for name in strange:
        (root / name).write_text("y")
    said = [doit(root, word, "evidence").stdout for word in ("why", "dry-run")]
    said += [doit(root, "list", "--all").stdout]
    said += [path.read_text() for path in report(root).glob("*.md")]
    for text in said:
        assert all(line.isprintable() for line in text.split("\n")), ascii(text)
    assert r"in/new\nline\x1b[31m\u202e" in said[0]


@pytest.mark.parametrize("item", [r'command: "a\0b"', r'command: ls, env: {A: "\0"}'])
def test_a_command_with_a_nul_character_is_refused(root, doit, item):
    items(root, f"id: C4.D3, log: a, {item}")
    assert_one_line(doit(root, "evidence"), 2, "evidence.yaml", "NUL")
