"""Several devices train as one would, and leave nothing behind."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from dataclasses import replace

import msgspec
import numpy as np
import psutil
import pytest
import torch

from forked_children import ForkedProgram, list_running
from ptycho_tasks.backend import TrainedModel, TrainRequest
from ptycho_tasks.errors import ConfigError, PtychoTasksError, TrainingError
from ptycho_tasks.results.bundle import bundle_bytes
from ptycho_tasks.scan import ScanData
from ptycho_tasks.testing.project import TIMEOUT_S
from ptycho_tasks_torch import helpers
from ptycho_tasks_torch.device import require_devices
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.frames.blocks import EpochPlan
from ptycho_tasks_torch.pinn.backend import backend
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training import devices
from ptycho_tasks_torch.training.checkpoints import CHECKPOINT_NAME
from ptycho_tasks_torch.unrolled.backend import backend as unrolled
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from started_commands import is_alive

OPTIONS = PinnOptions(epochs=3, gridsize=1, channels=4, steps=1, batch_size=32, neighbours=16)
UNROLLED = UnrolledOptions(
    on="scan", start="nothing", epochs=2, channels=4, steps=4, batch_size=32, neighbours=16, seed=5
)
ONE = TorchExecution(accelerator="cpu", threads=1)
TWO = msgspec.structs.replace(ONE, devices=2)


@pytest.fixture(scope="module")
def scan(large_scan) -> ScanData:
    """Its last batch has a single block, which cannot be divided."""
    return large_scan


class InterruptionError(Exception):
    """What ends a training that is watched."""


def train(scan, options=OPTIONS, execution=TWO, **more) -> TrainedModel:
    return backend.train(TrainRequest([scan], options, execution, **more))


def assert_close(one: TrainedModel, two: TrainedModel) -> None:
    assert len(one.history) == len(two.history)
    for ours, theirs in zip(one.history, two.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, array in one.models["diffraction_to_obj"].items():
        np.testing.assert_allclose(
            two.models["diffraction_to_obj"][name], array, atol=1e-4, err_msg=name
        )


def test_every_block_is_dealt_out_once():
    """And what counts nothing stands in where there is none."""
    for blocks, batch, accumulated, count in [(7, 4, 2, 2), (5, 4, 1, 4), (9, 6, 3, 3)]:
        parts = [EpochPlan(blocks, batch, accumulated, rank, count) for rank in range(count)]
        taken, shares = [], [0.0] * parts[0].steps
        for index in range(parts[0].batches):
            drawn = list(range(blocks))[index * batch : (index + 1) * batch]
            for part in parts:
                share = part.share(index)
                assert part.own_blocks(drawn)
                taken += part.own_blocks(drawn) if share else []
                shares[index // accumulated] += share
        assert sorted(taken) == list(range(blocks))
        assert shares == pytest.approx([1.0] * len(shares))


@pytest.mark.parametrize(
    ("is_forked", "change"),
    [
        (False, {"accumulate_grad_batches": 2, "scheduler": "plateau"}),
        (True, {"model_type": "supervised"}),
    ],
)
def test_two_devices_train_as_one(scan, tmp_path, request, is_forked, change):
    """Also from mapped frames, and in the last batch, whose one block cannot be divided."""
    if is_forked:
        request.getfixturevalue("forked")
    np.save(tmp_path / "frames.npy", np.concatenate([scan.diffraction[:1], scan.diffraction]))
    frames = np.load(tmp_path / "frames.npy", mmap_mode="r")[1:]
    options = msgspec.structs.replace(OPTIONS, **change)
    execution = msgspec.structs.replace(TWO, num_workers=1)
    assert_close(
        train(scan, options, ONE),
        train(replace(scan, diffraction=frames), options, execution),
    )
    assert not torch.distributed.is_initialized()


# Not of a refined probe: a guess that differs by 1e-7 comes to one that differs by a percent.
@pytest.mark.parametrize(
    "change",
    [{"on": "both", "positions": "refined"}, {"model_type": "supervised"}],
)
def test_two_devices_train_unrolled_steps_as_one(scan, forked, change):
    options = msgspec.structs.replace(UNROLLED, **change)
    one, two = (unrolled.train(TrainRequest([scan], options, on)) for on in (ONE, TWO))
    for ours, theirs in zip(one.history, two.history, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    for model, arrays in one.models.items():
        for name, array in arrays.items():
            other = two.models[model][name]
            np.testing.assert_allclose(
                other, array, atol=1e-4 * np.abs(array).max() + 1e-5, err_msg=name
            )


@pytest.mark.usefixtures("every_epoch", "forked")
def test_a_training_on_two_devices_goes_on(scan, tmp_path):
    """From a checkpoint of one device too; the best epochs are those of one device."""
    options = msgspec.structs.replace(OPTIONS, early_stop_patience=1, monitor_mode="max")
    best = msgspec.structs.replace(TWO, checkpoint_save_top_k=2)
    lines: list[str] = []

    def progress(done, total, metrics):
        if metrics and done == 1:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        train(
            scan,
            options,
            msgspec.structs.replace(best, devices=1),
            progress=progress,
            work_dir=tmp_path,
        )
    made = train(scan, options, best, work_dir=tmp_path, say=lines.append)
    assert lines[0] == "resumes after epoch 1 of 3"
    assert lines[1].startswith("stops after epoch 2 of 3: val_loss was best in epoch 1")
    assert_close(made, train(scan, options, ONE))
    assert list(made.checkpoints) == ["epoch_0001", "epoch_0002"]


def test_what_cannot_be_divided_is_refused(scan):
    for batch_size, count in ((16, 2), (48, 2), (32, 3)):
        options = msgspec.structs.replace(OPTIONS, batch_size=batch_size)
        execution = msgspec.structs.replace(TWO, devices=count)
        with pytest.raises(ConfigError, match=r"^execution.devices: .* cannot be divided evenly"):
            train(scan, options, execution)


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match=r"^execution.devices: 2 .* 1 of the kind `mps`"):
        require_devices(TWO, torch.device("mps"))


# --- whatever ends a training ----------------------------------------------------------------


def test_a_loss_that_becomes_nan_is_one_error(scan, forked):
    options = msgspec.structs.replace(OPTIONS, learning_rate=1.0, epochs=8)
    with pytest.raises(TrainingError, match=r"NaN or Inf in epoch|no better than a flat object"):
        train(scan, options)
    assert list_running() == []


def test_an_interrupted_training_ends_its_children(scan, forked):
    """And signals find the handlers that they had before."""
    handler = signal.getsignal(signal.SIGTERM)

    def progress(done, total, metrics):
        assert signal.getsignal(signal.SIGTERM) is handler
        if metrics:
            assert len(list_running()) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(scan, progress=progress)
    assert list_running() == []
    assert not torch.distributed.is_initialized()


@pytest.mark.usefixtures("every_epoch", "forked")
def test_a_child_that_is_killed_is_named(scan, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "TIMEOUT_S", 100)

    def progress(done, total, metrics):
        if metrics and done == 1:
            for pid in list_running():
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(PtychoTasksError, match=r"^the process of device 2 was killed by signal 9"):
        train(scan, progress=progress, work_dir=tmp_path)
    assert list_running() == []
    lines: list[str] = []
    again = train(scan, OPTIONS, ONE, work_dir=tmp_path, say=lines.append)
    assert_close(again, train(scan, OPTIONS, ONE))
    assert lines[0].startswith("resumes after epoch")


def test_what_a_child_refuses_is_refused(scan, forked, monkeypatch):
    """Here it gets a job that it cannot honour, and its parent another one."""
    give = helpers.Helper.send

    def give_other(helper, task):
        options = msgspec.structs.replace(task.job.options, n_groups=500)
        give(helper, replace(task, job=replace(task.job, options=options)))

    monkeypatch.setattr(helpers.Helper, "send", give_other)
    with pytest.raises(ConfigError, match=r"^training.n_groups: 500 groups"):
        train(scan)
    assert list_running() == []


def start_program(code: str, request: TrainRequest) -> ForkedProgram:
    """A program that reads a request."""
    program = ForkedProgram([sys.executable, "-c", code])
    pickle.dump(request, program.stdin)
    program.stdin.flush()
    return program


TRAIN = """
import os, pickle, sys
from dataclasses import replace
from ptycho_tasks_torch import helpers
from ptycho_tasks_torch.pinn.backend import backend

