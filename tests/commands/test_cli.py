"""The command line `ptycho-tasks`: one line and the right exit code for every mistake."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

from ptycho_tasks.commands import cli as command_line
from ptycho_tasks.commands.cli import cli
from ptycho_tasks.commands.section_options import read_section
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import FixtureOptions, SimulationOptions
from ptycho_tasks.scans.fixture import read_fixture
from ptycho_tasks.scans.readers import read_scan

SMALL = ["--size", "16", "--grid", "5", "--step", "3", "--jitter", "1", "--photons", "1e5"]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run a command in `tmp_path` as the installed script does; gives code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTYCHO_TASKS_DEBUG", "")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["ptycho-tasks", *arguments])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.parametrize("command", [[], *([name] for name in cli.commands), ["bundle", "show"]])
def test_every_command_has_help(command):
    done = CliRunner().invoke(cli, [*command, "--help"])
    assert done.exit_code == 0
    assert "Usage:" in done.output


def test_simulate_writes_the_same_scan_twice(call, tmp_path):
    for name in ("a.npz", "b.npz"):
        code, out, err = call("simulate", name, *SMALL, "--seed", "5")
        assert (code, err) == (0, "")
        assert f"{name}: 25 frames of 16 x 16" in out
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    scan = read_scan(tmp_path / "a.npz")
    assert scan.object is not None
    assert np.square(scan.diffraction, dtype=np.float64).sum((1, 2)).mean() == pytest.approx(
        1e5, rel=0.02
    )


def test_fixture_cuts_a_scan(call, tmp_path):
    call("simulate", "a.npz", *SMALL)
    code, out, _ = call(
        "fixture", "--source", "a.npz", "--output", "cut.npz", "--subset-size", "16"
    )
    assert (code, out) == (0, "cut.npz: 16 frames of 16 x 16\n")
    assert read_fixture(tmp_path / "cut.npz").frame_count == 16
    assert json.loads((tmp_path / "cut.json").read_text())["source"]["name"] == "a.npz"


MISTAKES = {
    "unknown command": (["trian"], "No such command 'trian'"),
    "missing argument": (["simulate"], "Missing argument 'OUTPUT'"),
    "unknown option": (["simulate", "a.npz", "--sise", "3"], "No such option"),
    "wrong number": (["simulate", "a.npz", "--size", "big"], "error: --size: expected `int`"),
    "wrong word": (
        ["simulate", "a.npz", "--object", "cat"],
        "error: --object: expected one of lines, siemens, blobs, got 'cat'",
    ),
    "infinite": (["simulate", "a.npz", "--photons", "1e999"], "error: --photons: number out of"),
    "too long": (["simulate", "a.npz", "--seed", "9" * 4000], "error: --seed: expected an integer"),
    "too large": (
        ["simulate", "a.npz", "--grid", "512", "--size", "1024", "--step", "1", "--jitter", "1"],
        "error: grid 512 and size 1024 are 1024 GiB",
    ),
    "wrong word of the source": (
        ["fixture", "--source", "a", "--output", "b.npz", "--measurement", "count"],
        "error: --measurement: expected one of auto, amplitude, counts, got 'count'",
    ),
    "do not fit": (["simulate", "a.npz", "--jitter", "9"], "error: jitter 9 exceeds step 6"),
    "too few": (
        ["fixture", "--source", "a", "--output", "b.npz", "--subset-size", "3"],
        "error: --subset-size: expected `int` >= 16",
    ),
    "not npz": (["fixture", "--source", "a", "--output", "b.h5"], "error: --output: b.h5 must end"),
    "no project": (["config"], "ptycho-tasks init"),
    "init without the scan": (
        ["init", "p", "--backend", "epie", "--source", "none.npz"],
        "unknown backend `epie`",
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_wrong_usage_exits_2_and_writes_nothing(call, tmp_path, arguments, expected):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_scan_that_cannot_be_read_exits_1(call, tmp_path):
    code, _, err = call("fixture", "--source", "none.npz", "--output", "b.npz")
    assert code == 1
    assert err.startswith("error: none.npz: no such file")
    assert err.count("\n") == 1
    code, _, err = call("bundle", "verify", ".")
    assert code == 1
    assert "wts.h5.zip: no such bundle" in err
    assert list(tmp_path.iterdir()) == []


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def scans(call, tmp_path):
    """A scan under three names, and files of the user's."""
    call("simulate", "a.npz", *SMALL)
    (tmp_path / "link.npz").symlink_to("a.npz")
    (tmp_path / "hard.npz").hardlink_to(tmp_path / "a.npz")
    (tmp_path / "b.json").write_bytes((tmp_path / "a.npz").read_bytes())
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fixture", "--source", "a.npz", "--output", "a.npz", "--force"], "replace the source"),
        (["fixture", "--source", "a.npz", "--output", "link.npz", "--force"], "replace the source"),
        (["fixture", "--source", "a.npz", "--output", "hard.npz", "--force"], "replace the source"),
        (["fixture", "--source", "b.json", "--output", "b.npz", "--force"], "replace the source"),
        (["fixture", "--source", "a.npz", "--output", "mine.npz"], "mine.json is already there"),
        (["fixture", "--source", "b.json", "--output", "a.npz"], "a.npz is already there"),
        (["fixture", "--source", "a.npz", "--output", "folder.npz", "--force"], "no regular file"),
        (["simulate", "mine.json", *SMALL], "mine.json is already there"),
        (["simulate", "pipe", *SMALL, "--force"], "pipe is there and is no regular file"),
    ],
)
def test_what_is_there_is_not_overwritten(call, scans, arguments, expected):
    before = contents(scans)
    code, _, err = call(*arguments)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert contents(scans) == before


