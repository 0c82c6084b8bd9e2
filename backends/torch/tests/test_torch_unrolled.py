"""Training and inference of `unrolled`: better than its physics steps, honest about what it saw."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ptycho_tasks.backend import Backend, InferRequest, TrainedModel, TrainRequest
from ptycho_tasks.errors import BundleError, ConfigError, ScanError, TrainingError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.metrics import data_misfit, score
from ptycho_tasks.results.bundle import bundle_bytes, load_bundle
from ptycho_tasks.scan import corners_and_fractions, take_frames
from ptycho_tasks_torch import (
    checkpoints,
    load_inference_bundle,
    mapped,
    training,
    unrolled_lesson,
    unrolled_network,
)
from ptycho_tasks_torch.best import Best
from ptycho_tasks_torch.blocks import Epoch
from ptycho_tasks_torch.calibration import Lens
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.exposure import Exposure
from ptycho_tasks_torch.objects import AMPLITUDES, PHASES, Objects
from ptycho_tasks_torch.probe import RefinedProbe
from ptycho_tasks_torch.training import Task
from ptycho_tasks_torch.unrolled import UnrolledOptions, backend
from ptycho_tasks_torch.unrolled_blocks import HIDDEN_SHARE, Simulator, largest_shape
from ptycho_tasks_torch.unrolled_lesson import UnrolledLesson
from ptycho_tasks_torch.unrolled_network import FEATURES, UnrolledNetwork

CPU = TorchExecution(accelerator="cpu", threads=1)
SMALL = UnrolledOptions(
    on="scan", epochs=4, channels=4, steps=4, batch_size=16, neighbours=16, seed=5
)


def with_options(**values) -> UnrolledOptions:
    return msgspec.structs.replace(SMALL, **values)


def with_execution(**values) -> TorchExecution:
    return msgspec.structs.replace(CPU, **values)


TRAININGS = {
    "scan": SMALL,
    "simulated": with_options(on="simulated"),
    "both": with_options(on="both"),
    "supervised": with_options(model_type="supervised"),
    "supervised and simulated": with_options(on="both", model_type="supervised"),
    "refined": with_options(on="both", probe="refined", probe_modes=2),
}
REFINING = with_options(probe="refined", epochs=14, learning_rate=1e-2)


def train(scan, options=SMALL, execution=CPU, **more) -> TrainedModel:
    return backend.train(TrainRequest(scan, options, execution, **more))


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


@pytest.fixture(scope="module")
def blurred(scan):
    """A scan whose probe guess is wrong."""
    parts = [gaussian_filter(part, 1.5) for part in (scan.probe[0].real, scan.probe[0].imag)]
    return replace(scan, probe=(parts[0] + 1j * parts[1]).astype(np.complex64)[None])


@pytest.fixture(scope="module")
def refined(blurred) -> TrainedModel:
    return train(blurred, REFINING)


@pytest.fixture
def every_epoch(monkeypatch):
    """A checkpoint after every epoch, however fast."""
    monkeypatch.setattr(checkpoints, "LEAST_SECONDS", 0)
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)


def batches_of(lesson: UnrolledLesson, seed: int = 0) -> tuple[list, list]:
    """What the lesson trains on in its first epoch, and what it validates with."""
    epoch = Epoch.of(lesson.blocks, lesson.options)
    learned, held = lesson.loaders(epoch, torch.Generator().manual_seed(seed), 0)
    return list(learned), list(held)


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
    name = "correction.last.weight"
    assert not np.array_equal(weights(trained["scan"])[name], weights(other)[name])


@pytest.mark.parametrize("name", [name for name in TRAININGS if name != "refined"])
def test_training_makes_the_reconstruction_better(scan, trained, name):
    options, model = TRAININGS[name], trained[name]
    fresh = UnrolledNetwork(options.steps, options.subsets, options.channels).state_dict()
    untrained = {key: value.numpy() for key, value in fresh.items()}
    before = infer(scan, replace(model, models={"diffraction_to_obj": untrained}), options)
    after = infer(scan, model, options)
    assert r_factor(scan, after) < 0.8 * r_factor(scan, before)
    ours, theirs = (
        score(made.object, made.origin, scan.object, made.positions, scan.size)
        for made in (after, before)
    )
    assert ours["phase_ssim"] > theirs["phase_ssim"] + 0.01
    assert ours["amplitude_ssim"] > theirs["amplitude_ssim"]
    epoch = model.history[model.metadata["epoch"] - 1]
    assert epoch["val_loss"] < 0.8 * epoch["untrained_loss"]
    assert epoch["val_loss"] < 0.2 * epoch["flat_loss"]


def test_the_best_epoch_is_taken(scan, trained):
    model = trained["scan"]
    losses = [epoch["val_loss"] for epoch in model.history]
    assert model.metadata["epoch"] == 1 + int(np.argmin(losses))
    assert_same_weights(model, model.checkpoints[f"epoch_{model.metadata['epoch']:04d}"])


def test_early_stopping_takes_the_best_epoch(scan, trained):
    """What falls is no improvement with `max`: the first epoch stays the best."""
    said: list[str] = []
    options = with_options(monitor_mode="max", early_stop_patience=2)
    model = train(scan, options, say=said.append)
    assert said == ["stops after epoch 3 of 4: val_loss was best in epoch 1"]
    assert model.metadata["epoch"] == 1
    assert_same_weights(model, trained["scan"].checkpoints["epoch_0001"])


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_and_simulating_ahead_changes_no_byte(scan, trained, workers):
    """Nor does the probe that is refined meanwhile."""
    model = train(scan, TRAININGS["refined"], with_execution(num_workers=workers))
    assert as_bytes(model) == as_bytes(replace(trained["refined"], checkpoints={}))


def test_a_mapped_scan_gives_the_same(scan, trained, tmp_path, monkeypatch):
    np.save(tmp_path / "frames.npy", scan.diffraction)
    on_disk = replace(scan, diffraction=np.load(tmp_path / "frames.npy", mmap_mode="r"))
    assert_same_weights(train(on_disk, with_options(epochs=1)), train(scan, with_options(epochs=1)))
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
    interrupted(scan, options, until=2, work_dir=tmp_path)
    made = train(scan, options, work_dir=tmp_path, say=lines.append)
    assert as_bytes(made) == as_bytes(replace(trained["refined"], checkpoints={}))
    assert lines == ["resumes after epoch 2 of 4"]


# Not of a refined probe: a guess that differs by 1e-7 comes to one that differs by a percent.
@pytest.mark.parametrize(
    "change",
    [{}, {"on": "both"}, {"model_type": "supervised"}, {"positions": "refined"}],
)
def test_two_devices_train_as_one(scan, change):
    options = with_options(batch_size=32, epochs=2, **change)
    one, two = (train(scan, options, with_execution(devices=n)) for n in (1, 2))
    for ours, theirs in zip(one.history, two.history, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    for model, arrays in one.models.items():
        for name, array in arrays.items():
            other = two.models[model][name]
            np.testing.assert_allclose(
                other, array, atol=1e-4 * np.abs(array).max() + 1e-5, err_msg=name
            )


# --- the longest time ------------------------------------------------------------------------


@pytest.fixture
def three_seconds_a_batch(monkeypatch):
    """A clock that only the training's batches advance: 15 s an epoch."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: clock.now))
    misfit = UnrolledLesson.misfit

    def slow(self, batch):
        clock.now += 3
        return misfit(self, batch)

    monkeypatch.setattr(UnrolledLesson, "misfit", slow)
    return clock


