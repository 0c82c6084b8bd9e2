"""The forward model against a plain second writing, and against what positions must mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.physics import forward
from ptycho_tasks.physics.forward import (
    expected_intensity,
    fourier_shift,
    illumination_of,
    patch_corners,
    probe_at,
    propagate,
)

N = 16


def intensities(
    object: NDArray[np.complex64],
    probe: NDArray[np.complex64],
    positions: NDArray[np.float64],
    origin: tuple[int, int] = (0, 0),
) -> NDArray[np.float32]:
    frames = np.full((len(positions), *probe.shape[-2:]), np.nan, np.float32)
    for chunk, intensity in expected_intensity(object, probe, positions, origin):
        frames[chunk] = intensity
    return frames


def gaussian(centre_yx: tuple[float, float], tilt: tuple[float, float]) -> NDArray[np.complex128]:
    """A tilted Gaussian spot: smooth, narrow, and not symmetric, so that no sign can hide."""
    y, x = np.mgrid[:N, :N]
    y, x = y - centre_yx[0], x - centre_yx[1]
    return np.asarray(np.exp(-(y**2 / 4 + x**2 / 5) + 1j * (tilt[0] * y + tilt[1] * x)))


SPOTS = (((8.0, 8.5), (0.3, -0.2)), ((7.5, 8.0), (-0.2, 0.1)))
"""(centre, tilt) of two modes."""


def probe_of(shift: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.complex128]:
    return np.stack(
        [gaussian((cy + shift[0], cx + shift[1]), tilt) for (cy, cx), tilt in SPOTS], axis=0
    )


def random_object(shape: tuple[int, int], seed: int = 0) -> NDArray[np.complex64]:
    generator = np.random.default_rng(seed)
    return (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(np.complex64)


def plain_intensity(
    object: NDArray[np.complex64], y: float, x: float, origin: tuple[int, int]
) -> NDArray[np.float64]:
    """One frame by the definition: explicit Fourier sums in double precision, no FFT."""
    row, column = round(y), round(x)
    probe = probe_of((y - row, x - column))
    top, left = row - N // 2 - origin[0], column - N // 2 - origin[1]
    q = np.arange(N) - N // 2
    waves = np.exp(-2j * np.pi * np.outer(q, np.arange(N)) / N) / np.sqrt(N)
    total = np.zeros((N, N))
    for mode in probe:
        wave = mode * object[top : top + N, left : left + N]
        total += np.abs(waves @ wave @ waves.T) ** 2
    return total


def test_equals_the_definition_on_a_non_square_object() -> None:
    origin, shape = (5, -3), (40, 57)
    object = random_object(shape)
    generator = np.random.default_rng(1)
    low = np.array(origin) + N // 2 + 1
    high = np.array(origin) + shape - N // 2 - 1
    positions = generator.uniform(low, high, (12, 2))
    found = intensities(object, probe_of().astype(np.complex64), positions, origin)
    expected = np.stack([plain_intensity(object, y, x, origin) for y, x in positions])
    np.testing.assert_allclose(found, expected, atol=1e-3 * expected.max())


@given(st.tuples(st.integers(8, 32), st.integers(8, 49)), st.integers(-9, 9), st.integers(-9, 9))
def test_a_bright_pixel_meets_the_probe_where_the_position_says(
    at: tuple[int, int], origin_y: int, origin_x: int
) -> None:
    """One bright pixel far from the diagonal: its frame's counts are the probe's there."""
    bright = (31, 12)
    object = np.zeros((40, 57), np.complex64)
    object[bright] = 2.0
    power = np.arange(1.0, N * N + 1).reshape(N, N)
    probe = np.sqrt(power)[None].astype(np.complex64)
    position = np.array([[at[0] + origin_y, at[1] + origin_x]], np.float64)
    counts = intensities(object, probe, position, (origin_y, origin_x)).sum()
    local = (bright[0] - at[0] + N // 2, bright[1] - at[1] + N // 2)
    lit = all(0 <= index < N for index in local)
    assert counts == pytest.approx(4 * power[local] if lit else 0.0, rel=1e-4, abs=1e-6)


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))
@settings(max_examples=25)
def test_a_fraction_moves_the_probe_towards_larger_indices(y: float, x: float) -> None:
    moved = probe_at(probe_of().astype(np.complex64), (y, x))
    np.testing.assert_allclose(moved, probe_of((y, x)), atol=1e-3)


def test_a_shift_by_whole_pixels_is_a_roll() -> None:
    field = random_object((6, 10))
    np.testing.assert_allclose(
        fourier_shift(field, (2, -3)), np.roll(field, (2, -3), (0, 1)), atol=1e-5
    )


def test_shifts_broadcast_over_frames_and_modes() -> None:
    probe = probe_of().astype(np.complex64)
    fractions = np.array([[0.25, -0.5], [0.0, 0.125], [-0.3, 0.4]])
    moved = probe_at(probe, fractions)
    assert moved.shape == (3, 2, N, N)
    assert moved.dtype == np.complex64
    np.testing.assert_allclose(moved[2], probe_at(probe, fractions[2]), atol=1e-6)


def test_modes_add_as_intensities() -> None:
    object, probe = random_object((30, 44)), probe_of().astype(np.complex64)
    positions = np.array([[12.3, 30.6], [20.5, 11.2]])
    together = intensities(object, probe, positions)
    apart = sum(intensities(object, mode[None], positions) for mode in probe)
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-6)


def test_modes_do_not_interfere() -> None:
    """A mode and its negative cancel as waves, never as intensities."""
    object, mode = random_object((30, 44)), probe_of()[:1].astype(np.complex64)
    position = np.array([[12.3, 30.6]])
    pair = intensities(object, np.concatenate([mode, -mode]), position)
    np.testing.assert_allclose(pair, 2 * intensities(object, mode, position), rtol=1e-5)


def test_the_zero_frequency_lies_in_the_centre_and_counts_are_kept() -> None:
    flat = np.ones((1, N, N), np.complex64)
    far = np.abs(propagate(flat)[0]) ** 2
    assert far[N // 2, N // 2] == pytest.approx(N * N)
    object, probe = random_object((30, 44)), probe_of().astype(np.complex64)
    frame = intensities(object, probe, np.array([[9.0, 31.0]]))[0]
    wave = probe * object[1 : 1 + N, 23 : 23 + N]
    assert frame.sum() == pytest.approx(np.sum(np.abs(wave) ** 2), rel=1e-5)


def test_chunks_cover_every_frame_once(monkeypatch: pytest.MonkeyPatch) -> None:
    object, probe = random_object((30, 44)), probe_of().astype(np.complex64)
    positions = np.random.default_rng(2).uniform(9, 20, (7, 2))
    whole = intensities(object, probe, positions)
    monkeypatch.setattr(forward, "CHUNK_PIXELS", 3 * probe.size)
    chunks = [chunk for chunk, _ in expected_intensity(object, probe, positions)]
    assert chunks == [slice(0, 3), slice(3, 6), slice(6, 7)]
    np.testing.assert_allclose(intensities(object, probe, positions), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outside", [(7.0, 20.0), (23.0, 20.0), (15.0, 7.4), (15.0, 37.0)])
def test_a_patch_outside_the_object_is_refused(outside: tuple[float, float]) -> None:
    positions = np.array([(15.0, 20.0), outside])
    with pytest.raises(ScanError, match=r"1 of 2 patches .* 30 x 44 pixels, first frame 1 "):
        intensities(random_object((30, 44)), probe_of().astype(np.complex64), positions)


def test_patches_may_touch_the_border() -> None:
    positions = np.array([[8.0, 8.0], [22.0, 36.0]])
    corners, fractions = patch_corners(positions, N, (0, 0), (30, 44))
    assert corners.tolist() == [[0, 0], [14, 28]]
    assert not fractions.any()


def test_illumination_lies_where_the_patches_lie() -> None:
    probe = probe_of().astype(np.complex64)
    light = illumination_of(probe, np.array([[18.2, 9.9], [12.0, 40.0]]), (3, 1), (30, 50))
    power = np.sum(np.abs(probe) ** 2, axis=0)
    expected = np.zeros((30, 50))
    expected[7 : 7 + N, 1 : 1 + N] += power
    expected[1 : 1 + N, 31 : 31 + N] += power
    np.testing.assert_allclose(light, expected, rtol=1e-6)
