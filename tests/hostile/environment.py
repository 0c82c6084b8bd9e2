"""Places in which a program runs: full disks, closed outputs, damaged state, strange clocks."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.battery import Battery, Must, Rng, Trial
from hostile.evidence_files import proved
from hostile.products import OUTPUTS
from hostile.running import command, doit, ptycho
from hostile.scans import built_project, project, save, wrong_result

ENVIRONMENT = Battery("environment")
STATE = Path(".ptycho/state.sqlite")
NAMES = (
    "stdout",
    "output",
    "state.sqlite",
    ".ptycho",
    "fixtures",
    "runs",
    "space",
    "pace",
    "SOURCE_DATE_EPOCH",
)
WRITES = ("fixtures", "runs")

# --- where the words go --------------------------------------------------------------------------

_DOIT, _PTYCHO = f"{sys.executable} -m doit", f"{sys.executable} -m ptycho_tasks.commands.cli"
_COMMANDS = {
    "list": f"{_DOIT} list",
    "why": f"{_DOIT} why",
    "dry_run": f"{_DOIT} dry-run infer",
    "source": f"{_DOIT} source",
    "clean": f"{_DOIT} clean -n",
    "config": f"{_PTYCHO} config",
    "schema": f"{_PTYCHO} config --schema",
    "backends": f"{_PTYCHO} backends epie",
    "help": f"{_PTYCHO} --help",
    "completion": f"{_PTYCHO} completion bash",
    "simulate": f"{_PTYCHO} simulate new.npz --size 16 --grid 3",
}
_REDIRECTIONS: dict[str, tuple[str, Must]] = {
    "head": ("{} | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}", "either"),
    "nobody_reads": ("{} | true; exit ${{PIPESTATUS[0]}}", "either"),
    "full": ("{} >/dev/full", "either"),
    "both_full": ("{} >/dev/full 2>/dev/full; true", "either"),
    "closed": ("{} >&-", "either"),
    "errors_closed": ("{} 2>&-", "succeed"),
    "all_closed": ("{} <&- >&- 2>&-; true", "either"),
}
for _name, _line in _COMMANDS.items():
    for _way, (_template, _must) in _REDIRECTIONS.items():

        def _redirected(rng: Rng, line: str = _template.format(_line), must: Must = _must) -> Trial:
            project()

            def call() -> None:
                import subprocess

                done = subprocess.run(["bash", "-c", line], check=False)
                # Who stops reading wants no word about it, and may get exit 1, as click gives.
                quiet = (1, 120, 141) if "|" in line else ()
                raise SystemExit(0 if done.returncode in quiet else done.returncode)

            return Trial(call, (), must, may_change=(*WRITES, "new.npz"))

        ENVIRONMENT.add(f"{_way}_{_name}", _redirected)

# --- variables -----------------------------------------------------------------------------------


def _variable(name: str, *, must: Must = "succeed", **variables: str | None) -> None:
    """`doit infer` with environment variables set, or (None) unset, in a process of its own."""

    def maker(rng: Rng) -> Trial:
        save()
        project("scan.npz")
        environment = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
        call = command("-m", "doit", "infer", env=environment)
        return Trial(call, (*NAMES, *variables), must, wrong_result(), may_change=WRITES)

    ENVIRONMENT.add(name, maker)


_variable("locale_c", LC_ALL="C", LANG=None, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
_variable("locale_unknown", LC_ALL="xx_YY.ZZ")
_variable("encoding_ascii", PYTHONIOENCODING="ascii")
_variable("hash_seed_0", PYTHONHASHSEED="0")
_variable("hash_seed_large", PYTHONHASHSEED="4294967295")
_variable("no_home", HOME=None)
_variable("home_nowhere", HOME="/nowhere", XDG_CACHE_HOME="/nowhere", MPLCONFIGDIR="/nowhere/mpl")
_variable("epoch_0", SOURCE_DATE_EPOCH="0")
_variable("epoch_far", SOURCE_DATE_EPOCH="99999999999")
_variable("epoch_negative", SOURCE_DATE_EPOCH="-1")
_variable("epoch_text", must="either", SOURCE_DATE_EPOCH="soon")
_variable("no_temporary_folder", TMPDIR="/nowhere")
_variable("columns_0", COLUMNS="0", LINES="0")
_variable("columns_text", COLUMNS="wide")
_variable("no_terminal", TERM=None)
_variable("time_zone", TZ="Nowhere/Else")
_variable("optimized", PYTHONOPTIMIZE="2")
_variable("no_bytecode", PYTHONDONTWRITEBYTECODE="1")
_variable("unbuffered", PYTHONUNBUFFERED="1")
_variable("backend_gui", MPLBACKEND="QtAgg")
_variable("threads_0", must="either", OMP_NUM_THREADS="0")
_variable("no_locks_in_hdf5", HDF5_USE_FILE_LOCKING="FALSE")
_variable("empty_path", PATH="")

# --- disks ---------------------------------------------------------------------------------------


def _limited(limit: int, call: Callable[[], Any]) -> Callable[[], Any]:
    def limited() -> Any:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return call()

    return limited


@ENVIRONMENT.family
def _full_disk(rng: Rng) -> Trial:
    """No file may grow beyond some size, as on a disk that fills up."""
    save()
    project("scan.npz", more=str(rng.choice(["", "refine: {backend: further, epochs: 1}\n"])))
    limit = int(2 ** rng.uniform(8, 18))
    trial = Trial(_limited(limit, doit("infer")), (*NAMES, "tiny", "too large"), may_change=WRITES)
    trial.wrong = wrong_result()
    return trial


@ENVIRONMENT.family
def _full_disk_while_asking(rng: Rng) -> Trial:
    built_project()
    Path("ptycho.yaml").write_text(Path("ptycho.yaml").read_text() + "# changed\n")
    if rng.random() < 0.5:
        shutil.rmtree(".ptycho")
    words = str(rng.choice(["list", "why", "dry-run"]))
    return Trial(_limited(int(2 ** rng.uniform(10, 16)), doit(words)), NAMES, "succeed")


def _nobody(call: Callable[[], Any]) -> Callable[[], Any]:
    """As a user who may read, and not write."""

    def limited() -> Any:
        os.setegid(65534)
        os.seteuid(65534)
        try:
            return call()
        finally:
            os.seteuid(0)
            os.setegid(0)

    return limited


def _read_only(name: str, call: Callable[[], Any], make: Callable[[], Any], must: Must) -> None:
    def maker(rng: Rng) -> Trial:
        make()
        if os.geteuid():
            return Trial(lambda: None, (), "succeed")  # for want of a second user
        for folder in (Path(".."), Path("../..")):
            folder.chmod(0o755)
        return Trial(_nobody(call), (), must)

    ENVIRONMENT.add(f"read_only_{name}", maker)


for _words in ("list", "why", "dry-run"):
    _read_only(f"{_words}_built", doit(_words), built_project, "either")
    _read_only(f"{_words}_new", doit(_words), project, "either")
_read_only("infer_new", doit("infer"), project, "refuse")
_read_only("clean", doit("clean"), built_project, "either")
_read_only("forget", doit("forget"), built_project, "either")
_read_only("plan_check", ptycho("plan", "check"), proved, "either")
_read_only("plan_show", ptycho("plan", "show"), proved, "either")
_read_only(
    "simulate", ptycho("simulate", "a.npz", "--size", "16", "--grid", "3"), project, "refuse"
)
_read_only(
    "fixture", ptycho("fixture", "--source", "scan.npz", "--output", "c.npz"), save, "refuse"
)
_read_only("init", ptycho("init", "new", "--backend", "pinn"), save, "refuse")
_read_only(
    "unreadable_scan",
    ptycho("fixture", "--source", "scan.npz", "--output", "c.npz"),
    lambda: save().chmod(0o600),
    "refuse",
)


def _without_relative_path() -> dict[str, str]:
    """Python itself does not start in a folder that is gone where its path is relative, and
    doit fails before it has read the dodo.py that makes it ours."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


