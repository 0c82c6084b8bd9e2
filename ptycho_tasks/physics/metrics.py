"""How good a reconstruction is: against a ground truth, and against the data.

A reconstruction is known only up to a global phase, a linear phase ramp, a shift and a split
of amplitude between probe and object. `score` removes them before it compares. `data_misfit`
removes nothing: probe and object together must predict the counts.

Axis letters:  M frames,  N patch side,  H, W object grid.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError, TrainingError
from ptycho_tasks.physics.deviance import compare_deviances
from ptycho_tasks.physics.forward import expected_intensity, fourier_shift, propagate
from ptycho_tasks.scan import evenly_spaced, release_pages
from ptycho_tasks.system.ahead import make_ahead

Box = tuple[slice, slice]
"""(rows, columns) of a rectangle on an object grid."""

SCORES = (
    "amplitude_ssim",
    "phase_ssim",
    "amplitude_psnr_db",
    "phase_psnr_db",
    "amplitude_mae",
    "phase_mae_rad",
    "frc50",
)


class Reference(NamedTuple):
    """What a misfit is to be compared with; see `data_misfit`."""

    r_factor: float
    poisson_deviance: float


class Misfit(NamedTuple):
    """How well object and probe predict the measured frames; see `data_misfit`."""

    r_factor: float
    poisson_deviance: float
    residual: NDArray[np.float32]
    """(M,) float32."""
    flat: Reference
    """Of a flat object with the same probe."""
    noise: Reference
    """To be expected if object and probe were right and photon noise alone were left."""
    deviances: NDArray[np.float32] = np.zeros(0, np.float32)
    """(M,) Poisson deviance of each frame, a pixel of all."""
    background: float = 0.0
    """Share of the light that is in all pixels alike, and that nothing explains; see
    `_find_background`."""

    @property
    def far_off(self) -> NDArray[np.int64]:
        """Which frames make most of the misfit, where half of all miss by no more than noise, or
        an engine that is not quite done; none where that is no fault.

        Of simulated and measured scans that are right, some of 1e9 photons have such frames: at
        R-factors of 0.003 beyond noise, or where all others miss by hundreds of times the noise.
        """
        level = max(float(np.median(self.deviances)), self.noise.poisson_deviance)
        far = np.flatnonzero(self.deviances > FAR_OFF * level)
        is_most = 2 * self.deviances[far].sum() > self.deviances.sum()
        is_right = level < POOR_RATIO * self.noise.poisson_deviance
        beyond = find_beyond(self.r_factor, self.noise.r_factor)
        return far if is_most and is_right and beyond > LEAST_UNEVEN else far[:0]

    @property
    def noise_ratio(self) -> float:
        """See `compare_deviances`."""
        return compare_deviances(self.poisson_deviance, self.noise.poisson_deviance)

    @property
    def is_poor(self) -> bool:
        """Whether more than photon noise, or an engine that is not quite done, must be wrong.

        Two conditions, since at 1e9 photons a good reconstruction misses by many times the noise,
        and at 1e4 even the truth has an R factor of 0.4, of which only what is beyond noise counts.
        Of measured and simulated scans of 1e3 to 1e9 photons none that is right meets both (the
        measured ones, by a guessed probe: 3.7 at 0.062 and 2.9 at 0.10). Of simulated ones with a
        small fault (axes stretched by 5 to 15 % or turned by 4 degrees, positions that drift or
        belong to the next frame, two pixels off centre) three in ten do; the rest explain
        their frames as well as a right scan whose probe is a guess.
        """
        return describe_poor(self, self.noise) is not None

    @property
    def explains_nothing(self) -> bool:
        """Whether a flat object with the same probe would do as well.

        Where there are few photons a flat object has a smaller R factor than the truth, which is
        not fooled by the deviance. What misses by no more than photon noise explains all there is.
        """
        at_noise = self.r_factor < 1.1 * self.noise.r_factor
        flat_r, flat_deviance = (AS_GOOD_AS_FLAT * value for value in self.flat)
        worse = self.poisson_deviance >= flat_deviance or self.noise_ratio > POOR_RATIO
        return self.r_factor >= flat_r and worse and not at_noise


def describe_poor(found: Reference | Misfit, noise: Reference) -> str | None:
    """In what a misfit is poor, see `Misfit.is_poor`; None where it is not.

    Args:
        found: of a reconstruction.
        noise: of photon noise alone.
    """
    ratio = compare_deviances(found.poisson_deviance, noise.poisson_deviance)
    beyond = find_beyond(found.r_factor, noise.r_factor)
    if not (ratio > POOR_RATIO and beyond > POOR_R_FACTOR):
        return None
    return (
        f"R-factor {found.r_factor:.3g}, where photon noise alone gives {noise.r_factor:.2g}: the "
        f"misfit is {ratio:.3g} times that of noise"
    )


def find_beyond(r_factor: float, noise: float) -> float:
    """The R-factor that is left beyond that of photon noise."""
    return math.sqrt(max(r_factor**2 - noise**2, 0.0))


class Half(NamedTuple):
    """A reconstruction from a part of a scan's frames."""

    object: NDArray[np.complex64]
    """(H, W); zero where it was not seen."""
    origin: tuple[int, int]
    """(row, column) on the scan's object grid of object[0, 0]."""
    positions: NDArray[np.float64]
    """(M, 2) (y, x) on the scan's object grid."""


