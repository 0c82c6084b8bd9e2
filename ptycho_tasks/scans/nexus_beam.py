"""Where CXI and NeXus files have the photon energy, the distance and the pixels of the detector.

CXI has the photon energy in its source; NXcxi_ptycho has the energy of the machine there, and that
of the photons in a beam, as other NeXus files do (NXbeam, NXmonochromator, NXdetector).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ptycho_tasks.scans.hdf5_values import ENERGIES, JOULES_PER_EV, LENGTHS, read_number
from ptycho_tasks.scans.linked_files import LinkedFiles
from ptycho_tasks.scans.raw_scan import METRE_EV, RawScan, refused

CXI_DETECTOR = "entry_1/instrument_1/detector_1"
CXI_ENERGY = "entry_1/instrument_1/source_1/energy"
DISTANCES = (
    f"{CXI_DETECTOR}/distance",
    "entry/instrument/detector/distance",
    "entry/instrument/detector/detector_distance",
)
_DETECTORS = (CXI_DETECTOR, "entry/instrument/detector")
_GROUPS = ("entry_1/instrument_1", "entry_1/sample_1", "entry/instrument", "entry/sample")
_LOWEST_EV, _HIGHEST_EV = 1.0, 6e7
"""What lies beyond was not written in the unit that it should be in."""


def find_energy_ev(file: LinkedFiles, raw: RawScan) -> float:
    """The photon energy; zero where there is none.

    Raises:
        ScanError: it is no number, differs from frame to frame, or is in another unit.
    """
    for key, is_wavelength in _places(file):
        if file.dataset(key) is None:
            continue
        value = abs(read_number(file, raw, key, LENGTHS if is_wavelength else ENERGIES))
        if not value:
            continue
        energy_ev = METRE_EV / value if is_wavelength else value / JOULES_PER_EV
        if not _LOWEST_EV <= energy_ev <= _HIGHEST_EV:
            what = "wavelength in metres" if is_wavelength else "photon energy in joules"
            raise refused(
                raw.path, key, f"is {value:g}", f"the {what}, or with its units", "set energy_ev"
            )
        return energy_ev
    return 0.0


def _places(file: LinkedFiles) -> Iterator[tuple[str, bool]]:
    """Datasets that may hold it, and whether it is as a wavelength."""
    parts = [f"{group}/{name}" for group in _GROUPS for name in file.names(group)]
    beams = [part for part in parts if part.rpartition("/")[2].startswith("beam")]
    yield from (
        (f"{beam}/{name}", False) for beam in beams for name in ("incident_energy", "energy")
    )
    yield from ((f"{beam}/incident_wavelength", True) for beam in beams)
    yield CXI_ENERGY, False
    for part in parts:
        if part.endswith("/monochromator"):
            yield f"{part}/energy", False
            yield f"{part}/wavelength", True


def find_number(
    file: LinkedFiles, raw: RawScan, keys: Sequence[str], units: Mapping[str, float]
) -> float:
    """The first number that is there, without its sign, in SI units; zero where there is none."""
    return next((abs(found) for key in keys if (found := read_number(file, raw, key, units))), 0.0)


def pixel_sizes(axis: str) -> tuple[str, ...]:
    """Where the size of a detector's pixel may stand, along `x` or `y`."""
    return tuple(f"{detector}/{axis}_pixel_size" for detector in _DETECTORS)
