"""Processes that torchrun or Slurm starts find each other, work for stages, and end together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from ptycho_tasks.errors import ConfigError
from ptycho_tasks_torch import launched
from ptycho_tasks_torch.launched import ALONE, LOCALHOST, Seat, call_members, read_seat

TASK = """
class Doubling:
    def run(self, channel):
        while True:
            channel.send(2 * channel.receive())
"""
COMMAND = """
from tasks_of_test import Doubling
from ptycho_tasks_torch.helpers import start_helpers
for _ in range(2):  # stages of one run
    with start_helpers(1) as helpers:
        helpers[0].send(Doubling())
        helpers[0].send(21)
        print(helpers[0].receive(), helpers[0].seat.rank, flush=True)
raise SystemExit(7)
"""


def launch(folder, rank: int, *command: str) -> subprocess.Popen[str]:
    places = {"RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": f"{rank}"}
    run = {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", "ptycho_tasks_torch.launched", *command],
        cwd=folder,
        env={**os.environ, **places, **run},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_first_runs_the_command_and_the_others_help_its_stages(tmp_path):
    """Its exit code is that of the command, and nothing is left."""
    (tmp_path / "tasks_of_test.py").write_text(TASK)
    command = (sys.executable, "-c", COMMAND)
    with launch(tmp_path, 1, *command) as other, launch(tmp_path, 0, *command) as first:
        assert first.communicate() == ("42 1\n42 1\n", None)
        assert (first.wait(), other.wait()) == (7, 0)
    assert list((tmp_path / ".ptycho" / "teams").iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "seat"),
    [
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
            Seat(3, 4, 1, 2),
        ),
        (
            {
                "SLURM_PROCID": "2",
                "SLURM_NTASKS": "4",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NUM_NODES": "2",
            },
            Seat(2, 4, 0, 2),
        ),
        ({"SLURM_PROCID": "0"}, ALONE),
    ],
)
def test_the_launcher_says_who_is_who(environment, seat):
    assert read_seat(environment) == seat


def test_without_a_launcher_it_says_what_to_run():
    with pytest.raises(ConfigError, match="neither torchrun nor srun"):
        read_seat({})


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell a child")
def test_a_command_is_stopped_when_its_launch_is_killed(tmp_path):
    code = "import os, time; print(os.getppid(), flush=True); time.sleep(600)"
    command = [sys.executable, "-m", "ptycho_tasks_torch.launched", sys.executable, "-c", code]
    seat = {"RANK": "0", "WORLD_SIZE": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **seat}, stdout=subprocess.PIPE
    ) as launch:
        assert int(launch.stdout.readline()) == launch.pid
        launch.kill()
        assert launch.stdout.read() == b""  # ends when no process has it open any more


@pytest.fixture
def team(tmp_path, monkeypatch):
    """The file of a team of two, and the socket of its first process."""
    with socket.create_server((LOCALHOST, 0)) as server:
        port = server.getsockname()[1]
        path = tmp_path / "team.json"
        two = launched._Team(LOCALHOST, port, b"secret", Seat(0, 2, 0, 2))
        path.write_bytes(launched.msgspec.json.encode(two))
        monkeypatch.setenv(launched.TEAM, str(path))
        yield two, server


def test_as_many_devices_as_processes(team):
    with pytest.raises(ConfigError, match=r"^execution.devices: 3, but 2 processes were launched"):
        call_members(2)


def test_who_does_not_know_the_secret_is_not_heard(team, monkeypatch):
    two, server = team
    monkeypatch.setattr(launched, "MEET_S", 0.2)
    with socket.create_connection((LOCALHOST, two.port)) as stranger:
        stranger.sendall(b"let me in")
        stranger.shutdown(socket.SHUT_WR)
        with pytest.raises(launched.PtychoTasksError, match="did not come within"):
            launched._accept(server, two.secret, 0.2)
