"""What was found out about a scan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ptycho_tasks.scans.doctor.case import Case


def plain_r(r_factor: float | None) -> float | None:
    """An R-factor as JSON holds it: None where a trial led nowhere."""
    return r_factor if r_factor is not None and math.isfinite(r_factor) else None


def show_r(r_factor: float) -> str:
    """An R-factor for people."""
    return f"{r_factor:.3f}" if math.isfinite(r_factor) else "none"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a scan, or worth to know."""

    kind: str
    """A word or two that stay the same, for programs: `orientation`, `bad pixels`."""
    text: str
    """What it is, and what tells so."""
    is_wrong: bool = True
    """Whether results are wrong with it; else it is a note."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of ptycho.yaml and their values, which mend it; empty where none can."""
    advice: str = ""
    """What to do where no setting mends it."""
    mended: Case | None = None
    """The scan with the settings; None where nothing changes, or cannot be tried."""
    r_given: float | None = None
    """R-factor of a trial as given; None where none was made."""
    r_mended: float | None = None
    """R-factor of a trial of `mended`."""

    def as_json(self) -> dict[str, Any]:
        """All of it but the arrays."""
        names = ("kind", "text", "is_wrong", "settings", "advice")
        rs = {"r_given": plain_r(self.r_given), "r_mended": plain_r(self.r_mended)}
        return {name: getattr(self, name) for name in names} | rs

    @property
    def line(self) -> str:
        """All of it in a line, without the settings."""
        rs = ""
        if self.r_given is not None and self.r_mended is not None:
            rs = f"; R {show_r(self.r_given)} as given, {show_r(self.r_mended)} mended"
        return f"{self.kind}: {self.text}{rs}{f'; {self.advice}' if self.advice else ''}"
