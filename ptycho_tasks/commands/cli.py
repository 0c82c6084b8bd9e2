"""The command line `ptycho-tasks`: thin callers of public functions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
import msgspec

from ptycho_tasks.commands.completion import (
    complete_backends,
    complete_tasks,
    completer_of,
    completion,
)
from ptycho_tasks.commands.plan import evidence, plan
from ptycho_tasks.commands.train_infer import infer, train
from ptycho_tasks.config.document import read_config
from ptycho_tasks.config.fields import SectionType, choices_of, fault, typed
from ptycho_tasks.config.sections import SourceOptions
from ptycho_tasks.errors import DEBUG, ConfigError, PtychoTasksError
from ptycho_tasks.layout import CONFIG_NAME
from ptycho_tasks.options import FixtureOptions, Section, SimulationOptions, default_of
from ptycho_tasks.system.clock import utc_now
from ptycho_tasks.system.faults import show_fault
from ptycho_tasks.system.files import check_replaceable
from ptycho_tasks.system.terminal import (
    CLOSED,
    UNWRITTEN,
    echo,
    end_in_order,
    lose_output,
    say,
    silence_stdout,
)

NAME = "ptycho-tasks"
_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())  # since click 8.2


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


def main() -> None:
    """Run the command line; a user's mistake is one line and exit 2, failed work exit 1."""
    end_in_order()
    try:
        code = cli.main(prog_name=NAME, standalone_mode=False)
    except BaseException as error:
        code = _status_of(error)
    sys.exit(code)


def _status_of(error: BaseException) -> int:
    """The exit status after an error, of which the user was told in one line."""
    if isinstance(error, _HELP):
        error.show()
        return 2
    if isinstance(error, click.Abort):
        echo("aborted", err=True)
        return 1
    if isinstance(error, BrokenPipeError):
        silence_stdout()
        return CLOSED
    if not isinstance(error, Exception):  # the end of the program, or Ctrl-C
        raise error
    if isinstance(error, OSError) and error.filename is None and error.errno in UNWRITTEN:
        lose_output(error)
        return 1
    if isinstance(error, (click.ClickException, PtychoTasksError, OSError)):
        if os.environ.get(DEBUG):
            raise error
        echo(f"error: {_one_line(error)}", err=True)
        return 2 if isinstance(error, click.ClickException) else getattr(error, "exit_code", 1)
    show_fault(error)
    return 1


def _one_line(error: Exception) -> str:
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


for command in (train, infer, completion, evidence, plan):
    cli.add_command(command)


def section_options(
    kind: type[Section], *, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option a field of `kind`, with its documentation."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(msgspec.structs.fields(kind)):
            if field.name in without:
                continue
            meta = next(m for m in field.type.__metadata__ if isinstance(m, msgspec.Meta))
            default = default_of(field) or "none"
            words = tuple(map(str, choices_of(field.type)))
            command = click.option(
                f"--{field.name.replace('_', '-')}",
                field.name,
                multiple=isinstance(default_of(field), list),
                metavar=f"[{'|'.join(words)}]" if words else _kind(field.type),
                shell_complete=completer_of(words) if words else None,
                help=f"{meta.description}  [default: {default}]",
            )(command)
        return command

    return decorate


def _kind(annotation: Any) -> str:
    """What a field takes, in one word."""
    kinds = [*_classes(annotation)]
    return "INTEGER" if int in kinds else "NUMBER" if float in kinds else "TEXT"


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)


def section_of(kind: type[SectionType], values: dict[str, Any]) -> SectionType:
    """The section that the given option texts make; those of other sections are left aside.

    Raises:
        ConfigError: a value is wrong; the option is named.
    """
    names = {field.name for field in msgspec.structs.fields(kind)}
    given = {
        key: value for key, value in values.items() if key in names and value not in (None, ())
    }
    try:
        return typed(given, kind, strict=False)
    except msgspec.ValidationError as error:
        key, problem = fault(error, kind, given)
        option = f"--{key.replace('_', '-')}: " if key else ""
        raise ConfigError(f"{option}{problem}") from error


