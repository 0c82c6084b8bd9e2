"""Frames are counted without being read, in whatever file they lie."""

from __future__ import annotations

import numpy as np
import pytest

from ptycho_tasks.builds.frames import count_pixels, list_frames
from ptycho_tasks.builds.project import read_project_table


def payload_of(task):
    table = read_project_table()
    return table.payload(table.row(task))


def test_of_a_fixture_and_of_a_simulated_scan(built_project, monkeypatch):
    monkeypatch.chdir(built_project)
    assert list_frames(payload_of("train")) == [(25, 32)]
    assert list_frames(payload_of("infer")) == [(36, 32)]
    assert count_pixels(payload_of("infer"), "infer") == 36 * 32**2
    assert count_pixels(payload_of("source"), "source") == 0


@pytest.mark.parametrize("shape", [(40, 32, 32), (32, 32, 40)])
def test_of_a_file_they_are_in_the_header(write_project, monkeypatch, shape):
    root = write_project("backend: epie\nsource: {file: scan.npz, crop: 16, bin: 2}\n")
    frames = np.zeros(shape, np.float32)
    ones = np.ones(40)
    probe = np.ones((32, 32), np.complex64)
    np.savez(root / "scan.npz", diffraction=frames, xcoords=ones, ycoords=ones, probeGuess=probe)
    monkeypatch.chdir(root)
    assert list_frames(payload_of("infer")) == [(40, 8)]


def test_of_what_is_no_scan_nothing_is_known(write_project, monkeypatch):
    root = write_project("backend: epie\nsource: {file: scan.npz}\n")
    (root / "scan.npz").write_bytes(b"no scan")
    monkeypatch.chdir(root)
    assert list_frames(payload_of("infer")) == []
    assert count_pixels(payload_of("infer"), "infer") == 0
