"""PyTorch backends for ptycho-tasks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho_tasks_torch.load import load_inference_bundle

__all__ = ["load_inference_bundle"]

# Torch's threads wait for each other in a loop, thousands of times a second. Where another program
# has one of the cores, that makes a reconstruction ten times as long as on a single thread. Read
# when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """Import torch only when something of it is asked for: looking up a backend stays cheap."""
    if name == "load_inference_bundle":
        from ptycho_tasks_torch.load import load_inference_bundle

        return load_inference_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
