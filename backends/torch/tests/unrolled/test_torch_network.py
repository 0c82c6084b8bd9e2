"""The correction of what the physics steps lead to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptycho_tasks_torch import unet
from ptycho_tasks_torch.device import settings
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.threads import chunks_on_threads
from ptycho_tasks_torch.unrolled.correction import FEATURES, SPREAD, Correction, turn_canvas
from ptycho_tasks_torch.unrolled.network import (
    FEW_PHOTONS,
    UnrolledNetwork,
    reconstruct,
    take_up,
)


@pytest.fixture
def exposure() -> Exposure:
    """Frames of nothing in particular, on a canvas that is not square."""
    generator = np.random.default_rng(0)
    shape, N = (168, 136), 32
    places = [(0, *(int(generator.integers(n - N + 1)) for n in shape)) for _ in range(60)]
    amplitude, parts = (
        torch.from_numpy(generator.uniform(0, 1, (*outer, 60, N, N)).astype(np.float32))
        for outer in ((), (2,))
    )
    probes = torch.complex(*parts)[:, None]
    return Exposure(amplitude, probes, torch.tensor(places), 1, shape, radius=8.0, counts=2.0)


def make_network() -> UnrolledNetwork:
    """One that does something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UnrolledNetwork(4)
        for parameter in network.correction.network.last.parameters():
            torch.nn.init.normal_(parameter)
    return network


def test_feature_maps_below_zero_go_on_learning():
    network = Correction(channels=4).network
    torch.nn.init.ones_(network.last.weight)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.constant_(parameter, -10.0)
    network(torch.rand(1, FEATURES, 32, 32)).sum().backward()
    weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
    assert all(weight.grad.abs().amax() > 0 for weight in weights)


def test_a_fresh_correction_does_nothing(exposure):
    engine = reconstruct(exposure, 2)
    assert torch.equal(UnrolledNetwork(4).correct(engine, exposure), engine.canvas)


def test_large_maps_are_decoded_in_strips_to_the_same_bytes(monkeypatch):
    network = make_network().correction.network
    maps = torch.rand(1, FEATURES, 160, 64).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        whole = network(maps)
        monkeypatch.setattr(unet, "LARGE", 0)
        monkeypatch.setattr(unet, "STRIP", 48)
        assert torch.equal(network(maps), whole)


def test_a_correction_shrinks_with_the_noise(exposure):
    network, engine = make_network(), reconstruct(exposure, 2)
    changes = []
    for counts in (1.0, 1e4, float("inf")):
        object.__setattr__(exposure, "counts", counts)
        with torch.inference_mode():
            change = network.correct(engine, exposure) - engine.canvas
        changes.append(float(change.abs().mean()))
    assert changes[0] > 5 * changes[1] > 100 * changes[2]


@torch.inference_mode()
@pytest.mark.parametrize("photons", [FEW_PHOTONS / 2, FEW_PHOTONS * 2])
def test_few_photons_are_corrected_again_after_steps_from_the_first_time(exposure, photons):
    network, few = make_network(), photons < FEW_PHOTONS
    object.__setattr__(exposure, "counts", exposure.counts * photons / exposure.photons)
    engine = reconstruct(exposure, 2)
    first, *more = network.correct_in_turns(engine, exposure)
    assert torch.equal(first, network.correct(engine, exposure))
    assert len(more) == (1 if few else 0)
    for second in more:
        begun = take_up(exposure, first, engine)
        assert exposure.measure_misfit(begun.canvas) < exposure.measure_misfit(first)
        assert torch.equal(second, network.correct(begun, exposure, earlier=first))
        assert not torch.equal(second, network.correct(begun, exposure))


@torch.inference_mode()
def test_the_mean_over_quarter_turns_depends_on_none(exposure):
    network, engine = make_network(), reconstruct(exposure, 2)
    maps = engine.canvas, engine.show(), exposure.light
    turned = [turn_canvas(values, 1) for values in maps]

    def is_same(ways: int) -> bool:
        upright, lying = (
            network.correction(*some, exposure.counts, ways=ways) for some in (maps, turned)
        )
        return torch.allclose(lying, turn_canvas(upright, 1), atol=1e-4)

    assert is_same(4)
    assert not is_same(1)


@torch.inference_mode()
def test_a_correction_does_not_depend_on_the_number_of_threads():
    """On a canvas whose pixels no vectors hold, some products are rounded otherwise."""
    correction, shape = make_network().correction, (1, 182, 191)
    assert shape[1] * shape[2] > SPREAD
    wave = torch.randn(shape, dtype=torch.complex64)
    fields, light = torch.randn(4, *shape), torch.rand(shape)
    made = []
    for threads in (1, 3):
        with settings(TorchExecution(threads=threads)), chunks_on_threads():
            made.append(correction(1e-3 * wave, fields, light, 1.0))
    assert torch.equal(*made)
