"""What the stages read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_tasks.builds.messages import print_doubts, print_scan
from ptycho_tasks.builds.state import sha256_of_input
from ptycho_tasks.config.payload import InferencePayload, Payload, TrainingPayload
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.layout import FILES_BESIDE, OF_EVERY_SCAN, project_path

if TYPE_CHECKING:
    from ptycho_tasks.scan import ScanData


def is_simulated_scan(payload: Payload) -> bool:
    """Whether the source file is what a simulation would put there now."""
    from ptycho_tasks.physics.simulate import simulate
    from ptycho_tasks.scans.npz import write_scan
    from ptycho_tasks.system.files import sha256_file, temporary_file

    path = payload.source_file
    if payload.source.simulate is None or not path.is_file():
        return False
    with temporary_file(path) as fresh:
        write_scan(fresh, simulate(payload.source.simulate, name=path.stem))
        return sha256_file(fresh) == sha256_file(path)


def check_scan_to_infer(payload: InferencePayload, training: TrainingPayload) -> None:
    """Refuse a scan that could not be reconstructed after a training.

    Raises:
        ConfigError: the file is not there, or its frames are not of the size of the others.
        ScanError: the scan breaks the contract.
    """
    sizes = [read_source(one, one.source_file).size for one in (training, payload)]
    if sizes[0] != sizes[1]:
        origin = payload.origins["source.file"]
        raise ConfigError(
            f"{origin}: {payload.scan_file}: has frames of {sizes[1]} x {sizes[1]} pixels, but "
            f"those to train on have {sizes[0]} x {sizes[0]}; name a scan of that size"
        )


def read_source(payload: Payload, path: Path) -> ScanData:
    """Read the source, or another scan in its format.

    The frames stay memory-mapped, so that a scan may be larger than memory; what becomes of a file
    that another program cuts short meanwhile, see `ptycho_tasks.scans.mapping`.
    """
    from ptycho_tasks.scans.readers import read_scan, refuse_changed

    source = payload.source
    # The product is that of the source, and of no other scan.
    own = path == payload.source_file
    beside = FILES_BESIDE if own else OF_EVERY_SCAN
    for key in ("source.file" if own else "inference.scan", *(f"source.{one}" for one in beside)):
        missing = payload.describe_missing(key)
        if missing is not None:
            raise ConfigError(f"{missing}; correct the path")
    scan = read_scan(
        path,
        product=payload.product_file if own else None,
        follow=tuple(map(payload.path, source.follow)),
        root=payload.root,
        **(payload.reading if own else payload.reading | {"positions": None}),
    )
    named = {payload.path(text) for text in source.files_beside.values()}
    payload.files_read.update(
        {
            project_path(payload.root, file): sha256_of_input(payload.root, file)
            for file in scan.files
            if file not in named  # an input by its content, wherever it lies
        }
    )
    refuse_changed(scan.files)
    return scan


def refuse_missing_files(payload: Payload) -> None:
    """Refuse to begin without a file that the backend is to read.

    Raises:
        ConfigError: names the key that decides it.
    """
    for key in payload.backend_files:
        missing = payload.describe_missing(key)
        if missing is not None:
            raise ConfigError(f"{missing}; correct the path")


def read_training_scans(payload: TrainingPayload) -> list[ScanData]:
    """Read the frames to learn from: the project's fixtures, or for a command the scan."""
    if not payload.is_of_project:
        return [_read_training_scan(payload)]
    from ptycho_tasks.scans.fixture import read_fixture

    return [read_fixture(path) for path in payload.training_files.values()]


def _read_training_scan(payload: TrainingPayload) -> ScanData:
    """The frames that a fixture of the source would hold."""
    from ptycho_tasks.scan import take_frames
    from ptycho_tasks.scans.cutting import select_indices

    scan = read_source(payload, payload.source_file)
    indices = select_indices(scan.positions, payload.fixture, name=scan.name)
    if len(indices) < scan.frame_count:
        scan = take_frames(scan, indices)
    print_scan("scan", payload.source_file, payload, scan)
    print_doubts(payload.source_file, payload, scan)
    return scan


def read_scan_to_infer(payload: InferencePayload) -> ScanData:
    """Read the frames to reconstruct.

    Raises:
        ConfigError: the scan is not there, has fewer frames than `inference.n_groups` asks for, or
            is several scans.
        ScanError: it breaks the contract.
    """
    if payload.config.inference.scan == "fixture":
        from ptycho_tasks.scans.fixture import read_fixture

        scan = read_fixture(payload.fixture_file)
    else:
        scan = read_source(payload, payload.scan_file)
    scan = _select_frames(payload, scan)
    _refuse_several(payload, scan)
    print_scan("scan", payload.scan_file, payload, scan)
    # In a project, what the source leaves in doubt was said when it was checked.
    if not payload.is_of_project or payload.config.inference.scan not in ("source", "fixture"):
        print_doubts(payload.scan_file, payload, scan)
    return scan


def _select_frames(payload: InferencePayload, scan: ScanData) -> ScanData:
    """Those frames of a scan that `inference:` asks for.

    Raises:
        ConfigError: the scan has fewer.
    """
    import numpy as np

    from ptycho_tasks.scan import evenly_spaced, take_frames

    options = payload.config.inference
    kept = np.arange(scan.frame_count)
    if options.frames != "all":
        kept = kept[("even", "odd").index(options.frames) :: 2]
    count = options.n_groups
    if count is not None:
        if count > len(kept):
            which = "" if options.frames == "all" else f" {options.frames}"
            raise ConfigError(
                f"{payload.origins['inference.n_groups']}: inference.n_groups: {count} frames are "
                f"asked for, but {payload.display_path(payload.scan_file)} has {len(kept)}{which}; "
                "ask for at most as many"
            )
        kept = kept[evenly_spaced(len(kept), count)]
    return scan if len(kept) == scan.frame_count else take_frames(scan, kept)


def _refuse_several(payload: InferencePayload, scan: ScanData) -> None:
    """Refuse to lay several scans onto one canvas.

    Raises:
        ConfigError: names the key that says which one is meant.
    """
    from ptycho_tasks.scan import scan_numbers

    numbers = scan_numbers(scan)
    if len(numbers) > 1:
        shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
        raise ConfigError(
            f"{payload.display_path(payload.scan_file)}: key 'scan_index' holds {len(numbers)} "
            f"scans ({shown}), and a reconstruction is of one; name it with source.scan_index, or "
            "each under source.files: `{a: {file: FILE, scan_index: 1}, ...}`"
        )
