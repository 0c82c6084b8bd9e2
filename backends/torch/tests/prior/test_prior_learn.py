"""Learning the prior, and the correction that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_tasks.backend import TrainRequest
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks_torch import load_inference_bundle
from ptycho_tasks_torch.frames.textures import TexturePool
from ptycho_tasks_torch.physics.distance import WEIGHTS, compare_distances, measure_distances
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.prior import family, learn
from ptycho_tasks_torch.prior.family import Scenario, draw_scenario
from ptycho_tasks_torch.unrolled import correction as corrections
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.correction import Correction, expected_noise
from ptycho_tasks_torch.unrolled.network import make_unrolled_networks, reconstruct
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.start import PRIOR, load_start
from ptycho_tasks_torch.unrolled.steps import Engine


@pytest.fixture
def scenario() -> Scenario:
    return draw_scenario(np.random.default_rng(1), TexturePool(0, ["noise"]), 0)


def awake(channels: int = 4) -> Correction:
    """A correction with random weights, its last layer too."""
    torch.manual_seed(0)
    correction = Correction(channels)
    torch.nn.init.normal_(correction.network.last.weight, std=0.1)
    return correction


def correct(correction: Correction, engine: Engine, exposure: Exposure) -> torch.Tensor:
    corrected: torch.Tensor = correction(
        engine.canvas, engine.show(), exposure.light, exposure.counts
    )
    return corrected


def test_fresh_correction_changes_nothing(scenario: Scenario) -> None:
    engine = reconstruct(scenario.exposure, 2)
    same = correct(Correction(4), engine, scenario.exposure)
    assert torch.equal(same, engine.canvas)
    distances = measure_distances(same, scenario.truth, scenario.exposure.light).detach()
    assert Correction(4).is_idle
    assert not awake().is_idle
    assert float(compare_distances(distances, distances)) == pytest.approx(sum(WEIGHTS))


def test_correction_vanishes_with_the_noise(scenario: Scenario) -> None:
    engine = reconstruct(scenario.exposure, 2)
    changes = []
    for counts in (1.0, 1e8):
        with torch.no_grad():
            exposure = replace(scenario.exposure, counts=counts)
            corrected = correct(awake(), engine, exposure)
        changes.append(float((corrected - engine.canvas).abs().max()))
    assert changes[1] < 1e-2 * changes[0]


def test_expected_noise_is_that_of_an_object_pixel() -> None:
    """Of many noisy measurements of one pixel under a bright spot, the rest known."""
    generator, counts = np.random.default_rng(0), 1e6
    probe = np.full((1, 8, 8), 8.0 + 0j)
    far = np.fft.fft2(probe * np.exp(1j * generator.uniform(0, 6, (1, 8, 8))), norm="ortho")
    derivative = np.fft.fft2(np.pad(probe[:, :1, :1], ((0, 0), (0, 7), (0, 7))), norm="ortho")
    slope = (far.conj() * derivative).real / np.abs(far)
    noise = generator.poisson(np.abs(far) ** 2 * counts, (4000, 8, 8)) ** 0.5 / counts**0.5
    estimate = ((noise - np.abs(far)) * slope).sum(axis=(1, 2)) / np.square(slope).sum()
    expected = float(expected_noise(torch.tensor(64.0), counts))
    assert estimate.std() == pytest.approx(expected, rel=0.3)


def test_tiles_give_what_the_whole_canvas_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = torch.polar(torch.rand(1, 600, 90) + 0.5, torch.randn(1, 600, 90))
    fields, light = torch.randn(4, 1, 600, 90), 10 * torch.rand(1, 600, 90)
    correction, earlier = awake(), canvas + 0.1 * torch.randn(1, 600, 90)
    with torch.no_grad():
        whole = correction(canvas, fields, light, 100.0, earlier=earlier)
        monkeypatch.setattr(corrections, "TILE", 64)
        monkeypatch.setattr(corrections, "LARGEST", 1)
        tiled = correction(canvas, fields, light, 100.0, earlier=earlier)
        once = correction(canvas, fields, light, 100.0)
    assert not torch.allclose(once, whole, atol=1e-3)
    assert float((whole - canvas).abs().max()) > 1e-3
    assert torch.allclose(tiled, whole, atol=1e-5)


def test_distance_ignores_the_phase_of_the_whole(scenario: Scenario) -> None:
    exposure, truth = scenario.exposure, scenario.truth
    turned = truth * torch.polar(torch.tensor(1.0), torch.tensor(2.0))
    assert float(measure_distances(turned, truth, exposure.light).max()) < 1e-9
    assert float(measure_distances(0.9 * truth, truth, exposure.light)[0]) == pytest.approx(0.01)


def test_interrupted_learning_ends_at_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "FRAMES", (4, 6))
    monkeypatch.setattr(learn, "STEPS", (2, 4))
    monkeypatch.setattr(learn, "ROUND", 2)
    monkeypatch.setattr(learn, "BATCH", 2)
    monkeypatch.setattr(learn, "CHECKPOINT_S", 0)
    monkeypatch.setattr(learn, "Correction", lambda: Correction(4))
    plan = learn.Plan(blocks=[3, 3, 3], kinds=["noise"], validation=2)
    whole, parts, work = (tmp_path / name for name in ("whole", "parts", "work"))
    for folder in (whole, parts):
        folder.mkdir()
    learn.learn(learn.Learning(plan), whole, tmp_path / "other", lambda _: None)
    advance, done = learn.Learning.advance, []

    def stop_after_three(self: learn.Learning) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(advance(self))

    monkeypatch.setattr(learn.Learning, "advance", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        learn.learn(learn.Learning(plan), parts, work, lambda _: None)
    monkeypatch.setattr(learn.Learning, "advance", advance)
    lines: list[str] = []
    # Threads that simulate ahead make no difference.
    learn.learn(learn.Learning(plan, workers=2), parts, work, lines.append)
    assert lines[0] == "goes on after 3 of 6 rounds"
    assert (parts / BUNDLE_NAME).read_bytes() == (whole / BUNDLE_NAME).read_bytes()
    models, params = load_inference_bundle(whole)
    assert params["N"] == family.SIZE
    assert not models["diffraction_to_obj"].correction.is_idle
    learned_from = load_bundle(whole).params["metadata"]["learned_from"]
    assert learned_from["plan"]["blocks"] == [3, 3, 3]
    assert (learned_from["rounds"], learned_from["planned_rounds"]) == (6, 6)
    assert sum(row["scans"] for row in learned_from["validation"]) == 2


def test_shipped_network_fits_this_version() -> None:
    """And says what it was learned from; nothing in it is larger than a download may be."""
    network, _ = make_unrolled_networks(UnrolledOptions())
    load_start(TrainRequest([None], UnrolledOptions()), backend.version, network)
    assert not network.correction.is_idle
    assert load_bundle(PRIOR).params["metadata"]["learned_from"]["family"] == family.VERSION
    assert PRIOR.stat().st_size < 5e6


def test_gradients_that_are_not_finite_are_skipped() -> None:
    class Broken(learn.Lesson):
        def __init__(self) -> None:
            pass

        def correct(
            self, correction: Correction, turn: int = 0
        ) -> tuple[torch.Tensor, learn.Score]:
            loss = correction.network.last.bias.sum() * torch.inf
            return loss, learn.Score(1e4, 1.0, 1.0, 1.0)

    learning = learn.Learning(learn.Plan(blocks=[4]))
    learning._learn_from([Broken()], [0])
    assert all(bool(p.isfinite().all()) for p in learning.correction.parameters())
