"""Mapped files that are cut short while they are read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ptycho_tasks.errors import ScanError, TrainingError
from ptycho_tasks.scans.mapping import map_array, refuse_cut, refuse_cut_files

SHAPE = (64, 64, 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "frames.bin"
    np.ones(SHAPE, np.float32).tofile(path)
    return path


def open_frames(path: Path) -> np.ndarray:
    return map_array(path, path, np.dtype(np.float32), 0, SHAPE)


def read_in_part(frames: np.ndarray, path: Path) -> None:
    os.truncate(path, 5000)
    assert frames.sum() == 0


def read_before_it_grows_again(frames: np.ndarray, path: Path) -> None:
    os.truncate(path, 0)
    frames.sum()
    np.ones(SHAPE, np.float32).tofile(path)


def end_in_another_error(frames: np.ndarray, path: Path) -> None:
    read_in_part(frames, path)
    raise TrainingError("explains nothing")


def read_in_a_thread(frames: np.ndarray, path: Path) -> None:
    os.truncate(path, 0)
    # A product of matrices runs without the interpreter's lock.
    thread = threading.Thread(target=lambda: frames[0] @ frames[1])
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "read", [read_in_part, read_before_it_grows_again, end_in_another_error, read_in_a_thread]
)
def test_what_is_missing_is_refused_and_ends_nothing_else(
    path: Path, read: Callable[[np.ndarray, Path], None]
) -> None:
    @refuse_cut_files()
    def work() -> None:
        read(open_frames(path), path)

    with pytest.raises(ScanError, match=r"frames\.bin: was cut short while it was read; run again"):
        work()
    with refuse_cut_files():
        refuse_cut()


def test_a_file_that_is_whole_or_replaced_is_read(path: Path) -> None:
    with refuse_cut_files():
        frames = open_frames(path)
        (path.parent / "short").write_bytes(b"")
        (path.parent / "short").replace(path)
        refuse_cut()
        assert frames.sum() == frames.size


def test_other_bus_errors_end_the_process_as_ever(path: Path) -> None:
    program = f"""
import mmap, os
from ptycho_tasks.scans.mapping import refuse_cut_files
with open({str(path)!r}, "r+b") as file, refuse_cut_files():
    data = mmap.mmap(file.fileno(), 0)
    os.truncate({str(path)!r}, 0)
    data[:]
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGBUS
