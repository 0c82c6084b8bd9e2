"""What a plan stands on: what is proved, went stale, or was altered."""

from __future__ import annotations

import pytest


def test_the_checklist_says_state_outcome_age_and_staleness(proved):
    lines = proved.lines(stopped(timedelta(hours=5)))
    assert (lines["a.1"].state, lines["a.1"].outcome, lines["a.1"].age) == ("done", "green", "5 h")
    assert (lines["a.1"].evidence, lines["a.3"].evidence) == ("valid", "none")
    (proved.root / "data.txt").write_text("other\n")
    line = proved.lines()["a.1"]
    assert (line.evidence, line.outcome) == ("stale", "green")
    assert line.reason.startswith("one is stale: data.txt changed: sha256 ")


def test_a_done_row_without_evidence_does_not_pass(small):
    assert project.problems() == [
        "plan.md:3: a.3 is marked done, but no item in evidence.yaml proves it"
    ]
    (project.root / "plan.md").write_text(PLAN.replace("[ ]", "[x]"))
    assert len(project.problems()) == 3
    assert (
        "plan.md:1: a.1 is marked done, but nothing says that one was run: "
        "reports/manifests/a.1.json is not there"
    ) in project.problems()


def test_what_people_mark_by_hand_passes(proved):
    with (proved.root / "evidence.yaml").open("a") as file:
        file.write("  - {id: a.3, by_hand: look at it}\n")
    (proved.root / "plan.md").write_text(proved.plan.replace("[ ] a.3", "[x] a.3"))
    assert proved.problems() == []


def the_log(project: Project) -> Path:
    return next((project.root / "reports").glob("2*/p/one_green.log"))


def altered(small):
    with the_log(small).open("a") as log:
        log.write("more\n")


def elsewhere(small):
    path = project.root / "reports/manifests/a.1.json"
    shutil.copy(the_log(small), project.root / "one.log")
    manifest = json.loads(path.read_text())
    manifest["items"][0]["log"] = "one.log"
    path.write_text(json.dumps(manifest))


def linked(small):
    log = the_log(small)
    log.rename(project.root / "one.log")
    log.symlink_to(project.root / "one.log")


BROKEN = {
    "altered": (altered, "one_green.log was altered: sha256 "),
    "missing": (lambda project: the_log(small).unlink(), "one_green.log is missing"),
    "elsewhere": (elsewhere, "one.log lies outside the report folders of reports"),
    "a link": (linked, "one_green.log lies outside the report folders of reports"),
}


@pytest.mark.parametrize(("damage", "expected"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("state", ["x", " "], ids=["done", "open"])
def test_a_log_that_is_not_as_it_was_left_does_not_pass(proved, damage, expected, state):
    (proved.root / "plan.md").write_text(proved.plan.replace("[x] a.1", f"[{state}] a.1"))
    damage(proved)
    (problem,) = proved.problems()
    assert expected in problem
    assert problem.startswith("plan.md:1: a.1")


def test_a_log_of_a_row_that_is_gone_is_looked_at_too(proved):
    altered(proved)
    (proved.root / "plan.md").write_text(proved.plan.replace("a.1: first", "a.4: first"))
    edit = (proved.root / "evidence.yaml").read_text().replace("id: a.1", "id: a.4")
    (proved.root / "evidence.yaml").write_text(edit)
    assert any(p.startswith("a.1: ") and "was altered" in p for p in proved.problems())


def test_rows_whose_evidence_went_stale_can_be_reopened(proved):
    before = proved.plan
    (proved.root / "data.txt").write_text("other\n")
    assert [p.partition(" is stale")[0] for p in proved.problems()] == [
        "plan.md:1: a.1 is marked done, but one"
    ]
    assert reopen_rows(proved.evidence, list(proved.lines().values())) == ["a.1"]
    assert proved.plan == before.replace("[x] a.1", "[ ] a.1")
    assert proved.problems() == []


def test_a_plan_without_a_row_of_the_evidence_cannot_be_checked(proved):
    (proved.root / "plan.md").write_text("nothing\n")
    with pytest.raises(PlanError, match=r"has no row `a.1`"):
        proved.problems()


def test_a_manifest_that_is_missing_does_not_pass(proved):
    (proved.root / "reports/manifests/a.1.json").unlink()
    assert proved.problems() == [
        "plan.md:1: a.1 is marked done, but nothing says that one was run: "
        "reports/manifests/a.1.json is not there"
    ]


def earlier_log(small):
    return project.root / "reports/2026-01-01T120000Z/p/one_green.log"


def earlier_report(small):
    shutil.rmtree(earlier_log(small).parent.parent)


EARLIER = {
    "altered": (lambda p: earlier_log(p).write_text("fine\n"), "one_green.log was altered: sha256"),
    "missing": (lambda p: earlier_log(p).unlink(), "one_green.log is missing"),
    "all of it": (earlier_report, "ledger.md: the report reports/2026-01-01T120000Z/p lacks its"),
}


@pytest.mark.parametrize(("damage", "expected"), EARLIER.values(), ids=EARLIER)
def test_the_logs_of_earlier_runs_are_looked_at_too(proved, damage, expected):
    proved.run()
    proved.publish(stopped(timedelta(hours=1)))
    assert proved.problems() == []
    damage(proved)
    (problem,) = proved.problems()
    assert expected in problem


def test_reports_of_other_projects_in_a_ledger_are_theirs(tmp_path):
    (tmp_path / "ledger.md").write_text(LEDGER)
    ours, theirs = (Project(tmp_path / name, "../ledger.md") for name in "ab")
    for project in (ours, theirs):
        (project.root / "plan.md").write_text(PLAN.replace("[x]", "[ ]"))
        project.run("one")
        project.publish()
    shutil.rmtree(theirs.root / "reports")
    assert ours.problems() == []
    shutil.rmtree(ours.root / "reports")
    assert any("lacks its summary.md" in problem for problem in ours.problems())


def test_the_commands_show_and_check(proved):
    table = ptycho_tasks("plan", "show", cwd=proved.root).stdout.splitlines()
    assert table[0].split() == ["row", "state", "last", "age", "evidence", "what"]
    assert table[1].split()[:3] == ["a.1", "done", "green"]
    shown = json.loads(ptycho_tasks("plan", "show", "--json", cwd=proved.root).stdout)
    assert [(line["id"], line["evidence"]) for line in shown] == [
        ("a.1", "valid"), ("a.2", "valid"), ("a.3", "none"),
    ]  # fmt: skip
    done = ptycho_tasks("plan", "check", cwd=proved.root)
    assert (done.returncode, done.stdout) == (0, "plan.md: 2 of 3 rows are done, and proved\n")
    altered(proved)
    done = ptycho_tasks("plan", "check", cwd=proved.root)
    assert done.returncode == 1
    assert done.stderr.startswith("error: plan.md:1: a.1 is marked done, but reports/2026-")
    done = ptycho_tasks("plan", "check", "--reopen", cwd=proved.root)
    assert (done.returncode, done.stdout) == (1, "reopened a.1\n")
    assert ptycho_tasks("plan", "check", cwd=proved.root.parent).returncode == 2


def test_only_files_in_a_report_folder_are_in_one(small):
    inside = project.root / "reports/2026-01-01T120000Z/p/x.log"
    assert is_in_report(project.evidence, inside)
    for other in (inside.parent, inside.parent / "a/x.log", project.root / "reports/now/p/x.log"):
        assert not is_in_report(project.evidence, other)
