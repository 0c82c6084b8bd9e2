"""A place in which `train` and `infer` are called without their stages."""

from __future__ import annotations

import json
import zipfile

import pytest

from ptycho_tasks.builds import inputs, stages
from ptycho_tasks.commands import cli as command_line

BACKEND = """\
from typing import Annotated, Literal

from ptycho_tasks.options import ExecutionOptions, TrainingOptions, doc


class Training(TrainingOptions, frozen=True, kw_only=True):
    model_type: Annotated[str, doc("kind")] = "pinn"
    gridsize: Annotated[Literal[1, 2], doc("side of a group")] = 1
    n_groups: Annotated[int | None, doc("groups")] = None
    batch_size: Annotated[int, doc("frames a step", ge=1)] = 16
    learning_rate: Annotated[float, doc("rate", gt=0)] = 1e-3
    scheduler: Annotated[Literal["cosine", "plateau"], doc("course of the rate")] = "cosine"
    accumulate_grad_batches: Annotated[int, doc("batches a step", ge=1)] = 1
    early_stop_patience: Annotated[int | None, doc("patience")] = None
    monitor: Annotated[str, doc("metric")] = "val_loss"
    monitor_mode: Annotated[Literal["min", "max"], doc("which is best")] = "min"
    loss: Annotated[Literal["poisson", "mae"], doc("loss")] = "poisson"


class Execution(ExecutionOptions, frozen=True, kw_only=True):
    devices: Annotated[int, doc("devices", ge=1)] = 1
    deterministic: Annotated[bool, doc("equal bytes")] = True
    num_workers: Annotated[int, doc("processes", ge=0)] = 0
    checkpointing: Annotated[bool, doc("keep epochs")] = False
    checkpoint_save_top_k: Annotated[int, doc("how many", ge=1)] = 1
    logger: Annotated[Literal["none", "csv", "tensorboard", "mlflow"], doc("log")] = "none"


class Full:
    name, version, options_type, execution_type = "full", "1", Training, Execution

    def train(self, request): ...
    def infer(self, request): ...


backend = Full()
"""
"""Knows what every flag sets."""
PLAIN = """\
from ptycho_tasks.options import TrainingOptions

class Plain:
    name, version, options_type = "plain", "1", TrainingOptions
    def train(self, request): ...
    def infer(self, request): ...

backend = Plain()
"""
"""Knows what every backend knows."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two backends, files in the place of scans, and a bundle's manifest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTYCHO_TASKS_DEBUG", "")
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "full.py").write_text(BACKEND)
    (tmp_path / "backends" / "plain.py").write_text(PLAIN)
    for name in ("scan.npz", "other.npz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "model").mkdir()
    write_bundle(tmp_path / "model" / "wts.h5.zip", "full")
    return tmp_path


def write_bundle(path, backend):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"backend": {"name": backend}}))


@pytest.fixture
def begun(place, monkeypatch):
    """The stages that were called, and with which payload."""
    calls = []
    monkeypatch.setattr(stages, "train", lambda payload: calls.append(("train", payload)))
    monkeypatch.setattr(stages, "infer", lambda payload: calls.append(("infer", payload)))
    monkeypatch.setattr(inputs, "check_scan_to_infer", lambda payload, training: None)
    return calls


@pytest.fixture
def call(place, monkeypatch, capsys):
    """Run a command as the installed script does; gives code and stderr."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["ptycho-tasks", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        return int(caught.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def config(place):
    """Write a ptycho.yaml into a folder of its own; gives its path."""
    (place / "project").mkdir()
    (place / "project" / "backends").symlink_to(place / "backends")

    def config(text):
        path = place / "project" / "ptycho.yaml"
        path.write_text(text)
        return path

    return config
