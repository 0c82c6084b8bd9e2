"""Projects whose scans need more than their own file: products, probes, positions, readers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from ptycho_tasks.results.product import read_product


@pytest.fixture
def apart(built_project: Path) -> Path:
    """A project beside whose ptycho.yaml lie frames, their product, a probe and positions."""
    with np.load(built_project / "fixtures/tiny_source.npz") as scan:
        counts = np.rint(scan["diff3d"] ** 2).astype("u4")
        places = np.stack([scan["xcoords"], scan["ycoords"]], axis=1)
        np.save(built_project / "probe.npy", scan["probeGuess"])
    with h5py.File(built_project / "frames.h5", "w") as file:
        file["patterns"] = counts
    np.savetxt(built_project / "places.csv", places, delimiter=",", fmt="%.17g")
    shutil.copy(
        built_project / "runs/default/inference/reconstruction.h5", built_project / "product.h5"
    )
    return built_project


def set_source(root: Path, source: Any, **others: Any) -> None:
    config = yaml.safe_load((root / "ptycho.yaml").read_text())
    (root / "ptycho.yaml").write_text(yaml.safe_dump(config | {"source": source} | others))


def test_each_scan_of_a_mapping_may_have_a_product(apart: Path, build: Any) -> None:
    frames = {"file": "frames.h5"}
    files = {
        "a": frames | {"product": "product.h5"},
        "b": frames | {"probe": "probe.npy", "positions": "places.csv"},
    }
    set_source(apart, {"files": files}, fixture={"scans": ["a"]})
    build(apart, "infer")
    moved = []
    for name in files:
        found = read_product(apart / f"runs/default/inference/{name}/reconstruction.h5")
        moved.append(found.positions - found.positions[0])
    np.testing.assert_allclose(*moved, atol=1e-6)


def test_files_beside_a_scan_are_inputs(apart: Path, build: Any) -> None:
    beside = {"probe": "probe.npy", "positions": "places.csv"}
    set_source(apart, {"file": "frames.h5", **beside})
    build(apart, "source")
    assert build(apart, "source") == []
    np.save(apart / "probe.npy", 2 * np.load(apart / "probe.npy"))
    assert build(apart, "source") == ["source"]
    (apart / "places.csv").write_text((apart / "places.csv").read_text() + "\n")
    assert build(apart, "source") == ["source"]
    (apart / "probe.npy").rename(apart / "other.npy")
    set_source(apart, {"file": "frames.h5", **beside, "probe": "other.npy"})
    assert build(apart, "source") == []


PRODUCT = ["--product", "product.h5"]
PARTS = ["--probe", "probe.npy", "--positions", "places.csv"]


@pytest.mark.parametrize("flags", [PRODUCT, PARTS])
def test_infer_takes_what_lies_beside_a_scan(apart: Path, ours: Any, flags: list[str]) -> None:
    model = ["--model_path", "runs/default/training", "--output_dir", "out"]
    code, _, said = ours(apart, "infer", "--test_data", "frames.h5", *model, *flags)
    assert code == 0, said
    assert (apart / "out/reconstruction.h5").is_file()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"reader": "nxp"}, "ptycho.yaml:13: source.reader: unknown reader `nxp`; known here: "),
        ({"probe": "not.npy"}, "source.probe: there is no"),
        ({"positions": "not.csv"}, "source.positions: there is no"),
        ({"crop": 31}, "source.crop: expected `int` that's a multiple of 2"),
        ({"orientation": {"turn": 1}}, "source.orientation.turn: unknown key"),
        ({"centre": [1]}, "source.centre: expected `array` of length >= 2, got [1]"),
    ],
)
def test_a_wrong_setting_is_one_line(apart: Path, doit: Any, source: Any, said: str) -> None:
    set_source(apart, {"file": "frames.h5", **source})
    done = doit(apart, "source")
    assert done.returncode != 0
    assert said.partition(":13")[0] in done.stderr
    assert said.rpartition(":13")[2] in done.stderr
    assert "Traceback" not in done.stderr
