"""Command lines of `ptycho-tasks train` and `infer`."""

from __future__ import annotations

from itertools import chain

NEEDED = {
    "train": {"--train-data-file": "scan.npz", "--output-dir": "out", "--backend": "full"},
    "infer": {"--test-data": "scan.npz", "--output-dir": "out", "--model-path": "model"},
}


def line(command, *more, without=()):
    """A command line with all that must be given."""
    needed = {name: text for name, text in NEEDED[command].items() if name not in (*more, *without)}
    return [command, *chain(*needed.items()), *more]