force_option = click.option("--force", is_flag=True, help="Replace a file that is already there.")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--source", type=click.Path(path_type=Path), help="The scan to read (NPZ, CXI).")
@click.option(
    "--backend",
    default="unrolled",
    show_default=True,
    shell_complete=complete_backends,
    help="What trains and infers.",
)
@click.option("--name", help="Names the files that are made.  [default: the scan's name]")
def init(folder: Path, source: Path | None, backend: str, name: str | None) -> None:
    """Make a project in FOLDER.

    Writes ptycho.yaml, dodo.py and a JSON Schema for editors. Without --source, the project
    simulates its scan.
    """
    from ptycho_tasks.commands.init import init_project

    for path in init_project(folder, source=source, backend=backend, name=name):
        echo(f"wrote {path}")
    echo(f"next: edit {folder / CONFIG_NAME}, then `doit infer` in {folder}")


@cli.command()
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@force_option
@section_options(SimulationOptions)
def simulate(output: Path, force: bool, **values: str | None) -> None:
    """Simulate a scan with a known ground truth.

    Writes it to OUTPUT (NPZ).
    """
    options = section_of(SimulationOptions, values)
    check_replaceable(output, force=force)

    from ptycho_tasks.physics.simulate import simulate as simulate_scan
    from ptycho_tasks.scans.npz import write_scan

    scan = simulate_scan(options)
    write_scan(output, scan)
    echo(f"{output}: {scan.frame_count} frames of {scan.size} x {scan.size}")


def _doit(*arguments: str) -> None:
    if not Path("dodo.py").exists():
        raise ConfigError(
            f"{Path.cwd()}: there is no dodo.py; go to a project's folder, or make one with "
            "`ptycho-tasks init`"
        )
    from doit.doit_cmd import DoitMain

    code = DoitMain().run(list(arguments))
    if code:
        # doit has said why, and calls a wrong task name 3.
        sys.exit(2 if code == 3 else code)


@cli.command()
@click.argument("tasks", nargs=-1, shell_complete=complete_tasks)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def why(tasks: tuple[str, ...], as_json: bool) -> None:
    """Say why tasks are stale.

    Each reason: settings, files, code, or a task before them.
    """
    _doit("why", *(["--json"] if as_json else []), *tasks)


@cli.command("dry-run")
@click.argument("tasks", nargs=-1, shell_complete=complete_tasks)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def dry_run(tasks: tuple[str, ...], as_json: bool) -> None:
    """Say what would run, in order; runs nothing."""
    _doit("dry-run", *(["--json"] if as_json else []), *tasks)


@cli.command()
@click.option("--source", required=True, type=click.Path(path_type=Path), help="The scan to cut.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="The fixture (NPZ) to write."
)
@force_option
@section_options(FixtureOptions)
@section_options(SourceOptions, without=("file", "simulate"))
def fixture(source: Path, output: Path, force: bool, **values: str | None) -> None:
    """Cut a scan to a fixture, with its JSON sidecar beside it."""
    options = section_of(FixtureOptions, values)
    reading = section_of(SourceOptions, {**values, "file": str(source)})
    if output.suffix != ".npz":
        raise ConfigError(f"--output: {output} must end in .npz; its sidecar ends in .json")

    from ptycho_tasks.builds.stages import cut_fixture
    from ptycho_tasks.scans.cutting import check_output
    from ptycho_tasks.scans.plausibility import doubts
    from ptycho_tasks.scans.readers import read_scan
    from ptycho_tasks.system.files import sha256_file

    product = None if reading.product is None else Path(reading.product)
    check_output(output, [source, *([product] if product else [])], force=force)
    follow = tuple(map(Path, reading.follow))
    scan = read_scan(source, product=product, follow=follow, **reading.reading)
    for note in scan.notes:
        echo(f"{source}: {note}")
    for doubt in doubts(scan):
        echo(f"warning: {source}: {doubt}", err=True)
    made = cut_fixture(scan, source, sha256_file, options, output)
    echo(f"{output}: {made.frame_count} frames of {made.size} x {made.size}")


