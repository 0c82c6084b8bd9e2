import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptycho_tasks.builds.notes import open_note, seal_note
from ptycho_tasks.builds.packing import pack_rows, unpack_rows
from ptycho_tasks.builds.planning import make_plan
from ptycho_tasks.builds.rows import Row

NAMES = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}\Z")
PARTS = st.sampled_from(["runs", "fixtures", "scan.npz", 'a,"b', "*", "name"])


@st.composite
def rows(draw):
    variant = draw(NAMES)
    paths = st.lists(PARTS | st.just(variant), min_size=1, max_size=4).map("/".join)
    stage = draw(st.sampled_from(["source", "train"]))
    return Row(
        name=draw(
            st.sampled_from(
                [stage, f"{stage}:{variant}", f"{stage}:default", f"{stage}:{variant}/name"]
            )
        ),
        stage=stage,
        variant=variant,
        scan=draw(st.just("") | NAMES | PARTS),
        doc=draw(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=5)),
        inputs=draw(st.dictionaries(PARTS, paths, max_size=2)),
        outputs=draw(st.lists(paths, max_size=2)),
        after=draw(st.sampled_from(["", "source"])),
        settings=json.dumps(draw(st.dictionaries(PARTS, st.text(max_size=4), max_size=3))),
        at_default=draw(st.lists(PARTS, max_size=2)),
        versions={"stage train": draw(st.integers(1, 2))},
        sources=draw(st.dictionaries(PARTS, PARTS, max_size=1)),
        aliases=draw(st.lists(PARTS, max_size=2)),
    )


@given(st.lists(rows(), max_size=6))
def test_rows_come_back_as_they_were_packed(given_rows):
    note = open_note(seal_note({"key": "k", **pack_rows(given_rows)}))
    assert unpack_rows(note) == given_rows


@pytest.mark.parametrize("note", [None, 7, b"x", "", "{}", "[" * 100_000, seal_note({})[:-1] + "]"])
def test_a_note_that_is_not_as_it_was_written_is_none(note):
    assert open_note(note) == {}


def test_variants_cost_a_fraction_of_what_each_alone_would(project):
    config = (project / "ptycho.yaml").read_text() + "matrix: {training.epochs: [%s]}\n"
    sizes = [
        len(seal_note(pack_rows(make_plan(project / "ptycho.yaml", (config % v).encode()).rows)))
        for v in ("1", ", ".join(map(str, range(1, 101))))
    ]
    assert sizes[1] < 4 * sizes[0]
