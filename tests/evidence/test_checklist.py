"""What a plan stands on: what is small_proved, went stale, or was altered."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import pytest

from ptycho_tasks.errors import PlanError
from ptycho_tasks.evidence.checklist import reopen_rows
from ptycho_tasks.evidence.evaluation import list_children
from ptycho_tasks.evidence.plan import Plan
from ptycho_tasks.evidence.staleness import is_in_report


def test_the_checklist_says_state_outcome_age_and_staleness(small_proved):
    rows = small_proved.check(hours=5)
    assert (rows["a.1"].state, rows["a.1"].outcome, rows["a.1"].age) == ("done", "green", "5 h")
    assert (rows["a.1"].evidence, rows["a.3"].evidence) == ("valid", "none")
    (small_proved.root / "data.txt").write_text("other\n")
    row = small_proved.check()["a.1"]
    assert (row.evidence, row.outcome) == ("stale", "green")
    assert row.reason.startswith("one is stale: data.txt changed: sha256 ")


def test_a_done_row_without_evidence_does_not_pass(small):
    assert small.problems() == [
        "plan.md:3: a.3 is marked done, but no item in evidence.yaml proves it"
    ]
    small.plan = small.plan.replace("[ ]", "[x]")
    assert len(small.problems()) == 3
    assert (
        "plan.md:1: a.1 is marked done, but nothing says that one was run: "
        "reports/manifests/a.1.json is not there"
    ) in small.problems()


@pytest.mark.parametrize(
    ("ids", "children"),
    [
        (["A", "A1", "A2", "B1"], ["A1", "A2"]),
        (["A", "A.1", "A.2", "A1", "A1.1"], ["A.1", "A.2"]),
        (["A", "A-1", "AB", "A.1.2"], []),
        (["A", "Aa", "Ab"], ["Aa", "Ab"]),
    ],
)
def test_a_row_sums_up_those_with_a_point_or_else_those_with_a_number(ids, children):
    plan = Plan("".join(f"- [ ] **{id}:** row\n" for id in ids).encode(), "plan.md")
    assert [row.id for row in list_children("A", plan.rows)] == children


def test_what_people_mark_by_hand_passes(small_proved):
    with (small_proved.root / "evidence.yaml").open("a") as file:
        file.write("  - {id: a.3, by_hand: look at it}\n")
    small_proved.plan = small_proved.plan.replace("[ ] a.3", "[x] a.3")
    assert small_proved.problems() == []


def find_log(small):
    return next((small.root / "reports").glob("2*/p/one_green.log"))


def alter(small):
    with find_log(small).open("a") as log:
        log.write("more\n")


def move(small):
    path = small.root / "reports/manifests/a.1.json"
    shutil.copy(find_log(small), small.root / "one.log")
    manifest = json.loads(path.read_text())
    manifest["items"][0]["log"] = "one.log"
    path.write_text(json.dumps(manifest))


def link(small):
    log = find_log(small)
    log.rename(small.root / "one.log")
    log.symlink_to(small.root / "one.log")


BROKEN = {
    "altered": (alter, "one_green.log was altered: sha256 "),
    "missing": (lambda small: find_log(small).unlink(), "one_green.log is missing"),
    "elsewhere": (move, "one.log lies outside the report folders of reports"),
    "a link": (link, "one_green.log lies outside the report folders of reports"),
}


@pytest.mark.parametrize(("damage", "expected"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("state", ["x", " "], ids=["done", "open"])
def test_a_log_that_is_not_as_it_was_left_does_not_pass(small_proved, damage, expected, state):
    small_proved.plan = small_proved.plan.replace("[x] a.1", f"[{state}] a.1")
    damage(small_proved)
    (problem,) = small_proved.problems()
    assert expected in problem
    assert problem.startswith("plan.md:1: a.1")


def test_a_log_of_a_row_that_is_gone_is_looked_at_too(small_proved):
    alter(small_proved)
    small_proved.plan = small_proved.plan.replace("a.1: first", "a.4: first")
    small_proved.edit_config("id: a.1", "id: a.4")
    assert any(p.startswith("a.1: ") and "was altered" in p for p in small_proved.problems())


def test_rows_whose_evidence_went_stale_can_be_reopened(small_proved):
    before = small_proved.plan
    (small_proved.root / "data.txt").write_text("other\n")
    assert [p.partition(" is stale")[0] for p in small_proved.problems()] == [
        "plan.md:1: a.1 is marked done, but one"
    ]
    assert reopen_rows(small_proved.evidence, list(small_proved.check().values())) == ["a.1"]
    assert small_proved.plan == before.replace("[x] a.1", "[ ] a.1")
    assert small_proved.problems() == []


def test_a_plan_without_a_row_of_the_evidence_cannot_be_checked(small_proved):
    small_proved.plan = "nothing\n"
    with pytest.raises(PlanError, match=r"has no row `a.1`"):
        small_proved.problems()


def test_a_manifest_that_is_missing_does_not_pass(small_proved):
    (small_proved.root / "reports/manifests/a.1.json").unlink()
    assert small_proved.problems() == [
        "plan.md:1: a.1 is marked done, but nothing says that one was run: "
        "reports/manifests/a.1.json is not there"
    ]


def find_earlier_log(small):
    return small.root / "reports/2026-01-01T120000Z/p/one_green.log"


def remove_earlier_report(small):
    shutil.rmtree(find_earlier_log(small).parent.parent)


EARLIER = {
    "altered": (
        lambda p: find_earlier_log(p).write_text("fine\n"),
        "one_green.log was altered: sha256",
    ),
    "missing": (lambda p: find_earlier_log(p).unlink(), "one_green.log is missing"),
    "all of it": (
        remove_earlier_report,
        "ledger.md: the report reports/2026-01-01T120000Z/p lacks its",
    ),
}


@pytest.mark.parametrize(("damage", "expected"), EARLIER.values(), ids=EARLIER)
def test_the_logs_of_earlier_runs_are_looked_at_too(small_proved, damage, expected):
    small_proved.run(hours=1)
    small_proved.publish(hours=1)
    assert small_proved.problems() == []
    damage(small_proved)
    (problem,) = small_proved.problems()
    assert expected in problem


def test_reports_of_other_projects_in_a_ledger_are_theirs(make_small):
    first, second = (make_small(name, "../ledger.md") for name in "ab")
    for small in (first, second):
        small.plan = small.plan.replace("[x]", "[ ]")
        small.run("one")
        small.publish()
    shutil.rmtree(second.root / "reports")
    assert first.problems() == []
    shutil.rmtree(first.root / "reports")
    assert any("lacks its summary.md" in problem for problem in first.problems())


def test_only_files_in_a_report_folder_are_in_one(small):
    inside = small.root / "reports/2026-01-01T120000Z/p/x.log"
    assert is_in_report(small.evidence, inside)
    for other in (inside.parent, inside.parent / "a/x.log", small.root / "reports/now/p/x.log"):
        assert not is_in_report(small.evidence, other)


def test_the_commands_show_and_check(small_proved, ours):
    root = small_proved.root
    table = ours(root, "plan", "show").stdout.splitlines()
    assert table[0].split() == ["row", "state", "last", "age", "evidence", "what"]
    assert table[1].split()[:3] == ["a.1", "done", "green"]
    rows = json.loads(ours(root, "plan", "show", "--json").stdout)
    assert [(row["id"], row["evidence"]) for row in rows] == [
        ("a.1", "valid"), ("a.2", "valid"), ("a.3", "none"),
    ]  # fmt: skip
    assert [*rows[0]] == [
        "id", "line", "state", "text", "evidence", "reason", "outcome", "time", "age_s", "logs",
    ]  # fmt: skip
    done = ours(root, "plan", "check")
    assert (done.returncode, done.stdout) == (0, "plan.md: 2 of 3 rows are done, and proved\n")
    alter(small_proved)
    done = ours(root, "plan", "check")
    assert done.returncode == 1
    assert done.stderr.startswith("error: plan.md:1: a.1 is marked done, but reports/2026-")
    done = ours(root, "plan", "check", "--reopen")
    assert (done.returncode, done.stdout) == (1, "reopened a.1\n")
    assert ours(root.parent, "plan", "check").returncode == 2


def test_a_row_of_others_is_summed_up(small):
    small.plan = "- [ ] a: both\n| a.1 | first | [ ] | |\n| a.2 | second | [ ] | |\n"
    (small.root / "ready").touch()
    small.run("one")
    small.publish()
    assert "- [ ] a: both\n" in small.plan
    small.run("two", hours=1)
    small.publish(hours=1)
    note = "(evidence 2026-01-01T13:00:00Z green: a.1, a.2)"
    assert small.plan.startswith(f"- [x] a: both {note}\n")
    assert (small.check()["a"].evidence, small.problems()) == ("valid", [])
    small.edit_config("echo fine", "echo finer")
    assert small.check()["a"].reason.startswith("a.1: one is stale: command")
    (small.root / "ready").unlink()
    small.run("two", hours=2)
    small.publish(hours=2)
    assert small.plan.startswith("- [P] a: both (evidence 2026-01-01T14:00:00Z red: a.2)\n")


def test_rows_that_were_done_before_are_adopted(small_proved, ours):
    small = small_proved
    small.plan = small.plan.replace("[ ] a.3", "[x] a.3") + "- [x] Read the book\n- [ ] b.1: no\n"
    assert [problem.split(": ")[1] for problem in small.problems()] == [
        "a.3 is marked done, but no item in evidence.yaml proves it",
        "read-the-book is marked done, but no item in evidence.yaml proves it",
    ]
    refused = ours(small.root, "plan", "adopt", "--by", "Ada", "b.1")
    assert "row `b.1` is open, and not to be adopted" in refused.stderr
    refused = ours(small.root, "plan", "adopt", "--by", " ")
    assert refused.stderr == "error: --by is empty; say who knows that the rows are done\n"
    done = ours(small.root, "plan", "adopt", "--by", "Ada (PI)")
    assert done.stdout == "adopted a.3\nadopted read-the-book\n"
    assert small.problems() == []
    assert "Z by Ada [PI])\n" in small.plan
    assert small.check()["read-the-book"].evidence == "by hand"
    assert ours(small.root, "plan", "adopt", "--by", "Ada").stdout == "nothing to adopt\n"


def test_a_badge_says_how_many_rows_are_proved(small_proved, ours):
    small = small_proved

    def draw(*options):
        code = ours(small.root, "plan", "check", "--badge", "badge.svg", *options).returncode
        root = ElementTree.fromstring((small.root / "badge.svg").read_text())
        return code, root.attrib["aria-label"]

    assert draw() == (0, "evidence: 2 of 3 proved")
    small.plan = small.plan.replace("[ ] a.3", "[x] a.3")
    assert draw() == (1, "evidence: 1 problem")
    assert ours(small.root, "plan", "adopt", "--by", "Ada").returncode == 0
    assert draw("--logs") == (0, "evidence: 3 of 3 proved")
    before = (small.root / "plan.md").read_bytes()
    refused = ours(small.root, "plan", "check", "--badge", "plan.md")
    assert refused.returncode == 2
    assert refused.stderr == "error: plan.md is there and is no badge; choose another path\n"
    assert (small.root / "plan.md").read_bytes() == before
    refused = ours(small.root, "plan", "check", "--badge", "plan.md/badge.svg")
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1
