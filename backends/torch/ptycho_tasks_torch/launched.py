"""Run a command whose training or inference is spread over processes that torchrun or Slurm start.

    torchrun --nproc-per-node 2 -m ptycho_tasks_torch.launched doit train
    srun --ntasks 2 --kill-on-bad-exit=1 python -m ptycho_tasks_torch.launched doit train

The first process runs the command. The others wait: a stage that is to run on several devices calls
them, and each starts a helper for it. Who calls and who answers know a secret, which lies in the
project's folder, and which only its owner may read. Torch is not imported here.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import NamedTuple

import msgspec

from ptycho_tasks.errors import ConfigError, PtychoTasksError

LOCALHOST = "127.0.0.1"
PROGRAM = "from ptycho_tasks_torch.helpers import main; main()"
"""Of a helper."""
TEAM = "PTYCHO_TASKS_TEAM"
"""Environment variable of the command: the file of its team."""
MEET_S = 60.0
"""How long processes of a launch wait for each other."""
_TRIES_S = 0.2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Seat(NamedTuple):
    """The place of a process among those that work together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number among those of its machine."""
    local_count: int = 1
    host: str = LOCALHOST
    """Where the first of them is reached."""

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all of them are on the same machine."""
        return self.local_count == self.size


ALONE = Seat()


class _Team(msgspec.Struct, frozen=True):
    """What is in the file of a team."""

    host: str
    port: int
    secret: bytes
    seat: Seat
    """Of the first process."""


