"""Several scans in one project: which there are, what is refused, and the payloads of each."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.config.document import ConfigFile, parse_config
from ptycho_tasks.config.factories import (
    create_inference_payload,
    create_payloads,
    create_training_payload,
    list_variants,
)
from ptycho_tasks.config.globs import expand_glob
from ptycho_tasks.config.layers import DEFAULT_VARIANT, merge
from ptycho_tasks.config.scans import Scans, read_scans
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import NAME_PATTERN
from ptycho_tasks.system.cache import forget_all

REFINER = """\
from ptycho_tasks.options import ExecutionOptions, TrainingOptions
class Mine:
    name, version, options_type, execution_type = "mine", "1", TrainingOptions, ExecutionOptions
    def train(self, request): ...
    def infer(self, request): ...
    def refine(self, request): ...
backend = Mine()
"""


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def root(tmp_path):
    touch(tmp_path, "s/b.npz", "s/a.npz", "s/deep/c.npz", "s/deep/er/d.npz", "x.cxi")
    touch(tmp_path, "s/.hidden.npz", "s/w.npz.tmp", "s/v.part", "s/u.npz~", "s/.h/e.npz")
    touch(tmp_path, "fixtures/p-a.npz", "runs/default/inference/a/f.npz", "s/a b.npz/g.txt")
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "mine.py").write_text(REFINER)
    forget_all()
    return tmp_path


def read(root: Path, text: str):
    return parse_config(root / "ptycho.yaml", f"name: p\nbackend: mine\n{text}".encode())


def scans_of(root: Path, text: str, index: int = 0) -> Scans:
    file = read(root, text)
    return read_scans(merge(file, list_variants(file)[index]))


def test_files_that_only_globs_match_may_be_left_out(root):
    touch(root, "s/x.cxi", "t/b.npz", f"t/{'n' * 101}.npz")
    text = "source: {files: [x.cxi, '*/*.npz', 's/*.npz', 's/*.cxi']}\nfixture: {scans: [x]}"
    file = parse_config(
        root / "ptycho.yaml", f"name: p\nbackend: mine\n{text}".encode(), skips_strays=True
    )
    scans = read_scans(merge(file, DEFAULT_VARIANT))
    assert {name: scan.settings["file"] for name, scan in scans.by_name.items()} == {
        "x": "x.cxi",
        "a": "s/a.npz",
    }
    assert [stray.file for stray in scans.strays] == [
        "s/b.npz",
        "t/b.npz",
        f"t/{'n' * 101}.npz",
        "s/x.cxi",
    ]
    assert "cannot name a scan" in scans.strays[2].problem


def files_of(root: Path, files: str) -> dict[str, str]:
    scans = scans_of(root, f"source: {{files: {files}}}\nfixture: {{scans: ['*']}}")
    return {name: scan.settings["file"] for name, scan in scans.by_name.items()}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ("[s/b.npz, s/a.npz]", "b a"),
        ("[s/*.npz]", "a b"),
        ("[x.cxi, s/*.npz]", "x a b"),
        ("[s/**/*.npz]", "a b c d"),
        ("['**/*.npz']", "a b c d"),
        ("['**/deep/*.npz']", "c"),
        ("['s/**/er/*']", "d"),
        ("['s/*/c.npz']", "c"),
        ("['./s/[ab].npz']", "a b"),
        ("['s/deep/**']", "c d"),
        ("[nope.npz]", "nope"),
        ("{one: s/a.npz, two: s/b.npz}", "one two"),
    ],
)
def test_scans_come_in_order_and_are_called_like_their_files(root, files, names):
    assert list(files_of(root, files)) == names.split()


def test_a_path_is_written_as_its_glob_is(root):
    assert files_of(root, "['./s/*.npz']") == {"a": "./s/a.npz", "b": "./s/b.npz"}
    assert files_of(root, f"['{root}/s/b*']") == {"b": f"{root}/s/b.npz"}
    assert files_of(root, "['s/../x*']") == {"x": "s/../x.cxi"}


def test_a_file_may_have_brackets_in_its_name(root):
    touch(root, "n[1].npz")
    assert files_of(root, "{n: 'n[1].npz'}") == {"n": "n[1].npz"}


def test_a_glob_enters_no_link_that_leads_in_a_circle(root):
    (root / "s" / "deep" / "up").symlink_to(root / "s")
    assert list(files_of(root, "['s/**/*.npz']")) == ["a", "b", "c", "d"]


def test_every_folder_that_decides_a_glob_is_watched(root):
    scans = scans_of(root, "source: {files: [x.cxi, 's/**/*.npz']}\nfixture: {scans: [x]}")
    folders = ("s", "s/deep", "s/deep/er", "s/a b.npz")
    assert sorted(scans.watched) == sorted(str(root / folder) for folder in folders)
    assert scans_of(root, "source: {files: [x.cxi]}").watched == ()


@given(st.lists(st.text("ab.", min_size=1, max_size=3), max_size=6), st.text("ab*?", min_size=1))
def test_a_glob_finds_what_fnmatch_does(tmp_path_factory, names, pattern):
    root = tmp_path_factory.mktemp("glob")
    visible = {name for name in names if name.strip(".") and not name.startswith(".")}
    touch(root, *visible)
    found, watched = expand_glob(root, pattern.replace("**", "*"))
    assert found == sorted(fnmatch.filter(visible, pattern))
    assert watched == [str(root)]


def test_a_new_file_is_seen_by_the_next_run(root):
    text = "source: {files: ['s/*.npz']}\nfixture: {scans: [a]}"
    assert scans_of(root, text).names == ("a", "b")
    touch(root, "s/c.npz")
    forget_all()
    assert scans_of(root, text).names == ("a", "b", "c")
    assert scans_of(root, text).learned == ("a",)


def test_without_files_there_is_one_scan_without_a_name(root):
    scans = scans_of(root, "source: {file: s/a.npz}")
    assert (scans.names, scans.learned, scans.inferred, scans.watched) == (
        (None,),
        (None,),
        (None,),
        (),
    )


@pytest.mark.parametrize(
    ("fixture", "learned"),
    [
        ("[b]", "b"),
        ("[d, a]", "d a"),
        ("['[ab]']", "a b"),
        ("[c, '*']", "c a b d"),
        ("[b, b]", "b"),
    ],
)
def test_those_to_learn_from_are_in_the_order_of_fixture_scans(root, fixture, learned):
    text = f"source: {{files: ['s/**/*.npz']}}\nfixture: {{scans: {fixture}}}"
    assert scans_of(root, text).learned == tuple(learned.split())


def test_with_one_scan_it_need_not_be_said_which_to_learn_from(root):
    scans = scans_of(root, "source: {files: [s/b.npz]}")
    assert (scans.names, scans.learned) == (("b",), ("b",))


def test_what_is_reconstructed(root):
    text = "source: {files: ['s/*.npz']}\nfixture: {scans: [b]}\ninference: {scan: %s}"
    assert scans_of(root, text % "source").inferred == ("a", "b")
    assert scans_of(root, text % "fixture").inferred == ("b",)


REFUSED = {
    "a glob that matches nothing": (
        "source:\n  files:\n  - x.cxi\n  - s/*.h5",
        ["ptycho.yaml:6: source.files[1]: 's/*.h5' matches no file; correct it"],
    ),
    "a glob in a folder that is not there": ("source: {files: ['no/*']}", ["matches no file"]),
    "a glob of what we made": ("source: {files: ['fixtures/*']}", ["matches no file", "`runs`"]),
    "a name of two": (
        "source:\n  files: [s/a.npz, t/a.cxi]",
        [
            "ptycho.yaml:4: source.files[1]: 's/a.npz' and 't/a.cxi' would both be called `a`",
            "`files: {first: PATH, second: PATH}`",
        ],
    ),
    "names but for case": ("source: {files: {a: x.cxi, A: y.cxi}}", ["both be called `A`"]),
    "a file twice": (
        "source:\n  files:\n  - s/a.npz\n  - ./s/../s/a.npz",
        ["ptycho.yaml:6: source.files[1]: './s/../s/a.npz' is listed twice", "ptycho.yaml:5; rem"],
    ),
    "a file and a glob that matches it": (
        "source: {files: [s/a.npz, 's/*.npz']}",
        ["source.files[1]: 's/a.npz' is listed twice"],
    ),
    "two names of one file": (
        "source:\n  files:\n    a: x.cxi\n    b: {file: x.cxi}",
        ["ptycho.yaml:6: source.files.b: 'x.cxi' is listed twice, also at ptycho.yaml:5"],
    ),
    "no name": (
        "source: {files: ['my scan.npz']}",
        ["'my scan' cannot name a scan", "write `files: {NAME: my scan.npz}`"],
    ),
    "no name given": ("source:\n  files:\n    a/b: x.cxi", ["5: source.files.a/b: 'a/b' cannot"]),
    "a name for a glob": (
        "source:\n  files: {all: 's/*.npz'}",
        ["ptycho.yaml:4: source.files.all: 's/*.npz' is a glob, but a name is for one file"],
    ),
    "a number": ("source:\n  files: [x.cxi, 5]", ["4: source.files[1]: expected a path or a gl"]),
    "settings in a list": (
        "source:\n  files:\n  - {file: x.cxi, units: m}",
        ["5: source.files[0]: ", 'write `source: {files: {x: {file: "x.cxi", units: m}}}`'],
    ),
    "a list of named settings": (
        "source:\n- a: {file: x.cxi}\n- y.cxi\n- z.cxi",
        ["3: source: ", 'write `source: {files: {a: {file: "x.cxi"}, y: "y.cxi"}}`'],
    ),
    "a path and no key": ("source: x.cxi", ["3: source: ", 'write `source: {file: "x.cxi"}`']),
    "several in one": (
        "source: {file: [x.cxi, y.cxi]}",
        ["3: source.file: expected one path", 'write `source: {files: ["x.cxi", "y.cxi"]}`'],
    ),
    "a number with a name": ("source: {files: {a: 5}}", ["source.files.a: expected a path, or"]),
    "settings without a file": (
        "source:\n  files:\n    a: {units: m}",
        ["ptycho.yaml:5: source.files.a: expected a path, or settings with `file` (and not"],
    ),
    "files of files": (
        "source: {files: {a: {file: x.cxi, files: [y]}}}",
        ["source.files.a: expected a path, or settings with `file` (and not `files`), got"],
    ),
    "not a list": ("source: {files: s/a.npz}", ["3: source.files: expected a list of paths and"]),
    "an empty list": ("source: {files: []}", ["3: source.files: expected a list of paths and"]),
    "a file too": (
        "source: {files: [x.cxi], file: x.cxi}",
        ["3: source: give exactly one of `file` (a scan to read), `files` (several) and"],
    ),
    "nothing to learn from": (
        "source: {files: ['s/*.npz']}",
        ["3: source.files: names 2 scans; say which to learn from, as in `fixture: {scans: [a]}`"],
    ),
    "an unknown scan": (
        "source: {files: {first: x.cxi, other: y.cxi}}\nfixture:\n  scans: [frist]",
        ["5: fixture.scans[0]: no scan is called 'frist'; did you mean `first`?"],
    ),
    "a glob of no name": (
        "source: {files: [x.cxi]}\nfixture: {scans: [x, 'y*']}",
        ["4: fixture.scans[1]: no scan has a name like 'y*'"],
    ),
    "an empty list to learn from": (
        "source: {files: [x.cxi]}\nfixture: {scans: []}",
        ["4: fixture.scans: expected `array` of length >= 1, got []"],
    ),
    "scans to learn from without files": (
        "source: {file: x.cxi}\nfixture: {scans: [x]}",
        ["4: fixture.scans: is for several scans; name them under `source.files`, or remove it"],
    ),
    "a path to infer": (
        "source: {files: [x.cxi]}\ninference: {scan: y.cxi}",
        ["4: inference.scan: with `source.files`, expected `source`", "got 'y.cxi'"],
    ),
    "a variant's glob": (
        "source: {file: x.cxi}\nvariants:\n- name: v\n  source: {file: null, files: ['n*']}",
        ["ptycho.yaml:6: variant `v`: source.files[0]: 'n*' matches no file"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line_with_its_place(root, text, expected):
    with pytest.raises(ConfigError) as caught:
        scans_of(root, text)
    message = str(caught.value)
    assert message.startswith("ptycho.yaml:")
    assert "\n" not in message
    for part in expected:
        assert part in message


VALUES = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["a.npz", "a", "*", "s/[a", "~/x*"]),
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(st.text() | st.just("file"), values)
    ),
    max_leaves=8,
)


@given(VALUES, VALUES, VALUES)
def test_whatever_is_written_names_scans_or_is_refused_in_one_line(files, chosen, what):
    data = {"source": {"files": files}, "fixture": {"scans": chosen}, "inference": {"scan": what}}
    layers = merge(ConfigFile(Path("/nowhere/ptycho.yaml"), data))
    try:
        scans = read_scans(layers)
    except ConfigError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert_distinct(scans)
    assert re.fullmatch("ptycho.yaml: .*|", refusal)


def assert_distinct(scans: Scans) -> None:
    names = [name for name in scans.names if name is not None]
    assert all(re.fullmatch(NAME_PATTERN, name) for name in names)
    assert len({name.casefold() for name in names}) == len(names)
    assert set(scans.learned) <= set(scans.names)


REFUSED_WHEN_SETTLED = {
    "unknown key": ("{file: x.cxi, unitz: m}", "source.unitz: unknown key; did you mean `units`?"),
    "wrong value": ("{file: x.cxi, units: ft}", "source.units: expected one of auto, pixels"),
    "two kinds": ("{file: x.cxi, simulate: {}}", "source: give exactly one of"),
    "wrong simulation": ("{simulate: {size: 9}}", "source.simulate.size: expected `int` that"),
}


@pytest.mark.parametrize(
    ("settings", "expected"), REFUSED_WHEN_SETTLED.values(), ids=REFUSED_WHEN_SETTLED
)
def test_wrong_settings_of_a_scan_name_it_and_its_line(root, settings, expected):
    file = read(
        root, f"source:\n  files:\n    a: x.npz\n    b: {settings}\nfixture: {{scans: [a]}}"
    )
    create_payloads(file, DEFAULT_VARIANT, "a")
    with pytest.raises(ConfigError) as caught:
        create_payloads(file, DEFAULT_VARIANT, "b")
    assert str(caught.value).startswith(f"ptycho.yaml:6: scan `b`: {expected}")


def test_a_wrong_setting_of_all_scans_is_not_the_fault_of_one(root):
    with pytest.raises(ConfigError, match=r"^ptycho.yaml:3: source.units: expected one of"):
        create_payloads(read(root, "source: {files: [x.cxi], units: ft}"), DEFAULT_VARIANT, "x")


MANY = """\
source:
  files:
    a: s/a.npz
    b: {file: s/b.npz, units: nm, product: b.h5}
    c: {simulate: {size: 16, grid: 4}}
  units: m
