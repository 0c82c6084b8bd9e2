"""Bundles of every backend load, and only what is needed is imported."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from ptycho_tasks.backend import TrainRequest
from ptycho_tasks.errors import BundleError
from ptycho_tasks.layout import BUNDLE_NAME
from ptycho_tasks.results.bundle import bundle_bytes
from ptycho_tasks_torch import load_inference_bundle
from ptycho_tasks_torch.execution import TorchExecution
from ptycho_tasks_torch.pinn.backend import backend as pinn
from ptycho_tasks_torch.unrolled.backend import backend as unrolled

CPU = TorchExecution(accelerator="cpu", threads=1)
SMALL = {"epochs": 1, "channels": 4, "batch_size": 16, "neighbours": 16}
BACKENDS = {
    pinn: pinn.options_type(gridsize=1, steps=1, **SMALL),
    unrolled: unrolled.options_type(on="scan", start="nothing", **SMALL),
}


def test_a_bundle_of_another_backend_is_refused(scan, tmp_path):
    model = pinn.train(TrainRequest([scan], BACKENDS[pinn], CPU))
    data = bundle_bytes(model, backend="other", backend_version="1", size=32, params={})
    (tmp_path / BUNDLE_NAME).write_bytes(data)
    with pytest.raises(BundleError, match="made by the backend `other`, not by `pinn` or `unroll"):
        load_inference_bundle(tmp_path)


def modules_after(code: str, *arguments: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], text=True, capture_output=True, check=True
    )
    return set(done.stdout.split())


def test_looking_a_backend_up_imports_no_torch():
    loaded = modules_after(
        "from pathlib import Path\nfrom ptycho_tasks.backends import find_backend\n"
        "for name in ('pinn', 'unrolled'): find_backend(name, Path('.')).load()"
    )
    assert "ptycho_tasks_torch" in loaded
    assert {"torch", "lightning", "numpy"} & loaded == set()


INFER = """
from pathlib import Path
import msgspec
from ptycho_tasks.backend import InferRequest
from ptycho_tasks.backends import find_backend
from ptycho_tasks.results.bundle import load_bundle
from ptycho_tasks.options import SimulationOptions
from ptycho_tasks.physics.simulate import simulate
from ptycho_tasks_torch import load_inference_bundle
scan = simulate(SimulationOptions(size=32, grid=4, step=3.5, jitter=1.0))
for folder in map(Path, sys.argv[1:]):
    bundle = load_bundle(folder)
    backend = find_backend(bundle.backend, Path(".")).load()
    options = msgspec.convert(bundle.params["training"], backend.options_type)
    assert backend.infer(InferRequest(scan, bundle.model, options)).object.any()
    load_inference_bundle(folder)
"""


def test_inference_needs_no_lightning(scan, tmp_path):
    folders = []
    for backend, options in BACKENDS.items():
        model = backend.train(TrainRequest([scan], options, CPU))
        params = {"training": msgspec.to_builtins(options), "flat": {"N": 32}}
        data = bundle_bytes(
            model, backend=backend.name, backend_version="1", size=32, params=params
        )
        folders.append(tmp_path / backend.name)
        folders[-1].mkdir()
        (folders[-1] / BUNDLE_NAME).write_bytes(data)
    loaded = modules_after(INFER, *map(str, folders))
    assert "torch" in loaded
    assert {"lightning", "pytorch_lightning"} & loaded == set()


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_torch_leave_the_cores_to_others_unless_told_otherwise(
    monkeypatch, given, found
):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    code = "import os, ptycho_tasks_torch; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == found
