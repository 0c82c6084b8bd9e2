"""Read a memo as groups in this field write them. `importing` makes an evidence.yaml of it.

Focus: [ADR-003] Standardize the backend API
Mapped tests: CUDA_VISIBLE_DEVICES="" pytest tests/test_cli.py -vv; ...
Artifacts: plans/reports/2025-10-20T050500Z/phase_c4/{pytest_cli.log,summary.md}
Do Now:
1. ADR-003 C4.D1+C4.D2 validation @ plans/plan.md - run the selectors; tests: pytest ...
If Blocked: ... log the blocker in docs/fix_plan.md
How-To Map:
- `python make_fixture.py --output data.npz 2>&1 | tee plans/.../fixture.log`
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence import memo_ids
from ptycho_tasks.evidence.memo_asking import ABOUT_OTHER_WORK, forbids, is_asked_for
from ptycho_tasks.evidence.memo_ids import find_ids
from ptycho_tasks.evidence.memo_layout import Line, drop_unseen, is_name, names_row, split_cells
from ptycho_tasks.evidence.memo_places import (
    find_ledger,
    is_ledger_name,
    is_plan_name,
    list_files,
    list_markdown,
    read_artifacts,
)
from ptycho_tasks.evidence.memo_sections import (
    Section,
    group_entries,
    names_ids,
    read_sections,
    read_typed,
)
from ptycho_tasks.evidence.memo_shell import (
    Command,
    Shell,
    drop_prompt,
    is_none,
    is_plain_command,
)
from ptycho_tasks.evidence.plan import Plan
from ptycho_tasks.evidence.shell import split_assignments, split_words
from ptycho_tasks.evidence.summaries import BLOCKER, REPORT_FILES
from ptycho_tasks.system.files import find_file_problem

_LONGEST_MEMO = 256 * 1024
_LONGEST_LINE = 4000
_MOST_LINES = 3000
_FEW = 7
"""Words; a line of fewer that names a log says nothing else."""

_IGNORED = {
    "mode": "the evidence has no place for a way of working",
    "branch": "each log names the commit that it was run on",
    "pitfalls": "advice to people",
    "next up": "is not part of this work",
}
"""Sections that imply nothing, and why."""


_LEFT = "nothing runs it"
_NOT_ASKED = f"what stands beside it does not ask to run it; {_LEFT}"
_TICKED = "is ticked: done, and no work"
BY_PERSON = "no tests, so that a person marks them"


@dataclass(frozen=True)
class Finding:
    """What became of a line, or a part of one."""

    line: int
    """Counted from 1; 0 is about no line."""
    is_taken: bool
    """Whether the evidence.yaml holds it."""
    text: str
    verb: str = ""
    """Of one about no line: `missing`, `runs`."""

    def __str__(self) -> str:
        """As it is shown."""
        if self.verb:
            return f"{self.verb:<8}  {self.text}"
        where = f"line {self.line}" if self.line else "written" if self.is_taken else "note"
        return f"{where:<8}  {'took' if self.is_taken else 'left'}  {self.text}"


@dataclass
class Entry:
    """An entry under Do Now."""

    line: int
    ids: list[str]
    """The rows that it is about."""
    text: str
    commands: list[Command]
    heads: list[str] = field(default_factory=list)
    """Where its ids stand; the first that names some does."""
    plan: str = ""
    """The file that it names as the plan of its rows; empty where it names none."""
    has_tests: bool = False
    """Whether it says what its tests are, which may be none."""

    def give_logs(self, logs: Collection[str]) -> None:
        """Name the logs of its commands, one each, where nothing else does."""
        if len(logs) == len(self.commands) and not any(one.log for one in self.commands):
            pairs = zip(self.commands, logs, strict=True)
            self.commands = [replace(command, log=log) for command, log in pairs]


@dataclass
class Memo:
    """What a memo says."""

    summary: str = ""
    initiative: str = ""
    reports: str = ""
    phase: str = ""
    files: list[str] = field(default_factory=list)
    """Of the artefact folder."""
    plan: str = ""
    ledger: str = ""
    focus_ids: list[str] = field(default_factory=list)
    mapped_tests: list[Command] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    how_to: list[Command] = field(default_factory=list)
    row_logs: dict[str, str] = field(default_factory=dict)
    """Rows, as a list of logs names them, to their logs."""
    code: dict[str, int] = field(default_factory=dict)
    """Python files that it is about, to the line that names them."""
    findings: list[Finding] = field(default_factory=list)

    def take(self, line: int, text: str) -> None:
        """Note what a line gave."""
        self.findings.append(Finding(line, True, text))

    def leave(self, line: int, text: str) -> None:
        """Note what was not taken, and why."""
        self.findings.append(Finding(line, False, text))


def read_text(path: Path) -> str:
    """The text of a memo.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    problem = find_file_problem(path)
    if problem:
        raise ConfigError(f"{path}: {problem}; expected a memo in text")
    try:
        if path.stat().st_size > _LONGEST_MEMO:
            raise ConfigError(f"{path}: is longer than 256 KiB; expected a memo of a few pages")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; correct the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as that") from error
    if "\0" in text:
        raise ConfigError(f"{path}: is no text; expected a memo")
    lines = text.splitlines()
    if len(lines) > _MOST_LINES:
        raise ConfigError(f"{path}: has over {_MOST_LINES} lines; expected a memo of a few pages")
    for number, line in enumerate(lines, start=1):
        if len(line) > _LONGEST_LINE:
            raise ConfigError(f"{path}:{number}: is longer than {_LONGEST_LINE} characters")
    return text


