"""Learn the network that comes with the package from simulated scans, and write its bundle.

`python -m ptycho_tasks_torch.prior.learn --help`. The same plan gives the same bytes on the same
CPU, interrupted or not; a GPU, which is faster, adds numbers in any order.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.system.files import write_atomic
from ptycho_tasks_torch.frames.textures import KINDS, RARER_KINDS, TexturePool
from ptycho_tasks_torch.physics.distance import compare_distances, measure_distances
from ptycho_tasks_torch.prior.bundle import bundle_prior
from ptycho_tasks_torch.prior.family import VERSION, Scenario, draw_scenario
from ptycho_tasks_torch.threads import work_ahead
from ptycho_tasks_torch.unrolled.correction import WAYS, Correction, correct_turned, turn_canvas
from ptycho_tasks_torch.unrolled.network import reconstruct, rehearse, take_up

CPU = torch.device("cpu")
ROUND, REPEATS = 32, 3
"""Scans that are simulated at a time, and how often each is learned from, turned and mirrored at
random: a simulation with its physics steps takes as long as an update."""
BATCH = 4
"""Scans of an update."""
RATES = (2e-3, 1e-3, 1e-3, 7e-4)
"""Largest learning rate of each course."""
WARM_UP = 50
"""Updates in which the rate rises to the largest."""
CLIP = 1.0
STEPS = (16, 64)
"""Least and largest number of physics steps before the correction in the first course; in others,
and where the result is tried, there are as many as an inference would take."""
TWICE = 2
"""The course, counted from 0, from which on objects are corrected a second time: of the times that
a scan is learned from, in all but the first."""
RARER = 3
"""The course, counted from 0, from which on there are rarer probes and objects, too."""
CHECKPOINT, CHECKPOINT_S = "learning.checkpoint", 60.0
"""Its name, and how often it is written."""
REPORTED = 400
"""Scans that a report is about, the last ones."""
VALIDATION_SEED = 2**31


@dataclass(frozen=True)
class Plan:
    """What is learned from; together with the code, it settles the result."""

    blocks: Sequence[int]
    """Simulated scans of each course. A course goes on from the weights of the one before, with
    other scans; see `RATES`."""
    seed: int = 0
    kinds: Sequence[str] = KINDS
    """Textures of the objects."""
    validation: int = 96
    """Scans from other seeds, with which the result is tried."""

    @property
    def starts(self) -> list[int]:
        """The round that each course begins with, and the one after the last.

        A round is a time that scans are simulated and learned from.
        """
        return list(accumulate((math.ceil(count / ROUND) for count in self.blocks), initial=0))

    @property
    def rounds(self) -> int:
        """Those of all courses."""
        return self.starts[-1]

    def course(self, round_: int) -> int:
        """The course of a round, counted from 0."""
        return bisect_right(self.starts[1:-1], round_)

    def rate(self, course: int, update: int) -> float:
        """Learning rate of an update of a course: it rises, then falls as a cosine."""
        first, last = self.starts[course : course + 2]
        updates = (last - first) * REPEATS * (ROUND // BATCH)
        return (
            RATES[course]
            * min(1.0, (update + 1) / WARM_UP)
            * 0.5
            * (1 + math.cos(math.pi * update / updates))
        )


@dataclass(frozen=True)
class Score:
    """Errors of the object of one scan, root of the square distance over the truth's square."""

    photons: float
    before: float
    once: float
    """After the first correction."""
    after: float
    """After the last."""


