"""What a training starts from: the network of the package, that of a file, or a fresh one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ptycho_tasks.backend import InferRequest, TrainedModel, TrainRequest
from ptycho_tasks.errors import BundleError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.results.bundle import bundle_bytes, load_bundle
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.training import trainer
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.correction import Correction
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.start import PRIOR

pytestmark = pytest.mark.usefixtures("few_objects", "few_trials")

CPU = TorchExecution(accelerator="cpu", threads=1)
FRESH = UnrolledOptions(start="nothing", channels=4, steps=6)
TUNED = msgspec.structs.replace(FRESH, on="scan", epochs=2, batch_size=16, neighbours=16)
CONFIG = """\
name: tiny
source:
  simulate: {size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}
backend: unrolled
training: {steps: 4}
execution: {accelerator: cpu, threads: 1}
"""


def train(scans, options=FRESH, **more) -> TrainedModel:
    scans = scans if isinstance(scans, list) else [scans]
    return backend.train(TrainRequest(scans, options, CPU, **more))


def write_bundle(folder: Path, model: TrainedModel, options=FRESH, **more) -> Path:
    made_by = {"backend": "unrolled", "backend_version": backend.version, **more}
    params = {"training": msgspec.to_builtins(options)}
    folder.mkdir(exist_ok=True)
    (folder / BUNDLE_NAME).write_bytes(bundle_bytes(model, size=32, params=params, **made_by))
    return folder


def weights(model: TrainedModel) -> dict[str, np.ndarray]:
    return dict(model.models["diffraction_to_obj"])


def random_model(scan, options=FRESH) -> TrainedModel:
    """One whose network changes the object at random."""
    model, generator = train(scan, options), np.random.default_rng(0)
    last = weights(model)["correction.network.last.weight"]
    last[...] = generator.normal(size=last.shape)
    return model


# --- nothing learned -------------------------------------------------------------------------


def test_the_default_learns_nothing_and_gives_the_network_of_the_package(scan):
    model = train(scan, UnrolledOptions())
    for name, array in load_bundle(PRIOR).model.models["diffraction_to_obj"].items():
        np.testing.assert_array_equal(weights(model)[name], array)
    counts = np.square(scan.diffraction, dtype=np.float64).mean()
    assert model.metadata["intensity_scale"] == pytest.approx(counts)
    assert (model.metadata["N"], list(model.history)) == (32, [])


def test_options_without_effect_are_told(scan):
    lines: list[str] = []
    train(scan, msgspec.structs.replace(FRESH, on="both", batch_size=16), say=lines.append)
    assert lines == [
        "training.epochs is 0, and nothing is learned: training.on, training.batch_size without "
        "effect; set training.epochs, 16 say, or leave them out"
    ]


def test_a_fresh_network_is_left_out(scan, monkeypatch):
    """It is neither evaluated nor spoken of."""
    monkeypatch.setattr(Correction, "forward", lambda *_: pytest.fail("it is evaluated"))
    lines: list[str] = []
    backend.infer(InferRequest(scan, train(scan), FRESH, CPU, say=lines.append))
    assert lines == ["6 steps, as asked for"]


@pytest.mark.parametrize("side", [2, 4, 10])
def test_few_frames_are_reconstructed_without_training(side):
    few = simulate(SimulationOptions(size=32, grid=side, step=4.0, photons=1e6, seed=1))
    options = UnrolledOptions()
    made = backend.infer(InferRequest(few, train(few, options), options, CPU))
    assert np.isfinite(made.object).all()


def test_several_scans_without_training_have_a_scale_each(scan):
    dim = simulate(SimulationOptions(size=32, grid=4, step=4.0, photons=1e4, seed=1))
    scales = [train(one).metadata["intensity_scale"] for one in (scan, dim)]
    together = train([scan, dim]).metadata
    assert together["intensity_scales"] == scales
    assert together["intensity_scale"] == pytest.approx(np.sqrt(np.prod(scales)))


def test_a_probe_is_refined_without_training(scan):
    options = msgspec.structs.replace(FRESH, probe="refined", batch_size=16)
    probe = train(scan, options).models["probe"]
    assert probe["guess"].shape == probe["modes"].shape == (1, 32, 32)


def test_lightning_is_not_imported_to_learn_nothing(write_project):
    code = (
        "import sys; from ptycho_tasks.commands.cli import main; sys.argv[1:] = "
        "['train', '--config', 'ptycho.yaml', '--output-dir', 'out', '--train-data-file', 'a.npz']"
        "\ntry: main()\nexcept SystemExit as end: print(end.code)\n"
        "print('lightning' in sys.modules, 'torch' in sys.modules)"
    )
    project = write_project(CONFIG)
    write_scan(project / "a.npz", simulate(SimulationOptions(size=32, grid=4, step=4.0)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-2:] == ["None", "False True"], done.stdout + done.stderr


# --- a network of a file ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", BUNDLE_NAME])
def test_a_training_starts_from_the_network_of_a_file(scan, tmp_path, name):
    model = random_model(scan)
    folder = write_bundle(tmp_path / "bundle", model)
    started = train(scan, msgspec.structs.replace(FRESH, start=str(folder / name)))
    for key, array in weights(model).items():
        np.testing.assert_array_equal(weights(started)[key], array)


def test_where_the_core_says_that_a_file_lies_is_where_it_is_read(scan, tmp_path):
    folder = write_bundle(tmp_path / "bundle", random_model(scan))
    options = msgspec.structs.replace(FRESH, start="elsewhere")
    assert backend.files(options) == {"start": Path("elsewhere") / BUNDLE_NAME}
    started = train(scan, options, files={"start": folder / BUNDLE_NAME})
    assert weights(started)["correction.network.last.weight"].any()


def test_files_that_do_not_fit_are_refused_in_one_line(scan, tmp_path):
    def refused(folder: Path, **options) -> str:
        start = msgspec.structs.replace(FRESH, start=str(folder), **options)
        with pytest.raises(BundleError) as caught:
            train(scan, start)
        assert str(caught.value).startswith("training.start: ")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    model = train(scan)
    right = write_bundle(tmp_path / "right", model)
    assert "no such bundle" in refused(tmp_path / "nowhere")
    assert "has 4 channels, and training.channels is 8; set" in refused(right, channels=8)
    other = write_bundle(tmp_path / "other", model, backend="pinn")
    assert "was made by the backend `pinn`, version" in refused(other)
    old = write_bundle(tmp_path / "old", model, backend_version="1")
    assert "`unrolled`, version 1, not by `unrolled`, version" in refused(old)
    lacking = write_bundle(tmp_path / "lacking", TrainedModel({"a": {"b": np.zeros(2)}}))
    assert "holds no model" in refused(lacking)
    content = (right / BUNDLE_NAME).read_bytes()
    (right / BUNDLE_NAME).write_bytes(content[:-100] + bytes(100))
    assert "damaged" in refused(right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": 8}, "channels 8 does not fit the pretrained network, which has 32"),
        ({"max_minutes": 1.0}, "max_minutes 1 ends a training, and with epochs 0 there is none"),
        ({"start": " "}, "blank|pattern|matching"),
        ({"start": "Pretrained"}, "start Pretrained: write pretrained in small letters"),
    ],
)
def test_options_that_do_not_fit_the_start_are_refused(wrong, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(wrong, UnrolledOptions)


# --- training that does not help -------------------------------------------------------------


def test_a_training_that_ends_no_better_gives_the_network_as_it_was(scan, tmp_path):
    """Also the probe: as it was calibrated."""
    lines: list[str] = []
    options = msgspec.structs.replace(TUNED, learning_rate=1e-20, probe="refined")
    model, before = (
        train(scan, one, say=lines.append)
        for one in (options, msgspec.structs.replace(options, epochs=0))
    )
    assert any("the bundle gets the network as it was at the start" in line for line in lines)
    assert model.metadata["epoch"] == 0
    assert len(model.history) == 2
    for name, arrays in before.models.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(model.models[name][key], array)


def test_a_training_that_helps_is_kept(large_scan):
    lines: list[str] = []
    model = train(large_scan, msgspec.structs.replace(TUNED, epochs=4), say=lines.append)
    assert lines == []
    best = model.history[model.metadata["epoch"] - 1]
    assert best["val_loss"] < model.metadata["start_loss"]


class InterruptionError(Exception):
    """What ends a training that is watched."""


@pytest.mark.usefixtures("every_epoch")
def test_the_start_outlives_an_interruption(scan, tmp_path, monkeypatch):
    """Weights and scores: the network is not validated again as it is then."""
    options = msgspec.structs.replace(TUNED, learning_rate=1e-20)

    def progress(done, total, metrics):
        if metrics and done == 1:
            raise InterruptionError

    whole = train(scan, options)
    with pytest.raises(InterruptionError):
        train(scan, options, progress=progress, work_dir=tmp_path)
    runs: list[trainer.TrainingRun] = []
    resume = trainer.TrainingRun.resume
    monkeypatch.setattr(
        trainer.TrainingRun, "resume", lambda run, state: (runs.append(run), resume(run, state))
    )
    made = train(scan, options, work_dir=tmp_path)
    assert not runs[0].is_start_unknown
    assert made.metadata == whole.metadata
    assert list(made.history) == list(whole.history)
    assert all(np.array_equal(array, weights(whole)[key]) for key, array in weights(made).items())


# --- with doit -------------------------------------------------------------------------------


def test_the_content_of_the_start_counts_and_not_its_place(write_project, doit, build, scan):
    project = write_project(CONFIG.replace("{steps: 4}", "{steps: 4, start: mine}"))
    shutil.copytree(PRIOR.parent, project / "mine", ignore=lambda *_: ["__pycache__"])
    assert "train" in build(project, "train")
    config = project / "ptycho.yaml"
    config.write_text(CONFIG)
    assert build(project, "train") == []  # the same network, from the package
    config.write_text(CONFIG.replace("{steps: 4}", "{steps: 4, start: mine}"))
    options = UnrolledOptions(start="nothing")
    write_bundle(project / "mine", random_model(scan, options), options)
    assert "mine/wts.h5.zip changed" in doit(project, "why", "train").stdout
    assert build(project, "train") == ["train"]
    shutil.rmtree(project / "mine")
    shutil.rmtree(project / "fixtures")
    for message in ("there is no ", "mine is a file that is not called wts.h5.zip, nor a folder"):
        refused = doit(project)
        assert refused.returncode == 2
        assert "error: ptycho.yaml:5: training.start: " in refused.stderr
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (project / "fixtures").exists()  # nothing was started
        (project / "mine").write_bytes(b"")
    (project / "mine").unlink()
    place = project / "mine" / BUNDLE_NAME
    place.mkdir(parents=True)
    for message in ("is a folder", "is damaged, or no zip", "is damaged, or no zip"):
        refused = doit(project)
        assert f"training.start: {place} {message}; correct the path" in refused.stderr
        assert not (project / "fixtures").exists()
        if place.is_dir():
            place.rmdir()
            place.write_text("text")
        else:
            place.write_bytes(PRIOR.read_bytes()[:-1])
    config.write_text(CONFIG.replace("{steps: 4}", "{steps: 4, start: pretraned}"))
    assert "wts.h5.zip (did you mean `pretrained`?); correct" in doit(project).stderr


def test_a_training_does_not_start_from_itself(write_project, doit):
    start = "start: runs/default/training"
    done = doit(write_project(CONFIG.replace("{steps: 4}", f"{{steps: 4, {start}}}")), "train")
    assert done.returncode == 2
    assert "training.start: runs/default/training/wts.h5.zip is what the task" in done.stderr