HALVES_LEVEL = 1 / 7
"""See `correlate_halves`."""
FAR_OFF, LEAST_UNEVEN = 10.0, 0.015
"""Deviance of a frame over that of half of them; and R-factor beyond noise; see
`Misfit.far_off`."""
POOR_RATIO, POOR_R_FACTOR = 4.0, 0.07
"""See `Misfit.is_poor`."""
UNIT_FRAMES, MOST_UNITS, LEAST_UNITS, SAME_UNIT = 16, 1000, 4, 1e-4
"""Frames, photons of a pixel, numbers of photons, and relative error; see `find_unit`."""
AS_GOOD_AS_FLAT = 0.98
"""From which share of a flat object's misfit on one is no better: its amplitude is found from a
sample."""


def scanned_box(positions: NDArray[np.float64], size: int) -> Box:
    """The rectangle spanned by the patch centres, on the scan's object grid.

    Its rim is lit about half as often as its inside; beyond it the light fades and a score
    would measure the scan's border. Nothing inside is dropped, seen or not. An axis along
    which the centres span less than N//2 pixels (a line scan, a single frame) is widened to
    the central N//2 pixels.

    Args:
        positions: (M, 2) float64 (y, x) in pixels.
        size: N.
    """
    sides = []
    for low, high in zip(positions.min(axis=0), positions.max(axis=0), strict=True):
        first, last = int(np.ceil(low)), int(np.floor(high)) + 1
        if last - first < size // 2:
            first = round((low + high) / 2) - size // 4
            last = first + size // 2
        sides.append(slice(first, last))
    return sides[0], sides[1]


def score(
    object: NDArray[np.complex64],
    origin: tuple[int, int],
    truth: NDArray[np.complex64],
    positions: NDArray[np.float64],
    size: int,
) -> dict[str, float | None]:
    """Compare a reconstruction with the ground truth over the scanned box, after alignment.

    Args:
        object: (H, W) complex64 reconstruction.
        origin: (row, column) on the scan's object grid of object[0, 0].
        truth: complex64 ground truth on the scan's whole object grid.
        positions: (M, 2) float64 (y, x) in pixels.
        size: N.

    Returns:
        Finite floats, or None where a value is undefined: a reconstruction with NaN or Inf, a
        truth without contrast, a PSNR without any error, a box too small for a window.

        - `amplitude_ssim`, `phase_ssim`: mean structural similarity, Gaussian window of sigma
          1.5 (Wang et al., IEEE Trans. Image Process. 13, 600, 2004);
        - `amplitude_psnr_db`, `phase_psnr_db`: 10 log10(range^2 / mean squared error);
        - `amplitude_mae` (in units of the truth's amplitude), `phase_mae_rad`: mean absolute error;
        - `frc50`: see `frc50`.

        The range in SSIM and PSNR is maximum minus minimum of the truth in the box. Phases are
        compared around the truth's mean phase; a difference is wrapped to -pi..pi.

    Raises:
        ScanError: the truth or the reconstruction does not cover the box.
    """
    box = scanned_box(positions, size)
    found_box = _moved(box, origin)
    _check_covers(truth.shape, box, "ground truth")
    _check_covers(object.shape, found_box, "reconstruction")
    if not (np.isfinite(object).all() and np.isfinite(truth[box]).all()):
        return dict.fromkeys(SCORES)
    return compare(align(object, truth, box, origin), truth[box].astype(np.complex128))


