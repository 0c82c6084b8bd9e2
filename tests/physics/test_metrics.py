"""Scores against a ground truth, and the misfit to the data."""

from __future__ import annotations

import json
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError, TrainingError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics import forward
from ptycho_tasks.physics.forward import expected_intensity, fourier_shift
from ptycho_tasks.physics.metrics import (
    HALVES_LEVEL,
    SCORES,
    Half,
    Misfit,
    Reference,
    align,
    correlate_halves,
    data_misfit,
    find_fall,
    frc50,
    ring_curves,
    scanned_box,
    score,
)
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData

N = 32


@cache
def scan() -> ScanData:
    return simulate(SimulationOptions(size=N, grid=16, step=5.0, photons=1e5, seed=1))


def truth() -> NDArray[np.complex64]:
    found = scan().object
    assert found is not None
    return found


def scores(object: NDArray[Any], origin: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    return score(object.astype(np.complex64), origin, truth(), scan().positions, N)


def ramp(y: float, x: float) -> NDArray[np.complex128]:
    rows, columns = truth().shape
    return np.exp(1j * (y * np.arange(rows)[:, None] + x * np.arange(columns)))


def test_a_perfect_object_scores_one() -> None:
    found = scores(truth())
    for name in ("amplitude_ssim", "phase_ssim", "frc50"):
        assert found[name] == pytest.approx(1.0, abs=1e-9)
    assert found["amplitude_mae"] == pytest.approx(0.0, abs=1e-12)
    # Without any error a PSNR is infinite, which JSON does not know.
    assert found["amplitude_psnr_db"] is None or found["amplitude_psnr_db"] > 200
    assert list(found) == list(SCORES)
    json.dumps(found, allow_nan=False)


@given(
    scale=st.floats(0.1, 30.0),
    turn=st.floats(-np.pi, np.pi),
    slopes=st.tuples(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0)),
)
@settings(max_examples=20)
def test_scale_phase_and_ramp_are_removed(
    scale: float, turn: float, slopes: tuple[float, float]
) -> None:
    found = scores(truth() * scale * np.exp(1j * turn) * ramp(*slopes))
    assert found["amplitude_ssim"] > 0.99999
    assert found["phase_ssim"] > 0.99999
    assert found["frc50"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shift", [(0.3, -0.4), (0.05, 0.02), (1.3, -0.9)])
def test_a_small_shift_is_removed_even_under_a_ramp(shift: tuple[float, float]) -> None:
    moved = fourier_shift(truth(), shift) * ramp(0.4, -1.1) * (2 - 3j)
    found = scores(moved)
    assert found["amplitude_ssim"] > 0.995
    assert found["phase_ssim"] > 0.995
    assert found["amplitude_psnr_db"] > 45


def test_a_large_shift_is_an_error() -> None:
    assert scores(np.roll(truth(), (5, -4), (0, 1)))["amplitude_ssim"] < 0.6


def test_the_origin_places_the_object() -> None:
    assert scores(truth()[3:-2, 5:], origin=(3, 5))["amplitude_ssim"] > 0.999999
    assert scores(truth()[3:-2, 5:], origin=(0, 5))["amplitude_ssim"] < 0.9


def test_only_the_scanned_box_counts() -> None:
    rows, columns = scanned_box(scan().positions, N)
    outside = np.ones(truth().shape, bool)
    outside[rows, columns] = False
    spoiled = truth().copy()
    spoiled[outside] = 17.0 - 4.0j
    assert scores(spoiled)["amplitude_ssim"] > 0.999999
    inside = truth().copy()
    inside[rows, columns][:, :20] = 0.2
    assert scores(inside)["amplitude_ssim"] < 0.95


def test_the_box_spans_the_patch_centres_and_never_vanishes() -> None:
    assert scanned_box(np.array([[20.2, 30.0], [50.9, 90.5]]), 16) == (slice(21, 51), slice(30, 91))
    assert scanned_box(np.array([[20.0, 30.0]]), 16) == (slice(16, 24), slice(26, 34))


def test_worse_objects_score_lower() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=truth().shape) + 1j * generator.normal(size=truth().shape)
    ladder = [scores(truth() + level * noise) for level in (0.01, 0.05, 0.2, 1.0)]
    for name in ("amplitude_ssim", "phase_ssim", "amplitude_psnr_db", "phase_psnr_db", "frc50"):
        values = [entry[name] for entry in ladder]
        assert values == sorted(values, reverse=True), name
    errors = [entry["phase_mae_rad"] for entry in ladder]
    assert errors == sorted(errors)


