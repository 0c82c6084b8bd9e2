"""Finding backends by name, and what is said of one that cannot be used."""

from __future__ import annotations

import sys

import pytest

from ptycho_tasks import reporter
from ptycho_tasks.backend import Backend
from ptycho_tasks.backends import available, find_backend
from ptycho_tasks.errors import BackendError

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


BROKEN = {
    "missing module": (
        "import not_there.deeply\n",
        "the module `not_there` is missing; install it",
    ),
    "syntax error": ("x = 1\ndef (\n", "mine.py:2: "),
    "null byte": ("x = 1\0\n", "null bytes"),
    "ends the program": ("import sys\nsys.exit(0)\n", "mine.py:2: SystemExit: 0"),
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
    write_local(tmp_path, f"from {reporter.__name__} import _stop\n_stop(15, None)\n")
    with pytest.raises(reporter.Stopped) as caught:
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


def test_one_name_for_two_backends_is_refused(tmp_path, installed):
    installed(WHOLE)
    message = refusal(write_local(tmp_path, WHOLE))
    assert "`mine` is there twice: stranger 2.5 and backends/mine.py" in message
