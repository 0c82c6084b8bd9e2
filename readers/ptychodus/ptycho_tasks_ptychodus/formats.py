"""The formats that can be named, and the readers of Ptychodus that read them.

Left out are those that ptycho-tasks reads itself: CXI, NPZ, SLAC_NPZ and fold_slice.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """How a facility's scans are read; every name is one that Ptychodus gives a reader."""

    name: str
    """What `source.reader` calls it."""
    diffraction: str
    """The reader of frames."""
    positions: tuple[str, ...]
    """Readers of positions, of which the ending of the file chooses one."""
    holds_counts: bool = True
    """Whether frames are counts; else they are amplitudes."""
    counts_rows: bool = False
    """Whether the reader of positions numbers each by the rows before it, of which a point may
    have several, and not by the points."""


def _format(name: str, *positions: str, diffraction: str = "", **more: bool) -> Format:
    return Format(name, diffraction or name, positions or (name,), **more)


FORMATS = {
    one.name: one
    for one in (
        _format("APS_2IDD"),
        _format("APS_2IDE"),
        _format("APS_34IDE"),
        _format("APS_BNP", "APS_BNP", "APS_BNP_MAPS"),
        _format("APS_CSSI"),
        _format("APS_ISN", "APS_ISN", "APS_ISN_MDA"),
        _format("APS_LamNI"),
        _format("APS_Polar", "APS_Polar", "APS_Polar_SGZ"),
        _format("APS_PtychoSAXS"),
        _format("APS_PtychoSAXS_Processed"),
        _format("APS_PtychoSAXS_TIFF", counts_rows=True),
        _format("APS_Velociprobe_LI", diffraction="APS_Velociprobe"),
        _format("APS_Velociprobe_PE", diffraction="APS_Velociprobe"),
        _format("CNM_APS_HXN"),
        _format("CNM_APS_HXN_TIFF", "CNM_APS_HXN"),
        _format("LCLS_XPP"),
        _format("MAX_IV_NanoMAX"),
        _format("NPY", "CSV"),
        _format("NSLS_II_1"),
        _format("NSLS_II_2", holds_counts=False),
        _format("NSLS_II_MATLAB"),
        _format("Ptychodus_Training_Data"),
        _format("SLS_cSAXS", "CSV"),
        _format("TIFF", "CSV"),
    )
}
ANY_POSITIONS = ("CSV", "TXT", "MDA", "HDF5", "NPZ", "CXI", "NSLS_II_MATLAB", "fold_slice_mat")
"""Readers of positions that go with frames of any format."""
MATLAB_PROBES = ("NSLS_II_MATLAB", "fold_slice_mat")
"""Readers of probes that ptycho-tasks cannot read itself, for HDF5 and for other MATLAB files."""
VALID_PIXELS, BAD_PIXEL_LIST = "APS_12ID_Valid_Pixel_Mask", "APS_34IDE_Bad_Pixels"
"""Readers of masks in HDF5, and in JSON, that ptycho-tasks cannot read itself."""
