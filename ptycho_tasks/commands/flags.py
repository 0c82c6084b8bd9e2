"""The flags of `ptycho-tasks train` and `ptycho-tasks infer`, as PtychoPINN's users know them.

A flag is a row of a table: what it sets, and what stands in the help. From the table come click's
options, the values for the payload, and the reference in docs/commands.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from ptycho_tasks.commands.completion import Completer, completer_of
from ptycho_tasks.layout import seen_from
from ptycho_tasks.system.terminal import echo


@dataclass(frozen=True)
class Old:
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
    old: tuple[Old, ...] = ()
    required: bool = False

    @property
    def field(self) -> str:
        """The name of its value in the command."""
        return field_of(self.name)

    def spelled(self, value: Any) -> str:
        """How it is spelled with a value."""
        return self.off if value is False and self.off else self.name


Table = Mapping[str, Sequence[Flag]]
"""The flags of a command by the group that the help shows them in."""


class Told(NamedTuple):
    """What a command line says."""

    values: dict[str, Any]
    """Dotted key path to value."""
    flags: dict[str, str]
    """Dotted key path to the flag that set it."""


def field_of(name: str) -> str:
    """`--batch-size` as the name of a variable."""
    return name.lstrip("-").replace("-", "_")


def told(table: Table, given: Mapping[str, Any], root: Path) -> Told:
    """What the flags of a table say, the command's own aside; warns of old names.

    Args:
        table: the command's flags.
        given: the command's values by field; None where a flag was not given.
        root: the folder that paths in the payload are relative to; those given are relative to the
            current one.

    Raises:
        click.UsageError: an old and a new name say different things.
    """
    values, names = {}, {}
    for flag in chain(*table.values()):
        said = dict(_said(flag, given))
        if not flag.key or not said:
            continue
        (name, value), *others = said.items()
        for other, another in others:
            if another != value:
                raise click.UsageError(f"{name} and {other} contradict each other; give one")
        values[flag.key] = seen_from(root, value) if isinstance(value, Path) else value
        names[flag.key] = name
    return Told(values, names)


def _said(flag: Flag, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The value under each name of a flag that was given."""
    value = given[flag.field]
    if value is not None:
        yield flag.spelled(value), value
    for old in flag.old:
        value = given[field_of(old.name)]
        if value is not None:
            remedy = f"{flag.name} {old.stands_for or ''}".rstrip()
            echo(f"warning: {old.name} is an old name; use {remedy}", err=True)
            yield old.name, old.stands_for or value


# ---------------------------------------------------------------------------------------------
# click


class _Names(list[str]):
    """Names of an option; either spelling is among them, also where completion asks whose value
    is wanted."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).replace("_", "-"))


class FlagOption(click.Option):
    """An option that a row of the table describes."""

    def __init__(self, *arguments: Any, group: str, key: str = "", **settings: Any) -> None:
        """As any option, with what the help says of its place."""
        super().__init__(*arguments, **settings)
        self.opts = _Names(self.opts)
        self.group = group
        self.key = key


class FlagCommand(click.Command):
    """A command whose help lists its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group under its name."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "group", "Help"), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer flags in the spelling that was begun."""
        items = super().shell_complete(ctx, incomplete.replace("_", "-"))
        for item in items if "_" in incomplete else []:
            item.value = f"--{field_of(item.value)}"
        return items


def options(table: Table) -> list[click.Parameter]:
    """Click's options for a table of flags; without a value each is None."""
    return [
        option
        for group, flags in table.items()
        for flag in flags
        for option in _options_of(flag, group)
    ]


_SWITCH: dict[str, Any] = {"is_flag": True, "default": None}
"""Of an option without a value; the default tells one that is not given from one turned off."""


def _options_of(flag: Flag, group: str) -> Iterator[FlagOption]:
    yield FlagOption(
        [f"{flag.name}/{flag.off}" if flag.off else flag.name, flag.field],
        type=flag.type,
        metavar=f"[{'|'.join(flag.words)}]" if flag.words else None,
        shell_complete=flag.complete or (completer_of(flag.words) if flag.words else None),
        **_SWITCH if flag.type is bool else {},
        required=flag.required,
        help=flag.help + "".join(_formerly(old) for old in flag.old),
        group=group,
        key=flag.key,
    )
    for old in flag.old:
        yield FlagOption(
            [old.name, field_of(old.name)],
            type=bool if old.stands_for else flag.type,
            **_SWITCH if old.stands_for else {},
            hidden=True,
            group=group,
        )


def _formerly(old: Old) -> str:
    return f" Old: {old.name}" + (f" for `{old.stands_for}`." if old.stands_for else ".")
