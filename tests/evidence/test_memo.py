"""A memo as people write it: what is found in it, and what is said of each line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.importing import Supplied, import_memo
from ptycho_tasks.evidence.loading import load_evidence
from ptycho_tasks.evidence.memo import read_memo
from ptycho_tasks.testing.project import DOIT, run_command

MEMO = Path(__file__).with_name("memo.txt")
FOLDER = "plans/active/ADR-003-BACKEND-API/reports"
PLAN = f"{FOLDER}/2025-10-20T033100Z/phase_c4_cli_integration/plan.md"
CODE = (
    "ptycho_torch/inference.py",
    "ptycho_torch/workflows/components.py",
    "ptycho_torch/model_manager.py",
    "tests/fixtures/pytorch_integration/minimal_dataset_v1.npz",
)


@pytest.fixture
def evidence(tmp_path):
    import_memo(MEMO, tmp_path)
    return load_evidence(tmp_path)


def test_plan_ledger_and_folder_are_found(evidence):
    assert evidence.initiative == "ADR-003-BACKEND-API"
    assert (evidence.plan, evidence.ledger) == (PLAN, "docs/fix_plan.md")
    assert (evidence.reports, evidence.phase) == (FOLDER, "phase_c4_cli_integration")


def test_every_item_is_found(evidence):
    assert evidence.ids == ["C4.C6", "C4.C7", "C4.D1", "C4.D2", "C4.D3", "C4.D4", "C4.F"]
    assert evidence.by_hand.keys() == {"C4.C6", "C4.C7", "C4.F"}


def test_the_commands_are_found_with_environment_logs_and_rows(evidence):
    _, *tested = evidence.items
    assert [(item.ids, item.name, item.arguments) for item in tested] == [
        (
            ("C4.D1", "C4.D2"),
            "pytest_cli_train",
            ("tests/torch/test_cli_train_torch.py::TestExecutionConfigCLI", "-vv"),
        ),
        (
            ("C4.D1", "C4.D2"),
            "pytest_cli_inference",
            ("tests/torch/test_cli_inference_torch.py::TestInferenceCLI", "-vv"),
        ),
        (
            ("C4.D3", "C4.D4"),
            "pytest_integration",
            (
                "tests/torch/test_integration_workflow_torch.py"
                "::test_run_pytorch_train_save_load_infer",
                "-vv",
            ),
        ),
    ]
    assert all(item.env == {"CUDA_VISIBLE_DEVICES": ""} for item in tested)
    assert all(item.depends == CODE for item in tested)


def test_the_command_that_makes_the_fixture_is_found(evidence):
    item = evidence.items[0]
    assert (item.ids, item.name) == (("C4.C6", "C4.C7"), "fixture_generation")
    assert item.command.startswith("python scripts/tools/make_pytorch_integration_fixture.py --so")
    assert item.command.endswith("minimal_dataset_v1.npz --subset-size 64")
    assert item.depends == (
        "scripts/tools/make_pytorch_integration_fixture.py",
        "datasets/Run1084_recon3_postPC_shrunk_3.npz",
    )


def test_every_line_is_told_of(tmp_path):
    findings = import_memo(MEMO, tmp_path)
    lines = MEMO.read_text().splitlines()
    titles = {
        "Do Now:",
        "Priorities & Rationale:",
        "How-To Map:",
        "Pitfalls To Avoid:",
        "Pointers:",
    }
    silent = {
        number
        for number, line in enumerate(lines, start=1)
        if not line or line.startswith("- Targeted tests") or line in titles
    }
    assert {finding.line for finding in findings} - {0} >= set(range(1, len(lines) + 1)) - silent
    text = "\n".join(map(str, findings))
    for name in ("fixture_generation.log", "pytest_cli_train_green.log",
                 "pytest_cli_inference_green.log", "pytest_integration_green.log",
                 "plan_updates.md", "summary.md"):  # fmt: skip
        assert f"line 6    took  file {name}: " in text
    assert "line 2    left  Mode: the evidence has no place for a way of working" in text
    assert all(len(str(finding).split("  ", 2)[2]) > 3 for finding in findings if not finding.verb)


def test_a_project_of_its_own_can_run_it(tmp_path, ours):
    assert "took  evidence.yaml\n" in ours(tmp_path, "plan", "import", str(MEMO)).stdout
    done = run_command(DOIT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2, f"error: evidence.yaml: plan: {PLAN}: No such file or directory; correct the path\n"
    )  # fmt: skip


def test_the_work_of_a_memo_can_be_done(tmp_path, doit):
    """In a repository as the memo's: what it asks for is run, and its plan and ledger follow."""
    import_memo(MEMO, tmp_path)
    rows = ["C4.C6", "C4.C7", "C4.D1", "C4.D2", "C4.D3", "C4.D4", "C4.F"]
    files = {
        PLAN: "".join(f"| {row} | text | [ ] | |\n" for row in rows),
        "docs/fix_plan.md": "# Fix plan\n",
        "scripts/tools/make_pytorch_integration_fixture.py": "import sys\n"
        "from pathlib import Path\n"
        "path = Path(sys.argv[sys.argv.index('--output') + 1])\n"
        "path.parent.mkdir(parents=True)\npath.write_text('fixture')\n",
        "tests/torch/test_cli_train_torch.py": "class TestExecutionConfigCLI:\n"
        "    def test_a(self):\n        pass\n",
        "tests/torch/test_cli_inference_torch.py": "class TestInferenceCLI:\n"
        "    def test_a(self):\n        pass\n",
        "tests/torch/test_integration_workflow_torch.py": "from pathlib import Path\n\n\n"
        "def test_run_pytorch_train_save_load_infer():\n"
        f"    assert Path({CODE[-1]!r}).exists()\n",
        **dict.fromkeys(CODE[:-1], ""),
        "datasets/Run1084_recon3_postPC_shrunk_3.npz": "scan",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    done = doit(tmp_path)
    assert done.returncode == 0, done.stderr
    states = [line.split(" | ")[2] for line in (tmp_path / PLAN).read_text().splitlines()]
    assert states == ["[P]", "[P]", "[x]", "[x]", "[x]", "[x]", "[ ]"]
    (stamp,) = {*(tmp_path / FOLDER).glob("2*")} - {(tmp_path / PLAN).parents[1]}
    assert sorted(path.name for path in (stamp / "phase_c4_cli_integration").iterdir()) == [
        "fixture_generation_green.log", "plan_updates.md", "pytest_cli_inference_green.log",
        "pytest_cli_train_green.log", "pytest_integration_green.log", "summary.md",
    ]  # fmt: skip
    assert (tmp_path / "docs/fix_plan.md").read_text().count("### Attempt") == 1


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "evidence.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="already there; nothing was written"):
        import_memo(MEMO, tmp_path)
    assert (tmp_path / "evidence.yaml").read_text() == "mine"
    assert len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("plan.md", "text.rst", "missing   plan: the memo names none; --plan FILE supplies it"),
        (
            "docs/fix_plan.md",
            "it",
            "missing   ledger: the memo names none; --ledger FILE supplies it",
        ),
        ("[ADR-003-BACKEND-API] Stand", "(", "took  initiative ADR-003-BACKEND-API, by the folder"),
    ],
)
def test_a_memo_that_lacks_something_says_what_supplies_it(tmp_path, ours, old, new, expected):
    memo = tmp_path / "memo.txt"
    memo.write_text(MEMO.read_text().replace(old, new))
    done = ours(tmp_path, "plan", "import", "memo.txt")
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert len(load_evidence(tmp_path).items) == 4


