"""What `execution` says of jobs: their executor, its settings, and what each stage asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ptycho_tasks.config.fields import explain_fault, make_section
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.executors import LOCAL, Executor, find_executor
from ptycho_tasks.options import ExecutionOptions, Resources, Section

JOB_STAGES = ("train", "infer", "refine")
"""Those that run as jobs; the others take seconds, and run where `doit` does."""
_Kind = TypeVar("_Kind", bound=Section)


def check_job_settings(execution: ExecutionOptions, root: Path) -> None:
    """Refuse settings that no job could be submitted with.

    Args:
        execution: as settled.
        root: of a project whose `executors/` count too.

    Raises:
        ConfigError: one line that begins with the key.
    """
    for stage in JOB_STAGES:
        read_resources(execution.resources, stage)
    if execution.executor != LOCAL:
        try:
            executor = find_executor(execution.executor, root)
        except ConfigError as error:
            raise ConfigError(f"execution.executor: {error}") from error
        read_executor_options(executor, execution.executor_options)


def read_resources(resources: Mapping[str, Any], stage: str) -> Resources:
    """What a job of a stage asks for: what `execution.resources` says of the stage, and of `all`.

    Raises:
        ConfigError: one line that begins with the key.
    """
    known = ("all", *JOB_STAGES)
    unknown = next((key for key in resources if key not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"execution.resources.{unknown}: unknown key; known keys: {', '.join(known)}"
        )
    for key in ("all", stage):
        _convert(resources.get(key, {}), Resources, f"execution.resources.{key}")
    return msgspec.convert({**resources.get("all", {}), **resources.get(stage, {})}, Resources)


def read_executor_options(executor: Executor, options: Mapping[str, Any]) -> Section:
    """`execution.executor_options`, typed by the executor.

    Raises:
        ConfigError: one line that begins with the key.
    """
    return _convert(options, executor.options_type, "execution.executor_options")


def _convert(data: Any, kind: type[_Kind], key: str) -> _Kind:
    try:
        return make_section(data, kind)
    except msgspec.ValidationError as error:
        below, problem = explain_fault(error, kind, data)
        raise ConfigError(f"{key}{f'.{below}' if below else ''}: {problem}") from error
