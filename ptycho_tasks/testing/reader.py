"""A conformance suite for readers. A reader's tests subclass it and write a scan of their format:

    class TestMine(ReaderConformance):
        reader = mine.reader

        def write_scan(self, folder, scan):
            ...
            return path

pytest then collects every check. What a check asks for stands in its docstring.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest

from ptycho_tasks.errors import ScanError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.raw_scan import Reading
from ptycho_tasks.scans.readers import read_with
from ptycho_tasks.scans.recognition import Reader, ReaderEntry
from ptycho_tasks.testing.examples import simulate_scan

_TOLERANCE = 1e-3


class ReaderConformance:
    """Checks that a reader keeps what `ptycho_tasks.reader` says of readers."""

    reader: ClassVar[Reader]
    settings: ClassVar[dict[str, Any]] = {}
    """Fields of `Reading` that every scan of the format needs."""
    simulation: ClassVar[SimulationOptions] = SimulationOptions(
        size=32, grid=6, step=4.0, jitter=1.0, seed=4
    )

    def write_scan(self, folder: Path, scan: ScanData) -> Path:
        """Write a scan in the format; gives the file. A format of several files writes all."""
        raise NotImplementedError

    def _written(self, folder: Path) -> tuple[ScanData, Path]:
        scan = simulate_scan(self.simulation)
        return scan, self.write_scan(folder, scan)

    def _reading(self) -> Reading:
        return Reading(**self.settings)

    @property
    def _entry(self) -> ReaderEntry:
        name = getattr(self.reader, "name", "")
        return ReaderEntry(name, "as given to the suite", lambda: self.reader)

    def test_can_be_loaded(self) -> None:
        """It has what a reader must have."""
        self._entry.load()

    def test_claims_its_own(self, tmp_path: Path) -> None:
        """It knows a file of its format by its content: the name does not count."""
        _, path = self._written(tmp_path)
        assert self.reader.claims(path) is True, "does not claim a file of its format"
        other = path.rename(path.with_name("another.name"))
        assert self.reader.claims(other) is True, "claims by the file's name, and not its content"

    def test_claims_no_others(self, tmp_path: Path) -> None:
        """It leaves files of other formats alone, and damaged ones, and raises for none."""
        (tmp_path / "empty").touch()
        (tmp_path / "text").write_text("x y\n1 2\n")
        (tmp_path / "zip").write_bytes(b"PK\x03\x04" + bytes(100))
        (tmp_path / "cut").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
        with h5py.File(tmp_path / "other", "w") as file:
            file["something/else"] = np.zeros(3)
        write_scan(tmp_path / "npz", simulate_scan(self.simulation))
        claimed = [path.name for path in sorted(tmp_path.iterdir()) if self.reader.claims(path)]
        assert not claimed, f"claims what is not of its format: {', '.join(claimed)}"

    def test_names_every_file(self, tmp_path: Path) -> None:
        """Without one of the files that it names, and with no other, it cannot read a scan."""
        _, path = self._written(tmp_path)
        named = [Path(file) for file in self.reader.files(path, self._reading())]
        read = {path, *named, *self._read(path).files}
        beside = {file for file in tmp_path.rglob("*") if file.is_file()} - read
        for file in beside:
            file.unlink()
        self._read(path)  # without what it does not name

    def test_gives_the_scan(self, tmp_path: Path) -> None:
        """The frames, the way between positions and the probe are those that were written."""
        scan, path = self._written(tmp_path)
        found = self._read(path)
        assert found.diffraction.shape == scan.diffraction.shape, "other frames"
        error = np.abs(found.diffraction - scan.diffraction).max() / scan.diffraction.max()
        assert error < _TOLERANCE, f"frames differ by {error:.2g} of the largest"
        moved, wanted = (one.positions - one.positions[0] for one in (found, scan))
        apart = np.abs(moved - wanted).max()
        assert apart < 0.01, f"positions differ by {apart:.2g} pixels: axes, signs or units"
        if "probe" not in self.settings:
            light = np.abs(np.vdot(found.probe, scan.probe))
            full = np.linalg.norm(found.probe) * np.linalg.norm(scan.probe)
            assert light > (1 - _TOLERANCE) * full, "another probe"

    def test_a_cut_file_is_one_line(self, tmp_path: Path) -> None:
        """A file that ends early is refused with a `ScanError` that names it."""
        _, path = self._written(tmp_path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ScanError) as caught:
            self._read(path)
        assert str(path) in str(caught.value), "the error does not name the file"
        assert "failed:" not in str(caught.value), f"no `ScanError`: {caught.value}"

    def _read(self, path: Path) -> ScanData:
        return read_with(self._entry, self.reader, path, self._reading())
