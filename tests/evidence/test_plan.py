"""A plan's rows: which are found, and that an edit changes nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.errors import PlanError
from ptycho_tasks.evidence.plan import BLOCKED, DONE, OPEN, Change, Plan, format_note
from ptycho_tasks.evidence.summaries import shorten

PLAN = r"""# Plan

| ID | Task | State | How |
|:---|---|:-:|---|
| C4.D1 | Run targeted CLI tests | [ ] | guidance, may hold \| escaped pipes and `[x]` in code |
| **C4.D2** | Run more \\| [x] | none |
| `C4.E` | no state | | see C4.D1 |

- [ ] **C4.D:** All CLI tests GREEN
  * [P] C4.F: nested
1. [X] C4.G1 a numbered one
- **C4.H** without a state
- [ ] Do as you like
- plain words: not a row?

> - [x] quoted.1: in a quote

```
| C4.D1 | an example | [x] | |
- [ ] **C4.Z:** another
```
"""


def rows(text: str) -> list[tuple[str, str | None]]:
    return [(row.id, row.state) for row in Plan(text.encode(), "plan.md").rows]


def test_the_rows_of_a_plan_are_found():
    assert rows(PLAN) == [
        ("ID", None),
        ("C4.D1", " "),
        ("C4.D2", "x"),
        ("C4.E", None),
        ("C4.D", " "),
        ("C4.F", "P"),
        ("C4.G1", "x"),
        ("C4.H", None),
        ("do-as-you-like", " "),
        ("quoted.1", "x"),
    ]


def test_a_row_knows_its_line_and_text():
    plan = Plan(PLAN.encode(), "plan.md")
    assert (plan.row("C4.D1").line, plan.row("C4.D1").text) == (5, "Run targeted CLI tests")
    assert plan.row("C4.D").text == "All CLI tests GREEN"


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("C4.X", r"plan.md: has no row `C4.X`; rows: C4.D1, C4.D2, C4.D, C4.F"),
        ("C4.E", r"plan.md:7: row `C4.E` has no state; write `\[ \]` into it"),
        ("C4.Z", r"has no row `C4.Z`"),
    ],
)
def test_a_row_that_cannot_be_changed_is_refused(id, expected):
    with pytest.raises(PlanError, match=expected):
        Plan(PLAN.encode(), "plan.md").row(id)


def test_a_row_that_stands_twice_is_refused():
    text = PLAN + "- [ ] C4.F: again\n"
    with pytest.raises(PlanError, match=r"plan.md:22: row `C4.F` stands in line 10 already"):
        Plan(text.encode(), "plan.md").apply({"C4.F": Change(DONE, "")})


def test_an_edit_changes_the_marker_and_the_last_cell():
    pointer = format_note("2025-10-20T05:05:00Z", "green", "reports/a.log")
    plan = Plan(PLAN.encode(), "plan.md")
    text = plan.apply({"C4.D1": Change(DONE, pointer), "C4.F": Change(DONE, pointer)}).decode()
    assert text == PLAN.replace("tests | [ ] | guid", "tests | [x] | guid").replace(
        "in code |\n|", f"in code {pointer} |\n|"
    ).replace("[P] C4.F: nested", f"[x] C4.F: nested {pointer}")


def test_a_later_note_takes_the_place_of_an_earlier_one():
    plan = Plan(b"| a.1 | b | [ ] | |", "plan.md")
    for time, state in (("2025-10-20T05:05:00Z", BLOCKED), ("2026-01-01T00:00:00Z", DONE)):
        text = plan.apply({"a.1": Change(state, format_note(time, "green", "x.log"))})
        plan = Plan(text, "plan.md")
    assert text == b"| a.1 | b | [x] | (evidence 2026-01-01T00:00:00Z green: x.log) |"


WORDS = st.text(
    st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=30
) | st.sampled_from(
    ["| a | b |", "```", "~~~ x", "- [ ] x", "| `[x]` |", "\\|", "> ", "\t", "| Ü.1 | [ ] | ", "\r"]
)
LINES = st.lists(WORDS, max_size=6)
ROWS = st.sampled_from(
    [
        "| T.1 | text | [{}] | more{} |",
        "|T.1|[{}]|`[x]` \\|{}|  ",
        "| **T.1** | a \\| b | [{}] | [ ] | é\\\\ `|` | x{} |\r",
        "- [{}] **T.1:** words{}",
        "  3) [{}]\tT.1: words |{}  \r",
        "> - [{}] T.1{}",
    ]
)


@given(LINES, ROWS, LINES, st.sampled_from(" xXP"), st.sampled_from("xP "), st.booleans())
def test_no_other_byte_of_any_plan_changes(before, row, after, old, new, end):
    before = [line for line in before if "T.1" not in line]
    after = [line for line in after if "T.1" not in line]
    # A fence that is open where the row stands makes an example of it.
    before = [re.sub("[`~]", "'", line) for line in before]
    text = "\n".join([*before, row.format(old, ""), *after, *([""] if end else [])])
    plan = Plan(text.encode(), "plan.md")
    assert plan.apply({}) == text.encode()
    pointer = format_note("2026-01-01T00:00:00Z", "red", "r/x.log")
    got = plan.apply({"T.1": Change(new, pointer)})
    expected = "\n".join([*before, row.format(new, f" {pointer}"), *after, *([""] if end else [])])
    # A cell that ended at its pipe gets a blank after the note.
    assert got.decode() in (expected, expected.replace(f"{pointer}|", f"{pointer} |"))
    again = Plan(got, "plan.md")
    assert again.row("T.1").state == new
    assert again.apply({"T.1": Change(new, pointer)}) == got


@given(ROWS.filter(lambda row: row.count("{}") == 2), st.text(max_size=40) | st.just("a\\"))
def test_whatever_a_note_says_it_stays_one_note_in_its_cell(row, problem):
    pointer = format_note("2026-01-01T00:00:00Z", "red", f"r/x.log; {shorten(problem)}")
    plain = Plan(row.format(" ", "").encode(), "plan.md")
    plan = Plan(plain.apply({"T.1": Change(BLOCKED, pointer)}), "plan.md")
    assert [(row.id, row.state) for row in plan.rows] == [("T.1", BLOCKED)]
    assert plan.row("T.1").text == plain.row("T.1").text
    later = {"T.1": Change(DONE, format_note("2026-02-01T00:00:00Z", "green", "r/y.log"))}
    assert re.sub(rb" +\|", b" |", plan.apply(later)) == re.sub(rb" +\|", b" |", plain.apply(later))


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read_and_stay(content):
    assert Plan(content, "plan.md").apply({}) == content


@pytest.mark.parametrize("state", ["[D]", "[~]", "`[?]`", "[ x ]", "[]", "[done]"])
@pytest.mark.parametrize("line", ["| A.1 | text | {} | |", "- {} A.1: text"])
def test_a_state_that_is_none_is_not_skipped(line, state):
    plan = Plan(f"first\n{line.format(state)}\n".encode(), "plan.md")
    with pytest.raises(PlanError, match=r"plan\.md:2: row `A\.1` has the state"):
        plan.row("A.1")
    assert [row.line for row in plan.odd_rows] == [2]


FORMS = """\
| A.1 | no closing pipe | `[D]` | see [1]
| Write it down | [x] | |
- [~] **Step 1: Write the test.** Then go on
- [done] A.2: in a word
1. [ ] Read `a_b.py` well
| prose | in a table |
"""


def test_plans_are_read_as_people_write_them():
    states = (("D", DONE), ("~", BLOCKED), ("done", DONE))
    plan = Plan(FORMS.encode(), "plan.md", states)
    assert [(row.id, row.state) for row in plan.rows] == [
        ("A.1", DONE), ("write-it-down", DONE), ("step-1", BLOCKED), ("A.2", DONE),
        ("read-well", OPEN), ("prose", None),
    ]  # fmt: skip
    note = format_note("2026-01-01T00:00:00Z", "green", "x.log")
    changes = {"A.1": Change(DONE, note), "step-1": Change(DONE, note), "A.2": Change(BLOCKED)}
    assert plan.apply(changes).decode() == FORMS.replace("see [1]", f"see [1] {note}").replace(
        "[~]", "[x]"
    ).replace("go on", f"go on {note}").replace("[done] A", "[P] A")
    assert [row.line for row in Plan(FORMS.encode(), "plan.md").odd_rows] == [1, 3, 4]


SEEN_STATES = """\
| ID | What | State | Notes |
|---|---|---|---|
| A1 | as it should be | [ ] | |
| A2 | bold | **[x]** | |
| A3 | a date | [x] (2026-01-02) | |
| A4 | a word | DONE | |
| A5 | a tick | ✅ | |
| A6 | struck out | ~~[x]~~ | |
| A7 | none | | |
| Part two | | | |