class Fork:
    \"\"\"`python -c CODE` at once: a fork of this process, before anything was trained.\"\"\"

    def __init__(self, command, **streams):
        (stdin, to), (back, stdout) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            for end in (stdin, to, back, stdout):
                os.close(end)
            sys.stdin = os.fdopen(0)
            exec(command[-1], {})
            os._exit(0)
        os.close(stdin)
        os.close(stdout)
        self.stdin, self.stdout = os.fdopen(to, "wb"), os.fdopen(back, "rb")

    def poll(self):
        return None

helpers.subprocess.Popen = Fork
request = pickle.load(sys.stdin.buffer)
print("begun", flush=True)
backend.train(replace(request, progress=lambda *step: print(step[0], flush=True)))
"""


def test_no_child_outlives_its_parent(scan):
    """SIGTERM ends a process as SIGKILL does, since it finds no handler; and Ctrl-C as an
    interruption does: see above."""
    request = TrainRequest([scan], msgspec.structs.replace(OPTIONS, epochs=100_000), TWO)
    with start_program(TRAIN, request) as parent:
        while parent.stdout.readline() != b"2\n":
            assert parent.poll() is None
        (child,) = psutil.Process(parent.pid).children()
        parent.kill()
    deadline = time.monotonic() + TIMEOUT_S
    while is_alive(child.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


KILLED = """
import math, os, pickle, signal, sys
from pathlib import Path
from ptycho_tasks_torch.training import checkpoints
from ptycho_tasks_torch.pinn.backend import backend

checkpoints.LEAST_SECONDS, checkpoints.SHARE = 0, math.inf
replace, done = Path.replace, []

def replace_or_die(self, target):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(target)
    return replace(self, target)

Path.replace = replace_or_die
backend.train(pickle.load(sys.stdin.buffer))
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(scan, tmp_path):
    with start_program(KILLED, TrainRequest([scan], OPTIONS, ONE, work_dir=tmp_path)) as program:
        assert program.wait() == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    epochs, lines = [], []
    rest = train(
        scan,
        OPTIONS,
        ONE,
        work_dir=tmp_path,
        progress=lambda done, *_: epochs.append(done),
        say=lines.append,
    )
    whole = train(scan, OPTIONS, ONE)
    one, two = (
        bundle_bytes(model, backend="pinn", backend_version="1", size=32, params={})
        for model in (rest, whole)
    )
    assert one == two
    assert (epochs, lines) == ([2, 3], ["resumes after epoch 2 of 3"])
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_NAME]
