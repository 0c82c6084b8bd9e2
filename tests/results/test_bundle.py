"""Bundles: what goes in comes out, equal content gives equal bytes, and nothing strange gets in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ptycho_tasks.backend import TrainedModel
from ptycho_tasks.errors import BundleError, TrainingError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.results.bundle import bundle_bytes, load_bundle


def small_model() -> TrainedModel:
    shared = np.arange(12, dtype=np.float32).reshape(3, 4)
    return TrainedModel(
        models={
            "diffraction_to_obj": {"weight": shared},
            "autoencoder": {"weight": shared, "probe": np.ones((2, 2), np.complex64)},
        },
        metadata={"intensity_scale": 12.5},
        history=[{"loss": 2.0}, {"loss": 1.0}],
    )


def pack(model: TrainedModel) -> bytes:
    params = {"training": {"epochs": 2}, "flat": {"gridsize": 1, "object.big": False}}
    return bundle_bytes(model, backend="mine", backend_version="3", size=64, params=params)


@pytest.fixture
def data() -> bytes:
    return pack(small_model())


def load(tmp_path, data: bytes):
    (tmp_path / BUNDLE_NAME).write_bytes(data)
    return load_bundle(tmp_path)


def refusal(tmp_path, data: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        load(tmp_path, data)
    message = str(caught.value)
    assert BUNDLE_NAME in message
    assert "\n" not in message
    return message


def rewritten(data: bytes, **changes: bytes | None) -> bytes:
    """The same zip with members (dots as `__`) replaced, added, or (None) left out; nothing else
    tells it from one of ours."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        contents = {name: old.read(name) for name in old.namelist()} | named
        for name, content in contents.items():
            if content is not None:
                new.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return stream.getvalue()


