"""Fixtures: frames and positions belong together, bytes repeat, and the sidecar says it all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.builds.stage_code import STAGE_CODE
from ptycho_tasks.builds.stages import cut_fixture
from ptycho_tasks.errors import FileWriteError, ScanError
from ptycho_tasks.options import FixtureOptions, SimulationOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks.scans.cutting import select_indices, write_fixture
from ptycho_tasks.scans.fixture import read_fixture
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.system.files import file_stamp, sha256_file

SHARED = Path(__file__).parents[3] / "shared" / "data"
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
def test_frames_and_positions_belong_together(
    tmp_path: Path, scan: ScanData, strategy: str
) -> None:
    """Each frame is what the ground truth gives at the position that lies beside it."""
    fixture = read_fixture(write(scan, FixtureOptions(strategy=strategy, subset_size=20), tmp_path))
    assert fixture.object is not None
    for frames, counts in expected_intensity(fixture.object, fixture.probe, fixture.positions):
        measured = fixture.diffraction[frames].astype(np.float64) ** 2
        error = np.abs(np.sqrt(counts) - np.sqrt(measured)).sum((1, 2))
        assert (error / np.sqrt(measured).sum((1, 2)) < 0.02).all()


def test_that_check_would_see_frames_and_positions_cut_differently(
    tmp_path: Path, scan: ScanData
) -> None:
    first, stratified = (
        take_frames(
            scan, select_indices(scan.positions, FixtureOptions(strategy=s, subset_size=20))
        )
        for s in ("first", "stratified")
    )
    wrong = replace(first, positions=stratified.positions)
    assert wrong.object is not None
    ((frames, counts),) = expected_intensity(wrong.object, wrong.probe, wrong.positions)
    measured = wrong.diffraction[frames]
    error = np.abs(np.sqrt(counts) - measured).sum((1, 2)) / measured.sum((1, 2))
    assert (error > 0.02).sum() > 15


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_array_of_a_frame_is_taken_by_the_same_indices(
    tmp_path: Path, scan: ScanData, strategy: str
) -> None:
    options = FixtureOptions(strategy=strategy, subset_size=20)
    cut = read_fixture(write(scan, options, tmp_path))
    indices = select_indices(scan.positions, options)
    np.testing.assert_array_equal(cut.diffraction, scan.diffraction[indices])
    np.testing.assert_array_equal(cut.positions, scan.positions[indices])
    np.testing.assert_array_equal(cut.scan_index, scan.scan_index[indices])
    np.testing.assert_array_equal(cut.start_positions, scan.start_positions[indices])


@given(
    total=st.integers(16, 200),
    part=st.floats(0, 1),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 99),
)
def test_indices_are_as_many_as_asked_sorted_and_each_once(
    total: int, part: float, strategy: str, seed: int
) -> None:
    count = 16 + round(part * (total - 16))
    positions = np.random.default_rng(seed).integers(0, 9, (total, 2)).astype(np.float64)
    options = FixtureOptions(strategy=strategy, subset_size=count, seed=seed)
    indices = select_indices(positions, options)
    assert len(indices) == count
    assert (np.diff(indices) > 0).all()
    assert indices.min() >= 0
    assert indices.max() < total
    np.testing.assert_array_equal(indices, select_indices(positions, options))


def test_what_the_strategies_mean(scan: ScanData) -> None:
    def take(strategy: str, seed: int = 0) -> np.ndarray:
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
def test_all_frames_stay_in_order(scan: ScanData, strategy: str, count: int | None) -> None:
    options = FixtureOptions(strategy=strategy, subset_size=count)
    np.testing.assert_array_equal(select_indices(scan.positions, options), np.arange(81))


def test_more_frames_than_there_are_is_refused_before_anything_is_written(
    tmp_path: Path, scan: ScanData
) -> None:
    with pytest.raises(ScanError, match=r"source.npz: has 81 frames, but .* asks for 82"):
        write(scan, FixtureOptions(subset_size=82), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_equal_input_gives_equal_bytes(tmp_path: Path, scan: ScanData) -> None:
    options = FixtureOptions(strategy="random", subset_size=20, seed=3)
    one, two = (write(scan, options, tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert one.with_suffix(".json").read_bytes() == two.with_suffix(".json").read_bytes()


def test_the_fixture_is_a_raw_scan_and_is_mapped(tmp_path: Path, scan: ScanData) -> None:
    path = write(scan, FixtureOptions(subset_size=20), tmp_path)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["diff3d"].dtype == np.float32
        assert arrays["diff3d"].shape == (20, 16, 16)
        assert arrays["xcoords"].dtype == arrays["ycoords"].dtype == np.float64
        assert arrays["probeGuess"].dtype == arrays["objectGuess"].dtype == np.complex64
        np.testing.assert_array_equal(arrays["ycoords"], read_scan(path).positions[:, 0])
        np.testing.assert_array_equal(arrays["xcoords_start"], arrays["xcoords"] + 0.25)


def test_the_sidecar_says_where_the_fixture_comes_from(tmp_path: Path, scan: ScanData) -> None:
    scan = replace(scan, notes=("diff3d: sqrt taken",))
    path = write(scan, FixtureOptions(strategy="random", subset_size=20, seed=3), tmp_path)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    indices = select_indices(
        scan.positions, FixtureOptions(strategy="random", subset_size=20, seed=3)
    )
    assert sidecar.keys() == {
        *("format", "format_version", "generator", "source", "scan_name", "selection"),
        *("transformations", "arrays", "coverage", "npz"),
    }
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
    with np.load(path) as arrays:
        assert sidecar["arrays"] == {
            key: {"shape": list(arrays[key].shape), "dtype": str(arrays[key].dtype)}
            for key in arrays
        }
    y, x = np.ptp(scan.positions[indices], axis=0) / np.ptp(scan.positions, axis=0)
    assert sidecar["coverage"] == pytest.approx({"x": x, "y": y}, abs=1e-6)
    assert sidecar["npz"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar["generator"]["version"]


def test_the_first_frames_cover_little_and_the_sidecar_shows_it(
    tmp_path: Path, scan: ScanData
) -> None:
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
        (lambda npz, sidecar: (npz.unlink(), npz.mkdir()), "cannot be read: is a folder"),
        (lambda npz, sidecar: (sidecar.unlink(), sidecar.mkdir()), "is a folder"),
        (lambda npz, sidecar: (npz.unlink(), os.mkfifo(npz)), "is not a regular file"),
        (lambda npz, sidecar: (sidecar.unlink(), os.mkfifo(sidecar)), "is not a regular file"),
        (lambda npz, sidecar: sidecar.write_text("[" * 100_000), "not a fixture's sidecar"),
    ],
)
def test_a_damaged_fixture_is_refused(
    tmp_path: Path, scan: ScanData, damage: Callable[[Path, Path], object], expected: str
) -> None:
    path = write(scan, FixtureOptions(subset_size=20), tmp_path)
    damage(path, path.with_suffix(".json"))
    with pytest.raises(ScanError, match=expected) as caught:
        read_fixture(path)
    assert "\n" not in str(caught.value)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kept", ["cut.npz", "cut.json"])
def test_a_folder_in_the_place_of_one_file_leaves_the_other(
    tmp_path: Path, scan: ScanData, kept: str
) -> None:
    path = write(scan, FixtureOptions(subset_size=20), tmp_path)
    blocked = path.with_suffix(".json" if kept == "cut.npz" else ".npz")
    blocked.unlink()
    blocked.mkdir()
    before = content(tmp_path)
    with pytest.raises(FileWriteError, match=f"cannot write {blocked}: "):
        write(scan, FixtureOptions(subset_size=30), tmp_path)
    assert content(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made_leaves_the_old_pair(tmp_path: Path, scan: ScanData) -> None:
    path = write(scan, FixtureOptions(subset_size=20), tmp_path)
    (tmp_path / "other").write_bytes(b"")
    before = content(tmp_path)
    with pytest.raises(FileWriteError):
        write_fixture(
            scan,
            FixtureOptions(subset_size=30),
            npz_path=path,
            sidecar_path=tmp_path / "other" / "cut.json",
            source_name="s",
            source_sha256="",
        )
    assert content(tmp_path) == before


def test_a_source_that_changed_after_it_was_read_makes_no_fixture(
    tmp_path: Path, scan: ScanData
) -> None:
    """Its frames are read from the file once more."""
    write_scan(tmp_path / "scan.npz", scan)
    stamp, read = file_stamp(tmp_path / "scan.npz"), read_scan(tmp_path / "scan.npz")
    write_scan(tmp_path / "scan.npz", take_frames(scan, np.arange(40)))
    with pytest.raises(ScanError, match=r"scan\.npz: changed while it was read"):
        cut_fixture(
            read,
            tmp_path / "scan.npz",
            sha256_file,
            FixtureOptions(subset_size=30),
            tmp_path / "cut.npz",
            stamp=stamp,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["scan.npz"]


REWRITE = """\
import os, resource, sys
from importlib.metadata import version
from pathlib import Path
from ptycho_tasks.scans.cutting import write_fixture
from ptycho_tasks.options import FixtureOptions
from ptycho_tasks.scans.readers import read_scan
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
scan = read_scan(source)
version("ptycho-tasks")  # imports what another user may not be able to read
{before}
write_fixture(scan, FixtureOptions(subset_size=30), npz_path=folder / "cut.npz",
              sidecar_path=folder / "cut.json", source_name="s", source_sha256="")
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def rewrite_fails(scan: ScanData, folder: Path, before: str, mode: int = 0o755) -> str:
    """Write other frames over a fixture in another process, which must fail and leave no trace.

    The process runs the statement `before` first; the fixture's folder has the `mode`. Gives the
    last line of the process's complaint.
    """
    source = folder / "source.npz"
    write_scan(source, scan)
    target = folder / "fixtures"
    write(scan, FixtureOptions(subset_size=20), target)
    target.chmod(mode)
    old = content(target)
    done = subprocess.run(
        [sys.executable, "-c", REWRITE.format(before=before), source, target],
        capture_output=True,
        text=True,
        check=False,
    )
    target.chmod(0o755)
    assert done.returncode == 1
    assert content(target) == old
    assert sorted(p.name for p in target.iterdir()) == ["cut.json", "cut.npz"]
    return done.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("limit", [0, 10, 100, 1000, 10_000, 30_720, 40_000])
