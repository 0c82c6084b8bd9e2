"""What is refused before anything runs: mistakes in files, and what can only fail."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ptycho_tasks.evidence.loading import load_evidence


def test_the_readme_shows_evidence_that_can_be_read(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = readme.partition("```yaml evidence.yaml\n")[2].partition("```")[0]
    (tmp_path / "evidence.yaml").write_text(example)
    evidence = load_evidence(tmp_path)
    assert evidence.ids == ["C4.D1", "C4.D2", "C4.D3", "C4.F"]
    assert [item.stages for item in evidence.items] == [(), ("infer",)]


BAD = {
    "unknown id": ("C4.D3\n", "C4.X\n", "plan.md: has no row `C4.X`; rows: C4.D1, C4.D2, C4.D3"),
    "a command that is not there": (
        "cat data.txt", "catt data.txt", "evidence.yaml: data: there is no command `catt`"
    ),
    "a log with a path": ("data.log", "../data.log", "evidence.yaml:10: items[1]: `log` must be"),
    "no log": ("    log: data.log\n", "", "items[1]: `log` must be a plain file name"),
    "two of one log": ("data.log", "pytest_a.log", "evidence.yaml:12: items[1].log"),
    "unknown key": ("log: data", "logs: data", "evidence.yaml:12: items[1].logs: unknown key; did"),
    "no number": ("log: data.log", "log: d\n    time_limit_s: 1 h", "time_limit_s: expected"),
    "no stage": ("[data.txt]", "[trane]", "`trane` is neither a stage nor a file; did you mean"),
    "nothing to depend on": ("[data.txt]", "[data.csv]", "`data.csv` is neither a stage nor"),
    "a glob of nothing": ("[data.txt]", "['data/*.txt']", "depends: `data/*.txt` is neither"),
    "a blank selector": ("[tests/test_a.py, -q]", "[' ']", "items[0].pytest[0]: expected a text"),
    "a blank command": ("cat data.txt", "' '", "items[1].command: expected a text that is not"),
    "a comment": ("cat data.txt", "'# later'", "items[1].command: is only a comment, so that"),
    "an id of no kind": ("id: C4.D3", "id: 'C4\\D'", "items[1].id: expected the id of a row: let"),
    "a log with a backslash": ("data.log", "'a\\b'", "first is a letter or digit, not 'a\\b'; the"),
    "no file of tests": ("tests/test_a", "tests/test_b", "no test file or folder tests/test_b.py"),
    "id and ids": ("id: C4.D3", "id: C4.D3\n    ids: [a.1]", "give exactly one of `id` and `ids`"),
    "nothing to run": ("    command: cat data.txt\n", "", "exactly one of `command`, `pytest` and"),
    "no plan": ("plan: plan.md", "plan: plans.md", "plans.md: No such file"),
    "no ledger": ("ledger: docs/fix", "ledger: docs/fax", "docs/fax_plan.md: no such file; make"),
    "one file for both": ("docs/fix_plan.md", "plan.md", "ledger: is the plan itself"),
    "a folder as ledger": ("docs/fix_plan.md", "docs", "ledger: docs: is a folder"),
    "an open quote": ("cat data.txt", "'echo \"'", "data: the shell cannot read the command"),
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


@pytest.mark.parametrize("name", ["plan.md", "docs/fix_plan.md"])
def test_a_loop_of_links_is_one_line(project, name):
    (project.root / name).unlink()
    (project.root / name).symlink_to(Path(name).name)
    project.assert_refused(2, name)


def test_a_row_that_stands_twice_starts_nothing(project):
    project.edit("plan.md", "last line", "- [ ] C4.D3: again")
    project.assert_refused(2, "plan.md:9: row `C4.D3` stands in line 7 already")


def test_a_row_that_nobody_listed_and_that_stands_twice_starts_nothing(project):
    project.edit("plan.md", "last line", "- [ ] C5.A: once\n- [x] C5.A: again")
    project.assert_refused(2, "plan.md:10: row `C5.A` stands in line 9 already")


def test_rows_that_nobody_listed_with_a_state_that_is_none_are_mentioned(project):
    project.write_items("id: C4.D3, command: 'true', log: a")
    project.edit("plan.md", "last line", "- [D] C5.A: deferred\n- [~] C5.B: half\n")
    done = project.doit("evidence")
    assert done.returncode == 0
    assert done.stderr.count("warning: ") == 1
    assert "warning: plan.md:9: row `C5.A` has the state [D], which is none of" in done.stderr
    assert "; so has line 10\n" in done.stderr


def test_numbers_and_words_may_stand_twice(project):
    project.write_items("id: C4.D3, command: 'true', log: a")
    project.edit("plan.md", "last line", 2 * "- [ ] 1: once\n- [x] Note: this\n")
    assert project.doit("evidence").returncode == 0


def test_what_another_item_makes_can_be_depended_on(project):
    project.write_items(
        "id: C4.D3, command: mkdir out && cp data.txt --target-directory=out, log: one",
        "id: C4.D3, command: ls out, log: two, depends: [out]",
        "id: C4.D1, command: cat out/data.txt, log: three, depends: ['out/*.txt', out/data.txt]",
    )
    done = project.doit("evidence")
    project.assert_one_line(done, 2, "three: depends: `out/*.txt` is neither a stage nor a file")
    project.edit("evidence.yaml", "mkdir out &&", "mkdir out; echo out/data.txt;")
    assert project.doit("evidence").returncode == 0
    assert "two" not in project.doit("why", "evidence:C4.D1").stdout


def test_a_row_without_a_state_starts_nothing(project):
    project.edit("plan.md", "- [ ] **C4.D3", "- **C4.D3")
    project.assert_refused(2, "plan.md:7: row `C4.D3` has no state; write `[ ]` into it")


@contextmanager
def without_overriding_permissions() -> Iterator[None]:
    """Make even root respect a folder's mode: without CAP_DAC_OVERRIDE, by capset(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    effective, *others = before
    fewer = (ctypes.c_uint32 * 6)(effective & ~0b110, *others)
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        libc.capset(header, before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
@pytest.mark.parametrize("name", ["reports", "docs", "docs/fix_plan.md", "plan.md"])
def test_a_place_that_cannot_be_written_starts_nothing(project, name):
    (project.root / "reports").mkdir()
    (project.root / name).chmod(0o555)
    with without_overriding_permissions():
        project.assert_refused(1, f"cannot write {project.root / name}", "Permission denied")
    (project.root / name).chmod(0o755)


@pytest.mark.parametrize("name", ["reports", "reports/manifests"])
def test_a_file_in_place_of_a_folder_starts_nothing(project, name):
    (project.root / name).parent.mkdir(exist_ok=True)
    (project.root / name).touch()
    project.assert_refused(1, f"cannot write {project.root / name}", "File exists")
