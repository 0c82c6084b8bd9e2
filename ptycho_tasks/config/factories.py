"""From ptycho.yaml to payloads: every value settled and checked, and before anything heavy.

Each factory settles every value, remembers where it came from, and checks it. No array is
opened, no network library imported, nothing written. A wrong value costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ptycho_tasks.backend import Backend
from ptycho_tasks.backends import BackendEntry, execution_type, find_backend, sections_of
from ptycho_tasks.config.document import ConfigFile
from ptycho_tasks.config.facts import Fact, Facts, list_facts
from ptycho_tasks.config.fields import flatten
from ptycho_tasks.config.job_settings import check_job_settings
from ptycho_tasks.config.layers import (
    DEFAULT_VARIANT,
    Layers,
    Variant,
    convert,
    convert_once,
    merge,
)
from ptycho_tasks.config.payload import (
    PROJECT_FOLDERS,
    Folders,
    InferencePayload,
    RefinementPayload,
    TrainingPayload,
)
from ptycho_tasks.config.scans import Scans, find_scan, read_scans
from ptycho_tasks.config.sections import Config
from ptycho_tasks.config.variants import read_one_off, read_variants, refuse_name
from ptycho_tasks.errors import BackendError, ConfigError, PtychoTasksError, ReaderError
from ptycho_tasks.executors import LOCAL
from ptycho_tasks.options import ExecutionOptions, Section
from ptycho_tasks.scans.recognition import ReaderEntry, find_reader
from ptycho_tasks.system.cache import cached


def create_training_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
    variant: Variant = DEFAULT_VARIANT,
    scan: str | None = None,
    folders: Folders = PROJECT_FOLDERS,
) -> TrainingPayload:
    """Settle all that training needs.

    Args:
        file: ptycho.yaml as read.
        overrides: dotted key path to value; wins over everything.
        command_line: likewise; wins over the variant and ptycho.yaml.
        flags: how keys are spelled on the command line, for messages.
        variant: one of those that ptycho.yaml asks for; wins over the rest of it.
        scan: the name of the scan that the payload is of, for what is made of each. None where
            `source` names no `files`, and for what is made of all that are learned from.
        folders: where to read and write, where that is not the project's to decide.

    Raises:
        BackendError: the backend is unknown or cannot be loaded.
        ConfigError: one line with the origin, the key path and what was expected.
    """
    return TrainingPayload(
        **_settle(_merge(file, variant, command_line, overrides, flags, scan), folders)
    )


def create_inference_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
    variant: Variant = DEFAULT_VARIANT,
    scan: str | None = None,
    folders: Folders = PROJECT_FOLDERS,
) -> InferencePayload:
    """Settle all that inference needs; see `create_training_payload`."""
    return InferencePayload(
        **_settle(_merge(file, variant, command_line, overrides, flags, scan), folders)
    )


def create_refinement_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    variant: Variant = DEFAULT_VARIANT,
    scan: str | None = None,
) -> RefinementPayload | None:
    """Settle all that refinement needs; None where ptycho.yaml asks for none.

    See `create_training_payload`.
    """
    laid = _merge(file, variant, overrides=overrides, scan=scan)
    if not laid.layers.data.get("refine"):
        return None
    return _create_refinement(laid.layers, _settle(laid, PROJECT_FOLDERS))


def list_variants(file: ConfigFile, changes: Mapping[str, str] | None = None) -> list[Variant]:
    """The variants that a ptycho.yaml asks for, or the one that a command line asks for.

    Args:
        file: ptycho.yaml as read.
        changes: of the command line, dotted key path to a value as it would stand in ptycho.yaml.

    Raises:
        ConfigError: one line that says what is wrong.
    """
    if not changes and not file.data.get("matrix") and not file.data.get("variants"):
        return [DEFAULT_VARIANT]
    try:
        base = create_training_payload(file).values
    except PtychoTasksError:  # some variant may be right all the same
        base = {}
    if not changes:
        return read_variants(file, base)
    one_off = read_one_off(changes, base)
    if file.data.get("matrix") or file.data.get("variants"):
        refuse_name(one_off, read_variants(file, base))
    return [one_off]


def create_payloads(file: ConfigFile, variant: Variant, scan: str | None = None) -> Payloads:
    """Settle the three payloads of a variant and scan at once; see `create_training_payload`."""
    laid = _merge(file, variant, scan=scan)
    settled = _settle(laid, PROJECT_FOLDERS)
    has_refinement = laid.layers.data.get("refine")
    refinement = _create_refinement(laid.layers, settled) if has_refinement else None
    return Payloads(TrainingPayload(**settled), InferencePayload(**settled), refinement)


class Payloads(NamedTuple):
    """The payloads of a variant and scan."""

    training: TrainingPayload
    inference: InferencePayload
    refinement: RefinementPayload | None
    """None where ptycho.yaml asks for no refinement."""


class _Laid(NamedTuple):
    """Merged values, and the scans that they ask for."""

    layers: Layers
    scans: Scans


def _merge(
    file: ConfigFile,
    variant: Variant,
    command_line: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
    scan: str | None = None,
) -> _Laid:
    """As `layers.merge`, but for the name of a scan."""
    layers = merge(file, variant, command_line, overrides, flags)
    scans = read_scans(layers)
    if scan is None:
        return _Laid(layers, scans)
    found = find_scan(scans, scan, layers)
    return _Laid(merge(file, variant, command_line, overrides, flags, found), scans)


def _create_refinement(layers: Layers, settled: Mapping[str, Any]) -> RefinementPayload:
    name = settled["config"].refine.get("backend")
    where = layers.where("refine.backend")
    if not isinstance(name, str):
        raise ConfigError(
            f"{where}: refine.backend: must name the backend that goes on from the reconstruction"
        )
    entry, refiner = _load_backend(layers, "refine.backend", name)
    if not callable(getattr(refiner, "refine", None)):
        raise ConfigError(
            f"{where}: refine.backend: backend `{name}` has no method `refine`; name one that has, "
            "ptychi for one"
        )
    owner = f"backend `{name}`"
    options, flat = convert_once(
        layers.without("refine.backend"), refiner.options_type, "refine", owner
    )
    others = {k: v for k, v in settled["values"].items() if not k.startswith("refine.")}
    values = others | {"refine.backend": name, **flat}
    own = {
        "backend": refiner,
        "backend_source": entry.source,
        "options": options,
        "execution": _retype_execution(layers, settled["execution"], refiner),
        "values": values,
        "origins": layers.list_origins(values),
        "facts": _gather_facts(
            *sections_of(settled["backend"]).items(), ("refine", refiner.options_type)
        ),
    }
    return RefinementPayload(**{**settled, **own})


def _retype_execution(
    layers: Layers, execution: ExecutionOptions, refiner: Backend
) -> ExecutionOptions:
    """The part of `execution` that the refining backend knows, typed by that backend.

    Raises:
        ConfigError: a value that fits the other backend does not fit this one.
    """
    kind = execution_type(refiner)
    known = {field.name for field in msgspec.structs.fields(kind)}
    plain = {k: v for k, v in msgspec.to_builtins(execution).items() if k in known}
    return convert(replace(layers, data={"execution": plain}), kind, "execution")


def _settle(laid: _Laid, folders: Folders) -> dict[str, Any]:
    """The fields of a `Payload`."""
    layers, scans = laid
    config, values = _convert_config(layers)
    entry, backend = _load_backend(layers, "backend", config.backend)
    kinds = sections_of(backend)
    owner = f"backend `{backend.name}`"
    sections: dict[str, Any] = {}
    for section, kind in kinds.items():
        sections[section], flat = convert_once(layers, kind, section, owner)
        values |= flat
    origins = layers.list_origins(values)
    _refuse_unknown_execution(backend, values, origins)
    try:
        if sections["execution"].executor != LOCAL or sections["execution"].resources:
            check_job_settings(sections["execution"], layers.file.root)
        getattr(backend, "check", _accept)(sections["training"], sections["execution"])
    except ConfigError as error:
        origin = origins.get(str(error).partition(":")[0])
        raise ConfigError(f"{origin}: {error}" if origin else str(error)) from error
    return {
        "root": layers.file.root,
        "config": config,
        "values": values,
        "origins": origins,
        "facts": _gather_facts(*kinds.items()),
        "variant": layers.variant,
        "scan": layers.scan and layers.scan.name,
        "training_scans": tuple(scans.learned),
        "backend": backend,
        "backend_source": entry.source,
        "options": sections["training"],
        "execution": sections["execution"],
        "folders": folders,
        "reader": _find_reader(layers, config.source.reader),
    }


def _find_reader(layers: Layers, name: str | None) -> ReaderEntry | None:
    if name is None:
        return None
    try:
        return _find_once(name, layers.file.root)
    except ReaderError as error:
        raise ReaderError(f"{layers.where('source.reader')}: {error}") from error


_find_once = cached(find_reader)


_BACKEND_SECTIONS = ("training", "execution", "refine")
"""Sections that a backend types; among variants they differ most."""


def _convert_config(layers: Layers) -> tuple[Config, dict[str, Any]]:
    """The configuration, and the values of those sections that no backend types."""
    untyped = {name: layers.data[name] for name in _BACKEND_SECTIONS if name in layers.data}
    if not all(isinstance(section, dict) for section in untyped.values()):
        convert(layers, Config)  # says which
    rest = {name: value for name, value in layers.data.items() if name not in untyped}
    config, flat = convert_once(replace(layers, data=rest), Config)
    values = {**flat, **flatten(untyped.get("refine", {}), "refine")}
    return msgspec.structs.replace(config, **untyped), values


def _refuse_unknown_execution(
    backend: Backend, values: Mapping[str, Any], origins: Mapping[str, str]
) -> None:
    """Refuse settings that a backend without an `execution_type` would ignore. Such a backend
    computes on the CPU in its own way."""
    if hasattr(backend, "execution_type"):
        return
    for key, fits in (
        ("accelerator", ("auto", "cpu")),
        ("threads", (0,)),
        ("inference_batch_size", (ExecutionOptions().inference_batch_size,)),
    ):
        value = values[f"execution.{key}"]
        if value not in fits:
            raise ConfigError(
                f"{origins[f'execution.{key}']}: execution.{key}: backend `{backend.name}` does "
                f"not say that it honours {value}; leave it out, or give the backend an "
                "`execution_type`"
            )


def _accept(*anything: object) -> None:
    """Accept everything: the check of a backend that has none."""


def _load_backend(layers: Layers, key: str, name: str) -> tuple[BackendEntry, Backend]:
    try:
        return _find_and_load(name, layers.file.root)
    except BackendError as error:
        raise BackendError(f"{layers.where(key)}: {error}") from error


# A thousand variants name the same few backends and sections.
@cached
def _gather_facts(*kinds: tuple[str, type[Section]]) -> Facts:
    """The facts of every key, for sections that backends type."""
    known = list_facts(Config)
    for section, kind in kinds:
        known |= list_facts(kind, section)
    if "refine" in dict(kinds):
        refining = {
            k: f._replace(affects=("refine",)) for k, f in known.items() if k[:7] == "refine."
        }
        known |= {**refining, "refine.backend": Fact(("refine",), None)}
    return Facts(known)


@cached
def _find_and_load(name: str, root: Path) -> tuple[BackendEntry, Backend]:
    entry = find_backend(name, root)
    return entry, entry.load()
