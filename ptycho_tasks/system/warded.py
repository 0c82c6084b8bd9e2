"""Commands that end with the process that started them: see `warden`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ptycho_tasks.system import warden

_GRACE_S = 3.0
"""How long a command that is asked to end may take."""


def start_warded(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command under a warden, which ends what it leaves behind, and the command itself if
    this process is gone, however that died.

    Args:
        command: its words.
        options: further ones of `subprocess.Popen`, but for `stdin`.
    """
    # In a session of its own, Ctrl-C reaches it only through us.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", warden.__file__, *command],
        stdin=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def end_warded(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started: asked first, then forced."""
    # The warden reads our wish from its stdin: a letter asks, the end of the file forces.
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(b"T")
        process.stdin.flush()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()
