"""The page of what is being computed: what it reads, and that it never costs a run anything."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

from browser import find_browser, open_browser
from ptycho_tasks.builds import live
from ptycho_tasks.builds.live import LiveRun, LiveStage, file_name
from ptycho_tasks.errors import one_line
from ptycho_tasks.layout import JOBS_NAME, LIVE
from ptycho_tasks.report.live_page import open_live_page
from ptycho_tasks.system.lock import ProjectLock
from ptycho_tasks.testing.project import DOIT, OURS, TIMEOUT_S, run_command
from started_commands import start_command

HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202e\u05d0</script>"
SHOWING = """\
from epie import EPIE
from ptycho_tasks.backend import TrainedModel
from ptycho_tasks.builds import live
from ptycho_tasks.options import TrainingOptions

live.BEAT_S, live.LEAST_S, live.SHARE = 0.2, 0.0, 1.0


class Showing(EPIE):
    name, version, options_type = "showing", "1", TrainingOptions

    def train(self, request):
        import time
        import numpy as np

        scan, total = request.scan, request.options.epochs
        probe, image = scan.probe[0], np.ones((scan.size, scan.size), np.complex64)
        request.progress(0, total, {})
        for epoch in range(total):
            frame = scan.diffraction[epoch % scan.frame_count]
            wave = np.fft.fft2(probe * image, norm="ortho")
            error = np.fft.ifftshift(frame) * np.exp(1j * np.angle(wave)) - wave
            step = probe.conj() / np.abs(probe).max() ** 2  # a longer one diverges
            image = image + step * np.fft.ifft2(error, norm="ortho")
            request.progress(epoch + 1, total, {"loss": float(np.abs(error).mean())})
            request.show(lambda: image)
            time.sleep(0.05 if total > 99 else 0)
        return TrainedModel(models={})


