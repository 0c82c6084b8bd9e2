"""What `execution` says of jobs: their executor, its settings, and what each stage asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ptycho_tasks.backends import KIND as BACKENDS
from ptycho_tasks.config.fields import explain_fault, make_section
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.executors import LOCAL, Executor, find_executor
from ptycho_tasks.options import ExecutionOptions, Resources, Section
from ptycho_tasks.system.plugins import list_plugins

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
    _check_resources(execution.resources, root)
    if execution.executor != LOCAL:
        try:
            executor = find_executor(execution.executor, root)
        except ConfigError as error:
            raise ConfigError(f"execution.executor: {error}") from error
        read_executor_options(executor, execution.executor_options)


def list_asked(resources: Mapping[str, Any], stage: str, backend: str) -> dict[str, Any]:
    """What `execution.resources` says of a stage with its backend (as `train.unrolled`), of the
    stage, and of `all`."""
    keys = ("all", stage, f"{stage}.{backend}")
    return {name: value for key in keys for name, value in resources.get(key, {}).items()}


def read_resources(asked: Mapping[str, Any], stage: str) -> Resources:
    """What a job asks for, of the values that `list_asked` gave.

    Raises:
        ConfigError: one line that begins with the key.
    """
    return _convert(asked, Resources, f"execution.resources.{stage}")


def _check_resources(resources: Mapping[str, Any], root: Path) -> None:
    for key, value in resources.items():
        stage, _, backend = key.partition(".")
        whole = f"execution.resources.{key}"
        if stage not in JOB_STAGES and key != "all":
            known = ", ".join(("all", *JOB_STAGES))
            raise ConfigError(f"{whole}: unknown key; known keys: {known}, and STAGE.BACKEND")
        if backend and backend not in (backends := list_plugins(BACKENDS, root)):
            raise ConfigError(
                f"{whole}: unknown backend `{backend}`; known here: {', '.join(sorted(backends))}"
            )
        _convert(value, Resources, whole)


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
