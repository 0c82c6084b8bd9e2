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
