"""The real `doit`, end to end, with the one-file backend that the README shows."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import pkgutil
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import ptycho_tasks
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.results.bundle import bundle_bytes, load_bundle
from ptycho_tasks.testing.project import OURS, run_command

INFERENCE = "runs/default/inference"
BUNDLE = f"runs/default/training/{BUNDLE_NAME}"
OUTPUTS = {
    "fixtures/tiny_source.npz",
    "fixtures/tiny.npz",
    "fixtures/tiny.json",
    BUNDLE,
    f"{INFERENCE}/reconstruction.h5",
    f"{INFERENCE}/reconstructed_amplitude.png",
    f"{INFERENCE}/reconstructed_phase.png",
    f"{INFERENCE}/metrics.json",
}


def files(root: Path) -> dict[str, str]:
    """Every file under fixtures/ and runs/, with its sha256."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("fixtures", "runs")
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def executed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The tasks that doit says it executed."""
    return [line.split()[-1] for line in done.stdout.splitlines() if line.startswith(".  ")]


def edit(root: Path, old: str, new: str) -> None:
    text = (root / "ptycho.yaml").read_text()
    assert old in text
    (root / "ptycho.yaml").write_text(text.replace(old, new))


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *expected: str) -> None:
    """The run failed with `code` and one line on stderr, besides progress, that says it all."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(errors) == 1, done.stderr
    for part in expected:
        assert part in errors[0]


# --- what is built ---------------------------------------------------------------------------


def test_one_command_builds_everything_and_ends_with_paths_and_scores(project, doit):
    done = doit(project)
    assert done.returncode == 0, done.stderr
    assert executed(done) == ["source", "fixture", "train", "infer"]
    assert files(project).keys() == OUTPUTS
    for name in OUTPUTS - {"fixtures/tiny.json"}:
        assert name in done.stdout
    assert "R-factor" in done.stdout
    assert "amplitude_ssim" in done.stdout


def test_the_smallest_backend_reconstructs_the_object(built_project):
    metrics = json.loads((built_project / INFERENCE / "metrics.json").read_text())
    assert metrics["frames"] == 36
    assert metrics["r_factor"] < 0.1
    assert metrics["scores"]["amplitude_ssim"] > 0.8


def test_the_product_holds_what_was_reconstructed(built_project):
    with h5py.File(built_project / INFERENCE / "reconstruction.h5") as file:
        assert file["object"].dtype == np.complex64
        assert file["object"].ndim == 3
        assert file["probe"].shape == (1, 1, 32, 32)
        assert file["probe_position_x_m"].shape == (36,)


def test_another_build_gives_the_same_bytes(project, built_project, doit):
    doit(project)
    assert files(project) == files(built_project)


