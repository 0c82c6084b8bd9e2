"""The doit command `dumpdb`, which knows only doit's own databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from doit.cmd_base import opt_depfile
from doit.cmd_dumpdb import DumpDB as _DumpDB
from doit.exceptions import InvalidCommand

from ptycho_tasks.builds.database import is_database
from ptycho_tasks.builds.state import State
from ptycho_tasks.errors import one_line
from ptycho_tasks.layout import STATE_NAME
from ptycho_tasks.system.terminal import print_text


class DumpDB(_DumpDB):  # type: ignore[misc]
    """`doit dumpdb`: what is known of every task; in a folder without a state of ours, doit's."""

    name = "dumpdb"

    def execute(self, opt_values: Any, pos_args: Any) -> Any:
        """Print a database."""
        dep_file = opt_values["dep_file"]
        ours = dep_file == opt_depfile["default"] and Path(STATE_NAME).exists()
        name = STATE_NAME if ours else dep_file
        if not Path(name).exists():
            raise InvalidCommand(f"there is no {name}: nothing was built here yet")
        if not is_database(name):
            return super().execute(opt_values, pos_args)
        for task, record in sorted(State(name).records()):
            print_text(f"{one_line(task)} -> {json.dumps(record, indent=4)}\n")
        return 0