@pytest.mark.parametrize("value", [1.0, 0.0])
def test_a_flat_object_scores_low(value: float) -> None:
    found = scores(np.full(truth().shape, value))
    assert found["amplitude_ssim"] < 0.4
    assert found["phase_ssim"] < 0.4
    assert found["frc50"] < 0.1


def test_the_conjugate_is_wrong() -> None:
    found = scores(truth().conj())
    assert found["phase_ssim"] < 0.5
    assert found["frc50"] < 0.1


def test_a_blur_costs_resolution() -> None:
    from scipy.ndimage import gaussian_filter

    sharp, soft = (
        scores(gaussian_filter(truth().real, s) + 1j * gaussian_filter(truth().imag, s))["frc50"]
        for s in (0.5, 2.5)
    )
    assert soft < 0.8 < sharp


def test_alignment_adds_nothing_of_the_truth() -> None:
    """What is removed has seven numbers; noise stays noise."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=truth().shape) + 1j * generator.normal(size=truth().shape)
    box = scanned_box(scan().positions, N)
    aligned = align(noise.astype(np.complex64), truth(), box)
    wanted = truth()[box]
    overlap = abs(np.vdot(aligned, wanted)) / np.linalg.norm(aligned) / np.linalg.norm(wanted)
    assert overlap < 0.1
    assert scores(noise)["frc50"] < 0.2


def test_alignment_leaves_its_input_alone() -> None:
    object = truth().copy()
    align(object, truth(), scanned_box(scan().positions, N))
    assert np.array_equal(object, truth())


def test_nothing_to_compare_gives_none() -> None:
    spoiled = truth().copy()
    spoiled[0, 0] = np.nan
    assert scores(spoiled) == dict.fromkeys(SCORES)
    flat = np.ones_like(truth())
    found = score(truth(), (0, 0), flat, scan().positions, N)
    assert found["amplitude_ssim"] is None
    assert found["amplitude_psnr_db"] is None
    assert found["frc50"] is None


@pytest.mark.parametrize("origin", [(60, 0), (-60, 0), (0, 60)])
def test_an_object_that_does_not_cover_the_box_is_refused(origin: tuple[int, int]) -> None:
    with pytest.raises(ScanError, match=r"reconstruction .* does not cover the scanned box"):
        scores(truth(), origin)


def test_a_truth_that_does_not_cover_the_box_is_refused() -> None:
    with pytest.raises(ScanError, match=r"ground truth .* does not cover the scanned box"):
        score(truth(), (0, 0), truth()[:50], scan().positions, N)


def test_frc_of_equal_and_of_unrelated_fields() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 64, 80)) + 1j * generator.normal(size=(2, 64, 80))
    assert frc50(one, one) == 1.0
    unrelated = frc50(one, other)
    assert unrelated is not None
    assert unrelated < 0.2
    assert frc50(one, np.full_like(one, 3.0)) is None


def test_halves_of_the_frames_tell_where_all_of_them_resolve() -> None:
    """Noise grows with the frequency; halves at 1/7 are all frames at 0.5 with the truth."""
    generator = np.random.default_rng(0)
    side, size = 128, 16
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    level = 0.02 * np.exp(12 * frequency)

    def blur(strength: Any) -> NDArray[np.complex128]:
        field = generator.normal(size=(side, side)) + 1j * generator.normal(size=(side, side))
        return np.asarray(np.fft.ifft2(np.fft.fft2(field) * strength))

    wanted = 1 + blur(0.1)
    noisy = [(wanted + blur(0.1 * level)).astype(np.complex64) for _ in range(2)]
    ends = np.array([[8.0, 8.0], [119.0, 119.0]])
    first = Half(noisy[0], (0, 0), ends)
    second = Half(noisy[1][3:, 2:], (3, 2), ends)
    halves = correlate_halves(first, second, size)
    _, whole = ring_curves(
        np.mean(noisy, axis=0, dtype=np.complex64), (0, 0), wanted.astype(np.complex64), ends, size
    )
    assert halves is not None
    assert whole is not None
    fall = find_fall(halves, HALVES_LEVEL)
    assert 0.3 < fall < 0.9
    assert fall == pytest.approx(find_fall(whole, 0.5), abs=0.05)


def plain_misfit(
    intensity: NDArray[np.float64], amplitude: NDArray[np.float64]
) -> tuple[float, float, NDArray[np.float64]]:
    """R factor, deviance and residuals by their definitions."""
    error = np.abs(np.sqrt(intensity) - amplitude)
    counts = amplitude**2
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.where(counts > 0, counts * np.log(counts / intensity), 0.0)
    deviance = 2 * (intensity - counts + logarithm)
    share = error.sum(axis=(1, 2)) / amplitude.sum() * len(amplitude)
    return error.sum() / amplitude.sum(), deviance.mean(), share


def test_the_misfit_is_what_it_says() -> None:
    object = truth() * np.exp(0.1j)
    object[::3] *= 0.9
    pairs = expected_intensity(object, scan().probe, scan().positions)
    intensity = np.concatenate([frames for _, frames in pairs]).astype(np.float64)
    expected = plain_misfit(np.maximum(intensity, 1e-6), scan().diffraction.astype(np.float64))
    found = data_misfit(object, (0, 0), scan().probe, scan().positions, scan().diffraction)
    assert found.r_factor == pytest.approx(expected[0], rel=1e-6)
    assert found.poisson_deviance == pytest.approx(expected[1], rel=1e-6)
    np.testing.assert_allclose(found.residual, expected[2], rtol=1e-5)
    assert found.residual.dtype == np.float32
    assert found.residual.mean() == pytest.approx(found.r_factor, rel=1e-5)


def test_only_noise_is_left_of_the_truth() -> None:
    """The truth's misfit is that of fresh noise on the same expectation."""
    pairs = expected_intensity(truth(), scan().probe, scan().positions)
    intensity = np.concatenate([frames for _, frames in pairs])
    noisy = np.sqrt(np.random.default_rng(0).poisson(intensity)).astype(np.float32)
    fresh, found = (
        data_misfit(truth(), (0, 0), scan().probe, scan().positions, frames)
        for frames in (noisy, scan().diffraction)
    )
    assert found.poisson_deviance == pytest.approx(fresh.poisson_deviance, rel=0.02)
    assert found.r_factor == pytest.approx(fresh.r_factor, rel=0.02)


