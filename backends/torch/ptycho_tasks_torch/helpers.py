"""Processes that work along with this one: its children, or what torchrun or Slurm started.

A helper gets one task. Task and answers are pickled, and go through pipes, or a socket whose other
end knows a secret; see `launched`. A child is started as a new program, because a fork of a process
with threads or a GPU is unsafe, and the start methods of multiprocessing run the user's script
again.
"""

from __future__ import annotations

import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.scan import ScanData
from ptycho_tasks_torch.launched import LOCALHOST, PROGRAM, Seat, call_members


class Channel(NamedTuple):
    """Two streams, to another process and from it."""

    incoming: BinaryIO
    outgoing: BinaryIO

    def send(self, value: object) -> None:
        """Send a value; raises OSError where the other process is gone."""
        pickle.dump(value, self.outgoing, protocol=pickle.HIGHEST_PROTOCOL)
        self.outgoing.flush()

    def receive(self) -> Any:
        """The next value; raises EOFError where the other process is gone."""
        try:
            return pickle.load(self.incoming)
        except (OSError, pickle.UnpicklingError) as error:  # cut off in the middle of a value
            raise EOFError from error

    def exit_when_closed(self) -> None:
        """End this process when the other one is gone, however it ended."""

        def wait() -> None:
            with suppress(OSError):
                os.read(self.incoming.fileno(), 1)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=wait, daemon=True).start()


class Task(Protocol):
    """What a helper does; it can be pickled."""

    def run(self, channel: Channel) -> None:
        """Do it; an error that it raises goes to the process that it works for."""


def main() -> None:
    """The program of a helper: carry out the task that comes through standard input."""
    # A terminal sends the signal to the other process too, and that one decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        channel = Channel(sys.stdin.buffer, out)
        with suppress(EOFError, ConnectionError):
            task: Task = channel.receive()
            try:
                task.run(channel)
            except (EOFError, ConnectionError, MemoryError, PtychoTasksError) as error:
                channel.send(error)
            except Exception:
                channel.send(RuntimeError(f"in a helper process: {traceback.format_exc()}"))


class Helper:
    """A process that works with this one, and ends with it."""

    def __init__(
        self, seat: Seat, channel: Channel, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        """Take one that waits for its task.

        Args:
            seat: its place among the processes.
            channel: to it.
            process: if it is a child of this process.
        """
        self.seat, self._channel, self._process = seat, channel, process

    def send(self, value: object) -> None:
        """Send it a task, or a value; whether it is gone, `receive` says."""
        with suppress(OSError):
            self._channel.send(value)

    def receive(self) -> Any:
        """What it answers.

        Raises:
            PtychoTasksError: it is gone.
            Exception: what it raised.
        """
        try:
            answer = self._channel.receive()
        except EOFError:
            raise self._explain() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _explain(self) -> PtychoTasksError:
        # No TrainingError: that would remove the checkpoint, and it is fine.
        status = None if self._process is None else self._process.wait()
        how = "is gone"
        if status is not None:
            how = f"was killed by signal {-status} (out of memory?)" if status < 0 else "ended"
        return LostHelperError(f"the process of device {self.seat.rank + 1} {how}")

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone; of one that is no child, also whether it has answered."""
        if self._process is not None:
            return self._process.poll() is not None
        return bool(select.select([self._channel.incoming], [], [], 0)[0])

    def end(self) -> None:
        """End it, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for stream in self._channel:
            with suppress(OSError):
                stream.close()


class LostHelperError(PtychoTasksError):
    """A process that worked with this one is gone."""


@contextmanager
def start_helpers(count: int) -> Iterator[list[Helper]]:
    """Start so many processes, which end with the block; where this run was launched by torchrun
    or Slurm, those that wait are taken.

    Raises:
        ConfigError: fewer were launched.
    """
    helpers: list[Helper] = []
    try:
        launched = call_members(count)
        if launched is None:
            for rank in range(1, count + 1):
                helpers.append(_start_child(Seat(rank, count + 1, rank, count + 1, LOCALHOST)))
        else:
            helpers += (
                Helper(seat, Channel(link.makefile("rb"), link.makefile("wb")))
                for seat, link in launched
            )
        yield helpers
    finally:
        for helper in helpers:
            helper.end()


def _start_child(seat: Seat) -> Helper:
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return Helper(seat, Channel(process.stdout, process.stdin), process)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SentScan:
    """A scan on its way to a helper: frames that lie in a file are mapped again there, as they may
    be larger than memory."""

    scan: ScanData
    frames: NDArray[np.float32] | None
    place: tuple[Any, ...] = ()

    @classmethod
    def pack(cls, scan: ScanData) -> SentScan:
        """Leave mapped frames out."""
        array = scan.diffraction
        rest = replace(scan, diffraction=np.empty((0, 0, 0), np.float32))
        owner: Any = array
        while isinstance(owner, np.ndarray) and not isinstance(owner.base, mmap.mmap):
            owner = owner.base
        if not isinstance(owner, np.memmap) or owner.filename is None:
            return cls(rest, np.asarray(array))
        first = array.ctypes.data - owner.ctypes.data
        place = (owner.filename, owner.offset, owner.nbytes, array.shape, array.dtype, first)
        return cls(rest, None, (*place, array.strides))

    def open(self) -> ScanData:
        """The scan, with its frames."""
        if self.frames is not None:
            return replace(self.scan, diffraction=self.frames)
        path, offset, size, shape, dtype, first, strides = self.place
        data = np.memmap(path, np.uint8, "r", offset, (size,))
        frames: NDArray[np.float32] = np.ndarray(shape, dtype, data, first, strides)
        return replace(self.scan, diffraction=frames)
