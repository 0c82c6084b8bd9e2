"""Completion: through click's own protocol, and in a real bash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

WATCHED = """
import contextlib, io, json, os, sys
from ptycho_tasks.commands.cli import main
answers = []
for asked in json.loads(sys.argv.pop()):
    os.environ.update(asked)
    said = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main()
    said.flush()
    answers.append(said.buffer.getvalue().decode())
print(json.dumps(answers))
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


def run(shell, cwd, *lines):
    """What the shell's script would ask for each line, one after the other, and get."""
    asked = []
    for words in lines:
        line = f"ptycho-tasks {words}"
        at, last = len(line.split(" ")) - 1, line.split(" ")[-1]
        asked.append({"COMP_WORDS": line, "COMP_CWORD": last if shell == "fish" else str(at)})
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(asked)],
        env=os.environ | {"_PTYCHO_TASKS_COMPLETE": f"{shell}_complete"},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == ""  # nothing said, nothing heavy imported
    return [said.split("\n")[:-1] if said.strip() else [] for said in json.loads(done.stdout)]


EVIDENCE = """\
initiative: i
phase: p
plan: plan.md
ledger: ledger.md
items: [{ids: [C4.D1, C4.D2], command: make, log: a.log}]
"""


def test_rows_that_have_evidence_are_offered(tmp_path):
    (tmp_path / "evidence.yaml").write_text(EVIDENCE)
    assert run("bash", tmp_path, "why ") == [
        [f"plain,{name}" for name in ("evidence", "evidence:C4.D1", "evidence:C4.D2")]
    ]


def test_bash_offers(project):
    answers = run("bash", project, *(words for words, _ in COMMAND_LINES.values()))
    found = {name: {*answer} for name, answer in zip(COMMAND_LINES, answers, strict=True)}
    assert found == {
        name: {f"plain,{word}" for word in expected}
        for name, (_, expected) in COMMAND_LINES.items()
    }


def test_files_are_left_to_the_shell(project):
    flags = ("train --train-data-file", "train --config", "bundle show")
    *files, folder = run("bash", project, *(f"{flag} x" for flag in flags), "train --output_dir o")
    assert files == [["file,x"]] * len(flags)
    assert folder == ["dir,o"]


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("zsh", ["plain", "infer", "Reconstruct a scan with a trained bundle.", "plain", "init"]),
        ("fish", ["plain,infer\tReconstruct a scan with a trained bundle."]),
    ],
)
def test_other_shells_show_what_a_command_does(project, shell, expected):
    (found,) = run(shell, project, "in")
    assert found[: len(expected)] == expected


def test_a_wrong_configuration_offers_nothing(project):
    (project / "ptycho.yaml").write_text("nonsense: 1\n")
    assert run("bash", project, "why ") == [[]]


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
