"""`ptycho-tasks train` and `infer`: every flag reaches the payload, and nothing starts before it is
whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from itertools import chain

import pytest

from ptycho_tasks.builds import inputs, stages
from ptycho_tasks.commands import cli as command_line
from ptycho_tasks.commands.train_flags import INFER, TRAIN
from ptycho_tasks.commands.train_infer import infer_command as infer
from ptycho_tasks.commands.train_infer import train_command as train
from ptycho_tasks.errors import TrainingError
from ptycho_tasks.system.lock import ProjectLock

BACKEND = """\
from typing import Annotated, Literal

from ptycho_tasks.options import ExecutionOptions, TrainingOptions, doc


class Training(TrainingOptions, frozen=True, kw_only=True):
    model_type: Annotated[str, doc("kind")] = "pinn"
    gridsize: Annotated[Literal[1, 2], doc("side of a group")] = 1
    n_groups: Annotated[int | None, doc("groups")] = None
    batch_size: Annotated[int, doc("frames a step", ge=1)] = 16
    learning_rate: Annotated[float, doc("rate", gt=0)] = 1e-3
    scheduler: Annotated[Literal["cosine", "plateau"], doc("course of the rate")] = "cosine"
    accumulate_grad_batches: Annotated[int, doc("batches a step", ge=1)] = 1
    early_stop_patience: Annotated[int | None, doc("patience")] = None
    monitor: Annotated[str, doc("metric")] = "val_loss"
    monitor_mode: Annotated[Literal["min", "max"], doc("which is best")] = "min"
    loss: Annotated[Literal["poisson", "mae"], doc("loss")] = "poisson"


class Execution(ExecutionOptions, frozen=True, kw_only=True):
    devices: Annotated[int, doc("devices", ge=1)] = 1
    deterministic: Annotated[bool, doc("equal bytes")] = True
    num_workers: Annotated[int, doc("processes", ge=0)] = 0
    checkpointing: Annotated[bool, doc("keep epochs")] = False
    checkpoint_save_top_k: Annotated[int, doc("how many", ge=1)] = 1
    logger: Annotated[Literal["none", "csv", "tensorboard", "mlflow"], doc("log")] = "none"


class Full:
    name, version, options_type, execution_type = "full", "1", Training, Execution

    def train(self, request): ...
    def infer(self, request): ...


backend = Full()
"""
"""Knows what every flag sets."""
PLAIN = """\
from ptycho_tasks.options import TrainingOptions

class Plain:
    name, version, options_type = "plain", "1", TrainingOptions
    def train(self, request): ...
    def infer(self, request): ...

backend = Plain()
"""
"""Knows what every backend knows."""

SAMPLES = {
    "--train-data-file": ("other.npz", "other.npz"),
    "--test-data": ("other.npz", "other.npz"),
    "--measurement": ("counts", "counts"),
    "--frame-axis": ("last", "last"),
    "--units": ("um", "um"),
    "--pixel-size-m": ("1e-8", 1e-8),
    "--energy-ev": ("8000", 8000.0),
    "--distance-m": ("2", 2.0),
    "--scan-index": ("3", 3),
    "--dark-frames": ("drop", "drop"),
    "--stray-frames": ("keep", "keep"),
    "--bad-pixels": ("ignore", "ignore"),
    "--backend": ("plain", "plain"),
    "--model-type": ("supervised", "supervised"),
    "--n-groups": ("32", 32),
    "--gridsize": ("2", 2),
    "--batch-size": ("8", 8),
    "--max-epochs": ("3", 3),
    "--learning-rate": ("1e-2", 0.01),
    "--scheduler": ("plateau", "plateau"),
    "--accumulate-grad-batches": ("4", 4),
    "--torch-loss-mode": ("mae", "mae"),
    "--early-stop-patience": ("5", 5),
    "--seed": ("9", 9),
    "--accelerator": ("cuda", "cuda"),
    "--devices": ("2", 2),
    "--threads": ("3", 3),
    "--num-workers": ("2", 2),
    "--deterministic": (None, True),
    "--no-deterministic": (None, False),
    "--memory-gb": ("8", 8.0),
    "--quiet": (None, True),
    "--enable-checkpointing": (None, True),
    "--disable-checkpointing": (None, False),
    "--checkpoint-save-top-k": ("4", 4),
    "--checkpoint-monitor": ("loss", "loss"),
    "--checkpoint-mode": ("max", "max"),
    "--logger": ("csv", "csv"),
    "--inference-batch-size": ("7", 7),
    "--device": ("cpu", "cpu"),
    "--n-images": ("40", 40),
    "--disable-mlflow": (None, "none"),
}
"""Of each flag, the text on the command line and the value in the payload."""
CASES = [
    (command, name, flag.key)
    for command, table in (("train", TRAIN), ("infer", INFER))
    for flag in chain(*table.values())
    for name in (flag.name, flag.off, *(old.name for old in flag.old))
    if flag.key and name
]


def hyphens(name: str) -> str:
    return name


def underscores(name: str) -> str:
    return "--" + name[2:].replace("-", "_")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two backends, files in the place of scans, and a bundle's manifest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTYCHO_TASKS_DEBUG", "")
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "full.py").write_text(BACKEND)
    (tmp_path / "backends" / "plain.py").write_text(PLAIN)
    for name in ("scan.npz", "other.npz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "model").mkdir()
    write_bundle(tmp_path / "model" / "wts.h5.zip", "full")
    return tmp_path


def write_bundle(path, backend):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"backend": {"name": backend}}))


@pytest.fixture
def begun(place, monkeypatch):
    """The stages that were called, and with which payload."""
    calls = []
    monkeypatch.setattr(stages, "train", lambda payload: calls.append(("train", payload)))
    monkeypatch.setattr(stages, "infer", lambda payload: calls.append(("infer", payload)))
    monkeypatch.setattr(inputs, "check_scan_to_infer", lambda payload, training: None)
    return calls


@pytest.fixture
def call(place, monkeypatch, capsys):
    """Run a command as the installed script does; gives code and stderr."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["ptycho-tasks", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            command_line.main()
        return int(caught.value.code or 0), capsys.readouterr().err

    return call


