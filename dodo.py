"""The tasks of the project in ptycho.yaml; `doit list` shows them."""

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
