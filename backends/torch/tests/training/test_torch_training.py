"""What can be set about a training does what it says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from ptycho_tasks.backend import InferRequest, TrainedModel, TrainRequest
from ptycho_tasks.errors import ConfigError, ScanError, TrainingError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.physics.metrics import score
from ptycho_tasks.results.bundle import bundle_bytes
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks_torch import load_inference_bundle
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.pinn.backend import backend
from ptycho_tasks_torch.pinn.network import ObjectNetwork
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training import schedules
from ptycho_tasks_torch.training.schedules import (
    PLATEAU_EPOCHS,
    WARM_UP_STEPS,
    count_plateaus,
    make_rate_share,
)

CPU = TorchExecution(accelerator="cpu", threads=1)
SMALL = PinnOptions(epochs=4, gridsize=1, channels=4, steps=1, batch_size=16, neighbours=16)


def with_options(**values) -> PinnOptions:
    return msgspec.structs.replace(SMALL, **values)


def with_execution(**values) -> TorchExecution:
    return msgspec.structs.replace(CPU, **values)


def train(scan, options=SMALL, execution=CPU) -> TrainedModel:
    return backend.train(TrainRequest([scan], options, execution))


def infer(scan, model, options=SMALL, execution=CPU):
    return backend.infer(InferRequest(scan, model, options, execution))


def as_bytes(model: TrainedModel) -> bytes:
    return bundle_bytes(model, backend="pinn", backend_version="1", size=32, params={})


def weights(model: TrainedModel) -> dict[str, np.ndarray]:
    return dict(model.models["diffraction_to_obj"])


@pytest.fixture(scope="module")
def scan(large_scan) -> ScanData:
    """Its last batch has a single block."""
    return large_scan


@pytest.fixture(scope="module")
def trained(scan) -> TrainedModel:
    return train(scan)


# --- training steps --------------------------------------------------------------------------


@pytest.mark.parametrize("n_groups", [None, 48, 32])
def test_accumulated_batches_are_one_large_batch(scan, n_groups):
    """Also the last ones of an epoch: of 5, 3 and 2 blocks here, 1, 1 and 2 are in the last."""
    large = with_options(epochs=2, batch_size=64, n_groups=n_groups)
    parts = msgspec.structs.replace(large, batch_size=32, accumulate_grad_batches=2)
    small = msgspec.structs.replace(large, batch_size=16, accumulate_grad_batches=4)
    whole = train(scan, large)
    for options in (parts, small):
        made = train(scan, options)
        for one, two in zip(whole.history, made.history, strict=True):
            assert two == pytest.approx(one, rel=1e-4)
        for name, array in weights(whole).items():
            np.testing.assert_allclose(weights(made)[name], array, atol=2e-4, err_msg=name)


def test_more_accumulation_than_batches_is_one_step_an_epoch(scan):
    one, two = (train(scan, with_options(epochs=2, accumulate_grad_batches=n)) for n in (5, 500))
    assert as_bytes(one) == as_bytes(two)


# --- the learning rate -----------------------------------------------------------------------


def rates(options: PinnOptions, history=(), epoch_steps: int = 20) -> list[float]:
    share = make_rate_share(options, epoch_steps, history)
    return [share(step) for step in range(options.epochs * epoch_steps)]


def test_the_learning_rate_rises_first():
    for scheduler in ("constant", "exponential", "multi_step", "plateau"):
        risen = rates(with_options(scheduler=scheduler, epochs=20))[:WARM_UP_STEPS]
        assert risen[0] == pytest.approx(1 / WARM_UP_STEPS)
        assert max(risen) > 0.9


def test_the_learning_rate_falls_as_the_schedule_says():
    cosine, constant, exponential, multi_step = (
        rates(with_options(scheduler=name, epochs=20))
        for name in ("cosine", "constant", "exponential", "multi_step")
    )
    assert cosine[-1] < 0.01 * max(cosine)
    assert set(constant[WARM_UP_STEPS - 1 :]) == {1.0}
    assert exponential[60] == pytest.approx(0.95**3)
    assert exponential[-1] == pytest.approx(0.95**19)
    steps = [multi_step[n] for n in (199, 200, 299, 300, 399)]
    assert steps == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("scheduler", ["cosine", "constant", "exponential", "multi_step"])
def test_only_planned_schedules_depend_on_the_epochs_to_come(scheduler):
    few, many = (rates(with_options(scheduler=scheduler, epochs=n)) for n in (8, 16))
    assert (few != many[: len(few)]) is (scheduler in schedules.PLANNED)


def test_a_plateau_halves_the_learning_rate():
    history = [{"val_loss": value} for value in [5.0, 4.0] + PLATEAU_EPOCHS * [4.0]]
    options = with_options(scheduler="plateau")
    assert make_rate_share(options, 20, history[:-1])(1000) == 1
    assert make_rate_share(options, 20, history)(1000) == 0.5
    assert count_plateaus([1.0, *[2.0] * 2 * PLATEAU_EPOCHS], "min") == 2
    assert count_plateaus([1.0, *[2.0] * PLATEAU_EPOCHS], "max") == 0
    assert count_plateaus([2.0, *[1.0] * PLATEAU_EPOCHS], "max") == 1
    assert count_plateaus([2.0, *[float("nan")] * PLATEAU_EPOCHS, 1.0], "min") == 1


def test_the_plateau_watches_what_is_monitored(scan, monkeypatch):
    """Another rate gives other weights."""
    monkeypatch.setattr(schedules, "PLATEAU_EPOCHS", 1)
    constant = train(scan, with_options(scheduler="constant", epochs=3))
    fell = []
    for monitor, mode in itertools.product(("val_loss", "loss"), ("min", "max")):
        options = with_options(scheduler="plateau", monitor=monitor, monitor_mode=mode, epochs=3)
        # The last epoch's value comes too late to change anything.
        values = [epoch[monitor] for epoch in constant.history[:-1]]
        fell.append(count_plateaus(values, mode) > 0)
        assert (as_bytes(train(scan, options)) != as_bytes(constant)) is fell[-1]
    assert set(fell) == {True, False}


# --- the best epochs -------------------------------------------------------------------------


def test_early_stopping_takes_the_best_epoch(scan):
    """What falls is no improvement with `max`: the first epoch stays the best."""
    options = with_options(epochs=9, monitor_mode="max", early_stop_patience=2)
    said, told = [], []
    request = TrainRequest(
        [scan], options, CPU, lambda done, total, metrics: told.append(done), say=said.append
    )
    model = backend.train(request)
    assert told == [0, 1, 2, 3]
    assert said == ["stops after epoch 3 of 9: val_loss was best in epoch 1"]
    assert len(model.history) == 3
    assert model.metadata["epoch"] == 1
    sooner = msgspec.structs.replace(options, early_stop_patience=1)
    first = train(scan, sooner, with_execution(checkpoint_save_top_k=2))
    assert list(first.checkpoints) == ["epoch_0001", "epoch_0002"]
    for name, array in weights(first.checkpoints["epoch_0001"]).items():
        np.testing.assert_array_equal(weights(model)[name], array)


def test_a_patience_that_is_not_used_up_ends_with_the_best_epoch(scan, trained):
    model = train(scan, with_options(early_stop_patience=3))
    assert model.metadata["epoch"] == 4
    assert model.history == trained.history
    for name, array in weights(trained).items():
        np.testing.assert_array_equal(weights(model)[name], array)


def test_the_best_epochs_are_kept_and_change_nothing_else(scan, trained):
    model = train(scan, execution=with_execution(checkpoint_save_top_k=3))
    assert as_bytes(replace(model, checkpoints={})) == as_bytes(trained)
    best = sorted(range(4), key=lambda n: trained.history[n]["val_loss"])[:3]
    assert list(model.checkpoints) == [f"epoch_{n + 1:04d}" for n in best]
    for n, kept in zip(best, model.checkpoints.values(), strict=True):
        assert kept.history == trained.history[: n + 1]
    last = model.checkpoints["epoch_0004"]
    assert as_bytes(last) == as_bytes(trained)


def test_a_kept_epoch_is_a_bundle_like_any(scan, tmp_path):
    model = train(scan, execution=with_execution(checkpoint_save_top_k=1))
    (kept,) = model.checkpoints.values()
    params = {"training": msgspec.to_builtins(SMALL), "flat": {"N": 32}}
    data = bundle_bytes(kept, backend="pinn", backend_version="1", size=32, params=params)
    (tmp_path / BUNDLE_NAME).write_bytes(data)
    models, params = load_inference_bundle(tmp_path)
    assert models.keys() == {"diffraction_to_obj", "autoencoder"}
    assert params["intensity_scale"] == kept.metadata["intensity_scale"]


def test_best_epochs_need_checkpointing():
    with pytest.raises(msgspec.ValidationError, match="3 needs checkpointing: true"):
        msgspec.convert({"checkpointing": False, "checkpoint_save_top_k": 3}, TorchExecution)


# --- how to run ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_ahead_changes_no_byte(scan, trained, tmp_path, workers):
    np.save(tmp_path / "frames.npy", scan.diffraction)
    mapped = replace(scan, diffraction=np.load(tmp_path / "frames.npy", mmap_mode="r"))
    ahead = with_execution(num_workers=workers, inference_batch_size=7)
    model = train(mapped, execution=ahead)
    assert as_bytes(model) == as_bytes(trained)
    one = infer(scan, trained, execution=with_execution(inference_batch_size=7))
    two = infer(mapped, trained, execution=ahead)
    assert one.object.tobytes() == two.object.tobytes()


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_change_no_byte_on_a_cpu(scan, trained, deterministic):
    execution = with_execution(deterministic=deterministic)
    before = torch.backends.cudnn.benchmark
    assert as_bytes(train(scan, execution=execution)) == as_bytes(trained)
    one, two = infer(scan, trained), infer(scan, trained, execution=execution)
    assert one.object.tobytes() == two.object.tobytes()
    assert torch.backends.cudnn.benchmark is before
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_kernel_that_is_not_deterministic_is_refused(scan, trained, monkeypatch):
    reconstruct = ObjectNetwork.reconstruct

    def put(self, exposure):
        torch.zeros(2).put_(torch.tensor([0]), torch.tensor([1.0]))
        return reconstruct(self, exposure)

    monkeypatch.setattr(ObjectNetwork, "reconstruct", put)
    execution = with_execution(deterministic=True)
    for run in (
        lambda: train(scan, execution=execution),
        lambda: infer(scan, trained, SMALL, execution),
    ):
        with pytest.raises(ConfigError) as caught:
            run()
        assert str(caught.value).startswith("execution.deterministic: put_ does not have a determ")
        assert "\n" not in str(caught.value)
    assert infer(scan, trained).object.any()


# --- labels ----------------------------------------------------------------------------------

SUPERVISED = with_options(model_type="supervised", epochs=8, channels=8, learning_rate=5e-3)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_a_label_teaches_the_network(scan, gridsize):
    options = msgspec.structs.replace(SUPERVISED, gridsize=gridsize)
    model = train(scan, options)
    first, last = model.history[0], model.history[-1]
    assert last["loss"] < 0.9 * first["loss"]
    assert last["val_loss"] < min(first["val_loss"], 0.5 * last["flat_loss"])
    untrained = train(scan, msgspec.structs.replace(options, epochs=1, learning_rate=1e-9))
    after, before = (infer(scan, made, options) for made in (model, untrained))
    ours, none = (
        score(made.object, made.origin, scan.object, made.positions, scan.size)
        for made in (after, before)
    )
    assert ours["phase_ssim"] > none["phase_ssim"] + 0.05


def test_scale_and_phase_of_the_label_do_not_count(scan):
    options = msgspec.structs.replace(SUPERVISED, epochs=2)
    turned = replace(scan, object=(scan.object * 7 * np.exp(2j)).astype(np.complex64))
    one, two = train(scan, options), train(turned, options)
    for name, array in weights(one).items():
        np.testing.assert_allclose(weights(two)[name], array, atol=1e-3, err_msg=name)


def test_the_label_is_what_is_learned(scan):
    """Frames of one object, the label of another one."""
    other = replace(scan, object=np.ascontiguousarray(scan.object[::-1, ::-1]))
    with pytest.raises(TrainingError, match="no better than a flat object"):
        train(other, msgspec.structs.replace(SUPERVISED, epochs=2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda o: None, ConfigError, "^training.model_type: supervised learns from `objectGuess`"),
        (lambda o: np.ones_like(o), ScanError, "training.model_type: supervised: it is flat"),
        (lambda o: o[:-20], ScanError, "training.model_type: supervised: .* reach outside"),
        (lambda o: o * np.nan, ScanError, "training.model_type: supervised: it holds NaN"),
    ],
)
def test_a_label_of_no_use_is_refused(scan, change, error, message):
    with pytest.raises(error, match=message):
        train(replace(scan, object=change(scan.object)), SUPERVISED)


def test_a_loss_of_diffraction_is_refused_for_labels():
    with pytest.raises(msgspec.ValidationError, match="loss mae compares diffraction"):
        msgspec.convert({"model_type": "supervised", "loss": "mae"}, PinnOptions)


def test_inference_needs_no_label(scan):
    options = msgspec.structs.replace(SUPERVISED, epochs=4)
    model = train(scan, options)
    some = take_frames(replace(scan, object=None), np.arange(40))
    assert np.isfinite(infer(some, model, options).object).all()


# --- what does not fit each other ------------------------------------------------------


@pytest.mark.parametrize("given", [{"monitor": "loss"}, {"monitor_mode": "max"}])
def test_a_monitor_that_nothing_asks_for_is_refused(given):
    options = with_options(**given)
    key = next(iter(given))
    with pytest.raises(ConfigError, match=rf"^training.{key}: .* is of no use"):
        backend.check(options, CPU)
    backend.check(msgspec.structs.replace(options, early_stop_patience=3), CPU)
    backend.check(msgspec.structs.replace(options, scheduler="plateau"), CPU)
    backend.check(options, with_execution(checkpoint_save_top_k=1))
