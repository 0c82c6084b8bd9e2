"""Projects that have something to prove, in which `doit` runs in this process.

A process of its own costs a second a run: only tests of signals, terminals and parallel runs start
one, with `run_doit`.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
from doit.globals import Globals

from ptycho_tasks import tasks
from ptycho_tasks.builds.run import end_run
from ptycho_tasks.commands.cli import main
from ptycho_tasks.config.dodo import EVIDENCE_DODO
from ptycho_tasks.evidence.checklist import Basis, CheckedRow, check_plan, list_problems
from ptycho_tasks.evidence.inputs import files_on_disk
from ptycho_tasks.evidence.item import Evidence, Item
from ptycho_tasks.evidence.loading import load_evidence
from ptycho_tasks.evidence.publish import Publication, begin_evidence, publish
from ptycho_tasks.evidence.runner import run_item
from ptycho_tasks.layout import is_evidence_alone
from ptycho_tasks.system.cache import forget_all
from ptycho_tasks.system.clock import Clock
from ptycho_tasks.testing.project import DOIT, Completed, run_command
from started_commands import start_command

FIX_PLAN = "docs/fix_plan.md"
EVIDENCE = """\
initiative: ADR-003
phase: phase_c4
plan: plan.md
ledger: docs/fix_plan.md
items:
  - ids: [C4.D1, C4.D2]
    pytest: [tests/test_a.py, -q]
    log: pytest_a_green.log
    env: {CUDA_VISIBLE_DEVICES: ""}
  - id: C4.D3
    command: cat data.txt
    log: data.log
    depends: [data.txt]
  - id: C4.F
    by_hand: read it
"""
PLAN = """\
# Plan\r
\r
| ID | What | State | How |
|---|---|---|---|
| C4.D1 | CLI tests | [ ] | guidance \\| `[x]`  |\r
| C4.D2 | more | [ ] | |
- [ ] **C4.D3:** data
- [ ] **C4.F:** by hand   \r
last line, \xe9"""
TEST = """\
import os


def test_neutral():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_more():
    pass
"""
FILES = {
    "evidence.yaml": EVIDENCE,
    "dodo.py": EVIDENCE_DODO,
    "plan.md": PLAN,
    FIX_PLAN: "# Ledger\n\nAttempt #7, long ago",
    "tests/test_a.py": TEST,
    "data.txt": "measured\n",
}


@pytest.fixture(scope="session", autouse=True)
def _without_plugins() -> Iterator[None]:
    """The items' own pytest needs none, which take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        yield


class EvidenceProject:
    """A project with a plan and items, as its user sees it."""

    EVIDENCE, PLAN, TEST = EVIDENCE, PLAN, TEST

    def __init__(self, root: Path, doit: Callable[..., Completed]) -> None:
        self.root, self._doit = root, doit

    def doit(self, *arguments: str, **env: str) -> Completed:
        """Run doit in this process."""
        return self._doit(self.root, *arguments, **env)

    def start(self, *arguments: str, **streams: int) -> Any:
        """Start doit in a process group of its own."""
        return start_command([*DOIT, *arguments], cwd=self.root, **streams)

    def run_apart(self, *arguments: str, **options: Any) -> Completed:
        """Run doit in a process of its own."""
        return run_command([*DOIT, *arguments], cwd=self.root, **options)

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(text.encode())

    def read(self, name: str) -> str:
        return (self.root / name).read_bytes().decode()

    def edit(self, name: str, old: str, new: str) -> None:
        assert old in self.read(name)
        self.write(name, self.read(name).replace(old, new))

    def write_items(self, *items: str) -> None:
        """Have other items than those of `EVIDENCE`: each in YAML, without its braces."""
        head = EVIDENCE.partition("items:\n")[0]
        text = "".join(f"  - {{{item}}}\n" for item in items)
        self.write("evidence.yaml", f"{head}items:\n{text}")

    @property
    def plan(self) -> str:
        return (self.root / "plan.md").read_text()

    @property
    def ledger(self) -> str:
        return (self.root / FIX_PLAN).read_text()

    @property
    def report(self) -> Path:
        """The newest report folder."""
        return max((self.root / "reports").glob("2*Z")) / "phase_c4"

    def list_files(self) -> dict[str, bytes]:
        """Every file but those that no other program needs, to its content."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
            and not {".ptycho", "__pycache__", ".pytest_cache"} & {*path.parts}
            and not path.name.endswith(".lock")
        }

    def assert_refused(
        self, code: int, *expected: str, arguments: tuple[str, ...] = ("evidence",)
    ) -> None:
        """A run is refused in one line, and nothing that anyone sees changes."""
        before = self.list_files()
        self.assert_one_line(self.doit(*arguments), code, *expected)
        assert self.list_files() == before

    @staticmethod
    def assert_one_line(done: Completed, code: int, *expected: str) -> None:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr + done.stdout
        assert len(errors) == 1, done.stderr
        for part in expected:
            assert part in errors[0]


@pytest.fixture
def doit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Completed]:
    """Run doit in this process; called with a project's folder, arguments, and environment."""
    return lambda root, *arguments, **env: _run_doit(monkeypatch, root, arguments, env)


