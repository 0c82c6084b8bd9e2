"""Readers as plugins: found, chosen, and held to what they say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ptycho_tasks.errors import ConfigError, ScanError
from ptycho_tasks.scan import ScanData
from ptycho_tasks.scans import recognition
from ptycho_tasks.scans.doctor.examine import examine
from ptycho_tasks.scans.readers import read_scan
from ptycho_tasks.scans.recognition import find_reader
from ptycho_tasks.system import processes
from ptycho_tasks.system.processes import Stopped, exit_on_signals
from ptycho_tasks.testing import ReaderConformance
from scan_files import M, canonical, message, save

MINE = """
from contextlib import contextmanager
from ptycho_tasks.reader import Keyed, RawScan


class Mine:
    name = "mine"

    def claims(self, path):
        with path.open("rb") as file:
            return file.read(4) == b"MINE"

    def files(self, path, reading):
        return [path.with_suffix(".positions")]

    @contextmanager
    def open(self, path, reading):
        import numpy as np
        from ptycho_tasks.errors import ScanError

        M, N = np.frombuffer(path.read_bytes()[4:12], "<i4")
        content = path.read_bytes()[12:]
        if len(content) != 4 * (M + 2) * N * N:
            raise ScanError(f"{path}: is cut short; copy it again")
        values = np.frombuffer(content, "<f4")
        frames = values[: M * N * N].reshape(M, N, N)
        probe = values[M * N * N :].view("<c8").reshape(N, N)
        x, y = np.loadtxt(path.with_suffix(".positions"), ndmin=2).T
        given = {"x": x, "y": y, "probe": probe}
        keyed = {name: Keyed(path, name, array) for name, array in given.items()}
        yield RawScan(path, Keyed(path, "frames", frames), **keyed)


reader = Mine()
"""


def write_mine(folder: Path, frames: Any, x: Any, y: Any, probe: Any) -> Path:
    path = folder / "scan.mine"
    head = b"MINE" + np.array([len(frames), frames.shape[-1]], "<i4").tobytes()
    path.write_bytes(head + frames.astype("<f4").tobytes() + probe.astype("<c8").tobytes())
    np.savetxt(path.with_suffix(".positions"), np.stack([x, y], axis=1))
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Callable[..., Path]:
    """Writes readers/NAME.py with some text of MINE changed; gives a scan of that format."""

    def write(*changes: tuple[str, str], name: str = "mine") -> Path:
        code = MINE.replace('"mine"', f'"{name}"')
        for old, new in changes:
            assert old in code
            code = code.replace(old, new)
        (tmp_path / "readers").mkdir(exist_ok=True)
        (tmp_path / "readers" / f"{name}.py").write_text(code)
        arrays = canonical()
        columns = (arrays[key] for key in ("diff3d", "xcoords", "ycoords", "probeGuess"))
        return write_mine(tmp_path, *columns)

    return write


class TestMine(ReaderConformance):
    """What the suite asks for can be kept."""

    @pytest.fixture(autouse=True)
    def _in_a_project(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        root = tmp_path_factory.mktemp("project")
        (root / "readers").mkdir()
        (root / "readers" / "mine.py").write_text(MINE)
        type(self).reader = find_reader("mine", root).load()

    def write_scan(self, folder: Path, scan: ScanData) -> Path:
        y, x = scan.positions.T
        return write_mine(folder, scan.diffraction, x, y, scan.probe[0])


BROKEN = [
    ("can_be_loaded", ("def files", "def other"), "lacks files"),
    ("claims_its_own", ('file.read(4) == b"MINE"', 'path.suffix == ".mine"'), "by the file's name"),
    ("claims_no_others", ('file.read(4) == b"MINE"', "True"), "claims what is not of its format"),
    ("names_every_file", ('[path.with_suffix(".positions")]', "[]"), "failed: "),
    ("gives_the_scan", ("x, y = np", "y, x = np"), "axes, signs or units"),
    ("a_cut_file_is_one_line", ("if len(content)", "if False and len(content)"), "no `ScanError`"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "change", "said"), BROKEN, ids=[one[0] for one in BROKEN])
def test_a_broken_reader_fails(
    tmp_path: Path, mine: Any, check: str, change: tuple[str, str], said: str
) -> None:
    mine(change)
    suite = type("Broken", (TestMine,), {})
    entry = find_reader("mine", tmp_path)
    suite.reader = entry.importer()
    folder = tmp_path / "given"
    folder.mkdir()
    test = getattr(suite(), f"test_{check}")
    with pytest.raises((AssertionError, ScanError, ConfigError), match=said):
        test(*([] if check == "can_be_loaded" else [folder]))


def test_every_check_is_shown_to_fail() -> None:
    checks = {name for name in dir(ReaderConformance) if name.startswith("test_")}
    assert {f"test_{name}" for name, *_ in BROKEN} == checks


def test_a_projects_reader_reads_its_files_and_names_them(tmp_path: Path, mine: Any) -> None:
    path = mine()
    scan = read_scan(path, root=tmp_path)
    np.testing.assert_array_equal(scan.diffraction, canonical()["diff3d"])
    assert list(scan.files) == [path.with_suffix(".positions")]
    assert "neither NPZ (a zip) nor CXI (HDF5), and no reader knows it" in message(path)


def test_two_that_claim_a_file_are_named_with_the_setting(tmp_path: Path, mine: Any) -> None:
    mine(name="other")
    path = mine()
    said = message(path, root=tmp_path)
    assert "reader `mine` (readers/mine.py) and reader `other` (readers/other.py)" in said
    assert "set source.reader to one" in said
    assert read_scan(path, root=tmp_path, reader="other").frame_count == M


LIES = [
    (("M, N = np", "raise KeyError('x')\n        M, N = np"), "mine.py:21: KeyError: 'x'"),
    (("M, N = np", "import os; os._exit(0)\n        M, N = np"), "mine.py:21: it ended the prog"),
    (("file.read(4) == b", "__import__('os')._exit(0) == b"), "the program with os._exit(0); corr"),
    (("file.read(4) == b", "1 // 0 == b"), "ZeroDivisionError"),
    (("file.read(4) == b", "file.read(4) or b"), "as the answer of `claims`"),
    (('[path.with_suffix(".positions")]', '"no list"'), "'no list' as its files"),
    (("yield RawScan(path, ", "yield dict(a="), "gave a dict; expected a RawScan"),
    (("yield RawScan(", "return RawScan("), "failed"),
    (('Keyed(path, "frames", frames)', "frames"), "gave ndarray as `frames`"),
    (("array) for name", "[1]) for name"), "gave no array as `x`"),
    (('given = {"x": x, ', "given = {"), "gave NoneType as `x`"),
    (('"frames", frames)', '"frames", frames[0])'), "three axes"),
    (('"frames", frames)', '"frames", frames > 1)'), "real numbers"),
    (('{"x": x, ', '{"x": x[1:], '), "one position a frame"),
    (
        ("RawScan(path, ", "RawScan(path, unit_m='um', frames="),
        "gave 'um' as `unit_m`; expected a n",
    ),
    (("RawScan(path, ", "RawScan(path, distance_m=-1, frames="), "gave -1 as `distance_m`"),
    (("RawScan(path, ", "RawScan(path, frame_axis=7, frames="), "expected one of 'auto', 'first'"),
]


@pytest.mark.parametrize(("change", "said"), LIES)
def test_a_reader_that_lies_is_one_line(
    tmp_path: Path, mine: Any, change: tuple[str, str], said: str
) -> None:
    path = mine(change)
    text = message(path, root=tmp_path)
    assert said in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("with path.open", "while True: pass\n        with path.open"),
            "does not say whether the",
        ),
        (
            ("import numpy as np\n", "import time; time.sleep(99)\n"),
            "with opening the file, and was",
        ),
        (("return [path", "while True: pass\n        return [path"), "with opening the file"),
    ],
)
def test_a_reader_that_hangs_is_stopped(
    tmp_path: Path, mine: Any, change: tuple[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mine(change)
    monkeypatch.setattr(recognition, "CLAIM_S", 0.05)
    monkeypatch.setattr(recognition, "OPENING_S", 0.05)
    text = message(path, root=tmp_path)
    assert said in text
    assert "reader `mine` (readers/mine.py)" in text


def test_the_doctor_waits_for_a_reader_that_hangs_once(
    tmp_path: Path, mine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused is read again, with less asked for; not so this."""
    hang = "import time; (path.parent / f'{time.monotonic_ns()}.seen').touch(); time.sleep(99)\n"
    path = mine(("import numpy as np\n", hang))
    monkeypatch.setattr(recognition, "OPENING_S", 0.05)
    assert "was stopped" in examine(path, {"root": tmp_path}).findings[0].text
    assert len([*tmp_path.glob("**/*.seen")]) == 1


