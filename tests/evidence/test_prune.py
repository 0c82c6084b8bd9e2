"""Old reports."""

from __future__ import annotations

import pytest

from ptycho_tasks.evidence.prune import list_old_reports, remove_reports


@pytest.fixture
def aged(small_proved):
    """A project with reports of 12 and 15 h, that rows stand on, of 13 and 14 h, and a note."""
    small = small_proved
    for hour in range(1, 4):
        small.run("one", hours=hour)
        small.publish(hours=hour)
    (small.root / "reports/2026-01-01T120000Z/p/notes.md").write_text("mine\n")
    return small


def list_hours(small, keep):
    return [path.name[11:13] for path in list_old_reports(small.evidence, keep)]


def test_the_newest_reports_of_each_item_stay(aged):
    assert [list_hours(aged, keep) for keep in range(4)] == [["13", "14"], ["13", "14"], ["13"], []]
    aged.plan += "see 2026-01-01T130000Z\n"
    assert list_hours(aged, 0) == ["14"]


def test_what_the_ledger_points_to_keeps_its_summary(aged, ours):
    listed = ours(aged.root, "evidence", "prune", "--keep", "2")
    report = "reports/2026-01-01T130000Z"
    assert listed.stdout == (
        f"would remove the logs of {report}, whose summary stays for the ledger\n"
        "--yes removes them\n"
    )
    assert aged.problems() == []
    assert ours(aged.root, "evidence", "prune", "--keep=2", "--yes").returncode == 0
    assert sorted(path.name for path in (aged.root / report / "p").iterdir()) == [
        "plan_updates.md", "pruned.txt", "summary.md",
    ]  # fmt: skip
    assert aged.problems() == []
    assert list_hours(aged, 2) == []
    (aged.root / "reports/2026-01-01T140000Z/p/one_green.log").unlink()
    assert "one_green.log is missing" in aged.problems()[0]


def test_a_report_that_nothing_points_to_is_removed(aged):
    aged.ledger.write_text("# Ledger\n")
    remove_reports(aged.evidence, list_old_reports(aged.evidence, 0))
    hours = sorted(path.name[11:13] for path in (aged.root / "reports").glob("2*"))
    assert hours == ["12", "15"]
