"""The variants that a ptycho.yaml asks for: every combination of `matrix`, and those of `variants`.

    matrix:
      training.gridsize: [1, 2]
      training.seed: [0, 1]
    variants:
      - name: wide
        training: {neighbours: 64}

gives, in a project whose own gridsize is 1 and seed 0, the variants default, seed1, gridsize2,
gridsize2-seed1 and wide: each is named by the values in which it differs from the project without
variants, which is `default`. So names stay when axes are added, removed or reordered.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ptycho_tasks.config.document import ConfigFile, parse_value, shorten
from ptycho_tasks.config.fields import WHOLE, canonical_json
from ptycho_tasks.config.layers import DEFAULT_VARIANT, Variant
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import NAME_PATTERN, NAME_RULE

_FIXED = ("name", "store", "matrix", "variants", "evidence")
"""Keys that are the same in every variant."""
_MOST = 10_000
_LONGEST_VALUE = 40
_LONGEST_LABEL = 80
_LARGEST_INTEGER = 1e15
"""From here on a float is not written as an integer."""


def read_variants(file: ConfigFile, base: Mapping[str, Any]) -> list[Variant]:
    """Read the variants of a file, in order; one called `default` if the file asks for none.

    Whether the keys exist and the values fit shows when a variant is settled.

    Args:
        file: ptycho.yaml as read.
        base: dotted key path to value, of the file without variants; what is not known is left out.

    Raises:
        ConfigError: one line with the place of what is wrong: a nameless variant, two of one name,
            a key that no variant may change, a key given twice.
    """
    by_name: dict[str, Variant] = {}
    for where, variant in itertools.chain(_combine_matrix(file, base), _list_variants(file, base)):
        if not re.fullmatch(NAME_PATTERN, variant.name):
            raise ConfigError(f"{where}: variant {shorten(variant.name)}: expected {NAME_RULE}")
        # Some file systems do not tell `A` from `a`.
        other = by_name.setdefault(variant.name.casefold(), variant)
        # An axis may write one value in two ways.
        if other is not variant and not _are_same(other, variant):
            raise ConfigError(
                f"{where}: variant `{variant.name}`: there is another one called `{other.name}`; "
                "remove one, or list them under `variants` with names of their own"
            )
    return list(by_name.values()) or [DEFAULT_VARIANT]


def _are_same(one: Variant, other: Variant) -> bool:
    changes = [{key: _normalize(v) for key, v in each.changes.items()} for each in (one, other)]
    return one.name == other.name and changes[0] == changes[1]


def refuse_name(one_off: Variant, others: Iterable[Variant]) -> None:
    """Refuse a variant of the command line that is called like one of the file, and is another.

    Raises:
        ConfigError: names the variant.
    """
    for other in others:
        if other.name.casefold() == one_off.name.casefold() and not _are_same(other, one_off):
            raise ConfigError(
                f"{' '.join(one_off.origins.values())}: there is a variant called `{other.name}` "
                "that is another one; rename that"
            )


def read_one_off(changes: Mapping[str, str], base: Mapping[str, Any]) -> Variant:
    """The variant that a command line asks for with KEY=VALUE.

    Args:
        changes: dotted key path to a value as it would stand in ptycho.yaml.
        base: as for `read_variants`.

    Raises:
        ConfigError: a value is no YAML, or a key is one that no variant may change.
    """
    origins = {key: f"{key}={text}" for key, text in changes.items()}
    _check_keys("the command line", origins)
    for key, text in changes.items():
        if not text.strip():
            raise ConfigError(f"{origins[key]}: gives no value; `null` stands for none")
    given = {key: parse_value(text, origins[key]) for key, text in changes.items()}
    overrides = dict(_list_leaves(given))
    for key in [*overrides]:
        above = next(name for name in changes if f"{key}.".startswith(f"{name}."))
        origins[key] = origins[above]
    origins = {key: origins[key] for key in overrides}
    for key in overrides:
        meant = [known for known in base if known.rpartition(".")[2] == key and known != key]
        if meant and key not in base:
            value = origins[key].partition("=")[2]
            shown = " or ".join(f"{known}={value}" for known in meant)
            raise ConfigError(
                f"{origins[key]}: no setting is called `{key}`; did you mean {shown}?"
            )
    # How to run is no part of what a result is called after.
    decisive = {key: overrides[key] for key in overrides if not key.startswith("execution.")}
    different = _find_changes(decisive, base)
    name = _label_changes(different, list(different)) or DEFAULT_VARIANT.name
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"{shorten(name)} cannot name a variant: expected {NAME_RULE}")
    return Variant(name, overrides, origins, different)


def _label_changes(changes: Mapping[str, Any], keys: list[str]) -> str:
    """The label of changes to some of the keys that may be changed."""
    names = dict(zip(keys, shorten_keys(keys), strict=True))
    return make_label({names[key]: value for key, value in changes.items()})


def make_label(overrides: Mapping[str, Any]) -> str:
    """Write keys and values as one word that fits a file's name: `seed1-subset_size256`."""
    text = "-".join(f"{key}{_text(value)}" for key, value in sorted(overrides.items()))
    return text if len(text) <= _LONGEST_LABEL else f"{text[:60]}-{_digest(text)}"


