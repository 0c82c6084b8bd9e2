"""However many tasks run side by side, no more compute together than fit."""

from __future__ import annotations

import os

import pytest

from ptycho_tasks.builds import turns
from ptycho_tasks.system.gpus import list_gpus
from ptycho_tasks.system.processes import count_cores

BACKEND = '''\
import os
import time
from pathlib import Path

from ptycho_tasks.backend import Reconstruction, TrainedModel, TrainingOptions
from ptycho_tasks.builds import turns
from ptycho_tasks.options import ExecutionOptions


class Slow:
    """Notes when it begins and ends to train."""

    name, version, options_type, api_version = "slow", "1", TrainingOptions, 2
    execution_type = ExecutionOptions

    def uses_gpu(self, execution):
        return execution.accelerator == "gpu"

    def memory(self, request):
        return MEMORY

    def train(self, request):
        with Path("gpus.txt").open("a") as file:
            print(os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
        with Path("threads.txt").open("a") as file:
            print(request.execution.threads, file=file)
        with Path("trainings.txt").open("a") as file:
            print("begin", file=file, flush=True)
            until = time.monotonic() + 300
            while self.goes_on():
                assert time.monotonic() < until, "the others do not come"
                time.sleep(0.02)
            print("end", file=file, flush=True)
        return TrainedModel(models={})

    def goes_on(self):
        """Until the others train as well, or say that they wait; the last one goes on for none."""
        said = Path("trainings.txt").read_text()
        begun, ended = (said.count(word) for word in ("begin", "end"))
        if TOGETHER > 1:
            return begun < TOGETHER
        return begun == ended + 1 and ended < 2 and not Path("waits").exists()

    def infer(self, request):
        raise NotImplementedError


def echo(text, say=turns.echo):
    Path("waits").touch()
    say(text)


backend, turns.echo = Slow(), echo
'''


@pytest.fixture
def run(write_project, doit):
    """Train three variants side by side, each until so many have begun; gives the largest number
    that trained together, and what was said."""

    def run(settings, memory=1e6, together=1):
        root = write_project(
            "source: {simulate: {size: 16, grid: 6}}\nbackend: slow\n"
            f"matrix: {{training.seed: [0, 1, 2]}}\nexecution: {settings}\n"
        )
        (root / "backends/slow.py").write_text(
            BACKEND.replace("MEMORY", repr(memory)).replace("TOGETHER", str(together))
        )
        done = doit(root, "-n", "3", "train")
        assert done.returncode == 0, done.stderr
        now = most = 0
        for line in (root / "trainings.txt").read_text().split():
            now += 1 if line == "begin" else -1
            most = max(most, now)
        return most, done.stdout

    return run


def test_trainings_wait_for_their_turn(run):
    most, said = run("{at_once: 1}")
    assert most == 1
    assert ": waits for its turn: 1 training at once\n" in said


def test_a_gpu_is_for_one_training(run):
    assert run("{accelerator: gpu}")[0] == 1


@pytest.fixture
def three_gpus(monkeypatch):
    """A machine of which this process may use three GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    list_gpus.cache_clear()
    yield
    list_gpus.cache_clear()


def test_each_of_several_gpus_is_for_one_training(run, three_gpus, tmp_path):
    assert run("{accelerator: gpu}", together=3)[0] == 3
    assert sorted((tmp_path / "project/gpus.txt").read_text().split()) == ["3", "5", "7"]


def test_a_bound_below_the_number_of_gpus_holds(run, three_gpus, monkeypatch):
    monkeypatch.setattr(turns, "_own_gpu", 2)  # of a worker that has inferred there
    assert run("{accelerator: gpu, at_once: 1}")[0] == 1


def test_without_a_bound_all_run(run):
    most, said = run("{}", together=3)
    assert most == 3
    assert "waits" not in said


def test_a_training_waits_for_memory(run):
    most, said = run(
        "{memory_gb: 1e6}", memory=0.7 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    )
    assert most == 1
    assert ": waits for memory: it needs about " in said


@pytest.mark.parametrize(
    ("settings", "omp", "threads"),
    [
        ("{}", None, max(1, count_cores() // 3)),
        ("{at_once: 1}", None, count_cores()),
        ("{threads: 7}", None, 7),
        ("{}", "2", 0),
    ],
)
def test_threads_are_divided_where_nothing_is_said_of_them(
    run, tmp_path, monkeypatch, settings, omp, threads
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    run(settings)
    assert {*(tmp_path / "project/threads.txt").read_text().split()} == {str(threads)}
