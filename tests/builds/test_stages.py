"""The stages in one process: what a backend may give and do, and what is found before it runs."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_tasks.builds import inputs, stages
from ptycho_tasks.config.document import read_config
from ptycho_tasks.config.factories import (
    create_inference_payload,
    create_training_payload,
)
from ptycho_tasks.config.payload import Folders
from ptycho_tasks.errors import (
    ConfigError,
    FileWriteError,
    ScanError,
    TrainingError,
)
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.results.folder_record import RECORD_NAME, list_recorded
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.scans.fixture import read_fixture
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.system import processes
from ptycho_tasks.system.cache import forget_all
from stage_project import CONFIG, SCAN, Project, make_project, refusal


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return make_project(tmp_path, monkeypatch)


# --- what a backend gives ----------------------------------------------------------------------

NO_MODELS = {
    "given = None": "gave None from `train`; expected a TrainedModel",
    "given = {}": "gave a `dict` from `train`",
    "given = replace(given, models=[1, 2])": "`models` as a `list`; expected a mapping",
    "given = replace(given, models={1: {}})": "`models` as a `dict`; expected a mapping with text",
    "given = replace(given, models={'a/b': {}})": "`models` with the name 'a/b'",
    "given = replace(given, models={'m': [1.0]})": "`models`, m, as a `list`",
    "given = replace(given, models={'m': {'w': 'text'}})": "`models`, m/w, as <U4",
    "given = replace(given, models={'m': {'w': {}}})": "`models`, m/w, as object",
    "given = replace(given, models={'m': {'w': [[1], [1, 2]]}})": "`models`, m/w, as no array",
    "given = replace(given, models={'m': {'w': np.array([np.nan])}})": "NaN or Inf in m/w",
    "given = replace(given, metadata=None)": "`metadata` as None",
    "given = replace(given, metadata={'s': float('nan')})": "`metadata`, s: Out of range",
    "given = replace(given, metadata={'s': np.ones(2)})": "`metadata`, s: a `ndarray` in it",
    "given = replace(given, history='abc')": "`history` as a `str`; expected a list",
    "given = replace(given, history=[3.0])": "`history`, epoch 1, as a `float`",
    "given = replace(given, history=[{'loss': '0.5'}])": "`history`, epoch 1, loss, as <U3",
    "given = replace(given, history=[{'loss': [1, 2]}])": "a single one",
    "given = replace(given, history=[{'loss': np.inf}])": "NaN or Inf in history, epoch 1, loss",
}


@pytest.mark.parametrize(("code", "expected"), NO_MODELS.items(), ids=NO_MODELS)
def test_what_is_no_model_is_refused_and_nothing_published(project, code, expected):
    message = refusal(project.write(train=code).train)
    assert message.startswith("backend `mine`")
    assert expected in message
    assert not project.training().bundle_file.exists()


def test_numpy_scalars_become_plain_numbers(project):
    code = (
        "given = replace(given, metadata={'scale': np.float32(0.5), 'deep': [np.int64(2)]}, "
        "history=[{'val/loss': np.float32(0.25)}])"
    )
    model = load_bundle(project.write(train=code).train().parent).model
    assert model.metadata == {"scale": 0.5, "deep": [2]}
    assert model.history == [{"val/loss": 0.25}]


NO_RECONSTRUCTIONS = {
    "given = None": "gave None from `infer`; expected a Reconstruction",
    "given = (1, 2)": "gave a `tuple` from `infer`",
    "given = replace(given, origin=None)": "`origin` as None; expected integers of shape (2)",
    "given = replace(given, origin=(0.5, 0.5))": "`origin` as float64 of shape (2,)",
    "given = replace(given, origin=(90, 90))": "do not fit `object`: ",
    "given = replace(given, object=given.object.real)": "`object` as float32",
    "given = replace(given, object=1e300 * given.object.astype(complex))": "`object` with NaN",
    "given = replace(given, object=0 * given.object)": "`object` that is zero",
    "given = replace(given, object=np.float32(1e30) * given.object)": "largest |object| is 1e+30",
    "given = replace(given, probe=np.empty(0, np.complex64))": "expected complex of shape (any, 16",
    "given = replace(given, probe=given.probe[:0])": "`probe` that is zero",
    "given = replace(given, probe=0 * given.probe)": "`probe` that is zero",
    "given = replace(given, probe=np.float32(1e30) * given.probe)": "`probe` too bright",
    "given = replace(given, positions=given.positions + 1e300)": "do not fit `object`: ",
    "given = replace(given, losses=['a'])": "`losses` as <U1",
    "given = replace(given, losses=[float('nan')])": "`losses` with NaN or Inf",
}


@pytest.mark.parametrize(("code", "expected"), NO_RECONSTRUCTIONS.items(), ids=NO_RECONSTRUCTIONS)
def test_what_is_no_reconstruction_is_refused_and_nothing_published(project, code, expected):
    message = refusal(project.write(infer=code).infer)
    assert expected in message
    assert not project.inference().output_dir.exists()


def test_a_reconstruction_in_other_types_of_the_same_kind_is_taken(project):
    plain = project.infer()
    code = (
        "given = Reconstruction(given.object.astype(complex), [np.int32(0), np.int64(0)], "
        "given.probe.astype(complex), given.positions, losses=np.ones(2, np.float16))"
    )
    (project.root / "other").mkdir()
    assert Project(project.root / "other").write(infer=code).infer() == plain


# --- what a backend does -----------------------------------------------------------------------

WHERE = pytest.mark.parametrize("method", ["train", "infer"])


@WHERE
def test_a_backend_that_ends_the_program_is_at_fault(project, method):
    project.write(**{method: "__import__('os')._exit(0)"})
    assert "backend `mine` ended the program with os._exit(0)" in refusal(getattr(project, method))


@WHERE
def test_a_signal_ends_the_run_and_not_only_the_backend(project, method, capfd):
    before = signal.signal(signal.SIGTERM, processes.stop)
    try:
        with pytest.raises(processes.Stopped) as caught:
            getattr(project.write(**{method: "signal.raise_signal(signal.SIGTERM)"}), method)()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 128 + signal.SIGTERM
    assert capfd.readouterr().err.splitlines()[-1] == "stopped by SIGTERM"


def test_doit_can_hand_a_stop_on_as_text():
    assert processes.Stopped("143").code == 143


@pytest.mark.parametrize(
    ("more", "text", "expected"),
    [
        (
            "execution: {accelerator: mps}\n",
            "execution.accelerator: there is none",
            "ptycho.yaml:5: execution.accelerator: there is none",
        ),
        ("", "the scan does not suit", "the scan does not suit"),
    ],
)
def test_an_option_that_a_backend_cannot_honour_names_its_line(project, more, text, expected):
    project.write(train=f"raise ConfigError({text!r})", more=more)
    assert refusal(project.train, ConfigError, 2) == expected


# --- what is found before a backend runs -------------------------------------------------------


def dark(scan: ScanData) -> ScanData:
    return replace(scan, diffraction=0 * scan.diffraction)


def test_dark_frames_are_refused_wherever_they_are_read(project):
    write_scan(project.root / "dark.npz", dark(SCAN))
    project.write(more="inference: {scan: dark.npz}\n")
    assert "dark.npz: key 'diff3d' is dark" in refusal(project.infer, ScanError)
    assert not project.inference().output_dir.exists()
    (project.root / "ptycho.yaml").write_text(CONFIG.replace("scan.npz", "dark.npz"))
    refusal(lambda: stages.check_source(project.training()), ScanError)
    refusal(lambda: stages.make_fixture(project.training()), ScanError)


def test_dark_frames_are_dropped_where_that_is_asked_for(project):
    lit_last = np.arange(SCAN.frame_count)[:, None, None] >= 5
    write_scan(project.root / "scan.npz", replace(SCAN, diffraction=lit_last * SCAN.diffraction))
    assert "5 of 25 frames hold no light (0-4)" in refusal(project.train, ScanError)
    text = CONFIG.replace("scan.npz", "scan.npz, dark_frames: drop").replace(
        "{sub", "{strategy: first, sub"
    )
    (project.root / "ptycho.yaml").write_text(text)
    project.train()
    cut = read_fixture(project.root / "fixtures" / "tiny.npz")
    np.testing.assert_array_equal(cut.positions, SCAN.positions[5 : 5 + cut.frame_count])


def test_several_scans_are_not_laid_onto_one_canvas(project):
    index = np.repeat([0, 3], [10, SCAN.frame_count - 10])
    write_scan(project.root / "two.npz", replace(SCAN, scan_index=index))
    project.write(more="inference: {scan: two.npz}\n")
    message = refusal(project.infer, ConfigError, 2)
    assert "two.npz: key 'scan_index' holds 2 scans (0, 3)" in message
    text = (project.root / "ptycho.yaml").read_text()
    (project.root / "ptycho.yaml").write_text(text.replace("scan.npz", "scan.npz, scan_index: 0"))
    assert project.infer()["frames"] == 10


def test_a_simulation_without_light_is_not_written(project):
    config = CONFIG.replace("file: scan.npz", "simulate: {size: 16, grid: 5, photons: 1e-9}")
    (project.root / "ptycho.yaml").write_text(config)
    before = project.files()
    assert "raise `photons`" in refusal(lambda: stages.check_source(project.training()), ScanError)
    assert project.files() == before


@pytest.mark.parametrize("key", ["file", "product"])
def test_a_missing_source_is_found_first(project, key):
    sources = {"file": "file: nope.h5", "product": "file: scan.npz, product: nope.h5"}
    (project.root / "ptycho.yaml").write_text(CONFIG.replace("file: scan.npz", sources[key]))
    message = refusal(lambda: stages.check_source(project.training()), ConfigError, 2)
    assert re.match(rf"ptycho.yaml:2: source.{key}: there is no .*nope.h5; correct", message)


def test_a_scan_that_only_inference_needs_may_be_missing_until_then(project):
    project.write(more="inference: {scan: nope.npz}\n")
    project.train()
    message = refusal(lambda: stages.infer(project.inference()), ConfigError, 2)
    where = f"ptycho.yaml:5: inference.scan: there is no {project.root / 'nope.npz'}"
    assert message == f"{where}; correct the path"


# --- what is a result ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("given = replace(given, object=given.object * 3)", "R-factor 2"),
        ("given = replace(given, object=given.object[::-1] * 1.3)", "flat 0.1"),
    ],
)
def test_what_explains_nothing_is_no_result(project, code, said):
    before = project.write().infer()
    files = {path: path.read_bytes() for path in project.inference().output_files}
    forget_all()
    error = refusal(project.write(infer=code).infer, TrainingError)
    assert "no better than a flat object" in error
    assert said in error
    assert {path: path.read_bytes() for path in files} == files
    assert before["flat"]["r_factor"] > before["r_factor"]
    assert before["noise"]["r_factor"] == pytest.approx(before["r_factor"], rel=0.1)


def test_a_probe_that_is_only_an_estimate_is_named_where_nothing_is_explained(project):
    write_scan(project.root / "scan.npz", replace(SCAN, is_probe_estimated=True))
    error = refusal(project.write(infer="given = replace(given, object=given.object * 3)").infer)
    assert "; nothing was written; the probe is only an estimate from the frames: take a" in error


@pytest.mark.parametrize(("factor", "warned"), [(0.9, True), (1.0, False)])
def test_a_misfit_far_above_the_noise_is_said_even_where_all_else_is_quiet(
    project, capsys, factor, warned
):
    code = f"given = replace(given, object=given.object * {factor})"
    project.write(infer=code, more="execution: {quiet: true}\n").infer()
    said = capsys.readouterr().out
    assert bool(re.fullmatch(r"warning +R-factor 0\.1.* times that of noise; .*\n", said)) == warned
    assert warned or not said
    assert "train longer" not in said  # nothing was trained
    # Few frames far off: the rest hides them from all that is told of the whole.
    frames = SCAN.diffraction.copy()
    frames[5, 3, 3] = 2e3
    write_scan(project.root / "scan.npz", replace(SCAN, diffraction=frames))
    project.write(infer=code, more="execution: {quiet: true}\n").infer()
    told = capsys.readouterr().out.startswith("warning    most of the misfit is that of frame 5, ")
    assert told != warned


def test_a_background_is_told(project, capsys):
    frames = np.square(SCAN.diffraction)
    frames = np.sqrt(frames + 0.15 * frames.mean()).astype(np.float32)
    write_scan(project.root / "scan.npz", replace(SCAN, diffraction=frames))
    project.write(more="execution: {quiet: true}\n").infer()
    said = capsys.readouterr().out
    assert re.search(r"about 1\d % of the light is in all pixels .* clip; else `ptycho-tasks", said)


def test_frames_that_would_fit_better_elsewhere_are_told(project, capsys):
    """The object has given way to positions that are off, and explains the frames about as well."""
    off = np.random.default_rng(3).normal(scale=0.4, size=SCAN.positions.shape)
    write_scan(project.root / "scan.npz", replace(SCAN, positions=SCAN.positions + off))
    metrics = project.write(more="execution: {quiet: true}\n").infer()
    said = capsys.readouterr().out
    assert re.match(r"warning +frames fit the object better 0\.\d+ pixels \(root mean", said)
    assert metrics["displacement_px"] == pytest.approx(0.55, rel=0.3)
    write_scan(project.root / "scan.npz", SCAN)
    assert project.write(more="execution: {quiet: true}\n").infer()["displacement_px"] < 0.05
    assert not capsys.readouterr().out


def test_a_misfit_far_above_the_noise_names_what_may_help(project, capsys):
    code, quiet = "given = replace(given, object=given.object * 0.9)", "execution: {quiet: true}\n"
    project.write(infer=code, more=quiet).infer()
    said = capsys.readouterr().out
    assert "; training.probe: refined (backend unrolled) fits" in said
    assert "multiples" not in said
    thousand = np.float32(1e3)
    scaled = replace(SCAN, diffraction=SCAN.diffraction * thousand, probe=SCAN.probe * thousand)
    write_scan(project.root / "scan.npz", scaled)
    forget_all()
    project.write(infer=code, more=quiet).infer()
    said = capsys.readouterr().out
    assert re.search(
        r"times that of noise; the frames hold whole multiples of 1e\+06, and no", said
    )
    backend = project.root / "backends" / "mine.py"
    fitting = (
        "from typing import Annotated\nfrom ptycho_tasks.options import doc\n"
        "class Options(TrainingOptions, frozen=True, kw_only=True):\n"
        "    probe: Annotated[str, doc('what becomes of it')] = 'refined'\n\nclass Mine:"
    )
    text = backend.read_text().replace("class Mine:", fitting)
    backend.write_text(text.replace('"1", TrainingOptions', '"1", Options'))
    forget_all()
    project.infer()
    assert "training.probe" not in capsys.readouterr().out


def test_the_product_of_the_source_is_that_of_no_other_scan(project):
    project.infer()
    project.inference().output_files[0].rename(project.root / "product.h5")
    fewer = take_frames(SCAN, np.arange(20))
    write_scan(project.root / "other.npz", fewer)
    source = "source: {file: scan.npz, product: product.h5}\n"
    project.write(more="inference: {scan: other.npz}\n")
    config = project.root / "ptycho.yaml"
    config.write_text(config.read_text().replace("source: {file: scan.npz}\n", source))
    assert stages.infer(project.inference())["frames"] == 20


# --- part of a scan, kept checkpoints, places of one's own --------------------------------------


def test_inference_of_fewer_frames_takes_them_evenly(project):
    assert project.write(more="inference: {n_groups: 9}\n").infer()["frames"] == 9
    with h5py.File(project.inference().output_files[0]) as file:
        taken = file["ptycho_tasks/positions"][()]
    assert np.array_equal(taken, SCAN.positions[::3])


def test_frames_are_let_go_of_whenever_a_backend_tells_its_progress(project, monkeypatch):
    let_go = []
    monkeypatch.setattr("ptycho_tasks.scan.release_pages", let_go.append)
    project.write(infer="[request.progress(done, 3, {}) for done in range(4)]").infer()
    assert len(let_go) == 4
    assert all(isinstance(frames, np.memmap) for frames in let_go)


def test_inference_of_more_frames_than_there_are_is_refused(project):
    project.write(more="inference: {n_groups: 26}\n")
    said = refusal(project.infer, ConfigError, 2)
    assert said.startswith("ptycho.yaml:5: inference.n_groups: 26 frames are asked for, but scan")


@pytest.mark.parametrize(("frames", "first"), [("even", 0), ("odd", 1)])
def test_halves_are_every_second_frame(project, frames, first):
    project.write(more=f"inference: {{frames: {frames}}}\n").infer()
    with h5py.File(project.inference().output_files[0]) as file:
        taken = file["ptycho_tasks/positions"][()]
    assert np.array_equal(taken, SCAN.positions[first::2])


def test_more_frames_than_a_half_has_are_refused(project):
    project.write(more="inference: {frames: odd, n_groups: 13}\n")
    said = refusal(project.infer, ConfigError, 2)
    assert "n_groups: 13 frames are asked for, but scan.npz has 12 odd" in said


def test_kept_checkpoints_are_bundles_and_those_of_before_are_gone(project):
    code = (
        "n = request.options.epochs; weights = {'m': {'w': np.full(3, float(n))}}; "
        "given = replace(given, checkpoints={f'epoch_{n}': TrainedModel(weights)})"
    )
    for epoch in (1, 2):
        bundle = project.write(train=code, more=f"training: {{epochs: {epoch}}}\n").train()
        kept = project.training().checkpoints_dir
        assert {folder.name for folder in kept.iterdir()} == {RECORD_NAME, f"epoch_{epoch}"}
        assert load_bundle(kept / f"epoch_{epoch}").model.models["m"]["w"].tolist() == [epoch] * 3
        assert load_bundle(bundle.parent).model.models["m"]["w"].tolist() == [1.0] * 3


def test_files_of_others_among_checkpoints_and_logs_stay(project):
    code = (
        "(request.log_dir / 'a').mkdir(parents=True, exist_ok=True); "
        "(request.log_dir / 'a' / 'log').write_text('x'); "
        "given = replace(given, checkpoints={'best': TrainedModel(given.models)})"
    )
    training = project.write(train=code).training()
    mine = [training.checkpoints_dir / "best" / "notes.txt", training.log_dir / "a" / "notes.txt"]
    for path in mine:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    for _ in range(2):
        project.train()
        assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert load_bundle(training.checkpoints_dir / "best")
    assert list_recorded(training.checkpoints_dir) == [training.checkpoints_dir / "best/wts.h5.zip"]
    assert list_recorded(training.log_dir) == [training.log_dir / "a" / "log"]


def test_a_checkpoint_with_a_path_for_a_name_is_refused(project):
    project.write(train="given = replace(given, checkpoints={'../x': given})")
    assert "`checkpoints` with the name '../x'" in refusal(project.train)


def test_a_command_trains_on_a_scan_and_infers_into_folders_of_its_choice(project):
    file = read_config(project.root / "ptycho.yaml")
    folders = Folders(model_dir=project.root / "out", output_dir=project.root / "images")
    before = project.files()
    bundle = stages.train(create_training_payload(file, folders=folders))
    metrics = stages.infer(create_inference_payload(file, folders=folders))
    assert bundle == project.root / "out" / "wts.h5.zip"
    assert load_bundle(project.root / "out").params["flat"]["train_data_file_path"] == "scan.npz"
    assert metrics["frames"] == 25
    new = project.files() - before
    assert {name.partition("/")[0] for name in new} == {"out", "images"}


def test_training_on_a_scan_takes_the_frames_that_a_fixture_would_hold(project):
    code = "given = replace(given, metadata={'frames': request.scan.frame_count})"
    project.write(train=code)
    file = read_config(project.root / "ptycho.yaml")
    folders = Folders(model_dir=project.root / "out")
    stages.train(create_training_payload(file, folders=folders))
    project.train()
    folders = (project.root / "out", project.training().model_dir)
    assert [load_bundle(folder).model.metadata["frames"] for folder in folders] == [16, 16]


@pytest.mark.parametrize("output", ["reconstruction.h5", "metrics.json"])
def test_a_folder_in_an_output_s_place_is_found_before_anything_is_computed(project, output):
    project.train()
    (project.inference().output_dir / output).mkdir(parents=True)
    project.write(infer="raise AssertionError('computed')")
    before = project.files()
    said = refusal(lambda: stages.infer(project.inference()), FileWriteError)
    assert said.endswith(f"{output} is a folder, which is in the way; move it away")
    assert project.files() == before


def test_a_training_that_is_refused_leaves_no_folder(project):
    project.write(train="raise ConfigError('training.epochs: too many')")
    refusal(project.train, ConfigError, 2)
    assert not project.training().work_root.exists()


def test_a_scan_that_cannot_follow_a_training_is_found_before_it(project):
    other = simulate(SimulationOptions(size=32, grid=5, step=3.0, jitter=1.0), name="other")
    write_scan(project.root / "other.npz", other)
    file = read_config(project.root / "ptycho.yaml")
    given = {"source.file": "other.npz"}
    flags = {"source.file": "--test-data-file"}
    test = create_inference_payload(file, command_line=given, flags=flags)
    said = refusal(lambda: inputs.check_scan_to_infer(test, project.training()), ConfigError, 2)
    assert said.startswith("--test-data-file: ")
    assert "other.npz: has frames of 32 x 32 pixels, but those to train on have 16 x 16" in said
    inputs.check_scan_to_infer(project.inference(), project.training())
