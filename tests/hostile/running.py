"""Try a case in a process of its own, with limits of time and memory, and judge what came of it."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.battery import Battery, Trial

KINDS = ("clean", "traceback", "silent", "other")
FAULT = "a fault of ptycho-tasks"
"""What the program says of an exception that nobody foresaw."""
TIME_LIMIT_S = 120.0
_MEMORY = 3 << 30
_FILE_SIZE = 2 << 30
_LEAK = re.compile(r"\w*Warning: .*")
_ERROR = re.compile(r"(?:[^:\n]{1,60}: )?(?:error|ERROR): ")
_WARNING = re.compile(r"^\s*warning\b", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What came of a case, and why it is not clean."""

    battery: str
    case: str
    kind: str
    why: str
    seconds: float


def ptycho(*arguments: str) -> Callable[[], Any]:
    """The command `ptycho-tasks`, run in the case's own process."""

    def call() -> None:
        from ptycho_tasks.commands.cli import main

        sys.argv = ["ptycho-tasks", *arguments]
        main()

    return call


def doit(*arguments: str) -> Callable[[], Any]:
    """The command `doit`, run in the case's own process."""

    def call() -> None:
        from doit.__main__ import main

        sys.path.insert(0, str(Path.cwd()))
        sys.argv = ["doit", *arguments]
        main()

    return call


def command(*words: str, **options: Any) -> Callable[[], Any]:
    """A command in a process that is new from the start."""

    def call() -> None:
        done = subprocess.run([sys.executable, *words], check=False, **options)
        if done.returncode < 0:
            os.kill(os.getpid(), -done.returncode)
        raise SystemExit(done.returncode)

    return call


def run_apart(call: Callable[[], Any]) -> int:
    """Run a command in a fork, which shows nothing; gives its exit code."""
    pid = os.fork()
    if not pid:
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        os._exit(_called(Trial(call, ()))[1])
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def agree(one: Callable[[], Any], other: Callable[[], Any]) -> Callable[[], Any]:
    """Two commands of which each is to refuse what the other refuses; complains if not."""

    def call() -> str:
        first = run_apart(one)
        second = _called(Trial(other, ()))[1]
        if bool(first) != bool(second):
            return f"the first command exits with {first}, the second with {second}"
        raise SystemExit(second)

    return call


def run(
    cases: Iterable[tuple[Battery, str]],
    *,
    seed: int,
    processes: int,
    keep: Path | None = None,
) -> Iterator[Outcome]:
    """Try cases, some side by side; gives each outcome when it is there.

    Args:
        cases: classes and names.
        seed: of the random inputs.
        processes: how many at a time.
        keep: where the folders of the cases stay; None removes each.
    """
    gc.freeze()
    waiting = list(cases)[::-1]
    at_work: dict[int, tuple[Battery, str, Path, float]] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        os.environ["HOSTILE_CACHE"] = folder
        while waiting or at_work:
            while waiting and len(at_work) < processes:
                battery, name = waiting.pop()
                place = Path(keep or folder, f"{battery.name}-{name}")
                shutil.rmtree(place, ignore_errors=True)
                (place / "work").mkdir(parents=True)
                pid = _start(battery, name, seed, place)
                at_work[pid] = (battery, name, place, time.monotonic())
            time.sleep(0.001)
            for pid, (battery, name, place, begun) in [*at_work.items()]:
                seconds = time.monotonic() - begun
                # What is prepared for many cases, such as a training, is no case's own time.
                limit = TIME_LIMIT_S if (place / "ready").exists() else 5 * TIME_LIMIT_S
                if limit == TIME_LIMIT_S:
                    seconds = time.time() - (place / "ready").stat().st_mtime
                status = _status(pid, seconds, limit)
                if status is None:
                    continue
                del at_work[pid]
                kind, why = _judge(place, status)
                yield Outcome(battery.name, name, kind, why, seconds)
                if keep is None:
                    shutil.rmtree(place, ignore_errors=True)


