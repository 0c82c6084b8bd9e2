"""`open_result`: a reconstruction for whoever looks at it in Python."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pytest

from made_products import ORIGIN, PIXEL_M, make_reconstruction, make_scan, write_product
from ptycho_tasks.errors import ScanError
from ptycho_tasks.results import open_result


@pytest.fixture(scope="module")
def _made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "default" / "inference"
    folder.mkdir(parents=True)
    scan = make_scan()
    write_product(folder / "reconstruction.h5", make_reconstruction(scan), scan)
    metrics = {"r_factor": 0.25, "scores": {"<b>": 0.5}, "frames": 25}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder.parent


@pytest.fixture
def variant(_made, tmp_path):
    return shutil.copytree(_made, tmp_path / "default")


def test_its_arrays_are_those_of_the_file(variant):
    result = open_result(variant)
    with h5py.File(variant / "inference/reconstruction.h5") as file:
        assert np.array_equal(result.object, file["object"][0])
        assert np.array_equal(result.probe, file["probe"][0])
        assert np.array_equal(result.positions, file["ptycho_tasks/positions"])
    assert result.seen.shape == result.object.shape
    assert (result.origin, result.pixel_size_m) == (ORIGIN, PIXEL_M)
    assert result.metrics["r_factor"] == 0.25
    assert result.residual[3] == 3
    assert result.losses.tolist() == [3.0, 2.0, 1.5]
    assert "R-factor 0.25" in repr(result)


def test_a_path_may_name_the_folder_the_variant_or_the_file(variant):
    folder = variant / "inference"
    for path in (str(variant), folder, folder / "reconstruction.h5"):
        assert open_result(path).folder == folder


def test_of_a_variant_the_refined_one_is_taken(variant):
    shutil.copytree(variant / "inference", variant / "refinement")
    assert open_result(variant).folder == variant / "refinement"


def test_several_scans_must_be_told_apart(variant):
    for name in "ab":
        shutil.copytree(variant / "inference", variant / "several" / name)
    with pytest.raises(ScanError, match=r"holds 2 reconstructions; name one of .*several/a"):
        open_result(variant / "several")
    assert open_result(variant / "several" / "b").folder.name == "b"


def test_what_is_no_result_is_said_in_one_line(variant, tmp_path):
    with pytest.raises(ScanError, match=r"holds no reconstruction\.h5; run `doit infer`"):
        open_result(tmp_path / "none")
    with h5py.File(variant / "inference/reconstruction.h5", "a") as file:
        del file["ptycho_tasks/seen"]  # as an older version wrote it
    with pytest.raises(ScanError, match="make it again"):
        open_result(variant)
    (variant / "inference/metrics.json").write_text("{")
    with pytest.raises(ScanError, match=r"metrics\.json: cannot be read"):
        open_result(variant)


def test_a_notebook_shows_scores_and_pictures(variant):
    shown = open_result(variant)._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert shown.count("data:image/png;base64,") == 2


def test_a_window_shows_three_pictures(variant):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    figure = open_result(variant).show()
    titles = [axes.get_title() for axes in figure.axes]
    pyplot.close(figure)
    assert [title for title in titles if title] == ["amplitude", "phase (rad)", "probe, first mode"]


def write_empty_probe(file):
    del file["probe"]
    file["probe"] = np.zeros((1, 0, 32, 32), np.complex64)


def write_no_length(file):
    file["object"].attrs["pixel_width_m"] = np.nan


def write_other_frames(file):
    del file["ptycho_tasks/residual"]
    file["ptycho_tasks/residual"] = np.zeros(3, np.float32)


@pytest.mark.parametrize("damage", [write_empty_probe, write_no_length, write_other_frames])
def test_arrays_that_do_not_belong_together_are_refused(variant, damage):
    with h5py.File(variant / "inference/reconstruction.h5", "a") as file:
        damage(file)
    with pytest.raises(ScanError, match="make it again"):
        open_result(variant)
