"""Completion: through click's own protocol, and in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

WATCHED = """
import sys
from ptycho_tasks.commands.cli import main
try:
    main()
finally:
    print(*sorted({"numpy", "torch", "h5py"} & set(sys.modules)), file=sys.stderr)
"""
COMMAND_LINES = {
    "command": ("tr", {"train"}),
    "command of a group": ("bundle ", {"show", "verify"}),
    "flag": ("train --max", {"--max-epochs"}),
    "flag with _": ("train --max_", {"--max_epochs"}),
    "flag that was given": ("train --max-epochs 3 --max", set()),
    "old name": ("train --disable-m", set()),
    "word": ("train --torch-loss-mode ", {"poisson", "mae"}),
    "word after _": ("train --torch_loss_mode p", {"poisson"}),
    "word of a core option": ("fixture --strategy s", {"stratified"}),
    "accelerator": ("infer --accelerator c", {"cpu", "cuda"}),
    "backend": ("train --backend ep", {"epie"}),
    "backend to init": ("init --backend ep", {"epie"}),
    "backend to show": ("backends f", {"further"}),
    "task": ("why ", {"source", "fixture", "train", "infer"}),
    "second task": ("dry-run train i", {"infer"}),
    "shell": ("completion ", {"bash", "zsh", "fish"}),
}


def run(shell, words, cwd):
    """What the shell's script would ask and get."""
    line = f"ptycho-tasks {words}"
    at, last = len(line.split(" ")) - 1, line.split(" ")[-1]
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(at)}
    if shell == "fish":
        asked["COMP_CWORD"] = last
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        env=os.environ | asked | {"_PTYCHO_TASKS_COMPLETE": f"{shell}_complete"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == ""  # nothing said, nothing heavy imported
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


EVIDENCE = """\
initiative: i
phase: p
plan: plan.md
ledger: ledger.md
items: [{ids: [C4.D1, C4.D2], command: make, log: a.log}]
"""


def test_rows_that_have_evidence_are_offered(tmp_path):
    (tmp_path / "evidence.yaml").write_text(EVIDENCE)
    assert run("bash", "why ", tmp_path) == [
        f"plain,{name}" for name in ("evidence", "evidence:C4.D1", "evidence:C4.D2")
    ]


@pytest.mark.parametrize(("words", "expected"), COMMAND_LINES.values(), ids=COMMAND_LINES)
def test_bash_offers(project, words, expected):
    assert set(run("bash", words, project)) == {f"plain,{word}" for word in expected}


@pytest.mark.parametrize("flag", ["train --train-data-file", "train --config", "bundle show"])
def test_files_are_left_to_the_shell(project, flag):
    assert run("bash", f"{flag} x", project) == ["file,x"]
    assert run("bash", "train --output_dir o", project) == ["dir,o"]


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("zsh", ["plain", "infer", "Reconstruct a scan with a trained bundle.", "plain", "init"]),
        ("fish", ["plain,infer\tReconstruct a scan with a trained bundle."]),
    ],
)
def test_other_shells_show_what_a_command_does(project, shell, expected):
    assert run(shell, "in", project)[: len(expected)] == expected


def test_a_wrong_configuration_offers_nothing(project):
    (project / "ptycho.yaml").write_text("nonsense: 1\n")
    assert run("bash", "why ", project) == []


@pytest.fixture
def command(tmp_path):
    """A folder with the command, to search before all others."""
    path = tmp_path / "bin" / "ptycho-tasks"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ptycho_tasks.commands.cli "$@"\n')
    path.chmod(0o755)
    return os.environ | {"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("shell", "start"),
    [
        ("bash", "_ptycho_tasks_completion() {"),
        ("zsh", "#compdef ptycho-tasks"),
        ("fish", "function _ptycho_tasks_completion"),
    ],
)
def test_each_shell_gets_its_script(command, shell, start):
    done = subprocess.run(
        ["ptycho-tasks", "completion", shell], env=command, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(start)
    assert "_PTYCHO_TASKS_COMPLETE" in done.stdout


IN_BASH = """
source <(ptycho-tasks completion bash)
[[ $(complete -p ptycho-tasks) == *"-F _ptycho_tasks_completion ptycho-tasks" ]] || exit 1
COMP_WORDS=(ptycho-tasks train --scheduler c) COMP_CWORD=3
_ptycho_tasks_completion ptycho-tasks
echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes(project, command):
    done = subprocess.run(
        ["bash", "--norc", "-c", IN_BASH], env=command, cwd=project, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "cosine constant\n")
