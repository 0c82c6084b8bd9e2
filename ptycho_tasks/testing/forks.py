"""Runs `python -m MODULE` and `python -c CODE` in forks of a process that has imported all that is
large before.

A command then takes as long as its own work does, and is a process of its own all the same: with
its own folder, environment and signals. Only for tests, and only where there is `fork`.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import importlib
import importlib.metadata
import json
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from pkgutil import iter_modules, walk_packages
from tempfile import TemporaryDirectory, gettempdir, mkdtemp
from typing import Any, NoReturn, TextIO
from uuid import uuid4

Completed = subprocess.CompletedProcess[str]
PRELOADED = {
    "PIL.ImageDraw", "PIL.ImageFont", "click", "doit.doit_cmd", "h5py", "msgspec",
    "numpy", "psutil", "scipy.fft", "scipy.ndimage", "scipy.spatial",
    "skimage.metrics._structural_similarity", "skimage.registration._phase_cross_correlation",
    "sqlite3", "yaml",
}  # fmt: skip
"""What is imported before, beside the modules of the core."""

LEFT_OUT = ("ptycho_tasks.tasks", "ptycho_tasks.testing")
"""Of the core: tasks look at the current folder when they are imported, and tests import them."""
REMEMBERED = (
    ("ptycho_tasks.results.pictures", "picture_bytes"),
    ("ptycho_tasks.physics.metrics", "score"),
)
"""Functions, by module and name, that depend on their arguments alone and take most of the time of
a small stage."""


def remember(function: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The function, whose answers are kept in a folder: most tests build the same project."""

    @wraps(function)
    def answer(*arguments: Any, **options: Any) -> Any:
        key = pickle.dumps((function.__name__, arguments, options))
        path = folder / hashlib.sha256(key).hexdigest()
        if not path.exists():
            new = path.with_suffix(f".{os.getpid()}")
            new.write_bytes(pickle.dumps(function(*arguments, **options)))
            new.replace(path)
        return pickle.loads(path.read_bytes())

    return answer


def remembered_metadata() -> property:
    """In place of `importlib.metadata.Distribution.metadata`, which parses a file each time."""
    read: Any = importlib.metadata.Distribution.metadata.fget  # type: ignore[attr-defined]
    kept: dict[Path, Any] = {}

    def metadata(distribution: Any) -> Any:
        path = getattr(distribution, "_path", None)
        if path is None:
            return read(distribution)
        if path not in kept:
            kept[path] = read(distribution)
        return kept[path]

    return property(metadata)


@contextmanager
def preloading(*libraries: str) -> Iterator[None]:
    """Import further libraries before, of which none may start threads that work.

    Each set of libraries has a process: a fork of one with torch costs the others too much.
    """
    added = {*libraries} - PRELOADED
    PRELOADED.update(added)
    try:
        yield
    finally:
        PRELOADED.difference_update(added)


def run_forked(arguments: Sequence[str], *, cwd: Path, timeout_s: int) -> Completed:
    """Run `python -m` with these arguments.

    Args:
        arguments: the module's name, and the arguments of its command.
        cwd: the folder to run in.
        timeout_s: after which it is ended, by SIGALRM.
    """
    with TemporaryDirectory() as folder:
        written = [Path(folder) / name for name in ("stdout", "stderr")]
        streams = [Path(os.devnull), *written]
        with ask_server(arguments, cwd=cwd, streams=streams, timeout_s=timeout_s) as answer:
            code = int(answer.read().split()[1])
        out, err = (stream.read_text() for stream in written)
    return Completed([sys.executable, "-m", *arguments], code, out, err)


def ask_server(
    arguments: Sequence[str],
    *,
    cwd: Path,
    streams: Sequence[Path],
    timeout_s: int,
    environment: Mapping[str, str] = os.environ,
    is_apart: bool = False,
) -> TextIO:
    """Have a fork run `python -m` with these arguments.

    Args:
        arguments: the module's name, or `-c` and code, and the arguments of its command.
        cwd: the folder to run in.
        streams: standard input, output and error.
        timeout_s: after which it is ended, by SIGALRM.
        environment: its variables.
        is_apart: whether it has a session of its own.

    Returns:
        A stream with its process id, and once it has ended its exit code, each a line.
    """
    request = {
        "arguments": [*map(str, arguments)],
        "cwd": str(cwd),
        "environment": dict(environment),
        "streams": [*map(str, streams)],
        "timeout_s": timeout_s,
        "is_apart": is_apart,
    }
    requests = open_server()
    with TemporaryDirectory() as folder:
        (Path(folder) / "request").write_text(json.dumps(request))
        os.mkfifo(Path(folder) / "answer")
        os.write(requests, f"{folder}\n".encode())
        return (Path(folder) / "answer").open()


def open_server() -> int:
    """The descriptor of a pipe to the process that forks, which ends with those that hold one.

    The processes of pytest-xdist share it.
    """
    return _open_server(frozenset(PRELOADED))


