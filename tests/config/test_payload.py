"""Payloads: every value settled, with its origin, before anything is opened."""

from __future__ import annotations

import re

import pytest

from ptycho_tasks.config.document import read_config
from ptycho_tasks.config.factories import (
    create_inference_payload,
    create_refinement_payload,
    create_training_payload,
)
from ptycho_tasks.config.payload import Folders
from ptycho_tasks.errors import BackendError, ConfigError
from ptycho_tasks.options import STAGES

LOCAL = """\
from typing import Annotated
from ptycho_tasks.options import ExecutionOptions, TrainingOptions, doc

class MineOptions(TrainingOptions, frozen=True, kw_only=True):
    gridsize: Annotated[int, doc("frames along a side of a group", ge=1)] = 1
    rate: Annotated[float, doc("learning rate", gt=0)] = 0.1
    probe: Annotated[str, doc("fixed or refined")] = "fixed"

    def __post_init__(self):
        if self.rate * self.gridsize > 9:
            raise ValueError(f"rate {self.rate:g} is too high for gridsize {self.gridsize}")

class Mine:
    name, version, options_type = "mine", "1", MineOptions
    execution_type = ExecutionOptions
    def train(self, request): ...
    def infer(self, request): ...

backend = Mine()
"""

CONFIG = """\
name: star
source: {file: data/star.npz}
backend: mine
training:
  epochs: 7
"""


@pytest.fixture
def read(tmp_path):
    def read(text: str = CONFIG):
        (tmp_path / "backends").mkdir(exist_ok=True)
        (tmp_path / "backends" / "mine.py").write_text(LOCAL)
        (tmp_path / "ptycho.yaml").write_text(text)
        return read_config(tmp_path / "ptycho.yaml")

    return read


def test_every_value_says_where_it_came_from(read):
    payload = create_training_payload(
        read(), {"training.rate": 0.5}, command_line={"execution.threads": 2}
    )
    assert payload.origins.keys() == payload.values.keys()
    assert payload.values["training.epochs"] == 7
    assert payload.origins["training.epochs"] == "ptycho.yaml:5"
    assert (payload.values["training.rate"], payload.origins["training.rate"]) == (0.5, "override")
    assert payload.origins["execution.threads"] == "command line"
    assert payload.origins["training.gridsize"] == "default"
    assert payload.options.rate == 0.5


def test_paths_lie_in_the_project(read, tmp_path):
    payload = create_inference_payload(read())
    assert payload.source_file == tmp_path / "data" / "star.npz"
    assert payload.scan_file == payload.source_file
    assert payload.fixture_file == tmp_path / "fixtures" / "star.npz"
    assert payload.sidecar_file == tmp_path / "fixtures" / "star.json"
    assert payload.model_dir == tmp_path / "runs" / "default" / "training"
    assert payload.output_dir == tmp_path / "runs" / "default" / "inference"


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("inference: {scan: nope.npz}", "inference.scan", r"^ptycho.yaml:6: inference.scan: there"),
        ("inference: {scan: source}", "inference.scan", None),
        ("inference: {scan: ptycho.yaml}", "inference.scan", None),
        ("inference: {scan: ptycho.yaml/x}", "inference.scan", "there is no"),
        ("inference: {scan: backends}", "inference.scan", "backends is a folder$"),
        ("", "source.product", None),
        ("", "source.file", r"^ptycho.yaml:2: source.file: there is no .*star.npz"),
    ],
)
def test_a_missing_file_names_key_and_line(read, line, key, expected):
    missing = create_training_payload(read(CONFIG + line + "\n")).describe_missing(key)
    assert missing is None if expected is None else re.search(expected, missing)


def test_nothing_is_opened_or_made(read, tmp_path):
    create_inference_payload(read())
    assert {path.name for path in tmp_path.iterdir()} == {"ptycho.yaml", "backends"}


def test_an_absolute_source_stays_as_it_is(read, tmp_path):
    payload = create_training_payload(read("source: {file: /data/x.npz}\nbackend: mine\n"))
    assert str(payload.source_file) == "/data/x.npz"


def test_a_simulated_source_lies_beside_the_fixture(read, tmp_path):
    payload = create_training_payload(read("name: a\nsource: {simulate: {}}\nbackend: mine\n"))
    assert payload.source_file == tmp_path / "fixtures" / "a_source.npz"


