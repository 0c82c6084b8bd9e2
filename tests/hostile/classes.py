"""The classes, and what their cases import, once for all of them."""

from __future__ import annotations

import codecs
from importlib import import_module

# These add cases to the batteries of the modules that they continue.
from hostile import hdf5_files_behind, memos, npz_values, ptychodus_scans  # noqa: F401
from hostile.battery import Battery
from hostile.bundles import BUNDLE
from hostile.command_line import COMMAND
from hostile.environment import ENVIRONMENT
from hostile.evidence_files import EVIDENCE
from hostile.hdf5_scans import HDF5
from hostile.npz_scans import NPZ
from hostile.products import PRODUCT
from hostile.scans import scan
from hostile.yaml_files import YAML

_ALL = (NPZ, HDF5, YAML, BUNDLE, PRODUCT, EVIDENCE, COMMAND, ENVIRONMENT)
BATTERIES: dict[str, Battery] = {battery.name: battery for battery in _ALL}


def preload() -> None:
    """Import what the processes of the cases would each import again."""
    for name in (
        "_strptime",
        "doit.doit_cmd",
        "doit.__main__",
        "email.parser",
        "matplotlib.pyplot",
        "matplotlib.backends.backend_agg",
        "ptycho_tasks.results.bundle",
        "ptycho_tasks.commands.cli",
        "ptycho_tasks.evidence.actions",
        "ptycho_tasks.evidence.tasks",
        "ptycho_tasks.scans.cutting",
        "ptycho_tasks.scans.hdf5_scan",
        "ptycho_tasks.evidence.memo",
        "ptycho_tasks.physics.metrics",
        "ptycho_tasks.results.pictures",
        "ptycho_tasks.results.product",
        "ptycho_tasks.builds.stages",
        "ptycho_tasks.tasks",
        "ptycho_tasks.builds.why",
        "skimage.metrics",
        "skimage.registration",
    ):
        import_module(name)
    for encoding in ("unicode_escape", "raw_unicode_escape", "idna", "cp437", "latin-1", "utf-16"):
        codecs.lookup(encoding)  # a user who may read nothing here could not, later
    scan()