def read_seat(environment: Mapping[str, str]) -> Seat:
    """The place of this process, as torchrun or Slurm say it.

    Raises:
        ConfigError: neither started it.
    """
    names = {
        "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES"),
    }
    for launcher, keys in names.items():
        if keys[0] in environment:
            given = (environment.get(*pair) for pair in zip(keys, "0101", strict=True))
            rank, size, local_rank, last = map(int, given)
            return Seat(rank, size, local_rank, last if launcher == "torchrun" else size // last)
    raise ConfigError(
        "ptycho_tasks_torch.launched: neither torchrun nor srun started this process; run "
        "`torchrun --nproc-per-node 2 -m ptycho_tasks_torch.launched COMMAND`"
    )


def main() -> None:
    """Run the command in the first process; in the others, start helpers for it."""
    try:
        seat = read_seat(os.environ)
        path = _find_file(os.environ)
        sys.exit(_lead(seat, path, sys.argv[1:]) if seat.rank == 0 else _follow(seat, path))
    except PtychoTasksError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _find_file(environment: Mapping[str, str]) -> Path:
    keys = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    name = "-".join(environment[key] for key in keys if key in environment)
    return Path(".ptycho", "teams", f"{name}.json").absolute()


def _lead(seat: Seat, path: Path, command: list[str]) -> int:
    host = LOCALHOST if seat.is_on_one_machine else socket.gethostname()
    secret = secrets.token_bytes(32)
    with socket.create_server(("" if host != LOCALHOST else host, 0)) as server:
        port = server.getsockname()[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(msgspec.json.encode(_Team(host, port, secret, seat._replace(host=host))))
        try:
            members = [_accept(server, secret) for _ in range(1, seat.size)]
            threading.Thread(
                target=_pass_calls_on, args=(server, secret, members), daemon=True
            ).start()
            environment = {**os.environ, TEAM: str(path)}
            return subprocess.run(
                command, env=environment, preexec_fn=_stop_with(ctypes.CDLL(None))
            ).returncode
        finally:
            path.unlink(missing_ok=True)


def _stop_with(libc: ctypes.CDLL) -> Callable[[], None]:
    """What a child does first: it will be stopped in good order when its parent is gone, however
    that died. A training would go on beside the next."""

    def ask_kernel() -> None:
        if hasattr(libc, "prctl"):  # Linux
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask_kernel


def _pass_calls_on(server: socket.socket, secret: bytes, members: list[Connection]) -> None:
    """Tell the members where the stages of the command want them."""
    server.settimeout(None)
    while True:
        with suppress(OSError, EOFError, PtychoTasksError), _accept(server, secret, None) as caller:
            port = caller.recv_bytes()
            for member in members:
                with suppress(OSError):
                    member.send_bytes(port)


def _follow(seat: Seat, path: Path) -> int:
    """Start a helper at each call, until the first process is gone."""
    until = time.monotonic() + MEET_S
    while True:
        try:
            team = _read_team(path)
            leader = _connect(team, team.port)
            break
        except (OSError, EOFError, msgspec.DecodeError, AuthenticationError):
            if time.monotonic() > until:
                raise ConfigError(
                    f"{path}: the first process did not write it within {MEET_S:.0f} s: all have "
                    "to see the project's folder, and start in it"
                ) from None
            time.sleep(_TRIES_S)
    helpers: list[subprocess.Popen[bytes]] = []
    with suppress(OSError, EOFError):
        while True:
            port = int(leader.recv_bytes())
            with suppress(OSError, EOFError, AuthenticationError), _connect(team, port) as link:
                link.send_bytes(msgspec.json.encode(seat._replace(host=team.host)))
                helpers.append(_start_helper(link))
    for helper in helpers:
        helper.wait()
    return 0


def _start_helper(link: Connection) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=link.fileno(), stdout=link.fileno()
    )


def call_members(count: int) -> list[tuple[Seat, socket.socket]] | None:
    """Call the processes that were launched with this one, which is the first: their places, and
    sockets to a helper of each; None where none were.

    Raises:
        ConfigError: these are not `count`.
    """
    path = os.environ.get(TEAM)
    if path is None:
        return None
    try:
        team = _read_team(Path(path))
    except (OSError, msgspec.DecodeError) as error:
        raise PtychoTasksError(f"{path}: the processes of this launch are gone: {error}") from error
    if count != team.seat.size - 1:
        raise ConfigError(
            f"execution.devices: {count + 1}, but {team.seat.size} processes were launched; set "
            f"execution.devices: {team.seat.size}, or 1"
        )
    host = LOCALHOST if team.host == LOCALHOST else ""
    with socket.create_server((host, 0), backlog=count) as server:
        with _connect(team, team.port) as leader:
            leader.send_bytes(str(server.getsockname()[1]).encode())
        found = [_meet(server, team.secret) for _ in range(count)]
    return sorted(found, key=lambda one: one[0].rank)


def read_own_seat(count: int) -> Seat:
    """The place of this process, the first of so many that work together."""
    path = os.environ.get(TEAM)
    return Seat(0, count, 0, count) if path is None else _read_team(Path(path)).seat


def _meet(server: socket.socket, secret: bytes) -> tuple[Seat, socket.socket]:
    with _accept(server, secret) as link:
        seat = msgspec.json.decode(link.recv_bytes(), type=Seat)
        return seat, socket.socket(fileno=os.dup(link.fileno()))


def _read_team(path: Path) -> _Team:
    return msgspec.json.decode(path.read_bytes(), type=_Team)


def _accept(server: socket.socket, secret: bytes, within_s: float | None = MEET_S) -> Connection:
    """The next process that knows the secret."""
    server.settimeout(within_s)
    while True:
        try:
            link, _ = server.accept()
        except TimeoutError:
            raise PtychoTasksError(
                f"a process of this launch did not come within {MEET_S:.0f} s; see its own output"
            ) from None
        connection = _settle(link)
        try:
            deliver_challenge(connection, secret)
            answer_challenge(connection, secret)
        except (OSError, EOFError, AuthenticationError):
            connection.close()
        else:
            return _trust(connection)


def _settle(link: socket.socket) -> Connection:
    """A connection that breaks when the other machine is gone without a word, and until `_trust` if
    the other process says nothing."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(MEET_S / 6), 0))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return Connection(link.detach())


def _trust(connection: Connection) -> Connection:
    """Wait for its messages as long as it takes."""
    with socket.socket(fileno=os.dup(connection.fileno())) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    return connection


def _connect(team: _Team, port: int) -> Connection:
    link = socket.create_connection((team.host, port), timeout=MEET_S)
    connection = _settle(link)
    answer_challenge(connection, team.secret)
    deliver_challenge(connection, team.secret)
    return _trust(connection)


if __name__ == "__main__":
    main()