def test_a_training_ends_in_time_with_a_rate_that_has_fallen(scan, tmp_path, three_seconds_a_batch):
    options, said = with_options(epochs=100, max_minutes=1.0), []
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
def test_the_time_before_an_interruption_counts(scan, tmp_path, three_seconds_a_batch):
    options, said = with_options(epochs=100, max_minutes=1.0), []
    interrupted(scan, options, until=2, work_dir=tmp_path)
    three_seconds_a_batch.now += 1e6  # until somebody comes to start it again
    model = train(scan, options, work_dir=tmp_path, say=said.append)
    assert said == [
        "resumes after epoch 2 of 100",
        "stops after epoch 4 of 100: max_minutes 1 are over",
    ]
    assert len(model.history) == 4


@pytest.mark.usefixtures("three_seconds_a_batch")
def test_all_epochs_are_done_where_there_is_time(scan):
    said: list[str] = []
    options = with_options(epochs=2, max_minutes=1.0)
    assert len(train(scan, options, say=said.append).history) == 2
    assert said == []


@pytest.mark.parametrize("scheduler", ["constant", "exponential", "multi_step", "plateau"])
def test_a_longest_time_needs_a_schedule_that_it_can_shape(scheduler):
    with pytest.raises(ConfigError, match=rf"^training.max_minutes: .* cosine, not {scheduler}"):
        backend.check(with_options(max_minutes=1.0, scheduler=scheduler), CPU)