class Lesson:
    """A scan, and what the physics steps lead to."""

    def __init__(self, scenario: Scenario, steps: int | None = None) -> None:
        """Run so many steps; None: as an inference would."""
        exposure = scenario.exposure
        engine = rehearse(exposure) if steps is None else reconstruct(exposure, steps)
        self._exposure, self._truth, self._engine = exposure, scenario.truth, engine
        self._photons = scenario.photons
        self._maps = [engine.canvas, engine.show(), exposure.light]
        self._errors = [self._measure(engine.canvas)]

    def _measure(self, canvas: Tensor) -> Tensor:
        return measure_distances(canvas, self._truth, self._exposure.light)

    def go_on(self, correction: Correction) -> None:
        """Take the steps that follow a first correction."""
        exposure = self._exposure
        with torch.no_grad():
            earlier = correct_turned(correction, self._maps, exposure.counts, 0)
            engine = take_up(exposure, earlier, self._engine)
        self._maps = [engine.canvas, engine.show(), exposure.light, earlier]
        self._errors.append(self._measure(earlier))

    def correct(self, correction: Correction, turn: int = 0) -> tuple[Tensor, Score]:
        """The loss of a correction, over the one before it, and the errors.

        Args:
            correction: is tried.
            turn: how the scan lies: one of `WAYS`.
        """
        exposure = self._exposure
        corrected = correct_turned(correction, self._maps, exposure.counts, turn)
        truth, light = (turn_canvas(values, turn) for values in (self._truth, exposure.light))
        after = measure_distances(corrected, truth, light)
        errors = [float(e[0].detach().sqrt()) for e in (*self._errors, after)]
        score = Score(self._photons, errors[0], errors[1], errors[-1])
        return compare_distances(after, self._errors[-1]), score


