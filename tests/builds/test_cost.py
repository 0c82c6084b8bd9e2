"""Memory is foreseen from positions and frames, before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ptycho_tasks.backend import InferRequest, TrainedModel, TrainRequest
from ptycho_tasks.builds import cost
from ptycho_tasks.errors import ScanError, TrainingError
from ptycho_tasks.options import ExecutionOptions, SimulationOptions, TrainingOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.system import memory

SCAN = simulate(SimulationOptions(size=16, grid=5, step=3.0, jitter=1.0), name="scan")


class Plain:
    """Says nothing of its memory."""


class Frugal:
    def memory(self, request):
        return 2e6


def asked(y, x, memory_gb=None):
    positions = SCAN.positions.copy()
    positions[7] = y, x
    scan = replace(SCAN, positions=positions)
    execution = ExecutionOptions(memory_gb=memory_gb)
    return InferRequest(scan, TrainedModel({}), TrainingOptions(), execution)


def refused(backend, request):
    with pytest.raises(ScanError) as caught:
        cost.check_cost(backend, request, "s.npz")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_ordinary_scan_is_accepted():
    found = cost.check_cost(Plain(), asked(*SCAN.positions[7]), "s.npz")
    assert (found.rows, found.columns) < (100, 100)
    assert found.memory_bytes == pytest.approx(6e8, rel=0.01)


def test_a_stray_position_is_named_with_what_it_would_cost():
    said = refused(Plain(), asked(20, 100_000))
    assert "frame 7 at (y, x) = (20, 100000) lies farthest out" in said
    assert "times what all frames together could cover" in said
    assert "correct the positions, or set execution.memory_gb" in said


def test_with_a_bound_of_ones_own_a_sparse_canvas_is_taken_as_meant():
    assert cost.check_cost(Plain(), asked(20, 100_000, memory_gb=2.0), "s.npz").columns > 99_000


@pytest.mark.parametrize("far", [1e6, 1e15, 1e300])
def test_what_does_not_fit_is_refused_whatever_its_size(far):
    said = refused(Plain(), asked(far, -far, memory_gb=2.0))
    assert "of memory, but 2 GB are there" in said


def test_the_machine_is_the_bound_where_none_is_set(monkeypatch):
    monkeypatch.setattr(cost, "available_bytes", lambda: 1e8)
    request = asked(*SCAN.positions[7])
    assert "needs about 0.6 GB of memory, but 0.1 GB are there" in refused(Plain(), request)


def test_a_backend_may_say_what_it_needs(monkeypatch):
    monkeypatch.setattr(cost, "available_bytes", lambda: 1e7)
    assert cost.check_cost(Frugal(), asked(*SCAN.positions[7]), "s.npz").memory_bytes == 2e6


def test_a_container_bounds_the_machine(monkeypatch, tmp_path):
    for name, text in (
        ("max", "3000\n"),
        ("current", "2500\n"),
        ("stat", "anon 100\ninactive_file 700\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(text)
    group = (str(tmp_path), "memory.max", "memory.current", "inactive_file")
    monkeypatch.setattr(memory, "_GROUPS", (group,))
    assert memory.available_bytes() == 1200
    (tmp_path / "memory.max").write_text("max\n")
    assert 1e6 < memory.available_bytes() < float("inf")


def test_memory_that_ends_all_the_same_is_one_line():
    found = cost.estimate_cost(Plain(), asked(*SCAN.positions[7]))

    def compute():
        with found.explain_memory_errors():
            np.empty(2**55)

    with pytest.raises(TrainingError, match=r"^memory ended: a canvas of .* needs about 0.6 GB"):
        compute()


def test_of_several_scans_to_learn_from_the_one_with_the_stray_position_is_named():
    scans = [replace(SCAN, name="a"), replace(asked(20, 100_000).scan, name="b")]
    said = refused(Plain(), TrainRequest(scans, TrainingOptions()))
    assert said.startswith("s.npz: b: a canvas of ")
    found = cost.check_cost(Plain(), TrainRequest(scans[:1] * 2, TrainingOptions()), "s.npz")
    assert found.memory_bytes == pytest.approx(6e8, rel=0.01)


def test_the_memory_of_a_stage_is_not_that_of_one_before():
    megabytes = 2**17
    before = np.ones(200 * megabytes)
    del before
    with memory.measure_peak() as small:
        held = np.ones(10 * megabytes)
        first = small()
    del held
    with memory.measure_peak() as large:
        held = np.ones(90 * megabytes)
        second = large()
        assert held[-1] == 1
    assert 60 * 2**20 < second - first < 120 * 2**20
