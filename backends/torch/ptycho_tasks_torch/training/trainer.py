"""Training a network, with Lightning as the trainer."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from ptycho_tasks.backend import TrainedModel, TrainRequest
from ptycho_tasks.errors import TrainingError
from ptycho_tasks_torch.device import find_device, settings
from ptycho_tasks_torch.execution import TorchExecution, check
from ptycho_tasks_torch.frames.blocks import Epoch
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.training.best import Best
from ptycho_tasks_torch.training.checkpoints import Checkpoints
from ptycho_tasks_torch.training.devices import Job, Team, check_devices, team_for
from ptycho_tasks_torch.training.logs import Log, quiet_threads
from ptycho_tasks_torch.training.objective import Lesson, LessonFactory
from ptycho_tasks_torch.training.schedules import PLANNED, rate_share

with warnings.catch_warnings():
    # What its dependencies deprecate among themselves is nothing that a user could mend.
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning


def train(request: TrainRequest, make_lesson: LessonFactory) -> TrainedModel:
    """Train a network; errors are those of the backends' `train`.

    Args:
        request: as a backend gets it.
        make_lesson: gives what the network of the backend learns.
    """
    options, execution = request.options, TorchExecution.of(request.execution)
    check(options, execution)
    check_devices(execution, find_device(execution.accelerator))
    log = Log(execution.logger, request.log_dir, request.say)
    checkpoints = Checkpoints(request.work_dir if execution.checkpointing else None, request.say)
    with settings(execution, options.seed, execution.devices), silence():
        lesson = make_lesson(request.scan, options)
        state = checkpoints.read()
        if state is not None and not goes_on(state, options, request.say):
            state = None
        task = Task(options, lesson, Best(options, execution.checkpoint_save_top_k))
        if state is not None:
            task.resume(state)
            _say_what_was_kept(state, execution, request.say)
        else:
            task.begin(request.say)
        log.start(msgspec.to_builtins(options), task.records)

        def tell() -> None:
            done = len(task.history)
            checkpoints.write(task.state, last=task.finished)
            log.epoch(done, task.records[-1])
            metrics = {name: task.history[-1][name] for name in ("loss", "val_loss")}
            request.progress(done, options.epochs, metrics)

        request.progress(len(task.history), options.epochs, {})
        status = "failed"
        try:
            if not task.finished:
                job = Job(request.scan, options, execution, make_lesson, lesson.state_dict(), state)
                with team_for(job) as team:
                    fit(task, execution, team, tell)
                if task.stopped and len(task.history) < options.epochs:
                    request.say(
                        f"stops after epoch {len(task.history)} of {options.epochs}: "
                        f"{task.why_stopped}"
                    )
            model = task.result(request.scan.size)
            status = "success"
        except TrainingError:
            # What led to this is not worth going on from: should a fault of the machine have
            # spoilt it, every later training would inherit that.
            checkpoints.remove()
            raise
        finally:
            log.end(status)
    return model


def fit(
    task: Task,
    execution: TorchExecution,
    team: Team,
    tell: Callable[[], None],
) -> None:
    """Train until the task is finished.

    Args:
        task: where to begin.
        execution: how to run.
        team: which of the devices this is.
        tell: called after every epoch.
    """
    device = find_device(execution.accelerator)
    task.join(team, tell)
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        **team.arguments(),
        max_epochs=task.options.epochs - len(task.history),
        accumulate_grad_batches=task.options.accumulate_grad_batches,
        gradient_clip_val=task.lesson.clip,
        deterministic=_deterministic(execution, device),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    # Lightning's handler of SIGTERM would talk to the other devices in the middle of a step.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    with _plain_interrupts():
        trainer.fit(task, *task.lesson.loaders(task.epoch, task.order, execution.num_workers))
    if trainer.interrupted:  # older versions of Lightning keep a Ctrl-C to themselves
        raise KeyboardInterrupt


class Task(lightning.LightningModule):
    """A lesson, and what was seen of it an epoch."""

    def __init__(self, options: NetworkOptions, lesson: Lesson, best: Best) -> None:
        """Nothing is learned yet.

        Args:
            options: of the training.
            lesson: what to learn.
            best: keeps the weights of the best epochs.
        """
        super().__init__()
        self.options, self.best = options, best
        self.lesson = lesson
        self.epoch = Epoch.of(lesson.blocks, options)
        self.order = torch.Generator().manual_seed(options.seed)
        """Draws the blocks of every epoch."""
        self.history: list[dict[str, float]] = []
        self.rates: list[float] = []
        """Learning rate at the end of every epoch."""
        self.seconds = 0.0
        """Time spent in the epochs done."""
        self._begun = time.monotonic()
        self._sums: dict[str, list[float]] = {}
        self._resumed: Mapping[str, Any] | None = None

    def join(self, team: Team, tell: Callable[[], None]) -> None:
        """Be one of a team's devices, and call `tell` after every epoch."""
        self._team, self._tell = team, tell
        self.epoch = team.part_of(self.epoch)

    def configure_optimizers(self) -> Any:
        """Adam, its rate along the schedule."""
        self.adam = torch.optim.Adam(self.lesson.parameter_groups(self.options.learning_rate))
        share = rate_share(self.options, self.epoch.steps, self.history, self._spent)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, share)
        if self._resumed is not None:
            self.adam.load_state_dict(self._resumed["adam"])
            self.schedule.load_state_dict(self._resumed["schedule"])
        return {
            "optimizer": self.adam,
            "lr_scheduler": {"scheduler": self.schedule, "interval": "step"},
        }

    def state(self) -> dict[str, Any]:
        """All that the epochs to come depend on, and the history. The network draws no random
        numbers once it is made."""
        return {
            "epochs": self.options.epochs,
            "stopped": self.stopped,
            "history": self.history,
            "rates": self.rates,
            "seconds": self.seconds,
            "best": self.best.state(),
            "lesson": self.lesson.state_dict(),
            "adam": self.adam.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.order.get_state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`, instead of from fresh weights."""
        self.history, self.rates = state["history"], state["rates"]
        self.seconds = state["seconds"]
        self.best.resume(state["best"])
        self.lesson.load_state_dict(state["lesson"])
        self.order.set_state(state["order"])
        # Adam is made later, when the weights lie on their device.
        self._resumed = state

    def begin(self, say: Callable[[str], None]) -> None:
        """Do what comes before the first epoch, which takes of the time to train.

        Raises:
            TrainingError: it took all of it.
        """
        begun = time.monotonic()
        self.lesson.begin(say)
        self.seconds += time.monotonic() - begun
        limit = self.options.max_minutes
        if limit is not None and self.seconds >= 60 * limit:
            raise TrainingError(
                f"max_minutes {limit:g} are over before the first epoch: to fit probe or positions "
                f"took {self.seconds:.0f} s; raise training.max_minutes"
            )

    @property
    def stopped(self) -> bool:
        """Whether no better epoch is to be expected, or the time is over."""
        return self.best.stalled(len(self.history)) or self._out_of_time

    @property
    def why_stopped(self) -> str:
        """In words."""
        if self._out_of_time:
            return f"max_minutes {self.options.max_minutes:g} are over"
        return f"{self.options.monitor} was best in epoch {self.best.kept[0].epoch}"

    @property
    def _out_of_time(self) -> bool:
        """Whether the next epoch would end later than the time allows, by half of it or more."""
        limit, done = self.options.max_minutes, len(self.history)
        return limit is not None and done > 0 and self.seconds * (1 + 0.5 / done) >= 60 * limit

    def _spent(self) -> float:
        """Share of the time that may be taken."""
        if self.options.max_minutes is None:
            return 0.0
        # Devices that disagreed would drift apart: together they look at the clock between epochs.
        now = 0.0 if self._team.devices > 1 else time.monotonic() - self._begun
        return (self.seconds + now) / (60 * self.options.max_minutes)

    def on_train_epoch_start(self) -> None:
        """Take the time."""
        self._begun = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether no epoch is to come."""
        return len(self.history) == self.options.epochs or self.stopped

    @property
    def records(self) -> list[dict[str, float]]:
        """What a log shows of every epoch."""
        return [
            {"loss": epoch["loss"], "val_loss": epoch["val_loss"], "learning_rate": rate}
            for epoch, rate in zip(self.history, self.rates, strict=True)
        ]

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """The misfit of all frames of the blocks with the stitched objects, such that the gradients
        of a step's batches add up to that of its mean."""
        misfit = self.lesson.misfit(batch)
        share = self.epoch.share(index)
        mean = self._team.sum(share * float(misfit.detach()))
        self._note("loss", mean, begins=self.epoch.begins_step(index))
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became NaN or Inf in epoch {len(self.history) + 1}; lower "
                f"training.learning_rate ({self.options.learning_rate:g})"
            )
        self._rate: float = self.adam.param_groups[0]["lr"]
        # Lightning takes the mean over batches and devices.
        return misfit * (share * self.epoch.accumulated * self.epoch.devices)

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> None:
        """How well frames are explained that were held back."""
        for name, value in self.lesson.validate(batch).items():
            self._note(name, float(value))

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's means and the state, and tell of them. Lightning validates before."""
        epoch = {name: float(np.mean(values)) for name, values in self._sums.items()}
        self._sums.clear()
        took = self._team.agreed({"seconds": time.monotonic() - self._begun})["seconds"]
        self.seconds, self._begun = self.seconds + took, time.monotonic()
        self.history.append(self._team.agreed(epoch))
        self.rates.append(self._rate)
        self.best.see(len(self.history), self.history[-1], self.lesson.state_dict())
        self.trainer.should_stop = self.finished
        self._tell()

    def result(self, size: int) -> TrainedModel:
        """The model of the last epoch, or of the best where no better one was to be expected.

        Args:
            size: N.

        Raises:
            TrainingError: its network is no better than a flat object.
        """
        found = {
            "N": size,
            "intensity_scale": self.lesson.intensity_scale,
            "gridsize": self.options.gridsize,
        }
        models = self.lesson.models
        kept = {
            f"epoch_{epoch:04d}": TrainedModel(models(state), found, self.history[:epoch])
            for _, epoch, state in self.best.kept[: self.best.asked]
        }
        epoch, state = len(self.history), self.lesson.state_dict()
        if self.options.early_stop_patience is not None and self.best.kept:
            _, epoch, state = self.best.kept[0]
            found = {**found, "epoch": epoch}
        self.lesson.refuse(self.history[epoch - 1])
        return TrainedModel(models(state), found, self.history, kept)

    def _note(self, name: str, value: float, *, begins: bool = True) -> None:
        """Note a value, or add it to the last one."""
        values = self._sums.setdefault(name, [])
        if begins:
            values.append(0.0)
        values[-1] += value


def goes_on(state: Mapping[str, Any], options: NetworkOptions, say: Callable[[str], None]) -> bool:
    """Whether a training that stopped at `state` leads to what is asked for; say what happens.

    Args:
        state: as given by `Task.state`, of a training with the same options, `epochs` aside.
        options: what is asked for.
        say: shows the user one line.
    """
    done, planned, epochs = len(state["history"]), state["epochs"], options.epochs
    if options.scheduler in PLANNED and planned != epochs:
        say(
            f"starts anew: the last training was planned for {planned} epochs, and the "
            f"{options.scheduler} schedule depends on training.epochs"
        )
        return False
    if done > epochs:
        say(f"starts anew: the last training has {done} epochs already, more than {epochs}")
        return False
    if state["stopped"]:
        say(f"takes the finished training: it stopped after epoch {done}")
    elif done == epochs:
        say(f"takes the finished training: all {epochs} epochs are done")
    elif done == planned:
        say(f"continues the finished training: epochs {done + 1} to {epochs}")
    else:
        say(f"resumes after epoch {done} of {epochs}")
    return True


def _say_what_was_kept(
    state: Mapping[str, Any], execution: TorchExecution, say: Callable[[str], None]
) -> None:
    """Weights that were not kept at their time are gone."""
    kept, done = state["best"]["count"], len(state["history"])
    if execution.checkpoint_save_top_k > kept:
        say(f"execution.checkpoint_save_top_k: of the epochs until {done}, {kept} were kept")


def _deterministic(execution: TorchExecution, device: torch.device) -> bool | Literal["warn"]:
    if execution.deterministic is not None:
        return execution.deterministic
    # Deterministic kernels exist for all operations on a CPU, but not on every GPU.
    return True if device.type == "cpu" else "warn"


@contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Let Ctrl-C come out as such. Lightning ends the program, and ignores the next ones."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, handler)


@contextmanager
def silence() -> Iterator[None]:
    """Without Lightning's chatter; what matters is an error or goes to `progress`."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), quiet_threads():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
