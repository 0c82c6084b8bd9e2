"""Scans in NPZ: damaged, against the contract, and right but odd."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hostile.battery import Battery, Must, Rng, Trial
from hostile.running import doit, ptycho
from hostile.scans import arrays, project, save, scan, wrong_result, wrong_scan
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.readers import read_scan

NPZ = Battery("npz")
PATH = Path("scan.npz")
KEYS = ("diff3d", "xcoords", "ycoords", "probeGuess")


def read(must: Must = "either", **right: Any) -> Trial:
    """Read the file that was written; what the reader says is doubtful was not taken silently."""
    compared = wrong_scan(**right)

    def wrong(found: ScanData) -> str:
        return "" if found.doubts else compared(found)

    return Trial(lambda: read_scan(PATH), ("scan.npz",), must, wrong)


def infer(must: Must = "speak", **bounds: float) -> Trial:
    """Reconstruct the file in a project."""
    project("scan.npz")
    return Trial(
        doit("infer"),
        ("scan.npz", "tiny.npz", "source.", "infer"),
        must,
        wrong_result(**bounds),
        may_change=("fixtures", "runs"),
    )


def _add(name: str, must: Must, make: Callable[[], dict[str, Any]], **right: Any) -> None:
    def maker(rng: Rng) -> Trial:
        save(**make())
        return read(must, **right)

    NPZ.add(name, maker)


def _infers(
    name: str, make: Callable[[], dict[str, Any]], must: Must = "speak", **bounds: float
) -> None:
    def maker(rng: Rng) -> Trial:
        save(**make())
        return infer(must, **bounds)

    NPZ.add(name, maker)


# --- right, if odd -------------------------------------------------------------------------------

_add("right", "succeed", dict)
_add("fortran", "succeed", lambda: {"diff3d": np.asfortranarray(scan().amplitude)})
_add("big_endian", "succeed", lambda: {"diff3d": scan().amplitude.astype(">f4")})
_add("big_endian_probe", "succeed", lambda: {"probeGuess": scan().probe.astype(">c8")})
_add("float64", "succeed", lambda: {"diff3d": scan().amplitude.astype(np.float64)})
_add("float16", "either", lambda: {"diff3d": scan().amplitude.astype(np.float16)})
_add("longdouble", "either", lambda: {"diff3d": scan().amplitude.astype(np.longdouble)})
_add("clongdouble", "either", lambda: {"probeGuess": scan().probe.astype(np.clongdouble)})
_add("frames_last", "succeed", lambda: {"diff3d": np.moveaxis(scan().amplitude, 0, -1)})
_add("negative_strides", "succeed", lambda: {"diff3d": scan().amplitude[::-1][::-1]})
_add(
    "integer_positions",
    "either",
    lambda: {"xcoords": np.rint(scan().x).astype(np.int16)},
    x=np.rint(scan().x),
)
_add("extra_keys", "succeed", lambda: {f"extra{i}": np.zeros(1) for i in range(50)})
_add("no_object", "succeed", lambda: {"objectGuess": None})
_add("unicode_key", "succeed", lambda: {"größe µm": np.zeros(2)})


@NPZ.case
def _compressed(rng: Rng) -> Trial:
    np.savez_compressed(PATH, **arrays())
    return read("succeed")


@NPZ.case
def _zip64(rng: Rng) -> Trial:
    with zipfile.ZipFile(PATH, "w") as archive:
        for key, array in arrays().items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array)
    return read("succeed")


def _methods(name: str, method: int) -> None:
    def maker(rng: Rng) -> Trial:
        _write_zip(lambda key, data: (f"{key}.npy", data), method)
        return read("succeed")

    NPZ.add(name, maker)


def _write_zip(change: Callable[[str, bytes], Any], method: int = zipfile.ZIP_STORED) -> None:
    """Write the scan with each member's name and bytes changed."""
    with zipfile.ZipFile(PATH, "w", method) as archive:
        for key, array in arrays().items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array)
            member = change(key, stream.getvalue())
            if member is not None:
                archive.writestr(*member)


_methods("bzip2", zipfile.ZIP_BZIP2)
_methods("lzma", zipfile.ZIP_LZMA)


@NPZ.case
def _npy_version_2(rng: Rng) -> Trial:
    with zipfile.ZipFile(PATH, "w") as archive:
        for key, array in arrays().items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, version=(2, 0))
            archive.writestr(f"{key}.npy", stream.getvalue())
    return read("succeed")


@NPZ.case
def _junk_before_the_zip(rng: Rng) -> Trial:
    save()
    PATH.write_bytes(b"PK\x03\x04junk" * 9 + PATH.read_bytes())
    return read()