@pytest.mark.parametrize("photons", [1e3, 1e4, 1e6, 1e9])
def test_noise_alone_is_foreseen(photons: float) -> None:
    """What stands under `noise` is what the truth has, whatever the dose."""
    made = simulate(SimulationOptions(size=32, grid=8, step=4, jitter=1, photons=photons))
    assert made.object is not None
    found = data_misfit(made.object, (0, 0), made.probe, made.positions, made.diffraction)
    assert found.noise.r_factor == pytest.approx(found.r_factor, rel=0.02)
    assert found.noise.poisson_deviance == pytest.approx(found.poisson_deviance, rel=0.02)
    assert not found.is_poor
    assert not found.explains_nothing


@pytest.mark.parametrize("counts", [0.0, 0.05, 0.3, 2.0])
def test_light_that_is_in_all_pixels_alike_is_a_background(counts: float) -> None:
    made = simulate(SimulationOptions(size=N, grid=8, step=4.0, photons=1e4, probe_radius=9))
    assert made.object is not None
    generator, square = np.random.default_rng(0), np.square(made.diffraction)
    frames = np.sqrt(square + generator.poisson(counts, square.shape)).astype(np.float32)
    frames[:, 4:6, 9] = np.nan
    found = data_misfit(made.object, (0, 0), made.probe, made.positions, frames).background
    light = np.nanmean(np.square(frames))
    assert found == pytest.approx(counts / light, rel=0.1)