NEEDED = {
    "train": {"--train-data-file": "scan.npz", "--output-dir": "out", "--backend": "full"},
    "infer": {"--test-data": "scan.npz", "--output-dir": "out", "--model-path": "model"},
}


def line(command, *more, without=()):
    """A command line with all that must be given."""
    needed = {name: text for name, text in NEEDED[command].items() if name not in (*more, *without)}
    return [command, *chain(*needed.items()), *more]


@pytest.mark.parametrize("spelling", [hyphens, underscores])
@pytest.mark.parametrize(("command", "name", "key"), CASES)
def test_every_flag_reaches_the_payload(begun, call, command, name, key, spelling):
    text, value = SAMPLES[name]
    code, err = call(*line(command, name, *([] if text is None else [text])))
    assert code == 0, err
    ((stage, payload),) = begun
    assert stage == command
    assert payload.values[key] == value


def test_every_flag_of_the_contract_is_there():
    contract = {
        train: "train_data_file test_data_file output_dir n_groups n_images gridsize batch_size "
        "max_epochs config backend accelerator deterministic no-deterministic num-workers "
        "learning-rate scheduler accumulate-grad-batches quiet enable-checkpointing "
        "disable-checkpointing checkpoint-save-top-k checkpoint-monitor checkpoint-mode "
        "early-stop-patience logger torch-loss-mode device disable_mlflow debug devices threads "
        "seed model-type measurement frame-axis units pixel-size-m energy-ev distance-m scan-index "
        "dark-frames stray-frames bad-pixels force memory-gb",
        infer: "model_path test_data output_dir n_groups n_images accelerator num-workers "
        "inference-batch-size quiet device debug threads measurement frame-axis units pixel-size-m "
        "energy-ev distance-m scan-index dark-frames stray-frames bad-pixels force "
        "memory-gb",
    }
    for command, names in contract.items():
        known = {name for p in command.params for name in [*p.opts, *p.secondary_opts]}
        assert known == {"--" + name.replace("_", "-") for name in names.split()}


def test_places_and_names_are_what_the_flags_say(begun, call, place):
    assert call(*line("train"))[0] == 0
    assert call(*line("infer"))[0] == 0
    (_, training), (_, inference) = begun
    assert training.bundle_file == place / "out" / "wts.h5.zip"
    assert training.training_files == {"scan": place / "scan.npz"}
    assert training.origins["source.file"] == "--train-data-file"
    assert training.values["source.file"] == "scan.npz"
    assert inference.model_dir == place / "model"
    assert inference.scan_file == place / "scan.npz"
    assert inference.output_dir == place / "out"
    assert inference.backend.name == "full"


def test_a_test_scan_is_reconstructed_after_the_training(begun, call, place):
    assert call(*line("train", "--test_data_file", "other.npz", "--threads", "2"))[0] == 0
    (_, training), (stage, inference) = begun
    assert stage == "infer"
    assert training.source_file == place / "scan.npz"
    assert inference.scan_file == place / "other.npz"
    assert inference.model_dir == training.model_dir
    assert inference.output_dir == place / "out" / "inference"
    assert inference.execution.threads == 2


@pytest.mark.parametrize("model", ["model", "model/wts.h5.zip"])
def test_the_bundle_s_own_path_will_do(begun, call, place, model):
    assert call(*line("infer", "--model-path", model))[0] == 0
    assert begun[0][1].bundle_file == place / "model" / "wts.h5.zip"


# ---------------------------------------------------------------------------------------------
# With a ptycho.yaml


