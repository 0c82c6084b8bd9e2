"""Payloads: every value settled, with its origin, before anything is opened."""

from __future__ import annotations

import re

import pytest

from ptycho_tasks.config import read_config
from ptycho_tasks.errors import BackendError, ConfigError
from ptycho_tasks.options import STAGES
from ptycho_tasks.payload import (
    create_fixture_payload,
    create_inference_payload,
    create_training_payload,
)

LOCAL = """\
from typing import Annotated
from ptycho_tasks.options import TrainingOptions, doc

class MineOptions(TrainingOptions, frozen=True, kw_only=True):
    gridsize: Annotated[int, doc("frames along a side of a group", ge=1)] = 1
    rate: Annotated[float, doc("learning rate", gt=0)] = 0.1

class Mine:
    name, version, options_type = "mine", "1", MineOptions
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
    assert payload.training.rate == 0.5


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
    missing = create_training_payload(read(CONFIG + line + "\n")).missing(key)
    assert missing is None if expected is None else re.search(expected, missing)


def test_nothing_is_opened_or_made(read, tmp_path):
    create_inference_payload(read())
    assert {path.name for path in tmp_path.iterdir()} == {"ptycho.yaml", "backends"}


def test_an_absolute_source_stays_as_it_is(read, tmp_path):
    payload = create_fixture_payload(read("source: {file: /data/x.npz}\n"))
    assert str(payload.source_file) == "/data/x.npz"


def test_a_simulated_source_lies_beside_the_fixture(read, tmp_path):
    payload = create_fixture_payload(read("name: a\nsource: {simulate: {}}\n"))
    assert payload.source_file == tmp_path / "fixtures" / "a_source.npz"


def test_an_option_that_the_backend_lacks_is_refused(read):
    with pytest.raises(ConfigError, match=r"ptycho.yaml:5: training.gridsise: unknown key; did"):
        create_training_payload(read(CONFIG.replace("epochs: 7", "gridsise: 2")))


def test_an_option_out_of_range_is_refused(read):
    with pytest.raises(ConfigError, match=r"override: training.rate: expected `float` > 0"):
        create_training_payload(read(), {"training.rate": 0.0})


def test_an_unknown_backend_names_the_line(read):
    with pytest.raises(BackendError, match=r"ptycho.yaml:3: unknown backend `other`.*mine"):
        create_training_payload(read(CONFIG.replace("backend: mine", "backend: other")))


def test_the_fixture_needs_no_backend(read):
    create_fixture_payload(read(CONFIG.replace("backend: mine", "backend: other")))


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
        ("inference: {scan: fixture}", ["infer"]),
        ("source: {file: a.npz, measurement: counts}", ["source", "fixture", "infer"]),
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
    assert params["flat"]["train_data_file_path"] == "fixtures/star.npz"
    assert params["training"]["rate"] == 0.1