@cache
def _open_server(libraries: frozenset[str]) -> int:
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    named = hashlib.sha256(" ".join(sorted(libraries)).encode()).hexdigest()
    # A pytest that a test runs inherits the variable, and has another parent.
    who = f"{run}-{os.getppid()}" if run else uuid4().hex
    pipe = Path(gettempdir()) / f"forks-{who}-{named[:8]}"
    try:
        os.mkfifo(pipe, 0o600)
    except FileExistsError:
        return os.open(pipe, os.O_WRONLY)  # waits for the other process to have it open
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    requests = os.open(pipe, os.O_WRONLY)
    os.set_blocking(reading, True)
    # As a module it would import pytest, and as a file put its own folder on the path.
    words = [sys.executable, "-c", Path(__file__).read_text(), str(pipe), *sorted(libraries)]
    server = subprocess.Popen(words, stdin=reading)
    os.close(reading)

    @atexit.register
    def end() -> None:
        os.close(requests)
        server.wait()

    return requests


def _import_core() -> None:
    """Import every module of the core, but those of `LEFT_OUT`, and those whose libraries are not
    installed."""
    import ptycho_tasks

    for wing in iter_modules(ptycho_tasks.__path__, "ptycho_tasks."):
        if wing.name not in LEFT_OUT:
            package = importlib.import_module(wing.name)
            for module in walk_packages(getattr(package, "__path__", ()), f"{wing.name}."):
                with suppress(ModuleNotFoundError):
                    importlib.import_module(module.name)


def _digest_sources() -> None:
    """Read the code of the core and of the backends that are installed, which the first command in
    every new project asks about."""
    from ptycho_tasks.backends import available
    from ptycho_tasks.builds.stage_code import STAGE_CODE, list_backend_sources, list_core_sources
    from ptycho_tasks.system.cache import forget_all
    from ptycho_tasks.system.sources import source_digest

    found = {path for stage in STAGE_CODE for path in list_core_sources(stage).values()}
    for entry in available(Path(os.devnull)).values():
        with suppress(Exception):  # whoever asks for it meets it anew, and is told
            found |= {*list_backend_sources(entry.load(), None, Path(os.devnull)).values()}
    for path in found:
        source_digest(path)
    forget_all()


def _remember_plugins() -> None:
    """Look for plugins once: a command reads six times what is installed."""
    import doit.plugin

    from ptycho_tasks.system import plugins
    from ptycho_tasks.system.libraries import LIBRARIES, find_version

    importlib.metadata.Distribution.metadata = remembered_metadata()  # type: ignore
    found = cache(importlib.metadata.entry_points)
    for module in (doit.plugin, plugins):
        setattr(module, "entry_points", found)  # noqa: B010
    for group in ("BACKEND", "COMMAND", "LOADER", "REPORTER"):
        found(group=f"doit.{group}")
    for group in ("backends", "executors", "readers"):
        found(group=f"ptycho_tasks.{group}")
    for name in ("ptycho-tasks", *LIBRARIES):
        find_version(name)


def _remember_results(folder: Path) -> None:
    for module, name in REMEMBERED:
        there = importlib.import_module(module)
        setattr(there, name, remember(getattr(there, name), folder))


def _serve() -> dict[str, Any] | None:
    """Fork for each request, and have its process id and exit code answered; gives the request in
    the fork."""
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        with warnings.catch_warnings():
            # Python warns of threads; those of OpenBLAS are made for forks.
            warnings.simplefilter("ignore")
            if os.fork() == 0:
                return _answer(folder)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    return None


def _answer(folder: Path) -> dict[str, Any]:
    """Fork, and wait for the fork; only this returns, with the request."""
    request = json.loads((folder / "request").read_bytes())
    _open_streams(request["streams"])
    with (folder / "answer").open("w", buffering=1) as answer:
        if (child := os.fork()) == 0:
            return dict(request)
        os.closerange(0, 3)  # who reads is to see their end
        answer.write(f"{child}\n")
        answer.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    os._exit(0)


def _open_streams(paths: Sequence[str]) -> None:
    modes = (os.O_WRONLY | os.O_CREAT | os.O_APPEND,) * 2
    for number, (path, mode) in enumerate(zip(paths, (os.O_RDONLY, *modes), strict=True)):
        stream = os.open(path, mode, 0o600)
        os.dup2(stream, number)
        os.close(stream)


def _become(request: dict[str, Any]) -> int:
    """Turn this process into the command of a request; gives its exit code."""
    if request["is_apart"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    signal.alarm(request["timeout_s"])
    sys.path[0] = request["cwd"]
    sys.stdin = os.fdopen(0, closefd=False)  # the server's may hold what it read ahead
    module, *arguments = request["arguments"]
    try:
        if module == "-c":
            sys.argv = ["-c", *arguments[1:]]
            exec(arguments[0], {"__name__": "__main__"})
        else:
            sys.argv = [module, *arguments]
            sys.modules.pop(module, None)  # runpy would warn of one that is there
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as Python does, but for the libraries, which it would take apart for a third second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    pipe, *names = sys.argv[1:]
    for name in names:
        # What is not installed is not used either.
        with suppress(ImportError):
            importlib.import_module(name)
    # Not a TemporaryDirectory, which the first fork would remove at its end.
    kept = mkdtemp()
    try:
        _import_core()
        _remember_plugins()
        _digest_sources()
        _remember_results(Path(kept))
    except Exception:
        traceback.print_exc()  # whoever asks for something meets it anew, and is told
    # A process that is killed loses nothing that it wrote; only a loss of power would.
    os.fsync = lambda fd: None
    gc.freeze()
    if (request := _serve()) is not None:
        _end(_become(request))
    os.unlink(pipe)  # noqa: PTH108
    shutil.rmtree(kept)
