"""Publication: all together or not at all, whatever happens meanwhile; and what plans stand on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptycho_tasks.errors import ConfigError, PlanError, PtychoTasksError
from ptycho_tasks.evidence import runner as prove
from ptycho_tasks.evidence.checklist import Sight, checklist, problems, reopen
from ptycho_tasks.evidence.inputs import digest_at, outputs_at
from ptycho_tasks.evidence.journal import JOURNAL
from ptycho_tasks.evidence.ledger import appended, holds
from ptycho_tasks.evidence.loading import load_evidence
from ptycho_tasks.evidence.log import RULE, as_ascii, output_of
from ptycho_tasks.evidence.plan import Plan
from ptycho_tasks.evidence.prune import prunable, prune
from ptycho_tasks.evidence.publish import begin, publish
from ptycho_tasks.evidence.records import (  # fmt: skip
    is_in_report,
    log_problem,
    pending,
    reasons_of,
)
from ptycho_tasks.evidence.report import Evaluated, attempt, blocker, manifest, summary
from ptycho_tasks.evidence.runner import run_item
from ptycho_tasks.evidence.shell import code_named, pytest_calls, selected_paths
from ptycho_tasks.system.clock import Clock, utc_now

CONFIG = """\
initiative: I
phase: p
plan: plan.md
ledger: {ledger}
items:
  - {{id: a.1, command: echo fine, log: one, depends: [data.txt]}}
  - {{id: a.2, command: "test -e ready || exit 3", log: two}}