backend = Showing()
"""


@pytest.fixture
def live_project(project: Path) -> Path:
    """A project whose training shows its object, with a page; nothing built yet."""
    (project / "backends/showing.py").write_text(SHOWING)
    config = (project / "ptycho.yaml").read_text().replace("backend: epie", "backend: showing")
    (project / "ptycho.yaml").write_text(config + "execution: {live: true}\n")
    return project


@pytest.fixture(autouse=True)
def _unwarned(monkeypatch):
    monkeypatch.setattr(live, "_warned", set())


def read_script(root: Path, name: str) -> dict:
    text = (root / LIVE / name).read_text()
    return json.loads(re.fullmatch(r"show\w+\((.*)\); *\n", text)[1])


def test_a_run_says_what_it_did_and_the_training_what_it_saw(live_project: Path) -> None:
    assert run_command(DOIT, cwd=live_project).returncode == 0
    told = read_script(live_project, "run.js")
    assert told["state"] == "finished"
    states = {task["name"]: task["state"] for task in told["tasks"]}
    assert states == dict.fromkeys(("source", "fixture", "train", "infer"), "made")
    training = read_script(live_project, file_name("train"))
    assert (training["done"], training["total"]) == (5, 5)
    assert [step for step, _ in training["curves"]["loss"]] == [1, 2, 3, 4, 5]
    assert training["pictures"]["rows"] == 32
    assert "png" in read_script(live_project, file_name("infer"))["pictures"]["phase"]


def test_workers_say_it_too(live_project: Path) -> None:
    done = run_command([*DOIT, "-n", "2"], cwd=live_project)
    assert done.returncode == 0, done.stderr
    assert read_script(live_project, "run.js")["counts"] == {"made": 4}
    assert read_script(live_project, file_name("train"))["done"] == 5


def test_the_setting_makes_nothing_stale_and_a_run_without_work_no_page(
    built_project: Path,
) -> None:
    config = built_project / "ptycho.yaml"
    config.write_text(config.read_text() + "execution: {live: true}\n")
    done = run_command([*DOIT, "dry-run"], cwd=built_project)
    assert done.stdout == "nothing would run: all is up to date\n"
    assert run_command(DOIT, cwd=built_project).returncode == 0
    assert not (built_project / "live.html").exists()


def test_without_the_setting_there_is_no_page(project: Path) -> None:
    assert run_command([*DOIT, "train"], cwd=project).returncode == 0
    assert not (project / "live.html").exists()
    assert not (project / LIVE).exists()


def test_a_command_without_a_project_writes_it_beside_the_bundle(
    live_project: Path, tmp_path: Path
) -> None:
    assert run_command([*DOIT, "source"], cwd=live_project).returncode == 0
    scan = live_project / "fixtures/tiny_source.npz"
    words = ["train", "--config", "ptycho.yaml", "--train-data-file", str(scan)]
    done = run_command([*OURS, *words, "--output-dir", str(tmp_path / "out")], cwd=live_project)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/live.html").is_file()
    assert read_script(tmp_path / "out", "run.js")["counts"] == {"made": 1}
    words = ["infer", "--model-path", str(tmp_path / "out"), "--test-data", str(scan), "--live"]
    done = run_command([*OURS, *words, "--output-dir", str(tmp_path / "image")], cwd=live_project)
    assert done.returncode == 0, done.stderr
    shown = read_script(tmp_path / "image", file_name("infer"))
    assert "png" in shown["pictures"]["phase"]


def test_a_command_shows_the_reconstruction_after_the_training(
    live_project: Path, tmp_path: Path
) -> None:
    assert run_command([*DOIT, "source"], cwd=live_project).returncode == 0
    scan = str(live_project / "fixtures/tiny_source.npz")
    words = ["train", "--config", "ptycho.yaml", "--train-data-file", scan]
    words += ["--test-data-file", scan, "--output-dir", str(tmp_path / "out")]
    done = run_command([*OURS, *words], cwd=live_project)
    assert done.returncode == 0, done.stderr
    assert read_script(tmp_path / "out", "run.js")["counts"] == {"made": 2}


def test_a_failure_is_on_the_page(live_project: Path) -> None:
    backend = live_project / "backends/showing.py"
    backend.write_text(SHOWING.replace("return TrainedModel", "raise ValueError('no luck')\n#"))
    assert run_command(DOIT, cwd=live_project).returncode == 1
    told = read_script(live_project, "run.js")
    assert told["state"] == "failed"
    assert told["counts"] == {"made": 2, "failed": 1, "not run": 1}
    (failed,) = (task for task in told["tasks"] if task["state"] == "failed")
    assert "no luck" in failed["text"]


def test_a_run_that_is_stopped_says_so(live_project: Path) -> None:
    config = live_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 100000"))
    with start_training(live_project) as run:
        run.send_signal(signal.SIGTERM)
        assert run.wait(TIMEOUT_S) == 143
    told = read_script(live_project, "run.js")
    assert told["state"] == "stopped"
    assert told["counts"] == {"stopped": 1, "made": 2}


@contextmanager
def start_training(root: Path):
    """A training that runs, and shows itself."""
    with start_command([*DOIT, "train"], cwd=root) as run:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not (root / LIVE / file_name("train")).exists():
                assert time.monotonic() < deadline
                assert run.poll() is None
                time.sleep(0.05)
            yield run
        finally:
            run.kill()


def test_a_picture_that_fails_costs_the_stage_nothing(live_project: Path) -> None:
    backend = live_project / "backends/showing.py"
    backend.write_text(SHOWING.replace("lambda: image", "lambda: 1 / 0"))
    assert run_command([*DOIT, "train"], cwd=live_project).returncode == 0
    pictures = read_script(live_project, file_name("train"))["pictures"]
    assert pictures == {"problem": "no picture: division by zero"}


def test_another_run_leaves_the_page_alone(live_project: Path, monkeypatch) -> None:
    monkeypatch.chdir(live_project)
    lock = ProjectLock()
    lock.acquire()
    try:
        done = run_command(DOIT, cwd=live_project)
    finally:
        lock.release()
    assert done.returncode != 0
    assert not (live_project / "live.html").exists()


@pytest.mark.parametrize("place", [".ptycho/live", "live.html"])
def test_what_cannot_be_written_is_one_line(live_project: Path, place: str) -> None:
    (live_project / ".ptycho").mkdir()
    (live_project / place).write_text("mine")
    done = run_command(DOIT, cwd=live_project)
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if "live.html" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning    live.html cannot be written: ")
    assert (live_project / place).read_text() == "mine"


def test_a_full_disk_is_one_line_for_many_beats(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(live, "BEAT_S", 0.01)
    run = LiveRun()
    open_live_page(run, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        run.begin(["train"])
        time.sleep(0.1)
        run.close("finished")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().out == (
        "warning    live.html cannot be written: File too large; the run goes on without it\n"
    )
    assert [path.name for path in (tmp_path / LIVE).iterdir()] == ["run.js"]


def test_pictures_take_a_hundredth_of_the_time(monkeypatch) -> None:
    now, made = [0.0], []
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])

    def make():
        made.append(now[0])
        now[0] += 0.5
        return np.ones((4, 4), np.complex64)

    stage = LiveStage("train")
    for _ in range(1000):
        stage.show(make)
        now[0] += 1.0
    assert len(made) * 0.5 <= 0.0125 * now[0]
    assert len(made) > 15


def test_long_curves_lose_every_second_point_and_no_number_breaks_one() -> None:
    stage = LiveStage("train")
    for step in range(1, 3001):
        stage.note(step, 3000, {"loss": float("nan") if step == 2999 else 1 / step})
    (curve,) = stage.describe()["curves"].values()
    assert len(curve) <= 400
    assert curve[-1] == (3000, 1 / 3000)
    json.dumps(stage.describe(), allow_nan=False)


def test_of_many_tasks_those_that_matter_are_listed(tmp_path) -> None:
    run = LiveRun()
    names = [f"infer:scan{number}" for number in range(1000)]
    run.begin(names)
    for name in names[:500]:
        run.begin_task(name)
        run.end_task(name)
    run.fail_task(names[0], "bad")
    run.begin_task(names[999])
    told = run.describe()
    assert told["counts"] == {"made": 499, "failed": 1, "waiting": 499, "running": 1}
    assert len(told["tasks"]) == 300
    listed = {task["state"] for task in told["tasks"]}
    assert {"failed", "running", "waiting"} == listed


def test_files_that_wait_are_listed_with_what_is_wrong() -> None:
    run = LiveRun()
    run.begin(["infer:a"])
    run.note_files(["raw/b.npz"], {"raw/c.npz": "two are\ncalled c"})
    told = run.describe()
    assert told["counts"] == {"left out": 1, "not whole yet": 1, "waiting": 1}
    assert [task["name"] for task in told["tasks"]] == ["raw/c.npz", "raw/b.npz", "infer:a"]
    assert told["tasks"][0]["text"] == one_line("two are\ncalled c")
    run.note_files([], {})
    assert run.describe()["counts"] == {"waiting": 1}


# ------------------------------------------------------------------------------------ in a browser

in_browser = pytest.mark.skipif(
    find_browser() is None, reason="there is no chromium here; apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def open_page(browser, folder: Path) -> None:
    browser.open("about:blank")  # the page before asks for nothing any more
    browser.console.clear()
    browser.requests.clear()
    browser.open((folder / "live.html").as_uri())


def check_quiet(browser, folder: Path) -> None:
    """Nothing was said, and nothing asked for but the page's own files."""
    assert browser.console == []
    asked = {address.partition("?")[0] for address in browser.requests}
    assert all(one.startswith((folder.as_uri(), "data:")) for one in asked), asked


