"""One network and many scans: each scan is a source and a reconstruction, and nothing else."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.npz import write_scan

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
def _beam(tmp_path_factory, request):
    root = tmp_path_factory.mktemp("beam") / "project"
    shutil.copytree(request.getfixturevalue("_built"), root)
    for folder in (".ptycho", "runs", "fixtures"):
        shutil.rmtree(root / folder)
    (root / "ptycho.yaml").write_text(CONFIG)
    for seed, name in enumerate(("one", "two", "three"), 1):
        add_scan(root, name, seed=seed)
    return root


@pytest.fixture
def beam(_beam, tmp_path):
    """A project with three scans, of which nothing is built."""
    return shutil.copytree(_beam, tmp_path / "beam")


def ran(done):
    assert done.returncode == 0, done.stderr
    return [line[3:] for line in done.stdout.splitlines() if line.startswith(".  ")]


def test_a_new_scan_is_checked_and_reconstructed_and_nothing_else(beam, doit):
    first = ran(doit(beam))
    assert first == [
        "source:one", "fixture:one", "train", "infer:one",
        "source:three", "infer:three", "source:two", "infer:two",
    ]  # fmt: skip
    for scan in ("one", "two", "three"):
        assert (beam / f"runs/default/inference/{scan}/reconstruction.h5").is_file()
    assert [path.name for path in (beam / "fixtures").glob("*.npz")] == ["beam-one.npz"]
    add_scan(beam, "new", seed=4)
    assert ran(doit(beam, "infer:two")) == []
    assert ran(doit(beam)) == ONE_NEW
    # Its results stay when a scan goes.
    (beam / "raw/two.npz").unlink()
    assert ran(doit(beam)) == []
    assert (beam / "runs/default/inference/two/reconstruction.h5").is_file()


def test_a_glob_of_scans_to_learn_from_is_told_by_why(beam, doit):
    edit(beam, ("scans: [one]", "scans: ['t*']"))
    assert "train" in ran(doit(beam))
    add_scan(beam, "twelve", seed=5)
    shown = doit(beam, "why").stdout
    assert "fixtures/beam-twelve.npz" in shown
    assert {"fixture:twelve", "train", "infer:one"} <= {*ran(doit(beam))}


def test_variants_and_scans_combine(beam, doit):
    with (beam / "ptycho.yaml").open("a") as stream:
        stream.write("matrix: {training.seed: [0, 1], inference.n_groups: [null, 30]}\n")
    first = ran(doit(beam))
    assert [name for name in first if name.startswith("train")] == ["train:default", "train:seed1"]
    assert len([name for name in first if name.startswith("infer")]) == 12
    assert (beam / "runs/n_groups30-seed1/inference/two/metrics.json").is_file()
    assert ran(doit(beam, "infer:seed1/two")) == []
    add_scan(beam, "new", seed=4)
    assert sorted(ran(doit(beam))) == [
        "infer:default/new", "infer:n_groups30-seed1/new", "infer:n_groups30/new",
        "infer:seed1/new", "source:new",
    ]  # fmt: skip


def test_what_a_scan_is_called_is_no_work(beam, doit):
    doit(beam)
    edit(beam, ("[raw/*.npz]", "{a: raw/one.npz, b: raw/two.npz, c: raw/three.npz}"))
    edit(beam, ("scans: [one]", "scans: [a]"))
    assert ran(doit(beam)) == []
    assert (beam / "runs/default/inference/b/reconstruction.h5").is_file()


def test_each_scan_may_have_settings_of_its_own(beam, doit):
    with np.load(beam / "raw/two.npz") as arrays:
        own = dict(arrays)
    own["diff3d"] = np.rint(own["diff3d"] ** 2).astype(np.uint32)
    np.savez(beam / "raw/two.npz", **own)
    files = "{one: raw/one.npz, two: {file: raw/two.npz, measurement: counts}}"
    edit(beam, ("[raw/*.npz]", files))
    assert "infer:two" in ran(doit(beam))
    edit(beam, ("measurement: counts", "measurement: counts, pixel_size_m: 1e-8"))
    assert ran(doit(beam)) == ["source:two", "infer:two"]


def test_a_bad_scan_costs_only_itself(beam, doit):
    (beam / "raw/two.npz").write_bytes(b"no zip")
    done = doit(beam)
    assert done.returncode == 1
    assert ".  infer:three\n" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "raw/two.npz" in line
    assert "not run because of that: infer:two" in done.stdout
    add_scan(beam, "two", seed=2)
    assert ran(doit(beam)) == ["source:two", "infer:two"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("raw/*.npz", "raw/*.cxi"), "'raw/*.cxi' matches no file"),
        (("raw/*.npz", "raw/one.npz, more/one.npz"), "would both be called `one`"),
        (("scans: [one]", "scans: [four]"), "no scan is called 'four'"),
        ((", scans: [one]", ""), "names 3 scans; say which to learn from"),
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
    done = doit(beam)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "16 x 16" in line
    assert "32 x 32" in line


def test_a_backend_that_learns_from_one_scan_is_not_given_several(beam, doit):
    backend = beam / "backends/epie.py"
    backend.write_text(backend.read_text().replace(", api_version =", ", other ="))
    edit(beam, ("scans: [one]", "scans: [one, two]"))
    done = doit(beam)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "written for backend API version 1, which learns from one scan, but 2" in line
    edit(beam, ("scans: [one, two]", "scans: [two]"))
    assert "train" in ran(doit(beam))
