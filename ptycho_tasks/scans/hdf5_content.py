"""What an HDF5 file holds, for people who are to say which of it is what."""

from __future__ import annotations

import math
from pathlib import Path

import h5py

from ptycho_tasks.scans.content import Content, Listed
from ptycho_tasks.scans.linked_files import DAMAGE


def list_datasets(path: Path) -> Content:
    """The datasets of an HDF5 file, and its links to others; none of one that is damaged."""
    found: list[Listed] = []
    links: list[str] = []

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            try:
                found.append(Listed(name, item.shape, str(item.dtype), item.dtype.kind))
            except TypeError:  # of a type that numpy has no name for
                found.append(Listed(name, item.shape, "unknown type", "V"))

    def note_link(name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            links.append(name)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
            file.visititems_links(note_link)
    except DAMAGE:
        return Content(())
    datasets = sorted(found, key=lambda one: -math.prod(one.shape))
    return Content(tuple(datasets), tuple(links))
