"""Files as facilities write them, of one small simulated scan; made from what the readers read."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.raw_scan import METRE_EV

SIZE, GRID = 16, 5
PIXEL_M = 20e-9
ENERGY_EV = 8000.0
UM, NM, MM = 1e-6, 1e-9, 1e-3


def distance_for(detector_pixel_m: float) -> float:
    """The distance at which an object pixel is `PIXEL_M` wide."""
    return PIXEL_M * SIZE * detector_pixel_m * ENERGY_EV / METRE_EV


@dataclass(frozen=True)
class Truth:
    """What all the files hold."""

    counts: NDArray[np.generic]
    """(M, N, N); of most, M = 25 on 5 lines."""
    x_m: NDArray[np.float64]
    y_m: NDArray[np.float64]
    probe: NDArray[np.complex64]

    @property
    def lines(self) -> NDArray[Any]:
        """(5, 5, N, N)."""
        return self.counts.reshape(GRID, GRID, SIZE, SIZE)


@dataclass(frozen=True)
class Made:
    """A scan of a facility."""

    path: Path
    positions: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """Of `source`: what such files do not say."""


def make_truth() -> Truth:
    scan = simulate(SimulationOptions(size=SIZE, grid=GRID, step=2.0, jitter=0.5, seed=4))
    counts = np.rint(scan.diffraction**2).astype(np.uint32)
    y_m, x_m = scan.positions.T * PIXEL_M
    # Of a raster, as EPICS drives it, each line has one y.
    y_m = np.repeat(y_m.reshape(GRID, GRID).mean(axis=1), GRID)
    return Truth(counts, x_m, y_m, scan.probe)


def write_hdf5(path: Path, contents: dict[str, Any]) -> Path:
    """Write datasets by their paths; `path@name` is an attribute of one."""
    with h5py.File(path, "w") as file:
        for key, value in contents.items():
            owner, _, name = key.partition("@")
            if name:
                file[owner].attrs[name] = value
            else:
                file[owner] = value
    return path


def _beam(detector_pixel_m: float, *lacks: str) -> dict[str, float]:
    said = {"energy_ev": ENERGY_EV, "distance_m": distance_for(detector_pixel_m)}
    return {key: value for key, value in said.items() if key not in lacks}


def _write_csv(path: Path, truth: Truth) -> Path:
    # Ptychodus' CSV has y first, in metres.
    np.savetxt(path, np.stack([truth.y_m, truth.x_m], axis=1), delimiter=",")
    return path


def nanomax(folder: Path, truth: Truth) -> Made:
    positions = {
        f"entry/measurement/pseudo/{axis}": values / UM
        for axis, values in (("x", truth.x_m), ("y", truth.y_m))
    }
    data = write_hdf5(folder / "data.h5", {"frames": truth.counts})
    path = write_hdf5(folder / "000012.h5", positions)
    with h5py.File(path, "a") as file:
        file["entry/measurement/Eiger/data"] = h5py.ExternalLink(data.name, "frames")
    return Made(path, None, {"pixel_size_m": PIXEL_M})


def cssi(folder: Path, truth: Truth) -> Made:
    motors = np.stack([truth.x_m, truth.y_m], axis=1) / MM
    contents = {"exchange/data": truth.counts, "exchange/motor_pos": motors}
    return Made(write_hdf5(folder / "cssi.h5", contents), None, {"pixel_size_m": PIXEL_M})


def lcls(folder: Path, truth: Truth) -> Made:
    beam = np.full(len(truth.x_m), 2500.0)
    beam[3] = 100.0  # too weak: Ptychodus leaves out its position, and interpolates it
    contents = {
        "jungfrau1M/image_img": truth.counts.astype(np.float32),
        "lmc/ch03": -truth.x_m / UM,  # at an angle of 180 degrees
        "lmc/ch04": np.zeros(len(beam)),
        "lmc/ch05": -truth.y_m / UM,
        "ipm2/sum": beam,
    }
    return Made(write_hdf5(folder / "lcls.h5", contents), None, {"pixel_size_m": PIXEL_M})


def nsls_1(folder: Path, truth: Truth) -> Made:
    contents = {
        "entry/data/data": truth.counts,
        "scan/energy": ENERGY_EV,
        "scan/exposure_time": 0.1,
        "scan/scan_positions": np.stack([truth.x_m, truth.y_m]) / UM,
    }
    return Made(write_hdf5(folder / "nsls.h5", contents), None, {"pixel_size_m": PIXEL_M})


def nsls_2(folder: Path, truth: Truth) -> Made:
    contents = {
        "diffamp": np.sqrt(truth.counts).astype(np.float32),
        "ccd_pixel_um": 55.0,
        "lambda_nm": METRE_EV / ENERGY_EV / NM,
        "z_m": distance_for(55e-6),
        "angle": 0.0,
        "points": np.stack([truth.x_m, truth.y_m]) / UM,
    }
    return Made(write_hdf5(folder / "nsls.h5", contents))


def csaxs(folder: Path, truth: Truth) -> Made:
    contents = {
        "entry/data/data": truth.counts,
        "entry/instrument/monochromator/distance": -distance_for(75e-6) / MM,
        "entry/instrument/monochromator/energy": ENERGY_EV / 1e3,
        "entry/instrument/eiger_4/x_pixel_size": 75.0,
        "entry/instrument/eiger_4/y_pixel_size": 75.0,
    }
    return Made(write_hdf5(folder / "csaxs.h5", contents), _write_csv(folder / "p.csv", truth))


def tiff(folder: Path, truth: Truth) -> Made:
    for number, frame in enumerate(truth.counts, start=998):  # from 999 to 1000: one digit more
        tifffile.imwrite(folder / f"scan_7_{number}.tif", frame)
    tifffile.imwrite(folder / "scan_8_001.tif", truth.counts[0])  # of another scan
    return Made(
        folder / "scan_7_998.tif", _write_csv(folder / "p.csv", truth), {"pixel_size_m": PIXEL_M}
    )


def npy(folder: Path, truth: Truth) -> Made:
    np.save(folder / "frames.npy", truth.counts)
    text = folder / "p.txt"
    np.savetxt(text, np.stack([truth.x_m, truth.y_m], axis=1), delimiter=" ")
    return Made(folder / "frames.npy", text, {"pixel_size_m": PIXEL_M})


def lamni(folder: Path, truth: Truth) -> Made:
    path = write_hdf5(
        folder / "run_1.h5",
        {
            "entry/data/eiger_4": truth.counts,
            "entry/data/eiger_4@Detector_distance_m": distance_for(75e-6),
            "entry/data/eiger_4@Photon_energy_kev": ENERGY_EV / 1e3,
            "entry/data/eiger_4@Pixel_size": 75e-6,
        },
    )
    text = folder / "scan_1.dat"
    header = "Detector_Count Average_x_st_fzp Stdev_x_st_fzp Average_y_st_fzp Stdev_y_st_fzp"
    # The stage moves against the beam.
    rows = [
        f"{number} {-x / UM:.9f} 0 {-y / UM:.9f} 0"
        for number, (x, y) in enumerate(zip(truth.x_m, truth.y_m, strict=True), start=1)
    ]
    text.write_text("\n".join(["Scan 1, made up", header, *rows]) + "\n")
    return Made(path, text)


def velociprobe(folder: Path, truth: Truth) -> Made:
    detector = {
        "detector_distance": (distance_for(75e-6), b"m"),
        "beam_center_x": (SIZE // 2, b"pixel"),
        "beam_center_y": (SIZE // 2, b"pixel"),
        "x_pixel_size": (75e-6, b"m"),
        "y_pixel_size": (75e-6, b"m"),
        "detectorSpecific/photon_energy": (ENERGY_EV, b"eV"),
        "detectorSpecific/nimages": (len(truth.counts), b""),
        "detectorSpecific/ntrigger": (1, b""),
        "detectorSpecific/x_pixels_in_detector": (SIZE, b""),
        "detectorSpecific/y_pixels_in_detector": (SIZE, b""),
    }
    contents: dict[str, Any] = {}
    for key, (value, unit) in detector.items():
        contents[f"entry/instrument/detector/{key}"] = value
        contents[f"entry/instrument/detector/{key}@units"] = np.bytes_(unit or b"-")
    contents["entry/sample/goniometer/chi"] = 0.0
    contents["entry/sample/goniometer/chi@units"] = np.bytes_(b"degree")
    master = write_hdf5(folder / "fly1_master.h5", contents)
    with h5py.File(master, "a") as file:
        for part, frames in enumerate(np.array_split(truth.counts, [10, 20]), start=1):
            data = write_hdf5(folder / f"fly1_data_{part:06d}.h5", {"entry/data/data": frames})
            file[f"entry/data/data_{part:06d}"] = h5py.ExternalLink(data.name, "entry/data/data")
    rows = np.zeros((len(truth.counts), 8), dtype=np.int64)
    rows[:, 1], rows[:, 2] = np.rint(truth.x_m / NM), np.rint(truth.y_m / NM)
    rows[:, 7] = np.arange(len(rows))
    np.savetxt(folder / "fly1_pos.txt", rows, fmt="%d", delimiter=",")
    return Made(master, folder / "fly1_pos.txt")


def aps_2idd(folder: Path, truth: Truth) -> Made:
    for line, frames in enumerate(truth.lines, start=1):
        write_hdf5(folder / f"fly054_data_{line:03d}.h5", {"entry/data/data": frames})
    write_hdf5(folder / "fly055_data_001.h5", {"entry/data/data": truth.lines[0]})
    return Made(folder / "fly054_data_001.h5", _write_csv(folder / "p.csv", truth), _beam(75e-6))


def isn(folder: Path, truth: Truth) -> Made:
    for line, frames in enumerate(truth.lines, start=1):
        contents: dict[str, Any] = {
            "entry/data/data": frames,
            "entry/instrument/NDAttributes/Wavelength": [1e10 * METRE_EV / ENERGY_EV] * GRID,
        }
        write_hdf5(folder / f"scan_1307_{line:05d}.h5", contents)
    triggers = {"entry/data/X_Position": truth.x_m / UM, "entry/data/Y_Position": truth.y_m / UM}
    positions = write_hdf5(folder / "positions.h5", triggers)
    return Made(folder / "scan_1307_00001.h5", positions, _beam(75e-6, "energy_ev"))


def saxs_processed(folder: Path, truth: Truth) -> Made:
    places = np.stack([np.zeros_like(truth.x_m), truth.y_m, -truth.x_m], axis=1) / NM
    for line, (frames, rows) in enumerate(
        zip(truth.lines, places.reshape(GRID, GRID, 3), strict=True), start=1
    ):
        write_hdf5(folder / f"sample_012_{line:05d}.h5", {"dp": frames, "positions": rows})
    master = write_hdf5(folder / "sample_012_master.h5", {"nothing": 0})
    with h5py.File(master, "a") as file:
        file.attrs["beam_center_YX"] = [SIZE / 2, SIZE / 2]
    return Made(master, None, _beam(172e-6))


def saxs_tiff(folder: Path, truth: Truth) -> Made:
    for index, frame in enumerate(truth.counts):
        name = f"sample_012_{index // GRID:05d}_{index % GRID:05d}"
        tifffile.imwrite(folder / f"{name}.tif", frame)
        # Two rows: the stage is read more often than the detector.
        row = [0.0, truth.y_m[index] / NM, -truth.x_m[index] / NM]
        np.savetxt(folder / f"{name}.dat", np.array([row, row]))
    first = folder / "sample_012_00000_00000"
    return Made(first.with_suffix(".tif"), first.with_suffix(".dat"), _beam(172e-6))


def polar(folder: Path, truth: Truth) -> Made:
    numbers = np.arange(len(truth.counts)) + 41
    eiger = write_hdf5(
        folder / "eiger_000001.h5",
        {
            "entry/data/data": truth.counts,
            "entry/instrument/NDAttributes/NDArrayUniqueId": numbers,
            "entry/instrument/NDAttributes/DetectorDistance": [distance_for(75e-6) / MM],
        },
    )
    primary = "entry/instrument/bluesky/streams/primary"
    master = write_hdf5(
        folder / "scan_000001_master.hdf",
        {
            "entry/instrument/bluesky/streams/baseline/mono_energy/value_start": ENERGY_EV / 1e3,
            "entry/instrument/bluesky/metadata/motors": "[nanox, nanoy]",
            "entry/plan_name": "grid_scan",
            f"{primary}/nanox/value": -truth.x_m / UM,
            f"{primary}/nanoy/value": -truth.y_m / UM,
        },
    )
    with h5py.File(master, "a") as file:
        file["entry/externals/eiger"] = h5py.ExternalLink(eiger.name, "entry/instrument")
    return Made(master)


def nsls_matlab(folder: Path, truth: Truth) -> Made:
    contents = {
        "det_data": truth.counts.astype(np.float64),
        "det_pixel_size": [[55.0]],
        "det_dist": distance_for(55e-6) / UM,
        "energy": ENERGY_EV / 1e3,
        "img_pixel_size_x": PIXEL_M,
        "img_pixel_size_y": PIXEL_M,
        "pos_xy": np.stack([np.arange(len(truth.x_m)), truth.x_m / UM, truth.y_m / UM]),
        "prb": truth.probe,
        "obj": np.ones((32, 32), np.complex64),
    }
    return Made(write_hdf5(folder / "hxn.mat", contents), None, {"pixel_size_m": PIXEL_M})


def _text(text: str) -> bytes:
    """A counted string of MDA: nothing but its length where it is empty."""
    if not text:
        return struct.pack(">i", 0)
    data = text.encode()
    return struct.pack(">ii", len(data), len(data)) + data + b"\0" * (-len(data) % 4)


def _mda_scan(
    start: int,
    positioners: list[NDArray[Any]],
    channels: dict[str, NDArray[Any]],
    lower: Callable[[int], list[bytes]] = lambda start: [],
) -> bytes:
    """A scan record of EPICS' MDA 1.4, big-endian XDR, with those of the scans below it."""
    values = [*positioners, *channels.values()]
    count = len(values[0])
    below = lower(0)
    head = struct.pack(">iii", 2 if below else 1, count, count)
    body = _text("scan") + _text("now")
    body += struct.pack(">iii", len(positioners), len(channels), 0)
    for number in range(len(positioners)):
        body += struct.pack(">i", number) + b"".join(map(_text, ("P", "", "", "", "R", "", "")))
    for number, name in enumerate(channels):
        body += struct.pack(">i", number) + _text(f"D{number}") + _text(name) + _text("")
    body += b"".join(np.asarray(values, ">f8").tobytes() for values in positioners)
    body += b"".join(np.asarray(values, ">f4").tobytes() for values in channels.values())
    first = start + len(head) + 4 * len(below) + len(body)
    records = lower(first)
    places = np.cumsum([first, *map(len, records)])[: len(records)]
    return head + np.asarray(places, ">i4").tobytes() + body + b"".join(records)