def compare(
    found: NDArray[np.complex128], wanted: NDArray[np.complex128]
) -> dict[str, float | None]:
    """The scores of `score` for an image (H, W) that is aligned with the truth already."""
    phase, phase_error = _phases(found, wanted)
    amplitude = np.abs(wanted)
    return {
        "amplitude_ssim": _ssim(amplitude, np.abs(found)),
        "phase_ssim": _ssim(phase, phase + phase_error),
        "amplitude_psnr_db": _psnr(amplitude, np.abs(found)),
        "phase_psnr_db": _psnr(phase, phase + phase_error),
        "amplitude_mae": float(np.mean(np.abs(np.abs(found) - amplitude))),
        "phase_mae_rad": float(np.mean(np.abs(phase_error))),
        "frc50": frc50(found, wanted),
    }


def _moved(box: Box, origin: tuple[int, int]) -> Box:
    rows, columns = box
    return (
        slice(rows.start - origin[0], rows.stop - origin[0]),
        slice(columns.start - origin[1], columns.stop - origin[1]),
    )


def _check_covers(shape: tuple[int, ...], box: Box, what: str) -> None:
    if any(side.start < 0 or side.stop > length for side, length in zip(box, shape, strict=True)):
        raise ScanError(
            f"the {what} of {shape[0]} x {shape[1]} pixels does not cover the scanned box, "
            f"rows {box[0].start}..{box[0].stop}, columns {box[1].start}..{box[1].stop}; "
            f"it cannot be scored"
        )


def align(
    object: NDArray[np.complex64],
    truth: NDArray[np.complex64],
    box: Box,
    origin: tuple[int, int] = (0, 0),
) -> NDArray[np.complex128]:
    """Remove what the data cannot tell: linear phase ramp, small shift, complex scale.

    Ramp and shift are found in turn, because a ramp hides the shift. A shift is kept only
    where it brings the reconstruction closer to the truth, and is at most 2 pixels: a larger
    one is an error of the reconstruction. The scale is the least-squares one,
    <found, truth> / <found, found>.

    Args:
        object: (H, W) complex reconstruction.
        truth: complex ground truth on the scan's object grid.
        box: the rectangle to align over, on the scan's object grid.
        origin: (row, column) on the scan's object grid of object[0, 0].

    Returns:
        The aligned reconstruction over the box, complex128.
    """
    inside = _moved(box, origin)
    wanted = truth[box].astype(np.complex128)
    # Without its ramp first: a ramp moves high frequencies beyond Nyquist, where a shift fails.
    level = _deramped(object.astype(np.complex128), inside, wanted)
    found = level
    shift = np.zeros(2)
    for _ in range(4):
        step = _measured_shift(found[inside], wanted)
        if np.abs(step).max() < 0.005 or np.abs(shift + step).max() > 2.0:
            break
        trial = _deramped(_shifted(level, inside, shift + step), inside, wanted)
        if _distance(trial[inside], wanted) >= _distance(found[inside], wanted):
            break
        found, shift = trial, shift + step
    return _scaled(found[inside], wanted)


def _scaled(
    found: NDArray[np.complex128], wanted: NDArray[np.complex128]
) -> NDArray[np.complex128]:
    energy = np.vdot(found, found).real
    return found * (np.vdot(found, wanted) / energy) if energy > 0 else found


def _distance(found: NDArray[np.complex128], wanted: NDArray[np.complex128]) -> float:
    return float(np.linalg.norm(_scaled(found, wanted) - wanted))


def _deramped(
    whole: NDArray[np.complex128], inside: Box, wanted: NDArray[np.complex128]
) -> NDArray[np.complex128]:
    """Take from `whole` the linear phase ramp against `wanted`.

    The peak of the spectrum of found * conj(wanted) gives the ramp to a whole number of waves,
    however steep; planes fitted to the rest of the phase, weighted by modulus, refine it.
    """
    from scipy import fft

    cross = whole[inside] * np.conj(wanted)
    peak = np.unravel_index(int(np.argmax(np.abs(fft.fft2(cross)))), cross.shape)
    ramp = np.array([fft.fftfreq(n)[k] for n, k in zip(cross.shape, peak, strict=True)])
    ramp *= 2.0 * np.pi
    for _ in range(3):
        ramp += _fitted_ramp(cross * _plane_wave(cross.shape, -ramp))
    return whole * _plane_wave(whole.shape, -ramp)


