"""A reconstruction in a process of its own, which knows only a backend's name and a folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from ptycho_tasks.backend import InferRequest, Reconstruction, checked_reconstruction
from ptycho_tasks.backends import execution_type, find_backend
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.testing.project import PYTHON, run_command

SCAN_FILE, RESULT_FILE = "scan.npz", "result.npz"


def infer_elsewhere(
    name: str, folder: Path, scan: ScanData, execution: ExecutionOptions, *, root: Path
) -> Reconstruction:
    """Infer a scan in another process.

    Args:
        name: the backend's.
        folder: holds the bundle; gets scan and result.
        scan: what is inferred.
        execution: where to run.
        root: the project whose `backends/` folder holds the backend, where it is not installed.
    """
    write_scan(folder / SCAN_FILE, scan)
    words = name, str(folder), msgspec.json.encode(execution).decode()
    done = run_command([*PYTHON, __name__, *words], cwd=root.absolute())
    assert done.returncode == 0, f"the process failed:\n{done.stderr}"
    with np.load(folder / RESULT_FILE) as result:
        return Reconstruction(
            result["object"],
            (int(result["origin"][0]), int(result["origin"][1])),
            result["probe"],
            result["positions"],
        )


def infer_from_disk() -> None:
    """In a process of its own: infer what lies in a folder, and write the result there."""
    name, folder, execution = sys.argv[1:]
    path = Path(folder)
    backend, bundle = find_backend(name, Path.cwd()).load(), load_bundle(path)
    scan = replace(read_scan(path / SCAN_FILE), object=None)
    request = InferRequest(
        scan,
        bundle.model,
        msgspec.convert(bundle.params["training"], backend.options_type),
        msgspec.json.decode(execution, type=execution_type(backend)),
    )
    result = checked_reconstruction(backend.infer(request), scan, name)
    np.savez(
        path / RESULT_FILE,
        object=result.object,
        origin=np.array(result.origin),
        probe=result.probe,
        positions=result.positions,
    )


if __name__ == "__main__":
    infer_from_disk()