def read_memo(
    text: str,
    root: Path | None = None,
    plan: str = "",
    name: str = "the memo",
    ledger: str = "",
) -> Memo:
    """What a memo says, section by section.

    Args:
        text: of the memo.
        root: the project, whose plan says which ids there are; None where there is none.
        plan: where the plan is, if not where the memo says.
        name: of the memo's file, for messages.
        ledger: where the ledger is, if not where the memo says.

    Raises:
        ConfigError: the text is two memos.
    """
    text, unseen = drop_unseen(text)
    sections = read_sections(text)
    _refuse_two_memos(sections, name)
    reader = _Reader(text, root, plan, ledger)
    for line, why in unseen.items():
        reader.memo.leave(line, why)
    return reader.read(sections)


class _Reader:
    def __init__(self, text: str, root: Path | None, plan: str, ledger: str) -> None:
        self.text, self.root = text, root
        self.memo = Memo(plan=plan, ledger=ledger)
        self.shell = Shell.of(text, root)
        self.is_plan_given = bool(plan)
        self.plan_lines: dict[int, str] = {}
        """Lines that name a file that may be the plan."""
        self.blocked: list[Line] = []
        self.pitfalls: list[tuple[str, Line]] = []
        """Each with the title above it."""
        self.places = {
            "artifacts": self._read_artifacts,
            "plan": self._read_plan,
            "ledger": self._read_ledger,
        }
        self.readers = self.places | {
            "summary": self._read_summary,
            "focus": self._read_focus,
            "tests": self._read_mapped_tests,
            "if blocked": self.blocked.append,
            "how-to": self._read_how_to,
            "code": self._read_pointer,
            "phase": self._read_phase,
        }

    def read(self, sections: list[Section]) -> Memo:
        """What the memo says in its sections."""
        sections = _split_entries(sections)
        asking = [one for one in sections if all(map(_may_ask, _list_titles(one)))]
        for section in sections:
            if not all(map(_may_ask, section.above)):
                for line in section.lines:
                    self.memo.leave(line.number, f"{section.title}: {_NOT_ASKED}")
            elif section.kind == "do now":
                for group in group_entries(section.lines):
                    self._read_entry(group)
            else:
                for line in section.lines:
                    self._read_in_section(section, line, may_ask=section in asking)
        lines = [
            line.text
            for section in asking
            if section.kind not in (*_IGNORED, "if blocked")
            for line in section.lines
        ]
        self._leave_forbidden()
        self._choose_plan("\n".join(filter(is_asked_for, lines)))
        self._choose_initiative()
        self._choose_ledger()
        self._choose_reports()
        self._settle_ids()
        self.memo.findings.sort(key=lambda finding: finding.line or 1 << 30)
        return self.memo

    # --- sections --------------------------------------------------------------------------

    def _read_in_section(self, section: Section, line: Line, *, may_ask: bool) -> None:
        """A line of a section that holds no entries."""
        kind, value = ("", "") if line.is_fence else read_typed(line.text)
        is_open = section.kind in ("", "code") and not ABOUT_OTHER_WORK.search(section.title)
        if line.box in ("x", "X"):
            self.memo.leave(line.number, _TICKED)
        elif kind in self.places and is_open:
            self.places[kind](replace(line, text=value))
        elif section.kind in self.readers:
            self.readers[section.kind](line)
        elif section.kind == "pitfalls":
            self.pitfalls.append((section.title, line))
        elif section.kind or not section.title:
            why = _IGNORED.get(section.kind, "stands before the first section")
            self.memo.leave(line.number, f"{section.title}: {why}".lstrip(": "))
        elif may_ask and self._is_to_run(section, line):
            self._read_how_to(line)
        elif not self._note_log(line):
            why = "no such section is known" if may_ask else _NOT_ASKED
            self.memo.leave(line.number, f"{section.title}: {why}")

    def _is_to_run(self, section: Section, line: Line) -> bool:
        """Whether a line of a section that is not known is for the commands: it stands alone, or
        sets what they need."""
        if line.is_shell and self.shell.only_sets(line.text):
            return True
        is_command = line.is_fence or (line.is_item and is_plain_command(line.text))
        return is_command and bool(_ABOUT_THIS_WORK.search(section.title))

    def _read_summary(self, line: Line) -> None:
        self.memo.summary = " ".join(f"{self.memo.summary} {line.text}".split())
        self.memo.take(line.number, "the summary, as a comment")

    def _read_phase(self, line: Line) -> None:
        if self.memo.phase:
            self.memo.leave(line.number, f"Phase: {self.memo.phase} came first")
            return
        self.memo.phase = re.split(r"\s+[-\u2013\u2014(]|[;,:.]\s", line.text)[0].strip("*_`. ")
        self.memo.take(line.number, f"phase {self.memo.phase}")

    def _read_focus(self, line: Line) -> None:
        if self.memo.initiative:
            self.memo.leave(line.number, "Focus: is described")
            return
        name, rest = _split_focus(line.text)
        if not name:
            self.memo.leave(line.number, "Focus: names no initiative")
            return
        self.memo.initiative = name
        self.memo.focus_ids = find_ids(rest, name)
        ids = f", rows {', '.join(self.memo.focus_ids)}" if self.memo.focus_ids else ""
        self.memo.take(line.number, f"initiative {name}{ids}")

    def _read_mapped_tests(self, line: Line) -> None:
        before = len(self.memo.findings)
        commands = self._read_line(line, is_command=True)
        if len(commands) == 1 and not line.is_fence:
            commands = [replace(commands[0], context=line.text)]
        for command in commands:
            self.memo.take(command.line, f"command {command}")
        if len(self.memo.findings) == before:
            self.memo.take(line.number, "no tests")
        self.memo.mapped_tests += commands

    def _read_artifacts(self, line: Line) -> None:
        if self._note_log(line):
            return
        memo, artifacts = self.memo, read_artifacts(self.shell.resolve(line.text))
        files = [name for name in list_files(line.text) if "/" not in name]
        if artifacts is None and not (memo.reports and files):
            memo.leave(line.number, "Artifacts: expected FOLDER/{FILE,FILE}")
            return
        if artifacts is not None and not memo.reports:
            memo.reports, memo.phase = artifacts.reports, artifacts.phase
            phase = artifacts.phase or "named after the initiative"
            memo.take(line.number, f"artefact folder: reports {artifacts.reports}, phase {phase}")
            if artifacts.stamp:
                memo.leave(
                    line.number, f"{artifacts.stamp}: each run makes a folder of its own time"
                )
        elif artifacts is not None and not artifacts.reports.startswith(memo.reports):
            memo.leave(line.number, f"Artifacts: {memo.reports} came first")
            return
        self._note_files(line.number, (artifacts and artifacts.files) or files)

    def _note_files(self, number: int, names: list[str]) -> None:
        for name in (PurePath(name).name for name in names):
            if name in REPORT_FILES:
                self.memo.take(number, f"file {name}: every report has it")
            elif name.endswith(".log"):
                self.memo.take(number, f"file {name}: a log")
            else:
                self.memo.leave(number, f"file {name}: nothing says what writes it")
            if name not in self.memo.files:
                self.memo.files.append(name)

    def _read_how_to(self, line: Line) -> None:
        before = len(self.memo.findings)
        commands = self._read_line(line)
        for command in commands:
            self.memo.take(command.line, f"command {command}")
        self.memo.how_to += commands
        label = re.match(r"(?P<label>[^`:]+):\s", line.text)
        logs = _list_logs(line.text) if not commands and not line.is_fence else []
        if label and is_name(label["label"]) and len(logs) == 1 and is_asked_for(line.text):
            self.memo.row_logs[", ".join(find_ids(label["label"]))] = logs[0]
            self.memo.take(line.number, f"log {logs[0]}, of {label['label']}")
        if not commands and len(self.memo.findings) == before:
            is_known = any(name in line.text for name in REPORT_FILES)
            sets = "=" in line.text and any(f"{n}=" in line.text for n in self.shell.variables)
            self.memo.leave(
                line.number,
                "every report has these"
                if is_known
                else "sets variables, which the commands here have"
                if sets
                else "How-To Map: no command in it",
            )

    def _read_line(self, line: Line, *, is_command: bool = False) -> list[Command]:
        """The commands of a line that is one, or of a sentence in which some stand; of a fence."""
        leave = self._leave_at(line)
        bare = drop_prompt(line.text)
        is_marked = bare != line.text
        if not (is_command or line.is_fence or is_plain_command(bare, is_marked=is_marked)):
            return self._read_sentence(line)
        is_shown = line.is_fence and _SHOWN_BELOW.search(line.lead)
        own = "" if line.is_fence else bare.strip("`. ")
        if line.is_fence and not line.is_shell:
            leave("the fence holds no shell's commands")
        elif is_shown or not is_asked_for(line.lead, f"{own}. {line.sequel}"):
            why = "what something printed; nothing runs it" if is_shown else _NOT_ASKED
            leave(f"`{' '.join(bare.strip('`').split())[:60]}`: {why}")
        elif line.is_fence:
            named = f"{line.lead} {line.text}" if is_name(line.lead.rstrip(": ")) else line.text
            return self.shell.read_script(line.text, line.number + 1, leave, named)
        else:
            marked = f"`{bare}`" if is_marked else bare
            return self.shell.read_plain(marked, line.number, leave, line.text)
        return []

    def _read_sentence(self, line: Line) -> list[Command]:
        """The commands in the code spans of a line, or the bare one behind a label."""
        leave = self._leave_at(line)
        found = self.shell.read_spans(line.text, line.number, leave, line.lead, line.sequel)
        labels = (pattern.match(_AND_KEEP.sub("", line.text)) for pattern in _LABELS)
        label = next((m for m in labels if m and is_plain_command(m["rest"])), None)
        if not found and label:
            lead = f"{line.lead} {line.text[: label.start('rest')]}"
            found = self._read_line(replace(line, text=label["rest"], lead=lead))
            found = [replace(command, context=line.text) for command in found]
        return found

    def _read_pointer(self, line: Line) -> None:
        for name in list_markdown(line.text):
            if is_plan_name(name) or "checklist" in line.text.casefold():
                self.plan_lines.setdefault(line.number, name)
                return
        if not self._note_code(line.number, line.text):
            tests = [name for name in list_files(line.text) if name.endswith(".py")]
            self.memo.leave(
                line.number,
                f"{', '.join(tests)}: a test, on which only its own runs depend"
                if tests
                else "names no Python file that a test could depend on",
            )

    def _read_plan(self, line: Line) -> None:
        names = list_markdown(line.text)
        if names:
            self._take_plan(line.number, names[0])
        else:
            self.memo.leave(line.number, "Plan: names no Markdown file")

    def _read_ledger(self, line: Line) -> None:
        names = list_markdown(line.text)
        if names and not self.memo.ledger:
            self.memo.ledger = names[0]
            self.memo.take(line.number, f"ledger {names[0]}")
        elif names and names[0] != self.memo.ledger:
            self.memo.leave(line.number, f"ledger {names[0]}: {self.memo.ledger} came first")
        else:
            self.memo.leave(line.number, "Ledger: names no other Markdown file")

    def _note_log(self, line: Line) -> bool:
        """Note which row's log a line names, that says nothing else; gives whether it does."""
        logs = [] if line.is_fence else _list_logs(line.text)
        head = re.sub(
            r"`?[\w./{}$-]+\.log`?|->|=>|\b(?:of|for|proves)\b|[:=|\u2192\u2013\u2014]",
            " ",
            line.text,
        )
        head = re.sub(r"(?:^|\s)-(?=\s|$)", " ", head).strip(" .()")
        if len(logs) != 1 or not is_name(head) or not is_asked_for(line.text):
            return False
        self.memo.row_logs[", ".join(find_ids(head))] = logs[0]
        self.memo.take(line.number, f"log {logs[0]}, of {head}")
        return True

    def _leave_at(self, line: Line) -> _Leave:
        return _Leave(self.memo, line.number)

    # --- entries ---------------------------------------------------------------------------

    def _read_entry(self, group: list[Line]) -> None:
        first = group[0]
        if first.text.startswith("|"):
            for line in group:
                self._read_table_row(line)
            return
        if first.box in ("x", "X"):
            self.memo.leave(first.number, _TICKED)
            return
        entry = Entry(first.number, [], "", [])
        logs: list[str] = []
        env: dict[str, str] = {}
        must_fail = False
        for line in group:
            if line.box in ("x", "X"):
                self.memo.leave(line.number, _TICKED)
                continue
            kind, value = ("", "") if line.is_fence else read_typed(line.text)
            if kind == "plan" and not list_markdown(value):
                kind = "ids"
            if kind == "ids":
                entry.heads.insert(0, value)
                self.memo.take(line.number, f"rows {', '.join(find_ids(value)) or 'by the plan'}")
                if line is first and re.search(r"\s[-\u2013\u2014]\s", value):
                    self._read_first_line(entry, replace(line, text=value))
            elif kind in ("tests", "red") and not value:
                self.memo.take(line.number, "leads to the lines below")
            elif kind in ("tests", "red"):
                self._read_tests(entry, line, value, must_fail=kind == "red")
            elif kind == "artifacts":
                self._read_artifacts(replace(line, text=value))
            elif kind == "log":
                logs = list_files(value)
                self.memo.take(line.number, f"log {', '.join(logs) or 'none'}")
            elif kind == "expect":
                must_fail = bool(re.match(r"(?i:\W*(?:red|fail))", value))
                self.memo.take(line.number, f"to be {'red' if must_fail else 'green'}")
            elif kind == "env":
                env |= split_assignments(split_words(value))[0]
                self.memo.take(line.number, f"environment of its commands: {value}")
            elif kind == "plan":
                self._read_plan(replace(line, text=value))
                entry.plan = list_markdown(value)[0]
            elif kind == "ledger":
                self._read_ledger(replace(line, text=value))
            elif line is first and not line.is_fence:
                self._read_first_line(entry, line)
            else:
                self._read_sub_line(entry, line)
                is_text = not line.is_fence and ("`" not in line.text or _is_file(line.text))
                said = _list_logs(line.text) if is_text else []
                if len(said) == 1 and len(line.text.split()) < _FEW and _asks(line.text):
                    logs = logs or said
        entry.give_logs(logs)
        entry.commands = [
            replace(c, env={**env, **c.env}, must_fail=c.must_fail or must_fail)
            for c in entry.commands
        ]
        self.memo.entries.append(entry)

    def _read_first_line(self, entry: Entry, line: Line) -> None:
        match = re.fullmatch(r"(?P<head>.*?)\s+@\s+(?P<plan>\S+)(?P<rest>.*)", line.text)
        if match:
            head, rest = match["head"], match["rest"]
            names = list_markdown(match["plan"])
            if names:
                self._take_plan(line.number, names[0])
                entry.plan = names[0]
            else:
                self.memo.leave(line.number, f"{match['plan']}: is no Markdown file, as plans are")
        else:
            head, rest = line.text, line.text
            for name in filter(is_plan_name, list_markdown(line.text)):
                self.plan_lines.setdefault(line.number, name)
        inside = re.findall(r"\(([^()]*)\)", line.text)
        entry.heads += re.split(r"\s+[-\u2013\u2014]+\s+|:\s+|:$", _drop_spans(head))[:2]
        entry.heads += [text for text in inside if all(map(_DOTTED.fullmatch, _split_ids(text)))]
        text = _split_tests(rest)[0]
        entry.text = text or rest.strip(" \t;-\u2014\u2013") or head
        self._read_text(entry, replace(line, text=rest))
        self._note_code(line.number, text)

    def _read_text(self, entry: Entry, line: Line) -> list[Command]:
        """Take the commands of a line, those of its tests first; gives the others."""
        text, tests = (line.text, None) if line.is_fence else _split_tests(line.text)
        listed = None if line.is_fence else _CHECKLIST.search(text)
        if listed:
            entry.heads.append(listed["ids"])
        if tests is not None:
            self._read_tests(entry, line, tests)
        own = {command.text for command in entry.commands}
        found = self._read_line(replace(line, text=text)) if text else []
        entry.commands += [command for command in found if command.text not in own]
        return found

    def _read_tests(self, entry: Entry, line: Line, tests: str, *, must_fail: bool = False) -> None:
        before = len(self.memo.findings)
        found = self.shell.read_plain(tests, line.number, self._leave_at(line), tests)
        commands = [replace(command, must_fail=must_fail) for command in found]
        if not commands and len(self.memo.findings) == before:
            says_none = "no tests" if is_none(tests) else "no command that proves anything"
            self.memo.leave(line.number, says_none)
        if not commands and not is_none(tests) and tests not in entry.text:
            entry.text = f"{entry.text}; tests: {tests}".strip("; ")
        entry.has_tests = True
        entry.commands += commands

    def _read_sub_line(self, entry: Entry, line: Line) -> None:
        before = len(self.memo.findings)
        commands = self._read_text(entry, line)
        for command in commands:
            self.memo.take(command.line, f"command {command}")
        if not commands and not line.is_fence:
            text = _split_tests(line.text)[0]
            entry.text = f"{entry.text} {text}".strip()
            self._note_code(line.number, text)
            if len(self.memo.findings) == before:
                self.memo.take(line.number, "belongs to the entry above, as its text")

    def _read_table_row(self, line: Line) -> None:
        cells = split_cells(line.text)
        names = [cell for cell in cells if find_ids(cell) and not is_plain_command(cell)]
        named = next(filter(is_name, names), next(iter(names), ""))
        if not named:
            self.memo.leave(line.number, "Do Now: the head of a table")
            return
        plan = next(filter(is_plan_name, list_markdown(" ".join(cells))), "")
        if plan:
            self._take_plan(line.number, plan)
        cells.remove(named)
        logs = [
            name for cell in cells for name in _list_logs(cell) if "`" not in cell or _is_file(cell)
        ]
        texts, commands = [], []
        for cell in cells:
            if _is_file(cell):
                continue
            may_be = "`" in cell or is_plain_command(cell)
            found = self._read_line(replace(line, text=cell)) if may_be else []
            commands += found
            texts += [] if found or re.fullmatch(r"[\W\d]*", cell) else [cell]
        doubtful = next((cell for cell in texts if not _asks(cell)), "")
        if doubtful and commands:
            for command in commands:
                self.memo.leave(
                    line.number, f"`{command.text}`: `{doubtful}` stands beside it; {_LEFT}"
                )
            commands = []
        entry = Entry(line.number, [], " - ".join(texts), commands, [named], plan, has_tests=True)
        entry.give_logs(logs)
        self.memo.entries.append(entry)

    def _leave_forbidden(self) -> None:
        """Leave the commands that a pitfall forbids."""
        memo = self.memo
        places = [memo.how_to, memo.mapped_tests, *(entry.commands for entry in memo.entries)]
        for title, line in self.pitfalls:
            is_listed = title.casefold() in ("do not", "don'ts", "avoid")
            about: list[str] = []
            for place, command in [(one, command) for one in places for command in one]:
                is_so = forbids(line.text, command.text, line.lead, is_listed=is_listed)
                at = f"`{command.text}` of line {command.line}"
                if is_so:
                    about.append(f"forbids {at}; {_LEFT}")
                    place.remove(command)
                    told = f"command `{command.text}`"
                    memo.findings[:] = [
                        f
                        for f in memo.findings
                        if f.line != command.line or not f.text.startswith(told)
                    ]
                    why = f"line {line.number} ({title}) forbids it; {_LEFT}"
                    memo.leave(command.line, f"`{command.text}`: {why}")
                elif is_so is None:
                    about.append(f"says when not to run {at}, which is run all the same")
            for text in dict.fromkeys(about) or [_IGNORED["pitfalls"]]:
                memo.leave(line.number, f"{title}: {text}")

    # --- plan, ledger, ids -----------------------------------------------------------------

    def _take_plan(self, number: int, plan: str) -> None:
        memo = self.memo
        if memo.plan and plan != memo.plan:
            memo.leave(
                number, f"plan {plan}: {memo.plan} came first, and the evidence has one plan"
            )
        else:
            memo.take(number, f"plan {plan}")
        memo.plan = memo.plan or plan

    def _choose_plan(self, described: str) -> None:
        """Take the plan from a pointer, or else from what describes the work, where no entry names
        it and one file only may be it."""
        memo = self.memo
        names = {*self.plan_lines.values()}
        names = {name for name in names if memo.initiative and memo.initiative in name} or names
        for number, name in self.plan_lines.items():
            if memo.plan or names == {name}:
                self._take_plan(number, name)
            else:
                memo.leave(number, f"{name}: may be the plan; not sure, as other files may be too")
        if not memo.plan:
            memo.plan = self._take_only("plan", filter(is_plan_name, list_markdown(described)))

    def _choose_initiative(self) -> None:
        """Take the initiative from where the plan lies, or from the text's own title, if nothing
        else names it."""
        memo = self.memo
        title = next(filter(str.strip, self.text.splitlines()), "")
        named = re.search(r"\b[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*-[0-9]+\b", title)
        for part in reversed(PurePath(memo.plan).parts[:-1]):
            if not memo.initiative and re.fullmatch(r"[A-Z][A-Z0-9]*(?:[-_][A-Z0-9.]+)+", part):
                memo.initiative = part
                memo.take(0, f"initiative {part}, by the folder of the plan")
        if not memo.initiative and named:
            memo.initiative = named[0]
            memo.take(0, f"initiative {named[0]}, by the title")

    def _choose_ledger(self) -> None:
        memo = self.memo
        text = " ".join(line.text for line in self.blocked)
        if not memo.ledger:
            memo.ledger = find_ledger(text, [memo.plan])
            for line in self.blocked:
                if memo.ledger and memo.ledger in line.text:
                    memo.take(line.number, f"ledger {memo.ledger}")
                    break
        if not memo.ledger:
            names = {*filter(is_ledger_name, list_markdown(self.text))} - {memo.plan}
            memo.ledger = self._take_only("ledger", names)
        for line in self.blocked:
            if BLOCKER in line.text:
                memo.take(line.number, f"{BLOCKER} and `[P]`: every red run does this")
            elif not (memo.ledger and memo.ledger in line.text):
                named = find_ledger(line.text, [memo.plan])
                what = f"{memo.ledger} came first" if named else "names no ledger (a Markdown file)"
                memo.leave(line.number, f"If Blocked: {what}")

    def _take_only(self, key: str, names: Iterable[str]) -> str:
        """The one file that may be meant, where only one may be."""
        names = {*names}
        if len(names) != 1:
            return ""
        (name,) = names
        self.memo.take(0, f"{key} {name}, as the memo names no other")
        return name

    def _choose_reports(self) -> None:
        """Take the artefact folder from where the commands' logs go, if nothing else names it."""
        memo = self.memo
        commands = [c for entry in memo.entries for c in entry.commands]
        for command in [*commands, *memo.how_to, *memo.mapped_tests]:
            artifacts = read_artifacts(command.log) if "/" in command.log else None
            if artifacts is not None and not memo.reports:
                memo.reports, memo.phase = artifacts.reports, memo.phase or artifacts.phase
                memo.take(command.line, f"artefact folder: reports {memo.reports}, by its log")
        folders = filter(None, map(read_artifacts, filter(is_asked_for, self.text.splitlines())))
        stamped = {(one.reports, one.phase) for one in folders if one.stamp}
        if not memo.reports and len(stamped) == 1:
            ((memo.reports, phase),) = stamped
            memo.phase = memo.phase or phase
            memo.take(0, f"artefact folder: reports {memo.reports}, as the memo names no other")

    def _settle_ids(self) -> None:
        """Find the rows of each entry, by the plan where it is there."""
        memo, known = self.memo, self._read_known_ids()
        others = [*memo.focus_ids]
        for entry in memo.entries:
            heads = (find_ids(head, memo.initiative, known) for head in entry.heads)
            is_unsure = any(map(memo_ids.is_unsure, entry.heads))
            ids = next(filter(None, heads), [] if is_unsure else others)
            strange = [id for id in ids if known and id not in known]
            for id in strange:
                memo.leave(entry.line, f"{id}: {memo.plan} has no such row")
            entry.ids = [id for id in ids if id not in strange]
        self._add_commented(known)
        self._leave_other_plans()
        # One row has one entry that describes it.
        for entry in memo.entries:
            self._tell_of(entry)

    def _add_commented(self, known: Collection[str]) -> None:
        """Make an entry of each command whose own comment begins with rows that no entry has."""
        memo = self.memo
        listed = {id for entry in memo.entries for id in entry.ids}
        of_none = [entry.commands for entry in memo.entries if not entry.ids]
        places = [memo.how_to, memo.mapped_tests, *of_none]
        for place, command in [(one, command) for one in places for command in one]:
            comment, _, behind = command.context.partition(command.text[:20])
            comment = comment.strip("# `\n")
            head = re.split(r":\s|\s[-\u2013\u2014]+\s|\s\(|:$", comment)[0]
            aim = _AIM.search(behind)
            named = head if is_name(head) else aim["ids"].rstrip() if aim else ""
            ids = find_ids(named, memo.initiative, known) if is_name(named) else []
            if ids and not listed & {*ids} and not (known and {*ids} - {*known}):
                place.remove(command)
                text = comment.removeprefix(head).strip(" :-\u2013\u2014") or comment
                memo.entries.append(Entry(command.line, ids, text, [command], has_tests=True))

    def _leave_other_plans(self) -> None:
        """Leave the entries whose rows are another plan's: an id may stand in both."""
        memo = self.memo
        named = [entry.plan for entry in memo.entries if entry.plan]
        # A plan that the user gives, and no entry names, stands for the first that one does.
        plan = next((p for p in named if _is_same_file(p, memo.plan)), next(iter(named), ""))
        others = [e for e in memo.entries if e.plan and not _is_same_file(e.plan, plan)]
        for entry in others:
            rows = ", ".join([*entry.ids, *map(str, entry.commands)]) or "it"
            memo.leave(entry.line, f"{rows}: of {entry.plan}, and not of {plan}; nothing runs it")
        memo.entries[:] = [entry for entry in memo.entries if entry not in others]

    def _tell_of(self, entry: Entry) -> None:
        tests = "; ".join(map(str, entry.commands))
        what = tests or BY_PERSON
        if entry.ids:
            self.memo.take(entry.line, f"items {', '.join(entry.ids)}: {what}")
        elif entry.commands:
            self.memo.take(entry.line, f"{tests}: it proves no row, as the entry names none")
        else:
            self.memo.leave(entry.line, f"Do Now: names no row of the plan: {entry.text[:60]}")

    def _read_known_ids(self) -> Collection[str]:
        if self.root is None or not self.memo.plan:
            return ()
        try:
            content = (self.root / self.memo.plan).read_bytes()
        except OSError:
            return ()
        return {row.id for row in Plan(content, self.memo.plan).rows}

    def _note_code(self, number: int, line: str) -> bool:
        """Note the Python files in a line; gives whether there is one."""
        memo = self.memo
        names = [
            name
            for name in dict.fromkeys(list_files(line))
            if name.endswith(".py") and not PurePath(name).name.startswith("test_")
        ]
        left = [f.text for f in memo.findings if f.line == number and f.text.endswith("runs it")]
        for name in names:
            if any(name in text for text in left):
                continue
            if name not in memo.code:
                memo.code[name] = number
                memo.take(number, f"code {name}: the tests depend on it")
            elif memo.code[name] != number:
                memo.take(number, f"code {name}, as in line {memo.code[name]}")
        return bool(names)


