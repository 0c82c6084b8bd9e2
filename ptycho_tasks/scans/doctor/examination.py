"""A scan while it is examined: what is known of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from ptycho_tasks.scans.doctor.case import Case
from ptycho_tasks.scans.doctor.census import Census, take_census
from ptycho_tasks.scans.doctor.findings import Finding
from ptycho_tasks.scans.doctor.trials import LEAST_FRAMES, Trials, TryScan


@dataclass
class Examination:
    """The scan as mended so far, and what is worked out once."""

    case: Case
    try_scan: TryScan | None = None
    """None where no backend can."""
    findings: list[Finding] = field(default_factory=list)
    _trials: dict[int, Trials] = field(default_factory=dict)

    @cached_property
    def census(self) -> Census:
        """Of the frames as they are given."""
        return take_census(self.case)

    @property
    def trials(self) -> Trials | None:
        """None where nothing can be tried: no backend, no probe, or too few frames."""
        if self.try_scan is None or self.case.probe is None or len(self.case.keep) < LEAST_FRAMES:
            return None
        if not self._trials:
            self._trials[0] = Trials.plan(self.try_scan, self.case, self.census.quantum)
        return self._trials[0]

    def take(self, finding: Finding) -> None:
        """Keep a finding, and go on with what it mends."""
        self.findings.append(finding)
        if finding.kind == "units":
            self._trials.clear()  # patches are chosen by the distance of frames
        if finding.mended is not None:
            self.case = finding.mended

    def compare(self, finding: Finding) -> Finding:
        """The finding with the R-factors of trials, before and after."""
        if self.trials is None or finding.mended is None:
            return finding
        given, mended = self.trials.run(self.case), self.trials.run(finding.mended)
        return replace(finding, r_given=given.r_factor, r_mended=mended.r_factor)