# --- hidden frames ---------------------------------------------------------------------------


def test_the_network_sees_nothing_of_the_frames_that_are_hidden(scan, monkeypatch):
    """Their misfit changes with them, the predicted object does not; with the others it does."""
    lesson = UnrolledLesson(scan, SMALL)
    made: list[torch.Tensor] = []
    predict = UnrolledNetwork.object

    def noted(self, *given):
        made.append(predict(self, *given))
        return made[-1]

    monkeypatch.setattr(UnrolledNetwork, "object", noted)
    learned, held = batches_of(lesson)
    for batch, misfit in (
        (learned[0], lesson.misfit),
        (held[0], lambda batch: lesson.validate(batch)["val_loss"]),
    ):
        hidden = batch["held"][:, :, None, None, None]
        outcomes = []
        with torch.no_grad():
            for spoilt in (torch.zeros_like(hidden), hidden, ~hidden):
                made.clear()
                x = torch.where(spoilt, 1.5 * batch["x"].flip(-1), batch["x"])
                outcomes.append((misfit({**batch, "x": x}), made[0]))
        (loss, shown), (spoilt_loss, same), (_, other) = outcomes
        assert torch.equal(same, shown)
        assert spoilt_loss > 2 * loss
        assert not torch.allclose(other, shown, atol=1e-2)


def test_other_frames_are_hidden_in_every_epoch_and_held_ones_are_never_trained_on(scan):
    lesson = UnrolledLesson(scan, with_options(validation_fraction=0.2))
    blocks = lesson.blocks
    assert not np.isin(blocks.training, blocks.held).any()
    assert len(blocks.held) == pytest.approx(0.2 * scan.frame_count, abs=3)
    learned, held = batches_of(lesson)
    for batch in learned:
        assert batch["held"].sum(dim=1).tolist() == [HIDDEN_SHARE * 16] * len(batch["held"])
    assert len({tuple(batch["held"].flatten().tolist()) for batch in learned}) > 1
    other, _ = batches_of(lesson, seed=1)
    assert any(
        not torch.equal(one["held"], two["held"]) for one, two in zip(learned, other, strict=True)
    )
    for batch, members in zip(held, blocks.validation, strict=True):
        np.testing.assert_array_equal(batch["held"][0], np.isin(members, blocks.held))


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_before_training_the_network_is_as_good_as_its_untrained_steps(scan, share):
    """In every block that is validated."""
    lesson = UnrolledLesson(scan, with_options(validation_fraction=share))
    with torch.no_grad():
        for batch in batches_of(lesson)[1]:
            metrics = lesson.validate(batch)
            torch.testing.assert_close(metrics["val_loss"], metrics["untrained_loss"])


