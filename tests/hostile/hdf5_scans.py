"""Scans in HDF5: CXI, Ptychodus' frames with a product, and the files behind them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.battery import Battery, Must, Rng, Trial
from hostile.running import doit
from hostile.scans import (
    DETECTOR,
    DISTANCE_M,
    ENERGY_EV,
    JOULE,
    SOURCE,
    TRANSLATION,
    project,
    save_cxi,
    scan,
    wrong_result,
    wrong_scan,
)
from ptycho_tasks.scans.readers import read_scan

HDF5 = Battery("hdf5")
PATH = Path("scan.cxi")
DATA = f"{DETECTOR}/data"
Change = Callable[[h5py.File], None]
PLACES = {
    "data": DATA,
    "translation": TRANSLATION,
    "energy": f"{SOURCE}/energy",
    "distance": f"{DETECTOR}/distance",
    "illumination": f"{SOURCE}/illumination",
    "pitch": f"{DETECTOR}/x_pixel_size",
    "mask": f"{DETECTOR}/mask",
}


def read(must: Must = "either", *, names: tuple[str, ...] = (), **right: Any) -> Trial:
    """Read the file that was written."""
    names = names or ("scan.cxi",)
    return Trial(lambda: read_scan(PATH), names, must, wrong_scan(shift=True, **right))


def infer(must: Must = "speak", names: tuple[str, ...] = ()) -> Trial:
    """Reconstruct the file in a project."""
    project("scan.cxi")
    names = (*names, "scan.cxi", "source.", "infer")
    # Without a truth, the R-factor alone tells.
    return Trial(doit("infer"), names, must, wrong_result(), may_change=("fixtures", "runs"))


def add(name: str, must: Must, *, change: Change | None = None, **values: Any) -> None:
    def maker(rng: Rng) -> Trial:
        given = {k: v() if callable(v) else v for k, v in values.items()}
        save_cxi(change=change, **given)
        return read(must)

    HDF5.add(name, maker)


def _infers(
    name: str, must: Must = "speak", *, change: Change | None = None, **values: Any
) -> None:
    def maker(rng: Rng) -> Trial:
        given = {k: v() if callable(v) else v for k, v in values.items()}
        save_cxi(change=change, **given)
        return infer(must)

    HDF5.add(name, maker)


def _replace(place: str, value: Any, **options: Any) -> Change:
    def change(file: h5py.File) -> None:
        if place in file:
            del file[place]
        file.create_dataset(place, data=value() if callable(value) else value, **options)

    return change


# --- right ---------------------------------------------------------------------------------------

add("right", "succeed")
add("latest_format", "succeed", libver="latest")
add("earliest_format", "succeed", libver=("earliest", "v108"))
add("big_endian", "succeed", data=lambda: scan().counts.astype(">i4"))
add("float_counts", "succeed", data=lambda: scan().counts.astype("f8"))
add("uint16", "succeed", data=lambda: scan().counts.clip(0, 65534).astype("u2"))
add("chunked", "succeed", change=_replace(DATA, lambda: scan().counts, chunks=(1, 8, 8)))
add("gzip", "succeed", change=_replace(DATA, lambda: scan().counts, compression="gzip"))
add(
    "shuffled",
    "succeed",
    change=_replace(DATA, lambda: scan().counts, compression="lzf", shuffle=True),
)
add(
    "checksummed",
    "succeed",
    change=_replace(DATA, lambda: scan().counts, chunks=(5, 32, 32), fletcher32=True),
)
add(
    "translation_2_columns",
    "succeed",
    translation=lambda: np.stack([scan().x, scan().y], 1) * scan().pixel_m,
)
add(
    "translation_transposed",
    "succeed",
    translation=lambda: np.stack([scan().x, scan().y, 0 * scan().x]) * scan().pixel_m,
)
add("modes", "succeed", illumination=lambda: np.stack([scan().probe, 0.1 * scan().probe]))
add("negative_distance", "either", distance=-DISTANCE_M)
_infers("ok", "succeed")

# --- nothing, text and odd types where an array belongs ------------------------------------------

_RAGGED = np.array([np.zeros(2), np.zeros(3)], dtype=object)
ODD: dict[str, Any] = {
    "null": h5py.Empty("f8"),
    "null_complex": h5py.Empty("c8"),
    "text": "eight",
    "bytes": np.bytes_(b"8800"),
    "texts": ["a", "b"],
    "nan": np.nan,
    "inf": np.inf,
    "zero": 0.0,
    "negative": -1.0,
    "huge": 1e300,
    "denormal": 5e-324,
    "empty": np.zeros(0),
    "no_rows": np.zeros((0, 3)),
    "bool": True,
    "many": np.linspace(1, 2, 43),
    "compound": np.zeros(43, [("x", "f8"), ("y", "f8")]),
    "opaque": np.zeros(43, "V8"),
    "7d": np.zeros((1,) * 7),
    "references": np.array([h5py.Reference()], dtype=h5py.ref_dtype),
    "ragged": _RAGGED,
    "enum": np.array(1, dtype=h5py.enum_dtype({"A": 1, "B": 2}, basetype="i4")),
}


def _odd_change(place: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        if place in file:
            del file[place]
        if value is _RAGGED:
            file.create_dataset(place, data=value, dtype=h5py.vlen_dtype(np.float64))
        else:
            file[place] = value

    return change


for _place, _path in PLACES.items():
    for _name, _value in ODD.items():
        if _place == "mask" or (_place == "illumination" and _name == "null_complex"):
            _must: Must = "either"
        elif _name in ("bool", "enum", "huge", "negative"):
            _must = "either"
        else:
            _must = "refuse"
        if _must == "either" and _place in ("energy", "distance", "pitch"):
            # A number that is right in itself, of another experiment.
            def _other(rng: Rng, path: str = _path, value: Any = _value) -> Trial:
                save_cxi(change=_odd_change(path, value))
                trial = infer("speak")
                return trial

            HDF5.add(f"{_place}_{_name}", _other)
        else:
            add(f"{_place}_{_name}", _must, change=_odd_change(_path, _value))
    add(
        f"{_place}_group",
        "either" if _place == "mask" else "refuse",
        change=functools.partial(lambda path, file: _as_group(path, file), _path),
    )
    if _place != "mask":
        add(
            f"{_place}_missing",
            "either" if _place == "illumination" else "refuse",
            change=functools.partial(lambda path, file: file.__delitem__(path), _path),
        )


def _as_group(path: str, file: h5py.File) -> None:
    if path in file:
        del file[path]
    file.create_group(path)


def virtual(
    *parts: tuple[str, int, int], fill: int = 0, between: Callable[[], None] | None = None
) -> Change:
    """Frames as a virtual dataset of (file, first, last) parts."""

    def change(file: h5py.File) -> None:
        counts = scan().counts
        layout = h5py.VirtualLayout(counts.shape, counts.dtype)
        for name, first, last in parts:
            layout[first:last] = h5py.VirtualSource(name, "d", (last - first, 32, 32))
        del file[DATA]
        file.create_virtual_dataset(DATA, layout, fillvalue=fill)

    return change


def write_part(name: str, first: int, last: int) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(name, "w") as file:
        file["d"] = scan().counts[first:last]


# --- frames that were not measured ---------------------------------------------------------------


def _aborted(written: int) -> Change:
    def change(file: h5py.File) -> None:
        del file[DATA]
        data = file.create_dataset(DATA, (43, 32, 32), "i4", chunks=(1, 32, 32))
        if written:
            data[:written] = scan().counts[:written]

    return change


_infers("aborted_scan", change=_aborted(30))
_infers("aborted_by_one", change=_aborted(42))
_infers("never_written", "refuse", change=_aborted(0))
_infers("beam_dump", data=lambda: np.where(_at(10, 22), 0, scan().counts))
_infers("all_dark", "refuse", data=lambda: 0 * scan().counts)


def _at(first: int, last: int) -> Any:
    numbers = np.arange(43)
    return ((numbers >= first) & (numbers < last))[:, None, None]


def _claims(name: str, shape: tuple[int, ...], must: Must = "refuse", **options: Any) -> None:
    def change(file: h5py.File) -> None:
        del file[DATA]
        file.create_dataset(DATA, shape, "f4", **options)

    add(name, must, change=change)


_claims("claims_terabytes", (43, 200000, 200000), chunks=(1, 1000, 1000))
_claims("claims_frames", (10**9, 32, 32), chunks=(1, 32, 32))
_claims("claims_4d", (43, 10**5, 10**5, 10**5), chunks=(1, 100, 100, 100))
_claims("claims_no_chunks", (43, 32, 10**9))
_claims("without_rows", (0, 32, 32), maxshape=(None, 32, 32), chunks=(1, 32, 32))


def _claimed(name: str, place: str, shape: tuple[int, ...], kind: str) -> None:
    def change(file: h5py.File) -> None:
        del file[PLACES[place]]
        file.create_dataset(PLACES[place], shape, kind, chunks=tuple(min(n, 100) for n in shape))

    add(name, "refuse", change=change)


_claimed("claims_positions", "translation", (10**12, 3), "f8")
_claimed("claims_probe", "illumination", (10**6, 10**6), "c8")
_claimed("claims_probe_modes", "illumination", (10**8, 32, 32), "c8")
_claimed("claims_energy", "energy", (10**12,), "f8")

# --- what the file says of itself ----------------------------------------------------------------

_gap = (np.arange(32) // 3 == 4)[None, None, :]
_infers(
    "gap_uint32max", data=lambda: np.where(_gap, np.uint32(2**32 - 1), scan().counts.astype("u4"))
)
_infers(
    "gap_uint16max",
    data=lambda: np.where(_gap, np.uint16(65535), scan().counts.clip(0, 65534).astype("u2")),
)
_infers("gap_minus1", data=lambda: np.where(_gap, np.int32(-1), scan().counts))
_infers("gap_float", data=lambda: np.where(_gap, np.float32(2**32 - 1), scan().counts.astype("f4")))
_infers("gap_nan", data=lambda: np.where(_gap, np.nan, scan().counts.astype("f4")))
_infers(
    "gap_masked",
    data=lambda: np.where(_gap, 0, scan().counts),
    mask=lambda: np.broadcast_to(_gap[0], (32, 32)).astype("u4"),
)
_infers("mask_of_nothing", "succeed", mask=lambda: np.zeros((32, 32), "u4"))
_infers("mask_of_all", mask=lambda: np.ones((32, 32), "u4"))
_infers("mask_wrong_size", mask=lambda: np.ones((16, 16), "u4"))
_infers("mask_a_frame", mask=lambda: np.zeros((43, 32, 32), "u4"))
_infers("hot_pixel", data=lambda: np.where(_hot(), 10**6, scan().counts))
_infers("dark_subtracted", data=lambda: (scan().counts - 3).astype("f4"))
_infers("no_probe", illumination=None)
_infers(
    "raster_4d",
    data=lambda: scan().counts[:40].reshape(5, 8, 32, 32),
    translation=lambda: (np.stack([scan().x, scan().y, 0 * scan().x], 1) * scan().pixel_m)[:40],
)
_infers("shifted_4d", data=lambda: scan().counts[None])
_infers("energy_in_eV", energy=ENERGY_EV)
_infers("energy_in_keV", energy=ENERGY_EV / 1e3)
_infers("counts_of_floats_1e30", data=lambda: scan().counts * 1e30)
_infers("counts_uint64_max", data=lambda: np.where(_hot(), np.uint64(2**64 - 2), scan().counts))


def _hot() -> Any:
    hot = np.zeros((32, 32), bool)
    hot[20, 22] = True
    return hot[None]


def _unit(place: str, unit: str, factor: float, must: Must, right: bool = True) -> None:
    """A value in a unit that its attribute names."""

    def change(file: h5py.File) -> None:
        dataset = file[PLACES[place]]
        dataset[...] = dataset[()] * factor
        dataset.attrs["units"] = unit

    add(f"units_{place}_{unit}", must, change=change)


for _symbol, _factor in {
    "m": 1.0,
    "mm": 1e3,
    "um": 1e6,
    "µm": 1e6,
    "nm": 1e9,
    "furlong": 1.0,
    "": 1.0,
}.items():
    _metres: Must = "succeed" if _symbol == "m" else "either"
    _metres = "refuse" if _symbol == "furlong" else _metres
    for _place in ("translation", "distance", "pitch"):
        _unit(_place, _symbol, _factor, _metres)
_unit("energy", "eV", 1 / JOULE, "either")
_unit("energy", "keV", 1e-3 / JOULE, "either")
_unit("energy", "J", 1.0, "succeed")
_unit("energy", "K", 1.0, "refuse")


def _attribute(name: str, place: str, key: str, value: Any, must: Must = "either") -> None:
    def change(file: h5py.File) -> None:
        file[place].attrs[key] = value

    add(name, must, change=change)


_attribute("units_a_number", TRANSLATION, "units", 3.0)
_attribute("units_null", TRANSLATION, "units", h5py.Empty("S1"))
_attribute("units_not_utf8", TRANSLATION, "units", np.bytes_(b"\xff\xfe"))
_attribute("units_many", TRANSLATION, "units", ["m", "mm"])


def _basis(name: str, vectors: Any, must: Must) -> None:
    def change(file: h5py.File) -> None:
        file[f"{DETECTOR}/basis_vectors"] = vectors

    _infers(f"basis_{name}", must, change=change)


_PITCH = 172e-6
_basis("usual", np.array([[0, -_PITCH, 0], [-_PITCH, 0, 0]]).T, "speak")
_basis("text", "x y", "speak")
_basis("nan", np.full((3, 2), np.nan), "speak")
_basis("empty", np.zeros((0, 0)), "speak")
_basis("other_pitch", np.array([[0, -2 * _PITCH, 0], [-2 * _PITCH, 0, 0]]).T, "speak")

# --- damaged -------------------------------------------------------------------------------------


@HDF5.case
def _only_a_signature(rng: Rng) -> Trial:
    PATH.write_bytes(b"\x89HDF\r\n\x1a\n")
    return read("refuse")


@HDF5.case
def _no_content(rng: Rng) -> Trial:
    h5py.File(PATH, "w").close()
    return read("refuse")


@HDF5.case
def _user_block(rng: Rng) -> Trial:
    save_cxi("inner.cxi")
    with h5py.File(PATH, "w", userblock_size=512) as file, h5py.File("inner.cxi") as inner:
        for name in inner:
            inner.copy(name, file)
    Path("inner.cxi").unlink()
    return read("succeed")


@HDF5.case
def _still_being_written(rng: Rng) -> Trial:
    save_cxi(libver="latest")
    with h5py.File(PATH, "a", libver="latest") as file:
        file.flush()
        data = PATH.read_bytes()
    PATH.write_bytes(data)
    return read()


@HDF5.family
def _cut(rng: Rng) -> Trial:
    save_cxi()
    data = PATH.read_bytes()
    PATH.write_bytes(data[: rng.integers(len(data))])
    return read("refuse")


@HDF5.family
def _flip_heads(rng: Rng) -> Trial:
    """Some bytes changed in what describes the data; the frames themselves have no checksum."""
    save_cxi(libver=("latest" if rng.random() < 0.3 else "earliest", "latest"))
    data = bytearray(PATH.read_bytes())
    frames = scan().counts.tobytes()
    at = data.find(frames[:64]) if frames[:64] in data else len(data)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(8, min(at, 12000, len(data))))
        data[place] = rng.integers(256)
    PATH.write_bytes(data)
    trial = read()
    # Positions and the probe lie there too, as numbers like any other.
    trial.wrong = lambda scan: "" if np.isfinite(scan.positions).all() else "not finite"
    return trial


@HDF5.family
def _odd_part(rng: Rng) -> Trial:
    """One of the parts with another shape and type."""
    place = str(rng.choice(["data", "translation", "illumination", "energy", "distance", "mask"]))
    shape = tuple(int(n) for n in rng.integers(0, 40, rng.integers(0, 6)))
    kind = str(rng.choice(["i1", "u2", "i8", "f2", ">f8", "c8", "?", "S3", "V4"]))
    if np.prod(shape, dtype=float) > 1e6:
        shape = shape[:2]
    if place == "data" and shape == (43, 32, 32):
        shape = (42, 32, 32)
    change = _replace(PLACES[place], np.ones(shape, kind))
    save_cxi(change=change)
    if place in ("energy", "distance") and kind in ("i1", "u2", "i8", "f2", ">f8", "?"):
        trial = read()
        trial.wrong = lambda scan: "" if np.isfinite(scan.positions).all() else "not finite"
        return trial
    return read("either" if place == "mask" else "refuse")


@HDF5.family
def _virtual_at_random(rng: Rng) -> Trial:
    """A virtual dataset of several parts, of which some are missing, short, or overlap."""
    ends = [0, *sorted(int(n) for n in rng.choice(np.arange(1, 43), 3, replace=False)), 43]
    parts = [(f"p{n}.h5", a, b) for n, (a, b) in enumerate(itertools.pairwise(ends))]
    lost = rng.random() < 0.5
    victim = int(rng.integers(len(parts)))
    for number, (name, first, last) in enumerate(parts):
        if not (lost and number == victim):
            write_part(name, first, last)
        elif rng.random() < 0.5 and last - first > 1:
            write_part(name, first, last - 1)
    save_cxi(change=virtual(*parts, fill=int(rng.integers(2)) * 7))
    return read("refuse" if lost else "succeed", names=(f"p{victim}.h5", "scan.cxi"))
