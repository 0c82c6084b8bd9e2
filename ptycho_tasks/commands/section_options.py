"""Options of a command for the fields of a section of ptycho.yaml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_origin

import click
import msgspec

from ptycho_tasks.commands.completion import complete_words
from ptycho_tasks.config.fields import SectionType, explain_fault, list_choices, make_section
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import Section, default_of, text_of

force_option = click.option("--force", is_flag=True, help="Replace a file that is already there.")


def section_options(
    kind: type[Section], *, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each field of `kind`, with the field's documentation."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(msgspec.structs.fields(kind)):
            if field.name in without:
                continue
            default = default_of(field)
            default = "none" if not default or isinstance(default, Section) else default
            words = tuple(map(str, list_choices(field.type)))
            command = click.option(
                f"--{field.name.replace('_', '-')}",
                field.name,
                multiple=isinstance(default_of(field), list),
                metavar=f"[{'|'.join(words)}]" if words else _value_word(field.type),
                shell_complete=complete_words(words) if words else None,
                help=f"{text_of(field.type)}  [default: {default}]",
            )(command)
        return command

    return decorate


def _value_word(annotation: Any) -> str:
    """What a field takes, in one word."""
    classes = [*_classes(annotation)]
    return "INTEGER" if int in classes else "NUMBER" if float in classes else "TEXT"


def _has_structure(annotation: Any) -> bool:
    """Whether a field takes a mapping or a list of numbers, which one option gives as YAML."""
    kinds = [*_parts(annotation)]
    sections = (one for one in kinds if isinstance(one, type) and issubclass(one, Section))
    return any(get_origin(one) is dict for one in kinds) or list[float] in kinds or any(sections)


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _parts(argument)


def parse_yaml_value(value: Any) -> Any:
    """A text as it would stand in ptycho.yaml; what is no YAML stays a text, to be refused so."""
    if not isinstance(value, str):
        return value
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)


def read_section(kind: type[SectionType], values: dict[str, Any]) -> SectionType:
    """Make a section from the texts of options. Options of other sections are left aside.

    Raises:
        ConfigError: a value is wrong; the option is named.
    """
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    texts = {
        key: parse_yaml_value(value) if _has_structure(fields[key].type) else value
        for key, value in values.items()
        if key in fields and value not in (None, ())
    }
    try:
        return make_section(texts, kind, strict=False)
    except msgspec.ValidationError as error:
        key, problem = explain_fault(error, kind, texts)
        option = f"--{key.replace('_', '-')}: " if key else ""
        raise ConfigError(f"{option}{problem}") from error
