"""The scans of regimes.py: probes, objects, geometries and doses of many kinds, drawn from seeds.

Nothing here is what a network of this project has learned from: probes and objects are drawn by
rules of their own, so that a figure tells how a method does on what it has never seen.

Axis letters: M frames, N patch side, P probe modes, H, W object grid, K things that are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

from ptycho_tasks.physics.forward import fourier_shift
from ptycho_tasks.physics.simulate import measure
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans.readers import read_scan

Image = NDArray[np.float64]
Field = NDArray[np.complex128]
Generator = np.random.Generator

STAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "siemens_star_64.npz"
"""Its probe was refined from measured frames."""
FEW_PHOTONS = 1e5
"""With at most so many a frame, a scan counts as one of few photons."""
MARGIN = 4
"""Pixels of the object beyond the outermost patches."""


class Regime(msgspec.Struct, frozen=True, kw_only=True):
    """What a scan is like; with a seed, all that makes it."""

    name: str
    probe: str
    """One of `PROBES`."""
    object: str
    """One of `OBJECTS`."""
    photons: float
    """Expected counts a frame, on average."""
    frames: int = 1024
    size: int = 64
    """N."""
    radius: float = 9.0
    """Root mean square radius of the spot, pixels."""
    step: float = 0.3
    """Side of the square that a frame has for itself, over `radius`: small is much overlap."""
    phase: float = 1.0
    """From the least to the greatest phase of the object, rad."""
    amplitude_min: float = 0.6
    """Least amplitude of the object; the greatest is 1."""
    modes: int = 1
    geometry: str = "raster"
    """One of `GEOMETRIES`."""
    published: str = ""
    """What others have published for such a scan."""


TABLE = """
name                   probe      object     photons frames size radius step phase amplitude_min modes geometry
zone_lines_1e9         zone_plate lines      1e9     1024   64   9      0.60 1.0   0.6           1     raster
zone_texture_1e8       zone_plate texture    1e8     1000   64   9      0.45 2.0   0.5           1     spiral
zone_weak_1e7          zone_plate texture    1e7     900    64   10     0.50 0.05  0.98          1     raster
zone_cells_3modes_1e8  zone_plate cells      1e8     900    64   9      0.40 1.5   0.6           3     raster
zone_siemens_128_1e9   zone_plate siemens    1e9     500    128  17     0.50 1.2   0.5           1     raster
zone_circuit_256_1e8   zone_plate circuit    1e8     120    256  34     0.40 1.5   0.7           1     spiral
pinhole_cells_1e9      pinhole    cells      1e9     1024   64   8      0.70 1.5   0.6           1     raster
pinhole_circuit_1e7    pinhole    circuit    1e7     800    64   9      0.85 2.5   0.7           1     spiral
pinhole_10000_1e6      pinhole    texture    1e6     10000  64   9      0.40 1.0   0.6           1     raster
kb_siemens_fly_1e8     kb         siemens    1e8     1600   64   9      0.30 1.2   0.4           1     fly
kb_texture_1e6         kb         texture    1e6     1024   64   9      0.50 3.0   0.6           1     raster
kb_lines_100_1e8       kb         lines      1e8     100    64   9      0.50 1.0   0.6           1     raster
kb_cells_3modes_1e7    kb         cells      1e7     500    128  16     0.30 2.0   0.6           3     fly
gauss_blobs_sparse_1e7 gaussian   blobs      1e7     400    64   9      1.00 0.5   0.8           1     spiral
gauss_wrapped_1e8      gaussian   texture    1e8     1024   64   9      0.30 8.0   0.9           1     raster
wide_circuit_dense_1e9 diffuser   circuit    1e9     1200   64   13     0.09 3.4   0.7           1     raster
wide_glyphs_dark_1e7   diffuser   glyphs     1e7     800    64   12     0.30 0.6   0.02          1     spiral
star_lines_1e9         star       lines      1e9     800    64   13.8   0.40 2.0   0.5           1     raster
grid_lines_64_1e9      zone_plate grid_lines 1e9     289    64   12     1.67 3.4   0.1           1     grid
grid_lines_128_1e9     zone_plate grid_lines 1e9     196    128  24     0.83 3.4   0.1           1     grid
zone_lines_1e4         zone_plate lines      1e4     1024   64   9      0.60 1.0   0.6           1     raster
zone_texture_1e4       zone_plate texture    1e4     1000   64   9      0.40 2.0   0.5           2     spiral
zone_blobs_128_1e5     zone_plate blobs      1e5     400    128  17     0.50 1.0   0.6           1     raster
pinhole_cells_1e4      pinhole    cells      1e4     1024   64   8      0.70 1.5   0.6           1     raster
pinhole_siemens_1e3    pinhole    siemens    1e3     2500   64   9      0.35 1.2   0.4           1     spiral
kb_texture_1e3         kb         texture    1e3     1600   64   9      0.30 1.0   0.6           1     raster
kb_circuit_fly_3e3     kb         circuit    3e3     2000   64   9      0.25 1.5   0.7           1     fly
gauss_glyphs_1e5       gaussian   glyphs     1e5     900    64   9      0.60 0.8   0.3           1     raster
wide_circuit_dense_1e4 diffuser   circuit    1e4     1200   64   13     0.09 3.4   0.7           1     raster
star_siemens_1e4       star       siemens    1e4     800    64   13.8   0.40 2.0   0.5           1     raster
"""  # noqa: E501 - a table is read along its rows
PUBLISHED = "PtychoPINN after 5 epochs: amplitude / phase SSIM 0.52 / 0.89 to 0.89 / 0.96"


def read_table(text: str) -> list[Regime]:
    """The regimes of a table, a row each."""
    names, *rows = (line.split() for line in text.strip().splitlines())
    given = [dict(zip(names, row, strict=True)) for row in rows]
    for row in given:
        row["published"] = PUBLISHED if row["object"] == "grid_lines" else ""
    return msgspec.convert(given, list[Regime], strict=False)


REGIMES = {regime.name: regime for regime in read_table(TABLE)}


def make_scan(regime: Regime, seed: int) -> ScanData:
    """The scan of a regime and a seed; the same two give byte-identical arrays.

    Probe, object, positions and noise draw from streams of their own.
    """
    entropy = [seed, *regime.name.encode()]
    for_probe, for_object, for_positions, for_noise = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(entropy).spawn(4)
    )
    positions = make_positions(regime, for_positions)
    shape = np.ceil(positions.max(axis=0)).astype(int) + regime.size // 2 + MARGIN
    probe, truth = make_probe(regime, for_probe), make_object(regime, shape, for_object)
    name = f"{regime.name}_seed{seed}"
    return measure(truth, probe, positions, regime.photons, for_noise, name)


def is_here(regime: Regime) -> bool:
    """Whether all that the regime needs is on this machine."""
    return regime.probe != "star" or STAR.is_file()


# --- positions -----------------------------------------------------------------------------------


def make_positions(regime: Regime, generator: Generator) -> Image:
    """(M, 2) float64 (y, x) pixels, in the order in which they are visited."""
    pixels = GEOMETRIES[regime.geometry](regime.frames, generator) * regime.step * regime.radius
    return pixels - pixels.min(axis=0) + regime.size // 2 + MARGIN


def _rows(frames: int, along: float, across: float) -> Image:
    """Row by row on about a square, `along` apart in a row and `across` from row to row."""
    columns = math.ceil(math.sqrt(frames * across / along))
    index = np.arange(frames)
    return np.stack([index // columns * across, index % columns * along], axis=1)


def _grid(frames: int, generator: Generator) -> Image:
    return _rows(frames, 1.0, 1.0)


def _raster(frames: int, generator: Generator) -> Image:
    """With a jitter, against the artefacts of a regular grid."""
    return _rows(frames, 1.0, 1.0) + generator.uniform(-0.25, 0.25, (frames, 2))


def _spiral(frames: int, generator: Generator) -> Image:
    """Fermat's, of unit area a frame (Huang et al., Opt. Express 22, 12634, 2014), on a square."""
    index = np.arange(2 * frames) + 0.5
    angle = index * math.pi * (3 - math.sqrt(5)) + generator.uniform(0, 2 * math.pi)
    spiral = np.sqrt(index / math.pi)[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    inside = np.argsort(np.abs(spiral).max(axis=1), kind="stable")[:frames]
    return spiral[np.sort(inside)]


def _fly(frames: int, generator: Generator) -> Image:
    """Frames close to each other along rows that are wide apart and a little wavy."""
    nominal = _rows(frames, 0.5, 2.0)
    drift = gaussian_filter(generator.standard_normal((frames, 2)), (12, 0))
    return nominal + 0.15 * drift / drift.std()


GEOMETRIES: dict[str, Callable[[int, Generator], Image]] = {
    "grid": _grid,
    "raster": _raster,
    "spiral": _spiral,
    "fly": _fly,
}
"""From a number of frames to (M, 2) positions (y, x) of unit area a frame."""


# --- probes --------------------------------------------------------------------------------------


def make_probe(regime: Regime, generator: Generator) -> NDArray[np.complex64]:
    """(P, N, N) complex64 of unit energy, its centre on pixel (N//2, N//2)."""
    wave = PROBES[regime.probe](regime.size, regime.radius, generator)
    modes = _blurred(wave, regime.modes, generator)
    return (modes / np.linalg.norm(modes)).astype(np.complex64)


def _blurred(wave: Field, modes: int, generator: Generator) -> Field:
    """The strongest modes of a probe that moves by up to a pixel during an exposure."""
    if modes == 1:
        return wave[None]
    shifts = generator.uniform(-1, 1, (24, 2))
    copies = np.stack([fourier_shift(wave, shift).ravel() for shift in shifts])
    _, weights, found = np.linalg.svd(copies, full_matrices=False)
    return (weights[:modes, None] * found[:modes]).reshape(modes, *wave.shape)


def _coordinates(size: int) -> tuple[Image, Image]:
    """Pixels (y, x) from pixel (N//2, N//2), which broadcast to (N, N)."""
    along = np.arange(size) - size // 2
    return along[:, None].astype(float), along[None].astype(float)


def _frequencies(size: int) -> tuple[Image, Image]:
    along = fft.fftfreq(size)
    return along[:, None], along[None]


def _soft(distance: Image, edge: float) -> Image:
    """1 inside, where the distance to a border is positive, 0 outside."""
    return 0.5 * (1 + np.tanh(distance / edge))


def _propagated(wave: Field, along_y: float, along_x: float) -> Field:
    """Fresnel-propagated; the distances are wavelength times distance, square pixels."""
    q_y, q_x = _frequencies(len(wave))
    kernel = np.exp(-1j * np.pi * (along_y * q_y**2 + along_x * q_x**2))
    return np.asarray(fft.ifft2(fft.fft2(wave) * kernel))


def _zone_plate(size: int, radius: float, generator: Generator) -> Field:
    """The light of a zone plate with a central stop, out of focus, slightly astigmatic."""
    cutoff, stop = 0.15, 0.4
    q_y, q_x = _frequencies(size)
    q = np.hypot(q_y, q_x)
    # At defocus z a pupil frequency q lights the radius z q; the ring between stop and 1 has
    # the root mean square sqrt((1 + stop^2) / 2).
    defocus = radius / (cutoff * math.sqrt((1 + stop**2) / 2))
    pupil = _soft(cutoff - q, 1 / size) * _soft(q - stop * cutoff, 1 / size)
    astigmatism = defocus * generator.uniform(-0.08, 0.08)
    focus = fft.fftshift(fft.ifft2(pupil))
    return _propagated(focus, defocus + astigmatism, defocus - astigmatism)


def _pinhole(size: int, radius: float, generator: Generator) -> Field:
    """A round hole and a short way: Fresnel fringes of a number of 3 to 6."""
    y, x = _coordinates(size)
    hole = math.sqrt(2) * radius
    wave = _soft(hole - np.hypot(y, x), 1.0).astype(complex)
    distance = hole**2 / generator.uniform(3, 6)
    return _propagated(wave, distance, distance)


def _kb(size: int, radius: float, generator: Generator) -> Field:
    """Crossed mirrors: a rectangular pupil, each side with its own focus."""
    q_y, q_x = _frequencies(size)
    sides = np.array([0.11, 0.14]) * generator.uniform(0.95, 1.05, 2)
    pupil = _soft(sides[0] - np.abs(q_y), 1 / size) * _soft(sides[1] - np.abs(q_x), 1 / size)
    # A side lights a length of root mean square z q / sqrt(3).
    near, far = math.sqrt(1.5) * radius * np.array([0.9, 1.1]) / sides
    return _propagated(fft.fftshift(fft.ifft2(pupil)), near, far)


def _gaussian(size: int, radius: float, generator: Generator) -> Field:
    """A little out of round, with a spherical wavefront."""
    y, x = _coordinates(size)
    stretch = generator.uniform(0.9, 1.1)
    square = (y * stretch) ** 2 + (x / stretch) ** 2
    return np.asarray(np.exp((-0.5 + 1j * generator.uniform(0.8, 1.4)) * square / radius**2))


def _diffuser(size: int, radius: float, generator: Generator) -> Field:
    """A wide spot full of speckle: random phases behind a hole, a way further on."""
    y, x = _coordinates(size)
    hole = 1.25 * radius
    rough = gaussian_filter(generator.standard_normal((size, size)), size / 32, mode="wrap")
    phase = 1.8 * rough / rough.std()
    return _propagated(_soft(hole - np.hypot(y, x), 1.5) * np.exp(1j * phase), 25.0, 25.0)


def _star(size: int, radius: float, generator: Generator) -> Field:
    """The strongest mode of the measured star's probe."""
    return read_scan(STAR).probe[0].astype(np.complex128)


PROBES: dict[str, Callable[[int, float, Generator], Field]] = {
    "zone_plate": _zone_plate,
    "pinhole": _pinhole,
    "kb": _kb,
    "gaussian": _gaussian,
    "diffuser": _diffuser,
    "star": _star,
}
"""From N and a radius to (N, N) complex128."""


# --- objects -------------------------------------------------------------------------------------


def make_object(
    regime: Regime, shape: NDArray[np.int64], generator: Generator
) -> NDArray[np.complex64]:
    """Ground truth (H, W) complex64 of the regime's amplitudes and phases."""
    side = int(shape.max())
    amplitude, phase = (
        _unit_range(image[: shape[0], : shape[1]])
        for image in OBJECTS[regime.object](side, generator)
    )
    modulus = regime.amplitude_min + (1 - regime.amplitude_min) * amplitude
    return np.asarray(modulus * np.exp(1j * regime.phase * (phase - 0.5)), dtype=np.complex64)


def _unit_range(image: Image) -> Image:
    return (image - image.min()) / max(float(np.ptp(image)), 1e-30)


def _lines(side: int, generator: Generator) -> tuple[Image, Image]:
    """Straight fibres across the whole object, each with its width, absorption and delay."""
    y, x = np.ogrid[:side, :side]
    amplitude, phase = np.ones((side, side)), np.zeros((side, side))
    for _ in range(side // 5):
        angle, offset = generator.uniform(0, np.pi), generator.uniform(-0.7, 0.7) * side
        distance = np.abs((y - side / 2) * np.sin(angle) + (x - side / 2) * np.cos(angle) - offset)
        fibre = _soft(generator.uniform(0.5, 4) - distance, 0.6)
        amplitude *= 1 - generator.uniform(0.05, 0.5) * fibre
        phase += generator.uniform(0.2, 1.0) * fibre
    return amplitude, np.tanh(phase / 2)


def _siemens(side: int, generator: Generator) -> tuple[Image, Image]:
    """A star of 24 sharp spokes that become finer than a pixel in the middle."""
    y, x = np.ogrid[:side, :side]
    middle = side * generator.uniform(0.42, 0.58, 2)
    radius = np.hypot(y - middle[0], x - middle[1])
    angle = np.arctan2(y - middle[0], x - middle[1]) + generator.uniform(0, np.pi)
    # Within a pixel of an edge, which is r sin(24 a) / 24 away, a value in between.
    spokes = _soft(radius * np.sin(24 * angle) / 24, 0.7)
    return 1 - 0.8 * spokes, spokes


def _blobs(side: int, generator: Generator) -> tuple[Image, Image]:
    """Round grains of many sizes that overlap."""
    y, x = np.ogrid[:side, :side]
    thickness = np.zeros((side, side))
    absorbing = np.zeros((side, side))
    for _ in range(side * side // 150):
        centre, radius = generator.uniform(0, side, 2), 2 + generator.exponential(4)
        square = 1 - ((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / radius**2
        grain = radius * np.sqrt(np.maximum(square, 0))
        thickness += grain
        absorbing += generator.uniform(0, 1) * grain
    return np.exp(-absorbing / absorbing.max() * 3), np.tanh(thickness / 25)


def _cells(side: int, generator: Generator) -> tuple[Image, Image]:
    """Polygons around random points, each with its own value, dark walls between them."""
    from scipy.spatial import cKDTree

    count = side * side // 200
    points = generator.uniform(0, side, (count, 2))
    pixels = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2)
    distance, index = cKDTree(points).query(pixels, k=2)
    wall = _soft(1.5 - (distance[:, 1] - distance[:, 0]), 0.8)
    values = generator.uniform(0, 1, (2, count))[:, index[:, 0]]
    amplitude = (0.4 + 0.6 * values[0]) * (1 - wall)
    return amplitude.reshape(side, side), (values[1] * (1 - wall)).reshape(side, side)


def _texture(side: int, generator: Generator) -> tuple[Image, Image]:
    """Noise with the 1/f amplitudes of natural images (Field, J. Opt. Soc. Am. A 4, 2379, 1987)."""
    q_y, q_x = _frequencies(side)
    falling = 1 / np.maximum(np.hypot(q_y, q_x), 1 / side) ** 1.2
    shared, one, other = (
        fft.ifft2(falling * fft.fft2(generator.standard_normal((side, side)))).real
        for _ in range(3)
    )
    return _clipped(shared + one), _clipped(shared + other)


def _clipped(image: Image) -> Image:
    """Without the few outliers, which would take half of the range."""
    low, high = np.percentile(image, (1, 99))
    return np.clip(image, low, high)


def _circuit(side: int, generator: Generator) -> tuple[Image, Image]:
    """Layers of wires and pads, all edges upright or level."""
    total = np.zeros((side, side))
    for layer, pitch in ((1.0, 5), (0.7, 8), (0.5, 14)):
        for _ in range(side * side // (pitch * 90)):
            top, left = generator.integers(0, side // pitch, 2) * pitch
            long, wide = int(generator.integers(2, 12)) * pitch, max(pitch // 2, 2)
            rows, columns = (long, wide) if generator.random() < 0.5 else (wide, long)
            patch = total[top : top + rows, left : left + columns]
            np.maximum(patch, layer * generator.uniform(0.8, 1), out=patch)
    metal = gaussian_filter(total, 0.6)
    return 1 - metal, metal


def _glyphs(side: int, generator: Generator) -> tuple[Image, Image]:
    """Lines of a script of random strokes, black on white."""
    from skimage.draw import line_aa

    ink = np.zeros((side, side))
    height, width = 16, 11
    for top in range(2, side - height, height + 5):
        for left in range(2, side - width, width + 2):
            knots = generator.integers((top, left), (top + height - 2, left + width - 2), (5, 2))
            for start, end in pairwise(knots):
                rows, columns, coverage = line_aa(*start, *end)
                np.maximum.at(ink, (rows, columns), coverage)
    ink = np.clip(2 * gaussian_filter(ink, 0.7), 0, 1)
    return 1 - ink, ink


def _grid_lines(side: int, generator: Generator) -> tuple[Image, Image]:
    """After the recipe of PtychoPINN's grid-lines benchmark (github.com/hoidn/PtychoPINN).

    Lines between random pixels of a field of twice the side, 400 to 392 pixels, blurred by 1, 5
    and 10 pixels with weights 1, 2 and 5; the phase is a tanh of the amplitude.
    """
    from skimage.draw import line

    field = np.zeros((2 * side, 2 * side))
    for ends in generator.integers(0, 2 * side, (max(400 * side // 392, 1), 4)):
        field[line(*ends)] = 1
    blurred = sum(
        weight * gaussian_filter(field, width) for weight, width in ((1, 1), (2, 5), (5, 10))
    )
    middle = slice(side // 2, side // 2 + side)
    image = np.asarray(blurred)[middle, middle]
    return image, np.tanh((image - image.max() / 2) / (3 * image.mean()))


OBJECTS: dict[str, Callable[[int, Generator], tuple[Image, Image]]] = {
    "lines": _lines,
    "siemens": _siemens,
    "blobs": _blobs,
    "cells": _cells,
    "texture": _texture,
    "circuit": _circuit,
    "glyphs": _glyphs,
    "grid_lines": _grid_lines,
}
"""From a side to the images of amplitude and phase, (side, side) float64 of any range."""
