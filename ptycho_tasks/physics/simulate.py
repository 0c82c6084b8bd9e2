"""A seeded synthetic scan with a known ground truth, for the demo and for training.

Object, positions and noise draw from independent random streams: another photon count gives
the same object at the same positions, another object the same positions.

Axis letters:  M frames,  N patch side,  H, W object grid,  L lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.scan import ScanData

Image = NDArray[np.float64]


def simulate(options: SimulationOptions, *, name: str | None = None) -> ScanData:
    """Simulate a jittered raster scan with Poisson noise.

    The same options give byte-identical arrays.

    Args:
        options: what to simulate.
        name: the scan's name; None makes one from the options.

    Returns:
        A scan of M = grid**2 frames; `object` is the ground truth and `probe` carries the flux,
        so that a frame has `options.photons` expected counts on average.
    """
    for_object, for_positions, for_noise = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(options.seed).spawn(3)
    )
    positions = raster(options, for_positions)
    truth = make_object(options, for_object)
    probe = make_probe(options)
    name = name or f"simulated_{options.object}_{options.probe}_seed{options.seed}"
    scan = measure(truth, probe, positions, options.photons, for_noise, name)
    return without_pixels(scan, make_bad_pixels(options)) if options.bad_pixels else scan


def make_bad_pixels(options: SimulationOptions) -> NDArray[np.bool_]:
    """(N, N) the detector's bad pixels: a gap of columns a third across, and single ones."""
    N, half = options.size, options.bad_pixels / 2
    bad = np.zeros((N, N), dtype=np.bool_)
    bad[:, N // 3 : N // 3 + round(half * N)] = True
    generator = np.random.default_rng([options.seed, N])
    bad.flat[generator.permutation(N * N)[: round(half * N * N)]] = True
    return bad


def without_pixels(scan: ScanData, bad: NDArray[np.bool_]) -> ScanData:
    """The scan of a detector of which (N, N) pixels are bad."""
    frames = np.array(scan.diffraction)
    frames[:, bad] = np.nan
    return replace(scan, diffraction=frames, bad_pixels=bad)


def raster(options: SimulationOptions, generator: np.random.Generator) -> Image:
    """Positions (M, 2) float64 (y, x), row by row, each moved by at most `jitter` along an axis."""
    line = _margin(options) + options.step * np.arange(options.grid)
    nominal = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    return nominal + options.jitter * generator.uniform(-1.0, 1.0, nominal.shape)


def _margin(options: SimulationOptions) -> int:
    # By the step and not by the jitter, so that another jitter leaves the object as it is.
    return options.size // 2 + int(np.ceil(options.step)) + 1


def _object_side(options: SimulationOptions) -> int:
    return 2 * _margin(options) + int(np.ceil(options.step * (options.grid - 1)))


def make_object(
    options: SimulationOptions, generator: np.random.Generator, side: int | None = None
) -> NDArray[np.complex64]:
    """Ground truth (H, W) complex64: amplitude amplitude_min..1 and a correlated phase.

    Args:
        options: kind and contrast of the object.
        generator: draws it.
        side: H = W, pixels; None takes what the scan that is simulated needs.
    """
    makers: dict[str, Callable[[int, np.random.Generator], tuple[Image, Image]]] = {
        "lines": _lines,
        "siemens": _siemens,
        "blobs": _blobs,
    }
    amplitude, phase = makers[options.object](side or _object_side(options), generator)
    modulus = options.amplitude_min + (1.0 - options.amplitude_min) * amplitude
    angle = options.phase_range * (phase - 0.5)
    return np.asarray(modulus * np.exp(1j * angle), dtype=np.complex64)


def _unit_range(image: Image) -> Image:
    low, high = float(image.min()), float(image.max())
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def _lines(side: int, generator: np.random.Generator) -> tuple[Image, Image]:
    """Random lines, as the PtychoPINN papers train on (Sci. Rep. 13, 22789, 2023).

    Four fifths of the lines are drawn in amplitude and phase alike, so that the two correlate.
    """
    count = max(25, 2 * side)
    shared = _web(side, 4 * count // 5, generator)
    amplitude, phase = (shared + _web(side, count // 5, generator) for _ in range(2))
    return _saturate(amplitude), _saturate(phase)


def _saturate(web: Image) -> Image:
    """Compress the few crossings of many lines, which would else take half of the range."""
    return _unit_range(web / (web + np.median(web)))


def _web(side: int, count: int, generator: np.random.Generator) -> Image:
    """Sum of `count` line segments of random place, direction, length, width and height.

    Drawn sharp into one layer a width, then blurred: the time does not grow with the widths.
    """
    from scipy.ndimage import gaussian_filter

    centre_L2 = generator.uniform(-0.1, 1.1, (count, 2)) * side
    angle_L = generator.uniform(0.0, np.pi, count)
    half_L = generator.uniform(0.1, 0.5, count) * side
    height_L = generator.uniform(0.3, 1.0, count)
    widths = np.array([0.7, 1.0, 1.6, 3.0, 6.0, 12.0])
    width_L = generator.choice(len(widths), count, p=[0.2, 0.2, 0.2, 0.15, 0.15, 0.1])
    reach_L2 = half_L[:, None] * np.stack([np.sin(angle_L), np.cos(angle_L)], axis=1)
    ends = np.rint(np.concatenate([centre_L2 - reach_L2, centre_L2 + reach_L2], axis=1)).astype(int)
    # A ridge blurred by sigma loses height as 1/sigma; its square root keeps wide lines visible
    # and lets them not drown the narrow ones.
    total = np.zeros((side, side))
    for index, width in enumerate(widths):
        layer = np.zeros((side, side))
        for end, height in zip(ends[width_L == index], height_L[width_L == index], strict=True):
            _draw_line(layer, end, height)
        total += np.sqrt(width) * gaussian_filter(layer, width)
    return total


def _draw_line(image: Image, ends: NDArray[np.int64], height: float) -> None:
    """Add a sharp segment between two pixels, (row, column, row, column), in place."""
    from skimage.draw import line_aa

    side = len(image)
    rows, columns, coverage = line_aa(*ends)  # type: ignore[no-untyped-call]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    np.add.at(image, (rows[inside], columns[inside]), height * coverage[inside])


def _siemens(side: int, generator: np.random.Generator) -> tuple[Image, Image]:
    """Siemens star of 36 spokes with two ring gaps, turned and moved at random."""
    from scipy.ndimage import gaussian_filter

    centre = side / 2 + generator.uniform(-0.05, 0.05, 2) * side
    turn = generator.uniform(0.0, 2.0 * np.pi)
    y, x = np.ogrid[:side, :side]
    radius = np.hypot(y - centre[0], x - centre[1]) / (0.5 * side)
    angle = np.arctan2(y - centre[0], x - centre[1])
    spokes = np.sin(36 * angle + turn) > 0
    gaps = (np.abs(radius - 0.35) < 0.015) | (np.abs(radius - 0.62) < 0.015)
    star = (spokes & ~gaps & (radius > 0.08) & (radius < 0.9)) | (radius <= 0.05)
    # Dense material absorbs and delays: where the star stands, amplitude and phase are low.
    image = _unit_range(gaussian_filter(1.0 - star.astype(np.float64), 0.8))
    return image, image


def _blobs(side: int, generator: np.random.Generator) -> tuple[Image, Image]:
    """Smooth random fields of several scales; amplitude and phase share half their variance."""
    shared, amplitude, phase = (_noise_field(side, generator) for _ in range(3))
    return _unit_range(shared + amplitude), _unit_range(shared + phase)


def _noise_field(side: int, generator: np.random.Generator) -> Image:
    from scipy.ndimage import gaussian_filter

    total = np.zeros((side, side))
    for sigma in (1.5, 4.0, 12.0):
        layer = gaussian_filter(generator.standard_normal((side, side)), sigma)
        total += layer / layer.std()
    return total


def make_probe(options: SimulationOptions) -> NDArray[np.complex64]:
    """Probe (1, N, N) complex64 of unit energy, its centre on pixel (N//2, N//2)."""
    wave = _disc(options) if options.probe == "disc" else _defocused(options)
    return np.asarray(wave[None] / np.linalg.norm(wave), dtype=np.complex64)


def _disc(options: SimulationOptions) -> NDArray[np.complex128]:
    """A disc with a soft edge and the spherical wavefront of the aperture q: pi q r^2 / R."""
    from scipy.special import erfc

    edge = 1.5  # pixels; sharper edges ring when the probe is moved by a fraction of a pixel
    r = _radii(options.size)
    amplitude = 0.5 * erfc((r - options.radius) / (np.sqrt(2.0) * edge))
    phase = np.pi * options.probe_aperture * r**2 / options.radius
    return np.asarray(amplitude * np.exp(1j * phase))


def _defocused(options: SimulationOptions) -> NDArray[np.complex128]:
    """A zone plate's annular pupil with slight astigmatism, Fresnel-propagated out of focus.

    A pupil of cut-off frequency q at defocus z lights a spot of radius R = wavelength z q
    (paraxial; Goodman, Introduction to Fourier Optics, chapter 4), which gives the defocus.
    """
    from scipy import fft
    from scipy.special import erfc

    cutoff = options.probe_aperture
    distance = options.radius / cutoff  # wavelength times defocus, square pixels
    q_y, q_x = np.meshgrid(*[fft.fftfreq(options.size)] * 2, indexing="ij")
    q = np.hypot(q_y, q_x)
    soft = 1.0 / options.size
    pupil = 0.5 * erfc((q - cutoff) / soft) - 0.5 * erfc((q - 0.45 * cutoff) / soft)
    astigmatism = 0.06 * distance * (q_y**2 - q_x**2)
    wave = pupil * np.exp(-1j * np.pi * (distance * q**2 + astigmatism))
    return np.asarray(fft.fftshift(fft.ifft2(wave)))


def _radii(size: int) -> Image:
    along = np.arange(size) - size // 2
    return np.asarray(np.hypot(along[:, None], along[None, :]))


def measure(
    truth: NDArray[np.complex64],
    probe: NDArray[np.complex64],
    positions: Image,
    photons: float,
    generator: np.random.Generator,
    name: str,
) -> ScanData:
    """Measure an object, with Poisson noise.

    Args:
        truth: (H, W) complex64 object.
        probe: (P, N, N) complex64 of any scale.
        positions: (M, 2) float64 (y, x) in pixels.
        photons: expected counts of a frame, on average.
        generator: draws the noise.
        name: the scan's.

    Returns:
        A scan of M frames; `object` is the ground truth, and `probe` carries the flux.

    Raises:
        ScanError: a patch reaches outside the object.
    """
    size = probe.shape[-1]
    frames = np.empty((len(positions), size, size), dtype=np.float32)
    for chunk, intensity in expected_intensity(truth, probe, positions):
        frames[chunk] = intensity
    gain = photons * len(positions) / float(frames.sum(dtype=np.float64))
    for frame in frames:
        np.sqrt(generator.poisson(gain * frame.astype(np.float64)), out=frame, casting="same_kind")
    return ScanData(
        diffraction=frames,
        positions=positions,
        probe=(probe * float(np.sqrt(gain))).astype(np.complex64),
        object=truth,
        name=name,
    )
