"""`ptycho-tasks train` and `infer`: nothing starts before all that was given is right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from command_lines import NEEDED, line
from ptycho_tasks.builds import stages
from ptycho_tasks.errors import TrainingError
from ptycho_tasks.system.lock import ProjectLock

MISTAKES = {
    "no integer": ("train", ["--gridsize", "x"], "'--gridsize': 'x' is not a valid integer"),
    "range": ("train", ["--gridsize", "3"], "--gridsize: training.gridsize: expected one of 1, 2"),
    "old name": ("train", ["--device", "tpu"], "--device: execution.accelerator: expected one of"),
    "word": ("train", ["--scheduler", "x"], "--scheduler: training.scheduler: expected one of"),
    "not finite": ("train", ["--learning-rate", "nan"], "--learning-rate: training.learning_rate"),
    "huge": ("train", ["--seed", "9" * 30], "--seed: training.seed: expected an integer of at"),
    "below": ("infer", ["--n-groups", "0"], "--n-groups: inference.n_groups: expected `int` >= 1"),
    "backend": ("train", ["--backend", "nope"], "--backend: unknown backend `nope`; known here"),
    "unknown here": (
        "train",
        ["--backend", "plain", "--scheduler", "cosine"],
        "--scheduler: training.scheduler: backend `plain` does not know this key; known keys",
    ),
    "switch unknown here": (
        "train",
        ["--backend", "plain", "--no-deterministic"],
        "--no-deterministic: execution.deterministic: backend `plain` does not know this key",
    ),
    "unknown flag": ("train", ["--epochs", "3"], "No such option"),
    "no value": ("train", ["--gridsize"], "Option '--gridsize' requires an argument"),
    "no scan": ("train", ["--train-data-file", "none.npz"], "none.npz; correct the path"),
    "folder": ("train", ["--train-data-file", "model"], "'--train-data-file': File 'model' is a"),
    "fifo": ("train", ["--train-data-file", "pipe"], "pipe is not a regular file; correct"),
    "no text": ("train", ["--train-data-file", "\udcff"], "--train-data-file: source.file: exp"),
    "no test scan": ("train", ["--test-data-file", "x"], "--test-data-file: source.file: there is"),
    "no scan to infer": ("infer", ["--test-data", "x"], "--test-data: source.file: there is no"),
    "no config": ("train", ["--config", "x.yaml"], "--config: there is no file x.yaml"),
    "empty folder": ("train", ["--output-dir", ""], "'--output-dir': the path is empty; name one"),
    "empty bundle": ("infer", ["--model-path", ""], "'--model-path': the path is empty; name one"),
    "no bundle": ("infer", ["--model-path", "backends"], "--model-path: there is no "),
    "output": ("train", ["--output-dir", "scan.npz"], "'--output-dir': Directory 'scan.npz' is a"),
    "below a file": ("train", ["--output-dir", "scan.npz/x"], "--output-dir: cannot make "),
    "foreign checkpoints": (
        "train",
        ["--output-dir", "ours"],
        "best/wts.h5.zip is there, and was not made by ptycho-tasks or was changed since; move it",
    ),
    "foreign bundle": ("train", ["--output-dir", "theirs"], "theirs/wts.h5.zip is there, and was"),
    "foreign metrics": ("infer", ["--output-dir", "out"], "or --force to replace it"),
    "scan in checkpoints": (
        "train",
        ["--train-data-file", "ours/checkpoints/best/wts.h5.zip", "--output-dir", "ours"],
        "which is read; choose another folder",
    ),
    "scan is an output": (
        "infer",
        ["--test-data", "out/metrics.json"],
        "out/metrics.json would replace",
    ),
}


@pytest.mark.parametrize(("command", "flags", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_nothing_begins(begun, call, place, command, flags, expected):
    os.mkfifo(place / "pipe")
    for file in ("theirs/wts.h5.zip", "ours/checkpoints/best/wts.h5.zip"):
        (place / file).parent.mkdir(parents=True)
        (place / file).write_bytes(b"")
    (place / "out").mkdir()
    (place / "out" / "metrics.json").write_bytes(b"")
    before = sorted(place.rglob("*"))
    code, err = call(*line(command, *flags))
    assert (code, begun) == (2, [])
    errors = [text for text in err.splitlines() if not text.startswith("warning: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert expected in errors[0]
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("command", "missing"),
    [(c, name) for c, needed in NEEDED.items() for name in needed if name != "--backend"],
)
def test_what_must_be_given_is_asked_for(begun, call, command, missing):
    code, err = call(*line(command, without=[missing]))
    assert (code, err.count("\n"), begun) == (2, 1, [])
    assert f"Missing option '{missing}'" in err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("output", ["closed", "closed/out"])
def test_a_folder_that_may_not_be_written(begun, call, place, output):
    (place / "closed").mkdir(mode=0o500)
    code, err = call(*line("train", "--output-dir", output))
    assert (code, err.count("\n"), begun) == (2, 1, [])


def test_one_run_at_a_time_in_a_folder(begun, call, place):
    lock = ProjectLock(place / "out" / ".ptycho" / "lock")
    lock.acquire()
    for command in ("train", "infer"):
        code, err = call(*line(command))
        assert (code, err.count("\n"), begun) == (1, 1, [])
        assert f"another run is at work in {place / 'out'}: process {os.getpid()}" in err
    lock.release()
    assert call(*line("train"))[0] == 0


def test_work_that_failed_exits_1_and_ends_the_lock(begun, call, place, monkeypatch):
    def fail(payload):
        raise TrainingError("NaN loss")

    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", fail)
        assert call(*line("train")) == (1, "error: NaN loss\n")
        with pytest.raises(TrainingError):
            call(*line("train", "--debug"))
    assert call(*line("train"))[0] == 0


def test_a_signal_ends_it_in_order(begun, call, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train", lambda payload: os.kill(os.getpid(), signal.SIGTERM))
        assert call(*line("train"))[0] == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert call(*line("train"))[0] == 0


def test_a_damaged_bundle_is_the_bundle_reader_s_to_explain(begun, call, place):
    (place / "model" / "wts.h5.zip").write_bytes(b"not a zip")
    code, err = call(*line("infer"))
    assert (code, err.count("\n"), begun) == (1, 1, [])
    assert "damaged or not a zip" in err


# ---------------------------------------------------------------------------------------------
# The order of events

WATCHED = """
import sys
from ptycho_tasks.commands.cli import main
sys.argv = ["ptycho-tasks", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted({"numpy", "torch", "h5py", "scipy", "matplotlib"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", ["--gridsize", "3"]),
        ("train", ["--scheduler", "x"]),
        ("train", ["--train_data_file", "x.npz"]),
        ("infer", ["--n_groups", "0"]),
        ("infer", ["--accelerator", "tpu"]),
        ("infer", ["--model_path", "backends"]),
    ],
)
def test_a_wrong_value_costs_no_import(place, command, flags):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *line(command, *flags)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.strip() == ""
    assert flags[0].replace("_", "-") in done.stderr
