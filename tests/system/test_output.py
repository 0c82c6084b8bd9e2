import os
import subprocess
import sys

import pytest

from ptycho_tasks.builds.kept_output import keep_output
from ptycho_tasks.errors import ScanError
from ptycho_tasks.system.terminal import echo

OURS = [sys.executable, "-m", "ptycho_tasks.commands.cli"]


def test_what_would_steer_a_terminal_is_escaped(capsys):
    echo("a\x1b[31m\u202e\udc80\nb")
    assert capsys.readouterr().out == "a\\x1b[31m\\u202e\\udc80\\nb\n"
    assert str(ScanError("scan\n\x07.npz: is none")) == "scan\\n\\x07.npz: is none"


@pytest.mark.parametrize("command", ["doit list", "doit why", "doit infer", "ptycho-tasks config"])
@pytest.mark.parametrize("place", ["full", "closed", "left"])
def test_output_that_goes_nowhere_is_no_traceback(built_project, command, place):
    redirected = {"full": ">/dev/full", "closed": ">&-", "left": "| true"}[place]
    script = f"set -o pipefail; sleep 0; {command} {redirected}"
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}  # noqa: PTH120
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=built_project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if place == "full":
        assert done.returncode == 1
        assert done.stderr == "error: the output cannot be written: No space left on device\n"
    else:
        assert done.returncode in (0, 1, 141)


def test_a_full_disk_costs_the_copy_of_what_is_printed_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with keep_output("train"):
        pass
    (kept,) = (tmp_path / ".ptycho/output").iterdir()
    kept.with_name("train.running.log").symlink_to("/dev/full")
    with keep_output("train"):
        print("said")
    assert capsys.readouterr().out == "said\n"


def test_a_file_that_is_opened_takes_no_closed_stream_s_place(tmp_path):
    code = (
        "import os; from ptycho_tasks.system.terminal import flush_at_exit; flush_at_exit();"
        "print(os.open('file', os.O_CREAT | os.O_RDWR), file=open('number', 'w'))"
    )
    script = f'"{sys.executable}" -c "{code}" >&- 2>&-'
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    assert int((tmp_path / "number").read_text()) > 2
