"""Watch a project's folders of scans, and reconstruct each scan when it has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from ptycho_tasks.builds.live import LiveRun
from ptycho_tasks.builds.present_scans import PresentScans, list_present_scans
from ptycho_tasks.builds.progress import duration
from ptycho_tasks.builds.warm_up import warm_up
from ptycho_tasks.builds.watched_run import WatchedRun
from ptycho_tasks.config.scans import NoMatchError, Stray
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.layout import STATE_NAME
from ptycho_tasks.scans.arrivals import SETTLED_S, Arrival, Arrivals, Stamp, read_stamp
from ptycho_tasks.system.file_system import is_local
from ptycho_tasks.system.lock import describe_holder
from ptycho_tasks.system.processes import Stopped, handle_signals
from ptycho_tasks.system.terminal import echo

_TICK_MS = 50
"""How often it is looked whether a file that is being written has settled."""
_LOOK_S = 5.0
"""How often folders are listed where no change was heard of."""


@dataclass(frozen=True)
class WatchOptions:
    """How to watch."""

    variant: str | None = None
    """The only variant to reconstruct with; None for all."""
    may_train: bool = True
    """Whether a stale training is run; otherwise it is refused."""
    once: bool = False
    """Whether to end when all that is there is done."""
    poll: bool = False
    """Whether to look at all files again and again; without, that is done where other machines
    may write to the folders, of which no file system tells."""
    verbose: bool = False
    """Whether to show all that the stages say."""
    live: LiveRun = field(default_factory=LiveRun)
    """Is shown on a page."""


@dataclass
class Tally:
    """What came of the scans."""

    reconstructed: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    left_out: Mapping[str, Stray] = field(default_factory=dict)
    """By file, those that are there now and cannot be told from other scans by name."""


class ChangedCodeError(PtychoTasksError):
    """The program was changed while it ran: what it makes now is not what its code says."""


def watch(options: WatchOptions) -> Tally:
    """Reconstruct the scans of the project in the current folder, and each that comes.

    Ends at a signal that asks for it; with `once`, when all is done that is there. What goes wrong
    with a scan, or later with ptycho.yaml or a training, is one line, and waits to be mended.

    Raises:
        ConfigError: at the start, something in ptycho.yaml is wrong, no scan can come, or a stale
            training may not run.
        PtychoTasksError: at the start, the training failed; or the program was changed.
        Stopped: a signal came while a stage ran.
    """
    watcher = _Watcher(options)
    begun = time.monotonic()
    with handle_signals(watcher.note_signal):
        try:
            watcher.run()
        finally:
            if watcher.is_started:
                echo(_describe(watcher.tally, time.monotonic() - begun))
    return watcher.tally


def _describe(tally: Tally, seconds: float) -> str:
    """A line that sums up."""
    failed = f", {len(tally.failed)} failed" if tally.failed else ""
    if tally.left_out:
        failed += f", {len(tally.left_out)} files left out"
    plural = "" if len(tally.reconstructed) == 1 else "s"
    return f"{len(tally.reconstructed)} scan{plural} reconstructed{failed}, in {duration(seconds)}"


class _Watcher:
    """Knows what was done, and does what is new."""

    def __init__(self, options: WatchOptions) -> None:
        self.options, self.tally = options, Tally()
        self._root = Path.cwd()
        self._folders: tuple[Path, ...] = ()
        self._stop = threading.Event()
        self._signal = 0
        self._arrivals = Arrivals()
        self._done: dict[str, tuple[Stamp | None, ...]] = {}
        """Scans that were dealt with, as their files were then."""
        self._known: dict[str, None] = {}
        self.is_started = False
        """Whether what was stale at the start was built."""
        self._is_waiting = False
        """Whether a file has not come whole yet, or another run is at work."""
        self._hopes: object = None
        """What must be new before another training is tried; None where none failed."""
        self._config = b""
        self._told = ""
        """What is in the way, which is said once."""
        self._code: dict[str, str | None] = {}

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        """End at the next chance. (While tasks run, their run handles signals.)"""
        self._signal = number
        self._stop.set()

    def run(self) -> None:
        """Look, and again when something is new, until that is to end."""
        self.look()
        if self._is_waiting and not self._stop.wait(2 * SETTLED_S):
            self.look()  # what came a moment ago is there as well
        if not self.options.once and not self._stop.is_set():
            echo(f"{self._describe_wait()}; Ctrl-C ends")
            if not self.tally.reconstructed:
                warm_up()
        while not self.options.once and not self._stop.is_set():
            folders = self._folders
            for _ in self._wait():
                self.look()
                if self._stop.is_set() or self._folders != folders:
                    break

    def _describe_wait(self) -> str:
        return f"watching {', '.join(map(self._show, self._folders))}"

    def _show(self, folder: Path) -> str:
        return str(folder.relative_to(self._root)) if self._root in folder.parents else str(folder)

    def _wait(self) -> Iterator[None]:
        """Gives each time when it is worth looking; the first at once. Ends at a signal."""
        # Other commands are not to wait for this import.
        import watchfiles

        there = [folder for folder in {self._root, *self._folders} if folder.is_dir()]
        is_polled = self.options.poll or not all(map(is_local, there))
        looked = 0.0
        for changes in watchfiles.watch(
            *there,
            recursive=False,
            watch_filter=None,
            debounce=2 * _TICK_MS,
            rust_timeout=_TICK_MS,
            yield_on_timeout=True,
            stop_event=self._stop,
            force_polling=True if is_polled else None,
            ignore_permission_denied=True,
            raise_interrupt=False,
        ):
            if changes or self._is_waiting or time.monotonic() > looked + _LOOK_S:
                yield
                looked = time.monotonic()

    # ------------------------------------------------------------------------------------ looking

    def look(self) -> None:
        """Reconstruct the scans that have come since the last look.

        Raises:
            ConfigError, PtychoTasksError: at the start.
        """
        self._is_waiting = False
        try:
            scans = list_present_scans(self._root, self.options.variant)
        except NoMatchError as error:
            if self.options.once:
                raise
            self._folders = tuple(map(Path, error.folders))
            self._note_missing({})
            return self._tell(f"waiting for a scan: {error}")
        except ConfigError as error:
            return self._stay(error)
        self._folders = scans.folders
        self._note_strays(scans.strays)
        self._note_missing(scans.files)
        if scans.config != self._config:
            # It may hold what a scan needs that failed.
            self._config = scans.config
            for name in self.tally.failed:
                self._done.pop(name, None)
        new = self._find_new(scans)
        late = sorted(scans.learned - {*self._done, *new})
        if late:
            return self._tell(f"waiting for {late[0]}, which is learned from")
        if self.is_started and not new:
            return None
        if self._hopes == self._find_hopes(scans) or self._is_locked():
            return None
        self._hopes = None
        return self._work(scans, new)

    def _find_new(self, scans: PresentScans) -> dict[str, tuple[Arrival, ...]]:
        """The scans that have come whole and were not dealt with as they are."""
        new: dict[str, tuple[Arrival, ...]] = {}
        for name, files in scans.files.items():
            stamps = tuple(map(read_stamp, files))
            if stamps == self._done.get(name):
                continue
            arrivals = tuple(filter(None, map(self._arrivals.find, files)))
            if len(arrivals) == len(files):
                new[name] = arrivals
            elif None not in stamps:
                self._is_waiting = True
        return new

    def _find_hopes(self, scans: PresentScans) -> object:
        """What may be new where a training failed: ptycho.yaml, what is learned from, or what
        another run has done."""
        learned = [path for name in sorted(scans.learned) for path in scans.files[name]]
        return scans.config, [*map(read_stamp, (*learned, self._root / STATE_NAME))]

    def _is_locked(self) -> bool:
        """Whether another run is at work, which is waited for."""
        holder = describe_holder()
        if holder is None:
            return False
        if self.options.once:
            raise PtychoTasksError(holder)
        self._is_waiting = True
        self._tell(holder, kind="lock")
        return True

    def _work(self, scans: PresentScans, new: Mapping[str, tuple[Arrival, ...]]) -> None:
        """Reconstruct scans, and build what is needed for it."""
        since = {
            name: max((arrival.since for arrival in arrivals), default=time.monotonic())
            for name, arrivals in new.items()
        }
        options = self.options
        run = WatchedRun(
            since,
            variant=options.variant,
            may_train=options.may_train,
            verbose=options.verbose,
            check=self._check_code,
            live=options.live,
        )
        try:
            run.execute()
            if run.obstacle:
                raise PtychoTasksError(run.obstacle)
        except ChangedCodeError:
            raise
        except PtychoTasksError as error:
            if run.obstacle:
                self._hopes = self._find_hopes(scans)
            return self._stay(error)
        except Stopped:
            raise
        except SystemExit:
            if self._is_locked():  # it began at the same moment
                return None
            run.show_last_error()
            raise
        finally:
            self._note(run)
        self.is_started, self._told = True, ""
        options.live.note(self._describe_wait())
        for name, arrivals in new.items():
            if name in run.scans:
                self._done[name] = tuple(arrival.stamp for arrival in arrivals)
        return None

    def _note(self, run: WatchedRun) -> None:
        """Count what a run came to."""
        tally = self.tally
        tally.failed = (tally.failed - run.reconstructed) | run.failed.keys()
        tally.reconstructed = (tally.reconstructed | run.reconstructed) - tally.failed

    def _check_code(self, code: Mapping[str, str | None]) -> None:
        """Note the code that runs, and refuse to go on once its files say something else.

        Raises:
            ChangedCodeError: names the file.
        """
        if self._stop.is_set():
            raise Stopped(128 + self._signal)
        for path, digest in code.items():
            if self._code.setdefault(path, digest) != digest:
                raise ChangedCodeError(f"{path}: was changed since the watch began; start it again")

    # -------------------------------------------------------------------------- what is in the way

    def _stay(self, error: PtychoTasksError) -> None:
        """Wait until what is wrong is mended; at the start, end."""
        if self.options.once or not self.is_started:
            raise error
        self._tell(f"error: {error}; scans wait until that is mended")

    def _tell(self, text: str, kind: str = "") -> None:
        """Say what is in the way, once."""
        self.options.live.note(text)
        if self._told != (kind or text):
            self._told = kind or text
            echo(text)

    def _note_strays(self, strays: Iterable[Stray]) -> None:
        """Say which files are left out, once, in a line for those of one name."""
        known = {stray.problem for stray in self.tally.left_out.values()}
        for problem in dict.fromkeys(stray.problem for stray in strays):
            if problem not in known:
                echo(f"left out: {problem}")
        self.tally.left_out = {stray.file: stray for stray in strays}

    def _note_missing(self, names: Mapping[str, object]) -> None:
        """Say which scans are not there any more."""
        left_out = {stray.name for stray in self.tally.left_out.values()}
        for name in self._known:
            if name not in names and name not in left_out:
                echo(f"{name}  was removed; its results stay")
                self._done.pop(name, None)
        self._known = dict.fromkeys(names)
