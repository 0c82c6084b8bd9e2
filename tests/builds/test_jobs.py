"""Stages run as jobs of a scheduler, which is one of shell scripts here: nothing is lost, and
nothing done twice, whatever becomes of the run, of the job, or of the files."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from ptycho_tasks.builds.job_records import JOBS, LOG, OUTCOME, RECORD
from ptycho_tasks.builds.live import file_name
from ptycho_tasks.layout import LIVE
from ptycho_tasks.testing.project import DOIT, TIMEOUT_S
from started_commands import start_command

TINY_SCAN = """\
name: tiny
source:
  simulate: {size: 32, grid: 6, step: 4.0, jitter: 1.0, photons: 1e6, seed: 3}
fixture: {subset_size: 25}
backend: epie
training: {epochs: 5}
"""
JOB = "#!/bin/sh\ncd {root}\n{command}\n"
QUEUE = """\
#!/bin/sh
# Jobs are numbers; a file `hold` lets none begin.
mkdir -p queued
case $1 in
submit)
    id=$(($(ls queued | wc -l) + 1))
    touch queued/$id
    wait='while [ -e hold ] && [ ! -e queued/$1.gone ]; do sleep 0.05; done; [ -e queued/$1.gone ]'
    setsid sh -c "$wait || $2; touch queued/$id.end" job $id \\
        >/dev/null 2>&1 &
    echo "Your job $id has been submitted" ;;
poll) [ -e queued/$2 ] && [ ! -e queued/$2.end ] && [ ! -e queued/$2.gone ] || exit 1
    if [ -e hold ]; then echo Q; else echo R; fi ;;
cancel) touch queued/$2.gone ;;
esac
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setenv("PTYCHO_TASKS_ASK_S", "0.1")
    monkeypatch.setenv("PTYCHO_TASKS_LATE_S", "0.5")


@pytest.fixture
def queued(built_project):
    """A project whose scan is there and whose network is to be trained anew, by the queue."""
    execution = (
        "execution:\n  executor: queue\n  executor_options:\n"
        '    submit: "./queue submit {script}"\n'
        '    poll: "./queue poll {id}"\n'
        '    cancel: "./queue cancel {id}"\n'
    )
    text = TINY_SCAN.replace("epochs: 5", "epochs: 6")
    (built_project / "ptycho.yaml").write_text(text + execution)
    (built_project / "job.sh").write_text(JOB)
    (built_project / "queue").write_text(QUEUE)
    (built_project / "queue").chmod(0o755)
    yield built_project
    for job in [*built_project.glob("queued/*")]:  # one that did not begin is not to work any more
        job.with_suffix(".gone").touch()
    (built_project / "hold").unlink(missing_ok=True)


def only_job(root):
    (folder,) = [path.parent for path in (root / JOBS).glob(f"*/{RECORD}")]
    return folder


def count_submitted(root):
    return len([path for path in (root / "queued").iterdir() if not path.suffix])


def test_a_job_makes_what_the_run_would_have_made(queued, doit, write_project):
    done = doit(queued, "train")
    assert done.returncode == 0, done.stderr
    assert "submitted as job 1 of queue; asks for 4 GB, 60 min (estimated; " in done.stdout
    assert "bundle     runs/default/training/wts.h5.zip\n" in done.stdout
    assert doit(queued, "train").stdout.splitlines() == ["-- source", "-- fixture", "-- train"]
    made = (queued / "runs/default/training/wts.h5.zip").read_bytes()
    (queued / "ptycho.yaml").write_text(TINY_SCAN.replace("epochs: 5", "epochs: 6"))
    assert doit(queued, "-a", "train").returncode == 0
    assert (queued / "runs/default/training/wts.h5.zip").read_bytes() == made


def test_a_run_that_does_not_wait_leaves_its_job_to_the_next(queued, doit):
    (queued / "hold").touch()
    done = doit(queued, "--detach", "infer")
    assert done.returncode == 0
    assert "going on: train (job 1 of queue); run again to wait for them" in done.stdout
    again = doit(queued, "--detach", "infer")
    assert "found job 1 of queue, which makes it\n" in again.stdout
    assert count_submitted(queued) == 1
    (queued / "hold").unlink()
    waited = doit(queued, "train")
    assert waited.returncode == 0, waited.stderr
    assert count_submitted(queued) == 1


