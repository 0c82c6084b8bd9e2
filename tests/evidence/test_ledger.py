"""A ledger: attempts are appended, and nothing else of it changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.evidence.ledger import append_attempt, has_line


@given(st.binary(max_size=200), st.lists(st.text("abc `|é", max_size=20), min_size=1, max_size=3))
def test_no_byte_of_any_ledger_changes(content, lines):
    once = append_attempt(content, "title", lines)
    assert once.startswith(content)
    assert all(has_line(once, line) for line in lines)
    assert append_attempt(once, "title", lines).startswith(once)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (b"", b"### Attempt 1: t\n\n- x\n"),
        (b"a", b"a\n\n### Attempt 1: t\n\n- x\n"),
        (
            b"Attempt 4\r\n* Attempt #12: y\r\nAttempt 2025-01-01\r\n",
            b"\r\n### Attempt 13: t\r\n\r\n- x\r\n",
        ),
    ],
)
def test_an_attempt_is_numbered_and_ends_lines_as_the_ledger_does(before, expected):
    assert append_attempt(before, "t", ["- x"]).endswith(expected)


LEDGER = """\
# Fix plan

## [ADR-1] Backend
- Status: open
- Attempts History:
  * [2025-01-01] Attempt #1 - red
  * [2025-01-02] Attempt #2 - green
    with details
- Next: C4

## [ADR-2] Other

### Attempt 4: t

text

## ADR-3: empty
```
## ADR-1
```
"""


@pytest.mark.parametrize(
    ("initiative", "expected"),
    [
        ("ADR-1", "    with details\n  * Attempt #3: t\n    - x\n- Next: C4\n"),
        ("ADR-2", "text\n\n### Attempt 5: t\n\n- x\n\n## ADR-3"),
        ("ADR-3", "## ADR-1\n```\n\n### Attempt 1: t\n\n- x\n"),
        ("ADR-4", "```\n\n### Attempt 5: t\n\n- x\n"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_attempt_goes_into_its_initiatives_section_in_the_form_of_others(
    initiative, expected, end
):
    content = LEDGER.replace("\n", end).encode()
    once = append_attempt(content, "t", ["- x"], initiative).decode()
    assert expected.replace("\n", end) in once
    added = [line for line in once.split(end) if line in ("- x", "    - x") or "t " in line[-2:]]
    assert len(added) == 1
    kept = iter(once.split(end))
    assert all(line in kept for line in LEDGER.split("\n"))  # in their order


@given(st.lists(st.sampled_from(["## X-1", "# a", "* Attempt 1", "", "  y", "```", "text"])))
def test_an_attempt_in_a_section_changes_no_other_line(lines):
    content = "\n".join(lines).encode()
    once = append_attempt(content, "t", ["- x"], "X-1")
    assert has_line(once, "- x")
    kept = iter(once.decode().split("\n"))
    assert all(line in kept for line in lines)
