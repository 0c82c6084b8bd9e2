"""Memos."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from hostile.battery import Must, Rng, Trial
from hostile.evidence_files import EVIDENCE, MEMO
from hostile.running import doit, ptycho, run_apart

_COMMANDS = (
    "pytest tests/test_reader.py -q",
    "pytest tests/test_writer.py::TestA::test_b -vv",
    "python tools/scan.py --input data/a.npz --output out/b.json",
    "python -m pytest tests/test_reader.py -k slow",
)
_PROSE = (
    "find out why it fails, after `touch PROSE_WAS_RUN` as before",
    "run it, then look at the picture",
    "touch PROSE_WAS_RUN; make sure that it works",
    "python is what we use here; bash is not",
    "make it green, and `rm -rf build` if it is not",
    "do it by hand | then tee a cup",
    "see $(touch PROSE_WAS_RUN) for more",
    "run: touch PROSE_WAS_RUN && echo so",
    "check `git clean -fdx`; doit again and again",
    "read the log (tests are for later)",
    "pytest should not be needed here; bash neither",
    "make plots; python scripts may help",
)
_FOLDER = "work/DEMO-1/reports/2031-02-03T040506Z/phase_r"


def memo(
    entry: str, *, mapped: str = _COMMANDS[0], more: str = "", focus: str = "[DEMO-1] R"
) -> str:
    return (
        f"Summary: Prove the reader.\nFocus: {focus}\nMapped tests: {mapped}\n"
        f"Artifacts: {_FOLDER}/{{reader.log,summary.md}}\n\nDo Now:\n{entry}\n\n"
        f"If Blocked: note it in docs/ledger.md.\n\n{more}\n"
    )


def _is_no_variable(word: str) -> bool:
    return not re.fullmatch(r"[A-Z_]+=.*", word)


def taken(text: str, commands: tuple[str, ...], must: Must = "either") -> Trial:
    """Import a memo: whatever it writes as a command is one of these."""
    MEMO.write_bytes(text.encode("utf-8", "surrogatepass"))
    allowed = {tuple(shlex.split(command)) for command in commands}

    def wrong(_: Any) -> str:
        found = yaml.safe_load(Path("evidence.yaml").read_text())
        for item in found["items"]:
            words = ["pytest", *item["pytest"]] if "pytest" in item else None
            line = item.get("command")
            if line is not None:
                line = re.sub(r"(2>&1\s*)?\|\s*tee.*", "", line)
                lines = [shlex.split(part) for part in line.split("&&")]
            else:
                lines = [] if words is None else [words, ["python", "-m", *words]]
            plain = [
                tuple(word for word in one if not re.fullmatch(r"[A-Z_]+=.*", word))
                for one in lines
            ]
            # Of pytest, either way to call it; of what `&&` joins, each.
            if not (any if words else all)(one in allowed for one in plain):
                return f"prose became the command {' '.join(plain[0])!r}"
        return ""

    return Trial(ptycho("plan", "import", "memo.txt"), ("memo.txt", "evidence.yaml"), must, wrong)


def _memo(name: str, text: str, must: Must = "either") -> None:
    EVIDENCE.add(f"memo_{name}", lambda rng: taken(text, _COMMANDS, must))


_ENTRY = "1. DEMO-1 R.1 reader @ work/plan.md - run it; tests: {}"
_memo("right", memo(_ENTRY.format(_COMMANDS[0])), "succeed")
_memo(
    "tests_in_parentheses",
    memo(f"1. DEMO-1 R.1 reader @ work/plan.md - run it (tests: {_COMMANDS[0]})."),
)
_memo("tests_none", memo("1. DEMO-1 R.1 reader @ work/plan.md - run it (tests: none)"))
_memo("prose_before", memo(_ENTRY.format(f"run `rm -rf build`, then {_COMMANDS[0]}")))
_memo("two_with_and", memo(_ENTRY.format(f"{_COMMANDS[0]} && {_COMMANDS[1]}")))
_memo(
    "fenced",
    memo(
        _ENTRY.format("none"),
        more="How-To Map:\n- Run it:\n```\npython tools/scan.py \\\n"
        f"  --input data/a.npz \\\n  --output out/b.json \\\n  | tee {_FOLDER}/scan.log\n```\n",
    ),
)
_memo("blocker", memo(_ENTRY.format("none")).replace("docs/ledger.md", "blocker.md"))
_memo("empty", "")
_memo("nul", "\0" * 100)
_memo("escape", memo(_ENTRY.format("\x1b[31mpytest tests/test_reader.py -q")))
_memo("unbalanced", memo(_ENTRY.format("pytest 'tests/test_reader.py -q")))
_memo("very_long", memo(_ENTRY.format("word " * 100_000)))
_memo("many_lines", memo("\n".join(f"{n}. DEMO-1 R.{n} a @ p.md - b" for n in range(2000))))
for _number, _prose in enumerate(_PROSE):
    _memo(f"prose_{_number}", memo(f"1. DEMO-1 R.1 reader @ work/plan.md - {_prose}."))
    _memo(
        f"prose_{_number}_mapped",
        memo(f"1. DEMO-1 R.1 reader @ work/plan.md - {_prose}.", mapped="none"),
    )
    _memo(f"prose_{_number}_as_tests", memo(_ENTRY.format(_prose)))


@EVIDENCE.family
def _memo_at_random(rng: Rng) -> Trial:
    """Entries with and without tests, in several habits."""
    entries = []
    for number in range(1, rng.integers(2, 6)):
        prose, line = (str(rng.choice(texts)) for texts in (_PROSE, _COMMANDS))
        id_ = str(rng.choice([f"R.{number}", f"R.{number}+R.{number + 10}", f"A{number}"]))
        tail = str(rng.choice(["", f"; tests: {line}", f" (tests: {line}).", "; tests: none", "."]))
        entries.append(f"{number}. DEMO-1 {id_} reader @ work/plan.md - {prose}{tail}")
        if rng.random() < 0.3:
            entries.append(f"   - Test: {line}")
    how = "".join(
        f"- {rng.choice(_PROSE)}\n- `{rng.choice(_COMMANDS)} 2>&1 | tee {_FOLDER}/a{n}.log`\n"
        for n in range(rng.integers(3))
    )
    text = memo(
        "\n".join(entries),
        mapped=str(rng.choice([*_COMMANDS, "none"])),
        more=f"How-To Map:\n{how}" if how else "",
    )
    if rng.random() < 0.3:
        text = text.replace(
            "Do Now:", str(rng.choice(["**Do Now:**", "## Do Now", "Do Now (hard)"]))
        )
    return taken(text, _COMMANDS)


@EVIDENCE.family
def _memo_spoilt(rng: Rng) -> Trial:
    """Lines of a memo doubled, dropped, or in another order; its commands stay whole."""
    lines = memo(_ENTRY.format(_COMMANDS[0]), more=f"How-To Map:\n- `{_COMMANDS[2]}`\n").split("\n")
    for _ in range(rng.integers(1, 5)):
        place, other = (int(n) for n in rng.integers(len(lines), size=2))
        if rng.random() < 0.5:
            lines[place], lines[other] = lines[other], lines[place]
        else:
            lines.insert(place, str(rng.choice([lines[other], *_PROSE])))
    return taken("\n".join(lines), _COMMANDS)


@EVIDENCE.case
def _prose_is_not_run(rng: Rng) -> Trial:
    """Import a memo and run what came of it."""
    MEMO.write_text(memo(f"1. DEMO-1 R.1 reader @ work/plan.md - {_PROSE[0]}."))
    Path("work").mkdir()
    Path("docs").mkdir()
    Path("work/plan.md").write_text("| R.1 | reader | [ ] | |\n")
    Path("docs/ledger.md").write_text("# Ledger\n")
    Path("tests").mkdir()
    Path("tests/test_reader.py").write_text("def test_a():\n    pass\n")

    def call() -> None:
        assert run_apart(ptycho("plan", "import", "memo.txt")) == 0
        doit("evidence")()

    trial = Trial(
        call, ("evidence.yaml", "R.1"), may_change=("evidence", "dodo", "work", "docs", "PROSE")
    )
    trial.wrong = lambda _: "prose was run" if Path("PROSE_WAS_RUN").exists() else ""
    return trial