def _run_doit(
    monkeypatch: pytest.MonkeyPatch, root: Path, arguments: tuple[str, ...], env: dict[str, str]
) -> Completed:
    out, err = io.StringIO(), io.StringIO()
    default = "evidence" if is_evidence_alone(root) else "infer"
    dodo = {name: getattr(tasks, name) for name in tasks.__all__}
    dodo["DOIT_CONFIG"] = tasks.DOIT_CONFIG | {"default_tasks": [default], "outfile": out}
    with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(root)
        patch.setattr(Globals, "dep_manager", None)
        for name, value in env.items():
            patch.setenv(name, value)
        forget_all()
        try:
            status = DoitMain(ModuleTaskLoader(dodo)).run(list(arguments))
        except SystemExit as error:
            status = error.code
        finally:
            end_run()  # a run that is refused ends with its process
    assert status is None or isinstance(status, int)
    return subprocess.CompletedProcess(arguments, status or 0, out.getvalue(), err.getvalue())


@pytest.fixture
def open_project(doit: Callable[..., Completed]) -> Callable[[Path], EvidenceProject]:
    """A project that lies in a folder already."""
    return lambda root: EvidenceProject(root, doit)


@pytest.fixture
def project(tmp_path: Path, doit: Callable[..., Completed]) -> EvidenceProject:
    """A project that has evidence and no scan; nothing was run yet."""
    project = EvidenceProject(tmp_path / "project", doit)
    for name, text in FILES.items():
        project.write(name, text)
    return project


@pytest.fixture(scope="session")
def _proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("proved") / "project"
    with pytest.MonkeyPatch.context() as patch:
        project = EvidenceProject(
            root, lambda *args, **env: _run_doit(patch, args[0], args[1:], env)
        )
        for name, text in FILES.items():
            project.write(name, text)
        done = project.doit("evidence")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def proved_project(
    _proved: Path, tmp_path: Path, doit: Callable[..., Completed]
) -> EvidenceProject:
    """A project whose items all ran, are green and published."""
    return EvidenceProject(Path(shutil.copytree(_proved, tmp_path / "proved")), doit)


# --- damage ----------------------------------------------------------------------------------

HOSTILE = [None, 7, 1e400, True, "", "a\0b", "\ud800", "../../x", [], [None], {}, {"x": [1]}]
NO_MAPPINGS = ["[" * 100_000, '{"a":' * 100_000, "{", "[]", "\0", ""]


def _change_each_value(content: Any) -> Iterator[Any]:
    """Copies of nested JSON of which one value at a time is another."""
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            for value in _change_each_value(content[key]):
                copy: Any = content.copy()
                copy[key] = value
                yield copy
    yield from HOSTILE


@pytest.fixture
def damage() -> Callable[[str], list[str]]:
    """What a JSON file may become in hostile hands; called with its text."""
    return lambda text: [*NO_MAPPINGS, *map(json.dumps, _change_each_value(json.loads(text)))]


# --- parts, called one by one ----------------------------------------------------------------

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
SMALL = """\
initiative: I
phase: p
plan: plan.md
ledger: {ledger}
items:
  - {{id: a.1, command: echo fine, log: one, depends: [data.txt]}}
  - {{id: a.2, command: "test -e ready || exit 3", log: two}}
"""
SMALL_PLAN = "- [ ] a.1: first\n| a.2 | second | [ ] | |\n- [x] a.3: by others\n"


def noon(hours: float = 0.0) -> Clock:
    """A clock that stands still, some hours after noon."""
    return Clock(lambda: NOON + timedelta(hours=hours), lambda: 0.0)


