"""What this program made, known by record and by content: nothing else is removed or replaced.

What lies beside an output, as logs and kept checkpoints do, is known by a record in its folder:
`.made.json`, the sha256 of every file that a run wrote there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ptycho_tasks.errors import ConfigError, FileWriteError, PtychoTasksError
from ptycho_tasks.layout import BUNDLE_NAME, METRICS
from ptycho_tasks.system.files import sha256_file, write_atomic, writing

RECORD = ".made.json"


def check_ours(paths: Iterable[Path], remedy: str) -> None:
    """Refuse to replace files that are not ours; see `is_ours`.

    Args:
        paths: where outputs go; what is not there is no obstacle.
        remedy: what to do besides moving a file away.

    Raises:
        ConfigError: one line that names the file.
    """
    for path in paths:
        if path.is_file() and not is_ours(path):
            raise ConfigError(
                f"{path} is there, and was not made by ptycho-tasks or was changed since; "
                f"move it away{remedy}"
            )


def is_ours(path: Path) -> bool:
    """Whether a file says credibly that this program made it.

    A bundle that is whole does; of a reconstruction, a product with our group, metrics that say
    what they were made from, and a picture that names us or that such metrics name; a sidecar, the
    fixture that it fits, and the simulated scan that it names.
    """
    try:
        return _RULES.get(path.suffix, _is_strange)(path)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, PtychoTasksError):
        return False


def _is_strange(path: Path) -> bool:
    return False


def _is_bundle(path: Path) -> bool:
    from ptycho_tasks.results.bundle import load_bundle

    return path.name == BUNDLE_NAME and bool(load_bundle(path.parent).manifest)


def _is_product(path: Path) -> bool:
    import h5py

    from ptycho_tasks.results.product import GROUP

    with h5py.File(path) as file:
        return "provenance" in file[GROUP]


def _is_text(path: Path) -> bool:
    if path.name == METRICS:
        return isinstance(_read_json(path)["made_from"]["files"], dict)
    from ptycho_tasks.scans.fixture import read_sidecar

    return bool(read_sidecar(path))


def _is_picture(path: Path) -> bool:
    from ptycho_tasks.results.pictures import is_picture

    if is_picture(path):
        return True
    named = _read_json(path.with_name(METRICS))["made_from"]["files"]
    return bool(named[path.name] == sha256_file(path))


def _is_fixture(path: Path) -> bool:
    from ptycho_tasks.scans.fixture import is_whole

    return is_whole(path) or _is_source_of_fixture(path)


def _is_source_of_fixture(path: Path) -> bool:
    digest = sha256_file(path)
    for sidecar in path.parent.glob("*.json"):
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            source = _read_json(sidecar)["source"]
            if (source["name"], source["sha256"]) == (path.name, digest):
                return is_ours(sidecar)
    return False


_RULES = {
    ".zip": _is_bundle,
    ".h5": _is_product,
    ".json": _is_text,
    ".png": _is_picture,
    ".npz": _is_fixture,
}


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


# --- records of a folder ----------------------------------------------------------------------


def remove_recorded(folder: Path) -> list[Path]:
    """Remove the files of a folder that are as its record says, the record, and empty folders.

    Returns:
        The files that stay, which are of others or were changed.

    Raises:
        FileWriteError: one cannot be removed.
    """
    if not folder.is_dir() or folder.is_symlink():
        return []
    ours = recorded(folder)
    with writing(folder):
        for path in ours:
            path.unlink()
        (folder / RECORD).unlink(missing_ok=True)
    _remove_empty(folder)
    return sorted(_files(folder))


def recorded(folder: Path) -> list[Path]:
    """The files of a folder that are as its record says."""
    made = _record(folder)
    return [
        path
        for path in _files(folder)
        if _name(path, folder) in made and made[_name(path, folder)] == _digest(path)
    ]


@contextmanager
def recording(folder: Path) -> Iterator[None]:
    """Record the files of a folder that are new or changed after the block, however that ends."""
    before = {path: _stamp(path) for path in _files(folder)}
    known = _record(folder)
    try:
        yield
    finally:
        now = {path: _stamp(path) for path in _files(folder)}
        written = [path for path, stamp in now.items() if before.get(path) != stamp]
        names = {_name(path, folder) for path in now}
        kept = {name: sha256 for name, sha256 in known.items() if name in names}
        if written or kept != known:
            record(folder, written, kept)


def record(folder: Path, written: Iterable[Path], kept: dict[str, str] | None = None) -> None:
    """Record files of a folder, in place of what was recorded.

    Args:
        folder: gets the record.
        written: files in it.
        kept: names in it to sha256, of others that are ours too.
    """
    made = {_name(path, folder): _digest(path) for path in written}
    text = json.dumps({**(kept or {}), **made}, indent=1, sort_keys=True) + "\n"
    # Without the record the files stay, when others would be removed; that is all.
    with suppress(FileWriteError):
        write_atomic(folder / RECORD, text.encode())


def _record(folder: Path) -> dict[str, str]:
    try:
        found = _read_json(folder / RECORD)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder but its record; links are not followed."""
    for root, _, names in os.walk(folder):
        for name in names:
            if name != RECORD:
                yield Path(root, name)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.lstat()
    except OSError:  # a writer replaced it just now
        return (0, 0, 0)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _digest(path: Path) -> str | None:
    try:
        return None if path.is_symlink() else sha256_file(path)
    except OSError:
        return None


def _remove_empty(folder: Path) -> None:
    for root, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # it holds something
            Path(root).rmdir()
