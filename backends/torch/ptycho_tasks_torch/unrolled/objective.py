"""What the unrolled network learns: to predict frames that it does not see, and simulated objects.

To explain the frames that it is given, a network would learn to fit their noise. In training some
frames of a block are hidden from it, and the misfit is that of these: their noise is independent,
so that to predict them best is to be near what a frame without noise would be (Batson and Royer,
Noise2Self, ICML 2019). It needs no known object, and costs nothing where there is no noise.

Axis letters: B blocks, D frames in a block, S, T rows and columns of their canvases, P probe modes,
N detector pixels along one side, H, W rows and columns of the object grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.errors import TrainingError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.frames.blocks import Batch, Epoch, Loader
from ptycho_tasks_torch.frames.objects import Objects
from ptycho_tasks_torch.physics.calibration import calibrated
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.forward import amplitude_misfit, poisson_misfit, spot_radius
from ptycho_tasks_torch.physics.probe import RefinedProbe
from ptycho_tasks_torch.training.objective import Lesson, Material
from ptycho_tasks_torch.training.weights import PROBE
from ptycho_tasks_torch.unrolled.blocks import (
    HIDDEN,
    MARGIN,
    Drawn,
    Simulator,
    expose,
    largest_shape,
    make_blocks,
    nearest,
    shape_of,
)
from ptycho_tasks_torch.unrolled.network import UnrolledNetwork
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.positions import with_refined_positions

EARLIER = 0.3
"""Weight of an object after a step, of the one after the next: the last counts most."""
STEP_RATE = 5.0
"""Learning rate of the steps' weights, of the network's."""
PROBE_RATE = 1.5
"""Learning rate of the probe, whose largest value is 1, of the network's."""
EDGES = 0.2
"""Weight of the differences between neighbouring pixels of a known object."""
PROBE_EPSILON = 1e-5
"""Of Adam: dark pixels, of which the frames tell nothing, must not walk with the rounding."""
CALIBRATING_PIXELS, LEAST_CALIBRATING, CALIBRATING_STEPS = 2**19, 32, 12
"""Detector pixels of the frames that a probe is calibrated with, how many frames and physics steps
at least: from fewer steps another probe looks better than the right one."""
CONFIRMING, CERTAIN = 4, 3.0
"""Blocks of other frames that must agree, and by how many standard errors."""
LIT = 0.1
"""Share of the strongest light from which on a pixel of a known object counts in full."""


