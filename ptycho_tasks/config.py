"""ptycho.yaml: what may stand in it, reading it, and settling every value.

A value comes from the first of: an override, the command line, ptycho.yaml, the default. Each
remembers where it came from. Nothing here imports numpy or a backend's heavy libraries.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import msgspec
import yaml

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import (
    ExecutionOptions,
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


class SourceOptions(Section, frozen=True, kw_only=True):
    """Where the scan comes from: give `file`, or `simulate` to make one."""

    affects: ClassVar[Stages] = ("source", "fixture", "infer")

    file: Annotated[str | None, doc("the scan to read: NPZ or CXI, relative to this file")] = None
    simulate: Annotated[
        SimulationOptions | None, doc("simulate a scan instead", affects=("source",))
    ] = None
    product: Annotated[
        str | None, doc("a Ptychodus product (HDF5) that gives probe and positions for `file`")
    ] = None
    measurement: Annotated[
        Literal["auto", "amplitude", "counts"],
        doc("what the frames hold; auto: amplitude in NPZ, counts in CXI"),
    ] = "auto"
    frame_axis: Annotated[
        Literal["auto", "first", "last"],
        doc("which axis numbers the frames; auto tells it from the number of positions"),
    ] = "auto"
    pixel_size_m: Annotated[Positive | None, doc("object pixel in metres")] = None
    energy_ev: Annotated[Positive | None, doc("photon energy in eV")] = None
    distance_m: Annotated[Positive | None, doc("object to detector in metres")] = None

    def __post_init__(self) -> None:
        """Ask for exactly one kind of source."""
        if (self.file is None) == (self.simulate is None):
            raise ValueError("give exactly one of `file` (a scan to read) and `simulate`")


class InferenceOptions(Section, frozen=True, kw_only=True):
    """What is reconstructed with the trained model."""

    affects: ClassVar[Stages] = ("infer",)

    scan: Annotated[
        str,
        doc("`source` (every frame of it), `fixture`, or the path of another scan", min_length=1),
    ] = "source"


class Config(Section, frozen=True, kw_only=True):
    """A whole ptycho.yaml. Only `source` must be given."""

    name: Annotated[
        str,
        doc("names the files that are made", pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$"),
    ] = "scan"
    source: Annotated[SourceOptions, doc("where the scan comes from")]
    fixture: Annotated[FixtureOptions, doc("the frames to train on")] = FixtureOptions()
    backend: Annotated[
        str, doc("what trains and reconstructs", affects=("train", "infer"), min_length=1)
    ] = "pinn"
    training: Annotated[dict[str, Any], doc("options of the backend", affects=("train",))] = (
        msgspec.field(default_factory=dict)
    )
    inference: Annotated[InferenceOptions, doc("what is reconstructed")] = InferenceOptions()
    execution: Annotated[ExecutionOptions, doc("how to run; a change here rebuilds nothing")] = (
        ExecutionOptions()
    )
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


# ---------------------------------------------------------------------------------------------
# Reading


_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BaseLoader):  # type: ignore[misc]
    """YAML 1.2 scalars: `on` is a string and 1e9 a number, as people expect."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag.rsplit(":", 1)[-1] not in {"bool", "float", "timestamp"}
        ]
        for first, resolvers in _BaseLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


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

    def where(self, key: str) -> str:
        """`ptycho.yaml:12`, or the nearest parent's line where the key itself is absent."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.path.name}:{self.lines[key]}" if key else self.path.name


def read_config(path: Path) -> ConfigFile:
    """Read ptycho.yaml without judging its values.

    Raises:
        ConfigError: the file is missing, not UTF-8, not YAML, or gives a key twice.
    """
    return parse_config(path, read_bytes(path))


def parse_config(path: Path, content: bytes) -> ConfigFile:
    """What a ptycho.yaml says, without judging its values.

    Args:
        path: where it lies.
        content: its bytes.

    Raises:
        ConfigError: it is not UTF-8, not YAML, or gives a key twice.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        data = {} if node is None else _plain(loader, node, path, "", lines, ())
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(path, error)) from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name}:1: expected `key: value` lines, got {_kind(data)}")
    return ConfigFile(path.absolute(), data, lines)


def _plain(
    loader: Any,
    node: yaml.Node,
    path: Path,
    key: str,
    lines: dict[str, int],
    above: tuple[int, ...],
) -> Any:
    """A node's plain value; notes the line of every key on the way."""
    if id(node) in above:
        raise ConfigError(f"{path.name}:{node.start_mark.line + 1}: {key}: refers to itself")
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            name = str(key_node.value)
            child = f"{key}.{name}" if key else name
            line = key_node.start_mark.line + 1
            if name in result:
                raise ConfigError(f"{path.name}:{line}: {child}: this key is given twice")
            lines.setdefault(child, line)
            result[name] = _plain(loader, value_node, path, child, lines, above)
        return result
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            child = f"{key}[{index}]"
            lines.setdefault(child, item.start_mark.line + 1)
            items.append(_plain(loader, item, path, child, lines, above))
        return items
    return loader.construct_object(node)


