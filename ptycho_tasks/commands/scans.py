"""`ptycho-tasks simulate` and `ptycho-tasks fixture`."""

from __future__ import annotations

from pathlib import Path

import click

from ptycho_tasks.commands.section_options import force_option, read_section, section_options
from ptycho_tasks.config.sections import SourceOptions
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import FixtureOptions, SimulationOptions
from ptycho_tasks.system.files import check_replaceable
from ptycho_tasks.system.terminal import echo


@click.command("simulate")
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@force_option
@section_options(SimulationOptions)
def simulate_command(output: Path, force: bool, **values: str | None) -> None:
    """Simulate a scan with a known ground truth.

    Writes it to OUTPUT (NPZ).
    """
    options = read_section(SimulationOptions, values)
    check_replaceable(output, force=force)

    from ptycho_tasks.physics.simulate import simulate
    from ptycho_tasks.scans.npz import write_scan

    scan = simulate(options)
    write_scan(output, scan)
    echo(f"{output}: {scan.frame_count} frames of {scan.size} x {scan.size}")


@click.command("fixture")
@click.option("--source", required=True, type=click.Path(path_type=Path), help="The scan to cut.")
@click.option(
    "--output", required=True, type=click.Path(path_type=Path), help="The fixture (NPZ) to write."
)
@force_option
@section_options(FixtureOptions)
@section_options(SourceOptions, without=("file", "files", "simulate"))
def fixture_command(source: Path, output: Path, force: bool, **values: str | None) -> None:
    """Cut a scan to a fixture, with its JSON sidecar beside it."""
    options = read_section(FixtureOptions, values)
    reading = read_section(SourceOptions, {**values, "file": str(source)})
    if output.suffix != ".npz":
        raise ConfigError(f"--output: {output} must end in .npz; its sidecar ends in .json")

    from ptycho_tasks.builds.stages import cut_fixture
    from ptycho_tasks.scans.cutting import check_output
    from ptycho_tasks.scans.mapping import refuse_cut_files
    from ptycho_tasks.scans.plausibility import doubts
    from ptycho_tasks.scans.readers import read_scan
    from ptycho_tasks.system.files import file_stamp, sha256_file

    product = None if reading.product is None else Path(reading.product)
    beside = map(Path, reading.files_beside.values())
    check_output(output, [source, *beside], force=force)
    follow = tuple(map(Path, reading.follow))
    stamp = file_stamp(source)
    with refuse_cut_files():
        scan = read_scan(
            source, product=product, follow=follow, root=Path.cwd(), **reading.reading(Path)
        )
        for note in scan.notes:
            echo(f"{source}: {note}")
        for doubt in doubts(scan):
            echo(f"warning: {source}: {doubt}", err=True)
        frames = cut_fixture(scan, source, sha256_file, options, output, stamp=stamp)
    echo(f"{output}: {frames.frame_count} frames of {frames.size} x {frames.size}")