# --- simulated frames ------------------------------------------------------------------------


def measured(scan, seed: int, factor: float = 1.0):
    """Simulated frames of two blocks, by a probe `factor` times the scan's, and whose they are."""
    lesson = UnrolledLesson(scan, SMALL)
    blocks = lesson.blocks
    probe = torch.from_numpy(scan.probe * np.float32(factor))
    shape = largest_shape(blocks)
    objects = Objects(("blobs", "lines"), shape, seed=3)
    simulator = Simulator(objects, lesson.intensity_scale * factor**2, lambda: probe, shape)
    members = blocks.training[[0, 40]]
    return simulator.measure(blocks.read(members), probe, [seed, seed + 10]), members


def expected_of(scan, batch, members, factor: float = 1.0):
    """(B, K, N, N) what the core's forward model expects of the simulated objects."""
    expected = []
    for truth, origin, frames in zip(batch["truth"], batch["origin"], members, strict=True):
        where = scan.positions[frames] - origin.numpy()
        probe = scan.probe * np.float32(factor)
        chunks = expected_intensity(truth.numpy(), probe, where)
        expected.append(np.concatenate([counts for _, counts in chunks]))
    return np.stack(expected)


def test_a_scan_hardly_larger_than_a_block_can_be_learned_from(scan):
    small = take_frames(scan, np.arange(34))
    lesson = UnrolledLesson(small, with_options(neighbours=32, batch_size=32, on="both"))
    training, validation = lesson.loaders(
        Epoch.of(lesson.blocks, lesson.options), torch.Generator().manual_seed(0), 0
    )
    assert lesson.blocks.training.shape[1] < lesson.blocks.validation.shape[1]
    assert all(torch.isfinite(lesson.misfit(batch)) for batch in training)
    assert all(torch.isfinite(lesson.validate(batch)["val_loss"]) for batch in validation)


def test_feature_maps_below_zero_go_on_learning():
    correction = UnrolledNetwork(steps=2, subsets=1, channels=4).correction
    torch.nn.init.ones_(correction.last.weight)
    for name, parameter in correction.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.constant_(parameter, -10.0)
    correction(torch.rand(1, FEATURES, 16, 16)).sum().backward()
    weights = [p for name, p in correction.named_parameters() if name.endswith("weight")]
    assert all(weight.grad.abs().amax() > 0 for weight in weights)


def test_simulated_frames_are_those_of_the_core(scan):
    """Where the dose is so large that there is no noise."""
    batch, members = measured(scan, seed=1, factor=1e3)
    expected = expected_of(scan, batch, members, factor=1e3)
    counts = batch["x"][:, :, 0].numpy().astype(np.float64) ** 2
    np.testing.assert_allclose(counts, expected, atol=1e-4 * expected.max())


def test_simulated_frames_have_the_noise_of_the_dose(scan):
    batch, members = measured(scan, seed=1)
    expected = expected_of(scan, batch, members)
    counts = batch["x"][:, :, 0].numpy().astype(np.float64) ** 2
    assert counts.sum() == pytest.approx(expected.sum(), rel=1e-3)
    bright = expected > 100
    noise = (counts - expected)[bright] / np.sqrt(expected[bright])
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_simulated_frames_depend_on_their_seed_alone(scan):
    one, again, other = (measured(scan, seed)[0] for seed in (1, 1, 2))
    for name in ("x", "truth"):
        assert torch.equal(one[name], again[name])
        assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize("shape", [(24, 264), (272, 40)])
