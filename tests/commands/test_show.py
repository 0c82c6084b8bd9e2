"""`ptycho-tasks show`."""

from __future__ import annotations

import pytest


def test_a_file_gets_the_numbers_and_no_escape(built_project, ours):
    status, out, err = ours(built_project, "show")
    assert (status, err) == (0, "")
    assert "score      r_factor 0." in out
    assert "picture    runs/default/inference/reconstructed_phase.png" in out
    assert out.isascii()
    assert out.isprintable() or "\x1b" not in out


@pytest.mark.parametrize(
    ("kind", "mark"), [("kitty", "\x1b_Ga=T"), ("sixel", "\x1bP0;1q"), ("blocks", "\u2580\x1b[0m")]
)
def test_pictures_that_are_asked_for(built_project, ours, kind, mark):
    _, out, _ = ours(built_project, "show", "runs/default", "--pictures", kind)
    assert mark in out
    assert "amplitude, 0." in out


def test_a_folder_without_a_result_is_one_line(built_project, ours):
    status, _, err = ours(built_project, "show", "runs/none")
    assert status == 2 or status == 1
    assert err.startswith("error: runs/none: holds no reconstruction.h5")
