"""What a terminal is taken to show: asked of real pseudo-terminals."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time

import pytest

from ptycho_tasks.system import graphics

CLEAN = {"TERM": "xterm-256color"}
BLOCKS = {**CLEAN, "COLORTERM": "truecolor"}
PATIENCE_S = 300


def ask(environment, *, answer=b"", typed=b""):
    """What a process finds whose terminal gives an answer when asked, and all that it wrote."""
    child, master = pty.fork()
    if child == 0:
        try:
            if typed:  # until it is there
                os.read(0, 1)
            graphics._PATIENCE_S = PATIENCE_S if answer else 0.05
            stream = os.fdopen(1, "w", encoding="utf-8", closefd=False)
            found = graphics.find_graphics(stream, environment)
            os.write(1, f"found {found} ".encode())
            if typed:
                os.write(1, b"read " + os.read(0, 64) + b" ")
            os.write(1, b"end")
        finally:
            os._exit(0)
    os.write(master, typed)
    written, is_asked, deadline = b"", False, time.monotonic() + PATIENCE_S
    try:
        while b"end" not in written:
            assert time.monotonic() < deadline, written
            if select.select([master], [], [], 1)[0]:
                written += os.read(master, 4096)
            if b"\x1b[c" in written and not is_asked:
                is_asked = True
                os.write(master, answer)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(master)
    return written


@pytest.fixture(autouse=True)
def _stdin_of_the_child(monkeypatch):
    monkeypatch.setattr(sys, "stdin", os.fdopen(0, closefd=False))


@pytest.mark.parametrize(
    ("environment", "answer", "found"),
    [
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, b"", b"kitty"),
        ({**CLEAN, "TERM_PROGRAM": "WezTerm"}, b"", b"kitty"),
        (CLEAN, b"\x1b[?62;4;22c", b"sixel"),
        (BLOCKS, b"\x1b[?62;14;22c", b"blocks"),
        (BLOCKS, b"", b"blocks"),
        (CLEAN, b"\x1b[?1;2c", b"None"),
        (CLEAN, b"", b"None"),
        # What tmux hands on is not what it shows.
        ({**BLOCKS, "TERM_PROGRAM": "WezTerm", "TMUX": "x"}, b"\x1b[?1;2c", b"blocks"),
    ],
)
def test_a_terminal_gets_what_it_says_it_can(environment, answer, found):
    assert b"found " + found in ask(environment, answer=answer)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**BLOCKS, "TERM": "dumb"},
        {**BLOCKS, "NO_COLOR": "1"},
        {**BLOCKS, "CI": "true"},
        {"TERM": "xterm-kitty", "CI": "true"},
    ],
)
def test_where_no_picture_is_wanted_nothing_is_asked(environment):
    assert ask(environment) == b"found None end"


def test_what_was_typed_meanwhile_is_not_lost():
    written = ask(CLEAN, answer=b"\x1b[?62;4c", typed=b".ls\n")
    assert b"found None " in written
    assert b"\x1b" not in written
    assert b"read ls\r\n" in written


def test_what_is_no_terminal_shows_nothing(tmp_path):
    with (tmp_path / "out").open("w") as stream:
        assert graphics.find_graphics(stream, {"TERM": "xterm-kitty"}) is None
    assert (tmp_path / "out").read_bytes() == b""
