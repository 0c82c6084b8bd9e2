"""The command line `ptycho-tasks`: its commands, and what a user sees of an error."""

from __future__ import annotations

import os
import sys

import click

from ptycho_tasks.commands.backends import backends_command
from ptycho_tasks.commands.bundle import bundle
from ptycho_tasks.commands.check import check_command
from ptycho_tasks.commands.compare import compare_command
from ptycho_tasks.commands.completion import completion_command
from ptycho_tasks.commands.config import config_command
from ptycho_tasks.commands.export import export_command
from ptycho_tasks.commands.init import init_command
from ptycho_tasks.commands.plan import evidence, plan
from ptycho_tasks.commands.prune import prune_command
from ptycho_tasks.commands.report import report_command
from ptycho_tasks.commands.run_stage import run_stage_command
from ptycho_tasks.commands.scans import fixture_command, simulate_command
from ptycho_tasks.commands.show import show_command
from ptycho_tasks.commands.train_infer import infer_command, train_command
from ptycho_tasks.commands.watch import watch_command
from ptycho_tasks.commands.why import dry_run_command, why_command
from ptycho_tasks.errors import DEBUG, PtychoTasksError
from ptycho_tasks.system.clock import utc_now
from ptycho_tasks.system.faults import show_fault
from ptycho_tasks.system.program import begin_program
from ptycho_tasks.system.terminal import (
    BROKEN_PIPE_STATUS,
    WRITE_ERRORS,
    echo,
    flush_at_exit,
    give_up_output,
    silence_stdout,
)

NAME = "ptycho-tasks"
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click raises for a group without a command; since click 8.2."""


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        # PtychoPINN's users spell some flags with `_`.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    }
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name=NAME)
def cli(debug: bool) -> None:
    """Ptychography as a build: scan -> fixture -> trained bundle -> reconstruction.

    In a project folder, `doit train` and `doit infer` build what is stale. Start one with
    `ptycho-tasks init`; or `ptycho-tasks train` and `ptycho-tasks infer` work on single files.
    """
    if debug:
        os.environ[DEBUG] = "1"
    utc_now()  # a wrong SOURCE_DATE_EPOCH ends libraries that are imported later


for _command in (
    backends_command,
    bundle,
    check_command,
    compare_command,
    completion_command,
    config_command,
    dry_run_command,
    evidence,
    export_command,
    fixture_command,
    infer_command,
    init_command,
    plan,
    prune_command,
    run_stage_command,
    report_command,
    show_command,
    simulate_command,
    train_command,
    watch_command,
    why_command,
):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit 2, failed work exit 1."""
    begin_program(is_whole=True)
    flush_at_exit()
    try:
        code = cli.main(prog_name=NAME, standalone_mode=False)
    except BaseException as error:
        code = _exit_status(error)
    sys.exit(code)


def _exit_status(error: BaseException) -> int:
    """The exit status after an error, of which the user was told in one line."""
    if isinstance(error, _HELP):
        error.show()
        return 2
    if isinstance(error, click.Abort):
        echo("aborted", err=True)
        return 1
    if isinstance(error, BrokenPipeError):
        silence_stdout()
        return BROKEN_PIPE_STATUS
    if not isinstance(error, Exception):  # the end of the program, or Ctrl-C
        raise error
    if isinstance(error, OSError) and error.filename is None and error.errno in WRITE_ERRORS:
        give_up_output(error)
        return 1
    if isinstance(error, (click.ClickException, PtychoTasksError, OSError)):
        if os.environ.get(DEBUG):
            raise error
        echo(f"error: {_error_line(error)}", err=True)
        return 2 if isinstance(error, click.ClickException) else getattr(error, "exit_code", 1)
    show_fault(error)
    return 1


def _error_line(error: Exception) -> str:
    """What is wrong, and which help says what is right."""
    if isinstance(error, OSError):
        if isinstance(error, FileNotFoundError) and error.filename is None:
            return "the current folder is not there any more; go to another one"
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if not isinstance(error, click.ClickException):
        return str(error)
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text}; see `{context.command_path} --help`" if context else text


if __name__ == "__main__":
    main()