def _plane_wave(shape: tuple[int, ...], ramp: NDArray[np.float64]) -> NDArray[np.complex128]:
    wave_y, wave_x = (np.exp(1j * k * np.arange(n)) for k, n in zip(ramp, shape, strict=True))
    return np.asarray(wave_y[:, None] * wave_x[None, :])


def _fitted_ramp(cross: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Slope (y, x) in rad a pixel of the plane that fits the phase of `cross` best."""
    weight = np.abs(cross)
    if not weight.any():
        return np.zeros(2)
    phase = np.angle(cross * np.conj(cross.sum()))
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in cross.shape)
    y, x = np.broadcast_to(rows[:, None], cross.shape), np.broadcast_to(columns, cross.shape)
    design = np.stack([np.ones_like(phase), y, x]).reshape(3, -1)
    weighted = design * weight.reshape(-1)
    plane = np.linalg.lstsq(weighted @ design.T, weighted @ phase.reshape(-1), rcond=None)[0]
    return np.asarray(plane[1:])


def _measured_shift(
    found: NDArray[np.complex128], wanted: NDArray[np.complex128]
) -> NDArray[np.float64]:
    """Shift (y, x) in pixels that moves `found` onto `wanted`, to about 0.01 pixel.

    Means are removed and edges faded, or the box's border, which does not move, would hold the
    peak at zero.
    """
    from skimage.registration import phase_cross_correlation

    found, wanted = (_faded(field) for field in (found, wanted))
    if not (found.any() and wanted.any()):
        return np.zeros(2)
    shift, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
        wanted, found, upsample_factor=100, normalization=None
    )
    return np.asarray(shift, dtype=np.float64)


def _faded(field: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """The field less its mean under a Hann window; zero where it is flat but for rounding."""
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in field.shape))
    varying = field - (field * window).sum() / window.sum()
    if np.abs(varying).max() <= 1e-6 * np.abs(field).max():
        return np.zeros_like(field)
    return np.asarray(varying * window)


def _shifted(
    whole: NDArray[np.complex128], inside: Box, shift: NDArray[np.float64]
) -> NDArray[np.complex128]:
    """Shift the box's content; what surrounds it fades out over up to 16 pixels.

    A Fourier shift keeps every frequency, but would ring from the hard edge of what was seen.
    """
    fades = []
    for side, length in zip(inside, whole.shape, strict=True):
        index = np.arange(length)
        outside = np.maximum(np.maximum(side.start - index, index - side.stop + 1), 0)
        room = max(min(side.start, length - side.stop, 16), 1)
        fades.append(np.cos(np.pi / 2 * np.minimum(outside / room, 1.0)) ** 2)
    fade = np.outer(*fades)
    mean = whole[inside].mean()
    return np.asarray(mean + fourier_shift((whole - mean) * fade, shift))


def _phases(
    found: NDArray[np.complex128], wanted: NDArray[np.complex128]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The truth's phase around its mean, and the wrapped phase error, both in rad.

    Where nothing was found its phase counts as the mean: the angle of found * conj(wanted) would
    be zero there and pass for the truth.
    """
    middle = np.conj(wanted.sum())
    phase = np.angle(wanted * middle)
    error = np.angle(found * middle) - phase
    return phase, (error + np.pi) % (2 * np.pi) - np.pi


def _contrast(wanted: NDArray[np.float64]) -> float | None:
    """Maximum minus minimum; None where that is no more than rounding."""
    extent = float(wanted.max() - wanted.min())
    return extent if extent > 1e-5 * max(1e-30, float(np.abs(wanted).max())) else None


def _ssim(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float | None:
    from skimage.metrics import structural_similarity

    extent = _contrast(wanted)
    if extent is None or min(wanted.shape) < 11:  # the window of sigma 1.5 is 11 pixels wide
        return None
    value = structural_similarity(  # type: ignore[no-untyped-call]
        wanted,
        found,
        data_range=extent,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


def _psnr(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> float | None:
    extent = _contrast(wanted)
    error = float(np.mean((wanted - found) ** 2))
    return None if extent is None or error == 0 else float(10 * np.log10(extent**2 / error))


def frc50(found: NDArray[np.complex128], wanted: NDArray[np.complex128]) -> float | None:
    """Where the Fourier ring correlation falls under 0.5, as a fraction of Nyquist.

    The fields lose their mean and get a Hann window; the correlation of a ring is
    Re sum F G* / sqrt(sum |F|^2 sum |G|^2) (van Heel and Schatz, J. Struct. Biol. 151, 250,
    2005). To fall, the curve must first have been at 0.5 or above: a reconstruction that lacks
    only the lowest frequencies keeps its resolution. Between rings the curve is interpolated.

    Args:
        found, wanted: (H, W) complex, aligned.

    Returns:
        1.0 where it never falls, 0.0 where it never reaches 0.5, None for a flat truth.
    """
    spectra = [np.fft.fft2(_faded(field)) for field in (found, wanted)]
    if not spectra[1].any():
        return None
    return find_fall(_ring_correlation(*spectra), 0.5)


def find_fall(correlation: NDArray[np.float64], level: float) -> float:
    """Where a correlation (R,) of rings falls under a level, as a fraction of Nyquist.

    Returns:
        1.0 where it never falls, 0.0 where it never reaches the level.
    """
    above = correlation >= level
    if not above.any():
        return 0.0
    first = int(np.argmax(above))
    below = np.flatnonzero(~above[first:])
    if not below.size:
        return 1.0
    ring = first + int(below[0])
    high, low = correlation[ring - 1], correlation[ring]
    return float((ring + (high - level) / (high - low)) / len(correlation))


def ring_curves(
    object: NDArray[np.complex64],
    origin: tuple[int, int],
    truth: NDArray[np.complex64] | None,
    positions: NDArray[np.float64],
    size: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """The spectrum of a reconstruction over the scanned box, and its correlation with the truth.

    Args:
        object, origin, truth, positions, size: as of `score`; without a truth, no correlation.

    Returns:
        (R,) mean |F|^2 of ring 1..R, the mean off and a Hann window on, over that of ring 1; and
        (R,) the Fourier ring correlation of `frc50`, after alignment. Ring r is at r / R of
        Nyquist. None where no truth covers the box, or it is flat.

    Raises:
        ScanError: the reconstruction does not cover the box.
    """
    box = scanned_box(positions, size)
    found_box = _moved(box, origin)
    _check_covers(object.shape, found_box, "reconstruction")
    found = np.nan_to_num(object[found_box].astype(np.complex128), posinf=0, neginf=0)
    power = _ring_means(np.abs(np.fft.fft2(_faded(found))) ** 2)
    covers = truth is not None and all(
        side.start >= 0 and side.stop <= n for side, n in zip(box, truth.shape, strict=True)
    )
    if truth is None or not covers or not np.isfinite(object).all():
        return power, None
    wanted = truth[box].astype(np.complex128)
    spectra = [np.fft.fft2(_faded(f)) for f in (align(object, truth, box, origin), wanted)]
    return power, _ring_correlation(*spectra) if spectra[1].any() else None


def correlate_halves(first: Half, second: Half, size: int) -> NDArray[np.float64] | None:
    """The Fourier ring correlation of two reconstructions of one scan, over what both scanned.

    Where each is made from another half of the frames, all frames together correlate with the
    truth by 0.5 where the halves correlate by `HALVES_LEVEL` (Rosenthal and Henderson, J. Mol.
    Biol. 333, 721, 2003).

    Args:
        first, second: the reconstructions.
        size: N.

    Returns:
        (R,) as of `ring_curves`, after alignment; None where the second one is flat.

    Raises:
        ScanError: one does not cover what both scanned.
    """
    # On the grid of the second one's object, which stands in for the truth's.
    scanned = [half.positions - second.origin for half in (first, second)]
    low = np.max([positions.min(axis=0) for positions in scanned], axis=0)
    high = np.min([positions.max(axis=0) for positions in scanned], axis=0)
    origin = first.origin[0] - second.origin[0], first.origin[1] - second.origin[1]
    both = np.stack([low, np.maximum(low, high)])
    return ring_curves(first.object, origin, second.object, both, size)[1]


def _ring_means(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """(R,) means over rings, the first at 1."""
    ring, rings = _number_rings(power.shape)
    counts = np.bincount(ring, minlength=rings + 1)[1 : rings + 1]
    sums = np.bincount(ring, weights=power.reshape(-1), minlength=rings + 1)[1 : rings + 1]
    means = sums / np.maximum(counts, 1)
    return np.asarray(means / means[0] if means.size and means[0] > 0 else means, dtype=np.float64)


def _number_rings(shape: tuple[int, ...]) -> tuple[NDArray[np.int64], int]:
    """The ring of each pixel of a spectrum, flat, and R; ring R ends at Nyquist."""
    rings = min(shape) // 2
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    return np.rint(2 * rings * frequency).astype(int).reshape(-1), rings


def _ring_correlation(
    found: NDArray[np.complex128], wanted: NDArray[np.complex128]
) -> NDArray[np.float64]:
    """(R,) correlation of ring 1..R; the last ring ends at Nyquist, rings are 1/min(H, W) wide."""
    ring, rings = _number_rings(found.shape)

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.bincount(ring, weights=values.reshape(-1), minlength=rings + 1)
        return np.asarray(sums[1 : rings + 1], dtype=np.float64)

    common = total((found * np.conj(wanted)).real)
    energy = total(np.abs(found) ** 2) * total(np.abs(wanted) ** 2)
    return np.divide(common, np.sqrt(energy), out=np.zeros(rings), where=energy > 0)


def data_misfit(
    object: NDArray[np.complex64],
    origin: tuple[int, int],
    probe: NDArray[np.complex64],
    positions: NDArray[np.float64],
    diffraction: NDArray[np.float32],
    flux: NDArray[np.float32] | None = None,
    background: NDArray[np.float32] | None = None,
) -> Misfit:
    """How well object and probe predict the measured frames; no scale is fitted.

    Pixels that were not measured (NaN) count nowhere. With I the expected counts, A the measured
    amplitude and k = A^2:

    - R factor: sum |sqrt(I) - A| / sum A over all pixels;
    - Poisson deviance: mean over pixels of 2 (I - k + k log(k / I)) (McCullagh and Nelder,
      Generalized Linear Models, 1989, section 2.3); near 1 where noise alone is left and counts
      are not far below one a pixel. I is taken as at least 1e-6 counts;
    - residual: sum |sqrt(I) - A| of a frame over the *mean* frame's sum A, so that the mean
      residual is the R factor and an empty frame has one too;
    - flat: R factor and deviance of an object of constant amplitude, each at the amplitude that
      is best for it on `SAMPLE_PIXELS` of evenly spaced frames. That object predicts the same
      counts for every frame;
    - background: see `_find_background`;
    - noise: means of |sqrt(I) - sqrt(k)| and of the deviance over Poisson-distributed k of mean
      I, summed over all pixels; see `_noise_tables`.

    Args:
        object: (H, W) complex64.
        origin: (row, column) on the scan's object grid of object[0, 0].
        probe: (P, N, N) complex64, |probe|^2 in counts.
        positions: (M, 2) float64 (y, x) in pixels.
        diffraction: (M, N, N) float32 amplitude, NaN where a pixel is bad; may be a memmap, read a
            chunk at a time.
        flux: (M,) light of each frame over the probe's; None: all alike.
        background: (N, N) counts of every frame beside the probe's light, zero frequency at N//2;
            None: none.

    Raises:
        ScanError: no frame has any count.
        TrainingError: object and probe predict no finite counts.
    """
    residual, measured, deviance = (np.zeros(len(positions)) for _ in range(3))
    flat_sums, pixels = np.zeros(2), 0
    measured_light, predicted_light = (np.zeros(diffraction.shape[1:]) for _ in range(2))
    levels = np.zeros(_LEVELS, dtype=np.int64)
    # Counts that are not finite are told by the sums.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        flat = _flat_predictions(probe, diffraction)
        for frames, intensity in make_ahead(expected_intensity(object, probe, positions, origin)):
            amplitude = np.array(diffraction[frames], dtype=np.float64)
            release_pages(diffraction)
            if flux is not None:
                intensity = intensity * flux[frames, None, None]
            if background is not None:
                intensity = intensity + background
            expected = np.maximum(intensity, 1e-6, dtype=np.float64)
            bad = np.isnan(amplitude)
            pixels += bad.size - np.count_nonzero(bad)
            here = _without_bad(amplitude, expected, flat, bad) if bad.any() else flat
            predicted = np.sqrt(expected)
            levels += np.bincount(_level(predicted), minlength=_LEVELS)
            predicted -= amplitude
            residual[frames] = np.abs(predicted, out=predicted).sum(axis=(1, 2))
            measured[frames] = amplitude.sum(axis=(1, 2))
            np.subtract(here.amplitude, amplitude, out=predicted)
            flat_sums[0] += np.abs(predicted, out=predicted).sum()
            counts = np.square(amplitude, out=amplitude)
            measured_light += counts.sum(axis=0)
            predicted_light += expected.sum(axis=0)
            deviance[frames] = _deviance(expected, counts)
            flat_sums[1] += _deviance(here.intensity, counts).sum()
    if not measured.any():
        raise ScanError("every frame is dark: there is nothing to compare the prediction with")
    if not (np.isfinite(residual).all() and np.isfinite(deviance).all()):
        raise TrainingError(
            "object and probe predict counts that are not finite in single precision: the largest "
            f"|object| is {np.abs(object).max():.3g}, the largest |probe| {np.abs(probe).max():.3g}"
        )
    levels[0] -= diffraction.size - pixels
    total = measured.sum()
    share = residual * len(residual) / total
    return Misfit(
        float(share.mean()),
        float(deviance.sum() / pixels),
        share.astype(np.float32),
        Reference(float(flat_sums[0] / total), float(flat_sums[1] / pixels)),
        _noise(levels, total),
        (deviance * (len(deviance) / pixels)).astype(np.float32),
        _find_background(measured_light, predicted_light),
    )


DARKEST, UNEXPLAINED, SURE = 0.1, 0.3, 5.0
"""Share of the pixels that are predicted to be the darkest; share of their counts that must be more
than is predicted, and standard errors of it, to be a background. Of scans without one, counts of
such pixels are hardly any, or predicted."""


def _find_background(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Share of the light that all pixels have in common, by those where least is predicted: an
    object, whose light there are speckles, can explain but a part of it. 0 where there is none.

    Args:
        measured, predicted: (N, N) counts of all frames together; nothing where pixels are bad.
    """
    good = predicted > _NOTHING * 1e20
    if not good.any():
        return 0.0
    dark = good & (predicted <= np.quantile(predicted[good], DARKEST))
    counts = measured[dark].sum()
    excess = counts - predicted[dark].sum()
    if not excess > max(UNEXPLAINED * counts, SURE * np.sqrt(counts)):
        return 0.0
    return float(excess / dark.sum() * good.sum() / measured[good].sum())


_NOTHING = 1e-200
"""Counts in the place of zero, which has no logarithm."""


class _Flat(NamedTuple):
    """What flat objects predict of any frame."""

    amplitude: NDArray[np.float64]
    """(N, N), of the one with the least R factor."""
    intensity: NDArray[np.float64]
    """(N, N) counts, of the one with the least deviance."""


def _without_bad(
    amplitude: NDArray[np.float64],
    expected: NDArray[np.float64],
    flat: _Flat,
    bad: NDArray[np.bool_],
) -> _Flat:
    """Put nothing where pixels are bad, which adds nothing to any sum: in place into measured
    amplitudes and expected counts (m, N, N), and into what is given back, (m, N, N) for each frame.
    """
    amplitude[bad], expected[bad] = 0.0, _NOTHING
    return _Flat(np.where(bad, 0.0, flat.amplitude), np.where(bad, _NOTHING, flat.intensity))


SAMPLE_PIXELS = 2**17
"""Of evenly spaced frames, at least one: what the amplitude of a flat object is found from."""


def _flat_predictions(probe: NDArray[np.complex64], diffraction: NDArray[np.float32]) -> _Flat:
    """The best flat objects.

    A Fourier shift of the probe changes no modulus, so that one frame is all of them. With F its
    counts for amplitude 1, the deviance is least at amplitude^2 = sum k / sum F, and the R factor,
    a sum of sqrt(F) |amplitude - A / sqrt(F)|, at the median of A / sqrt(F) weighted by sqrt(F).
    """
    N = probe.shape[-1]
    intensity = np.square(np.abs(propagate(probe)), dtype=np.float64).sum(axis=0)
    some = evenly_spaced(len(diffraction), min(len(diffraction), max(1, SAMPLE_PIXELS // N**2)))
    sample = np.asarray(diffraction[some], dtype=np.float64)
    good = np.isfinite(sample)
    light = np.broadcast_to(intensity, sample.shape)[good].sum()
    flux = np.square(sample[good]).sum() / light if light > 0 else 0.0
    weight = np.sqrt(intensity)
    lit = good & (weight > 1e-6 * weight.max())
    if not lit.any():  # a beam stop may hide all that a flat object sends
        return _Flat(0 * weight, np.maximum(flux * intensity, 1e-6))
    weights = np.broadcast_to(weight, sample.shape)[lit]
    best = _weighted_median(sample[lit] / weights, weights)
    return _Flat(best * weight, np.maximum(flux * intensity, 1e-6))


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    order = np.argsort(values, axis=None)
    reached = np.cumsum(weights.reshape(-1)[order])
    return float(values.reshape(-1)[order[np.searchsorted(reached, reached[-1] / 2)]])


_FINE = 64
"""Levels of the expected amplitude a unit."""
_LEVELS = 10 * _FINE + 1
"""The last one is of all larger amplitudes too, where nothing changes any more."""


def _level(amplitude: NDArray[np.float64]) -> NDArray[np.intp]:
    """(n,) which entry of `_noise_tables` each expected amplitude is nearest to."""
    levels = np.minimum(amplitude * _FINE + 0.5, _LEVELS - 1)
    return np.nan_to_num(levels.reshape(-1), copy=False).astype(np.intp)


def _noise(levels: NDArray[np.int64], measured: float) -> Reference:
    """What photon noise alone gives.

    Args:
        levels: how many pixels have each expected amplitude of `_noise_tables`.
        measured: sum A.
    """
    error, deviance = _noise_tables()
    return Reference(float(levels @ error / measured), float(levels @ deviance / levels.sum()))


def photon_noise(amplitude: NDArray[np.floating]) -> Reference:
    """What photon noise alone gives of frames whose expected counts are about those measured.

    Args:
        amplitude: of any shape, square roots of counts, NaN where a pixel is bad.
    """
    good = amplitude[np.isfinite(amplitude)]
    return _noise(np.bincount(_level(good), minlength=_LEVELS), max(float(good.sum()), 1e-12))


def find_unit(diffraction: NDArray[np.float32]) -> float:
    """What a photon counts: 1, or what all counts are whole multiples of.

    Args:
        diffraction: (M, N, N) float32 amplitudes, NaN where bad; may lie on disk.
    """
    some = evenly_spaced(len(diffraction), min(UNIT_FRAMES, len(diffraction)))
    counts = np.square(np.asarray(diffraction[some], dtype=np.float64))
    release_pages(diffraction)
    counts = counts[counts > 0]
    unit = float(counts.min(initial=np.inf))
    multiples = counts[counts < MOST_UNITS * unit] / unit
    whole = np.rint(multiples)
    are_whole = (np.abs(multiples - whole) < SAME_UNIT * whole).all()
    is_unit = are_whole and len(np.unique(whole)) >= LEAST_UNITS
    return unit if is_unit and abs(unit - 1) > SAME_UNIT else 1.0


@functools.cache
def _noise_tables() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means of |sqrt(k) - a| and of 2 (a^2 - k + k log(k / a^2)) over Poisson-distributed k of mean
    a^2, for a = 0, 1 / _FINE, 2 / _FINE and so on: sums over k of the values times
    exp(k log a^2 - a^2 - log k!). They tend to 1 / sqrt(2 pi), as sqrt(k) becomes normal with
    variance 1/4 (Anscombe, Biometrika 35, 246, 1948), and to 1.
    """
    amplitude = np.arange(1, _LEVELS)[:, None] / _FINE
    mean, k = np.square(amplitude), np.arange(300.0)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])
    chance = np.exp(k * np.log(mean) - mean - log_factorial)
    error = (chance * np.abs(np.sqrt(k) - amplitude)).sum(axis=1)
    log_ratio = np.log(np.maximum(k, 1.0)) - np.log(mean)
    deviance = (chance * 2 * (mean - k + k * log_ratio)).sum(axis=1)
    return np.append(0.0, error), np.append(0.0, deviance)


def _deviance(expected: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m,) sums of 2 (I - k + k log(k / I)) of (m, N, N) counts k; I may be (N, N)."""
    excess = np.maximum(counts, _NOTHING)
    excess /= expected
    np.log(excess, out=excess)
    excess *= counts
    excess += expected
    excess -= counts
    return np.asarray(2 * excess.sum(axis=(1, 2)))
