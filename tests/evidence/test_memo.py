"""A memo as people write it: what is found in it, and what is said of each line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.importing import import_memo
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
    assert all(len(str(finding).split("  ", 2)[2]) > 3 for finding in findings)


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
        ("@ plans", "in plans", "names no plan"),
        ("Artifacts:", "Things:", "names no artefact folder"),
        ("docs/fix_plan.md before", "the ledger before", "names no ledger"),
        ("[ADR-003-BACKEND-API] Stand", "Stand", "names no initiative"),
    ],
)
def test_a_memo_that_lacks_something_says_what(tmp_path, old, new, expected):
    memo = tmp_path / "memo.txt"
    memo.write_text(MEMO.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=expected) as caught:
        import_memo(memo, tmp_path)
    assert "\n" not in str(caught.value)
    assert [*tmp_path.iterdir()] == [memo]


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
    ("word", "ids"),
    [
        ("E2.C1+C2+C3", ["E2.C1", "E2.C2", "E2.C3"]),
        ("B2.1-B2.3", ["B2.1", "B2.2", "B2.3"]),
        ("C4.D1,C4.D2", ["C4.D1", "C4.D2"]),
    ],
)
def test_shortened_ids_and_ranges_are_spread(word, ids):
    assert read_memo(ENTRY % (word, "run it")).entries[0].ids == ids
