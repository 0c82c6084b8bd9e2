"""The page of what is being computed now; see `builds.live` for what it reads."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ptycho_tasks.builds.live import LiveRun, follow_all, note_task, warn_once
from ptycho_tasks.layout import LIVE, LIVE_PAGE
from ptycho_tasks.system.files import find_file_problem

if TYPE_CHECKING:
    from ptycho_tasks.config.payload import Payload

_FOLDER = Path(__file__).parent / "assets"
_HEAD = 'content="ptycho-tasks live"'
"""What every such page says in its first bytes."""


def open_live_page(run: LiveRun, folder: Path) -> None:
    """Show a run on the page `live.html` of a folder. Where it cannot be written, or another file
    is in its place, one line says so, and nothing else happens."""
    try:
        _write_page(folder)
        run.open(folder)
    except OSError as error:
        warn_once(folder, error)


def _write_page(folder: Path) -> None:
    page, scripts = folder / LIVE_PAGE, folder / LIVE
    if os.path.lexists(page) and not _is_page(page):
        raise OSError("another file is in its place; move it away")
    scripts.mkdir(parents=True, exist_ok=True)
    new = page.with_name(f".{page.name}.{os.getpid()}")
    try:
        new.write_text(_render_page(), "utf-8")
        new.replace(page)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def _is_page(path: Path) -> bool:
    if find_file_problem(path):
        return False
    with path.open("rb") as file:
        return _HEAD.encode() in file.read(300)


def _render_page() -> str:
    """The page's HTML, which is the same for every project."""
    script = "\n".join(_read(name) for name in ("images.js", "charts.js", "live.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "{{ hash }}": digest,
        "{{ folder }}": LIVE,
        "{{ style }}": _read("page.css") + _read("live.css"),
        "{{ script }}": script,
    }
    text = _read("live.html")
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text


def _read(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")


@contextmanager
def show_on_page(run: LiveRun, folder: Path) -> Iterator[None]:
    """In the block, show a run and all its stages on the page of a folder."""
    state = "stopped"
    open_live_page(run, folder)
    try:
        with follow_all():
            yield
        state = "finished"
    except Exception:
        state = "failed"
        raise
    finally:
        run.close(state)


@contextmanager
def follow_command(
    payload: Payload, folder: Path, tasks: Sequence[str]
) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Show a command that runs stages in the block, where `execution.live` asks for it.

    Gives what each stage is to run in, by the name of its task.
    """
    run = LiveRun()
    run.begin(tasks)
    with show_on_page(run, folder) if payload.execution.live else nullcontext():
        yield partial(_follow_task, run, folder)


@contextmanager
def _follow_task(run: LiveRun, folder: Path, task: str) -> Iterator[None]:
    with note_task(folder, task):
        run.begin_task(task)
        try:
            yield
        except Exception as error:
            run.fail_task(task, str(error))
            raise
        run.end_task(task)
