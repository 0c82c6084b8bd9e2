"""Speed and memory of the backend `unrolled` on a GPU, and whether it gives there what a CPU gives.

    python benchmarks/gpu.py --json /tmp/gpu.json        # on one GPU, in less than 8 minutes
    python benchmarks/gpu.py --device cpu --quick        # tries the script itself, in a minute

Prints tables in Markdown. Scans are simulated and their probes known; nothing is read from disk.
The weights of the network are those that it would begin to learn with, which cost as much as any.
A reconstruction is all that `infer` does with a scan in memory: its steps, until frames held back
are explained no better, the correction, and the object back on the host; patches are stitched in
every step. Beside it, where it is installed, LSQML of pty-chi on the same device. A frame update
is one frame in one step or epoch. Ends with 1 where the two devices differ by more than 1e-4.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import click
import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from measuring import (
    backend_named,
    execution_of,
    peak_mb,
    scored,
    told_in_a_line,
    untrained_model,
)
from ptycho_tasks.backend import InferRequest, Reconstruction, TrainRequest
from ptycho_tasks.errors import TrainingError
from ptycho_tasks.options import ExecutionOptions, SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData
from ptycho_tasks.system.files import write_atomic
from ptycho_tasks_torch.physics import canvas, exposure
from ptycho_tasks_torch.physics.exposure import Exposure
from ptycho_tasks_torch.physics.mapped import expose_scan
from ptycho_tasks_torch.physics.scale import find_photon, read_intensity, scale_probe
from ptycho_tasks_torch.unrolled import objective
from ptycho_tasks_torch.unrolled.network import UnrolledNetwork, reconstruct, rehearse
from ptycho_tasks_torch.unrolled.objective import UnrolledObjective
from ptycho_tasks_torch.unrolled.options import UnrolledOptions
from ptycho_tasks_torch.unrolled.steps import ALL, COARSE, Engine, Turns

PUBLISHED = {64: 6100, 128: 2600}
"""Frames a second of PtychoPINN by frame size, as published, without stitching."""
TOLERANCE = 1e-4
"""Largest difference between two devices, over the norm of the value."""
STEPS = 40
"""Of the objects that are compared."""
HIDDEN = 8
"""Every so many-th frame of a block is hidden from the network."""
Row = dict[str, Any]
"""One line of a table: values by the title of their column."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    scans: Mapping[int, int]
    """Scan points along one side, by frame size."""
    compared: tuple[int, int]
    """Frame size and scan points along one side of the scan that two devices are compared on."""
    blocks: Sequence[int]
    """Blocks of a training step."""
    block_frames: int
    repeats: int
    epochs: int
    """Of trainings, and of engines."""
    batches: Sequence[int]
    """Frames of a batch of an engine."""


FULL = Plan(
    scans={64: 64, 128: 48, 256: 32},
    compared=(64, 16),
    blocks=(1, 8),
    block_frames=128,
    repeats=5,
    epochs=20,
    batches=(64, 256, 1024),
)
QUICK = Plan(
    scans={16: 8, 32: 6},
    compared=(32, 6),
    blocks=(1, 2),
    block_frames=16,
    repeats=2,
    epochs=2,
    batches=(16,),
)


@click.command()
@click.option("--device", "name", default="cuda", show_default=True, help="cuda, mps or cpu.")
@click.option("--quick", is_flag=True, help="Tiny scans, to try the script itself.")
@click.option("--threads", default=0, show_default=True, help="Of the CPU; 0: no limit.")
@click.option("--minutes", default=6.5, show_default=True, help="Nothing is begun later.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures here.")
def main(name: str, quick: bool, threads: int, minutes: float, file: Path | None) -> None:
    """Measure the backend `unrolled` on a GPU."""
    if name != "cpu" and not is_available(name):
        raise click.ClickException(
            f"torch {torch.__version__} finds no `{name}` here; `--device cpu --quick` tries the "
            "script itself"
        )
    device, plan, ends = torch.device(name), QUICK if quick else FULL, time.time() + 60 * minutes
    torch.set_num_threads(threads or torch.get_num_threads())
    sections: dict[str, list[Row]] = {}
    with told_in_a_line():
        for title, measure in SECTIONS.items():
            rows = sections.setdefault(title, [])
            for row in measure(plan, device):
                rows.append(row)
                click.echo(f"{title}: {describe(row)}", err=True)
                if time.time() > ends:
                    break
            if time.time() > ends:
                click.echo(f"{minutes:g} minutes are over: the rest is left out", err=True)
                break
    click.echo(f"\n{device_name(device)}, torch {torch.__version__}")
    for title, rows in sections.items():
        if rows:
            click.echo(f"\n{title}:\n\n{table(rows)}")
    if file is not None:
        found = {"device": device_name(device), "torch": torch.__version__, **sections}
        write_atomic(file, json.dumps(found, indent=1).encode())
    if any(row["difference"] > TOLERANCE for row in sections[EQUALITY]):
        raise SystemExit(1)