def test_objects_are_of_the_shape_and_the_ranges_promised(shape):
    generator = np.random.default_rng(0)
    objects = Objects(("lines", "blobs", "siemens"), shape, seed=0)
    drawn = [objects.draw(generator, shape) for _ in range(24)]
    assert {one.shape for one in drawn} == {shape}
    assert {one.dtype for one in drawn} == {np.dtype(np.complex64)}
    moduli, phases = np.abs(drawn), np.angle(drawn)
    assert moduli.min() >= AMPLITUDES[0] - 1e-5
    assert moduli.max() <= 1 + 1e-5
    assert np.abs(phases).max() <= PHASES[1] / 2 + 1e-5
    contrasts = np.ptp(phases, axis=(1, 2))
    assert contrasts.max() > 2 * contrasts.min()


# --- labels ----------------------------------------------------------------------------------


def test_the_label_lies_where_the_frames_see_it(scan, monkeypatch):
    """Of an object that ends with the last frame, so that canvases reach beyond it."""
    band = take_frames(scan, np.flatnonzero(scan.positions[:, 0] < scan.positions[:, 0].max() - 8))
    corners, _ = corners_and_fractions(band.positions, band.size)
    height, width = (int(side) + band.size for side in corners.max(axis=0))
    truth = scan.object[:height, :width].copy()
    truth[20, width - 14] = 5  # a bright pixel far from the diagonal
    assert height != width
    lesson = UnrolledLesson(
        replace(band, object=truth), with_options(model_type="supervised", validation_fraction=0.02)
    )
    label = lesson.label.numpy()
    off, beyond = (0, 0), 0

    def objects(self, exposure):
        """The label, put where the first frame lies, and nonsense where there is none."""
        nonlocal beyond
        _, y, x = exposure.places[0]
        top, left = corners[frames[0]] - (y, x) - off
        canvas = np.full(exposure.shape, 7 + 0j, np.complex64)
        S, T = exposure.shape
        rows = np.arange(S) + top
        columns = np.arange(T) + left
        inside = np.ix_(
            (rows >= 0) & (rows < height),
            (columns >= 0) & (columns < width),
        )
        there = np.ix_(
            rows[(rows >= 0) & (rows < height)], columns[(columns >= 0) & (columns < width)]
        )
        canvas[inside] = label[there]
        beyond += (rows >= height).any() + (columns >= width).any()
        yield torch.from_numpy(canvas)[None]

    monkeypatch.setattr(UnrolledNetwork, "objects", objects)
    for frames in lesson.blocks.training:
        batch = lesson.blocks.read(frames[None])
        off = (0, 0)
        assert lesson.misfit(batch) < 1e-3
        off = (0, 1)
        assert lesson.misfit(batch) > 0.03
    assert beyond


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
    with pytest.raises(error, match=message) as caught:
        train(replace(scan, object=change(scan.object)), TRAININGS["supervised"])
    assert "pinn" not in str(caught.value)  # which is no value of this backend's model_type


# --- the network -----------------------------------------------------------------------------


def test_a_correction_by_tiles_is_that_of_the_whole(monkeypatch):
    """On a canvas that is not square, and whose sides are no multiples of a tile's."""
    generator = np.random.default_rng(0)
    shape, N = (264, 232), 32
    places = [(0, *(int(generator.integers(n - N + 1)) for n in shape)) for _ in range(60)]
    amplitude, parts = (
        torch.from_numpy(generator.uniform(0, 1, (*outer, 60, N, N)).astype(np.float32))
        for outer in ((), (2,))
    )
    probes = torch.complex(*parts)[:, None]
    exposure = Exposure(amplitude, probes, places, 1, shape, radius=8.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UnrolledNetwork(2, 1, 4)
        plain = network.object(exposure).detach()
        for parameter in network.correction.last.parameters():
            torch.nn.init.normal_(parameter)
    with torch.inference_mode():
        whole = network.object(exposure)
        monkeypatch.setattr(unrolled_network, "TILE", 40)
        tiled = network.object(exposure)
    assert not torch.equal(tiled, whole)  # the tiles were taken
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-4)
    assert (whole - plain).abs().mean() > 0.1


