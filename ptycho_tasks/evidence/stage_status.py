"""Whether the stages of the project in the current folder are up to date; nothing is run.

The judgement is that of `doit why`.
"""

from __future__ import annotations

from pathlib import Path

from doit.control import TaskControl

from ptycho_tasks.builds.asking import ask_project
from ptycho_tasks.builds.why import Verdict, judge

_WITHOUT_RECIPE = ("source", "fixture")
"""Stages whose results do not say what they were made from: only the database does."""


def find_stage_problem(stage: str, *, skips_strays: bool = False) -> str:
    """Why a stage, or a task of one, is not up to date, as `doit why` says it; empty where it is.

    Where the database knows nothing of a source or a fixture, as in a copy without it, one that is
    there is taken for what the later stages say that they were made from.

    Args:
        stage: the stage, or the task.
        skips_strays: as of `ask_project`.

    Raises:
        ConfigError: something in ptycho.yaml is wrong.
    """
    with ask_project(skips_strays=skips_strays) as (control, manager):
        names = [name for name in control.tasks if stage in (name, name.partition(":")[0])]
        control.process(names)
        stale = [verdict for verdict in judge(control, manager) if _is_stale(verdict, control)]
    return next((f"{verdict.task}: {_describe(verdict)}" for verdict in stale), "")


def _describe(verdict: Verdict) -> str:
    return verdict.reasons[0].text if verdict.reasons else f"is {verdict.status}"


def _is_stale(verdict: Verdict, control: TaskControl) -> bool:
    """Whether a verdict says that a task itself is stale, and not only one before it."""
    if verdict.status != "stale":
        return verdict.status in ("ignored", "stored")
    stage = verdict.task.partition(":")[0]
    is_unknown = {reason.kind for reason in verdict.reasons} <= {"new", "upstream"}
    is_there = all(Path(target).is_file() for target in control.tasks[verdict.task].targets)
    return not (stage in _WITHOUT_RECIPE and is_unknown and is_there)