def test_what_a_memo_lacks_can_be_supplied_and_is_needed_to_run(tmp_path, ours, doit):
    (tmp_path / "memo.txt").write_text("Do Now:\n- A1: tests: pytest tests/test_a.py -q\n")
    done = ours(tmp_path, "plan", "import", "memo.txt")
    assert [line.split()[1] for line in done.stdout.splitlines() if "missing" in line] == [
        "plan:", "ledger:", "initiative:", "phase:", "artefact",
    ]  # fmt: skip
    refused = doit(tmp_path, "evidence")
    assert (refused.returncode, refused.stderr) == (
        2, "error: evidence.yaml: plan: is missing; write the path of a Markdown file\n"
    )  # fmt: skip
    (tmp_path / "p.md").write_text("- [ ] A1 a\n")
    (tmp_path / "l.md").write_text("")
    with (tmp_path / "memo.txt").open("a") as memo:
        memo.write("Pointers:\n- tests/test_b.py\nThe ledger is docs/fix_plan.md.\n")
    options = ("--plan=p.md", "--ledger=l.md", "--initiative=I", "--phase=p")
    done = ours(tmp_path, "plan", "import", "memo.txt", *options)
    assert done.stdout.count("missing") == 1
    assert "docs/fix_plan.md, as the memo names no other" not in done.stdout
    assert "line 4    left  tests/test_b.py: a test, on which only" in done.stdout
    again = ours(tmp_path, "plan", "import", "memo.txt", *options).stdout
    assert "took  evidence.yaml" in done.stdout
    assert "took  evidence.yaml" not in again
    assert "unchanged  evidence.yaml: says all this already" in again
    evidence = load_evidence(tmp_path)
    assert (evidence.plan, evidence.ledger) == ("p.md", "l.md")
    assert (evidence.initiative, evidence.phase, evidence.ids) == ("I", "p", ["A1"])


def test_a_dry_run_writes_nothing(tmp_path, ours):
    (tmp_path / "memo.txt").write_text(MEMO.read_text())
    done = ours(tmp_path, "plan", "import", "--dry-run", "memo.txt")
    assert 'initiative: "ADR-003-BACKEND-API"' in done.stdout
    assert "will run  C4.D1, C4.D2: python -m pytest tests/torch/test_cli_train" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["memo.txt"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b""])
def test_what_is_no_memo_is_one_line(tmp_path, content):
    memo = tmp_path / "memo.txt"
    if content is not None:
        memo.write_bytes(content)
    with pytest.raises(ConfigError, match=r"memo\.txt: "):
        import_memo(memo, tmp_path)
    assert not (tmp_path / "evidence.yaml").exists()


def test_what_cannot_be_mapped_is_said():
    memo = read_memo(
        "hello\nMapped tests: pytest a 'b\nDo Now:\n1. do it\nColour: red\nPointers:\n- x/y.md\n"
    )
    assert [(finding.line, finding.is_taken) for finding in memo.findings] == [
        (1, False), (2, False), (4, False), (5, False), (7, False),
    ]  # fmt: skip
    assert "a quote is opened and not closed" in memo.findings[1].text


@given(st.text(max_size=300) | st.permutations(MEMO.read_text().split(" ")).map(" ".join))
def test_any_text_can_be_read(text):
    read_memo(text)


ENTRY = """\
Focus: [D-1] Work
Artifacts: reports/2031-02-03T040506Z/phase_r/{reader.log}
Do Now:
1. D-1 %s @ work/plan.md:32 - %s
If Blocked: write reports/blocker.md, note it in docs/ledger.md.
"""


@pytest.mark.parametrize(
    "text",
    [
        "find out why, after `touch RAN` as before.",
        "run it; tests: run `touch RAN`, then pytest tests/test_a.py -q",
        "run it; tests: make sure that it works",
        "run it; tests: pytest should pass; touch RAN",
        "run it; tests: pytest tests/a.py $(touch RAN)",
        "run it (tests: none)",
        "run it, and/or read it",
    ],
)
def test_prose_never_becomes_a_command(text):
    (entry,) = read_memo(ENTRY % ("R.1 reader", text)).entries
    assert entry.commands == []


@pytest.mark.parametrize(
    "text", ["run it (tests: pytest a/b.py -q).", "x; tests: `pytest a/b.py -q`"]
)
def test_what_is_plainly_a_command_is_one(text):
    memo = read_memo(ENTRY % ("R.1 reader", text))
    assert [command.text for command in memo.entries[0].commands] == ["pytest a/b.py -q"]
    assert (memo.plan, memo.ledger) == ("work/plan.md", "docs/ledger.md")


@pytest.mark.parametrize(
    ("text", "command", "rest"),
    [
        ("add a unit test \u2014 tests: pytest a/b.py -q", "pytest a/b.py -q", "add a unit test"),
        ("write tests - tests: `pytest a/b.py -q`", "pytest a/b.py -q", "write tests"),
        (
            "write the red test (tests: tests/test_b.py::test_c)",
            "pytest tests/test_b.py::test_c",
            "write the red test",
        ),
        ("a new test: of NaN; tests: pytest a/b.py", "pytest a/b.py", "a new test: of NaN"),
        ("test - pytest a/b.py -q", "pytest a/b.py -q", ""),
    ],
)
def test_the_label_of_tests_is_the_one_that_a_command_follows(text, command, rest):
    (entry,) = read_memo(f"Do Now:\n- B2.A: {text}\n").entries
    assert [one.text for one in entry.commands] == [command]
    assert entry.text == f"B2.A: {rest}".strip(" :") + (":" if not rest else "")


@pytest.mark.parametrize(
    ("word", "ids"),
    [
        ("E2.C1+C2+C3", ["E2.C1", "E2.C2", "E2.C3"]),
        ("B2.1-B2.3", ["B2.1", "B2.2", "B2.3"]),
        ("C4.D1,C4.D2", ["C4.D1", "C4.D2"]),
        ("L3-1..L3-3", ["L3-1", "L3-2", "L3-3"]),
        ("A1-A3", ["A1", "A2", "A3"]),
        ("C2.a-C2.c", ["C2.a", "C2.b", "C2.c"]),
        ("C3.A-C3.C", ["C3.A", "C3.B", "C3.C"]),
        ("C2.a-c", ["C2.a", "C2.b", "C2.c"]),
        ("L3-4", []),  # a row, or L3 and L4
    ],
)
def test_shortened_ids_and_ranges_are_spread(word, ids):
    assert read_memo(ENTRY % (word, "run it")).entries[0].ids == ids


CASES = Path(__file__).parents[3] / "shared/cases/memos"
READER = "python -m pytest tests/test_reader.py -q"
WRITER = "python -m pytest tests/test_writer.py -q"
SCAN = "python tools/scan.py --input data/a.npz"
EXPECTED_OF_CASES = {
    "c02": {"plan": "work/DEMO-1/implementation.md"},
    "c03": {"ids": ["R1"], "plan": ""},
    "c04": {"phase": "DEMO-1", "logs": ["test_reader"]},
    "c08": {"commands": [f"{SCAN} --output out/b.json", READER], "logs": ["scan", "reader"]},
    "c09": {"commands": [READER, WRITER], "logs": ["reader", "test_writer"]},
    "c10": {
        "commands": [READER, "python -m pytest tests/test_reader.py::test_a",
                     "python -m pytest tests/test_writer.py::test_b"],
        "logs": ["reader", "test_reader", "test_writer"],
    },
    "c15": {"ids": ["A1"]},
    "c16": {"ids": ["E2.C1", "E2.C2", "E2.C3"]},
    "c17": {"ids": ["R.1", "R.2", "R.3", "R.4"]},
    "c18": {"commands": [READER, WRITER], "logs": ["reader", "test_writer"]},
    "c20": {"commands": [READER, WRITER], "logs": ["reader", "test_writer"]},
    "c21": {"commands": [SCAN, READER], "logs": ["scan", "reader"]},
}  # fmt: skip
"""What differs from the control's."""


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases/memos, which is not here")
def test_each_habit_of_memos_is_understood(tmp_path):
    for path in sorted(CASES.glob("c*.txt")):
        (tmp_path / path.stem).mkdir()
        findings = import_memo(path, tmp_path / path.stem)
        evidence = load_evidence(tmp_path / path.stem)
        got = {
            "initiative": evidence.initiative, "plan": evidence.plan, "ids": evidence.ids,
            "ledger": evidence.ledger, "reports": evidence.reports, "phase": evidence.phase,
            "commands": [item.command for item in evidence.items],
            "logs": [item.name for item in evidence.items],
        }  # fmt: skip
        control = {
            "initiative": "DEMO-1", "plan": "work/plan.md", "ids": ["R.1"], "phase": "phase_r",
            "ledger": "docs/ledger.md", "reports": "work/DEMO-1/reports", "commands": [READER],
            "logs": ["reader"],
        }  # fmt: skip
        assert got == control | EXPECTED_OF_CASES.get(path.name[:3], {}), path.name
        is_by_hand = path.name[:3] in ("c07", "c08", "c11", "c13", "c21", "c23", "c26")
        assert (evidence.by_hand.keys() == {"R.1"}) is is_by_hand, path.name
        lines = {n for n, line in enumerate(path.read_text().splitlines(), 1) if line.strip()}
        assert len(lines - {finding.line for finding in findings}) < 10, path.name


