"""The conformance suite: backends that keep the contract pass, and each check can fail."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from broken_backends import BROKEN, INFER, REFINE, STRANGER, TRAIN, instead
from ptycho_tasks.backends import find_backend
from ptycho_tasks.options import TrainingOptions
from ptycho_tasks.testing import BackendConformance, checks
from ptycho_tasks.testing.suite import Suite


def in_a_project(root: Path, code: str = STRANGER, **declared: Any) -> dict[str, Any]:
    """Attributes of a conformance class for the backend `stranger` with some code."""
    folder = root / "backends"
    folder.mkdir()
    (folder / "stranger.py").write_text(code)
    backend = find_backend("stranger", root).load()
    options = backend.options_type(epochs=4)
    refuses = ("another scan", "scans together")
    return {"backend": backend, "options": options, "refuses": refuses, "root": root} | declared


class TestEPIE(BackendConformance):
    """The README's backend."""

    options = TrainingOptions(epochs=4)
    frames_in_turn = True
    silent = True

    @pytest.fixture(autouse=True)
    def _in_a_project(self, project):
        type(self).backend, type(self).root = find_backend("epie", project).load(), project


class TestUnbroken(BackendConformance):
    """What the broken ones below are made of."""

    @pytest.fixture(autouse=True)
    def _in_a_project(self, tmp_path_factory):
        for name, value in in_a_project(tmp_path_factory.mktemp("stranger")).items():
            setattr(type(self), name, value)


@pytest.mark.parametrize(
    ("check", "broken"),
    [pytest.param(check, b, id=f"{check}-{b[0]}") for check, each in BROKEN.items() for b in each],
)
def test_a_broken_backend_fails(check, broken, tmp_path, monkeypatch, request):
    _, code, declared, said = broken
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr(checks, "GRACE_S", 0.0)
    given = {"method": "train", "ending": "an error", "monkeypatch": monkeypatch} | declared
    folder = tmp_path / "given"
    folder.mkdir()
    given["tmp_path"] = folder
    test = getattr(BackendConformance, f"test_{check}")
    attributes = {k: v for k, v in declared.items() if k in Suite.__annotations__}
    suite = type("Broken", (BackendConformance,), in_a_project(tmp_path, code, **attributes))
    arguments = {name: given[name] for name in inspect.signature(test).parameters if name != "self"}
    with pytest.raises((Exception, pytest.fail.Exception), match=said):
        test(suite(), **arguments)


def test_a_class_without_options_tests_with_the_backend_s_defaults(tmp_path):
    given = in_a_project(tmp_path, options=None)
    epochs: list[tuple[int, int]] = []
    suite = type("Default", (BackendConformance,), given)
    suite._train(suite.scan(), progress=lambda epoch, count, scores: epochs.append((epoch, count)))
    assert epochs[-1] == (given["backend"].options_type().epochs,) * 2


@pytest.mark.parametrize(
    ("calls", "problem"),
    [
        ([(0, 9), (3, 9), (9, 9)], ""),
        ([(0, 9), (3, 9), (4, 4)], ""),
        ([(0, 9), (3, 9), (10, 10)], "not larger"),
        ([(0, 9), (3, 8), (8, 8)], "must stay"),
        ([(0, 9), (3, 9), (3, 3)], "must rise"),
        ([(0, 9), (3, 9)], "tells of all"),
        ([(0, None), (3, None), (4, 4)], ""),
        ([(0, None), (3, 9), (9, 9)], "must stay"),
        ([(0, None), (3, None)], "tells the total"),
    ],
)
def test_progress_has_one_total_but_may_end_early(calls, problem):
    with pytest.raises(AssertionError, match=problem) if problem else nullcontext():
        checks.check_progress("infer", [(*call, {}) for call in calls])


def test_every_check_is_shown_to_fail():
    checks = {name for name in dir(BackendConformance) if name.startswith("test_")}
    assert {f"test_{name}" for name in BROKEN} == checks


EXECUTION = """
from ptycho_tasks.options import ExecutionOptions


class StrangerExecution(ExecutionOptions, frozen=True, kw_only=True):
    helpers: Annotated[int, doc("processes beside", ge=0)] = 0


class Stranger:
"""


def test_requests_carry_the_backend_s_own_execution(tmp_path):
    own = instead("\nclass Stranger:\n", EXECUTION)
    for head in (INFER, TRAIN):
        own = own.replace(head, f"{head}        assert request.execution.helpers == 0\n")
    own = own.replace(REFINE, f"assert request.execution.helpers == 0\n        {REFINE}")
    own = own.replace(
        "    name, version", "    execution_type = StrangerExecution\n    name, version"
    )
    suite = type("Own", (BackendConformance,), in_a_project(tmp_path, own))()
    suite.test_refine_improves_on_its_start()
    suite.test_explains_the_frames()
    suite.test_another_process_infers_the_same(tmp_path)


def test_without_pytest_one_line_says_so():
    code = "import sys; sys.modules['pytest'] = None; import ptycho_tasks.testing"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ptycho_tasks.testing needs pytest; run `pip install")
