"""The scans of a project: those of `source.files`, and which of them are learned from.

    source:
      files: [calibration.npz, scans/*.npz]
      units: m
    fixture:
      scans: [calibration]

Under a mapping, each scan has a name and may have settings of its own:

    source:
      files:
        a: first.npz
        b: {file: second.npz, units: nm}
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ptycho_tasks.config.document import shorten
from ptycho_tasks.config.fields import WHOLE, flatten
from ptycho_tasks.config.globs import expand_glob, is_glob
from ptycho_tasks.config.layers import Layers, NamedScan, convert, convert_once
from ptycho_tasks.config.sections import InferenceOptions, SourceOptions, TrainingFrames
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import NAME_PATTERN, NAME_RULE
from ptycho_tasks.system.cache import cached

_SCANS = "fixture.scans"


class NoMatchError(ConfigError):
    """A glob that matches no file: there may be one some day."""

    def __init__(self, text: str, folders: list[str]) -> None:
        """Take what is wrong, and the folders where a file may come."""
        super().__init__(text)
        self.folders = folders


class Stray(NamedTuple):
    """A file that a glob matches, and that is left out since it cannot be told from another scan by
    name."""

    name: str
    """What the scan would be called."""
    file: str
    problem: str
    """What is wrong, where, and what to do."""


@dataclass(frozen=True)
class Scans:
    """The scans of a variant. A scan's name is None where `source` names no `files`: then there is
    one, and no task or folder is named by it."""

    names: tuple[str | None, ...]
    """All, in the order of ptycho.yaml; those that a glob matches are sorted."""
    learned: tuple[str | None, ...]
    """Those to learn from, in the order of `fixture.scans`."""
    inferred: tuple[str | None, ...]
    """Those to reconstruct."""
    watched: tuple[str, ...]
    """The folders whose listing decides what globs match; absolute; some may not be there."""
    by_name: Mapping[str, NamedScan]
    strays: tuple[Stray, ...] = ()
    """Files that are left out, where ptycho.yaml was read so."""


_ONE_SCAN = Scans((None,), (None,), (None,), (), {})


def read_scans(layers: Layers) -> Scans:
    """The scans that merged values ask for. Folders are listed where there are globs, no file is
    opened, and a file that is named need not be there. Answers are kept.

    Raises:
        ConfigError: one line with the place of what is wrong: a glob that matches nothing, a file
            that is listed twice, two scans of one name, a name that is none, no scans to learn
            from, or one that is not there.
    """
    source = layers.data.get("source")
    _refuse_wrong_place(layers, source)
    files = source.get("files") if isinstance(source, dict) else None
    if files is None:
        fixture = layers.data.get("fixture")
        if isinstance(fixture, dict) and fixture.get("scans") is not None:
            raise layers.refuse(
                _SCANS, "is for several scans; name them under `source.files`, or remove it"
            )
        return _ONE_SCAN
    assert isinstance(source, dict)
    if any(source.get(key) is not None for key in ("file", "simulate")):
        convert(layers, SourceOptions, "source")  # says that one is enough
    wanted = convert_once(layers, TrainingFrames, "fixture")[0].scans
    what = convert_once(layers, InferenceOptions, "inference")[0].scan
    asked = _Asked(layers, (id(layers.file), id(files)))
    chosen = None if wanted is None else tuple(wanted)
    return _choose_scans(_Asked(layers, (*asked.parts, chosen, what)), asked)


def _refuse_wrong_place(layers: Layers, source: Any) -> None:
    """Refuse one path or several scans where they may not stand, and show where they may.

    Raises:
        ConfigError: `source` is a path or a list, or its `file` is several.
    """
    if isinstance(source, str | list):
        key, given, expected = "source", source, "a mapping, `key: value` lines"
    elif isinstance(source, dict) and isinstance(source.get("file"), list | dict):
        key, given, expected = "source.file", source["file"], "one path"
    else:
        return
    form = _show_form(given)
    hint = form and f"; write `source: {form}`"
    raise layers.refuse(key, f"expected {expected}, got {shorten(given)}{hint}")


_SHOWN = 2
"""How many of several scans an example shows."""


def _show_form(given: Any) -> str:
    """How a path, a list of scans, or a mapping of them may stand in `source`; empty where that is
    none of them."""
    from ptycho_tasks.config.insertion import show_value  # takes 40 ms, and is for errors

    if isinstance(given, str):
        return show_value({"file": given})
    if not given or (isinstance(given, list) and not all(isinstance(x, str | dict) for x in given)):
        return ""
    if isinstance(given, list) and any(isinstance(one, dict) for one in given):
        given = dict(map(_name_scan, given))
    some = dict([*given.items()][:_SHOWN]) if isinstance(given, dict) else given[:_SHOWN]
    return show_value({"files": some})


def _name_scan(given: str | dict[str, Any]) -> tuple[str, Any]:
    """A name for a scan that stands in a list, and what can stand behind that."""
    if isinstance(given, dict) and len(given) == 1 and "file" not in given:
        return next(iter(given.items()))
    path = given.get("file") if isinstance(given, dict) else given
    if not isinstance(path, str) or is_glob(path):
        return "NAME", given
    return Path(path).stem, given


def find_scan(scans: Scans, name: str, layers: Layers) -> NamedScan:
    """The scan of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in scans.by_name:
        raise layers.refuse(WHOLE, _describe_unknown(name, scans.by_name))
    return scans.by_name[name]


