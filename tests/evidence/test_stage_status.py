"""Whether stages are up to date, where nothing is run."""

from __future__ import annotations

import shutil

import pytest

from ptycho_tasks.evidence.stage_status import find_stage_problem


@pytest.mark.parametrize("with_database", [True, False])
def test_a_stage_is_stale_once_what_decides_it_changed(built_project, monkeypatch, with_database):
    monkeypatch.chdir(built_project)
    if not with_database:
        shutil.rmtree(".ptycho")
    assert find_stage_problem("infer") == ""
    config = built_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 6"))
    unknown = "how what is there was made is not known"
    problem = "training.epochs 5 -> 6" if with_database else unknown
    assert find_stage_problem("infer") == f"train: {problem}"
    assert find_stage_problem("fixture") == ""
    assert (built_project / ".ptycho").exists() == with_database
