"""Frames and products as Ptychodus writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.battery import Must, Rng, Trial
from hostile.hdf5_scans import HDF5, ODD
from hostile.running import doit
from hostile.scans import (
    project,
    save_product,
    scan,
    wrong_result,
    wrong_scan,
)
from ptycho_tasks.scans.readers import read_scan

FRAMES = Path("frames.h5")
PTYCHODUS_PRODUCT = Path("product.h5")


def save_frames(indexes: Any = None, **more: Any) -> None:
    """Ptychodus' diffraction file: counts, and the numbers of the frames."""
    with h5py.File(FRAMES, "w") as file:
        file["patterns"] = more.pop("patterns", scan().counts)
        if indexes is not None:
            file["indexes"] = indexes
        for name, value in more.items():
            file[name] = value


def with_product(must: Must = "either", **right: Any) -> Trial:
    """Read the frames with the product."""
    return Trial(
        lambda: read_scan(FRAMES, product=PTYCHODUS_PRODUCT),
        ("frames.h5", "product.h5"),
        must,
        wrong_scan(shift=True, **right),
    )


@HDF5.case
def _product_right(rng: Rng) -> Trial:
    save_frames(np.arange(43))
    save_product()
    return with_product("succeed")


@HDF5.family
def _frames_by_number(rng: Rng) -> Trial:
    """Frames in any order and with gaps in their numbers, as the file itself says."""
    numbers = rng.permutation(int(rng.choice([43, 200])))[:43]
    save_frames(numbers)
    keep = np.sort(rng.permutation(43)[: rng.integers(20, 44)])
    order = rng.permutation(keep)
    pixel, one = scan().pixel_m, scan()
    rows, columns = one.object.shape
    save_product(
        order=numbers[order],
        probe_position_x_m=(one.x[order] - columns / 2) * pixel,
        probe_position_y_m=(one.y[order] - rows / 2) * pixel,
    )
    return with_product("succeed", frames=np.sqrt(one.counts[keep]), x=one.x[keep], y=one.y[keep])


for _name, _indexes in {
    "text": "all",
    "null": h5py.Empty("i8"),
    "short": np.arange(42),
    "float": np.arange(43) + 0.5,
    "nan": np.full(43, np.nan),
    "twice": np.zeros(43, int),
    "2d": np.zeros((43, 2), int),
    "beyond_int64": np.arange(43).astype("u8") + np.uint64(2**63),
    "of_others": np.arange(43) + 1000,
}.items():

    def _with_indexes(rng: Rng, indexes: Any = _indexes) -> Trial:
        save_frames(indexes)
        save_product()
        return with_product("refuse")

    HDF5.add(f"indexes_{_name}", _with_indexes)


@HDF5.case
def _bad_pixels_of_ptychodus(rng: Rng) -> Trial:
    bad = np.zeros((32, 32), bool)
    bad[:, 12:15] = True
    save_frames(np.arange(43), patterns=np.where(bad, 0, scan().counts), bad_pixels=bad)
    save_product()
    project({"file": "frames.h5", "product": "product.h5"})
    names = ("frames.h5", "source.")
    return Trial(doit("infer"), names, "speak", wrong_result(), may_change=("fixtures", "runs"))


for _key in (
    "probe_position_indexes",
    "probe_position_x_m",
    "probe_position_y_m",
    "probe",
    "object",
):
    for _name, _value in {"missing": None, **ODD}.items():
        if _name in ("bool", "enum", "huge", "negative", "denormal", "ragged"):
            continue

        def _odd_product(rng: Rng, key: str = _key, value: Any = _value) -> Trial:
            save_frames(np.arange(43))
            save_product(**{key: value})
            return with_product("either" if key == "object" else "refuse")

        HDF5.add(f"product_{_key}_{_name}", _odd_product)


def _product_attribute(name: str, value: Any) -> Callable[[Rng], Trial]:
    def maker(rng: Rng) -> Trial:
        save_frames(np.arange(43))
        save_product()
        with h5py.File(PTYCHODUS_PRODUCT, "a") as file:
            for key in ("pixel_width_m", "center_x_m"):
                file["object"].attrs[key] = value
        return with_product("refuse")

    return maker


for _name in ("null", "text", "nan", "inf", "texts", "empty", "compound"):
    HDF5.add(f"product_attributes_{_name}", _product_attribute(_name, ODD[_name]))


@HDF5.case
def _product_is_the_frames(rng: Rng) -> Trial:
    save_frames(np.arange(43))
    os.link(FRAMES, PTYCHODUS_PRODUCT)
    return with_product("refuse")


@HDF5.family
def _product_cut(rng: Rng) -> Trial:
    save_frames(np.arange(43))
    save_product()
    data = PTYCHODUS_PRODUCT.read_bytes()
    PTYCHODUS_PRODUCT.write_bytes(data[: rng.integers(len(data))])
    return with_product("refuse")