"""
PLAN = "- [ ] a.1: first\n| a.2 | second | [ ] | |\n- [x] a.3: by others\n"
LEDGER = "# Ledger\n"
NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def stopped(later: timedelta = timedelta()) -> Clock:
    return Clock(lambda: NOON + later, lambda: 0.0)


class Project:
    """A project on which parts of the evidence are called one by one."""

    def __init__(self, root: Path, ledger: str = "ledger.md", *, of: Path | None = None) -> None:
        """A new one, or a copy of the one at `of`."""
        self.root, self.ledger = root, root / ledger
        self.digest, self.outputs = digest_at(root), outputs_at(root)
        if of is not None:
            shutil.copytree(of, root)
            return
        root.mkdir()
        (root / "evidence.yaml").write_text(CONFIG.format(ledger=ledger))
        (root / "plan.md").write_text(PLAN)
        (root / "data.txt").write_text("data\n")
        if not (root / ledger).exists():
            (root / ledger).write_text(LEDGER)

    def share(self, ids: str) -> None:
        """Have the first item prove several rows."""
        path = self.root / "evidence.yaml"
        path.write_text(path.read_text().replace("id: a.1", f"ids: {ids}"))

    @property
    def evidence(self):
        return load_evidence(self.root)

    def run(self, *names: str, clock: Clock = stopped()) -> None:  # noqa: B008
        begin(self.evidence)
        for name in names or ("one", "two"):
            item = self.evidence.item(name)
            run_item(self.evidence, item, {p: self.digest(p) for p in item.depends}, clock)

    def publish(self, clock: Clock = stopped()):  # noqa: B008
        evidence = self.evidence
        return publish(evidence, evidence.items, self.digest, self.outputs, clock)

    def lines(self, clock: Clock = stopped()):  # noqa: B008
        sight = Sight(self.digest, self.outputs, lambda stage: "")
        found = checklist(self.evidence, sight, clock)
        return {line.id: line for line in found}

    def problems(self) -> list[str]:
        return problems(self.evidence, list(self.lines().values()))

    @property
    def plan(self) -> str:
        return (self.root / "plan.md").read_text()

    def tree(self) -> dict[str, str]:
        """Every visible file; report folders by their place in time."""
        stamps = sorted(
            path.name for path in (self.root / "reports").glob("2*") if [*path.iterdir()]
        )
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and not name.startswith(".") and "/." not in name:
                text = path.read_text()
                for number, stamp in enumerate(stamps):
                    name, text = name.replace(stamp, str(number)), text.replace(stamp, str(number))
                found[name] = text
        return found


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


# --- all or nothing --------------------------------------------------------------------------

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


@pytest.fixture
def ran(tmp_path):
    """A project with results that are not published yet."""
    project = Project(tmp_path / "ran")
    project.run()
    return project


def test_a_kill_at_any_moment_leaves_nothing_half_done(ran, tmp_path):
    whole = Project(tmp_path / "whole", of=ran.root)
    before = whole.tree()
    whole.publish()
    after = whole.tree()
    decided = 0
    for number in range(1, 100):
        project = Project(tmp_path / str(number), of=ran.root)
        if not killed(project, number):
            break
        journal = project.root / ".ptycho/evidence/journal"
        if journal.exists():
            decided += 1
        else:
            assert project.tree() in (before, after)
        # The next run completes it, or publishes anew: once in either case.
        begin(project.evidence)
        project.publish()
        assert project.tree() == after
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
        begin(project.evidence)
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
        before = project.tree()
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
            assert project.tree() == before
            assert not (project.root / ".ptycho/evidence/journal").exists()
        else:
            assert "run again, which completes it" in said
        begin(project.evidence)
        project.publish()
        assert project.ledger.read_text().count("### Attempt") == 1
        assert "[x] a.1" in project.plan
    assert refusals > 15


@pytest.mark.parametrize("name", ["plan.md", "ledger.md", "reports/manifests/a.1.json"])
def test_what_cannot_be_replaced_leaves_all_as_it_was(project, monkeypatch, name):
    project.run()
    project.publish()
    project.run()
    before, replace = project.tree(), Path.replace

    def refusing(path, target):
        if target == project.root / name:  # as for a file that is immutable
            raise PermissionError(1, "Operation not permitted")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(PtychoTasksError, match=rf"cannot write .*{name}: Operation not permitted"):
        project.publish()
    monkeypatch.undo()
    assert project.tree() == before
    begin(project.evidence)
    assert project.tree() == before
    project.publish()
    assert project.ledger.read_text().count("### Attempt") == 2


TEXTS = st.text(st.characters(exclude_characters="\n`~", exclude_categories=["Cs"]), max_size=20)
AROUND = st.lists(
    TEXTS
    | st.sampled_from(
        [
            "| x | y |",
            "|a\\|b|[x]|",
            "- [ ] other.1",
            "  * [P] nested.2: x  ",
            "> q",
            "\r",
            "\u0085 \f",
            "é ",
        ]
    ),
    max_size=5,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=AROUND,
    row=st.sampled_from(
        ["| a.1 | \\| `[ ]` | [ ] | é  |\r", "|a.1|[x]|", "  - [P] **a.1:** text  \r"]
    ),
    after=AROUND,
    ledger=st.binary(max_size=60),
)
def test_a_publication_changes_one_line_of_a_plan_and_the_end_of_a_ledger(
    ran, tmp_path, before, row, after, ledger
):
    plan = "\n".join([*before, row, *after, "| a.2 | | [ ] |"]).encode()
    root = tmp_path / "example"
    shutil.rmtree(root, ignore_errors=True)
    project = Project(root, of=ran.root)
    (root / ".ptycho/evidence/two.json").unlink()
    (root / "plan.md").write_bytes(plan)
    project.ledger.write_bytes(ledger)
    begin(project.evidence)
    project.publish()
    assert project.ledger.read_bytes().startswith(ledger)
    old, new = plan.split(b"\n"), (root / "plan.md").read_bytes().split(b"\n")
    line = len(before)
    assert old[:line] + old[line + 1 :] == new[:line] + new[line + 1 :]
    note = rb" \(evidence 2026-01-01T12:00:00Z green: reports/2026-01-01T120000Z/p/one_green.log\)"
    kept = re.sub(note, b"", new[line])
    expected = row.replace("| [ ] |", "| [x] |").replace("[P]", "[x]").encode()
    assert kept.replace(b" ", b"") == expected.replace(b" ", b"")


def test_an_attempt_is_appended_though_the_reports_were_removed(project):
    project.run()
    project.publish()
    shutil.rmtree(project.root / "reports")
    project.run()
    project.publish()
    assert project.ledger.read_text().count("### Attempt") == 2
    assert [path.name for path in (project.root / "reports").glob("2*")] == ["2026-01-01T120001Z"]


def test_modes_and_links_stay(project):
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


# --- the ledger ------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.lists(st.text("abc `|é", max_size=20), min_size=1, max_size=3))
def test_no_byte_of_any_ledger_changes(content, lines):
    once = appended(content, "title", lines)
    assert once.startswith(content)
    assert all(holds(once, line) for line in lines)
    assert appended(once, "title", lines).startswith(once)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (b"", b"### Attempt 1: t\n\n- x\n"),
        (b"a", b"a\n\n### Attempt 1: t\n\n- x\n"),
        (
            b"Attempt 4\r\n* Attempt #12: y\r\nAttempt 2025-01-01\r\n",
            b"\r\n### Attempt 13: t\r\n\r\n- x\r\n",
        ),
    ],
)
def test_an_attempt_is_numbered_and_ends_lines_as_the_ledger_does(before, expected):
    assert appended(before, "t", ["- x"]).endswith(expected)


# --- logs ------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\x1b[31m", "é".encode(), b"\r\n"])))
def test_a_log_is_the_same_however_the_output_comes(pieces):
    def log_of(chunks):
        class Lines(list):
            write = list.append

            def flush(self):
                pass

        lines = Lines()
        tee = prove._Tee(lines)
        for chunk in chunks:
            tee.take(chunk)
        tee.finish()
        return "".join(lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptycho_tasks.evidence.log.print_text", lambda text: None)
        whole = log_of([b"".join(pieces)])
        assert log_of(pieces) == whole
    assert whole.isascii()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", whole)


def test_colours_and_titles_are_stripped_and_the_rest_is_escaped():
    assert as_ascii("\x1b[1;31mred\x1b[0m \x1b]8;;u\x1b\\é\x07\t\x1b(B.") == "red \\xe9\\x07\t."


def test_the_output_of_a_log_may_hold_the_rule(project):
    assert output_of(f"head\n{RULE}\na\n{RULE}\nb\n{RULE}\nfoot\n") == ["a", RULE, "b"]


# --- the time --------------------------------------------------------------------------------


def test_the_time_is_utc_and_can_be_set(monkeypatch):
    assert utc_now().utcoffset() == timedelta()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1760936700")
    assert Clock().stamp() == "2025-10-20T05:05:00Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "noon")
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH: expected seconds since 1970"):
        utc_now()


# --- what a plan stands on -------------------------------------------------------------------


@pytest.fixture
def proved(project):
    (project.root / "ready").touch()
    (project.root / "plan.md").write_text(PLAN.replace("[x] a.3", "[ ] a.3"))
    project.run()
    project.publish()
    assert project.problems() == []
    return project


def test_the_checklist_says_state_outcome_age_and_staleness(proved):
    lines = proved.lines(stopped(timedelta(hours=5)))
    assert (lines["a.1"].state, lines["a.1"].outcome, lines["a.1"].age) == ("done", "green", "5 h")
    assert (lines["a.1"].evidence, lines["a.3"].evidence) == ("valid", "none")
    (proved.root / "data.txt").write_text("other\n")
    line = proved.lines()["a.1"]
    assert (line.evidence, line.outcome) == ("stale", "green")
    assert line.reason.startswith("one is stale: data.txt changed: sha256 ")


def test_a_done_row_without_evidence_does_not_pass(project):
    assert project.problems() == [
        "plan.md:3: a.3 is marked done, but no item in evidence.yaml proves it"
    ]
    (project.root / "plan.md").write_text(PLAN.replace("[ ]", "[x]"))
    assert len(project.problems()) == 3
    assert (
        "plan.md:1: a.1 is marked done, but nothing says that one was run: "
        "reports/manifests/a.1.json is not there"
    ) in project.problems()


def test_what_people_mark_by_hand_passes(proved):
    with (proved.root / "evidence.yaml").open("a") as file:
        file.write("  - {id: a.3, by_hand: look at it}\n")
    (proved.root / "plan.md").write_text(proved.plan.replace("[ ] a.3", "[x] a.3"))
    assert proved.problems() == []


def the_log(project: Project) -> Path:
    return next((project.root / "reports").glob("2*/p/one_green.log"))


def altered(project):
    with the_log(project).open("a") as log:
        log.write("more\n")


def elsewhere(project):
    path = project.root / "reports/manifests/a.1.json"
    shutil.copy(the_log(project), project.root / "one.log")
    manifest = json.loads(path.read_text())
    manifest["items"][0]["log"] = "one.log"
    path.write_text(json.dumps(manifest))


def linked(project):
    log = the_log(project)
    log.rename(project.root / "one.log")
    log.symlink_to(project.root / "one.log")


BROKEN = {
    "altered": (altered, "one_green.log was altered: sha256 "),
    "missing": (lambda project: the_log(project).unlink(), "one_green.log is missing"),
    "elsewhere": (elsewhere, "one.log lies outside the report folders of reports"),
    "a link": (linked, "one_green.log lies outside the report folders of reports"),
}


@pytest.mark.parametrize(("damage", "expected"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("state", ["x", " "], ids=["done", "open"])
def test_a_log_that_is_not_as_it_was_left_does_not_pass(proved, damage, expected, state):
    (proved.root / "plan.md").write_text(proved.plan.replace("[x] a.1", f"[{state}] a.1"))
    damage(proved)
    (problem,) = proved.problems()
    assert expected in problem
    assert problem.startswith("plan.md:1: a.1")


def test_a_log_of_a_row_that_is_gone_is_looked_at_too(proved):
    altered(proved)
    (proved.root / "plan.md").write_text(proved.plan.replace("a.1: first", "a.4: first"))
    edit = (proved.root / "evidence.yaml").read_text().replace("id: a.1", "id: a.4")
    (proved.root / "evidence.yaml").write_text(edit)
    assert any(p.startswith("a.1: ") and "was altered" in p for p in proved.problems())


def test_rows_whose_evidence_went_stale_can_be_reopened(proved):
    before = proved.plan
    (proved.root / "data.txt").write_text("other\n")
    assert [p.partition(" is stale")[0] for p in proved.problems()] == [
        "plan.md:1: a.1 is marked done, but one"
    ]
    assert reopen(proved.evidence, list(proved.lines().values())) == ["a.1"]
    assert proved.plan == before.replace("[x] a.1", "[ ] a.1")
    assert proved.problems() == []


def test_a_plan_without_a_row_of_the_evidence_cannot_be_checked(proved):
    (proved.root / "plan.md").write_text("nothing\n")
    with pytest.raises(PlanError, match=r"has no row `a.1`"):
        proved.problems()


WHOLE = {"item": "one", "ids": ["a.1"], "outcome": "green", "problem": "", "log": "", "sha256": "",
         "started": "2026-01-01T12:00:00Z", "settings": {}, "inputs": {}, "command": "", "env": {},
         "ended": "exit status 0", "mistake": "", "packages": {}, "commit": None, "dirty": None,
         "python": "3.11", "counts": None, "duration_s": 1.0}  # fmt: skip
NO_MANIFESTS = [
    "", "[]", "{", '{"items": 3}', '{"items": [1, {"item": "one"}]}', '{"id": "a.1", "items": []}',
    *(json.dumps({"id": "a.1", "items": [{**WHOLE, key: 1e99}]}) for key in WHOLE),
    json.dumps({"id": "a.1", "items": [{**WHOLE, "started": "at noon"}]}),
    json.dumps({"id": "a.2", "items": [WHOLE]}),
]  # fmt: skip


@pytest.mark.parametrize("text", NO_MANIFESTS)
@pytest.mark.parametrize("state", ["x", "P"])
def test_a_damaged_manifest_does_not_pass_and_is_written_anew(proved, text, state):
    (proved.root / "plan.md").write_text(proved.plan.replace("[x] a.1", f"[{state}] a.1"))
    (proved.root / "reports/manifests/a.1.json").write_text(text)
    (problem,) = proved.problems()
    assert "reports/manifests/a.1.json is damaged; " in problem
    proved.run("one")
    proved.publish()
    assert proved.problems() == []


def every_value_changed(content, values):
    """Copies of nested JSON of which one value at a time is another."""
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            for changed in every_value_changed(content[key], values):
                copy = content.copy()
                copy[key] = changed
                yield copy
    yield from values


HOSTILE = [None, 7, 1e400, True, "", "a\0b", "\ud800", "../../x", [], [None], {}, {"x": [1]}]
NESTED = ["[" * 100_000, '{"a":' * 100_000, "{", "[]", "\0", ""]


def test_a_result_of_any_other_kind_is_none_or_is_published(project):
    project.run()
    evidence = project.evidence
    item = evidence.item("one")
    file, log = evidence.pending_file(item), evidence.pending_log(item)
    content, output = json.loads(file.read_text()), log.read_bytes()
    for text in [*NESTED, *map(json.dumps, every_value_changed(content, HOSTILE))]:
        log.write_bytes(output)
        file.write_text(text)
        if pending(evidence, item):
            assert "one" in published_summary(evidence, item)


def published_summary(evidence, item):
    """All that a report says of a result."""
    record = pending(evidence, item)
    parts = [Evaluated(item, record, "")]
    attempt(evidence, {"one": record}, {}, {"one": record["log"], "": "r"}, record["started"])
    manifest(evidence, "a.1", parts, record["started"]).encode()
    blocker({"one": record}, {"one": []}).encode()
    log_problem(evidence, record)
    [*reasons_of(evidence, item, record, str, str.split)]
    text = summary(evidence, {"one": record}, record["started"])
    return text.encode().decode()


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
            begin(project.evidence)
    journal.unlink(missing_ok=True)
    project.run()
    project.publish()
    assert "[x] a.1" in project.plan


def test_a_manifest_that_is_missing_does_not_pass(proved):
    (proved.root / "reports/manifests/a.1.json").unlink()
    assert proved.problems() == [
        "plan.md:1: a.1 is marked done, but nothing says that one was run: "
        "reports/manifests/a.1.json is not there"
    ]


def test_each_row_of_an_item_has_a_manifest_of_its_own(project):
    project.share("[a.1, a.3]")
    project.run("one")
    project.publish()
    assert project.problems() == []
    manifest = project.root / "reports/manifests/a.3.json"
    before = manifest.read_bytes()
    manifest.unlink()
    assert project.problems() != []
    project.publish()  # which needs no run
    assert project.problems() == []
    assert manifest.read_bytes() == before


def test_a_row_that_is_proved_is_marked_again_without_a_run(proved):
    report = proved.publish(stopped())
    assert report is None
    (proved.root / "plan.md").write_text(proved.plan.replace("[x] a.1", "[ ] a.1"))
    (log,) = proved.lines()["a.1"].logs
    begin(proved.evidence)
    report = proved.publish()
    assert "[x] a.1" in proved.plan
    assert proved.lines()["a.1"].logs == (log,)
    assert sorted(path.name for path in report.folder.iterdir()) == [
        "plan_updates.md", "summary.md",
    ]  # fmt: skip
    assert f"\n- a.1: was proved already; `{log}`\n- Report: " in proved.ledger.read_text()
    assert "| a.1 | `[ ]` open | `[x]` done |" in (report.folder / "plan_updates.md").read_text()
    assert proved.publish() is None


def test_the_order_of_items_is_of_no_account(project):
    config = project.root / "evidence.yaml"
    (project.root / "ready").touch()
    config.write_text(config.read_text().replace("id: a.2", "id: a.1"))
    project.run()
    project.publish()
    *head, one, two = config.read_text().splitlines()
    config.write_text("\n".join([*head, two, one]))
    assert project.publish() is None


def test_a_row_whose_evidence_is_stale_or_red_stays_open(project):
    project.run()
    project.publish()
    (project.root / "plan.md").write_text(re.sub("\\[[xP]\\]", "[ ]", project.plan))
    (project.root / "data.txt").write_text("other\n")
    begin(project.evidence)
    assert project.publish() is None
    (project.root / "data.txt").write_text("data\n")
    project.publish()
    assert "[x] a.1" in project.plan
    assert "| [ ] |" in project.plan


def earlier_log(project):
    return project.root / "reports/2026-01-01T120000Z/p/one_green.log"


def earlier_report(project):
    shutil.rmtree(earlier_log(project).parent.parent)


EARLIER = {
    "altered": (lambda p: earlier_log(p).write_text("fine\n"), "one_green.log was altered: sha256"),
    "missing": (lambda p: earlier_log(p).unlink(), "one_green.log is missing"),
    "all of it": (earlier_report, "ledger.md: the report reports/2026-01-01T120000Z/p lacks its"),
}


@pytest.mark.parametrize(("damage", "expected"), EARLIER.values(), ids=EARLIER)
def test_the_logs_of_earlier_runs_are_looked_at_too(proved, damage, expected):
    proved.run()
    proved.publish(stopped(timedelta(hours=1)))
    assert proved.problems() == []
    damage(proved)
    (problem,) = proved.problems()
    assert expected in problem


def test_reports_of_other_projects_in_a_ledger_are_theirs(tmp_path):
    (tmp_path / "ledger.md").write_text(LEDGER)
    ours, theirs = (Project(tmp_path / name, "../ledger.md") for name in "ab")
    for project in (ours, theirs):
        (project.root / "plan.md").write_text(PLAN.replace("[x]", "[ ]"))
        project.run("one")
        project.publish()
    shutil.rmtree(theirs.root / "reports")
    assert ours.problems() == []
    shutil.rmtree(ours.root / "reports")
    assert any("lacks its summary.md" in problem for problem in ours.problems())


def ptycho_tasks(*arguments, cwd):
    command = [sys.executable, "-m", "ptycho_tasks.commands.cli", *arguments]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=False)


def test_the_commands_show_and_check(proved):
    table = ptycho_tasks("plan", "show", cwd=proved.root).stdout.splitlines()
    assert table[0].split() == ["row", "state", "last", "age", "evidence", "what"]
    assert table[1].split()[:3] == ["a.1", "done", "green"]
    shown = json.loads(ptycho_tasks("plan", "show", "--json", cwd=proved.root).stdout)
    assert [(line["id"], line["evidence"]) for line in shown] == [
        ("a.1", "valid"), ("a.2", "valid"), ("a.3", "none"),
    ]  # fmt: skip
    done = ptycho_tasks("plan", "check", cwd=proved.root)
    assert (done.returncode, done.stdout) == (0, "plan.md: 2 of 3 rows are done, and proved\n")
    altered(proved)
    done = ptycho_tasks("plan", "check", cwd=proved.root)
    assert done.returncode == 1
    assert done.stderr.startswith("error: plan.md:1: a.1 is marked done, but reports/2026-")
    done = ptycho_tasks("plan", "check", "--reopen", cwd=proved.root)
    assert (done.returncode, done.stdout) == (1, "reopened a.1\n")
    assert ptycho_tasks("plan", "check", cwd=proved.root.parent).returncode == 2


# --- housekeeping ----------------------------------------------------------------------------


def test_only_old_reports_that_nothing_points_to_are_removed(proved):
    for hour in range(1, 4):
        proved.run(clock=stopped(timedelta(hours=hour)))
        proved.publish(stopped(timedelta(hours=hour)))
    reports = proved.root / "reports"
    proved.ledger.write_text(LEDGER)  # else it points to each of them
    (reports / "2026-01-01T120000Z/p/notes.md").write_text("mine\n")
    assert [path.name for path in prunable(proved.evidence, 0)] == [
        "2026-01-01T130000Z", "2026-01-01T140000Z",
    ]  # fmt: skip
    assert [path.name for path in prunable(proved.evidence, 2)] == ["2026-01-01T130000Z"]
    listed = ptycho_tasks("evidence", "prune", "--keep", "2", cwd=proved.root)
    assert listed.stdout == "would remove reports/2026-01-01T130000Z\n--yes removes them\n"
    assert len([*reports.glob("2*")]) == 4
    proved.ledger.write_text("see 2026-01-01T130000Z\n")
    assert prunable(proved.evidence, 2) == []
    prune(proved.evidence, prunable(proved.evidence, 0))
    assert sorted(path.name[11:13] for path in reports.glob("2*")) == ["12", "13", "15"]
    assert ptycho_tasks("evidence", "prune", "--keep=0", "--yes", cwd=proved.root).returncode == 0


# --- commands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "plain", "paths"),
    [
        ("pytest tests/a.py::T -vv", True, ["tests/a.py"]),
        ('A="" B=1 python3 -m pytest -k x tests', True, ["tests"]),
        ("pytest -q", True, ["."]),
        ("cd sub && pytest tests", False, []),
        ("pytest a | tee b", False, []),
        ("echo pytest", False, []),
        ("python run.py", False, []),
    ],
)
def test_a_plain_call_of_pytest_is_known(command, plain, paths):
    calls = pytest_calls(command)
    assert calls.plain == plain
    assert not plain or [*selected_paths(calls.arguments)] == paths


@pytest.mark.parametrize(
    ("command", "scripts"),
    [
        ("python -u check.py a.json > b.py", ["check.py"]),
        ("A=1 ./run x.txt | tee out/x.log && sh go.sh", ["./run", "go.sh"]),
        ("python gen.py > b.py && python b.py", ["gen.py"]),
        ("python -m a.b -x", ["a/b.py", "a/b/__main__.py"]),
        ("pytest tests/a.py::T 2>&1 | cat", ["tests/a.py"]),
        ("cat data.txt", []),
        ('echo "', []),
    ],
)
def test_scripts_in_a_command_are_known(command, scripts):
    assert [*code_named(command)] == scripts


def test_only_files_in_a_report_folder_are_in_one(project):
    inside = project.root / "reports/2026-01-01T120000Z/p/x.log"
    assert is_in_report(project.evidence, inside)
    for other in (inside.parent, inside.parent / "a/x.log", project.root / "reports/now/p/x.log"):
        assert not is_in_report(project.evidence, other)


def test_a_result_of_another_time_is_replaced(project):
    project.run("two")
    assert pending(project.evidence, project.evidence.item("two"))["outcome"] == "red"
    (project.root / "ready").touch()
    project.run("two")
    assert pending(project.evidence, project.evidence.item("two"))["outcome"] == "green"
    project.publish()
    assert Plan(project.plan.encode(), "").row("a.2").state == "x"
