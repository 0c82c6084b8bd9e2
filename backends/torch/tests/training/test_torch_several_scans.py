"""One network that learns from several scans."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.backend import InferRequest, TrainedModel, TrainRequest
from ptycho_tasks.errors import ConfigError, TrainingError
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks.scan import ScanData
from ptycho_tasks.testing.checks import r_factor
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.frames.blocks import EpochPlan
from ptycho_tasks_torch.pinn.backend import backend as pinn
from ptycho_tasks_torch.pinn.options import PinnOptions
from ptycho_tasks_torch.training.joined import JointPlan
from ptycho_tasks_torch.unrolled.backend import backend as unrolled
from ptycho_tasks_torch.unrolled.options import UnrolledOptions

pytestmark = pytest.mark.usefixtures("few_objects", "few_trials")
CPU = TorchExecution(accelerator="cpu", threads=1)
SMALL: dict[str, Any] = {"epochs": 2, "batch_size": 16, "neighbours": 16}
PLAIN = UnrolledOptions(**SMALL, start="nothing", steps=4, channels=4)
OPTIONS = {
    "pinn": (pinn, PinnOptions(**SMALL, channels=4, steps=1, learning_rate=1e-3)),
    "labels": (pinn, PinnOptions(**SMALL, channels=4, steps=1, model_type="supervised")),
    "unrolled": (
        unrolled,
        msgspec.structs.replace(PLAIN, probe="refined", probe_modes=2, positions="refined"),
    ),
}


@pytest.fixture(scope="module")
def scans() -> list[ScanData]:
    """Two scans that differ in probe, dose, positions and number of frames."""
    bright = SimulationOptions(size=32, grid=7, step=3.5, jitter=1.0, photons=1e7, seed=2)
    dim = SimulationOptions(size=32, grid=6, step=4.0, photons=1e5, probe="disc", seed=3)
    made = [simulate(bright, name="bright"), simulate(dim, name="dim")]
    for scan in made:
        scan.diffraction.flags.writeable = False
    return made


def train(kind: str, scans: list[ScanData], execution: TorchExecution = CPU, **more: Any) -> Any:
    backend, options = OPTIONS[kind]
    return backend.train(TrainRequest(scans, options, execution, **more))


def infer(kind: str, scan: ScanData, model: TrainedModel) -> Any:
    backend, options = OPTIONS[kind]
    return backend.infer(InferRequest(scan, model, options, CPU))


def content(model: TrainedModel) -> Any:
    arrays = {
        (name, key): array.tobytes()
        for name, named in model.models.items()
        for key, array in named.items()
    }
    return arrays, model.history, model.metadata


@pytest.fixture(scope="module")
def models(scans: list[ScanData]) -> dict[str, TrainedModel]:
    """A model of each kind that learned from both."""
    return {kind: train(kind, scans) for kind in OPTIONS}


@pytest.mark.parametrize("kind", OPTIONS)
def test_one_network_explains_each_scan(kind, scans, models):
    model = models[kind]
    for scan in scans:
        result = infer(kind, scan, model)
        flat = replace(result, object=np.ones_like(result.object))
        assert r_factor(scan, result) < 0.7 * r_factor(scan, flat)


@pytest.mark.parametrize("kind", ["pinn", "unrolled"])
def test_the_same_scans_give_the_same_bytes(kind, scans, models):
    threads = msgspec.structs.replace(CPU, num_workers=2)
    assert content(train(kind, scans, threads)) == content(models[kind])


def test_other_scans_and_another_order_give_other_weights(scans, models):
    dimmer = replace(scans[1], diffraction=scans[1].diffraction * np.float32(0.9))
    for others in (scans[::-1], [scans[0], dimmer]):
        assert content(train("pinn", others))[0] != content(models["pinn"])[0]


class Killed(Exception):  # noqa: N818
    """What ends a training."""


@pytest.mark.usefixtures("every_epoch")
@pytest.mark.parametrize("kind", ["pinn", "unrolled"])
def test_a_training_that_was_killed_ends_at_the_same_bytes(kind, scans, models, tmp_path):
    def kill(done, total, metrics):
        if metrics and done == 1:
            raise Killed

    said: list[str] = []
    with pytest.raises(Killed):
        train(kind, scans, work_dir=tmp_path, progress=kill)
    model = train(kind, scans, work_dir=tmp_path, say=said.append)
    assert said[0] == "resumes after epoch 1 of 2"
    assert content(model) == content(models[kind])


def test_two_devices_learn_from_several_scans_as_one_does(scans, forked):
    options = msgspec.structs.replace(PLAIN, positions="refined", batch_size=32, epochs=1)
    one, two = (
        unrolled.train(TrainRequest(scans, options, msgspec.structs.replace(CPU, devices=devices)))
        for devices in (1, 2)
    )
    assert two.history[-1] == pytest.approx(one.history[-1], rel=1e-3)
    for name, named in one.models.items():
        for key, array in named.items():
            far = np.abs(two.models[name][key] - array).max()
            assert far <= 1e-3 * np.abs(array).max(), (name, key)


def test_each_scan_is_learned_in_units_of_its_own_intensity(scans, models):
    for kind in ("pinn", "unrolled"):
        scales = models[kind].metadata["intensity_scales"]
        mean = [float(np.square(scan.diffraction).mean()) for scan in scans]
        assert scales == pytest.approx(mean, rel=0.1)
        geometric = math.sqrt(scales[0] * scales[1])
        assert models[kind].metadata["intensity_scale"] == pytest.approx(geometric)


def test_the_history_has_the_scores_of_each_scan(models):
    for epoch in models["unrolled"].history:
        assert {"val_loss", "val_loss/bright", "val_loss/dim", "flat_loss/dim"} <= epoch.keys()
        low, high = sorted([epoch["val_loss/bright"], epoch["val_loss/dim"]])
        assert low <= epoch["val_loss"] <= high


def test_each_guess_has_a_refined_probe_that_its_scan_is_inferred_with(scans, models):
    model = models["unrolled"]
    assert {"probe_1", "probe_2"} <= model.models.keys()
    for index, scan in enumerate(scans, start=1):
        modes = model.models[f"probe_{index}"]["modes"]
        np.testing.assert_allclose(infer("unrolled", scan, model).probe, modes, rtol=1e-3)
    third = replace(scans[0], probe=np.roll(scans[0].probe, 5, axis=-1))
    assert len(infer("unrolled", third, model).probe) == 1


def test_scans_of_one_guess_refine_one_probe(scans):
    half = replace(
        scans[0],
        diffraction=scans[0].diffraction[::2] * np.float32(2),
        positions=scans[0].positions[::2],
        probe=scans[0].probe * 2,
        name="half",
    )
    model = train("unrolled", [scans[0], half])
    assert [name for name in model.models if name.startswith("probe")] == ["probe_1"]
    ours, theirs = (infer("unrolled", scan, model).probe for scan in (scans[0], half))
    np.testing.assert_allclose(theirs, 2 * ours, rtol=1e-3)


def test_what_is_wrong_with_one_scan_names_it(scans):
    plain = replace(scans[1], object=None)
    with pytest.raises(ConfigError, match="`objectGuess`, which dim does not have"):
        train("labels", [scans[0], plain])
    few = msgspec.structs.replace(PLAIN, n_groups=40)
    with pytest.raises(ConfigError, match="40 frames are asked for, but dim has"):
        unrolled.train(TrainRequest(scans, few, CPU))


def test_a_scan_that_the_network_is_useless_for_is_told(scans):
    """Frames of an empty object, which a flat one explains."""
    bright = scans[0]
    far = np.fft.fftshift(np.fft.fft2(bright.probe[0], norm="ortho"))
    frames = np.repeat(np.abs(far)[None].astype(np.float32), bright.frame_count, axis=0)
    empty = replace(bright, diffraction=frames, name="empty")
    said: list[str] = []
    train("pinn", [bright, empty], say=said.append)
    (line,) = said
    assert line.startswith("empty: the network is no better than a flat object: misfit of the")
    assert line.endswith(", or leave this scan out")
    with pytest.raises(TrainingError, match="no better than a flat object"):
        train("pinn", [empty, replace(empty, name="void")])


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 4), st.integers(1, 3))
def test_every_block_of_every_scan_has_the_same_weight_in_its_step(blocks, batch, accumulated):
    plan = JointPlan.join([EpochPlan(count, batch, accumulated) for count in blocks])
    assert sum(plan.sizes) == plan.blocks == sum(blocks)
    assert [plan.turns.count(scan) for scan in range(len(blocks))] == [
        part.batches for part in plan.plans
    ]
    for first in range(0, plan.batches, accumulated):
        step = range(plan.batches)[first : first + accumulated]
        parts = [replace(plan, rank=rank, devices=2) for rank in range(2)]
        assert sum(part.share(index) for part in parts for index in step) == pytest.approx(1)