@pytest.mark.parametrize(
    ("r_factor", "noise", "ratio", "is_poor"),
    [
        (0.078, 0.046, 3.8, False),  # measured, by a guessed probe
        (0.159, 0.113, 3.3, False),
        (0.01, 0.001, 100, False),  # steps that are not quite done
        (0.4, 0.395, 4.5, False),
        (0.1, 0.046, 6.0, True),
        (0.08, 0.001, 1000, True),
    ],
)
def test_what_more_than_noise_must_explain(
    r_factor: float, noise: float, ratio: float, is_poor: bool
) -> None:
    flat = Reference(1.0, 100 * ratio)
    found = Misfit(r_factor, ratio, np.zeros(1, np.float32), flat, Reference(noise, 1.0))
    assert found.is_poor == is_poor


def test_a_flat_object_whose_light_bad_pixels_hide() -> None:
    made = simulate(SimulationOptions(size=32, grid=6, step=4, probe="defocused"))
    assert made.object is not None
    frames = made.diffraction.copy()
    frames[:, 3:30, 3:30] = np.nan
    found = data_misfit(made.object, (0, 0), made.probe, made.positions, frames)
    assert np.isfinite(found.flat).all()
    assert found.r_factor < found.flat.r_factor


@pytest.mark.parametrize("photons", [1e4, 1e8])
def test_the_flat_object_is_the_best_one(photons: float) -> None:
    made = simulate(SimulationOptions(size=32, grid=5, step=4, jitter=1, photons=photons))
    assert made.object is not None
    shape = made.object.shape
    flats = [
        data_misfit(
            np.full(shape, c, np.complex64), (0, 0), made.probe, made.positions, made.diffraction
        )
        for c in np.geomspace(0.1, 1.5, 200)
    ]
    for name in ("r_factor", "poisson_deviance"):
        best = min(getattr(flat, name) for flat in flats)
        assert getattr(flats[0].flat, name) == pytest.approx(best, rel=0.005)
    assert all(flat.explains_nothing for flat in flats if flat.r_factor > 1.1 * flat.noise.r_factor)


def test_an_object_of_other_frames_explains_nothing() -> None:
    wrong = np.roll(truth(), (30, 40), (0, 1)) * np.float32(1.3)
    found = data_misfit(wrong, (0, 0), scan().probe, scan().positions, scan().diffraction)
    assert found.explains_nothing


def test_the_origin_moves_the_misfit_too() -> None:
    whole = data_misfit(truth(), (0, 0), scan().probe, scan().positions, scan().diffraction)
    part = data_misfit(truth()[1:, 2:], (1, 2), scan().probe, scan().positions, scan().diffraction)
    assert part.r_factor == pytest.approx(whole.r_factor, rel=1e-6)


def test_light_that_differs_is_no_misfit_where_it_is_known() -> None:
    flux = np.linspace(0.5, 2, scan().frame_count).astype(np.float32)
    frames = scan().diffraction * np.sqrt(flux)[:, None, None]
    same = data_misfit(truth(), (0, 0), scan().probe, scan().positions, scan().diffraction)
    found = data_misfit(truth(), (0, 0), scan().probe, scan().positions, frames, flux)
    assert found.r_factor == pytest.approx(same.r_factor, rel=0.05)
    blind = data_misfit(truth(), (0, 0), scan().probe, scan().positions, frames)
    assert blind.r_factor > 1.5 * found.r_factor


