"""`ptycho-tasks check`: what it prints, its exit status, and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ptycho_tasks.commands.cli import cli
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.npz import write_scan

SCAN = simulate(SimulationOptions(size=32, grid=6, step=4.0, photons=1e6, seed=5))
CONFIG = """\
# of the beamtime
name: mine
source:
  # the scan
  file: dark.npz   # seventh
  # dark_frames: "refuse"
  measurement: amplitude  # sure
backend: unrolled
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a right scan, and one with dark frames, and without what makes trials."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ptycho_tasks.commands.scan_check.available", lambda root: {})
    write_scan(tmp_path / "right.npz", SCAN)
    frames = SCAN.diffraction.copy()
    frames[3:5] = 0
    write_scan(tmp_path / "dark.npz", replace(SCAN, diffraction=frames))
    return tmp_path


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["check", *arguments])


def test_a_right_scan_exits_0() -> None:
    result = check("right.npz")
    assert result.exit_code == 0
    assert "right.npz: nothing wrong was found" in result.output
    assert "were not tried: that needs a backend such as `unrolled`" in result.output


def test_what_leaves_too_few_frames_is_why_nothing_was_tried(project: Path) -> None:
    frames = SCAN.diffraction.copy()
    frames[3:28] = 0
    write_scan(project / "few.npz", replace(SCAN, diffraction=frames))
    assert (
        "were not tried: that needs 16 frames, and of 36, 11 are of use" in check("few.npz").output
    )


@pytest.mark.parametrize(
    ("key", "factor"),
    [("diffraction", np.nan), ("diffraction", 1e200), ("positions", 1e12), ("probe", np.inf)],
)
def test_values_out_of_all_range_are_a_finding(project: Path, key: str, factor: float) -> None:
    dtype = np.result_type(getattr(SCAN, key), np.float64)
    values = {
        "diff3d": SCAN.diffraction, "xcoords": SCAN.positions[:, 1],
        "ycoords": SCAN.positions[:, 0], "probeGuess": SCAN.probe,
    }  # fmt: skip
    names = {"diffraction": ("diff3d",), "probe": ("probeGuess",)}.get(key, ("xcoords", "ycoords"))
    values |= {name: values[name].astype(dtype) * factor for name in names}
    np.savez(project / "bad.npz", **values)
    result = check("bad.npz")
    assert result.exit_code == 1
    assert "wrong  refused: bad.npz: " in result.output
    assert "Warning" not in result.output


def test_a_wrong_scan_exits_1_and_names_the_setting() -> None:
    result = check("dark.npz")
    assert result.exit_code == 1
    assert "wrong  dark frames: 2 of 36 frames hold no light (3-4)" in result.output
    assert "for ptycho.yaml:\n  source:\n    dark_frames: drop\n" in result.output


def test_json_holds_the_same() -> None:
    result = check("dark.npz", "--json")
    report = json.loads(result.output)
    assert report["is_wrong"]
    assert report["settings"] == {"source.dark_frames": "drop"}
    assert {one["kind"] for one in report["findings"]} >= {"refused", "dark frames", "memory"}


def test_write_puts_the_lines_into_ptycho_yaml_and_leaves_all_others(project: Path) -> None:
    (project / "ptycho.yaml").write_text(CONFIG)
    result = check("dark.npz", "--write")
    assert "wrote source.dark_frames" in result.output
    expected = CONFIG.replace('  # dark_frames: "refuse"', "  dark_frames: drop")
    assert (project / "ptycho.yaml").read_text() == expected


def test_the_scan_of_a_project_is_read_by_its_settings(project: Path) -> None:
    (project / "ptycho.yaml").write_text(CONFIG)
    check("dark.npz", "--write")
    assert check("dark.npz").exit_code == 0


def test_a_key_that_is_set_keeps_its_comment(project: Path) -> None:
    write_scan(project / "dark.npz", replace(SCAN, diffraction=SCAN.diffraction**2))
    (project / "ptycho.yaml").write_text(CONFIG)
    check("dark.npz", "--write")
    assert "  measurement: counts  # sure\n" in (project / "ptycho.yaml").read_text()


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "there is no"),
        (CONFIG.replace("dark.npz", "right.npz"), "names dark.npz alone"),
        (
            "name: mine\nsource:\n  files: [dark.npz, right.npz]\nfixture: {scans: [right]}\n",
            "names dark.npz alone",
        ),
    ],
)
def test_write_refuses_what_it_cannot_place(
    project: Path, config: str | None, problem: str
) -> None:
    path = project / "ptycho.yaml"
    if config is not None:
        path.write_text(config)
    result = check("dark.npz", "--write")
    assert isinstance(result.exception, ConfigError)
    assert problem in str(result.exception)
    assert (path.read_text() if path.exists() else None) == config


FILES = """\
name: mine
source:
  files:  # of the night
    good: right.npz
    second: {entry}  # dark
  # of all
  pixel_size_m: 1e-8
fixture:
  scans: [good]
"""


@pytest.mark.parametrize(
    ("config", "before", "after"),
    [
        (
            "name: mine\nsource: {file: dark.npz, units: pixels}  # mine\n",
            "units: pixels}",
            "units: pixels, dark_frames: drop}",
        ),
        (
            "name: mine\nsource: {\n  file: dark.npz,  # a scan\n}\n",
            "file: dark.npz,",
            "file: dark.npz, dark_frames: drop,",
        ),
        (
            FILES.replace("{entry}", "dark.npz"),
            "second: dark.npz",
            "second: {file: dark.npz, dark_frames: drop}",
        ),
        (
            FILES.replace("{entry}", "{file: dark.npz, dark_frames: refuse}"),
            "refuse}",
            "drop}",
        ),
        (
            FILES.replace("{entry}", "\n      file: dark.npz"),
            "file: dark.npz  # dark\n",
            "file: dark.npz  # dark\n      dark_frames: drop\n",
        ),
    ],
)
def test_write_finds_the_scan_wherever_it_is_named(
    project: Path, config: str, before: str, after: str
) -> None:
    (project / "ptycho.yaml").write_text(config)
    check("dark.npz", "--write")
    assert (project / "ptycho.yaml").read_text() == config.replace(before, after)
    assert check("dark.npz").exit_code == 0


@pytest.mark.parametrize(
    ("config", "name"), [(FILES.replace("{entry}", "dark.npz"), "second"), (CONFIG, "mine")]
)
def test_a_scan_is_found_by_its_name(project: Path, config: str, name: str) -> None:
    (project / "ptycho.yaml").write_text(config)
    result = check(name, "--write")
    assert "wrong  dark frames" in result.output
    assert check(name).exit_code == 0


def test_options_read_a_scan_before_there_is_a_project() -> None:
    assert check("dark.npz", "--dark-frames", "drop").exit_code == 0


def test_options_win_over_the_project(project: Path) -> None:
    (project / "ptycho.yaml").write_text(CONFIG)
    assert check("dark.npz", "--dark-frames", "drop").exit_code == 0


def test_a_picture(project: Path) -> None:
    check("dark.npz", "--picture", "scan.png")
    assert (project / "scan.png").read_bytes().startswith(b"\x89PNG")


def test_init_says_what_is_wrong(project: Path) -> None:
    result = CliRunner().invoke(cli, ["init", "new", "--source", "dark.npz", "--backend", "pinn"])
    assert result.exit_code == 0, result.output
    assert "wrong  dark frames" in result.output
    assert "dark_frames: drop" in result.output