fixture:
  subset_size: 16
  scans: [c, a]
refine: {backend: mine}
"""


def test_a_payload_is_of_one_scan(root):
    training, inference, refinement = create_payloads(read(root, MANY), DEFAULT_VARIANT, "b")
    assert refinement is not None
    assert (inference.scan, inference.source.file, inference.source.files) == ("b", "s/b.npz", None)
    assert inference.source.units == "nm"
    assert inference.scan_files == {"scan": root / "s/b.npz", "product": root / "b.h5"}
    assert inference.origins["source.units"] == "ptycho.yaml:6"
    assert training.fixture_file == root / "fixtures" / "p-b.npz"
    assert training.model_dir == root / "runs" / "default" / "training"
    assert inference.output_dir == root / "runs" / "default" / "inference" / "b"
    assert refinement.start_file == inference.output_dir / "reconstruction.h5"
    assert refinement.output_dir == root / "runs" / "default" / "refinement" / "b"
    assert training.results_folder("training") == "runs/default/training"


def test_a_scan_without_settings_has_those_of_all(root):
    inference = create_inference_payload(read(root, MANY), scan="a")
    assert inference.values["source.units"] == "m"
    assert inference.origins["source.units"] == "ptycho.yaml:8"
    assert inference.origins["source.file"] == "ptycho.yaml:5"


def test_a_scan_may_be_simulated(root):
    training = create_training_payload(read(root, MANY), scan="c")
    assert training.source_file == root / "fixtures" / "p-c_source.npz"
    assert training.values["source.simulate.size"] == 16
    assert training.origins["source.simulate.size"] == "ptycho.yaml:7"


def test_what_is_trained_on_has_roles_that_no_name_changes(root):
    file = read(root, MANY)
    training = create_training_payload(file)
    fixtures = root / "fixtures"
    assert training.training_scans == ("c", "a")
    assert training.training_files == {
        "fixture": fixtures / "p-c.npz",
        "fixture 2": fixtures / "p-a.npz",
    }
    assert create_training_payload(file, scan="b").training_files == training.training_files
    renamed = read(root, MANY.replace("    c:", "    z:").replace("[c, a]", "[z, a]"))
    other = create_training_payload(renamed)
    assert other.training_files.keys() == training.training_files.keys()
    assert other.settings("train") == training.settings("train")


@pytest.mark.parametrize("stage", ["source", "fixture", "infer", "refine"])
def test_what_counts_for_a_stage_holds_the_settings_of_its_scan_and_no_names(root, stage):
    def settings(text: str, scan: str):
        payload = create_payloads(read(root, text), DEFAULT_VARIANT, scan)[2]
        assert payload is not None
        return payload.settings(stage)

    renamed = MANY.replace("    b:", "    other:")
    more = renamed.replace("    a:", "    d: d.npz\n    a:").replace("[c, a]", "[d]")
    assert settings(MANY, "b")["source.units"] == "nm"
    assert settings(MANY, "b") == settings(more, "other")
    assert settings(MANY, "b") != settings(MANY.replace("units: nm", "units: mm"), "b")
    assert not any(key.startswith(("source.files", "fixture.scans")) for key in settings(MANY, "b"))


def test_a_missing_file_names_its_scan_and_line(root):
    text = "source:\n  files:\n  - s/a.npz\n  - nope.npz\nfixture: {scans: [a]}"
    file = read(root, text)
    assert create_inference_payload(file, scan="a").describe_missing("source.file") is None
    missing = create_inference_payload(file, scan="nope").describe_missing("source.file")
    assert missing == f"ptycho.yaml:6: scan `nope`: source.file: there is no {root / 'nope.npz'}"


def test_a_scan_that_is_not_there_is_one_line(root):
    expected = "^ptycho.yaml:4: source.files: no scan is called 'aa'; did you mean `a`"
    with pytest.raises(ConfigError, match=expected):
        create_inference_payload(read(root, MANY), scan="aa")


def test_one_file_may_hold_several_scans(root):
    files = "{one: {file: x.cxi, scan_index: 1}, two: {file: x.cxi, scan_index: 2}}"
    file = read(root, f"source: {{files: {files}}}\nfixture: {{scans: [one]}}")
    for number, name in enumerate(("one", "two"), 1):
        source = create_inference_payload(file, scan=name).source
        assert (source.file, source.scan_index) == ("x.cxi", number)


def test_a_variant_changes_all_scans_also_those_with_settings_of_their_own(root):
    file = read(root, MANY + "matrix: {source.units: [um], fixture.subset_size: [20]}")
    (variant,) = list_variants(file)
    for scan in ("a", "b"):
        training = create_payloads(file, variant, scan)[0]
        assert training.values["source.units"] == "um"
        label = "subset_size20-unitsum"
        assert training.fixture_file == root / "fixtures" / f"p-{label}-{scan}.npz"


@pytest.mark.parametrize(
    "change",
    [
        "source.files: {b: s/b.npz}",
        "source: {files: {b: s/b.npz}}",
        "source: {files: [s/b.npz]}",
    ],
)
def test_a_variant_may_have_other_files(root, change):
    file = read(root, f"{MANY}variants:\n- name: v\n  fixture.scans: [b]\n  {change}\n")
    (variant,) = list_variants(file)
    assert read_scans(merge(file, variant)).names == ("b",)
    payload = create_inference_payload(file, variant=variant, scan="b")
    assert payload.values["source.units"] == "m"
    assert payload.origins["source.file"] == "ptycho.yaml:16"


def test_a_variant_may_replace_the_source(root):
    file = read(root, "source: {file: x.cxi}\nmatrix: {source: [{files: [s/a.npz], units: nm}]}")
    (variant,) = list_variants(file)
    assert read_scans(merge(file, variant)).names == ("a",)
    payload = create_inference_payload(file, variant=variant, scan="a")
    assert (payload.source.file, payload.source.units) == ("s/a.npz", "nm")


def test_a_variant_gives_files_whole(root):
    with pytest.raises(ConfigError, match=r"`source\.files\.a\.units` is a part of"):
        list_variants(read(root, MANY + "matrix: {source.files.a.units: [nm]}"))


def test_variants_that_learn_from_other_scans_share_fixtures(root):
    file = read(root, MANY + "matrix: {fixture.scans: [[a], [b, a]]}")
    payloads = [create_training_payload(file, variant=v) for v in list_variants(file)]
    assert payloads[0].training_files["fixture"] == payloads[1].training_files["fixture 2"]


def test_scans_are_listed_without_numpy_and_h5py(root):
    (root / "ptycho.yaml").write_text(f"name: p\nbackend: mine\n{MANY}")
    code = (
        "import sys; from pathlib import Path\n"
        "from ptycho_tasks.config.document import read_config\n"
        "from ptycho_tasks.config.factories import create_payloads\n"
        "from ptycho_tasks.config.layers import DEFAULT_VARIANT\n"
        "create_payloads(read_config(Path('ptycho.yaml')), DEFAULT_VARIANT, 'b')\n"
        "sys.exit(bool({'numpy', 'h5py'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
