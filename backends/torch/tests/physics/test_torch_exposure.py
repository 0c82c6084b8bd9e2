"""Frames on canvases: the physics step, written a second way, and its derivative."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from ptycho_tasks.physics.forward import fourier_shift
from ptycho_tasks_torch.physics import exposure as module
from ptycho_tasks_torch.physics.exposure import DARK, Exposure, morton_order


def random_complex(generator, *shape) -> torch.Tensor:
    made = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    return torch.from_numpy(made.astype(np.complex64))


def exposed(
    seed: int,
    modes: int = 2,
    frames: int = 7,
    N: int = 6,
    shape: tuple[int, int] = (12, 15),
) -> tuple[Exposure, torch.Tensor]:
    """Frames at random places on two canvases, and an object there."""
    generator = np.random.default_rng(seed)
    places = [
        (int(generator.integers(2)), *(int(generator.integers(n - N + 1)) for n in shape))
        for _ in range(frames)
    ]
    amplitude = torch.from_numpy(generator.uniform(0.2, 2, (frames, N, N)).astype(np.float32))
    probes = random_complex(generator, frames, modes, N, N)
    made = Exposure(amplitude, probes, torch.tensor(places), 2, shape)
    return made, random_complex(generator, 2, *shape)


def in_double(exposure: Exposure) -> Exposure:
    return replace(
        exposure,
        amplitude=exposure.amplitude.double(),
        probes=exposure.probes.to(torch.complex128),
    )


@pytest.mark.parametrize("modes", [1, 3])
def test_a_step_is_what_plain_numpy_makes_of_the_formula(modes, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PIXELS", 80)  # several chunks
    exposure, canvas = exposed(3, modes)
    total = np.zeros(canvas.shape, complex)
    light = np.zeros(canvas.shape)
    for (b, y, x), A, P in zip(
        exposure.places.tolist(), exposure.amplitude.numpy(), exposure.probes.numpy(), strict=True
    ):
        at = (b, slice(y, y + 6), slice(x, x + 6))
        far = np.fft.fft2(P * canvas.numpy()[at], norm="ortho")
        modulus = np.sqrt((np.abs(far) ** 2).sum(axis=0) + DARK)
        back = np.fft.ifft2(far * (A / modulus - 1), norm="ortho")
        total[at] += (P.conj() * back).sum(axis=0)
        light[at] += (np.abs(P) ** 2).sum(axis=0)
    np.testing.assert_allclose(exposure.correction(canvas).numpy(), total, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(exposure.light.numpy(), light, rtol=1e-5)


@pytest.mark.parametrize("modes", [1, 3])
def test_derivatives_by_the_object_are_those_of_finite_differences(modes, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PIXELS", 1)  # a frame in each chunk
    exposure, canvas = exposed(4, modes, frames=2, N=4, shape=(6, 7))
    exposure = in_double(exposure)
    inputs = canvas.to(torch.complex128).requires_grad_()

    assert torch.autograd.gradcheck(exposure.predict, inputs)


@pytest.mark.parametrize("modes", [1, 3])
def test_steps_of_object_and_probe_are_what_plain_numpy_makes_of_the_formula(modes, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PIXELS", 80)
    exposure, canvas = exposed(3, modes)
    fractions = np.random.default_rng(1).uniform(-0.5, 0.5, (7, 2)).astype(np.float32)
    square, of_object, change = exposure.joint_correction(canvas, torch.from_numpy(fractions))
    total, misfit = np.zeros((modes, 6, 6), complex), 0.0
    for (b, y, x), A, P, fraction in zip(
        exposure.places, exposure.amplitude.numpy(), exposure.probes.numpy(), fractions, strict=True
    ):
        patch = canvas.numpy()[b, y : y + 6, x : x + 6]
        far = np.fft.fft2(P * patch, norm="ortho")
        modulus = np.sqrt((np.abs(far) ** 2).sum(axis=0) + DARK)
        back = patch.conj() * np.fft.ifft2(far * (A / modulus - 1), norm="ortho")
        total += fourier_shift(back, -fraction)
        misfit += ((A - modulus) ** 2).sum()
    np.testing.assert_allclose(change.numpy(), total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_object, exposure.correction(canvas))
    assert square == pytest.approx(misfit, rel=1e-5)


def test_the_true_object_tells_the_light_of_each_frame(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PIXELS", 80)  # several chunks
    exposure, canvas = exposed(6, frames=9)
    light = torch.linspace(0.2, 3, 9)
    amplitude = exposure.brighten(light).predict(canvas)
    amplitude[2, 1:4, 2] = torch.nan
    measured = replace(exposure, amplitude=amplitude, has_bad_pixels=True, counts=50.0)
    measured = replace(measured, amplitude=(amplitude**2 - exposure.dark + measured.dark).sqrt())
    found, variance = measured.measure_flux(canvas)
    torch.testing.assert_close(found, light, atol=1e-4, rtol=1e-4)
    photons = 50.0 * (amplitude**2 - exposure.dark).nan_to_num().sum(dim=(1, 2)) / light
    torch.testing.assert_close(variance, 1 / photons, atol=0, rtol=1e-3)


def test_the_true_object_tells_the_background(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_PIXELS", 80)  # several chunks
    exposure, canvas = exposed(6, frames=9)
    amplitude = exposure.cover(torch.full((6, 6), 0.3)).predict(canvas)
    amplitude[2, 1:4, 2] = torch.nan
    measured = replace(exposure, amplitude=amplitude, has_bad_pixels=True, counts=50.0)
    measured = replace(measured, amplitude=(amplitude**2 - exposure.dark + measured.dark).sqrt())
    covered = measured.cover(torch.full((6, 6), 0.3))
    for guess in (0.0, 0.2, 0.3, 0.4):
        guessed = measured.cover(torch.full((6, 6), guess)) if guess else measured
        found, gain = guessed.measure_background(canvas)
        torch.testing.assert_close(found, torch.full((6, 6), 0.3), atol=0, rtol=1e-3)
        lowers = guessed.measure_misfit(canvas) - covered.measure_misfit(canvas)
        assert gain == pytest.approx(lowers, rel=1, abs=1e-8)
    assert covered.measure_misfit(canvas) < 1e-9
    assert covered.correction(canvas).abs().max() < 1e-4
    assert measured.correction(canvas).abs().max() > 1e-2
    light, variance = covered.measure_flux(canvas)
    torch.testing.assert_close(light, torch.ones(9), atol=1e-4, rtol=1e-4)
    assert (variance > measured.measure_flux(canvas)[1] * light).all()


def test_a_background_is_smooth_and_never_negative():
    exposure, canvas = exposed(5, frames=60, N=32, shape=(40, 48))
    y = torch.fft.fftfreq(32)[:, None]
    slope = (0.8 + y).expand(32, 32)
    noise = 0.4 * torch.rand(60, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.2
    square = exposure.cover(slope).predict(canvas).square() + noise
    found, _ = replace(exposure, amplitude=square.sqrt()).measure_background(canvas)
    inner = y.squeeze().abs() < 0.35
    torch.testing.assert_close(found[inner], slope[inner], atol=0.05, rtol=0)
    darker = replace(exposure, amplitude=0.5 * exposure.predict(canvas))
    assert darker.measure_background(canvas)[0].max() == 0
    unmeasured = replace(exposure, amplitude=square.sqrt() * torch.nan, has_bad_pixels=True)
    unmeasured.amplitude[:, 3, 3] = 1.0
    assert unmeasured.measure_background(canvas)[0].isfinite().all()


def test_the_true_object_is_not_corrected():
    exposure, canvas = exposed(5)
    measured = replace(exposure, amplitude=exposure.predict(canvas))
    assert measured.correction(canvas).abs().max() < 1e-4
    assert exposure.correction(canvas).abs().max() > 1


def test_a_divergence_is_least_for_the_right_object_where_photons_are_few():
    """The distance of roots of counts is least for a darker one."""
    exposure, canvas = exposed(5, frames=60, N=16, shape=(20, 24))
    # A tenth of a photon a pixel.
    faint = replace(exposure, counts=0.1 / float(exposure.predict(canvas).square().mean()))
    light = (faint.predict(canvas).square() - faint.dark).numpy() * faint.counts
    photons = np.random.default_rng(0).poisson(light.clip(0)) / faint.counts + faint.dark
    measured = replace(faint, amplitude=torch.from_numpy(np.sqrt(photons).astype(np.float32)))

    def find_least(measure) -> float:
        factors = np.linspace(0.8, 1.2, 21)
        return factors[np.argmin([measure(factor * canvas) for factor in factors])]

    assert find_least(measured.measure_divergence) == pytest.approx(1, abs=0.03)
    assert find_least(measured.measure_misfit) < 0.9
    bright = replace(exposure, amplitude=1.001 * exposure.predict(canvas))
    assert bright.measure_divergence(canvas) == pytest.approx(
        bright.measure_misfit(canvas), rel=0.01
    )


@given(
    places=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 300), st.integers(0, 300)),
        min_size=4,
        max_size=60,
        unique=True,
    ),
    seed=st.integers(0, 100),
)
def test_an_order_of_places_does_not_depend_on_that_of_the_frames_or_on_where_they_lie(
    places, seed
):
    mixed = np.random.default_rng(seed).permutation(len(places)).tolist()
    shuffled = [places[frame] for frame in mixed]
    moved = [(b, y + 17, x + 5) for b, y, x in places]
    order = morton_order(torch.tensor(places))
    ordered = [places[frame] for frame in order]
    assert [shuffled[frame] for frame in morton_order(torch.tensor(shuffled))] == ordered
    assert morton_order(torch.tensor(moved)) == order
    assert sorted(order) == list(range(len(places)))


def test_frames_that_take_turns_are_spread_evenly_and_each_has_one():
    N, amplitude = 4, torch.zeros(256, 4, 4)
    places = [[0, y, x] for y in range(0, 64, 4) for x in range(0, 64, 4)]
    probes = torch.ones(256, 1, N, N) + 0j
    exposure = Exposure(amplitude, probes, torch.tensor(places), 1, (64, 64))
    turns = exposure.split_in_turns(4)
    assert sorted(place for turn in turns for place in turn.places.tolist()) == places
    for turn in turns:
        # One of every 2 x 2 neighbours.
        assert {(y // 8, x // 8) for _, y, x in turn.places.tolist()} == {
            (y, x) for y in range(8) for x in range(8)
        }
