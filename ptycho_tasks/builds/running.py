"""The doit command `run`, of which a task can learn whether all is to be made again.

Every `doit` loads this, also where a project is none of ours: it imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from doit.cmd_run import Run as _Run

_options: Mapping[str, Any] = {}
_goes_on = False
_DETACH = {
    "name": "detach",
    "long": "detach",
    "type": bool,
    "default": False,
    "help": "submit jobs, do not wait for them, and leave them alone where the run is stopped",
}


class Run(_Run):  # type: ignore[misc]
    """`doit run`, and `doit` alone."""

    name = "run"
    cmd_options = (*_Run.cmd_options, _DETACH)

    def execute(self, params: Any, args: Any) -> Any:
        """Run tasks."""
        global _options, _goes_on
        _options, _goes_on = params, False  # doit may still add to it what a configuration says
        try:
            with _skip_strays() if args == ["report"] else nullcontext():
                status = super().execute(params, args)
            return 0 if _goes_on else status
        finally:
            _options = {}


def _skip_strays() -> AbstractContextManager[None]:
    """The report names the files that cannot be scans, and is not refused for them."""
    from ptycho_tasks.builds.state import skip_strays

    return skip_strays()


def is_all_made() -> bool:
    """Whether the user asked to make again what is up to date, or in the store (`doit -a`)."""
    return bool(_options.get("always"))


def is_detached() -> bool:
    """Whether the user does not want to wait for jobs (`doit --detach`)."""
    return bool(_options.get("detach"))


def count_processes() -> int:
    """How many tasks the user wants to run side by side (`doit -n`)."""
    return int(_options.get("num_process") or 1)


def note_going_on() -> None:
    """Note that nothing failed, though not all was made: jobs go on after the run."""
    global _goes_on
    _goes_on = True
