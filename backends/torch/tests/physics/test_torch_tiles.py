"""Frames in several processes give the same bytes as in one, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forked_children import list_running
from ptycho_tasks.backend import InferRequest, RefineRequest, TrainRequest
from ptycho_tasks.errors import ConfigError
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.physics import mapped, tiles
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.tiles import Rectangle, divide, find_touching, spread_frames
from ptycho_tasks_torch.unrolled import correction, depth
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

ONE = TorchExecution(accelerator="cpu", threads=1)
THREE = msgspec.structs.replace(ONE, devices=3)


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch, forked):
    """Also small scans are spread; children are forks, which start at once."""
    monkeypatch.setattr(tiles, "LEAST_PIXELS", 0)


@pytest.fixture(scope="module")
def bundle(scan):
    return backend.train(TrainRequest([scan], UnrolledOptions(), ONE))


@pytest.fixture
def few_steps(monkeypatch):
    """Of a kind each: objects need not be found to the end."""
    for name, value in (("MOST_STEPS", 60), ("DOUBTFUL_STEPS", 60), ("RESTRAINTS", ())):
        monkeypatch.setattr(depth, name, value)


def infer(scan, bundle, execution, say=lambda text: None, **options):
    chosen = msgspec.structs.replace(UnrolledOptions(), **options)
    return backend.infer(InferRequest(scan, bundle, chosen, execution, say=say))


def assert_same(one, two) -> None:
    np.testing.assert_array_equal(two.object, one.object)
    np.testing.assert_array_equal(two.positions, one.positions)
    assert two.losses == one.losses


@pytest.mark.usefixtures("few_steps")
def test_what_is_not_needed_any_more_is_forgotten(scan, bundle, monkeypatch):
    """Where frames are taken with other light again and again."""
    half = np.where(np.arange(scan.frame_count) < scan.frame_count // 2, 1, 0.4)
    frames = scan.diffraction * np.sqrt(half).astype(np.float32)[:, None, None]
    calls, send = [], tiles.Crew.send

    def count(self, member, name, *arguments):
        calls.append(name)
        send(self, member, name, *arguments)

    monkeypatch.setattr(tiles.Crew, "send", count)
    result = infer(replace(scan, diffraction=frames), bundle, THREE)
    made = calls.count("take") + calls.count("brighten")
    assert made > 60
    assert made - calls.count("drop") < 40
    assert_same(infer(replace(scan, diffraction=frames), bundle, ONE), result)


corners = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 90)), min_size=1, max_size=30)


@given(corners, st.integers(1, 7))
def test_tiles_make_up_the_canvas_and_miss_no_frame(corners, parts):
    corners, whole = np.array(corners), Rectangle(0, 0, 76, 106)
    covered, seen = torch.zeros(1, 76, 106), set()
    found = divide(corners, whole, 16, parts)
    for tile in found:
        tile.of(covered).add_(1)
        seen.update(find_touching(corners, tile, 16).tolist())
    assert len(found) == parts
    assert (covered == 1).all()
    assert seen == set(range(len(corners)))


@pytest.mark.parametrize(
    "change", [{}, {"steps": 6}, {"positions": "refined", "steps": 6}], ids=["auto", "few", "moved"]
)
def test_several_processes_give_the_bytes_of_one(scan, bundle, monkeypatch, change):
    """Also of a network that works on tiles, in the processes that are free."""
    monkeypatch.setattr(correction, "LARGEST", 0)
    monkeypatch.setattr(correction, "TILE", 32)
    assert_same(infer(scan, bundle, ONE, **change), infer(scan, bundle, THREE, **change))
    assert list_running() == []


def test_frames_that_are_read_in_every_step_give_the_same_bytes(
    scan, bundle, monkeypatch, tmp_path
):
    """In a file that each process maps; one pixel of one frame is bad."""
    frames = scan.diffraction.copy()
    frames[3, 5, 7] = np.nan
    np.save(tmp_path / "frames.npy", frames)
    bad = np.zeros((scan.size, scan.size), dtype=bool)
    scan = replace(
        scan, diffraction=np.load(tmp_path / "frames.npy", mmap_mode="r"), bad_pixels=bad
    )
    monkeypatch.setattr(mapped, "HELD_BYTES", 0)
    one, three = (infer(scan, bundle, execution, steps=6) for execution in (ONE, THREE))
    assert_same(one, three)


def flicker(scan):
    """The scan, had the beam's light not been the same in any two frames."""
    light = np.random.default_rng(0).uniform(0.9, 1.1, scan.frame_count)
    brighter = scan.diffraction * np.sqrt(light).astype(np.float32)[:, None, None]
    return replace(scan, diffraction=brighter)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("held_bytes", [0, 2**28], ids=["read in every step", "in memory"])
