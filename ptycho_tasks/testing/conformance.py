"""A conformance suite for backends. A backend's tests subclass it in two lines:

    class TestMine(BackendConformance):
        backend = mine.backend

pytest then collects every check. What a check asks for stands in its docstring; class attributes
say what is special about a backend.
"""

from __future__ import annotations

import functools
import random
import signal
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
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
from ptycho_tasks.backends import BackendEntry, execution_type
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.options import ExecutionOptions, SimulationOptions, TrainingOptions
from ptycho_tasks.results.bundle import bundle_bytes, load_bundle
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.system.processes import Stopped
from ptycho_tasks.testing.checks import (
    _RESULT,
    _SCAN,
    TOLERANCE,
    _Cancelled,
    _check_better,
    _check_close,
    _check_explains,
    _check_one_line,
    _check_progress,
    _check_same,
    _difference,
    _left_running,
    _r_factor,
    _refused_or_fine,
    _running,
    _Told,
)
from ptycho_tasks.testing.given import (
    _copied,
    _frozen,
    _simulated,
    _start_of,
    _truth,
    _with_feature,
)

BLUR = 2.0
"""Standard deviation in pixels of the blur of what `refine` is given to start from. Its R-factor is
0.15 on the suite's scan, of an empty object 0.24; one epoch of error reduction or LSQML brings it
below 0.09.
"""
KEPT = 1.5
"""Largest R-factor of what `refine` makes of the truth, over that of the truth: an engine that goes
on fits the noise, to 1.15; four epochs of error reduction or LSQML from a flat object are at 2.
"""
SHIFT = (13, 5)
"""By how many rows and columns the positions are moved; unlike, so that swapped axes show."""
FEATURES = ("another scan", "probe modes", "several scans")
"""What a backend may declare in `refuses`."""


