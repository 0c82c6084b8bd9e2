"""Every block of code in the documentation runs, page by page, as a reader would run it; but that
Python, `doit` and `ptycho-tasks` are forks of a process that has imported the libraries before.

What a block is stands behind its fence:

    yaml ptycho.yaml   any language and a path: this file, in a scratch folder of the page
    sh                 run with bash in that folder; exit status 0
    sh fails           the same; exit status not 0, and no traceback
    sh install         needs the network or changes more than a folder: not run here
    sh long            takes minutes: every `doit` in it is a `doit dry-run` here
    python             run
    yaml               a part of ptycho.yaml whose keys and values must be right
    text               what the block of `sh` before shows; `...` stands for lines left out
    toml               an excerpt; it must be TOML
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest

from forked_programs import forked_programs
from ptycho_tasks.testing.forks import preloading

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One fenced block of a page."""

    line: int
    label: str
    code: str


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that are no directive of the site."""
    text = page.read_text()
    return [
        Block(text.count("\n", 0, match.start()) + 1, match[3].strip(), dedent(match[4]))
        for match in FENCE.finditer(text)
        if not match[3].startswith("{")
    ]


TRAINING = ("torch", "lightning.fabric", "ptycho_tasks_torch.training.trainer")
"""What a training of networks imports."""
PAGES_WITH_CODE = [page for page in PAGES if read_blocks(page)]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=[page.stem for page in PAGES_WITH_CODE])
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    blocks = read_blocks(page)
    prepare(tmp_path, page, blocks)
    shown = ""
    with preloading(*TRAINING if page.stem == "tutorial" else ()):
        for block in blocks:
            shown = run_block(block, tmp_path, f"{page.name}:{block.line}", shown)


def prepare(folder: Path, page: Path, blocks: list[Block]) -> None:
    """Put what a page takes for granted into its scratch folder, or skip the page."""
    text = "".join(block.code for block in blocks)
    if "unrolled" in text and importlib.util.find_spec("ptycho_tasks_torch") is None:
        pytest.skip("needs the distribution ptycho-tasks-torch")
    if "--source fixtures/" in text:
        shutil.copytree(ROOT / "fixtures", folder / "fixtures")
    if "](backends.md" not in page.read_text():
        return  # the reader would not know of it
    (folder / "backends").mkdir()
    epie = next(b for b in read_blocks(ROOT / "docs/backends.md") if b.label.endswith("/epie.py"))
    (folder / "backends" / "epie.py").write_text(epie.code)


def run_block(block: Block, folder: Path, where: str, shown: str) -> str:
    """Run one block; gives what it shows."""
    language, _, rest = block.label.partition(" ")
    assert language, f"{where}: a fence without a label; see {Path(__file__).name}"
    if language == "sh":
        return run_shell(block, folder, where)
    if language == "python" and not rest:
        return run(["python", "-c", block.code], folder, where)
    if language == "text":
        assert_shown(block.code, shown, where)
    elif language == "yaml" and not rest:
        check_settings(block.code, folder, where)
    elif rest:
        path = folder / rest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code)
    else:
        assert language == "toml", f"{where}: a fence with an unknown label; see the module's text"
    return ""


def run_shell(block: Block, folder: Path, where: str) -> str:
    """Run a block of commands."""
    how = block.label.partition(" ")[2]
    assert how in ("", "fails", "long", "install"), f"{where}: unknown label"
    if how == "install":
        return ""
    dry = re.sub(r"^doit ", "doit dry-run ", block.code, flags=re.MULTILINE)
    code = dry if how == "long" else block.code
    return run(["bash", "-euo", "pipefail", "-c", code], folder, where, fails=how == "fails")


def run(command: list[str], folder: Path, where: str, *, fails: bool = False) -> str:
    """Run a command with this environment's programs first; gives all that it prints."""
    with forked_programs() as programs:
        path = (*programs.folders, Path(sys.executable).parent, os.environ.get("PATH", ""))
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"PATH": os.pathsep.join(map(str, path)), "COLUMNS": "100"},
            pass_fds=programs.descriptors,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=300,
            check=False,
        )
    assert (done.returncode != 0) == fails, f"{where}: exit {done.returncode}\n{done.stdout}"
    assert "Traceback" not in done.stdout, f"{where}:\n{done.stdout}"
    return done.stdout


def check_settings(code: str, folder: Path, where: str) -> None:
    """Check a part of ptycho.yaml as the program would."""
    if "ptychi" in code and importlib.util.find_spec("ptycho_tasks_ptychi") is None:
        return
    part = folder / "part"
    (part / "scans").mkdir(parents=True, exist_ok=True)
    (part / "scans/scan0012.cxi").touch()  # for globs
    source = "" if "source:" in code else "source: {simulate: {}}\n"
    (part / "ptycho.yaml").write_text(f"name: part\n{source}{code}")
    run(["ptycho-tasks", "config"], part, where)


def assert_shown(expected: str, shown: str, where: str) -> None:
    """Assert that lines were shown, in this order."""
    lines = iter([" ".join(line.split()) for line in shown.splitlines()])
    for line in expected.splitlines():
        wanted = " ".join(line.split())
        if wanted not in ("", "..."):
            assert wanted in lines, f"{where}: `{wanted}` is not shown in:\n{shown}"