@dataclass(frozen=True)
class _Leave:
    memo: Memo
    number: int

    def at(self, line: int) -> _Leave:
        return replace(self, number=line)

    def __call__(self, text: str) -> None:
        self.memo.leave(self.number, text)


_CHECKLIST = re.compile(
    r"(?i:\b(?:checklist(?:\s+(?:ids?|rows?|items?))?|rows?|ids?)\s+)"
    r"(?P<ids>[A-Z][\w.]*[0-9]\w*(?:\s*(?:[-\u2013,+&]|to|through|and)\s*[A-Z]?[\w.]*[0-9]\w*)*)"
)
"""How a line names rows within it, as `(Checklist C4.D1-C4.D3)`."""
_AND_KEEP = re.compile(
    r",?\s+and\s+(?:keep|save|store|log|write|capture|tee|record|put)\s(?:[^.`;]|\.(?!\s))*$"
)
"""What follows a bare command and says where its output goes."""
_LABELS = [
    re.compile(rf"{label}\s+(?P<rest>[\w./~][^`]*)$")
    for label in (
        r"[A-Z][\w.-]*[0-9][\w.-]*",
        r"(?:.*?:\s+)?(?:(?:[Rr]e)?[Rr]un|[Ee]xecute)",
        r"[^`:]*?(?::|\s(?:[-=\u2013\u2014]|<-|->|=>))",
    )
]
"""What stands before a bare command: a row, an order, or whatever ends with a colon or a dash."""
_AIM = re.compile(
    r"(?:\u2192|->|=>|\(|#|\bfor\b|\bproves?\b)\s*(?:(?:proves?|for|covers?|closes?|rows?)\s+)*"
    r"(?P<ids>[^`;:()]*?)\s*(?:[;:(),.](?:\s[^`]*|\W*)|)$"
)
"""What a line says behind a command of what it proves."""


