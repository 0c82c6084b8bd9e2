"""For each check of the conformance suite, backends that fail it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ptycho_tasks.options import TrainingOptions

STRANGER = (Path(__file__).parents[1] / "outside" / "stranger_ptycho.py").read_text()

OPTION = "    epochs: Annotated["
GRIDSIZE = '    gridsize: Annotated[int, doc("frames of a group", ge=1, le=2)] = 1\n'
CORNERS = "corners_and_fractions(start.positions, N)[0] - start.origin"
PLACE = "(row, column), scan.probe, scan.positions"
RECONSTRUCTION = f"Reconstruction(image, {PLACE}, losses)"
INFER = "        scan, model = request.scan, request.model\n"
TRAIN_HEAD = "        from ptycho_tasks.scan import canvas_of\n"
TRAIN = "        scan, options = request.scan, request.options\n"
HISTORY = 'history=[{"loss": loss} for loss in made.losses],'
REFINE = "return iterate(request, request.start)"
TOLD = '        request.progress(len(losses), options.epochs, {"loss": losses[-1]})\n'


def instead(old: str, new: str) -> str:
    assert STRANGER.count(old) == 1, old
    return STRANGER.replace(old, new)


def first(line: str, code: str) -> str:
    """The backend, with some lines of code after one of its own."""
    return instead(line, f"{line}        {code}\n")


def giving(new: str, old: str = "image") -> str:
    """The backend, with something else in its reconstruction."""
    return instead(RECONSTRUCTION, RECONSTRUCTION.replace(old, new, 1))


def refining(code: str) -> str:
    """The backend, with another `refine`; `made` and `start` are the right result and its start."""
    right = "start, made = request.start, iterate(request, request.start)\n"
    return instead(REFINE, f"import numpy as np\n        {right}        {code}")


def keeping(models: str) -> str:
    """The backend, with a checkpoint of some models in what it trains."""
    kept = f'checkpoints={{"best": TrainedModel({models})}},'
    return instead(HISTORY, f"{HISTORY}\n            {kept}")


def stopping(handler: str) -> str:
    """The backend, with another way to take what `progress` raises."""
    return instead(TOLD, f"        try:\n    {TOLD}        {handler}\n")


FIRST_SCAN = first(TRAIN_HEAD, "request = replace(request, scans=request.scans[:1])")
"""The backend, with no eye for the other scans."""
LEFT_RUNNING = """\
except BaseException:
            import threading
            ends = threading.Event()
            threading.Thread(target=ends.wait, args=(9,), daemon=True, name="at work").start()
            raise"""


def with_files(files: str) -> str:
    """The stranger with a method `files` that gives some expression."""
    method = (
        "    def files(self, options):\n        import os\n        from pathlib import Path\n"
        f"        return {files}\n\n"
    )
    return instead("    def train(self", f"{method}    def train(self")


# Per check: what is broken, its code, what the class declares, what the check says.
Broken = tuple[str, str, dict[str, Any], str]
BROKEN: dict[str, list[Broken]] = {
    "can_be_loaded": [
        ("no version", STRANGER, {"backend": SimpleNamespace(name="mine")}, "wrong: version, opt"),
    ],
    "options_are_frozen": [
        ("mutable", instead("frozen=True", "frozen=False"), {}, "DID NOT RAISE"),
    ],
    "files_are_named_by_options": [
        ("no option", with_files("{'weights': Path('w')}"), {}, "names .'weights'.: no such"),
        ("text", with_files("{'seed': 'w'}"), {}, "gives no Path for .'seed'."),
        (
            "another each time",
            with_files("{'seed': Path(str(id(object())) + str(os.urandom(8)))}"),
            {},
            "gives other paths",
        ),
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
            "random checkpoint",
            keeping('{"object": {"image": np.random.default_rng().random(9)}}'),
            {},
            "another model",
        ),
        (
            "random inference",
            giving("image + np.float32(1e-2 * np.random.default_rng().random())"),
            {},
            "the same model and scan gave another object",
        ),
    ],
    "kept_checkpoints_can_be_inferred": [
        ("empty", keeping("{}"), {}, "object"),
        (
            "of other positions",
            keeping('{"object": {"image": made.object, "positions": scan.positions + 1}}'),
            {},
            "the checkpoint `best` cannot be inferred: conf",
        ),
    ],
    "shifted_positions_shift_the_object": [
        (
            "origin of its own",
            instead('"origin": canvas.origin', '"origin": [0, 0]').replace(
                '"image": made.object', '"image": np.pad(made.object, 30, mode="edge")'
            ),
            {},
            "shifted positions change the object",
        ),
        (
            "another object elsewhere",
            instead(
                '"image": made.object',
                '"image": made.object + np.float32(1e-3 * canvas.origin[0])',
            ),
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
            "bad pixels are dark",
            instead("nan=1.0", "nan=0.0"),
            {"feature": "bad pixels", "refuses": []},
            "bad pixels .NaN. are not left out",
        ),
        (
            "nothing to do with it",
            first(INFER, "trained = scan.positions").replace(
                "far = np.abs(scan.positions[:, None] - trained[None])", "far = np.zeros((1, 1, 1))"
            ),
            {"feature": "another scan", "refuses": []},
            "not explained|do not fit",
        ),
    ],
    "scans_together_work_or_are_refused": [
        ("not refused", FIRST_SCAN, {}, "scans together: declared as refused, but accepted"),
        ("refused", STRANGER, {"refuses": []}, "scans together: fixture.scans: names 2 scans"),
        (
            "another error",
            first(TRAIN_HEAD, "if len(request.scans) > 1: raise ScanError('several')"),
            {},
            "refused as a ScanError",
        ),
        ("first scan only", FIRST_SCAN, {"refuses": []}, "learned from: conformance: has other"),
    ],
    "scans_together_give_the_same_bytes": [
        (
            "chance",
            FIRST_SCAN.replace("default_rng(options.seed)", "default_rng()"),
            {},
            "the same scans gave another model",
        ),
    ],
    "a_bundle_gives_back_the_model": [
        (
            "arrays by their order",
            instead(
                '(model.models["object"][key] for key in ("image", "positions"))',
                'list(model.models["object"].values())[::-1]',
            )
            .replace('"image": made.object, "positions": scan.positions', "**arrays")
            .replace(
                "        return TrainedModel(",
                '        arrays = {"positions": scan.positions, "image": made.object}\n'
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
        (
            "silent `refine`",
            instead(REFINE, "return iterate(replace(request, progress=print), request.start)"),
            {},
            "`refine` never calls",
        ),
        ("NaN", instead(TOLD, TOLD.replace("losses[-1]", "np.nan")), {}, "told NaN or Inf"),
    ],
    "an_exception_from_progress_comes_out": [
        ("swallowed", stopping("except Exception: break"), {}, "swallowed Cancelled"),
        (
            "swallowed and worked on",
            stopping("except Exception: pass"),
            {},
            "swallowed Cancelled",
        ),
        (
            "turned into another",
            stopping("except Exception as error: raise RuntimeError('stopped') from error"),
            {},
            "turned Cancelled.. from `progress` into RuntimeError",
        ),
        (
            "told again",
            stopping(f"except BaseException:\n    {TOLD}            raise"),
            {},
            "after it had raised",
        ),
        ("a thread", stopping(LEFT_RUNNING), {}, "left running: thread at work"),
        (
            "a process",
            stopping(
                "except BaseException:\n            import subprocess\n"
                "            Stranger.left = subprocess.Popen(['sleep', '9'])\n"
                "            raise"
            ),
            {},
            "left running: process",
        ),
        (
            "swallowed by `refine`",
            instead(
                REFINE,
                f"try:\n            {REFINE}\n        except Exception: return request.start",
            ),
            {"method": "refine"},
            "`refine` swallowed Cancelled",
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
                "except KeyboardInterrupt:\n            import signal\n"
                "            signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                "            raise"
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
        (
            "a file of `refine`",
            refining("np.save('debug.npy', made.object); return made"),
            {},
            "left in the working folder: debug.npy",
        ),
    ],
    "logs_change_no_result": [
        (
            "no folder yet",
            first(TRAIN, "if request.log_dir: np.save(request.log_dir / 'a.npy', scan.positions)"),
            {},
            "No such file",
        ),
        (
            "another model",
            instead("1 + options.start_noise", "1 + bool(request.log_dir) + options.start_noise"),
            {},
            "with a folder for logs another model",
        ),
        (
            "elsewhere",
            first(TRAIN, "if request.log_dir: np.save('a.npy', scan.positions)"),
            {},
            "left beside the folder for logs: empty/a.npy",
        ),
    ],
    "refine_improves_on_its_start": [
        ("no reconstruction", refining("return made.object"), {}, "a `ndarray` from `refine`"),
        ("does nothing", refining("return start"), {}, "explained no better than before"),
        (
            "axes swapped",
            instead(CORNERS, f"({CORNERS})[:, ::-1]"),
            {},
            "explained no better than before",
        ),
        ("elsewhere", refining("return replace(made, origin=(0, 0))"), {}, "do not fit|no better"),
        (
            "probe of unit energy",
            refining("return replace(made, probe=made.probe / np.linalg.norm(made.probe))"),
            {},
            "explained no better than before",
        ),
    ],
    "refine_keeps_what_is_right": [
        (
            "starts anew",
            refining("return iterate(request, replace(start, object=start.object * 0 + 0.4))"),
            {},
            "the truth is not gone on from",
        ),
        (
            "starts anew, for long",
            refining("return iterate(request, replace(start, object=start.object * 0 + 0.4))"),
            {"options": TrainingOptions(epochs=40)},
            "another start makes no difference",
        ),
    ],
    "refine_takes_over": [
        (
            "positions of the scan",
            refining("return replace(made, positions=request.scan.positions)"),
            {"part": "positions"},
            "do not fit|no better than before",
        ),
        (
            "frame of its own",
            refining(
                "return replace(made, origin=(0, 0), positions=made.positions - start.origin)"
            ),
            {"part": "positions"},
            "not those of the start",
        ),
        (
            "probe of the scan",
            refining("return iterate(request, replace(start, probe=request.scan.probe))"),
            {"part": "probe"},
            "no better than before",
        ),
    ],
    "refine_leaves_its_start_as_it_was": [
        (
            f"{name} in place",
            refining(
                f"if start.{name}.flags.writeable: start.{name}[:] += 0.01\n        return made"
            ),
            {},
            f"changed the {name} of its start",
        )
        for name in ("object", "probe", "positions")
    ],
    "refine_gives_the_same_bytes": [
        (
            "random",
            refining("return replace(made, object=made.object * (1 + 1e-2 * np.random.rand()))"),
            {},
            "the same start and scan gave another object",
        ),
    ],
    "refine_follows_a_shift": [
        (
            "positions of its own",
            refining(
                "return replace(made, origin=(0, 0), positions=made.positions - start.origin)"
            ),
            {},
            "positions given back did not shift",
        ),
        (
            "another object elsewhere",
            refining("return replace(made, object=made.object + 1e-3 * start.origin[0])"),
            {},
            "shifted scan and start change the object",
        ),
    ],
    "refine_takes_any_canvas": [
        (
            "mean of all",
            refining("return replace(made, object=made.object + 0.01 * start.object.mean())"),
            {},
            "pixels beside the light change the object",
        ),
    ],
    "refine_takes_the_frames_in_any_order": [
        (
            "first frame counts",
            refining("return replace(made, object=made.object + 1e-3 * start.positions[0, 0])"),
            {},
            "frames in another order change the object",
        ),
        (
            "positions of its own",
            refining("return replace(made, positions=np.sort(made.positions, axis=0))"),
            {},
            "not in the order of the frames",
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
        ("refine", refining("1 / int(request.scan.diffraction.any())"), {}, "division by zero"),
    ],
    "too_few_frames_are_no_crash": [
        ("crash", first(TRAIN, "scan.positions[16]"), {}, "out of bounds"),
        ("refine", refining("made.positions[16]"), {}, "out of bounds"),
        ("no text", first(TRAIN, "if len(scan.positions) < 9: raise ScanError('')"), {}, "a text"),
    ],
    "frames_of_another_size_are_no_crash": [
        ("crash", first(INFER, "scan.diffraction.reshape(-1, 32, 32)[35]"), {}, "out of bounds"),
    ],
}
