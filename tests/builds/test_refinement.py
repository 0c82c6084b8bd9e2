"""The stage that goes on from a reconstruction."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptycho_tasks.builds import stages
from ptycho_tasks.errors import (
    ConfigError,
    ScanError,
)
from stage_project import Project, make_project, refusal


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    return make_project(tmp_path, monkeypatch)


REFINE = "refine: {backend: mine}\n"


def test_a_refinement_starts_where_inference_ended(project):
    seen = "assert np.array_equal(start.object, request.scan.object); given = start"
    metrics = project.write(refine=seen, more=REFINE).refine()
    made = project.inference().output_files
    refined = project.refinement().output_files
    assert metrics["start"]["r_factor"] == metrics["r_factor"]
    assert all(path.is_file() for path in [*made, *refined])
    with h5py.File(made[0]) as before, h5py.File(refined[0]) as after:
        assert np.array_equal(before["object"], after["object"])
    assert json.loads(refined[3].read_text())["start"] == metrics["start"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("given = None", "gave None from `refine`; expected a Reconstruction"),
        ("given = replace(given, object=given.object * np.nan)", "`object` with NaN or Inf"),
        ("given = replace(given, probe=given.probe[:, 1:])", "`probe` as complex64"),
        ("sys.exit(3)", "ended the program with sys.exit(3)"),
    ],
)
def test_what_is_no_refinement_is_refused_and_nothing_published(project, code, expected):
    project.write(refine=code, more=REFINE)
    assert expected in refusal(project.refine)
    assert not any("refinement" in name for name in project.files())


def test_an_option_that_a_refinement_cannot_honour_names_its_line(project):
    code = "raise ConfigError('training.epochs: too many')"
    project.write(refine=code, more="refine:\n  backend: mine\n  epochs: 9\n")
    said = refusal(project.refine, ConfigError, 2)
    assert said == "ptycho.yaml:7: refine.epochs: too many"


def test_a_refinement_of_something_else_is_refused(project):
    project.write(more=REFINE).infer()
    project.inference().output_files[0].write_bytes(b"nothing")
    said = refusal(lambda: stages.refine(project.refinement()), ScanError)
    assert "is no reconstruction of ptycho-tasks" in said


def test_a_refinement_of_another_scan_is_refused(project):
    project.write(more=REFINE).infer()
    project.write(more=REFINE + "inference: {n_groups: 20}\n")
    said = refusal(lambda: stages.refine(project.refinement()), ScanError)
    assert said.startswith("runs/default/inference/reconstruction.h5: is not of this scan: ")
    assert "`positions` as float64 of shape (25, 2); expected float of shape (20, 2)" in said


@pytest.mark.parametrize(("factor", "warned"), [(1.05, True), (1.0, False)])
def test_a_refinement_that_made_it_worse_says_so(project, capsys, factor, warned):
    code = f"given = replace(start, object=start.object * {factor})"
    project.write(refine=code, more=REFINE).refine()
    said = "the refinement explains the frames worse than its start did"
    assert (said in capsys.readouterr().out) == warned