def write_mda(
    path: Path,
    unit: float,
    truth: Truth,
    kind: Literal["raster", "flat", "channels"] = "raster",
    spare: int = 0,
) -> Path:
    """Write positions as EPICS' MDA.

    Args:
        path: the file.
        unit: of the coordinates, in metres.
        truth: has the positions.
        kind: lines of a raster; points with two positioners; or with encoders as channels.
        spare: points that each line has after the last frame.
    """
    shape = (GRID, GRID) if kind == "raster" else (GRID * GRID,)
    header = struct.pack(f">fii{len(shape)}iii", 1.4, 54, len(shape), *shape, 1, 0)
    x, y = truth.x_m / unit, truth.y_m / unit
    if kind == "flat":
        scan = _mda_scan(len(header), [x, y], {})
    elif kind == "channels":
        scan = _mda_scan(len(header), [x], {"Piezo Y (all)": y, "X Axis": x})
    else:
        rows = [np.concatenate([row, row[-1] + np.arange(spare)]) for row in x.reshape(GRID, GRID)]

        def lines(start: int) -> list[bytes]:
            return [_mda_scan(start, [row], {}) for row in rows]

        scan = _mda_scan(len(header), [y[::GRID]], {}, lines)
    path.write_bytes(header + scan)
    return path


