"""What runs write and read again: bundles, reconstructions, pictures.

`open_result` is for others to import:

    from ptycho_tasks.results import open_result

    result = open_result("runs/default")
    result.object, result.probe, result.metrics
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from ptycho_tasks.results.result_folder import ResultFolder

__all__ = ["open_result"]


def open_result(path: str | os.PathLike[str]) -> ResultFolder:
    """The reconstruction in a folder.

    Args:
        path: `runs/VARIANT`, of which the refined reconstruction is taken where there is one; the
            folder of one, as `runs/VARIANT/inference/SCAN`; or a `reconstruction.h5`.

    Raises:
        ScanError: there is none, there are several, or its files are damaged or of an older
            version.
    """
    from ptycho_tasks.results.result_folder import read_result_folder

    return read_result_folder(path)
