"""What pytest says of a run in its JUnit XML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree


class Counts(NamedTuple):
    """How many tests ended how; one whose fixture fails counts as failed."""

    passed: int
    failed: int
    skipped: int

    def __str__(self) -> str:
        """As logs and ledgers say it."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


class TestReport(NamedTuple):
    """What a run of pytest came to."""

    counts: Counts
    first_failure: str
    """The first test that failed, and with what; empty where none did."""


def read_junit(path: Path) -> TestReport | None:
    """What pytest wrote; None where it wrote nothing that can be read.

    Args:
        path: the file that --junitxml named.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    passed = failed = skipped = 0
    first = ""
    for case in root.iter("testcase"):
        bad = [found for tag in ("failure", "error") for found in case.findall(tag)]
        if bad:
            failed += 1
            first = first or _said(case, bad[0])
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return TestReport(Counts(passed, failed, skipped), first)


_CODE = re.compile("#x([0-9A-F]{2})")
"""How pytest writes a character that XML cannot hold, as of a colour."""
_ERROR = re.compile(r"^E {3}(\S.*)$", re.MULTILINE)
"""What was raised, where a test file could not be read."""


def _said(case: ElementTree.Element, bad: ElementTree.Element) -> str:
    name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
    message = (bad.get("message") or "").strip().partition("\n")[0]
    raised = _ERROR.search(bad.text or "")
    if message == "collection failure" and raised:
        message = raised[1]
    text = f"{name}: {message}" if message else name
    return _CODE.sub(lambda found: chr(int(found[1], 16)), text)
