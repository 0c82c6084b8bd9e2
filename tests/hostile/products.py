"""A project whose results were damaged: they are made again, the same, or it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.battery import Battery, Rng, Trial
from hostile.running import doit, ptycho
from hostile.scans import built_project

PRODUCT = Battery("product")
INFERENCE, REFINEMENT = Path("runs/default/inference"), Path("runs/default/refinement")
RESULT, METRICS = INFERENCE / "reconstruction.h5", INFERENCE / "metrics.json"
BUNDLE = Path("runs/default/training/wts.h5.zip")
FIXTURE, SIDECAR = Path("fixtures/tiny.npz"), Path("fixtures/tiny.json")
STATE = Path(".ptycho")
OUTPUTS = (
    RESULT,
    METRICS,
    REFINEMENT / "reconstruction.h5",
    REFINEMENT / "metrics.json",
    BUNDLE,
    FIXTURE,
    SIDECAR,
)


def rebuild(damage: Callable[[], Any], *, forget: bool = False, ask: str = "") -> Trial:
    """Damage a finished project, and run or ask `doit` again.

    Args:
        damage: what is done to it.
        forget: whether the state is lost too.
        ask: a command of doit that only asks; empty runs.
    """
    original = built_project()
    damage()
    if forget:
        shutil.rmtree(STATE)

    def other(_: Any) -> str:
        differ = [
            str(path)
            for path in OUTPUTS
            if not path.exists() or path.read_bytes() != (original / path).read_bytes()
        ]
        return f"not as a first run makes it: {', '.join(differ)}" if differ and not ask else ""

    names = (*(path.name for path in OUTPUTS), "runs", "fixtures")
    may_change = () if ask else ("runs", "fixtures")
    words = (ask,) if ask else ("infer",)
    return Trial(doit(*words), names, wrong=other, may_change=may_change)


def _damages(name: str, damage: Callable[[], Any]) -> None:
    PRODUCT.add(name, lambda rng: rebuild(damage))
    PRODUCT.add(f"{name}_stateless", lambda rng: rebuild(damage, forget=True))
    PRODUCT.add(f"{name}_why", lambda rng: rebuild(damage, forget=True, ask="why"))


_DEEP = "[" * 100_000 + "]" * 100_000
_damages("nothing", lambda: None)
for _path in OUTPUTS:
    _label = f"{_path.parent.name}_{_path.name}"
    _damages(f"{_label}_gone", _path.unlink)
    _damages(f"{_label}_empty", lambda path=_path: path.write_bytes(b""))
    PRODUCT.add(
        f"{_label}_folder", lambda rng, path=_path: rebuild(lambda: (path.unlink(), path.mkdir()))
    )
    PRODUCT.add(
        f"{_label}_link",
        lambda rng, path=_path: rebuild(lambda: (path.unlink(), path.symlink_to("nowhere"))),
    )


def _said(**change: Any) -> Callable[[], None]:
    def damage() -> None:
        said = json.loads(METRICS.read_text())
        METRICS.write_text(json.dumps({**said, **change}))

    return damage


_damages("metrics_deep", lambda: METRICS.write_text(_DEEP))
_damages("metrics_not_utf8", lambda: METRICS.write_bytes(b'{"made_from": "\xff"}'))
_damages("metrics_list", lambda: METRICS.write_text("[]"))
_damages("metrics_made_from_text", _said(made_from="x"))
_damages("metrics_made_from_list", _said(made_from=[1]))
_damages("metrics_made_from_empty", _said(made_from={}))
_damages(
    "metrics_made_from_numbers",
    _said(made_from=dict.fromkeys(("settings", "versions", "sources", "inputs", "files"), 7)),
)
_damages(
    "metrics_files_paths",
    _said(
        made_from={
            "settings": {},
            "versions": {},
            "sources": {},
            "inputs": {},
            "files": {"../../../x": "0"},
        }
    ),
)
_damages("metrics_huge_number", lambda: METRICS.write_text('{"made_from": 1' + "0" * 5000 + "}"))


def _in_product(change: Callable[[h5py.File], Any]) -> Callable[[], None]:
    def damage() -> None:
        with h5py.File(RESULT, "r+") as file:
            change(file)

    return damage


def _put(key: str, value: Any) -> Callable[[h5py.File], Any]:
    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = value

    return change


for _name, _change in {
    "object_null": _put("object", h5py.Empty("c8")),
    "object_text": _put("object", "x"),
    "object_nan": _put("object", np.full((1, 60, 60), np.nan, "c8")),
    "object_small": _put("object", np.ones((1, 3, 3), "c8")),
    "probe_null": _put("probe", h5py.Empty("c8")),
    "positions_null": _put("ptycho_tasks/positions", h5py.Empty("f8")),
    "positions_far": _put("ptycho_tasks/positions", np.full((43, 2), 1e300)),
    "origin_text": _put("ptycho_tasks/origin", "here"),
    "origin_huge": _put("ptycho_tasks/origin", [2**62, 2**62]),
    "losses_null": _put("loss_values", h5py.Empty("f8")),
    "no_group": lambda file: file.__delitem__("ptycho_tasks"),
}.items():
    _damages(_name, _in_product(_change))

    def _read(rng: Rng, change: Any = _change) -> Trial:
        """Read by itself, as `refine` does."""
        built_project()
        _in_product(change)()
        from ptycho_tasks.results.product import read_product

        return Trial(lambda: read_product(RESULT), (RESULT.name,))

    PRODUCT.add(f"{_name}_read", _read)


@PRODUCT.case
def _clean_keeps_what_is_not_ours(rng: Rng) -> Trial:
    """`doit clean` leaves what someone changed or added."""
    built_project()
    mine = [
        RESULT,
        Path("runs/default/training/logs/mine.txt"),
        INFERENCE / "notes.txt",
        Path("runs/default/training/checkpoints/mine.ckpt"),
    ]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    trial = Trial(doit("clean"), (), may_change=("runs", "fixtures"))
    trial.wrong = lambda _: "".join(f"{p} is gone; " for p in mine if not p.exists())
    return trial


@PRODUCT.case
def _train_keeps_foreign_checkpoints(rng: Rng) -> Trial:
    built_project()
    mine = Path("runs/default/training/checkpoints/mine.ckpt")
    mine.parent.mkdir()
    mine.write_text("mine")
    BUNDLE.unlink()
    trial = Trial(doit("train"), ("checkpoints",), may_change=("runs/default/training/wts",))
    trial.wrong = lambda _: "" if mine.exists() else f"{mine} is gone"
    return trial


for _command in ("train", "infer"):

    def _foreign_output(rng: Rng, command: str = _command) -> Trial:
        """A file of someone else where the command writes."""
        built_project()
        out = Path("out")
        out.mkdir()
        mine = out / {"train": "wts.h5.zip", "infer": "metrics.json"}[command]
        mine.write_text("mine")
        words = {
            "train": ("--train-data-file", "scan.npz", "--backend", "epie"),
            "infer": ("--model-path", "runs/default/training", "--test-data", "scan.npz"),
        }[command]
        return Trial(ptycho(command, *words, "--output-dir", "out"), ("out", mine.name), "refuse")

    PRODUCT.add(f"foreign_output_of_{_command}", _foreign_output)


@PRODUCT.family
def _cut(rng: Rng) -> Trial:
    path = Path(str(rng.choice([str(path) for path in OUTPUTS])))
    return rebuild(
        lambda: path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)]),
        forget=bool(rng.integers(2)),
    )


@PRODUCT.family
def _flip(rng: Rng) -> Trial:
    path = Path(str(rng.choice([str(path) for path in OUTPUTS])))

    def damage() -> None:
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)

    return rebuild(damage, forget=bool(rng.integers(2)))
