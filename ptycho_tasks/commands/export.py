"""`ptycho-tasks export`."""

from __future__ import annotations

from pathlib import Path

import click

from ptycho_tasks.commands.section_options import force_option
from ptycho_tasks.system.files import check_replaceable
from ptycho_tasks.system.terminal import echo


@click.command("export")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@force_option
def export_command(path: Path, output: Path, force: bool) -> None:
    """Write a reconstruction for other programs.

    PATH is reconstruction.h5 or its folder, such as runs/default/inference. The suffix of OUTPUT
    names the format: .cxi and .npz are products that Ptychodus opens; .tif holds amplitude and
    phase as two pages of 32-bit numbers, with the size of a pixel, as ImageJ reads them.
    """
    from ptycho_tasks.results.export import export_product, find_format

    find_format(output)
    check_replaceable(output, force=force)
    export_product(path, output)
    echo(f"{output}: {output.stat().st_size} bytes")
