"""Learn the network that comes with the package from simulated scans, and write its bundle.

`python -m ptycho_tasks_torch.prior.learn --help`. The same plan gives the same bytes on the same
machine, interrupted or not.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.system.files import write_atomic
from ptycho_tasks_torch.frames.textures import KINDS, TexturePool
from ptycho_tasks_torch.physics.distance import compare_distances, measure_distances
from ptycho_tasks_torch.prior.bundle import bundle_prior
from ptycho_tasks_torch.prior.family import VERSION, Scenario, draw_scenario
from ptycho_tasks_torch.unrolled.correction import WAYS, Correction, turn_canvas
from ptycho_tasks_torch.unrolled.network import reconstruct, rehearse

ROUND, REPEATS = 32, 3
"""Scans that are simulated at a time, and how often each is learned from, turned and mirrored at
random: a simulation with its physics steps takes as long as an update."""
BATCH = 4
"""Scans of an update."""
RATE = 2e-3
"""Largest learning rate of the first course."""
WARM_UP = 50
"""Updates in which the rate rises to the largest."""
CLIP = 1.0
STEPS = (16, 64)
"""Least and largest number of physics steps before the correction in the first course; in others,
and where the result is tried, there are as many as an inference would take."""
CHECKPOINT, CHECKPOINT_S = "learning.checkpoint", 60.0
"""Its name, and how often it is written."""
REPORTED = 400
"""Scans that a report is about, the last ones."""
VALIDATION_SEED = 2**31


@dataclass(frozen=True)
class Plan:
    """What is learned from; together with the code, it settles the result."""

    blocks: int
    """Simulated scans of a course."""
    courses: int = 1
    """Each goes on from the weights of the one before, with other scans and half its rate."""
    seed: int = 0
    kinds: Sequence[str] = KINDS
    """Textures of the objects."""
    validation: int = 96
    """Scans from other seeds, with which the result is tried."""

    @property
    def course_rounds(self) -> int:
        """Number of times that scans are simulated and learned from in a course."""
        return math.ceil(self.blocks / ROUND)

    @property
    def rounds(self) -> int:
        """Those of all courses."""
        return self.courses * self.course_rounds

    @property
    def updates(self) -> int:
        """Number of changes of the weights in a course."""
        return self.course_rounds * REPEATS * (ROUND // BATCH)

    def rate(self, update: int) -> float:
        """Learning rate of an update: in each course it rises, then falls as a cosine."""
        course, update = divmod(update, self.updates)
        largest = RATE * 0.5**course
        return (
            largest
            * min(1.0, (update + 1) / WARM_UP)
            * 0.5
            * (1 + math.cos(math.pi * update / self.updates))
        )


@dataclass(frozen=True)
class Score:
    """Errors of the object of one scan, root of the square distance over the truth's square."""

    photons: float
    before: float
    after: float


class Lesson:
    """A scan, and what the physics steps lead to."""

    def __init__(self, scenario: Scenario, steps: int | None = None) -> None:
        """Run so many steps; None: as an inference would."""
        exposure = scenario.exposure
        engine = rehearse(exposure) if steps is None else reconstruct(exposure, steps)
        self._counts, self._photons = exposure.counts, scenario.photons
        self._maps = engine.canvas, engine.show(), exposure.light, scenario.truth
        self._before = measure_distances(engine.canvas, scenario.truth, exposure.light)

    def correct(self, correction: Correction, turn: int = 0) -> tuple[Tensor, Score]:
        """The loss of a correction, and the errors before and after it.

        Args:
            correction: is tried.
            turn: how the scan lies: one of `WAYS`.
        """
        canvas, fields, light, truth = (turn_canvas(values, turn) for values in self._maps)
        corrected = correction(canvas, fields, light, self._counts)
        after = measure_distances(corrected, truth, light)
        errors = (float(distances[0].detach().sqrt()) for distances in (self._before, after))
        return compare_distances(after, self._before), Score(self._photons, *errors)


class Learning:
    """Weights on their way, and what is needed to go on."""

    def __init__(self, plan: Plan) -> None:
        """Fresh weights."""
        torch.manual_seed(plan.seed)
        self.plan, self.round, self._update = plan, 0, 0
        self.correction = Correction()
        self._optimizer = self._make_optimizer()
        self._pool = TexturePool(plan.seed, plan.kinds)
        self.scores: list[Score] = []
        """Of the last scans, each before it was learned from."""

    def advance(self) -> None:
        """Simulate scans, and learn from each several times."""
        if self.round % self.plan.course_rounds == 0:
            self._optimizer = self._make_optimizer()
        first = self.round * ROUND
        lessons = [self._prepare(number) for number in range(first, first + ROUND)]
        generator = np.random.default_rng([self.plan.seed, self.round, REPEATS])
        for repeat in range(REPEATS):
            for some in generator.permutation(ROUND).reshape(-1, BATCH):
                turns = generator.integers(WAYS, size=BATCH).tolist()
                scores = self._learn_from([lessons[index] for index in some], turns)
                if repeat == 0:
                    self.scores = [*self.scores, *scores][-REPORTED:]
        self.round += 1

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.correction.parameters(), betas=(0.9, 0.99))

    def _prepare(self, number: int) -> Lesson:
        generator = np.random.default_rng([self.plan.seed, number])
        scenario = draw_scenario(generator, self._pool, number)
        if self.round >= self.plan.course_rounds:
            return Lesson(scenario)
        steps = int(np.exp(generator.uniform(math.log(STEPS[0]), math.log(STEPS[1] + 1))))
        return Lesson(scenario, steps)

    def _learn_from(self, lessons: Sequence[Lesson], turns: Sequence[int]) -> list[Score]:
        """One update."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.plan.rate(self._update)
        self._optimizer.zero_grad()
        scores = []
        for lesson, turn in zip(lessons, turns, strict=True):
            # Half the precision is enough for a gradient, and twice as fast on newer processors.
            with torch.autocast("cpu", torch.bfloat16):
                loss, score = lesson.correct(self.correction, turn)
            (loss / len(lessons)).backward()  # type: ignore[no-untyped-call]
            scores.append(score)
        norm = torch.nn.utils.clip_grad_norm_(self.correction.parameters(), CLIP)
        if torch.isfinite(norm):
            self._optimizer.step()
        self._update += 1
        return scores

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "family": VERSION,
            "plan": asdict(self.plan),
            "round": self.round,
            "update": self._update,
            "weights": self.correction.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scores": [asdict(score) for score in self.scores],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def restore(self, path: Path) -> bool:
        """Go on from a checkpoint; False if it is of another plan or family."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if (state.get("family", 1), state["plan"]) != (VERSION, asdict(self.plan)):
            return False
        self.correction.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.round, self._update = state["round"], state["update"]
        self.scores = [Score(**score) for score in state["scores"]]
        return True


