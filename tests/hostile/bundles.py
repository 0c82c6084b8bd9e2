"""Bundles of strangers: damaged, and changed with checksums that are right again."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.battery import Battery, Must, Rng, Trial
from hostile.running import ptycho, run_apart
from hostile.scans import prepared, save, wrong_result
from ptycho_tasks.backend import TrainedModel
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.results.bundle import bundle_bytes, load_bundle

BUNDLE = Battery("bundle")
PATH = Path("model", BUNDLE_NAME)
NAMES = (BUNDLE_NAME, "model")
MEMBERS = ("manifest.json", "params.json", "wts.h5", "history.json")


@functools.cache
def right() -> bytes:
    """A small bundle as the program writes it."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = TrainedModel(
        models={"a": {"weight": weight}, "b": {"weight": weight, "bias": np.ones(3)}},
        metadata={"intensity_scale": 12.5},
        history=[{"loss": 2.0}, {"loss": 1.0}],
    )
    params = {"training": {"epochs": 2}, "flat": {"gridsize": 1}}
    return bundle_bytes(model, backend="mine", backend_version="3", size=64, params=params)


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sealed(contents: dict[str, bytes], **manifest: Any) -> bytes:
    """A bundle of these members with checksums that are right."""
    said = json.loads(contents["manifest.json"])
    for name in MEMBERS[1:]:
        if name in contents:
            said["members"][name] = {
                "sha256": hashlib.sha256(contents[name]).hexdigest(),
                "size": len(contents[name]),
            }
    return zipped({**contents, "manifest.json": json.dumps({**said, **manifest}).encode()})


