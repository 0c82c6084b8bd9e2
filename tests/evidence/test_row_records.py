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
