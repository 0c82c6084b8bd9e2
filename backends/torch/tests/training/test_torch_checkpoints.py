"""A training that was killed ends as if it had not been."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from ptycho_tasks.backend import TrainedModel, TrainRequest, say_nothing
from ptycho_tasks.errors import FileWriteError, TrainingError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.scan import ScanData
from ptycho_tasks.testing.examples import simulate_scan
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.pinn.backend import backend
from ptycho_tasks_torch.pinn.losses import DiffractionLoss
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training import checkpoints, schedules
from ptycho_tasks_torch.training.checkpoints import CHECKPOINT_NAME, Checkpoints
from ptycho_tasks_torch.training.trainer import can_resume

CPU = TorchExecution(accelerator="cpu", threads=1)
COSINE = PinnOptions(epochs=4, channels=4, steps=1, batch_size=16, neighbours=16)
CONSTANT = msgspec.structs.replace(COSINE, scheduler="constant")
STOPPED = msgspec.structs.replace(
    # What falls is no improvement here: the first epoch stays the best.
    COSINE,
    monitor_mode="max",
    early_stop_patience=3,
    epochs=9,
)
TRAININGS = {
    "cosine": COSINE,
    "constant": CONSTANT,
    "exponential": msgspec.structs.replace(COSINE, scheduler="exponential"),
    "multi_step": msgspec.structs.replace(COSINE, scheduler="multi_step"),
    "plateau": msgspec.structs.replace(COSINE, scheduler="plateau", monitor_mode="max"),
    "accumulated": msgspec.structs.replace(COSINE, accumulate_grad_batches=2),
    "stopped": STOPPED,
    "supervised": msgspec.structs.replace(COSINE, model_type="supervised"),
}


class InterruptionError(Exception):
    """What ends a training that is watched."""


class Watch:
    """A training in a folder, the epochs and lines that the user is told of."""

    def __init__(
        self,
        scan,
        options: PinnOptions,
        folder: Path,
        until: int | None = None,
        execution: TorchExecution = CPU,
    ) -> None:
        self.epochs: list[int] = []
        self.lines: list[str] = []
        self.until = until
        self.request = TrainRequest(
            [scan], options, execution, self.progress, folder, self.lines.append
        )

    def progress(self, done, total, metrics) -> None:
        if metrics:  # the first call only tells where the training begins
            self.epochs.append(done)
        if done == self.until:
            raise InterruptionError

    def train(self) -> TrainedModel:
        return backend.train(self.request)


@pytest.fixture(scope="module")
def scan() -> ScanData:
    """A few frames, read-only: what is learned from them is not asked here."""
    return simulate_scan(SimulationOptions(size=32, grid=6, step=4.0, jitter=1.0, seed=4))


@pytest.fixture
def short_plateaus(monkeypatch):
    """The rate falls after every epoch that is no better."""
    monkeypatch.setattr(schedules, "PLATEAU_EPOCHS", 1)


BEST = TorchExecution(accelerator="cpu", threads=1, checkpoint_save_top_k=2)


@pytest.fixture(scope="module")
def whole(scan) -> dict[str, TrainedModel]:
    """Trainings that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "PLATEAU_EPOCHS", 1)
        return {
            name: backend.train(TrainRequest([scan], options, BEST))
            for name, options in TRAININGS.items()
        }


def assert_same(one: TrainedModel, two: TrainedModel) -> None:
    assert one.history == two.history
    assert one.metadata == two.metadata
    for name, arrays in one.models.items():
        assert arrays.keys() == two.models[name].keys()
        for key, array in arrays.items():
            assert array.tobytes() == two.models[name][key].tobytes(), key
    assert one.checkpoints.keys() == two.checkpoints.keys()
    for name, kept in one.checkpoints.items():
        assert_same(kept, two.checkpoints[name])


@pytest.mark.usefixtures("every_epoch", "short_plateaus")
@pytest.mark.parametrize("name", TRAININGS)
def test_an_interrupted_training_goes_on_to_the_same_model(scan, whole, tmp_path, name):
    options = TRAININGS[name]
    with pytest.raises(InterruptionError):
        Watch(scan, options, tmp_path, until=1, execution=BEST).train()
    second = Watch(scan, options, tmp_path, until=3, execution=BEST)
    with pytest.raises(InterruptionError):
        second.train()
    assert (second.epochs, second.lines) == (
        [2, 3],
        [f"resumes after epoch 1 of {options.epochs}"],
    )
    last = Watch(scan, options, tmp_path, execution=BEST)
    made = last.train()
    assert_same(made, whole[name])
    assert last.epochs == [4]
    assert last.lines[0] == f"resumes after epoch 3 of {options.epochs}"
    assert len(made.checkpoints) == 2


