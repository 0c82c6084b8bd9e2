"""The text of ptycho.yaml as values, each with its line."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.layout import read_config_bytes


class _Scalar(NamedTuple):
    """One of YAML's types of single values."""

    kind: str
    pattern: re.Pattern[str]
    read: Callable[[str], Any]


def _integer(text: str) -> int:
    sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-")
    return sign * int(digits, {"0o": 8, "0x": 16}.get(digits[:2], 10))


_SCALARS = {
    "tag:yaml.org,2002:null": _Scalar("null", re.compile("|~|null|Null|NULL"), lambda text: None),
    "tag:yaml.org,2002:bool": _Scalar(
        "true or false",
        re.compile("true|True|TRUE|false|False|FALSE"),
        lambda text: text[0] in "tT",
    ),
    "tag:yaml.org,2002:int": _Scalar(
        "an integer", re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), _integer
    ),
    "tag:yaml.org,2002:float": _Scalar(
        "a number",
        re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"),
        float,
    ),
    "tag:yaml.org,2002:str": _Scalar("text", re.compile(".*", re.DOTALL), str),
}
"""YAML 1.2's core schema, in which `on` is text and 1e9 a number, as people expect."""

_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")

_LONGEST_KEY = 100

_LONGEST_NUMBER = 100

_MOST_VALUES = 100_000

_DEEPEST = 20
"""Beyond any configuration; what is longer or deeper was made to do harm."""


_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BaseLoader):  # type: ignore[misc]
    """Knows the types of `_SCALARS`, and no others."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Choose the tag of a node that has none in the text."""
        if kind is yaml.ScalarNode and implicit[0]:
            return next(tag for tag, type_ in _SCALARS.items() if type_.pattern.fullmatch(value))
        return super().resolve(kind, value, implicit)


