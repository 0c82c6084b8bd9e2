"""The flags of `ptycho-tasks train` and `ptycho-tasks infer`, as PtychoPINN's users know them.

A flag is a row of a table: what it sets, and what stands in the help. From the table come click's
options (`flag_command`), the values for the payload, and the reference in docs/commands.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import click

from ptycho_tasks.commands.completion import Completer
from ptycho_tasks.layout import absolute_path, project_path
from ptycho_tasks.system.terminal import echo


@dataclass(frozen=True)
class OldName:
    """Another name, which is still read, with a warning."""

    name: str
    stands_for: str | None = None
    """The value that it stands for; None where it takes one itself."""


@dataclass(frozen=True)
class Flag:
    """One flag of a command."""

    name: str
    """As the help spells it; `_` for any `-` inside will do too."""
    key: str
    """The dotted key path that it sets; empty where it is the command's own."""
    help: str
    type: Any = str
    """Click's type; bool for a switch."""
    words: tuple[str, ...] = ()
    """Offered as values; the backend decides which it knows."""
    complete: Completer | None = None
    """Gives the values to offer where they are not always the same."""
    off: str = ""
    """Of a switch: the name that turns it off."""
    old: tuple[OldName, ...] = ()
    required: bool = False

    @property
    def field(self) -> str:
        """The name of its value in the command."""
        return variable_name(self.name)

    def name_for(self, value: Any) -> str:
        """The name under which a value was given."""
        return self.off if value is False and self.off else self.name


FlagTable = Mapping[str, Sequence[Flag]]
"""The flags of a command by the group that the help shows them in."""


class FlagValues(NamedTuple):
    """What the flags of a command line set."""

    values: dict[str, Any]
    """Dotted key path to value."""
    flags: dict[str, str]
    """Dotted key path to the flag that set it."""


def variable_name(name: str) -> str:
    """`--batch-size` as the name of a variable."""
    return name.lstrip("-").replace("-", "_")


def read_flags(table: FlagTable, arguments: Mapping[str, Any], root: Path) -> FlagValues:
    """Read the flags of a table, the command's own aside; warns of old names.

    Args:
        table: the command's flags.
        arguments: the command's values by field; None where a flag was left out.
        root: the folder that paths in the payload are relative to; those in `arguments` are
            relative to the current one.

    Raises:
        click.UsageError: an old and a new name say different things.
    """
    values, names = {}, {}
    for flag in chain(*table.values()):
        values_by_name = dict(_values_by_name(flag, arguments))
        if not flag.key or not values_by_name:
            continue
        (name, value), *others = values_by_name.items()
        for other, another in others:
            if another != value:
                raise click.UsageError(f"{name} and {other} contradict each other; give one")
        values[flag.key] = (
            project_path(root, absolute_path(value)) if isinstance(value, Path) else value
        )
        names[flag.key] = name
    return FlagValues(values, names)


def _values_by_name(flag: Flag, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each name of a flag that the command line has, with the value under it."""
    value = arguments[flag.field]
    if value is not None:
        yield flag.name_for(value), value
    for old in flag.old:
        value = arguments[variable_name(old.name)]
        if value is not None:
            remedy = f"{flag.name} {old.stands_for or ''}".rstrip()
            echo(f"warning: {old.name} is an old name; use {remedy}", err=True)
            yield old.name, old.stands_for or value
