"""The table in docs/staleness.md, row by row: make the change and see what runs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import yaml

from ptycho_tasks.builds import stage_code as code
from ptycho_tasks.builds import task_table as table
from ptycho_tasks.config.facts import Fact, list_facts
from ptycho_tasks.config.sections import Config
from ptycho_tasks.options import STAGES, ExecutionOptions, TrainingOptions
from ptycho_tasks.testing.project import DOIT, run_command

PAGE = Path(__file__).parents[2] / "docs" / "staleness.md"
FILE_SOURCE = """\
name: tiny
source: {file: scan.npz}
fixture: {subset_size: 25}
backend: epie
training: {epochs: 5}
"""
SPARE = """\
class Spare:
    name = "spare"

    def claims(self, path):
        return False

    def files(self, path, reading):
        return []

    def open(self, path, reading):
        raise NotImplementedError


reader = Spare()
"""
CORE = Path(code.__file__).parents[1]
KNOWS = "from ptycho_tasks.options import ExecutionOptions\n\n\n"
REFINE = "refine: {backend: further, epochs: 2}\n"
STARTED, MAY_START = ".  ", "?  "
"""How the line of a task begins that runs, and in `dry-run` also of one that may run."""


def rows(title):
    """The rows of the table under a title: cells, and the stages that are marked."""
    lines = PAGE.read_text().partition(f"## {title}")[2].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    for line in lines[begin:]:
        if not line.startswith("|"):
            return
        first, second, *marks = (cell.strip() for cell in line.strip("|").split("|"))
        assert set(marks) <= {"●", ""}
        yield first, second, [s for s, mark in zip(STAGES, marks, strict=True) if mark]


SETTINGS = [(key.strip("`"), change, ran) for key, change, ran in rows("Settings of ptycho.yaml")]


@pytest.fixture(scope="module")
def bases(_built, tmp_path_factory):
    """Built projects: one that simulates its scan, one that reads it, one without a refinement."""
    folder = tmp_path_factory.mktemp("bases")
    simulated, reading = folder / "simulated", folder / "reading"
    shutil.copytree(_built, simulated)
    shutil.copytree(_built, reading, ignore=shutil.ignore_patterns("runs", ".ptycho", "*.npz"))
    scan = _built / "fixtures" / "tiny_source.npz"
    shutil.copy(scan, reading / "scan.npz")
    shutil.copy(scan, reading / "copy.npz")
    shutil.copy(_built / "runs/default/inference/reconstruction.h5", reading / "product.h5")
    with np.load(scan) as arrays:
        places = np.stack([arrays["xcoords"], arrays["ycoords"]], axis=1)
    np.savetxt(reading / "positions.txt", places, fmt="%.17g", header="x y", comments="")
    (reading / "readers").mkdir()
    (reading / "readers/spare.py").write_text(SPARE)
    (reading / "ptycho.yaml").write_text(FILE_SOURCE)
    for root in (simulated, reading):
        add_backends(root / "backends")
        (root / "helper.py").write_text("value = 1\n")
        with (root / "ptycho.yaml").open("a") as config:
            config.write(REFINE)
        done = run_command(DOIT, cwd=root)
        assert done.returncode == 0, done.stderr
        assert STARTED not in run_command(DOIT, cwd=root).stdout
    return {"simulated": simulated, "reading": reading, "unrefined": _built}


def add_backends(folder):
    """Let `epie` know settings of the execution and import a module; add a copy of each backend."""
    path = folder / "epie.py"
    replaced(path, ", TrainingOptions\n\n\n", f", TrainingOptions\n{KNOWS}")
    replaced(path, "    def train", "    execution_type = ExecutionOptions\n\n    def train")
    replaced(path, "class EPIE", "import helper\n\n\nclass EPIE")
    for name in ("epie", "further"):
        text = (folder / f"{name}.py").read_text()
        (folder / f"{name}2.py").write_text(text.replace(f'"{name}"', f'"{name}2"'))


@pytest.fixture
def base(bases, tmp_path, monkeypatch):
    """A copy of a base, in which nothing is stale."""

    def base(kind):
        root = shutil.copytree(bases[kind], tmp_path / "project")
        monkeypatch.syspath_prepend(root)
        sys.modules.pop("helper", None)  # of another test's copy
        return root

    return base


def known_keys():
    return (
        list_facts(Config)
        | list_facts(TrainingOptions, "training")
        | list_facts(ExecutionOptions, "execution")
        | list_facts(TrainingOptions, "refine")
        | {"refine.backend": Fact(("refine",), None)}
    )


def value_of(root, key):
    known = known_keys()
    place = yaml.safe_load((root / "ptycho.yaml").read_text())
    for part in key.split("."):
        if part not in place:
            return msgspec.to_builtins(known[key].default)
        place = place[part]
    return place


def set_key(root, key, value):
    path = root / "ptycho.yaml"
    data = yaml.safe_load(path.read_text())
    *sections, last = key.split(".")
    place = data
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = value
    if key == "source.simulate":
        place.pop("file")
    path.write_text(yaml.safe_dump(data))


def test_every_setting_has_its_row():
    whole = {"training", "execution"}
    of_several_scans = {"source.files", "fixture.scans"}
    rows_expected = set(known_keys()) - whole - of_several_scans
    assert sorted(key for key, _, _ in SETTINGS) == sorted(rows_expected)


@pytest.mark.parametrize(("key", "change", "ran"), SETTINGS, ids=[row[0] for row in SETTINGS])
def test_a_changed_setting_runs_what_its_row_says(base, build, capsys, key, change, ran):
    before, after = (yaml.safe_load(text.strip(" `")) for text in change.split("→"))
    if isinstance(after, str) and after.replace("e", "").replace("-", "").isdigit():
        after = float(after)  # PyYAML wants a point in 1e5, ptycho.yaml does not
    reading = key.startswith("source") and not key.startswith("source.simulate.")
    root = base("reading" if reading else "unrefined" if key == "refine" else "simulated")
    assert value_of(root, key) == before
    set_key(root, key, after)
    build(root, "dry-run")
    planned = in_order(
        line.split()[1].partition(":")[0]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith((STARTED, MAY_START)) and "runs only if" not in line
    )
    # A run does at most what dry-run says; it does less where a stage gives the same bytes again.
    assert planned == ran or in_order(build(root)) == ran


def in_order(names):
    return sorted({*names}, key=STAGES.index)


def replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def other_scan(root, tmp_path, monkeypatch):
    with np.load(root / "scan.npz") as arrays:
        np.savez(root / "scan.npz", **{**arrays, "diff3d": 2 * arrays["diff3d"]})


def touched(root, tmp_path, monkeypatch):
    os.utime(root / "scan.npz", (time.time() + 9, time.time() + 9))


def copied(root, tmp_path, monkeypatch):
    shutil.copy(root / "scan.npz", root / "new.npz")
    (root / "new.npz").replace(root / "scan.npz")


def edited(name):
    def edit(root, tmp_path, monkeypatch):
        data = bytearray((root / name).read_bytes())
        data[len(data) // 2] ^= 1
        (root / name).write_bytes(data)

    return edit


def in_file(name, old, new):
    def edit(root, tmp_path, monkeypatch):
        replaced(root / name, old, new)

    return edit


def work_on_a_copy_of_the_core(tmp_path, monkeypatch):
    shutil.copytree(CORE, tmp_path / "core")
    monkeypatch.setattr(code, "_HERE", tmp_path / "core")


def core_code(root, tmp_path, monkeypatch):
    work_on_a_copy_of_the_core(tmp_path, monkeypatch)
    edit_core(tmp_path)


def edit_core(tmp_path):
    replaced(tmp_path / "core" / "scans" / "cutting.py", "return np.sort(", "return +np.sort(")


def stage_version(root, tmp_path, monkeypatch):
    monkeypatch.setitem(code.STAGE_CODE, "fixture", code.StageCode(99, ()))
    # What an upgrade brings comes with other files.
    monkeypatch.setattr(table, "_own_stamp", lambda: "upgraded")


def core_version(root, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    monkeypatch.setattr(table, "_own_stamp", lambda: "upgraded")


EPIE = "backends/epie.py"
CHANGES = {
    ("the scan", "other content"): other_scan,
    ("the scan", "`touch`"): touched,
    ("the scan", "replaced by a copy"): copied,
    ("the fixture", "edited"): edited("fixtures/tiny.npz"),
    ("the sidecar", "deleted"): lambda root, *_: (root / "fixtures/tiny.json").unlink(),
    ("the bundle", "truncated"): lambda root, *_: os.truncate(
        root / "runs/default/training/wts.h5.zip", 1000
    ),
    ("a picture", "edited"): edited("runs/default/inference/reconstructed_phase.png"),
    ("ptycho.yaml", "a comment"): in_file("ptycho.yaml", "name:", "# hello\nname:"),
    ("a backend's version", "another one"): in_file(EPIE, '"epie", "1"', '"epie", "2"'),
    ("a local backend's file", "other code"): in_file(
        EPIE, "np.complex64)\n", "np.complex64) + 0\n"
    ),
    ("a local backend's file", "a comment and a docstring"): in_file(
        EPIE, "class EPIE:\n", 'class EPIE:\n    """Text."""\n    # more\n'
    ),
    ("a module that a local backend imports", "other code"): in_file("helper.py", "1", "2"),
    ("a project's reader", "other code"): in_file("readers/spare.py", "return []", "return ()"),
    ("a project's reader", "a comment and a docstring"): in_file(
        "readers/spare.py", "class Spare:\n", 'class Spare:\n    """Text."""\n    # more\n'
    ),
    (
        "the core's code that cuts the fixture, in an editable install",
        "other code",
    ): core_code,
    ("the core's version of the stage fixture", "another one"): stage_version,
    ("the core's version number", "another one"): core_version,
}
FILES = list(rows("Files and code"))


def test_every_change_of_a_file_has_its_row():
    assert [row[:2] for row in FILES] == list(CHANGES)


@pytest.mark.parametrize(
    ("what", "change", "ran"), FILES, ids=[f"{row[0]}-{row[1]}" for row in FILES]
)
def test_a_changed_file_runs_what_its_row_says(
    base, tmp_path, build, monkeypatch, what, change, ran
):
    root = base("reading")
    CHANGES[what, change](root, tmp_path, monkeypatch)
    assert build(root) == ran
    assert build(root) == []


def test_code_that_comes_to_be_worked_on_counts_from_then_on(base, tmp_path, build, monkeypatch):
    """A project that was built with an installed program, and then with an editable one."""
    root = base("reading")
    with monkeypatch.context() as installed:
        installed.setattr(code, "is_installed", lambda path: True)
        for folder in ("fixtures", "runs", ".ptycho"):
            shutil.rmtree(root / folder)
        build(root)
    work_on_a_copy_of_the_core(tmp_path, monkeypatch)
    monkeypatch.setattr(table, "_own_stamp", lambda: "editable")
    assert build(root) == []
    edit_core(tmp_path)
    assert build(root)[0] == "fixture"
    assert build(root) == []
    with monkeypatch.context() as installed:
        installed.setattr(code, "is_installed", lambda path: True)
        installed.setattr(table, "_own_stamp", lambda: "installed")
        assert build(root) == []
