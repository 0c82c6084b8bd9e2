"""Datasets of an HDF5 file, wherever they lie, and the other files that hold parts of them.

HDF5 reads further files by itself: behind external links, virtual datasets and external storage.
It reads a missing part as zeros, and whatever file a scan names. So each link is followed here,
one by one: a file behind it must be there, must lie in a folder that the scan may reach, and is
listed, since it is an input of all that is made from the scan.

See HDF5 User Guide, chapters "Groups" (links) and "Datasets" (virtual layouts, external storage).
"""

from __future__ import annotations

import math
import operator
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from ptycho_tasks.errors import ScanError
from ptycho_tasks.scans.compression import find_unknown_filter
from ptycho_tasks.scans.content import explain_unreadable, has_zip_signature
from ptycho_tasks.system.files import FileStamp, file_stamp, find_file_problem, real_path

DAMAGE = (OSError, RuntimeError, KeyError, ValueError)
"""How h5py reports bytes that make no sense to HDF5."""
_MOST_HOPS = 64
"""Links and layouts behind one key; more go in a circle."""


class VirtualPiece(NamedTuple):
    """A part of a virtual dataset: where it comes from, and which place it takes."""

    file: Path
    dataset: h5py.Dataset
    needed: tuple[int, ...]
    """The shape that the part must have at least."""
    covered: tuple[bool, ...]
    """For each axis of the virtual dataset, whether the part covers all of it."""


