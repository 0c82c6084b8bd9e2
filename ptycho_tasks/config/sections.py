"""The sections of ptycho.yaml, typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from ptycho_tasks.layout import FILES_BESIDE, names_file
from ptycho_tasks.options import (
    NAME_PATTERN,
    FixtureOptions,
    OrientationOptions,
    Section,
    SimulationOptions,
    Stages,
    doc,
    limits,
)

Positive = Annotated[float, limits(gt=0)]

FileName = Annotated[str, limits(min_length=1)]


# For editors. `config.scans` checks them, with those that all scans share beside them.
OwnSettings = Annotated[dict[str, Any], limits(extra_json_schema={"$ref": "#/$defs/SourceOptions"})]


class SourceOptions(Section, frozen=True, kw_only=True):
    """Where the scan comes from: give `file`, `files` for several, or `simulate` to make one."""

    affects: ClassVar[Stages] = ("source", "fixture", "infer", "refine")

    # Of files, the content decides.
    file: Annotated[
        FileName | None,
        doc("the scan to read: NPZ, CXI and others, relative to this file", affects=()),
    ] = None
    files: Annotated[
        list[FileName] | dict[str, FileName | OwnSettings] | None,
        doc(
            "several scans instead: paths and globs, as in [a.npz, scans/*.npz], or `name: path` "
            "lines; instead of the path, settings of `source` that are this scan's own",
            affects=(),
        ),
    ] = None
    simulate: Annotated[
        SimulationOptions | None, doc("simulate a scan instead", affects=("source",))
    ] = None
    product: Annotated[
        FileName | None,
        doc(
            "a Ptychodus product (HDF5, NPZ or CXI) that gives probe and positions for `file`",
            affects=(),
        ),
    ] = None
    reader: Annotated[
        FileName | None,
        doc("what reads the scan, by name; null: what knows the file by its content"),
    ] = None
    measurement: Annotated[
        Literal["auto", "amplitude", "counts"],
        doc("what the frames hold; auto: amplitude in NPZ, counts in CXI"),
    ] = "auto"
    frame_axis: Annotated[
        Literal["auto", "first", "last"],
        doc("which axis numbers the frames; auto tells it from the number of positions"),
    ] = "auto"
    units: Annotated[
        Literal["auto", "pixels", "m", "mm", "um", "nm"],
        doc("of the positions; auto: pixels in NPZ, what the file says in CXI"),
    ] = "auto"
    pixel_size_m: Annotated[Positive | None, doc("object pixel in metres")] = None
    energy_ev: Annotated[Positive | None, doc("photon energy in eV")] = None
    distance_m: Annotated[Positive | None, doc("object to detector in metres")] = None
    scan_index: Annotated[
        int | None, doc("which scan to read of a file that holds several; null: the only one")
    ] = None
    dark_frames: Annotated[
        Literal["refuse", "drop"],
        doc("frames without light, or that were never written: refuse the scan, or drop them"),
    ] = "refuse"
    stray_frames: Annotated[
        Literal["refuse", "drop", "keep"],
        doc("a few frames far from all others: refuse the scan, drop them, or keep them"),
    ] = "refuse"
    bad_pixels: Annotated[
        FileName,
        doc(
            "pixels to leave out. file: those that its mask and its values mark, and glaring ones; "
            "auto: also hot and dead ones, and those that a ray hit in a frame; marked: its mask "
            "and NaN alone; ignore: none by a mask; or a key of the file, or a file (npy, npz, "
            "h5, tif) that holds a mask, true where bad"
        ),
    ] = "file"
    mask_marks: Annotated[
        Literal["bad", "good"] | None,
        doc(
            "what a mask is true, or not zero, for; null: bad, and a mask of most pixels is refused"
        ),
    ] = None
    saturated: Annotated[
        Positive | None, doc("counts from which on a pixel of a frame is bad; null: no such limit")
    ] = None
    negative_counts: Annotated[
        Literal["refuse", "clip", "mask"],
        doc("negative counts: refuse the scan, take them as zero, or as bad pixels"),
    ] = "refuse"
    probe: Annotated[
        FileName | None,
        doc(
            "the file that holds the probe (NPZ, NPY, CSV or HDF5), or `estimate` to have it "
            "estimated from the frames and fitted later; null: the scan's own",
            words=("estimate",),
        ),
    ] = None
    positions: Annotated[
        FileName | None,
        doc(
            "a text or CSV file with the positions, a line a frame: columns x and y; an HDF5 or "
            "NPZ, where `datasets` says where in it; or what `reader` reads them from",
            affects=(),
        ),
    ] = None
    datasets: Annotated[
        dict[str, FileName] | None,
        doc("for any HDF5 or NPZ: our key to a path in the file, as in `{diff3d: entry/frames}`"),
    ] = None
    orientation: Annotated[
        OrientationOptions, doc("how the positions lie to the columns and rows of the frames")
    ] = OrientationOptions()
    centre: Annotated[
        Annotated[list[float], limits(min_length=2, max_length=2)]
        | Literal["auto", "corner"]
        | None,
        doc(
            "[row, column] of the detector's pixel where the zero frequency lies; auto finds it; "
            "corner: frames as an FFT leaves them; null: the middle"
        ),
    ] = None
    crop: Annotated[
        Annotated[int, limits(ge=2, multiple_of=2)] | None,
        doc("pixels along a side of the square around the centre that is taken of each frame"),
    ] = None
    bin: Annotated[int, doc("pixels along a side that are read as one", ge=1)] = 1
    follow: Annotated[
        list[FileName],
        doc("folders besides its own that links in an HDF5 scan may lead to", affects=()),
    ] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        """Ask for exactly one kind of source."""
        if [self.file, self.files, self.simulate].count(None) != 2:
            raise ValueError(
                "give exactly one of `file` (a scan to read), `files` (several) and `simulate`"
            )

    def reading(self, locate: Callable[[str], Path]) -> dict[str, Any]:
        """How the scan is read, by the names that `readers.read_scan` gives it.

        Args:
            locate: gives the path of a file from its text.
        """
        values = {name: getattr(self, name) for name in READING}
        files = {name: text for name, text in self.files_beside.items() if name != "product"}
        paths: dict[str, Any] = {name: locate(text) for name, text in files.items()}
        if "bad_pixels" in paths:  # may be a key too
            paths["bad_pixels"] = str(paths["bad_pixels"])
        return values | paths

    @property
    def files_beside(self) -> dict[str, str]:
        """The files besides the scan's own that give a part of it, by the setting that says so."""
        named = {name: getattr(self, name) for name in FILES_BESIDE}
        return {name: text for name, text in named.items() if text and names_file(name, text)}


