"""Which scans a project has now, in which files, without settling what is done with each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ptycho_tasks.config.document import parse_config
from ptycho_tasks.config.factories import list_variants
from ptycho_tasks.config.layers import Variant, merge
from ptycho_tasks.config.scans import Stray, read_scans
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.layout import CONFIG_NAME, FILES_BESIDE, read_config_bytes
from ptycho_tasks.system.cache import forget_all


class PresentScans(NamedTuple):
    """The scans of a project's variants."""

    config: bytes
    """The ptycho.yaml that they are of."""
    files: dict[str, tuple[Path, ...]]
    """The files of each scan, by its name; absolute; none of a scan that is simulated."""
    learned: frozenset[str]
    """The names of those that are learned from."""
    folders: tuple[Path, ...]
    """Where files may come that globs match; absolute."""
    strays: tuple[Stray, ...]
    """Files that are left out, since they cannot be told from other scans by name."""
    label: str | None
    """The variant whose tasks are wanted, if not all are."""


def list_present_scans(root: Path, variant: str | None = None) -> PresentScans:
    """List the scans of the project at `root`, or of one variant of it, as its files are now.

    Raises:
        NoMatchError: a glob matches no file yet.
        ConfigError: something in ptycho.yaml is wrong, there is no such variant, or no scan can
            come, since no glob is listed.
    """
    forget_all()
    config = read_config_bytes(root / CONFIG_NAME)
    file = parse_config(root / CONFIG_NAME, config, skips_strays=True)
    files: dict[str, set[Path]] = {}
    learned: set[str] = set()
    folders: dict[Path, None] = {}
    strays: dict[Stray, None] = {}
    variants = list_variants(file)
    for one in _choose_variants(variants, variant):
        scans = read_scans(merge(file, one))
        folders |= dict.fromkeys(map(Path, scans.watched))
        strays |= dict.fromkeys(scans.strays)
        learned |= {name for name in scans.learned if name is not None}
        for name, scan in scans.by_name.items():
            if name in {*scans.inferred, *scans.learned}:
                paths = (scan.settings.get(key) for key in ("file", *FILES_BESIDE))
                own = {
                    _absolute(root, path)
                    for path in paths
                    if path != "estimate" and isinstance(path, str)
                }
                files.setdefault(name, set()).update(own)
    if not folders:
        raise ConfigError(
            f"{file.where('source.files')}: no scan can come: `source.files` lists no glob; write "
            "one there, as in `source: {files: [raw/*.npz]}`"
        )
    own_files = {name: tuple(sorted(paths)) for name, paths in files.items()}
    label = variant if len(variants) > 1 or variants[0].overrides else None
    return PresentScans(config, own_files, frozenset(learned), tuple(folders), tuple(strays), label)


def _choose_variants(variants: list[Variant], wanted: str | None) -> list[Variant]:
    chosen = [one for one in variants if wanted in (None, one.name)]
    if not chosen:
        names = ", ".join(f"`{one.name}`" for one in variants[:5])
        more = ", ..." if len(variants) > 5 else ""
        raise ConfigError(f"--variant: no variant is called `{wanted}`; there is {names}{more}")
    return chosen


def _absolute(root: Path, path: str) -> Path:
    return root / os.path.expanduser(path)  # noqa: PTH111 (Path's may raise)
