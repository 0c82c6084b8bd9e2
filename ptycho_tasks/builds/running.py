"""The doit command `run`, of which a task can learn whether all is to be made again.

Every `doit` loads this, also where a project is none of ours: it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from doit.cmd_run import Run as _Run

_options: Mapping[str, Any] = {}


class Run(_Run):  # type: ignore[misc]
    """`doit run`, and `doit` alone."""

    name = "run"

    def execute(self, params: Any, args: Any) -> Any:
        """Run tasks."""
        global _options
        _options = params  # doit may still add to it what a configuration says
        try:
            return super().execute(params, args)
        finally:
            _options = {}


def is_all_made() -> bool:
    """Whether the user asked to make again what is up to date, or in the store (`doit -a`)."""
    return bool(_options.get("always"))