@dataclass(frozen=True)
class ConfigFile:
    """A ptycho.yaml as written: plain values, and the line of every key."""

    path: Path
    data: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    """Dotted key path to line number, counted from 1."""
    skips_strays: bool = False
    """Whether files that only globs match are left out, and not refused, where they cannot be told
    from other scans by name: see `ptycho_tasks.config.scans.Stray`."""

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.path.parent

    @functools.cached_property
    def origins(self) -> Mapping[str, str]:
        """Dotted key path to `ptycho.yaml:LINE`, but for items of lists and named scans, which may
        be thousands; `where` knows them too."""
        return {
            key: f"{self.path.name}:{line}"
            for key, line in self.lines.items()
            if "[" not in key and not key.startswith("source.files.")
        }

    def where(self, key: str) -> str:
        """`ptycho.yaml:12`, or the nearest parent's line where the key itself is absent."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.path.name}:{self.lines[key]}" if key else self.path.name


def read_config(path: Path) -> ConfigFile:
    """Read ptycho.yaml without judging its values.

    Raises:
        ConfigError: the file is missing, or `parse_config` refuses it.
    """
    return parse_config(path, read_config_bytes(path))


def parse_config(path: Path, content: bytes, *, skips_strays: bool = False) -> ConfigFile:
    """Parse the text of a ptycho.yaml without judging its values.

    Args:
        path: where it lies.
        content: its bytes.
        skips_strays: see `ConfigFile`.

    Raises:
        ConfigError: it is not UTF-8, not YAML, gives a key twice, or is too large or too deep.
    """
    document = _Document(path.name)
    data = document.read(_text(path, content))
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}:1: expected `key: value` lines, got {_kind(data)}")
    return ConfigFile(path.absolute(), data, document.lines, skips_strays)


def parse_value(text: str, name: str) -> Any:
    """Parse one value, as it would stand in a ptycho.yaml.

    Args:
        text: the value.
        name: what it is called in messages.

    Raises:
        ConfigError: it is no YAML.
    """
    return _Document(name).read(_text(Path(name), text.encode("utf-8", "replace")))


def _text(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path.name}:{line}: the byte 0x{content[error.start]:02x} is not UTF-8; save the "
            "file as UTF-8"
        ) from error
    strange = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if strange:
        line = text.count("\n", 0, strange.start()) + 1
        raise ConfigError(
            f"{path.name}:{line}: has the character {strange[0]!r}, which YAML does not allow; "
            "remove it"
        )
    return text


class _Document:
    """Reads YAML to plain values, and notes the line of every key on the way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[str, int] = {}
        self._values = 0

    def read(self, text: str) -> Any:
        try:
            self._check_depth(text)
            node = yaml.compose(text, _Loader)
        except yaml.YAMLError as error:
            raise self._syntax_error(error) from error
        return {} if node is None else self._value(node, "", ())

    def _check_depth(self, text: str) -> None:
        # Before it is composed, which recurses in C: deep enough, that ends the process.
        depth = 0
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise self._error(event, "", f"nested more than {_DEEPEST} deep; flatten it")

    def _value(self, node: yaml.Node, key: str, above: tuple[int, ...]) -> Any:
        if id(node) in above:
            raise self._error(node, key, "refers to itself; write the value out")
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self._error(
                node, "", f"more than {_MOST_VALUES} values, aliases (`*name`) written out; shorten"
            )
        if len(above) > _DEEPEST:
            raise self._error(node, "", f"nested more than {_DEEPEST} deep; flatten it")
        above = (*above, id(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        if node.tag not in _COLLECTIONS:
            raise self._unknown_tag(node, key)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, above)
        return [
            self._item(item, f"{key}[{index}]", item, above)
            for index, item in enumerate(node.value)
        ]

    def _mapping(self, node: yaml.Node, key: str, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = self._key(key_node, key)
            child = f"{key}.{name}" if key else name
            if name in result:
                raise self._error(key_node, child, "this key is given twice")
            result[name] = self._item(value_node, child, key_node, above)
        return result

    def _item(self, node: yaml.Node, key: str, at: yaml.Node, above: tuple[int, ...]) -> Any:
        self.lines.setdefault(key, at.start_mark.line + 1)
        return self._value(node, key, above)

    def _key(self, node: yaml.Node, parent: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, parent, "a list or mapping cannot be a key; write a word")
        text = str(node.value)
        if text == "<<":
            raise self._error(
                node, parent, "`<<` (merge) is not YAML 1.2 and not read; write the keys out"
            )
        # A backtick would end the key in msgspec's messages.
        if not 0 < len(text) <= _LONGEST_KEY or not text.isprintable() or "`" in text:
            raise self._error(node, parent, f"{shorten(text)} cannot be a key; write a word")
        return text

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        scalar = _SCALARS.get(node.tag)
        if scalar is None:
            raise self._unknown_tag(node, key)
        if not scalar.pattern.fullmatch(node.value):
            raise self._error(node, key, f"{shorten(node.value)} is not {scalar.kind}")
        if scalar.read is not str and len(node.value) > _LONGEST_NUMBER:
            raise self._error(node, key, f"{shorten(node.value)} has too many digits")
        return scalar.read(node.value)

    def _unknown_tag(self, node: yaml.Node, key: str) -> ConfigError:
        return self._error(node, key, f"the tag {shorten(node.tag)} is not read; remove it")

    def _error(self, at: Any, key: str, problem: str) -> ConfigError:
        where = f"{self.name}:{at.start_mark.line + 1}"
        return ConfigError(": ".join(part for part in (where, key, problem) if part))

    def _syntax_error(self, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None)
        where = f"{self.name}:{mark.line + 1}" if mark is not None else self.name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        return ConfigError(f"{where}: not valid YAML: {problem}")


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else shorten(value)


def shorten(value: Any) -> str:
    """Write a value in one line of at most 80 characters, for a message."""
    plain = isinstance(value, str) and value.isprintable()
    text = f"'{value}'" if plain else repr(value)
    return text if len(text) <= 80 else f"{text[:60]}..."
