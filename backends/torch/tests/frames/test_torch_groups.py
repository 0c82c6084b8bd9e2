"""Groups are real neighbours, and offsets mean the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptycho_tasks.errors import ScanError
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.scan import ScanData, canvas_of
from ptycho_tasks_torch.frames.groups import cover_frames, make_groups
from ptycho_tasks_torch.physics.forward import intensities
from ptycho_tasks_torch.pinn.network import expose_groups
from ptycho_tasks_torch.pinn.stitching import Stitcher


def regular_scan(rows: int, columns: int, step: float = 4.0, N: int = 16) -> ScanData:
    y, x = np.meshgrid(np.arange(rows) * step, np.arange(columns) * step, indexing="ij")
    positions = np.column_stack([y.ravel(), x.ravel()]) + N // 2 + 0.25
    return ScanData(
        diffraction=np.ones((rows * columns, N, N), np.float32),
        positions=positions,
        probe=np.ones((1, N, N), np.complex64),
    )


def every(scan: ScanData, gridsize: int):
    frames = np.arange(scan.frame_count)
    return make_groups(scan, frames, frames, gridsize)


def test_gridsize_1_is_each_frame_by_itself(scan):
    groups = every(scan, 1)
    np.testing.assert_array_equal(groups.frames[:, 0], np.arange(scan.frame_count))
    assert np.abs(groups.relative).max() <= 0.5


def test_a_group_is_made_of_the_nearest_frames(scan):
    for anchor, frames in enumerate(every(scan, 2).frames):
        distance = np.linalg.norm(scan.positions - scan.positions[anchor], axis=1)
        assert anchor in frames
        assert len(set(frames)) == 4
        assert distance[frames].max() == pytest.approx(np.sort(distance)[3])


def test_channels_lie_row_by_row():
    scan = regular_scan(2, 2)
    scan = replace(scan, positions=scan.positions[[3, 0, 2, 1]])
    frames = every(scan, 2).frames[0]
    corners = scan.positions[frames].reshape(2, 2, 2)
    assert (corners[0, :, 0] < corners[1, :, 0]).all()
    assert (corners[:, 0, 1] < corners[:, 1, 1]).all()


def test_offsets_lead_back_to_the_positions(scan):
    groups = every(scan, 2)
    absolute = groups.relative[:, :, 0] - groups.relative[:, :1, 0]
    expected = scan.positions[groups.frames] - scan.positions[groups.frames[:, :1]]
    np.testing.assert_allclose(absolute, expected, atol=1e-3)


def test_neighbours_are_of_the_same_scan():
    one = regular_scan(3, 3)
    two = replace(
        one,
        diffraction=np.concatenate([one.diffraction] * 2),
        positions=np.concatenate([one.positions, one.positions + 0.5]),
        scan_index=np.repeat([7, 3], 9),
    )
    assert two.scan_index is not None
    of = two.scan_index[every(two, 2).frames]
    assert (of == of[:, :1]).all()


def test_an_index_that_never_repeats_is_a_frame_number_and_no_scan():
    scan = replace(regular_scan(3, 3), scan_index=np.arange(9))
    np.testing.assert_array_equal(every(scan, 2).frames, every(regular_scan(3, 3), 2).frames)


def test_a_scan_with_too_few_frames_for_a_group_is_refused():
    scan = regular_scan(3, 4)
    scan = replace(scan, scan_index=np.array([0] * 10 + [1] * 2))
    with pytest.raises(ScanError, match="too few for a group"):
        every(scan, 2)
    with pytest.raises(ScanError, match="only 3 frames are there"):
        every(regular_scan(1, 3), 2)


def test_covering_groups_hold_every_frame_and_are_fewer(scan):
    groups = cover_frames(scan, 2)
    assert set(groups.frames.ravel()) == set(range(scan.frame_count))
    assert len(groups) < 0.7 * scan.frame_count


@pytest.mark.parametrize("gridsize", [1, 2])
def test_the_network_sees_every_patch_where_the_stitcher_puts_it(gridsize):
    """A bright pixel far from the diagonal of a non-square object, at half-pixel positions."""
    N, generator = 16, np.random.default_rng(3)
    y, x = np.meshgrid(np.arange(4) * 3.5, np.arange(9) * 3.5, indexing="ij")
    positions = np.column_stack([y.ravel(), x.ravel()]) + N // 2
    probe = generator.standard_normal((1, N, N)) + 1j * generator.standard_normal((1, N, N))
    truth = np.ones((27, 46), np.complex64)
    truth[8, 36] = 5j
    scan = ScanData(np.zeros((36, N, N), np.float32), positions, probe.astype(np.complex64))
    for frames, counts in expected_intensity(truth, scan.probe, positions):
        scan.diffraction[frames] = np.sqrt(counts)

    groups = cover_frames(scan, gridsize)
    exposure = expose_groups(
        torch.from_numpy(scan.diffraction[groups.frames]),
        torch.from_numpy(groups.relative),
        torch.from_numpy(scan.probe),
        torch.ones(len(groups)),
    )
    canvas = canvas_of(positions, N)
    at = groups.corners - np.asarray(canvas.origin)
    window = truth[canvas.origin[0] :, canvas.origin[1] :]
    patches = np.stack([[window[y : y + N, x : x + N] for y, x in group] for group in at]).astype(
        np.complex64
    )

    probes = exposure.probes.reshape(len(groups), gridsize**2, 1, N, N)
    predicted = intensities(torch.from_numpy(patches), probes).sqrt().numpy()
    measured = scan.diffraction[groups.frames]
    np.testing.assert_allclose(predicted, measured, atol=2e-3 * measured.max())

    stitcher = Stitcher(canvas)
    light = probes.abs().square().sum(2).numpy()
    stitcher.add(patches, light, groups.corners)
    np.testing.assert_allclose(
        stitcher.object(), window[: canvas.shape[0], : canvas.shape[1]], atol=1e-4
    )

    # On the group's own canvas the channels overlap as they do on the object.
    side = exposure.shape[0]
    numbered = torch.arange(side**2).reshape(1, side, side).expand(len(groups), -1, -1)
    seen = exposure.cut(numbered.float()).long().reshape(patches.shape)
    row, column = seen[:, :, 0, 0] // side, seen[:, :, 0, 0] % side
    np.testing.assert_array_equal(
        torch.stack([row - row[:, :1], column - column[:, :1]], dim=-1).numpy(),
        groups.corners - groups.corners[:, :1],
    )


def test_where_nothing_was_seen_the_object_is_zero():
    from ptycho_tasks.scan import Canvas

    stitcher = Stitcher(Canvas((0, 0), (8, 12)))
    light = np.ones((1, 1, 4, 4), np.float32)
    light[..., 0] = 0
    stitcher.add(np.full((1, 1, 4, 4), 2j, np.complex64), light, np.array([[[2, 6]]]))
    image = stitcher.object()
    assert (image[2:6, 7:10] == 2j).all()
    assert np.count_nonzero(image) == 12


def stitched(scan: ScanData, truth, turn) -> tuple[np.ndarray, np.ndarray]:
    """The truth's patches, each group turned by a phase of its own; and the truth alike cut."""
    groups, canvas, N = cover_frames(scan, 2), canvas_of(scan.positions, scan.size), scan.size
    patches = np.stack(
        [[truth[y : y + N, x : x + N] for y, x in group] for group in groups.corners]
    )
    light = np.broadcast_to(np.outer(np.hanning(N), np.hanning(N)), patches.shape)
    stitcher = Stitcher(canvas)
    turned = patches * np.exp(1j * turn(len(groups)))[:, None, None, None]
    stitcher.add(turned.astype(np.complex64), light.astype(np.float32), groups.corners)
    (top, left), (height, width) = canvas.origin, canvas.shape
    return stitcher.object(), truth[top : top + height, left : left + width]


