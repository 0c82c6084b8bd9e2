"""Evidence: memos, plans, ledgers, manifests, logs, and commands that misbehave."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from hostile.battery import Battery, Must, Rng, Trial
from hostile.running import doit, ptycho, run_apart
from hostile.scans import built_project, prepared
from ptycho_tasks.config.dodo import DODO, EVIDENCE_DODO

EVIDENCE = Battery("evidence")
MEMO = Path("memo.txt")
HEAD = "initiative: ADR-003\nphase: phase_c4\nplan: plan.md\nledger: ledger.md\n"
BASE = HEAD + (
    "items:\n  - {id: C4.D1, command: cat data.txt, log: data.log, depends: [data.txt]}\n"
    "  - {id: C4.D2, command: echo done, log: echo.log}\n  - {id: C4.F, by_hand: read it}\n"
)
PLAN = "# Plan\n\n| C4.D1 | one | [ ] | |\n| C4.D2 | two | [ ] | |\n- [ ] **C4.F:** by hand\n"
NAMES = (
    "evidence.yaml",
    "plan.md",
    "ledger.md",
    "reports",
    "C4.",
    "data.txt",
    "nobody.md",
    ".: ",
    ".ptycho",
)
WRITES = ("reports", "plan.md", "ledger.md")


def write(evidence: str | bytes = BASE, plan: str | bytes = PLAN) -> None:
    """A project that has evidence and no scan."""
    for name, content in {
        "evidence.yaml": evidence,
        "plan.md": plan,
        "ledger.md": "# Ledger\n",
        "data.txt": "measured\n",
        "dodo.py": EVIDENCE_DODO,
    }.items():
        data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        Path(name).write_bytes(data)


# --- plans ---------------------------------------------------------------------------------------


def shown(plan: str | bytes, states: dict[str, str] | None, must: Must | None = None) -> Trial:
    """Show a plan: these rows with these states; refused where there are none."""
    rows = "".join(f"  - {{id: {row}, by_hand: read it}}\n" for row in states or ["C4.F"])
    write(f"{HEAD}items:\n{rows}", plan)
    must = must or ("refuse" if states is None else "succeed")
    trial = Trial(ptycho("plan", "show", "--json"), NAMES, must)

    def wrong(_: Any) -> str:
        import sys

        sys.stdout.flush()
        found = {row["id"]: row["state"] for row in json.loads(Path("../stdout").read_text())}
        return "" if found == states else f"rows {found}, not {states}"

    trial.wrong = wrong
    return trial


def _shows(name: str, plan: str | bytes, states: dict[str, str] | None) -> None:
    EVIDENCE.add(f"plan_{name}", lambda rng: shown(plan, states))


_F = {"C4.F": "open"}
_shows("right", "- [ ] **C4.F:** a\n", _F)
_shows("windows", "- [ ] **C4.F:** a\r\n| x | y |\r\n", _F)
_shows("latin1", b"caf\xe9\n- [ ] **C4.F:** \xe9\n", _F)
EVIDENCE.add(
    "plan_code_span", lambda rng: shown("| C4.F | a | `[x]` | |\n", {"C4.F": "done"}, "either")
)
_shows("no_closing_pipe", "| C4.F | a | [x] |\n", {"C4.F": "done"})
_shows("fenced", "```\n- [x] **C4.F:** a\n```\n- [ ] **C4.F:** a\n", _F)
_shows("escaped_pipe", "| C4.F | a \\| [x] b | [ ] | |\n", _F)
_shows("empty", "", None)
_shows("twice", "- [ ] **C4.F:** a\n- [x] **C4.F:** a\n", None)
_shows("stateless", "- **C4.F:** a\n", None)
for _state in ("D", "~", "-", "?", "xx", "\u2713", "DONE"):
    _shows(f"state_{_state.encode().hex()}", f"- [{_state}] **C4.F:** a\n", None)
    _shows(f"cell_{_state.encode().hex()}", f"| C4.F | a | [{_state}] | |\n", None)


@EVIDENCE.case
def _plan_other_row_state_D(rng: Rng) -> Trial:  # noqa: N802 (a state)
    shown("- [ ] **C4.F:** a\n- [D] **C4.G:** a\n", _F)
    return Trial(ptycho("plan", "check"), NAMES, "refuse")


_shows("long_line", "| C4.F | " + "a" * 10**6 + " | [ ] | |\n", _F)
_shows("many_pipes", "|" * 10**5 + "\n- [ ] **C4.F:** a\n", _F)
_shows("many_brackets", "- " + "[" * 10**5 + "\n- [ ] **C4.F:** a\n", _F)
_shows("deep_quotes", ">" * 10**4 + " - [ ] **C4.F:** a\n", _F)


@EVIDENCE.family
def _plan_at_random(rng: Rng) -> Trial:
    states, lines = {}, []
    for number in range(rng.integers(1, 8)):
        id_, state = f"C4.{'ABCDEFGH'[number]}", str(rng.choice(["open", "done", "blocked"]))
        mark = {"open": "[ ]", "done": "[x]", "blocked": "[P]"}[state]
        states[id_] = state
        noise = str(
            rng.choice(["", "a `[x]` in code", "see C4.Z", "ends \\| here", "\u00e9 [link](x)"])
        )
        form = rng.integers(5)
        lines += [
            [f"| {id_} | {noise} | {mark} | |"],
            [f"- {mark} **{id_}:** {noise}"],
            [f"  * {mark} {id_}: {noise}"],
            [f"> | **{id_}** | {noise} | {mark} | note |"],
            [f"1. {mark} `{id_}:` {noise}"],
        ][form]
        if rng.random() < 0.4:
            lines.append(
                str(rng.choice(["", "words", "| a | b |", "|---|---|", "```\n- [x] C4.A: b\n```"]))
            )
    return shown("\n".join(lines) + str(rng.choice(["", "\n"])), states)


# --- evidence.yaml -------------------------------------------------------------------------------


def asked(evidence: str | bytes, must: Must = "either") -> Trial:
    """Ask about a project with this evidence.yaml."""
    write(evidence)
    return Trial(ptycho("plan", "show"), NAMES, must)


def _asks(name: str, evidence: str | bytes, must: Must = "refuse") -> None:
    EVIDENCE.add(f"yaml_{name}", lambda rng: asked(evidence, must))


_ONE = HEAD + "items:\n  - {{id: C4.D1, command: {}, log: {}}}\n"
_asks("right", BASE, "succeed")
_asks("empty", "")
_asks("no_items", HEAD)
_asks("items_empty", HEAD + "items: []\n")
_asks("log_a_path", _ONE.format("ls", "../../data.txt"))
_asks("log_absolute", _ONE.format("ls", "/tmp/x.log"))
_asks("log_escape", _ONE.format("ls", '"a\\e[31m.log"'))
_asks("log_long", _ONE.format("ls", "a" * 300 + ".log"))
_asks("log_number", _ONE.format("ls", "7"))
_asks("command_empty", _ONE.format("''", "a.log"))
_asks("command_comment", _ONE.format("'# nothing'", "a.log"))
_asks("command_nul", _ONE.format('"a\\0b"', "a.log"))
_asks("command_list", _ONE.format("[ls, -l]", "a.log"))
_asks("unbalanced", _ONE.format('"echo \'a"', "a.log"), "either")
_asks("log_twice", _ONE.format("ls", "a.log") + "  - {id: C4.D2, command: ls, log: A.log}\n")
_asks("row_unknown", HEAD + "items:\n  - {id: C9.Z, by_hand: a}\n")
_asks("row_strange", HEAD + 'items:\n  - {id: "C4\\nD1", by_hand: a}\n')
_asks("env_strange", HEAD + 'items:\n  - {id: C4.D1, command: ls, log: a.log, env: {"A=B": 1}}\n')
_asks("env_nul", HEAD + 'items:\n  - {id: C4.D1, command: ls, log: a.log, env: {A: "\\0"}}\n')
_asks(
    "limit_negative", HEAD + "items:\n  - {id: C4.D1, command: ls, log: a.log, time_limit_s: -1}\n"
)
_asks("limit_inf", HEAD + "items:\n  - {id: C4.D1, command: ls, log: a.log, time_limit_s: .inf}\n")
_asks(
    "depends_on_itself",
    HEAD + "items:\n  - {id: C4.D1, command: ls, log: a.log, depends: [reports]}\n",
    "either",
)
_asks(
    "depends_root",
    HEAD + "items:\n  - {id: C4.D1, command: ls, log: a.log, depends: ['*']}\n",
    "either",
)
_asks(
    "depends_stage",
    HEAD + "items:\n  - {id: C4.D1, command: ls, log: a.log, depends: [infer]}\n",
    "either",
)
_asks("plan_missing", BASE.replace("plan.md", "nobody.md"))
_asks("plan_folder", BASE.replace("plan: plan.md", "plan: ."))
_asks("plan_escape", BASE.replace("plan.md", '"a\\e[31m.md"'))
_asks("plan_is_ledger", BASE.replace("ledger.md", "plan.md"), "either")
_asks("reports_outside", BASE + "reports: ../../..\n", "either")
_asks("reports_file", BASE + "reports: data.txt\n", "either")
_asks("states_unknown", BASE + "states: 7\n")


@EVIDENCE.family
def _yaml_spoilt(rng: Rng) -> Trial:
    text = list(BASE)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(text)))
        text[place] = chr(int(rng.choice([*range(32, 127), 10, 9, 0, 27])))
    return asked("".join(text))


# --- manifests, logs, ledgers, after a run -------------------------------------------------------


def proved() -> None:
    """A project whose rows were proved, in the current folder."""

    def make() -> None:
        write()
        assert run_apart(doit("evidence")) == 0

    shutil.copytree(prepared("proved", make), ".", dirs_exist_ok=True)


def _log() -> Path:
    return next(Path("reports").glob("2*Z/*/data_green.log"))


def _manifest() -> Path:
    return Path("reports/manifests/C4.D1.json")


def _after(name: str, damage: Callable[[], Any], check: Must = "refuse") -> None:
    """What `plan check` says of the damage, and what `doit evidence` and `plan show` do."""

    def checked(rng: Rng) -> Trial:
        proved()
        damage()
        return Trial(ptycho("plan", "check"), NAMES, check, many=True)

    def run(rng: Rng) -> Trial:
        proved()
        damage()
        return Trial(doit("evidence"), NAMES, may_change=WRITES, codes=(1, 2))

    def show(rng: Rng) -> Trial:
        proved()
        damage()
        return Trial(ptycho("plan", "show"), NAMES)

    EVIDENCE.add(f"check_{name}", checked)
    EVIDENCE.add(f"run_{name}", run)
    EVIDENCE.add(f"show_{name}", show)


def _edit(path: Callable[[], Path], old: str, new: str) -> Callable[[], None]:
    def edit() -> None:
        path().write_text(path().read_text().replace(old, new))

    return edit


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


_after("nothing", lambda: None, "succeed")
_after("log_altered", lambda: _log().write_text("all is well"))
_after("log_gone", lambda: _log().unlink())
_after("log_a_folder", lambda: _as_folder(_log()))
_after("manifest_gone", lambda: _manifest().unlink())
_after("manifest_empty", lambda: _manifest().write_bytes(b""))
_after("manifest_deep", lambda: _manifest().write_text("[" * 100_000 + "]" * 100_000))
_after("manifest_list", lambda: _manifest().write_text("[]"))
_after("manifest_not_utf8", lambda: _manifest().write_bytes(b'"\xff"'))
_after("manifest_numbers", lambda: _manifest().write_text('{"items": [7], "outcome": 7}'))
_after("manifest_huge_int", lambda: _manifest().write_text('{"items": 1' + "0" * 5000 + "}"))
_after("manifest_path", _edit(_manifest, "data_green.log", "../../../../data.txt"))
_after(
    "plan_row_reopened",
    _edit(lambda: Path("plan.md"), "| C4.D1 | one | [x]", "| C4.D1 | one | [ ]"),
    "either",
)
_after("plan_row_renamed", _edit(lambda: Path("plan.md"), "C4.D1", "C4.D9"))
_after("plan_row_state_D", _edit(lambda: Path("plan.md"), "| one | [x]", "| one | [D]"))
_after("plan_gone", lambda: Path("plan.md").unlink())
_after("plan_a_folder", lambda: _as_folder(Path("plan.md")))
_after("ledger_gone", lambda: Path("ledger.md").unlink(), "either")
_after("ledger_not_utf8", lambda: Path("ledger.md").write_bytes(b"\xff\xfe"), "either")
_after("input_changed", lambda: Path("data.txt").write_text("other\n"))
_after("input_gone", lambda: Path("data.txt").unlink())
_after("state_gone", lambda: shutil.rmtree(".ptycho"), "either")
_after(
    "state_deep",
    lambda: [p.write_text("[" * 100_000) for p in Path(".ptycho").rglob("*.json")],
    "either",
)
_after("reports_gone", lambda: shutil.rmtree("reports"))
_after("reports_a_file", lambda: (shutil.rmtree("reports"), Path("reports").touch()))


@EVIDENCE.family
def _manifest_spoilt(rng: Rng) -> Trial:
    proved()
    text = bytearray(_manifest().read_bytes())
    for _ in range(rng.integers(1, 5)):
        text[rng.integers(len(text))] = rng.choice(list(b'0123456789{}[]",:-ntfx \xff'))
    _manifest().write_bytes(bytes(text))
    command = (ptycho("plan", "show"), ptycho("plan", "check"), doit("evidence"))[rng.integers(3)]
    return Trial(command, NAMES, may_change=WRITES, many=True)


@EVIDENCE.case
def _check_sees_a_stale_stage(rng: Rng) -> Trial:
    """A row that stands on `infer` is not proved once a setting of the training was changed."""
    built_project()
    write(
        HEAD
        + "items:\n  - {id: C4.F, command: cat runs/default/inference/metrics.json, log: m.log,"
        " depends: [infer]}\n",
        "- [ ] **C4.F:** a\n",
    )
    Path("dodo.py").write_text(DODO)
    assert run_apart(doit("evidence")) == 0
    config = Path("ptycho.yaml")
    config.write_text(config.read_text().replace("epochs: 3", "epochs: 4"))
    return Trial(ptycho("plan", "check"), NAMES, "refuse", many=True)


# --- commands that misbehave ---------------------------------------------------------------------


def _runs(name: str, command: str, wrong: Callable[[Any], str] = lambda _: "", **item: Any) -> None:
    def maker(rng: Rng) -> Trial:
        one = {"id": "C4.D1", "command": command, "log": "a.log", **item}
        other = {"id": "C4.D2", "command": "echo done", "log": "b.log"}
        write(HEAD + f"items: {json.dumps([one, other])}\n")
        # Who has everything removed has it removed.
        may_change = ("",) if "*" in command else WRITES
        return Trial(doit("evidence"), NAMES, "either", wrong, may_change=may_change)

    EVIDENCE.add(f"item_{name}", maker)


_DAEMON = "setsid sh -c 'echo $$ > pid; exec sleep 321.7' >/dev/null 2>&1 &"
_DAEMON += " until [ -s pid ]; do sleep 0.01; done"


def _both_marked(_: Any) -> str:
    plan = Path("plan.md").read_text()
    return "" if "two | [x]" in plan else "the row of the other item is not marked"


def _left_alone(_: Any) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        left = psutil.Process(int(Path("pid").read_text()))
        if left.status() != psutil.STATUS_ZOMBIE:
            left.kill()
            return "what it started is still there"
    return ""


_runs("green", "true", _both_marked)
_runs("red", "false")
_runs("killed", "kill -9 $$")
_runs("term", "kill $$")
_runs("exit_255", "exit 255")
_runs("not_utf8", r"printf '\xff\xfe\x00'", _both_marked)
_runs("escapes", r"printf '\033[31m\033]0;x\007'", _both_marked)
_runs("no_newline", "printf x", _both_marked)
_runs("long_line", "head -c 3000000 /dev/zero | tr '\\0' x", _both_marked)
_runs("many_lines", "seq 300000", _both_marked)
_runs("closes_output", "exec >&- 2>&-; sleep 0.2", _both_marked)
_runs("reads_input", "cat", _both_marked)
_runs("no_such_program", "no_such_program_here")
_runs("removes_state", "rm -rf .ptycho", _both_marked)
_runs("removes_reports", "rm -rf reports", _both_marked)
_runs("removes_plan", "rm plan.md")
_runs("removes_itself", "rm -rf * .ptycho")
_runs("edits_plan", "echo '- [ ] **C4.Z:** new' >> plan.md")
_runs("replaces_state_by_file", "rm -rf .ptycho; touch .ptycho")
_runs("leaves_a_daemon", _DAEMON, _left_alone)
_runs("limit", "sleep 30", time_limit_s=0.5)
_runs("limit_ignored", "trap '' TERM; sleep 30", time_limit_s=0.5)