def test_list_shows_the_tasks_with_a_sentence_each(project, doit):
    lines = doit(project, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["fixture", "infer", "report", "source", "train"]
    assert all(len(line.split()) > 4 for line in lines)


REFINE = "refine: {backend: further, epochs: 2}\n"
REFINEMENT = "runs/default/refinement"


def add(root, text):
    with (root / "ptycho.yaml").open("a") as file:
        file.write(text)


def test_to_infer_is_to_refine_as_well_where_that_is_asked_for(built_project, doit):
    add(built_project, REFINE)
    dry = doit(built_project, "dry-run").stdout.splitlines()
    assert dry == [".  refine:default  (it was not built yet)"]
    done = doit(built_project, "infer")
    assert executed(done) == ["refine:default"], done.stdout + done.stderr
    network, refined = (
        json.loads((built_project / folder / "metrics.json").read_text())
        for folder in (INFERENCE, REFINEMENT)
    )
    assert refined["start"]["r_factor"] == pytest.approx(network["r_factor"])
    assert refined["r_factor"] < network["r_factor"]
    assert refined["scores"]["amplitude_ssim"] > network["scores"]["amplitude_ssim"]
    assert "before the refinement" in done.stdout
    assert executed(doit(built_project)) == []
    edit(built_project, "epochs: 2", "epochs: 3")
    assert executed(doit(built_project, "refine")) == ["refine:default"]


def test_the_network_s_reconstruction_can_be_made_alone(project, doit):
    add(project, REFINE)
    done = doit(project, "infer:default")
    assert executed(done) == ["source", "fixture", "train", "infer:default"]
    assert not (project / REFINEMENT).exists()


def test_variants_may_differ_in_their_refinement(project, doit):
    variants = "variants: [{name: a, refine.epochs: 1}, {name: b, refine.epochs: 2}]\n"
    add(project, REFINE + variants)
    done = doit(project, "refine")
    assert sorted(executed(done))[-2:] == ["source", "train:a"]
    assert {"refine:a", "refine:b"} <= set(executed(done))
    edit(project, "{name: b, refine.epochs: 2}", "{name: b, refine.epochs: 3}")
    assert executed(doit(project)) == ["refine:b"]
    done = doit(project, "clean", "refine:b")
    assert not (project / "runs/b/refinement").exists()
    assert (project / "runs/b/inference").exists()


def test_a_wrong_refinement_starts_nothing(project, doit):
    add(project, "refine: {backend: epie}\n")
    done = doit(project)
    assert done.returncode == 2
    assert "refine.backend: backend `epie` has no method `refine`" in done.stderr
    assert not (project / "fixtures").exists()


def test_progress_is_whole_lines_in_a_log_and_absent_when_quiet(project, doit):
    edit(project, "training:", "execution: {quiet: true}\ntraining:")
    quiet = doit(project)
    assert quiet.returncode == 0
    assert "misfit     R-factor" not in quiet.stdout
    assert quiet.stderr == ""


# --- what is stale ---------------------------------------------------------------------------


def test_a_second_run_does_nothing(built_project, doit):
    done = doit(built_project)
    assert done.returncode == 0
    assert executed(done) == []


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("training: {epochs: 5}", "training: {epochs: 6}", ["train", "infer"]),
        ("subset_size: 25", "subset_size: 24", ["fixture", "train", "infer"]),
        ("seed: 3", "seed: 4", ["source", "fixture", "train", "infer"]),
        ("name: tiny", "name: tiny\ninference: {scan: fixture}", ["infer"]),
        ("name: tiny", "name: tiny\nexecution: {accelerator: cpu, quiet: true}", []),
        ("name: tiny", "# a remark\nname: tiny", []),
    ],
)
def test_a_change_of_config_reruns_what_it_made_stale(built_project, doit, old, new, stale):
    edit(built_project, old, new)
    done = doit(built_project)
    assert done.returncode == 0, done.stderr
    assert executed(done) == stale


def test_a_change_of_a_local_backend_reruns_training_and_inference(built_project, doit):
    with (built_project / "backends" / "epie.py").open("a") as stream:
        stream.write("changed = True\n")
    assert executed(doit(built_project)) == ["train", "infer"]


def test_a_fixture_rebuilt_to_the_same_bytes_stops_there(built_project, doit):
    doit(built_project, "forget", "fixture")
    assert executed(doit(built_project)) == ["fixture"]


def test_a_touched_source_reruns_nothing_and_a_changed_one_all(file_project, doit):
    scan = file_project / "scan.npz"
    os.utime(scan, (time.time() + 5, time.time() + 5))
    assert executed(doit(file_project)) == []
    smaller = ["--size", "32", "--grid", "6", "--step", "4", "--jitter", "1", "--seed", "9"]
    run = run_command([*OURS, "simulate", "scan.npz", "--force", *smaller], cwd=file_project)
    assert run.returncode == 0
    assert executed(doit(file_project)) == ["source", "fixture", "train", "infer"]


