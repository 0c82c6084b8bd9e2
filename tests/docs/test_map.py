"""What the documentation points to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/*/README.md")])
MAP = ROOT / "docs" / "architecture.md"
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:ptycho_tasks|backends|readers|tests)/[\w./-]*)`")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_to_files(page: Path) -> None:
    dead = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not dead


def test_every_path_of_the_map_exists() -> None:
    paths = PATH.findall(MAP.read_text())
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("question", "path", "word"),
    [
        ("where the mask of a scan is read: NPZ", "ptycho_tasks/scans/npz_scan.py", "bad_pixels"),
        ("where staleness is decided", "ptycho_tasks/builds/staleness.py", "class UpToDate"),
        ("where a JAX backend would go", "backends/", ""),
    ],
)
def test_a_newcomer_finds_the_room(question: str, path: str, word: str) -> None:
    (row,) = [line for line in MAP.read_text().splitlines() if line.startswith(f"| {question}")]
    assert f"`{path}`" in row
    assert not word or word in (ROOT / path).read_text()


def test_every_row_names_its_tests() -> None:
    rows = MAP.read_text().partition("## You want to change something")[2].splitlines()
    cells = [line.strip("|").split("|") for line in rows if line.startswith("| ")]
    cells = [row for row in cells if row[0].strip() != "you want to change"]
    assert len(cells) > 40
    for row in cells:
        assert len(row) == 3, row
        assert any("tests/" in path for path in PATH.findall(row[2])), row


def test_every_wing_is_on_the_map() -> None:
    wings = [path.parent.name for path in (ROOT / "ptycho_tasks").glob("*/__init__.py")]
    assert [name for name in wings if f"`ptycho_tasks/{name}/`" not in MAP.read_text()] == []


def test_ci_runs_the_command_of_the_readme() -> None:
    """Both take the one line that installs everything and runs all checks from README.md."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if "pytest -n" in line]
    assert len(lines) == 1
    for part in ("pip install", "pytest -n auto", "ruff check", "ruff format --check", "mypy"):
        assert f" {part}" in lines[0]
    script = (ROOT / ".ci" / "run").read_text()
    assert "command=$(grep -m1 'pytest -n auto && ruff' README.md)" in script
    assert 'eval "$command"' in script


def test_the_evidence_names_tests_that_are_there() -> None:
    items = yaml.safe_load((ROOT / "evidence.yaml").read_text())["items"]
    named = [word for item in items for word in item.get("pytest", []) if ".py" in word]
    assert named
    for word in named:
        file, _, test = word.partition("::")
        assert (ROOT / file).is_file(), word
        assert test in (ROOT / file).read_text(), word