class BackendConformance:
    """Checks that a backend keeps what `ptycho_tasks.backend` says of backends."""

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
    infer than the one trained on, several `probe modes`, `several scans` in one file."""
    frames_in_turn: ClassVar[bool] = False
    """The object is updated frame by frame, so that another order of the frames gives another
    object, which explains them as well."""
    silent: ClassVar[bool] = False
    """No method tells `progress` how far it is."""
    root: ClassVar[Path] = Path()
    """The project whose `backends/` folder holds the backend, where it is not installed."""

    # --- what it is --------------------------------------------------------------------------

    def test_can_be_loaded(self) -> None:
        """It has what a backend must have, and documented options with valid defaults."""
        name = getattr(self.backend, "name", "")
        BackendEntry(name, "as given to the suite", lambda: self.backend).load()

    def test_options_are_frozen(self) -> None:
        """Options are values: nothing may change them between two stages."""
        kind = self.backend.options_type
        with pytest.raises(AttributeError):
            kind().seed = 1  # type: ignore[misc]

    def test_declares_what_the_suite_knows(self) -> None:
        """A misspelt feature in `refuses` would refuse nothing."""
        unknown = sorted(set(self.refuses) - set(FEATURES))
        assert not unknown, f"`refuses` names {unknown}; known: {', '.join(FEATURES)}"

    # --- what it gives -----------------------------------------------------------------------

    def test_explains_the_frames(self) -> None:
        """What `train` and `infer` give is of the right kind, and predicts the frames far better
        than an empty object: positions, axes, the Fourier transform and units are understood."""
        _check_explains(self.reconstructed(), self.scan())

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
        _check_same(twice, self.reconstructed(), "the same model and scan")

    def test_shifted_positions_shift_the_object(self) -> None:
        """A scan that lies elsewhere on the object grid gives the same object, there."""
        scan, (rows, columns) = self.scan(), SHIFT
        shift = np.array(SHIFT, dtype=np.float64)
        truth = np.pad(_truth(scan), ((rows, 0), (columns, 0)), mode="edge")
        moved_scan = _frozen(replace(scan, positions=scan.positions + shift, object=truth))
        moved = self._train_and_infer(moved_scan)
        here = self.reconstructed()
        shifted = moved.positions - here.positions
        assert np.allclose(shifted, shift, atol=1e-2), "the positions given back did not shift"
        _check_close((moved, moved_scan), (here, scan), "shifted positions")

    def test_positions_are_used(self) -> None:
        """Frames at each other's positions give another object, or an error."""
        scan = self.scan()
        mixed = np.roll(scan.positions, scan.frame_count // 2, axis=0)
        try:
            made = self._train_and_infer(_frozen(replace(scan, positions=mixed)))
        except PtychoTasksError:
            return
        difference = _difference((made, scan), (self.reconstructed(), scan))
        assert difference > TOLERANCE, "wrong positions change nothing"

    def test_the_order_of_frames_does_not_count(self) -> None:
        """The frames of a scan in another order give the same object; see `frames_in_turn`."""
        self._check_order(self._options(), self.trained(), self.reconstructed())

    def test_gridsize_is_handled_or_refused(self) -> None:
        """Each `gridsize` that the options accept is used, or refused by name."""
        if "gridsize" not in self.backend.options_type.__struct_fields__:
            pytest.skip("the options have no gridsize")
        made: dict[int, Reconstruction] = {}
        for gridsize in (1, 2, 3):
            given = msgspec.to_builtins(self._options()) | {"gridsize": gridsize}
            try:
                options = msgspec.convert(given, self.backend.options_type)
            except msgspec.ValidationError:
                continue
            try:
                model = self._train(self.scan(), options)
                made[gridsize] = self._infer(self.scan(), model, options)
            except PtychoTasksError as error:
                if "gridsize" not in str(error):
                    pytest.fail(f"gridsize {gridsize} is refused as: {error}")
                continue
            _check_explains(made[gridsize], self.scan())
            self._check_order(options, model, made[gridsize])
        assert made, "no gridsize is handled"
        alike = len({one.object.tobytes() for one in made.values()}) < len(made)
        assert not alike, f"of gridsize {', '.join(map(str, made))} one makes no difference"

    @pytest.mark.parametrize("feature", FEATURES)
    def test_a_feature_works_or_is_refused(self, feature: str) -> None:
        """What is not declared in `refuses` works; what is declared is refused in one line."""
        trained_on = inferred = _with_feature(self.scan(), feature)
        if feature == "another scan":
            trained_on = self.scan()
            simulation = msgspec.structs.replace(self.simulation, seed=self.simulation.seed + 1)
            inferred = _simulated(simulation)
        try:
            made = self._infer(inferred, self._train(trained_on))
        except PtychoTasksError as error:
            if feature not in self.refuses:
                pytest.fail(f"{feature}: {error}")
            _check_one_line(error)
            return
        assert feature not in self.refuses, f"{feature}: declared as refused, but accepted"
        assert len(made.probe) >= len(inferred.probe), f"{feature}: lost {feature}"
        _check_explains(made, inferred)

    # --- bundles -----------------------------------------------------------------------------

    def test_a_bundle_gives_back_the_model(self, tmp_path: Path) -> None:
        """All that inference needs goes through the bundle: arrays, metadata, history."""
        (tmp_path / BUNDLE_NAME).write_bytes(self._bundle(self.trained()))
        bundle = load_bundle(tmp_path)
        options = msgspec.convert(bundle.params["training"], self.backend.options_type)
        made = self._infer(self.scan(), bundle.model, options)
        _check_same(made, self.reconstructed(), "the model out of its bundle")

    def test_kept_checkpoints_can_be_inferred(self) -> None:
        """Each of the model's `checkpoints` is a model too, and holds all that inference needs."""
        if not self.trained().checkpoints:
            pytest.skip("the model has no checkpoints")
        for name, kept in self.trained().checkpoints.items():
            try:
                self._infer(self.scan(), kept)
            except PtychoTasksError as error:
                pytest.fail(f"the checkpoint `{name}` cannot be inferred: {error}")

    def test_another_process_infers_the_same(self, tmp_path: Path) -> None:
        """A process that only finds the backend by its name and reads bundle and scan from disk
        gives the same: nothing that training left in memory is needed."""
        (tmp_path / BUNDLE_NAME).write_bytes(self._bundle(self.trained()))
        write_scan(tmp_path / _SCAN, self.scan())
        execution = msgspec.json.encode(self._execution()).decode()
        given = [self.backend.name, str(tmp_path), execution]
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from ptycho_tasks.testing.checks import infer_from_disk; infer_from_disk()",
                *given,
            ],
            cwd=self.root.absolute(),
            text=True,
            capture_output=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"the process failed:\n{done.stderr}"
        with np.load(tmp_path / _RESULT) as result:
            made = Reconstruction(
                result["object"],
                (int(result["origin"][0]), int(result["origin"][1])),
                result["probe"],
                result["positions"],
            )
        _check_same(made, self.reconstructed(), "another process")

    # --- what it does meanwhile --------------------------------------------------------------

    def test_progress_leads_from_the_start_to_the_end(self) -> None:
        """Progress is told of 0 before the first step, and then rises to the total. Only one of
        `train` and `infer` may be silent, and `refine` may not: what is never told can be neither
        watched nor ended."""
        told = self._told("train"), self._told("infer")
        assert any(told) or self.silent, "neither `train` nor `infer` ever calls `progress`"
        for method, calls in zip(("train", "infer"), told, strict=True):
            _check_progress(method, calls)
        if self._refines():
            calls = self._told("refine")
            assert calls or self.silent, "`refine` never calls `progress`"
            _check_progress("refine", calls)

    @pytest.mark.parametrize("ending", ["an error", "a signal", "Ctrl-C"])
    @pytest.mark.parametrize("method", ["train", "infer", "refine"])
    def test_an_exception_from_progress_comes_out(self, method: str, ending: str) -> None:
        """What `progress` raises ends the work at once and comes out as it is: neither swallowed
        nor turned into something else; no thread or process works on."""
        if method == "refine":
            self._skip_without_refine()
        count = len(self._told(method))
        if not count:
            pytest.skip(f"`{method}` is silent")
        for at in sorted({1, (count + 1) // 2, count}):
            error = {"an error": _Cancelled(), "a signal": Stopped(143)}.get(
                ending, KeyboardInterrupt()
            )
            told = _Told(at, error)
            before, handler = _running(), signal.getsignal(signal.SIGINT)
            try:
                self._run(method, told)
            except type(error):
                pass
            except (Exception, SystemExit) as other:
                pytest.fail(f"`{method}` turned {error!r} from `progress` into {other!r}")
            else:
                pytest.fail(f"`{method}` swallowed {error!r} from `progress`")
            finally:
                after = signal.signal(signal.SIGINT, handler)
            assert after == handler, f"`{method}` left Ctrl-C handled otherwise"
            left = _left_running(before)
            assert not left, f"`{method}` left running: {', '.join(left)}"
            assert len(told.calls) == at, f"`{method}` called `progress` after it had raised"

    def test_a_cancelled_training_goes_on_to_the_same_model(self, tmp_path: Path) -> None:
        """Asked again with the same folder, a training that was cancelled ends as if it had not
        been; where it keeps nothing there, it starts anew."""
        if not self._told("train"):
            pytest.skip("`train` is silent")
        folder = tmp_path / "work"
        folder.mkdir()
        for at in (1, 2, 2):
            told = _Told(at, _Cancelled())
            with suppress(_Cancelled):
                self._train(self.scan(), progress=told, work_dir=folder)
        told = _Told()
        model = self._train(self.scan(), progress=told, work_dir=folder)
        same = self._bundles(model) == self._bundles(self.trained())
        assert same, "after a cancelled training another model came out"
        _check_progress("train", told.calls, resumed=True)

    def test_a_folder_of_other_epochs_leads_to_the_same_model(self, tmp_path: Path) -> None:
        """What a training of more or fewer epochs kept in the folder is gone on from only where
        that gives the model of a training that found the folder empty."""
        epochs = self._options().epochs
        for others in {epochs + 1, max(1, epochs - 1)}:
            folder = tmp_path / str(others)
            folder.mkdir()
            options = msgspec.structs.replace(self._options(), epochs=others)
            self._train(self.scan(), options, work_dir=folder)
            model = self._train(self.scan(), work_dir=folder)
            same = self._bundle(model) == self._bundle(self.trained())
            assert same, f"{epochs} epochs after {others} in the same folder give another model"

    def test_writes_no_file_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a work folder nothing is written: files are the core's."""
        folder = tmp_path / "empty"
        folder.mkdir()
        monkeypatch.chdir(folder)
        self._train_and_infer(self.scan())
        if self._refines():
            self._refine(self.scan(), self.start())
        written = sorted(path.name for path in folder.iterdir())
        assert not written, f"left in the working folder: {', '.join(written)}"

    def test_logs_change_no_result(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a folder for logs, which need not be there yet, the same model comes out, and
        nothing is written beside it."""
        here, logs = tmp_path / "empty", tmp_path / "training" / "logs"
        here.mkdir()
        monkeypatch.chdir(here)
        before = set(tmp_path.rglob("*"))
        model = self._train(self.scan(), log_dir=logs)
        same = self._bundles(model) == self._bundles(self.trained())
        assert same, "with a folder for logs another model came out"
        written = sorted(set(tmp_path.rglob("*")) - before - {logs, *logs.parents})
        beside = [str(path.relative_to(tmp_path)) for path in written if logs not in path.parents]
        assert not beside, f"left beside the folder for logs: {', '.join(beside)}"

    # --- going on from another reconstruction ------------------------------------------------

    def test_refine_improves_on_its_start(self) -> None:
        """What `refine` gives is of the right kind, and explains the frames better than what it
        went on from: object, probe and where they lie are understood."""
        self._skip_without_refine()
        _check_better(self.refined(), self.start(), self.scan())

    def test_refine_keeps_what_is_right(self) -> None:
        """The object of the start is gone on from: the truth stays about as good as it is, and
        another start gives another object."""
        self._skip_without_refine()
        scan, truth = self.scan(), _start_of(self.scan(), blur=0.0, beside=1.0)
        made = self._refine(scan, truth)
        ours, begun = (_r_factor(scan, one) for one in (made, truth))
        assert ours <= KEPT * begun, (
            f"the truth is not gone on from: R-factor {ours:.3g}, its own is {begun:.3g}"
        )
        alike = made.object.tobytes() == self.refined().object.tobytes()
        assert not alike, "another start makes no difference"

    @pytest.mark.parametrize("part", ["probe", "positions"])
    def test_refine_takes_over(self, part: str) -> None:
        """Probe and positions of the start count, which may be corrected ones, not the scan's."""
        self._skip_without_refine()
        scan, start = self.scan(), self.start()
        error = np.random.default_rng(0).integers(-2, 3, scan.positions.shape)
        wrong = {"probe": scan.probe.conj(), "positions": scan.positions + error}
        measured = _frozen(replace(scan, **{part: wrong[part]}))
        made = self._refine(measured, start)
        _check_better(made, start, measured)
        # They may be refined further.
        moved = np.abs(made.positions - start.positions).max()
        assert moved < 1, "the positions given back are not those of the start"

    def test_refine_leaves_its_start_as_it_was(self) -> None:
        """The arrays of the start are not changed, though they could be."""
        self._skip_without_refine()
        start, given = self.start(), _copied(self.start())
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
        _check_same(again, self.refined(), "the same start and scan")

    def test_refine_follows_a_shift(self) -> None:
        """A scan and a start that lie elsewhere on the object grid give the same object, there."""
        self._skip_without_refine()
        scan, start, here = self.scan(), self.start(), self.refined()
        shift = np.array(SHIFT, dtype=np.float64)
        moved_scan = _frozen(replace(scan, positions=scan.positions + shift))
        (row, column), (rows, columns) = start.origin, SHIFT
        origin = row + rows, column + columns
        there = replace(start, origin=origin, positions=start.positions + shift)
        moved = self._refine(moved_scan, there)
        shifted = moved.positions - here.positions
        assert np.allclose(shifted, shift, atol=1e-2), "the positions given back did not shift"
        _check_close((moved, moved_scan), (here, scan), "shifted scan and start")

    def test_refine_takes_any_canvas(self) -> None:
        """A start on a larger canvas gives the same object; what lies beside the light is no
        result."""
        self._skip_without_refine()
        start, (row, column) = self.start(), self.start().origin
        image = np.pad(start.object, ((7, 2), (3, 11)), constant_values=5j)
        larger = replace(start, object=image, origin=(row - 7, column - 3))
        made = self._refine(self.scan(), larger)
        _check_close((made, self.scan()), (self.refined(), self.scan()), "pixels beside the light")

    def test_refine_takes_the_frames_in_any_order(self) -> None:
        """Scan and start with their frames in another order give the same object; see
        `frames_in_turn`."""
        self._skip_without_refine()
        order = np.random.default_rng(0).permutation(self.scan().frame_count)
        start = replace(self.start(), positions=self.start().positions[order])
        mixed = self._refine(_frozen(take_frames(self.scan(), order)), start)
        self._check_mixed(mixed, order, self.refined())

    # --- what it cannot use ------------------------------------------------------------------

    def test_a_dark_scan_is_no_crash(self) -> None:
        """Frames without light give a `PtychoTasksError`, if not a result."""
        scan = self.scan()
        dark = _frozen(replace(scan, diffraction=np.zeros_like(scan.diffraction)))
        _refused_or_fine(lambda: self._train_and_infer(dark))
        _refused_or_fine(lambda: self._infer(dark, self.trained()))
        if self._refines():
            _refused_or_fine(lambda: self._refine(dark, self.start()))

    def test_too_few_frames_are_no_crash(self) -> None:
        """One frame, or three, give a `PtychoTasksError`, if not a result."""
        for count in (1, 3):
            few = _frozen(take_frames(self.scan(), np.arange(count)))
            _refused_or_fine(functools.partial(self._train_and_infer, few))
            _refused_or_fine(functools.partial(self._infer, few, self.trained()))
            if self._refines():
                start = replace(self.start(), positions=few.positions)
                _refused_or_fine(functools.partial(self._refine, few, start))

    def test_frames_of_another_size_are_no_crash(self) -> None:
        """A scan with frames of another size than those trained on gives a `PtychoTasksError`,
        if not a result."""
        size = self.simulation.size // 2
        simulation = msgspec.structs.replace(self.simulation, size=size, probe_radius=0.0)
        _refused_or_fine(lambda: self._infer(_simulated(simulation), self.trained()))

    # --- how the checks run it ---------------------------------------------------------------

    @classmethod
    @functools.cache
    def scan(cls) -> ScanData:
        """The scan to train on; its arrays are read-only, as those of a mapped file are."""
        return _simulated(cls.simulation)

    @classmethod
    @functools.cache
    def trained(cls) -> TrainedModel:
        """A model trained on it."""
        return cls._train(cls.scan())

    @classmethod
    @functools.cache
    def reconstructed(cls) -> Reconstruction:
        """The scan inferred with that model."""
        return cls._infer(cls.scan(), cls.trained())

    @classmethod
    @functools.cache
    def start(cls) -> Reconstruction:
        """What another backend might make of the scan: blurred, and zero where it saw nothing."""
        return _start_of(cls.scan(), BLUR, beside=0.0)

    @classmethod
    @functools.cache
    def refined(cls) -> Reconstruction:
        """What `refine` makes of it."""
        return cls._refine(cls.scan(), cls.start())

    @classmethod
    @functools.cache
    def _told(cls, method: str) -> list[tuple[Any, Any, Any]]:
        told = _Told()
        cls._run(method, told)
        return told.calls

    @classmethod
    def _run(cls, method: str, progress: Progress) -> None:
        if method == "train":
            cls._train(cls.scan(), progress=progress)
        elif method == "refine":
            cls._refine(cls.scan(), cls.start(), progress=progress)
        else:
            cls._infer(cls.scan(), cls.trained(), progress=progress)

    @classmethod
    def _options(cls) -> TrainingOptions:
        return cls.backend.options_type() if cls.options is None else cls.options

    @classmethod
    def _execution(cls) -> ExecutionOptions:
        if cls.execution is not None:
            return cls.execution
        return execution_type(cls.backend)(accelerator="cpu", threads=1)

    @classmethod
    def _refines(cls) -> bool:
        return callable(getattr(cls.backend, "refine", None))

    @classmethod
    def _skip_without_refine(cls) -> None:
        if not cls._refines():
            pytest.skip("the backend has no method `refine`")

    @classmethod
    def _train(
        cls,
        scan: ScanData,
        options: TrainingOptions | None = None,
        *,
        progress: Progress = no_progress,
        work_dir: Path | None = None,
        log_dir: Path | None = None,
    ) -> TrainedModel:
        request = TrainRequest(
            scan,
            options or cls._options(),
            cls._execution(),
            progress,
            work_dir,
            log_dir=log_dir,
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
        given = cls.backend.refine(request)  # type: ignore[attr-defined]  # what is optional
        return checked_reconstruction(given, measured, cls.backend.name, "refine")

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
        cls, options: TrainingOptions, model: TrainedModel, made: Reconstruction
    ) -> None:
        order = np.random.default_rng(0).permutation(cls.scan().frame_count)
        mixed = cls._infer(_frozen(take_frames(cls.scan(), order)), model, options)
        cls._check_mixed(mixed, order, made)

    @classmethod
    def _check_mixed(
        cls, mixed: Reconstruction, order: NDArray[np.int64], made: Reconstruction
    ) -> None:
        """Check what was made of the scan's frames in another order against `made` of the scan."""
        scan = cls.scan()
        # Positions may be refined, so that they are compared with each other.
        moved = np.abs(mixed.positions - made.positions[order]).max()
        assert moved < 1, "the positions given back are not in the order of the frames"
        if not cls.frames_in_turn:
            _check_close((mixed, scan), (made, scan), "frames in another order")
            return
        unmixed = replace(mixed, positions=mixed.positions[np.argsort(order)])
        ours, theirs = (_r_factor(scan, one) for one in (made, unmixed))
        assert theirs < 1.2 * ours, (
            f"frames in another order are explained worse: R-factor {theirs:.3g}, not {ours:.3g}"
        )
