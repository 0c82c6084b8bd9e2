"""Simulated scans that the prior is learned from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_tasks_torch.frames import textures
from ptycho_tasks_torch.frames.textures import KINDS, RARER_KINDS, TexturePool, make_texture
from ptycho_tasks_torch.prior import family
from ptycho_tasks_torch.prior.family import Scenario, draw_scenario
from ptycho_tasks_torch.prior.probes import RADII, draw_probe, measure_radius

QUICK = ("noise", "particles")


def draw(number: int) -> Scenario:
    return draw_scenario(np.random.default_rng(number), TexturePool(0, QUICK), number)


@pytest.mark.parametrize("kind", sorted({*KINDS, *RARER_KINDS}))
def test_each_texture_has_contrast_from_0_to_1(kind: str) -> None:
    texture = make_texture(kind, np.random.default_rng(3))
    assert texture.shape == (textures.SIDE, textures.SIDE)
    assert texture.min() == 0
    assert texture.max() == 1


def test_pool_draws_the_same_whether_or_not_it_drew_the_ones_before() -> None:
    used = TexturePool(0, QUICK)
    for number in range(20):
        last = used.draw(np.random.default_rng(number), (40, 64), number)
    fresh = TexturePool(0, QUICK).draw(np.random.default_rng(19), (40, 64), 19)
    assert np.array_equal(last, fresh)
    assert np.abs(last).max() <= 1


@pytest.mark.parametrize("rare", [False, True])
def test_probes_fit_their_frame_and_some_have_several_modes(rare: bool) -> None:
    probes = [draw_probe(np.random.default_rng(seed), 64, rare=rare) for seed in range(30)]
    for probe in probes:
        assert np.linalg.norm(probe) == pytest.approx(1, rel=1e-5)
        assert RADII[0] < measure_radius(probe) < RADII[1] + 2  # weaker modes are wider
    assert {len(probe) for probe in probes} >= {1, 2}


def test_scan_without_faults_is_explained_by_its_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "FAULTY", 0)
    for number in range(4):
        scenario = draw(number)
        exposure = scenario.exposure
        assert float(exposure.amplitude.square().mean() - exposure.dark) == pytest.approx(
            1, rel=1e-3
        )
        error = exposure.predict(scenario.truth).square() - exposure.amplitude.square()
        # Poisson: the variance is the mean.
        assert float(error.square().mean()) * scenario.exposure.counts == pytest.approx(1, rel=0.3)


def test_scan_with_faults_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "FAULTY", 1)
    monkeypatch.setattr(family, "PHOTONS", (8.9, 8.9, 9.0))
    scenario = draw(1)
    error = scenario.exposure.predict(scenario.truth) - scenario.exposure.amplitude
    assert 1e-3 < float(error.square().mean().sqrt()) < 0.3


def test_same_seed_gives_the_same_scan() -> None:
    first, second = draw(5), draw(5)
    assert torch.equal(first.exposure.amplitude, second.exposure.amplitude)
    assert torch.equal(first.exposure.probes, second.exposure.probes)
    assert torch.equal(first.truth, second.truth)
