"""What is written into a project's .gitignore."""

from __future__ import annotations

import subprocess

import pytest

from ptycho_tasks.commands.new_project import init_project
from ptycho_tasks.config.gitignore import extend_gitignore, list_generated


def test_a_new_project_ignores_what_it_makes_and_not_what_it_is_given(tmp_path):
    pytest.importorskip("ptycho_tasks_torch", reason="a new project names a backend that is here")
    for name in ("fixtures/scan.npz", "fixtures/scan_cut.npz", "runs/default/a", "keep.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    written = init_project(tmp_path, source=tmp_path / "fixtures/scan.npz", backend="unrolled")
    assert tmp_path / ".gitignore" in written
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    listed = ["git", "ls-files", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "fixtures/scan.npz\n" in names
    assert "keep.txt\n" in names
    assert "scan_cut" not in names
    assert "runs" not in names


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"mine\n\nruns", b"mine\n\nruns\n/b/\n"),
        (b"mine\r\n/runs/\r\n", b"mine\r\n/runs/\r\n/b/\r\n"),
        (b"\xff\n", b"\xff\n/runs/\n/b/\n"),
        (b"/b\nruns/\n", None),
    ],
)
def test_lines_that_lack_are_added_and_no_other_byte_changes(tmp_path, old, new):
    path = tmp_path / ".gitignore"
    path.write_bytes(old)
    assert extend_gitignore(tmp_path, ["/runs/", "/b/"]) == ({} if new is None else {path: new})


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_is_no_plain_file_stays(tmp_path, kind):
    path = tmp_path / ".gitignore"
    path.mkdir() if kind == "folder" else path.symlink_to("elsewhere")
    assert extend_gitignore(tmp_path, list_generated()) == {}
