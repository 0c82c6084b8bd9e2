"""The tasks of the evidence, end to end: what runs, what is published, what people see."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

import pytest

from ptycho_tasks.testing.project import run_command

NOTE = r"\(evidence [0-9T:Z-]+ (green|red): ([^()|]*)\)"


def changed_lines(before: bytes, after: bytes) -> list[tuple[str, str]]:
    old, new = before.decode().split("\n"), after.decode().split("\n")
    assert len(old) == len(new)
    return [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]


def test_a_green_run_brings_report_plan_and_ledger_up_to_date(project):
    before = project.list_files()
    done = project.doit("evidence")
    assert done.returncode == 0, done.stderr
    assert "measured\n" in done.stdout
    folder = project.report
    assert {path.name for path in folder.iterdir()} == {
        "pytest_a_green.log", "data_green.log", "plan_updates.md", "summary.md",
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z", folder.parent.name)
    changes = changed_lines(before["plan.md"], (project.root / "plan.md").read_bytes())
    log = f"{folder.relative_to(project.root)}/pytest_a_green.log"
    assert len(changes) == 3
    for old, new in changes[:2]:
        assert log in new
        bare = re.sub(f" {NOTE}", "", new).replace("[x] |", "[ ] |", 1)
        assert bare.replace(" ", "") == old.replace(" ", "")
    assert changes[2][1].startswith("- [x] **C4.D3:** data (evidence ")
    ledger = project.ledger
    assert ledger.startswith("# Ledger\n\nAttempt #7, long ago\n\n### Attempt 8: ")
    assert "- C4.D1, C4.D2: green, 2 passed, 0 failed, 0 skipped, " in ledger
    assert ledger.count("### Attempt") == 1
    updates = (folder / "plan_updates.md").read_text()
    assert "| C4.D3 | `[ ]` open | `[x]` done | all that it needs is green |" in updates
    assert "sha256" in (folder / "summary.md").read_text()
    after = project.list_files()
    new = {name for name in after if name not in before}
    assert all(name.startswith("reports/") for name in new)
    assert {name for name in before if after[name] != before[name]} == {
        "plan.md", "docs/fix_plan.md",
    }  # fmt: skip


def test_a_manifest_says_what_a_row_stands_on(proved_project):
    project = proved_project
    manifest = json.loads((project.root / "reports/manifests/C4.D2.json").read_text())
    (item,) = manifest["items"]
    assert (manifest["outcome"], item["command"]) == (
        "green",
        "python -m pytest tests/test_a.py -q",
    )
    assert item["inputs"].keys() == {"tests/test_a.py"}
    assert (project.root / item["log"]).is_file()
    assert item["counts"] == {"passed": 2, "failed": 0, "skipped": 0}


def test_a_log_has_a_head_and_a_foot(proved_project):
    project = proved_project
    log = (project.report / "pytest_a_green.log").read_text("ascii")
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


def test_a_second_run_runs_nothing_and_names_the_logs(proved_project):
    project = proved_project
    before = project.list_files()
    done = project.doit("evidence")
    assert done.returncode == 0
    assert "measured" not in done.stdout
    assert f"{project.report.relative_to(project.root)}/data_green.log" in done.stdout
    assert project.list_files() == before


def test_a_row_without_a_cell_for_a_pointer_is_marked_and_told(project):
    project.write_items("ids: [C4.D2, C4.D3], command: 'true', log: a")
    project.edit("plan.md", "| C4.D2 | more | [ ] | |", "| C4.D2 | more | [ ] |")
    done = project.doit("evidence")
    note = (
        "note: plan.md: no cell for a pointer to the log in row C4.D2; add one behind the state\n"
    )
    assert (done.returncode, done.stderr) == (0, note)
    assert "| C4.D2 | more | [x] |\n- [x] **C4.D3:** data (evidence " in project.plan


def test_a_row_that_someone_opened_is_marked_again(proved_project):
    project = proved_project
    project.edit("plan.md", "[x] **C4.D3", "[ ] **C4.D3")
    assert "C4.D3 is proved, and plan.md or its manifest" in project.doit("why", "evidence").stdout
    done = project.doit("evidence:C4.D3")
    assert done.returncode == 0
    assert "measured" not in done.stdout
    assert "- [x] **C4.D3" in project.plan
    assert project.doit("why", "evidence").stdout == "evidence  up to date\n"


def test_a_clone_knows_what_was_proved(proved_project):
    project = proved_project
    shutil.rmtree(project.root / ".ptycho")
    before = project.list_files()
    assert project.doit("evidence").returncode == 0
    assert project.list_files() == before


def test_the_items_are_listed_and_one_can_be_run(project):
    listed = project.doit("list", "--all").stdout
    assert [line.split()[0] for line in listed.splitlines()] == [
        "evidence", "evidence:C4.D1", "evidence:C4.D2", "evidence:C4.D3",
    ]  # fmt: skip
    done = project.doit("evidence:C4.D3")
    assert done.returncode == 0
    assert [path.name for path in project.report.glob("*.log")] == ["data_green.log"]
    assert not (project.root / "reports/manifests/C4.D1.json").exists()
    assert "[x] **C4.D3" in project.plan
    assert "[ ]" in project.plan.splitlines()[4]


def test_a_red_item_is_blocked_and_the_others_still_run(project):
    project.edit("tests/test_a.py", "    pass", "    assert 1 == (2 | 3), 'no `x`'")
    done = project.doit("evidence")
    project.assert_one_line(done, 1, "red: C4.D1, C4.D2")
    folder = project.report
    assert {path.name for path in folder.iterdir()} == {
        "pytest_a_red.log", "data_green.log", "plan_updates.md", "summary.md", "blocker.log",
    }  # fmt: skip
    blocker = (folder / "blocker.log").read_text()
    assert "# command: python -m pytest tests/test_a.py -q\n" in blocker
    assert "1 failed, 1 passed" in blocker
    plan = project.plan.splitlines()
    assert plan[4].startswith("| C4.D1 | CLI tests | [P] | guidance \\| `[x]` (evidence 2")
    assert "pytest_a_red.log; tests.test_a.test_more: AssertionError: no 'x'" in plan[4]
    assert plan[6].startswith("- [x] **C4.D3:** data (evidence ")
    ledger = project.ledger
    assert (
        f"`{folder.relative_to(project.root)}/` (plan_updates.md, summary.md, blocker.log)"
        in ledger
    )
    assert f"see {folder.relative_to(project.root)}/blocker.log" in done.stderr
    assert "- C4.D1, C4.D2: red, 1 passed, 1 failed, 0 skipped, " in ledger
    assert project.doit("why", "evidence:C4.D1").stdout.splitlines()[1].strip() == (
        "pytest_a was red: tests.test_a.test_more: AssertionError: no `x`"
    )


def test_a_red_item_is_run_again_until_it_is_green(project):
    project.write_items("id: C4.D3, command: 'test -e ready || ! echo Error: not ready', log: r")
    assert project.doit("evidence").returncode == 1
    assert project.doit("evidence:C4.D3").returncode == 1
    assert "[P] **C4.D3" in project.plan
    assert "Error: not ready" in project.ledger
    (project.root / "ready").touch()
    assert project.doit("evidence").returncode == 0
    assert "[x] **C4.D3" in project.plan
    assert project.ledger.count("### Attempt") == 3


def test_a_row_of_several_commands_is_done_when_all_are_green(project):
    one = "ids: [C4.D1, C4.D3], command: 'true', log: one"
    two = "id: C4.D3, command: test -e ready, log: two"
    project.write_items(one, two)
    project.doit("evidence:C4.D1")
    plan = project.plan
    assert "| [x] | guidance" in plan
    assert "- [P] **C4.D3" in plan  # `two` was not run yet
    assert "two was not run yet" in (project.report / "plan_updates.md").read_text()
    assert project.doit("evidence").returncode == 1
    assert "- [P] **C4.D3" in project.plan
    (project.root / "ready").touch()
    assert project.doit("evidence").returncode == 0
    assert "- [x] **C4.D3" in project.plan
    manifest = json.loads((project.root / "reports/manifests/C4.D3.json").read_text())
    assert [item["item"] for item in manifest["items"]] == ["one", "two"]


def test_a_row_of_which_a_person_does_a_part_is_theirs_to_mark(project):
    project.write_items("id: C4.D3, command: 'true', log: one", "id: C4.D3, by_hand: look at it")
    assert project.doit("evidence").returncode == 0
    assert "- [P] **C4.D3" in project.plan
    project.edit("plan.md", "[P] **C4.D3", "[x] **C4.D3")
    assert project.doit("-a", "evidence").returncode == 0
    assert "- [x] **C4.D3" in project.plan


def test_items_run_side_by_side_and_are_published_once(project):
    os.mkfifo(project.root / "pipe")  # each end waits for the other
    project.write_items(
        "id: C4.D1, command: echo met > pipe, log: one",
        "id: C4.D3, command: cat pipe, log: two",
    )
    done = project.run_apart("-n", "2", "evidence")
    assert done.returncode == 0, done.stderr
    assert "two: met\n" in done.stdout
    assert len([*(project.root / "reports").glob("2*")]) == 1
    assert project.ledger.count("### Attempt") == 1
    assert len([*(project.root / "reports/manifests").iterdir()]) == 2


def test_two_runs_in_one_second_get_two_folders(project):
    project.write_items("id: C4.D3, command: 'true', log: a", "id: C4.D1, command: 'true', log: b")
    for id in ("C4.D3", "C4.D1"):
        project.doit(f"evidence:{id}", SOURCE_DATE_EPOCH="1760936700")
    assert sorted(path.name for path in (project.root / "reports").glob("2*")) == [
        "2025-10-20T050500Z", "2025-10-20T050501Z",
    ]  # fmt: skip
    assert project.ledger.count(": 2025-10-20T05:05:00Z, ADR-003") == 2


def test_a_plan_that_changed_meanwhile_is_left_alone(project):
    project.write_items("id: C4.D3, command: echo mine >> plan.md, log: t")
    ledger = (project.root / "docs/fix_plan.md").read_bytes()
    done = project.doit("evidence")
    project.assert_one_line(done, 1, "plan.md: was changed while the items ran")
    assert (project.root / "plan.md").read_bytes() == project.PLAN.encode() + b"mine\n"
    assert (project.root / "docs/fix_plan.md").read_bytes() == ledger
    assert not [*project.root.glob("reports/2*")]
    assert "the result of t is not published yet" in project.doit("why", "evidence").stdout
    assert project.doit("evidence").returncode == 0
    assert project.plan.endswith("\xe9mine\n")  # it was not run again
    assert "[x] **C4.D3" in project.plan


def test_a_report_of_doit_s_own_frames_a_run_too(project):
    project.write_items("id: C4.D3, command: 'true', log: a")
    done = project.doit("-r", "zero", "evidence")
    assert done.returncode == 0, done.stderr
    assert "[x] **C4.D3" in project.plan
    project.edit("plan.md", "[x] **C4.D3", "**C4.D3")
    project.assert_refused(2, "row `C4.D3` has no state", arguments=("-r", "zero", "evidence"))


def test_the_command_line_says_why(project, ours):
    done = ours(project.root, "why", "evidence:C4.D1")
    assert " ".join(done.stdout.split()) == "evidence:C4.D1 stale pytest_a was not run yet"


def test_evidence_that_stands_alone_needs_one_line_and_no_task_names(project):
    project.write("dodo.py", "from ptycho_tasks.tasks import DOIT_CONFIG, task_evidence\n")
    project.write_items("id: C4.D3, command: 'true', log: a")
    assert project.run_apart("why").stdout.startswith("evidence  stale\n")
    assert project.doit("dry-run").stdout.startswith(".  evidence  (")
    assert project.run_apart().returncode == 0
    assert "[x] **C4.D3" in project.plan
    assert project.doit("dry-run").stdout == "nothing would run: all is up to date\n"


def test_without_evidence_there_is_no_task(built_project, doit):
    assert "evidence" not in doit(built_project, "list", "--all").stdout


def test_doing_nothing_reads_no_records_and_needs_no_msgspec(built_project):
    with (built_project / "ptycho.yaml").open("a") as file:
        file.write("evidence: {initiative: i, phase: p, plan: p.md, ledger: l.md,"
                   " items: [{id: A.1, command: 'true', log: a, depends: [infer]}]}\n")  # fmt: skip
    script = "import sys\nfrom doit.doit_cmd import DoitMain\n"
    script += "assert DoitMain().run([]) == 0\nprint(*sys.modules)"
    # The first run reads the changed ptycho.yaml, and keeps what it holds.
    first, second = (
        run_command([sys.executable, "-c", script], cwd=built_project).stdout.split()
        for _ in range(2)
    )
    assert "ptycho_tasks.evidence.tasks" in second
    assert "msgspec" in first
    assert "msgspec" not in second


@pytest.mark.parametrize("jobs", [(), ("-n", "2")], ids=["alone", "parallel"])
def test_an_item_that_removes_our_files_costs_the_others_nothing(project, jobs):
    project.write_items(
        "id: C4.D1, command: echo one, log: one",
        # Beside items that write, `rm` may find a folder full again, and fails then.
        "id: C4.D2, command: until rm -rf .ptycho; do sleep 0.01; done, log: two",
        "id: C4.D3, command: echo three, log: three",
    )
    run = project.run_apart if jobs else project.doit
    done = run(*jobs, "evidence")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in project.report.glob("*.log")} == {
        "one_green.log", "two_green.log", "three_green.log",
    }  # fmt: skip
    again = project.doit("evidence")
    assert again.returncode == 0
    assert again.stdout.count("still good") == 3


def test_what_names_hold_reaches_neither_terminal_nor_report_raw(project):
    strange = "in/new\nline\x1b[31m\u202e`.txt", os.fsdecode(b"in/\xff.txt")
    (project.root / "in").mkdir()
    for name in strange:
        (project.root / name).write_text("x")
    project.write_items(
        r'id: C4.D3, command: "echo \u202e\e[31m >/dev/null", log: a, depends: [in]'
    )
    assert project.doit("evidence").returncode == 0
    for name in strange:
        (project.root / name).write_text("y")
    texts = [project.doit(word, "evidence").stdout for word in ("why", "dry-run")]
    texts += [project.doit("list", "--all").stdout]
    texts += [path.read_text() for path in project.report.glob("*.md")]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n")), ascii(text)
    assert r"in/new\nline\x1b[31m\u202e" in texts[0]
