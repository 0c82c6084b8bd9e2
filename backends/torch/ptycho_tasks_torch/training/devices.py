"""Several devices train together, one process each; the first is this process.

The others are children that only compute gradients: they write no file, and report nothing but
errors. Each is started as a new program, because a fork of a process with threads or a GPU is
unsafe, and the start methods of multiprocessing run the user's script again.
"""

from __future__ import annotations

import mmap
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.frames.blocks import EpochPlan
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.training.objective import ObjectiveFactory

with warnings.catch_warnings():
    # Lightning's dependencies warn about each other, and no user can mend that.
    warnings.simplefilter("ignore")
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

HOST = "127.0.0.1"
TIMEOUT_S = 300
"""How long one process waits for the others, also for a process that is gone."""
PATIENCE_S = 5.0
"""How long to wait for a child's error after the connection to it broke."""
_BROKEN: list[Any] = []
"""Groups that lost a process, kept for good. torch frees one together with Lightning's model, while
Python is held, and waits for the threads of gloo; one that still drops a sum waits for Python."""


class _FixedRank(LightningEnvironment):
    """The rank of this process; Lightning would take it from a batch system's variables."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._rank

    def node_rank(self) -> int:
        return 0


@dataclass(frozen=True)
class TeamMember:
    """One of the devices that train together."""

    rank: int = 0
    devices: int = 1

    def own_part(self, epoch: EpochPlan) -> EpochPlan:
        """The part of an epoch that this device takes."""
        return replace(epoch, rank=self.rank, devices=self.devices)

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments for Lightning's trainer."""
        arguments = {"devices": self.devices, "plugins": [_FixedRank(self.rank)]}
        if self.devices == 1:
            return arguments
        # The gradients are small, and gloo, unlike NCCL, ends with an error when a process is gone.
        strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
        return {**arguments, "strategy": strategy, "use_distributed_sampler": False}

    def sum(self, value: float) -> float:
        """The sum of a value over the devices."""
        if self.devices == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return float(total)

    def take_first(self, values: dict[str, float]) -> dict[str, float]:
        """The values of the first device; on others rounding might lead to other decisions."""
        if self.devices == 1:
            return values
        shared = torch.tensor(list(values.values()), dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return dict(zip(values, shared.tolist(), strict=True))


def require_devices(execution: TorchExecution, device: torch.device) -> None:
    """Refuse devices that are not there.

    Raises:
        ConfigError: names the key.
    """
    devices = execution.devices
    if devices == 1:
        return
    # Any number of processes can share a CPU.
    available = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, devices)
    if devices > available:
        raise ConfigError(
            f"execution.devices: {devices} are asked for, but torch finds {available} of the kind "
            f"`{device.type}`"
        )
    if not distributed.is_available():
        raise ConfigError("execution.devices: this torch was built without torch.distributed")


@dataclass(frozen=True)
class Job:
    """What a child needs to train."""

    scans: Sequence[ScanData]
    options: NetworkOptions
    execution: TorchExecution
    make_objective: ObjectiveFactory
    objective: dict[str, torch.Tensor]
    """The state of the objective before the first epoch."""
    state: dict[str, Any] | None
    """The checkpoint to go on from; None starts with the first epoch."""


@contextmanager
def start_team(job: Job) -> Iterator[TeamMember]:
    """Start the children, and be their first device; all children are gone afterwards.

    Raises:
        PtychoTasksError: an error ended a child.
    """
    devices = job.execution.devices
    if devices == 1:
        yield TeamMember()
        return
    # The system chooses a free port for the store: nobody can take it in between.
    store = open_store(0, devices, listens=True)
    with _children(job, store.port) as children, connect(store, TeamMember(0, devices)) as member:
        try:
            yield member
        except RuntimeError as error:
            # A process that is gone breaks the connection.
            _raise_cause(children, error)
            raise


