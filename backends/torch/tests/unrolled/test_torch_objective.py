"""What `unrolled` learns from: hidden frames, simulated objects, labels."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from ptycho_tasks.backend import TrainedModel, TrainRequest
from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import corners_and_fractions, take_frames
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.frames.blocks import EpochPlan
from ptycho_tasks_torch.frames.textures import TexturePool
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.blocks import HIDDEN_SHARE, Simulator, common_shape, cut_object
from ptycho_tasks_torch.unrolled.correction import WAYS, Correction, turn_back, turn_canvas
from ptycho_tasks_torch.unrolled.network import UnrolledNetwork
from ptycho_tasks_torch.unrolled.objective import UnrolledObjective
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

pytestmark = pytest.mark.usefixtures("few_objects")

CPU = TorchExecution(accelerator="cpu", threads=1)
SMALL = UnrolledOptions(
    on="scan", start="nothing", epochs=4, channels=4, steps=4, batch_size=16, neighbours=16, seed=5
)


def with_options(**values) -> UnrolledOptions:
    return msgspec.structs.replace(SMALL, **values)


def train(scan, options) -> TrainedModel:
    return backend.train(TrainRequest([scan], options, CPU))


def batches_of(objective: UnrolledObjective, seed: int = 0) -> tuple[list, list]:
    """What the objective trains on in its first epoch, and what it validates with."""
    epoch = EpochPlan.from_blocks(objective.blocks, objective.options)
    learned, held = objective.make_loaders(epoch, torch.Generator().manual_seed(seed), 0)
    return list(learned), list(held)


# --- hidden frames ---------------------------------------------------------------------------


def test_the_network_sees_nothing_of_the_frames_that_are_hidden(scan, monkeypatch):
    """Their misfit changes with them, the object that is corrected does not; with the others it
    does."""
    torch.manual_seed(0)
    objective = UnrolledObjective(scan, SMALL)
    torch.nn.init.normal_(objective.network.correction.network.last.weight, std=10.0)
    made: list[torch.Tensor] = []
    correct = Correction.forward

    def noted(self, canvas, *given, **told):
        made.append(canvas)
        return correct(self, canvas, *given, **told)

    monkeypatch.setattr(Correction, "forward", noted)
    learned, held = batches_of(objective)
    for batch, misfit in (
        (learned[0], objective.loss),
        (held[0], lambda batch: objective.validate(batch)["val_loss"]),
    ):
        hidden = batch["held_back"][:, :, None, None, None]
        outcomes = []
        with torch.no_grad():
            for spoilt in (torch.zeros_like(hidden), hidden, ~hidden):
                made.clear()
                x = torch.where(spoilt, 1.5 * batch["x"].flip(-1), batch["x"])
                outcomes.append((misfit({**batch, "x": x}), made[0]))
        (loss, shown), (spoilt_loss, same), (_, other) = outcomes
        assert torch.equal(same, shown)
        assert abs(spoilt_loss / loss - 1) > 1e-2
        assert not torch.allclose(other, shown, atol=1e-2)


def test_other_frames_are_hidden_in_every_epoch_and_held_ones_are_never_trained_on(scan):
    objective = UnrolledObjective(scan, with_options(validation_fraction=0.2))
    blocks = objective.blocks
    assert not np.isin(blocks.training, blocks.held_back).any()
    assert len(blocks.held_back) == pytest.approx(0.2 * scan.frame_count, abs=3)
    learned, held = batches_of(objective)
    for batch in learned:
        assert batch["held_back"].sum(dim=1).tolist() == [HIDDEN_SHARE * 16] * len(
            batch["held_back"]
        )
    assert len({tuple(batch["held_back"].flatten().tolist()) for batch in learned}) > 1
    other, _ = batches_of(objective, seed=1)
    assert any(
        not torch.equal(one["held_back"], two["held_back"])
        for one, two in zip(learned, other, strict=True)
    )
    for batch, members in zip(held, blocks.validation, strict=True):
        np.testing.assert_array_equal(batch["held_back"][0], np.isin(members, blocks.held_back))


# --- simulated frames ------------------------------------------------------------------------


def measured(scan, seed: int, factor: float = 1.0):
    """Simulated frames of two blocks, by a probe `factor` times the scan's, and whose they are."""
    objective = UnrolledObjective(scan, SMALL)
    blocks = objective.blocks
    probe = torch.from_numpy(scan.probe * np.float32(factor))
    shape = common_shape(blocks)
    own = torch.from_numpy(scan.object)
    simulator = Simulator(
        TexturePool(3, side=max(96, *shape)),
        objective.intensity_scale * factor**2,
        1.0,
        lambda: probe,
        shape,
        lambda: own,
    )
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
    objective = UnrolledObjective(small, with_options(neighbours=32, batch_size=32, on="both"))
    training, validation = objective.make_loaders(
        EpochPlan.from_blocks(objective.blocks, objective.options),
        torch.Generator().manual_seed(0),
        0,
    )
    assert objective.blocks.training.shape[1] < objective.blocks.validation.shape[1]
    assert all(torch.isfinite(objective.loss(batch)) for batch in training)
    assert all(torch.isfinite(objective.validate(batch)["val_loss"]) for batch in validation)


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


