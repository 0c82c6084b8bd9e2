"""NPZ files after the contract, with values that are not, and damage at random."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from hostile.battery import Rng, Trial
from hostile.npz_scans import KEYS, NPZ, PATH, add, infers, read, write_zip
from hostile.running import ptycho
from hostile.scans import arrays, save, scan

_VALUES = {
    "nan": np.nan,
    "inf": np.inf,
    "minus_inf": -np.inf,
    "huge": 1e30,
    "float32_max": float(np.finfo(np.float32).max),
}


def _with(key: str, value: float, index: int = 7) -> dict[str, Any]:
    array = arrays()[key]
    with np.errstate(over="ignore"):
        array.reshape(-1)[index] = value
    return {key: array}


for _key in (*KEYS, "objectGuess"):
    for _name in ("nan", "inf", "minus_inf"):
        if (_key, _name) != ("diff3d", "nan"):  # which marks a bad pixel
            add(f"{_name}_in_{_key}", "refuse", functools.partial(_with, _key, _VALUES[_name]))
add("negative_in_diff3d", "refuse", lambda: _with("diff3d", -1.0))

infers("ok", dict, must="succeed")
infers("frame_of_nan", lambda: _with("diff3d", np.nan))
for _name in ("huge", "float32_max"):
    for _key in KEYS:
        infers(f"{_name}_in_{_key}", functools.partial(_with, _key, _VALUES[_name]))
infers("frames_denormal", lambda: {"diff3d": scan().amplitude * np.float32(1e-42)})
infers("frames_1e30", lambda: {"diff3d": scan().amplitude * np.float32(1e30)})
infers("frames_1e-20", lambda: {"diff3d": scan().amplitude * np.float32(1e-20)})
infers("frames_float32_max", lambda: {"diff3d": np.full_like(scan().amplitude, 3.4e38)})
infers("probe_1e30", lambda: {"probeGuess": scan().probe * np.float32(1e30)})
infers("probe_1e-30", lambda: {"probeGuess": scan().probe * np.float32(1e-30)})
infers("probe_denormal", lambda: {"probeGuess": scan().probe * np.float32(1e-42)})
infers("object_1e30", lambda: {"objectGuess": scan().object * np.float32(1e30)})
infers("object_zero", lambda: {"objectGuess": scan().object * 0})
infers("object_one_pixel", lambda: {"objectGuess": scan().object[:1, :1]})
infers("frames_dark", lambda: {"diff3d": 0 * scan().amplitude}, must="refuse")
infers("frames_flat", lambda: {"diff3d": np.ones_like(scan().amplitude)})
infers("gap_nan", lambda: {"diff3d": np.where(_gap(), np.nan, scan().amplitude).astype("f4")})
infers("positions_metres", lambda: _scaled(scan().pixel_m))
infers("positions_um", lambda: _scaled(scan().pixel_m * 1e6))
infers("positions_mm", lambda: _scaled(scan().pixel_m * 1e3))
infers("positions_nm", lambda: _scaled(scan().pixel_m * 1e9))
infers("counts_as_amplitude", lambda: {"diff3d": scan().amplitude ** 2})
infers(
    "zero_frequency_in_the_corner",
    lambda: {"diff3d": np.fft.ifftshift(scan().amplitude, axes=(1, 2))},
)
infers("one_stray_position", lambda: _stray(5000.0))
infers("one_stray_10000", lambda: _stray(10000.0))
infers("one_stray_30000", lambda: _stray(30000.0))
infers("one_stray_behind", lambda: _stray(-9000.0))
infers("all_at_one_place", lambda: {"xcoords": 0 * scan().x + 40, "ycoords": 0 * scan().y + 30})
infers("one_dark_frame", lambda: {"diff3d": _dumped(7, 8)})
infers("beam_dump", lambda: {"diff3d": _dumped(15, 27)})
infers("two_samples", lambda: {"scan_index": np.arange(43) // 22})
infers("one_sample_numbered_5", lambda: {"scan_index": np.full(43, 5)}, must="succeed")
infers("samples_many", lambda: {"scan_index": np.arange(43)})
infers(
    "burst",
    lambda: {
        "diff3d": np.repeat(scan().amplitude[::2], 2, 0)[:43],
        "xcoords": np.repeat(scan().x[::2], 2)[:43],
        "ycoords": np.repeat(scan().y[::2], 2)[:43],
    },
)
infers("far_from_zero", lambda: {"xcoords": scan().x + 5e6, "objectGuess": None}, must="either")
infers("four_frames", lambda: {k: arrays()[k][:4] for k in KEYS[:3]}, most=0.5, least_score=0)
infers("one_frame", lambda: {k: arrays()[k][:1] for k in KEYS[:3]}, most=0.5, least_score=0)
infers("indexes_of_another", lambda: {"indexes": np.arange(43)[::-1]})


def _gap() -> Any:
    return (np.arange(32) // 3 == 4)[None, None, :]


def _scaled(factor: float) -> dict[str, Any]:
    return {"xcoords": scan().x * factor, "ycoords": scan().y * factor}


def _stray(place: float) -> dict[str, Any]:
    return {"xcoords": np.where(np.arange(43) == 20, place, scan().x), "objectGuess": None}


def _dumped(first: int, last: int) -> Any:
    amplitude = scan().amplitude.copy()
    amplitude[first:last] = 0
    return amplitude


@NPZ.case
def _fixture_of_darkness(rng: Rng) -> Trial:
    save(diff3d=0 * scan().amplitude)
    words = ("fixture", "--source", "scan.npz", "--output", "cut.npz")
    return Trial(ptycho(*words), ("scan.npz",), "refuse")


@NPZ.case
def _fixture_of_one_stray(rng: Rng) -> Trial:
    save(**_stray(10000.0))
    words = ("fixture", "--source", "scan.npz", "--output", "cut.npz")
    return Trial(ptycho(*words), ("scan.npz",))


# --- at random -----------------------------------------------------------------------------------


@NPZ.family
def _cut(rng: Rng) -> Trial:
    """Cut somewhere."""
    save(objectGuess=None)
    data = PATH.read_bytes()
    PATH.write_bytes(data[: rng.integers(len(data))])
    return read("refuse")


@NPZ.family
def _flip(rng: Rng) -> Trial:
    """One bit flipped anywhere."""
    save(objectGuess=None)
    data = bytearray(PATH.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    PATH.write_bytes(data)
    return read()


@NPZ.family
def _flip_heads(rng: Rng) -> Trial:
    """Some bytes changed in the zip's directory or in the head of a member."""
    (np.savez_compressed if rng.random() < 0.5 else np.savez)(PATH, **arrays())
    data = bytearray(PATH.read_bytes())
    heads = [
        data.find(b"PK\x03\x04"),
        data.rfind(b"\x93NUMPY"),
        data.find(b"PK\x01\x02"),
        data.rfind(b"PK\x05\x06"),
        data.rfind(b"PK\x03\x04"),
    ]
    for _ in range(rng.integers(1, 4)):
        at = max(0, int(rng.choice(heads))) + int(rng.integers(60))
        data[min(at, len(data) - 1)] = rng.integers(256)
    PATH.write_bytes(data)
    return read()


