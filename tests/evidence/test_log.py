"""Logs: plain ASCII, whatever comes."""

from __future__ import annotations

import pytest


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\x1b[31m", "é".encode(), b"\r\n"])))
def test_a_log_is_the_same_however_the_output_comes(pieces):
    def log_of(chunks):
        class Lines(list):
            write = list.append

            def flush(self):
                pass

        lines = Lines()
        tee = Tee(lines)
        for chunk in chunks:
            tee.take(chunk)
        tee.finish()
        return "".join(lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prove, "say", lambda text: None)
        whole = log_of([b"".join(pieces)])
        assert log_of(pieces) == whole
    assert whole.isascii()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", whole)


def test_colours_and_titles_are_stripped_and_the_rest_is_escaped():
    assert escape("\x1b[1;31mred\x1b[0m \x1b]8;;u\x1b\\é\x07\t\x1b(B.") == "red \\xe9\\x07\t."


def test_the_output_of_a_log_may_hold_the_rule(small):
    assert find_output(f"head\n{RULE}\na\n{RULE}\nb\n{RULE}\nfoot\n") == ["a", RULE, "b"]