def _list_logs(text: str) -> list[str]:
    """The logs that a text names."""
    return [PurePath(name).name for name in list_files(text) if name.endswith(".log")]


def _is_file(text: str) -> bool:
    """Whether a text is nothing but the name of a log."""
    return bool(re.fullmatch(r"(?:->|=>|\u2192)?\s*`?[\w./{}$-]+\.log`?", text))


def _asks(text: str) -> bool:
    """Whether a remark beside a command leaves it asked for now."""
    is_other = re.match(
        r"(?i:\W*(?:(?:no|optional\w*|x)\W*$|(?:done|later|skip\w*|not|postponed|deferred|dropped"
        r"|cancel\w*|on\s+hold|blocked|waiting|closed|finished)\b(?:\W+\w+){0,3}\W*$))",
        text,
    )
    return is_asked_for(text) and not is_other


def _is_same_file(name: str, other: str) -> bool:
    """Whether two paths may mean the same file, one of them in short."""
    short, long = sorted((PurePath(name).parts, PurePath(other).parts), key=len)
    return long[len(long) - len(short) :] == short


def _list_titles(section: Section) -> tuple[str, ...]:
    """The titles of a section, and above it, that may say that nothing in it is to be run."""
    return section.above if section.kind else (section.title, *section.above)


def _split_entries(sections: list[Section]) -> list[Section]:
    """The sections, of which those whose lines are entries are called so: where none is, what
    begins with a row's name in others becomes one of its own."""
    if any(section.kind == "do now" and section.lines for section in sections):
        return sections
    found: list[Section] = []
    for section in sections:
        begin = next((n for n in range(len(section.lines)) if _begins_entry(section, n)), None)
        found.append(section)
        if begin is not None and section.kind not in _NO_ENTRIES:
            above = (*section.above, *([] if section.kind else [section.title]))
            found.append(replace(section, kind="do now", lines=section.lines[begin:], above=above))
            del section.lines[begin:]
    return found