def _status(pid: int, seconds: float, limit: float) -> int | str | None:
    """How a process ended, or that it hung; None while it works."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        _kill(pid)
        return status
    if seconds > limit:
        _kill(pid)
        os.waitpid(pid, 0)
        return f"hangs: not done after {limit:g} s"
    return None


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _start(battery: Battery, name: str, seed: int, place: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads of libraries
        pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        _redirect(place)
        os.chdir(place / "work")
        code = _child(battery, name, seed, place)
    except BaseException:
        (place / "broken").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _redirect(place: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115


def _child(battery: Battery, name: str, seed: int, place: Path) -> int:
    trial = battery.trial(name, seed)
    work = Path.cwd()
    before = _files(work)
    (place / "ready").touch()
    _limit()
    result, code = _called(trial)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.chdir(work)
    after = _files(work)
    changed = [path for path, digest in before.items() if after.get(path) != digest]
    made = [path for path in after if path not in before]
    touched = changed if code == 0 else changed + made
    told = {
        "code": code,
        "codes": trial.codes,
        "names": trial.names,
        "must": trial.must,
        "many": trial.many,
        "changed": [path for path in touched if not path.startswith(trial.may_change or ("\0",))],
        "wrong": trial.wrong(result) if code == 0 and trial.must != "refuse" else _text(result),
    }
    (place / "told").write_text(json.dumps(told))
    return 0


def _text(result: Any) -> str:
    return result if isinstance(result, str) else ""


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (space, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_SIZE, resource.RLIM_INFINITY))


def _called(trial: Trial) -> tuple[Any, int]:
    """The result and the exit code, as the interpreter and the commands make them."""
    from ptycho_tasks.errors import PtychoTasksError

    result, code = None, 0
    try:
        result = trial.call()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except PtychoTasksError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    return result, code


def _files(folder: Path) -> dict[str, str]:
    """Every file but those that no user would miss, and what tells its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # doit's own database is made by a run without our settings before it asks anything of us.
        of_tools = {".ptycho", "__pycache__", ".pytest_cache"} & {*path.parts}
        if of_tools or name.endswith(".lock") or path.name.startswith(".doit.db"):
            continue
        if path.is_symlink() or not path.is_file():
            found[name] = "no file"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _judge(place: Path, status: int | str) -> tuple[str, str]:
    """The kind of an outcome, and why it is not clean."""
    out, err = ((place / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    text = out + err
    if (place / "broken").exists():
        return "other", f"the case is broken: {(place / 'broken').read_text().splitlines()[-1]}"
    for sign in ("Traceback (most recent call last)", FAULT):
        if sign in text:
            return "traceback", _last(err or out)
    if isinstance(status, str):
        return "other", status
    if os.WIFSIGNALED(status):
        return "other", f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    told = json.loads((place / "told").read_text())
    for line in text.splitlines():
        leak = "Warning: " in line and "/backends/" not in line and _LEAK.search(line)
        if leak:
            return "other", f"a library's warning: {line[: leak.start()][-30:]}{leak[0][:150]}"
    return _judge_end(told, out, err)


def _judge_end(told: dict[str, Any], out: str, err: str) -> tuple[str, str]:
    warned = told["must"] == "speak" and _WARNING.search(out + err)
    if told["code"] == 0 and not warned:
        if told["must"] == "refuse":
            return "silent", told["wrong"] or "taken without a word"
        if told["wrong"]:
            return "silent", told["wrong"]
    if told["changed"]:
        return "other", f"exit {told['code']}, changed: {', '.join(told['changed'][:5])}"
    if told["code"] == 0:
        return "clean", ""
    errors = [line for line in (err + "\n" + out).splitlines() if _ERROR.match(line)]
    if told["must"] == "succeed":
        return "other", f"refused although it is right: {_last(err)}"
    if told["code"] not in told["codes"]:
        return "other", f"exit {told['code']}: {_last(err)}"
    if not errors or (len(errors) > 1 and not told["many"]):
        return "other", f"{len(errors)} lines of error: {_last(err)}"
    if told["names"] and not all(any(n in line for n in told["names"]) for line in errors):
        return "other", f"names neither file nor key: {errors[0][:200]}"
    return "clean", ""


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no word"
