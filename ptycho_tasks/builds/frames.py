"""How many frames a stage is about, and how large they are, without reading any."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ptycho_tasks.errors import PtychoTasksError

if TYPE_CHECKING:
    from ptycho_tasks.config.payload import Payload


class Frames(NamedTuple):
    """The frames of a scan."""

    number: int
    size: int
    """Pixels along a side."""

    @property
    def pixels(self) -> int:
        """Of all frames together."""
        return self.number * self.size**2


def count_pixels(payload: Payload, stage: str) -> int:
    """Pixels of all frames that a stage computes with; zero where that is not known."""
    return 0 if stage in ("source", "fixture") else sum(one.pixels for one in list_frames(payload))


def list_frames(payload: Payload) -> list[Frames]:
    """The frames of each scan that a training or a reconstruction is about; empty where one of them
    says nothing of them."""
    from ptycho_tasks.config.payload import InferencePayload, TrainingPayload

    files: list[Path] = []
    if isinstance(payload, TrainingPayload):
        files = [*payload.training_files.values()] if payload.is_of_project else []
        files = files or [payload.source_file]
    elif isinstance(payload, InferencePayload):
        files = [payload.scan_file]
    with suppress(PtychoTasksError, OSError, LookupError, TypeError, ValueError):
        return [_read_frames(payload, file) for file in files]
    return []


def _read_frames(payload: Payload, path: Path) -> Frames:
    from ptycho_tasks.scans.fixture import read_sidecar

    simulated = payload.source.simulate
    if path == payload.source_file and simulated is not None:
        return Frames(simulated.grid**2, simulated.size)
    if path.with_suffix(".json").exists():
        count, *_, size = read_sidecar(path.with_suffix(".json"))["arrays"]["diff3d"]["shape"]
        return Frames(int(count), int(size))
    return _read_header(payload, path)


def _read_header(payload: Payload, path: Path) -> Frames:
    """Of a scan in any format; a crop that is larger than its frames is refused elsewhere."""
    from ptycho_tasks.scans.raw_scan import Reading
    from ptycho_tasks.scans.readers import open_scan

    follow = tuple(map(payload.path, payload.source.follow))
    has_product = payload.product_file is not None
    reading = Reading(**payload.reading, follow=follow, has_product=has_product)
    with open_scan(path, reading, payload.root) as raw:
        shape = raw.frames.array.shape
    count, side = (shape[2], shape[0]) if shape[0] == shape[1] != shape[2] else (shape[0], shape[2])
    return Frames(count, min(side, reading.crop or side) // reading.bin)