@NPZ.case
def _junk_after_the_zip(rng: Rng) -> Trial:
    save()
    PATH.write_bytes(PATH.read_bytes() + bytes(100))
    return read()


@NPZ.case
def _symbolic_link(rng: Rng) -> Trial:
    save("other.npz")
    PATH.symlink_to("other.npz")
    return read("succeed")


# --- against the contract ------------------------------------------------------------------------

for _key in KEYS:
    _add(f"without_{_key}", "refuse", functools.partial(lambda key: {key: None}, _key))
    _add(f"text_{_key}", "refuse", functools.partial(lambda key: {key: np.array("four")}, _key))
    _add(
        f"bytes_{_key}", "refuse", functools.partial(lambda key: {key: np.array([b"1"] * 43)}, _key)
    )
    _add(f"scalar_{_key}", "refuse", functools.partial(lambda key: {key: np.float32(1)}, _key))
    _add(f"empty_{_key}", "refuse", functools.partial(lambda key: {key: np.zeros(0)}, _key))
    _add(f"short_{_key}", "refuse", functools.partial(lambda key: {key: arrays()[key][1:]}, _key))
    _add(
        f"5d_{_key}",
        "refuse",
        functools.partial(lambda key: {key: arrays()[key][None, None, None, None]}, _key),
    )
    _add(
        f"object_{_key}",
        "refuse",
        functools.partial(lambda key: {key: np.array([1, "a", None], object)}, _key),
    )
    _add(
        f"dates_{_key}",
        "refuse",
        functools.partial(lambda key: {key: np.zeros(43, "datetime64[s]")}, _key),
    )
    _add(
        f"bool_{_key}", "refuse", functools.partial(lambda key: {key: arrays()[key].real > 1}, _key)
    )
    _add(
        f"structured_{_key}",
        "refuse",
        functools.partial(lambda key: {key: np.zeros(43, [("a", "f4"), ("b", "i2")])}, _key),
    )
    _add(f"void_{_key}", "refuse", functools.partial(lambda key: {key: np.zeros(43, "V8")}, _key))
_add("complex_frames", "refuse", lambda: {"diff3d": scan().amplitude.astype(np.complex64)})
_add("complex_positions", "refuse", lambda: {"xcoords": scan().x + 0j})
_add("integer_frames", "refuse", lambda: {"diff3d": scan().counts})
_add("not_square", "refuse", lambda: {"diff3d": scan().amplitude[:, :, 4:28]})
_add(
    "odd_size",
    "refuse",
    lambda: {"diff3d": scan().amplitude[:, 1:, 1:], "probeGuess": scan().probe[1:, 1:]},
)
_add("dark_probe", "refuse", lambda: {"probeGuess": 0 * scan().probe})
_add("probe_of_no_modes", "refuse", lambda: {"probeGuess": scan().probe[None][:0]})
_add("object_in_text", "refuse", lambda: {"objectGuess": np.array(["a"])})
_add("frames_equal_size", "refuse", lambda: _of_as_many_frames_as_pixels())
_add("start_alone", "refuse", lambda: {"xcoords_start": scan().x})
_add(
    "start_short", "refuse", lambda: {"xcoords_start": scan().x[1:], "ycoords_start": scan().y[1:]}
)
_add("index_beyond_int64", "refuse", lambda: {"scan_index": np.full(43, 2**63 + 5, np.uint64)})
_add("index_float", "refuse", lambda: {"scan_index": np.zeros(43)})
_add("index_short", "refuse", lambda: {"scan_index": np.zeros(42, np.int64)})
_add("energy_text", "refuse", lambda: {"energy_ev": np.array("8 keV")})
_add("pixel_negative", "refuse", lambda: {"pixel_size_m": np.array(-1.0)})
_add("pixel_nan", "refuse", lambda: {"pixel_size_m": np.array(np.nan)})
_add("frame_axis_text", "either", lambda: {"frame_axis": np.array("first")})
_add("frame_axis_object", "refuse", lambda: {"frame_axis": np.array([None])})
_add("bad_pixels_text", "either", lambda: {"bad_pixels": np.array("none")})
_add("bad_pixels_short", "either", lambda: {"bad_pixels": np.zeros((3, 3), bool)})


def _of_as_many_frames_as_pixels() -> dict[str, Any]:
    return {
        "diff3d": scan().amplitude[:32],
        "xcoords": scan().x[:32],
        "ycoords": scan().y[:32],
    }


@NPZ.case
def _empty_zip(rng: Rng) -> Trial:
    with zipfile.ZipFile(PATH, "w"):
        pass
    return read("refuse")


