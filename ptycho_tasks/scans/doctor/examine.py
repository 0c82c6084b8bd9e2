"""Examine a scan: all checks, each on what those before have mended."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.centre import check_centre
from ptycho_tasks.scans.doctor.detector import (
    check_background,
    check_hits,
    check_negative,
    check_pixels,
    check_saturation,
    check_shape,
)
from ptycho_tasks.scans.doctor.estimate import check_estimate
from ptycho_tasks.scans.doctor.examination import Examination
from ptycho_tasks.scans.doctor.findings import Finding, plain_r
from ptycho_tasks.scans.doctor.frames import (
    check_dark,
    check_flashes,
    check_hidden,
    check_light,
    check_repeats,
    check_shared_places,
)
from ptycho_tasks.scans.doctor.geometry import check_axes, check_orientation
from ptycho_tasks.scans.doctor.notes import (
    check_coherence,
    check_displacement,
    check_memory,
    check_other_light,
    check_overlap,
    check_probe,
    check_resolution,
    check_rest,
)
from ptycho_tasks.scans.doctor.order import check_order
from ptycho_tasks.scans.doctor.positions import check_places, check_scans, check_units
from ptycho_tasks.scans.doctor.reading import read_case
from ptycho_tasks.scans.doctor.scatter import check_scatter
from ptycho_tasks.scans.doctor.trials import TryScan
from ptycho_tasks.scans.doctor.values import check_measurement

CHECKS: Mapping[str, tuple[Callable[[Examination], Iterator[Finding]], ...]] = {
    "positions": (check_scans, check_places),
    "pixels": (check_shape, check_pixels, check_hits, check_saturation, check_negative),
    "frames": (check_hidden, check_dark, check_repeats, check_measurement, check_shared_places),
    "light": (check_background, check_probe),
    "centre": (check_centre,),
    "probe": (check_estimate,),
    "units": (check_units,),
    # The centre of swapped positions may have made no difference before.
    "orientation": (check_orientation, check_centre),
    "order": (check_order,),
    "rotation and scale": (check_axes, check_scatter),
    "coherence": (check_coherence, check_displacement, check_other_light, check_rest),
    "brightness": (check_light, check_flashes),
    "overlap and resolution": (check_overlap, check_resolution, check_memory),
}
"""In this order, by what is looked at: what a check finds is mended before the next one."""


@dataclass(frozen=True)
class Report:
    """What an examination found."""

    path: Path
    findings: tuple[Finding, ...]
    given: Case | None
    """The scan as it is; None where nothing of it could be read."""
    mended: Case | None
    """The scan with all that was found mended."""
    r_given: float | None = None
    r_mended: float | None = None
    """R-factors of trials; None where none was made."""

    @property
    def is_wrong(self) -> bool:
        """Whether results would be wrong."""
        return any(finding.is_wrong for finding in self.findings)

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted keys of ptycho.yaml and what mends the scan."""
        settings: dict[str, Any] = {}
        for finding in self.findings:
            for key, value in finding.settings.items():
                before = settings.get(key)
                both = isinstance(before, Mapping) and isinstance(value, Mapping)
                settings[key] = {**(before or {}), **value} if both else value
        return settings

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {
            "scan": str(self.path),
            "is_wrong": self.is_wrong,
            "r_given": plain_r(self.r_given),
            "r_mended": plain_r(self.r_mended),
            "findings": [finding.as_json() for finding in self.findings],
            "settings": self.settings,
        }


def examine(
    path: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    product: Path | None = None,
    try_scan: TryScan | None = None,
    say: Callable[[str], None] = lambda what: None,
) -> Report:
    """Find what is wrong with a scan.

    Args:
        path: of the scan.
        settings: how it is read, as for `read_scan`.
        product: see `read_scan`.
        try_scan: of a backend; None makes no trials.
        say: is called with what is looked at next.
    """
    # Values that are far out of range are found out, and numpy need not tell.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        case, refusal = read_case(path, settings or {}, product)
        refused = () if refusal is None else (_describe_refusal(refusal, case),)
        if case is None:
            return Report(path, refused, None, None)
        return _examine(Examination(case, try_scan), refused, say)


def _describe_refusal(refusal: str, case: Case | None) -> Finding:
    is_of_mask = case is not None and case.mask_marks and "source.mask_marks" in refusal
    settings = {"source.mask_marks": case.mask_marks} if case is not None and is_of_mask else {}
    return Finding("refused", refusal, settings=settings)


def _examine(exam: Examination, refused: tuple[Finding, ...], say: Callable[[str], None]) -> Report:
    case = exam.case
    try:
        for what, checks in CHECKS.items():
            say(what)
            for check in checks:
                for finding in check(exam):
                    exam.take(finding)
    except (ArithmeticError, ValueError, IndexError, RuntimeError, MemoryError):
        if not refused:
            raise
        # What is wrong is said already; the values are such that no more can be told of them.
        return Report(case.path, (*refused, *exam.findings), case, None)
    report = Report(case.path, (*refused, *exam.findings), case, exam.case)
    if exam.trials is None:
        return report
    first = case if case.probe is not None else replace(case, probe=exam.case.probe)
    given, mended = (exam.trials.run(one).r_factor for one in (first, exam.case))
    return replace(report, r_given=given, r_mended=mended)