@dataclass(frozen=True, eq=False)
class _Asked:
    """Merged values as the key of a cache: equal to others where the parts that count are. What is
    called by its id there is kept alive by the values."""

    layers: Layers
    parts: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)


@cached
def _choose_scans(asked: _Asked, listed: _Asked) -> Scans:
    layers, (*_, wanted, what) = asked.layers, asked.parts
    listing = _list_scans(listed)
    by_name = listing.by_name
    names = tuple(by_name)
    if wanted is not None:
        _refuse_strays(wanted, listing)
        learned = tuple(dict.fromkeys(_match_names(layers, wanted, by_name)))
    elif len(names) == 1:
        learned = names
    else:
        raise layers.refuse(
            WHOLE,
            f"names {len(names)} scans; say which to learn from, as in "
            f"`fixture: {{scans: [{names[0]}]}}`",
        )
    inferred = {"source": names, "fixture": learned}.get(what)
    if inferred is None:
        raise layers.refuse(
            "inference.scan",
            f"with `source.files`, expected `source` (each scan) or `fixture` (of each that is "
            f"learned from), got {shorten(what)}; list that file under `source.files`",
        )
    return Scans(names, learned, inferred, tuple(listing.watched), by_name, tuple(listing.strays))


def _refuse_strays(wanted: Iterable[str], listing: _ScanList) -> None:
    """Refuse to learn from a scan that was left out: what is learned from is no guess.

    Raises:
        ConfigError: what is wrong with it.
    """
    for stray in listing.strays:
        if stray.name not in listing.by_name and any(
            fnmatch.fnmatch(stray.name, text) for text in wanted
        ):
            raise ConfigError(stray.problem)


def _match_names(layers: Layers, wanted: Iterable[str], names: Mapping[str, Any]) -> Iterator[str]:
    for index, text in enumerate(wanted):
        matches = fnmatch.filter(names, text) if is_glob(text) else [text] * (text in names)
        if not matches:
            raise layers.refuse(f"{_SCANS}[{index}]", _describe_unknown(text, names))
        yield from matches


def _describe_unknown(text: str, names: Iterable[str]) -> str:
    if is_glob(text):
        return f"no scan has a name like {shorten(text)}; correct it, or remove it"
    near = difflib.get_close_matches(text, names, n=3)
    hint = f"did you mean {', '.join(f'`{name}`' for name in near)}?" if near else ""
    return f"no scan is called {shorten(text)}; {hint or 'name one of `source.files`'}"


@cached
def _list_scans(asked: _Asked) -> _ScanList:
    layers = asked.layers
    files = layers.data["source"]["files"]
    scans = _ScanList(layers)
    if isinstance(files, list):
        scans.add_paths(files)
    elif isinstance(files, dict):
        for name, value in files.items():
            scans.add_named(name, value)
    if scans.strays and not scans.by_name:
        raise NoMatchError(scans.strays[0].problem, list(scans.watched))
    if not scans.by_name:
        raise layers.refuse(
            WHOLE,
            f"expected a list of paths and globs, or `name: path` lines, got {shorten(files)}",
        )
    return scans


_STRANGE = re.compile(r"^[^A-Za-z0-9_]|[^A-Za-z0-9_.-]")
"""What no name may hold. A file that came by a glob may be called anything."""


