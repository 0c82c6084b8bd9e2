"""The reference of the command line is of the commands as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "make_commands.py"


def test_the_reference_is_fresh():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_reference_says_the_remedy(tmp_path):
    (tmp_path / "docs").mkdir()
    script = tmp_path / "docs" / SCRIPT.name
    script.write_text(SCRIPT.read_text())

    def run(*arguments):
        return subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, check=False
        )

    stale = run("--check")
    assert stale.returncode == 1
    assert stale.stderr == "docs/commands.md is stale: run `python docs/make_commands.py`\n"
    assert run().stdout == "wrote docs/commands.md\n"
    assert run("--check").returncode == 0
