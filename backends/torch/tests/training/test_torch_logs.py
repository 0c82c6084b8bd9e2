"""Logs of a training hold every epoch once, and never cost the training."""

from __future__ import annotations

import contextlib
import csv
import math
import resource
from pathlib import Path

import msgspec
import pytest

from ptycho_tasks.backend import TrainedModel, TrainRequest
from ptycho_tasks.errors import ConfigError
from ptycho_tasks_torch import execution
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.pinn.backend import backend
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training import checkpoints

OPTIONS = PinnOptions(epochs=4, gridsize=1, channels=4, steps=1, batch_size=16, neighbours=16)


class InterruptionError(Exception):
    """What ends a training that is watched."""


class Watch:
    """A training that logs, and what the user is told."""

    def __init__(self, scan, folder: Path, logger: str, options: PinnOptions = OPTIONS) -> None:
        self.scan, self.options = scan, options
        self.execution = TorchExecution(accelerator="cpu", threads=1, logger=logger)
        self.work, self.logs = folder / "work", folder / "logs"
        self.work.mkdir(exist_ok=True)
        self.lines: list[str] = []

    def train(self, until: int | None = None) -> TrainedModel:
        def progress(done, total, metrics) -> None:
            if metrics and done == until:
                raise InterruptionError

        return backend.train(
            TrainRequest(
                [self.scan],
                self.options,
                self.execution,
                progress,
                self.work,
                self.lines.append,
                self.logs,
            )
        )


Epochs = list[tuple[int, dict[str, float]]]


