"""Training and inference of `unrolled`: better than its physics steps, honest about what it saw."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from ptycho_tasks.backend import Backend, InferRequest, TrainedModel, TrainRequest
from ptycho_tasks.errors import BundleError, ConfigError, ScanError, TrainingError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.metrics import data_misfit, score
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.results.bundle import bundle_bytes, load_bundle
from ptycho_tasks.scan import ScanData, corners_and_fractions, take_frames
from ptycho_tasks_torch import load_inference_bundle
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics import mapped
from ptycho_tasks_torch.training import trainer
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.objective import UnrolledObjective
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

pytestmark = pytest.mark.usefixtures("few_objects", "few_trials")

CPU = TorchExecution(accelerator="cpu", threads=1)
SMALL = UnrolledOptions(
    on="scan",
    start="nothing",
    epochs=4,
    learning_rate=1e-2,
    channels=4,
    steps=6,
    batch_size=16,
    neighbours=16,
    seed=5,
)
FEW = 2
"""Steps where no quality is asked for."""


@pytest.fixture(scope="module")
def scan() -> ScanData:
    """Of few photons: elsewhere there is little to learn that the steps do not find."""
    return simulate(SimulationOptions(size=32, grid=7, step=3.5, jitter=1.0, photons=1e4, seed=5))


def with_options(**values) -> UnrolledOptions:
    return msgspec.structs.replace(SMALL, **values)


def with_execution(**values) -> TorchExecution:
    return msgspec.structs.replace(CPU, **values)


TRAININGS = {
    "scan": SMALL,
    "simulated": with_options(on="simulated"),
    "both": with_options(on="both", epochs=2),
    "supervised": with_options(model_type="supervised"),
    "supervised and simulated": with_options(on="both", model_type="supervised", epochs=2),
    "refined": with_options(on="both", probe="refined", probe_modes=2, epochs=2, steps=FEW),
}
REFINING = with_options(probe="refined", epochs=14, learning_rate=1e-2)


def train(scan, options=SMALL, execution=CPU, **more) -> TrainedModel:
    return backend.train(TrainRequest([scan], options, execution, **more))


def infer(scan, model, options=SMALL, execution=CPU):
    return backend.infer(InferRequest(scan, model, options, execution))


def as_bytes(model: TrainedModel) -> bytes:
    return bundle_bytes(model, backend="unrolled", backend_version="2", size=32, params={})


def weights(model: TrainedModel) -> dict[str, np.ndarray]:
    return dict(model.models["diffraction_to_obj"])


def assert_same_weights(one: TrainedModel, two: TrainedModel) -> None:
    for name, array in weights(one).items():
        np.testing.assert_array_equal(weights(two)[name], array, err_msg=name)


def r_factor(scan, made) -> float:
    return data_misfit(
        made.object, made.origin, made.probe, made.positions, scan.diffraction
    ).r_factor


class Trained:
    """Trainings that the tests share, each done when it is first asked for."""

    def __init__(self, scan) -> None:
        self._scan, self._done = scan, {}

    def __getitem__(self, name: str) -> TrainedModel:
        if name not in self._done:
            best = with_execution(checkpoint_save_top_k=4)
            self._done[name] = train(self._scan, TRAININGS[name], best)
        return self._done[name]


@pytest.fixture(scope="module")
def trained(scan) -> Trained:
    return Trained(scan)


# --- what training gives ---------------------------------------------------------------------


def test_it_is_a_backend():
    assert isinstance(backend, Backend)
    assert (backend.name, backend.options_type) == ("unrolled", UnrolledOptions)


def test_the_same_config_gives_the_same_bytes(scan, trained):
    state = torch.random.get_rng_state()
    again = train(scan, TRAININGS["both"])
    assert as_bytes(again) == as_bytes(replace(trained["both"], checkpoints={}))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_another_seed_gives_another_model(scan, trained):
    other = train(scan, with_options(seed=6, epochs=1))
    name = "correction.network.last.weight"
    assert not np.array_equal(weights(trained["scan"])[name], weights(other)[name])


@pytest.mark.parametrize("name", [name for name in TRAININGS if name != "refined"])
def test_training_makes_nothing_worse(scan, trained, name):
    """What explains frames held back no better than the start is not taken."""
    options, model = TRAININGS[name], trained[name]
    start = train(scan, msgspec.structs.replace(options, epochs=0))
    before, after = infer(scan, start, options), infer(scan, model, options)
    ours, theirs = (
        score(made.object, made.origin, scan.object, made.positions, scan.size)
        for made in (after, before)
    )
    assert ours["amplitude_ssim"] > theirs["amplitude_ssim"] - 0.005
    epoch = model.metadata["epoch"]
    if epoch:
        assert model.history[epoch - 1]["val_loss"] < model.metadata["start_loss"]
    else:
        assert_same_weights(model, start)


def test_labels_make_the_reconstruction_better(trained):
    model = trained["supervised"]
    epoch = model.history[model.metadata["epoch"] - 1]
    assert epoch["val_loss"] < model.metadata["start_loss"]
    assert epoch["val_loss"] < 0.4 * epoch["flat_loss"]


def test_inference_gives_the_modes_of_the_refined_probe(scan, trained):
    made = infer(scan, trained["refined"], TRAININGS["refined"])
    np.testing.assert_allclose(made.probe, trained["refined"].models["probe"]["modes"], rtol=1e-5)


def test_the_best_epoch_is_taken(scan, trained):
    model = trained["scan"]
    losses = [epoch["val_loss"] for epoch in model.history]
    assert model.metadata["epoch"] == 1 + int(np.argmin(losses))
    assert_same_weights(model, model.checkpoints[f"epoch_{model.metadata['epoch']:04d}"])


def test_early_stopping_takes_the_best_epoch(scan, trained, monkeypatch):
    """What falls is no improvement with `max`: the first epoch stays the best."""
    said: list[str] = []
    monkeypatch.setattr(UnrolledObjective, "keeps_start", False)
    options = with_options(monitor_mode="max", early_stop_patience=2)
    model = train(scan, options, say=said.append)
    assert said == ["stops after epoch 3 of 4: val_loss was best in epoch 1"]
    assert model.metadata["epoch"] == 1
    assert_same_weights(model, trained["scan"].checkpoints["epoch_0001"])


def test_reading_and_simulating_ahead_changes_no_byte(scan, trained):
    """Nor does the probe that is refined meanwhile."""
    model = train(scan, TRAININGS["refined"], with_execution(num_workers=3))
    assert as_bytes(model) == as_bytes(replace(trained["refined"], checkpoints={}))


def test_a_mapped_scan_gives_the_same(scan, trained, tmp_path, monkeypatch):
    np.save(tmp_path / "frames.npy", scan.diffraction)
    on_disk = replace(scan, diffraction=np.load(tmp_path / "frames.npy", mmap_mode="r"))
    short = with_options(epochs=1, steps=FEW)
    assert_same_weights(train(on_disk, short), train(scan, short))
    here = infer(scan, trained["scan"])
    monkeypatch.setattr(mapped, "HELD_BYTES", 0)
    np.testing.assert_array_equal(infer(on_disk, trained["scan"]).object, here.object)


class InterruptionError(Exception):
    """What ends a training that is watched."""


def interrupted(scan, options, until: int, **more) -> None:
    def progress(done, total, metrics):
        if metrics and done == until:
            raise InterruptionError

    with pytest.raises(InterruptionError):
        train(scan, options, progress=progress, **more)


@pytest.mark.usefixtures("every_epoch")
def test_an_interrupted_training_goes_on_to_the_same_model(scan, trained, tmp_path):
    options, lines = TRAININGS["refined"], []
    interrupted(scan, options, until=1, work_dir=tmp_path)
    made = train(scan, options, work_dir=tmp_path, say=lines.append)
    assert as_bytes(made) == as_bytes(replace(trained["refined"], checkpoints={}))
    assert lines == ["resumes after epoch 1 of 2"]


# --- the longest time ------------------------------------------------------------------------


@pytest.fixture
def five_seconds_a_batch(monkeypatch):
    """A clock that only the training's batches advance: 15 s an epoch. Whether so few steps help
    is not asked."""
    monkeypatch.setattr(UnrolledObjective, "keeps_start", False)
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: clock.now))
    misfit = UnrolledObjective.loss

    def slow(self, batch):
        clock.now += 5
        return misfit(self, batch)

    monkeypatch.setattr(UnrolledObjective, "loss", slow)
    return clock


def test_a_training_ends_in_time_with_a_rate_that_has_fallen(scan, tmp_path, five_seconds_a_batch):
    options, said = with_options(epochs=100, max_minutes=1.0, steps=FEW), []
    model = train(scan, options, with_execution(logger="csv"), log_dir=tmp_path, say=said.append)
    assert said == ["stops after epoch 4 of 100: max_minutes 1 are over"]
    assert len(model.history) == 4
    with (tmp_path / "csv/metrics.csv").open() as lines:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(lines)]
    assert max(rates) > 0.5 * options.learning_rate
    assert rates[-1] < 0.02 * options.learning_rate


def test_time_that_is_over_before_the_first_epoch_is_said(scan):
    options = with_options(positions="refined", max_minutes=1e-5)
    with pytest.raises(TrainingError, match=r"over before the first epoch: .*raise training\.max"):
        train(scan, options)


@pytest.mark.usefixtures("every_epoch")
def test_the_time_before_an_interruption_counts(scan, tmp_path, five_seconds_a_batch):
    options, said = with_options(epochs=100, max_minutes=1.0, steps=FEW), []
    interrupted(scan, options, until=2, work_dir=tmp_path)
    five_seconds_a_batch.now += 1e6  # until somebody comes to start it again
    model = train(scan, options, work_dir=tmp_path, say=said.append)
    assert said == [
        "resumes after epoch 2 of 100",
        "stops after epoch 4 of 100: max_minutes 1 are over",
    ]
    assert len(model.history) == 4


@pytest.mark.usefixtures("five_seconds_a_batch")
def test_all_epochs_are_done_where_there_is_time(scan):
    said: list[str] = []
    options = with_options(on="both", epochs=2, max_minutes=1.0, steps=FEW)
    assert len(train(scan, options, say=said.append).history) == 2
    assert said == []


@pytest.mark.parametrize("scheduler", ["constant", "exponential", "multi_step", "plateau"])
def test_a_longest_time_needs_a_schedule_that_it_can_shape(scheduler):
    with pytest.raises(ConfigError, match=rf"^training.max_minutes: .* cosine, not {scheduler}"):
        backend.check(with_options(max_minutes=1.0, scheduler=scheduler), CPU)


# --- what bad input gets ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"on": "simulated", "model_type": "supervised"}, "supervised learns from the scan"),
        ({"probe_modes": 2}, "probe_modes needs probe: refined"),
        ({"batch_size": 40, "neighbours": 16}, "is no multiple of neighbours 16"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(wrong, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(wrong, UnrolledOptions)


def test_more_groups_than_there_are_says_how_many(scan):
    with pytest.raises(ConfigError, match=r"^training.n_groups: 500 frames.* has 47 to train on"):
        train(scan, with_options(n_groups=500))


def test_too_few_frames_are_refused(scan):
    with pytest.raises(ScanError, match="at least 16"):
        train(take_frames(scan, np.arange(10)))


def test_dark_frames_are_refused(scan, trained):
    dark = replace(scan, diffraction=np.zeros_like(scan.diffraction))
    with pytest.raises(ScanError, match="every frame is dark"):
        train(dark)
    with pytest.raises(ScanError, match="every frame is dark"):
        infer(dark, trained["scan"])


def test_another_detector_size_is_refused(scan, trained):
    other = replace(
        scan,
        diffraction=np.ones((49, 16, 16), np.float32),
        probe=np.ones((1, 16, 16), np.complex64),
    )
    with pytest.raises(ConfigError, match="trained on 32 x 32"):
        infer(other, trained["scan"])


def test_a_model_of_another_shape_is_refused(scan, trained):
    with pytest.raises(BundleError, match="do not fit the network"):
        infer(scan, trained["scan"], with_options(channels=8))
    with pytest.raises(BundleError, match="holds no model"):
        infer(scan, replace(trained["scan"], models={}))


@pytest.mark.parametrize("missing", ["guess", "modes"])
def test_a_model_of_half_a_probe_is_refused(scan, trained, missing):
    models = dict(trained["refined"].models)
    models["probe"] = {name: one for name, one in models["probe"].items() if name != missing}
    with pytest.raises(BundleError, match=missing):
        infer(scan, replace(trained["refined"], models=models), TRAININGS["refined"])


def test_a_model_without_the_size_of_its_frames_is_refused(scan, trained):
    model = trained["scan"]
    with pytest.raises(BundleError, match="not as its training left it"):
        infer(scan, replace(model, metadata={**model.metadata, "N": None}))


def test_a_loss_that_becomes_nan_fails_the_run(scan, tmp_path, monkeypatch):
    misfit = UnrolledObjective.loss
    monkeypatch.setattr(UnrolledObjective, "loss", lambda *given: misfit(*given) * math.nan)
    with pytest.raises(TrainingError, match="NaN or Inf in epoch 1"):
        train(scan, work_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_no_use_fails_the_run(scan):
    objective = UnrolledObjective(scan, SMALL)
    good = {"val_loss": 0.1, "flat_loss": 0.4, "spread": 0.2}
    objective.refuse_useless(good, print)
    for bad in ({"val_loss": 0.4}, {"val_loss": math.nan}, {"spread": 1e-5}):
        with pytest.raises(TrainingError, match="no better than a flat object"):
            objective.refuse_useless(good | bad, print)


# --- bundles and imports ---------------------------------------------------------------------


@pytest.fixture
def model_dir(tmp_path, trained):
    params = {
        "training": msgspec.to_builtins(TRAININGS["refined"]),
        "flat": {"N": 32, "object.big": False},
    }
    data = bundle_bytes(
        trained["refined"], backend="unrolled", backend_version="2", size=32, params=params
    )
    (tmp_path / BUNDLE_NAME).write_bytes(data)
    return tmp_path


def test_a_bundle_gives_back_the_model(model_dir, scan, trained):
    bundle, model = load_bundle(model_dir), trained["refined"]
    assert bundle.model.models.keys() == {"diffraction_to_obj", "autoencoder", "probe"}
    for name, arrays in model.models.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(bundle.model.models[name][key], array)
    options = msgspec.convert(bundle.params["training"], UnrolledOptions)
    ours, theirs = (infer(scan, one, options) for one in (model, bundle.model))
    np.testing.assert_array_equal(theirs.object, ours.object)
    np.testing.assert_array_equal(theirs.probe, ours.probe)


def test_a_bundle_loads_as_modules_in_eval_mode(model_dir, scan):
    models, params = load_inference_bundle(model_dir)
    assert models.keys() == {"diffraction_to_obj", "autoencoder"}
    assert not any(module.training for module in models.values())
    assert params["object.big"] is False
    frames = np.array([[30, 31, 39, 40], [2, 3, 11, 12]])
    corners, fractions = corners_and_fractions(scan.positions, scan.size)
    positions = (corners + fractions)[frames] - corners[frames].mean(axis=1, keepdims=True)
    x = torch.from_numpy(scan.diffraction[frames])
    call = (
        x,
        torch.from_numpy(np.float32(positions))[:, :, None],
        torch.from_numpy(scan.probe[0]),
        torch.full((2,), params["intensity_scale"] ** 0.5),
    )
    with torch.inference_mode():
        patches, amplitude = models["diffraction_to_obj"](*call), models["autoencoder"](*call)
    assert patches.shape == amplitude.shape == x.shape == (2, 4, 32, 32)
    assert (patches.dtype, amplitude.dtype) == (torch.complex64, torch.float32)
    assert float((amplitude - x).abs().mean() / x.mean()) < 0.2


def test_both_models_share_their_arrays(trained):
    model = trained["scan"]
    assert model.models.keys() == {"diffraction_to_obj", "autoencoder"}
    whole = model.models["autoencoder"]
    assert all(whole[f"network.{name}"] is array for name, array in weights(model).items())