class LinkedFiles:
    """One HDF5 file and those that its links and layouts lead to.

    Closed when the block that it is used in ends.
    """

    def __init__(self, path: Path, follow: Sequence[Path] = ()) -> None:
        """Open the file.

        Args:
            path: of the HDF5 file.
            follow: folders besides the file's own that links may lead to.

        Raises:
            ScanError: it is missing or damaged.
        """
        self.path = path
        self.stamps: dict[Path, FileStamp] = {}
        """Further files that were opened: what they were then."""
        self._folders = [real_path(path).parent, real_path(path.parent)]
        self._followed = [real_path(folder) for folder in follow]
        self._files: dict[Path, h5py.File] = {}
        self._stack = ExitStack()
        self.root = self._stack.enter_context(_open_file(path))
        """The file itself."""

    def __enter__(self) -> LinkedFiles:
        """The files themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close every file."""
        self._stack.close()

    def dataset(self, key: str, *, in_part: bool = False) -> h5py.Dataset | None:
        """A dataset; None where there is none at that key.

        Args:
            key: its path in the file.
            in_part: whether it may lack pieces that were never written; see `unwritten`.

        Raises:
            ScanError: the file that holds it, or a part of it, is missing, damaged, or lies where
                the scan may not reach; or it is empty, or was never written.
        """
        item = self._find(self.root, key, key)
        if not isinstance(item, h5py.Dataset):
            return None
        if item.shape is None or not _has_dtype(item):
            raise self._error(
                key, "holds nothing, or what numpy has no type for", "correct or remove it"
            )
        self._check(item, key, 0)
        if not in_part and _lacks_chunks(item):
            raise self._error(key, "was written in part only", "let the scan be completed")
        return item

    def names(self, key: str) -> tuple[str, ...]:
        """The names in a group; none where there is no group at that key.

        Raises:
            ScanError: see `dataset`.
        """
        item = self._find(self.root, key, key)
        return tuple(item) if isinstance(item, h5py.Group) else ()

    def unwritten(self, dataset: h5py.Dataset, key: str, axis: int) -> NDArray[np.int64]:
        """Entries along an axis of which a part was never written; HDF5 reads that as the fill
        value.

        Args:
            dataset: of `dataset(key)`.
            key: names it.
            axis: 0 or -1.

        Returns:
            (K,) sorted.

        Raises:
            ScanError: a part of a virtual dataset lacks pieces of frames.
        """
        if not dataset.is_virtual:
            return _unwritten(dataset, axis)
        for piece in self._virtual_pieces(dataset, key):
            short = not _holds(piece.dataset.shape, piece.needed)
            others = [
                covers for at, covers in enumerate(piece.covered) if at != axis % dataset.ndim
            ]
            if not all(others) and (short or _lacks_chunks(piece.dataset)):
                raise ScanError(
                    f"{piece.file}: {piece.dataset.name} lacks frames that {key!r} in "
                    f"{self.path.name} takes from it, and holds only a part of each; write the "
                    "scan again without them"
                )
        # A part with whole frames shows: what it lacks is dark.
        return np.empty(0, dtype=np.int64)

    def _find(self, group: Any, key: str, asked: str) -> Any:
        """What lies at a path; every link on the way is followed here and not by HDF5."""
        left = deque(key.split("/"))
        hops = 0
        while left:
            name = left.popleft()
            if name in ("", "."):
                continue
            if not isinstance(group, h5py.Group):
                return None
            link = _link(group, name)
            hops += isinstance(link, h5py.SoftLink | h5py.ExternalLink)
            if hops > _MOST_HOPS:
                raise self._error(asked, "is a link that leads in a circle", "remove the link")
            if isinstance(link, h5py.HardLink):
                group = _member(group, name)
            elif isinstance(link, h5py.SoftLink):
                left.extendleft(reversed(link.path.split("/")))
                group = group.file["/"] if link.path.startswith("/") else group
            elif isinstance(link, h5py.ExternalLink):
                left.extendleft(reversed(link.path.split("/")))
                owner = Path(group.file.filename)
                path = self._locate_file(link.filename, owner, asked, "EXT")
                group = self._open(path, asked)["/"]
            else:
                return None
        return group

    def _check(self, dataset: h5py.Dataset, key: str, depth: int) -> None:
        """Refuse a dataset of which a part is missing or out of reach."""
        if depth > _MOST_HOPS:
            raise self._error(key, "is a virtual dataset of itself", "write the data out")
        unknown = find_unknown_filter(dataset)
        if unknown is not None:
            raise self._error(
                key,
                f"is compressed with {unknown}, which HDF5 does not know by itself",
                "install hdf5plugin: pip install 'ptycho-tasks[compressed]'",
            )
        if dataset.external:
            self._check_storage(dataset, key)
        elif dataset.is_virtual:
            for piece in self._virtual_pieces(dataset, key):
                self._check(piece.dataset, key, depth + 1)
        elif dataset.size and dataset.id.get_storage_size() == 0:
            where = "" if dataset.file.filename == str(self.path) else f", {dataset.file.filename}"
            raise self._error(
                key, f"was never written ({dataset.name}{where})", "let the scan be completed"
            )

    def _virtual_pieces(self, dataset: h5py.Dataset, key: str) -> Iterator[VirtualPiece]:
        owner = Path(dataset.file.filename)
        for part in dataset.virtual_sources():
            if "%" in part.file_name or "%" in part.dset_name:
                raise self._error(
                    key,
                    f"is a virtual dataset of files counted on ({part.file_name})",
                    "write one that names its files",
                )
            path = owner
            if part.file_name != ".":
                path = self._locate_file(part.file_name, owner, key, "VDS")
            file = dataset.file if path == owner else self._open(path, key)
            item = self._find(file, part.dset_name, key)
            if not isinstance(item, h5py.Dataset) or item.shape is None:
                raise ScanError(
                    f"{path}: has no dataset {part.dset_name!r}, which {key!r} in {self.path.name} "
                    "is made of; copy the file again"
                )
            first, last = part.vspace.get_select_bounds()
            needed = tuple(high - low + 1 for low, high in zip(first, last, strict=True))
            fits = part.vspace.get_select_npoints() == item.size
            if part.src_space.get_select_type() == h5py.h5s.SEL_HYPERSLABS:
                needed = tuple(high + 1 for high in part.src_space.get_select_bounds()[1])
                # What one that can grow lacks yet, HDF5 reads as the fill value; of another one,
                # as whatever lies behind it.
                fits = item.chunks is not None or _holds(item.shape, needed)
            if not fits:
                raise ScanError(
                    f"{path}: {part.dset_name!r} has the shape {item.shape}, and {key!r} in "
                    f"{self.path.name} takes {needed} of it; copy the file again, or write the "
                    "scan again as it was measured"
                )
            covered = tuple(
                low == 0 and high + 1 == side
                for low, high, side in zip(first, last, dataset.shape, strict=True)
            )
            yield VirtualPiece(path, item, needed, covered)

    def _check_storage(self, dataset: h5py.Dataset, key: str) -> None:
        """Any file can be passed off as external storage, so that only what is allowed counts."""
        there = 0
        for name, offset, size in dataset.external:
            # HDF5 takes such a name as relative to the current folder.
            path = Path.cwd() / os.environ.get("HDF5_EXTFILE_PREFIX", "") / name
            if not _lies_in(path, self._followed):
                raise self._error(
                    key,
                    f"takes its bytes from {path}, which need not be a scan's",
                    f"allow the folder with `source.follow: [{path.parent}]` if that is meant",
                )
            self._note(path, key)
            there += min(size, max(0, path.stat().st_size - offset))
        if there < dataset.nbytes:
            raise self._error(key, "is cut short in its external storage", "copy that again")

    def _locate_file(self, name: str, owner: Path, key: str, kind: str) -> Path:
        """Where HDF5 finds a file that another one names: see H5Lcreate_external and
        H5Pset_virtual."""
        prefix = os.environ.get(f"HDF5_{kind}_PREFIX")
        folders = [
            *([Path(prefix)] if prefix else []),
            owner.parent,
            Path.cwd(),
            real_path(owner).parent,
        ]
        tried = [Path(name)] if Path(name).is_absolute() else []
        tried += [folder / (Path(name).name if tried else name) for folder in folders]
        path = next((one for one in tried if one.exists()), None)
        if path is None:
            raise self._error(
                key,
                f"needs the file {name}, which is not there",
                f"copy it to {owner.parent}, or give the scan where it was written",
            )
        if not _lies_in(path, [*self._folders, *self._followed]):
            raise self._error(
                key,
                f"leads to {path}, outside of the scan's folder",
                f"allow that with `source.follow: [{real_path(path).parent}]`",
            )
        return path

    def _open(self, path: Path, key: str) -> h5py.File:
        place = real_path(path)
        if place == real_path(self.path):
            return self.root
        if place not in self._files:
            self._note(path, key)
            self._files[place] = self._stack.enter_context(_open_file(path))
        return self._files[place]

    def _note(self, path: Path, key: str) -> None:
        stamp = file_stamp(path)
        if stamp is None:
            raise self._error(key, f"needs the file {path}, which is not there", "copy it there")
        self.stamps.setdefault(path, stamp)

    def _error(self, key: str, problem: str, advice: str) -> ScanError:
        return ScanError(f"{self.path}: key {key!r} {problem}; {advice}")