def open_store(port: int, devices: int, *, listens: bool) -> Any:
    """Open the store where the processes find each other.

    Args:
        port: of the store; 0 lets the system choose one.
        devices: number of processes.
        listens: whether this process serves the store.
    """
    store: Any = distributed.TCPStore(  # type: ignore[attr-defined]
        HOST, port, devices, is_master=listens, wait_for_workers=False
    )
    return store


@contextmanager
def connect(store: Any, member: TeamMember) -> Iterator[TeamMember]:
    """Connect the processes that meet at a store, until the block ends."""
    # gloo finds no network where the host's name cannot be resolved.
    previous = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    try:
        distributed.init_process_group(
            "gloo",
            store=store,
            rank=member.rank,
            world_size=member.devices,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
    finally:
        if previous is None:
            del os.environ["GLOO_SOCKET_IFNAME"]
        else:
            os.environ["GLOO_SOCKET_IFNAME"] = previous
    group = distributed.group.WORLD
    try:
        yield member
    except BaseException:
        _BROKEN.append(group)
        raise
    finally:
        distributed.destroy_process_group()


@contextmanager
def _children(job: Job, port: int) -> Iterator[list[_Child]]:
    """Start processes that wait for this one to connect; kill them afterwards."""
    devices = job.execution.devices
    children: list[_Child] = []
    try:
        for rank in range(1, devices):
            children.append(_Child(rank))
        for child in children:
            child.send(job, TeamMember(child.rank, devices), port)
        for child in children:
            error = child.read_answer()
            if error is not None:
                raise error
        yield children
    finally:
        for child in children:
            child.kill()


def _raise_cause(children: list[_Child], error: RuntimeError) -> None:
    """Raise the error that ended a child, if one ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for child in children:
            if child.has_ended:
                raise (child.read_answer() or error) from error
        time.sleep(0.05)


class _Child:
    """A process that trains with this one; its standard input stays open until this one ends."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from ptycho_tasks_torch.training.child import main; main()"],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def send(self, job: Job, member: TeamMember, port: int) -> None:
        """Send it the job."""
        # The frames may be larger than memory: the child maps their files again.
        frames = [_FrameSource.describe(scan.diffraction) for scan in job.scans]
        empty = np.empty((0, 0, 0), np.float32)
        scans = [replace(scan, diffraction=empty) for scan in job.scans]
        with suppress(BrokenPipeError):  # `read_answer` reports why it ended
            pickle.dump((replace(job, scans=scans), frames, member, port), self._in)
            self._in.flush()

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def read_answer(self) -> Exception | None:
        """Its next answer: None when it is ready, or the error that ends it."""
        try:
            answer: Exception | None = pickle.load(self._out)
        except EOFError:
            status = self._process.wait()
            how = f"was killed by signal {-status} (out of memory?)" if status < 0 else "ended"
            # No TrainingError: that would remove the checkpoint, and it is fine.
            return PtychoTasksError(
                f"the process of device {self.rank + 1} {how}; run again, the training goes on "
                "from its checkpoint"
            )
        return answer

    def kill(self) -> None:
        """Kill it, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._in, self._out):
            with suppress(BrokenPipeError):
                pipe.close()


@dataclass(frozen=True)
class _FrameSource:
    """The place of frames in a file, or the frames themselves."""

    array: NDArray[np.float32] | None
    place: tuple[Any, ...] = ()

    @classmethod
    def describe(cls, array: NDArray[np.float32]) -> _FrameSource:
        owner: Any = array
        while isinstance(owner, np.ndarray) and not isinstance(owner.base, mmap.mmap):
            owner = owner.base
        if not isinstance(owner, np.memmap) or owner.filename is None:
            return cls(np.asarray(array))
        first = array.ctypes.data - owner.ctypes.data
        place = (owner.filename, owner.offset, owner.nbytes, array.shape, array.dtype, first)
        return cls(None, (*place, array.strides))

    def open(self) -> NDArray[np.float32]:
        if self.array is not None:
            return self.array
        path, offset, size, shape, dtype, first, strides = self.place
        data = np.memmap(path, np.uint8, "r", offset, (size,))
        frames: NDArray[np.float32] = np.ndarray(shape, dtype, data, first, strides)
        return frames
