"""What a helper does that trains along with another process; see `devices`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ptycho_tasks_torch.device import settings
from ptycho_tasks_torch.helpers import Channel, SentScan
from ptycho_tasks_torch.training.best import BestEpochs
from ptycho_tasks_torch.training.devices import Job, TeamMember, connect, open_store
from ptycho_tasks_torch.training.joined import make_joint_objective
from ptycho_tasks_torch.training.trainer import TrainingRun, fit, silence_lightning


@dataclass(frozen=True)
class TrainingTask:
    """Train, and say when it is ready to."""

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
