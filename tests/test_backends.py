"""Finding backends by name, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Literal

import numpy as np
import pytest
from click.testing import CliRunner

from ptycho_tasks.backend import API_VERSION, Backend, TrainRequest
from ptycho_tasks.backends import available, check_scans, find_backend
from ptycho_tasks.commands.cli import cli
from ptycho_tasks.errors import BackendError, ConfigError, ScanError
from ptycho_tasks.options import TrainingOptions, description_of, doc, limits
from ptycho_tasks.scan import ScanData
from ptycho_tasks.system import processes

WHOLE = """\
from ptycho_tasks.options import TrainingOptions

class Whole:
    name, version, options_type = "mine", "1", TrainingOptions
    def train(self, request): ...
    def infer(self, request): ...

backend = Whole()
"""


def write_local(root, code: str, name: str = "mine"):
    folder = root / "backends"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(code)
    return root


def refusal(root, name: str = "mine") -> str:
    with pytest.raises(BackendError) as caught:
        find_backend(name, root).load()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_in_the_backends_folder_is_a_backend(tmp_path):
    backend = find_backend("mine", write_local(tmp_path, WHOLE)).load()
    assert isinstance(backend, Backend)
    assert backend.name == "mine"


def test_listing_imports_no_backend(tmp_path):
    write_local(tmp_path, "raise SystemExit('imported')\n")
    assert available(tmp_path)["mine"].origin == "backends/mine.py"


def test_files_that_begin_with_an_underscore_are_helpers_not_backends(tmp_path):
    write_local(tmp_path, WHOLE, "_shared")
    assert "_shared" not in available(tmp_path)


def test_an_unknown_backend_lists_the_known_ones(tmp_path):
    message = refusal(write_local(tmp_path, WHOLE), "pin")
    assert "unknown backend `pin`" in message
    assert "mine" in message


# Annotations as text are looked up in the module, which a file has to become first.
OPTIONS = """\
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated
from ptycho_tasks.options import TrainingOptions, doc

@dataclass
class Ring:
    radius: Pixels = 1

Pixels = float

class RingOptions(TrainingOptions, kw_only=True):
    rings: Annotated[int, doc("rings of the probe", ge=1, le=9)] = 7

class Whole:
    name, version, options_type, api_version = "mine", "4", RingOptions, 1
    def train(self, request):
        \"\"\"Draw rings.

        More than one.\"\"\"
    def infer(self, request): ...