for _name, _call in {
    "config": ("-m", "ptycho_tasks.commands.cli", "config"),
    "train": (
        "-m",
        "ptycho_tasks.commands.cli",
        "train",
        "--train-data-file",
        "scan.npz",
        "--output-dir",
        "o",
    ),
}.items():

    def _gone(rng: Rng, words: tuple[str, ...] = _call) -> Trial:
        here = Path.cwd()

        def call() -> None:
            gone = here / "gone"
            gone.mkdir()
            os.chdir(gone)
            gone.rmdir()
            command(*words, env=_without_relative_path())()

        return Trial(call, (), "refuse", codes=(1, 2, 3))

    ENVIRONMENT.add(f"folder_is_gone_{_name}", _gone)

# --- state ---------------------------------------------------------------------------------------


def _sql(*statements: str) -> Callable[[], None]:
    def damage() -> None:
        connection = sqlite3.connect(STATE)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return damage


def _replaced(content: bytes) -> Callable[[], None]:
    return lambda: (STATE.write_bytes(content), None)[1]


def _foreign_database() -> None:
    STATE.unlink()
    connection = sqlite3.connect(STATE)
    connection.execute("CREATE TABLE mine (a)")
    connection.execute("INSERT INTO mine VALUES (1)")
    connection.commit()
    connection.close()


