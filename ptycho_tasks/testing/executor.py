"""A conformance suite for executors. An executor's tests subclass it:

    class TestMine(ExecutorConformance):
        executor = mine.executor

pytest then collects every check. What a check asks for stands in its docstring. The checks submit
short commands, in a folder of their own, to whatever the settings name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ptycho_tasks.config.job_settings import read_executor_options
from ptycho_tasks.errors import PtychoTasksError
from ptycho_tasks.executors import Executor, ExecutorEntry, Job, Status
from ptycho_tasks.layout import JOBS_NAME
from ptycho_tasks.options import Resources, Section
from ptycho_tasks.testing.checks import check_one_line

_LOOK_S = 0.1
_WORDS = "two words, 'quoted' \"twice\" $HOME; {name} `x` ü"


class ExecutorConformance:
    """Checks that an executor keeps what `ptycho_tasks.executors` says of executors."""

    executor: ClassVar[Executor]
    options: ClassVar[dict[str, Any]] = {}
    """`execution.executor_options`."""
    resources: ClassVar[Resources] = Resources(memory_gb=0.2, cpus=1)
    """What each job asks for."""
    refused: ClassVar[Resources | None] = None
    """What the scheduler refuses to give; None where it takes whatever is asked."""
    patience_s: ClassVar[float] = 300.0
    """How long a short job may take from its submission to its end."""
    many: ClassVar[int] = 5
    """Jobs that are submitted at once."""

    @pytest.fixture(autouse=True)
    def _project(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What an executor does, it does in the project's folder."""
        self.root = tmp_path / "a project"
        self.root.mkdir()
        monkeypatch.chdir(self.root)
        self.prepare(self.root)

    def prepare(self, root: Path) -> None:
        """Put into a project what the options name."""

    def test_can_be_loaded(self) -> None:
        """It has what an executor must have, and its options can be read."""
        name = getattr(self.executor, "name", "")
        ExecutorEntry(name, "as given to the suite", lambda: self.executor).load()
        self._options()

    def test_runs_the_command_as_it_is(self) -> None:
        """The command runs in the project's folder, and gets its words as they are."""
        code = "import pathlib, sys; pathlib.Path('said').write_text(sys.argv[1], 'utf-8')"
        self._wait_for_end(self._submit("train", code, _WORDS))
        self._wait(lambda: _says_something(self.root / "said"), "what the command writes")
        assert (self.root / "said").read_text("utf-8") == _WORDS, "the words are others"

    def test_a_job_is_alive_until_it_has_ended(self) -> None:
        """A job that was submitted is pending or runs; once it has ended, it is so no more."""
        one = self._submit_waiting("train:wide")
        assert self._is_alive(one), "a job that was just submitted is not known"
        self._wait(lambda: (self.root / "begun").exists(), "that the job begins")
        assert self._is_alive(one), "a job that runs is not known"
        (self.root / "go").touch()
        self._wait_for_end(one)

    def test_a_failed_job_has_ended(self) -> None:
        """A command that fails is no error of the executor: its job has ended."""
        one = self._submit("infer", "raise SystemExit(3)")
        status = self._wait_for_end(one)
        assert status is None or status.state == "ended", f"it is called {status}"

    def test_a_cancelled_job_ends(self) -> None:
        """A job that runs ends when it is cancelled, with all that its command started; to cancel
        it again is no error."""
        one = self._submit_waiting("train")
        self._wait(lambda: (self.root / "begun").exists(), "that the job begins")
        self.executor.cancel([one], self._options())
        status = self._wait_for_end(one)
        assert status is None or status.state in ("ended", "cancelled"), f"it is called {status}"
        self.executor.cancel([one], self._options())
        # What it started may have a last moment after the scheduler has called the job ended.
        self._wait(lambda: not self._grows("begun"), "the end of what its command started")

    def test_unknown_jobs_are_left_out(self) -> None:
        """Of jobs that nobody knows, and of none, nothing is said, and nothing goes wrong."""
        one = self._submit("train", "pass")
        self._wait_for_end(one)
        unknown = f"{one}99999"
        answer = self.executor.poll([unknown], self._options())
        assert unknown not in answer or not answer[unknown].is_alive, f"it is {answer[unknown]}"
        assert not self.executor.poll([], self._options()), "something is said of no jobs"
        self.executor.cancel([unknown], self._options())
        self.executor.cancel([], self._options())

    def test_many_at_once(self) -> None:
        """Many jobs have names of their own, are asked about together, and each runs once."""
        code = "import pathlib, sys; pathlib.Path(sys.argv[1]).open('a').write('x')"
        names = [f"infer:{number}" for number in range(self.many)]
        ids = [self._submit(name, code, f"done-{n}") for n, name in enumerate(names)]
        assert len({*ids}) == self.many, "two jobs have one name"
        self._wait(lambda: not any(map(self._is_alive, ids)), "the end of all jobs")
        done = [self.root / f"done-{n}" for n in range(self.many)]
        self._wait(lambda: all(map(_says_something, done)), "what all jobs write")
        assert [path.read_text() for path in done] == ["x"] * self.many, "one ran twice"

    def test_jobs_that_are_submitted_together_stay_apart(self) -> None:
        """Of jobs that are given together each has its name, is known by its folder where the
        scheduler can be asked for that, is cancelled alone, and runs once."""
        if not hasattr(self.executor, "submit_all"):
            pytest.skip("the executor takes one job at a time")
        code = "import pathlib, sys, time\npath = pathlib.Path(sys.argv[1])\n"
        code += "path.open('a').write('x')\nwhile not pathlib.Path('go').exists():\n"
        code += "    time.sleep(0.05)\npath.open('a').write('y')"
        jobs = [self._make_job(f"infer:{n}", code, f"done-{n}") for n in range(3)]
        ids = self.executor.submit_all(jobs)
        assert len({*ids}) == len(jobs), "two jobs have one name"
        folders = [job.folder for job in jobs]
        if hasattr(self.executor, "recall"):
            known = self.executor.recall([*folders, self.root], self._options())
            assert known == dict(zip(folders, ids, strict=True)), "they are not known again"
        done = [self.root / f"done-{n}" for n in range(3)]
        self._wait(lambda: all(map(_says_something, done)), "that all jobs begin")
        self.executor.cancel([ids[1]], self._options())
        self._wait_for_end(ids[1])
        assert self._is_alive(ids[0]), "another than the one that was cancelled has ended"
        assert self._is_alive(ids[2]), "another than the one that was cancelled has ended"
        (self.root / "go").touch()
        self._wait(lambda: not any(map(self._is_alive, ids)), "the end of all jobs")
        assert [path.read_text() for path in done] == ["xy", "x", "xy"], "not each ran once"

    def test_what_is_refused_is_one_line(self) -> None:
        """What the scheduler does not take is an error of one line, and no job."""
        if self.refused is None:
            pytest.skip("the scheduler takes whatever is asked")
        with pytest.raises(PtychoTasksError) as caught:
            self._submit("train", "pass", resources=self.refused)
        check_one_line(caught.value)
        if hasattr(self.executor, "submit_all"):
            jobs = [self._make_job(f"train:{n}", "pass", resources=self.refused) for n in range(2)]
            answers = self.executor.submit_all(jobs)
            assert all(job.name in str(one) for job, one in zip(jobs, answers, strict=True))
            assert all(isinstance(one, PtychoTasksError) for one in answers), "one is not refused"

    def test_keeps_its_files_in_the_jobs_folder(self) -> None:
        """It leaves nothing in the project but in the job's folder, and beside that."""
        before = {*self.root.iterdir()}
        self._wait_for_end(self._submit("train", "print('said')"))
        left = {path.name for path in {*self.root.iterdir()} - before} - {".ptycho"}
        assert not left, f"it leaves {', '.join(sorted(left))} in the project"

    def _options(self) -> Section:
        return read_executor_options(self.executor, self.options)

    def _submit(self, name: str, code: str, *words: str, resources: Resources | None = None) -> str:
        return self.executor.submit(self._make_job(name, code, *words, resources=resources))

    def _make_job(
        self, name: str, code: str, *words: str, resources: Resources | None = None
    ) -> Job:
        number = len([*Path(JOBS_NAME).glob("*/")])
        folder = (self.root / JOBS_NAME / f"{number:016x}").absolute()
        folder.mkdir(parents=True)
        command = [sys.executable, "-c", code, *words]
        asked = resources or self.resources
        return Job(name, command, self.root, folder, asked, self._options())

    def _submit_waiting(self, name: str) -> str:
        """A job whose command has a child that writes until the file `go` is there."""
        write = "import pathlib, time\nwhile not pathlib.Path('go').exists():\n"
        write += "    pathlib.Path('begun').open('a').write('x')\n    time.sleep(0.05)\n"
        run = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {write!r}])"
        return self._submit(name, run)

    def _status(self, one: str) -> Status | None:
        return self.executor.poll([one], self._options()).get(one)

    def _is_alive(self, one: str) -> bool:
        status = self._status(one)
        return status is not None and status.is_alive

    def _wait_for_end(self, one: str) -> Status | None:
        self._wait(lambda: not self._is_alive(one), "the end of a job")
        return self._status(one)

    def _grows(self, name: str) -> bool:
        size = (self.root / name).stat().st_size
        time.sleep(5 * _LOOK_S)
        return (self.root / name).stat().st_size > size

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + self.patience_s
        while not condition():
            assert time.monotonic() < until, f"waited {self.patience_s:g} s for {what}"
            time.sleep(_LOOK_S)


def _says_something(path: Path) -> bool:
    """Whether what a job writes is there: it opens a file before it writes."""
    return path.exists() and path.stat().st_size > 0
