"""`ptycho-tasks check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptycho_tasks.commands.section_options import read_section, section_options
from ptycho_tasks.config.sections import SourceOptions
from ptycho_tasks.system.terminal import echo, print_text

if TYPE_CHECKING:
    from ptycho_tasks.scans.doctor.examine import Report


@click.command("check")
@click.argument("scan", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--write", is_flag=True, help="Write what mends the scan into ptycho.yaml.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a PNG: the mean frame, and the positions over the light.",
)
@section_options(SourceOptions, without=("file", "files", "simulate"))
def check_command(
    scan: Path, as_json: bool, write: bool, picture: Path | None, **values: Any
) -> None:
    """Say what is wrong with SCAN, a file or the name of one of the project's scans, and which
    settings mend it.

    Quick reconstructions of a part of it are compared: with swapped, mirrored, rotated and scaled
    positions, other centres and units. Where ptycho.yaml in this folder names the scan, it is read
    as its `source` says; the options below win over that. Exits 1 where something makes results
    wrong.
    """
    from ptycho_tasks.commands.scan_check import (
        change_settings,
        check_scan,
        find_project_scan,
        list_lines,
        write_settings,
    )

    root = Path.cwd()
    project = find_project_scan(root, scan)
    path = scan if project is None or scan.exists() else project.path
    flags = read_section(SourceOptions, {**values, "file": str(path)})
    names = {name for name, value in values.items() if value not in (None, ())}
    settings = change_settings(project and project.settings(root), flags, names)
    report = check_scan(path, root, settings, say=_say_what)
    if as_json:
        print_text(json.dumps(report.as_json(), indent=2) + "\n")
    else:
        _show(report, list_lines(report.settings))
    if picture is not None:
        _draw(report, picture)
    if write and report.settings:
        written = write_settings(root, path, report.settings)
        echo(f"wrote {', '.join(report.settings)} to {written}", err=as_json)
    if report.is_wrong:
        raise SystemExit(1)


def _say_what(what: str) -> None:
    """Say on a terminal what is looked at, since it takes seconds."""
    if sys.stderr.isatty():
        echo(f"looking at {what}", err=True)


def _show(report: Report, lines: list[str]) -> None:
    from ptycho_tasks.scans.doctor.findings import show_r

    for finding in report.findings:
        echo(f"{'wrong' if finding.is_wrong else 'note '}  {finding.line}")
    if report.r_given is not None and report.r_mended is not None:
        mended = f", {show_r(report.r_mended)} mended" if report.mended is not report.given else ""
        given = show_r(report.r_given)
        echo(f"R-factor of a quick reconstruction of a part: {given} as given{mended}")
    elif report.given is not None:
        echo(f"orientation, centre and scale were not tried: {_why_untried(report)}")
    if not report.is_wrong:
        more = "; the notes say what to try" if any(one.advice for one in report.findings) else ""
        echo(f"{report.path}: nothing wrong was found{more}")
    elif any(one.kind == "unexplained" for one in report.findings):
        echo(f"{report.path}: something is wrong that check cannot name")
    if lines:
        echo("for ptycho.yaml:")
        for line in lines:
            echo(f"  {line}")


def _why_untried(report: Report) -> str:
    from ptycho_tasks.scans.doctor.trials import LEAST_FRAMES

    case = report.mended
    if case is None:
        return "what is wrong leaves nothing to try"
    kept, of = len(case.keep), len(case.frames)
    if kept < LEAST_FRAMES:
        are = f"there are {kept}" if kept == of else f"of {of}, {kept} are of use"
        return f"that needs {LEAST_FRAMES} frames, and {are}"
    if case.probe is None:
        return "that needs a probe"
    return "that needs a backend such as `unrolled` (ptycho-tasks-torch)"


def _draw(report: Report, path: Path) -> None:
    from ptycho_tasks.errors import ScanError
    from ptycho_tasks.results.scan_picture import draw_scan
    from ptycho_tasks.system.files import write_atomic

    if report.mended is None:
        raise ScanError(f"{report.path}: cannot be read, so that there is nothing to draw")
    write_atomic(path, draw_scan(report.mended))