# --- devices -------------------------------------------------------------------------------------


def is_available(name: str) -> bool:
    found = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return name in found and found[name]()


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": "CPU", "mps": "Apple GPU"}[device.type]


def wait(device: torch.device) -> None:
    """Until all that was given to a device is done."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of a call on a device, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        wait(device)
        begun = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


@contextmanager
def peak(device: torch.device, row: Row) -> Iterator[None]:
    """Note the peak memory: of a GPU what tensors took, of a CPU that of the process so far."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    yield
    is_cuda = device.type == "cuda"
    row["peak MB"] = torch.cuda.max_memory_allocated(device) / 2**20 if is_cuda else peak_mb()


# --- scans ---------------------------------------------------------------------------------------


@cache
def make_scan(size: int, grid: int) -> ScanData:
    """Of the default density of frames, whatever their size."""
    unit = size / 64
    options = SimulationOptions(size=size, grid=grid, step=6 * unit, jitter=2 * unit, photons=1e6)
    return simulate(options)


def expose(scan: ScanData, device: torch.device) -> Exposure:
    """All frames on one canvas, as `infer` places them."""
    intensity = read_intensity(scan, np.arange(scan.frame_count))
    scale = np.sqrt(intensity)
    probe = scale_probe(scan.probe, intensity * scan.size**2) / np.float32(scale)
    modes = torch.from_numpy(probe).to(device)
    return expose_scan(scan, modes, float(scale), find_photon(scan.diffraction))


def prepare_inference(
    scan: ScanData, device: torch.device, steps: int | str
) -> Callable[[], Reconstruction]:
    """All that the backend does, with a network that has learned nothing."""
    backend = backend_named("unrolled")
    options = msgspec.convert({"steps": steps}, backend.options_type)
    execution = execution_of(backend, 0, accelerator=device.type)
    model = untrained_model(scan, options)
    return partial(backend.infer, InferRequest(scan, model, options, execution))


# --- equality with a CPU -------------------------------------------------------------------------


def compare_devices(plan: Plan, device: torch.device) -> Iterator[Row]:
    """How far the results of a device are from those of the CPU, in full single precision."""
    scan, cpu = make_scan(*plan.compared), torch.device("cpu")
    results: list[dict[str, Tensor]] = []
    shown = Shown()
    for each, settings in ((cpu, nullcontext()), (device, like_a_gpu())):
        with settings, patch.object(objective, "rehearse", shown), full_precision():
            loss, gradient = learn_from(TrainingStep(scan, plan, 1, each))
            results.append(
                {
                    f"object after {STEPS} steps": take_steps(scan, each),
                    "the same, corrected by a network": correct(scan, each),
                    "object of the whole inference": torch.from_numpy(
                        prepare_inference(scan, each, STEPS)().object
                    ),
                    "loss of a training step": loss,
                    "gradient of a training step": gradient,
                }
            )
    for name, ours in results[0].items():
        theirs = results[1][name]
        difference = float((ours - theirs).abs().square().sum().sqrt() / ours.norm())
        yield {"value": name, "difference": difference}


