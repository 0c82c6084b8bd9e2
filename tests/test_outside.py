"""A stranger's backend: as a wheel of its own beside the core's, and as one file in a project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from ptycho_tasks.results.bundle import load_bundle

REPOSITORY = Path(__file__).parents[1]
OUTSIDE = Path(__file__).parent / "outside"
SETUPTOOLS = 77
"""The first version that builds both distributions; an older one calls for a build in isolation,
for which pip fetches a newer one."""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command in an environment where nothing leads back to this one; gives its output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=kept | environment,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of core and stranger, built of copies: a build leaves files in its source."""
    folder = tmp_path_factory.mktemp("wheels")
    core = folder / "core"
    core.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, core)
    unbuilt = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "ptycho_tasks", core / "ptycho_tasks", ignore=unbuilt)
    shutil.copytree(OUTSIDE, folder / "stranger", ignore=unbuilt)
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
        *(["--no-build-isolation"] if _can_build_here() else []),
        *("--wheel-dir", folder, core, folder / "stranger"),
        cwd=folder,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    return {path.name.partition("-")[0]: path for path in folder.glob("*.whl")}


def _can_build_here() -> bool:
    try:
        version("versioningit")
        return int(version("setuptools").partition(".")[0]) >= SETUPTOOLS
    except PackageNotFoundError:
        return False


def make_environment(folder: Path, *wheels: Path) -> Path:
    """A new virtual environment with only these wheels installed; gives its bin folder.

    What they depend on is taken from this one: a folder that a .pth file names is searched for
    modules, but its own .pth files, and with them editable installs, are not.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet"),
        *("--no-deps", "--no-index", *wheels),
        cwd=folder,
        PIP_DISABLE_PIP_VERSION_CHECK="1",
    )
    site = next((folder / "lib").glob("python*/site-packages"))
    ours = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(ours) + "\n")
    where = "import ptycho_tasks; print(ptycho_tasks.__file__)"
    assert Path(run(python, "-c", where, cwd=folder).strip()).is_relative_to(site)
    return folder / "bin"


def check_project(bin: Path, root: Path) -> None:
    """Make a project for the stranger's backend as a user would, and build it."""
    root.mkdir(exist_ok=True)
    small = ("--size", "16", "--grid", "5", "--step", "3", "--jitter", "1")
    run(bin / "ptycho-tasks", "simulate", "scan.npz", *small, cwd=root)
    run(bin / "ptycho-tasks", "init", "--source", "scan.npz", "--backend", "stranger", cwd=root)
    config = root / "ptycho.yaml"
    assert "# spread of the random object to start from" in config.read_text()
    config.write_text(config.read_text().replace("# start_noise: 0.05", "start_noise: 0.02"))
    said = run(bin / "python", "-m", "doit", "infer", cwd=root)
    assert "R-factor" in said
    metrics = json.loads((root / "runs/default/inference/metrics.json").read_text())
    assert metrics["made_from"]["versions"]["backend stranger"] == "1"
    assert metrics["scores"]["amplitude_ssim"] > 0.5
    trained = load_bundle(root / "runs/default/training").params["training"]
    assert trained["start_noise"] == 0.02
    assert "infer    up to date" in run(bin / "ptycho-tasks", "why", cwd=root)


@pytest.fixture(scope="module")
def strangers_bin(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheels of core and stranger."""
    return make_environment(tmp_path_factory.mktemp("both") / "env", *wheels.values())


def test_an_installed_backend_of_someone_else(strangers_bin, tmp_path):
    listed = run(strangers_bin / "ptycho-tasks", "backends", cwd=tmp_path).splitlines()
    assert "stranger  stranger-ptycho 0.3  version 1" in listed
    check_project(strangers_bin, tmp_path / "project")


def test_the_conformance_suite_beside_the_wheels(strangers_bin, tmp_path):
    shutil.copy(OUTSIDE / "check_stranger.py", tmp_path)
    pytest_there = (strangers_bin / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert " passed" in run(*pytest_there, "check_stranger.py", cwd=tmp_path)


def test_the_same_backend_as_one_file_of_a_project(wheels, tmp_path):
    bin = make_environment(tmp_path / "env", wheels["ptycho_tasks"])
    root = tmp_path / "project"
    (root / "backends").mkdir(parents=True)
    shutil.copy(OUTSIDE / "stranger_ptycho.py", root / "backends" / "stranger.py")
    listed = run(bin / "ptycho-tasks", "backends", cwd=root).splitlines()
    assert "stranger  backends/stranger.py  version 1" in listed
    check_project(bin, root)
