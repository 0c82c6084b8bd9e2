"""Load what a reconstruction needs before one is wanted."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ptycho_tasks.builds.project import read_project_table
from ptycho_tasks.config.document import parse_config
from ptycho_tasks.config.factories import create_inference_payload, list_variants
from ptycho_tasks.system.lines import sift_output

_FRAMES = 16


def warm_up() -> None:
    """Reconstruct a few frames of a scan of the project in the current folder, which nobody keeps.

    A backend imports its libraries, and compiles what it compiles, when it first reconstructs. What
    fails here fails again, and is told, when a scan comes.
    """
    from ptycho_tasks.builds.stages import infer

    with suppress(Exception), sift_output(lambda line: None, sys.stdout):
        table = read_project_table()
        file = parse_config(table.path, table.config, skips_strays=True)
        variants = {variant.name: variant for variant in list_variants(file)}
        row = next(
            row
            for row in table.rows
            if row.stage == "infer" and all(map(os.path.isfile, row.inputs.values()))
        )
        few = {"inference.n_groups": _FRAMES}
        payload = create_inference_payload(
            file, variant=variants[row.variant], scan=row.scan or None, overrides=few
        )
        with tempfile.TemporaryDirectory() as folder:
            infer(replace(payload, staging=Path(folder)))
