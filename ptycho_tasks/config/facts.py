"""What is known of each key of ptycho.yaml besides its value: what it decides, and its default."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ptycho_tasks.config.fields import section_types
from ptycho_tasks.options import Section, Stages, default_of


class Fact(NamedTuple):
    """What is known of a key besides its value."""

    affects: Stages
    """The stages whose results it decides."""
    default: Any
    """Its plain default value."""
    words: tuple[str, ...] = ()
    """Of a key that names a file, those that stand for something else."""


class Facts(dict[str, Fact]):
    """What is known of every key, by its dotted path."""

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        """Copy some facts."""
        super().__init__(facts)
        self.default = functools.cache(lambda key: self.find(key).default)
        self._keys: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def find(self, key: str) -> Fact:
        """The fact of a key. A key below a mapping of the user has the fact of the mapping."""
        while key not in self:
            key = key.rpartition(".")[0]
        return self[key]

    def select_keys(self, stage: str, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Select the keys that decide the result of a stage."""
        if (stage, keys) not in self._keys:
            self._keys[stage, keys] = tuple(k for k in keys if stage in self.find(k).affects)
        return self._keys[stage, keys]


def list_facts(kind: type[Section], prefix: str = "") -> dict[str, Fact]:
    """The fact of every field below `kind`, by dotted key path.

    A field that may be a section or null, as `source.simulate`, stands for itself too.
    """
    return {f"{prefix}.{key}" if prefix else key: fact for key, fact in _facts_of(kind)}


# Types say this by annotations, which msgspec reads anew each time.
@functools.lru_cache(maxsize=64)
def _facts_of(kind: type[Section]) -> tuple[tuple[str, Fact], ...]:
    result: list[tuple[str, Fact]] = []
    for item in msgspec.structs.fields(kind):
        metas = [m for m in item.type.__metadata__ if isinstance(m, msgspec.Meta)]
        said = {name: value for m in metas for name, value in (m.extra or {}).items()}
        affects = said.get("affects", kind.affects)
        nested = next(section_types(item.type), None)
        if nested is None or item.default is None:
            result.append((item.name, Fact(affects, default_of(item), said.get("words", ()))))
        if nested is not None:
            result += list_facts(nested, item.name).items()
    return tuple(result)