class Learning:
    """Weights on their way, and what is needed to go on."""

    def __init__(self, plan: Plan, device: torch.device = CPU, workers: int = 0) -> None:
        """Fresh weights.

        Args:
            plan: what is learned from.
            device: to learn on.
            workers: threads that simulate scans ahead, on the CPU.
        """
        torch.manual_seed(plan.seed)
        self.plan, self.round, self._update = plan, 0, 0
        self.correction = Correction().to(device)
        self._device, self._workers = device, workers
        self._optimizer = self._make_optimizer()
        self._pool = TexturePool(plan.seed, plan.kinds)
        self._rarer_pool = TexturePool(plan.seed, [*plan.kinds, *RARER_KINDS])
        self.scores: list[Score] = []
        """Of the last scans, each before it was learned from."""

    def advance(self) -> None:
        """Simulate scans, and learn from each several times."""
        if self.round in self.plan.starts:
            self._optimizer, self._update = self._make_optimizer(), 0
        first = self.round * ROUND
        drawn = work_ahead(self._draw, range(first, first + ROUND), self._workers)
        lessons = [self._prepare(*one) for one in drawn]
        generator = np.random.default_rng([self.plan.seed, self.round, REPEATS])
        is_twice = self.plan.course(self.round) >= TWICE
        for repeat in range(REPEATS):
            for some in generator.permutation(ROUND).reshape(-1, BATCH):
                turns = generator.integers(WAYS, size=BATCH).tolist()
                scores = self._learn_from([lessons[index] for index in some], turns)
                if repeat == (1 if is_twice else 0):
                    self.scores = [*self.scores, *scores][-REPORTED:]
            if repeat == 0 and is_twice:
                for lesson in lessons:
                    lesson.go_on(self.correction)
        self.round += 1

    def _make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.correction.parameters(), betas=(0.9, 0.99))

    def _draw(self, number: int) -> tuple[Scenario, np.random.Generator]:
        generator = np.random.default_rng([self.plan.seed, number])
        is_rarer = self.plan.course(number // ROUND) >= RARER
        pool = self._rarer_pool if is_rarer else self._pool
        return draw_scenario(generator, pool, number, rare=is_rarer), generator

    def _prepare(self, scenario: Scenario, generator: np.random.Generator) -> Lesson:
        scenario = scenario.to(self._device)
        if self.plan.course(self.round):
            return Lesson(scenario)
        steps = int(np.exp(generator.uniform(math.log(STEPS[0]), math.log(STEPS[1] + 1))))
        return Lesson(scenario, steps)

    def _learn_from(self, lessons: Sequence[Lesson], turns: Sequence[int]) -> list[Score]:
        """One update."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.plan.rate(self.plan.course(self.round), self._update)
        self._optimizer.zero_grad()
        scores = []
        for lesson, turn in zip(lessons, turns, strict=True):
            # Half the precision is enough for a gradient, and twice as fast on newer processors.
            with torch.autocast(self._device.type, torch.bfloat16):
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
        state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
        if (state.get("family", 1), state["plan"]) != (VERSION, asdict(self.plan)):
            return False
        self.correction.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.round, self._update = state["round"], state["update"]
        self.scores = [Score(**score) for score in state["scores"]]
        return True


def learn(
    learning: Learning, folder: Path, work: Path, say: Callable[[str], None], *, as_is: bool = False
) -> None:
    """Learn, or go on learning, and write the bundle.

    Args:
        learning: its begin.
        folder: gets the bundle.
        work: folder of the checkpoint.
        say: shows the user one line or several.
        as_is: take what the checkpoint holds, learned to the end or not.
    """
    work.mkdir(parents=True, exist_ok=True)
    plan, checkpoint = learning.plan, work / CHECKPOINT
    if checkpoint.exists() and learning.restore(checkpoint):
        say(f"goes on after {learning.round} of {plan.rounds} rounds")
    elif as_is:
        raise SystemExit(f"{checkpoint}: there is none of this plan")
    if not as_is:
        _learn_to_end(learning, checkpoint, say)
    learning.correction.to(CPU)
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
        lesson = Lesson(scenario)
        if len(plan.blocks) > TWICE:
            lesson.go_on(correction)
        scores.append(lesson.correct(correction)[1])
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
                "once": np.median([s.once for s in some]),
                "after": np.median([s.after for s in some]),
                "ratio": np.median([s.after / s.before for s in some]),
                "harmed": np.mean([s.after > 1.02 * s.before for s in some]),
            }
            rounded = {name: round(float(value), 4) for name, value in measures.items()}
            summaries.append({"photons": float(10**decade), "scans": len(some), **rounded})
    return summaries


def tabulate(scores: Sequence[Score]) -> str:
    """The table of `summarize`, as text."""
    names = "photons  scans  before  once    after    ratio  harmed"
    errors = "{before:.4f}  {once:.4f}  {after:.4f}"
    line = f"{{photons:7.0e}}  {{scans:5d}}  {errors}  {{ratio:6.3f}}  {{harmed:6.0%}}"
    return "\n".join([names, *(line.format(**summary) for summary in summarize(scores))])


def describe(learning: Learning, scores: Sequence[Score]) -> dict[str, Any]:
    """What a network was learned from, and how good it is, for its bundle to say."""
    plan = asdict(learning.plan)
    return {
        "family": VERSION,
        "plan": {**plan, "blocks": list(plan["blocks"]), "kinds": list(plan["kinds"])},
        "rounds": learning.round,
        "planned_rounds": learning.plan.rounds,
        "round": ROUND,
        "repeats": REPEATS,
        "batch": BATCH,
        "learning_rates": list(RATES[: len(plan["blocks"])]),
        "steps": list(STEPS),
        "validation": summarize(scores),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Learn the prior from simulated scans.")
    parser.add_argument(
        "--blocks", type=int, nargs="+", required=True, help="simulated scans of each course"
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder of the {BUNDLE_NAME}")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--as-is", action="store_true", help="take the checkpoint as it is")
    parser.add_argument("--seed", type=int, default=0)
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=best)
    parser.add_argument(
        "--threads", type=int, help="default: 1; on a GPU 4, which simulate what it learns from"
    )
    parser.add_argument("--kinds", nargs="+", choices=sorted(set(KINDS)), default=list(KINDS))
    options = parser.parse_args(arguments)
    if len(options.blocks) > len(RATES):
        parser.error(f"--blocks: there are {len(RATES)} courses at most")
    device = torch.device(options.device)
    is_cpu = device.type == CPU.type
    threads = options.threads or (1 if is_cpu else 4)
    torch.set_num_threads(threads if is_cpu else 1)
    plan = Plan(options.blocks, options.seed, options.kinds)
    learning = Learning(plan, device, workers=0 if is_cpu else threads)
    say = functools.partial(print, flush=True)
    learn(learning, options.out, options.work, say, as_is=options.as_is)


if __name__ == "__main__":
    main()
