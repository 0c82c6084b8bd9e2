"""The settings under `training:` that all networks of this package share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from ptycho_tasks.options import TrainingOptions, doc, limits


class NetworkOptions(TrainingOptions, frozen=True, kw_only=True):
    """How a network is trained on blocks of neighbouring frames."""

    gridsize: ClassVar[int] = 1
    """Frames along one side of a group; a network may make it a setting."""

    model_type: ClassVar[str] = "unsupervised"
    """`supervised` learns from the scan's object; a network may make it a setting."""
    unlabelled: ClassVar[str]
    """The `model_type` to suggest where a scan has no label."""
    most_neighbours: ClassVar[int] = 32
    """`neighbours` where it is null and `batch_size` is no less."""

    epochs: Annotated[int, doc("passes over the training frames", ge=1)] = 20
    n_groups: Annotated[
        Annotated[int, limits(ge=16)] | None,
        doc("groups of each scan to train on, chosen at random; null: one around every frame"),
    ] = None
    batch_size: Annotated[int, doc("frames a training step, a multiple of neighbours", ge=4)] = 32
    accumulate_grad_batches: Annotated[
        int, doc("batches whose gradients make one training step together", ge=1)
    ] = 1
    neighbours: Annotated[
        Annotated[int, limits(ge=4)] | None,
        doc(
            "neighbouring frames that must agree on one object: the overlap constraint; null: 32 "
            "(unrolled: 128), or batch_size where that is less"
        ),
    ] = None
    learning_rate: Annotated[float, doc("highest learning rate of Adam", gt=0.0, le=1.0)] = 4e-3
    scheduler: Annotated[
        Literal["cosine", "constant", "exponential", "multi_step", "plateau"],
        doc(
            "the rate falls along a cosine, not at all, by 5 % an epoch, twice to a tenth, or by "
            "half when `monitor` stalls"
        ),
    ] = "cosine"
    max_minutes: Annotated[
        Annotated[float, limits(gt=0.0)] | None,
        doc(
            "longest time to train; the learning rate falls accordingly, so that the result "
            "depends on the machine's speed"
        ),
    ] = None
    early_stop_patience: Annotated[
        Annotated[int, limits(ge=1)] | None,
        doc("epochs without a better `monitor` that end the training, with the best one's weights"),
    ] = None
    monitor: Annotated[
        Literal["val_loss", "loss"],
        doc("what tells the better epoch: the misfit of frames held back, or of those trained on"),
    ] = "val_loss"
    monitor_mode: Annotated[
        Literal["min", "max"], doc("whether the smallest or the largest `monitor` is the best")
    ] = "min"
    validation_fraction: Annotated[
        float, doc("share of the frames that is held back to validate", gt=0.0, le=0.5)
    ] = 0.03

    @property
    def block_frames(self) -> int:
        """Frames of a block, which must agree on one object: `neighbours`, or its default."""
        return (
            min(self.most_neighbours, self.batch_size)
            if self.neighbours is None
            else self.neighbours
        )

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        name = "batch_size" if self.block_frames == self.batch_size else "neighbours"
        if self.block_frames % self.gridsize**2:
            raise ValueError(
                f"{name} {self.block_frames} is no multiple of a group's {self.gridsize**2} frames"
            )
        if self.batch_size % self.block_frames:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of neighbours {self.block_frames}: "
                f"take {self.block_frames} or {2 * self.block_frames}"
            )
