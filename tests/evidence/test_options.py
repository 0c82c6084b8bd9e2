"""The evidence section and evidence.yaml: what may stand in them, and what is said of the rest."""

from __future__ import annotations

import pytest

BAD = {
    "a log with a path": ("data.log", "../data.log", "evidence.yaml:10: items[1]: `log` must be"),
    "no log": ("    log: data.log\n", "", "items[1]: `log` must be a plain file name"),
    "two of one log": ("data.log", "pytest_a.log", "evidence.yaml:12: items[1].log"),
    "unknown key": ("log: data", "logs: data", "evidence.yaml:12: items[1].logs: unknown key; did"),
    "no number": ("log: data.log", "log: d\n    time_limit_s: 1 h", "time_limit_s: expected"),
    "a blank selector": ("[tests/test_a.py, -q]", "[' ']", "items[0].pytest[0]: expected a text"),
    "a blank command": ("cat data.txt", "' '", "items[1].command: expected a text that is not"),
    "a comment": ("cat data.txt", "'# later'", "items[1].command: is only a comment, so that"),
    "an id of no kind": ("id: C4.D3", "id: 'C4\\D'", "items[1].id: expected the id of a row: let"),
    "a log with a backslash": ("data.log", "'a\\b'", "first is a letter or digit, not 'a\\b'; the"),
    "id and ids": ("id: C4.D3", "id: C4.D3\n    ids: [a.1]", "give exactly one of `id` and `ids`"),
    "nothing to run": ("    command: cat data.txt\n", "", "of `command`, `pytest`, `stage` and"),
    "an expected colour": ("log: data", "expect: blue\n    log: data", "items[1].expect: expected"),
    "an expected status": ("log: data", "expect: {exit: 1e3}\n    log: data", "items[1]"),
    "two expectations": ("log: data", "expect: {exit: 1, red: 1}\n    log: data", "`expect` must"),
    "no collection": ("log: data", "expect: collected\n    log: data", "go together"),
    "a collection": ("-q]", "--collect-only]", "go together; add one"),
    "by hand, of no row": ("id: C4.F", "ids: []", "`by_hand` is about a row; give it an `id`"),
    "states that contradict": ("items:", "states: {D: done, d: open}\nitems:", "d: means open"),
    "states that differ by a blank": (
        "items:", "states: {D: done, 'D ': open}\nitems:", "means open, and written otherwise"
    ),
    "a state of ours": ("items:", "states: {x: open}\nitems:", "states: 'x': expected one or two"),
    "a red log of green": ("data.log", "data_red.log", "`log` says red, and `expect` green; give"),
    "a green log of red": (
        "log: data.log", "log: d_green.log\n    expect: red", "`log` says green, and `expect` red"
    ),
    "a red log of a success": (
        "log: data.log",
        "log: d_red.log\n    expect: {exit: 0}",
        "`log` says red, and `expect` exit 0; give",
    ),
    "no stage": ("command: cat data.txt", "stage: trane", "`stage` must be one of source, fixture"),
    "a stage that is red": (
        "command: cat data.txt", "expect: red\n    stage: train", "can expect nothing else"
    ),
    "a limit of a stage": (
        "command: cat data.txt", "time_limit_s: 3\n    stage: train", "leave `env` and"
    ),
    "a stage and a command": ("command: cat", "stage: train\n    command: cat", "exactly one of"),
    "its own XML": ("-q]", "--junitxml=a.xml]", "evidence.yaml:7: items[0].pytest: the program"),
    "a phase with a path": ("phase: phase_c4", "phase: a/b", "evidence.yaml:2: phase: expected at"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_line_and_starts_nothing(project, old, new, expected):
    project.edit("evidence.yaml", old, new)
    project.assert_refused(2, expected)
    assert not (project.root / "reports").exists()


def test_an_empty_file_is_one_line(project):
    project.write("evidence.yaml", "")
    project.assert_refused(2, "evidence.yaml: initiative: must be given")


def test_evidence_in_two_files_is_refused(project):
    section = "".join(f"  {line}\n" for line in project.EVIDENCE.splitlines())
    (project.root / "ptycho.yaml").write_text(f"source: {{simulate: {{}}}}\nevidence:\n{section}")
    project.assert_refused(2, "ptycho.yaml:2: evidence: there is evidence.yaml too; keep one")


@pytest.mark.parametrize("item", [r'command: "a\0b"', r'command: ls, env: {A: "\0"}'])
def test_a_command_with_a_nul_character_is_refused(project, item):
    project.write_items(f"id: C4.D3, log: a, {item}")
    project.assert_one_line(project.doit("evidence"), 2, "evidence.yaml", "NUL")