def test_a_job_that_is_not_waited_for_writes_how_it_goes(queued, doit):
    config = queued / "ptycho.yaml"
    config.write_text(config.read_text() + "  live: true\n")
    (queued / "hold").touch()
    doit(queued, "--detach", "train")
    script = queued / LIVE / file_name("train")
    assert '"state":"queued"' in script.read_text()
    (queued / "hold").unlink()
    deadline = time.monotonic() + TIMEOUT_S
    while '"state":"made"' not in (said := script.read_text()):
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    assert doit(queued, "train").returncode == 0


@pytest.mark.parametrize(
    ("number", "is_cancelled"), [(signal.SIGTERM, True), (signal.SIGHUP, False), (9, False)]
)
def test_only_who_stops_a_run_cancels_its_jobs(queued, number, is_cancelled):
    (queued / "hold").touch()
    with start_command(
        [*DOIT, "train"], cwd=queued, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        while "is pending" not in run.stdout.readline():
            assert run.poll() is None
        run.send_signal(number)
        said = run.communicate(timeout=TIMEOUT_S)[0]
    assert ("cancelled 1 job of queue" in said) is is_cancelled
    assert (queued / "queued/1.gone").exists() is is_cancelled


def test_a_job_that_dies_without_a_word_is_told_in_one_line(queued, doit):
    (queued / "job.sh").write_text(JOB.replace("{command}", "exit 3 # {command}"))
    done = doit(queued, "train")
    folder = only_job(queued).relative_to(queued)
    assert done.returncode == 1
    said = "ended before it said how and wrote nothing, as if its machine did not see this folder"
    assert done.stderr == f"error: train: job 1 of queue {said}; see {folder}\n"


def test_a_failed_stage_is_told_as_if_it_had_run_here(queued, doit):
    (queued / "backends/epie.py").write_text(
        (queued / "backends/epie.py")
        .read_text()
        .replace("def train(self, request):", "def train(self, request):\n        1 / 0\n")
    )
    done = doit(queued, "train")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: backend `epie` failed: ZeroDivisionError: division by zero; ")
    assert f"; its log is {only_job(queued).relative_to(queued) / LOG})" in line


def test_a_job_refuses_to_make_another_result(queued, doit, ours):
    (queued / "hold").touch()
    doit(queued, "--detach", "train")
    folder = only_job(queued)
    # Settings are those of the submission; code and files have to be.
    (queued / "ptycho.yaml").write_text("nonsense: 1\n")
    path = queued / "backends/epie.py"
    path.write_text(path.read_text() + "\nFURTHER = 1\n")
    assert ours(queued, "run-stage", folder.name)[0] == 2
    (line,) = (folder / LOG).read_text().splitlines()
    asked = "error: train: here it would make another result than was asked for: "
    assert line.startswith(f"{asked}backends/epie.py changed: sha256 ")
    assert line.endswith("; give both machines the same versions and files, then run `doit` again")
    assert json.loads((folder / OUTCOME).read_text())["exit_code"] == 2


def test_a_job_of_another_folder_is_refused(project, ours):
    status, _, said = ours(project, "run-stage", "0123456789abcdef")
    assert status == 2
    assert "there is no job here" in said


def test_prune_removes_jobs_that_ended_well(queued, doit, ours):
    (queued / "hold").touch()
    doit(queued, "--detach", "train")
    folder = only_job(queued)
    assert "job train" not in ours(queued, "prune", "--yes")[1]  # it is alive
    (queued / "hold").unlink()
    assert doit(queued, "train").returncode == 0
    assert "job train" not in ours(queued, "prune", "--older-than", "1h")[1]
    assert "job train" in ours(queued, "prune")[1]
    assert folder.exists()
    assert "removed 2" in ours(queued, "prune", "--yes")[1]  # and the first training
    assert not folder.exists()
    assert doit(queued, "train").stdout.splitlines() == ["-- source", "-- fixture", "-- train"]


FAKE = """\
from ptycho_tasks.executors import NoOptions, Status


class Fake:
    name, options_type = "fake", NoOptions

    def submit(self, job):
        return f"{job.name}-{job.resources.memory_gb:g}"

    def poll(self, ids, options):
        states = {"a": "memory", "b": "timeout", "c": "node", "d": "cancelled"}
        return {one: Status(states[one[6]]) for one in ids}

    def cancel(self, ids, options):
        raise AssertionError


executor = Fake()
"""


def test_each_end_of_a_job_has_its_line(built_project, doit):
    variants = ", ".join(f"{{name: {n}, training.epochs: {6 + i}}}" for i, n in enumerate("abcd"))
    (built_project / "ptycho.yaml").write_text(
        f"{TINY_SCAN}variants: [{variants}]\n"
        "execution:\n  executor: fake\n  resources:\n    all: {minutes: 5}\n"
        "    train: {memory_gb: 2}\n    train.epie: {memory_gb: 4}\n"
    )
    (built_project / "executors").mkdir()
    (built_project / "executors/fake.py").write_text(FAKE)
    done = doit(built_project, "-c", *(f"train:{name}" for name in "abcd"))
    assert done.returncode == 1
    lines = [line.rpartition("; see ")[0] for line in done.stderr.splitlines()]
    job = "error: train:{0}: job train:{0}-4 of fake "
    again = "run again, a training goes on from its checkpoint"
    assert lines == [
        job.format("a") + "ran out of memory (it had 4 GB): raise "
        "execution.resources.train.memory_gb",
        job.format("b") + "reached its time limit of 5 min: raise "
        f"execution.resources.train.minutes, or {again.replace(', a', ': a')}",
        job.format("c") + f"lost its machine: {again}",
        job.format("d") + "was cancelled: run again",
    ]


def use_fake(root, training="{epochs: 6}"):
    """A project of whose jobs the fake scheduler says that each took too much memory."""
    text = TINY_SCAN.replace("{epochs: 5}", training)
    (root / "ptycho.yaml").write_text(f"{text}execution: {{executor: fake}}\n")
    (root / "executors").mkdir(exist_ok=True)
    fake = FAKE.replace("states[one[6]]", '"memory"')
    (root / "executors/fake.py").write_text(fake)


def test_an_estimate_that_was_too_low_is_doubled(built_project, doit):
    use_fake(built_project)
    key = "execution.resources.train"
    for asked in (4, 8, 16):
        done = doit(built_project, "train")
        said = f"train: job train-{asked} of fake ran out of memory (it had {asked} GB), as "
        assert f"asks for {asked} GB, 60 min (estimated; {key} says otherwise)" in done.stdout
        assert said + f"estimated: run again for twice as much, or set {key}.memory_gb" in (
            done.stderr
        )


def test_an_estimate_is_of_what_was_recorded(built_project, doit):
    (path,) = (built_project / ".ptycho/store/train").glob("*/record.json")
    record = json.loads(path.read_text())
    assert record["pixels"] == 25 * 32**2
    # Of a scan a third as large, with half the epochs.
    record |= {"pixels": 25 * 32**2 // 3, "memory_bytes": 2e9, "seconds": 1800}
    path.chmod(0o644)
    path.write_text(json.dumps(record))
    use_fake(built_project, "{epochs: 10}")
    assert "asks for 13 GB, 361 min (estimated; " in doit(built_project, "train").stdout


def test_a_scheduler_that_takes_no_estimate_gets_none(built_project, doit):
    use_fake(built_project)
    path = built_project / "executors/fake.py"
    refuse = (
        "        if job.resources.memory_gb:\n"
        "            from ptycho_tasks.errors import PtychoTasksError\n"
        "            raise PtychoTasksError('Memory specification can not be satisfied')\n"
        "        return 'train'\n"
    )
    whole = path.read_text()
    path.write_text(whole.replace("        return f", refuse + "        return f"))
    done = doit(built_project, "train")
    assert "submitted as job train of fake\n" in done.stdout


@pytest.mark.parametrize(
    ("execution", "said"),
    [
        (
            "executor: slrm",
            "executor: unknown executor `slrm`; known here: dask, local, queue, ",
        ),
        ("resources: {train: {gpu: 1}}", "resources.train.gpu: unknown key; did you mean `gpus`?"),
        (
            "resources: {infer.epi: {}}",
            "resources.infer.epi: unknown backend `epi`; ",
        ),
        ("resources: {al: {gpus: 1}}", "resources.al: unknown key; known keys: all, train, "),
    ],
)
def test_a_wrong_setting_is_told_before_anything_runs(project, ours, execution, said):
    with (project / "ptycho.yaml").open("a") as config:
        config.write(f"execution: {{{execution}}}\n")
    status, _, error = ours(project, "why")
    assert status == 2
    assert f"execution.{said}" in error
