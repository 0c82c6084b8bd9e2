"""Which code counts for a stage, and which changes of it do not."""

from __future__ import annotations

import importlib
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ptycho_tasks
from ptycho_tasks.builds import stage_code as code
from ptycho_tasks.builds import stages
from ptycho_tasks.builds.stage_code import (
    BESIDE,
    STAGE_CODE,
    list_backend_sources,
    list_core_sources,
)
from ptycho_tasks.config.document import parse_config
from ptycho_tasks.config.factories import create_payloads
from ptycho_tasks.config.layers import DEFAULT_VARIANT
from ptycho_tasks.options import STAGES
from ptycho_tasks.system.cache import forget_all
from ptycho_tasks.system.sources import source_digest

SOURCE = '''
"""Text."""
import numpy


class Engine:
    """Text."""

    steps = 3
    """Text."""

    def run(self):
        """Text."""
        return "value"  # remark
'''


def digest(tmp_path, text):
    path = tmp_path / "module.py"
    path.write_text(text)
    return source_digest(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Text."""', '"""Other words."""'),
        ('    """Text."""\n\n    steps', "    steps"),
        ('    """Text."""\n\n    def', "    def"),
        ("  # remark", ""),
        ("import numpy\n\n\n", "import numpy\n"),
        ('"value"', "'value'"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(tmp_path, old, new):
    assert old in SOURCE
    assert digest(tmp_path, SOURCE.replace(old, new)) == digest(tmp_path, SOURCE)


@pytest.mark.parametrize(
    ("old", "new"), [("steps = 3", "steps = 4"), ('"value"', '"other"'), ("run", "go")]
)
def test_what_the_code_does_counts(tmp_path, old, new):
    assert digest(tmp_path, SOURCE.replace(old, new)) != digest(tmp_path, SOURCE)


def test_a_file_that_is_not_python_counts_with_its_bytes(tmp_path):
    assert digest(tmp_path, "def (") != digest(tmp_path, "def ( ")


CXI = """
import h5py, numpy as np
from ptycho_tasks.scans.readers import read_scan

scan = read_scan("fixtures/tiny_source.npz")
with h5py.File("scan.cxi", "w") as file:
    file["entry_1/data_1/data"] = np.rint(scan.diffraction**2).astype("i4")
    file["entry_1/data_1/translation"] = scan.positions[:, ::-1] * 1e-8
    file["entry_1/instrument_1/source_1/illumination"] = scan.probe[0]
"""


def reached(function, payload):
    """The modules of the core of which a stage runs any function."""
    here, files = str(Path(ptycho_tasks.__file__).parent), set()

    def note(frame, event, argument):
        # Not of modules and classes, which run when they are first imported.
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            files.add(frame.f_code.co_filename)

    # It is called when a function begins and, as it gives nothing back, for nothing in it.
    before = sys.gettrace()
    sys.settrace(note)
    try:
        function(payload)
    finally:
        sys.settrace(before)
    return {
        Path(file).relative_to(here).with_suffix("").as_posix()
        for file in files
        if file.startswith(here) and not file.startswith(f"{here}/testing/")
    }


@pytest.fixture(scope="module")
def stages_reach(_built, tmp_path_factory, remembered):
    """By stage, the modules that it reaches with a simulated scan, and with one in HDF5."""
    for kept in remembered.iterdir():
        kept.unlink()
    root = Path(shutil.copytree(_built, tmp_path_factory.mktemp("reach") / "project"))
    text = (root / "ptycho.yaml").read_text() + "execution: {quiet: true}\n"
    text += "refine: {backend: further, epochs: 1}\n"
    simulated = text[text.index("source:") : text.index("fixture:")]
    measured = "source: {file: scan.cxi, pixel_size_m: 1e-8}\n"
    found = {stage: set() for stage in STAGES}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        subprocess.run([sys.executable, "-c", CXI], check=True)
        for source in (simulated, measured, f"{simulated}inference: {{scan: fixture}}\n"):
            config = text.replace(simulated, source).encode()
            training, *others = create_payloads(
                parse_config(root / "ptycho.yaml", config), DEFAULT_VARIANT
            )
            payloads = dict(zip(("infer", "refine"), others, strict=True))
            for stage in STAGES:
                run = stages.find_stage(stage)
                found[stage] |= reached(run, payloads.get(stage, training))
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_code_of_a_stage_is_what_it_reaches(stages_reach, stage):
    listed = set(STAGE_CODE[stage].modules)
    assert stages_reach[stage] - BESIDE - listed == set()
    assert listed - stages_reach[stage] == set()


def test_what_a_backend_imports_of_the_core_counts_with_it(tmp_path):
    (tmp_path / "backends").mkdir()
    file = tmp_path / "backends" / "mine.py"
    file.write_text(
        "from ptycho_tasks.physics.forward import fourier_shift\nimport ptycho_tasks.errors\n"
    )
    found = list_backend_sources(object(), file, tmp_path)
    assert {"project/backends/mine.py", "ptycho_tasks/physics/forward.py"} <= {*found}
    assert "ptycho_tasks/errors.py" not in found


def test_installed_code_does_not_count_with_its_source(monkeypatch, tmp_path):
    class Installed:
        pass

    monkeypatch.setattr("sysconfig.get_path", lambda name: str(Path(code.__file__).parents[2]))
    forget_all()
    Installed.__module__ = "ptycho_tasks.anything"
    assert list_core_sources("fixture") == {}
    assert list_backend_sources(Installed(), None, tmp_path) == {}
    forget_all()


def test_a_package_that_is_worked_on_counts_with_all_its_modules(tmp_path):
    class Ours:
        pass

    Ours.__module__ = "ptycho_tasks.backends"
    assert list_backend_sources(Ours(), None, tmp_path)[
        "ptycho_tasks/builds/stage_code.py"
    ] == Path(code.__file__)


def test_a_local_backend_counts_with_what_it_imports_of_the_project(tmp_path):
    folder = tmp_path / "backends"
    (tmp_path / "nets" / "deep").mkdir(parents=True)
    folder.mkdir()
    mine = folder / "mine.py"
    mine.write_text("import numpy\nimport _shared\nfrom nets.deep import unet\n")
    (folder / "_shared.py").write_text("import other\n")
    (tmp_path / "other.py").write_text("import _shared\n")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "nets" / "__init__.py").write_text("")
    (tmp_path / "nets" / "deep" / "__init__.py").write_text("from .layer import block\n")
    (tmp_path / "nets" / "deep" / "unet.py").write_text("from .. import blocks\n")
    (tmp_path / "nets" / "deep" / "layer.py").write_text("")
    (tmp_path / "nets" / "blocks.py").write_text("")
    (tmp_path / "nets" / "other.py").write_text("")
    found = list_backend_sources(object(), mine, tmp_path)
    assert all(path == tmp_path / name.partition("/")[2] for name, path in found.items())
    assert set(found) == {
        "project/backends/mine.py",
        "project/backends/_shared.py",
        "project/other.py",
        "project/nets/__init__.py",
        "project/nets/blocks.py",
        "project/nets/deep/__init__.py",
        "project/nets/deep/layer.py",
        "project/nets/deep/unet.py",
    }


BLOCKS = """
if True:
    import one
else:
    import two
try:
    import three
except ImportError:
    import four
else:
    import five
finally:
    import six

class Mine:
    async def train(self):
        with self:
            for each in self:
                while each:
                    match each:
                        case 1:
                            import seven
                        case _:
                            lambda: each
"""


def test_an_import_counts_wherever_it_stands(tmp_path):
    mine = tmp_path / "backends" / "mine.py"
    mine.parent.mkdir()
    mine.write_text(BLOCKS)
    names = {f"{number}.py" for number in ("one", "two", "three", "four", "five", "six", "seven")}
    for name in names:
        (tmp_path / name).write_text("")
    found = list_backend_sources(object(), mine, tmp_path)
    assert {Path(name).name for name in found} == {"mine.py", *names}


def test_a_namespace_of_the_project_is_looked_into(tmp_path):
    """A folder without an `__init__.py`."""
    mine = tmp_path / "backends" / "mine.py"
    mine.parent.mkdir()
    mine.write_text("from nets.deep import unet\n")
    (tmp_path / "nets/deep").mkdir(parents=True)
    (tmp_path / "nets/deep/unet.py").write_text("")
    assert "project/nets/deep/unet.py" in list_backend_sources(object(), mine, tmp_path)


def test_a_module_imported_by_name_at_run_time_counts_too(tmp_path, monkeypatch):
    mine = tmp_path / "backends" / "mine.py"
    mine.parent.mkdir()
    mine.write_text("")
    (tmp_path / "secret_net.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("secret_net")
    monkeypatch.delitem(sys.modules, "dodo", raising=False)
    try:
        assert "project/secret_net.py" in list_backend_sources(object(), mine, tmp_path)
    finally:
        del sys.modules["secret_net"]
