"""What can be set under `training:` for the backend `pinn`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from ptycho_tasks.options import doc
from ptycho_tasks_torch.options import NetworkOptions


class PinnOptions(NetworkOptions, frozen=True, kw_only=True):
    """What can be set under `training:`."""

    unlabelled: ClassVar[str] = "pinn"

    model_type: Annotated[  # type: ignore[misc]
        Literal["pinn", "supervised"],
        doc("pinn: learn from the diffraction alone; supervised: from the scan's objectGuess"),
    ] = "pinn"
    gridsize: Annotated[  # type: ignore[misc]
        Literal[1, 2],
        doc("1: the network sees one frame; 2: groups of 2 x 2 neighbouring frames"),
    ] = 2
    loss: Annotated[
        Literal["poisson", "mae"],
        doc("of pinn: Poisson likelihood of the counts, or mean absolute error of the amplitudes"),
    ] = "poisson"
    channels: Annotated[int, doc("feature maps of the network at full size", ge=4, le=256)] = 16
    halvings: Annotated[
        int,
        doc(
            "how often the network halves what it sees, with twice the feature maps each time but "
            "the last: most weights lie where there are few pixels",
            ge=2,
            le=6,
        ),
    ] = 2
    steps: Annotated[int, doc("physics steps that a network of its own corrects", ge=1, le=8)] = 2

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        NetworkOptions.__post_init__(self)
        if self.model_type == "supervised" and self.loss != "poisson":
            raise ValueError(
                f"loss {self.loss} compares diffraction, but model_type supervised compares "
                "objects: leave loss out"
            )
