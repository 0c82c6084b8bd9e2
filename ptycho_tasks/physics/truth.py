"""Whether the object that comes with a scan is the truth, or a guess; imports nothing that takes
time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptycho_tasks.errors import PtychoTasksError

if TYPE_CHECKING:
    from ptycho_tasks.scan import ScanData

_PIXELS, _LEAST_FRAMES = 2**16, 16
"""Of the frames that are looked at."""
_NOISE = 0.9, 1.1
"""The truth misses the frames as much as photon noise does: on `_PIXELS`, to some hundredths. Of
measured scans, reconstructions that came with them miss them 2.5 to 3.7 times as much, and one that
fits the noise misses them less."""
_TELLING = 1.2
"""How much a flat object must miss them at least: where photons are very few, any object fits."""
_NOISELESS = 1e-3
"""The truth of frames without noise misses them less than this."""

_MEANING = "scores against it say how alike a result is, not how right, and make none the best"
UNJUDGED = f"whether its objectGuess is the truth cannot be said; {_MEANING}"
"""What is said of scores against the object of a scan that is not there as it was."""


def judge_own_object(scan: ScanData) -> float | None:
    """How much a scan's own object and probe miss its frames, over what photon noise does; None
    where that cannot be said. Reads some of the frames."""
    import numpy as np

    from ptycho_tasks.physics.metrics import data_misfit
    from ptycho_tasks.scan import evenly_spaced

    if scan.object is None:
        return None
    wanted = max(_LEAST_FRAMES, _PIXELS // scan.size**2)
    some = evenly_spaced(scan.frame_count, min(scan.frame_count, wanted))
    frames, positions = np.asarray(scan.diffraction[some]), scan.positions[some]
    try:
        misfit = data_misfit(scan.object, (0, 0), scan.probe, positions, frames)
    except (PtychoTasksError, ValueError, IndexError):
        return None
    if misfit.flat.poisson_deviance < _TELLING * misfit.noise.poisson_deviance:
        return None
    return float(misfit.noise_ratio)


def describe_guess(ratio: float | None) -> str:
    """Why an object is not taken as the truth, in a sentence."""
    why = "whether it explains the frames cannot be said"
    if ratio is not None:
        why = f"with the scan's probe it misses the frames {_round(ratio)} times as much as noise"
    return f"objectGuess is a guess and not the truth: {why}; {_MEANING}"


def doubt_scores(metrics: Mapping[str, Any]) -> str:
    """Why the scores that a metrics.json holds are not against a truth; empty where they are, or
    where it is of an older version, which does not tell."""
    guess = metrics.get("object_guess")
    if not metrics.get("scores") or not isinstance(guess, Mapping):
        return ""
    ratio = guess.get("noise_ratio")
    ratio = ratio if isinstance(ratio, (int, float)) else None
    return "" if is_as_noise(ratio) else describe_guess(ratio)


def _round(ratio: float) -> str:
    """Two digits, and never an exponent where people would write `120`."""
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}"


def is_as_noise(ratio: float | None) -> bool:
    """Whether an object is the truth, by what `judge_own_object` says of it."""
    if ratio is None:
        return False
    low, high = _NOISE
    return low < ratio < high or ratio < _NOISELESS
