"""The unrolled network."""

from __future__ import annotations

import numpy as np
import torch

from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.unrolled import network as network_module
from ptycho_tasks_torch.unrolled.network import FEATURES, UnrolledNetwork


def test_feature_maps_below_zero_go_on_learning():
    correction = UnrolledNetwork(steps=2, subsets=1, channels=4).correction
    torch.nn.init.ones_(correction.last.weight)
    for name, parameter in correction.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.constant_(parameter, -10.0)
    correction(torch.rand(1, FEATURES, 16, 16)).sum().backward()
    weights = [p for name, p in correction.named_parameters() if name.endswith("weight")]
    assert all(weight.grad.abs().amax() > 0 for weight in weights)


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
        monkeypatch.setattr(network_module, "TILE", 40)
        tiled = network.object(exposure)
    assert not torch.equal(tiled, whole)  # the tiles were taken
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-4)
    assert (whole - plain).abs().mean() > 0.1
