"""Training a network, with Lightning as the trainer."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from ptycho_tasks.backend import TrainedModel, TrainRequest, show_nothing
from ptycho_tasks.errors import TrainingError
from ptycho_tasks_torch.device import find_device, require_devices, settings
from ptycho_tasks_torch.execution import TorchExecution, check_options
from ptycho_tasks_torch.helpers import Channel, SentScan
from ptycho_tasks_torch.launched import read_own_seat
from ptycho_tasks_torch.options import NetworkOptions
from ptycho_tasks_torch.training.best import BestEpochs, copy_state
from ptycho_tasks_torch.training.checkpoints import Checkpoints
from ptycho_tasks_torch.training.devices import Job, TeamMember, connect, open_store, start_team
from ptycho_tasks_torch.training.joined import make_joint_objective
from ptycho_tasks_torch.training.logs import Log, quiet_threads
from ptycho_tasks_torch.training.objective import Objective, ObjectiveFactory
from ptycho_tasks_torch.training.schedules import PLANNED, make_rate_share

with warnings.catch_warnings():
    # Lightning's dependencies warn about each other, and no user can mend that.
    warnings.simplefilter("ignore")
    import lightning.pytorch as lightning


def train_network(
    request: TrainRequest,
    make_objective: ObjectiveFactory,
    load_start: Callable[[nn.Module], None] | None = None,
) -> TrainedModel:
    """Train a network; errors are those of the backends' `train`.

    Args:
        request: as a backend gets it.
        make_objective: gives the backend's objective.
        load_start: puts the weights to start from into a fresh network; None leaves it fresh.
    """
    options, execution = request.options, TorchExecution.from_execution(request.execution)
    check_options(options, execution)
    require_devices(execution, find_device(execution.accelerator))
    log = Log(execution.logger, request.log_dir, request.say)
    checkpoints = Checkpoints(request.work_dir if execution.checkpointing else None, request.say)
    local = read_own_seat(execution.devices).local_count
    with settings(execution, options.seed, local), silence_lightning():
        objective = make_joint_objective(request.scans, options, make_objective)
        if load_start is not None:
            load_start(objective.network)
        state = checkpoints.read()
        if state is not None and not can_resume(state, options, request.say):
            state = None
        run = TrainingRun(options, objective, BestEpochs(options, execution.checkpoint_save_top_k))
        if state is not None:
            run.resume(state)
            _say_lost_epochs(state, execution, request.say)
        else:
            run.prepare(request.say)
        log.start(msgspec.to_builtins(options), run.records)
        is_watched = log.takes_pictures or request.show is not show_nothing
        mosaic = objective.watch() if is_watched else None

        def report() -> None:
            done = len(run.history)
            checkpoints.write(run.state, last=run.is_finished)
            log.write_epoch(done, run.records[-1])
            metrics = {name: run.history[-1][name] for name in ("loss", "val_loss")}
            request.progress(done, options.epochs, metrics)
            if mosaic is not None:
                request.show(mosaic.lay)
                log.write_pictures(done, options.epochs, mosaic.lay)

        request.progress(len(run.history), options.epochs, {})
        status = "failed"
        try:
            if not run.is_finished:
                job = Job(
                    request.scans, options, execution, make_objective, objective.state_dict(), state
                )
                with start_team(job, TrainingTask) as member:
                    fit(run, execution, member, report)
                if run.has_stopped and len(run.history) < options.epochs:
                    request.say(
                        f"stops after epoch {len(run.history)} of {options.epochs}: "
                        f"{run.reason_to_stop}"
                    )
            model = run.export(request.scans[0].size, request.say)
            status = "success"
        except TrainingError:
            # Every later training would go on from the state that led to this.
            checkpoints.remove()
            raise
        finally:
            log.end(status)
    return model


def fit(
    run: TrainingRun,
    execution: TorchExecution,
    member: TeamMember,
    report: Callable[[], None],
) -> None:
    """Train until the run is finished.

    Args:
        run: fresh, or resumed.
        execution: how to run.
        member: the device of this process.
        report: is called after every epoch.
    """
    device = find_device(execution.accelerator)
    run.join(member, report)
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        **member.trainer_arguments(),
        max_epochs=run.options.epochs - len(run.history),
        accumulate_grad_batches=run.options.accumulate_grad_batches,
        gradient_clip_val=run.objective.clip,
        deterministic=_deterministic(execution, device),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1 if run.is_start_unknown else 0,
    )
    # Lightning's handler of SIGTERM talks to the other devices, also in the middle of a step.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    with _plain_interrupts():
        trainer.fit(run, *run.objective.make_loaders(run.epoch, run.order, execution.num_workers))
    if trainer.interrupted:  # older versions of Lightning keep a Ctrl-C to themselves
        raise KeyboardInterrupt


@dataclass(frozen=True)
class TrainingTask:
    """What a helper does that trains along: get ready, say so, train."""

    job: Job
    """Without its scans."""
    scans: Sequence[SentScan]
    member: TeamMember
    port: int
    """Of the store where the processes meet."""

    def run(self, channel: Channel) -> None:
        """See `Task`."""
        channel.exit_when_closed()
        job = replace(self.job, scans=[scan.open() for scan in self.scans])
        options, execution = job.options, job.execution
        local = self.member.seat.local_count
        with settings(execution, options.seed, local), silence_lightning():
            objective = make_joint_objective(job.scans, options, job.make_objective)
            run = TrainingRun(options, objective, BestEpochs(options, 0))
            run.objective.load_state_dict(job.objective)
            if job.state is not None:
                run.resume(job.state)
            store = open_store(self.member, self.port)
            channel.send(None)
            with connect(store, self.member):
                fit(run, execution, self.member, lambda: None)


class Start(NamedTuple):
    """The network before the first epoch."""

    metrics: dict[str, float]
    """How well it explains the frames held back."""
    state: dict[str, Tensor]
    """Of the objective, on the CPU."""


class TrainingRun(lightning.LightningModule):
    """The training of an objective, and the history of its epochs."""

    def __init__(self, options: NetworkOptions, objective: Objective, best: BestEpochs) -> None:
        """Train nothing yet.

        Args:
            options: of the training.
            objective: what to learn.
            best: keeps the weights of the best epochs.
        """
        super().__init__()
        self.options, self.best = options, best
        self.objective = objective
        self.epoch = objective.plan_epoch(options)
        self.order = torch.Generator().manual_seed(options.seed)
        """Draws the blocks of every epoch."""
        self.history: list[dict[str, float]] = []
        self.rates: list[float] = []
        """Learning rate at the end of every epoch."""
        self.seconds = 0.0
        """Time spent in the epochs done."""
        self.start: Start | None = None
        """Kept where the objective asks for it."""
        self._start = time.monotonic()
        self._sums: dict[str, list[float]] = {}
        self._resumed: Mapping[str, Any] | None = None

    def join(self, member: TeamMember, report: Callable[[], None]) -> None:
        """Train on one of the devices, and call `report` after every epoch."""
        self._member, self._report = member, report
        self.epoch = member.own_part(self.epoch)

    def configure_optimizers(self) -> Any:
        """Adam, with the learning rate of the schedule."""
        self.adam = torch.optim.Adam(self.objective.parameter_groups(self.options.learning_rate))
        share = make_rate_share(self.options, self.epoch.steps, self.history, self._spent_share)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, share)
        if self._resumed is not None:
            self.adam.load_state_dict(self._resumed["adam"])
            self.schedule.load_state_dict(self._resumed["schedule"])
        return {
            "optimizer": self.adam,
            "lr_scheduler": {"scheduler": self.schedule, "interval": "step"},
        }

    def state(self) -> dict[str, Any]:
        """The history, and everything that the epochs to come depend on.

        A network draws no random numbers after it is made.
        """
        return {
            "epochs": self.options.epochs,
            "stopped": self.has_stopped,
            "history": self.history,
            "rates": self.rates,
            "seconds": self.seconds,
            "best": self.best.state(),
            "start": self.start and tuple(self.start),
            "objective": self.objective.state_dict(),
            "adam": self.adam.state_dict(),
            "schedule": self.schedule.state_dict(),
            "order": self.order.get_state(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` instead of from fresh weights."""
        self.history, self.rates = state["history"], state["rates"]
        self.seconds = state["seconds"]
        self.best.resume(state["best"])
        self.start = state["start"] and Start(*state["start"])
        self.objective.load_state_dict(state["objective"])
        self.order.set_state(state["order"])
        # Adam is made later, when the weights are on their device.
        self._resumed = state

    def prepare(self, say: Callable[[str], None]) -> None:
        """Do what comes before the first epoch; it counts as time of the training.

        Raises:
            TrainingError: no time is left.
        """
        start = time.monotonic()
        self.objective.prepare(say)
        self.seconds += time.monotonic() - start
        limit = self.options.max_minutes
        if limit is not None and self.seconds >= 60 * limit:
            raise TrainingError(
                f"max_minutes {limit:g} are over before the first epoch: to fit probe or positions "
                f"took {self.seconds:.0f} s; raise training.max_minutes"
            )

    @property
    def has_stopped(self) -> bool:
        """Whether the patience is used up, or the time is over."""
        return self.best.is_stalled(len(self.history)) or self._is_out_of_time

    @property
    def reason_to_stop(self) -> str:
        """Why the run has stopped, in words."""
        if self._is_out_of_time:
            return f"max_minutes {self.options.max_minutes:g} are over"
        return f"{self.options.monitor} was best in epoch {self.best.kept[0].epoch}"

    @property
    def _is_out_of_time(self) -> bool:
        """Whether the next epoch would end too late by half an epoch or more."""
        limit, done = self.options.max_minutes, len(self.history)
        return limit is not None and done > 0 and self.seconds * (1 + 0.5 / done) >= 60 * limit

    def _spent_share(self) -> float:
        """Share of `max_minutes` that is over."""
        if self.options.max_minutes is None:
            return 0.0
        # Several devices must agree, so that they look at the clock between epochs only.
        now = 0.0 if self._member.devices > 1 else time.monotonic() - self._start
        return (self.seconds + now) / (60 * self.options.max_minutes)

    @property
    def is_start_unknown(self) -> bool:
        """Whether the network is to be validated before the first epoch."""
        return self.objective.keeps_start and self.start is None and not self.history

    def on_validation_epoch_start(self) -> None:
        """Start the clock, where the network is validated as it starts."""
        if self.trainer.sanity_checking:
            self._start = time.monotonic()

    def on_validation_epoch_end(self) -> None:
        """Keep the network as it starts, with its scores."""
        if self.objective.mosaic is not None:
            self.objective.mosaic.finish()
        if self.trainer.sanity_checking:
            metrics = self._take_means()
            self.start = Start(metrics, copy_state(self.objective.state_dict()))
            self._count_seconds()

    def on_train_epoch_start(self) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is to come."""
        return len(self.history) == self.options.epochs or self.has_stopped

    @property
    def records(self) -> list[dict[str, float]]:
        """The values of every epoch that a log shows."""
        return [
            # Those of single scans are called by names that not every log takes.
            {name: value for name, value in epoch.items() if "/" not in name}
            | {"learning_rate": rate}
            for epoch, rate in zip(self.history, self.rates, strict=True)
        ]

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """The loss of a batch, weighted: the gradients of the batches of a step must add up to the
        gradient of its mean."""
        loss = self.objective.loss(batch)
        share = self.epoch.share(index)
        mean = self._member.sum(share * float(loss.detach()))
        self._note("loss", mean, is_new=self.epoch.is_first_of_step(index))
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss became NaN or Inf in epoch {len(self.history) + 1}; lower "
                f"training.learning_rate ({self.options.learning_rate:g})"
            )
        self._rate: float = self.adam.param_groups[0]["lr"]
        # Lightning takes the mean over batches and devices.
        return loss * (share * self.epoch.accumulated * self.epoch.devices)

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> None:
        """Note how well the network explains the frames held back."""
        for name, value in self.objective.validate(batch).items():
            self._note(name, float(value))

    def on_train_epoch_end(self) -> None:
        """Keep the means and the state of the epoch, and report; Lightning validates before."""
        self._count_seconds()
        self.history.append(self._take_means())
        self.rates.append(self._rate)
        self.best.consider(len(self.history), self.history[-1], self.objective.state_dict())
        self.trainer.should_stop = self.is_finished
        self._report()

    def export(self, size: int, say: Callable[[str], None]) -> TrainedModel:
        """The model of the last epoch; with early stopping, that of the best.

        Args:
            size: N.
            say: shows the user one line.

        Raises:
            TrainingError: the network is no better than a flat object.
        """
        metadata = {
            "N": size,
            **self.objective.describe(),
            "gridsize": self.options.gridsize,
        }
        export = self.objective.export_models
        history = [
            {**means, "learning_rate": rate}
            for means, rate in zip(self.history, self.rates, strict=True)
        ]
        checkpoints = {
            f"epoch_{epoch:04d}": TrainedModel(export(state), metadata, history[:epoch])
            for _, epoch, state in self.best.kept[: self.best.bundle_count]
        }
        epoch, state = len(self.history), self.objective.state_dict()
        if self.options.early_stop_patience is not None and self.best.kept:
            _, epoch, state = self.best.kept[0]
            metadata = {**metadata, "epoch": epoch}
        metrics = self.history[epoch - 1]
        if self.start is not None:
            metadata = {**metadata, "start_loss": self.start.metrics["val_loss"]}
            if not metrics["val_loss"] < self.start.metrics["val_loss"]:
                say(
                    "the bundle gets the network as it was at the start: training ended no better "
                    f"for the frames held back, at a misfit of {metrics['val_loss']:.4g}, not "
                    f"{self.start.metrics['val_loss']:.4g}; train longer, on more frames, or lower "
                    "training.learning_rate"
                )
                metrics, state = self.start
                metadata = {**metadata, "epoch": 0}
        self.objective.refuse_useless(metrics, say)
        return TrainedModel(export(state), metadata, history, checkpoints)

    def _take_means(self) -> dict[str, float]:
        """The means of what was noted, of the first device; begin anew."""
        means = {name: float(np.mean(values)) for name, values in self._sums.items()}
        self._sums.clear()
        return self._member.take_first(means)

    def _count_seconds(self) -> None:
        """Count the time since the clock was started, and start it anew."""
        seconds = self._member.take_first({"seconds": time.monotonic() - self._start})["seconds"]
        self.seconds, self._start = self.seconds + seconds, time.monotonic()

    def _note(self, name: str, value: float, *, is_new: bool = True) -> None:
        """Note a value, or add it to the last one."""
        values = self._sums.setdefault(name, [])
        if is_new:
            values.append(0.0)
        values[-1] += value


def can_resume(
    state: Mapping[str, Any], options: NetworkOptions, say: Callable[[str], None]
) -> bool:
    """Whether to go on from the state of an earlier training; says what happens.

    Args:
        state: from `TrainingRun.state`, of a training with the same options, `epochs` aside.
        options: of the training to run.
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


def _say_lost_epochs(
    state: Mapping[str, Any], execution: TorchExecution, say: Callable[[str], None]
) -> None:
    """Say which of the best epochs were not kept: their weights are gone."""
    kept, done = state["best"]["count"], len(state["history"])
    if execution.checkpoint_save_top_k > kept:
        say(f"execution.checkpoint_save_top_k: of the epochs until {done}, {kept} were kept")


def _deterministic(execution: TorchExecution, device: torch.device) -> bool | Literal["warn"]:
    if execution.deterministic is not None:
        return execution.deterministic
    # Every operation has a deterministic kernel on a CPU, but not on every GPU.
    return True if device.type == "cpu" else "warn"


@contextmanager
def _plain_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C; Lightning ends the program, and ignores the next one."""
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
def silence_lightning() -> Iterator[None]:
    """Hide Lightning's messages and warnings; errors still come through."""
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