class _ScanList:
    """Gathers scans, and the folders to watch; refuses, or leaves out, what is not distinct."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.by_name: dict[str, NamedScan] = {}
        self.watched: dict[str, None] = {}
        self.strays: list[Stray] = []
        self._matched: dict[int, NamedScan] = {}
        """Scans that may be left out, by their id."""
        self._root = str(layers.file.root)
        self._names: dict[str, NamedScan] = {}
        self._contents: dict[tuple[str, str], str] = {}

    def add_paths(self, paths: Iterable[Any]) -> None:
        """Add the scans of a list of paths and globs."""
        for index, text in enumerate(paths):
            key = f"{WHOLE}[{index}]"
            if not isinstance(text, str):
                form = _show_form([text])
                hint = form and f"; write `source: {form}`"
                raise self.layers.refuse(
                    key, f"expected a path or a glob, got {shorten(text)}{hint}"
                )
            where = self.layers.where(key)
            origins = {"source": where, "source.file": where}
            has_glob = self._is_glob(text)
            for path in self._expand(key, text) if has_glob else [text]:
                name = os.path.splitext(os.path.basename(path))[0]  # noqa: PTH119, PTH122 (thousands)
                if not has_glob:
                    self._add(key, NamedScan(name, {"file": path}, origins))
                else:
                    self._add_matched(
                        key, NamedScan(_STRANGE.sub("_", name), {"file": path}, origins)
                    )

    def add_named(self, name: str, value: Any) -> None:
        """Add a scan with a name of its own: its file, or its settings."""
        key = f"{WHOLE}.{name}"
        settings = {"file": value} if isinstance(value, str) else value
        has_one = isinstance(settings, dict) and not {"file", "simulate"}.isdisjoint(settings)
        if not has_one or "files" in settings:
            raise self.layers.refuse(
                key,
                f"expected a path, or settings with `file` (and not `files`), got {shorten(value)}",
            )
        text = settings.get("file")
        if isinstance(text, str) and self._is_glob(text):
            raise self.layers.refuse(
                key, f"{shorten(text)} is a glob, but a name is for one file; list globs"
            )
        self._add(key, NamedScan(name, settings, self._find_origins(key, value)))

    def _find_origins(self, key: str, value: Any) -> dict[str, str]:
        where = self.layers.where
        if isinstance(value, str):
            return {"source": where(key), "source.file": where(key)}
        keys = [f".{name}" for name in {**value, **flatten(value)}]
        return {"source": where(key), **{f"source{k}": where(f"{key}{k}") for k in keys}}

    def _is_glob(self, text: str) -> bool:
        # A file may have brackets in its name.
        return is_glob(text) and not os.path.lexists(self._path(text))

    def _path(self, text: str) -> str:
        # As `Payload.path`, but fast for thousands.
        expanded = os.path.expanduser(text)  # noqa: PTH111
        return os.path.normpath(os.path.join(self._root, expanded))  # noqa: PTH118

    def _expand(self, key: str, text: str) -> list[str]:
        paths, folders = expand_glob(self.layers.file.root, text)
        self.watched |= dict.fromkeys(folders)
        if not paths:
            refusal = self.layers.refuse(
                key,
                f"{shorten(text)} matches no file; correct it, or remove it (hidden and temporary "
                "files, and the project's `fixtures` and `runs`, do not count)",
            )
            raise NoMatchError(str(refusal), folders)
        return paths

    def _add_matched(self, key: str, scan: NamedScan) -> None:
        """Add the scan of a file that a glob matches, which may have come at any time."""
        if not self.layers.file.skips_strays:
            self._add(key, scan)
        elif self._describe_content(scan) not in self._contents:
            self._matched[id(scan)] = scan
            self._add(key, scan)

    def _leave_out(self, problem: ConfigError, *scans: NamedScan) -> None:
        """Leave out those scans that may be.

        Raises:
            ConfigError: the problem, where none may be left out.
        """
        strays = [scan for scan in scans if id(scan) in self._matched]
        if not strays:
            raise problem
        for scan in strays:
            if self.by_name.get(scan.name) is scan:
                del self.by_name[scan.name]
            self.strays.append(Stray(scan.name, scan.settings["file"], str(problem)))

    def _add(self, key: str, scan: NamedScan) -> None:
        if not re.fullmatch(NAME_PATTERN, scan.name):
            problem = self.layers.refuse(
                key,
                f"{shorten(scan.name)} cannot name a scan: expected {NAME_RULE}; write "
                f"`files: {{NAME: {scan.settings.get('file')}}}`",
            )
            return self._leave_out(problem, scan)
        content = self._describe_content(scan)
        if content in self._contents:
            where = self.layers.where(self._contents[content])
            raise self.layers.refuse(
                key, f"{_show_file(scan)} is listed twice, also at {where}; remove one"
            )
        # Some file systems do not tell `A` from `a`.
        other = self._names.setdefault(scan.name.casefold(), scan)
        if other is not scan:
            problem = self.layers.refuse(
                key,
                f"{_show_file(other)} and {_show_file(scan)} would both be called `{scan.name}`; "
                "rename one, or name them, as in `files: {first: PATH, second: PATH}`",
            )
            self._leave_out(problem, other, scan)
        self._contents[content] = key
        if other is scan or id(scan) not in self._matched:
            self._names[scan.name.casefold()] = self.by_name[scan.name] = scan
        return None

    def _describe_content(self, scan: NamedScan) -> tuple[str, str]:
        """What tells a scan from others: its file and its settings; its name, where simulated."""
        file = scan.settings.get("file")
        if not isinstance(file, str):
            return "", scan.name
        own = sorted(item for item in scan.settings.items() if item[0] != "file")
        return self._path(file), repr(own) if own else ""


def _show_file(scan: NamedScan) -> str:
    return shorten(scan.settings.get("file") or scan.name)
