"""The checkpoint of a training: one file that is complete or absent, and that cannot run code.

Lightning's own checkpoints also hold the internals of its loops and have no checksum. Before
Lightning 2.6, reading one could run code.
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

CHECKPOINT_NAME = "checkpoint.pt"
LEAST_SECONDS = 2.0
"""Least time between two checkpoints: a kill loses no more, beside the epoch that it breaks."""
SHARE = 0.01
"""Largest share of a training's time that is spent on checkpoints."""


class Checkpoints:
    """Keeps the newest state of a training in a folder."""

    def __init__(
        self,
        folder: Path | None,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            folder: an existing folder that no other training uses; None keeps nothing.
            say: shows the user one line.
            clock: gives seconds.
        """
        self.path = None if folder is None else folder / CHECKPOINT_NAME
        self._say, self._clock = say, clock
        self._writer = writer_digest()
        self._next = clock() + LEAST_SECONDS
        self._has_warned = False

    def read(self) -> dict[str, Any] | None:
        """Read the last state, its tensors on the CPU.

        Returns:
            None if there is none. Also if another version of backend, torch or Lightning wrote it;
            then the user sees a line.
        """
        if self.path is None:
            return None
        with suppress(OSError):
            # A kill in the middle of writing leaves them behind.
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
        """Replace the state, if enough time has passed.

        Args:
            state: gives the state: tensors, plain values, and containers of them.
            last: the training ends here: write in any case.
        """
        start = self._clock()
        if self.path is None or not (last or start >= self._next):
            return
        buffer = io.BytesIO()
        torch.save(dict(state()), buffer)
        data = buffer.getvalue()
        try:
            write_atomic(self.path, self.digest(data) + data)
        except FileWriteError as error:
            # A full disk must not end hours of training: the bundle is a third as large, and until
            # it is written the user can free space.
            if not self._has_warned:
                self._say(f"goes on without a checkpoint: {error}")
            self._has_warned = True
        now = self._clock()
        self._next = now + max(LEAST_SECONDS, (now - start) / SHARE)

    def remove(self) -> None:
        """Remove the checkpoint, if there is one."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()

    def digest(self, data: bytes) -> bytes:
        """sha256 of the data and of the code that wrote it; torch checks neither."""
        return hashlib.sha256(self._writer + data).digest()


def writer_digest() -> bytes:
    """A digest of torch, Lightning and this package: other versions may compute other numbers."""
    digest = hashlib.sha256()
    digest.update(f"torch {torch.__version__} lightning {metadata.version('lightning')}".encode())
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()
