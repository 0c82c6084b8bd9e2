"""Publication: all together or not at all, whatever happens meanwhile."""

from __future__ import annotations

import pytest

CALLS = ("replace", "unlink", "mkdir", "write_text", "write_bytes", "chmod")


def disturbed(monkeypatch, number: int, disturb) -> None:
    """Disturb the n-th call that changes files."""
    left = [number]

    def patched(name):
        original = getattr(Path, name)

        def call(self, *args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                disturb()
            return original(self, *args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(Path, name, patched(name))


def killed(project: Project, number: int) -> bool:
    """Publish in a process that is killed at the n-th change of a file; False where it had none."""
    process = os.fork()
    if process == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                disturbed(patch, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
                project.publish()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def test_a_kill_at_any_moment_leaves_nothing_half_done(ran, tmp_path):
    whole = Project(tmp_path / "whole", of=ran.root)
    before = whole.list_files()
    whole.publish()
    after = whole.list_files()
    decided = 0
    for number in range(1, 100):
        project = Project(tmp_path / str(number), of=ran.root)
        if not killed(project, number):
            break
        journal = project.root / ".ptycho/evidence/journal"
        if journal.exists():
            decided += 1
        else:
            assert project.list_files() in (before, after)
        # The next run completes it, or publishes anew: once in either case.
        begin_evidence(project.evidence)
        project.publish()
        assert project.list_files() == after
        assert not journal.exists()
        left = {path.name for path in project.root.rglob(".*")}
        assert left == {".ptycho", ".ledger.md.lock"}
        assert project.publish() is None
    assert number > 12
    assert decided > 5


def test_a_completed_publication_keeps_what_others_wrote_meanwhile(ran, tmp_path):
    for number in range(1, 100):
        project = Project(tmp_path / str(number), of=ran.root)
        if not killed(project, number):
            break
        if not (project.root / ".ptycho/evidence/journal").exists():
            continue
        plan, ledger = project.plan, project.ledger.read_text()
        (project.root / "plan.md").write_text(f"mine\n{plan}")
        project.ledger.write_text(f"{ledger}\n### Attempt 9: of another project\n")
        begin_evidence(project.evidence)
        assert project.plan.startswith("mine\n- [x] a.1: first\n| a.2 | second | [P] | (evidence")
        assert "### Attempt 9: of another project" in project.ledger.read_text()
        assert project.ledger.read_text().count("- a.1: green") == 1
    assert number > 12


def test_an_error_at_any_moment_changes_nothing(ran, tmp_path):
    def full():
        raise OSError(28, "No space left on device")

    refusals = 0
    for number in range(1, 100):
        project = Project(tmp_path / str(number), of=ran.root)
        before = project.list_files()
        with pytest.MonkeyPatch.context() as patch:
            disturbed(patch, number, full)
            try:
                project.publish()
                break
            except PtychoTasksError as error:
                said = str(error)
        assert "No space left" in said
        if "published" not in said:
            refusals += 1
            assert project.list_files() == before
            assert not (project.root / ".ptycho/evidence/journal").exists()
        else:
            assert "run again, which completes it" in said
        begin_evidence(project.evidence)
        project.publish()
        assert project.ledger.read_text().count("### Attempt") == 1
        assert "[x] a.1" in project.plan
    assert refusals > 15


@pytest.mark.parametrize("name", ["plan.md", "ledger.md", "reports/manifests/a.1.json"])
def test_what_cannot_be_replaced_leaves_all_as_it_was(project, monkeypatch, name):
    project.run()
    project.publish()
    project.run()
    before, replace = project.list_files(), Path.replace

    def refusing(path, target):
        if target == project.root / name:  # as for a file that is immutable
            raise PermissionError(1, "Operation not permitted")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(PtychoTasksError, match=rf"cannot write .*{name}: Operation not permitted"):
        project.publish()
    monkeypatch.undo()
    assert project.list_files() == before
    begin_evidence(project.evidence)
    assert project.list_files() == before
    project.publish()
    assert project.ledger.read_text().count("### Attempt") == 2


def test_an_attempt_is_appended_though_the_reports_were_removed(small):
    project.run()
    project.publish()
    shutil.rmtree(project.root / "reports")
    project.run()
    project.publish()
    assert project.ledger.read_text().count("### Attempt") == 2
    assert [path.name for path in (project.root / "reports").glob("2*")] == ["2026-01-01T120001Z"]


def test_modes_and_links_stay(small):
    real = project.root / "real.md"
    (project.root / "plan.md").rename(real)
    (project.root / "plan.md").symlink_to("real.md")
    real.chmod(0o640)
    project.run()
    project.publish()
    assert (project.root / "plan.md").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert "[x] a.1" in real.read_text()


SHARE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_publish import Project
project = Project(Path(sys.argv[1]), "../ledger.md")
for number in range(6):
    project.run("one")
    project.publish()
"""


def test_projects_that_share_a_ledger_lose_no_entry(tmp_path):
    (tmp_path / "ledger.md").write_text(LEDGER)
    script = SHARE.format(tests=str(Path(__file__).parent))
    runs = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / name)]) for name in "ab"]
    assert [run.wait() for run in runs] == [0, 0]
    ledger = (tmp_path / "ledger.md").read_text()
    assert re.findall("### Attempt ([0-9]+):", ledger) == [str(n) for n in range(1, 13)]
    assert len({*re.findall("Report: `(.*)`", ledger)}) == 12
    assert "`a/reports/2026-01-01T120005Z/p/`" in ledger


@pytest.fixture
def journal(project, monkeypatch):
    """That of a run which was killed when its publication was decided."""

    def kill(*_, **__):
        raise KeyboardInterrupt

    project.run()
    with monkeypatch.context() as patch:
        patch.setattr("ptycho_tasks.evidence.journal._place_all", kill)
        with pytest.raises(KeyboardInterrupt):
            project.publish()
    return project.root / JOURNAL


def test_a_journal_of_any_other_kind_decides_nothing_or_is_completed(project, journal):
    content = json.loads(journal.read_text())
    for text in [*NESTED, *map(json.dumps, every_value_changed(content, HOSTILE))]:
        journal.write_text(text)
        with contextlib.suppress(PtychoTasksError):
            begin_evidence(project.evidence)
    journal.unlink(missing_ok=True)
    project.run()
    project.publish()
    assert "[x] a.1" in project.plan