def learn(
    plan: Plan, folder: Path, work: Path, say: Callable[[str], None], *, as_is: bool = False
) -> None:
    """Learn, or go on learning, and write the bundle.

    Args:
        plan: what is learned from.
        folder: gets the bundle.
        work: folder of the checkpoint.
        say: shows the user one line or several.
        as_is: take what the checkpoint holds, learned to the end or not.
    """
    work.mkdir(parents=True, exist_ok=True)
    learning, checkpoint = Learning(plan), work / CHECKPOINT
    if checkpoint.exists() and learning.restore(checkpoint):
        say(f"goes on after {learning.round} of {plan.rounds} rounds")
    elif as_is:
        raise SystemExit(f"{checkpoint}: there is none of this plan")
    if not as_is:
        _learn_to_end(learning, checkpoint, say)
    scores = validate(learning.correction, plan)
    say(f"scans never learned from:\n{tabulate(scores)}")
    recipe = describe(learning, scores)
    write_atomic(folder / BUNDLE_NAME, bundle_prior(learning.correction, recipe))


def _learn_to_end(learning: Learning, checkpoint: Path, say: Callable[[str], None]) -> None:
    plan = learning.plan
    began = saved = time.monotonic()
    first = learning.round
    while learning.round < plan.rounds:
        learning.advance()
        now = time.monotonic()
        rate = (learning.round - first) * ROUND / (now - began)
        say(f"round {learning.round} of {plan.rounds}, {rate:.1f} scans/s")
        say(tabulate(learning.scores))
        if now - saved > CHECKPOINT_S:
            learning.save(checkpoint)
            saved = now
    learning.save(checkpoint)


@torch.no_grad()
def validate(correction: Correction, plan: Plan) -> list[Score]:
    """Errors of scans from other seeds than any that is learned from."""
    pool, scores = TexturePool(VALIDATION_SEED, plan.kinds), []
    for number in range(plan.validation):
        generator = np.random.default_rng([VALIDATION_SEED, number])
        scenario = draw_scenario(generator, pool, number)
        scores.append(Lesson(scenario).correct(correction)[1])
    return scores


def summarize(scores: Sequence[Score]) -> list[dict[str, float]]:
    """In each decade of photons, the median errors before and after the correction, their median
    ratio, and the share of scans that it makes worse by more than 2 %."""
    summaries = []
    for decade in range(3, 9):
        some = [s for s in scores if decade <= math.log10(s.photons) < decade + 1]
        if some:
            measures = {
                "before": np.median([s.before for s in some]),
                "after": np.median([s.after for s in some]),
                "ratio": np.median([s.after / s.before for s in some]),
                "harmed": np.mean([s.after > 1.02 * s.before for s in some]),
            }
            rounded = {name: round(float(value), 4) for name, value in measures.items()}
            summaries.append({"photons": float(10**decade), "scans": len(some), **rounded})
    return summaries


def tabulate(scores: Sequence[Score]) -> str:
    """The table of `summarize`, as text."""
    line = "{photons:7.0e}  {scans:5d}  {before:.4f}  {after:.4f}  {ratio:6.3f}  {harmed:6.0%}"
    rows = [line.format(**summary) for summary in summarize(scores)]
    return "\n".join(["photons  scans  before   after   ratio  harmed", *rows])


def describe(learning: Learning, scores: Sequence[Score]) -> dict[str, Any]:
    """What a network was learned from, and how good it is, for its bundle to say."""
    plan = asdict(learning.plan)
    return {
        "family": VERSION,
        "plan": {**plan, "kinds": list(plan["kinds"])},
        "rounds": learning.round,
        "planned_rounds": learning.plan.rounds,
        "round": ROUND,
        "repeats": REPEATS,
        "batch": BATCH,
        "learning_rate": RATE,
        "steps": list(STEPS),
        "validation": summarize(scores),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Learn the prior from simulated scans.")
    parser.add_argument("--blocks", type=int, required=True, help="simulated scans of a course")
    parser.add_argument("--courses", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help=f"folder of the {BUNDLE_NAME}")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--as-is", action="store_true", help="take the checkpoint as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=sorted(set(KINDS)), default=list(KINDS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plan = Plan(options.blocks, options.courses, options.seed, options.kinds)
    say = functools.partial(print, flush=True)
    learn(plan, options.out, options.work, say, as_is=options.as_is)


if __name__ == "__main__":
    main()