@NPZ.family
def _flip_contents(rng: Rng) -> Trial:
    """A member's header changed, and the archive made anew, so that its checksums are right."""
    key = str(rng.choice(KEYS))

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        spoilt = bytearray(data)
        if name == key:
            for _ in range(rng.integers(1, 4)):
                spoilt[rng.integers(128)] = rng.integers(256)
        return f"{name}.npy", bytes(spoilt)

    write_zip(change)
    trial = read()
    if key in ("xcoords", "ycoords", "diff3d", "probeGuess"):
        # Another order, byte order or type of the same size is a right file with other values.
        trial.wrong = lambda scan: "" if np.isfinite(scan.positions).all() else "not finite"
    return trial


@NPZ.family
def _odd_values(rng: Rng) -> Trial:
    """One value of one key beyond what is measured; the reader sees it, or it is kept."""
    key = str(rng.choice(KEYS))
    array = arrays()[key]
    value = rng.choice([np.nan, np.inf, -np.inf])
    array.reshape(-1)[rng.integers(array.size)] = value
    save(**{key: array})
    # A frame's NaN or Inf may be taken as a bad pixel, with a line.
    return read("refuse" if key != "diff3d" or value < 0 else "either")


@NPZ.family
def _odd_shapes(rng: Rng) -> Trial:
    """One key with another number of axes or other lengths."""
    key = str(rng.choice(KEYS))
    array = arrays()[key]
    shape = tuple(int(n) for n in rng.integers(0, 50, rng.integers(0, 5)))
    if shape == array.shape or (key == "probeGuess" and shape[-2:] == (32, 32)):
        shape = (1,)
    save(**{key: np.ones(shape, array.dtype)})
    return read("refuse")


@NPZ.family
def _odd_types(rng: Rng) -> Trial:
    """One key in another type: taken with its values as they are, or refused."""
    key = str(rng.choice(KEYS))
    array = arrays()[key]
    code = str(
        rng.choice(
            [
                "i1",
                "u1",
                "i2",
                ">i4",
                "u8",
                "f2",
                ">f8",
                "g",
                "c8",
                ">c16",
                "U3",
                "S2",
                "?",
                "V3",
                "M8[s]",
                "m8[s]",
            ]
        )
    )
    import warnings

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        changed = np.zeros(array.shape, code) if code[0] in "VMm" else array.astype(code)
    save(**{key: changed})
    trial = read()
    if key in ("xcoords", "ycoords") and changed.dtype.kind in "fiu":
        trial = read(**{key[0]: changed.astype(float)})
    elif key == "diff3d" and changed.dtype.kind == "f":
        trial = read(frames=changed)
    elif changed.dtype.kind != "c" and not (key == "probeGuess" and changed.dtype.kind == "f"):
        trial = read("refuse")  # a real probe is a wave without a phase, and doubtful
    return trial
