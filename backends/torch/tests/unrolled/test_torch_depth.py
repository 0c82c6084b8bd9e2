"""Physics steps, as many as a scan needs."""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ptycho_tasks.backend import InferRequest, RefineRequest, TrainRequest
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.metrics import score
from ptycho_tasks.physics.simulate import measure, simulate
from ptycho_tasks.scan import ScanData, canvas_of, take_frames
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.scale import find_photon
from ptycho_tasks_torch.unrolled import course as course_module
from ptycho_tasks_torch.unrolled import depth as depth_module
from ptycho_tasks_torch.unrolled.backend import backend
from ptycho_tasks_torch.unrolled.correction import list_unlearned
from ptycho_tasks_torch.unrolled.course import STEPS_AFTER, Choice, Course, choose_correction
from ptycho_tasks_torch.unrolled.depth import (
    DOUBTFUL_STEPS,
    LAST_SHARE,
    LEAST_LAST,
    LOOKS,
    MOST_STEPS,
    RESTRAINTS,
    STEPS_OF_A_LOOK,
    SWEEPS,
    Depth,
)
from ptycho_tasks_torch.unrolled.held_back import Frames, choose_held_back
from ptycho_tasks_torch.unrolled.network import reconstruct
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.steps import Engine

MOST_ANEW = len(RESTRAINTS) * (SWEEPS + MOST_STEPS) + MOST_STEPS
MOST_IN_ALL = DOUBTFUL_STEPS + MOST_ANEW + LAST_SHARE * MOST_STEPS + 2 * LOOKS * STEPS_OF_A_LOOK


def expose(scan: ScanData) -> Exposure:
    scale = float(np.sqrt(np.square(scan.diffraction, dtype=np.float64).mean()))
    modes = torch.from_numpy(scan.probe / np.float32(scale))
    return expose_scan(scan, modes, scale, find_photon(scan.diffraction))


@torch.inference_mode()
def run(scan: ScanData, steps: int | None = None) -> tuple[Depth, torch.Tensor]:
    depth = Depth(expose(scan), steps)
    deque(depth.run(), maxlen=0)
    return depth, deque(depth.finish(depth.best), maxlen=1).pop().canvas


def scores(scan: ScanData, canvas: torch.Tensor) -> dict[str, float]:
    place = canvas_of(scan.positions, scan.size)
    rows, columns = place.shape
    image = canvas[0, :rows, :columns].numpy()
    return score(image, place.origin, scan.object, scan.positions, scan.size)


