"""One network and many scans: each scan is a source and a reconstruction, and nothing else."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.testing.project import DOIT, run_command

CONFIG = """\
name: beam
source: {files: [raw/*.npz]}
fixture: {subset_size: 25, scans: [one]}
backend: epie
training: {epochs: 3}
"""
ONE_NEW = ["source:new", "infer:new"]


def add_scan(root, name, **options):
    (root / "raw").mkdir(exist_ok=True)
    made = simulate(SimulationOptions(**{"size": 16, "grid": 6, "step": 2.0, **options}))
    write_scan(root / "raw" / f"{name}.npz", made)


def edit(root, *changes):
    config = root / "ptycho.yaml"
    for old, new in changes:
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))


@pytest.fixture(scope="module")
def _beam(_built, tmp_path_factory):
    root = tmp_path_factory.mktemp("beam") / "project"
    shutil.copytree(_built, root)
    for folder in (".ptycho", "runs", "fixtures"):
        shutil.rmtree(root / folder)
    (root / "ptycho.yaml").write_text(CONFIG)
    for seed, name in enumerate(("one", "two"), 1):
        add_scan(root, name, seed=seed)
    return root


@pytest.fixture(scope="module")
def _built_beam(_beam, tmp_path_factory):
    root = shutil.copytree(_beam, tmp_path_factory.mktemp("built_beam") / "project")
    assert ran(run_command(DOIT, cwd=root)) == [
        "source:one", "fixture:one", "train", "infer:one", "source:two", "infer:two",
    ]  # fmt: skip
    return root


@pytest.fixture
def beam(_beam, tmp_path):
    """A project with two scans, of which nothing is built."""
    return shutil.copytree(_beam, tmp_path / "beam")


@pytest.fixture
def built_beam(_built_beam, tmp_path):
    """The same, built."""
    return shutil.copytree(_built_beam, tmp_path / "beam")


def ran(done):
    assert done.returncode == 0, done.stderr
    return [line[3:] for line in done.stdout.splitlines() if line.startswith(".  ")]


def test_a_new_scan_is_checked_and_reconstructed_and_nothing_else(built_beam, doit):
    beam = built_beam
    for scan in ("one", "two"):
        assert (beam / f"runs/default/inference/{scan}/reconstruction.h5").is_file()
    assert [path.name for path in (beam / "fixtures").glob("*.npz")] == ["beam-one.npz"]
    add_scan(beam, "new", seed=4)
    assert ran(doit(beam, "infer:two")) == []
    assert ran(doit(beam)) == ONE_NEW
    # Its results stay when a scan goes.
    (beam / "raw/two.npz").unlink()
    assert ran(doit(beam)) == []
    assert (beam / "runs/default/inference/two/reconstruction.h5").is_file()
    edit(beam, ("[raw/*.npz]", "[raw/one.npz, raw/two.npz]"))
    done = doit(beam)
    assert ran(done) == []
    assert "source:two: raw/two.npz is not there; what was made of it stays\n" in done.stdout
    edit(beam, ("epochs: 3", "epochs: 4"))
    done = doit(beam)
    assert done.returncode == 1
    assert ".  infer:one\n" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "ptycho.yaml:2: scan `two`: source.file: there is no" in line


def test_a_scan_that_is_cut_short_while_it_is_read_costs_itself_alone(beam, doit):
    code = beam / "backends" / "epie.py"
    cut = "if scan.name == 'one': __import__('os').truncate('raw/one.npz', 0)"
    begin = "        canvas = canvas_of(scan.positions, N)\n"
    assert begin in code.read_text()
    code.write_text(code.read_text().replace(begin, f"{begin}        {cut}\n"))
    done = doit(beam)
    assert done.returncode == 1
    assert ".  infer:two\n" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "raw/one.npz: was cut short while it was read; run again once it is complete" in line
    results = beam / "runs/default/inference"
    assert [path.name for path in results.iterdir()] == ["two"]


def test_a_glob_of_scans_to_learn_from_is_told_by_why(beam, doit):
    edit(beam, ("scans: [one]", "scans: ['t*']"))
    assert "train" in ran(doit(beam, "train"))
    add_scan(beam, "twelve", seed=5)
    shown = doit(beam, "why").stdout
    assert "fixtures/beam-twelve.npz is new as an input" in shown
    assert {"fixture:twelve", "train"} <= {*ran(doit(beam, "train"))}


def test_scans_of_two_sizes_are_refused_when_their_fixtures_are_made(beam, doit):
    add_scan(beam, "two", size=32, seed=2)
    edit(beam, ("scans: [one]", "scans: [one, two]"))
    done = doit(beam, "train")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith(
        "error: fixture.scans: the frames of two have 32 x 32 pixels, those of one 16 x 16; one "
    )
    assert not (beam / "fixtures/beam-two.npz").exists()
    assert "train" not in done.stdout.split("failed:")[0]
    # What is there of another size is no reason once it would not be made any more.
    for name in ("one", "two"):
        add_scan(beam, name, size=32, seed=5)
    assert doit(beam, "fixture:two").returncode == 0


def test_variants_and_scans_combine(beam, doit):
    with (beam / "ptycho.yaml").open("a") as stream:
        stream.write("matrix: {training.seed: [0, 1]}\n")
    first = ran(doit(beam, "infer:seed1/two"))
    assert first == ["source:two", "source:one", "fixture:one", "train:seed1", "infer:seed1/two"]
    assert ran(doit(beam, "infer:*/two")) == ["train:default", "infer:default/two"]
    assert (beam / "runs/seed1/inference/two/metrics.json").is_file()
    assert not (beam / "runs/seed1/inference/one").exists()


def test_what_a_scan_is_called_is_no_work(built_beam, doit):
    beam = built_beam
    edit(beam, ("[raw/*.npz]", "{a: raw/one.npz, b: raw/two.npz}"))
    edit(beam, ("scans: [one]", "scans: [a]"))
    assert ran(doit(beam)) == []
    assert (beam / "runs/default/inference/b/reconstruction.h5").is_file()


def test_each_scan_may_have_settings_of_its_own(built_beam, doit):
    beam = built_beam
    with np.load(beam / "raw/two.npz") as arrays:
        own = dict(arrays)
    own["diff3d"] = np.rint(own["diff3d"] ** 2).astype(np.uint32)
    np.savez(beam / "raw/two.npz", **own)
    files = "{one: raw/one.npz, two: {file: raw/two.npz, measurement: counts}}"
    edit(beam, ("[raw/*.npz]", files))
    assert ran(doit(beam)) == ["source:two", "infer:two"]
    edit(beam, ("measurement: counts", "measurement: counts, pixel_size_m: 1e-8"))
    assert ran(doit(beam, "source:*")) == ["source:two"]


def test_a_bad_scan_costs_only_itself(built_beam, doit):
    beam = built_beam
    (beam / "raw/bad.npz").write_bytes(b"no zip")
    add_scan(beam, "new", seed=4)
    done = doit(beam)
    assert done.returncode == 1
    assert ".  infer:new\n" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "raw/bad.npz" in line
    assert "not run because of that: infer:bad" in done.stdout
    add_scan(beam, "bad", seed=9)
    assert ran(doit(beam)) == ["source:bad", "infer:bad"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("raw/*.npz", "raw/*.cxi"), "'raw/*.cxi' matches no file"),
        (("raw/*.npz", "raw/one.npz, more/one.npz"), "would both be called `one`"),
        (("scans: [one]", "scans: [four]"), "no scan is called 'four'"),
        ((", scans: [one]", ""), "names 2 scans; say which to learn from"),
    ],
)
def test_what_is_wrong_with_the_scans_is_one_line(beam, doit, change, said):
    edit(beam, change)
    done = doit(beam)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not (beam / "runs").exists()


def test_scans_of_other_frames_are_not_learned_from_together(beam, doit):
    add_scan(beam, "wide", size=32)
    edit(beam, ("scans: [one]", "scans: [one, wide]"))
    done = doit(beam, "train")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "16 x 16" in line
    assert "32 x 32" in line


def test_a_backend_that_learns_from_one_scan_is_not_given_several(beam, doit):
    backend = beam / "backends/epie.py"
    backend.write_text(backend.read_text().replace(", api_version =", ", other ="))
    edit(beam, ("scans: [one]", "scans: [one, two]"))
    done = doit(beam, "train")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "written for backend API version 1, which learns from one scan, but 2" in line
    edit(beam, ("scans: [one, two]", "scans: [two]"))
    assert "train" in ran(doit(beam, "train"))
