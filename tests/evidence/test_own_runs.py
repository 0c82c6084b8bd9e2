"""Items that are a stage or run doit themselves; and a test before and after its code."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

HEAD = """
evidence:
  initiative: i
  phase: phase_c4
  plan: plan.md
  ledger: docs/fix_plan.md
  items:
"""


@pytest.fixture
def add_items(built_project, open_project):
    """Give the built project evidence of items, each in YAML without its braces."""

    def add(*items):
        project = open_project(built_project)
        lines = "".join(f"    - {{{item}}}\n" for item in items)
        project.write("ptycho.yaml", project.read("ptycho.yaml") + HEAD + lines)
        project.write("plan.md", project.PLAN)
        project.write("docs/fix_plan.md", "")
        return project

    return add


def read_log(project, name):
    return (project.report / name).read_text()


# --- a command that runs doit ----------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=str)
def test_the_doit_of_a_command_shares_the_lock_of_the_run(add_items, options):
    project = add_items(
        "id: C4.D1, command: doit infer, log: infer.log",
        "id: C4.D2, command: doit infer, log: again.log",
        "id: C4.D3, command: ls runs, log: ls.log, depends: [infer]",
    )
    project.edit("ptycho.yaml", "seed: 3", "seed: 4")
    done = (project.run_apart if options else project.doit)(*options, "evidence")
    assert done.returncode == 0, done.stdout + done.stderr
    logs = read_log(project, "infer_green.log") + read_log(project, "again_green.log")
    # One of the three makes it, and the others find it.
    assert logs.count("product    ") <= 1, logs
    why = project.doit("why").stdout
    assert "stale" not in why, why
    assert project.doit("dry-run").stdout.startswith("nothing would run")


def test_a_command_that_gathers_evidence_is_red_and_does_not_go_on_for_ever(add_items):
    project = add_items("id: C4.D1, command: doit evidence, log: own.log")
    assert project.doit("evidence").returncode == 1
    assert "error: a command of the evidence gathers evidence itself" in read_log(
        project, "own_red.log"
    )


def test_a_run_that_is_killed_takes_the_doit_of_a_command_with_it(add_items):
    project = add_items("id: C4.D1, command: doit slow, log: slow.log")
    dodo = "\n\ndef task_slow():\n    return {'actions': ['echo begun; sleep 600']}\n"
    project.write("dodo.py", project.read("dodo.py") + dodo)
    run = project.start("evidence", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert next(line for line in run.stdout if "begun" in line)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    assert project.run_apart("infer").returncode == 0


# --- a stage ---------------------------------------------------------------------------------


def test_the_output_of_a_stage_is_the_log_of_its_item(add_items, ours):
    project = add_items("id: C4.D1, stage: train, log: train.log")
    project.edit("ptycho.yaml", "seed: 3", "seed: 4")
    assert project.doit("train").returncode == 0
    done = project.doit("evidence")
    assert done.returncode == 0, done.stdout + done.stderr
    log = read_log(project, "train_green.log")
    assert log.startswith("# command: doit train\n")
    assert "\ntrain:\n" in log
    assert "bundle     runs/default/training/wts.h5.zip\n" in log
    assert "wts.h5.zip`, sha256" in read_log(project, "summary.md")
    assert ours(project.root, "plan", "check").returncode == 0
    (project.root / "runs").rename(project.root / "away")
    note = "note: runs/ is not here, as in a clone; --logs judges the logs alone\n"
    assert ours(project.root, "plan", "check").stderr.endswith(note)
    assert ours(project.root, "plan", "check", "--logs").returncode == 0
    (project.root / "away").rename(project.root / "runs")
    project.edit("ptycho.yaml", "seed: 4", "seed: 5")
    errors = ours(project.root, "plan", "check").stderr
    assert "C4.D1 is marked done, but train is stale: " in errors
    assert "seed 4 -> 5" in errors
    assert "--logs" not in errors
    assert project.doit("evidence").returncode == 0
    assert ours(project.root, "plan", "check").returncode == 0


def test_a_stage_whose_output_is_not_kept_says_so(add_items):
    project = add_items("id: C4.D1, stage: infer, log: infer.log")
    for kept in (project.root / ".ptycho/output").iterdir():
        kept.unlink()
    assert project.doit("evidence").returncode == 0
    assert "is up to date; what it printed is not kept here" in read_log(project, "infer_green.log")


# --- a test before and after its code --------------------------------------------------------

PAIR = (
    "id: C4.D1, pytest: [tests/test_b.py], log: b_red.log, expect: red, depends: [codes.py]",
    "id: C4.D2, pytest: [tests/test_b.py], log: b_green.log, depends: [codes.py]",
)


def test_the_red_and_the_green_log_of_one_test_stand_side_by_side(project, ours):
    project.write_items(*PAIR)
    project.write("plan.md", project.PLAN.replace("- [ ] **C4.D3:**", "- **C4.D3:**"))
    project.write("tests/test_b.py", "def test_b():\n    from codes import answer\n")
    assert project.doit("evidence").returncode == 1  # the code is not there yet
    assert "# outcome: green" in read_log(project, "b_red.log")
    assert "# outcome: red" in read_log(project, "b_still_red.log")
    assert project.plan.count("[x] |") == 1
    project.write("codes.py", "answer = 42\n")
    assert project.doit("evidence", PYTHONPATH=".").returncode == 0
    assert project.plan.count("[x] |") == 2
    assert ours(project.root, "plan", "check").returncode == 0
    assert project.doit("evidence").stdout.count("still good") == 2


def test_a_red_log_without_a_green_one_goes_stale(project):
    project.write_items(PAIR[0])
    project.write("codes.py", "")
    project.write("tests/test_b.py", "def test_b():\n    from codes import answer\n")
    assert project.doit("evidence").returncode == 0
    project.write("codes.py", "# more\n")
    assert "codes.py changed" in project.doit("why", "evidence").stdout
