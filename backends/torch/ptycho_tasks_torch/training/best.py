"""The best epochs of a training, and the end of patience."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ptycho_tasks_torch.options import NetworkOptions


def copy_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a `state_dict`, on the CPU."""
    return {name: values.detach().cpu().clone() for name, values in state.items()}


class BestEpoch(NamedTuple):
    """An epoch, with the weights after it."""

    value: float
    """The monitored value; the smaller, the better."""
    epoch: int
    """Counted from 1."""
    state: dict[str, Tensor]
    """On the CPU."""


class BestEpochs:
    """Keeps the weights of the best epochs; of equal epochs, the earlier."""

    def __init__(self, options: NetworkOptions, count: int) -> None:
        """Keep nothing yet.

        Args:
            options: say what to monitor, and the patience.
            count: number of epochs to keep; early stopping keeps one in any case.
        """
        self.options, self.bundle_count = options, count
        self.count = count if options.early_stop_patience is None else max(count, 1)
        self.kept: list[BestEpoch] = []
        """The best first."""

    def consider(
        self, epoch: int, metrics: Mapping[str, float], state: Mapping[str, Tensor]
    ) -> None:
        """Keep an epoch if it is among the best."""
        value = metrics[self.options.monitor] * (-1 if self.options.monitor_mode == "max" else 1)
        # NaN is no better than the epochs to come.
        if not value < float("inf") or not self.count:
            return
        if len(self.kept) < self.count or value < self.kept[-1].value:
            self.kept.append(BestEpoch(value, epoch, copy_state(state)))
            self.kept.sort(key=lambda kept: kept[:2])
            del self.kept[self.count :]

    def is_stalled(self, epoch: int) -> bool:
        """Whether this epoch uses up the patience."""
        patience = self.options.early_stop_patience
        last = self.kept[0].epoch if self.kept else 0
        return patience is not None and epoch - last >= patience

    def state(self) -> dict[str, Any]:
        """The state that `resume` takes, in plain containers."""
        return {"count": self.count, "kept": [tuple(kept) for kept in self.kept]}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, which may hold fewer epochs or more."""
        self.kept = [BestEpoch(*kept) for kept in state["kept"]][: self.count]