def test_an_option_that_the_backend_lacks_is_refused(read):
    with pytest.raises(
        ConfigError,
        match=r"yaml:5: training.gridsise: backend `mine` does not know .*; did",
    ):
        create_training_payload(read(CONFIG.replace("epochs: 7", "gridsise: 2")))


def test_an_option_out_of_range_is_refused(read):
    with pytest.raises(ConfigError, match=r"override: training.rate: expected `float` > 0"):
        create_training_payload(read(), {"training.rate": 0.0})


def test_an_unknown_backend_names_the_line(read):
    with pytest.raises(BackendError, match=r"ptycho.yaml:3: unknown backend `other`.*mine"):
        create_training_payload(read(CONFIG.replace("backend: mine", "backend: other")))


def settings(file):
    payload = create_training_payload(file)
    return {stage: payload.settings(stage) for stage in STAGES}


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("execution: {threads: 3, accelerator: cpu, inference_batch_size: 8, quiet: true}", []),
        ("training: {epochs: 8}", ["train"]),
        ("training: {rate: 0.2}", ["train"]),
        ("fixture: {subset_size: 20}", ["fixture"]),
        ("inference: {scan: fixture}", ["infer", "refine"]),
        ("source: {file: a.npz, measurement: counts}", ["source", "fixture", "infer", "refine"]),
    ],
)
def test_a_stage_knows_the_values_that_it_reads_and_no_others(read, line, changed):
    plain = "source: {file: a.npz}\n"
    before = settings(read(plain + "backend: mine\n"))
    text = f"{line}\nbackend: mine\n" + ("" if line.startswith("source") else plain)
    after = settings(read(text))
    assert [stage for stage in before if before[stage] != after[stage]] == changed


def test_the_bundle_gets_the_flat_names_that_users_know(read):
    params = create_training_payload(read(), {"training.gridsize": 2}).params(64)
    assert params["flat"]["nepochs"] == 7
    assert params["flat"]["object.big"] is True
    assert params["flat"]["probe.trainable"] is False
    assert params["flat"]["train_data_file_path"] == "fixture.npz"
    assert params["training"]["rate"] == 0.1


def test_a_refined_probe_is_a_trainable_one(read):
    params = create_training_payload(read(), {"training.probe": "refined"}).params(64)
    assert params["flat"]["probe.trainable"] is True


def test_a_flag_is_named_where_its_value_is_wrong(read):
    with pytest.raises(ConfigError, match=r"^--rate: training.rate: expected `float` > 0"):
        create_training_payload(
            read(), command_line={"training.rate": 0.0}, flags={"training.rate": "--rate"}
        )


@pytest.mark.parametrize(
    ("command_line", "where"),
    [
        ({"training.rate": 20.0}, "--rate"),
        ({"training.gridsize": 100, "training.epochs": 3}, "--gridsize"),
        ({"training.epochs": 3}, "ptycho.yaml:4"),
    ],
)
def test_values_that_do_not_fit_each_other_name_the_flag_among_them(read, command_line, where):
    flags = {key: f"--{key.partition('.')[2]}" for key in command_line}
    text = CONFIG if where.startswith("--") else CONFIG + "  rate: 20\n"
    with pytest.raises(ConfigError, match=rf"^{where}: training: rate [0-9.]+ is too high"):
        create_training_payload(read(text), command_line=command_line, flags=flags)


def test_what_a_command_was_told_lies_where_it_said(read, tmp_path):
    folders = Folders(model_dir=tmp_path / "out", output_dir=tmp_path / "images")
    training = create_training_payload(read(), folders=folders)
    assert training.bundle_file == tmp_path / "out" / "wts.h5.zip"
    assert training.work_root.is_relative_to(tmp_path / "out")
    assert training.training_files == {"scan": tmp_path / "data" / "star.npz"}
    assert training.params(64)["flat"]["train_data_file_path"] == "data/star.npz"
    assert create_inference_payload(read(), folders=folders).output_dir == tmp_path / "images"


EXECUTION = """\
from typing import Annotated
from ptycho_tasks.options import ExecutionOptions, TrainingOptions, doc

class Running(ExecutionOptions, frozen=True, kw_only=True):
    devices: Annotated[int, doc("how many devices", ge=1)] = 1

class Other:
    name, version, options_type, execution_type = "other", "1", TrainingOptions, Running
    def train(self, request): ...
    def infer(self, request): ...
    def refine(self, request): ...

backend = Other()
"""