@NPZ.case
def _empty_file(rng: Rng) -> Trial:
    PATH.touch()
    return read("refuse")


@NPZ.case
def _missing_file(rng: Rng) -> Trial:
    return read("refuse")


@NPZ.case
def _folder(rng: Rng) -> Trial:
    PATH.mkdir()
    return read("refuse")


@NPZ.case
def _pipe(rng: Rng) -> Trial:
    import os

    os.mkfifo(PATH)
    return read("refuse")


@NPZ.case
def _link_to_itself(rng: Rng) -> Trial:
    PATH.symlink_to(PATH)
    return read("refuse")


@NPZ.case
def _pickled_file(rng: Rng) -> Trial:
    import pickle

    PATH.write_bytes(pickle.dumps(arrays()))
    return read("refuse")


@NPZ.case
def _duplicate_members(rng: Rng) -> Trial:
    save()
    stream = io.BytesIO()
    np.lib.format.write_array(stream, scan().x[::-1].copy())
    with zipfile.ZipFile(PATH, "a") as archive:
        _without_warning(archive, "xcoords.npy", stream.getvalue())
    return read("refuse")


def _without_warning(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(name, data)


@NPZ.case
def _two_spellings_of_a_key(rng: Rng) -> Trial:
    """numpy takes `xcoords` for `xcoords.npy`, or the member of that very name."""
    save()
    stream = io.BytesIO()
    np.lib.format.write_array(stream, scan().x[::-1].copy())
    with zipfile.ZipFile(PATH, "a") as archive:
        archive.writestr("xcoords", stream.getvalue())
    return read()


@NPZ.case
def _4000_keys(rng: Rng) -> Trial:
    save(**{f"log{index:04}": np.zeros(1) for index in range(4000)})
    return read("succeed")


@NPZ.case
def _encrypted(rng: Rng) -> Trial:
    save()
    data = bytearray(PATH.read_bytes())
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(magic, at + 4)
    PATH.write_bytes(data)
    return read("refuse")


def _declared(shape: str, key: str = "diff3d", descr: str = "'<f4'", order: str = "False") -> Any:
    """A maker whose member has a header that says too much."""

    def maker(rng: Rng) -> Trial:
        text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
        header = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        _write_zip(lambda k, data: (f"{k}.npy", head + data[128:] if k == key else data))
        return read("refuse")

    return maker


for _name, _shape in {
    "huge": "(10**6, 10**4, 10**4)".replace("10**6", "1000000").replace("10**4", "10000"),
    "beyond_int64": "(9223372036854775807, 32, 32)",
    "wraps_to_few": "(4611686018427387904, 2, 2)",
    "negative": "(-1, 32, 32)",
    "of_text": "('a', 32, 32)",
    "not_a_tuple": "43",
    "bool": "(True, 32, 32)",
    "large": "(400000, 32, 32)",
    "nested_deep": "(" * 2000 + ")" * 2000,
    "formula": "(__import__('os').getpid(), 32, 32)",
}.items():
    NPZ.add(f"shape_{_name}", _declared(_shape))
NPZ.add("shape_huge_x", _declared("(1000000000000,)", "xcoords", "'<f8'"))
NPZ.add("shape_huge_probe", _declared("(100000, 100000)", "probeGuess", "'<c8'"))
NPZ.add("descr_none", _declared("(43, 32, 32)", descr="None"))
NPZ.add("descr_list", _declared("(43, 32, 32)", descr="[('a', '<f4'), ('a', '<f4')]"))
NPZ.add("descr_long_text", _declared("(43,)", "xcoords", "'<U1000000'"))
NPZ.add("order_text", _declared("(43, 32, 32)", order="'no'"))


@NPZ.case
def _huge_compressed(rng: Rng) -> Trial:
    """64 GB of zeros in some MB is a bomb; here 8 GB are claimed and 20 MB are there."""
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2000000, 32, 32), }"
    header = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    _write_zip(
        lambda k, data: (f"{k}.npy", head + bytes(20 << 20) if k == "diff3d" else data),
        zipfile.ZIP_DEFLATED,
    )
    return read("refuse")


@NPZ.case
def _nan_in_a_million_keys_name(rng: Rng) -> Trial:
    save(**{"k" * 60000: np.zeros(1)})
    return read()


for _name, _text in {
    "escape": "red\x1b[31m",
    "newline": "a\nerror: b",
    "return": "a\rerror: b",
    "bell": "\x07\x08",
    "bidi": "a\u202eb",
    "slash": "../../escape",
}.items():

    def _strange_key(rng: Rng, text: str = _text) -> Trial:
        save(**{text: np.zeros(3)})
        trial = Trial(
            ptycho("fixture", "--source", "scan.npz", "--output", "cut.npz"), ("scan.npz",)
        )
        trial.wrong = lambda _: _control_characters()
        return trial

    NPZ.add(f"key_with_{_name}", _strange_key)


