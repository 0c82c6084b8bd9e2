"""The doit command `run`, of which a run asks whether all is to be made again."""

from __future__ import annotations

from typing import Any

from doit.cmd_run import Run as _Run

from ptycho_tasks.builds.run import note_options


class Run(_Run):  # type: ignore[misc]
    """`doit run`, and `doit` alone."""

    name = "run"

    def execute(self, params: Any, args: Any) -> Any:
        """Run tasks."""
        note_options(params)
        return super().execute(params, args)
