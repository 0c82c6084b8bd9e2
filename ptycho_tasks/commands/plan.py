"""The commands `ptycho-tasks plan` and `ptycho-tasks evidence`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptycho_tasks.builds.state import State
from ptycho_tasks.errors import ConfigError, one_line
from ptycho_tasks.evidence.inputs import ProjectFiles, files_on_disk
from ptycho_tasks.evidence.item import Evidence
from ptycho_tasks.evidence.loading import require_evidence
from ptycho_tasks.layout import STATE_NAME
from ptycho_tasks.system.cache import cached
from ptycho_tasks.system.lock import exit_if_held
from ptycho_tasks.system.terminal import echo, print_text

if TYPE_CHECKING:
    from ptycho_tasks.evidence.checklist import Basis, CheckedRow


_LONGEST_TEXT = 48


def _read_project() -> tuple[Evidence, Basis]:
    """The evidence of the project here, and what it rests on besides its logs."""
    from ptycho_tasks.evidence.checklist import Basis

    project = require_evidence(Path.cwd())
    # The database knows the digests of files that did not change.
    files = ProjectFiles(State(STATE_NAME).sha256, files_on_disk(project.root).read_rows)
    return project, Basis(files, _find_stage_problem)


@cached
def _find_stage_problem(stage: str) -> str:
    from ptycho_tasks.evidence.stage_status import find_stage_problem

    return find_stage_problem(stage)


@click.group()
def plan() -> None:
    """A plan's checklist, and the evidence that it stands on."""


@plan.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page, with logs, counts, attempts and pictures.",
)
def show(as_json: bool, page: Path | None) -> None:
    """Show every row: its state, the last outcome, and the age and staleness of its evidence."""
    from ptycho_tasks.evidence.checklist import check_plan
    from ptycho_tasks.evidence.documents import read_plan
    from ptycho_tasks.evidence.preflight import mention_odd_rows

    if page is not None and as_json:
        raise ConfigError("--json and --html exclude each other; give one")
    project, basis = _read_project()
    checked = check_plan(project, basis)
    mention_odd_rows(read_plan(project))
    if page is not None:
        _write_page(project, page)
        return
    if as_json:
        print_text(json.dumps([asdict(row) for row in checked], indent=1) + "\n")
        return
    _print_table(checked)


def _write_page(project: Evidence, page: Path) -> None:
    from ptycho_tasks.evidence.row_records import list_row_records
    from ptycho_tasks.layout import absolute_path
    from ptycho_tasks.report.plan_page import write_plan_page
    from ptycho_tasks.system.units import format_size

    path = absolute_path(page)
    write_plan_page(path, project.root, project.plan, list_row_records(project.root))
    echo(f"plan       {page} ({format_size(path.stat().st_size)})")


def _print_table(checked: Sequence[CheckedRow]) -> None:
    rows = [("row", "state", "last", "age", "evidence", "what")]
    for row in checked:
        text = row.reason if row.evidence in ("stale", "broken", "red") else row.text
        rows.append((row.id, row.state, row.outcome or "", row.age, row.evidence, text))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for *first, text in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(first, widths, strict=True)]
        last = text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
        echo(one_line("  ".join([*cells, last]).rstrip()))


@plan.command()
@click.option(
    "--reopen", "and_reopen", is_flag=True, help="Mark rows open whose evidence is stale."
)
@click.option(
    "--logs", "logs_alone", is_flag=True, help="Judge the logs alone, as in a clone without runs/."
)
@click.option(
    "--badge",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write an SVG picture that says how many rows are proved.",
)
def check(and_reopen: bool, logs_alone: bool, badge: Path | None) -> None:
    """Check that what is marked done is proved; exit 1 if not.

    That is while its logs are whole, and its files and stages are what they were. Also exit 1 if
    a log was altered or removed after the fact, or lies outside its report folder, and if a row
    has a state that is none.
    """
    from ptycho_tasks.evidence.badge import draw_badge, refuse_other_picture
    from ptycho_tasks.evidence.checklist import check_plan, list_problems, reopen_rows
    from ptycho_tasks.system.files import write_files

    if badge is not None:
        refuse_other_picture(badge)
    if and_reopen and logs_alone:
        raise ConfigError("--reopen needs more than the logs to go by; leave --logs out")
    project, basis = _read_project()
    rows = check_plan(project, None if logs_alone else basis)
    if and_reopen:
        exit_if_held()
        for id in reopen_rows(project, rows):
            echo(f"reopened {id}")
        rows = check_plan(project, basis)
    problems = list_problems(project, rows)
    if badge is not None:
        write_files({badge: draw_badge(rows, problems).encode()})
    for problem in problems:
        echo(f"error: {one_line(problem)}", err=True)
    if problems:
        if not logs_alone:
            _mention_logs(project, rows)
        sys.exit(1)
    done = sum(row.state == "done" for row in rows)
    proved = "proved by logs; files and stages were not looked at" if logs_alone else "proved"
    echo(f"{project.plan}: {done} of {len(rows)} rows are done, and {proved}")


