"""Old reports."""

from __future__ import annotations

from ptycho_tasks.evidence.prune import list_old_reports, remove_reports


def test_only_old_reports_that_nothing_points_to_are_removed(small_proved, ours):
    small = small_proved
    reports = small.root / "reports"
    for hour in range(1, 4):
        small.run("one", hours=hour)
        small.publish(hours=hour)
    small.ledger.write_text("# Ledger\n")  # else it points to each of them
    small.run("two", hours=3)
    small.publish(hours=3)
    small.ledger.write_text("# Ledger\n")
    (reports / "2026-01-01T120000Z/p/notes.md").write_text("mine\n")
    assert [path.name for path in list_old_reports(small.evidence, 0)] == [
        "2026-01-01T130000Z", "2026-01-01T140000Z",
    ]  # fmt: skip
    assert [path.name for path in list_old_reports(small.evidence, 3)] == ["2026-01-01T130000Z"]
    listed = ours(small.root, "evidence", "prune", "--keep", "3")
    assert listed.stdout == "would remove reports/2026-01-01T130000Z\n--yes removes them\n"
    assert len([*reports.glob("2*")]) == 5
    small.ledger.write_text("see 2026-01-01T130000Z\n")
    assert list_old_reports(small.evidence, 3) == []
    remove_reports(small.evidence, list_old_reports(small.evidence, 0))
    assert sorted(path.name[11:13] for path in reports.glob("2*")) == ["12", "13", "15", "15"]
    assert ours(small.root, "evidence", "prune", "--keep=0", "--yes").returncode == 0
