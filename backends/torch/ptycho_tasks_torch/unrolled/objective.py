"""What the unrolled network learns: to predict frames that it does not see, and simulated objects.

A network that learns to explain the frames that it sees learns to fit their noise. In training some
frames of a block are therefore hidden from the network, and the loss is the misfit of these. Their
noise is independent, so that the best prediction is the one nearest to a frame without noise
(Batson and Royer, Noise2Self, ICML 2019). This needs no known object, and where there is no noise
it loses nothing.

Axis letters: B blocks, D frames in a block, S, T rows and columns of their canvases, P probe modes,
N detector pixels along one side, H, W rows and columns of the object grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_tasks.scan import ScanData, canvas_of, take_frames
from ptycho_tasks_torch.frames.blocks import Batch, Batches, EpochPlan, Loader
from ptycho_tasks_torch.frames.textures import SIDE, TexturePool
from ptycho_tasks_torch.physics.distance import (
    align_phase,
    compare_distances,
    measure_distances,
    scale_truth,
    sum_edges,
    sum_pixels,
)
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.forward import match_light, object_spread
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.probe import is_same_probe, take_lit
from ptycho_tasks_torch.physics.scale import find_photon
from ptycho_tasks_torch.training.objective import Objective, TrainingInputs
from ptycho_tasks_torch.training.weights import PROBE
from ptycho_tasks_torch.unrolled.blocks import (
    MARGIN,
    OWN_SHARE,
    RandomBatches,
    Simulator,
    choose_shown,
    common_shape,
    expose_batch,
    make_frame_blocks,
)
from ptycho_tasks_torch.unrolled.correction import correct_turned, turn_back, turn_canvas
from ptycho_tasks_torch.unrolled.course import Course
from ptycho_tasks_torch.unrolled.network import (
    UnrolledNetwork,
    is_faint,
    make_unrolled_networks,
    rehearse,
    take_up,
)
from ptycho_tasks_torch.unrolled.options import NOTHING, UnrolledOptions
from ptycho_tasks_torch.unrolled.positions import refine_positions
from ptycho_tasks_torch.unrolled.probe_fit import fit_probe
from ptycho_tasks_torch.unrolled.steps import Engine

EDGES = 0.2
"""Weight of the differences between neighbouring pixels of a known object."""
COMMON = ("probe", "scan")
"""What the blocks of a batch have in common."""
LIT = 0.1
"""Share of the strongest light above which a pixel of a known object counts in full."""


class UnrolledObjective(Objective):
    """See the module."""

    guess: Tensor
    label: Tensor | None
    modes: Tensor | None
    """(P, N, N, 2) float32: the fitted probe in counts, dark where it has fewer modes; None where
    it is fixed, or another's."""
    displacement: Tensor | None
    """(M, 2) float32 pixels from the positions of the scan to the refined ones."""
    own: Tensor | None
    """(H, W) complex64: what a part of the scan shows; None where nothing is simulated."""
    network: UnrolledNetwork
    clip = 1.0
    keeps_start = True

    def __init__(self, scan: ScanData, options: UnrolledOptions) -> None:
        """Make a network that does nothing but its physics steps yet.

        Raises:
            ScanError: too few frames, frames that are all dark, or a label that is of no use.
            ConfigError: there is no label, or more groups are asked for than there are.
        """
        super().__init__()
        self.blocks, training = make_frame_blocks(scan, options)
        inputs = TrainingInputs.from_scan(scan, options, training)
        self.options, self.intensity_scale = options, inputs.intensity_scale
        self.photon = find_photon(scan.diffraction)
        self.register_buffer("guess", torch.from_numpy(inputs.probe), persistent=False)
        self.register_buffer("label", inputs.label, persistent=False)
        self.network, _ = make_unrolled_networks(options)
        self._training = training
        modes = None
        if options.probe == "refined" or scan.is_probe_estimated:
            most = max(options.probe_modes or 0, len(self.guess))
            modes = torch.view_as_real(self.guess.new_zeros((most, *self.guess.shape[1:])))
            modes[: len(self.guess)] = torch.view_as_real(self.guess)
        self.register_buffer("modes", modes)
        self._lender: UnrolledObjective | None = None
        self._borrowers: list[UnrolledObjective] = []
        refines_positions = options.positions == "refined"
        self._scan = scan
        self.register_buffer(
            "displacement", torch.zeros((scan.frame_count, 2)) if refines_positions else None
        )
        self._shape = common_shape(self.blocks, MARGIN if refines_positions else 0)
        self._steps = None if options.steps == "auto" else options.steps
        self.register_buffer("own", None)
        self._simulator = None
        if options.on != "scan":
            self._shown = choose_shown(scan, training)
            self.own = torch.ones(self._shown.shape, dtype=torch.complex64)
            self._simulator = Simulator(
                TexturePool(options.seed, side=max(SIDE, *self._shape)),
                self.intensity_scale,
                self.photon,
                lambda: self._probe().detach().cpu().clone(),
                self._shape,
                self._read_own,
                # What a fresh network finds is noisy.
                0.0 if options.start == NOTHING else OWN_SHARE,
            )

    def follow(self, others: Sequence[Objective]) -> None:
        """See `Objective`; from one guess, one probe is fitted, to the scan with most light."""
        super().follow(others)
        lenders = (
            other
            for other in others
            if isinstance(other, UnrolledObjective)
            and other.modes is not None
            and is_same_probe(self.guess.numpy(), other.guess.numpy())
        )
        lender = next(lenders, None)
        if lender is not None:
            self.modes = None
            object.__setattr__(self, "_lender", lender)  # no module of this one
            lender._borrowers.append(self)

    def prepare(self, say: Callable[[str], None]) -> None:
        """See `Objective`: fit a probe that is to be refined, then the positions where those are,
        and reconstruct what objects to learn from are cut from."""
        if self.modes is not None:
            self._fit_probe(self.modes, say)
        with torch.no_grad():
            if self.displacement is not None:
                scale = math.sqrt(self.intensity_scale)
                modes = self._probe() / scale
                refined = refine_positions(self._scan, modes, scale, self.photon, say=say)
                displacement = refined.positions - self._scan.positions
                self.displacement.copy_(torch.from_numpy(displacement))
            if self.own is not None:
                self.own.copy_(self._reconstruct())

    def _read_own(self) -> Tensor:
        assert self.own is not None
        return self.own.cpu()

    def _reconstruct(self) -> Tensor:
        """(H, W) complex64 object of the frames of `_shown`, where their light is."""
        frames, box = self._shown.frames, self._shown.box
        part = take_frames(self._scan, frames)
        if self.displacement is not None:
            moved = part.positions + self.displacement[frames].double().cpu().numpy()
            part = replace(part, positions=moved)
        scale = math.sqrt(self.intensity_scale)
        exposure = expose_scan(part, self._probe() / scale, scale, self.photon)
        canvas = Course(exposure, self.network, self._steps).finish()[0]
        origin = canvas_of(part.positions, part.size).origin
        rows, columns = (
            slice(side.start - first, side.stop - first)
            for side, first in zip(box, origin, strict=True)
        )
        return canvas[rows, columns]

    def _fit_probe(self, modes: Tensor, say: Callable[[str], None]) -> None:
        brightest = max([self, *self._borrowers], key=lambda one: one.intensity_scale)
        count = self.options.probe_modes or len(self.guess)
        fitted = fit_probe(brightest._scan, brightest.guess, count, say, frames=brightest._training)
        fitted = fitted * (self.guess.norm() / brightest.guess.norm())
        # There may be fewer modes than room for them; dark ones are left out later.
        modes.zero_()
        modes[: len(fitted)] = torch.view_as_real(fitted)

    def make_loaders(
        self, epoch: EpochPlan, order: torch.Generator, workers: int
    ) -> tuple[Batches, Batches]:
        """See `Objective`."""
        blocks = self.blocks
        batches = RandomBatches(blocks, epoch, order, workers, self._simulator, self.options.on)
        each = [[index] for index in range(len(blocks.validation))]
        return batches, Loader(blocks, blocks.validation, each, workers)

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """See `Objective`."""
        # A training is short: gradients of a thousand steps ago are useless.
        return [{"params": list(self.network.parameters()), "lr": rate, "betas": (0.9, 0.99)}]

    def loss(self, batch: Batch) -> Tensor:
        """The mean over blocks of the misfit of the hidden frames, or of the distance from a known
        object, each over that before the correction: no dose counts more than others."""
        return torch.stack([self._find_loss(block) for block in _split_blocks(batch)]).mean()

    def _find_loss(self, batch: Batch) -> Tensor:
        """The loss of a batch of one block."""
        if "truth" in batch:
            exposure = self._expose(batch, batch["probe"])
            return self._learn_object(exposure, batch["truth"], batch["turns"][0].tolist())
        exposure = self._expose(batch, self._probe())
        if self.label is not None:
            return self._compare_with_truth(exposure, *self._cut_label(batch, exposure.shape))
        seen, unseen = _split_hidden(exposure, batch["held_back"])
        engine = rehearse(seen, self._steps)
        before = _measure_misfit(unseen, engine.canvas)
        corrected = self._correct_turned(engine, seen, batch["turns"][0].tolist())
        losses = [_measure_misfit(unseen, turn_back(canvas, way)) for way, canvas in corrected]
        return torch.stack(losses).mean() / before

    def _learn_object(self, exposure: Exposure, truth: Tensor, turns: Sequence[int]) -> Tensor:
        """The distance of the corrected object from the truth, over that before, as the prior is
        learned; the mean over the ways in which the block lies."""
        engine, light = rehearse(exposure, self._steps), exposure.light
        # A scale tells of nothing that the network is to find.
        truth = scale_truth(truth, engine.canvas, light)
        before = measure_distances(engine.canvas, truth, light)
        losses = []
        for way, canvas in self._correct_turned(engine, exposure, turns):
            wanted, lit = turn_canvas(truth, way), turn_canvas(light, way)
            losses.append(compare_distances(measure_distances(canvas, wanted, lit), before))
        return torch.stack(losses).mean()

    def _correct_turned(
        self, engine: Engine, exposure: Exposure, turns: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """The ways in which a block lies, and its corrected object that lies so; where photons are
        few, corrected a second time in all but the first."""
        maps = [engine.canvas, engine.show(), exposure.light]
        for number, way in enumerate(turns):
            # Half the precision is enough for a gradient, and twice as fast on newer processors.
            with torch.autocast(engine.canvas.device.type, torch.bfloat16):
                corrected = correct_turned(self.network.correction, maps, exposure.counts, way)
            yield way, corrected
            if number == 0 and is_faint(exposure):
                earlier = turn_back(corrected.detach(), way)
                engine = take_up(exposure, earlier, engine)
                maps = [engine.canvas, engine.show(), exposure.light, earlier]

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`.

        Of the frames hidden from the network, in blocks that it is not trained on.
        """
        seen, unseen = _split_hidden(self._expose(batch, self._probe()), batch["held_back"])
        canvas = self.network.find_object(seen, self._steps)
        if self.mosaic is not None:
            self.mosaic.add(self._place_canvases(batch), canvas, seen.light)
        flat = match_light(unseen.predict(torch.ones_like(canvas)).square(), unseen.amplitude)
        return {
            "val_loss": _measure_misfit(unseen, canvas),
            "flat_loss": _compare(flat.sqrt(), unseen),
            "spread": object_spread(canvas, seen.light),
        }

    def export_further(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
        """See `Objective`; a fitted probe is a model `probe` with `guess` and `modes`, each
        (P, N, N) complex64 in counts."""
        if self.modes is None:
            return {}
        modes = take_lit(torch.view_as_complex(state["modes"])).cpu().numpy()
        return {PROBE: {"guess": self.guess.cpu().numpy(), "modes": modes}}

    def _probe(self) -> Tensor:
        if self._lender is not None:
            lent: Tensor = self._lender._probe()
            lent = lent * (self.guess.norm() / self._lender.guess.norm())
            return lent
        return self.guess if self.modes is None else take_lit(torch.view_as_complex(self.modes))

    def _expose(self, batch: Batch, probe: Tensor) -> Exposure:
        # Simulated objects are measured at the scan's own positions.
        displacement = None if "truth" in batch else self.displacement
        return expose_batch(
            batch, probe, self.intensity_scale, self.photon, self._shape, displacement
        )

    def _place_canvases(self, batch: Batch) -> Tensor:
        """(B, 2) int64 origins on the object grid of the canvases of blocks."""
        return batch["origin"] - (0 if self.displacement is None else MARGIN)

    def _cut_label(self, batch: Batch, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, S, T) of the label where the canvases lie, and 1 where there is a label, else 0."""
        assert self.label is not None
        truth = self.label.new_zeros((len(batch["origin"]), *shape))
        known = truth.real.clone()
        for b, (top, left) in enumerate(self._place_canvases(batch).tolist()):
            rows, columns = slice(max(top, 0), top + shape[0]), slice(max(left, 0), left + shape[1])
            part = self.label[rows, columns]
            y, x = rows.start - top, columns.start - left
            truth[b, y : y + part.shape[0], x : x + part.shape[1]] = part
            known[b, y : y + part.shape[0], x : x + part.shape[1]] = 1
        return truth, known

    def _compare_with_truth(self, exposure: Exposure, truth: Tensor, known: Tensor) -> Tensor:
        weight = (exposure.illumination / LIT).clamp(max=1) * known
        canvas = self.network.find_object(exposure, self._steps)
        distance = _root(_object_distance(canvas, truth, weight)).mean()
        return distance + EDGES * _root(_edge_distance(canvas, truth, weight)).mean()


def _split_blocks(batch: Batch) -> list[Batch]:
    """A batch for each block of a batch."""
    return [
        {name: values if name in COMMON else values[b : b + 1] for name, values in batch.items()}
        for b in range(len(batch["x"]))
    ]


def _split_hidden(exposure: Exposure, hidden: Tensor) -> tuple[Exposure, Exposure]:
    """The frames that the network sees, and those that are hidden from it."""
    is_hidden = hidden.flatten().tolist()
    seen, unseen = ([f for f, h in enumerate(is_hidden) if h == kind] for kind in (False, True))
    return exposure.take(seen), exposure.take(unseen)


def _measure_misfit(frames: Exposure, canvas: Tensor) -> Tensor:
    """Mean square of what amplitudes differ by from the measured ones, with gradients."""
    return _compare(frames.predict(canvas), frames)


def _compare(predicted: Tensor, frames: Exposure) -> Tensor:
    difference = predicted - frames.amplitude
    if frames.has_bad_pixels:
        difference = difference[~frames.amplitude.isnan()]
    return difference.square().mean()


def _root(misfit: Tensor) -> Tensor:
    return (misfit.clamp(min=0) + 1e-9).sqrt()


def _object_distance(canvas: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """(B,) weighted square distance of (B, S, T) objects from the truth, over its square."""
    change = canvas - align_phase(truth, canvas, weight)
    return sum_pixels(change, weight) / sum_pixels(truth, weight)


def _edge_distance(canvas: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """(B,) the same, of the differences between neighbouring pixels.

    Low frequencies of the phase, which are found last, would otherwise hide the fine structure.
    """
    change = canvas - align_phase(truth, canvas, weight)
    return sum_edges(change, weight) / (sum_edges(truth, weight) + 1e-9)