def _mention_logs(project: Evidence, rows: Sequence[CheckedRow]) -> None:
    """Say in a clone, where no results of stages are, what judges the rows about these."""
    stale = [item for row in rows if row.evidence == "stale" for item in project.items_for(row.id)]
    if any(item.stages for item in stale) and not (project.root / "runs").exists():
        echo("note: runs/ is not here, as in a clone; --logs judges the logs alone", err=True)


@plan.command()
@click.argument("rows", nargs=-1)
@click.option("--poll", is_flag=True, help="Look again and again, where no change is heard of.")
def watch(rows: tuple[str, ...], poll: bool) -> None:
    """Gather evidence, and again each time a save makes some stale.

    Of all items, or only of those of ROWS. A red item runs again when something that it depends on
    was saved. Ctrl-C ends it.
    """
    from ptycho_tasks.evidence.watching import watch_evidence

    watch_evidence(_read_project, rows, is_polled=poll)


@plan.command()
@click.argument("rows", nargs=-1)
@click.option("--by", "name", required=True, help="Who says that they were done.")
def adopt(rows: tuple[str, ...], name: str) -> None:
    """Take rows that were done before there was evidence as done, as of today.

    All rows that are marked done and that nothing proves, or only ROWS; a note in the plan says
    who adopted each, and when.
    """
    from ptycho_tasks.evidence.checklist import adopt_rows

    if not name.strip():
        raise ConfigError("--by is empty; say who knows that the rows are done")
    project = require_evidence(Path.cwd())
    exit_if_held()
    adopted = adopt_rows(project, name, rows)
    for id in adopted:
        echo(f"adopted {id}")
    if not adopted:
        echo("nothing to adopt")


@plan.command("import")
@click.argument("memo", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--plan", "plan_file", default="", help="The plan, where the memo names none.")
@click.option("--ledger", default="", help="The ledger, likewise.")
@click.option("--initiative", default="", help="What the plan is part of, likewise.")
@click.option("--phase", default="", help="What names the folder of a report, likewise.")
@click.option("--dry-run", is_flag=True, help="Only say what would be written.")
def import_(
    memo: Path, plan_file: str, ledger: str, initiative: str, phase: str, dry_run: bool
) -> None:
    """Write the evidence.yaml that a MEMO implies, and say what was taken from each line.

    Says also what is missing, and what will be run; nothing is run. An evidence.yaml of an earlier
    import is updated: what a person changed in it stays.
    """
    from ptycho_tasks.evidence.importing import Supplied, import_memo

    supplied = Supplied(plan_file, ledger, initiative, phase)
    for finding in import_memo(memo, Path.cwd(), supplied, is_dry_run=dry_run):
        first, *others = str(finding).split("\n")
        echo(one_line(first))
        print_text("".join(f"{line}\n" for line in others))


@click.group()
def evidence() -> None:
    """Logs that a plan stands on; `doit evidence` gathers them."""


@evidence.command()
@click.option(
    "--keep", required=True, type=click.IntRange(min=0), help="How many of each item's to keep."
)
@click.option("--yes", is_flag=True, help="Remove them.")
def prune(keep: int, yes: bool) -> None:
    """List old report folders that no plan or manifest points to; with --yes, remove them.

    The summary of one that the ledger points to stays, with the sha256 of each log.
    """
    from ptycho_tasks.evidence.prune import is_in_ledger, list_old_reports, remove_reports

    project = require_evidence(Path.cwd())
    exit_if_held()
    folders = list_old_reports(project, keep)
    for folder in folders:
        what = "the logs of " if is_in_ledger(project, folder) else ""
        more = ", whose summary stays for the ledger" if what else ""
        verb = "removing" if yes else "would remove"
        echo(f"{verb} {what}{folder.relative_to(project.root)}{more}")
    if not folders:
        echo("nothing to remove")
    elif yes:
        remove_reports(project, folders)
    else:
        echo("--yes removes them")
