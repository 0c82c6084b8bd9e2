"""Scans whose parts lie in other files, or were never written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_tasks.errors import ScanError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans import readers
from ptycho_tasks.scans.raw_scan import RawScan, Reading
from ptycho_tasks.scans.readers import read_scan

FRAMES = "entry_1/data_1/data"
SCAN = simulate(SimulationOptions(size=32, grid=6, step=4.0, jitter=1.0, photons=1e6, seed=3))
COUNTS = np.rint(np.square(SCAN.diffraction, dtype=np.float64)).astype(np.int32)
M, N = COUNTS.shape[:2]
PIXEL_M = 1e-8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    return tmp_path / "scans"


def write_cxi(path: Path, frames: Callable[[h5py.Group], Any] | None = None, **attrs: Any) -> Path:
    """A CXI scan; `frames` writes the dataset `data` into a group."""
    with h5py.File(path, "w") as file:
        metres = SCAN.positions[:, ::-1] * PIXEL_M
        file["entry_1/data_1/translation"] = np.column_stack([metres, np.zeros(M)])
        file["entry_1/instrument_1/source_1/illumination"] = SCAN.probe[0]
        group = file["entry_1/data_1"]
        if frames is None:
            group["data"] = COUNTS
        else:
            frames(group)
    return path


def read(path: Path, **settings: Any) -> Any:
    return read_scan(path, pixel_size_m=PIXEL_M, **settings)


def write_part(path: Path, counts: Any = COUNTS, **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.create_dataset("d", data=counts, **options)
    return path


def virtual(*names: str, lengths: tuple[int, ...] = (M,), dataset: str = "d") -> Any:
    """Writes frames pieced together from the datasets of some files, one after the other."""

    def write(group: h5py.Group) -> None:
        layout = h5py.VirtualLayout((sum(lengths), N, N), "i4")
        first = 0
        for name, length in zip(names, lengths, strict=True):
            # A selection, which HDF5 keeps; of a whole dataset it would keep none.
            source = h5py.VirtualSource(name, dataset, (length + 1, N, N))[:length]
            layout[first : first + length] = source
            first += length
        group.create_virtual_dataset("data", layout)

    return write


def link(name: str, key: str = "/d") -> Any:
    def write(group: h5py.Group) -> None:
        group["data"] = h5py.ExternalLink(name, key)

    return write


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(ScanError) as caught:
        read(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


HALVES = ("a.h5", "b.h5")


@pytest.mark.parametrize("chunks", [None, (3, N, N), (2, 16, 16)])
def test_parts_in_other_files_are_read_and_listed(folder: Path, chunks: Any) -> None:
    for name, counts in zip(HALVES, (COUNTS[:20], COUNTS[20:]), strict=True):
        write_part(folder / name, counts, chunks=chunks)
    path = write_cxi(folder / "s.cxi", virtual(*HALVES, lengths=(20, M - 20)))
    scan = read(path)
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS), rtol=1e-6)
    assert [file.name for file in scan.files] == [*HALVES]
    assert any("2 further files" in note and "a.h5, b.h5" in note for note in scan.notes)


def test_files_behind_files_count_too(folder: Path) -> None:
    write_part(folder / "raw.h5")
    with h5py.File(folder / "b.h5", "w") as file:
        file["d"] = h5py.ExternalLink("raw.h5", "/d")
    with h5py.File(folder / "a.h5", "w") as file:
        virtual("b.h5")(file)
        file["soft"] = h5py.SoftLink("/data")
    scan = read(write_cxi(folder / "s.cxi", link("a.h5", "/soft")))
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS), rtol=1e-6)
    assert {file.name for file in scan.files} == {"a.h5", "b.h5", "raw.h5"}


def test_a_missing_part_is_named(folder: Path) -> None:
    write_part(folder / "a.h5", COUNTS[:20])
    path = write_cxi(folder / "s.cxi", virtual(*HALVES, lengths=(20, M - 20)))
    assert "b.h5" in refusal(path)
    assert "gone.h5" in refusal(write_cxi(folder / "t.cxi", link("gone.h5")))
    write_part(folder / "b.h5", COUNTS[20:])
    other = virtual(*HALVES, lengths=(20, M - 20), dataset="other")
    assert "'other'" in refusal(write_cxi(folder / "u.cxi", other))
    (folder / "b.h5").write_bytes(b"no HDF5")
    assert "b.h5" in refusal(path)


@pytest.mark.parametrize("kind", ["link", "virtual", "symbolic"])
def test_a_scan_reaches_no_other_folder_unless_that_is_allowed(folder: Path, kind: str) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    part = write_part(elsewhere / "p.h5")
    if kind == "symbolic":
        (folder / "p.h5").symlink_to(part)
        part = Path("p.h5")
    path = write_cxi(folder / "s.cxi", (virtual if kind == "virtual" else link)(str(part)))
    assert "source.follow" in refusal(path)
    assert str(elsewhere) in refusal(path, follow=(folder.parent / "third",))
    assert read(path, follow=(elsewhere,)).frame_count == M


def test_external_storage_copies_no_file_into_the_scan(folder: Path) -> None:
    secret = folder / "secret"
    COUNTS.tofile(secret)

    def stored(group: h5py.Group) -> None:
        group.create_dataset("data", COUNTS.shape, "i4", external=[(str(secret), 0, secret_size)])

    secret_size = secret.stat().st_size
    path = write_cxi(folder / "s.cxi", stored)
    assert "source.follow" in refusal(path)
    scan = read(path, follow=(folder,))
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS), rtol=1e-6)
    assert [*scan.files] == [secret]
    secret.write_bytes(secret.read_bytes()[:-9])
    assert "cut short" in refusal(path, follow=(folder,))


def test_links_in_a_circle_end(folder: Path) -> None:
    def circle(group: h5py.Group) -> None:
        group["data"] = h5py.SoftLink("/entry_1/data_1/other")
        group["other"] = h5py.SoftLink("/entry_1/data_1/data")

    assert "circle" in refusal(write_cxi(folder / "s.cxi", circle))
    with h5py.File(folder / "a.h5", "w") as file:
        file["d"] = h5py.ExternalLink("a.h5", "/d")
    assert "circle" in refusal(write_cxi(folder / "t.cxi", link("a.h5")))


def never_written(length: int, chunks: Any) -> Any:
    def write(group: h5py.Group) -> None:
        data = group.create_dataset("data", COUNTS.shape, "i4", chunks=chunks)
        if length:
            data[:length] = COUNTS[:length]

    return write


@pytest.mark.parametrize("chunks", [(1, N, N), (4, N, N), (1, 16, 16)])
def test_frames_that_were_never_written_are_refused_or_dropped(folder: Path, chunks: Any) -> None:
    path = write_cxi(folder / "s.cxi", never_written(24, chunks))
    text = refusal(path)
    assert f"12 of {M} frames were never written (24-35)" in text
    assert "source.dark_frames" in text
    scan = read(path, dark_frames="drop")
    np.testing.assert_allclose(scan.diffraction, np.sqrt(COUNTS[:24]), rtol=1e-6)
    whole = read(write_cxi(folder / "whole.cxi"))
    np.testing.assert_array_equal(scan.positions, whole.positions[:24])
    assert any("24-35" in note for note in scan.notes)


@pytest.mark.parametrize("chunks", [None, (1, N, N)])
def test_a_scan_that_was_never_written_is_refused(folder: Path, chunks: Any) -> None:
    text = refusal(write_cxi(folder / "s.cxi", never_written(0, chunks)), dark_frames="drop")
    assert "never written" in text


def test_a_frame_of_which_a_piece_was_never_written_is_dropped(folder: Path) -> None:
    def write(group: h5py.Group) -> None:
        data = group.create_dataset("data", COUNTS.shape, "i4", chunks=(1, 16, 16))
        data[:5], data[6:] = COUNTS[:5], COUNTS[6:]
        data[5, :16] = COUNTS[5, :16]

    path = write_cxi(folder / "s.cxi", write)
    assert "(5)" in refusal(path)
    assert read(path, dark_frames="drop").frame_count == M - 1


def test_a_program_that_refused_a_virtual_scan_ends_in_order(folder: Path) -> None:
    """HDF5 crashes at the end over a virtual dataset that an error keeps open."""
    write_part(folder / "a.h5", COUNTS[:20])
    path = write_cxi(folder / "s.cxi", virtual(*HALVES, lengths=(20, M - 20)))
    code = "from ptycho_tasks.commands.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "check", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "b.h5" in done.stdout


def test_a_virtual_scan_of_which_a_part_is_short(folder: Path) -> None:
    """Whole frames that a part lacks are dark; of a detector in modules, half of each would be."""
    write_part(folder / "a.h5", COUNTS[:20])
    write_part(folder / "b.h5", COUNTS[20:30])
    assert "b.h5: 'd' has the shape" in refusal(
        write_cxi(folder / "s.cxi", virtual(*HALVES, lengths=(20, M - 20)))
    )
    write_part(folder / "b.h5", COUNTS[20:30], maxshape=(None, N, N))
    path = write_cxi(folder / "s.cxi", virtual(*HALVES, lengths=(20, M - 20)))
    assert "30-35" in refusal(path)
    assert read(path, dark_frames="drop").frame_count == 30

    def modules(group: h5py.Group) -> None:
        layout = h5py.VirtualLayout(COUNTS.shape, "i4")
        for index, name in enumerate(HALVES):
            rows = slice(16 * index, 16 * index + 16)
            layout[:, rows] = h5py.VirtualSource(name, "d", (M + 1, 16, N))[:M]
        group.create_virtual_dataset("data", layout)

    write_part(folder / "a.h5", COUNTS[:, :16])
    write_part(folder / "b.h5", COUNTS[:30, 16:], maxshape=(None, 16, N))
    text = refusal(write_cxi(folder / "m.cxi", modules), dark_frames="drop")
    assert "b.h5" in text


def test_dark_frames_of_an_npz(tmp_path: Path) -> None:
    frames = SCAN.diffraction.copy()
    frames[[3, 7, 8]] = 0
    arrays = {
        "diff3d": frames, "probeGuess": SCAN.probe,
        "xcoords": SCAN.positions[:, 1], "ycoords": SCAN.positions[:, 0],
    }  # fmt: skip
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ScanError, match=rf"3 of {M} frames hold no light \(3, 7-8\)"):
        read_scan(tmp_path / "s.npz")
    scan = read_scan(tmp_path / "s.npz", dark_frames="drop")
    np.testing.assert_array_equal(scan.positions, np.delete(SCAN.positions, [3, 7, 8], axis=0))
    np.savez(tmp_path / "s.npz", **arrays | {"diff3d": 0 * frames})
    with pytest.raises(ScanError, match="is dark"):
        read_scan(tmp_path / "s.npz", dark_frames="drop")


def test_a_file_that_changes_while_it_is_read_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grows when it was read and before the reader is done with it."""
    part = write_part(folder / "a.h5")
    path = write_cxi(folder / "s.cxi", link("a.h5"))

    def grow(scan: RawScan, reading: Reading) -> Any:
        read = checked(scan, reading)
        with part.open("ab") as file:
            file.write(b"more")
        return read

    checked = readers.convert_scan
    monkeypatch.setattr(readers, "convert_scan", grow)
    assert "a.h5: changed while it was read" in refusal(path)


