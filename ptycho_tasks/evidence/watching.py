"""Gather evidence each time a save makes some stale."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import FrameType

from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.evidence.checklist import Basis
from ptycho_tasks.evidence.item import RED, Evidence
from ptycho_tasks.evidence.loading import require_evidence
from ptycho_tasks.evidence.records import find_record
from ptycho_tasks.evidence.staleness import list_reasons
from ptycho_tasks.layout import CONFIG_NAME, EVIDENCE, EVIDENCE_NAME
from ptycho_tasks.system.cache import forget_all
from ptycho_tasks.system.lock import describe_holder
from ptycho_tasks.system.processes import handle_signals
from ptycho_tasks.system.terminal import echo

_SETTLED_MS = 200
"""How long nothing may be saved before what was is looked at."""
_LOOK_S = 0.5
"""How often it is looked whether another run is over."""

ReadProject = Callable[[], tuple[Evidence, Basis]]
"""Gives the project's evidence, and what it rests on."""


def watch_evidence(
    read_project: ReadProject, rows: Sequence[str] = (), *, is_polled: bool = False
) -> None:
    """Gather the evidence of the project in the current folder, and again when what it depends on
    has changed. Ends at a signal that asks for it.

    Args:
        read_project: is asked anew each time.
        rows: whose evidence is gathered; of all where there are none.
        is_polled: whether to look again and again, as the file system tells of no changes.

    Raises:
        ConfigError: at the start, the project has no evidence, or none of a row.
    """
    evidence = require_evidence(Path.cwd())
    for row in rows:
        if not evidence.items_for(row):
            raise ConfigError(f"{evidence.file}: no item proves `{row}`; name a row of one")
    watcher = _Watcher(read_project, rows)
    with handle_signals(watcher.note_signal):
        watcher.watch(evidence.root, is_polled)


class _Watcher:
    """Gathers evidence, and knows why it did so last."""

    def __init__(self, read_project: ReadProject, rows: Sequence[str]) -> None:
        self._read_project, self._rows = read_project, rows
        self._stop = threading.Event()
        self._run: subprocess.Popen[bytes] | None = None

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        """End at the next chance, and the run that is at work at once."""
        self._stop.set()
        if self._run is not None:
            self._run.send_signal(number)

    def watch(self, root: Path, is_polled: bool) -> None:
        """Gather, and again when something was saved, until that is to end."""
        # Other commands are not to wait for this import.
        import watchfiles

        last: frozenset[str] | None = None
        for changes in watchfiles.watch(
            root,
            watch_filter=lambda change, path: _is_visible(root, path),
            debounce=_SETTLED_MS,
            rust_timeout=_SETTLED_MS,
            # The first time, what is saved while evidence is gathered is heard of already.
            yield_on_timeout=True,
            stop_event=self._stop,
            force_polling=is_polled or None,
            ignore_permission_denied=True,
            raise_interrupt=False,
        ):
            if last is not None and not changes:
                continue
            reasons = self._list_reasons()
            # What a run cannot mend is no reason for another one.
            if last is None or (reasons and reasons != last):
                self._gather()
            last = reasons

    def _gather(self) -> None:
        """Run `doit evidence` when no other run is at work."""
        while describe_holder() is not None and not self._stop.wait(_LOOK_S):
            pass
        if self._stop.is_set():
            return
        tasks = [f"{EVIDENCE}:{row}" for row in self._rows] or [EVIDENCE]
        # In a session of its own, Ctrl-C reaches it once: through us.
        self._run = subprocess.Popen(
            [sys.executable, "-m", "doit", *tasks],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._stop.is_set():
            self._run.send_signal(signal.SIGTERM)
        self._run.wait()
        self._run = None
        if not self._stop.is_set():
            echo("watching; Ctrl-C ends")

    def _list_reasons(self) -> frozenset[str]:
        """Why the evidence is not of what there is now; that it is red is no reason."""
        forget_all()
        try:
            with redirect_stderr(io.StringIO()):  # what is wrong is said by the run
                evidence, basis = self._read_project()
                return frozenset(self._find_reasons(evidence, basis))
        except (PtychoTasksError, SystemExit):
            return frozenset(map(_describe_file, (CONFIG_NAME, EVIDENCE_NAME)))

    def _find_reasons(self, evidence: Evidence, basis: Basis) -> Iterator[str]:
        items = [i for i in evidence.items if not self._rows or {*i.ids} & {*self._rows}]
        for stage in {stage for item in items for stage in item.stages}:
            yield from filter(None, [basis.find_stage_problem(stage)])
        for item in items:
            record = find_record(evidence, item)
            is_red = record is not None and record.outcome == RED
            for reason in list_reasons(evidence, item, record, basis.files):
                if not (is_red and reason.kind == "output"):
                    yield f"{item.name}: {reason.text}"


def _describe_file(name: str) -> str:
    try:
        return f"{name}: {Path(name).read_bytes()!r}"
    except OSError as error:
        return f"{name}: {error}"


def _is_visible(root: Path, path: str) -> bool:
    """Whether a file may be what evidence rests on, and none of ours."""
    inside = Path(path).parts[len(root.parts) :]
    return not any(part.startswith(".") or part == "__pycache__" for part in inside)