def test_a_background_is_no_misfit_where_it_is_known() -> None:
    counts = np.square(scan().diffraction)
    level = np.full(counts.shape[1:], 0.2 * counts.mean(), dtype=np.float32)
    frames = np.sqrt(counts + np.random.default_rng(0).poisson(level, counts.shape))
    others = truth(), (0, 0), scan().probe, scan().positions, frames
    found, blind = (data_misfit(*others, None, background) for background in (level, None))
    assert found.noise_ratio == pytest.approx(1, abs=0.1)
    assert found.background == 0
    assert blind.noise_ratio > 2 * found.noise_ratio
    assert blind.background == pytest.approx(0.2 / 1.2, rel=0.1)


def test_a_bad_frame_shows_in_its_residual() -> None:
    frames = scan().diffraction.copy()
    frames[77] = frames[77, ::-1, ::-1] + 3.0
    found = data_misfit(truth(), (0, 0), scan().probe, scan().positions, frames)
    assert int(np.argmax(found.residual)) == 77
    assert found.deviances.mean() == pytest.approx(found.poisson_deviance, rel=1e-5)


@pytest.mark.parametrize(("count", "told"), [(1, True), (40, True), (60, False)])
def test_frames_that_are_far_worse_than_the_others(count: int, told: bool) -> None:
    """One pixel of each, which hardly changes the R-factor; not half of all frames."""
    deviances = np.ones(100, np.float32)
    deviances[:count] = 500.0
    noise = Reference(0.067, 1.0)
    for r_factor, is_seen in ((0.07, told), (0.068, False)):
        found = Misfit(r_factor, float(deviances.mean()), deviances, noise, noise, deviances)
        assert found.far_off.tolist() == [*range(count if is_seen else 0)]
    deviances[:count] = 11.0 if count == 1 else 1.0
    assert not len(Misfit(0.07, 1.1, deviances, noise, noise, deviances).far_off)


@pytest.mark.parametrize(
    ("factors", "error", "expected"),
    [
        ((1, 1, 0), ScanError, "every frame is dark"),
        ((1e30, 1, 1), TrainingError, r"not finite .* largest \|object\| is 1e\+30"),
        ((1, 1e30, 1), TrainingError, "not finite"),
        ((np.nan, 1, 1), TrainingError, "not finite"),
    ],
)
def test_an_undefined_misfit_is_refused(
    factors: tuple[float, float, float], error: type[Exception], expected: str
) -> None:
    object, probe, frames = (
        array * np.float32(factor)
        for array, factor in zip((truth(), scan().probe, scan().diffraction), factors, strict=True)
    )
    with pytest.raises(error, match=expected):
        data_misfit(object, (0, 0), probe, scan().positions, frames)


def test_an_empty_frame_among_others_has_a_residual() -> None:
    frames = scan().diffraction.copy()
    frames[5] = 0
    found = data_misfit(truth(), (0, 0), scan().probe, scan().positions, frames)
    assert np.isfinite(found.residual).all()


def test_frames_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory-mapped scan is never held whole."""
    size, count = 64, 1000
    monkeypatch.setattr(forward, "CHUNK_PIXELS", 8 * size**2)
    np.save(tmp_path / "frames.npy", np.ones((count, size, size), np.float32))
    frames = np.load(tmp_path / "frames.npy", mmap_mode="r")
    positions = np.random.default_rng(0).uniform(33, 60, (count, 2))
    probe = np.ones((1, size, size), np.complex64)
    tracemalloc.start()
    data_misfit(np.ones((128, 128), np.complex64), (0, 0), probe, positions, frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < frames.nbytes / 4