@pytest.fixture
def config(place):
    """Write a ptycho.yaml into a folder of its own; gives its path."""
    (place / "project").mkdir()
    (place / "project" / "backends").symlink_to(place / "backends")

    def config(text):
        path = place / "project" / "ptycho.yaml"
        path.write_text(text)
        return path

    return config


def test_flags_win_over_the_configuration(begun, call, config, place):
    path = config("source: {file: x.npz}\nbackend: full\ntraining: {epochs: 5, gridsize: 2}\n")
    assert call(*line("train", "--config", path, "--max-epochs", 7, without=["--backend"]))[0] == 0
    ((_, payload),) = begun
    assert payload.source_file == place / "scan.npz"
    assert (payload.values["training.epochs"], payload.values["training.gridsize"]) == (7, 2)
    assert payload.origins["training.gridsize"] == "ptycho.yaml:3"


def test_the_configuration_may_name_the_scan(begun, call, config, place):
    path = config("source: {file: x.npz, product: p.h5}\nbackend: full\n")
    (path.parent / "x.npz").write_bytes(b"")
    (path.parent / "p.h5").write_bytes(b"")
    without = ["--train-data-file", "--backend"]
    more = ["--config", path, "--test-data-file", "scan.npz"]
    assert call(*line("train", *more, without=without))[0] == 0
    (_, training), (_, inference) = begun
    assert training.source_files == {"scan": path.parent / "x.npz", "product": path.parent / "p.h5"}
    # A product is of its own scan.
    assert inference.source_files == {"scan": place / "scan.npz"}


@pytest.mark.parametrize("source", ["simulate: {}", "file: x.npz, product: p.h5"])
def test_a_scan_takes_the_place_of_the_configured_one(begun, call, config, place, source):
    path = config(f"source: {{{source}, pixel_size_m: 1.0e-8}}\n")
    assert call(*line("train", "--config", path))[0] == 0
    ((_, payload),) = begun
    assert payload.source_files == {"scan": place / "scan.npz"}
    assert payload.source.pixel_size_m == 1e-8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("matrix: {training.seed: [0, 1]}", "ptycho.yaml:1: matrix: asks for several trainings"),
        ("variants: [{name: a}]", "run `doit train` there, or take `variants` out"),
        ("refine: {backend: full}", "ptycho.yaml:1: refine: is a stage of a project; run `doit"),
        (
            "training: {epoch: 3}",
            "training.epoch: backend `full` does not know this key; did",
        ),
        ("training: [", "not valid YAML"),
    ],
)
def test_a_configuration_that_will_not_do_is_refused(begun, call, config, text, expected):
    code, err = call(*line("train", "--config", config(text)))
    assert (code, err.count("\n"), begun) == (2, 1, [])
    assert expected in err


def test_another_cut_of_the_scan_is_another_training(begun, call, config, place):
    for text in ("fixture: {subset_size: 20}", "fixture: {subset_size: 30}", ""):
        assert call(*line("train", "--config", config(text)))[0] == 0
    settings = [payload.settings("train") for _, payload in begun]
    assert [said["fixture.subset_size"] for said in settings] == [20, 30, None]
    # Where the scan lies is not what was trained on.
    assert not any("source.file" in said for said in settings)


# ---------------------------------------------------------------------------------------------
# Old names


@pytest.mark.parametrize(
    ("command", "old", "warning"),
    [
        ("train", ["--device", "cpu"], "--device is an old name; use --accelerator\n"),
        ("train", ["--n_images", "3"], "--n-images is an old name; use --n-groups\n"),
        ("train", ["--disable_mlflow"], "--disable-mlflow is an old name; use --logger none\n"),
        ("infer", ["--device", "cpu"], "--device is an old name; use --accelerator\n"),
        ("infer", ["--n_images", "3"], "--n-images is an old name; use --n-groups\n"),
    ],
)
def test_an_old_name_is_read_with_a_warning(begun, call, command, old, warning):
    code, err = call(*line(command, *old))
    assert (code, err) == (0, f"warning: {warning}")
    assert len(begun) == 1


def test_old_and_new_may_agree(begun, call):
    assert call(*line("train", "--device", "cpu", "--accelerator", "cpu"))[0] == 0
    assert begun[0][1].execution.accelerator == "cpu"


@pytest.mark.parametrize(
    "flags",
    [
        ["--device", "cpu", "--accelerator", "cuda"],
        ["--n-images", "3", "--n-groups", "4"],
        ["--disable_mlflow", "--logger", "csv"],
    ],
)
def test_old_and_new_must_not_contradict_each_other(begun, call, flags):
    code, err = call(*line("train", *flags))
    assert (code, begun) == (2, [])
    assert "contradict each other; give one" in err.splitlines()[-1]


# ---------------------------------------------------------------------------------------------
# Mistakes

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