def test_a_full_disk_leaves_the_old_pair(open_folder: Path, scan: ScanData, limit: int) -> None:
    """A limit on the size of files fails like a full disk: in the middle of a write."""
    line = rewrite_fails(
        scan, open_folder, f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    assert re.fullmatch(
        r"ptycho_tasks.errors.FileWriteError: cannot write \S+cut.npz: File too large; "
        "free space or choose another folder; what was there is unchanged",
        line,
    )


def test_a_read_only_folder_leaves_the_old_pair(open_folder: Path, scan: ScanData) -> None:
    line = rewrite_fails(scan, open_folder, "os.geteuid() or os.setuid(65534)", mode=0o555)
    assert re.fullmatch(
        r"ptycho_tasks.errors.FileWriteError: cannot write \S+cut.npz: Permission denied; .*", line
    )


@pytest.mark.parametrize("size", [0, 15, 16.5])
def test_fewer_than_sixteen_frames_cannot_be_asked_for(size: float) -> None:
    with pytest.raises(msgspec.ValidationError, match="subset_size"):
        msgspec.convert({"subset_size": size}, FixtureOptions)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the measured data of ../shared are not here")
def test_a_measured_scan(tmp_path: Path) -> None:
    star = read_scan(SHARED / "siemens_star_64.npz")
    cut = read_fixture(write(star, FixtureOptions(strategy="grid", subset_size=100), tmp_path))
    assert cut.frame_count == 100
    write_scan(tmp_path / "again.npz", cut)
    np.testing.assert_array_equal(read_scan(tmp_path / "again.npz").positions, cut.positions)


def test_the_stage_has_another_version_if_it_gives_other_bytes(tmp_path: Path) -> None:
    """An upgrade that gives the same fixtures must rebuild none, and one that does not, all."""
    frames = np.arange(20 * 16 * 16, dtype=np.float32).reshape(20, 16, 16)
    plain = ScanData(
        diffraction=frames,
        positions=np.arange(40, dtype=np.float64).reshape(20, 2) * 0.5,
        probe=np.ones((1, 16, 16), dtype=np.complex64),
        pixel_size_m=(1e-8, 2e-8),
    )
    path = write(plain, FixtureOptions(subset_size=17), tmp_path)
    known = {5: "48429f23297a94f7974f46df9c852db2a5e673bb2fc2d8f441ca9c042cbd574b"}
    assert sha256_file(path) == known[STAGE_CODE["fixture"].version]
