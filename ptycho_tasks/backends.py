"""Finding backends: installed ones by entry point, a project's own in its `backends/` folder.

A backend is looked up by name and imported only when used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ptycho_tasks.backend import API_VERSION, Backend, TrainRequest
from ptycho_tasks.errors import BackendError, ScanError
from ptycho_tasks.options import (
    ExecutionOptions,
    Section,
    TrainingOptions,
    default_of,
    description_of,
)
from ptycho_tasks.system.plugins import Plugin, PluginKind, import_failure, list_plugins
from ptycho_tasks.system.processes import Stopped, catch_hard_exits

if TYPE_CHECKING:
    from ptycho_tasks.scan import ScanData

KIND = PluginKind("backend", "ptycho_tasks.backends", "backends")
_SEVERAL_SCANS = _BAD_PIXELS = 2
"""The first API version in which `train` may be given several scans, and any method bad pixels."""


@dataclass(frozen=True)
class BackendEntry(Plugin):
    """A backend that could be loaded."""

    def load(self) -> Backend:
        """Import the backend and check that it is one.

        Raises:
            BackendError: another backend has the same name, the import failed (the missing module
                is named), it is written for a later API version (both are named), or something
                that a backend must have is missing (named too).
        """
        if self.namesake:
            raise BackendError(
                f"backend `{self.name}` is there twice: {self.origin} and {self.namesake}; "
                "rename or remove one"
            )
        try:
            with catch_hard_exits():
                backend = self.importer()
                # A property runs code of the backend, too.
                members = {key: getattr(backend, key, None) for key in _MEMBERS}
                members["api_version"] = api_version(backend)
                members["execution_type"] = getattr(backend, "execution_type", ExecutionOptions)
                for method in ("refine", "check", "try_scan"):
                    members[method] = getattr(backend, method, None)
        except Stopped:
            raise
        except (Exception, SystemExit) as error:
            raise BackendError(
                f"backend `{self.name}` ({self.origin}) cannot be loaded: "
                f"{import_failure(error, self.source, KIND.word)}"
            ) from error
        self._refuse(backend, members)
        return backend  # type: ignore[no-any-return]

    def _refuse(self, backend: object, members: Mapping[str, Any]) -> None:
        """Refuse what is no backend, or one for a later core."""
        label = f"backend `{self.name}` ({self.origin})"
        written_for = members["api_version"]
        if type(written_for) is not int or written_for < 1:
            raise BackendError(f"{label} has a wrong api_version: expected an int from 1 on")
        # Before the members: another version may ask for others.
        if written_for > API_VERSION:
            raise BackendError(
                f"{label} is written for backend API version {written_for}; ptycho-tasks "
                f"{version('ptycho-tasks')} has backend API version {API_VERSION}; upgrade "
                "ptycho-tasks"
            )
        expected = {**_MEMBERS, **_OPTIONAL_MEMBERS}
        wrong = [key for key, fits in expected.items() if not fits(members[key])]
        if wrong:
            raise BackendError(
                f"{label} lacks or has wrong: {', '.join(wrong)}; a backend has a `name` and "
                "`version` (str), an `options_type` (a TrainingOptions class), and the methods "
                "`train` and `infer`; it may have an `execution_type` (an ExecutionOptions class) "
                "and methods `refine`, `check` and `try_scan`"
            )
        if isinstance(backend, type):
            raise BackendError(f"{label} is a class; give an instance of it")
        for kind in (members["options_type"], members["execution_type"]):
            _refuse_options(kind, label)
        if members["name"] != self.name:
            raise BackendError(
                f"{label} calls itself `{members['name']}`; the two names must agree"
            )


def _refuse_options(options_type: type[Section], label: str) -> None:
    """Refuse options that could not be shown, checked or left at their defaults."""
    try:
        fields = msgspec.structs.fields(options_type)
        lacking = [field.name for field in fields if not description_of(field.type)]
        needed = [field.name for field in fields if field.required]
        if not needed:
            msgspec.convert(msgspec.to_builtins(options_type()), options_type)
    except Exception as error:
        raise BackendError(
            f"{label} has options that cannot be used: {import_failure(error)}"
        ) from error
    if lacking or needed:
        wrong = (
            f"no doc of {', '.join(lacking)}" if lacking else f"no default of {', '.join(needed)}"
        )
        raise BackendError(
            f"{label} has {wrong}; declare each option as "
            '`name: Annotated[type, doc("its meaning")] = default`'
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


_MEMBERS: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "version": _is_text,
    "options_type": lambda value: isinstance(value, type) and issubclass(value, TrainingOptions),
    "train": callable,
    "infer": callable,
}
"""What a backend must have, and what each must be."""
_OPTIONAL_MEMBERS: Mapping[str, Callable[[Any], bool]] = {
    "execution_type": lambda value: isinstance(value, type) and issubclass(value, ExecutionOptions),
    "refine": lambda value: value is None or callable(value),
    "check": lambda value: value is None or callable(value),
    "try_scan": lambda value: value is None or callable(value),
}


def available(root: Path) -> dict[str, BackendEntry]:
    """Every backend that a project at `root` can name, by name; none is imported."""
    return {name: BackendEntry(**vars(plugin)) for name, plugin in list_plugins(KIND, root).items()}


def find_backend(name: str, root: Path) -> BackendEntry:
    """The backend called `name`, not yet imported.

    Raises:
        BackendError: there is none; the message lists those that are there.
    """
    entries = available(root)
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none is installed"
        raise BackendError(
            f"unknown backend `{name}`; known here: {known}; "
            f"install one, or write {KIND.folder}/{name}.py"
        )
    return entries[name]


def describe_all(root: Path) -> list[dict[str, Any]]:
    """What there is to say of every backend that a project at `root` can name, by name.

    All are imported. One that cannot be used stops no other: it has its name, its origin and an
    `error`.
    """
    descriptions: list[dict[str, Any]] = []
    for name, entry in sorted(available(root).items()):
        try:
            descriptions.append(describe(entry))
        except BackendError as error:
            descriptions.append({"name": name, "origin": entry.origin, "error": str(error)})
    return descriptions


def describe(entry: BackendEntry) -> dict[str, Any]:
    """What a backend is and offers, in values that JSON can hold; imports it.

    Raises:
        BackendError: it cannot be used.
    """
    backend = entry.load()
    return {
        "name": entry.name,
        "origin": entry.origin,
        "version": backend.version,
        "api_version": api_version(backend),
        "train": _first_line(backend.train),
        "infer": _first_line(backend.infer),
        "refine": _first_line(backend.refine) if hasattr(backend, "refine") else None,
        "options": _described(backend.options_type),
        "execution": _described(execution_type(backend)),
    }


def api_version(backend: object) -> int:
    """The `API_VERSION` that a backend was written for."""
    version: int = getattr(backend, "api_version", 1)
    return version


def check_scans(backend: Backend, request: TrainRequest) -> None:
    """Refuse scans that a backend cannot learn from together; before anything is computed.

    Raises:
        BackendError: several scans, or bad pixels, for a backend of an API version that knows of
            one, and of none.
        ScanError: their frames differ in size.
    """
    scans, written_for = request.scans, api_version(backend)
    if len(scans) > 1 and written_for < _SEVERAL_SCANS:
        raise BackendError(
            f"backend `{backend.name}` is written for backend API version {written_for}, which "
            f"learns from one scan, but {len(scans)} are given, which takes version "
            f"{_SEVERAL_SCANS}; name one under fixture.scans, or upgrade the backend"
        )
    first = scans[0]
    for scan in scans:
        check_bad_pixels(backend, scan)
        if scan.size != first.size:
            raise ScanError(
                f"fixture.scans: the frames of {first.name} have {first.size} x {first.size} "
                f"pixels, those of {scan.name} {scan.size} x {scan.size}; one training takes "
                "scans of one size"
            )


def check_bad_pixels(backend: Backend, scan: ScanData) -> None:
    """Refuse a scan with bad pixels for a backend that knows of none.

    Raises:
        BackendError: names both API versions.
    """
    written_for = api_version(backend)
    if scan.bad_pixels is not None and written_for < _BAD_PIXELS:
        raise BackendError(
            f"backend `{backend.name}` is written for backend API version {written_for}, which "
            f"knows of no bad pixels, but {scan.name} has some, which takes version {_BAD_PIXELS}; "
            "choose or upgrade the backend"
        )


def execution_type(backend: Backend) -> type[ExecutionOptions]:
    """What a backend understands under `execution:`."""
    kind: type[ExecutionOptions] = getattr(backend, "execution_type", ExecutionOptions)
    return kind


def sections_of(backend: Backend) -> dict[str, type[Section]]:
    """The types of the sections of ptycho.yaml that a backend decides."""
    return {"training": backend.options_type, "execution": execution_type(backend)}


def _described(kind: type[Section]) -> list[dict[str, Any]]:
    return [
        {
            "name": field.name,
            "default": msgspec.to_builtins(default_of(field)),
            "doc": description_of(field.type),
        }
        for field in msgspec.structs.fields(kind)
    ]


def _first_line(method: Callable[..., Any]) -> str:
    return (method.__doc__ or "").strip().partition("\n")[0]
