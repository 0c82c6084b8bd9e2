"""A mask in a file of its own, from ptycho.yaml to the reconstruction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_tasks.scans.fixture import read_fixture

MASK = "{file: scan.npz, bad_pixels: masks/mask.npy}"


def write_mask(root: Path, column: int) -> None:
    mask = np.zeros((32, 32), bool)
    mask[:, column] = True
    (root / "masks").mkdir(exist_ok=True)
    np.save(root / "masks" / "mask.npy", mask)


@pytest.fixture
def masked(file_project: Path) -> Path:
    """A project on a scan whose column 9 holds nonsense, and a mask that says so."""
    with np.load(file_project / "scan.npz") as scan:
        arrays = dict(scan)
    arrays["diff3d"][:, :, 9] = 40
    np.savez(file_project / "scan.npz", **arrays)
    config = file_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("{file: scan.npz}", MASK))
    write_mask(file_project, 9)
    return file_project


def test_a_mask_file_is_read_and_is_an_input(
    masked: Path, build: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert {*build(masked)} == {"source", "fixture", "train", "infer"}
    assert "bad pixels, masked: 32 in every frame" in capsys.readouterr().out
    fixture = read_fixture(masked / "fixtures" / "tiny.npz")
    assert fixture.bad_pixels is not None
    assert fixture.bad_pixels[:, 9].all()
    metrics = json.loads((masked / "runs/default/inference/metrics.json").read_text())
    assert metrics["r_factor"] < 0.1
    assert build(masked) == []
    # Where the mask lies does not matter; what it says does.
    (masked / "masks" / "mask.npy").rename(masked / "other.npy")
    config = masked / "ptycho.yaml"
    config.write_text(config.read_text().replace("masks/mask.npy", "other.npy"))
    assert build(masked) == []
    mask = np.load(masked / "other.npy")
    mask[:, 10] = True
    np.save(masked / "other.npy", mask)
    assert {*build(masked)} == {"source", "fixture", "train", "infer"}


def test_a_mask_that_is_not_there_is_a_line(
    masked: Path, build: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (masked / "masks" / "mask.npy").unlink()
    with pytest.raises(AssertionError):
        build(masked)
    error = capsys.readouterr().err
    assert error.startswith("error: ptycho.yaml:2: source.bad_pixels: there is no ")
    assert error.endswith("mask.npy; correct the path\n")