def aps_2ide(folder: Path, truth: Truth) -> Made:
    made = aps_2idd(folder, truth)
    (folder / "p.csv").unlink()
    return Made(made.path, write_mda(folder / "2xfm_0054.mda", MM, truth, spare=2), made.settings)


def aps_34ide(folder: Path, truth: Truth) -> Made:
    made = tiff(folder, truth)
    (folder / "p.csv").unlink()
    return Made(made.path, write_mda(folder / "p.mda", 1e-5, truth), made.settings)


def bnp(folder: Path, truth: Truth) -> Made:
    made = aps_2idd(folder, truth)
    (folder / "p.csv").unlink()
    return Made(made.path, write_mda(folder / "p.mda", UM, truth), made.settings)


def hxn(folder: Path, truth: Truth) -> Made:
    path = write_hdf5(folder / "scan_1.h5", {"entry/data/data": truth.counts})
    positions = write_mda(folder / "p.mda", UM, truth, kind="flat")
    return Made(path, positions, {"pixel_size_m": PIXEL_M})


def hxn_tiff(folder: Path, truth: Truth) -> Made:
    made = tiff(folder, truth)
    (folder / "p.csv").unlink()
    return Made(made.path, write_mda(folder / "p.mda", UM, truth, kind="flat"), made.settings)


