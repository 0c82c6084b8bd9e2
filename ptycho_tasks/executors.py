"""Executors: what hands stages to a scheduler as jobs, follows them, and cancels them.

One is a plugin, as backends are: an entry point of the group `ptycho_tasks.executors`, or a module
in the project's `executors/` that defines `executor`. None is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import Resources, Section
from ptycho_tasks.system.plugins import Plugin, PluginKind, import_failure, list_plugins
from ptycho_tasks.system.processes import Stopped, catch_hard_exits

KIND = PluginKind("executor", "ptycho_tasks.executors", "executors")
LOCAL = "local"
"""The executor that is none: stages run in the process of the run."""
State = Literal["pending", "running", "ended", "memory", "timeout", "node", "cancelled"]


class Status(NamedTuple):
    """How a job fares."""

    state: State
    """`ended` for a job that its scheduler knows no more, or that ended by itself, well or not;
    `memory`, `timeout` and `node` for one that ended since it took more memory or time than it had,
    or since its machine failed."""
    detail: str = ""
    """What the scheduler says besides, in a few words: why it waits, or where it runs."""

    @property
    def is_alive(self) -> bool:
        """Whether the job may still come to something by itself."""
        return self.state in ("pending", "running")


class Job(NamedTuple):
    """What is to run elsewhere: a command that leaves all that it makes in files."""

    name: str
    """Of the task, as `train:wide`."""
    command: Sequence[str]
    """Its words; it is run in `root`, and goes on where it was stopped if it is run again."""
    root: Path
    """The project's folder, which the other machine sees under the same path."""
    folder: Path
    """A folder of the job's own in it, where the executor may keep files too."""
    resources: Resources
    options: Section
    """The executor's own settings, of its `options_type`."""


class Executor(Protocol):
    """Hands jobs to a scheduler. What cannot be done raises a PtychoTasksError of one line.

    It may have more:

    - an attribute `has_limits` that is False: its jobs have no limits, and it is asked for no
      memory or time that nobody named;
    - `submit_all(jobs)`, which hands over several jobs whose resources and options are the same,
      and gives for each, in order, its name, or the PtychoTasksError that says why it is refused;
    - `recall(folders, options)`, for jobs of which only the folders are known, as who submitted
      them was killed before the answer came: the names of those that the scheduler has, by folder.
      It raises a PtychoTasksError where the scheduler does not answer.
    """

    @property
    def name(self) -> str:
        """What `execution.executor` calls it: the name of the entry point, or of the local file."""

    @property
    def options_type(self) -> type[Section]:
        """The type of `execution.executor_options`."""

    def submit(self, job: Job) -> str:
        """Hand over a job, and give the name that the scheduler has for it."""

    def poll(self, ids: Sequence[str], options: Section) -> Mapping[str, Status]:
        """How jobs fare; one that is left out is known no more. Several at once, as schedulers
        want to be asked seldom.

        Raises:
            PtychoTasksError: the scheduler does not answer; it is asked again later.
        """

    def cancel(self, ids: Sequence[str], options: Section) -> None:
        """End jobs; those that have ended are no error."""


class NoOptions(Section, frozen=True, kw_only=True):
    """Of an executor without settings of its own."""


@dataclass(frozen=True)
class ExecutorEntry(Plugin):
    """An executor that could be loaded."""

    def load(self) -> Executor:
        """Import the executor and check that it is one.

        Raises:
            ConfigError: another has the same name, the import failed (the missing module is named),
                or something that an executor must have is missing (named too).
        """
        label = f"executor `{self.name}` ({self.origin})"
        if self.namesake:
            raise ConfigError(
                f"executor `{self.name}` is there twice: {self.origin} and {self.namesake}; rename "
                "or remove one"
            )
        try:
            with catch_hard_exits():
                executor = self.importer()
        except Stopped:
            raise
        except (Exception, SystemExit) as error:
            why = import_failure(error, self.source, KIND.word)
            raise ConfigError(f"{label} cannot be loaded: {why}") from error
        methods = ("submit", "poll", "cancel")
        lacking = [key for key in methods if not callable(getattr(executor, key, None))]
        kind = getattr(executor, "options_type", None)
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            lacking.append("options_type")
        if lacking or isinstance(executor, type):
            fault = f"lacks {', '.join(lacking)}" if lacking else "is a class"
            raise ConfigError(
                f"{label} {fault}; give an "
                "instance with a `name`, an `options_type` (a Section class), and the methods "
                "`submit(job)`, `poll(ids, options)` and `cancel(ids, options)`"
            )
        if getattr(executor, "name", None) != self.name:
            raise ConfigError(f"{label} has another `name`; the two names must agree")
        return executor  # type: ignore[no-any-return]


def find_executor(name: str, root: Path) -> Executor:
    """The executor of a name, imported.

    Args:
        name: not `local`.
        root: of a project whose `executors/` count too.

    Raises:
        ConfigError: there is none of that name, or it cannot be used.
    """
    plugins = list_plugins(KIND, root)
    if name not in plugins:
        known = ", ".join(sorted({LOCAL, *plugins}))
        raise ConfigError(
            f"unknown executor `{name}`; known here: {known}; install one, or write "
            f"{KIND.folder}/{name}.py"
        )
    return ExecutorEntry(**vars(plugins[name])).load()
