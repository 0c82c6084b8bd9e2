"""What pytest reports in its JUnit XML."""

from __future__ import annotations

import pytest

from ptycho_tasks.evidence.junit import read_junit

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="one"/>
<testcase classname="a" name="two"><skipped/></testcase>
<testcase classname="a" name="three"><error message="setup: #x1B[31mno&#10;more"/></testcase>
<testcase classname="" name="b.py"><error message="collection failure">E   SyntaxError: x</error>
</testcase>
</testsuite></testsuites>"""


def test_a_fixture_that_fails_counts_as_a_failure(tmp_path):
    (tmp_path / "junit.xml").write_text(REPORT)
    report = read_junit(tmp_path / "junit.xml")
    assert str(report.counts) == "1 passed, 2 failed, 1 skipped"
    assert report.first_failure == "a.three: setup: \x1b[31mno"


def test_a_file_that_cannot_be_collected_says_what_was_raised(tmp_path):
    first, *_, last = REPORT.split("<testcase ")
    (tmp_path / "junit.xml").write_text(f"{first}<testcase {last}")
    assert read_junit(tmp_path / "junit.xml").first_failure == "b.py: SyntaxError: x"


@pytest.mark.parametrize("text", [None, "", "<testsuites>"])
def test_what_cannot_be_read_is_no_report(tmp_path, text):
    if text is not None:
        (tmp_path / "junit.xml").write_text(text)
    assert read_junit(tmp_path / "junit.xml") is None
