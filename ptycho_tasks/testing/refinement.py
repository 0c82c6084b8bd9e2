"""Checks of `refine`, which goes on from another reconstruction."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from ptycho_tasks.scan import take_frames
from ptycho_tasks.testing.checks import (
    check_better,
    check_close,
    check_same,
    r_factor,
)
from ptycho_tasks.testing.examples import (
    blur_truth,
    copy_reconstruction,
    freeze,
)
from ptycho_tasks.testing.suite import SHIFT, Suite

KEPT = 1.5
"""Largest R-factor of what `refine` makes of the truth, over that of the truth: an engine that goes
on fits the noise, to 1.15; four epochs of error reduction or LSQML from a flat object are at 2.
"""


class RefinementChecks(Suite):
    """What `refine` makes of its start."""

    def test_refine_improves_on_its_start(self) -> None:
        """What `refine` gives is of the right kind, and explains the frames better than what it
        went on from: object, probe and where they lie are understood."""
        self._skip_without_refine()
        check_better(self.refined(), self.start(), self.scan())

    def test_refine_keeps_what_is_right(self) -> None:
        """The object of the start is gone on from: the truth stays about as good as it is, and
        another start gives another object."""
        self._skip_without_refine()
        scan, truth = self.scan(), blur_truth(self.scan(), blur=0.0, beside=1.0)
        result = self._refine(scan, truth)
        ours, begun = (r_factor(scan, one) for one in (result, truth))
        assert ours <= KEPT * begun, (
            f"the truth is not gone on from: R-factor {ours:.3g}, its own is {begun:.3g}"
        )
        alike = result.object.tobytes() == self.refined().object.tobytes()
        assert not alike, "another start makes no difference"

    @pytest.mark.parametrize("part", ["probe", "positions"])
    def test_refine_takes_over(self, part: str) -> None:
        """Probe and positions of the start count, which may be corrected ones, not the scan's."""
        self._skip_without_refine()
        scan, start = self.scan(), self.start()
        error = np.random.default_rng(0).integers(-2, 3, scan.positions.shape)
        wrong = {"probe": scan.probe.conj(), "positions": scan.positions + error}
        measured = freeze(replace(scan, **{part: wrong[part]}))
        result = self._refine(measured, start)
        check_better(result, start, measured)
        # They may be refined further.
        moved = np.abs(result.positions - start.positions).max()
        assert moved < 1, "the positions given back are not those of the start"

    def test_refine_leaves_its_start_as_it_was(self) -> None:
        """The arrays of the start are not changed, though they could be."""
        self._skip_without_refine()
        start, given = self.start(), copy_reconstruction(self.start())
        self._refine(self.scan(), given)
        for name in ("object", "probe", "positions"):
            same = getattr(given, name).tobytes() == getattr(start, name).tobytes()
            assert same, f"`refine` changed the {name} of its start"

    def test_refine_gives_the_same_bytes(self) -> None:
        """Equal requests give equal reconstructions, whatever ran in between."""
        self._skip_without_refine()
        state, numpy_state = random.getstate(), np.random.get_state()
        try:
            random.seed(99)
            np.random.seed(99)
            again = self._refine(self.scan(), self.start())
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
        check_same(again, self.refined(), "the same start and scan")

    def test_refine_follows_a_shift(self) -> None:
        """A scan and a start that lie elsewhere on the object grid give the same object, there."""
        self._skip_without_refine()
        scan, start, here = self.scan(), self.start(), self.refined()
        shift = np.array(SHIFT, dtype=np.float64)
        moved_scan = freeze(replace(scan, positions=scan.positions + shift))
        (row, column), (rows, columns) = start.origin, SHIFT
        origin = row + rows, column + columns
        there = replace(start, origin=origin, positions=start.positions + shift)
        moved = self._refine(moved_scan, there)
        shifted = moved.positions - here.positions
        assert np.allclose(shifted, shift, atol=1e-2), "the positions given back did not shift"
        check_close((moved, moved_scan), (here, scan), "shifted scan and start")

    def test_refine_takes_any_canvas(self) -> None:
        """A start on a larger canvas gives the same object; what lies beside the light is no
        result."""
        self._skip_without_refine()
        start, (row, column) = self.start(), self.start().origin
        image = np.pad(start.object, ((7, 2), (3, 11)), constant_values=5j)
        larger = replace(start, object=image, origin=(row - 7, column - 3))
        result = self._refine(self.scan(), larger)
        check_close((result, self.scan()), (self.refined(), self.scan()), "pixels beside the light")

    def test_refine_takes_the_frames_in_any_order(self) -> None:
        """Scan and start with their frames in another order give the same object; see
        `frames_in_turn`."""
        self._skip_without_refine()
        order = np.random.default_rng(0).permutation(self.scan().frame_count)
        start = replace(self.start(), positions=self.start().positions[order])
        mixed = self._refine(freeze(take_frames(self.scan(), order)), start)
        self._check_mixed(mixed, order, self.refined())
