"""Write the reference of the command line, docs/commands.md.

    python docs/make_commands.py            writes it
    python docs/make_commands.py --check    exits 1 where it is stale

Made from the commands themselves, not from their help, whose look differs between versions of
click.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ptycho_tasks.commands.cli import NAME, cli

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "docs/commands.md"
REMEDY = "run `python docs/make_commands.py`"


def commands(group: click.Group = cli, name: str = NAME) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its whole name, in the order of the alphabet."""
    for word, command in sorted(group.commands.items()):
        whole = f"{name} {word}"
        if isinstance(command, click.Group):
            yield from commands(command, whole)
        elif not command.hidden:
            yield whole, command


def reference() -> str:
    """All of docs/commands.md."""
    parts = [
        f"# Commands\n\n{_paragraphs(cli)}\n\nFlags may be spelled with `-` or `_` inside; "
        "`ptycho-tasks --debug COMMAND` shows the traceback of an error. "
        "[Projects](projects.md#exit-codes) lists the exit codes."
        f"\n\n<!-- {REMEDY}; do not edit -->\n",
        *(_section(name, command) for name, command in commands()),
    ]
    return "\n".join(parts)


def _section(name: str, command: click.Command) -> str:
    # What click adds, such as --help, is no parameter of the command.
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    shown = [
        param for param in command.params if isinstance(param, click.Option) and not param.hidden
    ]
    usage = " ".join([name, *map(_place, arguments), *(["[OPTIONS]"] if shown else [])])
    lines = [f"## {name}\n", f"    {usage}\n", f"{_paragraphs(command)}\n"]
    groups: dict[str, list[click.Option]] = {}
    for option in shown:
        groups.setdefault(getattr(option, "group", ""), []).append(option)
    for group, members in groups.items():
        lines += [f"### {group}\n"] if group else []
        lines += ["| option | value | meaning |", "|---|---|---|"]
        lines += [f"| {_names(o)} | {_value(o)} | {_meaning(o)} |" for o in members]
        lines.append("")
    return "\n".join(lines)


def _paragraphs(command: click.Command) -> str:
    """The help as Markdown; what it asks to leave as it is becomes code."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        "\n".join(f"    {line}" for line in paragraph.splitlines()[1:])
        if paragraph.startswith("\b")
        else paragraph
        for paragraph in paragraphs
    )


def _place(argument: click.Argument) -> str:
    place = (argument.name or "").upper() + ("..." if argument.nargs == -1 else "")
    return place if argument.required else f"[{place}]"


def _names(option: click.Option) -> str:
    return " / ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ""
    words = getattr(option.type, "choices", None) or (option.metavar or "").strip("[]").split("|")
    if len(words) > 1:
        return ", ".join(f"`{word}`" for word in words)
    return words[0].lower() or _KINDS.get(option.type.name, option.type.name)


_KINDS = {"float": "number", "file": "path", "directory": "folder"}
"""Names of click's types for people."""


def _meaning(option: click.Option) -> str:
    parts = [(option.help or "").replace("|", "\\|").replace("  [", " [")]
    key = getattr(option, "key", "")
    parts += [f"Sets `{key}`."] if key else []
    parts += [f"[default: {option.default}]"] if option.show_default else []
    parts += ["**Must be given.**"] if option.required else []
    return " ".join(parts)


def main() -> None:
    """Write the file, or check it."""
    path, text = ROOT / REFERENCE, reference()
    if path.exists() and path.read_text() == text:
        return
    if "--check" in sys.argv[1:]:
        raise SystemExit(f"{REFERENCE} is stale: {REMEDY}")
    path.write_text(text)
    print(f"wrote {REFERENCE}")


if __name__ == "__main__":
    main()