def _begins_entry(section: Section, number: int) -> bool:
    """Whether a line of a section that is not called so begins with a row's name, and not with a
    sentence about one: lines below it say more."""
    line, below = section.lines[number], section.lines[number + 1 : number + 2]
    is_followed = any(other.is_fence or other.indent > line.indent for other in below)
    if re.fullmatch("(?i:logs?|log files?)", section.title):
        return False
    if names_row(line.text) or names_ids(line.text) or line.indent < 0:
        return True
    is_work = is_followed or line.box == " " or " `" in line.text
    return is_work and (line.begins_row or (line.is_item and is_name(line.text.split()[0])))


_NO_ENTRIES = {"if blocked", "how-to", "code", "pitfalls", "next up"}
_SHOWN_BELOW = re.compile(
    r"(?i:^\W*(?:(?:it|this|the|its|with|expected|sample|example|actual|current|present|typical)\s+)*"
    r"(?:outputs?|errors?|messages?|traceback|results?|logs?|stdout|stderr)(?:\s+(?:is|was|now))?\W*$"
    r"|\b(?:prints?|printed|gives?|gave|shows?|showed|says?|said|reads?|looks\s+like)\W*$)"
)
"""What leads to what a program printed."""


_ABOUT_THIS_WORK = re.compile(
    r"(?i:test|run|command|verif|valid|check|prove|proof|evidence|selector|step|measure|bench|build|"
    r"prepar|work|task|today|tonight|now|how|do\b|script|regenerat|execut)"
)
"""What it says where its commands may be run."""


