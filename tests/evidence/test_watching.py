"""Evidence that is gathered each time a save makes some stale."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from threading import Timer

import pytest

from ptycho_tasks.testing.project import OURS, TIMEOUT_S
from started_commands import start_command

WATCHING = "watching; Ctrl-C ends\n"


@pytest.fixture
def watched(project) -> Iterator[subprocess.Popen[str]]:
    """A process that watches the project, with two items of which one is about a file."""
    project.write_items(
        "id: C4.D3, command: cat data.txt, log: data.log, depends: [data.txt]",
        "id: C4.D1, command: echo alone; date > made.txt, log: alone.log",
    )
    process = start_command(
        [*OURS, "plan", "watch"],
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    guard = Timer(TIMEOUT_S, process.kill)  # who waits for a run that never begins, waits for ever
    guard.start()
    yield process
    guard.cancel()
    process.kill()
    process.communicate()


def read_run(process: subprocess.Popen[str]) -> str:
    """What is shown up to the end of a run."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line == WATCHING:
            break
    return "".join(lines)


def test_a_save_makes_only_what_it_made_stale_run_again(project, watched):
    assert "green  C4.D3" in read_run(watched)
    project.write("unrelated.txt", "x")
    project.write("data.txt", "measured again\n")
    shown = read_run(watched)
    assert "measured again\n" in shown
    assert "alone_green.log (of " in shown
    project.edit("evidence.yaml", "cat data.txt", "cat none.txt")
    shown = read_run(watched)
    assert "red    C4.D3" in shown
    project.edit("evidence.yaml", "cat none.txt", "cat: data.txt")
    shown = read_run(watched)
    assert shown.count("error: ") == 1
    watched.send_signal(signal.SIGINT)
    assert watched.wait() == 0
    assert len([*project.root.glob("reports/2*")]) == 3


def test_a_save_while_the_evidence_is_gathered_is_not_lost(project, watched):
    read_run(watched)
    project.edit("evidence.yaml", "cat data.txt", "cat data.txt; touch seen; sleep 1")
    while not (project.root / "seen").exists():
        assert watched.poll() is None
        time.sleep(0.01)
    project.write("data.txt", "saved meanwhile\n")
    assert "saved meanwhile\n" in read_run(watched) + read_run(watched)


def test_a_signal_ends_what_runs(project):
    project.write_items("id: C4.D3, command: echo begun; sleep 600, log: slow.log")
    process = start_command(
        [*OURS, "plan", "watch", "C4.D3"], cwd=project.root, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert next(line for line in process.stdout if "begun" in line)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0
    assert "stopped by SIGTERM" in project.read(".ptycho/evidence/slow.log")


def test_a_row_that_no_item_proves_is_one_line(project, ours):
    done = ours(project.root, "plan", "watch", "C4.F")
    assert done.returncode == 2
    assert done.stderr == "error: evidence.yaml: no item proves `C4.F`; name a row of one\n"
