"""Completion in bash, zsh and fish: click does most; backends and tasks are found here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from ptycho_tasks.errors import PtychoTasksError

Completer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem] | list[str]"]
"""Gives the values of a parameter that begin like a text."""
SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print the script for completion in a shell.

    It completes commands, flags, words, backends, tasks and files. Save it where the shell looks,
    and open a new one:

    \b
    bash  ptycho-tasks completion bash > ~/.local/share/bash-completion/completions/ptycho-tasks
    zsh   ptycho-tasks completion zsh > "${fpath[1]}/_ptycho-tasks"
    fish  ptycho-tasks completion fish > ~/.config/fish/completions/ptycho-tasks.fish
    """
    root = context.find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    name = root.info_name or "ptycho-tasks"
    variable = f"_{name}_complete".replace("-", "_").upper()
    click.echo(kind(root.command, {}, name, variable).source(), nl=False)


def complete_words(words: Iterable[str]) -> Completer:
    """A completer that offers some words."""
    return lambda context, param, incomplete: [w for w in words if w.startswith(incomplete)]


def complete_backends(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The backends that can be named here; none is imported."""
    from ptycho_tasks.backends import available

    return [name for name in sorted(available(Path.cwd())) if name.startswith(incomplete)]


def complete_tasks(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The project's tasks that begin like this; none where its configuration is wrong."""
    from ptycho_tasks.builds.task_table import read_table
    from ptycho_tasks.evidence.loading import load_evidence

    names: list[str] = []
    with suppress(PtychoTasksError, OSError):
        evidence = load_evidence(Path.cwd())
        rows = [] if evidence is None else [id for item in evidence.items for id in item.ids]
        names = [f"evidence:{id}" for id in rows]
    # What a backend prints is no completion.
    with suppress(PtychoTasksError, OSError), redirect_stdout(StringIO()):
        names += [row.name for row in read_table(Path.cwd(), None).rows]
    groups = [name.partition(":")[0] for name in names]
    return [name for name in dict.fromkeys([*groups, *names]) if name.startswith(incomplete)]


def complete_results(context: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The variants and scans of the project that begin like this."""
    tasks = complete_tasks(context, param, "infer:")
    names = [name.partition(":")[2] for name in tasks]
    return [name for name in names if name.startswith(incomplete)]
