"""A right scan, the files that it may come in, and the projects that read it."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from conftest import FURTHER, page_block
from numpy.typing import NDArray

from hostile.running import doit, run_apart
from ptycho_tasks.config.dodo import DODO
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData

ENERGY_EV, DISTANCE_M, PITCH_M = 8800.0, 2.0, 172e-6
JOULE = 1.602176634e-19
DETECTOR = "entry_1/instrument_1/detector_1"
SOURCE = "entry_1/instrument_1/source_1"
TRANSLATION = "entry_1/sample_1/geometry_1/translation"
EPOCHS = 3
Array = NDArray[Any]


@dataclass(frozen=True)
class Scan:
    """A simulated scan of a field that is not square, so that transposed axes show."""

    amplitude: Array
    x: Array
    y: Array
    probe: Array
    object: Array

    @property
    def counts(self) -> Array:
        """(M, N, N) int32."""
        return np.rint(self.amplitude.astype(np.float64) ** 2).astype(np.int32)

    @property
    def pixel_m(self) -> float:
        """The side of an object pixel."""
        return 1.2398419843320026e-06 / ENERGY_EV * DISTANCE_M / (self.amplitude.shape[1] * PITCH_M)


@functools.cache
def scan() -> Scan:
    made = simulate(SimulationOptions(size=32, grid=8, step=4.0, jitter=1.0, photons=1e6, seed=3))
    y, x = made.positions.T
    keep = x < x.min() + 0.7 * np.ptp(x)
    assert made.object is not None
    return Scan(made.diffraction[keep], x[keep], y[keep], made.probe[0], made.object)


def arrays() -> dict[str, Any]:
    """The scan under the keys of an NPZ, to be spoilt."""
    one = scan()
    return {
        "diff3d": one.amplitude.copy(),
        "xcoords": one.x.copy(),
        "ycoords": one.y.copy(),
        "probeGuess": one.probe.copy(),
        "objectGuess": one.object.copy(),
    }


def save(path: str = "scan.npz", **change: Any) -> Path:
    """Write the scan as an NPZ with some keys changed, or (None) left out."""
    np.savez(path, **{k: v for k, v in (arrays() | change).items() if v is not None})
    return Path(path)


def save_cxi(
    path: str = "scan.cxi",
    *,
    change: Callable[[h5py.File], None] | None = None,
    libver: Any = None,
    **values: Any,
) -> Path:
    """Write the scan as CXI with some values (data, translation, energy, distance, illumination,
    mask) changed, or (None) left out, and at last what `change` does to the file."""
    one = scan()
    given = {
        "data": one.counts,
        "translation": np.stack([one.x, one.y, 0 * one.x], axis=1) * one.pixel_m,
        "energy": ENERGY_EV * JOULE,
        "distance": DISTANCE_M,
        "illumination": one.probe,
        "mask": None,
        **values,
    }
    places = {
        "data": f"{DETECTOR}/data",
        "translation": TRANSLATION,
        "energy": f"{SOURCE}/energy",
        "distance": f"{DETECTOR}/distance",
        "illumination": f"{SOURCE}/illumination",
        "mask": f"{DETECTOR}/mask",
    }
    with h5py.File(path, "w", libver=libver) as file:
        file["cxi_version"] = 160
        for name, place in places.items():
            if given[name] is not None:
                file[place] = given[name]
        file[f"{DETECTOR}/x_pixel_size"] = file[f"{DETECTOR}/y_pixel_size"] = PITCH_M
        file["entry_1/data_1/data"] = h5py.SoftLink(f"/{places['data']}")
        file["entry_1/data_1/translation"] = h5py.SoftLink(f"/{TRANSLATION}")
        if change is not None:
            change(file)
    return Path(path)


def save_product(path: str = "product.h5", *, order: Array | None = None, **change: Any) -> Path:
    """Write the scan's positions, probe and object as a Ptychodus product."""
    one, pixel = scan(), scan().pixel_m
    numbers = np.arange(len(one.x)) if order is None else order
    rows, columns = one.object.shape
    content = {
        "probe_position_indexes": numbers,
        "probe_position_x_m": (one.x - columns / 2) * pixel,
        "probe_position_y_m": (one.y - rows / 2) * pixel,
        "probe": one.probe[None, None],
        "object": one.object[None],
        "loss_values": np.zeros(0),
        **change,
    }
    with h5py.File(path, "w") as file:
        for name in ("detector_object_distance_m", "probe_energy_eV", "exposure_time_s"):
            file.attrs[name] = 1.0
        for name, value in content.items():
            if value is not None:
                file[name] = value
        for name in ("probe", "object"):
            if name in file and isinstance(file[name], h5py.Dataset):
                file[name].attrs["pixel_width_m"] = file[name].attrs["pixel_height_m"] = pixel
                file[name].attrs["center_x_m"] = file[name].attrs["center_y_m"] = 0.0
    return Path(path)