| State | ID | What |
|---|---|---|
| [x] | B1 | first |
| [?] | B2 | first |
| done | B3 | first |

- **[x]** C1
- ☑ C2
-[x] C3
- [X]C4
- C5 last [x]
- C6: done `[x]`
- **C7** [D]
- [x] **C8: title**
- [ ] (D9) paren

### E1 [x]

F1 | no outer pipes | [x]

- [a](notes.md) is a link
- what [x] means
"""


def test_a_state_that_a_person_sees_is_one_or_is_odd():
    plan = Plan(SEEN_STATES.encode(), "plan.md")
    states = {row.id: row.state for row in plan.rows if row.state}
    assert states == {"A1": " ", "B1": "x", "C8": "x", "d9-paren": " "}
    odd = {row.id for row in plan.odd_rows}
    tables = {"A2", "A3", "A4", "A5", "A6", "A7", "B2", "B3"}
    assert odd == tables | {f"C{n}" for n in range(1, 8)} | {"E1", "F1"}
    assert plan.describe_odd_state(plan.odd_rows[0]).startswith("plan.md:4: row `A2` has the state")


def test_a_state_in_the_first_cell_is_changed_there():
    plan = Plan(SEEN_STATES.encode(), "plan.md")
    changed = plan.apply({"B1": Change("P", "(evidence 2026-01-01T00:00:00Z red: a.log)")})
    line = "| [P] | B1 | first (evidence 2026-01-01T00:00:00Z red: a.log) |"
    assert line in changed.decode().split("\n")