def _control_characters() -> str:
    import sys

    sys.stdout.flush()
    text = Path("../stdout").read_text() + Path("../stderr").read_text()
    strange = [c for c in text if not c.isprintable() and c != "\n"]
    if strange:
        return f"{strange[0]!r} reaches the terminal"
    return "a line of the file's own" if "\nerror: b" in text else ""


# --- values --------------------------------------------------------------------------------------

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
            _add(f"{_name}_in_{_key}", "refuse", functools.partial(_with, _key, _VALUES[_name]))
_add("negative_in_diff3d", "refuse", lambda: _with("diff3d", -1.0))

_infers("ok", dict, must="succeed")
_infers("frame_of_nan", lambda: _with("diff3d", np.nan))
for _name in ("huge", "float32_max"):
    for _key in KEYS:
        _infers(f"{_name}_in_{_key}", functools.partial(_with, _key, _VALUES[_name]))
_infers("frames_denormal", lambda: {"diff3d": scan().amplitude * np.float32(1e-42)})
_infers("frames_1e30", lambda: {"diff3d": scan().amplitude * np.float32(1e30)})
_infers("frames_1e-20", lambda: {"diff3d": scan().amplitude * np.float32(1e-20)})
_infers("frames_float32_max", lambda: {"diff3d": np.full_like(scan().amplitude, 3.4e38)})
_infers("probe_1e30", lambda: {"probeGuess": scan().probe * np.float32(1e30)})
_infers("probe_1e-30", lambda: {"probeGuess": scan().probe * np.float32(1e-30)})
_infers("probe_denormal", lambda: {"probeGuess": scan().probe * np.float32(1e-42)})
_infers("object_1e30", lambda: {"objectGuess": scan().object * np.float32(1e30)})
_infers("object_zero", lambda: {"objectGuess": scan().object * 0})
_infers("object_one_pixel", lambda: {"objectGuess": scan().object[:1, :1]})
_infers("frames_dark", lambda: {"diff3d": 0 * scan().amplitude}, must="refuse")
_infers("frames_flat", lambda: {"diff3d": np.ones_like(scan().amplitude)})
_infers("gap_nan", lambda: {"diff3d": np.where(_gap(), np.nan, scan().amplitude).astype("f4")})
_infers("positions_metres", lambda: _scaled(scan().pixel_m))
_infers("positions_um", lambda: _scaled(scan().pixel_m * 1e6))
_infers("positions_mm", lambda: _scaled(scan().pixel_m * 1e3))
_infers("positions_nm", lambda: _scaled(scan().pixel_m * 1e9))
_infers("counts_as_amplitude", lambda: {"diff3d": scan().amplitude ** 2})
_infers(
    "zero_frequency_in_the_corner",
    lambda: {"diff3d": np.fft.ifftshift(scan().amplitude, axes=(1, 2))},
)
_infers("one_stray_position", lambda: _stray(5000.0))
_infers("one_stray_10000", lambda: _stray(10000.0))
_infers("one_stray_30000", lambda: _stray(30000.0))
_infers("one_stray_behind", lambda: _stray(-9000.0))
_infers("all_at_one_place", lambda: {"xcoords": 0 * scan().x + 40, "ycoords": 0 * scan().y + 30})
_infers("one_dark_frame", lambda: {"diff3d": _dumped(7, 8)})
_infers("beam_dump", lambda: {"diff3d": _dumped(15, 27)})
_infers("two_samples", lambda: {"scan_index": np.arange(43) // 22})
_infers("one_sample_numbered_5", lambda: {"scan_index": np.full(43, 5)}, must="succeed")
_infers("samples_many", lambda: {"scan_index": np.arange(43)})
_infers(
    "burst",
    lambda: {
        "diff3d": np.repeat(scan().amplitude[::2], 2, 0)[:43],
        "xcoords": np.repeat(scan().x[::2], 2)[:43],
        "ycoords": np.repeat(scan().y[::2], 2)[:43],
    },
)
_infers("far_from_zero", lambda: {"xcoords": scan().x + 5e6, "objectGuess": None}, must="either")
_infers("four_frames", lambda: {k: arrays()[k][:4] for k in KEYS[:3]}, most=0.5, least_score=0)
_infers("one_frame", lambda: {k: arrays()[k][:1] for k in KEYS[:3]}, most=0.5, least_score=0)
_infers("indexes_of_another", lambda: {"indexes": np.arange(43)[::-1]})


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

    _write_zip(change)
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