@contextmanager
def like_a_gpu() -> Iterator[None]:
    """On a CPU too: frames in large chunks, cut and added by an index."""
    with (
        patch.object(canvas, "choose_way", lambda tensor: canvas.INDEX),
        patch.object(exposure, "CHUNK_PIXELS", exposure.GPU_CHUNK_PIXELS),
    ):
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolve in single precision, where a GPU would take ten bits of the mantissa, and a training
    seven; with smooth networks, for the gradient of a ReLU jumps where its input is nearly 0."""
    allowed = torch.backends.cudnn.allow_tf32
    with (
        patch.object(torch, "autocast", lambda *given: nullcontext()),
        patch.object(functional, "leaky_relu", lambda x, *given, **named: functional.silu(x)),
    ):
        try:
            torch.backends.cudnn.allow_tf32 = False
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = allowed


class Shown:
    """Has the network of a training see on every device what the first one's steps led to.

    It sees objects in units of the noise, in which the rounding of two devices is 1e-4.
    """

    def __init__(self) -> None:
        self._maps: tuple[Tensor, Tensor] | None = None

    def __call__(self, made: Exposure, steps: int | None) -> SimpleNamespace:
        """In place of `rehearse`."""
        if self._maps is None:
            engine = rehearse(made, steps)
            self._maps = engine.canvas, engine.show()
        device = made.amplitude.device
        found, fields = (values.to(device) for values in self._maps)
        return SimpleNamespace(canvas=found, show=lambda: fields)


@torch.inference_mode()
def take_steps(scan: ScanData, device: torch.device) -> Tensor:
    return reconstruct(expose(scan, device), STEPS).canvas.cpu()


@torch.inference_mode()
def correct(scan: ScanData, device: torch.device) -> Tensor:
    torch.manual_seed(0)
    network = wake(UnrolledNetwork(UnrolledOptions().channels)).to(device)
    made = expose(scan, device)
    return network.correct(reconstruct(made, STEPS), made).cpu()


def wake(network: UnrolledNetwork) -> UnrolledNetwork:
    """Let a network that does nothing yet do something.

    Enough that the gradient of what it does to the hidden frames is no sum of their noise, most of
    which cancels: it would be ten times as sensitive to rounding.
    """
    torch.nn.init.normal_(network.correction.network.last.weight, std=0.1)
    return network


class TrainingStep:
    """A step of the training on the frames of a scan, without what updates the weights."""

    def __init__(self, scan: ScanData, plan: Plan, blocks: int, device: torch.device) -> None:
        """Read a batch of so many blocks."""
        frames = plan.block_frames
        options = UnrolledOptions(on="scan", batch_size=frames, neighbours=frames)
        torch.manual_seed(0)
        self.objective = UnrolledObjective(scan, options)
        wake(self.objective.network)
        self.objective.to(device)
        batch = self.objective.blocks.read(self.objective.blocks.training[:blocks])
        hidden = torch.arange(batch["held_back"].shape[1])[None] % HIDDEN == 0
        batch["held_back"] = hidden.expand_as(batch["held_back"])
        batch["turns"] = torch.zeros((len(batch["held_back"]), 1), dtype=torch.int64)
        self.batch = {name: values.to(device) for name, values in batch.items()}
        self.frames = batch["held_back"].numel()

    def __call__(self) -> Tensor:
        """The loss; leaves a gradient behind."""
        self.objective.zero_grad()
        loss = self.objective.loss(self.batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def learn_from(step: TrainingStep) -> tuple[Tensor, Tensor]:
    """Loss and gradient, on the CPU."""
    loss = step()
    weights = step.objective.network.parameters()
    gradients = [weight.grad.flatten() for weight in weights if weight.grad is not None]
    return loss.cpu(), torch.cat(gradients).cpu()


# --- speed ---------------------------------------------------------------------------------------


def measure_reconstructions(plan: Plan, device: torch.device) -> Iterator[Row]:
    for size, grid in plan.scans.items():
        scan = make_scan(size, grid)
        row: Row = {"N": size, "frames": scan.frame_count}
        with peak(device, row):
            infer = prepare_inference(scan, device, "auto")
            made = infer()
            spent = seconds(infer, device, plan.repeats)
        row |= {"s": spent, "frames/s": scan.frame_count / spent}
        row["PtychoPINN, frames/s"] = PUBLISHED.get(size)
        row["amp PSNR dB"] = scored(made, scan)["amplitude_psnr_db"]
        yield row


@torch.inference_mode()
def measure_steps(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Steps on a part of the frames and on all, without frames held back."""
    for size, grid in plan.scans.items():
        made = expose(make_scan(size, grid), device)
        row: Row = {"N": size, "frames": len(made.places)}
        with peak(device, row):
            engine = Engine(made)
            turns = Turns(made, engine.filter)
            for title, turn, share in (
                ("on a quarter", turns[COARSE][0], len(turns[COARSE])),
                ("on all", turns[ALL][0], 1),
            ):
                spent = seconds(partial(engine.advance, turn), device, 4 * plan.repeats)
                row[f"{title}, ms"] = 1e3 * spent
                row[f"{title}, frame updates/s"] = len(made.places) / share / spent
        yield row