# --- the refined probe -----------------------------------------------------------------------


def centres(waves: np.ndarray) -> np.ndarray:
    """(4,) where the light of (P, N, N) modes lies, in the object's plane and in the far field."""
    found = []
    for field in (waves, np.fft.fftshift(np.fft.fft2(waves), axes=(-2, -1))):
        light = (np.abs(field) ** 2).sum(axis=0, dtype=np.float64)
        index = np.arange(len(light))
        found += [(light.sum(axis=1 - axis) * index).sum() / light.sum() for axis in (0, 1)]
    return np.array(found)


def flux(waves: np.ndarray) -> float:
    return float((np.abs(waves) ** 2).sum(dtype=np.float64))


def unit(waves: np.ndarray) -> np.ndarray:
    return waves / math.sqrt(flux(waves))


def test_a_wrong_probe_is_refined(scan, blurred, refined):
    fixed = train(blurred, msgspec.structs.replace(REFINING, probe="fixed"))
    ours, theirs = (infer(blurred, model, REFINING) for model in (refined, fixed))
    assert r_factor(blurred, ours) < 0.5 * r_factor(blurred, theirs)
    # A global phase is free.
    overlaps = [abs(np.vdot(unit(scan.probe), unit(p))) for p in (ours.probe, blurred.probe)]
    assert overlaps[0] > overlaps[1]
    np.testing.assert_array_equal(theirs.probe, blurred.probe)


def test_a_refined_probe_keeps_what_no_data_tell(blurred, refined):
    guess, modes = (refined.models["probe"][name] for name in ("guess", "modes"))
    np.testing.assert_array_equal(guess, blurred.probe)
    assert np.linalg.norm(unit(modes) - unit(guess)) > 0.1
    assert flux(modes) == pytest.approx(flux(guess), rel=1e-3)
    np.testing.assert_allclose(centres(modes), centres(guess), atol=0.05)


def test_flux_shift_and_tilt_that_are_learned_are_taken_back(scan):
    guess = torch.from_numpy(scan.probe)
    made = RefinedProbe(guess, 1)
    N = scan.size
    ramp = torch.exp(2j * math.pi * torch.arange(N)[None, :] / N)
    with torch.no_grad():
        moved = 1.3 * ramp * torch.roll(guess / made.unit, 2, dims=-2)
        made.modes.copy_(torch.view_as_real(moved))
        again = made().numpy()
    assert flux(again) == pytest.approx(flux(scan.probe), rel=1e-4)
    np.testing.assert_allclose(centres(again), centres(scan.probe), atol=0.02)
    assert abs(np.vdot(unit(scan.probe), unit(again))) > 0.999


@pytest.mark.parametrize(
    "numbers", [(1.8, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 2.0, 0.0)]
)
def test_size_defocus_and_astigmatism_are_found_before_the_first_epoch(scan, numbers):
    right = torch.from_numpy(scan.probe)
    guess = Lens(right)(np.array(numbers)).numpy()
    lesson, lines = UnrolledLesson(replace(scan, probe=guess), REFINING), []
    lesson.begin(lines.append)
    (line,) = lines
    assert re.fullmatch(r"probe: .* radius [\d.]+ -> [\d.]+ pixels; misfit .* -> .*", line)
    found = lesson.refined().detach().numpy()
    before, after = (abs(np.vdot(unit(p), unit(scan.probe))) for p in (guess, found))
    assert 1 - after < 0.1 * (1 - before)
    assert flux(found) == pytest.approx(flux(guess), rel=1e-3)


def test_a_guess_that_is_right_is_about_kept(scan):
    lesson = UnrolledLesson(scan, REFINING)
    lesson.begin(lambda line: None)
    found = lesson.refined().detach().numpy()
    assert abs(np.vdot(unit(found), unit(scan.probe))) > 0.99


