"""Payloads from ptycho.yaml: every value settled and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from ptycho_tasks.backend import Backend
from ptycho_tasks.backends import BackendEntry, find_backend, sections_of
from ptycho_tasks.config.document import ConfigFile
from ptycho_tasks.config.fields import Fact, Facts, facts, flatten
from ptycho_tasks.config.layers import ONLY, Layers, Variant, convert, convert_once, merge
from ptycho_tasks.config.payload import (
    PROJECT,
    InferencePayload,
    Places,
    RefinementPayload,
    TrainingPayload,
)
from ptycho_tasks.config.sections import Config
from ptycho_tasks.errors import BackendError, ConfigError
from ptycho_tasks.options import ExecutionOptions, Section
from ptycho_tasks.system.cache import cached


def create_training_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
    variant: Variant = ONLY,
    places: Places = PROJECT,
) -> TrainingPayload:
    """Settle all that training needs.

    Args:
        file: ptycho.yaml as read.
        overrides: dotted key path to value; wins over everything.
        command_line: likewise; wins over the variant and ptycho.yaml.
        flags: how keys are spelled on the command line, for messages.
        variant: one of those that ptycho.yaml asks for; wins over the rest of it.
        places: where to read and write, where that is not the project's to decide.

    Raises:
        BackendError: the backend is unknown or cannot be loaded.
        ConfigError: one line with the origin, the key path and what was expected.
    """
    return TrainingPayload(
        **_settle(merge(file, variant, command_line, overrides, flags), variant, places)
    )


def create_inference_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    command_line: Mapping[str, Any] | None = None,
    flags: Mapping[str, str] | None = None,
    variant: Variant = ONLY,
    places: Places = PROJECT,
) -> InferencePayload:
    """Settle all that inference needs; see `create_training_payload`."""
    return InferencePayload(
        **_settle(merge(file, variant, command_line, overrides, flags), variant, places)
    )


def create_refinement_payload(
    file: ConfigFile,
    overrides: Mapping[str, Any] | None = None,
    *,
    variant: Variant = ONLY,
) -> RefinementPayload | None:
    """Settle all that refinement needs; None where ptycho.yaml asks for none.

    See `create_training_payload`.
    """
    layers = merge(file, variant, None, overrides)
    if not layers.data.get("refine"):
        return None
    return _refinement(layers, _settle(layers, variant, PROJECT))


def create_payloads(
    file: ConfigFile, variant: Variant
) -> tuple[TrainingPayload, InferencePayload, RefinementPayload | None]:
    """The three of a project's variant, settled at once; see `create_training_payload`."""
    layers = merge(file, variant)
    settled = _settle(layers, variant, PROJECT)
    refinement = _refinement(layers, settled) if layers.data.get("refine") else None
    return TrainingPayload(**settled), InferencePayload(**settled), refinement


def _refinement(layers: Layers, settled: Mapping[str, Any]) -> RefinementPayload:
    name = settled["config"].refine.get("backend")
    where = layers.where("refine.backend")
    if not isinstance(name, str):
        raise ConfigError(
            f"{where}: refine.backend: must name the backend that goes on from the reconstruction"
        )
    entry, refiner = _loaded(layers, "refine.backend", name)
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
        "values": values,
        "origins": layers.origins_of(values),
        "facts": _known_facts(
            *sections_of(settled["backend"]).items(), ("refine", refiner.options_type)
        ),
    }
    return RefinementPayload(
        **{**settled, **own}, refiner=refiner, refinement=options, refiner_source=entry.source
    )


def _settle(layers: Layers, variant: Variant, places: Places) -> dict[str, Any]:
    """The fields of a `Payload`."""
    config, values = _whole(layers)
    entry, backend = _loaded(layers, "backend", config.backend)
    kinds = sections_of(backend)
    owner = f"backend `{backend.name}`"
    typed: dict[str, Any] = {}
    for section, kind in kinds.items():
        typed[section], flat = convert_once(layers, kind, section, owner)
        values |= flat
    origins = layers.origins_of(values)
    _refuse_unhonoured(backend, values, origins)
    try:
        getattr(backend, "check", _nothing)(typed["training"], typed["execution"])
    except ConfigError as error:
        origin = origins.get(str(error).partition(":")[0])
        raise ConfigError(f"{origin}: {error}" if origin else str(error)) from error
    return {
        "root": layers.file.root,
        "config": config,
        "values": values,
        "origins": origins,
        "facts": _known_facts(*kinds.items()),
        "variant": variant,
        "backend": backend,
        **typed,
        "backend_source": entry.source,
        "places": places,
    }


_OPEN = ("training", "execution", "refine")
"""Sections that a backend types; among variants they differ most."""


def _whole(layers: Layers) -> tuple[Config, dict[str, Any]]:
    """The configuration, and the values of those sections that no backend types."""
    open_ = {name: layers.data[name] for name in _OPEN if name in layers.data}
    if not all(isinstance(section, dict) for section in open_.values()):
        convert(layers, Config)  # says which
    rest = {name: value for name, value in layers.data.items() if name not in open_}
    config, flat = convert_once(replace(layers, data=rest), Config)
    values = {**flat, **flatten(open_.get("refine", {}), "refine")}
    return msgspec.structs.replace(config, **open_), values


def _refuse_unhonoured(
    backend: Backend, values: Mapping[str, Any], origins: Mapping[str, str]
) -> None:
    """Refuse what a backend that does not say what it understands would ignore: without an
    `execution_type`, it computes on the CPU in its own way."""
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


def _nothing(*anything: object) -> None:
    """A check that finds nothing."""


def _loaded(layers: Layers, key: str, name: str) -> tuple[BackendEntry, Backend]:
    try:
        return _backend(name, layers.file.root)
    except BackendError as error:
        raise BackendError(f"{layers.where(key)}: {error}") from error


# A thousand variants name the same few backends and sections.
@cached
def _known_facts(*kinds: tuple[str, type[Section]]) -> Facts:
    """What is known of every key, where backends type sections so."""
    known = facts(Config)
    for section, kind in kinds:
        known |= facts(kind, section)
    if "refine" in dict(kinds):
        refining = {
            k: f._replace(affects=("refine",)) for k, f in known.items() if k[:7] == "refine."
        }
        known |= {**refining, "refine.backend": Fact(("refine",), None)}
    return Facts(known)


@cached
def _backend(name: str, root: Path) -> tuple[BackendEntry, Backend]:
    entry = find_backend(name, root)
    return entry, entry.load()