def list_items(folder, text, root_files=()):
    (folder / "memo.txt").write_text(text)
    for name, content in root_files:
        (folder / name).write_text(content)
    findings = import_memo(folder / "memo.txt", folder)
    evidence = load_evidence(folder)
    items = [(", ".join(item.ids), item.command, item.name) for item in evidence.items]
    return items, evidence, "\n".join(map(str, findings))


SHELL_FENCE = """\
**Focus**: ABC-2 / stage 3
Do Now - go on:
- [ ] Q1: measure (see plan.md)
- [ ] Q2-Q3: prove it
## How to (exact)
```bash
set -e
OUT="$PWD/work/reports/<timestamp>/dose"; mkdir -p "$OUT"
export OMP_NUM_THREADS=1
# Q1
python tools/dose.py --scan a.npz \\
   > "$OUT"/dose.log 2>&1
# Q2
pytest tests/test_dose.py -q 2>&1 | tee "$OUT"/pytest_dose.log  # quick
git commit -am done
rm -rf build
for x in 1 2; do python a.py $x; done
```
"""


def test_a_script_in_a_fence_is_read_with_its_variables(tmp_path):
    items, evidence, text = list_items(tmp_path, SHELL_FENCE)
    assert items == [
        ("Q1", "python tools/dose.py --scan a.npz", "dose"),
        ("Q2, Q3", "python -m pytest tests/test_dose.py -q", "pytest_dose"),
    ]
    assert all(item.env == {"OMP_NUM_THREADS": "1"} for item in evidence.items)
    assert "line 11   took  command `python tools/dose.py --scan a.npz`" in text
    assert "line 16   left  `rm -rf build`: is left to people; nothing runs it" in text
    assert "line 17   left  `for x in 1 2; do python a.py $x; done`: is a script" in text


def test_a_row_alone_on_a_line_names_the_fence_below_it(tmp_path):
    memo = (
        "Focus: X-1\nDo Now:\n- B2 - run what stands under B2 of the How-To Map.\nHow-To Map:\n"
        "- B2:\n```bash\npython train.py \\\n  --epochs 4 | tee train.log\n```\n"
    )
    items, _, _ = list_items(tmp_path, memo)
    assert items == [("B2", "python train.py --epochs 4", "train")]


def test_ids_are_checked_against_the_plan(tmp_path):
    memo = "Focus: X-1\nDo Now:\n- odd_row, A1-A4 @ plan.md - do; tests: pytest tests/a.py -q\n"
    plan = "| A1 | x | [ ] |\n| A3 | x | [ ] |\n| odd_row | x | [ ] |\n"
    items, _, text = list_items(tmp_path, memo, [("plan.md", plan)])
    assert {*items[0][0].split(", ")} == {"odd_row", "A1", "A3"}
    assert "left  A2: plan.md has no such row" in text


@pytest.mark.parametrize(
    "line",
    [
        "Do not run `pytest tests/all.py -q` yet.",
        "Last time `python wipe.py --all` failed.",
        "Never use `bash wipe.sh --all`; it is slow.",
        "Call `make_scaled(x, y)` and see `src/a.py:12`.",
        "`git push origin main`",
        "```python\nimport os\n```",
        "```\nrm -rf /tmp/x && cat <<EOF\nEOF\n```",
        "`nosuchprogram_xyz --flag a/b.c | tee x.log`",
        "`pytest $NOWHERE -q`",
        "Run `python wipe.py --all` never.",
        "`python wipe.py --all` must not run on the shared node.",
        "`python wipe.py --all` (obsolete)",
        "On failure: `python rollback.py --all`",
        "If it fails: python rollback.py --all",
        "In case of an error, `python rollback.py --all`",
        "Only on the beamline: python move_stage.py --home",
        "Afterwards, once the reviewer agreed: `python publish.py --live`",
        "Superseded: `python old.py --all`",
        "Next turn: python next.py --all",
        "the bug shows with `python crash.py --x`, fix it",
        "Rebuild with `python rebuild.py --all`. Never run it on the shared node.",
        "Rebuild with `python rebuild.py --all`. This must not be run today.",
        "`python rebuild.py --all`\n  Do not do this on the node.",
        "These must never be run:\n  - `python wipe.py --all`\n  - python wipe.py --x",
        "Never:\n\n  ```\n  python wipe.py --all\n  ```",
        "if a GPU is at hand, measure with\n  `python measure.py --all`",
        "optional: `python measure.py --all`",
        "The old tool (`python measure.py --all`) is broken.",
        "`python measure.py --all` passed in March",
        "forbidden: `python wipe.py --all`",
        "$ python wipe.py --all   # do not run",
        "```\n# never run this\npython wipe.py --all\npython wipe.py --b  # optional\n```",
        "`python wipe.py --all`, only with Maria present",
        "The runbook says `python wipe.py --all`",
        "`python wipe.py --all` would be the fast way",
        "Ask the operator to run `python move.py --home`",
        "Clean-up when it went wrong: python wipe.py --all",
        "For reference: `python wipe.py --all`",
        "Ask the staff, they use `python move.py --home`",
        "compare `python a.py 1` and `python b.py 1`",
        "the message says: `python wipe.py --all`",
        'it should print "run `python wipe.py --all`"',
        "`python wipe.py --all` - NO!",
        "careful with `python wipe.py --all`",
        "Read what `python wipe.py --all` does, then describe it.",
        "`python wipe.py --all` wipes the cache",
        "Add a test for `python wipe.py --all`.",
        "Replace `python wipe.py --all` by `bash wipe.sh 1`.",
        "Dry-run only: `python wipe.py --all`",
        "Not today\n  - `python wipe.py --all`\n  - python wipe.py --b",
        "Wait for Bo, then `python move.py --home`",
        "Only Bo may run `python move.py --home`",
        "The job of the night runs `python wipe.py --all`.",
        "These are frozen, hands off:\n  - python wipe.py --all\n\n  ```\n  bash wipe.sh 1\n  ```",
        "done already: `python move.py --home`",
        "It prints:\n```\npython measure.py --all\n```",
        "`python measure.py --all`; skip if there is no GPU",
        "~~`python wipe.py --all`~~",
        "the cache: `python wipe.py --all` broke it",
        "Known: `python wipe.py --all` deleted two scans.",
        "<!-- see\n`python wipe.py --all`\n-->",
    ],
)
def test_no_advice_is_run(tmp_path, line):
    memo = f"Do Now:\n- A1: it\n- {line}\n- B2: see\nHow-To Map:\n- {line}\n\n{line}\n"
    items, evidence, _ = list_items(tmp_path, memo)
    assert (items, [*evidence.by_hand]) == ([], ["A1", "B2"])