def test_a_fixture_may_be_cut_again_and_force_replaces_the_rest(call, scans):
    cut = ["fixture", "--source", "a.npz", "--output", "mine.npz", "--subset-size"]
    assert call(*cut, "16", "--force")[0] == 0
    assert call(*cut, "20")[0] == 0
    assert read_fixture(scans / "mine.npz").frame_count == 20
    (scans / "mine.json").write_text("{}")
    assert call(*cut, "16")[0] == 2
    assert call("simulate", "mine.json", *SMALL, "--force")[0] == 0
    assert read_scan(scans / "mine.json").frame_count == 25


def test_fixture_reads_as_it_is_told_and_says_what_it_changed(call, tmp_path):
    call("simulate", "a.npz", *SMALL)
    with np.load(tmp_path / "a.npz") as scan:
        counts = {"diffraction": np.rint(scan["diff3d"] ** 2).astype(np.int32)}
        np.savez(tmp_path / "c.npz", **counts, **{k: v for k, v in scan.items() if k != "diff3d"})
    cut = ["fixture", "--source", "c.npz", "--output", "cut.npz", "--energy-ev", "8e3"]
    code, _, err = call(*cut)
    assert (code, "set source.measurement to counts" in err) == (1, True)
    code, out, _ = call(*cut, "--measurement", "counts")
    assert code == 0
    assert "c.npz: diffraction: read as diff3d\n" in out
    assert "c.npz: diffraction: square root of counts taken\n" in out
    assert read_fixture(tmp_path / "cut.npz").energy_ev == 8e3


def test_a_path_that_the_system_refuses_is_one_line(call, tmp_path):
    code, _, err = call("init", "a" * 300, "--backend", "epie")
    assert (code, err.count("\n")) == (1, 1)
    assert err.endswith("File name too long\n")


def test_bundle_verify_takes_the_folder_or_the_file(call, built_project):
    folder = built_project / "runs/default/training"
    for path in (folder, folder / "wts.h5.zip"):
        assert call("bundle", "verify", str(path)) == (0, f"{path}: whole; made by epie\n", "")


def test_debug_shows_the_traceback(call):
    with pytest.raises(ConfigError):
        command_line.cli.main(["--debug", "config"], standalone_mode=False)


def test_config_shows_values_and_origins(call, project, monkeypatch):
    monkeypatch.chdir(project)
    code, out, _ = call("config")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert code == 0
    assert rows["training.epochs"] == ["5", "ptycho.yaml:6"]
    assert rows["training.seed"] == ["0", "default"]
    assert rows["backend"] == ['"epie"', "ptycho.yaml:5"]


def test_config_prints_the_schema(call, project, monkeypatch):
    monkeypatch.chdir(project)
    _, out, _ = call("config", "--schema")
    assert json.loads(out)["$defs"]


def test_backends_says_why_one_cannot_be_used(call, project, monkeypatch):
    (project / "backends" / "broken.py").write_text("import not_there\n")
    monkeypatch.chdir(project)
    code, out, _ = call("backends")
    assert code == 0
    assert "epie  backends/epie.py  version 1" in out
    assert "the module `not_there` is missing" in out


def test_option_texts_become_typed_values():
    options = read_section(SimulationOptions, {"photons": "1e4", "size": "32", "probe": None})
    assert (options.photons, options.size, options.probe) == (1e4, 32, "defocused")
    assert read_section(FixtureOptions, {"subset_size": "20"}).subset_size == 20


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("matrix: {training.epochs: [1, zero]}\n", "training.epochs"),
        ("evidence: {plan: p}\n", "evidence"),
    ],
)
def test_config_refuses_what_a_run_would(project, monkeypatch, more, said):
    with (project / "ptycho.yaml").open("a") as file:
        file.write(more)
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError, match=said):
        cli.main(["config"], standalone_mode=False)
