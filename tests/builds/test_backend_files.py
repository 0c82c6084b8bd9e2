"""Files that a backend says it reads are inputs of the training, by their content."""

from __future__ import annotations

import re

import pytest

BACKEND = """\
from pathlib import Path
from typing import Annotated

from epie import EPIE
from ptycho_tasks.errors import TrainingError
from ptycho_tasks.options import TrainingOptions, doc


class Options(TrainingOptions, frozen=True, kw_only=True):
    start: Annotated[str, doc("a file to start from")] = "none"


class Starting(EPIE):
    name, version, options_type = "starting", "1", Options

    def files(self, options):
        return {} if options.start == "none" else {"start": Path(options.start)}

    def train(self, request):
        for name, path in request.files.items():
            request.say(f"{name}: {path.read_text()}")
        return super().train(request)


backend = Starting()
"""


@pytest.fixture
def starting(built_project, edit_start):
    """A project of which all is built, with a backend that starts from `a.txt`."""
    (built_project / "backends" / "starting.py").write_text(BACKEND)
    config = built_project / "ptycho.yaml"
    text = config.read_text().replace("backend: epie", "backend: starting")
    config.write_text(text.replace("{epochs: 5}", "{epochs: 5, start: a.txt}"))
    (built_project / "a.txt").write_text("one")
    return built_project


@pytest.fixture
def edit_start():
    """Name another file to start from."""

    def edit(project, name: str) -> None:
        config = project / "ptycho.yaml"
        config.write_text(re.sub(r"start: [\w./]+", f"start: {name}", config.read_text()))

    return edit


def test_another_content_trains_again_and_another_place_does_not(starting, edit_start, doit, build):
    assert "start: one" in doit(starting, "train").stdout
    assert build(starting, "train") == []
    (starting / "elsewhere").mkdir()
    (starting / "elsewhere" / "b.txt").write_text("one")
    edit_start(starting, "elsewhere/b.txt")
    assert build(starting, "train") == []
    (starting / "elsewhere" / "b.txt").write_text("two")
    said = doit(starting, "why", "train").stdout
    assert "elsewhere/b.txt changed" in said
    assert "start: two" in doit(starting, "train").stdout
    edit_start(starting, "none")
    assert 'training.start "a file" -> "none"' in doit(starting, "why", "train").stdout


def test_a_file_that_is_not_there_is_one_line_with_its_key(starting, edit_start, doit):
    edit_start(starting, "nowhere.txt")
    done = doit(starting, "train")
    assert done.returncode == 2
    expected = rf"error: ptycho.yaml:\d+: training.start: there is no {starting}/nowhere.txt; .*\n"
    assert re.fullmatch(expected, done.stderr)
    assert "it would fail: ptycho.yaml" in doit(starting, "why", "train").stdout


def test_a_training_that_starts_from_its_own_result_is_refused(starting, edit_start, doit):
    edit_start(starting, "./runs/default/training/wts.h5.zip")
    done = doit(starting, "list")
    assert done.returncode == 2
    assert "training.start: runs/default/training/wts.h5.zip is what the task" in done.stderr