NOT_ASKED = """\
Kim's notes: `CMD`
When the beam is back, run `CMD`
As soon as the GPU is free: `CMD`
Pending approval: `CMD`
Wait with `CMD` until Friday.
For later: CMD
Ideas: `CMD`
`CMD` (don't)
`CMD`  <- NOT NOW
`CMD` needs approval
Needs sudo: `CMD`
Reviewed and rejected: `CMD`
Blocked: `CMD`
Stop using `CMD`.
The CI will run `CMD` at night.
Cron: `CMD`
By hand, by Ana: `CMD`
Ana should run `CMD`
Was: `CMD`
Old: `CMD`
e.g. `CMD`
Stretch goal: `CMD`
Skipped: CMD
Done: `CMD`
[x] `CMD`
Warning: CMD
`CMD` has to wait
`CMD` - ask Ana first
`CMD`, if needed
`CMD` (Ana only)
`CMD` # Ana only
`CMD` (destroys data/)
`CMD` => FAILS
If the linter is slow, profile it with `CMD`.
Kim ran `CMD` -> kim.log
Kim's run (`CMD`, log kim.log)
Seen in March (`CMD`, log march.log)
"""
ASKED = """\
Rerun `CMD` after the change.
Validate with `CMD`.
Lint: `CMD`
Bench (short): CMD
`CMD` -> keep.log
`CMD` (takes a minute)
`CMD` must stay green
`CMD` on the CPU
Implement the guard, then run `CMD`.
GREEN: `CMD`
Regenerate the fixture with `CMD`.
Execute `CMD` from the repo root.
When implemented, run `CMD`.
Check the old and the new keys: `CMD`
Run `CMD`, not the whole suite.
Run only `CMD`.
Ensure `CMD` passes.
Capture the output of `CMD` in keep.log
T.1 no crosstalk between modes (`CMD`, log modes.log)
P1. D.1 drift: `CMD`
"""


@pytest.mark.parametrize(("lines", "is_asked"), [(NOT_ASKED, False), (ASKED, True)])
def test_a_command_is_run_where_what_stands_beside_it_asks_for_it(tmp_path, lines, is_asked):
    lines = [
        line.replace("CMD", f"python a{n}.py --all") for n, line in enumerate(lines.splitlines())
    ]
    text = "".join(f"- A{n}: it\n  - {line}\n" for n, line in enumerate(lines))
    items, _, _ = list_items(tmp_path, f"Do Now:\n{text}")
    asked = [f"python a{n}.py --all" for n in range(len(lines)) if is_asked]
    assert [command for _, command, _ in items] == asked


def test_what_was_done_is_no_work(tmp_path):
    text = "## Status of the rows\n- A1: `pytest tests/a.py -q`\n- A2: `pytest tests/b.py -q`\n"
    with pytest.raises(ConfigError, match="names no row of a plan and no command"):
        list_items(tmp_path, text)


def test_what_a_section_of_old_commands_holds_is_left(tmp_path):
    text = "Do Now:\n- A1: it\n\n## Old commands\n```\npython wipe.py --all\n```\n"
    items, _, told = list_items(tmp_path, text)
    assert items == []
    assert "Old commands: what stands beside it does not ask to run it" in told


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("use `frobnicate --all` on it", "there is no program `frobnicate` here"),
        ("`rm -rf runs` first", "is left to people"),
        ("its size is `uname -a`", "nothing says that it is to be run"),
    ],
)
def test_a_span_like_a_command_is_told_of_when_it_is_left(tmp_path, line, reason):
    items, _, told = list_items(tmp_path, f"Do Now:\n1. A.1 - {line}\n")
    assert items == []
    assert f"{reason}; nothing runs it" in told