def _open_file(path: Path) -> h5py.File:
    problem = find_file_problem(path)
    if problem:
        raise ScanError(f"{path}: {problem}; give the HDF5 file")
    try:
        return h5py.File(path, "r")
    except FileNotFoundError as error:
        raise explain_unreadable(path, error) from None
    except DAMAGE as error:
        if has_zip_signature(path):
            raise ScanError(
                f"{path}: a zip, as NPZ is, and not HDF5; leave out what asks for HDF5 "
                "(source.datasets, or the name in source.reader)"
            ) from error
        raise explain_damage(path, error) from error


def explain_damage(path: Path, error: Exception) -> ScanError:
    """The error of an HDF5 file of which a part cannot be read."""
    return ScanError(
        f"{path}: not a complete HDF5 file: {' '.join(str(error).split())}; it may be truncated, "
        "copy or make it again"
    )


def _link(group: h5py.Group, name: str) -> Any:
    try:
        return group.get(name, getlink=True)
    except DAMAGE:
        return None


def _member(group: h5py.Group, name: str) -> Any:
    try:
        return group[name]
    except DAMAGE:
        return None


def _has_dtype(dataset: h5py.Dataset) -> bool:
    """Whether numpy knows the type of its entries."""
    try:
        return dataset.dtype is not None
    except (TypeError, *DAMAGE):
        return False


def _chunk_grid(dataset: h5py.Dataset) -> list[int]:
    return [
        math.ceil(side / step) for side, step in zip(dataset.shape, dataset.chunks, strict=True)
    ]


def _lacks_chunks(dataset: h5py.Dataset) -> bool:
    if not dataset.chunks or not dataset.size:
        return False
    return bool(dataset.id.get_num_chunks() < math.prod(_chunk_grid(dataset)))


def _unwritten(dataset: h5py.Dataset, axis: int) -> NDArray[np.int64]:
    """Entries along an axis that lie in a chunk that was never written."""
    if not _lacks_chunks(dataset):
        return np.empty(0, dtype=np.int64)
    grid, step, length = _chunk_grid(dataset), dataset.chunks[axis], dataset.shape[axis]
    written = np.zeros(grid[axis], dtype=np.int64)

    def count(chunk: Any) -> None:
        written[chunk.chunk_offset[axis] // step] += 1

    _each_chunk(dataset, count)
    lacking = np.flatnonzero(written < math.prod(grid) // grid[axis])
    entries = (lacking[:, None] * step + np.arange(step)).reshape(-1)
    return np.asarray(entries[entries < length], dtype=np.int64)


def _each_chunk(dataset: h5py.Dataset, do: Callable[[Any], None]) -> None:
    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(do)
        return
    for index in range(dataset.id.get_num_chunks()):
        do(dataset.id.get_chunk_info(index))


def _holds(shape: tuple[int, ...], needed: tuple[int, ...]) -> bool:
    return len(shape) == len(needed) and all(map(operator.ge, shape, needed))


def _lies_in(path: Path, folders: Sequence[Path]) -> bool:
    return any(real_path(path).is_relative_to(folder) for folder in folders)
