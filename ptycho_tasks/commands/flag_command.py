"""Commands whose options are the flags of a table: grouped help, old names, either spelling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from ptycho_tasks.commands.completion import complete_words
from ptycho_tasks.commands.flags import Flag, FlagTable, OldName, variable_name


class _Names(list[str]):
    """Names of an option. A name counts with `-` and with `_`, as completion asks for either."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).replace("_", "-"))


class FlagOption(click.Option):
    """An option that a row of the table describes."""

    def __init__(self, *arguments: Any, group: str, key: str = "", **settings: Any) -> None:
        """Make an option that stands under `group` in the help and sets `key`."""
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
        """Offer flags with `-` or `_`, as the user began."""
        items = super().shell_complete(ctx, incomplete.replace("_", "-"))
        for item in items if "_" in incomplete else []:
            item.value = f"--{variable_name(item.value)}"
        return items


def make_options(table: FlagTable) -> list[click.Parameter]:
    """Click's options for a table of flags. An option that is left out is None."""
    return [
        option
        for group, flags in table.items()
        for flag in flags
        for option in _make_options_for(flag, group)
    ]


_SWITCH: dict[str, Any] = {"is_flag": True, "default": None}
"""Of an option without a value; the default tells one that is not given from one turned off."""


def _make_options_for(flag: Flag, group: str) -> Iterator[FlagOption]:
    yield FlagOption(
        [f"{flag.name}/{flag.off}" if flag.off else flag.name, flag.field],
        type=flag.type,
        metavar=f"[{'|'.join(flag.words)}]" if flag.words else None,
        shell_complete=flag.complete or (complete_words(flag.words) if flag.words else None),
        **_SWITCH if flag.type is bool else {},
        required=flag.required,
        help=flag.help + "".join(_mention_old_name(old) for old in flag.old),
        group=group,
        key=flag.key,
    )
    for old in flag.old:
        yield FlagOption(
            [old.name, variable_name(old.name)],
            type=bool if old.stands_for else flag.type,
            **_SWITCH if old.stands_for else {},
            hidden=True,
            group=group,
        )


def _mention_old_name(old: OldName) -> str:
    return f" Old: {old.name}" + (f" for `{old.stands_for}`." if old.stands_for else ".")
