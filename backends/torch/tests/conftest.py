"""Small scans to train on."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import hypothesis
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from forked_children import ForkedProgram
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import make_probe, measure, simulate
from ptycho_tasks.scan import ScanData
from ptycho_tasks.testing.forks import preloading
from ptycho_tasks.testing.project import build, doit, write_project  # noqa: F401
from ptycho_tasks_torch import helpers
from ptycho_tasks_torch.frames import textures
from ptycho_tasks_torch.physics import calibration
from ptycho_tasks_torch.training import checkpoints
from ptycho_tasks_torch.unrolled import objective, probe_fit

# The first call of a torch function takes long, which says nothing about the ones that follow.
hypothesis.settings.register_profile("torch", deadline=None, derandomize=True)
hypothesis.settings.load_profile("torch")
# The suite has a process for each core: threads of one would wait for those of another. Commands
# that tests run read it from the environment.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Else each of many processes compiles what it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> Iterator[None]:
    """Commands that train find imported what takes longer than their training."""
    with preloading("torch", "lightning.fabric", "ptycho_tasks_torch.training.trainer"):
        yield


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are forks, which start at once."""
    forking = SimpleNamespace(**vars(subprocess) | {"Popen": ForkedProgram})
    monkeypatch.setattr(helpers, "subprocess", forking)


@pytest.fixture(scope="module")
def few_trials() -> Iterator[None]:
    """Hardly any probes are tried before a training, and these are hardly fitted."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SIZES", (0,)), ("DEFOCI", (0,)), ("TRIALS", 2)):
            patch.setattr(calibration, name, value)
        patch.setattr(probe_fit, "CALIBRATING_STEPS", 3)
        patch.setattr(probe_fit, "MOST_LOOKS", 1)
        yield


@pytest.fixture(scope="module")
def few_objects() -> Iterator[None]:
    """Hardly any objects are simulated, and they are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textures, "POOL", 3)
        patch.setattr(objective, "SIDE", 96)
        yield


@pytest.fixture
def every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every epoch, however fast."""
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)


@pytest.fixture(scope="session")
def half_turns() -> ScanData:
    """100 frames of bars whose phase is 0 or half a turn, as much of each: such an object has no
    mean, and a flat one is no beginning for it."""
    N, generator = 32, np.random.default_rng(49)
    positions = np.stack(np.divmod(np.arange(100), 10), axis=1) * 3.0 + N // 2 + 2
    positions += generator.uniform(-0.5, 0.5, positions.shape)
    y, x = np.mgrid[:66, :66]
    truth = np.exp(1j * np.pi * ((x + 0.3 * y) % 7 < 3.5)).astype(np.complex64)
    probe = make_probe(SimulationOptions(size=N, probe="disc"))[None]
    return measure(truth, probe, positions, 1e7, np.random.default_rng(2), "half turns")


@pytest.fixture(scope="session")
def dense() -> ScanData:
    """36 frames of a smooth probe, in lines along which they lie much nearer than its width."""
    generator, N = np.random.default_rng(20), 40
    lines, places = np.divmod(np.arange(36.0), 12)
    positions = np.stack([3 * lines, 0.75 * places], axis=1)
    positions = np.round(positions + N // 2 + 2)
    y, x = np.mgrid[:N, :N] - N // 2
    width = np.hypot(y, x) / 6.4
    probe = np.exp(-(width**2) * (1 - 0.75j)).astype(np.complex64)[None]
    shape = tuple((positions.max(axis=0) + N // 2 + 4).astype(int))
    smooth = gaussian_filter(generator.standard_normal((2, *shape)), (0, 2, 2))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    truth = (0.6 + 0.4 * smooth[0]) * np.exp(2j * smooth[1])
    return measure(truth.astype(np.complex64), probe, positions, 2e7, generator, "dense")


@pytest.fixture(scope="session")
def scan() -> ScanData:
    """Frames of 32 x 32 pixels, read-only as a mapped file is."""
    return _simulate(grid=7)


@pytest.fixture(scope="session")
def large_scan() -> ScanData:
    """The same of more frames, of which a single one is left for the last batch of 16 or 32."""
    return _simulate(grid=9)


def _simulate(grid: int) -> ScanData:
    options = SimulationOptions(size=32, grid=grid, step=3.5, jitter=1.0, photons=1e6, seed=2)
    scan = simulate(options)
    scan.diffraction.flags.writeable = False
    scan.positions.flags.writeable = False
    assert scan.diffraction.dtype == np.float32
    return scan