def test_clean_removes_what_was_built_and_nothing_else(built_project, doit):
    training = built_project / "runs/default/training"
    mine = [
        built_project / "runs/default/notes.txt",
        built_project / "fixtures/other.npz",
        training / "checkpoints/mine/wts.h5.zip",
        training / "logs/csv/notes.txt",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    done = doit(built_project, "clean")
    assert done.returncode == 0, done.stderr
    assert files(built_project).keys() == {p.relative_to(built_project).as_posix() for p in mine}
    assert {p.name for p in built_project.iterdir()} >= {"ptycho.yaml", "dodo.py", "backends"}
    assert not (built_project / INFERENCE).exists()


@pytest.mark.parametrize(
    "name", [f"{INFERENCE}/metrics.json", "fixtures/tiny_source.npz", "fixtures/tiny.json"]
)
def test_a_file_that_no_run_made_is_not_replaced(project, doit, name):
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text("mine")
    assert_one_line(doit(project), 2, f"{name} is there, and was not made", "move it away")
    assert (project / name).read_text() == "mine"


def test_clean_dry_run_removes_nothing(built_project, doit):
    before = files(built_project)
    assert "removing" in doit(built_project, "clean", "--dry-run").stdout
    assert files(built_project) == before


# --- what bad input gets ---------------------------------------------------------------------


@pytest.mark.parametrize("command", [["list"], ["infer"], ["clean", "-a"]])
def test_a_wrong_config_is_one_line_and_exit_2(project, doit, command):
    edit(project, "epochs: 5", "epochs: 0")
    done = doit(project, *command)
    assert_one_line(done, 2, "ptycho.yaml:6: training.epochs: expected `int` >= 1, got 0")
    assert done.stdout == ""
    assert files(project) == {}


def test_an_unknown_backend_lists_those_that_are_there(project, doit):
    edit(project, "backend: epie", "backend: epi")
    assert_one_line(doit(project), 2, "ptycho.yaml:5: unknown backend `epi`", "epie")


def test_a_backend_that_cannot_be_imported_names_the_missing_module(project, doit):
    backend = project / "backends" / "epie.py"
    backend.write_text("import not_there\n" + backend.read_text())
    assert_one_line(doit(project), 2, "the module `not_there` is missing")


def test_a_backend_that_lacks_a_library_when_it_runs_names_it(project, doit):
    backend = project / "backends" / "epie.py"
    backend.write_text(backend.read_text().replace("import numpy as np", "import not_there"))
    assert_one_line(doit(project), 2, "backend `epie` cannot run", "`not_there` is missing")


def test_a_defect_of_a_backend_is_one_line_with_its_traceback_in_a_file(project, doit):
    backend = project / "backends" / "epie.py"
    backend.write_text(backend.read_text().replace("import numpy as np", "1 / 0"))
    done = doit(project)
    assert done.returncode == 1
    assert done.stderr.startswith("error: backend `epie` failed: ZeroDivisionError: division")
    assert done.stderr.count("\n") == 1
    [saved] = (project / ".ptycho" / "faults").iterdir()
    assert saved.name in done.stderr
    assert "Traceback" in saved.read_text()
    assert str(backend) in saved.read_text()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("np.ones(", "np.nan * np.ones(", "gave `object` with NaN or Inf"),
        ("scan.probe, scan.pos", "scan.probe[0], scan.pos", "gave `probe` as complex64 of shape"),
        ("TrainedModel(models={})", 'TrainedModel({"m": {"w": [float("nan")]}})', "in m/w"),
    ],
)
def test_nonsense_from_a_backend_is_refused_before_anything_is_written(
    built_project, doit, old, new, expected
):
    before = files(built_project)
    backend = built_project / "backends" / "epie.py"
    assert old in backend.read_text()
    backend.write_text(backend.read_text().replace(old, new))
    assert_one_line(doit(built_project), 1, "backend `epie`", expected)
    # A bundle says which source made it, so that a training that succeeds writes another one.
    assert files(built_project) | {BUNDLE: before[BUNDLE]} == before


def test_a_missing_source_names_key_and_line(write_project, doit):
    root = write_project("name: tiny\nsource: {file: scan.npz}\nbackend: epie\n")
    assert_one_line(doit(root), 2, "ptycho.yaml:2: source.file: there is no", "scan.npz")
    assert files(root) == {}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[: len(data) // 2], "scan.npz"),
        (lambda data: b"", "scan.npz"),
        (lambda data: b"not a scan", "scan.npz"),
    ],
    ids=["truncated", "empty", "text"],
)
def test_an_unreadable_source_leaves_the_earlier_build(file_project, doit, damage, expected):
    before = files(file_project)
    scan = file_project / "scan.npz"
    scan.write_bytes(damage(scan.read_bytes()))
    assert_one_line(doit(file_project), 1, expected)
    assert files(file_project) == before


def test_too_few_frames_says_how_many_there_are(project, doit):
    edit(project, "subset_size: 25", "subset_size: 37")
    assert_one_line(doit(project), 1, "has 36 frames", "subset_size")


def damaged(path, damage):
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    else:
        data[data.index(b'"epochs"') + 1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["truncated", "one byte"])
def test_a_damaged_bundle_is_made_again(built_project, doit, damage):
    before = files(built_project)
    damaged(built_project / BUNDLE, damage)
    done = doit(built_project)
    assert executed(done) == []
    assert re.search(rf"train from the store, made .+ \({BUNDLE} changed: sha256", done.stdout)
    assert files(built_project) == before
    shutil.rmtree(built_project / ".ptycho/store")
    damaged(built_project / BUNDLE, damage)
    assert executed(doit(built_project)) == ["train"]
    assert files(built_project) == before


