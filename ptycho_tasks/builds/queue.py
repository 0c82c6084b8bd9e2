"""The executor `queue`: any scheduler with commands to submit, poll and cancel (PBS, LSF, SGE)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, cast

from ptycho_tasks.errors import ConfigError, PtychoTasksError, one_line
from ptycho_tasks.executors import Job, Status
from ptycho_tasks.options import TEXT_PATTERN, Section, doc, limits
from ptycho_tasks.system.files import report_write_errors, write_atomic
from ptycho_tasks.system.processes import ask

_ID = re.compile(r"\d[\w.\[\]-]*")
_TIMEOUT_S = 120
Known = Literal["pending", "running", "ended", "memory", "timeout", "node", "cancelled"]
_ENDED = r"(?i)unknown job|finished|not found|not exist|invalid job"
_STATES = {
    "pending": r"\b(Q|H|W|qw|hqw|PEND|PSUSP|PENDING)\b",
    "running": r"\b(R|E|r|t|RUN|USUSP|SSUSP|RUNNING)\b",
}


class QueueOptions(Section, frozen=True, kw_only=True):
    """The commands of a scheduler, each a line for the shell."""

    template: Annotated[
        str,
        doc(
            "the file of the script that is submitted, in the project; {command} and others in it "
            "are filled in",
            min_length=1,
        ),
    ] = "job.sh"
    submit: Annotated[
        str,
        doc("submits {script}; the first number that it prints names the job", pattern="{script}"),
    ] = "qsub {script}"
    poll: Annotated[
        str,
        doc("prints the state of {id}, or nothing where it has ended", pattern="{id}"),
    ] = "qstat {id}"
    cancel: Annotated[str, doc("ends {id}", pattern="{id}")] = "qdel {id}"
    states: Annotated[
        dict[Known, Annotated[str, limits(pattern=TEXT_PATTERN)]],
        doc("state to a regular expression that finds it in what `poll` prints"),
    ] = {}  # noqa: RUF012 (msgspec copies it)

    def __post_init__(self) -> None:
        """Refuse what is no regular expression."""
        for state, pattern in self.states.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"states: {state}: no regular expression: {error}") from error


class Queue:
    """A scheduler by its commands."""

    name, options_type = "queue", QueueOptions

    def submit(self, job: Job) -> str:
        """Fill in the template and submit it."""
        options = cast("QueueOptions", job.options)
        script = job.folder / "job.sh"
        with report_write_errors(script):
            write_atomic(script, _fill_in(job.root / options.template, job).encode())
            script.chmod(0o755)
        command = options.submit.replace("{script}", shlex.quote(str(script)))
        done = ask(command, _TIMEOUT_S, job.root)
        found = _ID.search(done.stdout)
        if done.returncode or not found:
            said = one_line(" ".join(f"{done.stderr} {done.stdout}".split())) or "nothing"
            raise PtychoTasksError(f"cannot submit {job.name}: `{command}` said: {said[:300]}")
        return found[0]

    def poll(self, ids: Sequence[str], options: Section) -> Mapping[str, Status]:
        """Ask of each job."""
        asked = cast("QueueOptions", options)
        found = {one: self._ask(one, asked) for one in ids}
        return {one: status for one, status in found.items() if status is not None}

    def _ask(self, one: str, options: QueueOptions) -> Status | None:
        command = options.poll.replace("{id}", shlex.quote(one))
        done = ask(command, _TIMEOUT_S)
        for state, pattern in (options.states or _STATES).items():
            if not done.returncode and re.search(pattern, done.stdout):
                return Status(state)  # type: ignore[arg-type]
        # One that is not known is not one that nobody can be asked about.
        if done.stderr.strip() and not re.search(options.states.get("ended", _ENDED), done.stderr):
            said = one_line(" ".join(done.stderr.split()))
            raise PtychoTasksError(f"the scheduler does not answer: `{command}` said: {said[:300]}")
        return None

    def cancel(self, ids: Sequence[str], options: Section) -> None:
        """End jobs."""
        for one in ids:
            line = cast("QueueOptions", options).cancel.replace("{id}", shlex.quote(one))
            ask(line, _TIMEOUT_S)


def _fill_in(path: Path, job: Job) -> str:
    """The script of a job; braces around other words stay as they are, as the shell's.

    Raises:
        ConfigError: the template cannot be read, or runs no command.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"execution.executor_options.template: {path}: {why}") from error
    if "{command}" not in text:
        raise ConfigError(f"{path}: has no {{command}}, which stands for what the job runs")
    asked = job.resources
    values = {
        "command": shlex.join(job.command),
        "root": shlex.quote(str(job.root)),
        "name": re.sub(r"\W", "_", job.name),
        "output": str(job.folder / "scheduler.txt"),
        "partition": asked.partition,
        "account": asked.account,
        "gpus": asked.gpus,
        "cpus": asked.cpus or 1,
        "memory_gb": asked.memory_gb and f"{asked.memory_gb:g}",
        "minutes": asked.minutes,
        "hours": f"{asked.minutes // 60:02d}:{asked.minutes % 60:02d}:00",
        **asked.options,
    }

    def fill(found: re.Match[str]) -> str:
        if found[1] not in values:
            return found[0]
        value = values[found[1]]
        if value is None:
            raise ConfigError(
                f"{path}: asks for {found[0]}; say it for {job.name} under execution.resources"
            )
        return str(value)

    return re.sub(r"(?<!\$)\{(\w+)\}", fill, text)


executor = Queue()
