"""The commands of items: their output, their ends, and what outlives them."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys

import pytest

from ptycho_tasks.testing.project import DOIT
from started_commands import is_alive

OUTPUT = r"""
import os, sys
print("\x1b[31mred\x1b[0m out", end="")
print(" err", file=sys.stderr)
print("\x1b]0;title\x07out \u00e9")
os.write(2, b"bytes \xff\xfe\n1%\r2%\r\n")
print("end", end="")
"""


def test_output_keeps_its_order_and_colours_and_the_log_is_plain_ascii(project):
    (project.root / "say.py").write_text(OUTPUT)
    project.write_items("id: C4.D3, command: python say.py, log: said")
    done = project.doit("evidence")
    assert "\x1b[31mred\x1b[0m out err\n" in done.stdout
    assert "out \u00e9\n" in done.stdout
    assert "\nend\n" in done.stdout
    log = (project.report / "said_green.log").read_text("ascii")
    assert log.split("-" * 72 + "\n")[1] == (
        "red out err\nout \\xe9\nbytes \\xff\\xfe\n1%\n2%\nend\n"
    )


COLOURED = "import sys; print(chr(27) + '[31mred' if sys.stdout.isatty() else 'plain')"


def test_a_command_has_a_terminal_where_the_run_has_one(project):
    project.write_items(f'id: C4.D3, command: "python -c \\"{COLOURED}\\"", log: said')
    ours, theirs = pty.openpty()
    run = subprocess.Popen([*DOIT, "evidence"], cwd=project.root, stdout=theirs)
    os.close(theirs)
    output = b""
    with contextlib.suppress(OSError):  # the other side was closed
        while piece := os.read(ours, 4096):
            output += piece
    os.close(ours)
    assert run.wait() == 0
    assert b"\x1b[31mred" in output
    assert "\nred\n" in (project.report / "said_green.log").read_text()


def test_a_time_limit_ends_all_that_was_started(project):
    command = "sleep 600 & echo $! > pid; echo begun; wait"
    for limit in ("0.3", "3", "30"):  # on a busy machine a command takes its time to begin
        item = f"id: C4.D3, command: '{command}', log: slow, time_limit_s: {limit}"
        project.write_items(item)
        project.assert_one_line(project.doit("evidence"), 1, "red: C4.D3")
        log = (project.report / "slow_red.log").read_text()
        if "begun\n" in log:
            break
    assert "begun\n" in log
    assert not is_alive(int((project.root / "pid").read_text()))
    assert f"# ended: time limit of {limit} s\n" in log
    assert f"time limit of {limit} s" in project.ledger


@pytest.mark.parametrize("jobs", [[], ["-n", "2"]], ids=["alone", "parallel"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_leaves_a_log_that_says_so(project, number, jobs):
    project.write_items(
        "id: C4.D3, command: 'echo $$ > pid; echo begun; sleep 600', log: slow",
        "id: C4.D1, command: 'true', log: quick",
    )
    before = (project.root / "plan.md").read_bytes()
    run = project.start(*jobs, "evidence", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    assert next(line for line in run.stdout if "begun" in line)
    os.killpg(run.pid, number)  # as a terminal does
    _, errors = run.communicate()
    assert run.returncode == 128 + number
    assert "Traceback" not in errors
    assert not is_alive(int((project.root / "pid").read_text()))
    log = (project.root / ".ptycho/evidence/slow.log").read_text()
    assert log.endswith("# outcome: none\n")
    assert f"# ended: stopped by {number.name}\n" in log
    assert (project.root / "plan.md").read_bytes() == before
    project.write_items(
        "id: C4.D3, command: 'true', log: slow", "id: C4.D1, command: 'true', log: quick"
    )
    assert project.doit("evidence").returncode == 0


@pytest.mark.parametrize("jobs", [[], ["-n", "2"]], ids=["alone", "parallel"])
def test_nothing_outlives_a_run_that_is_killed(project, jobs):
    os.mkfifo(project.root / "alive")
    command = "exec > alive; (trap '' TERM; sleep 30; touch survived) & echo begun; wait"
    project.write_items(
        f'id: C4.D3, command: "{command}", log: slow',
        "id: C4.D1, command: 'true', log: quick",
    )
    run = project.start(*jobs, "evidence", stdout=subprocess.DEVNULL)
    with (project.root / "alive").open() as alive:
        assert alive.readline() == "begun\n"
        run.kill()
        assert alive.read() == ""  # all that could write have ended
    assert not (project.root / "survived").exists()
    assert run.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no subreaper")
def test_a_session_of_its_own_ends_with_the_command(project):
    command = "setsid -f sh -c 'trap \"\" TERM; echo $$ > pid; exec sleep 600' & "
    command += "until [ -s pid ]; do sleep 0.01; done"
    project.write("start.sh", command)
    project.write_items("id: C4.D3, command: sh start.sh, log: quick")
    assert project.doit("evidence").returncode == 0
    assert not is_alive(int((project.root / "pid").read_text()))