def _may_ask(title: str) -> bool:
    """Whether a section with a title that is not known may ask to run something."""
    return is_asked_for(title) and not ABOUT_OTHER_WORK.search(title)


def _refuse_two_memos(sections: list[Section], name: str) -> None:
    seen: set[str] = set()
    for section in sections:
        if section.kind in ("summary", "focus", "do now") and section.lines:
            is_head = section.kind != "do now"
            if is_head and section.kind in seen and "do now" in seen:
                raise ConfigError(
                    f"{name}:{section.lines[0].number}: begins a second memo; give each a file of "
                    "its own"
                )
            seen.add(section.kind)


_TESTS = re.compile(r"(?P<opened>\(?)\s*\btests?\s*(?::|\s[-\u2013\u2014]\s)", re.IGNORECASE)
_BEGINS_TESTS = re.compile(r"[^;,(]*")


def _split_tests(rest: str) -> tuple[str, str | None]:
    """What an entry says besides its tests, and what it names as them; None where it does not."""
    matches = [*_TESTS.finditer(rest)]
    if not matches:
        return rest.strip(" \t;-\u2014\u2013"), None
    # `Write the test - tests: pytest a.py`: the first label that a command follows.
    match = next((one for one in matches if _names_tests(rest[one.end() :])), matches[0])
    tests = rest[match.end() :].strip().removesuffix(".").strip()
    if match["opened"]:
        tests = tests.removesuffix(")").strip()
    return rest[: match.start()].strip(" \t;-\u2014\u2013"), tests