@cli.command()
@click.argument("name", required=False, shell_complete=complete_backends)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def backends(name: str | None, as_json: bool) -> None:
    """List the backends that can be named here, or show one.

    The list says why one cannot be used. With NAME: what that backend offers, its options with
    their defaults and meanings. The list imports every backend to learn its version; with NAME,
    only that one is imported.
    """
    from ptycho_tasks.backends import describe, describe_all, find_backend

    here = Path.cwd()
    # What a module prints when it is imported is no part of the answer.
    with redirect_stdout(sys.stderr):
        said = [describe(find_backend(name, here))] if name else describe_all(here)
    if as_json:
        say(json.dumps(said[0] if name else said, indent=1) + "\n")
        return
    for backend in said:
        echo(backend.get("error") or "{name}  {origin}  version {version}".format(**backend))
    if name:
        _show_offers(said[0])


def _show_offers(backend: dict[str, Any]) -> None:
    for method in ("train", "infer", "refine"):
        if backend[method] is not None:
            echo(f"{method:<10} {backend[method]}".rstrip())
    for section, options in (("training", "options"), ("execution", "execution")):
        echo(f"{section}:")
        rows = [f"  {o['name']}: {json.dumps(o['default'])}" for o in backend[options]]
        width = max(map(len, rows))
        for row, option in zip(rows, backend[options], strict=True):
            echo(f"{row:<{width}}  # {option['doc']}")


@cli.command()
@click.option("--schema", is_flag=True, help="Print the JSON Schema of ptycho.yaml instead.")
def config(schema: bool) -> None:
    """Show every setting, and where it came from."""
    from ptycho_tasks.commands.init import project_schema
    from ptycho_tasks.config.factories import create_inference_payload, create_refinement_payload

    if schema:
        say(json.dumps(project_schema(Path.cwd()), indent=2) + "\n")
        return
    file = read_config(Path.cwd() / CONFIG_NAME)
    refuse_what_doit_would(Path.cwd())
    payload = create_refinement_payload(file) or create_inference_payload(file)
    rows = [(key, json.dumps(value), payload.origins[key]) for key, value in payload.values.items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, origin in rows:
        echo(f"{key:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


def refuse_what_doit_would(root: Path) -> None:
    """Check all variants, and the evidence, of a project.

    Raises:
        ConfigError: something is wrong, in any of them.
    """
    from ptycho_tasks.builds.task_table import make_table
    from ptycho_tasks.layout import asks_for_evidence, read_bytes

    path = root / CONFIG_NAME
    make_table(path, read_bytes(path))
    if asks_for_evidence(root):
        from ptycho_tasks.evidence.loading import load_evidence

        load_evidence(root, None)


@cli.group()
def bundle() -> None:
    """Look into a model bundle, wts.h5.zip.

    Nothing in it is ever executed.
    """


@bundle.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
def show(model_dir: Path) -> None:
    """Show what a bundle in MODEL_DIR holds: backend, settings, arrays, last losses."""
    from ptycho_tasks.results.bundle import load_bundle

    content = load_bundle(model_dir)
    echo(json.dumps({k: content.manifest[k] for k in ("backend", "models", "N")}))
    say(json.dumps(content.params, indent=1, sort_keys=True) + "\n")
    for model, arrays in content.model.models.items():
        weights = sum(array.size for array in arrays.values())
        echo(f"{model}: {len(arrays)} arrays, {weights} values")
    if content.model.history:
        echo(f"last epoch: {json.dumps(content.model.history[-1])}")


@bundle.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
def verify(model_dir: Path) -> None:
    """Check a bundle's members, sizes and checksums; exit 1 if it is damaged."""
    from ptycho_tasks.results.bundle import load_bundle

    content = load_bundle(model_dir)
    echo(f"{model_dir}: whole; made by {content.backend}")


if __name__ == "__main__":
    main()
