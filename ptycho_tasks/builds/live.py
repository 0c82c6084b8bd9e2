"""What is being computed now, for a page that is open meanwhile.

The page, `live.html`, is written once, and reads small scripts again and again, which lie in
`.ptycho/live`: a page that is a file may load these, but no other data. `run.js` says what the run
does and how often it was written, so that the page knows a dead run by its own clock; a script for
each task holds its curves and pictures. So it needs no server, and is seen over whatever shows the
project's folder.

Scripts are written by threads of their own. What cannot be written is one warning, and the run
goes on; a picture is made as often as costs a hundredth of the time.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho_tasks.builds.project import read_project_table
from ptycho_tasks.builds.rows import Row
from ptycho_tasks.errors import one_line
from ptycho_tasks.layout import JOBS_NAME, LIVE, LIVE_PAGE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ptycho_tasks.config.payload import Payload

BEAT_S = 2.0
"""How often a script is written."""
SHARE = 0.01
"""Of the time of a stage, what its pictures may take."""
LEAST_S = 1.0
"""Time between two pictures, at least."""
_SIDE = 256
"""Most pixels of a picture's side."""
_MOST_POINTS = 400
"""Of a curve."""
_MOST_LISTED = 300
"""Tasks on the page; of others it says how many there are."""
_LEAST_BYTES = 1 << 14
"""Of a script, whose length is this or twice as much, four times and so on."""
_LAST_WRITE_S = 2.0
"""How long the end of a run waits for its last script."""
_LISTED_FIRST = (
    "running",
    "stopped",
    "failed",
    "left out",
    "goes on",
    "not whole yet",
    "waiting",
    "made",
    "not run",
    "up to date",
)
"""States of tasks, in the order of the page."""

_MAY_SHOW = ("running", "stopped", "failed", "goes on", "made")
"""States of tasks that may have written something."""

_warned: set[Path] = set()
_place: tuple[Path, str] | None = None
_is_forced = False


