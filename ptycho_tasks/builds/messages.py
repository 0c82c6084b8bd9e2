"""What the stages tell the user, and whom they name where a backend fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.config.payload import (
    InferencePayload,
    Payload,
)
from ptycho_tasks.errors import BackendError, ConfigError, TrainingError
from ptycho_tasks.layout import AMPLITUDE, METRICS, PHASE, RECONSTRUCTION
from ptycho_tasks.system.plugins import import_failure
from ptycho_tasks.system.processes import Stopped, catch_hard_exits, describe_exit
from ptycho_tasks.system.terminal import echo

if TYPE_CHECKING:
    from ptycho_tasks.scan import ScanData


def print_result(payload: InferencePayload, metrics: dict[str, Any]) -> None:
    """Say where a reconstruction lies, and how good it is; `metrics` is what metrics.json holds."""
    for what, name in (
        ("product", RECONSTRUCTION),
        ("amplitude", AMPLITUDE),
        ("phase", PHASE),
        ("metrics", METRICS),
    ):
        print_line(payload, f"{what:<10} {payload.display_path(payload.output_dir / name)}")
    print_line(
        payload,
        f"{'misfit':<10} R-factor {metrics['r_factor']:.4f}, "
        f"Poisson deviance {metrics['poisson_deviance']:.4g} a pixel",
    )
    for name, value in (metrics["scores"] or {}).items():
        shown = "none" if value is None else format(value, ".4g")
        print_line(payload, f"{'score':<10} {name} {shown}")


def print_scan(what: str, path: Path, payload: Payload, scan: ScanData) -> None:
    """Say what a scan is, and what was changed in reading it; `what` is the word before it."""
    size = f"{scan.frame_count} frames of {scan.size} x {scan.size}"
    print_line(payload, f"{what:<10} {payload.display_path(path)}: {size}")
    for note in scan.notes:
        print_line(payload, f"{'':<10} {note}")


def print_doubts(path: Path, payload: Payload, scan: ScanData) -> None:
    """Say what looks wrong in a scan."""
    from ptycho_tasks.scans.plausibility import doubts

    for doubt in doubts(scan):
        print_warning(f"{payload.display_path(path)}: {doubt}")


def print_warning(text: str) -> None:
    """Warn the user, also where the rest is quiet."""
    echo(f"{'warning':<10} {text}")


def print_line(payload: Payload, text: str) -> None:
    """Say something, unless the user asked for quiet."""
    if not payload.execution.quiet:
        echo(text)


@contextmanager
def explain_failures(payload: Payload) -> Iterator[None]:
    """Say which backend, or which line of ptycho.yaml, is behind what a backend raises."""
    backend = f"backend `{payload.backend.name}`"
    try:
        with catch_hard_exits():
            yield
    except Stopped:
        raise
    except SystemExit as error:
        raise TrainingError(
            f"{backend} ended the program with {describe_exit(error)}; it must raise an error that "
            "says what is wrong"
        ) from error
    except ImportError as error:
        raise BackendError(f"{backend} cannot run: {import_failure(error)}") from error
    except ConfigError as error:
        text = str(error)
        # A refiner's options are called what they are called in training; they stand elsewhere.
        if text.startswith("training."):
            text = text.replace("training", payload.section, 1)
        key = text.partition(":")[0]
        origin = payload.origins.get(key)
        if origin is None:
            raise
        raise ConfigError(f"{origin}: {text}") from error