def read_csv(folder: Path) -> Epochs:
    with (folder / "csv/metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    names = ("loss", "val_loss", "learning_rate")
    return [(int(row["epoch"]), {name: float(row[name]) for name in names}) for row in rows]


def read_tensorboard(folder: Path) -> Epochs:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (folder / "tensorboard").glob("events.*")
    read = EventAccumulator(str(events)).Reload()
    epochs: dict[int, dict[str, float]] = {}
    for name in ("loss", "val_loss", "learning_rate"):
        for event in read.Scalars(name):
            assert name not in epochs.setdefault(event.step, {})
            epochs[event.step][name] = event.value
    return list(epochs.items())


def read_mlflow(folder: Path) -> Epochs:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient((folder / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("ptycho-tasks")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == str(OPTIONS.learning_rate)
    epochs: dict[int, dict[str, float]] = {}
    for name in ("loss", "val_loss", "learning_rate"):
        for metric in client.get_metric_history(run.info.run_id, name):
            assert name not in epochs.setdefault(metric.step, {})
            epochs[metric.step][name] = metric.value
    return list(epochs.items())


READERS = {"csv": read_csv, "tensorboard": read_tensorboard, "mlflow": read_mlflow}


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)


@pytest.fixture(scope="module")
def trained(scan) -> TrainedModel:
    execution = TorchExecution(accelerator="cpu", threads=1)
    return backend.train(TrainRequest([scan], OPTIONS, execution))


@pytest.mark.parametrize("logger", READERS)
def test_a_log_holds_every_epoch_once_whatever_was_killed(scan, trained, tmp_path, logger, capfd):
    if logger != "csv":
        pytest.importorskip(logger)
    watch = Watch(scan, tmp_path, logger)
    mine = watch.logs / logger / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InterruptionError):
        watch.train(until=2)
    checkpoint = watch.work / checkpoints.CHECKPOINT_NAME
    second = checkpoint.read_bytes()
    with pytest.raises(InterruptionError):
        watch.train(until=3)
    # The log knows more than the checkpoint.
    checkpoint.write_bytes(second)
    model = watch.train()
    assert model.history == trained.history
    assert [path.name for path in watch.logs.iterdir()] == [logger]
    epochs = READERS[logger](watch.logs)
    assert [epoch for epoch, _ in epochs] == [1, 2, 3, 4]
    for (_, told), kept in zip(epochs, trained.history, strict=True):
        assert told["loss"] == pytest.approx(kept["loss"], rel=1e-6)
        assert told["val_loss"] == pytest.approx(kept["val_loss"], rel=1e-6)
    assert epochs[-1][1]["learning_rate"] < 0.1 * epochs[1][1]["learning_rate"]
    assert mine.read_text() == "mine"
    assert capfd.readouterr() == ("", "")


def test_tensorboard_gets_pictures(scan, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Watch(scan, tmp_path, "tensorboard").train()
    (events,) = (tmp_path / "logs/tensorboard").glob("events.*")
    read = EventAccumulator(str(events)).Reload()
    for kind in ("amplitude", "phase"):
        pictures = read.Images(f"object/{kind}")
        assert [picture.step for picture in pictures] == [1, 2, 3, 4]
        assert all(b"PNG" in picture.encoded_image_string[:8] for picture in pictures)
        assert len({picture.encoded_image_string for picture in pictures}) == 4
    assert read.Scalars("spread")


def test_mlflow_gets_pictures_and_they_go_with_the_log(scan, tmp_path):
    pytest.importorskip("mlflow")
    watch, kinds = Watch(scan, tmp_path, "mlflow"), ("amplitude", "phase")
    watch.train()
    names = sorted(path.name for path in watch.logs.rglob("*.png"))
    assert names == [f"epoch_{n:04d}_{kind}.png" for n in (1, 2, 3, 4) for kind in kinds]
    watch.train()  # takes the finished training, of which only the numbers are known
    assert [*watch.logs.rglob("*.png")] == []


def test_the_hyperparameters_are_logged(scan, tmp_path):
    Watch(scan, tmp_path, "csv", msgspec.structs.replace(OPTIONS, epochs=1)).train()
    told = (tmp_path / "logs/csv/hparams.yaml").read_text()
    assert "learning_rate: 0.004" in told
    assert "scheduler: cosine" in told


def test_no_logger_writes_nothing(scan, tmp_path):
    watch = Watch(scan, tmp_path, "none", msgspec.structs.replace(OPTIONS, epochs=1))
    watch.train()
    assert not watch.logs.exists()


def test_a_place_of_ones_own_for_mlflow(scan, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "elsewhere" / "mlflow").as_uri())
    watch = Watch(scan, tmp_path, "mlflow")
    watch.train()
    assert len(read_mlflow(tmp_path / "elsewhere")) == 4
    assert not watch.logs.exists()


@pytest.mark.parametrize("logger", ["tensorboard", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(scan, tmp_path, monkeypatch, logger):
    monkeypatch.setattr(execution, "find_spec", lambda name: None)
    watch = Watch(scan, tmp_path, logger)
    with pytest.raises(ConfigError) as caught:
        watch.train()
    assert str(caught.value) == (
        f'execution.logger: {logger} is not installed; pip install "ptycho-tasks-torch[{logger}]"'
    )


def test_a_log_that_cannot_be_begun_is_refused(scan, tmp_path):
    watch = Watch(scan, tmp_path, "csv")
    watch.logs.write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match=r"^execution.logger: csv cannot be written: .*logs"):
        watch.train()


@contextlib.contextmanager
def disk_that_fills():
    """A function after which no file may grow, as on a disk that is full, until the block's end.

    Not until the test's end: pytest writes the result before fixtures end, also into a file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("logger", READERS)
def test_a_log_that_fails_half_way_does_not_end_the_training(scan, tmp_path, logger, capsys):
    if logger != "csv":
        pytest.importorskip(logger)
    lines: list[str] = []

    def progress(done, total, metrics):
        if done == 2:
            fill_disk()

    execution = TorchExecution(accelerator="cpu", threads=1, logger=logger)
    request = TrainRequest([scan], OPTIONS, execution, progress, say=lines.append, log_dir=tmp_path)
    with disk_that_fills() as fill_disk:
        assert len(backend.train(request).history) == 4
    assert lines == [f"goes on without the {logger} log: [Errno 27] File too large"]
    assert capsys.readouterr() == ("", "")