def zipped(contents: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in contents.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.compress_type = method
            archive.writestr(info, content)
    return stream.getvalue()


def load(data: bytes, must: Must = "either") -> Trial:
    """Load the bundle; what is loaded must be numbers."""
    PATH.parent.mkdir()
    PATH.write_bytes(data)
    return Trial(lambda: load_bundle(PATH.parent), NAMES, must, _not_numbers)


def _not_numbers(bundle: Any) -> str:
    for arrays in bundle.model.models.values():
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                return f"{name} is not finite"
    return ""


def look(data: bytes, *words: str, must: Must = "either") -> Trial:
    """Ask the command line about the bundle."""
    PATH.parent.mkdir()
    PATH.write_bytes(data)
    return Trial(ptycho("bundle", *words, "model"), NAMES, must)


def _loads(name: str, must: Must, make: Callable[[], bytes]) -> None:
    BUNDLE.add(name, lambda rng: load(make(), must))


def _changed(name: str, member: str, content: bytes, must: Must = "either") -> None:
    """A member replaced, checksums right: loaded, shown and verified."""
    make = functools.partial(lambda m, c: sealed({**members(right()), m: c}), member, content)
    BUNDLE.add(f"load_{name}", lambda rng: load(make(), must))
    BUNDLE.add(f"show_{name}", lambda rng: look(make(), "show", must=must))
    BUNDLE.add(f"verify_{name}", lambda rng: look(make(), "verify", must=must))


_DEEP = b"[" * 100_000 + b"]" * 100_000
_loads("right", "succeed", right)
_loads("empty", "refuse", bytes)
_loads("text", "refuse", lambda: b"a bundle")
_loads("pickle", "refuse", lambda: pickle.dumps({"a": 1}))
_loads(
    "manifest_dill",
    "refuse",
    lambda: zipped({"manifest.dill": b"cos\nsystem\n", **members(right())}),
)
_loads("no_members", "refuse", lambda: zipped({}))
_loads("compressed", "refuse", lambda: zipped(members(right()), zipfile.ZIP_DEFLATED))
_loads(
    "bomb",
    "refuse",
    lambda: zipped({**members(right()), "wts.h5": bytes(50 << 20)}, zipfile.ZIP_DEFLATED),
)
for _name in (
    "../evil",
    "/etc/evil",
    "a/../../evil",
    "C:\\evil",
    "wts.h5/",
    "evil\n.json",
    "\x1b[31m",
    "manifest.json\0",
):
    _loads(
        f"member_{_name.encode().hex()}",
        "refuse",
        functools.partial(lambda n: zipped({**members(right()), n: b"x"}), _name),
    )
for _name in MEMBERS:
    _loads(
        f"without_{_name}",
        "refuse",
        functools.partial(
            lambda n: zipped({k: v for k, v in members(right()).items() if k != n}), _name
        ),
    )
    _loads(
        f"empty_{_name}",
        "refuse",
        functools.partial(lambda n: zipped({**members(right()), n: b""}), _name),
    )

for _name, _content in {
    "history_of_nothing": b"[{}]",
    "history_deep": _DEEP,
    "history_text": b'[{"loss": "low"}]',
    "history_nan": b'[{"loss": NaN}]',
    "history_inf": b'[{"loss": Infinity}, {"loss": 1e999}]',
    "history_mapping": b"{}",
    "history_huge_int": b'[{"loss": 1' + b"0" * 5000 + b"}]",
    "history_null": b"[null]",
    "history_names": b'[{"\\u001b[31m": 1}]',
    "history_surrogate": b'[{"\\ud800": 1}]',
    "history_not_utf8": b'[{"\xff": 1}]',
}.items():
    _changed(_name, "history.json", _content)
for _name, _content in {
    "params_empty": b"{}",
    "params_list": b"[]",
    "params_deep": b'{"training": ' + _DEEP + b"}",
    "params_metadata_text": b'{"metadata": "x"}',
    "params_scale": b'{"metadata": {"intensity_scale": 1e308}, "training": {}}',
    "params_nan": b'{"metadata": {"intensity_scale": NaN}, "training": {}}',
    "params_twice": b'{"metadata": {}, "metadata": {"a": 1}}',
    "params_escape": b'{"metadata": {"a": "\\u001b[31m"}}',
    "params_surrogate": b'{"metadata": {"a": "\\ud800"}}',
}.items():
    _changed(_name, "params.json", _content)


def _manifest(name: str, must: Must = "refuse", **said: Any) -> None:
    make = functools.partial(lambda s: sealed(members(right()), **s), said)
    BUNDLE.add(f"manifest_{name}", lambda rng: load(make(), must))
    BUNDLE.add(f"manifest_{name}_shown", lambda rng: look(make(), "show", must=must))


_manifest("version_2", format_version=2)
_manifest("version_text", format_version="1")
_manifest("version_true", "either", format_version=True)
_manifest("other_format", format="zip")
_manifest("backend_text", backend="mine")
_manifest("backend_nameless", backend={})
_manifest("models_numbers", models=[1, 2])
_manifest("models_twice", models=["a", "a", "b"])
_manifest("models_others", models=["a", "c"])
_manifest("size_text", N="64")
_manifest("size_huge", "either", N=10**30)
_manifest("size_true", "either", N=True)
_manifest("members_list", members=[])
_manifest("backend_escape", "either", backend={"name": "\x1b[31mred\nerror: x", "version": "1"})
_loads("manifest_deep", "refuse", lambda: zipped({**members(right()), "manifest.json": _DEEP}))
_loads(
    "manifest_large",
    "refuse",
    lambda: zipped({**members(right()), "manifest.json": b" " * (2 << 20)}),
)


def _weights(change: Callable[[h5py.File], None]) -> bytes:
    stream = io.BytesIO(members(right())["wts.h5"])
    with h5py.File(stream, "r+") as file:
        change(file)
    return sealed({**members(right()), "wts.h5": stream.getvalue()})


def _weight(name: str, change: Callable[[h5py.File], None], must: Must = "refuse") -> None:
    BUNDLE.add(f"weights_{name}", lambda rng: load(_weights(change), must))
    BUNDLE.add(f"weights_{name}_verified", lambda rng: look(_weights(change), "verify", must=must))


def _put(value: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["a/weight"]
        file["a"].create_dataset("weight", data=value, **options)

    return change


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[:] = h5py.VirtualSource("/etc/services", "d", (3, 4))
    del file["a/weight"]
    file["a"].create_virtual_dataset("weight", layout)


def _replace(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file["a/weight"]
        file["a/weight"] = link

    return change


def _stored_outside(file: h5py.File) -> None:
    del file["a/weight"]
    storage = [("/etc/services", 0, 48)]
    file["a"].create_dataset("weight", (3, 4), "f4", external=storage)


def _claims(file: h5py.File) -> None:
    del file["a/weight"]
    file["a"].create_dataset("weight", (10**6, 10**6), "f4")


_weight("nan", _put(np.full((3, 4), np.nan, "f4")))
_weight("inf", _put(np.full((3, 4), np.inf, "f4")))
_weight("nan_complex", _put(np.full((3, 4), 1j * np.nan, "c8")))
_weight("virtual", _virtual)
_weight("external_link", _replace(h5py.ExternalLink("/etc/services", "d")))
_weight("soft_link", _replace(h5py.SoftLink("/b/weight")))
_weight("soft_loop", _replace(h5py.SoftLink("/a/weight")))
_weight("external_storage", _stored_outside)
_weight("chunked", _put(np.ones((3, 4)), chunks=(1, 1)))
_weight("compressed", _put(np.ones((30, 40)), compression="gzip"))
_weight("claims", _claims)
_weight("text", _put("weights"))
_weight("null", _put(h5py.Empty("f4")))
_weight("compound", _put(np.zeros(3, [("a", "f4")])))
_weight("objects", _put(np.array([h5py.Reference()], dtype=h5py.ref_dtype)))
_weight("group_in_group", lambda file: file["a"].create_group("more") and None)
_weight("third_model", lambda file: file.create_group("c") and None)
_weight("model_is_array", lambda file: (file.__delitem__("a"), file.create_dataset("a", data=1))[0])
_weight("datatype", lambda file: file["a"].__setitem__("kind", np.dtype("f4")))
_weight("attributes", lambda file: file["a"].attrs.__setitem__("x", 1), "either")


@BUNDLE.case
def _a_folder(rng: Rng) -> Trial:
    PATH.mkdir(parents=True)
    return Trial(lambda: load_bundle(PATH.parent), NAMES, "refuse")


@BUNDLE.case
def _nothing(rng: Rng) -> Trial:
    return Trial(ptycho("bundle", "verify", "model"), NAMES, "refuse")


@BUNDLE.case
def _name_not_utf8(rng: Rng) -> Trial:
    return Trial(
        ptycho("bundle", "verify", "\udcff\udcfe"), ("\\udcff", "xff", "�", BUNDLE_NAME), "refuse"
    )


@BUNDLE.family
def _cut(rng: Rng) -> Trial:
    return load(right()[: rng.integers(len(right()))], "refuse")


@BUNDLE.family
def _flip(rng: Rng) -> Trial:
    data = bytearray(right())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return load(bytes(data), "refuse")


@BUNDLE.family
def _spoilt_weights(rng: Rng) -> Trial:
    """Bytes of the HDF5 changed, checksums right."""
    contents = members(right())
    data = bytearray(contents["wts.h5"])
    for _ in range(rng.integers(1, 8)):
        data[rng.integers(len(data))] = rng.integers(256)
    return load(sealed({**contents, "wts.h5": bytes(data)}))


@BUNDLE.family
def _spoilt_json(rng: Rng) -> Trial:
    """Characters of the JSON changed, checksums right; as any command sees it."""
    contents = members(right())
    name = str(rng.choice(["params.json", "history.json", "manifest.json"]))
    data = bytearray(contents[name])
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(len(data))] = rng.choice(list(b'0123456789{}[]",:-eENaInfinity \n\xff'))
    contents[name] = bytes(data)
    try:
        bundle = sealed(contents)
    except (ValueError, KeyError, TypeError, AttributeError):
        bundle = zipped(contents)
    return look(bundle, str(rng.choice(["show", "verify"])))


# --- reconstructing with one that a network made -------------------------------------------------


def _trained(backend: str) -> bytes:
    def make() -> None:
        save()
        small = ", start: nothing, channels: 4, on: scan" if backend == "unrolled" else ""
        Path("small.yaml").write_text(
            f"source: {{file: scan.npz}}\nbackend: {backend}\ntraining: {{epochs: 1{small}}}\n"
            "execution: {accelerator: cpu, threads: 1}\n"
        )
        words = ("train", "--config", "small.yaml", "--output-dir", "model")
        assert run_apart(ptycho(*words)) == 0

    return (prepared(backend, make) / PATH).read_bytes()


def torch_infer(data: bytes, must: Must = "speak") -> Trial:
    """Reconstruct with the bundle, as a command."""
    save()
    PATH.parent.mkdir()
    PATH.write_bytes(data)
    words = ("--model-path", "model", "--test-data", "scan.npz", "--output-dir", "out")
    trial = Trial(ptycho("infer", *words, "--accelerator", "cpu", "--threads", "1"), NAMES, must)
    wrong = wrong_result(most=1.0, least_score=-1, path=Path("out/metrics.json"))
    trial.wrong = wrong
    return trial


def _all_weights(change: Callable[[Any], Any]) -> Callable[[], bytes]:
    def make() -> bytes:
        contents = members(_trained("pinn"))
        stream = io.BytesIO(contents["wts.h5"])
        with h5py.File(stream, "r+") as file, np.errstate(over="ignore"):
            for group in file.values():
                for dataset in group.values():
                    dataset[...] = change(dataset[()])
        return sealed({**contents, "wts.h5": stream.getvalue()})

    return make


def _params(*changes: tuple[str, str, Any]) -> Callable[[], bytes]:
    def make() -> bytes:
        contents = members(_trained("pinn"))
        params = json.loads(contents["params.json"])
        for section, key, value in changes:
            (params[section] if section else params)[key] = value
        return sealed({**contents, "params.json": json.dumps(params).encode()})

    return make


def _torch(name: str, make: Callable[[], bytes], must: Must = "speak") -> None:
    BUNDLE.add(f"torch_{name}", lambda rng: torch_infer(make(), must))


_torch("nan", _all_weights(lambda w: w * np.float32(np.nan)), "refuse")
_torch("huge", _all_weights(lambda w: w * np.float32(1e30)))
_torch("zero", _all_weights(lambda w: w * 0))
_torch(
    "scale_1e308", _params(("metadata", "intensity_scale", 1e308), ("", "intensity_scale", 1e308))
)
_torch("scale_0", _params(("metadata", "intensity_scale", 0.0), ("", "intensity_scale", 0.0)))
_torch(
    "scale_text",
    _params(("metadata", "intensity_scale", "x"), ("", "intensity_scale", "x")),
    "refuse",
)
_torch("scale_null", _params(("metadata", "intensity_scale", None), ("", "intensity_scale", None)))
_torch(
    "scale_negative", _params(("metadata", "intensity_scale", -1.0), ("", "intensity_scale", -1.0))
)
_torch("metadata_empty", _params(("", "metadata", {})))
_torch("training_empty", _params(("", "training", {})))
_torch("training_wrong", _params(("training", "gridsize", 3)))
_torch("training_huge", _params(("training", "gridsize", 10**9)), "refuse")
_torch(
    "of_no_models",
    lambda: sealed(members(right()), backend={"name": "pinn", "version": "1"}),
    "refuse",
)
_torch(
    "of_unknown",
    lambda: sealed(members(right()), backend={"name": "nobody", "version": "1"}),
    "refuse",
)
_torch(
    "of_a_path",
    lambda: sealed(members(right()), backend={"name": "../x", "version": "1"}),
    "refuse",
)


def _small_frames(name: str, factor: float, backend: str) -> None:
    def maker(rng: Rng) -> Trial:
        trial = torch_infer(_trained(backend))
        shutil.rmtree("scan.npz", ignore_errors=True)
        from hostile.scans import scan

        save(diff3d=scan().amplitude * np.float32(factor), objectGuess=None)
        trial.names = ("scan.npz", *NAMES)
        return trial

    BUNDLE.add(f"torch_{backend}_frames_{name}", maker)


for _backend in ("pinn", "unrolled"):
    _small_frames("denormal", 1e-42, _backend)
    _small_frames("1e30", 1e30, _backend)
    _small_frames("float32_max", 3e35, _backend)