def saxs(folder: Path, truth: Truth) -> Made:
    for index, frame in enumerate(truth.counts):
        name = f"sample_012_{index // GRID:05d}_{index % GRID:05d}"
        contents = {
            "entry/data/data": frame,
            "entry/instrument/NDAttributes/monoE": [ENERGY_EV],
            "entry/instrument/NDAttributes/ExposureTime": [0.1],
        }
        write_hdf5(folder / f"{name}.h5", contents)
        row = [0.0, truth.y_m[index] / NM, -truth.x_m[index] / NM]
        np.savetxt(folder / f"{name}.dat", np.array([row, row]))
    first = folder / "sample_012_00000_00000"
    return Made(first.with_suffix(".h5"), first.with_suffix(".dat"), _beam(172e-6, "energy_ev"))


def velociprobe_encoder(folder: Path, truth: Truth) -> Made:
    made = velociprobe(folder, truth)
    assert made.positions is not None
    rows = np.loadtxt(made.positions, delimiter=",", dtype=np.int64)
    rows[:, 5], rows[:, 2] = -rows[:, 2], 0
    np.savetxt(made.positions, rows, fmt="%d", delimiter=",")
    return made


def training_data(folder: Path, truth: Truth) -> Made:
    side = 48
    contents = {
        "patterns": truth.counts,
        "bad_pixels": np.zeros((SIZE, SIZE), bool),
        "probe": truth.probe,
        "object": np.ones((side, side), np.complex64),
        "object_pixel_width_m": PIXEL_M,
        "object_pixel_height_m": PIXEL_M,
        "probe_position_x_px": truth.x_m / PIXEL_M,
        "probe_position_y_px": truth.y_m / PIXEL_M,
        "detector_object_distance_m": distance_for(55e-6),
        "photon_energy_eV": ENERGY_EV,
    }
    return Made(write_hdf5(folder / "training.h5", contents))