READING = tuple(
    name
    for name in SourceOptions.__struct_fields__
    if name not in ("file", "files", "simulate", "product", "follow")
)
"""The settings of a source that say how a scan is read, and not which."""


class TrainingFrames(FixtureOptions, frozen=True, kw_only=True):
    """Which frames are learned from: of which scans, and which of each."""

    scans: Annotated[
        Annotated[list[FileName], limits(min_length=1)] | None,
        doc(
            "those of `source.files` to learn from, by names or globs; null: the only one",
            affects=(),
        ),
    ] = None


class InferenceOptions(Section, frozen=True, kw_only=True):
    """What is reconstructed with the trained model."""

    affects: ClassVar[Stages] = ("infer", "refine")

    scan: Annotated[
        str,
        doc(
            "`source` (every frame), `fixture`, or the path of another scan",
            words=("source", "fixture"),
            min_length=1,
        ),
    ] = "source"
    n_groups: Annotated[
        Annotated[int, limits(ge=1)] | None,
        doc("frames of the scan to reconstruct from, evenly spaced by index; null takes all"),
    ] = None
    frames: Annotated[
        Literal["all", "even", "odd"],
        doc(
            "`even` or `odd`: every second frame of the scan; a variant of each tells the "
            "resolution where no truth is known"
        ),
    ] = "all"


class Config(Section, frozen=True, kw_only=True):
    """A whole ptycho.yaml. Only `source` must be given."""

    name: Annotated[
        str,
        doc(
            "names the files that are made",
            affects=("infer", "refine"),
            pattern=NAME_PATTERN,
        ),
    ] = "scan"
    store: Annotated[
        FileName | None,
        doc("a folder that keeps results, which projects and machines may share", affects=()),
    ] = None
    source: Annotated[SourceOptions, doc("where the scan comes from")]
    fixture: Annotated[TrainingFrames, doc("the frames to train on")] = TrainingFrames()
    backend: Annotated[
        str,
        doc("what trains and infers", affects=("train", "infer"), pattern=NAME_PATTERN),
    ] = "pinn"
    training: Annotated[dict[str, Any], doc("options of the backend", affects=("train",))] = (
        msgspec.field(default_factory=dict)
    )
    inference: Annotated[InferenceOptions, doc("what is reconstructed")] = InferenceOptions()
    refine: Annotated[
        dict[str, Any],
        doc(
            "go on from the reconstruction: a `backend` that can, ptychi for one, and its options",
            affects=("refine",),
        ),
    ] = msgspec.field(default_factory=dict)
    execution: Annotated[
        dict[str, Any], doc("how to run; a change here rebuilds nothing", affects=())
    ] = msgspec.field(default_factory=dict)
    matrix: Annotated[
        dict[str, Annotated[list[Any], limits(min_length=1)]],
        doc(
            "key to its values, as in `training.seed: [0, 1]`: a variant for each combination",
            affects=(),
        ),
    ] = msgspec.field(default_factory=dict)
    variants: Annotated[
        list[dict[str, Any]],
        doc("further variants: each a `name`, and the keys in which it differs", affects=()),
    ] = msgspec.field(default_factory=list)
    evidence: Annotated[
        dict[str, Any],
        doc("what is run to prove the rows of a plan; evidence.yaml may hold it too", affects=()),
    ] = msgspec.field(default_factory=dict)
