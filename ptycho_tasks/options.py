"""Building blocks of every options type: strict, frozen sections with documented fields.

A field is declared as

    epochs: Annotated[int, doc("passes over the training frames", ge=1)] = 60

so that its meaning, limits and default stand in one place; the commented example, the JSON
Schema and the error messages are made from it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec


def doc(text: str, **limits: Any) -> msgspec.Meta:
    """Describe a field: one sentence, and limits such as ge, gt, le, lt, min_length, pattern."""
    return msgspec.Meta(description=text, **limits)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One section of ptycho.yaml. An unknown key or a wrong type is an error, never ignored."""


class TrainingOptions(Section, frozen=True, kw_only=True):
    """What every backend understands under `training:`; a backend adds its own by subclassing."""

    epochs: Annotated[int, doc("passes over the training frames (or iterations)", ge=1)] = 30
    seed: Annotated[int, doc("seed of every random choice in training", ge=0)] = 0


class ExecutionOptions(Section, frozen=True, kw_only=True):
    """How and where to run. Nothing here changes which result is asked for, so a change
    rebuilds nothing."""

    accelerator: Annotated[
        str,
        doc("device: auto, cpu, gpu, cuda or mps", pattern="^(auto|cpu|gpu|cuda|mps)$"),
    ] = "auto"
    threads: Annotated[int, doc("CPU threads; 0 leaves the choice to the library", ge=0)] = 0
    inference_batch_size: Annotated[int, doc("frames (or groups) per inference step", ge=1)] = 64
    quiet: Annotated[bool, doc("no progress on the terminal")] = False
