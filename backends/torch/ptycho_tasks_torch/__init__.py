"""PyTorch backends for ptycho-tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho_tasks_torch.load import load_inference_bundle

__all__ = ["load_inference_bundle"]


def __getattr__(name: str) -> Any:
    """Import torch only when something of it is asked for: looking up a backend stays cheap."""
    if name == "load_inference_bundle":
        from ptycho_tasks_torch.load import load_inference_bundle

        return load_inference_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
