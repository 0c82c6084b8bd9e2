"""What the tasks of the evidence do: run an item, publish results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doit.exceptions import TaskError, TaskFailed

from ptycho_tasks.builds.actions import report_failure
from ptycho_tasks.builds.kept_output import read_output
from ptycho_tasks.builds.project import read_project_table
from ptycho_tasks.builds.state import State, current_state
from ptycho_tasks.errors import PtychoTasksError, one_line
from ptycho_tasks.evidence.backup import restore_backup
from ptycho_tasks.evidence.documents import digest_documents, mention_changes, read_plan
from ptycho_tasks.evidence.evaluation import RowUpdate, shorten_ids
from ptycho_tasks.evidence.inputs import ProjectFiles, digest_inputs, files_on_disk, find_rows
from ptycho_tasks.evidence.item import GREEN, RED, Evidence, Item
from ptycho_tasks.evidence.loading import load_current_evidence
from ptycho_tasks.evidence.publish import publish
from ptycho_tasks.evidence.records import find_record, find_unpublished
from ptycho_tasks.evidence.summaries import BLOCKER
from ptycho_tasks.system.processes import prefix_lines
from ptycho_tasks.system.terminal import echo


def find_files(evidence: Evidence) -> ProjectFiles:
    """Where a run looks up the inputs of items: in its database, where it has one."""
    # A run with a database of doit's own has none of ours.
    state: State | None = current_state()
    digest = files_on_disk(evidence.root).digest if state is None else state.sha256
    return ProjectFiles(digest, lambda: read_project_table().rows)


def prove_item(name: str) -> TaskFailed | TaskError | None:
    """Run an item. A red one is no failure of its task, so that it keeps no other from running."""
    # Where all items still hold, a run does not wait for these.
    from ptycho_tasks.evidence.preflight import find_missing_file
    from ptycho_tasks.evidence.runner import note_item, run_item

    evidence = load_current_evidence()
    assert evidence is not None
    item = evidence.find_item(name)
    with prefix_lines(name):
        try:
            inputs = digest_inputs(evidence, item, find_files(evidence))
            if problem := find_missing_file(evidence, item):
                note_item(evidence, item, inputs, "", problem)
            elif item.stage:
                note_item(evidence, item, inputs, _read_stage_output(item.stage))
            else:
                before = digest_documents(evidence)
                run_item(evidence, item, inputs)
                mention_changes(evidence, before, name)
        except Exception as error:
            return report_failure(error)
    return None


def _read_stage_output(stage: str) -> str:
    """What the tasks of a stage printed when they made what is there."""
    names = [row.name for row in find_rows(read_project_table().rows, stage)]
    lost = "is up to date; what it printed is not kept here\n"
    return "".join(f"{name}:\n{read_output(name) or lost}" for name in names)


def publish_items(names: Sequence[str], *, are_complete: bool) -> TaskFailed | TaskError | None:
    """Publish the results of items, and say what each came to.

    Args:
        names: of the items.
        are_complete: whether all of them ran, or still hold.
    """
    evidence = load_current_evidence()
    assert evidence is not None
    items = [evidence.find_item(name) for name in names]
    try:
        restore_backup()
        fresh = {item for item in items if find_unpublished(evidence, item) is not None}
        publication = publish(evidence, items, find_files(evidence))
    except Exception as error:
        return report_failure(error)
    lost, red = _show_outcomes(evidence, items, fresh)
    if publication is not None:
        folder = publication.folder.relative_to(evidence.root)
        echo(f"report {folder}; updated {evidence.plan} and {evidence.ledger}")
        _mention_missing_cells(evidence, publication.updates)
    if lost and are_complete:
        text = f"the result of {', '.join(lost)} is gone or damaged; run again"
        return report_failure(PtychoTasksError(text))
    if red:
        rows = ", ".join(dict.fromkeys(item.label for item, _ in red))
        blockers = ", ".join(dict.fromkeys(str(Path(log).with_name(BLOCKER)) for _, log in red))
        return report_failure(PtychoTasksError(f"red: {rows}; see {blockers}"))
    return None


def _mention_missing_cells(evidence: Evidence, updates: Sequence[RowUpdate]) -> None:
    """Say in one line which rows got no pointer to their log, as they have no cell for one."""
    plan = read_plan(evidence)
    rows = [update.id for update in updates if plan.row(update.id).note is None]
    if rows:
        echo(
            f"note: {evidence.plan}: no cell for a pointer to the log in row "
            f"{shorten_ids(rows)}; add one behind the state",
            err=True,
        )


def _show_outcomes(
    evidence: Evidence, items: Sequence[Item], fresh: set[Item]
) -> tuple[list[str], list[tuple[Item, str]]]:
    """Say what each item came to, in one line; gives the names of those without a result, and the
    red ones with their logs."""
    lost: list[str] = []
    red: list[tuple[Item, str]] = []
    for item in items:
        record = find_record(evidence, item)
        if record is None:
            lost.append(item.name)
            continue
        again = "" if item in fresh else f" (of {record.started}, still good)"
        as_expected = item.expect == RED and record.outcome == GREEN
        said = " (red as expected)" if as_expected else ""
        echo(one_line(f"{record.outcome:<6} {item.label}  {record.log}{said}{again}"))
        if record.outcome == RED:
            red.append((item, record.log))
    return lost, red
