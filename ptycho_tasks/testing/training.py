"""Checks of what a training gives: bundles, checkpoints, logs, and going on after a kill."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.testing.checks import (
    Cancelled,
    ProgressRecorder,
    check_progress,
    check_same,
)
from ptycho_tasks.testing.other_process import infer_elsewhere
from ptycho_tasks.testing.suite import Suite


class TrainingChecks(Suite):
    """A trained model holds all that inference needs, however the training ended."""

    def test_a_bundle_gives_back_the_model(self, tmp_path: Path) -> None:
        """All that inference needs goes through the bundle: arrays, metadata, history."""
        (tmp_path / BUNDLE_NAME).write_bytes(self._bundle(self.trained()))
        bundle = load_bundle(tmp_path)
        options = msgspec.convert(bundle.params["training"], self.backend.options_type)
        result = self._infer(self.scan(), bundle.model, options)
        check_same(result, self.reconstructed(), "the model out of its bundle")

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
        name, execution = self.backend.name, self._execution()
        result = infer_elsewhere(name, tmp_path, self.scan(), execution, root=self.root)
        check_same(result, self.reconstructed(), "another process")

    def test_a_cancelled_training_goes_on_to_the_same_model(self, tmp_path: Path) -> None:
        """Asked again with the same folder, a training that was cancelled ends as if it had not
        been; where it keeps nothing there, it starts anew."""
        if not self._progress_calls("train"):
            pytest.skip("`train` is silent")
        folder = tmp_path / "work"
        folder.mkdir()
        for at in (1, 2, 2):
            recorder = ProgressRecorder(at, Cancelled())
            with suppress(Cancelled):
                self._train(self.scan(), progress=recorder, work_dir=folder)
        recorder = ProgressRecorder()
        model = self._train(self.scan(), progress=recorder, work_dir=folder)
        same = self._bundles(model) == self._bundles(self.trained())
        assert same, "after a cancelled training another model came out"
        check_progress("train", recorder.calls, resumed=True)

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
        if self._has_refine():
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
