"""The variants that a ptycho.yaml asks for: which, by what names, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.config.document import parse_config
from ptycho_tasks.config.layers import convert, merge
from ptycho_tasks.config.sections import Config
from ptycho_tasks.config.variants import make_label, read_variants
from ptycho_tasks.errors import ConfigError

BASE = "source: {file: scan.npz}\nfixture: {seed: 7, subset_size: 20}\n"


def read(text: str):
    return parse_config(Path("ptycho.yaml"), (BASE + text).encode())


def changes(text: str) -> dict[str, dict[str, Any]]:
    """Name to overrides of every variant."""
    return {variant.name: dict(variant.overrides) for variant in read_variants(read(text), {})}


def settled(text: str) -> list[Config]:
    file = read(text)
    return [convert(merge(file, variant=variant), Config) for variant in read_variants(file, {})]


@pytest.mark.parametrize("text", ["", "matrix:", "matrix: {}", "variants:", "variants: []"])
def test_where_none_is_asked_for_there_is_the_default(text):
    assert changes(text) == {"default": {}}


def test_a_matrix_gives_every_combination_and_the_list_comes_after():
    text = """
matrix:
  fixture.strategy: [first, random]
  training.seed: [0, 1]
variants:
  - name: wide
    fixture: {subset_size: 64}
    training.neighbours: 5
