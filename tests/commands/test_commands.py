"""`ptycho-tasks train` and `infer`: every flag reaches the payload."""

from __future__ import annotations

from itertools import chain

import pytest

from command_lines import line
from ptycho_tasks.commands.train_flags import INFER, TRAIN
from ptycho_tasks.commands.train_infer import infer_command as infer
from ptycho_tasks.commands.train_infer import train_command as train

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
    "--saturated": ("6e4", 6e4),
    "--negative-counts": ("clip", "clip"),
    "--mask-marks": ("good", "good"),
    "--probe": ("estimate", "estimate"),
    "--product": ("other.npz", "other.npz"),
    "--positions": ("other.npz", "other.npz"),
    "--reader": ("npz", "npz"),
    "--centre": ("[30, 34]", [30, 34]),
    "--crop": ("32", 32),
    "--bin": ("2", 2),
    "--datasets": ("{diff3d: a/b}", {"diff3d": "a/b"}),
    "--orientation": (
        "{swap: true}",
        {
            "swap": True,
            "flip_x": False,
            "flip_y": False,
            "rotate_deg": 0.0,
            "scale_x": 1.0,
            "scale_y": 1.0,
        },
    ),
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
    "--live": (None, True),
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


@pytest.mark.parametrize("spelling", [hyphens, underscores])
@pytest.mark.parametrize(("command", "name", "key"), CASES)
def test_every_flag_reaches_the_payload(begun, call, command, name, key, spelling):
    text, value = SAMPLES[name]
    code, err = call(*line(command, name, *([] if text is None else [text])))
    assert code == 0, err
    ((stage, payload),) = begun
    assert stage == command
    below = {k.rpartition(".")[2]: v for k, v in payload.values.items() if k.startswith(f"{key}.")}
    assert payload.values.get(key, below) == value


def test_every_flag_of_the_contract_is_there():
    contract = {
        train: "train_data_file test_data_file output_dir n_groups n_images gridsize batch_size "
        "max_epochs config backend accelerator deterministic no-deterministic num-workers "
        "learning-rate scheduler accumulate-grad-batches quiet enable-checkpointing "
        "disable-checkpointing checkpoint-save-top-k checkpoint-monitor checkpoint-mode "
        "early-stop-patience logger torch-loss-mode device disable_mlflow debug devices threads "
        "seed model-type measurement frame-axis units pixel-size-m energy-ev distance-m scan-index "
        "dark-frames stray-frames bad-pixels mask-marks saturated negative-counts probe product "
        "positions reader datasets orientation centre crop bin force memory-gb live",
        infer: "model_path test_data output_dir n_groups n_images accelerator num-workers "
        "inference-batch-size quiet device debug threads measurement frame-axis units pixel-size-m "
        "energy-ev distance-m scan-index dark-frames stray-frames bad-pixels mask-marks saturated "
        "negative-counts probe product positions reader datasets orientation centre crop bin force "
        "memory-gb live",
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


@pytest.mark.parametrize(
    "source", ["simulate: {}", "file: x.npz, product: p.h5", "files: [x.npz, 'y*']"]
)
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
