"""Whether stages are up to date, for who runs nothing."""

from __future__ import annotations

import shutil

import pytest

from ptycho_tasks.evidence.stage_status import stale_stage


@pytest.mark.parametrize("with_database", [True, False])
def test_a_stage_is_stale_once_what_decides_it_changed(built_project, monkeypatch, with_database):
    monkeypatch.chdir(built_project)
    if not with_database:
        shutil.rmtree(".ptycho")
    assert stale_stage("infer") == ""
    config = built_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 6"))
    said = "training.epochs 5 -> 6" if with_database else "it was not built yet"
    assert stale_stage("infer") == f"train: {said}"
    assert stale_stage("fixture") == ""
    assert (built_project / ".ptycho").exists() == with_database
