"""Examining a scan as a project reads it, and writing what mends it into ptycho.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_tasks.backends import available
from ptycho_tasks.config.document import ConfigFile, parse_config, read_config
from ptycho_tasks.config.insertion import put_value, show_value
from ptycho_tasks.config.layers import NamedScan, convert, merge
from ptycho_tasks.config.scans import read_scans
from ptycho_tasks.config.sections import Config, SourceOptions
from ptycho_tasks.errors import BackendError, ConfigError
from ptycho_tasks.layout import CONFIG_NAME
from ptycho_tasks.scans.doctor.examine import Report, examine
from ptycho_tasks.scans.doctor.trials import TryScan
from ptycho_tasks.system.files import write_atomic

RELATIVE = ("source.orientation", "source.centre", "source.crop")
"""Settings that are found beside what is set already, and must not take its place."""


class ScanSettings(NamedTuple):
    """How a scan is read."""

    reading: Mapping[str, Any]
    """See `SourceOptions.reading`; and `follow`."""
    product: Path | None


class ProjectScan(NamedTuple):
    """A scan as a ptycho.yaml names it."""

    path: Path
    source: SourceOptions
    name: str | None
    """Its name in `source.files`; None where it is `source.file`."""

    def settings(self, root: Path) -> ScanSettings:
        """How the project at `root` reads it."""
        return list_settings(self.source, root)


def list_settings(source: SourceOptions, root: Path) -> ScanSettings:
    """How a source is read, its paths relative to `root`."""
    product = None if source.product is None else root / source.product
    follow = tuple(root / folder for folder in source.follow)
    reading = source.reading(lambda text: root / Path(text).expanduser())
    return ScanSettings({**reading, "follow": follow}, product)


def find_project_scan(root: Path, scan: Path) -> ProjectScan | None:
    """The scan of the project at `root` that has a path, or else a name, which is the
    project's own where it has one scan; None where there is none.

    Raises:
        ConfigError: its ptycho.yaml is wrong.
    """
    if not (root / CONFIG_NAME).is_file():
        return None
    file = read_config(root / CONFIG_NAME)
    scans = [*_list_scans(file)]
    for one in scans:
        if _is_same(one.path, scan):
            return one
    named = (one for one in scans if (one.name or file.data.get("name")) == str(scan))
    return None if scan.exists() else next(named, None)


def _list_scans(file: ConfigFile) -> Iterator[ProjectScan]:
    if file.data.get("source") is None:
        return
    named: list[NamedScan | None] = [*read_scans(merge(file)).by_name.values()]
    for one in named or [None]:
        source = convert(merge(file, scan=one), SourceOptions, "source")
        if source.file is not None:
            path = file.root / Path(source.file).expanduser()
            yield ProjectScan(path, source, one.name if one else None)


def _is_same(one: Path, other: Path) -> bool:
    return one.expanduser().resolve() == other.expanduser().resolve()


def change_settings(
    settings: ScanSettings | None, flags: SourceOptions, names: set[str]
) -> ScanSettings:
    """Settings of a project, if there is one, with those of flags in their place.

    Args:
        settings: of the project.
        flags: values of flags; paths are relative to the current folder.
        names: the fields that were given.
    """
    given = list_settings(flags, Path.cwd())
    before = settings or ScanSettings({}, None)
    reading = {key: value for key, value in given.reading.items() if key in names}
    product = given.product if "product" in names else before.product
    return ScanSettings({**before.reading, **reading}, product)


def check_scan(
    scan: Path,
    root: Path,
    settings: ScanSettings | None,
    *,
    tries: bool = True,
    say: Callable[[str], None] = lambda what: None,
) -> Report:
    """Examine a scan.

    Args:
        scan: its path.
        root: where backends and readers are looked for.
        settings: how it is read; None as it is.
        tries: whether quick reconstructions are made.
        say: see `examine`.
    """
    reading, product = settings or ScanSettings({}, None)
    try_scan = find_try_scan(root) if tries else None
    settings_read = {**reading, "root": root}
    return examine(scan, settings_read, product=product, try_scan=try_scan, say=say)


def find_try_scan(root: Path) -> TryScan | None:
    """What makes quick reconstructions, of the first backend that can; None if none can."""
    for _, entry in sorted(available(root).items()):
        try:
            backend = entry.load()
        except BackendError:
            continue
        try_scan: TryScan | None = getattr(backend, "try_scan", None)
        if try_scan is not None:
            return try_scan
    return None


def list_lines(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they stand in ptycho.yaml."""
    lines = [f"  {key.partition('.')[2]}: {show_value(value)}" for key, value in settings.items()]
    return ["source:", *lines] if lines else []


def write_settings(root: Path, scan: Path, settings: Mapping[str, Any]) -> Path:
    """Write settings of `source` into the ptycho.yaml at `root`, or into those of the scan where it
    is one of several; all other lines stay.

    Raises:
        ConfigError: there is none, it does not name this scan, or the settings do not fit; nothing
            was written.
    """
    path = root / CONFIG_NAME
    if not path.is_file():
        raise ConfigError(f"--write: there is no {path}; run `ptycho-tasks init` first")
    content = path.read_bytes()
    file = parse_config(path, content)
    found = find_project_scan(root, scan)
    section = None if found is None else _find_section(file, found)
    if found is None or section is None:
        raise ConfigError(
            f"--write: no line of {path.name} names {scan} alone: write `file: {scan}` in "
            f"`source`, or `{scan.stem}: {scan}` in `source.files`"
        )
    _refuse_twice(file, found, settings)
    text = content.decode("utf-8")
    for key, value in settings.items():
        text = put_value(text, section, key.partition(".")[2], value)
    changed = parse_config(path, text.encode())
    convert(merge(changed), Config)
    [*_list_scans(changed)]  # each with its own settings
    write_atomic(path, text.encode())
    return path


def _find_section(file: ConfigFile, scan: ProjectScan) -> tuple[str, ...] | None:
    """The keys that lead to the settings of a scan; None where a glob or a list names it."""
    source = file.data["source"]
    if scan.name is None:
        return ("source",) if isinstance(source.get("file"), str) else None
    files = source.get("files")
    is_named = isinstance(files, dict) and scan.name in files
    return ("source", "files", scan.name) if is_named else None


def _refuse_twice(file: ConfigFile, scan: ProjectScan, settings: Mapping[str, Any]) -> None:
    source = file.data["source"]
    own = source["files"][scan.name] if scan.name is not None else {}
    for key in RELATIVE:
        name = key.partition(".")[2]
        is_own = isinstance(own, dict) and own.get(name) is not None
        if key in settings and (is_own or source.get(name) is not None):
            place = f"source.files.{scan.name}.{name}" if is_own else key
            raise ConfigError(
                f"--write: {place} is set at {file.where(place)} already, and what was found comes "
                "on top of it; put both together by hand"
            )
