"""The conformance suite: backends that keep the contract pass, and each check can fail."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptycho_tasks import testing
from ptycho_tasks.backends import find_backend
from ptycho_tasks.options import TrainingOptions
from ptycho_tasks.testing import BackendConformance

STRANGER = (Path(__file__).parent / "outside" / "stranger_ptycho.py").read_text()


def in_a_project(root: Path, code: str = STRANGER, **declared: Any) -> dict[str, Any]:
    """Attributes of a conformance class for the backend `stranger` with some code."""
    folder = root / "backends"
    folder.mkdir()
    (folder / "stranger.py").write_text(code)
    backend = find_backend("stranger", root).load()
    options = backend.options_type(epochs=4)
    refuses = ("another scan",)
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


# --- each check fails when it should -----------------------------------------------------------

OPTION = "    epochs: Annotated["
GRIDSIZE = '    gridsize: Annotated[int, doc("frames of a group", ge=1, le=2)] = 1\n'
CORNERS = "corners_and_fractions(scan.positions, N)[0] - canvas.origin"
PLACE = "(row, column), scan.probe, scan.positions"
RECONSTRUCTION = f"Reconstruction(image, {PLACE}, losses)"
INFER = "        scan, model = request.scan, request.model\n"
TRAIN = "        scan, options = request.scan, request.options\n"
TOLD = '            request.progress(len(losses), options.epochs, {"loss": losses[-1]})\n'


def instead(old: str, new: str) -> str:
    assert STRANGER.count(old) == 1, old
    return STRANGER.replace(old, new)


def first(line: str, code: str) -> str:
    """The backend, with some lines of code after one of its own."""
    return instead(line, f"{line}        {code}\n")


def giving(new: str, old: str = "image") -> str:
    """The backend, with something else in its reconstruction."""
    return instead(RECONSTRUCTION, RECONSTRUCTION.replace(old, new, 1))


def stopping(handler: str) -> str:
    """The backend, with another way to take what `progress` raises."""
    return instead(TOLD, f"            try:\n    {TOLD}            {handler}\n")


LEFT_RUNNING = """\
except BaseException:
                import threading
                ends = threading.Event()
                threading.Thread(target=ends.wait, args=(1,), name="at work").start()
                raise"""

# Per check: what is broken, its code, what the class declares, what the check says.
Broken = tuple[str, str, dict[str, Any], str]
BROKEN: dict[str, list[Broken]] = {
    "can_be_loaded": [
        ("no version", STRANGER, {"backend": SimpleNamespace(name="mine")}, "wrong: version, opt"),
    ],
    "options_are_frozen": [
        ("mutable", instead("frozen=True", "frozen=False"), {}, "DID NOT RAISE"),
    ],
    "declares_what_the_suite_knows": [
        ("misspelt", STRANGER, {"refuses": ["other scan"]}, "`refuses` names .'other scan'."),
    ],
    "explains_the_frames": [
        ("no model", instead("return TrainedModel(", "return dict("), {}, "gave a `dict` from"),
        (
            "wrong shape",
            giving("probe[0]", "probe"),
            {},
            "`probe` as complex64 of shape .32, 32.; expected",
        ),
        (
            "no phase",
            giving("abs(image)"),
            {},
            "`object` as float32",
        ),
        ("axes swapped", instead(CORNERS, f"({CORNERS})[:, ::-1]"), {}, "are not explained"),
        ("corner for centre", instead("np.fft.ifftshift(frame)", "frame"), {}, "not explained"),
        ("elsewhere", first(INFER, "model.metadata['origin'][0] -= 3"), {}, "do not fit|explained"),
    ],
    "the_same_seed_gives_the_same_bytes": [
        ("random", instead("default_rng(options.seed)", "default_rng()"), {}, "another model"),
        (
            "random numbers of the process",
            instead("np.random.default_rng(options.seed)", "np.random"),
            {},
            "another model",
        ),
        (
            "another each time",
            first(TRAIN, "self.runs = getattr(self, 'runs', 0) + 1").replace(
                "default_rng(options.seed)", "default_rng(self.runs)"
            ),
            {},
            "another model",
        ),
        (
            "random inference",
            giving("image + np.float32(1e-6 * np.random.default_rng().random())"),
            {},
            "the same model and scan gave another object",
        ),
    ],
    "shifted_positions_shift_the_object": [
        (
            "origin of its own",
            instead('"origin": canvas.origin', '"origin": [0, 0]').replace(
                '"image": image', '"image": np.pad(image, 30, mode="edge")'
            ),
            {},
            "shifted positions change the object",
        ),
        (
            "another object elsewhere",
            instead('"image": image', '"image": image + np.float32(1e-3 * canvas.origin[0])'),
            {},
            "shifted positions change the object",
        ),
        (
            "positions of its own",
            giving("(0, 0), scan.probe, scan.positions - (row, column)", PLACE),
            {},
            "positions given back did not shift",
        ),
    ],
    "positions_are_used": [
        (
            "a raster of its own",
            instead(
                CORNERS, "4 * np.stack(np.unravel_index(np.arange(len(scan.positions)), (6, 6)), 1)"
            ),
            {},
            "wrong positions change nothing",
        ),
    ],
    "the_order_of_frames_does_not_count": [
        (
            "positions of the training",
            giving("trained", "scan.positions"),
            {},
            "not in the order of the frames",
        ),
        (
            "first frame counts",
            giving("image + np.float32(0.01 * (scan.positions != trained).any())"),
            {},
            "frames in another order change the object",
        ),
        (
            "order spoils it",
            giving("image + np.float32(0.5 * (scan.positions != trained).any())"),
            {"frames_in_turn": True},
            "explained worse",
        ),
    ],
    "gridsize_is_handled_or_refused": [
        ("ignored", instead(OPTION, GRIDSIZE + OPTION), {}, "one makes no difference"),
        (
            "refused without its name",
            first(TRAIN, "if options.gridsize > 1: raise ScanError('no')").replace(
                OPTION, GRIDSIZE + OPTION
            ),
            {},
            "gridsize 2 is refused as: no",
        ),
        (
            "never handled",
            first(TRAIN, "raise ScanError('no gridsize works')").replace(OPTION, GRIDSIZE + OPTION),
            {},
            "no gridsize is handled",
        ),
    ],
    "a_feature_works_or_is_refused": [
        (
            "first mode only",
            STRANGER.replace("scan.probe", "scan.probe[:1]"),
            {"feature": "probe modes"},
            "lost probe modes",
        ),
        (
            "not refused",
            STRANGER,
            {"feature": "several scans", "refuses": ["several scans"]},
            "declared as refused, but accepted",
        ),
        ("refused", STRANGER, {"feature": "another scan", "refuses": []}, "another scan: confor"),
        (
            "nothing to do with it",
            first(INFER, "trained = scan.positions").replace(
                "far = np.abs(scan.positions[:, None] - trained[None])", "far = np.zeros((1, 1, 1))"
            ),
            {"feature": "another scan", "refuses": []},
            "not explained|do not fit",
        ),
    ],
    "a_bundle_gives_back_the_model": [
        (
            "arrays by their order",
            instead(
                '(model.models["object"][key] for key in ("image", "positions"))',
                'list(model.models["object"].values())[::-1]',
            )
            .replace('"image": image, "positions": scan.positions', "**arrays")
            .replace(
                "        return TrainedModel(",
                '        arrays = {"positions": scan.positions, "image": image}\n'
                "        return TrainedModel(",
            ),
            {},
            "broadcast",
        ),
    ],
    "another_process_infers_the_same": [
        (
            "kept in memory",
            first(INFER, "model = self.model")
            .replace("return TrainedModel(", "self.model = TrainedModel(")
            .replace("    def infer", "        return self.model\n\n    def infer"),
            {},
            "no attribute 'model'",
        ),
        (
            "hash of a text",
            giving("image * np.float32(1 + hash('a') % 9e4 * 1e-5)"),
            {},
            "another process gave another object",
        ),
    ],
    "progress_leads_from_the_start_to_the_end": [
        (
            "silent",
            STRANGER.replace("request.progress(", "(lambda *told: None)("),
            {},
            "ever calls `progress`",
        ),
        (
            "no start",
            instead("request.progress(len(losses), options.epochs, {})", "pass"),
            {},
            "told `progress` of .1, 2, 3, 4. of .*; the first call",
        ),
        (
            "stands",
            instead(TOLD, TOLD.replace("len(losses)", "min(len(losses), 1)")),
            {},
            "must ri",
        ),
        ("falls", instead(TOLD, TOLD.replace("len(losses)", "-len(losses)")), {}, "it must rise"),
        (
            "no end",
            instead(TOLD, TOLD.replace("epochs,", "epochs + 1,")),
            {},
            "the total must stay",
        ),
        (
            "half",
            STRANGER.replace("(len(losses), options.epochs", "(len(losses), 2 * options.epochs"),
            {},
            "the last call tells of all",
        ),
        ("NaN", instead(TOLD, TOLD.replace("losses[-1]", "np.nan")), {}, "told NaN or Inf"),
    ],
    "an_exception_from_progress_comes_out": [
        ("swallowed", stopping("except Exception: break"), {}, "swallowed _Cancelled"),
        (
            "swallowed and worked on",
            stopping("except Exception: pass"),
            {},
            "swallowed _Cancelled",
        ),
        (
            "turned into another",
            stopping("except Exception as error: raise RuntimeError('stopped') from error"),
            {},
            "turned _Cancelled.. from `progress` into RuntimeError",
        ),
        (
            "told again",
            stopping(f"except BaseException:\n    {TOLD}                raise"),
            {},
            "after it had raised",
        ),
        ("a thread", stopping(LEFT_RUNNING), {}, "left running: thread at work"),
        (
            "a process",
            stopping(
                "except BaseException:\n                import subprocess\n"
                "                self.left = subprocess.Popen(['sleep', '1'])\n"
                "                raise"
            ),
            {},
            "left running: process",
        ),
        (
            "signal ends the program",
            stopping("except SystemExit: break"),
            {"ending": "a signal"},
            "swallowed Stopped",
        ),
        (
            "Ctrl-C ends the program",
            stopping("except KeyboardInterrupt: raise SystemExit(1)"),
            {"ending": "Ctrl-C"},
            "turned KeyboardInterrupt.. from `progress` into SystemExit",
        ),
        (
            "no further Ctrl-C",
            stopping(
                "except KeyboardInterrupt:\n                import signal\n"
                "                signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                "                raise"
            ),
            {"ending": "Ctrl-C"},
            "left Ctrl-C handled otherwise",
        ),
    ],
    "a_cancelled_training_goes_on_to_the_same_model": [
        (
            "epochs counted anew",
            instead('state["losses"].tolist()', "[]"),
            {},
            "after a cancelled training another model",
        ),
    ],
    "a_folder_of_other_epochs_leads_to_the_same_model": [
        (
            "takes what is there",
            instead('if len(state["losses"]) <= options.epochs:', "if True:"),
            {},
            "4 epochs after 5 in the same folder",
        ),
    ],
    "writes_no_file_of_its_own": [
        (
            "a file",
            first(TRAIN, "np.save('debug.npy', scan.positions)"),
            {},
            "left in the working folder: debug.npy",
        ),
    ],
    "a_dark_scan_is_no_crash": [
        ("crash", first(TRAIN, "1 / int(scan.diffraction.any())"), {}, "division by zero"),
        ("infer", first(INFER, "1 / int(scan.diffraction.any())"), {}, "division by zero"),
        (
            "two lines",
            first(TRAIN, "if not scan.diffraction.any(): raise ScanError('dark\\n')"),
            {},
            "more than one line",
        ),
    ],
    "too_few_frames_are_no_crash": [
        ("crash", first(TRAIN, "scan.positions[16]"), {}, "out of bounds"),
        ("no text", first(TRAIN, "if len(scan.positions) < 9: raise ScanError('')"), {}, "a text"),
    ],
    "frames_of_another_size_are_no_crash": [
        ("crash", first(INFER, "scan.diffraction.reshape(-1, 32, 32)[35]"), {}, "out of bounds"),
    ],
}


@pytest.mark.parametrize(
    ("check", "broken"),
    [pytest.param(check, b, id=f"{check}-{b[0]}") for check, each in BROKEN.items() for b in each],
)
def test_a_broken_backend_fails(check, broken, tmp_path, monkeypatch):
    _, code, declared, said = broken
    monkeypatch.setattr(testing, "GRACE_S", 0.0)
    given = {"method": "train", "ending": "an error", "monkeypatch": monkeypatch} | declared
    folder = tmp_path / "given"
    folder.mkdir()
    given["tmp_path"] = folder
    test = getattr(BackendConformance, f"test_{check}")
    attributes = {k: v for k, v in declared.items() if k in BackendConformance.__annotations__}
    suite = type("Broken", (BackendConformance,), in_a_project(tmp_path, code, **attributes))
    arguments = {name: given[name] for name in inspect.signature(test).parameters if name != "self"}
    with pytest.raises((Exception, pytest.fail.Exception), match=said):
        test(suite(), **arguments)


def test_every_check_is_shown_to_fail():
    checks = {name for name in dir(BackendConformance) if name.startswith("test_")}
    assert {f"test_{name}" for name in BROKEN} == checks


def test_without_pytest_one_line_says_so():
    code = "import sys; sys.modules['pytest'] = None; import ptycho_tasks.testing"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ptycho_tasks.testing needs pytest; run `pip install")
