"""A payload has one acting backend: that of `backend`, or for a refinement that of `refine`."""

from __future__ import annotations

import pytest

from ptycho_tasks.config.document import read_config
from ptycho_tasks.config.factories import create_payloads
from ptycho_tasks.config.layers import DEFAULT_VARIANT
from ptycho_tasks.errors import ConfigError

FIRST = """\
from typing import Annotated
from ptycho_tasks.options import ExecutionOptions, TrainingOptions, doc

class Execution(ExecutionOptions, frozen=True, kw_only=True):
    team: Annotated[int, doc("workers", ge=0)] = 0

class First:
    name, version, options_type, execution_type = "first", "1", TrainingOptions, Execution
    def train(self, request): ...
    def infer(self, request): ...

backend = First()
"""
SECOND = (
    FIRST.replace("First", "Second").replace('"first"', '"second"').replace("ge=0", "ge=0, le=2")
    + "Second.refine = lambda self, request: None\n"
)
CONFIG = "source: {file: a.npz}\nbackend: first\nrefine: {backend: second, epochs: 3}\n"


@pytest.fixture
def create(tmp_path):
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "first.py").write_text(FIRST)
    (tmp_path / "backends" / "second.py").write_text(SECOND)

    def create(text: str):
        (tmp_path / "ptycho.yaml").write_text(text)
        return create_payloads(read_config(tmp_path / "ptycho.yaml"), DEFAULT_VARIANT)

    return create


def test_each_payload_names_the_backend_that_acts(create, tmp_path):
    payloads = create(CONFIG + "training: {epochs: 5}\nexecution: {team: 2}\n")
    acting = [(p.backend.name, p.section, p.options.epochs, p.execution.team) for p in payloads]
    assert acting == [
        ("first", "training", 5, 2),
        ("first", "training", 5, 2),
        ("second", "refine", 3, 2),
    ]
    sources = [tmp_path / "backends" / f"{p.backend.name}.py" for p in payloads]
    assert [p.backend_source for p in payloads] == sources


def test_what_the_refining_backend_cannot_run_with_is_one_line(create):
    with pytest.raises(ConfigError, match=r"^ptycho.yaml:4: execution.team: expected `int` <= 2"):
        create(CONFIG + "execution: {team: 3}\n")
