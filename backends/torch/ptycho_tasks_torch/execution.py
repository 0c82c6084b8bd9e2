"""How and where to run: what the backends of this package understand under `execution:`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

import msgspec

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import ExecutionOptions, doc
from ptycho_tasks_torch.options import NetworkOptions


class TorchExecution(ExecutionOptions, frozen=True, kw_only=True):
    """What can be set under `execution:`.

    Nothing here changes the bundle, except that several devices and other kernels round otherwise.
    """

    devices: Annotated[
        int,
        doc(
            "devices to train on at once, and to reconstruct a large scan on with unrolled; on a "
            "CPU, processes",
            ge=1,
            le=1024,
        ),
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
    def from_execution(cls, execution: ExecutionOptions) -> TorchExecution:
        """The same, with the defaults of this package for what the core does not know."""
        if isinstance(execution, cls):
            return execution
        return cls(**msgspec.structs.asdict(execution))


def check_options(options: NetworkOptions, execution: TorchExecution) -> None:
    """Refuse options that do not fit each other.

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
    if options.max_minutes is not None and options.scheduler != "cosine":
        raise ConfigError(
            f"training.max_minutes: shapes scheduler cosine, not {options.scheduler}; take cosine, "
            "or leave max_minutes out"
        )
    logger = execution.logger
    if logger in ("tensorboard", "mlflow") and find_spec(logger) is None:
        raise ConfigError(
            f"execution.logger: {logger} is not installed; "
            f'pip install "ptycho-tasks-torch[{logger}]"'
        )
    is_monitored = options.early_stop_patience is not None or options.scheduler == "plateau"
    if is_monitored or execution.checkpoint_save_top_k:
        return
    for key in ("monitor", "monitor_mode"):
        value = getattr(options, key)
        if value != getattr(type(options)(), key):
            raise ConfigError(
                f"training.{key}: {value} is of no use, as nothing tells better epochs from worse "
                "ones; set early_stop_patience, scheduler: plateau, or "
                "execution.checkpoint_save_top_k, or leave it out"
            )