def test_a_finished_training_is_not_repeated(scan, whole, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "work"
    folder.mkdir()
    Watch(scan, COSINE, folder).train()
    assert [path.name for path in folder.iterdir()] == [CHECKPOINT_NAME]
    assert list(tmp_path.iterdir()) == [folder]
    again = Watch(scan, COSINE, folder)
    assert_same(again.train(), replace(whole["cosine"], checkpoints={}))
    assert again.epochs == []
    assert again.lines == ["takes the finished training: all 4 epochs are done"]
    assert capfd.readouterr() == ("", "")


def test_more_epochs_continue_a_training_with_a_constant_rate(scan, whole, tmp_path):
    Watch(scan, msgspec.structs.replace(CONSTANT, epochs=2), tmp_path).train()
    more = Watch(scan, CONSTANT, tmp_path)
    assert_same(more.train(), replace(whole["constant"], checkpoints={}))
    assert (more.epochs, more.lines) == (
        [3, 4],
        ["continues the finished training: epochs 3 to 4"],
    )


@pytest.mark.parametrize(
    ("done", "planned", "options", "line"),
    [
        (4, 2, COSINE, "starts anew: the last training was planned for 2 epochs, and the cosine"),
        (2, 8, COSINE, "starts anew: the last training was planned for 8 epochs, and the cosine"),
        (6, 8, CONSTANT, "starts anew: the last training has 6 epochs already, more than 4"),
        (3, 8, CONSTANT, "resumes after epoch 3 of 4"),
        (4, 8, CONSTANT, "takes the finished training: all 4 epochs are done"),
        (2, 8, TRAININGS["multi_step"], "starts anew: the last training was planned for 8 epochs"),
        (4, 4, msgspec.structs.replace(TRAININGS["plateau"], epochs=6), "continues the finished"),
        (4, 4, msgspec.structs.replace(TRAININGS["exponential"], epochs=6), "continues the"),
    ],
)
def test_what_a_checkpoint_of_other_epochs_is_good_for(done, planned, options, line):
    lines = []
    used = can_resume(
        {"history": [{}] * done, "epochs": planned, "stopped": False}, options, lines.append
    )
    assert used is not lines[0].startswith("starts anew")
    assert len(lines) == 1
    assert lines[0].startswith(line)


class Payload:
    """Runs code when unpickled by someone careless."""

    def __reduce__(self):
        return print, ("unpickled",)


def damaged(content: bytes) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save({"network": Payload()}, buffer)
    code = buffer.getvalue()
    return {
        "empty": b"",
        "truncated": content[:-1],
        "one bit": content[:-9000] + bytes([content[-9000] ^ 1]) + content[-8999:],
        "longer": content + b"\0",
        "other versions": bytes(32) + content[32:],
        "code": Checkpoints(None, say_nothing).digest(code) + code,
    }


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "one bit", "longer", "other versions", "code"]
)
def test_a_damaged_or_foreign_checkpoint_is_no_checkpoint(tmp_path, damage, capsys):
    lines = []
    written = Checkpoints(tmp_path, lines.append)
    written.write(lambda: {"network": torch.arange(5000.0)}, last=True)
    state = written.read()
    assert state is not None
    assert torch.equal(state["network"], torch.arange(5000.0))
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(damaged(path.read_bytes())[damage])
    assert written.read() is None
    assert len(lines) == 1
    assert lines[0].startswith(f"starts anew: {path} ")
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_other_code_or_of_another_torch_is_foreign(tmp_path, monkeypatch):
    Checkpoints(tmp_path, say_nothing).write(dict, last=True)
    with monkeypatch.context() as other:
        other.setattr(checkpoints, "__file__", str(tmp_path / "checkpoints.py"))
        assert Checkpoints(tmp_path, say_nothing).read() is None
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "1.0")
        assert Checkpoints(tmp_path, say_nothing).read() is None
    assert Checkpoints(tmp_path, say_nothing).read() == {}