def _find_changes(overrides: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that change something, by key."""
    return {
        key: overrides[key]
        for key in sorted(overrides)
        if key not in base or _normalize(base[key]) != _normalize(overrides[key])
    }


def _normalize(value: Any) -> str:
    """One text for a value, however it is written: `1e6` and `1000000`, `./a` and `a`."""
    if isinstance(value, str):
        return f"text {PurePath(value)}" if "/" in value else f"text {value}"
    return canonical_json(int(value) if _is_whole(value) else value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_INTEGER


def _combine_matrix(file: ConfigFile, base: Mapping[str, Any]) -> Iterator[tuple[str, Variant]]:
    matrix = file.data.get("matrix")
    if matrix is None:
        return
    where = file.where("matrix")
    if not isinstance(matrix, dict):
        raise ConfigError(f"{where}: matrix: expected `key: [values]` lines, got {shorten(matrix)}")
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"{file.where(f'matrix.{key}')}: matrix.{key}: expected a list of values, "
                f"got {shorten(values)}"
            )
    count = math.prod(map(len, matrix.values()))
    if count > _MOST:
        raise ConfigError(f"{where}: matrix: asks for {count} variants; take at most {_MOST}")
    origins = {key: file.where(f"matrix.{key}") for key in matrix}
    _check_keys("matrix", origins)
    for values in itertools.product(*matrix.values()) if matrix else ():
        overrides = dict(zip(matrix, values, strict=True))
        changes = _find_changes(overrides, base)
        label = _label_changes(changes, list(matrix))
        yield where, Variant(label or DEFAULT_VARIANT.name, overrides, origins, changes)


def _list_variants(file: ConfigFile, base: Mapping[str, Any]) -> Iterator[tuple[str, Variant]]:
    items = file.data.get("variants")
    if items is None:
        return
    if not isinstance(items, list):
        raise ConfigError(
            f"{file.where('variants')}: variants: expected a list, got {shorten(items)}"
        )
    for index, item in enumerate(items):
        at = f"variants[{index}]"
        where = file.where(f"{at}.name" if isinstance(item, dict) else at)
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ConfigError(f"{where}: {at}: expected a `name` and the keys that differ")
        what = f"variant `{item['name']}`"
        pairs = list(_list_leaves({k: v for k, v in item.items() if k != "name"}))
        origins: dict[str, str] = {}
        for key, _ in pairs:
            origin = file.where(f"{at}.{key}")
            if key in origins:
                raise ConfigError(f"{origin}: {what}: `{key}` is given twice; remove one")
            origins[key] = origin
        _check_keys(what, origins)
        overrides = dict(pairs)
        yield where, Variant(item["name"], overrides, origins, _find_changes(overrides, base))


def _list_leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key path and value of every leaf. A section that is empty or null has none: all its
    lines are commented out."""
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict) and value and key != WHOLE:
            yield from _list_leaves(value, key)
        elif value not in (None, {}) or "." in key or key in ("backend", "refine"):
            yield key, value


def _check_keys(what: str, origins: Mapping[str, str]) -> None:
    """Refuse keys that no variant may change, and one that holds another.

    Args:
        what: what the keys stand in, for the message.
        origins: key to its place.
    """
    for key, origin in origins.items():
        parts = key.split(".")
        if parts[0] in _FIXED:
            raise ConfigError(
                f"{origin}: {what}: `{key}` is the same in every variant; remove it here"
            )
        if key.startswith(f"{WHOLE}."):
            raise ConfigError(f"{origin}: {what}: `{key}` is a part of `{WHOLE}`; give that whole")
        if not all(parts):
            raise ConfigError(f"{origin}: {what}: `{key}` has a dot too many; remove it")
        for above in _prefixes(parts):
            if above in origins:
                raise ConfigError(f"{origin}: {what}: `{key}` is a part of `{above}`; remove one")


def _prefixes(parts: list[str]) -> Iterable[str]:
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def shorten_keys(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or as many parts as tell the keys apart."""
    parts = [key.split(".") for key in keys]
    lengths = range(1, max(map(len, parts), default=0) + 1)
    every = ([".".join(names[-length:]) for names in parts] for length in lengths)
    return next((names for names in every if len(set(names)) == len(names)), [])


def _text(value: Any) -> str:
    """A value as it stands in a name; what would be too long or strange, by its hash."""
    if isinstance(value, str) and "/" in value:
        path = PurePath(value)
        value = str(path.parent / path.stem).replace("/", "_")
    elif _is_whole(value):
        value = int(value)
    text = str(value) if isinstance(value, (str, int, float)) else canonical_json(value)
    fits = len(text) <= _LONGEST_VALUE and re.fullmatch(NAME_PATTERN, f"x{text}")
    return text if fits else _digest(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
