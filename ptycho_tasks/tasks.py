"""The doit tasks, one an edge of the graph: source -> fixture -> train -> infer.

A dodo.py imports them:

    from ptycho_tasks.tasks import DOIT_CONFIG, task_fixture, task_infer, task_source, task_train

They read the ptycho.yaml of the current folder, which doit makes the dodo.py's own.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from doit.exceptions import TaskError, TaskFailed
from doit.tools import config_changed

from ptycho_tasks.config import CONFIG_NAME, ConfigFile, canonical_json, read_config
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.payload import (
    FixturePayload,
    create_fixture_payload,
    create_inference_payload,
    create_training_payload,
)

DOIT_CONFIG = {
    "backend": "sqlite3",
    "dep_file": ".doit.db.sqlite",
    "default_tasks": ["infer"],
    "verbosity": 2,
}
DEBUG = "PTYCHO_TASKS_DEBUG"
"""Environment variable: not empty shows the traceback of every error."""

BUNDLE_NAME = "wts.h5.zip"
OUTPUTS = (
    "reconstruction.h5",
    "reconstructed_amplitude.png",
    "reconstructed_phase.png",
    "metrics.json",
)


def or_exit(function: Callable[..., Any]) -> Callable[..., Any]:
    """On a wrong configuration, one line and exit 2 instead of doit's traceback and exit 3."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except ConfigError as error:
            _complain(error)
            raise SystemExit(error.exit_code) from error

    return wrapped


@functools.cache
def _config_file() -> ConfigFile:
    return read_config(Path(CONFIG_NAME).absolute())


@or_exit
def task_source() -> dict[str, Any]:
    """Simulate the source scan, or check the one that ptycho.yaml names."""
    payload = create_fixture_payload(_config_file())
    simulated = payload.source.simulate is not None
    return _task(
        payload,
        stage="check_source",
        identity=payload.source_identity(),
        # A missing file is the action's to report: doit would not say which key names it.
        inputs=[] if simulated else _existing(_source_inputs(payload)),
        outputs=[payload.source_file] if simulated else [],
        doc=(
            f"simulate the scan {_relative(payload, payload.source_file)}"
            if simulated
            else f"check the scan {_relative(payload, payload.source_file)}"
        ),
    )


@or_exit
def task_fixture() -> dict[str, Any]:
    """Cut the source to the frames to train on."""
    payload = create_fixture_payload(_config_file())
    return _task(
        payload,
        stage="make_fixture",
        identity=payload.fixture_identity(),
        inputs=_source_inputs(payload),
        outputs=[payload.fixture_file, payload.sidecar_file],
        after=["source"],
        doc="cut the source to the frames to train on, with a sidecar that says which",
    )


@or_exit
def task_train() -> dict[str, Any]:
    """Train on the fixture."""
    payload = create_training_payload(_config_file())
    return _task(
        payload,
        stage="train",
        identity=payload.identity(),
        inputs=[payload.fixture_file, payload.sidecar_file],
        outputs=[payload.model_dir / BUNDLE_NAME],
        doc=f"train the backend {payload.backend.name} on the fixture; gives {BUNDLE_NAME}",
    )


@or_exit
def task_infer() -> dict[str, Any]:
    """Reconstruct the scan."""
    payload = create_inference_payload(_config_file())
    from_fixture = payload.config.inference.scan == "fixture"
    scan = [payload.fixture_file, payload.sidecar_file] if from_fixture else [payload.scan_file]
    return _task(
        payload,
        stage="infer",
        identity=payload.identity(),
        inputs=[payload.model_dir / BUNDLE_NAME, *scan],
        outputs=[payload.output_dir / name for name in OUTPUTS],
        doc="reconstruct the scan with the trained bundle; gives HDF5, pictures and metrics",
    )


def _task(
    payload: FixturePayload,
    *,
    stage: str,
    identity: dict[str, Any],
    inputs: list[Path],
    outputs: list[Path],
    doc: str,
    after: list[str] | None = None,
) -> dict[str, Any]:
    targets = [_relative(payload, path) for path in outputs]
    return {
        "actions": [(run_stage, [stage, payload])],
        "file_dep": [_relative(payload, path) for path in inputs],
        "targets": targets,
        "task_dep": after or [],
        "uptodate": [config_changed(canonical_json(identity))],
        "clean": [(clean, [payload.root, targets])],
        "io": {"capture": False},
        "doc": doc,
    }


def run_stage(stage: str, payload: FixturePayload) -> TaskFailed | TaskError | None:
    """The action of every task: run a stage; a user's error is one line and the right exit code."""
    from ptycho_tasks import stages

    try:
        getattr(stages, stage)(payload)
    except PtychoTasksError as error:
        _complain(error)
        failure = TaskError if error.exit_code == ConfigError.exit_code else TaskFailed
        return failure(str(error), report=False)
    except Exception as error:
        # A defect, ours or a backend's: its traceback is what its author needs. Left to doit, it
        # would end with the exit code of a wrong configuration.
        traceback.print_exception(error)
        return TaskFailed(str(error), report=False)
    return None


def clean(root: Path, targets: list[str], dryrun: bool) -> None:
    """Remove a task's targets, and the folders under `runs` that this leaves empty."""
    for target in targets:
        path = root / target
        if not path.exists():
            continue
        print(f"removing {target}")
        if dryrun:
            continue
        path.unlink()
        folder = path.parent
        while folder not in (root, root / "fixtures") and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _source_inputs(payload: FixturePayload) -> list[Path]:
    product = payload.product_file
    return [payload.source_file] if product is None else [payload.source_file, product]


def _existing(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def _relative(payload: FixturePayload, path: Path) -> str:
    """doit compares paths as strings, so each file has one spelling."""
    path = Path(os.path.normpath(path))
    return str(path.relative_to(payload.root)) if path.is_relative_to(payload.root) else str(path)


def _complain(error: PtychoTasksError) -> None:
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr, flush=True)