@pytest.mark.usefixtures("every_epoch")
def test_a_training_with_a_damaged_checkpoint_starts_anew(scan, whole, tmp_path):
    with pytest.raises(InterruptionError):
        Watch(scan, COSINE, tmp_path, until=2).train()
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:-100])
    anew = Watch(scan, COSINE, tmp_path)
    assert_same(anew.train(), replace(whole["cosine"], checkpoints={}))
    assert anew.epochs == [1, 2, 3, 4]
    assert len(anew.lines) == 1


def test_what_cannot_be_read_is_no_checkpoint(tmp_path):
    (tmp_path / CHECKPOINT_NAME).mkdir()
    lines = []
    assert Checkpoints(tmp_path, lines.append).read() is None
    assert "Is a directory" in lines[0]


@pytest.mark.usefixtures("every_epoch")
def test_a_full_disk_does_not_end_the_training(scan, whole, tmp_path, monkeypatch):
    def full(path, data):
        raise FileWriteError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(checkpoints, "write_atomic", full)
    watch = Watch(scan, COSINE, tmp_path)
    assert_same(watch.train(), replace(whole["cosine"], checkpoints={}))
    path = tmp_path / CHECKPOINT_NAME
    assert watch.lines == [
        f"goes on without a checkpoint: cannot write {path}: No space left on device"
    ]


@pytest.mark.usefixtures("every_epoch")
def test_a_training_that_failed_leaves_no_checkpoint(scan, tmp_path, monkeypatch):
    """The next one shall not go on from what led to NaN."""
    there = []
    options = msgspec.structs.replace(COSINE, epochs=3)
    misfit = DiffractionLoss.over_all

    def spoilt(self, stitched):
        there.append((tmp_path / CHECKPOINT_NAME).exists())
        return misfit(self, stitched) * (math.nan if there[-1] else 1)

    monkeypatch.setattr(DiffractionLoss, "over_all", spoilt)
    with pytest.raises(TrainingError, match="NaN or Inf in epoch 2"):
        Watch(scan, options, tmp_path).train()
    assert there[-1]
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_take_a_hundredth_of_the_time_at_most(tmp_path):
    now = 0.0
    written = []

    def state():
        nonlocal now
        written.append(now)
        now += 0.5
        return {}

    kept = Checkpoints(tmp_path, lambda line: None, clock=lambda: now)
    for second in (1, 2, 20, 52, 53):
        now = float(second)
        kept.write(state, last=False)
    kept.write(state, last=True)
    assert written == [2, 53, 53.5]


@pytest.mark.usefixtures("every_epoch")
def test_a_training_that_stopped_early_is_taken_as_it_is(scan, whole, tmp_path):
    first = Watch(scan, STOPPED, tmp_path, execution=BEST)
    assert_same(first.train(), whole["stopped"])
    assert first.lines == ["stops after epoch 4 of 9: val_loss was best in epoch 1"]
    again = Watch(scan, STOPPED, tmp_path, execution=BEST)
    assert_same(again.train(), whole["stopped"])
    assert (again.epochs, again.lines) == (
        [],
        ["takes the finished training: it stopped after epoch 4"],
    )


def test_without_checkpointing_nothing_is_written_or_read(scan, whole, tmp_path):
    Watch(scan, COSINE, tmp_path).train()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    without = msgspec.structs.replace(CPU, checkpointing=False)
    anew = Watch(scan, COSINE, tmp_path, execution=without)
    assert_same(anew.train(), replace(whole["cosine"], checkpoints={}))
    assert (anew.epochs, anew.lines) == ([1, 2, 3, 4], [])
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("every_epoch")
def test_best_epochs_that_are_asked_for_too_late_are_named(scan, whole, tmp_path):
    with pytest.raises(InterruptionError):
        Watch(scan, COSINE, tmp_path, until=3).train()
    late = Watch(scan, COSINE, tmp_path, execution=BEST)
    made = late.train()
    assert list(made.checkpoints) == ["epoch_0004"]
    assert_same(replace(made, checkpoints={}), replace(whole["cosine"], checkpoints={}))
    assert late.lines == [
        "resumes after epoch 3 of 4",
        "execution.checkpoint_save_top_k: of the epochs until 3, 0 were kept",
    ]