def member(data: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(name)


def vouched(data: bytes, name: str, content: bytes) -> bytes:
    """Replace a member and make the manifest agree with it."""
    manifest = json.loads(member(data, "manifest.json"))
    manifest["members"][name] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    text = json.dumps(manifest).encode()
    return rewritten(data, manifest__json=text, **{name.replace(".", "__"): content})


def test_what_goes_in_comes_out(tmp_path, data):
    bundle = load(tmp_path, data)
    model = small_model()
    assert bundle.backend == "mine"
    assert bundle.manifest["backend"] == {"name": "mine", "version": "3"}
    assert (bundle.manifest["N"], bundle.manifest["gridsize"]) == (64, 1)
    assert bundle.params["intensity_scale"] == 12.5
    assert bundle.params["flat"]["object.big"] is False
    assert list(bundle.model.history) == list(model.history)
    for name, arrays in model.models.items():
        for key, array in arrays.items():
            loaded = bundle.model.models[name][key]
            assert loaded.dtype == array.dtype
            np.testing.assert_array_equal(loaded, array)


@given(
    array=npst.arrays(
        dtype=st.sampled_from([np.float32, np.float64, np.complex64, np.int64]),
        shape=npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_any_array_survives(tmp_path_factory, array):
    bundle = load(tmp_path_factory.mktemp("bundle"), pack(TrainedModel(models={"m": {"a": array}})))
    loaded = bundle.model.models["m"]["a"]
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


def test_equal_content_gives_equal_bytes(data):
    assert pack(small_model()) == data


def test_shared_weights_are_stored_once(tmp_path, data):
    with h5py.File(io.BytesIO(member(data, "wts.h5"))) as file:
        assert file["autoencoder/weight"] == file["diffraction_to_obj/weight"]
    models = load(tmp_path, data).model.models
    assert models["autoencoder"]["weight"] is models["diffraction_to_obj"]["weight"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_make_no_bundle(value):
    model = TrainedModel(models={"m": {"weight": np.array([1.0, value])}})
    with pytest.raises(TrainingError, match="NaN or Inf in m/weight"):
        pack(model)


def test_a_history_that_is_not_finite_makes_no_bundle():
    model = TrainedModel(models={}, history=[{"loss": 1.0}, {"loss": float("nan")}])
    with pytest.raises(TrainingError, match="epoch 2, loss"):
        pack(model)


def test_a_missing_bundle_says_what_to_run(tmp_path):
    with pytest.raises(BundleError, match="doit train"):
        load_bundle(tmp_path)


def test_no_other_name_is_searched_for(tmp_path, data):
    (tmp_path / "last.ckpt").write_bytes(data)
    (tmp_path / "other.h5.zip").write_bytes(data)
    with pytest.raises(BundleError, match="no such bundle"):
        load_bundle(tmp_path)


def test_a_bundle_cut_anywhere_is_refused(tmp_path, data):
    for length in np.linspace(0, len(data) - 1, 60).astype(int):
        refusal(tmp_path, data[:length])


def test_one_changed_byte_anywhere_is_refused(tmp_path, data):
    bits = np.random.default_rng(0).integers(0, 8, len(data))
    path = tmp_path / BUNDLE_NAME
    for place, bit in enumerate(bits):
        changed = bytearray(data)
        changed[place] ^= 1 << int(bit)
        path.write_bytes(changed)
        with pytest.raises(BundleError):
            load_bundle(path)
    refusal(tmp_path, data + b"x")


def test_a_zip_that_says_it_is_encrypted_is_refused(tmp_path, data):
    """In the directory of the zip, as its flag's first bit."""
    changed = bytearray(data)
    changed[data.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in refusal(tmp_path, bytes(changed))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("params.json", b'{"metadata": [1]}'),
        ("params.json", b"[]"),
        ("params.json", b"[" * 100_000),
        ("history.json", b"[1, 2]"),
        ("history.json", b'[{"loss": "low"}]'),
        ("history.json", b'[{"loss": %s}]' % (b"9" * 5000)),
        ("wts.h5", b"not HDF5"),
    ],
)
def test_members_that_do_not_hold_what_they_should_are_refused(tmp_path, data, name, content):
    assert name in refusal(tmp_path, vouched(data, name, content))


def test_one_changed_byte_of_the_weights_is_named(tmp_path, data):
    weights = bytearray(member(data, "wts.h5"))
    weights[-3] ^= 1
    message = refusal(tmp_path, rewritten(data, wts__h5=bytes(weights)))
    assert "wts.h5 does not match its sha256" in message


def test_a_pickled_manifest_is_refused_unread(tmp_path, data):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    message = refusal(tmp_path, rewritten(data, manifest__dill=pickle.dumps(Bomb())))
    assert "pickled code" in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil"])
def test_a_member_that_leaves_the_archive_is_refused(tmp_path, data, name):
    assert "points outside" in refusal(tmp_path, rewritten(data, **{name: b"x"}))


def test_an_extra_or_missing_member_is_refused(tmp_path, data):
    assert "extra" in refusal(tmp_path, rewritten(data, extra=b"x"))
    assert "expected the members" in refusal(tmp_path, rewritten(data, history__json=None))


def test_a_decompression_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / BUNDLE_NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("manifest.json", "params.json", "wts.h5", "history.json"):
            archive.writestr(name, b"0" * 10_000_000)
    with pytest.raises(BundleError, match="is compressed"):
        load_bundle(tmp_path)


def test_a_size_other_than_declared_is_refused(tmp_path, data):
    message = refusal(tmp_path, rewritten(data, history__json=b"[]"))
    assert "history.json has 2 bytes where the manifest says" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "other"}, "not our bundle"),
        ({"format_version": 99}, "format version 99"),
        ({"backend": 3}, "lacks backend"),
        ({"members": {}}, "lacks backend"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(tmp_path, data, change, expected):
    manifest = json.loads(member(data, "manifest.json")) | change
    assert expected in refusal(
        tmp_path, rewritten(data, manifest__json=json.dumps(manifest).encode())
    )


def test_a_manifest_that_is_not_json_is_refused(tmp_path, data):
    assert "manifest.json is not JSON" in refusal(tmp_path, rewritten(data, manifest__json=b"{"))


def weights_with(build) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for model in ("autoencoder", "diffraction_to_obj"):
            build(file.create_group(model))
    return stream.getvalue()


@pytest.mark.parametrize(
    "build",
    [
        lambda group: group.create_dataset("w", data=np.zeros(9), compression="gzip"),
        lambda group: group.create_dataset("w", (9,), "f4", external="/etc/passwd"),
        lambda group: group.__setitem__("w", h5py.ExternalLink("other.h5", "/w")),
        lambda group: group.__setitem__("w", h5py.SoftLink("/elsewhere")),
        lambda group: group.create_dataset("w", data="text"),
    ],
    ids=["compressed", "external storage", "external link", "soft link", "text"],
)
def test_weights_that_reach_out_or_expand_are_refused(tmp_path, data, build):
    message = refusal(tmp_path, vouched(data, "wts.h5", weights_with(build)))
    assert "not a plain array" in message


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, data, value):
    def build(group):
        group["w"] = np.array([1, value], np.float32)

    said = refusal(tmp_path, vouched(data, "wts.h5", weights_with(build)))
    assert "wts.h5: autoencoder/w holds NaN or Inf; train again" in said


@pytest.mark.parametrize(
    "epoch", ['{"loss": NaN}', '{"loss": 1' + "0" * 400 + "}", '{"loss": "x"}']
)
def test_a_history_without_finite_numbers_is_refused(tmp_path, data, epoch):
    said = refusal(tmp_path, vouched(data, "history.json", f"[{epoch}]".encode()))
    assert "history.json: expected finite numbers" in said


def test_weights_that_claim_more_than_the_file_holds_are_refused(tmp_path, data):
    weights = weights_with(lambda group: group.create_dataset("w", (1 << 40,), "f4"))
    assert "claims 8796093022208 bytes" in refusal(tmp_path, vouched(data, "wts.h5", weights))


@pytest.mark.parametrize(
    ("make", "expected"),
    [(os.mkdir, "is a folder"), (os.mkfifo, "is not a regular file")],
)
def test_what_is_no_file_is_refused(tmp_path, make, expected):
    make(tmp_path / BUNDLE_NAME)
    with pytest.raises(BundleError, match=expected):
        load_bundle(tmp_path)


def test_weights_of_other_models_than_the_manifest_names_are_refused(tmp_path, data):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_group("stranger")
    assert "holds the models stranger" in refusal(
        tmp_path, vouched(data, "wts.h5", stream.getvalue())
    )
