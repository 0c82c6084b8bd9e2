"""What this program made, as the content of a file says: nothing else is replaced.

Logs and kept checkpoints cannot say it; `folder_record` knows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.layout import BUNDLE_NAME, METRICS
from ptycho_tasks.system.files import sha256_file


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
        return _RULES.get(path.suffix, _is_of_others)(path)
    except (OSError, ValueError, LookupError, TypeError, RecursionError, PtychoTasksError):
        return False


def _is_of_others(path: Path) -> bool:
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
