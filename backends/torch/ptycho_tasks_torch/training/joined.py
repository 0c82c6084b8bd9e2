"""One network learns from several scans: an objective for each scan, and batches of one scan each.

Each scan keeps its own frames, positions and probe, and its own unit of intensity, so that a scan
of few photons counts as much as one of many. In an epoch, the batches of all scans are spread
evenly among each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptycho_tasks.errors import TrainingError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.blocks import Batch, Batches, EpochPlan
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.training.mosaic import Mosaic
from ptycho_tasks_torch.training.objective import (
    Objective,
    ObjectiveFactory,
    refuse_flat,
    take_part,
)
from ptycho_tasks_torch.training.weights import describe_scales

MOST_SEED = 2**62


def make_joint_objective(
    scans: Sequence[ScanData], options: NetworkOptions, make_objective: ObjectiveFactory
) -> Objective:
    """The objective of one scan, or of several together; errors are those of the factory."""
    parts = [make_objective(scan, options) for scan in scans]
    return parts[0] if len(parts) == 1 else JointObjective(parts, [scan.name for scan in scans])


class JointObjective(Objective):
    """See the module."""

    def __init__(self, parts: Sequence[Objective], names: Sequence[str]) -> None:
        """Join the objectives of scans with these names; all learn with the network of the first.

        Their batches are told apart by `scan`, a scalar int64.
        """
        super().__init__()
        self.network = parts[0].network
        for index, part in enumerate(parts):
            part.follow(parts[:index] or [self])
        self.parts, self.names, self.clip = nn.ModuleList(parts), names, parts[0].clip
        self.keeps_start = parts[0].keeps_start
        self._scales = describe_scales([part.intensity_scale for part in parts])
        self.intensity_scale = self._scales["intensity_scale"]

    def plan_epoch(self, options: NetworkOptions) -> EpochPlan:
        """See `Objective`."""
        return JointPlan.join([part.plan_epoch(options) for part in self._parts])

    def prepare(self, say: Callable[[str], None]) -> None:
        """See `Objective`."""
        for name, part in zip(self.names, self._parts, strict=True):
            part.prepare(lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]

    def make_loaders(
        self, epoch: EpochPlan, order: torch.Generator, workers: int
    ) -> tuple[Batches, Batches]:
        """See `Objective`."""
        assert isinstance(epoch, JointPlan)
        # Of its own for each scan: how far ahead one is read must not matter to the others.
        orders = [torch.Generator() for _ in self._parts]
        loaders = [
            part.make_loaders(plan, own, 0)
            for part, plan, own in zip(self._parts, epoch.own_plans, orders, strict=True)
        ]
        learned, held_back = zip(*loaders, strict=True)

        def reseed() -> None:
            seeds = torch.randint(MOST_SEED, (len(orders),), generator=order).tolist()
            for own, seed in zip(orders, seeds, strict=True):
                own.manual_seed(seed)

        in_line = [scan for scan, batches in enumerate(held_back) for _ in range(len(batches))]
        return (
            JointBatches(learned, epoch.turns, workers, reseed),
            JointBatches(held_back, in_line, workers, lambda: None),
        )

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """See `Objective`: the network's once, and what each scan has of its own."""
        seen: set[int] = set()
        groups = []
        for group in (group for part in self._parts for group in part.parameter_groups(rate)):
            new = [parameter for parameter in group["params"] if id(parameter) not in seen]
            seen.update(map(id, new))
            groups += [{**group, "params": new}] if new else []
        return groups

    def loss(self, batch: Batch) -> Tensor:
        """See `Objective`."""
        loss = self._parts[int(batch["scan"])].loss(batch)
        # Several devices need a gradient of every parameter, also of other scans' probes.
        for parameter in self.parts.parameters():
            loss = loss + 0 * parameter.sum()
        return loss

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`; each score also under `SCORE/SCAN`, of that scan alone."""
        scan = int(batch["scan"])
        scores = self._parts[scan].validate(batch)
        return scores | {f"{name}/{self.names[scan]}": value for name, value in scores.items()}

    def watch(self) -> Mosaic:
        """See `Objective`; of the first scan."""
        self.mosaic = self._parts[0].watch()
        return self.mosaic

    def describe(self) -> dict[str, Any]:
        """See `Objective`; `intensity_scale` is the geometric mean of the scans' own."""
        return self._scales

    def export_further(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
        """See `Objective`; `NAME_1` is what the first scan has of its own."""
        return {
            f"{name}_{index + 1}": arrays
            for index, part in enumerate(self._parts)
            for name, arrays in part.export_further(take_part(state, f"parts.{index}.")).items()
        }

    def refuse_useless(self, metrics: Mapping[str, float], say: Callable[[str], None]) -> None:
        """See `Objective`; a network that is useless for some of the scans is told."""
        self._parts[0].refuse_useless(metrics, say)
        for name in self.names:
            end = f"/{name}"
            own = {key.removesuffix(end): v for key, v in metrics.items() if key.endswith(end)}
            try:
                refuse_flat(own)
            except TrainingError as error:
                say(f"{name}: {error}, or leave this scan out")

    @property
    def _parts(self) -> list[Objective]:
        return list(self.parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class JointPlan(EpochPlan):
    """How an epoch divides the blocks of several scans; `batch` is that of each scan."""

    plans: tuple[EpochPlan, ...] = ()

    @classmethod
    def join(cls, plans: Sequence[EpochPlan]) -> JointPlan:
        """Join the plans of scans, for the same options."""
        first, blocks = plans[0], sum(plan.blocks for plan in plans)
        return cls(blocks, first.batch, first.accumulated, plans=tuple(plans))

    @property
    def own_plans(self) -> list[EpochPlan]:
        """The plan of each scan, for this device."""
        return [replace(plan, rank=self.rank, devices=self.devices) for plan in self.plans]

    @cached_property
    def turns(self) -> list[int]:
        """The scan of each batch: those of a scan are spread evenly over the epoch."""
        places = [
            ((index + 0.5) / plan.batches, scan)
            for scan, plan in enumerate(self.plans)
            for index in range(plan.batches)
        ]
        return [scan for _, scan in sorted(places)]

    @cached_property
    def sizes(self) -> list[int]:
        """See `EpochPlan`."""
        sizes = [iter(plan.sizes) for plan in self.plans]
        return [next(sizes[scan]) for scan in self.turns]


class JointBatches(Batches):
    """The batches of several scans, in turns."""

    def __init__(
        self,
        batches: Sequence[Batches],
        turns: Sequence[int],
        workers: int,
        reseed: Callable[[], None],
    ) -> None:
        """Read nothing yet.

        Args:
            batches: of each scan.
            turns: the scan of each batch.
            workers: threads that read ahead.
            reseed: is called before every pass.
        """
        self._batches, self._turns, self._reseed = batches, turns, reseed
        self.workers = workers

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._turns)

    def draw(self) -> Iterator[tuple[int, Any]]:
        """The scan of each batch, and what it draws."""
        self._reseed()
        drawn = [iter(batches.draw()) for batches in self._batches]
        for scan in self._turns:
            yield scan, next(drawn[scan])

    def read(self, item: tuple[int, Any]) -> Batch:
        """As the scan's own batches, with `scan`, a scalar int64."""
        scan, own = item
        return {**self._batches[scan].read(own), "scan": torch.tensor(scan)}
