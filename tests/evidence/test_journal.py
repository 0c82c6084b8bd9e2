"""Publication: all together or not at all, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.evidence.publish import begin_evidence

CALLS = ("replace", "unlink", "mkdir", "write_text", "write_bytes", "chmod")


def disturb(patch, number, action):
    """Have something happen at the n-th call that changes files."""
    left = [number]

    def wrap(original):
        def call(self, *args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                action()
            return original(self, *args, **kwargs)

        return call

    for name in CALLS:
        patch.setattr(Path, name, wrap(getattr(Path, name)))


def is_killed_at(small, number):
    """Publish in a process that is killed at the n-th change of a file; False where it had none."""
    process = os.fork()
    if process == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                disturb(patch, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
                small.publish()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.fixture
def killed(small_ran, make_small):
    """Projects whose publication was killed, one at each moment."""

    def kill():
        for number in range(1, 100):
            small = make_small(f"killed{number}", of=small_ran.root)
            if not is_killed_at(small, number):
                return
            yield small

    return kill()


@pytest.fixture
def decided(killed):
    """One whose publication was decided, and not done."""
    return next(small for small in killed if small.journal.exists())


def test_a_kill_at_any_moment_leaves_nothing_half_done(small_ran, killed):
    killed = list(killed)
    before = small_ran.list_files()
    small_ran.publish()
    after = small_ran.list_files()
    assert len(killed) > 12
    for small in killed:
        assert all([*folder.iterdir()] for folder in small.root.glob("reports/2*"))
        if not small.journal.exists():
            assert small.list_files() in (before, after)
        # The next run completes it, or publishes anew: once in either case.
        begin_evidence(small.evidence)
        small.publish()
        assert small.list_files() == after
        assert not small.journal.exists()
        left = {path.name for path in small.root.rglob(".*")}
        assert left == {".ptycho", ".ledger.md.lock"}
        assert small.publish() is None


def test_a_completed_publication_keeps_what_others_wrote_meanwhile(killed):
    decided = [small for small in killed if small.journal.exists()]
    assert len(decided) > 5
    for small in decided:
        small.plan = f"mine\n{small.plan}"
        small.ledger.write_text(f"{small.ledger.read_text()}\n### Attempt 9: of another project\n")
        begin_evidence(small.evidence)
        assert small.plan.startswith("mine\n- [x] a.1: first (evidence")
        assert "\n| a.2 | second | [P] | (evidence" in small.plan
        assert "### Attempt 9: of another project" in small.ledger.read_text()
        assert small.ledger.read_text().count("- a.1: green") == 1


def test_an_error_at_any_moment_changes_nothing(small_ran, make_small):
    def full():
        raise OSError(28, "No space left on device")

    refusals = 0
    for number in range(1, 100):
        small = make_small(f"full{number}", of=small_ran.root)
        before = small.list_files()
        with pytest.MonkeyPatch.context() as patch:
            disturb(patch, number, full)
            try:
                small.publish()
                break
            except PtychoTasksError as error:
                message = str(error)
        assert "No space left" in message
        if "published" not in message:
            refusals += 1
            assert small.list_files() == before
            assert not small.journal.exists()
        else:
            assert "run again, which completes it" in message
        begin_evidence(small.evidence)
        small.publish()
        assert small.ledger.read_text().count("### Attempt") == 1
        assert "[x] a.1" in small.plan
    assert refusals > 15


@pytest.mark.parametrize("name", ["plan.md", "ledger.md", "reports/manifests/a.1.json"])
def test_what_cannot_be_replaced_leaves_all_as_it_was(small_ran, monkeypatch, name):
    small = small_ran
    results = {path: path.read_bytes() for path in small.root.glob(".ptycho/evidence/*.*")}
    small.publish()
    for path, content in results.items():
        path.write_bytes(content)
    before, replace = small.list_files(), Path.replace

    def refuse(path, target):
        if target == small.root / name:  # as for a file that is immutable
            raise PermissionError(1, "Operation not permitted")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PtychoTasksError, match=rf"cannot write .*{name}: Operation not permitted"):
        small.publish()
    monkeypatch.undo()
    assert small.list_files() == before
    begin_evidence(small.evidence)
    assert small.list_files() == before
    small.publish()
    assert small.ledger.read_text().count("### Attempt") == 2


def test_an_attempt_is_appended_though_the_reports_were_removed(small_proved):
    shutil.rmtree(small_proved.root / "reports")
    small_proved.run("one")
    small_proved.publish()
    assert small_proved.ledger.read_text().count("### Attempt") == 2
    folders = [path.name for path in small_proved.root.glob("reports/2*")]
    assert folders == ["2026-01-01T120001Z"]


def test_modes_and_links_stay(small_ran):
    real = small_ran.root / "real.md"
    (small_ran.root / "plan.md").rename(real)
    (small_ran.root / "plan.md").symlink_to("real.md")
    real.chmod(0o640)
    small_ran.publish()
    assert (small_ran.root / "plan.md").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert "[x] a.1" in real.read_text()


def test_projects_that_share_a_ledger_lose_no_entry(tmp_path, make_small):
    projects = [make_small(name, "../ledger.md") for name in "ab"]
    processes = []
    for small in projects:
        small.run("one")
        results = {path: path.read_bytes() for path in small.root.glob(".ptycho/evidence/one.*")}
        processes.append(os.fork())
        if processes[-1] == 0:
            with contextlib.suppress(BaseException):
                for _ in range(6):
                    for path, content in results.items():
                        path.write_bytes(content)
                    small.publish()
                os._exit(0)
            os._exit(1)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]
    ledger = (tmp_path / "ledger.md").read_text()
    assert re.findall("### Attempt ([0-9]+):", ledger) == [str(n) for n in range(1, 13)]
    assert len({*re.findall("Report: `(.*)`", ledger)}) == 12
    assert "`a/reports/2026-01-01T120005Z/p/`" in ledger


def test_a_journal_of_any_other_kind_decides_nothing_or_is_completed(decided, damage):
    small = decided
    for text in damage(small.journal.read_text()):
        small.journal.write_text(text)
        with contextlib.suppress(PtychoTasksError):
            begin_evidence(small.evidence)
    small.journal.unlink(missing_ok=True)
    small.run("one")
    small.publish()
    assert "[x] a.1" in small.plan


def test_a_journal_says_what_will_change_and_nothing_else(decided):
    journal = json.loads(decided.journal.read_text())
    assert [*journal] == [
        "staged", "folder", "manifests", "changes", "title", "lines", "pending",
    ]  # fmt: skip
    assert journal["changes"].keys() == journal["manifests"].keys() == {"a.1", "a.2"}