def cross_bars(seed: int, width: float, step: float) -> ScanData:
    """100 frames of a beam that fades slowly, and bars that shift the phase by 1.4 rad each and
    lie over each other: wrong objects explain them nearly as well."""
    generator, N = np.random.default_rng(seed), 32
    positions = np.stack(np.divmod(np.arange(100), 10), axis=1) * step + N // 2 + 2
    y, x = np.mgrid[:N, :N] - N // 2
    square = (np.hypot(y, x) / (width * N)) ** 2
    probe = np.exp(-square * (1 - 1j)).astype(np.complex64)[None]
    height, length = (positions.max(axis=0) + N // 2 + 4).astype(int)
    bars = np.zeros((height, length))
    for _ in range(24):
        top, left = generator.integers(0, height), generator.integers(0, length)
        sides = generator.integers(1, 5), generator.integers(6, 40)
        rows, columns = sides if generator.random() < 0.5 else sides[::-1]
        bars[top : top + rows, left : left + columns] += 1.4
    truth = np.exp((1j - 0.05) * bars).astype(np.complex64)
    return measure(truth, probe, positions, 1e7, generator, "bars")


@pytest.fixture(scope="module")
def bright() -> ScanData:
    return simulate(SimulationOptions(size=32, grid=9, step=3.5, jitter=1.0, photons=1e8, seed=2))


@pytest.fixture(scope="module")
def faint() -> ScanData:
    return simulate(SimulationOptions(size=32, grid=9, step=2.5, jitter=1.0, photons=2e3, seed=2))


@pytest.mark.parametrize("steps", ["auto", 6])
def test_steps_are_as_many_as_the_log_says(bright, steps):
    options, calls, lines = UnrolledOptions(steps=steps, start="nothing"), [], []
    model = backend.train(TrainRequest([bright], options))
    request = InferRequest(
        bright, model, options, progress=lambda *call: calls.append(call), say=lines.append
    )
    result = backend.infer(request)
    assert lines[-1].startswith(f"{result.steps} steps")
    assert steps in ("auto", result.steps)
    assert calls[-1][:2] == (result.steps, result.steps)
    measured = [done for done, _, metrics in calls if metrics]
    assert measured == [*range(1, len(result.losses))]
    rough = backend.infer(InferRequest(bright, model, UnrolledOptions(steps=3, start="nothing")))
    refined = backend.refine(RefineRequest(bright, rough, options, say=lines.append))
    assert lines[-1].startswith(f"{refined.steps} steps")
    assert any("steps alone: refine.start without effect; of the" in line for line in lines)
    lines.clear()
    kept = backend.refine(RefineRequest(bright, result, UnrolledOptions(), say=lines.append))
    assert not any("without effect" in line for line in lines)
    if steps == "auto":
        assert re.fullmatch(r"the start is kept: \d+ steps explain the frames no better", lines[-1])
        assert (kept.steps, len(kept.losses)) == (0, 1)
        assert np.array_equal(kept.object, result.object)
    else:
        assert kept.steps > 0


def test_nothing_learned_is_better_than_a_few_steps(bright):
    depth, canvas = run(bright)
    few = reconstruct(expose(bright), 12).canvas
    ours, theirs = scores(bright, canvas), scores(bright, few)
    assert ours["amplitude_psnr_db"] > theirs["amplitude_psnr_db"] + 6
    assert ours["phase_ssim"] > theirs["phase_ssim"]
    assert depth.describe().startswith(f"{depth.engine.steps + depth.last_steps} steps")


def test_where_photons_are_few_it_ends_early_and_says_so(bright, faint):
    depth, canvas = run(faint)
    assert depth.engine.steps < run(bright)[0].engine.steps
    assert "misfit of frames held back level since" in depth.describe()
    # No scan ends worse than it was on the way.
    assert depth.measure(depth.best) == min(depth.misfits)
    assert depth.measure(depth.best) <= depth.measure(depth.engine.canvas)
    assert np.isfinite(list(scores(faint, canvas).values())).all()


def test_frames_held_back_are_in_no_step_but_the_last(bright):
    depth, _ = run(bright, 10)
    spoilt = bright.diffraction.copy()
    held_back = choose_held_back(expose(bright))
    spoilt[held_back] = spoilt[held_back][:, ::-1]
    other, last = run(replace(bright, diffraction=spoilt), 10)
    torch.testing.assert_close(other.engine.canvas, depth.engine.canvas)
    assert not torch.allclose(last, other.engine.canvas, atol=1e-3)


@pytest.mark.parametrize("steps", [2, 3, 9, 20])
def test_as_many_steps_as_are_asked_for(bright, steps):
    depth, _ = run(bright, steps)
    assert depth.engine.steps + depth.last_steps == steps
    assert depth.describe() == f"{steps} steps, as asked for"


def test_steps_that_diverge_are_undone_and_go_on_shorter(bright, monkeypatch):
    monkeypatch.setattr("ptycho_tasks_torch.unrolled.steps.GAINS", (9.0, 9.0))
    depth, canvas = run(bright)
    assert depth.engine.damping < 1
    assert depth.measure(depth.best) == min(depth.misfits) < 0.1 * depth.misfits[0]
    assert re.search("as long(er)? ones diverged", depth.describe())
    # On all frames, steps of that length would.
    depth.engine.damping = 1.0
    *_, last = depth.finish(canvas)
    assert depth.frames.exposure.measure_misfit(
        last.canvas
    ) <= depth.frames.exposure.measure_misfit(canvas)


@pytest.mark.parametrize("steps", [15, 18, 23])
def test_no_more_steps_than_are_asked_for_where_they_diverge(bright, monkeypatch, steps):
    monkeypatch.setattr("ptycho_tasks_torch.unrolled.steps.GAINS", (2.0, 2.0))
    depth, _ = run(bright, steps)
    assert depth.engine.steps + depth.last_steps <= steps
    assert depth.measure(depth.best) <= min(depth.misfits)


def test_dense_frames_of_a_smooth_probe_do_not_diverge_to_the_end(dense):
    """Steps of the usual length diverge at once there."""
    depth, canvas = run(dense)
    assert depth.engine.damping < 1
    flat = depth.frames.exposure.measure_misfit(torch.ones_like(canvas))
    assert depth.frames.exposure.measure_misfit(canvas) < 0.01 * flat


@pytest.mark.parametrize("photons", [3e3, 1e8])
def test_noise_is_what_is_left_where_all_is_known(photons):
    scan = simulate(SimulationOptions(size=32, grid=9, step=3.5, photons=photons, seed=3))
    exposure = expose(scan)
    known = torch.ones_like(exposure.light) + 0j
    place = canvas_of(scan.positions, scan.size)
    (top, left), (rows, columns) = place.origin, place.shape
    known[0, :rows, :columns] = torch.from_numpy(
        scan.object[top : top + rows, left : left + columns]
    )
    ratio = exposure.measure_misfit(known) / exposure.measure_noise(known)
    assert ratio == pytest.approx(1, abs=0.05)


def test_steps_go_on_where_something_but_noise_is_left(bright, monkeypatch):
    wrong = replace(bright, probe=bright.probe + 0.1 * np.roll(bright.probe, 2, axis=-1))
    patient, _ = run(wrong)
    monkeypatch.setattr(depth_module, "NOISY", math.inf)
    hasty, _ = run(wrong)
    assert hasty.engine.steps < patient.engine.steps
    assert min(patient.misfits) <= min(hasty.misfits)


def test_steps_begin_anew_where_they_were_led_astray(monkeypatch):
    bars = cross_bars(4, 0.12, 3.0)
    depth, canvas = run(bars)
    assert re.search(r"steps, begun anew after \d+, as long ones diverged; ", depth.describe())
    assert depth.engine.steps < depth.taken - depth.last_steps <= MOST_IN_ALL
    assert depth.measure(depth.best) == min(depth.misfits) == depth.misfits[depth.best_step]
    assert re.search(rf"(level since|back to step) {depth.best_step}\b", depth.describe())
    assert depth.best_step <= depth.taken
    monkeypatch.setattr(Depth, "_begin_anew", lambda self: iter(()))
    without, astray = run(bars)
    assert "anew" not in without.describe()
    assert depth.measure(canvas) < 0.9 * without.measure(astray)


def test_steps_begin_anew_where_frames_at_the_rim_are_not_explained(monkeypatch):
    """While those held back, which lie inside, are at their noise."""
    bars = cross_bars(7, 0.12, 3.0)
    depth, canvas = run(bars)
    monkeypatch.setattr(Frames, "judge_by_all", lambda self: None)
    without, astray = run(bars)
    assert "begun anew after" in depth.describe()
    assert "anew" not in without.describe()
    misfit = depth.frames.exposure.measure_misfit
    assert misfit(canvas) < 0.5 * misfit(astray)


def test_phases_that_jump_by_half_a_turn_are_found(half_turns, monkeypatch):
    assert scores(half_turns, run(half_turns)[1])["phase_ssim"] > 0.99
    # Also without a background, which an object may be found beside, until it is none any more.
    monkeypatch.setattr(depth_module, "suspect_background", lambda *_: None)
    depth, canvas = run(half_turns)
    assert "begun anew after" in depth.describe()
    assert scores(half_turns, canvas)["phase_ssim"] > 0.99
    monkeypatch.setattr(depth_module, "RESTRAINTS", ())
    without, astray = run(half_turns)
    assert depth.measure(canvas) < 0.5 * without.measure(astray)


def test_steps_that_were_begun_anew_in_vain_are_left():
    bars = cross_bars(9, 0.15, 2.0)
    amiss = np.complex64(0.05) * np.roll(bars.probe, 3, axis=-1)
    depth, _ = run(replace(bars, probe=bars.probe + amiss))
    assert re.search(
        r"steps, begun anew for \d+ in vain, as long ones diverged; ", depth.describe()
    )
    assert depth.measure(depth.best) == depth.misfits[depth.best_step]


def test_light_that_differs_from_frame_to_frame_is_heeded(bright, monkeypatch):
    """All frames by some percent, and one by nine times."""
    light = np.random.default_rng(0).normal(1, 0.03, bright.frame_count)
    light[40] = 9.0
    frames = bright.diffraction * np.sqrt(light).astype(np.float32)[:, None, None]
    flickering = replace(bright, diffraction=frames)
    depth, canvas = run(flickering)
    told = r"light differs, by over [12]\.\d% in half of the frames, most in frame 40: (8|9)"
    assert re.search(told, depth.describe())
    assert depth.taken <= MOST_IN_ALL
    monkeypatch.setattr(depth_module, "LOOKS", 0)
    without, other = run(flickering)
    assert "light" not in without.describe()
    good, poor = scores(bright, canvas), scores(bright, other)
    assert good["amplitude_psnr_db"] > poor["amplitude_psnr_db"] + 6
    assert good["phase_ssim"] > poor["phase_ssim"]


@pytest.mark.parametrize(
    ("frames", "times"), [([8], 9.0), ([8], 0.02), ([29, 30, 31, 32], 0.05), ([], 4.0)]
)
def test_frames_that_would_spoil_the_object_are_left_out_until_it_tells_of_their_light(
    bright, frames, times
):
    """One at a corner of the scan, where the object could be so bright, a few in a row, or one of
    those that are held back to judge."""
    clean, canvas = run(bright)
    frames = frames or choose_held_back(expose(bright))[:1]
    diffraction = bright.diffraction.copy()
    diffraction[frames] *= math.sqrt(times)
    depth, heeded = run(replace(bright, diffraction=diffraction))
    told = re.search(r"heeds .*, most in frame (\d+): ([\d.]+) times", depth.describe())
    assert "light" not in clean.describe()
    assert told is not None
    assert int(told[1]) in frames
    assert float(told[2]) == pytest.approx(times, rel=0.1)
    good, as_good = scores(bright, canvas), scores(bright, heeded)
    assert as_good["amplitude_psnr_db"] > good["amplitude_psnr_db"] - 6


@pytest.mark.parametrize("kind", ["shots", "half", "decay"])
def test_light_that_differs_much_is_found_with_the_object(bright, kind):
    """From what the photons of the frames say: no object is found without."""
    count, generator = bright.frame_count, np.random.default_rng(2)
    light = {
        "shots": np.exp(generator.normal(0, 0.5, count)),
        "half": np.where(np.arange(count) < count // 2, 1, 0.4),
        "decay": np.exp(-np.arange(count) / count),
    }[kind]
    frames = bright.diffraction * np.sqrt(light).astype(np.float32)[:, None, None]
    depth, canvas = run(replace(bright, diffraction=frames))
    assert depth.flux is not None
    assert np.corrcoef(np.log(depth.flux), np.log(light))[0, 1] > 0.99
    assert scores(bright, canvas)["phase_ssim"] > 0.95
    assert len(depth.misfits) <= depth.taken + 1


@pytest.mark.parametrize("kind", ["uniform", "slope", "halo"])
@pytest.mark.parametrize(("photons", "background"), [(1e6, 20.0), (1e4, 1.0)])
def test_a_background_is_found_with_the_object(photons, background, kind, monkeypatch):
    """Photons in a pixel, on average; without, the object gives way to it."""
    options = SimulationOptions(size=32, grid=10, step=3.0, photons=photons, seed=7)
    scan, generator = simulate(options), np.random.default_rng(3)
    y, x = np.mgrid[-16:16, -16:16] / 16
    shapes = {"uniform": 1 + 0 * x, "slope": 1 + 0.9 * x, "halo": np.exp(-4 * (x**2 + y**2))}
    light = background * shapes[kind] / shapes[kind].mean()
    counts = np.square(scan.diffraction) + generator.poisson(light, scan.diffraction.shape)
    covered = replace(scan, diffraction=np.sqrt(counts, dtype=np.float32))
    depth, canvas = run(covered)
    told = re.search(r"; heeds a background of ([\d.]+) photons a pixel, ", depth.describe())
    assert told is not None
    assert float(told[1]) == pytest.approx(background, rel=0.05)
    found = depth.scale_background(depth.frames.exposure.counts)
    assert np.square(found - light).mean() < 0.03 * np.square(light).mean()
    monkeypatch.setattr(depth_module, "suspect_background", lambda *_: None)
    without, other = run(covered)
    assert without.scale_background(1.0) is None
    good, poor = scores(scan, canvas), scores(scan, other)
    assert good["amplitude_psnr_db"] > poor["amplitude_psnr_db"] + 4
    clean, _ = run(scan)
    assert clean.scale_background(1.0) is None


@pytest.mark.parametrize("fault", ["probe", "positions"])
def test_light_does_not_stand_in_for_what_else_is_wrong(bright, fault):
    moved = bright.positions + np.random.default_rng(1).normal(0, 0.5, bright.positions.shape)
    wider = bright.probe + 0.1 * np.roll(bright.probe, 2, axis=-1)
    wrong = {"probe": replace(bright, probe=wider), "positions": replace(bright, positions=moved)}
    depth, _ = run(wrong[fault])
    assert "light" not in depth.describe()
    assert depth.scale_background(1.0) is None


def test_an_object_that_is_nearly_none_is_no_reason_for_doubt():
    options = SimulationOptions(size=32, grid=8, step=4.0, photons=1e4, seed=3)
    scan = simulate(options)
    probe, N = scan.probe, scan.size
    side = math.ceil(scan.positions.max()) + N
    truth = np.ones((side, side), np.complex64)
    empty = measure(truth, probe, scan.positions, 1e4, np.random.default_rng(4), "empty")
    depth, _ = run(empty)
    assert "check" not in depth.describe()
    assert depth.describe().endswith(
        "nothing but photon noise is left of frames held back from the start"
    )


def test_shuffled_positions_end_early_with_a_line(bright):
    order = np.random.default_rng(0).permutation(bright.frame_count)
    depth, _ = run(replace(bright, positions=bright.positions[order]))
    assert depth.engine.steps <= 50
    assert "diverged" in depth.describe() or "level" in depth.describe()


@pytest.mark.parametrize("frames", [1, 4, 11])
def test_a_scan_without_frames_to_spare(bright, frames):
    depth, canvas = run(take_frames(bright, np.arange(frames)))
    assert depth.frames.held_back is None
    assert "too few frames" in depth.describe()
    assert torch.isfinite(torch.view_as_real(canvas)).all()


def test_frames_held_back_say_whether_a_correction_is_good(bright):
    """One that goes to the truth, one that takes a part of it away, and one that goes elsewhere."""
    depth = Depth(expose(bright), 12)
    with torch.inference_mode():
        deque(depth.run(), maxlen=0)
        better = reconstruct(depth.frames.exposure, 60).canvas
        worse = depth.engine.canvas + 0.3

        def choose(*corrected):
            return choose_correction(depth, lambda engine, frames: corrected)

        assert choose(better).corrections == 1
        assert choose(0.98 * better).steps in STEPS_AFTER[1:]
        assert choose(worse) is None
        assert choose(better, worse).corrections == 1
        assert choose(worse, better).corrections == 2


def test_steps_go_on_until_what_a_correction_spoilt_is_mended(bright):
    """However much of its gain they bring back."""
    depth = Depth(expose(bright), 12)
    with torch.inference_mode():
        deque(depth.run(), maxlen=0)
        compare, taken = depth.frames.held_back.measure_divergence, []
        without = min(map(compare, depth.go_on(depth.engine.canvas, (0.0, 1.0))))
        better = reconstruct(depth.frames.exposure, 60).canvas
        for error in (0.5, 0.7, 0.8, 0.85, 0.9, 0.95):
            spoilt = error * better
            taken.append(choose_correction(depth, lambda *_, spoilt=spoilt: [spoilt]))
            if taken[-1] is not None:
                assert compare(next(depth.go_on(spoilt, [taken[-1].steps]))) < without
    assert taken[0] is None
    assert taken[-1] is not None


def test_the_last_steps_are_few(bright):
    depth, _ = run(bright)
    assert LEAST_LAST <= depth.last_steps <= depth.engine.steps / 4


def spoil_rim(frames: Frames, canvas: torch.Tensor) -> torch.Tensor:
    """A canvas whose pixel that frames held back see least beside others is far too bright."""
    seen = frames.held_back.light / frames.rest.light.clamp(min=1e-3 * frames.rest.light.max())
    is_lit = frames.rest.light > 0.05 * frames.rest.light.max()
    spoilt = canvas.clone()
    spoilt.flatten()[torch.where(is_lit, seen, math.inf).argmin()] = 50
    return spoilt


def test_no_last_step_spoils_the_rim(bright, monkeypatch):
    depth = Depth(expose(bright))
    with torch.inference_mode():
        deque(depth.run(), maxlen=0)
        good, measure = depth.best, depth.frames.exposure.measure_misfit
        spoilt = spoil_rim(depth.frames, good)
        assert measure(spoilt) > 10 * measure(good)
        depth.engine.canvas = spoilt
        assert depth.last is good
        advance = Engine.advance

        def go_astray(engine, turn):
            advance(engine, turn)
            engine.canvas = spoil_rim(depth.frames, engine.canvas)

        monkeypatch.setattr(depth, "measure", lambda canvas: 0.0)
        monkeypatch.setattr(Engine, "advance", go_astray)
        end = deque(depth.finish(good), maxlen=1).pop().canvas
    assert measure(end) <= measure(good)


def test_a_correction_that_spoils_the_rim_is_refused(bright, monkeypatch):
    """Though frames held back gain by it."""
    monkeypatch.setattr(course_module, "choose_correction", lambda *_: Choice(1, 0.0))
    exposure = expose(bright)
    with torch.inference_mode():
        better = reconstruct(exposure, 60).canvas
        spoilt = spoil_rim(Frames(exposure), better)

        class Spoiling:
            correction = SimpleNamespace(is_idle=False)
            canvas = spoilt

            def correct_in_turns(self, *_, is_last):
                yield self.canvas

        course = Course(exposure, Spoiling(), 12)
        measure = exposure.measure_misfit
        assert measure(course.finish()) < 0.1 * measure(spoilt)
        assert course.choice is None
        Spoiling.canvas = better
        course = Course(exposure, Spoiling(), 12)
        course.finish()
        assert course.choice is not None


def test_what_the_network_has_not_learned_from_is_named(bright):
    exposure = expose(bright)
    a_frame = exposure.size**2
    assert list_unlearned(replace(exposure, counts=1e6 / a_frame)) == []
    assert list_unlearned(replace(exposure, counts=math.inf)) == []
    assert list_unlearned(replace(exposure, counts=999 / a_frame)) == []  # shown as 1e3
    few = list_unlearned(replace(exposure, counts=200 / a_frame))
    assert few == ["200 photons a frame (1000 to 1e9)"]
    (apart,) = list_unlearned(replace(exposure, counts=1e6 / a_frame, radius=0.5))
    assert apart.endswith("radii of the spot apart (0.1 to 1.1)")
    alone = replace(exposure, counts=1e6 / a_frame).take([0])
    assert list_unlearned(alone) == ["one frame alone"]


def test_frames_along_a_line_are_apart_too(bright):
    exposure = expose(bright)
    places = torch.zeros_like(exposure.places[:9])
    places[:, 2] = 4 * torch.arange(9)
    line = replace(exposure.take(range(9)), places=places, radius=8.0)
    assert line.step == 0.5
    square = exposure.take(range(9))
    places[:, 1], places[:, 2] = 4 * (torch.arange(9) // 3), 4 * (torch.arange(9) % 3)
    assert replace(square, places=places, radius=8.0).step == pytest.approx(1 / 3)


@torch.inference_mode()
def test_steps_from_an_object_may_end_between_two(bright):
    depth = Depth(expose(bright), 12)
    flat = depth.engine.canvas
    none, half, one, two = depth.go_on(flat, (0.0, 0.5, 1.0, 2.0))
    assert torch.equal(none, flat)
    torch.testing.assert_close(half, (none + one) / 2)
    assert depth.measure(two) < depth.measure(one) < depth.measure(none)
