"""What decides the content of a result, and why two results differ.

Two results with equal identities are equal: made with the same settings by the same code from
inputs of the same content, wherever these lie and whatever they are called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ptycho_tasks.builds.notes import parse_mapping
from ptycho_tasks.builds.reasons import Reason, describe_change, shorten

PROJECT_CODE = "project"
"""The package, so to speak, of a project's own modules."""


class Identity(NamedTuple):
    """What decides the content of a result."""

    settings: str
    """Canonical JSON of dotted config key to value: those that change the result."""
    versions: Mapping[str, Any]
    """Code by name, to the version that its author gave it."""
    sources: Mapping[str, str | None]
    """Source files that count, by a name that begins with its package, to the digest of what they
    say; none of installed code."""
    inputs: Mapping[str, str | None]
    """What was read, by its role, to sha256; None for a file that is not there."""
    read: Mapping[str, str | None] = {}
    """Further files that were read, as those behind links, by path, to sha256."""

    def key(self) -> str:
        """sha256 of all of it, as hexadecimal digits."""
        parts = [self.settings, _digest(self.versions), _digest(self.sources)]
        parts += [f"{role}={self.inputs[role]}" for role in sorted(self.inputs)]
        if self.read:
            parts.append(_dump(self.read))
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def without_links(self) -> Identity:
        """The same, but for the further files that were read."""
        return self._replace(read={})

    def without(self, *names: str) -> Identity:
        """The same, but for some config keys."""
        settings = parse_mapping(self.settings)
        return self._replace(settings=_dump({k: v for k, v in settings.items() if k not in names}))

    def to_record(self) -> dict[str, Any]:
        """The identity in values that JSON can hold, for a file to keep."""
        record = {
            "settings": parse_mapping(self.settings),
            "versions": dict(self.versions),
            "sources": dict(self.sources),
            "inputs": dict(self.inputs),
        }
        return {**record, "read": dict(self.read)} if self.read else record


def read_identity(record: object) -> Identity | None:
    """The identity of which `to_record` made a record; None where it is none."""
    if not isinstance(record, Mapping):
        return None
    parts = [record.get(key) for key in ("settings", "versions", "sources", "inputs")]
    if not all(isinstance(part, Mapping) for part in [*parts, record.get("read", {})]):
        return None
    settings, *others = parts
    from ptycho_tasks.config.fields import canonical_json

    versions, sources, inputs = others
    read = record.get("read", {})
    return Identity(canonical_json(settings), versions, sources, inputs, read)  # type: ignore[arg-type]


def seal_metrics(metrics: Mapping[str, Any]) -> str:
    """sha256 of what a metrics.json holds besides `made_from`, where it is kept: so that numbers
    changed by hand are not taken for those of the result."""
    numbers = {name: value for name, value in metrics.items() if name != "made_from"}
    return hashlib.sha256(_dump(numbers).encode("utf-8", "surrogatepass")).hexdigest()


def are_metrics_whole(metrics: Mapping[str, Any]) -> bool:
    """Whether a metrics.json holds what it was written with; one of an older version says nothing
    of that, and is believed."""
    made_from = metrics.get("made_from")
    seal = made_from.get("metrics") if isinstance(made_from, Mapping) else None
    return seal is None or seal == seal_metrics(metrics)


CHANGED = "was changed by hand: its numbers are not those that were measured"
"""What is said of a metrics.json that is not whole."""


def list_differences(
    old: Identity,
    new: Identity,
    *,
    paths: Mapping[str, str],
    at_default: Collection[str] = (),
) -> Iterator[Reason]:
    """Why a result is not what it would be now.

    Args:
        old: what it was made from.
        new: what it would be made from.
        paths: where the inputs of today lie, by role.
        at_default: the config keys of `new` whose value is the default. Where `old` does not know
            one, it is an option that is new in the program and not used: no difference.
    """
    if old.settings != new.settings:
        yield from _changed_settings(parse_mapping(old.settings), new, at_default)
    if old.versions != new.versions or old.sources != new.sources:
        yield from _changed_code(old, new)
    for role in sorted({*old.inputs, *new.inputs}, key=lambda role: paths.get(role, role)):
        yield from _changed_file(paths.get(role, role), old.inputs.get(role), new.inputs.get(role))
    for path in sorted(old.read):
        yield from _changed_file(path, old.read[path], new.read.get(path))


def _changed_settings(
    old: Mapping[str, Any], identity: Identity, at_default: Collection[str]
) -> Iterator[Reason]:
    new = json.loads(identity.settings)
    for key in sorted({*old, *new}):
        if key not in old and key in at_default:
            continue
        if key not in old or key not in new or old[key] != new[key]:
            text = f"{key} {_value(old, key)} -> {_value(new, key)}"
            yield Reason("setting", key, text, old.get(key), new.get(key))


def _changed_code(old: Identity, new: Identity) -> Iterator[Reason]:
    for name in sorted({*old.versions, *new.versions}):
        before, now = old.versions.get(name), new.versions.get(name)
        if before != now:
            text = f"{name}: version {shorten(before)} -> {shorten(now)}"
            yield Reason("code", name, text, before, now)
    # Installed code has a version only: where a package comes or goes, the version decides.
    shared = {_package(name) for name in old.sources} & {_package(name) for name in new.sources}
    for name in sorted({*old.sources, *new.sources}):
        before, now = old.sources.get(name), new.sources.get(name)
        if _package(name) in shared and before != now:
            shown = name.removeprefix(f"{PROJECT_CODE}/")
            yield Reason("code", shown, describe_change(shown, before, now, "is new"), before, now)


def _changed_file(path: str, old: str | None, new: str | None) -> Iterator[Reason]:
    if old != new:
        text = describe_change(path, old, new, "is new as an input")
        yield Reason("input", path, text, old, new)


def _dump(mapping: Mapping[str, Any]) -> str:
    return _ENCODER.encode(mapping)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_MOST_DIGESTS = 100
_digests: dict[int, tuple[Mapping[str, Any], str]] = {}


def _digest(mapping: Mapping[str, Any]) -> str:
    """sha256 of a mapping that a thousand tasks share."""
    known = _digests.get(id(mapping))
    if known is None or known[0] is not mapping:
        if len(_digests) >= _MOST_DIGESTS:
            _digests.clear()
        digest = hashlib.sha256(_dump(mapping).encode("utf-8", "surrogatepass")).hexdigest()
        known = _digests[id(mapping)] = mapping, digest
    return known[1]


def _package(name: str) -> str:
    return name.partition("/")[0]


def _value(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"