@pytest.fixture
def other(read, tmp_path):
    """A second backend, with a knob of its own, that refines."""
    read()
    (tmp_path / "backends" / "other.py").write_text(EXECUTION)
    return read


def test_a_backend_s_own_execution_option_is_its_alone(other):
    plain = "source: {file: a.npz}\nexecution: {devices: 2}\n"
    payload = create_training_payload(other(plain + "backend: other\n"))
    assert payload.execution.devices == 2
    assert not any(key.startswith("execution") for key in payload.settings("train"))
    with pytest.raises(ConfigError, match=r"yaml:2: execution.devices: backend `mine` does not"):
        create_training_payload(other(plain + "backend: mine\n"))


REFINED = CONFIG + "refine:\n  backend: other\n  epochs: 3\nexecution: {threads: 2}\n"


def test_a_refinement_is_typed_by_its_own_backend(other, tmp_path):
    payload = create_refinement_payload(other(REFINED))
    assert (payload.backend.name, payload.options.epochs) == ("other", 3)
    assert payload.execution.threads == 2
    said = {"refine.backend": "other", "refine.epochs": 3, "refine.seed": 0}
    assert said.items() <= payload.settings("refine").items()
    assert not any(key.startswith("training") for key in payload.settings("refine"))
    assert payload.origins["refine.epochs"] == "ptycho.yaml:8"
    assert payload.start_file == tmp_path / "runs" / "default" / "inference" / "reconstruction.h5"
    assert payload.output_dir == tmp_path / "runs" / "default" / "refinement"


def test_without_refine_there_is_no_refinement(other):
    assert create_refinement_payload(other(CONFIG + "refine:\n")) is None


@pytest.mark.parametrize(
    ("refine", "expected"),
    [
        ("{epochs: 3}", r"^ptycho.yaml:6: refine.backend: must name the backend"),
        ("{backend: mine}", r"^ptycho.yaml:6: refine.backend: backend `mine` has no method `ref"),
        ("{backend: nope}", r"^ptycho.yaml:6: unknown backend `nope`; known here"),
        ("{backend: other, epochs: 0}", r"^ptycho.yaml:6: refine.epochs: expected `int` >= 1"),
        (
            "{backend: other, epoch: 1}",
            r"^ptycho.yaml:6: refine.epoch: backend `other` does not know this key; did",
        ),
        ("5", r"^ptycho.yaml:6: refine: expected a mapping, `key: value` lines, got 5"),
    ],
)
def test_a_wrong_refinement_is_one_line(other, refine, expected):
    with pytest.raises((BackendError, ConfigError), match=expected):
        create_refinement_payload(other(CONFIG + f"refine: {refine}\n"))


@pytest.mark.parametrize(
    ("execution", "refused"),
    [
        ("{accelerator: cuda}", "accelerator: backend `mine` does not say that it honours cuda"),
        ("{threads: 2}", "threads: backend `mine` does not say that it honours 2"),
        ("{inference_batch_size: 2}", "inference_batch_size: backend `mine` does not say"),
        ("{accelerator: cpu, threads: 0, quiet: true}", None),
    ],
)
def test_what_a_backend_does_not_say_that_it_honours_is_refused(read, tmp_path, execution, refused):
    file = read(CONFIG + f"execution: {execution}\n")
    path = tmp_path / "backends" / "mine.py"
    path.write_text(LOCAL.replace("    execution_type = ExecutionOptions\n", ""))
    if refused is None:
        create_training_payload(file)
        return
    with pytest.raises(ConfigError, match=rf"^ptycho.yaml:6: execution.{refused}"):
        create_training_payload(file)


def test_a_backend_may_check_what_fits_each_other_before_anything_runs(read, tmp_path):
    file = read(CONFIG)
    check = """
    def check(self, options, execution):
        from ptycho_tasks.errors import ConfigError
        raise ConfigError(f"training.epochs: {options.epochs} with {execution.threads} threads")
"""
    path = tmp_path / "backends" / "mine.py"
    path.write_text(LOCAL.replace("\nbackend =", check + "\nbackend ="))
    expected = "^ptycho.yaml:5: training.epochs: 7 with 0 threads$"
    with pytest.raises(ConfigError, match=expected):
        create_training_payload(file)
