"""`ptycho-tasks prune`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ptycho_tasks.layout import STATE_NAME
from ptycho_tasks.options import STAGES
from ptycho_tasks.system.clock import STAMP
from ptycho_tasks.system.lock import ProjectLock, exit_if_held
from ptycho_tasks.system.terminal import echo, print_text
from ptycho_tasks.system.units import format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from ptycho_tasks.builds.pruning import Inventory, Unused


class _Quantity(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number with a unit."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return self.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("prune")
@click.option(
    "--older-than", type=_Quantity("time", parse_duration), help="Only what is older: 30d, 12h, 2w."
)
@click.option(
    "--max-size",
    type=_Quantity("size", parse_size),
    help="Only the oldest, until the store is not larger: 50GB.",
)
@click.option("--runs", "with_runs", is_flag=True, help="Also folders in runs/ that are no more.")
@click.option("--one-offs", "with_one_offs", is_flag=True, help="Also variants of a command line.")
@click.option("--shared", "with_shared", is_flag=True, help="Also the store shared with others.")
@click.option("--yes", is_flag=True, help="Remove them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def prune_command(
    older_than: float | None,
    max_size: float | None,
    with_runs: bool,
    with_one_offs: bool,
    with_shared: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """List results in the store that no variant names now; with --yes, remove them.

    Also damaged ones that were set aside, what killed runs left, checkpoints of trainings of
    variants that are no more, and logs of jobs that ended well. What is removed is made again if a
    variant comes to name it. Other projects may need what the shared store holds.
    """
    from ptycho_tasks.builds.project import forget_one_offs
    from ptycho_tasks.builds.pruning import choose_unused, list_unused, remove_unused
    from ptycho_tasks.builds.state import State

    def choose() -> tuple[list[Unused], Inventory]:
        inventory = list_unused(
            with_shared=with_shared, with_runs=with_runs, with_one_offs=with_one_offs
        )
        return choose_unused(
            inventory, older_than_s=older_than or 0.0, most_bytes=max_size
        ), inventory

    exit_if_held()
    chosen, inventory = choose()
    if yes and chosen:
        with _hold_project():
            chosen, inventory = choose()  # a run may have begun and ended meanwhile
            for item in chosen:
                remove_unused(item)
            if with_one_offs:
                forget_one_offs(State(STATE_NAME))
    if as_json:
        print_text(json.dumps([_make_record(item) for item in chosen], indent=1) + "\n")
    else:
        _print_list(chosen)
        _print_end(chosen, inventory, max_size, is_done=yes)


@contextmanager
def _hold_project() -> Iterator[None]:
    """Keep runs from beginning in the block."""
    lock = ProjectLock()
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make_record(item: Unused) -> dict[str, Any]:
    return {
        **item._asdict(),
        "path": str(item.path),
        "made": item.made.strftime(STAMP),
        "foreign": [str(path) for path in item.foreign],
    }


def _print_list(chosen: list[Unused]) -> None:
    from ptycho_tasks.builds.store import format_age

    labels = [_name(item) for item in chosen]
    width = max(map(len, labels), default=0)
    for item, label in zip(chosen, labels, strict=True):
        size, age = format_size(item.bytes), format_age(item.age_s)
        place = "" if label == str(item.path) else item.path.parent / item.path.name[:12]
        echo(f"{label:<{width}}  {size:>8}  {age:<14}  {place}".rstrip())
    for item in chosen:
        if item.foreign:
            echo(f"keeping {item.path}: no run made {item.foreign[0]}, or it was changed since")


def _name(item: Unused) -> str:
    """The task that made it, the folder in runs/, or what it is."""
    names_itself = item.kind in STAGES or not item.is_in_store
    return item.label if names_itself else f"{item.kind} {item.label}"


def _print_end(
    chosen: list[Unused], inventory: Inventory, max_size: float | None, *, is_done: bool
) -> None:
    removable = [item for item in chosen if not item.foreign]
    size = format_size(sum(item.bytes for item in removable))
    left = inventory.store_bytes - sum(item.bytes for item in removable if item.is_in_store)
    held = f"the store holds {format_size(left if is_done else inventory.store_bytes)}"
    if not removable:
        echo(f"nothing to remove; {held}")
    elif is_done:
        echo(f"removed {len(removable)}, {size}; {held}")
    if max_size is not None and left > max_size:
        echo(f"{format_size(left)} stay: variants of this project name them, or they are younger")
    if inventory.shared is not None:
        echo(f"{inventory.shared}: other projects may use it; --shared looks there too")
    if removable and not is_done:
        echo(f"{len(removable)} can be removed, {size}; {held}; --yes removes them")