def polar_fly(folder: Path, truth: Truth) -> Made:
    made = polar(folder, truth)
    # Frames are numbered from 1, triggers from 0; each is read three times.
    triggers = np.repeat(np.arange(len(truth.counts) + 1), 3)
    rows = np.zeros((len(triggers), 24))
    rows[:, 0] = rows[:, 1] = np.arange(len(rows))
    rows[:, 2] = triggers
    for column, values in ((3, truth.x_m), (4, truth.y_m)):
        rows[:, column] = -np.concatenate([[0.0], values])[triggers] / NM
    stream = write_hdf5(folder / "pos_000001.h5", {"entry/data/data": rows})
    with h5py.File(made.path, "a") as file:
        file["entry/externals/pos_stream"] = h5py.ExternalLink(stream.name, "entry/instrument")
    return made


def bnp_maps(folder: Path, truth: Truth) -> Made:
    made = bnp(folder, truth)
    (folder / "p.mda").unlink()
    grid = {"MAPS/x_axis": np.arange(GRID) * 0.04, "MAPS/y_axis": np.arange(GRID) * 0.06}
    return Made(made.path, write_hdf5(folder / "p.mda.h5", grid), made.settings)


def isn_mda(folder: Path, truth: Truth) -> Made:
    made = isn(folder, truth)
    (folder / "positions.h5").unlink()
    positions = write_mda(folder / "p.mda", MM, truth, kind="channels")
    return Made(made.path, positions, made.settings)


MAKERS: dict[str, Callable[[Path, Truth], Made]] = {
    "APS_2IDD": aps_2idd,
    "APS_2IDE": aps_2ide,
    "APS_34IDE": aps_34ide,
    "APS_BNP": bnp,
    "APS_BNP MAPS": bnp_maps,
    "APS_CSSI": cssi,
    "APS_ISN": isn,
    "APS_ISN MDA": isn_mda,
    "APS_LamNI": lamni,
    "APS_Polar": polar,
    "APS_Polar fly": polar_fly,
    "APS_PtychoSAXS": saxs,
    "APS_PtychoSAXS_Processed": saxs_processed,
    "APS_PtychoSAXS_TIFF": saxs_tiff,
    "APS_Velociprobe_LI": velociprobe,
    "APS_Velociprobe_PE": velociprobe_encoder,
    "CNM_APS_HXN": hxn,
    "CNM_APS_HXN_TIFF": hxn_tiff,
    "LCLS_XPP": lcls,
    "MAX_IV_NanoMAX": nanomax,
    "NPY": npy,
    "NSLS_II_1": nsls_1,
    "NSLS_II_2": nsls_2,
    "NSLS_II_MATLAB": nsls_matlab,
    "Ptychodus_Training_Data": training_data,
    "SLS_cSAXS": csaxs,
    "TIFF": tiff,
}
"""By the name of the format, and which of its files."""