def text_of(browser, selector: str) -> str:
    return browser.ask(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")


def wait_for_text(browser, selector: str, text: str) -> None:
    """Wait until an element shows a text: what is at work may be late with a sign of life, and the
    page says so until it comes."""
    found = f"document.querySelector({json.dumps(selector)})?.textContent"
    browser.wait(f"{found}?.includes({json.dumps(text)})")


@in_browser
def test_the_page_follows_a_training_and_says_that_it_was_killed(
    live_project: Path, browser
) -> None:
    config = live_project / "ptycho.yaml"
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 100000"))
    with start_training(live_project) as run:
        open_page(browser, live_project)
        browser.wait("document.querySelector('.work img')?.naturalWidth === 32")
        image = browser.ask("document.querySelector('.work img').src")
        line = text_of(browser, "#stages section > p")
        assert re.match(r"\d+ of 100000 · loss [\d.]+", line), line
        browser.wait(f"document.querySelector('.work img').src !== {json.dumps(image)}")
        browser.wait(
            f"document.querySelector('#stages section > p').textContent !== {json.dumps(line)}"
        )
        assert browser.ask("document.querySelectorAll('.chart path.curve').length") == 1
        wait_for_text(browser, "#state", "running")
        wait_for_text(browser, "#stages section > p", "left")
    # A page that was late may read a last sign of life after it missed one.
    browser.wait(
        "document.getElementById('state').textContent === 'no sign of life'"
        " && document.querySelector('#tasks tr:nth-child(1) .state').textContent === 'ran last'"
        " && document.getElementById('counts').textContent === '1 ran last, 2 made'"
        f" && document.getElementById('status').textContent.includes('process {run.pid} on ')"
    )
    # Who opens it later is told as well; a new run is alive again.
    open_page(browser, live_project)
    browser.wait("document.getElementById('state').textContent === 'no sign of life'")
    config.write_text(config.read_text().replace("epochs: 100000", "epochs: 3"))
    assert run_command([*DOIT, "train"], cwd=live_project).returncode == 0
    browser.wait("document.getElementById('state').textContent === 'finished'")
    check_quiet(browser, live_project)


@in_browser
def test_two_hundred_scans_with_hostile_texts(tmp_path: Path, browser, monkeypatch) -> None:
    monkeypatch.setattr(live, "BEAT_S", 0.1)
    folder = tmp_path / HOSTILE.replace("/", "_")
    folder.mkdir()
    run = LiveRun()
    run.begin(["train", *(f"infer:{HOSTILE}{number}" for number in range(200))])
    run.begin_task("train")
    run.end_task("train")
    run.fail_task(f"infer:{HOSTILE}0", HOSTILE)
    open_live_page(run, folder)
    try:
        open_page(browser, folder)
        browser.wait("document.querySelectorAll('#tasks tr').length === 201")
        wait_for_text(browser, "#counts", "1 failed, 199 waiting, 1 made")
        assert text_of(browser, "h1 bdi") == folder.name
        assert text_of(browser, "#tasks tr:nth-child(1) .problem") == one_line(HOSTILE)
        assert browser.ask("document.querySelectorAll('body img').length") == 0
        run.note(f"watching {HOSTILE}")
        browser.wait("document.getElementById('status').textContent.startsWith('watching <img')")
    finally:
        run.close("stopped")
    browser.wait("document.getElementById('state').textContent === 'stopped'")
    assert text_of(browser, "#counts") == "1 failed, 1 made, 199 not run"
    assert re.search(r", at .*\d.* [A-Z]{3,4}[-+:\d]*\.$", text_of(browser, "#status"))  # its zone
    check_quiet(browser, folder)


@in_browser
def test_jobs_that_go_on_after_the_run_are_followed(tmp_path: Path, browser, monkeypatch) -> None:
    monkeypatch.setattr(live, "BEAT_S", 0.1)
    run = LiveRun()
    open_live_page(run, tmp_path)
    run.begin(["train", "infer"])
    for name in ("train", "infer"):
        run.begin_task(name)
        run.leave_task(name, "job 7 of slurm")
    run.close("finished")
    open_page(browser, tmp_path)
    browser.wait("document.getElementById('state').textContent === 'jobs go on'")
    assert "2 jobs go on. What is queued was so when the run" in text_of(browser, "#status")
    assert text_of(browser, "#tasks tr:nth-child(1)").startswith("trainjob 7 of slurmqueued")
    stage = LiveStage("train")
    path = tmp_path / LIVE / file_name("train")
    job = live.LiveFile(path, "showStage", stage.describe)
    stage.note(2, None, {})
    browser.wait("document.querySelector('#stages section > p')?.textContent === '2 steps'")
    assert browser.ask("document.querySelector('progress').hasAttribute('value')") is False
    stage.note(3, 5, {"loss": 0.8, "val_loss": 0.001})
    browser.wait("document.querySelector('#stages section > p')?.textContent.startsWith('3 of 5')")
    # Values that are far apart are no curves on one axis.
    assert browser.ask("document.querySelectorAll('.chart svg').length") == 2
    job.close()
    live.end_job(tmp_path, "train", None)
    live.end_job(tmp_path, "infer", HOSTILE)
    browser.wait("document.getElementById('state').textContent === 'finished'")
    assert "Its jobs have ended" in text_of(browser, "#status")
    assert one_line(HOSTILE) in text_of(browser, "#tasks tr:nth-child(2) .problem")
    check_quiet(browser, tmp_path)


@in_browser
def test_a_job_that_was_killed_is_said_to_be_silent(tmp_path: Path, browser, monkeypatch) -> None:
    monkeypatch.setattr(live, "BEAT_S", 0.1)
    run = LiveRun()
    open_live_page(run, tmp_path)
    run.begin_task("train")
    run.leave_task("train", "job 7")
    run.close("finished")
    path = tmp_path / LIVE / file_name("train")
    live.write_script(path, "showStage", LiveStage("train").describe(), 1)
    open_page(browser, tmp_path)
    browser.wait("document.querySelector('#tasks .state')?.textContent === 'no sign of life'")


@in_browser
def test_a_job_is_followed_after_the_run_that_waits_for_it_was_killed(
    tmp_path: Path, browser, monkeypatch
) -> None:
    monkeypatch.setattr(live, "BEAT_S", 0.1)
    run = LiveRun()
    open_live_page(run, tmp_path)
    (tmp_path / JOBS_NAME).mkdir()
    run.begin_task("train")
    job = live.LiveFile(
        tmp_path / LIVE / file_name("train"), "showStage", LiveStage("train").describe
    )
    killed = deepcopy(run.describe())
    run.close("finished")
    live.write_script(tmp_path / LIVE / "run.js", "showRun", killed, 1)
    text = (tmp_path / LIVE / "run.js").read_text()
    (tmp_path / LIVE / "run.js").write_text(re.sub(r'"time":[\d.]+', '"time":0', text))
    open_page(browser, tmp_path)
    browser.wait("document.getElementById('state').textContent === 'no sign of life'")
    browser.wait("document.querySelector('#tasks .state')?.textContent === 'running'")
    assert "Its jobs may go on: run doit again, to find them." in text_of(browser, "#status")
    job.close()


@in_browser
def test_a_page_whose_project_is_gone_stays(tmp_path: Path, browser, monkeypatch) -> None:
    monkeypatch.setattr(live, "BEAT_S", 0.1)
    run = LiveRun()
    open_live_page(run, tmp_path)
    run.close("finished")
    open_page(browser, tmp_path)
    browser.wait("document.getElementById('state').textContent === 'finished'")
    shutil.rmtree(tmp_path / LIVE)
    deadline = time.monotonic() + TIMEOUT_S
    while not browser.console:  # that there is no script any more
        assert time.monotonic() < deadline
        browser.ask("0")
        time.sleep(0.05)
    assert text_of(browser, "#state") == "finished"
