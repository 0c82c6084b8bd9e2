"""The checkpoint of a training: one file, whole or not there, that cannot run code.

Lightning's own checkpoints hold the insides of its loops as well, are not checked for damage, and
can be read without running code from Lightning 2.6 on only.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ptycho_tasks.errors import FileWriteError
from ptycho_tasks.system.files import remove_leftovers, write_atomic

NAME = "checkpoint.pt"
LEAST_SECONDS = 2.0
"""Least time between two checkpoints: what a kill can cost, beside the epoch that it breaks."""
SHARE = 0.01
"""Largest share of a training's time that is spent on checkpoints."""


class Checkpoints:
    """Keeps the state of a training in a folder; the newest takes the place of the one before."""

    def __init__(
        self,
        folder: Path | None,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Time starts to count.

        Args:
            folder: an existing folder that no other training uses now; None: nothing is kept.
            say: shows the user one line.
            clock: seconds.
        """
        self.path = None if folder is None else folder / NAME
        self._say, self._clock = say, clock
        self._made_by = made_by()
        self._next = clock() + LEAST_SECONDS
        self._complained = False

    def read(self) -> dict[str, Any] | None:
        """The state last written, its tensors on the CPU.

        None if there is none, or none that this version of backend, torch and Lightning has
        written; then the user is told.
        """
        if self.path is None:
            return None
        with suppress(OSError):
            # What a kill in the middle of writing leaves behind.
            remove_leftovers([self.path])
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say(f"starts anew: {self.path} cannot be read: {error.strerror}")
            return None
        digest, data = content[:32], content[32:]
        with suppress(pickle.UnpicklingError):
            if digest == self.digest(data):
                state: dict[str, Any] = torch.load(
                    io.BytesIO(data), map_location="cpu", weights_only=True
                )
                return state
        self._say(
            f"starts anew: {self.path} is damaged, or of another version of torch, Lightning or "
            "this backend"
        )
        return None

    def write(self, state: Callable[[], Mapping[str, Any]], *, last: bool) -> None:
        """Put the state in place of the one before, if it is time to.

        Args:
            state: gives what `read` is to give: tensors, plain values, and containers of them.
            last: the training ends here; write in any case.
        """
        begun = self._clock()
        if self.path is None or not (last or begun >= self._next):
            return
        buffer = io.BytesIO()
        torch.save(dict(state()), buffer)
        data = buffer.getvalue()
        try:
            write_atomic(self.path, self.digest(data) + data)
        except FileWriteError as error:
            # Hours of training must not end for want of a safeguard: the bundle is a third as
            # large, and until it is written there is time to free space.
            if not self._complained:
                self._say(f"goes on without a checkpoint: {error}")
            self._complained = True
        now = self._clock()
        self._next = now + max(LEAST_SECONDS, (now - begun) / SHARE)

    def remove(self) -> None:
        """Remove the checkpoint, if there is one."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()

    def digest(self, data: bytes) -> bytes:
        """sha256 of what the file holds and of what wrote it; torch verifies neither."""
        return hashlib.sha256(self._made_by + data).digest()


def made_by() -> bytes:
    """A digest of torch, Lightning and this package: other ones may go on to other numbers."""
    digest = hashlib.sha256()
    digest.update(f"torch {torch.__version__} lightning {metadata.version('lightning')}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()
