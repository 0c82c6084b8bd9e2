"""What the files and folders of a project are called, and how their paths are written."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from ptycho_tasks.system.lock import STATE_DIR

CONFIG_NAME = "ptycho.yaml"
EVIDENCE_NAME = "evidence.yaml"
DODO_NAME = "dodo.py"
SCHEMA_NAME = "ptycho.schema.json"
EVIDENCE = "evidence"
"""The section of ptycho.yaml that may stand in for evidence.yaml."""
STATE_NAME = f"{STATE_DIR}/state.sqlite"
STORE_NAME = f"{STATE_DIR}/store"
JOBS_NAME = f"{STATE_DIR}/jobs"
"""The folder of what is known of jobs that schedulers run."""
OF_EVERY_SCAN = ("probe", "bad_pixels")
FILES_BESIDE = ("product", "positions", *OF_EVERY_SCAN)
"""The settings of `source:` that may name a file besides the scan; some hold for every scan."""
BUNDLE_NAME = "wts.h5.zip"
FIXTURE_NAME = "fixture.npz"
"""What every project's store calls a fixture."""
CHECKPOINTS, LOGS = "checkpoints", "logs"
"""Folders beside a bundle: kept states of its training, and logs of it."""
RECONSTRUCTION = "reconstruction.h5"
AMPLITUDE = "reconstructed_amplitude.png"
PHASE = "reconstructed_phase.png"
METRICS = "metrics.json"
REPORT = "report.html"
"""The page of all results, in the project's folder."""
LIVE_PAGE = "live.html"
"""The page of what is being computed now, in the project's folder."""
LIVE = f"{STATE_DIR}/live"
"""The folder of what that page shows."""
RESULTS = (RECONSTRUCTION, AMPLITUDE, PHASE, METRICS)
"""The files of a reconstruction."""


def project_path(root: Path, path: Path) -> str:
    """The path of a file as the project writes it: relative to `root` for a file in the project,
    absolute for any other.

    doit compares paths as strings, so each file needs one spelling.
    """
    whole, inside = os.path.normpath(path), _folder_prefix(root)
    return whole[len(inside) :] if whole.startswith(inside) else whole


@functools.cache
def _folder_prefix(root: Path) -> str:
    """The beginning that the paths of all files in a folder share."""
    return f"{os.path.normpath(root)}{os.sep}"


def is_fixture(path: str) -> bool:
    """Whether a path, as the project writes it, is that of a fixture's frames."""
    return path.startswith("fixtures/") and path.endswith(".npz")


def absolute_path(path: Path) -> Path:
    """The absolute path for a path from the command line; `~` is expanded."""
    # A shell leaves the `~` in `--output-dir=~/out` as it is; Path's own expansion may raise.
    return Path(os.path.normpath(Path.cwd() / os.path.expanduser(path)))  # noqa: PTH111


def may_have_evidence(root: Path) -> bool:
    """Whether a project may have evidence. A cheap look: `load_evidence` knows for certain."""
    if has_evidence_file(root):
        return True
    config = root / CONFIG_NAME
    return os.path.lexists(config) and EVIDENCE.encode() in read_config_bytes(config)


def has_evidence_file(root: Path) -> bool:
    """Whether a project has an evidence.yaml; it may do without a ptycho.yaml then."""
    return os.path.lexists(root / EVIDENCE_NAME)


def is_evidence_alone(root: Path) -> bool:
    """Whether a project has evidence, but nothing to build."""
    return has_evidence_file(root) and not os.path.lexists(root / CONFIG_NAME)


def read_config_bytes(path: Path) -> bytes:
    """The bytes of a ptycho.yaml.

    Raises:
        ConfigError: it is missing or cannot be read.
    """
    from ptycho_tasks.errors import ConfigError
    from ptycho_tasks.system.files import find_file_problem

    unfit = find_file_problem(path)
    if unfit:
        raise ConfigError(f"{path}: {unfit}; expected a text file")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; run `ptycho-tasks init` to make a project here"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


MASK_ENDINGS = (".npy", ".npz", ".h5", ".hdf5", ".hdf", ".cxi", ".tif", ".tiff", ".json")
"""Of the names of files that `source.bad_pixels` may name; what ends otherwise is a key."""


def names_file(setting: str, text: str) -> bool:
    """Whether one of `FILES_BESIDE` names a file, and does not say what is done without one."""
    return is_mask_file(text) if setting == "bad_pixels" else text != "estimate"


def is_mask_file(setting: str) -> bool:
    """Whether `source.bad_pixels` names a file."""
    return setting.lower().endswith(MASK_ENDINGS)
