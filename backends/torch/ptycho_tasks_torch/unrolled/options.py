"""What can be set under `training:` for the backend `unrolled`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import msgspec

from ptycho_tasks.options import TEXT_PATTERN, doc, limits
from ptycho_tasks_torch.options import NetworkOptions

PRETRAINED, NOTHING = "pretrained", "nothing"
CHANNELS = 32
"""Of the network that comes with this package."""
LEARNING = (
    "on",
    "model_type",
    "learning_rate",
    "scheduler",
    "accumulate_grad_batches",
    "early_stop_patience",
    "monitor",
    "monitor_mode",
)
"""Options of the epochs alone."""
DIVIDING = ("batch_size", "neighbours", "n_groups", "validation_fraction")
"""Options that say which frames are learned from; those a probe is fitted to, too."""


class UnrolledOptions(NetworkOptions, frozen=True, kw_only=True):
    """What can be set under `training:`."""

    unlabelled: ClassVar[str] = "unsupervised"
    most_neighbours: ClassVar[int] = 128

    start: Annotated[
        str,
        doc(
            "the network to start from. pretrained: the one that comes with the package, for scans "
            "of all kinds; nothing: a fresh one, which corrects nothing before it is trained; or a "
            "wts.h5.zip, or the folder that holds it",
            words=(PRETRAINED, NOTHING),
            pattern=TEXT_PATTERN,
        ),
    ] = PRETRAINED
    on: Annotated[
        Literal["scan", "simulated", "both"],
        doc(
            "what to learn from. scan: frames that are hidden from the network; simulated: objects "
            "like the scan's and others, measured with its probe, dose and positions; both: both "
            "in turn"
        ),
    ] = "scan"
    model_type: Annotated[  # type: ignore[misc]
        Literal["unsupervised", "supervised"],
        doc("of the scan, learn from the diffraction alone, or from its objectGuess"),
    ] = "unsupervised"
    epochs: Annotated[
        int,
        doc(
            "passes over the training frames, 16 say; 0 learns nothing and takes `start` as it is",
            ge=0,
        ),
    ] = 0
    batch_size: Annotated[int, doc("frames a training step, a multiple of neighbours", ge=4)] = 128
    learning_rate: Annotated[
        float,
        doc("highest learning rate of Adam; with start: nothing, take 3e-3", gt=0.0, le=1.0),
    ] = 3e-4
    steps: Annotated[
        Literal["auto"] | Annotated[int, limits(ge=2, le=1000)],
        doc(
            "physics steps of a reconstruction; auto: until frames held back are explained no "
            "better"
        ),
    ] = "auto"
    channels: Annotated[int, doc("feature maps of the network at full size", ge=4, le=256)] = (
        CHANNELS
    )
    probe: Annotated[
        Literal["fixed", "refined"],
        doc("whether the scan's probe is taken as it is, or made to fit its frames better"),
    ] = "fixed"
    probe_modes: Annotated[
        Annotated[int, limits(ge=1, le=8)] | None,
        doc(
            "incoherent modes of a refined probe; null takes as many as the scan gives; fewer are "
            "taken where they explain as much"
        ),
    ] = None
    positions: Annotated[
        Literal["fixed", "refined"],
        doc(
            "whether scan positions are taken as they are, or moved to where their frames fit "
            "better; in inference, those of the scan at hand"
        ),
    ] = "fixed"
    early_stop_patience: Annotated[
        Annotated[int, limits(ge=1)] | None,
        doc("epochs without a better `monitor` that end the training, with the best one's weights"),
    ] = 30
    validation_fraction: Annotated[
        float, doc("share of the frames that is held back to validate", gt=0.0, le=0.5)
    ] = 0.05

    @property
    def idle(self) -> list[str]:
        """Names of the options that were set, and are without effect as there are no epochs."""
        names = LEARNING if self.probe == "refined" else (*LEARNING, *DIVIDING)
        return [] if self.epochs else self._select_set(names)

    @property
    def idle_in_refinement(self) -> list[str]:
        """Names of the options that were set, and are without effect on a refinement."""
        return self._select_set(name for name in self.__struct_fields__ if name != "steps")

    def _select_set(self, names: Iterable[str]) -> list[str]:
        defaults = {field.name: field.default for field in msgspec.structs.fields(type(self))}
        return [name for name in names if getattr(self, name) != defaults[name]]

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        NetworkOptions.__post_init__(self)
        word = self.start.strip().lower()
        if word in (PRETRAINED, NOTHING) and self.start != word:
            raise ValueError(
                f"start {self.start}: write {word} in small letters; of a folder of that name, "
                f"write ./{self.start}"
            )
        if self.start == PRETRAINED and self.channels != CHANNELS:
            raise ValueError(
                f"channels {self.channels} does not fit the pretrained network, which has "
                f"{CHANNELS}: leave channels out, or take start: {NOTHING}"
            )
        if self.max_minutes is not None and not self.epochs:
            raise ValueError(
                f"max_minutes {self.max_minutes:g} ends a training, and with epochs 0 there is "
                "none: set epochs, to 1000 say, or leave max_minutes out"
            )
        if self.on == "simulated" and self.model_type == "supervised":
            raise ValueError(
                "model_type supervised learns from the scan, but on: simulated does not: "
                "take on: scan or both"
            )
        if self.probe_modes is not None and self.probe != "refined":
            raise ValueError("probe_modes needs probe: refined")
