"""What git knows of a folder."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ptycho_tasks.system.git import Revision, read_revision

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git here")
NAMED = ("-c", "user.name=a", "-c", "user.email=a@b")


def git(folder, *arguments):
    done = subprocess.run(
        ["git", "-C", folder, *NAMED, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_commit_and_whether_files_changed_since(tmp_path):
    assert read_revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert read_revision(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "not tracked").touch()
    assert read_revision(tmp_path) == Revision(commit, is_dirty=False)
    (tmp_path / "a").write_text("2")
    assert read_revision(tmp_path) == Revision(commit, is_dirty=True)