def test_light_of_each_frame_gives_the_same_bytes(scan, bundle, monkeypatch, held_bytes):
    monkeypatch.setattr(mapped, "HELD_BYTES", held_bytes)
    lines: list[str] = []
    scan = flicker(scan)
    one, three = (infer(scan, bundle, devices, lines.append) for devices in (ONE, THREE))
    assert_same(one, three)
    assert lines[0] == lines[1]
    assert "light differs, by " in lines[0]


def test_a_background_gives_the_same_bytes(scan, bundle):
    counts = np.square(scan.diffraction)
    slope = 0.2 * counts.mean() * np.linspace(0, 1, scan.size)
    counts += np.random.default_rng(3).poisson(slope, counts.shape)
    scan = replace(scan, diffraction=np.sqrt(counts, dtype=np.float32))
    one, three = (infer(scan, bundle, devices) for devices in (ONE, THREE))
    assert_same(one, three)
    assert np.array_equal(one.background, three.background)
    assert np.corrcoef(one.background.mean(axis=0), slope)[0, 1] > 0.9


def test_steps_that_begin_anew_give_the_same_bytes(scan, bundle, monkeypatch):
    """As with a probe that is far off."""
    monkeypatch.setattr(depth, "SWEEPS", 8)
    monkeypatch.setattr(depth, "RESTRAINTS", depth.RESTRAINTS[:2])
    lines: list[str] = []
    amiss = np.complex64(0.6) * np.roll(scan.probe, 3, axis=-1)
    scan = replace(scan, probe=scan.probe + amiss)
    one, three = (infer(scan, bundle, devices, lines.append) for devices in (ONE, THREE))
    assert_same(one, three)
    assert lines[0] == lines[1]
    assert "begun anew" in lines[0]


def test_a_refinement_gives_the_same_bytes(scan, bundle):
    start = infer(scan, bundle, ONE, steps=4)
    one, three = (
        backend.refine(RefineRequest(scan, start, UnrolledOptions(steps=6), execution))
        for execution in (ONE, THREE)
    )
    assert_same(one, three)


def test_what_a_lost_process_had_goes_on_here(scan, bundle):
    """It is said in a line, and the bytes are the same."""
    lines: list[str] = []

    def progress(done, total, metrics):
        if done == 3:
            os.kill(list_running()[0], signal.SIGKILL)

    request = InferRequest(
        scan, bundle, UnrolledOptions(), THREE, progress=progress, say=lines.append
    )
    assert_same(infer(scan, bundle, ONE), backend.infer(request))
    assert len(lines) == 2
    assert lines[0].startswith("the process of device ")
    assert lines[0].endswith(
        "was killed by signal 9 (out of memory?); its part of the frames goes on in this one"
    )
    assert list_running() == []


def test_a_small_scan_stays_in_one_process(scan, monkeypatch):
    monkeypatch.setattr(tiles, "LEAST_PIXELS", scan.diffraction.size + 1)
    with spread_frames(scan, THREE, print) as expose:
        assert expose is expose_scan


def test_devices_that_are_not_there_are_refused(scan, bundle, monkeypatch):
    monkeypatch.setattr(tiles, "find_device", lambda accelerator: torch.device("mps"))
    with pytest.raises(ConfigError, match=r"^execution.devices: 3 .* 1 of the kind `mps`"):
        infer(scan, bundle, THREE)