def wrong_scan(
    *,
    frames: Array | None = None,
    x: Array | None = None,
    y: Array | None = None,
    shift: bool = False,
) -> Callable[[ScanData], str]:
    """Compares a scan that was read with the right one, or with what was put in its place.

    Args:
        frames: amplitude that is right here.
        x: likewise.
        y: likewise.
        shift: whether positions may be moved together.
    """
    one = scan()
    expected = {
        "frames": one.amplitude if frames is None else frames,
        "x": one.x if x is None else x,
        "y": one.y if y is None else y,
    }

    def wrong(read: ScanData) -> str:
        found = {"frames": read.diffraction, "y": read.positions[:, 0], "x": read.positions[:, 1]}
        for name, right in expected.items():
            here = np.asarray(found[name], np.float64)
            right = np.asarray(right, np.float64)
            if here.shape != right.shape:
                return f"{name}: shape {here.shape}, not {right.shape}"
            if shift and name != "frames":
                here, right = here - here[0], right - right[0]
            if not np.allclose(here, right, rtol=1e-3, atol=0.02):
                worst = int(np.argmax(np.abs(here - right).reshape(len(here), -1).max(axis=1)))
                return f"{name}: not as they are, most at frame {worst}"
        if not np.allclose(read.probe[0], one.probe, rtol=1e-3, atol=1e-3):
            return "probe: not as it is"
        return ""

    return wrong


def project(
    source: Mapping[str, Any] | str | None = None, *, more: str = "", backend: str = "epie"
) -> None:
    """Write a project of the documented backend into the current folder.

    Args:
        source: the section's keys, a file, or None to simulate.
        more: further lines of ptycho.yaml.
        backend: the backend's name.
    """
    if source is None:
        source = {"simulate": "{size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}"}
    elif isinstance(source, str):
        source = {"file": source}
    section = "".join(f"  {key}: {value}\n" for key, value in source.items())
    Path("ptycho.yaml").write_text(
        f"name: tiny\nsource:\n{section}backend: {backend}\ntraining: {{epochs: {EPOCHS}}}\n{more}"
    )
    Path("dodo.py").write_text(DODO)
    Path("backends").mkdir()
    Path("backends/epie.py").write_text(page_block("python backends/epie.py"))
    Path("backends/further.py").write_text(FURTHER)


def prepared(name: str, make: Callable[[], Any]) -> Path:
    """A folder that `make` fills in the current one, once in a run for all cases."""
    folder = Path(os.environ["HOSTILE_CACHE"], name)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            here = Path.cwd()
            new = Path(f"{folder}.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            os.chdir(new)
            make()
            os.chdir(here)
            new.rename(folder)
    return folder


def built_project() -> Path:
    """Copy a project with all built and refined into the current folder; gives the original."""

    def make() -> None:
        save()
        project("scan.npz", more="refine: {backend: further, epochs: 1}\n")
        assert run_apart(doit("infer")) == 0

    built = prepared("built", make)
    shutil.copytree(built, ".", dirs_exist_ok=True)
    return built


METRICS = Path("runs/default/inference/metrics.json")


def wrong_result(
    most: float = 0.2, least_score: float = 0.6, path: Path = METRICS
) -> Callable[[Any], str]:
    """Looks at the scores of `doit infer`: the right scan has an R-factor of 0.12."""

    def wrong(_: Any) -> str:
        metrics = json.loads(path.read_text())
        if not metrics["r_factor"] <= most:
            return f"R-factor {metrics['r_factor']:.3g} and no word"
        score = (metrics["scores"] or {}).get("phase_ssim")
        score = 1.0 if score is None else score  # against a truth that says nothing
        return "" if score >= least_score else f"phase_ssim {score:.3g} and no word"

    return wrong