"""
    assert changes(text) == {
        "seed0-strategyfirst": {"fixture.strategy": "first", "training.seed": 0},
        "seed1-strategyfirst": {"fixture.strategy": "first", "training.seed": 1},
        "seed0-strategyrandom": {"fixture.strategy": "random", "training.seed": 0},
        "seed1-strategyrandom": {"fixture.strategy": "random", "training.seed": 1},
        "wide": {"fixture.subset_size": 64, "training.neighbours": 5},
    }
    wide = settled(text)[-1]
    assert (wide.fixture.seed, wide.fixture.subset_size) == (7, 64)


def test_keys_that_end_alike_are_told_apart():
    text = "matrix: {fixture.seed: [1], training.seed: [2], training.gridsize: [3]}"
    assert list(changes(text)) == ["fixture.seed1-training.gridsize3-training.seed2"]


@pytest.mark.parametrize("nested", ["fixture: {seed: 1}", "fixture.seed: 1", '"fixture.seed": 1'])
def test_nested_and_dotted_keys_say_the_same(nested):
    text = f"variants:\n- name: a\n  {nested}\n"
    assert changes(text) == {"a": {"fixture.seed": 1}}
    assert settled(text)[0].fixture.seed == 1
    assert merge(read(text), variant=read_variants(read(text), {})[0]).where("fixture.seed") == (
        "ptycho.yaml:5"
    )


def test_a_section_with_every_line_commented_out_changes_nothing():
    text = "variants:\n- name: a\n  fixture:\n    # seed: 1\n  training: {seed: 2}\n"
    assert changes(text) == {"a": {"training.seed": 2}}
    assert settled(text)[0].fixture.seed == 7


def test_a_value_may_be_taken_back_to_null():
    text = "variants: [{name: all, fixture.subset_size: null}]"
    assert settled(text)[0].fixture.subset_size is None


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "key1"),
        (-1.5, "key-1.5"),
        (1e-9, "key1e-09"),
        (True, "keyTrue"),
        (None, "keynull"),
        ("", "key"),
        ("v1.2", "keyv1.2"),
        ("run1/scan.npz", "keyrun1_scan"),
        ("../run1/scan.v2.npz", "key.._run1_scan.v2"),
        ("/", "key_"),
    ],
)
def test_values_in_names(value, name):
    assert make_label({"key": value}) == name


def test_values_that_no_name_can_hold_are_told_apart_by_their_hash():
    values = ["é", "two words", "a\n", "x" * 41, "x" * 42, 1e20, [1, 2], {"b": 1, "a": 2}, {}]
    names = {make_label({"key": value}) for value in values}
    assert len(names) == len(values)
    assert all(re.fullmatch("key[0-9a-f]{8}", name) for name in names)


@given(st.dictionaries(st.text("abc._", min_size=1), st.text() | st.floats() | st.integers()))
def test_a_label_can_name_a_file(overrides):
    text = make_label(overrides)
    assert re.fullmatch("[A-Za-z0-9_.-]{0,80}", text)


def test_scans_of_one_name_in_several_folders_are_told_apart():
    text = "matrix: {source.file: [run1/scan.npz, run2/scan.npz]}"
    assert list(changes(text)) == ["filerun1_scan", "filerun2_scan"]


REFUSED = {
    "matrix of a scalar": ("matrix: 3", ["3: matrix: expected `key: [values]` lines, got 3"]),
    "values of a scalar": (
        "matrix:\n  fixture.seed: 3",
        ["4: matrix.fixture.seed: expected a list of values, got 3"],
    ),
    "no values": ("matrix: {a: []}", ["3: matrix.a: expected a list of values, got []"]),
    "nested keys in the matrix": ("matrix: {fixture: {seed: [1]}}", ["got {'seed': [1]}"]),
    "far too many": (
        "matrix: {" + ", ".join(f"a{i}: [1, 2, 3]" for i in range(40)) + "}",
        ["3: matrix: asks for 12157665459056928801 variants; take at most 10000"],
    ),
    "variants of a scalar": ("variants: 0", ["3: variants: expected a list, got 0"]),
    "a scalar for a variant": ("variants:\n- 3", ["4: variants[0]: expected a `name`"]),
    "nameless": ("variants: [{fixture.seed: 3}]", ["3: variants[0]: expected a `name`"]),
    "name of a number": ("variants:\n- {name: 3, a: 1}", ["4: variants[0]: expected a `name`"]),
    "no name": ("variants:\n- {a: 1, name: a/b}", ["4: variant 'a/b': expected at most 100"]),
    "name of two lines": ('variants: [{name: "a\\n", a: 1}]', [r"3: variant 'a\n': expected"]),
    "long name": (f"variants: [{{name: {'a' * 101}, a: 1}}]", ["expected at most 100", "..."]),
    "odd key": ('matrix: {"fixture.a b": [1]}', ["3: variant 'a b1': expected"]),
    "one name twice": (
        "variants:\n- {name: a, fixture.seed: 1}\n- {name: a, fixture.seed: 2}",
        ["5: variant `a`: there is another one called `a`; remove one"],
    ),
    "one name but for case": (
        "variants:\n- {name: A, fixture.seed: 1}\n- {name: a, fixture.seed: 2}",
        ["5: variant `a`: there is another one called `A`"],
    ),
    "of the matrix and the list": (
        "matrix: {fixture.seed: [1]}\nvariants: [{name: seed1, fixture.seed: 2}]",
        ["4: variant `seed1`: there is another"],
    ),
    "one key twice": (
        "variants:\n- name: a\n  fixture.seed: 1\n  fixture: {seed: 2}",
        [": variant `a`: `fixture.seed` is given twice"],
    ),
    "a section and a key of it": (
        "matrix:\n  fixture.seed: [1]\n  fixture: [{seed: 2}]",
        ["4: matrix: `fixture.seed` is a part of `fixture`; remove one"],
    ),
    "a dot too many": ("matrix: {fixture..seed: [1]}", ["3: matrix: `fixture..seed` has a dot"]),
    "the project's name": ("matrix: {name: [a, b]}", ["3: matrix: `name` is the same in every"]),
    "variants of variants": (
        "variants: [{name: a, variants: [3]}]",
        ["3: variant `a`: `variants` is the same in every variant"],
    ),
    "matrix of a variant": (
        "variants: [{name: a, matrix: {fixture.seed: [3]}}]",
        ["3: variant `a`: `matrix.fixture.seed` is the same in every variant"],
    ),
    "below the name": ("variants: [{name: a, name.b: 1}]", ["`name.b` is the same in every"]),
}
REFUSED_WHEN_SETTLED = {
    "unknown key": (
        "variants:\n- name: a\n  fixture:\n    sed: 1",
        ["6: variant `a`: fixture.sed: unknown key; did you mean `seed`?"],
    ),
    "unknown section": (
        "matrix:\n  fixtur.seed: [1]",
        ["4: variant `seed1`: fixtur: unknown key; did you mean `fixture`?"],
    ),
    "wrong value": (
        "variants:\n- name: a\n  fixture.seed: -3",
        ["5: variant `a`: fixture.seed: expected `int` >= 0, got -3"],
    ),
    "wrong value in a section": (
        "matrix:\n  fixture: [{seed: x}]",
        ["4: variant `fixture", "fixture.seed: expected `int`, got 'x'"],
    ),
    "a scalar where a section belongs": (
        "matrix: {fixture: [3]}",
        ["3: variant `fixture3`: fixture: expected a mapping, `key: value` lines, got 3"],
    ),
    "below a scalar": (
        "variants: [{name: a, fixture.seed.deep: 1}]",
        ["3: variant `a`: fixture.seed: expected `int`"],
    ),
    "values that do not fit each other": (
        "variants:\n- name: a\n  source: {file: null, simulate: {size: 16}}\n"
        "- name: b\n  source: {file: null, simulate: {size: 8, jitter: 9}}",
        ["7: variant `b`: source.simulate: jitter 9 exceeds step 6"],
    ),
    "two kinds of source": (
        "variants:\n- name: a\n  source.simulate: {size: 16}",
        ["5: variant `a`: source: give exactly one of `file`"],
    ),
    "not the variant's fault": (
        "inference: {n_groups: x}\nvariants: [{name: a, fixture.seed: 1}]",
        ["ptycho.yaml:3: inference.n_groups: expected `int | null`, got 'x'"],
    ),
}


def check(message: str, expected: list[str]) -> None:
    assert message.startswith("ptycho.yaml:")
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line_with_its_place(text, expected):
    with pytest.raises(ConfigError) as caught:
        read_variants(read(text), {})
    check(str(caught.value), expected)


@pytest.mark.parametrize(
    ("text", "expected"), REFUSED_WHEN_SETTLED.values(), ids=REFUSED_WHEN_SETTLED
)
def test_refused_when_settled_in_one_line_with_place_and_variant(text, expected):
    with pytest.raises(ConfigError) as caught:
        settled(text)
    check(str(caught.value), expected)


@pytest.mark.parametrize("off", ["{}", "null", ""])
def test_a_variant_may_switch_the_refinement_off(off):
    text = f"refine: {{backend: ptychi}}\nvariants:\n- name: a\n  refine: {off}\n"
    (variant,) = read_variants(read(text), {})
    assert not merge(read(text), variant).data["refine"]
