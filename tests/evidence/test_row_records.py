"""The rows of the plan as a report shows them."""

from __future__ import annotations

from ptycho_tasks.evidence.row_records import list_row_records

EVIDENCE = """\
initiative: I
phase: p
plan: plan.md
ledger: ledger.md
items:
  - {id: A1, command: echo <b>, log: a.log}
"""


def write(root, plan):
    (root / "evidence.yaml").write_text(EVIDENCE)
    (root / "ledger.md").write_text("# Ledger\n")
    (root / "plan.md").write_text(plan)


def test_a_row_without_evidence_has_no_log(tmp_path):
    write(tmp_path, "- [ ] **A1:** what <b>\n")
    (row,) = list_row_records(tmp_path)
    assert (row["id"], row["state"], row["evidence"]) == ("A1", "open", "none")
    assert "<b>" in row["text"]
    assert (row["logs"], row["problem"]) == ([], None)
    assert "age_s" not in row


def test_a_plan_that_cannot_be_read_is_one_problem(tmp_path):
    write(tmp_path, "nothing\n")
    (row,) = list_row_records(tmp_path)
    assert "A1" in row["problem"]
    assert "\n" not in row["problem"]


def test_a_project_without_evidence_has_no_rows(tmp_path):
    assert list_row_records(tmp_path) == []


def test_a_row_has_the_last_run_of_its_items_and_all_attempts(project):
    project.write("evidence.yaml", EVIDENCE.replace("echo <b>", "test -e ready"))
    project.write("plan.md", "- [ ] **A1:** what\n")
    project.write("ledger.md", "# Ledger\n")
    assert project.doit("evidence").returncode == 1
    project.write("ready", "")
    assert project.doit("evidence").returncode == 0
    (row,) = list_row_records(project.root)
    (run,) = row["runs"]
    assert (run["item"], run["outcome"], run["counts"]) == ("a", "green", None)
    assert row["attempt_count"] == 2
    newest, oldest = row["attempts"]
    assert newest["outcome"].startswith("green, ")
    assert oldest["outcome"].startswith("red, ")
    assert oldest["outcome"].endswith("exit status 1")
    assert oldest["problem"]
    assert oldest["log"].endswith("/p/a_red.log")


def test_a_run_says_what_was_expected_where_that_is_not_green(project):
    red = EVIDENCE.replace("echo <b>, log: a.log", "exit 3, log: a.log, expect: {exit: 3}")
    project.write("evidence.yaml", red)
    project.write("plan.md", "- [ ] **A1:** what\n")
    project.write("ledger.md", "# Ledger\n")
    assert project.doit("evidence").returncode == 0
    (row,) = list_row_records(project.root)
    assert (row["runs"][0]["outcome"], row["runs"][0]["expected"]) == ("green", "exit 3")