class LiveFile:
    """A script that is written again and again, until it is closed."""

    def __init__(
        self,
        path: Path,
        call: str,
        describe: Callable[[], dict[str, Any]],
        complain: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        """Begin to write.

        Args:
            path: of the script.
            call: the function of the page that gets what it says.
            describe: gives that, as values of JSON.
            complain: is given what keeps it from being written.
        """
        self._path, self._call, self._describe = path, call, describe
        self._complain = complain
        self._beat = 0
        self._ends = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write it once more, and no more."""
        self._ends.set()
        self._thread.join(_LAST_WRITE_S)

    def _run(self) -> None:
        while not self._ends.wait(BEAT_S):
            self._write()
        self._write()

    def _write(self) -> None:
        self._beat += 1
        try:
            write_script(self._path, self._call, self._describe(), self._beat)
        except OSError as error:
            self._complain(error)


def write_script(path: Path, call: str, content: Mapping[str, Any], beat: int = 0) -> None:
    """Write a script of a page.

    Args:
        path: of the script.
        call: the function of the page that gets what it says.
        content: is that, as values of JSON.
        beat: how many times it was written.

    Raises:
        OSError: it cannot be written; an earlier one is unchanged.
    """
    told = {**content, "beat": beat, "time": time.time(), "every": BEAT_S}
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A browser looks how long a script is before it reads it, which may be another one by then.
        # So its length changes rarely, though its pictures do each time; a page that reads a half,
        # or misses it, reads the next.
        text = f"{call}({json.dumps(told, separators=(',', ':'))});"
        length = max(_LEAST_BYTES, 1 << len(text).bit_length())
        new.write_text(f"{text:<{length - 1}}\n")
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def end_job(folder: Path, task: str, problem: str | None) -> None:
    """Say on a project's page, where it shows a job, how the job ended.

    Args:
        folder: of the project.
        task: that the job ran.
        problem: why it failed; None where it did not.
    """
    path = folder / LIVE / file_name(task)
    with suppress(OSError, ValueError):
        call, _, text = path.read_text().partition("(")
        state = {"state": "made" if problem is None else "failed", "text": one_line(problem or "")}
        content = json.loads(text.rstrip().removesuffix(");"))
        write_script(path, call, content | state, content["beat"] + 1)


def warn_once(folder: Path, error: OSError) -> None:
    """Say, once, that the page of a folder cannot be written."""
    if folder not in _warned:
        _warned.add(folder)
        from ptycho_tasks.builds.messages import print_warning

        reason = error.strerror or str(error)
        print_warning(f"{LIVE_PAGE} cannot be written: {reason}; the run goes on without it")


class LiveRun:
    """The tasks of a run, or of several one after the other, and how far they are."""

    def __init__(self) -> None:
        """No tasks yet, and no page."""
        self._tasks: dict[str, dict[str, Any]] = {}
        self._files: list[dict[str, Any]] = []
        """Those that come, and wait to be taken."""
        self._begun: dict[str, float] = {}
        self._state, self._text = "running", ""
        self._started, self._folder = time.time(), Path()
        self._opened = 0.0
        """By the clock of the file system."""
        self._file: LiveFile | None = None

    @property
    def has_page(self) -> bool:
        """Whether it is shown."""
        return self._file is not None

    def open(self, folder: Path) -> None:
        """Show it from now on on the page in a folder, which was just written.

        Raises:
            OSError: the page is gone.
        """
        self._folder, self._opened = folder, (folder / LIVE_PAGE).stat().st_mtime
        complain = functools.partial(warn_once, folder)
        self._file = LiveFile(folder / LIVE / "run.js", "showRun", self.describe, complain)

    def begin(self, names: Iterable[str]) -> None:
        """Some tasks are to run."""
        self._state, self._text = "running", ""
        for name in names:
            self._set(name, "waiting")

    def begin_task(self, name: str) -> None:
        """A task runs."""
        self._begun[name] = time.monotonic()
        self._set(name, "running", begun=time.time())

    def end_task(self, name: str) -> None:
        """A task has run."""
        self._end(name, "made")

    def skip_task(self, name: str) -> None:
        """A task need not run."""
        self._set(name, "up to date")

    def fail_task(self, name: str, problem: str | None) -> None:
        """A task failed, and why; None where one before it failed, and it did not run."""
        if problem is None:
            self._set(name, "not run")
        else:
            self._end(name, "failed", text=one_line(problem))

    def leave_task(self, name: str, job: str) -> None:
        """A task goes on as a job after the run, which from then on writes its script itself."""
        self._set(name, "goes on", text=one_line(job))
        path = self._folder / LIVE / file_name(name)
        if self.has_page and not self._is_new(path):
            with suppress(OSError):
                write_script(path, "showStage", LiveStage(name).describe() | {"state": "queued"})

    def note_files(self, arriving: Iterable[str], left_out: Mapping[str, str]) -> None:
        """Files that are not taken, as they are not whole yet, or left out, and why."""
        files = {name: {"state": "not whole yet", "text": ""} for name in arriving}
        files |= {name: {"state": "left out", "text": why} for name, why in left_out.items()}
        self._files = [
            {"name": one_line(name), **file, "text": one_line(file["text"])}
            for name, file in files.items()
        ]

    def note(self, text: str) -> None:
        """Nothing runs now: what is waited for."""
        self._state, self._text = "waiting", one_line(text)

    def close(self, state: str) -> None:
        """The run has ended: `finished`, `failed` or `stopped`."""
        self._state, self._text = state, ""
        ends = {"waiting": "not run", "running": "stopped"}
        for task in self._tasks.values():
            task["state"] = ends.get(task["state"], task["state"])
        if self._file is not None:
            self._file.close()
            with suppress(OSError):
                for path in (self._folder / LIVE).glob("*.js"):
                    if not self._is_new(path):
                        path.unlink()

    def _is_new(self, script: Path) -> bool:
        """Whether a script is there that was written since this run is shown."""
        with suppress(OSError):
            return script.stat().st_mtime >= self._opened
        return False

    def _end(self, name: str, state: str, **more: str) -> None:
        seconds = time.monotonic() - self._begun.get(name, time.monotonic())
        self._set(name, state, seconds=seconds, **more)

    def _set(self, name: str, state: str, **more: Any) -> None:
        self._tasks[name] = {"name": name, "state": state, **more}

    def describe(self) -> dict[str, Any]:
        """What the page shows of it, as values of JSON."""
        tasks = [*self._tasks.values(), *self._files]
        tasks.sort(key=lambda task: _LISTED_FIRST.index(task["state"]))
        return {
            "title": self._folder.name,
            "state": self._state,
            "text": self._text,
            "started": self._started,
            "process": os.getpid(),
            "machine": _find_machine(),
            "jobs": (self._folder / JOBS_NAME).is_dir(),
            "counts": Counter(task["state"] for task in tasks),
            "tasks": [*map(self._describe_task, tasks[:_MOST_LISTED])],
        }

    def _describe_task(self, task: dict[str, Any]) -> dict[str, Any]:
        # Not every stage has something to show, and a page complains of scripts that are not there.
        if task["state"] not in _MAY_SHOW or "file" in task:
            return task
        name = file_name(task["name"])
        if self.has_page and self._is_new(self._folder / LIVE / name):
            task["file"] = name
        return task


class LiveStage:
    """How far a stage is, and its object."""

    def __init__(self, task: str) -> None:
        """Nothing is done yet."""
        self._task, self._begun = task, time.time()
        self._first: tuple[int, float] | None = None
        self._done = 0
        self._total: int | None = 0
        self._ends: float | None = None
        self._curves: dict[str, list[tuple[int, float | None]]] = {}
        self._pictures: dict[str, Any] = {}
        self._next_picture = 0.0

    def note(self, done: int, total: int | None, metrics: Mapping[str, float]) -> None:
        """As `Progress`."""
        now = time.time()
        self._first = self._first or (done, now)
        steps = done - self._first[0]
        self._done, self._total = done, total
        self._ends = None
        if steps and total is not None:
            self._ends = now + (now - self._first[1]) / steps * (total - done)
        for name, value in metrics.items():
            curve = [*self._curves.get(name, ()), (done, value if math.isfinite(value) else None)]
            self._curves[name] = curve if len(curve) <= _MOST_POINTS else curve[1::2]

    def show(self, make: Callable[[], NDArray[np.complex64]]) -> None:
        """As `Show`."""
        if time.monotonic() >= self._next_picture:
            self.show_last(make)

    def show_last(self, make: Callable[[], NDArray[np.complex64]]) -> None:
        """The same, however short ago the last picture was made."""
        begun = time.monotonic()
        try:
            self._pictures = {"step": self._done, **_encode(make())}
        except Exception as error:  # whatever is wrong with a picture, the run goes on
            self._pictures = {"problem": f"no picture: {' '.join(str(error).split())}"}
        seconds = time.monotonic() - begun
        self._next_picture = begun + max(LEAST_S, seconds / SHARE)

    def describe(self) -> dict[str, Any]:
        """What the page shows of it, as values of JSON."""
        return {
            "task": self._task,
            "state": "running",
            "begun": self._begun,
            "done": self._done,
            "total": self._total,
            "ends": self._ends,
            "curves": dict(self._curves),
            "pictures": self._pictures,
        }


def _encode(image: NDArray[np.complex64]) -> dict[str, Any]:
    """Pictures of an object (H, W), as values of JSON."""
    from ptycho_tasks.results.thumbnails import make_thumbnails

    pictures: dict[str, dict[str, Any]] = {
        str(kind): {
            "png": base64.b64encode(picture.to_png(is_clear=True)).decode(),
            "low": picture.low,
            "high": picture.high,
        }
        for kind, picture in make_thumbnails(image, image != 0, _SIDE).items()
    }
    return {"rows": image.shape[0], "columns": image.shape[1], **pictures}


def _find_machine() -> str:
    return os.uname().nodename if hasattr(os, "uname") else "?"


def file_name(task: str) -> str:
    """The name of a task's script, which holds nothing of what a user may call a task."""
    return f"{hashlib.sha256(task.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.js"


@contextmanager
def note_task(folder: Path, task: str) -> Iterator[None]:
    """In the block, a task runs whose page lies in a folder, if one is asked for."""
    global _place
    before, _place = _place, (folder, task)
    try:
        yield
    finally:
        _place = before


@contextmanager
def follow_stage(payload: Payload) -> Iterator[LiveStage | None]:
    """Follow a stage in the block; None where no page is asked for."""
    if _place is None or not (_is_forced or payload.execution.live):
        yield None
        return
    folder, task = _place
    stage = LiveStage(task)
    file = LiveFile(folder / LIVE / file_name(task), "showStage", stage.describe)
    try:
        yield stage
    finally:
        file.close()


@contextmanager
def follow_all() -> Iterator[None]:
    """In the block, follow every stage, whatever `execution.live` says."""
    global _is_forced
    before, _is_forced = _is_forced, True
    try:
        yield
    finally:
        _is_forced = before


def is_followed(row: Row) -> bool:
    """Whether a task of the project is to be followed."""
    table = read_project_table()
    if _is_forced or not (b"live" in table.config or table.changes):
        return _is_forced
    with suppress(Exception):  # the task itself says what is wrong
        return table.payload(row).execution.live
    return False
