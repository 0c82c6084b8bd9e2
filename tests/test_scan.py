"""Arrays of a scan: what is let go of, and what stays."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ptycho_tasks.scan import release_pages
from ptycho_tasks.scans.npz import NpzFile, write_npz


def resident_bytes(path: Path) -> int:
    """How much of a mapped file counts as memory of this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    kilobytes = 0
    for line in lines:
        if line.endswith(f" {path}"):
            kilobytes += next(int(at.split()[1]) for at in lines if at.startswith("Rss:"))
    return 1024 * kilobytes


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told by /proc")
def test_pages_of_a_mapped_file_are_let_go_of_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "frames.npz"
    frames = np.random.default_rng(0).random((500, 64, 64), dtype=np.float32)
    write_npz(path, {"frames": frames})
    mapped = NpzFile(path)["frames"]
    np.testing.assert_array_equal(mapped, frames)
    assert resident_bytes(path) > frames.nbytes / 2
    release_pages(np.asarray(mapped)[3:5])
    assert resident_bytes(path) < frames.nbytes / 100
    np.testing.assert_array_equal(mapped, frames)


def test_changes_that_only_memory_holds_are_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(5000))
    private = np.load(tmp_path / "a.npy", mmap_mode="c")
    private[7] = 1.0
    release_pages(private)
    release_pages(private[5:])
    assert private[7] == 1.0


@pytest.mark.parametrize("array", [np.zeros(3), np.broadcast_to(0.0, 3), [0.0] * 3])
def test_other_arrays_are_left_alone(array: object) -> None:
    release_pages(array)
    np.testing.assert_array_equal(array, [0.0] * 3)