def smooth_object(rows: int, columns: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :columns]
    return ((1 + 0.2 * np.sin(y / 5)) * np.exp(1j * np.cos(x / 9 + y / 17))).astype(np.complex64)


def test_phases_that_the_data_do_not_tell_are_aligned():
    scan, truth = regular_scan(8, 12), smooth_object(56, 72)
    generator = np.random.default_rng(0)
    image, expected = stitched(scan, truth, lambda groups: generator.normal(0, 0.5, groups))
    seen = image != 0
    ratio = image[seen] / expected[seen]
    np.testing.assert_allclose(ratio, ratio.mean(), atol=1e-3)
    assert abs(ratio.mean()) == pytest.approx(1, abs=1e-3)


def test_phases_that_agree_stay_as_they_are():
    scan, truth = regular_scan(8, 12), smooth_object(56, 72)
    image, expected = stitched(scan, truth, np.zeros)
    seen = image != 0
    np.testing.assert_allclose(image[seen], expected[seen], atol=1e-3)


def test_islands_of_a_scan_keep_their_phase():
    """Nothing tells the phase of one island against another."""
    one = regular_scan(3, 3)
    far = one.positions + np.array([0.0, 60.0])
    scan = replace(
        one,
        diffraction=np.concatenate([one.diffraction] * 2),
        positions=np.concatenate([one.positions, far]),
    )
    image, expected = stitched(scan, smooth_object(40, 100), np.zeros)
    seen = image != 0
    np.testing.assert_allclose(image[seen], expected[seen], atol=1e-3)
