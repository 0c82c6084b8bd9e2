"""The best epochs of a training, and when no better one is to be expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ptycho_tasks_torch.options import NetworkOptions


class Kept(NamedTuple):
    """The weights after an epoch."""

    value: float
    """What was monitored; the smaller, the better."""
    epoch: int
    """Counted from 1."""
    state: dict[str, Tensor]
    """On the CPU."""


class Best:
    """Keeps the weights of the best epochs; of equal ones, the earlier."""

    def __init__(self, options: NetworkOptions, count: int) -> None:
        """Nothing is kept yet.

        Args:
            options: what is monitored, and the patience.
            count: how many epochs to keep; early stopping keeps one in any case.
        """
        self.options, self.asked = options, count
        self.count = count if options.early_stop_patience is None else max(count, 1)
        self.kept: list[Kept] = []
        """Best first."""

    def see(self, epoch: int, metrics: Mapping[str, float], state: Mapping[str, Tensor]) -> None:
        """Keep an epoch if it is among the best."""
        value = metrics[self.options.monitor] * (-1 if self.options.monitor_mode == "max" else 1)
        # A NaN is no better than what is there to come.
        if not value < float("inf") or not self.count:
            return
        if len(self.kept) < self.count or value < self.kept[-1].value:
            copy = {name: weights.detach().cpu().clone() for name, weights in state.items()}
            self.kept.append(Kept(value, epoch, copy))
            self.kept.sort(key=lambda kept: kept[:2])
            del self.kept[self.count :]

    def stalled(self, epoch: int) -> bool:
        """Whether the epochs until this one used up the patience."""
        patience = self.options.early_stop_patience
        last = self.kept[0].epoch if self.kept else 0
        return patience is not None and epoch - last >= patience

    def state(self) -> dict[str, Any]:
        """What `resume` takes, in plain containers."""
        return {"count": self.count, "kept": [tuple(kept) for kept in self.kept]}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, which may have kept fewer or more."""
        self.kept = [Kept(*kept) for kept in state["kept"]][: self.count]