def test_who_is_interrupted_is_said(
    tmp_path: Path, mine: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_stopping", None)  # and back again
    path = mine(
        ("import numpy as np\n", "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n")
    )
    with exit_on_signals(), pytest.raises(Stopped):
        read_scan(path, root=tmp_path)
    assert (
        f"{path}: was being read by the reader `mine` (readers/mine.py)" in capsys.readouterr().err
    )


UNUSABLE = [
    (('name = "mine"', 'name = "other"'), "the two names must agree"),
    (("reader = Mine()", ""), "it defines no `reader`"),
    (("reader = Mine()", "reader = Mine"), "is a class; give an instance"),
    (("def files", "def other"), "lacks files"),
    (("import Keyed", "import Kyed"), "ImportError"),
    (("class Mine", "import os; os._exit(0)\nclass Mine"), "ended the program with os._exit"),
]


@pytest.mark.parametrize(("change", "said"), UNUSABLE)
def test_what_is_no_reader_is_one_line(
    tmp_path: Path, mine: Any, change: tuple[str, str], said: str
) -> None:
    path = mine(change)
    with pytest.raises(ConfigError, match=said):
        read_scan(path, root=tmp_path)


def test_an_unknown_name_lists_those_that_are_there(tmp_path: Path, mine: Any) -> None:
    path = mine()
    with pytest.raises(ConfigError, match=r"unknown reader `mime`; known here: .*cxi.* mine, npz"):
        read_scan(path, root=tmp_path, reader="mime")


def test_a_file_that_no_reader_knows_lists_what_it_holds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw/frames"] = np.zeros((3, 4, 4), "u2")
    said = message(tmp_path / "a.h5")
    assert "raw/frames (3 x 4 x 4 uint16)" in said
    assert "source.datasets" in said


def test_listing_readers_imports_neither_numpy_nor_h5py() -> None:
    code = (
        "import sys; from ptycho_tasks.scans.recognition import list_readers; list_readers(None); "
        "sys.exit(bool({'numpy', 'h5py'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reader_can_be_forced(tmp_path: Path) -> None:
    path = save(tmp_path, canonical())
    assert read_scan(path, reader="npz").frame_count == M
    assert "a zip, as NPZ is, and not HDF5" in message(path, reader="cxi")
