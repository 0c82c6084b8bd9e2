"""What is refused before anything runs, as it can only fail."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BAD = {
    "unknown id": ("C4.D3\n", "C4.X\n", "plan.md: has no row `C4.X`; rows: C4.D1, C4.D2, C4.D3"),
    "a command that is not there": (
        "cat data.txt", "catt data.txt", "evidence.yaml: data: there is no command `catt`"
    ),
    "no stage": ("[data.txt]", "[trane]", "`trane` is neither a stage nor a file; did you mean"),
    "no file of tests": ("tests/test_a", "tests/test_b", "no test file or folder tests/test_b.py"),
    "no plan": ("plan: plan.md", "plan: plans.md", "plans.md: No such file"),
    "no ledger": ("ledger: docs/fix", "ledger: docs/fax", "docs/fax_plan.md: no such file; make"),
    "one file for both": ("docs/fix_plan.md", "plan.md", "ledger: is the plan itself"),
    "a folder as ledger": ("docs/fix_plan.md", "docs", "ledger: docs: is a folder"),
    "an open quote": ("cat data.txt", "'echo \"'", "data: the shell cannot read the command"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), BAD.values(), ids=BAD)
def test_what_can_only_fail_is_one_line_and_starts_nothing(project, old, new, expected):
    project.edit("evidence.yaml", old, new)
    project.assert_refused(2, expected)
    assert not (project.root / "reports").exists()


@pytest.mark.parametrize("name", ["data.csv", "data/*.txt"])
def test_a_file_that_is_not_there_blocks_the_rows_that_depend_on_it_and_no_others(project, name):
    project.edit("evidence.yaml", "[data.txt]", f"['{name}']")
    done = project.doit("evidence")
    problem = f"depends: `{name}` is neither a stage nor a file; make it first, or correct it"
    warning = f"warning: evidence.yaml: data: {problem}; C4.D3 is blocked until then"
    assert done.stderr.splitlines()[0] == warning
    project.assert_one_line(done, 1, "red: C4.D3; see reports/")
    assert project.plan.count("[x] |") == 2
    assert "- [P] **C4.D3:** data (evidence " in project.plan
    assert f"# not run: {problem}" in (project.report / "blocker.log").read_text()
    project.edit("evidence.yaml", f"['{name}']", "[data.txt]")
    assert project.doit("evidence").returncode == 0
    assert "- [x] **C4.D3:** data (evidence " in project.plan


@pytest.mark.parametrize("name", ["plan.md", "docs/fix_plan.md"])
def test_a_loop_of_links_is_one_line(project, name):
    (project.root / name).unlink()
    (project.root / name).symlink_to(Path(name).name)
    project.assert_refused(2, name)


@pytest.mark.parametrize("name", ["plan.md", "docs/fix_plan.md"])
def test_a_link_out_of_the_project_is_not_followed(project, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside") / "file.md"
    (project.root / name).rename(outside)
    (project.root / name).symlink_to(outside)
    before = outside.read_bytes()
    project.assert_refused(2, f": {name}: is a link out of the project")
    assert outside.read_bytes() == before


def test_an_item_that_changes_the_plan_or_the_ledger_is_named(project):
    project.write_items(
        "id: C4.D3, command: echo x | tee docs/fix_plan.md plan.md, log: one",
        "id: C4.D1, command: 'true', log: two",
    )
    done = project.doit("evidence")
    told = "warning: evidence.yaml: one: plan.md and docs/fix_plan.md changed while it ran; "
    assert told in done.stderr
    assert "two: " not in done.stderr
    project.assert_one_line(done, 1, "plan.md: was changed while the items ran")


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
    # What no command names is mentioned; it is there by the time that the item runs.
    assert "three: depends: `out/*.txt` is neither a stage nor a file" in done.stderr
    assert done.returncode == 0
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("plan.md", ("plan", "adopt", "--by", "me")),
        ("plan.md", ("plan", "check", "--reopen")),
        ("evidence.yaml", ("plan", "import", "memo.txt")),
    ],
)
def test_a_file_that_must_not_be_written_is_not_replaced_either(project, ours, name, command):
    project.write("memo.txt", "Do Now:\n1. C4.D3 @ plan.md - look\n")
    if "import" in command:
        (project.root / "evidence.yaml").unlink()
        assert ours(project.root, *command).returncode == 0
        project.edit("memo.txt", "look", "see")
    if "--reopen" in command:
        assert project.doit("evidence").returncode == 0
        project.write("data.txt", "other\n")
    if "adopt" in command:
        project.edit("plan.md", "last line", "- [x] C5.A: long ago")
    (project.root / name).chmod(0o444)
    before = project.list_files()
    with without_overriding_permissions():
        done = ours(project.root, *command)
    project.assert_one_line(done, 1, name, "Permission denied; allow writing there")
    assert project.list_files() == before


@pytest.mark.parametrize("name", ["reports", "reports/manifests"])
def test_a_file_in_place_of_a_folder_starts_nothing(project, name):
    (project.root / name).parent.mkdir(exist_ok=True)
    (project.root / name).touch()
    project.assert_refused(1, f"cannot write {project.root / name}", "File exists")
