"""ptycho.yaml: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.config.document import read_config
from ptycho_tasks.config.fields import canonical_json, flatten
from ptycho_tasks.config.layers import convert, merge
from ptycho_tasks.config.sections import Config, TrainingFrames
from ptycho_tasks.config.variants import read_variants
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.options import FixtureOptions, SimulationOptions


def settle(tmp_path: Path, text: str, **layers: dict[str, object]) -> Config:
    path = tmp_path / "ptycho.yaml"
    path.write_text(text)
    return convert(merge(read_config(path), **layers), Config)


def refusal(tmp_path: Path, text: str, **layers: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        settle(tmp_path, text, **layers)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_only_the_source_must_be_given(tmp_path):
    config = settle(tmp_path, "source: {file: scan.npz}\n")
    assert config.source.file == "scan.npz"
    assert config.backend == "pinn"
    assert config.fixture == TrainingFrames()


def test_a_section_with_every_line_commented_out_stands_for_its_defaults(tmp_path):
    config = settle(tmp_path, "source:\n  simulate:\n    # size: 64\nfixture:\n  # seed: 0\n")
    assert config.source.simulate == SimulationOptions()
    assert config.fixture == TrainingFrames()


def test_a_default_may_be_written_out(tmp_path):
    config = settle(tmp_path, "source: {file: a, simulate: null, product: null}\n")
    assert config.source.simulate is None


def test_numbers_and_words_read_as_people_expect(tmp_path):
    config = settle(tmp_path, "source: {simulate: {photons: 1e9}}\ntraining: {on: yes, x: 1.5E-3}")
    assert config.source.simulate is not None
    assert config.source.simulate.photons == 1e9
    assert config.training == {"on": "yes", "x": 1.5e-3}


BAD = {
    "unknown key": ("source: {file: a}\nfixtur: {}\n", ["ptycho.yaml:2: fixtur", "`fixture`"]),
    "unknown nested key": (
        "source:\n  file: a\nfixture:\n  subset_siz: 20\n",
        ["ptycho.yaml:4: fixture.subset_siz: unknown key", "`subset_size`"],
    ),
    "unknown key in simulate": (
        "source:\n  simulate:\n    sise: 64\n",
        ["ptycho.yaml:3: source.simulate.sise: unknown key", "`size`"],
    ),
    "wrong type": (
        "source: {file: a}\nfixture:\n\n  seed: two\n",
        ["ptycho.yaml:4: fixture.seed: expected `int`, got 'two'"],
    ),
    "wrong type of a section": (
        "source: {file: a}\nfixture: [1]\n",
        ["ptycho.yaml:2: fixture: expected a mapping, `key: value` lines, got [1]"],
    ),
    "out of range": (
        "source: {file: a}\nfixture: {subset_size: 15}\n",
        ["ptycho.yaml:2: fixture.subset_size: expected `int` >= 16, got 15"],
    ),
    "odd frames": (
        "source: {simulate: {size: 63}}\n",
        ["ptycho.yaml:1: source.simulate.size: ", "got 63"],
    ),
    "not one of the words": (
        "source: {file: a}\nfixture: {strategy: best}\n",
        ["fixture.strategy: expected one of stratified, first, random, grid, got 'best'"],
    ),
    "values that do not fit": (
        "source:\n  simulate: {jitter: 9, step: 2}\n",
        ["ptycho.yaml:2: source.simulate: jitter 9 exceeds step 2"],
    ),
    "no source": ("name: x\n", ["ptycho.yaml: source: must be given"]),
    "empty file": ("", ["ptycho.yaml: source: must be given"]),
    "two sources": (
        "source: {file: a, simulate: {}}\n",
        ["ptycho.yaml:1: source: give exactly one of"],
    ),
    "neither source": ("source: {}\n", ["ptycho.yaml:1: source: give exactly one of"]),
    "name with a slash": ("name: a/b\nsource: {file: a}\n", ["ptycho.yaml:1: name: "]),
    "a key twice": (
        "source: {file: a}\nname: x\nname: y\n",
        ["ptycho.yaml:3: name: this key is given twice"],
    ),
    "not YAML": ("source: {file: a\nname: x", ["ptycho.yaml:2: not valid YAML"]),
    "a list": ("- a\n- b\n", ["ptycho.yaml:1: expected `key: value` lines"]),
    "refers to itself": ("source: &a {file: *a}\n", ["ptycho.yaml:1: source.file: refers"]),
    "python object": (
        "source: !!python/object:os.system {}\n",
        ["ptycho.yaml:1: source: the tag", "remove it"],
    ),
    "no int": ("a: {b: !!int abc}\n", ["ptycho.yaml:1: a.b: 'abc' is not an integer"]),
    "no float": ("a: !!float abc\n", ["ptycho.yaml:1: a: 'abc' is not a number"]),
    "no bool": ("a: !!bool foo\n", ["ptycho.yaml:1: a: 'foo' is not true or false"]),
    "no time": ("a: !!timestamp abc\n", ["ptycho.yaml:1: a: the tag", "timestamp"]),
    "5000 digits": ("a: 1\nb: " + "9" * 5000, ["ptycho.yaml:2: b: ", "too many digits"]),
    "70 bits": (
        "source: {file: a}\nfixture: {seed: 1180591620717411303424}\n",
        ["ptycho.yaml:2: fixture.seed: expected an integer of at most 64 bits"],
    ),
    "too large a number": (
        "source: {file: a, energy_ev: 1e999}\n",
        ["ptycho.yaml:1: source.energy_ev: expected a finite number, got inf"],
    ),
    "too large a number for a backend": (
        "source: {file: a}\ntraining:\n  x: [1, {y: 1e999}]\n",
        ["ptycho.yaml:3: training.x[1].y: expected a finite number"],
    ),
    "infinity of YAML 1.1": ("source: {energy_ev: .inf}\n", ["ptycho.yaml:1: source", "'.inf'"]),
    "time of YAML 1.1": ("source: {file: a}\nfixture: {seed: 1:30}\n", ["seed: ", "'1:30'"]),
    "underscore of YAML 1.1": ("source: {file: a}\nfixture: {seed: 1_0}\n", ["seed: ", "'1_0'"]),
    "deep lists": ("a:\n  " + "[" * 900, ["ptycho.yaml:2: nested more than 20 deep"]),
    "very deep lists": ("[" * 1_000_000, ["ptycho.yaml:1: ", "nest"]),
    "deep mappings": ("{a: " * 3000, ["ptycho.yaml:1: nested more than 20 deep"]),
    "deep by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60)),
        ["nested more than 20 deep"],
    ),
    "many by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 10}]\n" for i in range(1, 9)),
        ["more than 100000 values"],
    ),
    "merge key": (
        "source: {file: a}\nfixture:\n  <<: {seed: 1}\n",
        ["ptycho.yaml:3: fixture: `<<` (merge)", "write the keys out"],
    ),
    "list as a key": ("? [a, b]\n: 3\n", ["ptycho.yaml:1: a list or mapping cannot be a key"]),
    "backtick in a key": ("'a`b - at `$': 3\n", ["ptycho.yaml:1: 'a`b - at `$' cannot be a key"]),
    "newline in a key": ('"a\\nb": 3\n', [r"ptycho.yaml:1: 'a\nb' cannot be a key"]),
    "long key": (f"{'k' * 101}: 3\n", ["ptycho.yaml:1: 'kkk", "... cannot be a key"]),
    "empty key": ("'': 3\n", ["ptycho.yaml:1: '' cannot be a key"]),
    "control character": ("\na: \x07\n", [r"ptycho.yaml:2: has the character '\x07'"]),
    "NUL": ("a: b\0\n", [r"ptycho.yaml:1: has the character '\x00'"]),
    "name of two lines": (
        'source: {file: a}\nname: "a\\n"\n',
        [r"ptycho.yaml:2: name: expected at most 100 letters", r"got 'a\n'"],
    ),
    "measurement of two lines": (
        'source: {file: a, measurement: "counts\\n"}\n',
        [r"measurement: expected one of auto, amplitude, counts, got 'counts\n'"],
    ),
    "backend elsewhere": ("source: {file: a}\nbackend: ../fast\n", ["ptycho.yaml:2: backend: "]),
    "no file's name": ("source: {file: ''}\n", ["ptycho.yaml:1: source.file: ", "length >= 1"]),
    "too long a file's name": (
        f"source: {{file: {'a' * 5000}}}\n",
        ["ptycho.yaml:1: source.file: ", "at most 255 bytes", "..."],
    ),
    "NUL in a file's name": (
        'source: {file: "a\\0b"}\n',
        ["ptycho.yaml:1: source.file: expected text without control characters"],
    ),
    "too many frames": (
        "source:\n  simulate: {grid: 512, size: 1024, step: 1, jitter: 1}\n",
        ["ptycho.yaml:2: source.simulate: grid 512 and size 1024 are 1024 GiB of frames"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD)
def test_a_wrong_value_is_one_line_with_file_line_and_key(tmp_path, text, expected):
    message = refusal(tmp_path, text)
    for part in expected:
        assert part in message


def test_a_missing_file_says_how_to_begin(tmp_path):
    with pytest.raises(ConfigError, match="ptycho-tasks init"):
        read_config(tmp_path / "ptycho.yaml")


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "ptycho.yaml"
    path.write_bytes(b"\nname: \xff\n")
    with pytest.raises(ConfigError, match=r"ptycho.yaml:2: the byte 0xff is not UTF-8"):
        read_config(path)


def test_an_override_wins_over_the_command_line_over_the_file(tmp_path):
    path = tmp_path / "ptycho.yaml"
    path.write_text("source: {file: a}\nfixture: {subset_size: 20, seed: 1}\n")
    layers = merge(
        read_config(path),
        command_line={"fixture.subset_size": 30, "fixture.strategy": "first"},
        overrides={"fixture.subset_size": 40},
    )
    fixture = convert(layers, Config).fixture
    assert (fixture.subset_size, fixture.strategy, fixture.seed) == (40, "first", 1)
    assert layers.origins["fixture.subset_size"] == "override"
    assert layers.origins["fixture.strategy"] == "command line"
    assert layers.origins["fixture.seed"] == "ptycho.yaml:2"


def test_a_wrong_command_line_value_names_the_command_line(tmp_path):
    message = refusal(tmp_path, "source: {file: a}\n", command_line={"fixture.subset_size": 2})
    assert message.startswith("command line: fixture.subset_size: expected `int` >= 16")


@given(
    subset_size=st.none() | st.integers(16, 10**6),
    strategy=st.sampled_from(["stratified", "first", "random", "grid"]),
    seed=st.integers(0, 2**31),
)
def test_canonical_json_is_one_spelling(subset_size, strategy, seed):
    options = FixtureOptions(subset_size=subset_size, strategy=strategy, seed=seed)
    text = canonical_json(options)
    shuffled = dict(reversed(msgspec.to_builtins(options).items()))
    assert canonical_json(shuffled) == text
    assert msgspec.convert(json.loads(text), FixtureOptions) == options


@pytest.mark.parametrize("text", ["010", "10", "+10", "0xa", "0o12"])
def test_integers_are_those_of_yaml_1_2(tmp_path, text):
    assert settle(tmp_path, f"source: {{file: a}}\nfixture: {{seed: {text}}}\n").fixture.seed == 10


def test_aliases_and_tags_of_plain_values_are_read(tmp_path):
    text = "source: {file: !!str 5}\nfixture: {seed: &seed 3}\ntraining: {seed: *seed}\n"
    config = settle(tmp_path, text)
    assert (config.source.file, config.fixture.seed, config.training["seed"]) == ("5", 3, 3)


def test_a_thousand_variants_are_settled_in_time_that_grows_with_their_number(tmp_path):
    """As their keys would not if each variant carried a copy of all."""
    path = tmp_path / "ptycho.yaml"
    each = "".join(f"- {{name: v{i}, fixture.seed: {i}}}\n" for i in range(1000))
    path.write_text(f"source: {{file: a}}\nvariants:\n{each}")
    file = read_config(path)
    merged = merge(file, variant=read_variants(file, {})[7])
    assert set(merged.data) == {"source", "fixture"}
    assert len(merged.origins) < 10


def test_flatten_names_every_leaf():
    leaves = flatten(Config(source={"file": "a"}))  # type: ignore[arg-type]
    assert leaves["source.file"] == "a"
    assert leaves["fixture.strategy"] == "stratified"


def test_judging_a_config_imports_nothing_heavy(tmp_path):
    (tmp_path / "ptycho.yaml").write_text("source: {file: a}\nfixture: {subset_size: 1}\n")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ptycho_tasks.config.document import read_config\n"
        "from ptycho_tasks.errors import ConfigError\n"
        "from ptycho_tasks.config.factories import create_training_payload\n"
        "try:\n    create_training_payload(read_config(Path('ptycho.yaml')))\n"
        "except ConfigError:\n    pass\nelse:\n    raise SystemExit('accepted')\n"
        "heavy = {'numpy', 'torch', 'h5py', 'scipy', 'matplotlib', 'skimage'} & set(sys.modules)\n"
        "raise SystemExit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
