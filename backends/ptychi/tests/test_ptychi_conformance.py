"""The backend `ptychi` keeps what the core asks of every backend."""

from __future__ import annotations

import pytest

from ptycho_tasks.testing import BackendConformance

pytest.importorskip("ptychi", reason="the library pty-chi is not installed")
backend = pytest.importorskip("ptycho_tasks_ptychi.backend").backend
options_module = pytest.importorskip("ptycho_tasks_ptychi.options")


class TestPtychi(BackendConformance):
    """An iterative engine does not generalise, and says so."""

    backend = backend
    options = options_module.PtychiOptions(epochs=6)
    refuses = ("another scan", "scans together")
    frames_in_turn = True  # the batches are random, but of the frames in their order
