"""Training and inference of `pinn`: deterministic, better than what it started from, honest."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from ptycho_tasks.backend import Backend, InferRequest, TrainedModel, TrainRequest
from ptycho_tasks.errors import BundleError, ConfigError, ScanError, TrainingError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.options import ExecutionOptions
from ptycho_tasks.physics.forward import expected_intensity
from ptycho_tasks.physics.metrics import data_misfit, score
from ptycho_tasks.results.bundle import bundle_bytes
from ptycho_tasks.scan import ScanData, take_frames
from ptycho_tasks_torch import load_inference_bundle
from ptycho_tasks_torch.frames.groups import cover_frames
from ptycho_tasks_torch.pinn.backend import backend
from ptycho_tasks_torch.pinn.inference import Frames, follow_frames
from ptycho_tasks_torch.pinn.network import ObjectNetwork
from ptycho_tasks_torch.pinn.options import PinnOptions

CPU = ExecutionOptions(accelerator="cpu", threads=1)
SMALL = PinnOptions(
    epochs=4,
    gridsize=1,
    channels=8,
    steps=1,
    batch_size=16,
    neighbours=16,
    learning_rate=3e-3,
    seed=5,
)


def r_factor(scan, made) -> float:
    return data_misfit(
        made.object, made.origin, made.probe, made.positions, scan.diffraction
    ).r_factor


@pytest.fixture(scope="module")
def scan(large_scan) -> ScanData:
    """Groups and blocks are counted in it."""
    return large_scan


@pytest.fixture(scope="module")
def trained(scan) -> TrainedModel:
    return backend.train(TrainRequest([scan], SMALL, CPU))


def infer(scan, model, options=SMALL, execution=CPU):
    return backend.infer(InferRequest(scan, model, options, execution))


def test_it_is_a_backend():
    assert isinstance(backend, Backend)
    assert (backend.name, backend.options_type) == ("pinn", PinnOptions)


def test_the_same_config_gives_the_same_bytes(scan, trained):
    state = torch.random.get_rng_state()
    again = backend.train(TrainRequest([scan], SMALL, CPU))
    one, two = (
        bundle_bytes(model, backend="pinn", backend_version="1", size=32, params={})
        for model in (trained, again)
    )
    assert one == two
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("gridsize", [1, 2])
@pytest.mark.parametrize("halvings", [3, 5])
def test_a_network_that_halves_more_often_takes_any_canvas(scan, gridsize, halvings):
    """Its canvases are larger, and where no light falls nothing is learned: untrained it does what
    others do."""
    options = msgspec.structs.replace(SMALL, gridsize=gridsize)
    deeper = msgspec.structs.replace(options, halvings=halvings)
    made = []
    for some in (options, deeper):
        network = ObjectNetwork(some.channels, some.steps, some.halvings)
        weights = {name: value.numpy() for name, value in network.state_dict().items()}
        metadata = {"N": 32, "intensity_scale": float(np.mean(scan.diffraction**2))}
        made.append(infer(scan, TrainedModel({"diffraction_to_obj": weights}, metadata), some))
    np.testing.assert_allclose(made[1].object, made[0].object, atol=1e-4)


def test_a_network_that_halves_more_often_learns(scan, trained):
    options = msgspec.structs.replace(SMALL, halvings=4)
    model = backend.train(TrainRequest([scan], options, CPU))
    made = infer(scan, model, options)
    assert r_factor(scan, made) < 1.1 * r_factor(scan, infer(scan, trained))


def test_another_seed_gives_another_model(scan, trained):
    other = backend.train(TrainRequest([scan], msgspec.structs.replace(SMALL, seed=6), CPU))
    name = "corrections.0.last.weight"
    ours, theirs = (m.models["diffraction_to_obj"][name] for m in (trained, other))
    assert not np.array_equal(ours, theirs)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_training_makes_the_reconstruction_better(scan, gridsize):
    options = msgspec.structs.replace(SMALL, gridsize=gridsize, epochs=16)
    model = backend.train(TrainRequest([scan], options, CPU))
    untrained = {key: np.array(value) for key, value in model.models["diffraction_to_obj"].items()}
    for key in untrained:
        if ".last." in key:
            untrained[key][:] = 0
    untrained["gains"][:] = 1
    before = infer(scan, replace(model, models={"diffraction_to_obj": untrained}), options)
    after = infer(scan, model, options)
    assert r_factor(scan, after) < r_factor(scan, before)
    losses = [epoch["val_loss"] for epoch in model.history]
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] < 0.2 * model.history[-1]["flat_loss"]
    flat = replace(after, object=np.full_like(after.object, scan.object.mean()))
    assert r_factor(scan, after) < 0.5 * r_factor(scan, flat)
    ours, none = (
        score(made.object, made.origin, scan.object, made.positions, scan.size)
        for made in (after, flat)
    )
    assert ours["amplitude_ssim"] > none["amplitude_ssim"] + 0.3
    assert ours["phase_ssim"] > none["phase_ssim"] + 0.2


def test_progress_is_told_of_every_epoch_and_the_history_kept(scan):
    told = []
    options = msgspec.structs.replace(SMALL, epochs=2)
    model = backend.train(TrainRequest([scan], options, CPU, lambda *step: told.append(step)))
    assert [step[:2] for step in told] == [(0, 2), (1, 2), (2, 2)]
    assert told[-1][2]["loss"] == model.history[-1]["loss"]
    assert model.history[0].keys() >= {"loss", "val_loss", "spread"}
    assert model.metadata["N"] == 32
    assert model.metadata["gridsize"] == 1
    assert model.metadata["intensity_scale"] > 0


def test_fewer_groups_make_an_epoch_shorter(scan):
    from ptycho_tasks_torch.frames.blocks import EpochPlan, make_group_blocks, split_frames

    def steps(**values) -> int:
        options = msgspec.structs.replace(SMALL, **values)
        training, validation = split_frames(scan, options)
        blocks = make_group_blocks(scan, options, training, validation)
        return EpochPlan.from_blocks(blocks, options).steps

    assert steps() == 5  # of 79 frames, 16 a step
    assert steps(gridsize=2) == 5
    assert steps(n_groups=32) == 2
    assert steps(n_groups=79) == 5


def test_nothing_is_printed_and_nothing_is_written(scan, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    backend.train(TrainRequest([scan], msgspec.structs.replace(SMALL, epochs=1), CPU))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_scan_gives_the_same_and_stays_as_it_is(scan, trained, tmp_path):
    np.save(tmp_path / "frames.npy", scan.diffraction)
    before = (tmp_path / "frames.npy").read_bytes()
    mapped = replace(scan, diffraction=np.load(tmp_path / "frames.npy", mmap_mode="r"))
    model = backend.train(TrainRequest([mapped], SMALL, CPU))
    for name, array in trained.models["diffraction_to_obj"].items():
        np.testing.assert_array_equal(model.models["diffraction_to_obj"][name], array)
    np.testing.assert_array_equal(infer(mapped, model).object, infer(scan, trained).object)
    assert (tmp_path / "frames.npy").read_bytes() == before


def test_the_variables_of_a_batch_system_change_nothing(scan, trained, monkeypatch):
    for name, value in {
        "JOB_NAME": "train",
        "JOB_ID": "1",
        "NTASKS": "4",
        "PROCID": "0",
        "LOCALID": "0",
        "NODELIST": "node1",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    model = backend.train(TrainRequest([scan], SMALL, CPU))
    for name, array in trained.models["diffraction_to_obj"].items():
        np.testing.assert_array_equal(model.models["diffraction_to_obj"][name], array)


@pytest.mark.parametrize("gridsize", [1, 2])
def test_only_frames_held_back_are_validated(scan, gridsize):
    from ptycho_tasks_torch.frames.blocks import make_group_blocks, split_frames

    options = msgspec.structs.replace(SMALL, gridsize=gridsize, validation_fraction=0.2)
    training, validation = split_frames(scan, options)
    assert set(training).isdisjoint(validation)
    blocks = make_group_blocks(scan, options, training, validation)
    np.testing.assert_array_equal(blocks.held_back, validation)
    assert not np.isin(blocks.groups.frames[blocks.training], validation).any()
    for frame, block in zip(validation, blocks.validation, strict=True):
        assert frame in blocks.groups.frames[block[0]]


def test_permuted_frames_give_the_same_image(scan, trained):
    order = np.random.default_rng(0).permutation(scan.frame_count)
    one, two = infer(scan, trained), infer(take_frames(scan, order), trained)
    np.testing.assert_allclose(two.object, one.object, atol=1e-3)


def test_a_shifted_scan_gives_a_shifted_image(scan, trained):
    moved = replace(scan, positions=scan.positions + np.array([7.0, -3.0]))
    one, two = infer(scan, trained), infer(moved, trained)
    assert (two.origin[0] - one.origin[0], two.origin[1] - one.origin[1]) == (7, -3)
    np.testing.assert_allclose(two.object, one.object, atol=1e-4)


def test_what_was_not_measured_is_filled_with_what_the_object_gives(scan, trained):
    frames = np.array(scan.diffraction)
    frames[:, :, scan.size // 3] = np.nan
    gapped = replace(scan, diffraction=frames, bad_pixels=np.isnan(frames).all(axis=0))
    whole, made = infer(scan, trained), infer(gapped, trained)
    some = cover_frames(gapped, 1)
    _, empty = Frames(gapped, made.probe).read(some)
    measured = scan.diffraction[some.frames]
    bad = empty.isnan().numpy()

    def fill(image):
        _, filled = Frames(gapped, made.probe, image).read(some)
        np.testing.assert_array_equal(filled.numpy()[~bad], measured[~bad])
        return np.abs(filled.numpy() - measured)[bad].sum() / measured[bad].sum()

    followed = follow_frames(made.object, gapped, torch.from_numpy(made.probe))
    assert fill(followed) < 0.8 * fill(made.object) < 0.8 * 0.2
    assert r_factor(gapped, made) < 1.02 * r_factor(scan, whole)


def test_the_batch_size_of_inference_changes_nothing(scan, trained):
    one = infer(scan, trained)
    two = infer(
        scan,
        trained,
        execution=ExecutionOptions(accelerator="cpu", threads=1, inference_batch_size=7),
    )
    np.testing.assert_allclose(two.object, one.object, atol=1e-4)


def test_a_probe_of_unknown_scale_is_scaled(scan, trained):
    weak = replace(scan, probe=scan.probe / np.float32(1e3))
    made = infer(weak, trained)
    assert r_factor(scan, made) == pytest.approx(r_factor(scan, infer(scan, trained)), rel=0.3)


def test_several_probe_modes(scan):
    two = np.concatenate([scan.probe, 0.3 * scan.probe[:, ::-1]]).astype(np.complex64)
    modes = replace(scan, probe=two)
    options = msgspec.structs.replace(SMALL, epochs=1)
    made = infer(modes, backend.train(TrainRequest([modes], options, CPU)), options)
    assert made.probe.shape == (2, 32, 32)
    assert np.isfinite(made.object).all()


# --- what bad input gets ---------------------------------------------------------------------


def test_a_loss_that_becomes_nan_fails_the_run(scan):
    options = msgspec.structs.replace(SMALL, learning_rate=1.0, epochs=4)
    with pytest.raises(TrainingError, match=r"NaN or Inf in epoch|no better than a flat object"):
        backend.train(TrainRequest([scan], options, CPU))


def test_a_network_no_better_than_a_flat_object_fails_the_run(scan):
    """The unit of what fails a run: a collapse is no matter of chance to be waited for."""
    from ptycho_tasks_torch.training.objective import refuse_flat

    good = {"loss": 0.1, "val_loss": 0.1, "flat_loss": 0.4, "spread": 0.2}
    refuse_flat(good)
    for collapsed in ({"val_loss": 0.4}, {"val_loss": float("nan")}, {"spread": 1e-5}):
        with pytest.raises(TrainingError, match="no better than a flat object"):
            refuse_flat(good | collapsed)


def test_a_scan_of_a_flat_object_fails_the_run(scan):
    counts = [
        c for _, c in expected_intensity(np.ones_like(scan.object), scan.probe, scan.positions)
    ]
    flat = replace(scan, diffraction=np.sqrt(np.concatenate(counts)))
    with pytest.raises(TrainingError, match="no better than a flat object"):
        backend.train(TrainRequest([flat], msgspec.structs.replace(SMALL, epochs=1), CPU))


@pytest.mark.parametrize("factor", [1e-42, 1e30])
def test_frames_beyond_single_precision_are_refused_with_a_remedy(scan, trained, factor):
    frames = (scan.diffraction.astype(np.float64) * factor).astype(np.float32)
    far = replace(scan, diffraction=frames)
    for compute in (
        lambda: backend.train(TrainRequest([far], SMALL, CPU)),
        lambda: infer(far, trained),
    ):
        with pytest.raises(ScanError, match=r"beyond single precision .*; scale the amplitudes"):
            compute()


def test_a_history_without_losses_is_refused(scan, trained):
    with pytest.raises(BundleError, match=r"history.json: epoch 1 has no `loss`"):
        infer(scan, replace(trained, history=[{}]))


def test_dark_frames_are_refused(scan):
    dark = replace(scan, diffraction=np.zeros_like(scan.diffraction))
    with pytest.raises(ScanError, match="every frame is dark"):
        backend.train(TrainRequest([dark], SMALL, CPU))


def test_too_few_frames_are_refused(scan):
    with pytest.raises(ScanError, match="at least 16"):
        backend.train(TrainRequest([take_frames(scan, np.arange(10))], SMALL, CPU))


def test_more_groups_than_there_are_says_how_many(scan):
    options = msgspec.structs.replace(SMALL, n_groups=500)
    with pytest.raises(ConfigError, match=r"500 groups.*give 79"):
        backend.train(TrainRequest([scan], options, CPU))


def test_another_detector_size_is_refused(scan, trained):
    other = replace(
        scan,
        diffraction=np.ones((81, 16, 16), np.float32),
        probe=np.ones((1, 16, 16), np.complex64),
    )
    with pytest.raises(ConfigError, match="trained on 32 x 32"):
        infer(other, trained)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_an_accelerator_that_is_not_there_is_refused(scan, trained, accelerator):
    execution = ExecutionOptions(accelerator=accelerator)
    with pytest.raises(ConfigError, match=f"finds no `{accelerator}`"):
        infer(scan, trained, execution=execution)
    with pytest.raises(ConfigError, match=f"finds no `{accelerator}`"):
        backend.train(TrainRequest([scan], SMALL, execution))


def test_a_model_of_another_shape_is_refused(scan, trained):
    with pytest.raises(BundleError, match="do not fit the network"):
        infer(scan, trained, msgspec.structs.replace(SMALL, channels=12))
    with pytest.raises(BundleError, match="holds no model"):
        infer(scan, TrainedModel(models={}, metadata=trained.metadata))


@pytest.mark.parametrize(
    "damage", [{"N": None}, {"intensity_scale": None}, {"intensity_scale": 1e308}]
)
def test_a_model_without_what_its_training_found_is_refused(scan, trained, damage):
    with pytest.raises(BundleError, match="not as its training left it"):
        infer(scan, replace(trained, metadata={**trained.metadata, **damage}))


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 40}, {"batch_size": 6}, {"neighbours": 6, "batch_size": 6}],
)
def test_options_that_do_not_fit_each_other_are_refused(wrong):
    with pytest.raises(msgspec.ValidationError, match="is no multiple of"):
        msgspec.convert(wrong, PinnOptions)


@pytest.mark.parametrize(
    ("given", "frames"), [({}, 32), ({"batch_size": 16}, 16), ({"batch_size": 64}, 32)]
)
def test_a_block_holds_no_more_frames_than_a_batch(given, frames):
    assert msgspec.convert(given, PinnOptions).block_frames == frames


# --- bundles and imports ---------------------------------------------------------------------


@pytest.fixture
def model_dir(tmp_path, trained):
    params = {"training": msgspec.to_builtins(SMALL), "flat": {"N": 32, "object.big": False}}
    data = bundle_bytes(trained, backend="pinn", backend_version="1", size=32, params=params)
    (tmp_path / BUNDLE_NAME).write_bytes(data)
    return tmp_path


def test_a_bundle_loads_as_modules_in_eval_mode(model_dir, scan, trained):
    models, params = load_inference_bundle(model_dir)
    assert models.keys() == {"diffraction_to_obj", "autoencoder"}
    assert not any(module.training for module in models.values())
    assert params["object.big"] is False
    x = torch.from_numpy(scan.diffraction[:3, None].copy())
    call = (
        x,
        torch.zeros(3, 1, 1, 2),
        torch.from_numpy(scan.probe[0]),
        torch.full((3,), params["intensity_scale"] ** 0.5),
    )
    with torch.inference_mode():
        patches, amplitude = models["diffraction_to_obj"](*call), models["autoencoder"](*call)
    assert patches.shape == amplitude.shape == x.shape
    assert (patches.dtype, amplitude.dtype) == (torch.complex64, torch.float32)
    assert float((amplitude - x).abs().mean() / x.mean()) < 0.5


def test_both_models_share_their_arrays(trained):
    objects, whole = trained.models["diffraction_to_obj"], trained.models["autoencoder"]
    assert all(whole[f"network.{name}"] is array for name, array in objects.items())