def measure_training(plan: Plan, device: torch.device) -> Iterator[Row]:
    """Steps alone by the size of their batch, and a training with all that it reads and simulates
    on the CPU."""
    for size, grid in [*plan.scans.items()][:2]:
        scan = make_scan(size, grid)
        for blocks in plan.blocks:
            step = TrainingStep(scan, plan, blocks, device)
            row: Row = {"N": size, "what": f"step, {step.frames} frames"}
            with peak(device, row):
                row["patterns/s"] = step.frames / seconds(step, device, plan.repeats)
            yield row
        for deterministic, kernels in ((None, "deterministic"), (False, "the fastest")):
            row = {"N": size, "what": f"training, kernels: {kernels}"}
            with peak(device, row):
                row["patterns/s"] = train(scan, plan, device, deterministic)
            yield row


def train(
    scan: ScanData, plan: Plan, device: torch.device, deterministic: bool | None
) -> float | None:
    """Patterns a second of a training, without its first epoch, which warms up."""
    backend = backend_named("unrolled")
    options = UnrolledOptions(
        epochs=2,
        batch_size=max(plan.blocks) * plan.block_frames,
        neighbours=plan.block_frames,
    )
    given = {
        "accelerator": device.type,
        "deterministic": deterministic,
        "num_workers": 4,
        "checkpointing": False,
    }
    ends: list[float] = []

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done:
            ends.append(time.perf_counter())

    # So short a training need not be of any use.
    with suppress(TrainingError):
        backend.train(TrainRequest([scan], options, execution_of(backend, 0, **given), progress))
    return scan.frame_count * (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else None


def measure_engine(plan: Plan, device: torch.device) -> Iterator[Row]:
    """LSQML of pty-chi by the size of its batches, without its first epoch, which warms up."""
    if find_spec("ptychi") is None or device.type == "mps":
        click.echo("LSQML: left out, for there is no pty-chi for this device", err=True)
        return
    for size, grid in plan.scans.items():
        scan = make_scan(size, grid)
        for batch in plan.batches:
            row: Row = {"N": size, "frames": scan.frame_count, "batch": batch}
            try:
                with peak(device, row):
                    spent, made = run_engine(scan, batch, plan.epochs, device)
            except torch.OutOfMemoryError:
                yield {**row, "ms an epoch": None}
                continue
            row |= {"ms an epoch": 1e3 * spent, "frame updates/s": scan.frame_count / spent}
            row |= {"epochs": plan.epochs, "s": spent * plan.epochs}
            row["amp PSNR dB"] = scored(made, scan)["amplitude_psnr_db"]
            yield row


def run_engine(
    scan: ScanData, batch: int, epochs: int, device: torch.device
) -> tuple[float, Reconstruction]:
    """Seconds of an epoch, and what it came to."""
    from ptycho_tasks_ptychi.library import choose_device, contain_library, import_library
    from ptycho_tasks_ptychi.options import PtychiOptions
    from ptycho_tasks_ptychi.reconstruct import (
        make_flat_start,
        make_task,
        read_counts,
        read_result,
        run_epoch,
    )

    options = PtychiOptions(algorithm="LSQML", batch_size=batch, epochs=epochs, refine_probe=False)
    start = make_flat_start(scan, options, float(read_counts(scan).mean()))
    with contain_library(ExecutionOptions(accelerator=device.type)):
        # Deterministic kernels, which our backend asks it for, would slow it down on a GPU.
        torch.use_deterministic_algorithms(False)
        task = make_task(*import_library(), options, scan, start, choose_device(device.type))
        run_epoch(task)
        wait(device)
        begun = time.perf_counter()
        for _ in range(epochs - 1):
            run_epoch(task)
        wait(device)
        spent = (time.perf_counter() - begun) / (epochs - 1)
        return spent, read_result(task, options, start)


EQUALITY = "difference from the CPU"
SECTIONS: Mapping[str, Callable[[Plan, torch.device], Iterator[Row]]] = {
    EQUALITY: compare_devices,
    "whole reconstruction": measure_reconstructions,
    "physics steps": measure_steps,
    "training": measure_training,
    "LSQML of pty-chi": measure_engine,
}


# --- tables --------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """In Markdown."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    lines = [titles, ["---"] * len(titles)]
    lines += [[shown(row.get(title)) for title in titles] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(row: Row) -> str:
    return ", ".join(f"{title} {shown(value)}" for title, value in row.items())


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    main()