print("imported mine")
backend = Whole()
"""

BROKEN = {
    "missing module": (
        "import not_there.deeply\n",
        "the module `not_there` is missing; install it",
    ),
    "syntax error": ("x = 1\ndef (\n", "mine.py:2: "),
    "null byte": ("x = 1\0\n", "null bytes"),
    "ends the program": (
        "import sys\nsys.exit(0)\n",
        "mine.py:2: it ended the program with sys.ex",
    ),
    "ends the process": ("import os\nos._exit(0)\n", "mine.py:2: it ended the program with os._ex"),
    "raises": ("x = 1\nraise RuntimeError('no GPU')\n", "mine.py:2: RuntimeError: no GPU"),
    "no object": ("x = 1\n", "defines no `backend`"),
    "no methods": (WHOLE.replace("def infer", "def inference"), "lacks or has wrong: infer;"),
    "no version": (WHOLE.replace('"1"', "1"), "lacks or has wrong: version;"),
    "other options": (WHOLE.replace(", TrainingOptions\n", ", dict\n"), "wrong: options_type;"),
    "property that fails": (
        WHOLE.replace(
            "class Whole:", "class Whole:\n    version = property(lambda self: 1 / 0)"
        ).replace("name, version, options_type =", "name, _, options_type ="),
        "mine.py:4: ZeroDivisionError",
    ),
    "option without a doc": (
        WHOLE.replace(
            "class Whole:", "class O(TrainingOptions):\n    x: int = 1\n\nclass Whole:"
        ).replace('", TrainingOptions', '", O'),
        "has no doc of x; declare each option as `name: Annotated[",
    ),
    "option without a default": (OPTIONS.replace(" = 7", ""), "has no default of rings; declare"),
    "wrong default": (OPTIONS.replace(" = 7", " = 70"), "options that cannot be used: Validation"),
    "no execution options": (
        WHOLE.replace("class Whole:", "class Whole:\n    execution_type = dict"),
        "wrong: execution_type;",
    ),
    "refine is no method": (
        WHOLE.replace("class Whole:", "class Whole:\n    refine = True"),
        "wrong: refine;",
    ),
    "another name": (WHOLE.replace('"mine"', '"other"'), "calls itself `other`"),
    "a class": (WHOLE.replace("Whole()", "Whole"), "is a class; give an instance"),
}


@pytest.mark.parametrize(("code", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_broken_backend_says_what_is_wrong(tmp_path, code, expected):
    message = refusal(write_local(tmp_path, code))
    assert "backend `mine` (backends/mine.py)" in message
    assert expected in message
    assert "None:" not in message


def test_a_run_that_is_stopped_while_a_backend_is_imported_ends(tmp_path):
    write_local(tmp_path, f"from {processes.__name__} import stop\nstop(15, None)\n")
    with pytest.raises(processes.Stopped) as caught:
        find_backend("mine", tmp_path).load()
    assert caught.value.code == 143


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution that offers a backend, without pip."""

    def install(code: str, *, name: str = "mine", distribution: str = "stranger"):
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution}-2.5.dist-info"
        info.mkdir(parents=True)
        module = f"{distribution}_module"
        (site / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.5")
        (info / "entry_points.txt").write_text(
            f"[ptycho_tasks.backends]\n{name} = {module}:backend\n"
        )
        monkeypatch.syspath_prepend(str(site))

    yield install
    for module in [m for m in sys.modules if m.endswith("_module")]:
        del sys.modules[module]


def test_an_installed_backend_is_found_by_its_entry_point(tmp_path, installed):
    installed(WHOLE)
    entry = find_backend("mine", tmp_path)
    assert entry.origin == "stranger 2.5"
    assert entry.load().version == "1"


def test_an_installed_backend_names_the_module_that_is_really_missing(tmp_path, installed):
    installed("import jaxlib_of_mars\n" + WHOLE)
    message = refusal(tmp_path)
    assert "stranger 2.5" in message
    assert "the module `jaxlib_of_mars` is missing" in message


def test_one_name_for_two_backends_is_refused_and_stops_no_other(tmp_path, installed):
    installed(WHOLE)
    write_local(tmp_path, WHOLE.replace('"mine"', '"other"'), "other")
    message = refusal(write_local(tmp_path, WHOLE))
    assert "`mine` is there twice: stranger 2.5 and backends/mine.py" in message
    assert find_backend("other", tmp_path).load().name == "other"


# --- the version of the API --------------------------------------------------------------------


def with_api(value: str) -> str:
    return WHOLE.replace("class Whole:", f"class Whole:\n    api_version = {value}")


def scan_of(name: str, size: int = 8) -> ScanData:
    frames = np.ones((4, size, size), np.float32)
    return ScanData(frames, np.zeros((4, 2)), np.ones((1, size, size), np.complex64), name=name)


def train_request(*scans: ScanData) -> TrainRequest:
    return TrainRequest(scans, TrainingOptions())


@pytest.mark.parametrize("said", [WHOLE, with_api("1")])
def test_a_backend_of_the_first_api_is_given_one_scan_and_refused_several(tmp_path, said):
    backend = find_backend("mine", write_local(tmp_path, said)).load()
    check_scans(backend, train_request(scan_of("a")))
    with pytest.raises(BackendError) as caught:
        check_scans(backend, train_request(scan_of("a"), scan_of("b")))
    assert str(caught.value) == (
        "backend `mine` is written for backend API version 1, which learns from one scan, but 2 "
        "are given, which takes version 2; name one under fixture.scans, or upgrade the backend"
    )


def test_a_backend_of_the_first_api_is_refused_bad_pixels(tmp_path):
    scan = replace(scan_of("a"), bad_pixels=np.eye(8, dtype=bool))
    backend = find_backend("mine", write_local(tmp_path, with_api("1"))).load()
    with pytest.raises(BackendError) as caught:
        check_scans(backend, train_request(scan))
    assert str(caught.value) == (
        "backend `mine` is written for backend API version 1, which knows of no bad pixels, but a "
        "has some, which takes version 2; choose or upgrade the backend"
    )


def test_scans_of_different_frame_sizes_are_refused_together(tmp_path):
    backend = find_backend("mine", write_local(tmp_path, with_api("2"))).load()
    check_scans(backend, train_request(scan_of("a"), scan_of("b")))
    with pytest.raises(ScanError) as caught:
        check_scans(backend, train_request(scan_of("a"), scan_of("b"), scan_of("c", 16)))
    assert str(caught.value) == (
        "fixture.scans: the frames of a have 8 x 8 pixels, those of c 16 x 16; one training takes "
        "scans of one size"
    )


def test_a_request_gives_the_only_scan_and_refuses_to_choose():
    one = scan_of("a")
    assert train_request(one).scan is one
    with pytest.raises(ConfigError, match=r"^fixture\.scans: names 2 scans to learn from, but"):
        train_request(one, scan_of("b")).scan  # noqa: B018


@pytest.mark.parametrize("scans", [[], scan_of("a")])
def test_a_request_takes_a_list_of_scans(scans):
    with pytest.raises(TypeError, match="`scans` is a list of one scan or more"):
        TrainRequest(scans, TrainingOptions())


def test_a_backend_of_a_later_api_is_refused_before_what_it_lacks(tmp_path):
    code = with_api(f"{API_VERSION + 1}").replace("def infer", "def reconstruct")
    message = refusal(write_local(tmp_path, code))
    assert message == (
        "backend `mine` (backends/mine.py) is written for backend API version 3; ptycho-tasks "
        f"{version('ptycho-tasks')} has backend API version 2; upgrade ptycho-tasks"
    )


@pytest.mark.parametrize("value", ["'1'", "True", "1.0", "None", "0"])
def test_an_api_version_that_is_no_number_is_refused(tmp_path, value):
    assert "has a wrong api_version" in refusal(write_local(tmp_path, with_api(value)))


# --- `ptycho-tasks backends` -------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """Run the command where one backend works, one cannot be loaded and one is there twice."""
    monkeypatch.chdir(write_local(tmp_path, OPTIONS))
    write_local(tmp_path, "import not_there\n", "broken")

    def listed(*arguments: str):
        return CliRunner().invoke(cli, ["backends", *arguments])

    return listed


def test_the_list_goes_on_after_a_backend_that_fails(listed, tmp_path, installed):
    write_local(tmp_path, WHOLE, "twice")
    installed(WHOLE, name="twice")
    done = listed()
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert "mine  backends/mine.py  version 4" in lines
    assert [line.split(":")[0] for line in lines if line.startswith("backend ")] == [
        "backend `broken` (backends/broken.py) cannot be loaded",
        "backend `twice` is there twice",
    ]
    assert "the module `not_there` is missing" in done.stdout


def test_the_list_for_programs_is_json_whatever_a_module_prints(listed):
    said = {backend["name"]: backend for backend in json.loads(listed("--json").stdout)}
    assert said["mine"]["version"] == "4"
    assert said["mine"]["origin"] == "backends/mine.py"
    assert "`not_there` is missing" in said["broken"]["error"]


def test_one_backend_is_described_and_no_other_imported(listed, tmp_path):
    write_local(tmp_path, "from pathlib import Path\nPath('imported').touch()\n", "broken")
    done = listed("mine")
    assert done.exit_code == 0
    assert done.stdout == (
        "mine  backends/mine.py  version 4\n"
        "train      Draw rings.\n"
        "infer\n"
        "training:\n"
        "  epochs: 30  # passes over the training frames (or iterations)\n"
        "  seed: 0     # seed of every random choice in training\n"
        "  rings: 7    # rings of the probe (1 to 9)\n"
        "execution:\n"
        '  accelerator: "auto"       # device: auto, cpu, gpu, cuda or mps\n'
        "  threads: 0                # CPU threads, 0: the library's choice; another number rounds "
        "sums otherwise (0 to 4096)\n"
        "  inference_batch_size: 64  # frames (or groups) per inference step\n"
        "  memory_gb: null           # memory to use at most, GB; null: what the machine has left\n"
        "  at_once: null             # trainings that run together, whatever `doit -n` says; null: "
        "one where they use a GPU\n"
        "  store_gb: null            # size of the project's own store from which on runs mention "
        "it, GB; null: never do\n"
        "  quiet: false              # no progress on the terminal\n"
        "  live: false               # show the run and the object as it is now on a page, "
        "live.html\n"
        '  executor: "local"         # where train, infer and refine run: local, or by dask, '
        "slurm, queue or a plugin\n"
        "  resources: {}             # what a job asks for: `all`, train, infer, refine or, of a "
        "backend, train.BACKEND, to partition, gpus and others\n"
        "  executor_options: {}      # settings of the executor itself, as the commands of "
        "`queue`\n"
    )
    assert not (tmp_path / "imported").exists()
    said = json.loads(listed("mine", "--json").stdout)
    assert said["api_version"] == 1
    rings = {"name": "rings", "default": 7, "doc": "rings of the probe (1 to 9)"}
    assert said["options"][-1] == rings


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Annotated[int, doc("steps", ge=2, le=64)], "steps (2 to 64)"),
        (Annotated[float, doc("share", gt=0.0, le=0.5)], "share (above 0, at most 0.5)"),
        (Annotated[Annotated[int, limits(ge=16)] | None, doc("frames")], "frames (at least 16)"),
        (Annotated[int, doc("frames, at least 16", ge=16)], "frames, at least 16"),
        (Annotated[int, doc("epochs", ge=1)], "epochs"),
        (Annotated[Literal["max", "min"], doc("best")], "best (max, min)"),
        (
            Annotated[Literal[1, 2], doc("1: single frames; 2: groups")],
            "1: single frames; 2: groups",
        ),
        (Annotated[int, limits(ge=2)], ""),
    ],
)
def test_a_description_names_the_values_that_are_neither_said_nor_obvious(kind, said):
    assert description_of(kind) == said


def test_a_backend_that_cannot_be_described_is_refused(listed):
    for arguments in (["broken"], ["broken", "--json"]):
        error = listed(*arguments).exception
        assert isinstance(error, BackendError)
        assert "`not_there` is missing" in str(error)
