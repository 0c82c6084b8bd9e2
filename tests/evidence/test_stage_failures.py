"""Evidence about stages, and stages that fail."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

ON_A_STAGE = """
evidence:
  initiative: i
  phase: phase_c4
  plan: plan.md
  ledger: docs/fix_plan.md
  items:
    - {id: C4.D3, command: ls fixtures, log: ls.log, depends: [fixture]}
"""


def add_evidence(project, config):
    project.write("ptycho.yaml", project.read("ptycho.yaml") + config)
    project.write("plan.md", project.PLAN)
    project.write("docs/fix_plan.md", "")


def test_evidence_about_a_stage_builds_it_and_follows_it(built_project, open_project):
    project = open_project(built_project)
    add_evidence(project, ON_A_STAGE)
    assert project.doit("dry-run").stdout.startswith("nothing would run")
    done = project.doit("evidence")
    assert done.returncode == 0, done.stderr
    assert "tiny.npz" in done.stdout
    project.edit("ptycho.yaml", "seed: 3", "seed: 4")
    assert "fixture would run before" in project.doit("why", "evidence").stdout
    done = project.doit("evidence")
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith(".  ")] == [
        "source", "fixture", "evidence",
    ]  # fmt: skip
    project.write("ptycho.yaml", project.read("ptycho.yaml").partition("\nevidence:")[0])
    assert ".  train" in project.doit("dry-run").stdout
    assert project.doit("list").stdout.split()[0] == "fixture"


FAILING = """\
from pathlib import Path

from ptycho_tasks.options import TrainingOptions
from ptycho_tasks.errors import ConfigError, TrainingError


class Failing:
    name, version, options_type = "failing", "1", TrainingOptions

    def train(self, request):
        print("begins")
        raise TrainingError("the loss is NaN (epoch 3)")

    def infer(self, request):
        raise NotImplementedError


backend = Failing()
"""


BEHIND_STAGES = (
    ON_A_STAGE
    + """\
    - {id: C4.D1, command: ls runs, log: infer.log, depends: [infer]}
    - {id: C4.D2, command: echo alone, log: alone.log}
    - {id: C4.F, stage: train, log: train.log}
"""
)


@pytest.fixture
def failing(built_project, open_project):
    """A project of which a row needs a training that fails, and others do not."""
    project = open_project(built_project)
    project.write("backends/failing.py", FAILING)
    project.edit("ptycho.yaml", "backend: epie", "backend: failing")
    add_evidence(project, BEHIND_STAGES)
    return project


@pytest.mark.parametrize("options", [(), ("--continue",), ("-n", "2")], ids=str)
def test_a_stage_that_fails_blocks_the_rows_behind_it_and_no_others(failing, options):
    run = failing.run_apart if "-n" in options else failing.doit
    done = run(*options, "evidence")
    assert done.returncode == 1
    assert "error: red: C4.D1, C4.F; see reports/" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "failed: train\nnot run because of that: infer\n" in done.stdout
    names = {path.name for path in failing.report.iterdir()}
    assert {"infer_red.log", "ls_green.log", "alone_green.log", "blocker.log"} < names
    problem = "train failed: the loss is NaN (epoch 3)"
    log = (failing.report / "infer_red.log").read_text()
    assert f"# ended: not run\n# duration: 0.0 s\n# problem: {problem}\n" in log
    printed = f"begins\nerror: the loss is NaN (epoch 3)\n{problem}\n"
    assert printed in log
    assert printed in (failing.report / "train_red.log").read_text()
    assert f"# not run: {problem}\n" in (failing.report / "blocker.log").read_text()
    plan = failing.plan.splitlines()
    assert "| [P] | guidance" in plan[4]
    assert "infer_red.log; train failed: the loss is NaN [epoch 3])" in plan[4]
    assert "| [x] |" in plan[5]
    assert plan[6].startswith("- [x] **C4.D3:** data (evidence ")
    assert "- C4.D1: red, 0.0 s: train failed: the loss is NaN [epoch 3]; `" in failing.ledger
    assert failing.ledger.count("### Attempt") == 1


def test_a_row_is_proved_once_the_stage_that_it_needs_works(failing):
    assert failing.doit("evidence:C4.D1").returncode == 1
    assert "| [P] | guidance" in failing.plan
    failing.edit("ptycho.yaml", "backend: failing", "backend: epie")
    assert failing.doit("evidence:C4.D1").returncode == 0
    assert "| [x] | guidance" in failing.plan


def test_what_a_stage_printed_when_it_failed_is_not_taken_for_what_it_made(failing):
    assert failing.doit("evidence:C4.F").returncode == 1
    failing.edit("ptycho.yaml", "backend: failing", "backend: epie")
    assert failing.doit("evidence:C4.F").returncode == 0
    log = (failing.report / "train_green.log").read_text()
    assert "train:\nbundle " in log or "train:\ntrain " in log
    assert "NaN" not in log


def test_a_stage_that_is_configured_wrongly_leaves_no_trace(failing):
    failing.edit("backends/failing.py", "TrainingError(", "ConfigError(")
    failing.assert_refused(2, "the loss is NaN")


def test_a_failure_of_what_no_row_needs_ends_the_run(failing):
    failing.assert_refused(1, "the loss is NaN", arguments=("train", "evidence:C4.D2"))


def test_a_run_that_is_stopped_after_a_stage_failed_publishes_nothing(failing):
    failing.edit("ptycho.yaml", "command: echo alone", "command: echo begun; sleep 600")
    run = failing.start("evidence", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    assert next(line for line in run.stdout if "begun" in line)
    os.killpg(run.pid, signal.SIGTERM)
    _, errors = run.communicate()
    assert run.returncode == 128 + signal.SIGTERM
    assert "the loss is NaN" in errors
    assert failing.read("plan.md") == failing.PLAN
    assert not (failing.root / "reports").exists()
