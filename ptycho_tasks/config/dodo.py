"""The text of a project's dodo.py: which tasks doit finds in it."""

from __future__ import annotations

DODO = '''"""The tasks of the project in ptycho.yaml; `doit list` shows them."""

from ptycho_tasks.tasks import (
    DOIT_CONFIG,
    task_evidence,
    task_fixture,
    task_infer,
    task_report,
    task_source,
    task_train,
)

__all__ = [
    "DOIT_CONFIG",
    "task_evidence",
    "task_fixture",
    "task_infer",
    "task_report",
    "task_source",
    "task_train",
]
'''
"""Of a project with a ptycho.yaml. A project gets it once: from then on it belongs to the user."""

EVIDENCE_DODO = '''"""The evidence of evidence.yaml; `doit evidence` gathers it."""

from ptycho_tasks.tasks import DOIT_CONFIG as OF_PTYCHO
from ptycho_tasks.tasks import task_evidence

__all__ = ["DOIT_CONFIG", "task_evidence"]

DOIT_CONFIG = {**OF_PTYCHO, "default_tasks": ["evidence"]}
'''
"""Of a project with an evidence.yaml. It may have a ptycho.yaml too, but is here to be proved, so
that `doit` alone gathers the evidence."""
