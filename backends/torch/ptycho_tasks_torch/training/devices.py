"""The devices that train together: one process each, the first of them the one that was asked.

The others are children that compute gradients and nothing else: they write no file, and say
nothing but what went wrong. They begin as programs of their own, because a fork of a process with
threads or a GPU is unsafe, and the start methods of multiprocessing run the user's script again.
"""

from __future__ import annotations

import mmap
import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
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
from ptycho_tasks_torch.frames.blocks import Epoch
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.training.objective import LessonFactory

with warnings.catch_warnings():
    # What its dependencies deprecate among themselves is nothing that a user could mend.
    warnings.simplefilter("ignore")
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

HOST = "127.0.0.1"
TIMEOUT_S = 300
"""How long one process waits for the others, also for what a process that is gone left undone."""
PATIENCE_S = 5.0
"""How long to wait for a child's last words after the connection to it broke."""


class _Ranked(LightningEnvironment):
    """Which process this is, whatever a batch system's variables would make Lightning believe."""

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
class Team:
    """One of the devices that train together."""

    rank: int = 0
    devices: int = 1

    def part_of(self, epoch: Epoch) -> Epoch:
        """This one's part of an epoch."""
        return replace(epoch, rank=self.rank, devices=self.devices)

    def arguments(self) -> dict[str, Any]:
        """For Lightning's trainer."""
        given = {"devices": self.devices, "plugins": [_Ranked(self.rank)]}
        if self.devices == 1:
            return given
        # The gradients are small, and gloo, other than NCCL, ends with an error when a process is
        # gone.
        strategy = DDPStrategy(process_group_backend="gloo", broadcast_buffers=False)
        return {**given, "strategy": strategy, "use_distributed_sampler": False}

    def sum(self, value: float) -> float:
        """Of every device's value."""
        if self.devices == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return float(total)

    def agreed(self, values: dict[str, float]) -> dict[str, float]:
        """The first device's values, where rounding might make the others decide otherwise."""
        if self.devices == 1:
            return values
        shared = torch.tensor(list(values.values()), dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return dict(zip(values, shared.tolist(), strict=True))


def check_devices(execution: TorchExecution, device: torch.device) -> None:
    """Refuse devices that are not there.

    Raises:
        ConfigError: names the key.
    """
    devices = execution.devices
    if devices == 1:
        return
    # A CPU is shared by as many processes as one likes.
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(device.type, devices)
    if devices > there:
        raise ConfigError(
            f"execution.devices: {devices} are asked for, but torch finds {there} of the kind "
            f"`{device.type}`"
        )
    if not distributed.is_available():
        raise ConfigError("execution.devices: this torch was built without torch.distributed")


@dataclass(frozen=True)
class Job:
    """What a child needs in order to train along."""

    scan: ScanData
    options: NetworkOptions
    execution: TorchExecution
    make_lesson: LessonFactory
    lesson: dict[str, torch.Tensor]
    """What the lesson has come to before the first epoch."""
    state: dict[str, Any] | None
    """Where to go on; None begins the epochs."""


@contextmanager
def team_for(job: Job) -> Iterator[Team]:
    """The children at work, and this process their first; none is left afterwards.

    Raises:
        PtychoTasksError: what ended a child.
    """
    devices = job.execution.devices
    if devices == 1:
        yield Team()
        return
    # The port is chosen by who listens on it: nobody else can take it in between.
    store = find_store(0, devices, listens=True)
    with _children(job, store.port) as children, connected(store, Team(0, devices)) as team:
        try:
            yield team
        except RuntimeError as error:
            # A process that is gone breaks the connection.
            _raise_what_ended(children, error)
            raise


def find_store(port: int, devices: int, *, listens: bool) -> Any:
    """Where the processes find each other."""
    store: Any = distributed.TCPStore(  # type: ignore[attr-defined]
        HOST, port, devices, is_master=listens, wait_for_workers=False
    )
    return store


@contextmanager
def connected(store: Any, team: Team) -> Iterator[Team]:
    """The team of the processes that meet at a store, until the block ends."""
    # Where the host's name leads nowhere, gloo would find no network.
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    try:
        distributed.init_process_group(
            "gloo",
            store=store,
            rank=team.rank,
            world_size=team.devices,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
    finally:
        if before is None:
            del os.environ["GLOO_SOCKET_IFNAME"]
        else:
            os.environ["GLOO_SOCKET_IFNAME"] = before
    try:
        yield team
    finally:
        distributed.destroy_process_group()


@contextmanager
def _children(job: Job, port: int) -> Iterator[list[_Child]]:
    """Processes that only wait for this one to connect; killed afterwards."""
    devices = job.execution.devices
    children: list[_Child] = []
    try:
        for rank in range(1, devices):
            children.append(_Child(rank))
        for child in children:
            child.give(job, Team(child.rank, devices), port)
        for child in children:
            error = child.said()
            if error is not None:
                raise error
        yield children
    finally:
        for child in children:
            child.end()


def _raise_what_ended(children: list[_Child], error: RuntimeError) -> None:
    """Raise what ended the first child that ended, if one did."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for child in children:
            if child.ended:
                raise (child.said() or error) from error
        time.sleep(0.05)


class _Child:
    """A process that trains along. Its standard input stays open as long as its parent lives."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from ptycho_tasks_torch.training.child import work; work()"],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def give(self, job: Job, team: Team, port: int) -> None:
        """Tell it what to do."""
        # Frames may be more than fits into memory, and are mapped again there.
        frames = _Frames.of(job.scan.diffraction)
        light = replace(job.scan, diffraction=np.empty((0, 0, 0), np.float32))
        with suppress(BrokenPipeError):  # what ended it is said later
            pickle.dump((replace(job, scan=light), frames, team, port), self._in)
            self._in.flush()

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def said(self) -> Exception | None:
        """The next thing that it says: None when it is ready, or what ends it."""
        try:
            said: Exception | None = pickle.load(self._out)
        except EOFError:
            status = self._process.wait()
            how = f"was killed by signal {-status} (out of memory?)" if status < 0 else "ended"
            # No TrainingError: the training is worth going on with.
            return PtychoTasksError(
                f"the process of device {self.rank + 1} {how}; run again, the training goes on "
                "from its checkpoint"
            )
        return said

    def end(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._in, self._out):
            with suppress(BrokenPipeError):
                pipe.close()


@dataclass(frozen=True)
class _Frames:
    """Where frames lie in a file, or the frames themselves."""

    array: NDArray[np.float32] | None
    place: tuple[Any, ...] = ()

    @classmethod
    def of(cls, array: NDArray[np.float32]) -> _Frames:
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
        held = np.memmap(path, np.uint8, "r", offset, (size,))
        frames: NDArray[np.float32] = np.ndarray(shape, dtype, held, first, strides)
        return frames