@pytest.mark.parametrize(
    ("tests", "command"), [("make check", "make check"), ("doit infer", "doit infer"),
                           ("make sure", None), ("make three maps", None),
                           ("ruff check src", None)]
)  # fmt: skip
def test_a_target_after_tests_is_a_command_where_its_program_is_there(
    tmp_path, monkeypatch, tests, command
):
    for name in ("make", "doit"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (entry,) = read_memo(ENTRY % ("R.1 reader", f"run it; tests: {tests}")).entries
    assert [one.text for one in entry.commands] == ([command] if command else [])


FIRST = """\
Focus: [X-1] work
Artifacts: work/reports/2031-02-03T040506Z/p/
Do Now:
1. A1 @ plan.md - one; tests: pytest tests/one.py -q
2. A2 @ plan.md - two; tests: pytest tests/two.py -q
3. A3 @ plan.md - three; tests: pytest tests/three.py -q
If Blocked: docs/fix_plan.md
"""


def test_a_newer_memo_updates_what_an_older_one_gave_and_keeps_what_a_person_changed(tmp_path):
    list_items(tmp_path, FIRST)
    path = tmp_path / "evidence.yaml"
    text = path.read_text()
    path.write_text(
        text.replace('log: "two.log"', 'log: "two.log"\n    time_limit_s: 9').replace(
            '"docs/fix_plan.md"', '"other.md"'
        )
        + "  - {id: M1, by_hand: mine}  # my own\n"
    )
    newer = (
        FIRST.replace("two.py", "two.py -x").replace("one.py -q", "uno.py").partition("3. A3")[0]
    )
    items, evidence, told = list_items(tmp_path, f"{newer}4. A4 @ plan.md - by eye\n")
    assert sorted(items) == [
        ("A1", "python -m pytest tests/uno.py", "uno"),
        ("A2", "python -m pytest tests/two.py -q", "two"),
        ("A3", "python -m pytest tests/three.py -q", "three"),
    ]
    assert evidence.find_item("two").time_limit_s == 9
    assert (evidence.ledger, evidence.by_hand) == ("other.md", {"M1": "mine", "A4": "by eye"})
    assert "left  two: stays, as it was changed by hand" in told
    assert "left  three: stays, though this memo does not name it" in told
    before = path.read_text()
    list_items(tmp_path, f"{newer}4. A4 @ plan.md - by eye\n")
    assert path.read_text() == before


def test_what_a_person_removed_from_an_import_stays_out(tmp_path):
    memo = FIRST.replace("If Blocked", "4. A4 @ plan.md - by eye\nIf Blocked")
    list_items(tmp_path, memo)
    path = tmp_path / "evidence.yaml"
    before = path.read_text()
    head, *blocks = before.split("  - ids")
    kept = [block for block in blocks if "two" not in block and "A4" not in block]
    path.write_text("  - ids".join([head, *kept]))
    newer = memo.replace("one.py -q", "uno.py")
    for _ in range(2):
        items, evidence, told = list_items(tmp_path, newer)
        assert [name for *_, name in sorted(items)] == ["uno", "three"]
        assert evidence.by_hand == {}
        assert "note      left  two: was removed by hand, and stays out; remove its name" in told
        assert "left  A4: was removed by hand" in told
    path.write_text(path.read_text().replace(" two(A2)", ""))
    assert sorted(name for *_, name in list_items(tmp_path, newer)[0]) == ["three", "two", "uno"]


def test_items_of_other_rows_stay_though_their_log_is_called_the_same(tmp_path):
    def name(row, options):
        return f"Do Now:\n- {row}: tests: `pytest tests/test_loader.py {options}`\n"

    def call(options):
        return f"python -m pytest tests/test_loader.py {options}"

    list_items(tmp_path, name("A1, A2", "-vv"))
    path = tmp_path / "evidence.yaml"
    path.write_text(path.read_text() + "    time_limit_s: 9\n")
    for _ in range(2):
        items, _, told = list_items(tmp_path, name("A3", "-q"))
        expected = [("A1, A2", call("-vv"), "test_loader"), ("A3", call("-q"), "test_loader_2")]
        assert items == expected
    assert "took  A3: log test_loader_2, as others have that" in told
    assert "left  test_loader" not in told
    path.write_text(path.read_text().replace("    time_limit_s: 9\n", ""))
    items, _, told = list_items(tmp_path, name("A1", "-x"))
    expected = [("A2", call("-vv"), "test_loader"), ("A3", call("-q"), "test_loader_2")]
    assert items == [*expected, ("A1", call("-x"), "test_loader_3")]
    assert "left  test_loader: stays for A2; A1: as this memo says" in told
    items, _, told = list_items(tmp_path, name("A2", "-s"))
    assert ("A2", call("-s"), "test_loader") in items
    assert f"`{['tests/test_loader.py', '-vv']}` of A2 gives way to test_loader of this" in told


def test_what_a_person_removed_keeps_no_other_row_out(tmp_path):
    memo = "Do Now:\n- {}: tests: `pytest tests/a.py`\n- A2: by eye\n"
    list_items(tmp_path, memo.format("A1"))
    path = tmp_path / "evidence.yaml"
    head, _, last = path.read_text().split("  - ids")
    path.write_text(f"{head}  - ids{last}")
    assert list_items(tmp_path, memo.format("A1"))[0] == []
    assert [ids for ids, *_ in list_items(tmp_path, memo.format("A3"))[0]] == ["A3"]


PAIR = """Summary: s
Focus: [X-1] x
Artifacts: work/X-1/reports/2031-02-03T040506Z/a/{x_red.log,x_green.log}
Do Now:
1. A1 @ plan.md - write the failing test, and keep the RED log; tests: pytest tests/x.py -q
2. A2 @ plan.md - make it pass; tests: pytest tests/x.py -q
If Blocked: docs/fix_plan.md
"""
HOW_TO = "".join(
    f"- `pytest tests/x.py -q 2>&1 | tee work/X-1/reports/2031-02-03T040506Z/a/x_{outcome}.log`\n"
    for outcome in ("red", "green")
)


@pytest.mark.parametrize(
    ("text", "is_asked"),
    [("run `bash tidy.sh 3` first", True), ("`bash tidy.sh 3` broke it", False)],
)
def test_a_command_beside_an_entry_s_tests_is_one_where_it_is_asked_for(tmp_path, text, is_asked):
    items, _, told = list_items(tmp_path, FIRST.replace("- one;", f"- one, {text};"))
    assert (("A1", "bash tidy.sh 3", "bash") in items) is is_asked
    assert ("`: the sentence does not ask to run it; nothing runs it" in told) is not is_asked


def test_a_row_of_another_plan_is_none_of_the_first(tmp_path):
    memo = FIRST.replace("2. A2 @ plan.md", "2. A1 @ other/plan2.md")
    items, _, told = list_items(tmp_path, memo)
    assert "tests/two.py" not in str(items)
    assert "`: of other/plan2.md, and not of plan.md; nothing runs it" in told
    (tmp_path / "evidence.yaml").unlink()
    items, _, _ = list_items(tmp_path, FIRST.replace("2. A2 @ plan.md", "2. A2 @ work/plan.md"))
    assert "A2" in {ids for ids, *_ in items}


@pytest.mark.parametrize("how_to", ["", f"How-To Map:\n{HOW_TO}"], ids=["no how-to", "how-to"])
def test_the_red_and_the_green_run_of_one_test_are_two_items(tmp_path, how_to):
    items, evidence, _ = list_items(tmp_path, f"{PAIR}{how_to}")
    command = "python -m pytest tests/x.py -q"
    assert sorted(items) == [("A1", command, "x_red"), ("A2", command, "x")]
    assert [(item.expect, item.is_past) for item in evidence.items] == [
        ("red", True), ("green", False),
    ]  # fmt: skip


def test_the_red_logs_of_two_tests_are_numbered_before_their_outcome(tmp_path):
    text = "Do Now:\n" + "".join(
        f"{n}. A.{n} - RED: `pytest tests/f.py::test_{n} -q | tee out/f_red.log`\n" for n in (1, 2)
    )
    items, _, _ = list_items(tmp_path, text)
    assert [name for _, _, name in items] == ["f_red", "f_2_red"]


def test_an_import_has_git_ignore_what_a_run_leaves(tmp_path):
    (tmp_path / ".gitignore").write_text("mine\n")
    told = list_items(tmp_path, FIRST)[2]
    assert "took  .gitignore" in told
    lines = (tmp_path / ".gitignore").read_text().splitlines()
    assert lines[0] == "mine"
    assert {"/.ptycho/", ".fix_plan.md.lock"} < {*lines}
    assert "took  .gitignore" not in list_items(tmp_path, FIRST)[2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"x" * 2**20, "longer than 256 KiB"),
        (b"Plan: x\n" * 3001, "has over 3000 lines"),
        ("Do Now:\n- A1: gr\xfc\xdfen\n".encode("latin-1"), "is not UTF-8 text"),
        (b"Do Now:\0\n", "is no text"),
        (
            f"{FIRST}{FIRST}".replace("Focus", "Summary: x\nFocus").encode(),
            "memo.txt:9: begins a s",
        ),
        (b"", "names no row of a plan and no command"),
    ],
)
def test_what_cannot_be_imported_changes_nothing(tmp_path, ours, content, expected):
    (tmp_path / "memo.txt").write_bytes(content)
    done = ours(tmp_path, "plan", "import", "memo.txt")
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert len([*tmp_path.iterdir()]) == 1


def test_line_ends_of_windows_are_read(tmp_path):
    (tmp_path / "memo.txt").write_bytes(FIRST.replace("\n", "\r\n").encode())
    import_memo(tmp_path / "memo.txt", tmp_path)
    assert load_evidence(tmp_path).ids == ["A1", "A2", "A3"]