def _yaml_message(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path.name}:{mark.line + 1}" if mark is not None else path.name
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{where}: not valid YAML: {problem}"


# ---------------------------------------------------------------------------------------------
# Settling


@dataclass(frozen=True)
class Layers:
    """Values from ptycho.yaml, the command line and overrides, merged, with their origins."""

    file: ConfigFile
    data: dict[str, Any]
    origins: dict[str, str]
    """Dotted key path to `override`, `command line` or `ptycho.yaml:LINE`."""

    def where(self, key: str) -> str:
        """The origin to name in a message about `key`."""
        return self.origins.get(key) or self.file.where(key)


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
    *,
    variant: Variant = ONLY,
    command_line: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Layers:
    """Lay a variant's, command-line values and overrides (dotted key path to value) over the
    file's."""
    data = deepcopy(dict(file.data))
    origins = {key: f"{file.path.name}:{line}" for key, line in file.lines.items()}
    origins |= variant.origins
    for key, value in variant.overrides.items():
        _put(data, key, value)
    for values, origin in ((command_line, "command line"), (overrides, "override")):
        for key, value in (values or {}).items():
            _put(data, key, value)
            origins[key] = origin
    return Layers(file, _with_empty_sections(data), origins)


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = data.get(parent)
        data[parent] = child if isinstance(child, dict) else {}
        data = data[parent]
    data[last] = value


def _with_empty_sections(data: dict[str, Any]) -> dict[str, Any]:
    """A section of which every line is commented out stands for its defaults, not for null."""
    for name, value in data.items():
        if value is None and name not in {"name", "backend"}:
            data[name] = [] if name == "variants" else {}
    source = data.get("source")
    if isinstance(source, dict) and "simulate" in source and source.get("file") is None:
        source["simulate"] = {} if source["simulate"] is None else source["simulate"]
    return data


class Fact(NamedTuple):
    """What is known of a key besides its value."""

    affects: Stages
    """The stages whose results it decides."""
    default: Any
    """Its plain default value."""


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


def convert(layers: Layers, kind: type[SectionType], prefix: str = "") -> SectionType:
    """The typed section at `prefix` of the merged values.

    Raises:
        ConfigError: one line with file and line (or other origin), key path, and what was
            expected.
    """
    data: Any = layers.data.get(prefix, {}) if prefix else layers.data
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(layers, kind, prefix, str(error))) from error


def _explain(layers: Layers, kind: type[Section], prefix: str, message: str) -> str:
    problem, _, at = message.partition(" - at `$")
    key = ".".join(part for part in (prefix, at.rstrip("`").lstrip(".")) if part)
    unknown = re.search(r"unknown field `(.*)`", problem)
    missing = re.search(r"missing required field `(.*)`", problem)
    if unknown:
        names = _known_names(kind, at.rstrip("`").lstrip("."))
        close = difflib.get_close_matches(unknown[1], names, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(names)}"
        key = f"{key}.{unknown[1]}" if key else unknown[1]
        problem = f"unknown key; {hint}"
    elif missing:
        key = f"{key}.{missing[1]}" if key else missing[1]
        problem = "must be given"
    else:
        problem = problem[:1].lower() + problem[1:].split(", got `")[0] + _got(layers.data, key)
    return ": ".join(part for part in (layers.where(key), key, problem) if part)


def _known_names(kind: type[Section], at: str) -> list[str]:
    """The field names of the section at a dotted path below `kind`."""
    for part in filter(None, at.split(".")):
        field_type = next(f.type for f in msgspec.structs.fields(kind) if f.name == part)
        kind = next(section_types(field_type))
    return [f.encode_name for f in msgspec.structs.fields(kind)]


def section_types(annotation: Any) -> Iterator[type[Section]]:
    """The `Section` classes in an annotation such as `Annotated[X | None, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from section_types(argument)


def _got(data: Any, key: str) -> str:
    for part in key.split("."):
        if not isinstance(data, dict) or part not in data:
            return ""
        data = data[part]
    return "" if isinstance(data, dict) else f", got {data!r}"


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"`{value}`"


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key path to plain value, for every leaf of a section or mapping."""
    plain = msgspec.to_builtins(value)
    if not isinstance(plain, dict):
        return {prefix: plain}
    result: dict[str, Any] = {}
    for name, item in plain.items():
        result.update(flatten(item, f"{prefix}.{name}" if prefix else name))
    return result


def canonical_json(value: Any) -> str:
    """The one spelling of a JSON-able value: sorted keys, no spaces."""
    plain = msgspec.to_builtins(value)
    return msgspec.json.encode(plain, order="sorted").decode()
