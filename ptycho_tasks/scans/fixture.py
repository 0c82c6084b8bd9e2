"""Fixtures: the frames of a scan to learn from, with a sidecar that says which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.bad_pixels import ONLY_MARKED
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.system.files import find_file_problem, sha256_file

FORMAT = "ptycho-tasks fixture"

FORMAT_VERSION = 1


def is_whole(npz_path: Path) -> bool:
    """Whether an NPZ and its sidecar are as they were written."""
    if not (npz_path.is_file() and npz_path.with_suffix(".json").is_file()):
        return False
    try:
        return bool(
            read_sidecar(npz_path.with_suffix(".json"))["npz"]["sha256"] == sha256_file(npz_path)
        )
    except (ScanError, OSError):
        return False


def read_fixture(npz_path: Path) -> ScanData:
    """Read a fixture; the frames stay memory-mapped.

    Raises:
        ScanError: the fixture is missing, breaks the contract, or does not match its sidecar.
    """
    npz_path = Path(npz_path)
    try:
        digest = sha256_file(npz_path)
    except FileNotFoundError:
        raise ScanError(f"{npz_path}: no such fixture; make it with `doit fixture`") from None
    except OSError as error:
        raise ScanError(
            f"{npz_path}: cannot be read: {error.strerror or error}; check its permissions"
        ) from error
    sidecar = read_sidecar(npz_path.with_suffix(".json"))
    if sidecar["npz"]["sha256"] != digest:
        raise ScanError(
            f"{npz_path}: its content is not what {npz_path.with_suffix('.json').name} says "
            "(sha256 differs); make the fixture again"
        )
    # What was settled when the source was read is not asked again.
    scan = read_scan(
        npz_path,
        reader="npz",
        units="pixels",
        stray_frames="keep",
        bad_pixels=ONLY_MARKED,
        mask_marks="bad",
    )
    return replace(scan, name=sidecar["scan_name"], notes=(), doubts=())


def read_frame_size(npz_path: Path) -> int:
    """N of the frames of a fixture, as its sidecar says.

    Raises:
        ScanError: see `read_sidecar`.
    """
    return int(read_sidecar(npz_path.with_suffix(".json"))["arrays"]["diff3d"]["shape"][-1])


def read_sidecar(path: Path) -> dict[str, Any]:
    """What a fixture's sidecar says.

    Raises:
        ScanError: it is missing, damaged, or of another program.
    """
    advice = "make the fixture again"
    problem = find_file_problem(path)
    if problem:
        raise ScanError(f"{path}: {problem}; move it away and {advice}")
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        known = (sidecar["format"], sidecar["format_version"]) == (FORMAT, FORMAT_VERSION)
        complete = isinstance(sidecar["npz"]["sha256"], str) and isinstance(
            sidecar["scan_name"], str
        )
    except FileNotFoundError:
        raise ScanError(f"{path}: the fixture's sidecar is missing; {advice}") from None
    except OSError as error:
        raise ScanError(f"{path}: cannot be read: {error.strerror or error}; {advice}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScanError(f"{path}: not a fixture's sidecar; {advice}") from error
    if not known or not complete:
        raise ScanError(
            f"{path}: not a sidecar of {FORMAT} version {FORMAT_VERSION}; {advice}, or update "
            "ptycho-tasks"
        )
    return dict(sidecar)