def _names_tests(text: str) -> bool:
    """Whether a text begins with what stands for tests: a command, a selector, or none."""
    begin = _BEGINS_TESTS.match(text.strip())
    words = begin[0].split() if begin else []
    if not words or _TESTS.match(text.strip()):
        return False
    is_selector = "::" in words[0] or words[0].endswith(".py")
    return words[0][0] == "`" or is_selector or is_none(text) or is_plain_command(" ".join(words))


_DOTTED = re.compile(r"[\w-]+(?:\.\w+)+")


def _split_ids(text: str) -> list[str]:
    return re.split(r"[\s,+]+", text.strip())


def _drop_spans(text: str) -> str:
    """A text without the code spans that are more than a name."""
    return re.sub(
        "`[^`]*`", lambda span: " ; " if re.search(r"[\s/()]", span[0]) else span[0], text
    )


def _split_focus(text: str) -> tuple[str, str]:
    """The initiative that a focus names, and what stands behind it."""
    text = text.replace("**", "").replace("`", "").strip()
    match = re.search(r"\[([^]]+)\](?P<rest>.*)", text)
    if match:
        return match[1], match["rest"]
    match = re.match(
        r"(?P<name>[A-Z][A-Za-z0-9]*(?:[-_][A-Za-z0-9]+)+(?:\.[0-9]+)*)"
        r"(?P<rest>(?:[.:/\s(,]|$).*)",
        text,
    )
    if match:
        return match["name"], match["rest"].lstrip(".")
    match = re.match(r"(?P<name>[\w.-]*\w)\s*(?P<rest>[:/(]|[-\u2013\u2014]\s|$).*", text)
    return (match["name"], "") if match else ("", "")
