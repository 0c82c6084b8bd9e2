"""Which results the page names first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.report.ranking import VALID, choose_first, sum_up
from ptycho_tasks.report.wording import natural_key


def make(name, r_factor=None, scan="", state="fresh", frames=36, has_object=True):
    measures = {} if r_factor is None else {"r_factor": r_factor}
    return {"name": name, "scan": scan, "state": state, "measures": measures, "frame_count": frames,
            "object": {} if has_object else None,
            "can_be_best": state in VALID and has_object}  # fmt: skip


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([make("a", 0.1)], []),
        ([make("a", 0.1), make("b", 0.2)], ["least R-factor: 0.1, of a"]),
        ([make("a", 0.1), make("b", 0.100000001)], ["least R-factor: 0.1, of a, b"]),
        ([make(n, 0.1) for n in "abcd"], ["least R-factor: 0.1, of 4 results"]),
        ([make("a", 0.1), make("b", 0.2, state="stored")], ["least R-factor: 0.1, of a"]),
        (
            [make("a", 0.1, frames=18), make("b", 0.2), make("c", 0.3)],
            ["least R-factor: 0.2, of b"],
        ),
        ([make("a", 0.1, state="stale"), make("b", 0.2)], ["no best: only b is up to date"]),
        (
            [make("a", 0.1, state="stale"), make("b", state="not built")],
            ["no best: none of the results is up to date"],
        ),
        (
            [make("a", 0.1, frames=18), make("b", 0.2)],
            ["no best: no two are of the same frames"],
        ),
        (
            [make("a", 0.1, has_object=False), make("b", 0.2), make("c", 0.3)],
            ["least R-factor: 0.2, of b"],
        ),
        (
            [make("a", 0.1, has_object=False), make("b", 0.2)],
            ["no best: fewer than two are whole"],
        ),
        ([make("a/s10", 0.1, "s10"), make("a/s2", 0.2, "s2")], []),
        (
            [make(f"{v}/{s}", r, s) for v, s, r in [("a", "s10", 0.1), ("b", "s10", 0.2)]]
            + [make("a/s2", 0.4, "s2"), make("b/s2", 0.3, "s2")]
            + [make("a/s3", 0.4, "s3"), make("b/s3", 0.3, "s3", "stale")],
            ["least R-factor of s2: 0.3, of b", "no best of s3: only a/s3 is up to date",
             "least R-factor of s10: 0.1, of a"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_the_best_of_each_scan_is_named_or_why_there_is_none(records, said):
    assert sum_up(records)[1:] == said


def test_of_many_scans_the_first_ones_are_named():
    records = [make(f"{v}/s{n}", 0.1, f"s{n}") for n in range(9) for v in "ab"]
    *named, more = sum_up(records)[1:]
    assert named[-1] == "least R-factor of s2: 0.1, of a, b"
    assert more == "of 6 more scans, the table marks the best with a star"


def test_the_best_and_the_first_of_the_project_are_shown_first():
    records = [make("a", 0.3), make("b", 0.1), make("default", 0.2)]
    assert choose_first(records, [2, 1, 0]) == [1, 2]
    assert choose_first([*records[:2], make("default", has_object=False)], [2, 1, 0]) == [1, 0]
    assert choose_first([make("a", 0.3, state="stale")], [0]) == [0]
    assert choose_first([make("a", has_object=False)], [0]) == []


def test_numbers_in_names_count_as_numbers():
    names = ["steps10", "steps2", "steps", "2", "10", "a2b10", "a2b9", "a02b9", "9" * 9999, ""]
    assert sorted(names, key=natural_key)[1:5] == ["2", "10", "9" * 9999, "a2b9"]
    assert [name for name in sorted(names, key=natural_key) if "steps" in name] == [
        "steps",
        "steps2",
        "steps10",
    ]


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_the_order_of_numbers_is_theirs(one, other):
    assert (natural_key(f"a{one}") < natural_key(f"a{other}")) == (one < other)


@given(st.lists(st.text()))
def test_all_names_can_be_sorted(names):
    assert sorted(sorted(names, key=natural_key)) == sorted(names)
