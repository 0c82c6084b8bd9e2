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


def add(name: str, must: Must, make: Callable[[], dict[str, Any]], **right: Any) -> None:
    def maker(rng: Rng) -> Trial:
        save(**make())
        return read(must, **right)

    NPZ.add(name, maker)


def infers(
    name: str, make: Callable[[], dict[str, Any]], must: Must = "speak", **bounds: float
) -> None:
    def maker(rng: Rng) -> Trial:
        save(**make())
        return infer(must, **bounds)

    NPZ.add(name, maker)


# --- right, if odd -------------------------------------------------------------------------------

add("right", "succeed", dict)
add("fortran", "succeed", lambda: {"diff3d": np.asfortranarray(scan().amplitude)})
add("big_endian", "succeed", lambda: {"diff3d": scan().amplitude.astype(">f4")})
add("big_endian_probe", "succeed", lambda: {"probeGuess": scan().probe.astype(">c8")})
add("float64", "succeed", lambda: {"diff3d": scan().amplitude.astype(np.float64)})
add("float16", "either", lambda: {"diff3d": scan().amplitude.astype(np.float16)})
add("longdouble", "either", lambda: {"diff3d": scan().amplitude.astype(np.longdouble)})
add("clongdouble", "either", lambda: {"probeGuess": scan().probe.astype(np.clongdouble)})
add("frames_last", "succeed", lambda: {"diff3d": np.moveaxis(scan().amplitude, 0, -1)})
add("negative_strides", "succeed", lambda: {"diff3d": scan().amplitude[::-1][::-1]})
add(
    "integer_positions",
    "either",
    lambda: {"xcoords": np.rint(scan().x).astype(np.int16)},
    x=np.rint(scan().x),
)
add("extra_keys", "succeed", lambda: {f"extra{i}": np.zeros(1) for i in range(50)})
add("no_object", "succeed", lambda: {"objectGuess": None})
add("unicode_key", "succeed", lambda: {"größe µm": np.zeros(2)})


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
        write_zip(lambda key, data: (f"{key}.npy", data), method)
        return read("succeed")

    NPZ.add(name, maker)


def write_zip(change: Callable[[str, bytes], Any], method: int = zipfile.ZIP_STORED) -> None:
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
    add(f"without_{_key}", "refuse", functools.partial(lambda key: {key: None}, _key))
    add(f"text_{_key}", "refuse", functools.partial(lambda key: {key: np.array("four")}, _key))
    add(
        f"bytes_{_key}", "refuse", functools.partial(lambda key: {key: np.array([b"1"] * 43)}, _key)
    )
    add(f"scalar_{_key}", "refuse", functools.partial(lambda key: {key: np.float32(1)}, _key))
    add(f"empty_{_key}", "refuse", functools.partial(lambda key: {key: np.zeros(0)}, _key))
    add(f"short_{_key}", "refuse", functools.partial(lambda key: {key: arrays()[key][1:]}, _key))
    add(
        f"5d_{_key}",
        "refuse",
        functools.partial(lambda key: {key: arrays()[key][None, None, None, None]}, _key),
    )
    add(
        f"object_{_key}",
        "refuse",
        functools.partial(lambda key: {key: np.array([1, "a", None], object)}, _key),
    )
    add(
        f"dates_{_key}",
        "refuse",
        functools.partial(lambda key: {key: np.zeros(43, "datetime64[s]")}, _key),
    )
    add(
        f"bool_{_key}", "refuse", functools.partial(lambda key: {key: arrays()[key].real > 1}, _key)
    )
    add(
        f"structured_{_key}",
        "refuse",
        functools.partial(lambda key: {key: np.zeros(43, [("a", "f4"), ("b", "i2")])}, _key),
    )
    add(f"void_{_key}", "refuse", functools.partial(lambda key: {key: np.zeros(43, "V8")}, _key))
add("complex_frames", "refuse", lambda: {"diff3d": scan().amplitude.astype(np.complex64)})
add("complex_positions", "refuse", lambda: {"xcoords": scan().x + 0j})
add("integer_frames", "refuse", lambda: {"diff3d": scan().counts})
add("not_square", "refuse", lambda: {"diff3d": scan().amplitude[:, :, 4:28]})
add(
    "odd_size",
    "refuse",
    lambda: {"diff3d": scan().amplitude[:, 1:, 1:], "probeGuess": scan().probe[1:, 1:]},
)
add("dark_probe", "refuse", lambda: {"probeGuess": 0 * scan().probe})
add("probe_of_no_modes", "refuse", lambda: {"probeGuess": scan().probe[None][:0]})
add("object_in_text", "refuse", lambda: {"objectGuess": np.array(["a"])})
add("frames_equal_size", "refuse", lambda: _of_as_many_frames_as_pixels())
add("start_alone", "refuse", lambda: {"xcoords_start": scan().x})
add("start_short", "refuse", lambda: {"xcoords_start": scan().x[1:], "ycoords_start": scan().y[1:]})
add("index_beyond_int64", "refuse", lambda: {"scan_index": np.full(43, 2**63 + 5, np.uint64)})
add("index_float", "refuse", lambda: {"scan_index": np.zeros(43)})
add("index_short", "refuse", lambda: {"scan_index": np.zeros(42, np.int64)})
add("energy_text", "refuse", lambda: {"energy_ev": np.array("8 keV")})
add("pixel_negative", "refuse", lambda: {"pixel_size_m": np.array(-1.0)})
add("pixel_nan", "refuse", lambda: {"pixel_size_m": np.array(np.nan)})
add("frame_axis_text", "either", lambda: {"frame_axis": np.array("first")})
add("frame_axis_object", "refuse", lambda: {"frame_axis": np.array([None])})
add("bad_pixels_text", "either", lambda: {"bad_pixels": np.array("none")})
add("bad_pixels_short", "either", lambda: {"bad_pixels": np.zeros((3, 3), bool)})


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
        write_zip(lambda k, data: (f"{k}.npy", head + data[128:] if k == key else data))
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
    write_zip(
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
