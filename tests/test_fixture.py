"""Fixtures: frames and positions belong together, bytes repeat, and the sidecar says it all."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptycho_tasks.errors import FileWriteError, ScanError
from ptycho_tasks.fixture import make_fixture, read_fixture, select_indices, write_fixture
from ptycho_tasks.forward import expected_intensity
from ptycho_tasks.npz import write_scan
from ptycho_tasks.options import FixtureOptions, SimulationOptions
from ptycho_tasks.readers import read_scan
from ptycho_tasks.scan import ScanData
from ptycho_tasks.simulate import simulate

SHARED = Path(__file__).parents[2] / "shared" / "data"
STRATEGIES = ["stratified", "first", "random", "grid"]


@pytest.fixture(scope="module")
def scan() -> ScanData:
    """At so high a dose, a frame can be told from every other by its counts."""
    made = simulate(SimulationOptions(size=16, grid=9, step=3, jitter=1, photons=1e8, seed=4))
    M = made.frame_count
    return replace(made, scan_index=np.arange(M) % 5, start_positions=made.positions + 0.25)


def write(scan: ScanData, options: FixtureOptions, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "cut.npz"
    write_fixture(
        scan,
        options,
        npz_path=path,
        sidecar_path=folder / "cut.json",
        source_name="source.npz",
        source_sha256="0" * 64,
    )
    return path


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frames_and_positions_belong_together(tmp_path, scan, strategy):
    """Each frame is what the ground truth gives at the position that lies beside it."""
    fixture = read_fixture(write(scan, FixtureOptions(strategy=strategy, subset_size=20), tmp_path))
    assert fixture.object is not None
    for frames, counts in expected_intensity(fixture.object, fixture.probe, fixture.positions):
        measured = fixture.diffraction[frames].astype(np.float64) ** 2
        error = np.abs(np.sqrt(counts) - np.sqrt(measured)).sum((1, 2))
        assert (error / np.sqrt(measured).sum((1, 2)) < 0.02).all()


def test_that_check_would_see_frames_and_positions_cut_differently(tmp_path, scan):
    wrong = replace(
        make_fixture(scan, FixtureOptions(strategy="first", subset_size=20)),
        positions=make_fixture(scan, FixtureOptions(subset_size=20)).positions,
    )
    assert wrong.object is not None
    ((frames, counts),) = expected_intensity(wrong.object, wrong.probe, wrong.positions)
    measured = wrong.diffraction[frames]
    error = np.abs(np.sqrt(counts) - measured).sum((1, 2)) / measured.sum((1, 2))
    assert (error > 0.02).sum() > 15


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_array_of_a_frame_is_taken_by_the_same_indices(scan, strategy):
    options = FixtureOptions(strategy=strategy, subset_size=20)
    cut = make_fixture(scan, options)
    indices = select_indices(scan.positions, options)
    np.testing.assert_array_equal(cut.diffraction, scan.diffraction[indices])
    np.testing.assert_array_equal(cut.positions, scan.positions[indices])
    np.testing.assert_array_equal(cut.scan_index, scan.scan_index[indices])
    np.testing.assert_array_equal(cut.start_positions, scan.start_positions[indices])


@settings(deadline=None)
@given(
    total=st.integers(16, 200),
    part=st.floats(0, 1),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 99),
)
def test_indices_are_as_many_as_asked_sorted_and_each_once(total, part, strategy, seed):
    count = 16 + round(part * (total - 16))
    positions = np.random.default_rng(seed).integers(0, 9, (total, 2)).astype(np.float64)
    options = FixtureOptions(strategy=strategy, subset_size=count, seed=seed)
    indices = select_indices(positions, options)
    assert len(indices) == count
    assert (np.diff(indices) > 0).all()
    assert indices.min() >= 0
    assert indices.max() < total
    np.testing.assert_array_equal(indices, select_indices(positions, options))


def test_what_the_strategies_mean(scan):
    def take(strategy, seed=0):
        options = FixtureOptions(strategy=strategy, subset_size=16, seed=seed)
        return select_indices(scan.positions, options)

    np.testing.assert_array_equal(take("first"), np.arange(16))
    stratified = take("stratified")
    assert (stratified[0], stratified[-1]) == (0, 80)
    assert np.ptp(np.diff(stratified)) <= 1
    assert not np.array_equal(take("random", 0), take("random", 1))
    gaps = [
        np.linalg.norm(scan.positions[:, None] - scan.positions[take(name)], axis=2).min(1).max()
        for name in ("grid", "first")
    ]
    assert gaps[0] < 0.5 * gaps[1]


@pytest.mark.parametrize("count", [None, 81])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_frames_stay_in_order(scan, strategy, count):
    options = FixtureOptions(strategy=strategy, subset_size=count)
    np.testing.assert_array_equal(select_indices(scan.positions, options), np.arange(81))


def test_more_frames_than_there_are_is_refused_before_anything_is_written(tmp_path, scan):
    with pytest.raises(ScanError, match=r"source.npz: has 81 frames, but .* asks for 82"):
        write(scan, FixtureOptions(subset_size=82), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_equal_input_gives_equal_bytes(tmp_path, scan):
    options = FixtureOptions(strategy="random", subset_size=20, seed=3)
    one, two = (write(scan, options, tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".json").read_bytes() == two.with_suffix(".json").read_bytes()


def test_the_fixture_is_a_raw_scan_and_is_mapped(tmp_path, scan):
    path = write(scan, FixtureOptions(subset_size=20), tmp_path)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["diff3d"].dtype == np.float32
        assert arrays["diff3d"].shape == (20, 16, 16)
        assert arrays["xcoords"].dtype == arrays["ycoords"].dtype == np.float64
        assert arrays["probeGuess"].dtype == arrays["objectGuess"].dtype == np.complex64
        np.testing.assert_array_equal(arrays["ycoords"], read_scan(path).positions[:, 0])
        np.testing.assert_array_equal(arrays["xcoords_start"], arrays["xcoords"] + 0.25)


def test_the_sidecar_says_where_the_fixture_comes_from(tmp_path, scan):
    scan = replace(scan, notes=("diff3d: sqrt taken",))
    path = write(scan, FixtureOptions(strategy="random", subset_size=20, seed=3), tmp_path)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    indices = select_indices(
        scan.positions, FixtureOptions(strategy="random", subset_size=20, seed=3)
    )
    assert sidecar["format_version"] == 1
    assert sidecar["source"] == {"name": "source.npz", "sha256": "0" * 64}
    assert sidecar["selection"] == {
        "strategy": "random",
        "subset_size": 20,
        "source_frames": 81,
        "seed": 3,
        "indices_sha256": hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest(),
    }
    assert sidecar["transformations"] == ["diff3d: sqrt taken"]
    assert sidecar["arrays"]["diff3d"] == {"shape": [20, 16, 16], "dtype": "float32"}
    assert 0.5 < sidecar["coverage"]["x"] <= 1
    assert sidecar["npz"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["generator"]["version"]


def test_the_first_frames_cover_little_and_the_sidecar_shows_it(tmp_path, scan):
    path = write(scan, FixtureOptions(strategy="first", subset_size=18), tmp_path)
    assert json.loads(path.with_suffix(".json").read_text())["coverage"]["y"] < 0.4


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda npz, sidecar: sidecar.unlink(), "sidecar is missing"),
        (lambda npz, sidecar: sidecar.write_text("{"), "not a fixture's sidecar"),
        (lambda npz, sidecar: sidecar.write_text("[]"), "not a fixture's sidecar"),
        (
            lambda npz, sidecar: sidecar.write_text(
                sidecar.read_text().replace('"format_version": 1', '"format_version": 2')
            ),
            "not a sidecar of ptycho-tasks fixture version 1",
        ),
        (lambda npz, sidecar: npz.write_bytes(npz.read_bytes() + b"x"), "sha256 differs"),
        (lambda npz, sidecar: npz.unlink(), "no such fixture"),
    ],
)
def test_a_damaged_fixture_is_refused(tmp_path, scan, damage, expected):
    path = write(scan, FixtureOptions(subset_size=20), tmp_path)
    damage(path, path.with_suffix(".json"))
    with pytest.raises(ScanError, match=expected) as caught:
        read_fixture(path)
    assert "\n" not in str(caught.value)


def test_an_error_while_writing_leaves_the_old_pair(tmp_path, scan):
    path = write(scan, FixtureOptions(subset_size=20), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    (tmp_path / "other").write_bytes(b"")
    with pytest.raises(FileWriteError):
        write_fixture(
            scan,
            FixtureOptions(subset_size=30),
            npz_path=path,
            sidecar_path=tmp_path / "other" / "cut.json",
            source_name="s",
            source_sha256="",
        )
    (tmp_path / "other").unlink()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.skipif(not SHARED.is_dir(), reason="the measured data of ../shared are not here")
def test_a_measured_scan(tmp_path):
    star = read_scan(SHARED / "siemens_star_64.npz")
    cut = read_fixture(write(star, FixtureOptions(strategy="grid", subset_size=100), tmp_path))
    assert cut.frame_count == 100
    write_scan(tmp_path / "again.npz", cut)
    np.testing.assert_array_equal(read_scan(tmp_path / "again.npz").positions, cut.positions)
