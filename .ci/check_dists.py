"""Check that the built wheels and sdists hold what they should, and nothing else."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGES = {
    "ptycho_tasks": Path("ptycho_tasks"),
    "ptycho_tasks_torch": Path("backends/torch/ptycho_tasks_torch"),
    "ptycho_tasks_ptychi": Path("backends/ptychi/ptycho_tasks_ptychi"),
    "ptycho_tasks_ptychodus": Path("readers/ptychodus/ptycho_tasks_ptychodus"),
}
SDIST_EXTRAS = {"LICENSE", "README.md", "PKG-INFO", "pyproject.toml", "setup.cfg"}


def check(dist: Path, package: str, folder: Path) -> None:
    """Raise SystemExit where a wheel or sdist lacks a file or has one too many."""
    sources = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    (wheel,) = dist.glob(f"{package}-*.whl")
    (sdist,) = dist.glob(f"{package}-*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    compare(wheel, sources, inside)
    if not any(name.endswith("/LICENSE") for name in names):
        raise SystemExit(f"{wheel.name} lacks the licence")
    with tarfile.open(sdist) as archive:
        members = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    inside = {name for name in members if ".egg-info/" not in name} - SDIST_EXTRAS
    compare(sdist, sources, {name for name in inside if not name.startswith("tests/")})
    print(f"{wheel.name}, {sdist.name}: {len(sources)} files, licence")


def compare(dist: Path, expected: set[str], found: set[str]) -> None:
    """Raise SystemExit where the two sets differ."""
    if expected != found:
        lacking, extra = sorted(expected - found), sorted(found - expected)
        raise SystemExit(f"{dist.name}: lacks {lacking}, has too many {extra}")


for name, path in PACKAGES.items():
    check(Path(sys.argv[1]), name, path)