def test_a_whole_part_of_another_shape_is_named(folder: Path) -> None:
    def whole(group: h5py.Group) -> None:
        layout = h5py.VirtualLayout(COUNTS.shape, "i4")
        layout[:] = h5py.VirtualSource("a.h5", "d", COUNTS.shape)
        group.create_virtual_dataset("data", layout)

    write_part(folder / "a.h5", COUNTS[:30])
    assert "a.h5: 'd' has the shape" in refusal(write_cxi(folder / "s.cxi", whole))


PROJECT = """\
name: linked
source: {{file: scans/s.cxi, pixel_size_m: {pixel}}}
fixture: {{subset_size: 25}}
backend: epie
training: {{epochs: 2}}
"""


def test_every_file_that_was_read_is_an_input(
    write_project: Callable[..., Path], build: Callable[..., list[str]], doit: Callable[..., Any]
) -> None:
    root = write_project(PROJECT.format(pixel=PIXEL_M))
    (root / "scans").mkdir()
    for name, counts in zip(HALVES, (COUNTS[:20], COUNTS[20:]), strict=True):
        write_part(root / "scans" / name, counts)
    write_cxi(root / "scans" / "s.cxi", virtual(*HALVES, lengths=(20, M - 20)))
    everything = ["source", "fixture", "train", "infer"]
    assert build(root) == everything
    assert build(root) == []
    listed = json.loads((root / "fixtures" / "linked.json").read_text())["source"]["files"]
    assert [*listed] == [*HALVES]

    write_part(root / "scans" / "b.h5", np.roll(COUNTS[20:], 1, 0))
    why = doit(root, "why").stdout
    assert why.count("scans/b.h5 changed") >= 3, why
    assert build(root) == everything
    (root / ".ptycho" / "state.sqlite").unlink()
    assert "train" not in build(root)
    (root / "scans" / "b.h5").unlink()
    assert "scans/b.h5 is missing" in doit(root, "why").stdout
    failed = doit(root)
    assert failed.returncode == 1
    assert "b.h5" in failed.stderr
