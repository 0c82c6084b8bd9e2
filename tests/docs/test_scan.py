"""The scan that lies in fixtures/ is what the commands of docs/scans.md make."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
SCAN, SIDECAR = ROOT / "fixtures" / "lines.npz", ROOT / "fixtures" / "lines.json"
SIMULATE = "simulate lines.npz --size 32 --grid 8 --step 4 --jitter 1 --photons 1e6 --seed 1"
CUT = "fixture --source lines.npz --output fixtures/lines.npz"


def run(command: str) -> None:
    from ptycho_tasks.commands.cli import cli

    done = CliRunner().invoke(cli, command.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output


def read_sidecar(path: Path) -> Any:
    """A sidecar, without the version of the program, which each release changes."""
    sidecar = json.loads(path.read_text())
    del sidecar["generator"]["version"]
    return sidecar


def test_the_page_names_these_commands() -> None:
    page = (ROOT / "docs" / "scans.md").read_text()
    assert f"ptycho-tasks {SIMULATE}\n" in page
    assert f"ptycho-tasks {CUT}\n" in page


def test_the_scan_is_cut_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its frames are taken, so that what is cut is what it is cut from."""
    monkeypatch.chdir(tmp_path)
    Path("lines.npz").write_bytes(SCAN.read_bytes())
    Path("fixtures").mkdir()
    run(CUT)
    assert Path("fixtures/lines.npz").read_bytes() == SCAN.read_bytes()
    assert read_sidecar(Path("fixtures/lines.json")) == read_sidecar(SIDECAR)


@pytest.mark.skipif(
    tuple(map(int, version("scipy").split(".")[:2])) >= (1, 18),
    reason="SciPy 1.18 rounds Fourier transforms otherwise than the one that made the scan",
)
def test_the_scan_is_simulated_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fixtures").mkdir()
    run(SIMULATE)
    run(CUT)
    assert Path("fixtures/lines.npz").read_bytes() == SCAN.read_bytes()
