"""A small project of which tests run single stages in their own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho_tasks.builds import stage_code, stages
from ptycho_tasks.config.document import read_config
from ptycho_tasks.config.factories import (
    create_inference_payload,
    create_refinement_payload,
    create_training_payload,
)
from ptycho_tasks.errors import (
    PtychoTasksError,
    TrainingError,
)
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.system.cache import forget_all

CONFIG = """\
name: tiny
source: {file: scan.npz}
fixture: {subset_size: 16}
backend: mine
"""
BACKEND = """\
import signal, sys
import numpy as np
from dataclasses import replace
from ptycho_tasks.backend import Reconstruction, TrainedModel
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import ExecutionOptions, TrainingOptions

class Mine:
    name, version, options_type = "mine", "1", TrainingOptions
    execution_type = ExecutionOptions

    def train(self, request):
        given = TrainedModel({"m": {"w": np.ones(3)}})
        TRAIN
        return given

    def infer(self, request):
        scan = request.scan
        given = Reconstruction(scan.object, (0, 0), scan.probe, scan.positions)
        INFER
        return given

    def refine(self, request):
        start = request.start
        given = replace(start, object=start.object * 1.01)
        REFINE
        return given

backend = Mine()
"""
SCAN = simulate(SimulationOptions(size=16, grid=5, step=3.0, jitter=1.0, seed=1), name="scan")


class Project:
    """A scan, a backend and a ptycho.yaml, of which the fixture is cut."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "backends").mkdir()
        write_scan(root / "scan.npz", SCAN)
        self.write()

    def write(
        self, *, train: str = "pass", infer: str = "pass", refine: str = "pass", more: str = ""
    ) -> Project:
        code = BACKEND.replace("TRAIN", train).replace("INFER", infer).replace("REFINE", refine)
        (self.root / "backends" / "mine.py").write_text(code)
        (self.root / "ptycho.yaml").write_text(CONFIG + more)
        return self

    def training(self) -> Any:
        return create_training_payload(read_config(self.root / "ptycho.yaml"))

    def inference(self) -> Any:
        return create_inference_payload(read_config(self.root / "ptycho.yaml"))

    def train(self) -> Path:
        stages.make_fixture(self.training())
        return stages.train(self.training())

    def infer(self) -> dict[str, Any]:
        self.train()
        return stages.infer(self.inference())

    def refine(self) -> dict[str, Any]:
        self.infer()
        return stages.refine(self.refinement())

    def refinement(self) -> Any:
        return create_refinement_payload(read_config(self.root / "ptycho.yaml"))

    def files(self) -> set[str]:
        return {
            path.relative_to(self.root).as_posix()
            for path in self.root.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }


def make_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project as with an installed program, of which the many source files do not count."""
    monkeypatch.setattr(stage_code, "is_installed", lambda path: True)
    forget_all()
    return Project(root)


def refusal(
    act: Callable[[], object], error: type[PtychoTasksError] = TrainingError, code: int = 1
) -> str:
    with pytest.raises(error) as caught:
        act()
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)