_DEEP = "[" * 100_000 + "]" * 100_000
_STATES: dict[str, Callable[[], Any]] = {
    "whole": lambda: None,
    "gone": lambda: shutil.rmtree(".ptycho"),
    "empty": _replaced(b""),
    "garbage": _replaced(b"no database" * 100),
    "magic_only": _replaced(b"SQLite format 3\0" + bytes(2000)),
    "folder": lambda: (STATE.unlink(), STATE.mkdir()),
    "loop": lambda: (STATE.unlink(), STATE.symlink_to("state.sqlite")),
    "nowhere": lambda: (STATE.unlink(), STATE.symlink_to("/nowhere/else")),
    "pipe": lambda: (STATE.unlink(), os.mkfifo(STATE)),
    "foreign": _foreign_database,
    "version_99": _sql("PRAGMA user_version = 99"),
    "other_program": _sql("PRAGMA application_id = 7"),
    "no_tables": _sql("DROP TABLE task", "DROP TABLE file", "DROP TABLE note"),
    "other_tables": _sql("DROP TABLE task", "CREATE TABLE task (x, y)"),
    "records_deep": _sql(f"UPDATE task SET record = '{_DEEP}'"),
    "records_list": _sql("UPDATE task SET record = '[]'"),
    "records_text": _sql("UPDATE task SET record = 'x'"),
    "records_blob": _sql("UPDATE task SET record = x'ff00'"),
    "records_numbers": _sql("UPDATE task SET record = '{\"_values_:\": 7}'"),
    "records_built": _sql('UPDATE task SET record = \'{"_values_:": {"built": [1]}}\''),
    "records_empty": _sql("UPDATE task SET record = '{}'"),
    "notes_deep": _sql(f"UPDATE note SET text = '{_DEEP}'"),
    "notes_list": _sql("UPDATE note SET text = '[]'"),
    "notes_rows": _sql('UPDATE note SET text = \'{"key": 1, "watched": 2, "rows": 3}\''),
    "notes_blob": _sql("UPDATE note SET text = x'ff'"),
    "files_text": _sql("UPDATE file SET size = 'x', mtime_ns = 'y'"),
    "files_blob": _sql("UPDATE file SET digest = x'ff'"),
    "all_a_file": lambda: (shutil.rmtree(".ptycho"), Path(".ptycho").touch()),
    "all_a_link": lambda: (shutil.rmtree(".ptycho"), Path(".ptycho").symlink_to("/nowhere")),
    "lock_folder": lambda: (Path(".ptycho/lock").unlink(), Path(".ptycho/lock").mkdir()),
    "lock_deep": lambda: Path(".ptycho/lock").write_text(_DEEP),
    "lock_not_utf8": lambda: Path(".ptycho/lock").write_bytes(b"\xff" * 100),
    "wal_garbage": lambda: Path(".ptycho/state.sqlite-wal").write_bytes(b"x" * 5000),
    "journal_garbage": lambda: Path(".ptycho/state.sqlite-journal").write_bytes(b"x" * 5000),
}