@functools.cache
def _load(root: Path, content: bytes) -> Evidence | None:
    """The evidence, parsed once for each content: parsing takes longer than publishing."""
    return load_evidence(root)


class SmallProject:
    """A project on which parts of the evidence are called one by one."""

    def __init__(self, root: Path, ledger: str = "ledger.md", *, of: Path | None = None) -> None:
        """A new one, or a copy of the one at `of`."""
        self.root, self.ledger, self.files = root, root / ledger, files_on_disk(root)
        if of is not None:
            shutil.copytree(of, root)
            return
        root.mkdir()
        (root / "evidence.yaml").write_text(SMALL.format(ledger=ledger))
        (root / "plan.md").write_text(SMALL_PLAN)
        (root / "data.txt").write_text("data\n")
        if not self.ledger.exists():
            self.ledger.write_text("# Ledger\n")

    def edit_config(self, old: str, new: str) -> None:
        path = self.root / "evidence.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    @property
    def evidence(self) -> Evidence:
        evidence = _load(self.root, (self.root / "evidence.yaml").read_bytes())
        assert evidence is not None
        return evidence

    def item(self, name: str) -> Item:
        return self.evidence.find_item(name)

    def run(self, *names: str, hours: float = 0.0) -> None:
        """Run items; their results wait for publication."""
        begin_evidence(self.evidence)
        for name in names or ("one", "two"):
            item = self.item(name)
            inputs = {path: self.files.digest(path) for path in item.depends}
            run_item(self.evidence, item, inputs, noon(hours))

    def publish(self, hours: float = 0.0) -> Publication | None:
        evidence = self.evidence
        return publish(evidence, evidence.items, self.files, noon(hours))

    def check(self, hours: float = 0.0) -> dict[str, CheckedRow]:
        basis = Basis(self.files, lambda stage: "")
        return {row.id: row for row in check_plan(self.evidence, basis, noon(hours))}

    def problems(self) -> list[str]:
        return list_problems(self.evidence, list(self.check().values()))

    @property
    def plan(self) -> str:
        return (self.root / "plan.md").read_text()

    @plan.setter
    def plan(self, text: str) -> None:
        (self.root / "plan.md").write_text(text)

    @property
    def journal(self) -> Path:
        return self.root / ".ptycho/evidence/journal"

    def list_files(self) -> dict[str, str]:
        """Every visible file; report folders by their place in time."""
        stamps = sorted(
            path.name for path in (self.root / "reports").glob("2*") if [*path.iterdir()]
        )
        files = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if path.is_file() and not name.startswith(".") and "/." not in name:
                text = path.read_text()
                for number, stamp in enumerate(stamps):
                    name, text = name.replace(stamp, str(number)), text.replace(stamp, str(number))
                files[name] = text
        return files


@pytest.fixture
def make_small(tmp_path: Path) -> Callable[..., SmallProject]:
    """Make a small project; called with its folder's name and, where wanted, that of its ledger,
    or another folder to copy."""
    return lambda name, *args, **options: SmallProject(tmp_path / name, *args, **options)


@pytest.fixture
def small(make_small: Callable[..., SmallProject]) -> SmallProject:
    """A small project; nothing was run yet."""
    return make_small("small")


@pytest.fixture(scope="session")
def _small_ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = SmallProject(tmp_path_factory.mktemp("ran") / "project")
    project.run()
    return project.root


@pytest.fixture(scope="session")
def _small_proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = SmallProject(tmp_path_factory.mktemp("small") / "project")
    (project.root / "ready").touch()
    project.plan = SMALL_PLAN.replace("[x] a.3", "[ ] a.3")
    project.run()
    project.publish()
    assert project.problems() == []
    return project.root


@pytest.fixture
def small_ran(make_small: Callable[..., SmallProject], _small_ran: Path) -> SmallProject:
    """A small project with results that are not published yet."""
    return make_small("ran", of=_small_ran)


@pytest.fixture
def small_proved(make_small: Callable[..., SmallProject], _small_proved: Path) -> SmallProject:
    """A small project whose items are green and published."""
    return make_small("proved", of=_small_proved)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Completed]:
    """Run the command `ptycho-tasks` in this process; called with a folder and arguments."""

    def run(folder: Path, *arguments: str) -> Completed:
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["ptycho-tasks", *arguments])
            forget_all()
            with pytest.raises(SystemExit) as end:
                main()
        return subprocess.CompletedProcess(
            arguments, int(end.value.code or 0), out.getvalue(), err.getvalue()
        )

    return run
