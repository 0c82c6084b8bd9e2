"""`ptycho-tasks bundle`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ptycho_tasks.system.terminal import echo, print_text


@click.group()
def bundle() -> None:
    """Look into a model bundle, wts.h5.zip.

    Nothing in it is ever executed.
    """


@bundle.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
def show(model_dir: Path) -> None:
    """Show what a bundle in MODEL_DIR holds: backend, settings, arrays, last losses."""
    from ptycho_tasks.results.bundle import load_bundle

    content = load_bundle(model_dir)
    echo(json.dumps({k: content.manifest[k] for k in ("backend", "models", "N")}))
    print_text(json.dumps(content.params, indent=1, sort_keys=True) + "\n")
    for model, arrays in content.model.models.items():
        weights = sum(array.size for array in arrays.values())
        echo(f"{model}: {len(arrays)} arrays, {weights} values")
    if content.model.history:
        echo(f"last epoch: {json.dumps(content.model.history[-1])}")


@bundle.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
def verify(model_dir: Path) -> None:
    """Check a bundle's members, sizes and checksums; exit 1 if it is damaged."""
    from ptycho_tasks.results.bundle import load_bundle

    content = load_bundle(model_dir)
    echo(f"{model_dir}: whole; made by {content.backend}")
