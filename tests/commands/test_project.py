"""Starting a project: what `init` writes is a working project and says every setting."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from ptycho_tasks.commands.new_project import init_project, project_schema
from ptycho_tasks.config.document import read_config
from ptycho_tasks.config.factories import create_training_payload
from ptycho_tasks.config.fields import flatten
from ptycho_tasks.errors import BackendError, ConfigError, FileWriteError


@pytest.fixture
def folder(project):
    """A folder with a local backend, and nothing else yet."""
    (project / "ptycho.yaml").unlink()
    (project / "dodo.py").unlink()
    return project


def uncommented(text: str, names: set[str]) -> str:
    """The example with every `# name: value` made a setting."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.lstrip().removeprefix("# ").partition(":")[0] in names:
            lines[number] = line.replace("# ", "", 1)
    return "\n".join(lines)


def test_the_example_is_the_defaults(folder):
    init_project(folder, backend="epie")
    payload = create_training_payload(read_config(folder / "ptycho.yaml"))
    defaults = create_training_payload(
        read_config(write(folder, "name: simulated\nsource: {simulate: {}}\nbackend: epie\n"))
    )
    assert payload.values == defaults.values


def test_the_example_shows_every_setting_with_its_default(folder):
    init_project(folder, backend="epie")
    path = folder / "ptycho.yaml"
    before = create_training_payload(read_config(path))
    names = {part for key in before.values for part in key.split(".")}
    path.write_text(uncommented(path.read_text(), names))
    after = create_training_payload(read_config(path))
    assert after.values == before.values
    assert {k for k, origin in after.origins.items() if origin == "default"} == set()


def write(folder, text: str):
    path = folder / "other" / "ptycho.yaml"
    path.parent.mkdir(exist_ok=True)
    (path.parent / "backends").symlink_to(folder / "backends")
    path.write_text(text)
    return path


def test_a_source_names_the_project(folder, tmp_path):
    scan = tmp_path / "2026 star (a).npz"
    scan.write_bytes(b"")
    init_project(folder, source=scan, backend="epie")
    data = yaml.safe_load((folder / "ptycho.yaml").read_text())
    assert data["name"] == "2026_star_a_"
    assert data["source"] == {"file": str(scan)}


def test_a_source_in_the_project_is_named_relative_to_it(folder):
    (folder / "scan.npz").write_bytes(b"")
    init_project(folder, source=folder / "scan.npz", backend="epie")
    assert yaml.safe_load((folder / "ptycho.yaml").read_text())["source"]["file"] == "scan.npz"


@pytest.mark.parametrize("present", ["ptycho.yaml", "dodo.py", "ptycho.schema.json"])
def test_nothing_is_overwritten(folder, present):
    (folder / present).write_text("mine")
    with pytest.raises(ConfigError, match="already there"):
        init_project(folder, backend="epie")
    assert (folder / present).read_text() == "mine"
    assert {p.name for p in folder.iterdir()} == {present, "backends"}


def test_a_missing_source_or_unknown_backend_writes_nothing(folder, tmp_path):
    with pytest.raises(ConfigError, match="--source: there is no file"):
        init_project(folder, source=tmp_path / "none.npz", backend="epie")
    with pytest.raises(BackendError, match="unknown backend"):
        init_project(folder, backend="nope")
    assert {p.name for p in folder.iterdir()} == {"backends"}


@pytest.mark.parametrize("name", ["a/b", "a\n", "", "-a", "n" * 101])
def test_a_name_that_no_file_can_have_writes_nothing(folder, name):
    with pytest.raises(ConfigError, match="--name: expected"):
        init_project(folder, backend="epie", name=name)
    with pytest.raises(ConfigError, match="--backend: expected"):
        init_project(folder, backend=name)
    assert {p.name for p in folder.iterdir()} == {"backends"}


def test_a_scan_that_ptycho_yaml_cannot_name_writes_nothing(folder):
    (folder / "a\nb.npz").touch()
    with pytest.raises(ConfigError, match=r"source.file: expected text without control"):
        init_project(folder, backend="epie", source=folder / "a\nb.npz")
    assert {p.name for p in folder.iterdir()} == {"backends", "a\nb.npz"}


def test_a_file_that_cannot_be_written_leaves_none(folder, monkeypatch):
    """As on a full disk."""

    def replace(temp, path):
        if path.name == "ptycho.schema.json":
            raise OSError(28, "No space left on device")
        return rename(temp, path)

    rename = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(FileWriteError, match="No space left"):
        init_project(folder, backend="epie")
    assert {p.name for p in folder.iterdir()} == {"backends"}


VALID = {
    "least": {"source": {"file": "a.npz"}},
    "all lines commented": {"source": {"simulate": {}}, "fixture": None, "training": None},
    "options": {"source": {"file": "a"}, "backend": "epie", "training": {"epochs": 3}},
    "list of scans": {"source": {"files": ["a", "b*"]}, "fixture": {"scans": ["a"]}},
    "named scans": {"source": {"files": {"a": "a.npz", "b": {"file": "a", "scan_index": 1}}}},
    "evidence": {
        "source": {"file": "a"},
        "evidence": {
            "initiative": "i",
            "phase": "p",
            "plan": "plan.md",
            "ledger": "ledger.md",
            "items": [{"id": "C4.D1", "pytest": ["tests"], "log": "a.log", "env": {"A": 1}}],
        },
    },
}
INVALID = {
    "no source": {},
    "unknown key": {"source": {"file": "a"}, "fixtur": {}},
    "unknown nested key": {"source": {"file": "a"}, "fixture": {"size": 3}},
    "too small": {"source": {"file": "a"}, "fixture": {"subset_size": 3}},
    "wrong word": {"source": {"file": "a"}, "fixture": {"strategy": "best"}},
    "option of the backend": {"source": {"file": "a"}, "backend": "epie", "training": {"x": 1}},
    "name of two lines": {"source": {"file": "a"}, "name": "a\n"},
    "empty file": {"source": {"file": ""}},
    "unknown key of a named scan": {"source": {"files": {"a": {"file": "a", "unit": "m"}}}},
    "evidence without a plan": {"source": {"file": "a"}, "evidence": {"items": []}},
}


@pytest.mark.parametrize("data", VALID.values(), ids=VALID)
def test_the_schema_accepts(folder, data):
    jsonschema.validate(data, project_schema(folder))


@pytest.mark.parametrize("data", INVALID.values(), ids=INVALID)
def test_the_schema_refuses(folder, data):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, project_schema(folder))


def test_the_schema_describes_every_setting(folder):
    schema = project_schema(folder)
    init_project(folder, backend="epie")
    payload = create_training_payload(read_config(folder / "ptycho.yaml"))
    text = json.dumps(schema)
    for key in flatten(payload.config):
        assert f'"{key.rpartition(".")[2]}"' in text