def test_objects_are_cut_from_what_the_scan_shows(scan):
    """Beyond the rim they are mirrored."""
    image = (np.arange(12.0).reshape(3, 4) + 0j).astype(np.complex64)
    drawn = [cut_object(image, np.random.default_rng(seed), (6, 5)) for seed in range(16)]
    assert {one.shape for one in drawn} == {(6, 5)}
    assert all(np.isin(one, image).all() for one in drawn)
    assert len({one.tobytes() for one in drawn}) > 4


@pytest.mark.parametrize("on", ["simulated", "scan"])
def test_a_network_learns_from_blocks_of_few_photons(scan, on):
    dim = simulate(SimulationOptions(size=32, grid=8, step=4.0, photons=1e3, seed=2))
    objective = UnrolledObjective(dim, with_options(on=on, steps=24))
    objective.prepare(lambda text: None)
    batch = batches_of(objective)[0][0]
    adam, losses = torch.optim.Adam(objective.network.parameters(), lr=1e-2), []
    for _ in range(25):
        adam.zero_grad()
        loss = objective.loss(batch)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("way", range(WAYS))
def test_what_is_turned_can_be_turned_back(way):
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(turn_back(turn_canvas(values, way), way), values)


# --- labels ----------------------------------------------------------------------------------


def test_the_label_lies_where_the_frames_see_it(scan, monkeypatch):
    """Of an object that ends with the last frame, so that canvases reach beyond it."""
    band = take_frames(scan, np.flatnonzero(scan.positions[:, 0] < scan.positions[:, 0].max() - 8))
    corners, _ = corners_and_fractions(band.positions, band.size)
    height, width = (int(side) + band.size for side in corners.max(axis=0))
    truth = scan.object[:height, :width].copy()
    truth[20, width - 14] = 5  # a bright pixel far from the diagonal
    assert height != width
    objective = UnrolledObjective(
        replace(band, object=truth), with_options(model_type="supervised", validation_fraction=0.02)
    )
    label = objective.label.numpy()
    off, beyond = (0, 0), 0

    def find_object(self, exposure, steps):
        """The label, put where the first frame lies, and nonsense where there is none."""
        nonlocal beyond
        _, y, x = exposure.places[0].tolist()
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
        return torch.from_numpy(canvas)[None]

    monkeypatch.setattr(UnrolledNetwork, "find_object", find_object)
    for frames in objective.blocks.training:
        batch = objective.blocks.read(frames[None])
        off = (0, 0)
        assert objective.loss(batch) < 1e-3
        off = (0, 1)
        assert objective.loss(batch) > 0.03
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
        train(replace(scan, object=change(scan.object)), with_options(model_type="supervised"))
    assert "pinn" not in str(caught.value)  # which is no value of this backend's model_type
