"""What all checks of the conformance suite share: what a backend declares, and how it is run."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from ptycho_tasks.backend import (
    Backend,
    InferRequest,
    Progress,
    Reconstruction,
    RefineRequest,
    TrainedModel,
    TrainRequest,
    checked_model,
    checked_reconstruction,
    no_progress,
)
from ptycho_tasks.backends import execution_type
from ptycho_tasks.options import ExecutionOptions, SimulationOptions, TrainingOptions
from ptycho_tasks.results.bundle import bundle_bytes
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.testing.checks import (
    ProgressRecorder,
    check_close,
    r_factor,
)
from ptycho_tasks.testing.examples import (
    blur_truth,
    freeze,
    simulate_scan,
)

BLUR = 2.0
"""Standard deviation in pixels of the blur of what `refine` is given to start from. Its R-factor is
0.15 on the suite's scan, of an empty object 0.24; one epoch of error reduction or LSQML brings it
below 0.09.
"""
SHIFT = (13, 5)
"""By how many rows and columns the positions are moved; unlike, so that swapped axes show."""
SCAN_FEATURES = ("another scan", "probe modes", "several scans", "bad pixels")
TOGETHER = "scans together"
FEATURES = (*SCAN_FEATURES, TOGETHER)
"""What a backend may declare in `refuses`."""


class Suite:
    """What a backend's tests declare, and scans and results that several checks use."""

    backend: ClassVar[Backend]
    options: ClassVar[TrainingOptions | None] = None
    """Small ones, so that a training takes a second or less; None takes the defaults."""
    execution: ClassVar[ExecutionOptions | None] = None
    """Where to run; None takes one thread of the CPU. Equal bytes are asked for, which a GPU may
    not give."""
    simulation: ClassVar[SimulationOptions] = SimulationOptions(
        size=32, grid=6, step=4.0, jitter=1.0, seed=4
    )
    """The scan to train on."""
    refuses: ClassVar[Collection[str]] = ()
    """Those of `FEATURES` that the backend cannot do, and must then refuse: `another scan` to
    infer than the one trained on, several `probe modes`, `several scans` in one file, `bad
    pixels`, `scans together` to train on."""
    frames_in_turn: ClassVar[bool] = False
    """The object is updated frame by frame, so that another order of the frames gives another
    object, which explains them as well."""
    silent: ClassVar[bool] = False
    """No method tells `progress` how far it is."""
    root: ClassVar[Path] = Path()
    """The project whose `backends/` folder holds the backend, where it is not installed."""

    @classmethod
    @functools.cache
    def scan(cls) -> ScanData:
        """The scan to train on; its arrays are read-only, as those of a mapped file are."""
        return simulate_scan(cls.simulation)

    @classmethod
    @functools.cache
    def trained(cls) -> TrainedModel:
        """A model trained on it."""
        model: TrainedModel = cls._watched("train")[0]
        return model

    @classmethod
    @functools.cache
    def reconstructed(cls) -> Reconstruction:
        """The scan inferred with that model."""
        result: Reconstruction = cls._watched("infer")[0]
        return result

    @classmethod
    @functools.cache
    def start(cls) -> Reconstruction:
        """What another backend might make of the scan: blurred, and zero where it saw nothing."""
        return blur_truth(cls.scan(), BLUR, beside=0.0)

    @classmethod
    @functools.cache
    def refined(cls) -> Reconstruction:
        """What `refine` makes of it."""
        result: Reconstruction = cls._watched("refine")[0]
        return result

    @classmethod
    def _progress_calls(cls, method: str) -> list[tuple[Any, Any, Any]]:
        return cls._watched(method)[1]

    @classmethod
    @functools.cache
    def _watched(cls, method: str) -> tuple[Any, list[tuple[Any, Any, Any]]]:
        """What a method gives, and its calls of `progress`; others run unwatched, and are to give
        the same."""
        recorder = ProgressRecorder()
        return cls._run(method, recorder), recorder.calls

    @classmethod
    def _run(cls, method: str, progress: Progress) -> TrainedModel | Reconstruction:
        if method == "train":
            return cls._train(cls.scan(), progress=progress)
        if method == "refine":
            return cls._refine(cls.scan(), cls.start(), progress=progress)
        return cls._infer(cls.scan(), cls.trained(), progress=progress)

    @classmethod
    def _options(cls) -> TrainingOptions:
        return cls.backend.options_type() if cls.options is None else cls.options

    @classmethod
    def _execution(cls) -> ExecutionOptions:
        if cls.execution is not None:
            return cls.execution
        return execution_type(cls.backend)(accelerator="cpu", threads=1)

    @classmethod
    def _files(cls, options: TrainingOptions) -> Mapping[str, Path]:
        """The files that the backend reads with some options, as the core gives them."""
        list_files = getattr(cls.backend, "files", None)
        return {} if list_files is None else dict(list_files(options))

    @classmethod
    def _has_refine(cls) -> bool:
        return callable(getattr(cls.backend, "refine", None))

    @classmethod
    def _skip_without_refine(cls) -> None:
        if not cls._has_refine():
            pytest.skip("the backend has no method `refine`")

    @classmethod
    def _train(
        cls,
        scans: ScanData | Sequence[ScanData],
        options: TrainingOptions | None = None,
        *,
        progress: Progress = no_progress,
        work_dir: Path | None = None,
        log_dir: Path | None = None,
    ) -> TrainedModel:
        request = TrainRequest(
            [scans] if isinstance(scans, ScanData) else scans,
            options or cls._options(),
            cls._execution(),
            progress,
            work_dir,
            log_dir=log_dir,
            files=cls._files(options or cls._options()),
        )
        return checked_model(cls.backend.train(request), cls.backend.name)

    @classmethod
    def _infer(
        cls,
        scan: ScanData,
        model: TrainedModel,
        options: TrainingOptions | None = None,
        *,
        progress: Progress = no_progress,
    ) -> Reconstruction:
        # A scan that was measured holds no ground truth.
        measured = replace(scan, object=None)
        request = InferRequest(
            measured, model, options or cls._options(), cls._execution(), progress
        )
        return checked_reconstruction(cls.backend.infer(request), measured, cls.backend.name)

    @classmethod
    def _refine(
        cls, scan: ScanData, start: Reconstruction, *, progress: Progress = no_progress
    ) -> Reconstruction:
        measured = replace(scan, object=None)
        request = RefineRequest(measured, start, cls._options(), cls._execution(), progress)
        refined = cls.backend.refine(request)  # type: ignore[attr-defined]  # what is optional
        return checked_reconstruction(refined, measured, cls.backend.name, "refine")

    @classmethod
    def _train_and_infer(
        cls, scan: ScanData, options: TrainingOptions | None = None
    ) -> Reconstruction:
        return cls._infer(scan, cls._train(scan, options), options)

    @classmethod
    def _bundle(cls, model: TrainedModel) -> bytes:
        return bundle_bytes(
            model,
            backend=cls.backend.name,
            backend_version=cls.backend.version,
            size=cls.simulation.size,
            params={"training": msgspec.to_builtins(cls._options())},
        )

    @classmethod
    def _bundles(cls, model: TrainedModel) -> dict[str, bytes]:
        """The bundle of a model, and those of its checkpoints by name."""
        kept = {name: cls._bundle(state) for name, state in model.checkpoints.items()}
        return {"": cls._bundle(model), **kept}

    @classmethod
    def _check_order(
        cls, options: TrainingOptions, model: TrainedModel, result: Reconstruction
    ) -> None:
        order = np.random.default_rng(0).permutation(cls.scan().frame_count)
        mixed = cls._infer(freeze(take_frames(cls.scan(), order)), model, options)
        cls._check_mixed(mixed, order, result)

    @classmethod
    def _check_mixed(
        cls, mixed: Reconstruction, order: NDArray[np.int64], result: Reconstruction
    ) -> None:
        """Check the reconstruction of frames in another order against that of the scan."""
        scan = cls.scan()
        # Positions may be refined, so that they are compared with each other.
        moved = np.abs(mixed.positions - result.positions[order]).max()
        assert moved < 1, "the positions given back are not in the order of the frames"
        if not cls.frames_in_turn:
            check_close((mixed, scan), (result, scan), "frames in another order")
            return
        unmixed = replace(mixed, positions=mixed.positions[np.argsort(order)])
        ours, theirs = (r_factor(scan, one) for one in (result, unmixed))
        assert theirs < 1.2 * ours, (
            f"frames in another order are explained worse: R-factor {theirs:.3g}, not {ours:.3g}"
        )