def test_what_other_frames_do_not_confirm_is_not_taken(scan, monkeypatch):
    wrong = Lens(torch.from_numpy(scan.probe))(np.array([3.0, 0, 0, 0]))
    monkeypatch.setattr(unrolled_lesson, "calibrated", lambda guess, misfit: wrong)
    lesson, lines = UnrolledLesson(scan, REFINING), []
    lesson.begin(lines.append)
    assert not lines
    found = lesson.refined().detach().numpy()
    np.testing.assert_allclose(unit(found), unit(scan.probe), atol=1e-4)


def test_a_training_that_goes_on_looks_for_no_probe(scan, tmp_path, every_epoch):
    guess = Lens(torch.from_numpy(scan.probe))(np.array([1.8, 0, 0, 0])).numpy()
    wrong, options = replace(scan, probe=guess), with_options(probe="refined")
    lines = []
    first = train(wrong, options, work_dir=tmp_path, say=lines.append)
    assert lines[0].startswith("probe: ")
    lines.clear()
    again = train(wrong, options, work_dir=tmp_path, say=lines.append)
    assert lines == ["takes the finished training: all 4 epochs are done"]
    assert as_bytes(again) == as_bytes(first)


def test_looking_for_the_probe_counts_as_time_of_the_training(scan):
    task = Task(REFINING, lesson := UnrolledLesson(scan, REFINING), Best(REFINING, 0))
    lesson.begin = lambda say: time.sleep(0.02)
    task.begin(lambda line: None)
    assert task.seconds >= 0.02


@pytest.mark.parametrize("modes", [1, 2, 8])
def test_modes_are_added_or_left_out(scan, modes):
    two = torch.from_numpy(np.concatenate([scan.probe, 0.3 * scan.probe[:, ::-1]]))
    made = RefinedProbe(two, modes)().detach().numpy()
    assert made.shape == (modes, 32, 32)
    assert np.linalg.matrix_rank(made.reshape(modes, -1)) == modes
    assert flux(made) == pytest.approx(flux(two.numpy()), rel=1e-4)


def test_inference_gives_the_modes_of_the_refined_probe(scan, trained):
    made = infer(scan, trained["refined"], TRAININGS["refined"])
    np.testing.assert_allclose(made.probe, trained["refined"].models["probe"]["modes"], rtol=1e-5)
    assert made.probe.shape == (2, 32, 32)


def test_the_refined_probe_serves_scans_with_the_same_guess_only(scan, blurred, refined):
    """Whatever the guess's scale: the flux is the frames'."""
    here = infer(blurred, refined, REFINING)
    weak = replace(blurred, probe=blurred.probe / np.float32(1e3))
    made = infer(weak, refined, REFINING)
    np.testing.assert_allclose(unit(made.probe), unit(here.probe), atol=1e-5)
    counts = float((scan.diffraction.astype(np.float64) ** 2).sum() / scan.frame_count)
    assert flux(made.probe) == pytest.approx(counts, rel=1e-3)
    np.testing.assert_array_equal(infer(scan, refined, REFINING).probe, scan.probe)


