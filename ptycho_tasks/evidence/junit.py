"""What pytest reports of a run in its JUnit XML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from ptycho_tasks.evidence.records import Counts

_CODE = re.compile("#x([0-9A-F]{2})")
"""How pytest writes a character that XML cannot hold, as of a colour."""
_ERROR = re.compile(r"^E {3}(\S.*)$", re.MULTILINE)
"""What was raised, where a test file could not be read."""


class PytestReport(NamedTuple):
    """What a run of pytest came to."""

    counts: Counts
    first_failure: str
    """The first test that failed, and with what; empty where none did."""


def read_junit(path: Path) -> PytestReport | None:
    """What pytest wrote; None where it wrote nothing that can be read.

    Args:
        path: the file that --junitxml named.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    passed = failed = skipped = 0
    first_failure = ""
    for case in root.iter("testcase"):
        failures = [element for tag in ("failure", "error") for element in case.findall(tag)]
        if failures:
            failed += 1
            first_failure = first_failure or _describe(case, failures[0])
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return PytestReport(Counts(passed, failed, skipped), first_failure)


def _describe(case: ElementTree.Element, failure: ElementTree.Element) -> str:
    """A test's name, and the first line of what it failed with."""
    name = ".".join(filter(None, (case.get("classname"), case.get("name"))))
    message = (failure.get("message") or "").strip().partition("\n")[0]
    error = _ERROR.search(failure.text or "")
    if message == "collection failure" and error:
        message = error[1]
    text = f"{name}: {message}" if message else name
    return _CODE.sub(lambda match: chr(int(match[1], 16)), text)
