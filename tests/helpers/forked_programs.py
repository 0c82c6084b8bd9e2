"""Programs for shell scripts: `doit`, `ptycho-tasks`, and `python` with `-m` or `-c`, in forks as
`run_command` has them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ptycho_tasks.testing.forks import open_server

OPTIONS = {
    "doit": ("-m", "doit"),
    "ptycho-tasks": ("-m", "ptycho_tasks.commands.cli"),
    "python": (),
}
"""Of Python, by program."""
# It asks the server as `ask_server` does, and its output is where the script's is. What the command
# itself starts finds the real programs.
PROGRAM = """\
#!{python} -ISE
import json, os, sys, tempfile

words = [*{options}, *sys.argv[1:]]
here, _, path = os.environ["PATH"].partition(os.pathsep)
request = {{
    "arguments": words[words[0] == "-m" :],
    "cwd": os.getcwd(),
    "environment": {{**os.environ, "PATH": path}},
    "streams": [os.devnull, *(f"/proc/{{os.getpid()}}/fd/{{number}}" for number in (1, 2))],
    "timeout_s": 300,
    "is_apart": False,
}}
with tempfile.TemporaryDirectory() as folder:
    with open(f"{{folder}}/request", "w") as file:
        json.dump(request, file)
    os.mkfifo(f"{{folder}}/answer")
    os.write({requests}, folder.encode() + b"\\n")
    with open(f"{{folder}}/answer") as answer:
        code = int(answer.read().split()[1])
sys.exit(code if code >= 0 else 128 - code)
"""


class Programs(NamedTuple):
    """What a script needs to run them."""

    folders: tuple[Path, ...] = ()
    """First on its PATH."""
    descriptors: tuple[int, ...] = ()
    """That it inherits."""


@contextmanager
def forked_programs() -> Iterator[Programs]:
    """The programs while the block runs; none where commands do not run in forks."""
    if sys.platform != "linux":
        yield Programs()
        return
    requests = open_server()
    with TemporaryDirectory() as folder:
        for name, options in OPTIONS.items():
            program = Path(folder) / name
            program.write_text(
                PROGRAM.format(python=sys.executable, options=options, requests=requests)
            )
            program.chmod(0o755)
        yield Programs((Path(folder),), (requests,))