class UnrolledLesson(Lesson):
    """See the module."""

    guess: Tensor
    label: Tensor | None
    moved: Tensor | None
    """(M, 2) float32 pixels that frames are from where the scan has them."""
    network: UnrolledNetwork
    clip = 1.0

    def __init__(self, scan: ScanData, options: UnrolledOptions) -> None:
        """A network that is its physics steps alone.

        Raises:
            ScanError: too few frames, frames that are all dark, or a label that is of no use.
            ConfigError: there is no label, or more groups are asked for than there are.
        """
        super().__init__()
        self.blocks, training = make_blocks(scan, options)
        material = Material.of(scan, options, training)
        self.options, self.intensity_scale = options, material.intensity_scale
        self.register_buffer("guess", torch.from_numpy(material.probe), persistent=False)
        self.register_buffer("label", material.label, persistent=False)
        self.network = UnrolledNetwork(options.steps, options.subsets, options.channels)
        self.refined = None
        if options.probe == "refined":
            self.refined = RefinedProbe(self.guess, options.probe_modes or len(self.guess))
        refines_positions = options.positions == "refined"
        self._scan = scan
        self.register_buffer(
            "moved", torch.zeros((scan.frame_count, 2)) if refines_positions else None
        )
        self._shape = largest_shape(self.blocks, MARGIN if refines_positions else 0)
        self._simulator = None
        if options.on != "scan":
            self._simulator = Simulator(
                Objects(options.objects, self._shape, options.seed),
                self.intensity_scale,
                lambda: self._probe().detach().cpu().clone(),
                self._shape,
            )
        self._compare = poisson_misfit if options.loss == "poisson" else amplitude_misfit
        self._untrained: dict[tuple[int, ...], Tensor] = {}

    def begin(self, say: Callable[[str], None]) -> None:
        """Look for the size, defocus and astigmatism of a probe that is to be refined, and for
        positions that are."""
        plain = self._plain(max(CALIBRATING_STEPS, self.options.steps))
        with torch.no_grad():
            if self.refined is not None:
                self._calibrate(self.refined, plain, say)
            if self.moved is not None:
                scale = math.sqrt(self.intensity_scale)
                modes = self._probe() / scale
                better = with_refined_positions(self._scan, plain, modes, scale).positions
                moved = better - self._scan.positions
                self.moved.copy_(torch.from_numpy(moved))
                distance = math.sqrt(float(np.square(moved).sum(axis=1).mean()))
                say(f"positions: moved by {distance:.2f} pixels, root mean square")

    def _calibrate(
        self, refined: RefinedProbe, plain: UnrolledNetwork, say: Callable[[str], None]
    ) -> None:
        blocks = self.blocks
        frames = max(LEAST_CALIBRATING, CALIBRATING_PIXELS // self.guess.shape[-1] ** 2)
        some = blocks.read(nearest(blocks, frames))
        others = blocks.read(blocks.validation[:CONFIRMING])

        def misfits(probe: Tensor, batch: Batch) -> Tensor:
            shape = shape_of(batch["corners"], self.guess.shape[-1])
            exposure = expose(batch, probe, self.intensity_scale, shape)
            held = torch.arange(batch["held"].shape[1])[None] % HIDDEN == 0
            return self._each_unseen(plain, exposure, held.expand_as(batch["held"]))

        probe = calibrated(self.guess, lambda probe: float(misfits(probe, some).mean()))
        before, after = (misfits(probe, others) for probe in (self.guess, probe))
        gain = before - after
        # What explains one block by chance does not explain others.
        if gain.mean() > CERTAIN * gain.std() / math.sqrt(len(gain)):
            was, now = spot_radius(self.guess), spot_radius(probe)
            say(
                f"probe: size, defocus and astigmatism fitted, radius {was:.1f} -> {now:.1f} "
                f"pixels; misfit before training {before.mean():.3g} -> {after.mean():.3g}"
            )
            refined.begin(probe)

    def loaders(
        self, epoch: Epoch, order: torch.Generator, workers: int
    ) -> tuple[Iterable[Batch], Iterable[Batch]]:
        """See `Lesson`."""
        blocks = self.blocks
        drawn = Drawn(blocks, epoch, order, workers, self._simulator, self.options.on)
        each = [[index] for index in range(len(blocks.validation))]
        return drawn, Loader(blocks, blocks.validation, each, workers)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """See `Lesson`."""
        steps = self.network.step_weights()
        groups = [
            {"params": list(self.network.correction.parameters()), "lr": rate},
            {"params": steps, "lr": rate * STEP_RATE},
        ]
        if self.refined is not None:
            own = {"lr": rate * PROBE_RATE, "eps": PROBE_EPSILON}
            groups.append({"params": list(self.refined.parameters()), **own})
        # A training is short: what the gradients were a thousand steps ago is of no use.
        return [{**group, "betas": (0.9, 0.99)} for group in groups]

    def misfit(self, batch: Batch) -> Tensor:
        """Root of the misfit of frames, or of the distance from the known object, such that small
        ones still tell; of all steps where that costs nothing."""
        if "truth" in batch:
            exposure = self._exposed(batch, batch["probe"])
            known = torch.ones_like(exposure.light)
            misfit = self._from_truth(exposure, batch["truth"], known)
            # Nothing is learned of the probe; but whoever trains along must see all parameters.
            return misfit if self.refined is None else misfit + 0 * self.refined.modes.sum()
        exposure = self._exposed(batch, self._probe())
        if self.label is not None:
            return self._from_truth(exposure, *self._label(batch, exposure.shape))
        seen, unseen = _parted(exposure, batch["held"])
        made = self.network.object(seen)
        predicted = unseen.predicted(made).square()
        blocks = len(batch["held"])
        pairs = zip(predicted.chunk(blocks), unseen.amplitude.chunk(blocks), strict=True)
        return torch.stack([_root(self._compare(*pair, 1.0)) for pair in pairs]).mean()

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The misfit of frames that the network does not get to see, in blocks of those that it
        was not trained on. Beside what `Lesson` says, `untrained_loss` is that of the physics steps
        alone."""
        seen, unseen = _parted(self._exposed(batch, self._probe()), batch["held"])
        made = self.network.object(seen)
        flat = unseen.predicted(torch.ones_like(made)).square()
        flat = flat * (unseen.amplitude.square().sum() / flat.sum())
        place = tuple((batch["origin"][:, None] + batch["corners"]).flatten().tolist())
        if place not in self._untrained:
            plain, exposure = self._plain(self.options.steps), self._exposed(batch, self.guess)
            self._untrained[place] = self._each_unseen(plain, exposure, batch["held"]).mean()
        return {
            "val_loss": self._compare(unseen.predicted(made).square(), unseen.amplitude, 1.0),
            "flat_loss": self._compare(flat, unseen.amplitude, 1.0),
            "untrained_loss": self._untrained[place],
            "spread": _spread(made, seen.light),
        }

    def models(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
        """See `Lesson`; a refined probe is a model `probe` with `guess` and `modes`, each
        (P, N, N) complex64 in counts."""
        models = super().models(state)
        if self.refined is not None:
            values = {
                name.removeprefix("refined."): value
                for name, value in state.items()
                if name.startswith("refined.")
            }
            models[PROBE] = {
                "guess": self.guess.cpu().numpy(),
                "modes": self.refined.of(values).cpu().numpy(),
            }
        return models

    def refuse(self, metrics: Mapping[str, float]) -> None:
        """See `Lesson`.

        Raises:
            TrainingError: also where the physics steps alone explain the frames held back as well.
        """
        super().refuse(metrics)
        if not metrics["val_loss"] < metrics["untrained_loss"]:
            raise TrainingError(
                f"the network is no better than its untrained steps: misfit of the frames held "
                f"back {metrics['val_loss']:.4g}, untrained {metrics['untrained_loss']:.4g}; train "
                "longer, on more frames, or lower training.learning_rate"
            )

    def _probe(self) -> Tensor:
        return self.guess if self.refined is None else self.refined()

    def _exposed(self, batch: Batch, probe: Tensor) -> Exposure:
        # Simulated objects were measured where the scan says that it was.
        moved = None if "truth" in batch else self.moved
        return expose(batch, probe, self.intensity_scale, self._shape, moved)

    def _plain(self, steps: int) -> UnrolledNetwork:
        """The physics steps alone."""
        with torch.random.fork_rng():
            plain = UnrolledNetwork(steps, self.options.subsets, channels=4)
        return plain.to(self.guess.device)

    def _each_unseen(self, network: UnrolledNetwork, exposure: Exposure, held: Tensor) -> Tensor:
        """Misfit of each frame held back from a network."""
        seen, unseen = _parted(exposure, held)
        predicted = unseen.predicted(network.object(seen)).square()
        pairs = zip(predicted, unseen.amplitude, strict=True)
        return torch.stack([self._compare(*pair, 1.0) for pair in pairs])

    def _label(self, batch: Batch, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, S, T) of the label where the canvases lie, and 1 where there is a label, else 0."""
        assert self.label is not None
        truth = self.label.new_zeros((len(batch["origin"]), *shape))
        known = truth.real.clone()
        origins = batch["origin"] - (0 if self.moved is None else MARGIN)
        for b, (top, left) in enumerate(origins.tolist()):
            rows, columns = slice(max(top, 0), top + shape[0]), slice(max(left, 0), left + shape[1])
            there = self.label[rows, columns]
            y, x = rows.start - top, columns.start - left
            truth[b, y : y + there.shape[0], x : x + there.shape[1]] = there
            known[b, y : y + there.shape[0], x : x + there.shape[1]] = 1
        return truth, known

    def _from_truth(self, exposure: Exposure, truth: Tensor, known: Tensor) -> Tensor:
        weight = (exposure.illumination / LIT).clamp(max=1) * known
        total = torch.zeros((), device=truth.device)
        made = truth
        for made in self.network.objects(exposure):
            total = EARLIER * total + _root(_distance(made, truth, weight)).mean()
        return total + EDGES * _root(_edge_distance(made, truth, weight)).mean()


def _parted(exposure: Exposure, held: Tensor) -> tuple[Exposure, Exposure]:
    """The frames that the network gets to see, and the others."""
    hidden = held.flatten().tolist()
    seen, unseen = ([f for f, h in enumerate(hidden) if h == kind] for kind in (False, True))
    return exposure.take(seen), exposure.take(unseen)


def _root(misfit: Tensor) -> Tensor:
    return (misfit.clamp(min=0) + 1e-9).sqrt()


def _distance(made: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """(B,) weighted mean square distance of (B, S, T) objects over that of the truth from zero."""
    sides = (-2, -1)
    change = made - _turned(truth, made, weight)
    distance: Tensor = (weight * _square(change)).sum(dim=sides)
    return distance / (weight * _square(truth)).sum(dim=sides)


def _edge_distance(made: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """(B,) the same of the differences between neighbouring pixels: what lies in the low
    frequencies of the phase, which are the last that data tell, would else drown what is fine."""
    change = made - _turned(truth, made, weight)
    total, scale = weight.new_zeros(len(made)), weight.new_zeros(len(made))
    for axis in (-2, -1):
        there = weight.narrow(axis, 1, weight.shape[axis] - 1)
        total = total + (there * _square(change.diff(dim=axis))).sum(dim=(-2, -1))
        scale = scale + (there * _square(truth.diff(dim=axis))).sum(dim=(-2, -1))
    return total / (scale + 1e-9)


def _square(field: Tensor) -> Tensor:
    return field.real.square() + field.imag.square()


def _turned(truth: Tensor, made: Tensor, weight: Tensor) -> Tensor:
    """The truth in the global phase of what was made, which no data tell."""
    overlap = (weight * truth.conj() * made.detach()).sum(dim=(-2, -1), keepdim=True)
    return torch.sgn(overlap) * truth


def _spread(objects: Tensor, light: Tensor) -> Tensor:
    """Standard deviation of (B, S, T) objects over their mean, weighted by light: 0 is flat."""
    weight = light / light.sum(dim=(-2, -1), keepdim=True)
    mean = (weight * objects).sum(dim=(-2, -1), keepdim=True)
    variance = (weight * (objects - mean).abs().square()).sum(dim=(-2, -1))
    return (variance.sqrt() / mean.abs()[:, 0, 0]).mean()
