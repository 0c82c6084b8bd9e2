"""The variants that a ptycho.yaml asks for: every combination of `matrix`, and those of `variants`.

    matrix:
      training.gridsize: [1, 2]
      training.seed: [0, 1]
    variants:
      - name: wide
        training: {neighbours: 64}

gives gridsize1-seed0, gridsize1-seed1, gridsize2-seed0, gridsize2-seed1 and wide.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from ptycho_tasks.config import ONLY, ConfigFile, Variant, canonical_json
from ptycho_tasks.errors import ConfigError

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_.-]*")
_FIXED = ("name", "matrix", "variants")
"""Keys that are the same in every variant."""


def variants_of(file: ConfigFile) -> list[Variant]:
    """The variants in their order; one called `default` where the file asks for none.

    Whether the keys exist and the values fit shows when a variant is settled.

    Raises:
        ConfigError: one line with the place of what is wrong: an empty or nameless variant, two
            of one name, a key that no variant may change.
    """
    found: dict[str, Variant] = {}
    for variant in [*_combinations(file), *_listed(file)]:
        where = next(iter(variant.origins.values()), file.path.name)
        if not _NAME.fullmatch(variant.name):
            raise ConfigError(
                f"{where}: variant {variant.name!r}: a name has letters, digits, `.`, `_` and `-`, "
                "and begins with a letter or digit"
            )
        if variant.name in found:
            raise ConfigError(f"{where}: there are two variants of the name `{variant.name}`")
        for key in variant.overrides:
            if key.split(".")[0] in _FIXED:
                raise ConfigError(
                    f"{variant.origins[key]}: variant `{variant.name}`: `{key}` is the same in "
                    "every variant; remove it here"
                )
        found[variant.name] = variant
    return list(found.values()) or [ONLY]


def label(overrides: Mapping[str, Any]) -> str:
    """Keys and values in one word, fit for a file's name: `subset_size256-seed1`."""
    return "-".join(f"{key}{_text(value)}" for key, value in overrides.items())


def _combinations(file: ConfigFile) -> Iterator[Variant]:
    matrix = file.data.get("matrix") or {}
    if not isinstance(matrix, dict):
        raise ConfigError(f"{file.where('matrix')}: matrix: expected `key: [values]` lines")
    rows: dict[str, list[Any]] = {}
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"{file.where(f'matrix.{key}')}: matrix.{key}: expected a list of values, "
                f"got {values!r}"
            )
        rows[key] = values
    if not rows:
        return
    origins = {key: file.where(f"matrix.{key}") for key in rows}
    short = _short(list(rows))
    for values in itertools.product(*rows.values()):
        overrides = dict(zip(rows, values, strict=True))
        yield Variant(label(dict(zip(short, values, strict=True))), overrides, origins)


def _listed(file: ConfigFile) -> Iterator[Variant]:
    listed = file.data.get("variants") or []
    if not isinstance(listed, list):
        raise ConfigError(f"{file.where('variants')}: variants: expected a list")
    for index, item in enumerate(listed):
        at = f"variants[{index}]"
        where = file.where(f"{at}.name" if isinstance(item, dict) and "name" in item else at)
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ConfigError(f"{where}: {at}: expected a `name` and the keys that differ")
        overrides = dict(_dotted({k: v for k, v in item.items() if k != "name"}))
        if not overrides:
            raise ConfigError(f"{where}: variant `{item['name']}` changes nothing")
        origins = {key: file.where(f"{at}.{key}") for key in overrides}
        yield Variant(item["name"], overrides, origins)


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict) and value:
            yield from _dotted(value, key)
        else:
            yield key, value


def _short(keys: list[str]) -> list[str]:
    """The last part of each key, or as many parts as tell the keys apart."""
    parts = [key.split(".") for key in keys]
    for length in itertools.count(1):
        short = [".".join(names[-length:]) for names in parts]
        if len(set(short)) == len(short) or length > max(map(len, parts)):
            return short
    raise AssertionError


def _text(value: Any) -> str:
    """A value as it stands in a name; what would be too long or strange, by its hash."""
    if isinstance(value, str) and "/" in value:
        value = PurePath(value).stem
    text = str(value) if isinstance(value, (str, int, float)) else canonical_json(value)
    if _NAME.fullmatch("x" + text) and len(text) <= 40:
        return text
    return hashlib.sha256(text.encode()).hexdigest()[:8]
