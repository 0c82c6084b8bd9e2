"""Checks of what a reconstruction is made from, and of scans that give none."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from ptycho_tasks.backend import (
    Reconstruction,
)
from ptycho_tasks.backends import api_version
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.scan import take_frames
from ptycho_tasks.testing.checks import (
    TOLERANCE,
    check_close,
    check_explains,
    check_leaves_out,
    check_no_crash,
    check_one_line,
    check_same,
    measure_difference,
)
from ptycho_tasks.testing.examples import (
    add_feature,
    freeze,
    get_truth,
    simulate_scan,
)
from ptycho_tasks.testing.suite import SCAN_FEATURES, SHIFT, Suite


class ReconstructionChecks(Suite):
    """Frames, positions, seeds and features count as they should."""

    def test_explains_the_frames(self) -> None:
        """What `train` and `infer` give is of the right kind, and predicts the frames far better
        than an empty object: positions, axes, the Fourier transform and units are understood."""
        check_explains(self.reconstructed(), self.scan())

    def test_the_same_seed_gives_the_same_bytes(self) -> None:
        """Equal requests give equal models and reconstructions, whatever ran in between; another
        seed is as good, and may give others."""
        options = self._options()
        other = msgspec.structs.replace(options, seed=options.seed + 1)
        self._train_and_infer(self.scan(), other)
        state, numpy_state = random.getstate(), np.random.get_state()
        try:
            random.seed(99)
            np.random.seed(99)
            again = self._train(self.scan())
            assert self._bundles(again) == self._bundles(self.trained()), "another model came out"
            twice = self._infer(self.scan(), again)
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
        check_same(twice, self.reconstructed(), "the same model and scan")

    def test_shifted_positions_shift_the_object(self) -> None:
        """A scan that lies elsewhere on the object grid gives the same object, there."""
        scan, (rows, columns) = self.scan(), SHIFT
        shift = np.array(SHIFT, dtype=np.float64)
        truth = np.pad(get_truth(scan), ((rows, 0), (columns, 0)), mode="edge")
        moved_scan = freeze(replace(scan, positions=scan.positions + shift, object=truth))
        moved = self._train_and_infer(moved_scan)
        here = self.reconstructed()
        shifted = moved.positions - here.positions
        assert np.allclose(shifted, shift, atol=1e-2), "the positions given back did not shift"
        check_close((moved, moved_scan), (here, scan), "shifted positions")

    def test_positions_are_used(self) -> None:
        """Frames at each other's positions give another object, or an error."""
        scan = self.scan()
        mixed = np.roll(scan.positions, scan.frame_count // 2, axis=0)
        try:
            result = self._train_and_infer(freeze(replace(scan, positions=mixed)))
        except PtychoTasksError:
            return
        difference = measure_difference((result, scan), (self.reconstructed(), scan))
        assert difference > TOLERANCE, "wrong positions change nothing"

    def test_the_order_of_frames_does_not_count(self) -> None:
        """The frames of a scan in another order give the same object; see `frames_in_turn`."""
        self._check_order(self._options(), self.trained(), self.reconstructed())

    def test_gridsize_is_handled_or_refused(self) -> None:
        """Each `gridsize` that the options accept is used, or refused by name."""
        if "gridsize" not in self.backend.options_type.__struct_fields__:
            pytest.skip("the options have no gridsize")
        result: dict[int, Reconstruction] = {}
        for gridsize in (1, 2, 3):
            given = msgspec.to_builtins(self._options()) | {"gridsize": gridsize}
            try:
                options = msgspec.convert(given, self.backend.options_type)
            except msgspec.ValidationError:
                continue
            try:
                model = self._train(self.scan(), options)
                result[gridsize] = self._infer(self.scan(), model, options)
            except PtychoTasksError as error:
                if "gridsize" not in str(error):
                    pytest.fail(f"gridsize {gridsize} is refused as: {error}")
                continue
            check_explains(result[gridsize], self.scan())
            self._check_order(options, model, result[gridsize])
        assert result, "no gridsize is handled"
        alike = len({one.object.tobytes() for one in result.values()}) < len(result)
        assert not alike, f"of gridsize {', '.join(map(str, result))} one makes no difference"

    @pytest.mark.parametrize("feature", SCAN_FEATURES)
    def test_a_feature_works_or_is_refused(self, feature: str) -> None:
        """What is not declared in `refuses` works; what is declared is refused in one line. A
        backend of API version 1 is never given bad pixels."""
        if feature == "bad pixels" and api_version(self.backend) < 2:
            pytest.skip("the backend is of API version 1, which knows of no bad pixels")
        trained_on = inferred = add_feature(self.scan(), feature)
        if feature == "another scan":
            trained_on = self.scan()
            simulation = msgspec.structs.replace(self.simulation, seed=self.simulation.seed + 1)
            inferred = simulate_scan(simulation)
        try:
            result = self._infer(inferred, self._train(trained_on))
        except PtychoTasksError as error:
            if feature not in self.refuses:
                pytest.fail(f"{feature}: {error}")
            check_one_line(error)
            return
        assert feature not in self.refuses, f"{feature}: declared as refused, but accepted"
        assert len(result.probe) >= len(inferred.probe), f"{feature}: lost {feature}"
        check_explains(result, inferred)
        if feature == "bad pixels":
            check_leaves_out(result, self.reconstructed(), self.scan())

    def test_a_dark_scan_is_no_crash(self) -> None:
        """Frames without light give a `PtychoTasksError`, if not a result."""
        scan = self.scan()
        dark = freeze(replace(scan, diffraction=np.zeros_like(scan.diffraction)))
        check_no_crash(lambda: self._train_and_infer(dark))
        check_no_crash(lambda: self._infer(dark, self.trained()))
        if self._has_refine():
            check_no_crash(lambda: self._refine(dark, self.start()))

    def test_too_few_frames_are_no_crash(self) -> None:
        """One frame, or three, give a `PtychoTasksError`, if not a result."""
        for count in (1, 3):
            few = freeze(take_frames(self.scan(), np.arange(count)))
            check_no_crash(functools.partial(self._train_and_infer, few))
            check_no_crash(functools.partial(self._infer, few, self.trained()))
            if self._has_refine():
                start = replace(self.start(), positions=few.positions)
                check_no_crash(functools.partial(self._refine, few, start))

    def test_frames_of_another_size_are_no_crash(self) -> None:
        """A scan with frames of another size than those trained on gives a `PtychoTasksError`,
        if not a result."""
        size = self.simulation.size // 2
        simulation = msgspec.structs.replace(self.simulation, size=size, probe_radius=0.0)
        check_no_crash(lambda: self._infer(simulate_scan(simulation), self.trained()))