# --- what bad input gets ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"on": "simulated", "model_type": "supervised"}, "supervised learns from the scan"),
        ({"on": "simulated", "probe": "refined"}, "probe refined learns from the scan"),
        ({"probe_modes": 2}, "probe_modes needs probe: refined"),
        ({"batch_size": 40, "neighbours": 16}, "is no multiple of neighbours 16"),
        ({"objects": []}, "length >= 1"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(wrong, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(wrong, UnrolledOptions)


def test_more_groups_than_there_are_says_how_many(scan):
    with pytest.raises(ConfigError, match=r"^training.n_groups: 500 frames.* has 77 to train on"):
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
        diffraction=np.ones((81, 16, 16), np.float32),
        probe=np.ones((1, 16, 16), np.complex64),
    )
    with pytest.raises(ConfigError, match="trained on 32 x 32"):
        infer(other, trained["scan"])


def test_a_model_of_another_shape_is_refused(scan, trained):
    for change in ({"channels": 8}, {"steps": 5}):
        with pytest.raises(BundleError, match="do not fit the network"):
            infer(scan, trained["scan"], with_options(**change))
    with pytest.raises(BundleError, match="holds no model"):
        infer(scan, replace(trained["scan"], models={}))


@pytest.mark.parametrize("missing", ["guess", "modes"])
def test_a_model_of_half_a_probe_is_refused(scan, trained, missing):
    models = dict(trained["refined"].models)
    models["probe"] = {name: one for name, one in models["probe"].items() if name != missing}
    with pytest.raises(BundleError, match=missing):
        infer(scan, replace(trained["refined"], models=models), TRAININGS["refined"])


@pytest.mark.parametrize("damage", [{"N": None}, {"intensity_scale": None}, {"intensity_scale": 0}])
def test_a_model_without_what_its_training_found_is_refused(scan, trained, damage):
    model = trained["scan"]
    with pytest.raises(BundleError, match="not as its training left it"):
        infer(scan, replace(model, metadata={**model.metadata, **damage}))


def test_a_loss_that_becomes_nan_fails_the_run(scan, tmp_path, monkeypatch):
    misfit = UnrolledLesson.misfit
    monkeypatch.setattr(UnrolledLesson, "misfit", lambda *given: misfit(*given) * math.nan)
    with pytest.raises(TrainingError, match="NaN or Inf in epoch 1"):
        train(scan, work_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_no_use_fails_the_run(scan):
    lesson = UnrolledLesson(scan, SMALL)
    good = {"val_loss": 0.1, "flat_loss": 0.4, "untrained_loss": 0.2, "spread": 0.2}
    lesson.refuse(good)
    for bad in ({"val_loss": 0.2}, {"val_loss": 0.3}):
        with pytest.raises(TrainingError, match="no better than its untrained steps"):
            lesson.refuse(good | bad)
    for bad in ({"val_loss": 0.4}, {"val_loss": math.nan}, {"spread": 1e-5}):
        with pytest.raises(TrainingError, match="no better than a flat object"):
            lesson.refuse(good | bad)


def test_a_training_that_learns_nothing_fails(scan):
    with pytest.raises(TrainingError, match="no better than its untrained steps"):
        train(scan, with_options(epochs=1, learning_rate=1e-20))


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


def test_a_bundle_of_another_backend_is_refused(tmp_path, trained):
    data = bundle_bytes(trained["scan"], backend="other", backend_version="1", size=32, params={})
    (tmp_path / BUNDLE_NAME).write_bytes(data)
    with pytest.raises(BundleError, match="made by the backend `other`"):
        load_inference_bundle(tmp_path)


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], text=True, capture_output=True, check=True
    )
    return set(done.stdout.split())


def test_looking_the_backend_up_imports_no_torch():
    loaded = modules_after(
        "from pathlib import Path\nfrom ptycho_tasks.backends import find_backend\n"
        "find_backend('unrolled', Path('.')).load()"
    )
    assert "ptycho_tasks_torch" in loaded
    assert {"torch", "lightning", "numpy"} & loaded == set()


INFER = """
from pathlib import Path
import msgspec
from ptycho_tasks.backend import InferRequest
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks_torch.unrolled import UnrolledOptions, backend
bundle = load_bundle(Path({model_dir!r}))
scan = simulate(SimulationOptions(size=32, grid=4, step=3.5, jitter=1.0))
options = msgspec.convert(bundle.params["training"], UnrolledOptions)
assert backend.infer(InferRequest(scan, bundle.model, options)).object.any()
"""


def test_inference_needs_no_lightning(model_dir):
    loaded = modules_after(INFER.format(model_dir=str(model_dir)))
    assert "torch" in loaded
    assert {"lightning", "pytorch_lightning"} & loaded == set()
