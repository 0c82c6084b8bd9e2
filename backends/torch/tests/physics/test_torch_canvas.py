"""Both ways of cutting and adding patches: the one for a GPU is tried on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from ptycho_tasks_torch.physics import canvas as module
from ptycho_tasks_torch.physics.canvas import (
    INDEX,
    WINDOWS,
    Way,
    add_onto,
    add_patches,
    cut_from,
    cut_patches,
)

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


@contextmanager
def taking(way: Way) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "choose_way", lambda canvas: way)
        yield


def random_values(seed: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()


@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(DTYPES),
    size=st.integers(1, 5),
    places=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 4)), min_size=1, max_size=9
    ),
)
def test_both_ways_give_the_same_objects_and_gradients(seed, dtype, size, places):
    """On several canvases that are not square, with patches that overlap or lie on each other."""
    there, shape = torch.tensor(places), (3, 12, 9)
    results = []
    for way in (WINDOWS, INDEX):
        canvas = random_values(seed, dtype, *shape)
        patches = random_values(seed + 1, dtype, len(places), size, size)
        with taking(way):
            cut, added = cut_patches(canvas, there, size), add_patches(patches, there, shape)
            (cut.abs().square().sum() + added.abs().square().sum()).backward()
        results.append((cut, added, canvas.grad, patches.grad))
    for slices, index in zip(*results, strict=True):
        assert slices.dtype == index.dtype
        torch.testing.assert_close(index, slices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_of_the_indexed_way_are_those_of_finite_differences(dtype):
    places = torch.tensor([(0, 1, 0), (1, 0, 2), (1, 1, 1)])
    canvas, patches = random_values(0, dtype, 2, 4, 5), random_values(1, dtype, 3, 3, 3)
    with taking(INDEX):
        assert torch.autograd.gradcheck(lambda values: cut_patches(values, places, 3), canvas)
        assert torch.autograd.gradcheck(
            lambda values: add_patches(values, places, (2, 4, 5)), patches
        )


def test_kernels_that_must_be_deterministic_add_the_same():
    places = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (40, 3)))
    patches = random_values(2, torch.complex64, 40, 3, 3)
    free = add_patches(patches, places, (2, 5, 5))
    torch.use_deterministic_algorithms(True)
    try:
        with taking(INDEX):
            strict = add_patches(patches, places, (2, 5, 5))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(strict, free)


def test_a_cpu_takes_slices_and_any_other_device_an_index():
    assert module.choose_way(torch.zeros(1)) is WINDOWS
    assert module.choose_way(torch.zeros(1, device="meta")) is INDEX


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_patches_lie_in_memory_one_after_the_other(dtype: torch.dtype) -> None:
    """Whatever lies how: on it depends how transforms round, and so whether two processes agree."""
    canvas = torch.randn(2, 20, 24, dtype=dtype).mT.contiguous().mT
    places = torch.tensor([[0, 1, 2], [1, 3, 4], [0, 1, 3]])
    patches = cut_from(canvas, places, 8)
    assert patches.is_contiguous()
    again, turned = torch.zeros(2, 20, 24, dtype=dtype), torch.zeros(2, 20, 24, dtype=dtype)
    add_onto(again, patches, places)
    add_onto(turned, patches.movedim(0, -1).contiguous().movedim(-1, 0), places)
    assert torch.equal(again, turned)
