"""What can be set under `training:` and `refine:` for the backend `ptychi`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ptycho_tasks.options import TrainingOptions, doc, limits

KNOBS: Mapping[str, Mapping[str, Any]] = {
    "LSQML": {
        "batch_size": 64,
        "batching": "random",
        "noise_model": "gaussian",
        "object_step": 1.0,
        "probe_step": 1.0,
        "momentum": 0.0,
    },
    "rPIE": {
        "batch_size": 16,
        "batching": "random",
        "object_step": 0.3,
        "probe_step": 0.3,
        "alpha": 0.5,
    },
    "ePIE": {
        "batch_size": 16,
        "batching": "random",
        "object_step": 0.3,
        "probe_step": 0.3,
    },
    "DM": {"relaxation": 0.1, "inertia": 0.0},
}
"""The options that only some algorithms have, with the default of each algorithm."""

FIRST_EPOCHS: Mapping[str, int] = {"probe": 2, "positions": 15}
"""Default number of epochs in which only the object is refined, before probe or positions are too;
never more than half of all epochs."""


class PtychiOptions(TrainingOptions, frozen=True, kw_only=True):
    """What can be set under `training:` and `refine:`.

    Null takes the value of the algorithm, see `KNOBS`, or that of `FIRST_EPOCHS`.
    """

    epochs: Annotated[int, doc("passes over the frames", ge=1)] = 50
    algorithm: Annotated[
        Literal["LSQML", "rPIE", "ePIE", "DM"],
        doc(
            "LSQML: least squares, maximum likelihood; rPIE, ePIE: regularised and extended "
            "ptychographic iterative engine; DM: difference map"
        ),
    ] = "LSQML"
    batch_size: Annotated[
        Annotated[int, limits(ge=1)] | None,
        doc("frames an update; null: 64 for LSQML, 16 for rPIE and ePIE; DM takes all at once"),
    ] = None
    batching: Annotated[
        Literal["random", "uniform", "compact"] | None,
        doc("frames of a batch: random (also null), spread evenly, or neighbours; not for DM"),
    ] = None
    noise_model: Annotated[
        Literal["gaussian", "poisson"] | None,
        doc("likelihood that LSQML maximises; null: gaussian"),
    ] = None
    object_step: Annotated[
        Annotated[float, limits(gt=0.0)] | None,
        doc("step of the object; null: 1 for LSQML, 0.3 for rPIE and ePIE; not for DM"),
    ] = None
    probe_step: Annotated[
        Annotated[float, limits(gt=0.0)] | None,
        doc("step of the probe; null: 1 for LSQML, 0.3 for rPIE and ePIE; not for DM"),
    ] = None
    alpha: Annotated[
        Annotated[float, limits(gt=0.0, le=1.0)] | None,
        doc("regularisation of rPIE, 1 makes it ePIE; null: 0.5"),
    ] = None
    momentum: Annotated[
        Annotated[float, limits(ge=0.0)] | None,
        doc("gain of momentum in LSQML, the object's with compact batches only; null: 0"),
    ] = None
    relaxation: Annotated[
        Annotated[float, limits(gt=0.0, le=1.0)] | None,
        doc("share of an update that DM's exit waves take; null: 0.1"),
    ] = None
    inertia: Annotated[
        Annotated[float, limits(ge=0.0, lt=1.0)] | None,
        doc("share of object and probe that DM keeps in an update; null: 0"),
    ] = None
    probe_modes: Annotated[
        Annotated[int, limits(ge=1, le=32)] | None,
        doc("incoherent probe modes; null takes those of the scan, or of what is gone on from"),
    ] = None
    refine_probe: Annotated[bool, doc("reconstruct the probe, too")] = True
    refine_probe_from: Annotated[
        Annotated[int, limits(ge=0)] | None,
        doc("epochs before the probe is refined; null: 2, at most half of all"),
    ] = None
    refine_positions: Annotated[bool, doc("correct the positions, too")] = False
    refine_positions_from: Annotated[
        Annotated[int, limits(ge=0)] | None,
        doc("epochs before positions are refined; null: 15, at most half of all"),
    ] = None
    position_step: Annotated[float, doc("step of the positions", gt=0.0)] = 0.3

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        own = KNOBS[self.algorithm]
        for name in sorted({name for knobs in KNOBS.values() for name in knobs} - set(own)):
            if getattr(self, name) is not None:
                owners = ", ".join(key for key, knobs in KNOBS.items() if name in knobs)
                raise ValueError(f"{name} is for {owners} and means nothing to {self.algorithm}")
        for what in FIRST_EPOCHS:
            start = self.first_epoch(what)
            if getattr(self, f"refine_{what}") and start >= self.epochs:
                raise ValueError(
                    f"refine_{what}_from {start} is beyond the last of {self.epochs} epochs: "
                    f"lower it, or set refine_{what} to false"
                )

    def knob(self, name: str) -> Any:
        """The value of an option that not every algorithm has, or its default."""
        value = getattr(self, name)
        return KNOBS[self.algorithm][name] if value is None else value

    def first_epoch(self, what: str) -> int:
        """Number of epochs before `probe` or `positions` are refined."""
        first: int | None = getattr(self, f"refine_{what}_from")
        return min(FIRST_EPOCHS[what], self.epochs // 2) if first is None else first
