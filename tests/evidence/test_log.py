"""Logs: plain ASCII, whatever comes."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout

from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.evidence.log import RULE, Tee, escape, find_output, read_end_of_output


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\x1b[31m", "é".encode(), b"\r\n"])))
def test_a_log_is_the_same_however_the_output_comes(pieces):
    def write_log(chunks):
        log = io.StringIO()
        tee = Tee(log)
        for chunk in chunks:
            tee.take(chunk)
        tee.finish()
        return log.getvalue()

    with redirect_stdout(io.StringIO()):
        whole = write_log([b"".join(pieces)])
        assert write_log(pieces) == whole
    assert whole.isascii()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", whole)


def test_colours_and_titles_are_stripped_and_the_rest_is_escaped():
    assert escape("\x1b[1;31mred\x1b[0m \x1b]8;;u\x1b\\é\x07\t\x1b(B.") == "red \\xe9\\x07\t."


def test_the_output_of_a_log_may_hold_the_rule():
    assert find_output(f"head\n{RULE}\na\n{RULE}\nb\n{RULE}\nfoot\n") == ["a", RULE, "b"]


def test_of_a_long_log_the_end_of_the_output_is_read(tmp_path):
    lines = [f"line {number}" for number in range(20_000)]
    log = tmp_path / "long.log"
    log.write_text("\n".join(["head", RULE, *lines, RULE, "foot", ""]))
    end = read_end_of_output(log)
    assert end[-1] == "line 19999"
    assert end[1:] == lines[1 - len(end) :]
