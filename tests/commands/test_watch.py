"""`ptycho-tasks watch`: scans are reconstructed as they come."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest

from ptycho_tasks.builds import planning, stages, watching
from ptycho_tasks.builds.warm_up import warm_up
from ptycho_tasks.builds.watching import WatchOptions, watch
from ptycho_tasks.errors import ConfigError, PtychoTasksError
from ptycho_tasks.layout import LIVE
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scans.arrivals import ENDED_S, PATIENCE_S, SETTLED_S, Arrivals, has_end
from ptycho_tasks.scans.npz import write_scan
from ptycho_tasks.system.cache import forget_all
from ptycho_tasks.system.lock import LOCK_NAME, ProjectLock, describe_holder
from ptycho_tasks.testing.project import DOIT, OURS, TIMEOUT_S, run_command
from started_commands import start_command

RESULT = r"\S+  \d+\.\d s  R-factor 0\.\d{3}  36 frames"
CONFIG = """\
name: beam
source: {files: [raw/*.npz]}
fixture: {subset_size: 25, scans: [first]}
backend: epie
training: {epochs: 3}
"""


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Scans that differ."""
    folder = tmp_path_factory.mktemp("scans")
    paths = [folder / f"{seed}.npz" for seed in range(3)]
    for seed, path in enumerate(paths):
        write_scan(path, simulate(SimulationOptions(size=32, grid=6, step=4.0, seed=seed)))
    return paths


@pytest.fixture
def beam(
    write_project: Callable[..., Path], scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A project, nothing built yet, with the scan that is learned from; the current folder."""
    root = write_project(CONFIG)
    (root / "raw").mkdir()
    drop(scans[0], root / "raw" / "first.npz")
    monkeypatch.chdir(root)
    yield root
    forget_all()


def drop(scan: Path, path: Path) -> None:
    """Have a scan lie there for a while."""
    shutil.copy(scan, path)
    make_old(path)


def make_old(path: Path) -> None:
    long_ago = time.time() - 10 * PATIENCE_S
    os.utime(path, (long_ago, long_ago))


def once(**options: object) -> watching.Tally:
    return watch(WatchOptions(once=True, **options))  # type: ignore[arg-type]


def list_results(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("runs/*/inference/*/metrics.json"))


def test_what_is_there_is_reconstructed_as_doit_would(
    beam: Path, scans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    drop(scans[1], beam / "raw" / "second.npz")
    tally = once()
    assert tally.reconstructed == {"first", "second"}
    lines = capsys.readouterr().out.splitlines()
    results = [line for line in lines if re.fullmatch(RESULT, line)]
    assert [line.split()[0] for line in results] == ["first", "second"]
    assert lines[-1].startswith("2 scans reconstructed, in ")
    done = run_command([*DOIT, "dry-run"], cwd=beam)
    assert done.stdout == "nothing would run: all is up to date\n"


def test_a_new_scan_costs_itself_alone(
    beam: Path, scans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    once()
    drop(scans[1], beam / "raw" / "second.npz")
    capsys.readouterr()
    assert once().reconstructed == {"second"}
    assert "train ..." not in capsys.readouterr().out


def test_a_scan_that_the_store_has_is_told(
    beam: Path, scans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    once()
    drop(scans[0], beam / "raw" / "again.npz")
    capsys.readouterr()
    once()
    said = r"again  from the store, made (just now|\d+ minutes? ago)\n"
    assert re.match(said, capsys.readouterr().out)


def test_a_bad_scan_is_a_line_and_the_others_go_on(
    beam: Path, scans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (beam / "raw" / "bad.npz").write_text("no scan")
    make_old(beam / "raw" / "bad.npz")
    drop(scans[1], beam / "raw" / "second.npz")
    tally = once()
    assert (tally.reconstructed, tally.failed) == ({"first", "second"}, {"bad"})
    out, err = capsys.readouterr()
    told = [line for line in (out + err).splitlines() if "bad.npz" in line]
    assert len(told) == 1
    assert told[0].startswith("bad  failed: ")


def test_once_ends_with_1_where_a_scan_failed(beam: Path) -> None:
    (beam / "raw" / "bad.npz").write_text("no scan")
    make_old(beam / "raw" / "bad.npz")
    done = run_command([*OURS, "watch", "--once"], cwd=beam)
    assert done.returncode == 1
    assert "1 scan reconstructed, 1 failed" in done.stdout


def test_a_page_shows_every_scan(beam: Path, scans: list[Path]) -> None:
    drop(scans[1], beam / "raw" / "second.npz")
    (beam / "raw" / "bad.npz").write_text("no scan")
    make_old(beam / "raw" / "bad.npz")
    assert run_command([*OURS, "watch", "--once", "--page"], cwd=beam).returncode == 1
    assert "<title>ptycho-tasks live</title>" in (beam / "live.html").read_text()
    text = (beam / LIVE / "run.js").read_text()
    told = json.loads(text.rstrip()[len("showRun(") : -len(");")])
    assert told["state"] == "finished"
    states = {task["name"]: task["state"] for task in told["tasks"]}
    assert [states[f"infer:{name}"] for name in ("first", "second")] == ["made", "made"]
    assert "failed" in (states["source:bad"], states["infer:bad"])


def test_a_page_shows_the_files_that_are_not_taken(beam: Path, scans: list[Path]) -> None:
    (beam / "ptycho.yaml").write_text(CONFIG.replace("raw/*.npz", "raw/*.npz, raw/x/*.npz"))
    (beam / "raw" / "x").mkdir()
    for path in ("raw/a.npz", "raw/x/a.npz"):
        drop(scans[1], beam / path)
    (beam / "raw" / "half.npz").write_bytes(scans[2].read_bytes()[:-100])
    options = WatchOptions(once=True)
    watch(options)
    files = {task["name"]: task["state"] for task in options.live.describe()["tasks"]}
    assert files["raw/a.npz"] == files["raw/x/a.npz"] == "left out"
    assert files["raw/half.npz"] == "not whole yet"


def test_only_the_wanted_variant(beam: Path) -> None:
    config = CONFIG + "matrix: {training.seed: [1, 2]}\n"
    (beam / "ptycho.yaml").write_text(config)
    once(variant="seed2")
    assert [path.name for path in beam.glob("runs/*")] == ["seed2"]
    with pytest.raises(ConfigError, match="no variant is called `seed3`; there is `seed1`"):
        once(variant="seed3")


def test_a_refinement_is_the_result(beam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (beam / "ptycho.yaml").write_text(CONFIG + "refine: {backend: further}\n")
    once()
    assert len(re.findall(f"(?m)^{RESULT}$", capsys.readouterr().out)) == 1
    assert (beam / "runs/default/refinement/first/metrics.json").is_file()


@pytest.mark.parametrize(
    ("config", "problem"),
    {
        "no glob": (
            CONFIG.replace("raw/*.npz", "raw/first.npz"),
            "ptycho.yaml:2: no scan can come: `source.files` lists no glob",
        ),
        "no scan yet": (CONFIG.replace("raw/*.npz", "raw/*.cxi"), "matches no file"),
        "wrong key": (CONFIG.replace("subset_size", "subset_siz"), "did you mean `subset_size`"),
    }.values(),
)
def test_what_is_refused_at_the_start(beam: Path, config: str, problem: str) -> None:
    (beam / "ptycho.yaml").write_text(config)
    with pytest.raises(ConfigError, match=problem):
        once()
    assert not (beam / "runs").exists()


def test_a_stale_training_may_be_refused(beam: Path) -> None:
    with pytest.raises(ConfigError, match=r"train is stale \(it was not built yet\)"):
        once(may_train=False)
    assert not (beam / "runs").exists()
    once()
    assert once(may_train=False).failed == set()


def test_a_failed_training_ends_the_start(beam: Path) -> None:
    (beam / "raw" / "first.npz").write_text("no scan")
    make_old(beam / "raw" / "first.npz")
    with pytest.raises(PtychoTasksError, match="neither NPZ"):
        once()


# ------------------------------------------------------------------------------- from look to look


@pytest.fixture
def watcher(beam: Path) -> watching._Watcher:
    """One that has built what was stale."""
    watcher = watching._Watcher(WatchOptions())
    watcher.look()
    return watcher


def test_a_mistake_in_ptycho_yaml_is_told_once_and_scans_wait(
    beam: Path,
    scans: list[Path],
    watcher: watching._Watcher,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = beam / "ptycho.yaml"
    capsys.readouterr()
    config.write_text(CONFIG.replace("epochs", "epoch"))
    drop(scans[1], beam / "raw" / "second.npz")
    for _ in range(3):
        watcher.look()
    out = capsys.readouterr().out
    assert out.startswith(
        "error: ptycho.yaml:5: training.epoch: backend `epie` does not know this key"
    )
    assert out.endswith("; scans wait until that is mended\n")
    assert out.count("\n") == 1
    config.write_text(CONFIG.replace("epochs: 3", "epochs: 4"))
    watcher.look()
    assert watcher.tally.reconstructed == {"first", "second"}
    assert "train ..." in capsys.readouterr().out


def test_a_training_that_fails_later_is_tried_again_when_something_is_new(
    beam: Path,
    scans: list[Path],
    watcher: watching._Watcher,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (beam / "raw" / "first.npz").write_text("no scan")
    make_old(beam / "raw" / "first.npz")
    drop(scans[1], beam / "raw" / "second.npz")
    capsys.readouterr()
    for _ in range(3):
        watcher.look()
    out = capsys.readouterr().out
    assert out.count("neither NPZ") == 2  # of the scan, and of what waits for it
    assert "scans wait until that is mended" in out
    drop(scans[2], beam / "raw" / "first.npz")
    watcher.look()
    assert watcher.tally.failed == set()
    assert list_results(beam) == ["first", "second"]


def test_a_training_by_doit_lets_scans_go_on(
    beam: Path, scans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    once()
    watcher = watching._Watcher(WatchOptions(may_train=False))
    watcher.look()
    (beam / "ptycho.yaml").write_text(CONFIG.replace("epochs: 3", "epochs: 4"))
    drop(scans[1], beam / "raw" / "second.npz")
    capsys.readouterr()
    for _ in range(2):
        watcher.look()
    assert capsys.readouterr().out.count("train is stale (training.epochs 3 -> 4)") == 1
    assert run_command([*DOIT, "train"], cwd=beam).returncode == 0
    watcher.look()
    assert watcher.tally.reconstructed == {"second"}


def test_a_scan_that_was_removed_keeps_its_results(
    beam: Path,
    scans: list[Path],
    watcher: watching._Watcher,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drop(scans[1], beam / "raw" / "second.npz")
    watcher.look()
    (beam / "raw" / "second.npz").unlink()
    capsys.readouterr()
    for _ in range(2):
        watcher.look()
    assert capsys.readouterr().out == "second  was removed; its results stay\n"
    assert list_results(beam) == ["first", "second"]


def test_a_bad_scan_is_tried_again_when_its_file_changes(
    beam: Path,
    scans: list[Path],
    watcher: watching._Watcher,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = beam / "raw" / "second.npz"
    path.write_text("no scan")
    make_old(path)
    for _ in range(3):
        watcher.look()
    assert capsys.readouterr().out.count("second  failed: ") == 1
    drop(scans[1], path)
    watcher.look()
    assert (watcher.tally.reconstructed, watcher.tally.failed) == ({"first", "second"}, set())


def test_another_run_is_waited_for(
    beam: Path,
    scans: list[Path],
    watcher: watching._Watcher,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lock = ProjectLock()
    lock.acquire()
    drop(scans[1], beam / "raw" / "second.npz")
    capsys.readouterr()
    for _ in range(3):
        watcher.look()
    assert capsys.readouterr().out.count("another run is at work") == 1
    lock.release()
    watcher.look()
    assert watcher.tally.reconstructed == {"first", "second"}


def test_code_that_was_changed_meanwhile_ends_the_watch(
    beam: Path, scans: list[Path], watcher: watching._Watcher
) -> None:
    backend = beam / "backends" / "epie.py"
    backend.write_text(backend.read_text() + "\nnew = 1\n")
    drop(scans[1], beam / "raw" / "second.npz")
    with pytest.raises(PtychoTasksError, match=r"epie\.py: was changed since the watch began"):
        watcher.look()


def test_warming_up_reconstructs_a_few_frames_and_leaves_nothing(
    beam: Path,
    watcher: watching._Watcher,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = []
    infer = stages.infer
    monkeypatch.setattr(stages, "infer", lambda payload: results.append(infer(payload)))
    before = {path: path.stat().st_mtime_ns for path in beam.rglob("*")}
    capsys.readouterr()
    forget_all()
    warm_up()
    assert [metrics["frames"] for metrics in results] == [16]
    assert {path: path.stat().st_mtime_ns for path in beam.rglob("*")} == before
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------- arrivals


class Clock:
    """A clock that stands."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_file_has_come_once_it_has_settled(tmp_path: Path, scans: list[Path]) -> None:
    clock, path = Clock(), tmp_path / "scan.npz"
    arrivals = Arrivals(clock, wall_clock=lambda: 0.0)  # a server's clock that is ahead
    assert arrivals.find(path) is None
    content = scans[0].read_bytes()
    for length in (100, len(content)):
        path.write_bytes(content[:length])
        assert arrivals.find(path) is None
        clock.now += 2 * SETTLED_S
    found = arrivals.find(path)
    assert found is not None
    assert found.since == clock.now - 2 * SETTLED_S


@pytest.mark.parametrize(("ends", "needed_s"), [(True, ENDED_S), (False, SETTLED_S)])
def test_a_file_with_an_end_settles_sooner(
    tmp_path: Path, scans: list[Path], ends: bool, needed_s: float
) -> None:
    clock, path = Clock(), tmp_path / "scan"
    arrivals = Arrivals(clock, wall_clock=lambda: 0.0)
    path.write_bytes(scans[0].read_bytes() if ends else b"1 2 3")
    assert arrivals.find(path) is None
    clock.now += 0.99 * needed_s
    assert arrivals.find(path) is None
    clock.now += 0.02 * needed_s
    assert arrivals.find(path) is not None


def test_half_a_file_is_waited_for_and_then_given_up(tmp_path: Path, scans: list[Path]) -> None:
    clock, path = Clock(), tmp_path / "scan.npz"
    arrivals = Arrivals(clock)
    path.write_bytes(scans[0].read_bytes()[:-100])
    assert arrivals.find(path) is None
    clock.now += PATIENCE_S / 2
    assert arrivals.find(path) is None
    clock.now += PATIENCE_S
    assert arrivals.find(path) is not None


@pytest.mark.parametrize("content", [b"", bytes(4096), b"PK\x03\x04 and so on"])
def test_what_is_not_complete(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan").write_bytes(content)
    assert has_end(tmp_path / "scan") is False


def test_what_is_no_scan_is_for_the_reader_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "scan").write_bytes(b"no scan at all")
    assert has_end(tmp_path / "scan") is None
    assert has_end(tmp_path / "none") is None


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}])
def test_hdf5_has_an_end_once_it_is_closed(tmp_path: Path, options: dict[str, str]) -> None:
    path, copy = tmp_path / "scan.h5", tmp_path / "copy.h5"
    with h5py.File(path, "w", **options) as file:
        frames = file.create_dataset(
            "frames", (1, 8, 8), "f4", maxshape=(None, 8, 8), chunks=(1, 8, 8)
        )
        if options:
            file.swmr_mode = True
        frames.resize(2, axis=0)
        frames.flush()
        # As another process sees it: HDF5 lets a process open a file twice.
        looked = subprocess.run(
            [*OURS[:1], "-c", _LOOK, str(path)], check=True, capture_output=True, text=True
        )
        assert looked.stdout == "False\n"
    assert has_end(path)
    copy.write_bytes(path.read_bytes()[:-200])
    assert has_end(copy) is False


_LOOK = """\
import sys
from pathlib import Path
from ptycho_tasks.scans.arrivals import has_end
print(has_end(Path(sys.argv[1])))
"""


# ----------------------------------------------------------------------------------- as a beamline


def test_a_beamline(beam: Path, scans: list[Path]) -> None:
    process = start_command(
        [*OURS, "watch", "--poll"], cwd=beam, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = process.stdout

    def read_until(begin: str) -> str:
        line = next(line for line in output if line.startswith(begin))
        return line.rstrip()

    try:
        assert read_until("watching ") == "watching raw; Ctrl-C ends"
        content = scans[1].read_bytes()
        with (beam / "raw" / "second.npz").open("wb") as file:
            file.write(content[:2000])
            file.flush()
            (beam / "raw" / "bad.npz").write_text("no scan")
            assert "neither NPZ" in read_until("bad  failed: ")
            file.write(content[2000:])
        assert next(line for line in output if re.match(RESULT, line)).startswith("second")
        while describe_holder(beam / LOCK_NAME):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert read_until("2 scans reconstructed, 1 failed, in ")
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()
        output.close()
    assert list_results(beam) == ["first", "second"]


def test_a_scan_that_comes_while_the_tasks_are_planned_is_not_missed(
    beam: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    once()
    make_plan = planning.make_plan

    def plan_slowly(*arguments: object, **options: object) -> planning.Plan:
        plan = make_plan(*arguments, **options)  # type: ignore[arg-type]
        if not (beam / "raw" / "third.npz").exists():
            drop(scans[2], beam / "raw" / "third.npz")
            time.sleep(0.15)
        return plan

    drop(scans[1], beam / "raw" / "second.npz")
    with monkeypatch.context() as patch:
        patch.setattr(planning, "make_plan", plan_slowly)
        assert once().reconstructed == {"second"}
    assert once().reconstructed == {"third"}


def test_files_of_one_name_cost_themselves_alone(
    beam: Path, scans: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.replace("raw/*.npz", "raw/*.npz, raw/*/*.npz, raw/f*.npz")
    (beam / "ptycho.yaml").write_text(config)
    for name in ("x", "y"):
        (beam / "raw" / name).mkdir()
    drop(scans[1], beam / "raw" / "x" / "a.npz")
    assert once().reconstructed == {"first", "a"}
    drop(scans[2], beam / "raw" / "y" / "a.npz")
    drop(scans[2], beam / "raw" / "second.npz")
    capsys.readouterr()
    tally = once()
    assert (tally.reconstructed, tally.failed) == ({"second"}, set())
    told = [line for line in capsys.readouterr().out.splitlines() if "a.npz" in line]
    assert told == [
        "left out: ptycho.yaml:2: source.files[1]: 'raw/x/a.npz' and 'raw/y/a.npz' would both be "
        "called `a`; rename one, or name them, as in `files: {first: PATH, second: PATH}`"
    ]
    (beam / "raw" / "y" / "a.npz").rename(beam / "raw" / "y" / "b.npz")
    once()
    assert list_results(beam) == ["a", "b", "first", "second"]


def test_what_is_learned_from_is_no_guess(beam: Path, scans: list[Path]) -> None:
    (beam / "ptycho.yaml").write_text(CONFIG.replace("raw/*.npz", "raw/*.npz, raw/*/*.npz"))
    (beam / "raw" / "x").mkdir()
    drop(scans[1], beam / "raw" / "x" / "first.npz")
    drop(scans[2], beam / "raw" / "second.npz")
    with pytest.raises(ConfigError, match="both be called `first`"):
        once()