def after_damage(damage: Callable[[], Any], *words: str) -> Trial:
    """Damage the state; the results stay as they are."""
    original = built_project()
    damage()

    def wrong(_: Any) -> str:
        differ = [str(p) for p in OUTPUTS if p.read_bytes() != (original / p).read_bytes()]
        return f"changed: {', '.join(differ)}" if differ else ""

    return Trial(doit(*words), NAMES, "either", wrong)


for _name, _damage in _STATES.items():
    for _words in ("infer", "why", "list"):
        ENVIRONMENT.add(
            f"state_{_name}_{_words}",
            lambda rng, damage=_damage, words=_words: after_damage(damage, words),
        )


@ENVIRONMENT.family
def _state_spoilt(rng: Rng) -> Trial:
    def damage() -> None:
        data = bytearray(STATE.read_bytes())
        for _ in range(rng.integers(1, 30)):
            data[rng.integers(len(data))] = rng.integers(256)
        STATE.write_bytes(bytes(data))

    return after_damage(damage, str(rng.choice(["infer", "why", "list", "dry-run"])))


@ENVIRONMENT.family
def _state_cut(rng: Rng) -> Trial:
    def damage() -> None:
        STATE.write_bytes(STATE.read_bytes()[: rng.integers(STATE.stat().st_size)])

    return after_damage(damage, str(rng.choice(["infer", "why", "list", "dry-run"])))


# --- time and memory -----------------------------------------------------------------------------

_YEAR_S = 31_556_952


def _at(name: str, years: float, make: Callable[[], Any], call: Callable[[], Any]) -> None:
    """With a clock that is so many years ahead."""

    def maker(rng: Rng) -> Trial:
        make()
        now, now_ns = time.time, time.time_ns
        shift = int(years * _YEAR_S)

        def shifted() -> Any:
            time.time = lambda: now() + shift
            time.time_ns = lambda: now_ns() + shift * 10**9
            return call()

        return Trial(shifted, NAMES, "either", may_change=(*WRITES, "reports", "plan", "ledger"))

    ENVIRONMENT.add(f"clock_{name}", maker)


for _name, _years in {"250_years_ahead": 250, "9000_years_ahead": 9000, "before_1970": -80}.items():
    _at(f"{_name}_infer", _years, project, doit("infer"))
    _at(f"{_name}_why", _years, built_project, doit("why"))
    _at(f"{_name}_evidence", _years, proved, doit("evidence"))
    _at(f"{_name}_plan_show", _years, proved, ptycho("plan", "show"))

for _name, _stamp in {"far": 9_000_000_000, "negative": -3_000_000_000, "zero": 0}.items():

    def _stamped(rng: Rng, stamp: int = _stamp) -> Trial:
        return after_damage(
            lambda: [os.utime(p, (stamp, stamp)) for p in Path().rglob("*") if p.is_file()], "infer"
        )

    ENVIRONMENT.add(f"files_of_time_{_name}", _stamped)


@ENVIRONMENT.family
def _little_memory(rng: Rng) -> Trial:
    """So little that something cannot be had."""
    save()
    project("scan.npz")

    def call() -> Any:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + int(2 ** rng.uniform(16, 24))
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (space, hard))
        return doit("infer")()

    return Trial(call, (*NAMES, "memory"), may_change=WRITES)


@ENVIRONMENT.case
def _umask(rng: Rng) -> Trial:
    save()
    project("scan.npz")
    trial = Trial(lambda: (os.umask(0o777), doit("infer")())[1], NAMES, "either", wrong_result())
    trial.may_change = WRITES
    return trial


@ENVIRONMENT.case
def _few_files(rng: Rng) -> Trial:
    """No file can be opened any more."""
    save()
    project("scan.npz")

    def call() -> Any:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (7, hard))
        return doit("infer")()

    return Trial(call, (), "either", may_change=WRITES)
