"""Files that an HDF5 file leads to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from hostile.battery import Must, Rng, Trial
from hostile.hdf5_scans import DATA, HDF5, PLACES, add, read, virtual, write_part
from hostile.scans import (
    TRANSLATION,
    save_cxi,
    scan,
)


def _virtual_case(
    name: str,
    must: Must,
    parts: list[tuple[str, int, int]],
    write: list[tuple[str, int, int]],
    names: tuple[str, ...] = (),
) -> None:
    def maker(rng: Rng) -> Trial:
        for one in write:
            write_part(*one)
        save_cxi(change=virtual(*parts))
        return read(must, names=names)

    HDF5.add(name, maker)


_both = [("part_1.h5", 0, 20), ("part_2.h5", 20, 43)]
_virtual_case("virtual_right", "succeed", _both, _both)
_virtual_case("virtual_part_missing", "refuse", _both, _both[:1], ("part_2.h5",))
_virtual_case("virtual_all_missing", "refuse", _both, [], ("part_1.h5",))
_virtual_case("virtual_part_shorter", "refuse", _both, [_both[0], ("part_2.h5", 20, 30)])
_virtual_case(
    "virtual_gap", "refuse", [_both[0], ("part_2.h5", 25, 43)], [_both[0], ("part_2.h5", 25, 43)]
)
_virtual_case("virtual_outside", "refuse", [("../p.h5", 0, 43)], [("../p.h5", 0, 43)], ("p.h5",))
_virtual_case("virtual_in_a_folder", "succeed", [("a/p.h5", 0, 43)], [("a/p.h5", 0, 43)])
_virtual_case("virtual_of_itself", "refuse", [("scan.cxi", 0, 43)], [])
_virtual_case("virtual_missing_absolute", "refuse", [("/nowhere/p.h5", 0, 43)], [], ("p.h5",))


@HDF5.case
def _virtual_not_hdf5(rng: Rng) -> Trial:
    Path("part_1.h5").write_text("no HDF5")
    save_cxi(change=virtual(("part_1.h5", 0, 43)))
    return read("refuse", names=("part_1.h5",))


def _nested(write: bool) -> Callable[[Rng], Trial]:
    def maker(rng: Rng) -> Trial:
        if write:
            write_part("deep.h5", 0, 43)
        layout = h5py.VirtualLayout(scan().counts.shape, scan().counts.dtype)
        layout[:] = h5py.VirtualSource("deep.h5", "d", scan().counts.shape)
        with h5py.File("part_1.h5", "w") as file:
            file.create_virtual_dataset("d", layout)
        save_cxi(change=virtual(("part_1.h5", 0, 43)))
        return read("succeed" if write else "refuse", names=("deep.h5",))

    return maker


HDF5.add("virtual_nested", _nested(True))
HDF5.add("virtual_nested_missing", _nested(False))


def _external_link(place: str, target: str, *, exists: bool, must: Must) -> None:
    name = f"link_{place}_{target.strip('./').replace('/', '_')}_{'there' if exists else 'gone'}"

    def maker(rng: Rng) -> Trial:
        values = {}

        def change(file: h5py.File) -> None:
            values["value"] = file[PLACES[place]][()]
            del file[PLACES[place]]
            file[PLACES[place]] = h5py.ExternalLink(target, "d")

        save_cxi(change=change)
        if exists:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(target, "w") as file:
                file["d"] = values["value"]
        return read(must, names=(Path(target).name,) if must == "refuse" else ())

    HDF5.add(name, maker)


for _place in ("data", "translation", "illumination", "energy"):
    _external_link(_place, "beside.h5", exists=True, must="succeed")
    _external_link(_place, "beside.h5", exists=False, must="refuse")
    _external_link(_place, "../outside.h5", exists=True, must="refuse")


def _external_storage(place: str, target: str) -> None:
    """Bytes of another file, taken for an array: a way to copy any file out."""

    def maker(rng: Rng) -> Trial:
        one = scan()
        array = {"data": one.counts.astype("u1"), "illumination": one.probe}.get(
            place, np.stack([one.x, one.y], 1) * one.pixel_m
        )
        if target == "secret.bin":
            Path(target).write_bytes(np.ascontiguousarray(array).tobytes())

        def change(file: h5py.File) -> None:
            del file[PLACES[place]]
            storage = [(target, 0, h5py.h5f.UNLIMITED)]
            file.create_dataset(PLACES[place], array.shape, array.dtype, external=storage)

        save_cxi(change=change)
        return read("refuse")

    HDF5.add(f"storage_{place}_{Path(target).name}", maker)


for _place in ("data", "translation", "illumination"):
    _external_storage(_place, "secret.bin")
    _external_storage(_place, "/etc/services")
    _external_storage(_place, "nowhere.bin")


@HDF5.case
def _storage_on_a_device(rng: Rng) -> Trial:
    def change(file: h5py.File) -> None:
        del file[DATA]
        storage = [("/dev/urandom", 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(DATA, (43, 32, 32), "u1", external=storage)

    save_cxi(change=change)
    return read("refuse")


def _soft_loop(file: h5py.File) -> None:
    del file[DATA]
    file[DATA] = h5py.SoftLink("/entry_1/data_1/data")


def _to_itself(file: h5py.File) -> None:
    del file[TRANSLATION]
    file[TRANSLATION] = h5py.SoftLink(f"/{TRANSLATION}")


add("loop_of_links", "refuse", change=_soft_loop)
add("link_to_itself", "refuse", change=_to_itself)
add(
    "hard_links_in_a_ring",
    "succeed",
    change=lambda file: file["entry_1"].__setitem__("again", file["/"]),
)
add("dangling", "refuse", change=lambda file: (_to_nowhere(file), None)[1])


def _to_nowhere(file: h5py.File) -> None:
    del file[DATA]
    file[DATA] = h5py.SoftLink("/nowhere")