HABITS = {
    "mapped tests, each with its row of an entry that names both, and their commands": (
        "Mapped tests:\n- `pytest tests/b.py::test_b` (B1.B)\n- `pytest tests/b.py -k nan` (B1.C)\n"
        "Do Now:\n1. B1.B + B1.C: mend; tests: `pytest tests/b.py::test_b`; "
        "`pytest tests/b.py -k nan`\n",
        [
            ("B1.B", "python -m pytest tests/b.py::test_b", "b"),
            ("B1.C", "python -m pytest tests/b.py -k nan", "b_2"),
        ],
    ),
    "two rows in a sentence": (
        "Do Now: W.1 - run `pytest tests/p.py -q` (log phase.log), and W.2 - run "
        "`pytest tests/a.py -q` (log amp.log).\n",
        [
            ("W.1", "python -m pytest tests/p.py -q", "phase"),
            ("W.2", "python -m pytest tests/a.py -q", "amp"),
        ],
    ),
    "labels in a line of an entry, arrows, and one more for the environment": (
        "Do Now:\n- Row: N1 | Test: `pytest tests/r.py -q` | Log: read.log\n"
        "- N2 - write. Command: pytest tests/w.py -q. Log: write.log.\n"
        "- N4 => `pytest tests/n.py -q` => names.log\n"
        "- N5\n  run: pytest tests/e.py -q\n  env: A=1\n  expected: red, as yet\n",
        [
            ("N1", "python -m pytest tests/r.py -q", "read"),
            ("N2", "python -m pytest tests/w.py -q", "write"),
            ("N4", "python -m pytest tests/n.py -q", "names"),
            ("N5", "python -m pytest tests/e.py -q", "e_red"),
        ],
    ),
    "rows that only comments name, behind the commands": (
        "Do Now:\nImplement it, then prove both:\n```\npytest tests/s.py -q   # O1\n"
        "pytest tests/t.py -q   # O2\n```\n",
        [
            ("O1", "python -m pytest tests/s.py -q", "s"),
            ("O2", "python -m pytest tests/t.py -q", "t"),
        ],
    ),
    "rows in parentheses and on hold": (
        "Do Now\n- LOAD-7\n  - see plan.md (Checklist G1-G2)\n  - Validate: pytest tests/g.py -q\n"
        "| Z.4 | blocked (no GPU) | python -m z --gpu |\n",
        [("G1, G2", "python -m pytest tests/g.py -q", "g")],
    ),
    "several labels in a line, and headings whose bullets say all": (
        "Ledger: docs/fix_plan.md  Plan: work/plan.md\n\n## Checks\n\n### P2-T1 Edge kernel\n"
        "- Command: `pytest tests/e.py -q`\n- Output file: `edge.log`\n"
        "\n## Risks\n- `python tools/e.py --all` destroys the cache.\n",
        [("P2-T1", "python -m pytest tests/e.py -q", "edge")],
    ),
    "boxes without bullets, of which one is ticked": (
        "Exit criteria:\n[ ] E.1 rotation is right: pytest tests/r.py -q | tee rot.log\n"
        "[x] E.0 lint: mypy src | tee lint.log\n[ ] E.3 was read\n",
        [("E.1", "python -m pytest tests/r.py -q", "rot")],
    ),
    "rows in sentences": (
        "Next actions\n\nFirst prove D1 with `pytest tests/d.py -q`, logged to dark.log.\n"
        "Then prove D2 with `pytest tests/f.py -q`, logged to flat.log.\n"
        "D3 is for the staff, who run `python stage.py --home`.\n",
        [
            ("D1", "python -m pytest tests/d.py -q", "dark"),
            ("D2", "python -m pytest tests/f.py -q", "flat"),
        ],
    ),
    "tables without outer bars": (
        "TESTS\n-----\nH.1 | pytest tests/h.py -q | tee x.log | halo.log\n"
        "H.2 | pytest tests/i.py -q | halo_io.log\n\nDO NOT RUN\n----------\n"
        "H.9 | python tools/halo.py --all | all.log\n",
        [
            ("H.1", "python -m pytest tests/h.py -q", "x"),
            ("H.2", "python -m pytest tests/i.py -q", "halo_io"),
        ],
    ),
    "bare commands, an arrow and the log; and the logs of mapped tests": (
        "Must:\n1. R7.1 pytest tests/ring.py -q -> ring.log\n2. R7.2 make it read\n\nMay:\n"
        "3. R7.3 python bench.py --long -> b.log\nMapped tests: pytest tests/r2.py -q (R7.2)\n"
        "Artifacts:\n- trim.log of R7.2\n",
        [
            ("R7.1", "python -m pytest tests/ring.py -q", "ring"),
            ("R7.2", "python -m pytest tests/r2.py -q", "trim"),
        ],
    ),
    "a table": (
        "Do Now:\n| ID | What | Command | Log |\n|---|---|---|---|\n"
        "| V.1 | volume | `pytest tests/v.py -q` | v.log |\n| V.2 | look | by hand | |\n",
        [("V.1", "python -m pytest tests/v.py -q", "v")],
    ),
    "entries on one line": (
        "Do Now: 1) J1 - `pytest tests/j.py -q`; 2) J2 - `bash run.sh 3`.\n",
        [("J1", "python -m pytest tests/j.py -q", "j"), ("J2", "bash run.sh 3", "bash")],
    ),
    "entries with headings": (
        "## Do Now\n### 1. E1.a - lint\n```\nmypy src | tee out/mypy.log\n```\n"
        "### 2. E1.b - bench\n"
        "Run `N=1 python -m bench --n 3 > out/speed.log 2>&1`.\n## Other\n",
        [("E1.a", "mypy src", "mypy"), ("E1.b", "python -m bench --n 3", "speed")],
    ),
    "rows that how-to steps name": (
        "Do Now:\n1. B.1 build - see below.\n2. B.2 prove\nHow-To Map:\n"
        "1. Build (B.1): `bash b.sh --clean 2>&1 | tee out/build.log`\n"
        "- B.2: pytest tests/b.py -q\n",
        [("B.1", "bash b.sh --clean", "build"), ("B.2", "python -m pytest tests/b.py -q", "b")],
    ),
    "what is asked for only perhaps": (
        "Do Now:\n1. P.1 - run `pytest tests/p.py -q`\n   - `make docs`? Only if sphinx is here.\n"
        "   - `bash slow.sh 1` only if there is time\n",
        [("P.1", "python -m pytest tests/p.py -q", "p")],
    ),
    "commands after commas, of which one has a limit": (
        "Mapped tests: X=1 pytest tests/p.py -q, pytest tests/q.py -q\n"
        "Do Now:\n1. P.1 - p; tests: pytest tests/q.py -q\n"
        "How-To Map:\n- `timeout 60 pytest tests/q.py -q | tee out/q_all.log`\n",
        [
            ("P.1", "timeout 60 pytest tests/q.py -q", "q_all"),
            ("", "python -m pytest tests/p.py -q", "p"),
        ],
    ),
    "one log that is left": (
        "Artifacts: r/2031-02-03T040506Z/a/{nb.log,units.log}\nDo Now:\n"
        "1. N.1 - tests: `pytest --nbmake demo.ipynb -q`\n2. N.2 - tests: pytest tests/units.py\n",
        [
            ("N.1", "python -m pytest --nbmake demo.ipynb -q", "nb"),
            ("N.2", "python -m pytest tests/units.py", "units"),
        ],
    ),
    "a line that only leads to a fence, and last week's": (
        "## Do Now\n### U1 - eV\nRun the first:\n```\npytest tests/ev.py -q\n```\n"
        "### U2 - nm, unlike last week's `bash nm.sh 2`\nRun this:\n```\nbash nm.sh 1\n```\n",
        [("U1", "python -m pytest tests/ev.py -q", "ev"), ("U2", "bash nm.sh 1", "bash")],
    ),
    "typed bullets of red and green": (
        "Do Now:\n1. T.1 - unit\n   - Red: pytest tests/t.py -q\n2. T.2 - unit\n"
        "   - Green: pytest tests/t.py -q\n",
        [
            ("T.1", "python -m pytest tests/t.py -q", "t_red"),
            ("T.2", "python -m pytest tests/t.py -q", "t"),
        ],
    ),
    "typed bullets of two rows": (
        "Do Now:\n* Implement: F.1 - a map\n* Test: `pytest tests/f.py -q`\n"
        "* Implement: F.2 - an option\n* Test: `pytest tests/g.py -q`\n",
        [
            ("F.1", "python -m pytest tests/f.py -q", "f"),
            ("F.2", "python -m pytest tests/g.py -q", "g"),
        ],
    ),
    "logs in prose, and a prompt": (
        "Do Now:\n1. M.1 - modes; tests: pytest tests/f.py -q (log: modes.log)\n2. M.2 - lint\n"
        "How-To Map:\n- M.2: `bash lint.sh 1`, log to lint_all.log\n$ bash other.sh 2\n",
        [
            ("M.1", "python -m pytest tests/f.py -q", "modes"),
            ("M.2", "bash lint.sh 1", "lint_all"),
            ("", "bash other.sh 2", "bash"),
        ],
    ),
    "rows under a title of its own, in a table": (
        "## Work of tonight\n| Row | What | Command |\n|---|---|---|\n"
        "| B.1 | one | `pytest tests/b.py -q` |\n| B.2 | two | `bash b.sh 2` |\n",
        [("B.1", "python -m pytest tests/b.py -q", "b"), ("B.2", "bash b.sh 2", "bash")],
    ),
    "a table under what only names the plan": (
        "# For Thursday\n\nPlan: work/K-1/plan.md\n\n| row | how | log |\n|---|---|---|\n"
        "| K.2 | `bash k.sh 2` | two.log |\n",
        [("K.2", "bash k.sh 2", "two")],
    ),
    "ids in another column, and a plan": (
        "Do Now:\n| Step | ID | Plan | Command |\n|---|---|---|---|\n"
        "| 1 | K.1 | work/plan.md | `pytest tests/k.py -q` |\n",
        [("K.1", "python -m pytest tests/k.py -q", "k")],
    ),
    "steps, and rows without a bullet": (
        "Do Now:\nStep 1 (R.1): `bash r.sh 1`.\nStep 2 (R.2): `bash r.sh 2`\n"
        "R.3: `bash r.sh 3`\nR.4: on a node with a GPU only: `bash r.sh 4`\n",
        [
            ("R.1", "bash r.sh 1", "bash"),
            ("R.2", "bash r.sh 2", "bash_2"),
            ("R.3", "bash r.sh 3", "bash_3"),
        ],
    ),
    "a quotation": (
        "> Focus: Q-1\n>\n> Do Now:\n> 1. Q.1 - `pytest tests/q.py -q`\n",
        [("Q.1", "python -m pytest tests/q.py -q", "q")],
    ),
    "titles as bullets": (
        "* Focus: [W-1] work\n* Do Now\n  1. W.1 - `bash w.sh 1`\n  2. W.2 - `bash w.sh 2`\n"
        "* If Blocked: docs/fix_plan.md\n",
        [("W.1", "bash w.sh 1", "bash"), ("W.2", "bash w.sh 2", "bash_2")],
    ),
    "notes behind commands, and what they are for": (
        "Mapped tests:\n1. `pytest tests/x.py -q` \u2192 X.2\nDo Now:\n"
        "1. X.1 - tests: python -m x --n 1 (takes 3 minutes)\n2. X.2 - the other\n"
        "3. X.3 - tests: bash x.sh 1 (only on the node)\n",
        [("X.1", "python -m x --n 1", "python"), ("X.2", "python -m pytest tests/x.py -q", "x")],
    ),
    "logs that are told apart by what stands beside the commands": (
        "Artifacts: r/2031-02-03T040506Z/a/{ring_before.log,ring_mask.log}\nDo Now:\n"
        "1. Y.1 - before: `python ring.py --no-mask`\n2. Y.2 - tests: pytest tests/ring_mask.py\n"
        "3. Y.3 - `bash fit.sh 1`, keep the output (fit.log)\n",
        [
            ("Y.1", "python ring.py --no-mask", "ring_before"),
            ("Y.2", "python -m pytest tests/ring_mask.py", "ring_mask"),
            ("Y.3", "bash fit.sh 1", "fit"),
        ],
    ),
    "a test that is to fail today and pass then": (
        "Do Now:\n1. Z.1 - RED: `pytest tests/z.py -q` fails today; keep it as z_red.log\n"
        "2. Z.2 - GREEN: after the mask, `pytest tests/z.py -q` passes.\n",
        [
            ("Z.1", "python -m pytest tests/z.py -q", "z_red"),
            ("Z.2", "python -m pytest tests/z.py -q", "z"),
        ],
    ),
    "bare commands behind the name of a row, under no title": (
        "Focus: NIGHT-1\nIn this order:\n\n1. U.1: doit infer:s1 | tee out/s1.log\n"
        "2. U.2 - pytest tests/n.py -q, and store n_all.log\n"
        "3. 1.1/1.2: `bash n.sh 1`, store it as sh.log\n",
        [
            ("U.1", "doit infer:s1", "s1"),
            ("U.2", "python -m pytest tests/n.py -q", "n_all"),
            ("1.1, 1.2", "bash n.sh 1", "sh"),
        ],
    ),
    "options that say which log it is": (
        "Artifacts: r/2031-02-03T040506Z/a/{map1.log,map2.log}\nDo Now:\n"
        "1. O.1 - `python draw/map.py --which 2`\n2. O.2 - `python draw/map.py --which 1`\n",
        [
            ("O.1", "python draw/map.py --which 2", "map2"),
            ("O.2", "python draw/map.py --which 1", "map1"),
        ],
    ),
    "logs by the words of a class, and as typed": (
        "Mapped tests: pytest tests/p.py -q\nArtifacts: r/2031-02-03T040506Z/a/default.log\n"
        "Do Now:\n1. L.1 - tests: pytest tests/c.py::TestDefault\n"
        "2. L.2 - tests: pytest tests/c.py::TestSwitch\n   - Save to: `switch_all.log`\n"
        "3. L.3 - `uv run pytest tests/p.py -q`\n",
        [
            ("L.1", "python -m pytest tests/c.py::TestDefault", "default"),
            ("L.2", "python -m pytest tests/c.py::TestSwitch", "switch_all"),
            ("L.3", "uv run pytest tests/p.py -q", "p"),
        ],
    ),
    "prompts of other shells": (
        "Do Now:\na) P.1 - one:\n   (venv) me@node07:~/work$ doit infer | tee out/infer.log\n"
        "b) P.2 - two\n```\nPS C:\\work> bash p.sh 2\npytest passed\n```\n",
        [("P.1", "doit infer", "infer"), ("P.2", "bash p.sh 2", "bash")],
    ),
    "selectors by their label": (
        "Mapped tests:\n- Unit: `pytest tests/u.py -q`\n- Smoke: `pytest tests/s.py -q`\n"
        "Do Now:\n1. S.1 - run the smoke test\n2. S.2 - run the unit selector\n",
        [
            ("S.1", "python -m pytest tests/s.py -q", "s"),
            ("S.2", "python -m pytest tests/u.py -q", "u"),
        ],
    ),
    "a sentence after a command that is about something else": (
        "Do Now:\n1. T.1 - run `bash t.sh 1`. Do not touch src/old.\n"
        "2. T.2 - run `bash t.sh 2`. It takes long; never stop it.\n",
        [("T.1", "bash t.sh 1", "bash"), ("T.2", "bash t.sh 2", "bash_2")],
    ),
    "comments that name rows, and what the environment sets": (
        "## Environment\n```sh\nexport N=1\n```\n## What to run\n```bash\n"
        "# P3-T1: tests\npytest tests/p.py -q > p_all.log 2>&1\n# P3-T2: it\nbash p.sh 2\n```\n",
        [("P3-T1", "python -m pytest tests/p.py -q", "p_all"), ("P3-T2", "bash p.sh 2", "bash")],
    ),
    "headings that name rows, and logs below": (
        "# AB-1: next\n### R4.A \u2014 it\nRun:\n\n    pytest tests/r.py -q\n\nKeep as: r_all.log\n"
        "### Do not touch\n    bash r.sh 1\n",
        [("R4.A", "python -m pytest tests/r.py -q", "r_all")],
    ),
    "records, and logs in a section of their own": (
        "ID: I1\nTest: pytest tests/i.py -q\nLog: one.log\n\nID: I2\nTest: bash i.sh 2\n"
        "Dry-run only: `bash wipe.sh --all`\nLogs:\n- I2 -> two.log\n",
        [("I1", "python -m pytest tests/i.py -q", "one"), ("I2", "bash i.sh 2", "two")],
    ),
    "an outline, whose bullets are titles": (
        "# AB-1\n- To prove today\n  - K1: keys\n    - `bash k.sh 1`\n    - goes into k1.log\n"
        "- Not today\n  - K2: `bash k.sh 2`\n",
        [("K1", "bash k.sh 1", "k1")],
    ),
    "underlined titles, and a table without order": (
        "Matrix\n------\n| Log | Row | Run | When |\n|---|---|---|---|\n"
        "| `t.log` | T.1 | `bash t.sh 1 \\| sort` | today |\n"
        "| u.log | T.2 | `bash t.sh 2` | later |\n",
        [("T.1", "bash t.sh 1 | sort", "t")],
    ),
    "what is ticked is done": (
        "Do Now:\n- [x] Y.1 `bash y.sh 1`\n- [ ] Y.2 - `bash y.sh 2`\n[x] Y.3: `bash y.sh 3`\n"
        "[ ] Y.4: `bash y.sh 4`\n",
        [("Y.2", "bash y.sh 2", "bash"), ("Y.4", "bash y.sh 4", "bash_2")],
    ),
    "a collection": (
        "**Mapped tests:**\n1. `pytest --collect-only tests/c.py -q`\n"
        "**Do Now**\n* C1/C2: tests: n/a\n",
        [("", "python -m pytest --collect-only tests/c.py -q", "c")],
    ),
}


