"""The backend `pinn`: a physics-informed network that learns from diffraction patterns alone, or
from labels."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

import msgspec

from ptycho_tasks.backend import InferRequest, Reconstruction, TrainedModel, TrainRequest
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import ExecutionOptions, TrainingOptions, doc, limits


class PinnOptions(TrainingOptions, frozen=True, kw_only=True):
    """What can be set under `training:`."""

    model_type: Annotated[
        Literal["pinn", "supervised"],
        doc("pinn: learn from the diffraction alone; supervised: from the scan's objectGuess"),
    ] = "pinn"
    epochs: Annotated[int, doc("passes over the training frames", ge=1)] = 20
    gridsize: Annotated[
        Literal[1, 2],
        doc("1: the network sees one frame; 2: groups of 2 x 2 neighbouring frames"),
    ] = 2
    n_groups: Annotated[
        Annotated[int, limits(ge=16)] | None,
        doc("groups to train on, chosen at random; null takes one around every frame"),
    ] = None
    batch_size: Annotated[int, doc("frames a training step, a multiple of neighbours", ge=4)] = 32
    accumulate_grad_batches: Annotated[
        int, doc("batches whose gradients make one training step together", ge=1)
    ] = 1
    neighbours: Annotated[
        Annotated[int, limits(ge=4)] | None,
        doc(
            "neighbouring frames that must agree on one object: the overlap constraint; null: 32, "
            "or batch_size where that is less"
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
    loss: Annotated[
        Literal["poisson", "mae"],
        doc("of pinn: Poisson likelihood of the counts, or mean absolute error of the amplitudes"),
    ] = "poisson"
    channels: Annotated[int, doc("feature maps of the network at full size", ge=4, le=256)] = 16
    steps: Annotated[int, doc("physics steps that a network of its own corrects", ge=1, le=8)] = 2
    validation_fraction: Annotated[
        float, doc("share of the frames that is held back to validate", gt=0.0, le=0.5)
    ] = 0.03

    @property
    def block_frames(self) -> int:
        """Frames of a block, which must agree on one object: `neighbours`, its default resolved."""
        return min(32, self.batch_size) if self.neighbours is None else self.neighbours

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
        if self.model_type == "supervised" and self.loss != "poisson":
            raise ValueError(
                f"loss {self.loss} compares diffraction, but model_type supervised compares "
                "objects: leave loss out"
            )


class PinnExecution(ExecutionOptions, frozen=True, kw_only=True):
    """What can be set under `execution:`. Nothing here changes the bundle, several devices' and
    other kernels' rounding aside."""

    devices: Annotated[
        int, doc("devices to train on at once; on a CPU, processes", ge=1, le=1024)
    ] = 1
    deterministic: Annotated[
        bool | None,
        doc("kernels that round alike in each run; null: where there are some; false: the fastest"),
    ] = None
    num_workers: Annotated[
        int, doc("threads that read frames ahead; 0 reads them when they are due", ge=0, le=256)
    ] = 0
    checkpointing: Annotated[bool, doc("keep the state of a training, to go on after a kill")] = (
        True
    )
    checkpoint_save_top_k: Annotated[
        int,
        doc("best epochs by `training.monitor` to keep, each as a bundle of its own", ge=0, le=20),
    ] = 0
    logger: Annotated[
        Literal["none", "csv", "tensorboard", "mlflow"],
        doc("log of every epoch; mlflow goes to MLFLOW_TRACKING_URI where that is set"),
    ] = "none"

    def __post_init__(self) -> None:
        """Refuse values that do not fit each other."""
        if self.checkpoint_save_top_k and not self.checkpointing:
            raise ValueError(
                f"checkpoint_save_top_k {self.checkpoint_save_top_k} needs checkpointing: true"
            )

    @classmethod
    def of(cls, execution: ExecutionOptions) -> PinnExecution:
        """The same with this backend's defaults, where only what every backend knows is given."""
        if isinstance(execution, cls):
            return execution
        return cls(**msgspec.structs.asdict(execution))


def check(options: PinnOptions, execution: PinnExecution) -> None:
    """Refuse options that ask for what the others leave no room for.

    Raises:
        ConfigError: begins with the dotted key.
    """
    blocks = options.batch_size // options.block_frames
    if blocks % execution.devices:
        raise ConfigError(
            f"execution.devices: training.batch_size / training.neighbours = {blocks} blocks a "
            f"batch cannot be divided evenly among {execution.devices} devices; take a batch_size "
            f"of {execution.devices * options.block_frames}, or a multiple of it"
        )
    logger = execution.logger
    if logger in ("tensorboard", "mlflow") and find_spec(logger) is None:
        raise ConfigError(
            f"execution.logger: {logger} is not installed; "
            f'pip install "ptycho-tasks-torch[{logger}]"'
        )
    watched = options.early_stop_patience is not None or options.scheduler == "plateau"
    if watched or execution.checkpoint_save_top_k:
        return
    for key in ("monitor", "monitor_mode"):
        value = getattr(options, key)
        if value != getattr(PinnOptions(), key):
            raise ConfigError(
                f"training.{key}: {value} is of no use, as nothing tells better epochs from worse "
                "ones; set early_stop_patience, scheduler: plateau, or "
                "execution.checkpoint_save_top_k, or leave it out"
            )


class Pinn:
    """See the module; torch is imported by its methods only."""

    name = "pinn"
    version = "1"
    options_type = PinnOptions
    execution_type = PinnExecution

    def check(self, options: PinnOptions, execution: ExecutionOptions) -> None:
        """Refuse options that do not fit each other, before torch is imported; see `check`."""
        check(options, PinnExecution.of(execution))

    def train(self, request: TrainRequest) -> TrainedModel:
        """Train on a scan, going on from the checkpoint in the work folder.

        Raises:
            TrainingError: the loss became NaN, or the network is no better than a flat object.
            ScanError: too few frames, or a label that is of no use.
            ConfigError: accelerator, devices, deterministic kernels or logger are not there, the
                scan has no label to learn from, or more groups are asked for than exist.
        """
        from ptycho_tasks_torch.training import train

        return train(request)

    def infer(self, request: InferRequest) -> Reconstruction:
        """Reconstruct a scan.

        Raises:
            BundleError: the model's arrays are not those of this network.
            ConfigError: the accelerator is not there, or the scan's N is not the model's.
        """
        from ptycho_tasks_torch.inference import infer

        return infer(request)


backend = Pinn()
