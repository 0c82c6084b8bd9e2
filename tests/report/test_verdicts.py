"""What is said of tasks, alike in the table and in the graph."""

from __future__ import annotations

import pytest

from ptycho_tasks.builds.failures import note_failure
from ptycho_tasks.builds.reasons import Reason
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.builds.state import State
from ptycho_tasks.builds.why import Verdict
from ptycho_tasks.report.verdicts import Verdicts, describe_reason


def make_row(name, inputs=(), outputs=()):
    paths = {f"input {n}": path for n, path in enumerate(inputs)}
    return Row(name, name, "", "", "", paths, [*outputs], "", "{}", (), {}, {})


SOURCE = make_row("source", outputs=["s"])
FIXTURE = make_row("fixture", ["s"], ["f"])
TRAIN = make_row("train", ["f"], ["w"])
ROWS = (SOURCE, FIXTURE, TRAIN)
WAITS = {
    name: Reason("upstream", name, f"{name} would run before") for name in ("source", "fixture")
}


def judge(tmp_path, **verdicts):
    """Verdicts, of tasks of which some are `(status, reasons)`, and the others up to date."""
    found = {row.name: Verdict(row.name, "up to date", ()) for row in ROWS}
    found |= {name: Verdict(name, status, reasons) for name, (status, *reasons) in verdicts.items()}
    state = State(str(tmp_path / "state"))
    state.running = True
    return Verdicts(found, state, ROWS), state


@pytest.mark.parametrize(
    ("status", "is_there", "expected"),
    [
        ("up to date", True, "fresh"),
        ("stale", True, "stale"),
        ("depends", True, "stale"),
        ("stored", True, "stored"),
        ("stored", False, "stored"),
        ("ignored", True, "ignored"),
        ("stale", False, "not built"),
        ("depends", False, "not built"),
    ],
)
def test_a_state_goes_by_what_is_there_and_what_a_run_would_do(
    tmp_path, status, is_there, expected
):
    verdicts, _ = judge(tmp_path, train=(status,))
    assert verdicts.describe(TRAIN, is_there=is_there).state == expected


def test_what_comes_after_a_failure_has_failed(tmp_path):
    verdicts, state = judge(tmp_path, fixture=("stale",), train=("depends", WAITS["fixture"]))
    note_failure(state, FIXTURE, "no light")
    assert [verdicts.describe(row, is_there=True) for row in ROWS] == [
        ("fresh", []),
        ("failed", ["fixture failed: no light"]),
        ("failed", ["fixture failed: no light"]),
    ]


def test_a_check_that_failed_is_the_one_cause(tmp_path):
    new = Reason("new", "check", "it was not built yet")
    checked = make_row("infer", ["w"])._replace(after="check")
    rows = [*ROWS, make_row("check"), checked]
    found = {row.name: Verdict(row.name, "stale", (new,)) for row in rows}
    state = State(str(tmp_path / "state"))
    state.running = True
    note_failure(state, rows[3], "no light")
    verdicts = Verdicts(found, state, rows)
    assert verdicts.describe(checked, is_there=False) == ("failed", ["check failed: no light"])


def test_of_what_was_not_built_yet_that_stands_once(tmp_path):
    new = Reason("new", "", "it was not built yet")
    before = (new, WAITS["fixture"])
    verdicts, _ = judge(tmp_path, fixture=("stale", new), train=("stale", *before))
    assert verdicts.describe(TRAIN, is_there=True).reasons == ["it was not built yet"]
    assert verdicts.describe(TRAIN, is_there=False) == ("not built", [])
    verdicts, _ = judge(tmp_path, fixture=("stale", new), train=("depends", WAITS["fixture"]))
    assert verdicts.describe(TRAIN, is_there=True).reasons == ["it was not built yet (fixture)"]
    assert verdicts.describe(TRAIN, is_there=False) == ("not built", [])


def test_reasons_are_those_of_the_tasks_that_have_to_run_before(tmp_path):
    setting = Reason("setting", "fixture.subset_size", "fixture.subset_size 25 -> 20")
    code = Reason("code", "a.py", "a.py changed")
    verdicts, _ = judge(
        tmp_path,
        source=("stale", code),
        fixture=("stale", setting, WAITS["source"]),
        train=("depends", code, WAITS["fixture"]),
    )
    assert verdicts.describe(TRAIN, is_there=True).reasons == [
        "fixture.subset_size 25 -> 20 (fixture)",
        "a.py changed",
        "a.py changed (source)",
    ]


def test_reasons_say_nothing_that_time_alone_changes():
    stored = Reason(
        "stored", "infer", "the store has it, made 1 minute ago", new="2026-01-01T00:00Z"
    )
    assert describe_reason(stored) == "the store has it, made 2026-01-01T00:00Z"
    assert describe_reason(Reason("stored", "infer", "just now")) == "the store has it"


def test_damage_is_called_so():
    text = "a.h5 changed: sha256 0 -> 1"
    damaged = Reason("output", "a.h5", text, "0" * 64, "1" * 64)
    assert describe_reason(damaged).startswith(
        "a.h5 is damaged, or was changed by hand: sha256 0000"
    )
    missing = Reason("output", "a.h5", "a.h5 is missing", "0" * 64, None)
    assert describe_reason(missing) == "a.h5 is missing"
