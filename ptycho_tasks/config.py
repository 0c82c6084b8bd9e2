"""ptycho.yaml: what may stand in it, reading it, and settling every value.

A value comes from the first of: an override, the command line, ptycho.yaml, the default. Each
remembers where it came from. Nothing here imports numpy or a backend's heavy libraries.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

import msgspec
import yaml

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import (
    NAME_PATTERN,
    RULES,
    FixtureOptions,
    Section,
    SimulationOptions,
    Stages,
    doc,
    limits,
)
from ptycho_tasks.table import CONFIG_NAME, read_bytes

__all__ = ["CONFIG_NAME"]

Positive = Annotated[float, limits(gt=0)]
FileName = Annotated[str, limits(min_length=1)]


class SourceOptions(Section, frozen=True, kw_only=True):
    """Where the scan comes from: give `file`, or `simulate` to make one."""

    affects: ClassVar[Stages] = ("source", "fixture", "infer", "refine")

    file: Annotated[FileName | None, doc("the scan to read: NPZ or CXI, relative to this file")] = (
        None
    )
    simulate: Annotated[
        SimulationOptions | None, doc("simulate a scan instead", affects=("source",))
    ] = None
    product: Annotated[
        FileName | None, doc("a Ptychodus product (HDF5) that gives probe and positions for `file`")
    ] = None
    measurement: Annotated[
        Literal["auto", "amplitude", "counts"],
        doc("what the frames hold; auto: amplitude in NPZ, counts in CXI"),
    ] = "auto"
    frame_axis: Annotated[
        Literal["auto", "first", "last"],
        doc("which axis numbers the frames; auto tells it from the number of positions"),
    ] = "auto"
    units: Annotated[
        Literal["auto", "pixels", "m", "mm", "um", "nm"],
        doc("of the positions; auto: pixels in NPZ, what the file says in CXI"),
    ] = "auto"
    pixel_size_m: Annotated[Positive | None, doc("object pixel in metres")] = None
    energy_ev: Annotated[Positive | None, doc("photon energy in eV")] = None
    distance_m: Annotated[Positive | None, doc("object to detector in metres")] = None
    scan_index: Annotated[
        int | None, doc("which scan to read of a file that holds several; null: the only one")
    ] = None
    dark_frames: Annotated[
        Literal["refuse", "drop"],
        doc("frames without light, or that were never written: refuse the scan, or drop them"),
    ] = "refuse"
    stray_frames: Annotated[
        Literal["refuse", "drop", "keep"],
        doc("a few frames far from all others: refuse the scan, drop them, or keep them"),
    ] = "refuse"
    bad_pixels: Annotated[
        Literal["refuse", "ignore"],
        doc("pixels that the file marks as bad: refuse the scan, or ignore the marks"),
    ] = "refuse"
    follow: Annotated[
        list[FileName],
        doc("folders besides its own that links in an HDF5 scan may lead to", affects=()),
    ] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        """Ask for exactly one kind of source."""
        if (self.file is None) == (self.simulate is None):
            raise ValueError("give exactly one of `file` (a scan to read) and `simulate`")

    @property
    def reading(self) -> dict[str, Any]:
        """How the scan is read, by the names that `readers.read_scan` gives it."""
        return {name: getattr(self, name) for name in READING}


READING = tuple(
    name
    for name in SourceOptions.__struct_fields__
    if name not in ("file", "simulate", "product", "follow")
)
"""The settings of a source that say how a scan is read, and not which."""


class InferenceOptions(Section, frozen=True, kw_only=True):
    """What is reconstructed with the trained model."""

    affects: ClassVar[Stages] = ("infer", "refine")

    scan: Annotated[
        str,
        doc("`source` (every frame of it), `fixture`, or the path of another scan", min_length=1),
    ] = "source"
    n_groups: Annotated[
        Annotated[int, limits(ge=1)] | None,
        doc("frames of the scan to reconstruct from, evenly spaced by index; null takes all"),
    ] = None


class Config(Section, frozen=True, kw_only=True):
    """A whole ptycho.yaml. Only `source` must be given."""

    name: Annotated[str, doc("names the files that are made", pattern=NAME_PATTERN)] = "scan"
    source: Annotated[SourceOptions, doc("where the scan comes from")]
    fixture: Annotated[FixtureOptions, doc("the frames to train on")] = FixtureOptions()
    backend: Annotated[
        str,
        doc("what trains and infers", affects=("train", "infer"), pattern=NAME_PATTERN),
    ] = "pinn"
    training: Annotated[dict[str, Any], doc("options of the backend", affects=("train",))] = (
        msgspec.field(default_factory=dict)
    )
    inference: Annotated[InferenceOptions, doc("what is reconstructed")] = InferenceOptions()
    refine: Annotated[
        dict[str, Any],
        doc(
            "go on from the reconstruction: a `backend` that can, ptychi for one, and its options",
            affects=("refine",),
        ),
    ] = msgspec.field(default_factory=dict)
    execution: Annotated[
        dict[str, Any], doc("how to run; a change here rebuilds nothing", affects=())
    ] = msgspec.field(default_factory=dict)
    matrix: Annotated[
        dict[str, Annotated[list[Any], limits(min_length=1)]],
        doc(
            "key to its values, as in `training.seed: [0, 1]`: a variant for each combination",
            affects=(),
        ),
    ] = msgspec.field(default_factory=dict)
    variants: Annotated[
        list[dict[str, Any]],
        doc("further variants: each a `name`, and the keys in which it differs", affects=()),
    ] = msgspec.field(default_factory=list)
    evidence: Annotated[
        dict[str, Any],
        doc("what is run to prove the rows of a plan; evidence.yaml may hold it too", affects=()),
    ] = msgspec.field(default_factory=dict)


# ---------------------------------------------------------------------------------------------
# Reading


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
    """Tells the types of `_SCALARS` from each other."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node that has none in the text."""
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

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.path.parent

    @functools.cached_property
    def origins(self) -> Mapping[str, str]:
        """Dotted key path to `ptycho.yaml:LINE`, for all that is the same in every variant."""
        return {
            key: f"{self.path.name}:{line}"
            for key, line in self.lines.items()
            if not key.startswith("variants[")
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
    return parse_config(path, read_bytes(path))


def parse_config(path: Path, content: bytes) -> ConfigFile:
    """What a ptycho.yaml says, without judging its values.

    Args:
        path: where it lies.
        content: its bytes.

    Raises:
        ConfigError: it is not UTF-8, not YAML, gives a key twice, or is too large or too deep.
    """
    document = _Document(path.name)
    data = document.read(_text(path, content))
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}:1: expected `key: value` lines, got {_kind(data)}")
    return ConfigFile(path.absolute(), data, document.lines)


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
            raise self._invalid(error) from error
        return {} if node is None else self._value(node, "", ())

    def _check_depth(self, text: str) -> None:
        # Before it is composed, which recurses in C: deep enough, that ends the process.
        depth = 0
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise self._refused(event, "", f"nested more than {_DEEPEST} deep; flatten it")

    def _value(self, node: yaml.Node, key: str, above: tuple[int, ...]) -> Any:
        if id(node) in above:
            raise self._refused(node, key, "refers to itself; write the value out")
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self._refused(
                node, "", f"more than {_MOST_VALUES} values, aliases (`*name`) written out; shorten"
            )
        if len(above) > _DEEPEST:
            raise self._refused(node, "", f"nested more than {_DEEPEST} deep; flatten it")
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
                raise self._refused(key_node, child, "this key is given twice")
            result[name] = self._item(value_node, child, key_node, above)
        return result

    def _item(self, node: yaml.Node, key: str, at: yaml.Node, above: tuple[int, ...]) -> Any:
        self.lines.setdefault(key, at.start_mark.line + 1)
        return self._value(node, key, above)

    def _key(self, node: yaml.Node, parent: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._refused(node, parent, "a list or mapping cannot be a key; write a word")
        text = str(node.value)
        if text == "<<":
            raise self._refused(
                node, parent, "`<<` (merge) is not YAML 1.2 and not read; write the keys out"
            )
        # A backtick would end the key in msgspec's messages.
        if not 0 < len(text) <= _LONGEST_KEY or not text.isprintable() or "`" in text:
            raise self._refused(node, parent, f"{short(text)} cannot be a key; write a word")
        return text

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        scalar = _SCALARS.get(node.tag)
        if scalar is None:
            raise self._unknown_tag(node, key)
        if not scalar.pattern.fullmatch(node.value):
            raise self._refused(node, key, f"{short(node.value)} is not {scalar.kind}")
        if scalar.read is not str and len(node.value) > _LONGEST_NUMBER:
            raise self._refused(node, key, f"{short(node.value)} has too many digits")
        return scalar.read(node.value)

    def _unknown_tag(self, node: yaml.Node, key: str) -> ConfigError:
        return self._refused(node, key, f"the tag {short(node.tag)} is not read; remove it")

    def _refused(self, at: Any, key: str, problem: str) -> ConfigError:
        where = f"{self.name}:{at.start_mark.line + 1}"
        return ConfigError(": ".join(part for part in (where, key, problem) if part))

    def _invalid(self, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None)
        where = f"{self.name}:{mark.line + 1}" if mark is not None else self.name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        return ConfigError(f"{where}: not valid YAML: {problem}")


# ---------------------------------------------------------------------------------------------
# Settling


@dataclass(frozen=True)
class Layers:
    """Values from ptycho.yaml, the command line and overrides, merged, with their origins."""

    file: ConfigFile
    data: dict[str, Any]
    origins: dict[str, str]
    """Dotted key path to `override`, `command line` or `ptycho.yaml:LINE`."""
    variant: Variant
    flags: Mapping[str, str] = field(default_factory=dict)
    """Dotted key path to the flag that set it."""

    def where(self, key: str) -> str:
        """The origin to name in a message about `key`."""
        changed = self._changed(key)
        if changed and key not in self.variant.overrides:
            return self.variant.origins[changed]
        return self.origins.get(key) or self.file.where(key)

    def flag_in(self, section: str, problem: str) -> str:
        """The flag that set a key of a section that a problem mentions; empty where none did."""
        keys = (key for key in self.flags if key.startswith(f"{section}."))
        found = (key for key in keys if re.search(rf"\b{key.rpartition('.')[2]}\b", problem))
        return next((self.flags[key] for key in found), "")

    def blamed(self, key: str) -> str:
        """The variant, to name in a message about a `key` that it changes; else empty."""
        return f"variant `{self.variant.name}`" if self._changed(key) else ""

    def origins_of(self, keys: Iterable[str]) -> dict[str, str]:
        """Key to its origin, `default` where it was given nowhere."""
        return {key: self.origins.get(key, "default") for key in keys}

    def without(self, key: str) -> Layers:
        """The same but for one key."""
        *parents, last = key.split(".")
        data = section = dict(self.data)
        for parent in parents:
            section[parent] = section = dict(section[parent])
        del section[last]
        return replace(self, data=data)

    def _changed(self, key: str) -> str:
        """What the variant changes of `key`, below it or above it; empty where nothing."""
        for name in self.variant.overrides:
            # Another backend has other options.
            for other in (name, *(["training", "execution"] if name == "backend" else [])):
                if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                    return name
        return ""


@dataclass(frozen=True)
class Variant:
    """One of several trainings and reconstructions that a ptycho.yaml asks for."""

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Dotted key path to value, laid over the file's own."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Dotted key path to `ptycho.yaml:LINE`."""


ONLY = Variant("default")
"""What there is where a ptycho.yaml asks for no variants."""


def merge(
    file: ConfigFile,
    variant: Variant = ONLY,
    command_line: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Layers:
    """Lay a variant's, command-line values and overrides (dotted key path to value) over the
    file's. `flags` says how a key is spelled on the command line."""
    # One of a thousand variants must not carry a copy of them all; evidence is of none.
    left_out = ("evidence",) if variant is ONLY else ("evidence", "matrix", "variants")
    data = {key: value for key, value in file.data.items() if key not in left_out}
    origins = {**file.origins, **variant.origins}
    for key, value in variant.overrides.items():
        _put(data, key, value)
    for values, origin in ((command_line, "command line"), (overrides, "override")):
        for key, value in (values or {}).items():
            _put(data, key, value)
            origins[key] = origin
    spelled = {key: flag for key, flag in (flags or {}).items() if key in (command_line or {})}
    return Layers(file, _with_empty_sections(data), origins | spelled, variant, spelled)


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a value; what it stands in is copied, since variants share it."""
    *parents, last = key.split(".")
    for parent in parents:
        child = data.get(parent)
        data[parent] = dict(child) if isinstance(child, dict) else {}
        data = data[parent]
    data[last] = value


def _with_empty_sections(data: dict[str, Any]) -> dict[str, Any]:
    """A section of which every line is commented out stands for its defaults, not for null."""
    for name, value in data.items():
        if value is None and name not in {"name", "backend"}:
            data[name] = [] if name == "variants" else {}
    source = data.get("source")
    if isinstance(source, dict) and "simulate" in source and source.get("file") is None:
        simulate = source["simulate"]
        data["source"] = {**source, "simulate": {} if simulate is None else simulate}
    return data


class Fact(NamedTuple):
    """What is known of a key besides its value."""

    affects: Stages
    """The stages whose results it decides."""
    default: Any
    """Its plain default value."""


class Facts(dict[str, Fact]):
    """What is known of every key, by its dotted path."""

    def __init__(self, facts: Mapping[str, Fact]) -> None:
        """A copy of some facts."""
        super().__init__(facts)
        self.default = functools.cache(lambda key: self.of(key).default)
        self._keys: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}

    def of(self, key: str) -> Fact:
        """What is known of a key; a mapping among the values has keys of its own."""
        while key not in self:
            key = key.rpartition(".")[0]
        return self[key]

    def keys_of(self, stage: str, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some keys that decide the result of a stage."""
        if (stage, keys) not in self._keys:
            self._keys[stage, keys] = tuple(k for k in keys if stage in self.of(k).affects)
        return self._keys[stage, keys]


def default_of(field: Any) -> Any:
    """The default value of a field of a section; msgspec.NODEFAULT where it must be given."""
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


def facts(kind: type[Section], prefix: str = "") -> dict[str, Fact]:
    """Dotted key path of every field below `kind`, to what is known of it.

    A field that may be a section or null, as `source.simulate`, stands for itself too.
    """
    result: dict[str, Fact] = {}
    for item in msgspec.structs.fields(kind):
        key = f"{prefix}.{item.name}" if prefix else item.name
        metas = [m for m in item.type.__metadata__ if isinstance(m, msgspec.Meta)]
        said = next((m.extra["affects"] for m in metas if m.extra), None)
        nested = next(section_types(item.type), None)
        if nested is None or item.default is None:
            result[key] = Fact(kind.affects if said is None else said, default_of(item))
        if nested is not None:
            result |= facts(nested, key)
    return result


SectionType = TypeVar("SectionType", bound=Section)


def convert(
    layers: Layers, kind: type[SectionType], prefix: str = "", owner: str = ""
) -> SectionType:
    """The typed section at `prefix` of the merged values; `owner` says whose it is, for messages.

    Raises:
        ConfigError: one line with file and line (or other origin), key path, and what was
            expected.
    """
    data: Any = layers.data.get(prefix, {}) if prefix else layers.data
    try:
        return typed(data, kind)
    except msgspec.ValidationError as error:
        key, problem = fault(error, kind, data)
        key = ".".join(part for part in (prefix, key) if part)
        if owner:
            problem = problem.replace("unknown key;", f"{owner} does not know this key;", 1)
        where, variant = layers.flag_in(key, problem) or layers.where(key), layers.blamed(key)
        raise ConfigError(
            ": ".join(part for part in (where, variant, key, problem) if part)
        ) from error


_SETTLED_MOST = 1000
_settled: dict[tuple[type[Section], str, str], tuple[Any, Mapping[str, Any]]] = {}


def convert_once(
    layers: Layers, kind: type[SectionType], prefix: str = "", owner: str = ""
) -> tuple[SectionType, Mapping[str, Any]]:
    """As `convert`, with what `flatten` gives of the section: a thousand variants share most of
    their sections, which are settled once."""
    data = layers.data.get(prefix, {}) if prefix else layers.data
    key = kind, prefix, repr(data)
    if key not in _settled:
        if len(_settled) >= _SETTLED_MOST:
            _settled.clear()
        section = convert(layers, kind, prefix, owner)
        _settled[key] = section, flatten(section, prefix)
    return _settled[key]


def typed(data: Any, kind: type[SectionType], *, strict: bool = True) -> SectionType:
    """Plain values as a section.

    Args:
        data: keys and values.
        kind: the section's type.
        strict: False reads numbers from text, as a command line gives them.

    Raises:
        msgspec.ValidationError: a value does not fit; `fault` explains it.
    """
    section = msgspec.convert(data, kind, strict=strict)
    for key, value in _leaves(msgspec.to_builtins(section)):
        problem = _unfit(value)
        if problem:
            raise msgspec.ValidationError(f"{problem} - at `${key}`")
    return section


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")
    else:
        yield key, value


def _unfit(value: Any) -> str:
    """What makes a value unfit for every setting; empty where nothing does."""
    if isinstance(value, float) and not math.isfinite(value):
        return "Expected a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "Expected an integer of at most 64 bits"
    if not isinstance(value, str) or (value.isascii() and value.isalnum() and len(value) < 100):
        return ""
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        return "Expected text without control characters"
    if any(0xD800 <= ord(c) < 0xE000 for c in value):
        return "Expected text in UTF-8"
    if max(len(part.encode()) for part in value.split("/")) > 255:
        return "Expected a path whose parts have at most 255 bytes, as files' names must"
    return ""


def fault(error: msgspec.ValidationError, kind: type[Section], data: Any) -> tuple[str, str]:
    """The dotted key path below `kind` that an error is about, and what is wrong there.

    Args:
        error: raised by `typed`.
        kind: the section's type.
        data: the values that it was given.
    """
    message = re.fullmatch(r"(.*?)(?: - at `\$\.?([^`]*)`)?", str(error), re.DOTALL)
    assert message
    problem, key = message[1], message[2] or ""
    field = re.fullmatch("Object (contains unknown|missing required) field `(.*)`", problem)
    if field is None:
        return key, _expected(problem, _annotation(kind, key)) + _got(data, key)
    names = [f.encode_name for f in msgspec.structs.fields(_section(kind, key))]
    key = f"{key}.{field[2]}" if key else field[2]
    if field[1] == "missing required":
        return key, "must be given"
    close = difflib.get_close_matches(field[2], names, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(names)}"
    return key, f"unknown key; {hint}"


def _expected(problem: str, annotation: Any) -> str:
    """msgspec's sentence for people: without its own idea of what was got."""
    if problem.startswith("Invalid enum value"):
        return f"expected one of {', '.join(map(str, choices_of(annotation)))}"
    if problem.startswith("Expected `object`"):
        return "expected a mapping, `key: value` lines"
    for pattern, rule in RULES.items():
        if repr(pattern) in problem:
            return f"expected {rule}"
    return problem[:1].lower() + problem[1:].split(", got `")[0]


def _annotation(kind: type[Section], key: str) -> Any:
    """The annotation of the field at a dotted path below `kind`."""
    annotation: Any = kind
    for part in filter(None, re.sub(r"\[[^]]*\]", "", key).split(".")):
        section = next(section_types(annotation), None)
        fields = () if section is None else msgspec.structs.fields(section)
        # Within a mapping of the user's own there is nothing more to know.
        annotation = next((f.type for f in fields if f.encode_name == part), annotation)
    return annotation


def _section(kind: type[Section], key: str) -> type[Section]:
    return next(section_types(_annotation(kind, key)))


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The values of the `Literal` in an annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    arguments = getattr(annotation, "__args__", ())
    return next(filter(None, map(choices_of, arguments)), ())


def section_types(annotation: Any) -> Iterator[type[Section]]:
    """The `Section` classes in an annotation such as `Annotated[X | None, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from section_types(argument)


def _got(data: Any, key: str) -> str:
    for name, index in re.findall(r"([^.\[\]]+)|\[([0-9]+)\]", key):
        if name and isinstance(data, dict) and name in data:
            data = data[name]
        elif index and isinstance(data, list) and int(index) < len(data):
            data = data[int(index)]
        else:
            return ""
    return "" if isinstance(data, dict) else f", got {short(data)}"


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else short(value)


def short(value: Any) -> str:
    """A value in a message: in one line, and not too long."""
    plain = isinstance(value, str) and value.isprintable()
    text = f"'{value}'" if plain else repr(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key path to plain value, for every leaf of a section or mapping."""
    return dict(_flat(msgspec.to_builtins(value), prefix))


def _flat(plain: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(plain, dict):
        yield key, plain
        return
    for name, item in plain.items():
        below = f"{key}.{name}" if key else name
        if isinstance(item, dict):
            yield from _flat(item, below)
        else:
            yield below, item


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON-able value: sorted keys, no spaces."""
    plain = msgspec.to_builtins(value)
    return msgspec.json.encode(plain, order="sorted").decode()
