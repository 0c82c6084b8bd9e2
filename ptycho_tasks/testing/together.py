"""Checks of a training on several scans, for backends of an API version that knows of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import msgspec
import pytest

from ptycho_tasks.backend import TrainedModel
from ptycho_tasks.backends import api_version
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.testing.checks import check_explains, check_one_line
from ptycho_tasks.testing.examples import simulate_scan
from ptycho_tasks.testing.suite import TOGETHER, Suite


class TogetherChecks(Suite):
    """One model learns from scans of other probes, doses, positions and numbers of frames."""

    @classmethod
    @functools.cache
    def scans(cls) -> Sequence[ScanData]:
        """The scan to train on, and one of fewer photons and more frames, under another probe."""
        one = cls.simulation
        other = msgspec.structs.replace(
            one,
            probe="disc" if one.probe == "defocused" else "defocused",
            photons=one.photons / 10,
            grid=one.grid + 1,
            seed=one.seed + 1,
        )
        return [cls.scan(), simulate_scan(other)]

    @classmethod
    @functools.cache
    def trained_together(cls) -> TrainedModel:
        """A model trained on both."""
        if api_version(cls.backend) < 2:
            pytest.skip("the backend is of API version 1, which learns from one scan")
        return cls._train(cls.scans())

    def test_scans_together_work_or_are_refused(self) -> None:
        """A model of several scans infers each of them; a backend that declares `scans together`
        in `refuses` raises a ConfigError in one line."""
        is_refused = TOGETHER in self.refuses
        try:
            model = self.trained_together()
        except PtychoTasksError as error:
            if not is_refused:
                pytest.fail(f"{TOGETHER}: {error}")
            check_one_line(error)
            if not isinstance(error, ConfigError):
                pytest.fail(f"refused as a {type(error).__name__}, not as a ConfigError")
            return
        assert not is_refused, f"{TOGETHER}: declared as refused, but accepted"
        for scan in self.scans():
            try:
                result = self._infer(scan, model)
            except PtychoTasksError as error:
                pytest.fail(f"one of the scans that were learned from: {error}")
            check_explains(result, scan)

    def test_scans_together_give_the_same_bytes(self) -> None:
        """Equal requests of several scans give equal models."""
        try:
            first = self.trained_together()
        except ConfigError:
            pytest.skip(f"the backend refuses {TOGETHER}")
        again = self._bundles(self._train(self.scans()))
        assert again == self._bundles(first), "the same scans gave another model"
