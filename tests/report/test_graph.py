"""The graph of a project as a drawing."""

from __future__ import annotations

from ptycho_tasks.builds.rows import Row
from ptycho_tasks.report.graph import place_tasks
from ptycho_tasks.report.verdicts import Described


def make_row(name, inputs=(), outputs=(), after=""):
    stage = name.partition(":")[0]
    paths = {f"input {n}": path for n, path in enumerate(inputs)}
    return Row(name, stage, "", "", "", paths, [*outputs], after, "{}", (), {}, {})


ROWS = [
    make_row("source"),
    make_row("fixture", outputs=["f"], after="source"),
    make_row("train:a", ["f"], ["a"]),
    make_row("train:b", ["f"], ["b"]),
    make_row("infer:" + "long" * 20, ["a", "scan.npz"]),
]


def test_each_task_has_a_box_of_its_own_and_a_line_from_what_it_needs():
    graph = place_tasks(ROWS, describe(ROWS, {}))
    assert len({(box.x, box.y) for box in graph.boxes}) == len(ROWS)
    assert len(graph.lines) == 4
    assert all(box.x < graph.width and box.y < graph.height for box in graph.boxes)
    assert [box.label for box in graph.boxes][-1].endswith("\u2026")
    ranks = [next(box.x for box in graph.boxes if box.name == row.name) for row in ROWS]
    assert ranks == sorted(ranks)


def describe(rows, reasons):
    described = {row.name: Described("fresh", ()) for row in rows}
    return described | {name: Described("stale", texts) for name, texts in reasons.items()}


def test_of_a_stage_with_many_tasks_those_in_one_state_share_a_box():
    rows = [make_row(f"source:{n}", outputs=[f"s{n}"]) for n in range(200)]
    rows += [make_row("train", ["s0", "s1"])]
    reasons = [f"file {n} changed" for n in range(50)]
    graph = place_tasks(rows, describe(rows, {"source:7": reasons, "train": reasons}))
    fresh, stale, train = graph.boxes
    assert (fresh.label, fresh.state) == ("199 of source", "fresh")
    assert (stale.name, stale.state) == ("source:7", "stale")
    assert train.reasons == ["file 0 changed", "file 1 changed", "file 2 changed", "and 47 more"]
    assert len(graph.lines) == 1
