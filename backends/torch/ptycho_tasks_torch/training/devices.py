"""Several devices train together, one process each; the first is this process.

The others only compute gradients: they write no file, and report nothing but errors; see `helpers`.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.frames.blocks import EpochPlan
from ptycho_tasks_torch.helpers import Helper, LostHelperError, SentScan, Task, start_helpers
from ptycho_tasks_torch.launched import ALONE, LOCALHOST, Seat, read_own_seat
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.training.objective import ObjectiveFactory

with warnings.catch_warnings():
    # Lightning's dependencies warn about each other, and no user can mend that.
    warnings.simplefilter("ignore")
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy

TIMEOUT_S = 300
"""How long one process waits for the others, also for a process that is gone."""
PATIENCE_S = 5.0
"""How long to wait for a child's error after the connection to it broke."""
_BROKEN: list[Any] = []
"""Groups that lost a process, kept for good. torch frees one together with Lightning's model, while
Python is held, and waits for the threads of gloo; one that still drops a sum waits for Python."""


class _FixedRank(LightningEnvironment):
    """The seat of this process; Lightning would take it from a batch system's variables, also
    where that started this run alone."""

    def __init__(self, seat: Seat) -> None:
        super().__init__()
        self._seat = seat

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._seat.local_rank

    def node_rank(self) -> int:
        return self._seat.rank // self._seat.local_count


@dataclass(frozen=True)
class TeamMember:
    """One of the devices that train together."""

    seat: Seat = ALONE

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.seat.size

    def own_part(self, epoch: EpochPlan) -> EpochPlan:
        """The part of an epoch that this device takes."""
        return replace(epoch, rank=self.seat.rank, devices=self.devices)

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments for Lightning's trainer."""
        arguments: dict[str, Any] = {"plugins": [_FixedRank(self.seat)]}
        if self.devices == 1:
            return {**arguments, "devices": 1}
        local = self.seat.local_count
        arguments |= {"devices": local, "num_nodes": self.devices // local}
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


@dataclass(frozen=True)
class Job:
    """What a helper needs to train."""

    scans: Sequence[ScanData]
    options: NetworkOptions
    execution: TorchExecution
    make_objective: ObjectiveFactory
    objective: dict[str, torch.Tensor]
    """The state of the objective before the first epoch."""
    state: dict[str, Any] | None
    """The checkpoint to go on from; None starts with the first epoch."""


TaskFactory = Callable[[Job, Sequence[SentScan], TeamMember, int], Task]


@contextmanager
def start_team(job: Job, make_task: TaskFactory) -> Iterator[TeamMember]:
    """Start the others, and be their first device; all others are gone afterwards.

    Args:
        job: what is to be trained.
        make_task: makes the task of each other, which says when it is ready to connect.

    Raises:
        PtychoTasksError: an error ended one.
    """
    devices = job.execution.devices
    if devices == 1:
        yield TeamMember()
        return
    with start_helpers(devices - 1) as helpers:
        own = TeamMember(read_own_seat(devices))
        # The system chooses a free port for the store: nobody can take it in between.
        store = open_store(own, 0)
        _prepare(helpers, job, make_task, store.port)
        with connect(store, own) as member:
            try:
                yield member
            except RuntimeError as error:
                # A process that is gone breaks the connection.
                _raise_cause(helpers, error)
                raise


def open_store(member: TeamMember, port: int) -> Any:
    """Open the store where the processes find each other, which the first one serves.

    Args:
        member: this process.
        port: of the store; 0 lets the system choose one.
    """
    is_first = member.seat.rank == 0
    store: Any = distributed.TCPStore(  # type: ignore[attr-defined]
        member.seat.host, port, member.devices, is_master=is_first, wait_for_workers=False
    )
    return store


@contextmanager
def connect(store: Any, member: TeamMember) -> Iterator[TeamMember]:
    """Connect the processes that meet at a store, until the block ends."""
    previous = os.environ.get("GLOO_SOCKET_IFNAME")
    if member.seat.host == LOCALHOST:
        # gloo finds no network where the host's name cannot be resolved.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    try:
        distributed.init_process_group(
            "gloo",
            store=store,
            rank=member.seat.rank,
            world_size=member.devices,
            timeout=timedelta(seconds=TIMEOUT_S),
        )
    finally:
        if previous is None:
            os.environ.pop("GLOO_SOCKET_IFNAME", None)
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


def _prepare(helpers: Sequence[Helper], job: Job, make_task: TaskFactory, port: int) -> None:
    """Have the others get ready.

    Raises:
        PtychoTasksError: an error ended one.
    """
    scans = [SentScan.pack(scan) for scan in job.scans]
    for helper in helpers:
        helper.send(make_task(replace(job, scans=[]), scans, TeamMember(helper.seat), port))
    for helper in helpers:
        with _named_as_resumable():
            helper.receive()


@contextmanager
def _named_as_resumable() -> Iterator[None]:
    try:
        yield
    except LostHelperError as error:
        raise PtychoTasksError(
            f"{error}; run again, the training goes on from its checkpoint"
        ) from error


def _raise_cause(helpers: Sequence[Helper], error: RuntimeError) -> None:
    """Raise the error that ended a helper, if one ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for helper in helpers:
            if helper.has_ended:
                with _named_as_resumable():
                    helper.receive()
                raise error
        time.sleep(0.05)
