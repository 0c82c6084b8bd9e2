"""Old reports."""

from __future__ import annotations


def test_only_old_reports_that_nothing_points_to_are_removed(proved):
    for hour in range(1, 4):
        proved.run(clock=stopped(timedelta(hours=hour)))
        proved.publish(stopped(timedelta(hours=hour)))
    reports = proved.root / "reports"
    proved.ledger.write_text(LEDGER)  # else it points to each of them
    (reports / "2026-01-01T120000Z/p/notes.md").write_text("mine\n")
    assert [path.name for path in list_old_reports(proved.evidence, 0)] == [
        "2026-01-01T130000Z", "2026-01-01T140000Z",
    ]  # fmt: skip
    assert [path.name for path in list_old_reports(proved.evidence, 2)] == ["2026-01-01T130000Z"]
    listed = ptycho_tasks("evidence", "prune", "--keep", "2", cwd=proved.root)
    assert listed.stdout == "would remove reports/2026-01-01T130000Z\n--yes removes them\n"
    assert len([*reports.glob("2*")]) == 4
    proved.ledger.write_text("see 2026-01-01T130000Z\n")
    assert list_old_reports(proved.evidence, 2) == []
    remove_reports(proved.evidence, list_old_reports(proved.evidence, 0))
    assert sorted(path.name[11:13] for path in reports.glob("2*")) == ["12", "13", "15"]
    assert ptycho_tasks("evidence", "prune", "--keep=0", "--yes", cwd=proved.root).returncode == 0