@pytest.mark.parametrize(("text", "expected"), HABITS.values(), ids=HABITS)
def test_other_habits_are_understood(tmp_path, text, expected):
    items, evidence, _ = list_items(tmp_path, text)
    assert items == expected
    by_hand = {
        "V.1": ["V.2"],
        "": ["C1", "C2"],
        "S.1": ["S.1", "S.2"],
        "R.1": ["R.4"],
        "X.1": ["X.3"],
        "E.1": ["E.3"] if "Exit" in text else [],
        "G1, G2": ["Z.4"],
        "T.1": ["T.2"] if "Matrix" in text else [],
    }
    assert [*evidence.by_hand] == by_hand.get(items[0][0], [])


def test_a_plan_that_only_prose_names_is_taken_where_no_other_is(tmp_path):
    paths = "- Plan: work/a.md\n- Reports: work/r/2031-02-03T040506Z/x/\n"
    memo = read_memo(f"Do Now:\n1. A.1 - look\n## Paths\n{paths}")
    assert (memo.plan, memo.reports, memo.phase) == ("work/a.md", "work/r", "x")
    text = "Summary: it\nDo Now:\n1. A.1 @ work/SEAM-6/plan.md - look\n"
    assert read_memo(text).initiative == "SEAM-6"
    text = "Focus: S-6\nThe plan is work/plan.md, as always.\nDo Now:\n1. A.1 - look\n"
    _, evidence, told = list_items(tmp_path, text)
    assert evidence.plan == "work/plan.md"
    assert "plan work/plan.md, as the memo names no other" in told


