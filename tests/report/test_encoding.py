"""Arrays as text: what a reader of the page gets back of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from page_arrays import decode
from ptycho_tasks.report.encoding import LARGEST_SIDE, encode_complex, encode_values, shrink

VALUES = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))


@given(arrays.arrays(np.float32, st.integers(1, 40), elements=VALUES), st.sampled_from([8, 16]))
def test_values_come_back_to_half_a_step(values, bits):
    encoded = encode_values(values, bits)
    found = decode(encoded)
    step = (encoded["high"] - encoded["low"]) / (2**bits - 2)
    assert np.array_equal(np.isnan(found), np.isnan(values))
    seen = ~np.isnan(values)
    assert np.all(np.abs(found - values)[seen] <= step * 0.5 + 1e-6 * np.abs(values[seen]))


def test_phase_and_offset_give_the_phase_of_the_file():
    rng = np.random.default_rng(1)
    image = np.exp(1j * (2 + 0.3 * rng.standard_normal((9, 7)))).astype(np.complex64)
    preview = shrink(image, np.ones(image.shape, bool), 1)
    assert np.allclose(np.exp(1j * (preview.phase + preview.phase_offset)), image, atol=1e-5)
    assert abs(np.median(preview.phase)) < 1e-5


def test_blocks_are_means_of_what_was_seen():
    image = np.arange(1, 26, dtype=np.complex64).reshape(5, 5)
    seen = np.ones((5, 5), bool)
    seen[0, 0] = False
    seen[4, 4] = False
    amplitude = shrink(image, seen, 2).amplitude
    assert amplitude.shape == (3, 3)
    assert amplitude[0, 0] == pytest.approx((2 + 6 + 7) / 3)
    assert np.isnan(amplitude[2, 2])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (1500, 900), (64, 64)])
@pytest.mark.parametrize("most_bytes", [500, 50_000, 5e6])
def test_a_preview_fits_its_room(shape, most_bytes):
    encoded = encode_complex(np.ones(shape, np.complex64), np.ones(shape, bool), most_bytes)
    for part in (encoded["amplitude"], encoded["phase"]):
        assert max(part["rows"], part["columns"]) <= LARGEST_SIDE
        assert part["count"] == part["rows"] * part["columns"]
        # A last block that is not whole has a pixel too.
        rim = part["rows"] + part["columns"] + 1
        assert part["count"] * part["bits"] / 8 <= most_bytes / 2 + rim
    assert (encoded["rows"], encoded["columns"]) == shape


def test_nothing_seen_is_no_error():
    encoded = encode_complex(np.full((4, 4), np.nan, np.complex64), np.zeros((4, 4), bool), 1e4)
    assert np.isnan(decode(encoded["amplitude"])).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0, complex(0, np.inf)])
@pytest.mark.parametrize("step_room", [1e6, 10])
def test_an_image_without_values_is_encoded_without_a_warning(value, step_room):
    for image in (np.full((6, 5), value, np.complex64), np.full((1, 1), value, np.complex64)):
        encoded = encode_complex(image, np.ones(image.shape, bool), step_room)
        assert np.isfinite(decode(encoded["amplitude"])).any() == (value == 0)
        assert np.isfinite(encoded["phase_offset"])