@pytest.mark.parametrize("damage", ["truncated", "one byte"])
def test_inference_alone_refuses_a_damaged_bundle(built_project, doit, damage):
    damaged(built_project / BUNDLE, damage)
    before = files(built_project)
    assert_one_line(doit(built_project, "run", "-s", "infer"), 1, BUNDLE_NAME)
    assert files(built_project) == before


def test_inference_alone_refuses_a_bundle_of_another_backend(built_project, doit):
    bundle = load_bundle(built_project / "runs/default/training")
    (built_project / BUNDLE).write_bytes(
        bundle_bytes(
            bundle.model, backend="other", backend_version="1", size=32, params=bundle.params
        )
    )
    done = doit(built_project, "run", "-s", "infer")
    assert_one_line(done, 1, "made by the backend `other`, not by `epie`")


def test_debug_shows_the_traceback(project, doit):
    edit(project, "epochs: 5", "epochs: 0")
    done = doit(project, env={**os.environ, "PTYCHO_TASKS_DEBUG": "1"})
    assert done.returncode == 2
    assert "Traceback" in done.stderr


# --- when the disk does not take it ----------------------------------------------------------

STAGES = {
    "source": ("seed: 3", "seed: 4", 60_000),
    "fixture": ("strategy: stratified", "strategy: first", 60_000),
    "infer": ("name: tiny", "name: tiny\ninference: {scan: fixtures/tiny.npz}", 25_000),
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize(("old", "new", "limit"), STAGES.values(), ids=STAGES)
def test_a_full_disk_leaves_the_earlier_files_whole(built_project, doit, old, new, limit):
    if old.startswith("strategy"):
        old, new = "subset_size: 25", "subset_size: 26"
    edit(built_project, old, new)
    before = files(built_project)

    def full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = doit(built_project, preexec_fn=full_disk)
    assert_one_line(done, 1, "cannot write", "unchanged")
    assert files(built_project) == before
    assert doit(built_project).returncode == 0


def without_overriding_permissions() -> None:
    """Make even root respect a folder's mode: drop CAP_DAC_OVERRIDE with PR_CAPBSET_DROP."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
@pytest.mark.parametrize("folder", ["fixtures", INFERENCE, "runs/default/training"])
def test_a_read_only_folder_is_one_line(built_project, doit, folder):
    edit(built_project, "seed: 3", "seed: 4")
    before = files(built_project)
    (built_project / folder).chmod(0o555)
    done = doit(built_project, preexec_fn=without_overriding_permissions)
    (built_project / folder).chmod(0o755)
    assert_one_line(done, 1, f"cannot write {folder}", "Permission denied")
    after = files(built_project)
    assert {name: after[name] for name in before if name.startswith(folder)} == {
        name: before[name] for name in before if name.startswith(folder)
    }
    assert after.keys() == before.keys()


# --- what is imported ------------------------------------------------------------------------


def imported(code: str, cwd: Path) -> set[str]:
    """Top-level modules loaded after running `code`."""
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, text=True, capture_output=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_loading_the_task_list_imports_nothing_heavy(built_project):
    code = "from doit.doit_cmd import DoitMain\nDoitMain().run(['list'])"
    heavy = {"torch", "lightning", "numpy", "h5py", "scipy", "matplotlib", "skimage", "click"}
    assert heavy & imported(code, built_project) == set()


def test_a_project_without_evidence_pays_nothing_for_it(built_project):
    script = "from doit.doit_cmd import DoitMain\nDoitMain().run(['list'])\nimport sys\n"
    script += "print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=built_project,
        text=True,
        capture_output=True,
        check=True,
    )
    assert "ptycho_tasks.tasks" in done.stdout
    assert "ptycho_tasks.evidence.item" not in done.stdout


def test_doing_nothing_imports_nothing_heavy(built_project):
    code = "from doit.doit_cmd import DoitMain\nDoitMain().run([])"
    heavy = {"torch", "lightning", "numpy", "h5py", "scipy", "matplotlib", "skimage"}
    assert heavy & imported(code, built_project) == set()


def test_no_module_of_the_core_imports_torch(tmp_path):
    modules = pkgutil.walk_packages(ptycho_tasks.__path__, "ptycho_tasks.")
    names = [module.name for module in modules]
    assert len(names) > 80
    code = (
        f"import importlib\nfor name in {names!r}:\n"
        "    try:\n        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        assert error.name == 'submitit', error  # an extra\n"
    )
    assert {"torch", "lightning"} & imported(code, tmp_path) == set()