def test_phase_status_and_folders_are_as_the_memo_says(tmp_path):
    text = (
        "Phase: fast_ci\nDo Now:\n"
        "1. V.1 - refuse; tests: `python -m xfer --to runs/new missing.h5` (expected exit 3)\n"
        "Pointers:\n- plan: work/live.md\n- ledger: docs/all.md\n"
    )
    _, evidence, _ = list_items(tmp_path, text)
    item = evidence.items[0]
    assert (evidence.phase, item.expect, item.depends) == ("fast_ci", "exit 3", ())
    assert (evidence.plan, evidence.ledger) == ("work/live.md", "docs/all.md")


@pytest.mark.parametrize(
    "line",
    [
        "run `python a.py 1` never",
        "`python a.py 1` must not run on the node",
        "`python a.py 1` (obsolete)",
        "`python a.py 1`, avoid on a laptop",
        "tests: python a.py 1 never",
    ],
)
def test_what_a_memo_forbids_is_left(tmp_path, line):
    items, _, findings = list_items(tmp_path, f"Do Now:\n1. Z.4 - {line}\n")
    assert items == []
    assert "nothing runs it" in findings


@pytest.mark.parametrize(
    ("pitfalls", "is_left"),
    [
        ("Pitfalls:\n- Do not run `bash a.sh 1` on this machine.\n", True),
        ("Pitfalls to avoid:\n- Never run bash a.sh 1 here\n", True),
        ("Pitfalls:\n- **Don't** use `bash b.sh 1` or `bash a.sh 1`; both are slow.\n", True),
        ("Pitfalls:\n- `bash a.sh 1` must not be run today.\n", True),
        ("Do not:\n- run `bash a.sh 1`\n", True),
        ("Pitfalls:\n- Do not run `bash a.sh 1` without a GPU.\n", False),
        ("Pitfalls:\n- Do not run `bash a.sh 1 --all` here.\n- Never skip `bash a.sh 1`.\n", False),
        ("Pitfalls:\n- Do not edit a.sh; run `bash a.sh 1` as it is.\n", False),
    ],
)
def test_what_the_pitfalls_forbid_word_for_word_is_left(tmp_path, pitfalls, is_left):
    memo = f"Do Now:\n- A1: tests: `bash a.sh 1`\nHow-To Map:\n- `bash a.sh 1`\n{pitfalls}"
    items, evidence, told = list_items(tmp_path, memo)
    assert (not items, [*evidence.by_hand] == ["A1"]) == (is_left, is_left)
    assert ("line 2    left  `bash a.sh 1`: line 6 (" in told) is is_left
    assert ("forbids `bash a.sh 1` of line 2; nothing runs it" in told) is is_left
    is_told = "says when not to run `bash a.sh 1` of line 2, which is run all" in told
    assert is_told is ("without" in pitfalls)


@pytest.mark.parametrize(
    "supplied",
    [{"plan": name} for name in ("plans", "plans/none.md", "../x.md", "/etc/passwd", "memo.txt")]
    + [{"ledger": "no.md"}, {"ledger": "plan.md"}],
    ids=str,
)
def test_options_that_no_run_could_use_are_refused(tmp_path, supplied):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plan.md").write_text("")
    memo = tmp_path / "memo.txt"
    memo.write_text("Do Now:\n1. A.1 @ plan.md - a; tests: pytest tests/a.py -q\n")
    with pytest.raises(ConfigError, match="nothing was written"):
        import_memo(memo, tmp_path, Supplied(**supplied))
    assert not (tmp_path / "evidence.yaml").exists()


def test_a_second_memo_without_a_summary_is_refused(tmp_path):
    one = "Focus: ONE-1\nDo Now:\n1. A.1 - a; tests: pytest tests/a.py -q\n"
    with pytest.raises(ConfigError, match="begins a second memo"):
        list_items(tmp_path, one + one)


BY_PEOPLE = """\
timeout -s KILL 5 rm -rf runs
bash -lc "cd x; rm -rf runs"
python make.py | xargs -n 1 rm
python make.py "$(rm -rf runs)"
pytest tests/a.py || git checkout .
python -c "import shutil; shutil.rmtree('tests')"
python -m pip install it
sh -c 'echo "$(rm -rf runs)"'
python -m ptycho_tasks prune --yes
python -m http.server
make clean
doit forget
doit evidence:A.1
ptycho-tasks evidence prune --keep 0 --yes
ptycho-tasks plan check --reopen
pytest tests/a.py > plans/plan.md
pytest tests/a.py 2>&1 >> docs/fix_plan.md
python a.py | tee plan.md | grep x
python a.py > dodo.py
python a.py > here.csv"""


def test_what_cannot_be_taken_back_is_left_whatever_it_stands_in(tmp_path):
    lines = [f"{n}. A.{n} - run `{text}`" for n, text in enumerate(BY_PEOPLE.splitlines(), 1)]
    items, _, told = list_items(
        tmp_path, "\n".join(["Do Now:", *lines, ""]), [("here.csv", "a result")]
    )
    assert items == []
    left = [line for line in told.splitlines() if "is left to people" in line]
    assert len(left) == 15
    spoilt = [line for line in told.splitlines() if "which is no log; nothing runs it" in line]
    assert len(spoilt) == 5


@pytest.mark.parametrize(
    "command",
    [
        "pytest tests/a.py | grep passed",
        'python -c "import numpy; assert numpy.nan; print(1)"',
        "pytest tests/a.py -n $(nproc)",
        "timeout -k 5 60 python a.py --mode clean",
        "python a.py > new.csv",
    ],
)
def test_what_does_no_harm_is_run(tmp_path, command):
    items, _, _ = list_items(tmp_path, f"Do Now:\n- A.1 - run:\n```bash\n{command}\n```\n")
    assert [text.replace("python -m pytest", "pytest") for _, text, _ in items] == [command]


def test_what_a_proof_rests_on_besides_its_tests_is_told(tmp_path):
    (tmp_path / "ptycho.yaml").write_text("source: {simulate: {}}\n")
    memo = (
        "Do Now:\n1. A.1 @ plan.md - run `doit infer`\n2. A.2 - run `doit train:other`\n"
        "3. A.3 - x; tests: pytest tests/a.py -q\n4. A.4 - y; tests: pytest tests/b.py -q\n"
    )
    _, evidence, told = list_items(tmp_path, memo)
    assert [item.stages for item in evidence.items] == [("infer",), (), (), ()]
    assert told.count("no code in `depends`") == 1
    assert "a, b: no code in `depends`: a change of what is tested is not seen" in told
    (tmp_path / "code.py").write_text("")
    _, evidence, told = list_items(tmp_path, f"{memo}Pointers:\n- code.py:1 - what is tested\n")
    assert evidence.items[-1].depends == ("code.py",)
    assert "no code in" not in told
