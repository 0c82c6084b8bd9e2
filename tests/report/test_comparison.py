"""`ptycho-tasks compare`: results side by side, by what differs."""

from __future__ import annotations

import csv
import json
import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
import yaml

from project_files import change_settings, list_stamps
from ptycho_tasks.commands.compare import _draw_table, _format_paragraphs, _list_cells
from ptycho_tasks.report.comparison import (
    Comparison,
    Result,
    _sort,
    list_measures,
    list_records,
    read_metrics,
)
from ptycho_tasks.testing.project import DOIT, run_command

FEW, MANY = "few", "many"
VARIANTS = [
    {"name": FEW, "inference.n_groups": 20},
    {"name": MANY, "inference.n_groups": 30},
    {"name": "long", "training.epochs": 6},
]
"""The last one is not built."""


@pytest.fixture(scope="module")
def _compared(_built, tmp_path_factory):
    root = Path(shutil.copytree(_built, tmp_path_factory.mktemp("compared") / "project"))
    change_settings(root, variants=VARIANTS)
    assert run_command([*DOIT, "infer:few", "infer:many"], cwd=root).returncode == 0
    return root


@pytest.fixture
def compared(_compared, tmp_path):
    return Path(shutil.copytree(_compared, tmp_path / "compared"))


def ask(ours, root, *arguments):
    code, out, _ = ours(root, "compare", "--json", *arguments)
    assert code == 0
    return json.loads(out)


def test_only_what_differs_is_shown(compared, ours):
    records = ask(ours, compared)
    assert [record["variant"] for record in records] == [MANY, FEW, "long"]
    many, few, long = records
    assert few["inference.n_groups"] == 20
    assert long["training.epochs"] == 6
    assert not {"training.seed", "backend", "name", "source.simulate.photons"} & few.keys()
    assert [record["state"] for record in records] == ["fresh", "fresh", "not built"]
    assert 0 < many["r_factor"] < few["r_factor"] < 1
    assert few["amplitude_ssim"] > 0
    assert few["training_seconds"] > 0
    assert few["memory_bytes"] > 1e6
    assert long["r_factor"] is None


def test_nothing_is_built_or_written(compared, ours):
    before = list_stamps(compared)
    ours(compared, "compare")
    ours(compared, "prune")
    assert list_stamps(compared) == before


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ([], [MANY, FEW, "long"]),
        (["--reverse"], [FEW, MANY, "long"]),
        (["--sort", "n_groups"], [FEW, MANY, "long"]),
        (["--sort", "inference.n_groups", "--reverse"], [MANY, FEW, "long"]),
        (["--sort", "variant"], [FEW, "long", MANY]),
        (["--sort", "amplitude_ssim"], [FEW, MANY, "long"]),
        (["long", FEW], [FEW, "long"]),
        (["long", "--baseline", FEW], [FEW, "long"]),
    ],
)
def test_results_are_selected_and_sorted(compared, ours, options, order):
    assert [record["variant"] for record in ask(ours, compared, *options)] == order


def test_differences_to_a_baseline(compared, ours):
    many, few, _ = ask(ours, compared, "--baseline", MANY)
    assert few["r_factor_difference"] == few["r_factor"] - many["r_factor"]
    assert many["r_factor_difference"] is None
    _, out, _ = ours(compared, "compare", "--baseline", MANY)
    assert f"({few['r_factor'] - many['r_factor']:+.2g})" in out


def test_a_changed_setting_is_stale_and_an_earlier_one_is_stored(compared, ours, build):
    change_settings(compared, variants=[VARIANTS[0] | {"inference.n_groups": 25}, VARIANTS[1]])
    states = {record["variant"]: record["state"] for record in ask(ours, compared)}
    assert states == {FEW: "stale", MANY: "fresh"}
    change_settings(compared, variants=[VARIANTS[0] | {"inference.n_groups": 30}])
    (few,) = ask(ours, compared)
    assert few["state"] == "stored"
    assert few["r_factor"] < 0.12


def test_variants_that_share_a_task_have_its_state(compared, ours):
    groups = {"a": 20, "b": 20, "c": 30, "d": 30}
    variants = [{"name": name, "inference.n_groups": n} for name, n in groups.items()]
    change_settings(compared, variants=variants)
    records = ask(ours, compared)
    assert {record["variant"]: record["state"] for record in records} == dict.fromkeys(
        groups, "stored"
    )


def test_a_refined_result_has_a_line_of_its_own(compared, ours, build):
    change_settings(compared, variants=None, refine={"backend": "further", "epochs": 2})
    build(compared, "infer")
    refined, first = ask(ours, compared)
    assert (refined["stage"], first["stage"]) == ("refine", "infer")
    assert refined["r_factor"] < first["r_factor"]
    assert refined["training_seconds"] == first["training_seconds"]
    assert "refine.epochs" not in refined


def test_a_plain_project_has_one_line(built_project, ours):
    code, out, _ = ours(built_project, "compare")
    title, line = out.splitlines()
    assert code == 0
    assert title.split()[:3] == ["variant", "state", "R-factor"]
    assert line.split()[:2] == ["default", "fresh"]
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fw"], "no variant or scan is called `fw`; did you mean `few`?"),
        (["--baseline", "x"], "no variant or scan is called `x`; there are few, many, long"),
        (["--sort", "r_facto"], "--sort: there is no column `r_facto`; did you mean `r_factor`?"),
        (["--json", "--csv"], "--json and --csv exclude each other; give one"),
    ],
)
def test_mistakes_are_one_line(compared, ours, arguments, text):
    code, out, err = ours(compared, "compare", *arguments)
    assert (code, out, err) == (2, "", f"error: {text}\n")


def test_csv_has_the_same_as_json(compared, ours):
    records = ask(ours, compared)
    _, out, _ = ours(compared, "compare", "--csv")
    lines = [*csv.DictReader(StringIO(out))]
    assert [line["variant"] for line in lines] == [record["variant"] for record in records]
    assert float(lines[0]["r_factor"]) == records[0]["r_factor"]
    assert lines[-1]["r_factor"] == ""


def test_a_project_of_evidence_alone_has_nothing_to_compare(tmp_path, ours):
    (tmp_path / "evidence.yaml").write_text("initiative: i\n")
    code, out, err = ours(tmp_path, "compare")
    assert (code, out) == (2, "")
    assert "nothing to compare" in err


# --- what files may hold -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"scores": 3}', '{"scores": [1]}', '{"r_factor": "no"}'),
        '{"r_factor": NaN, "poisson_deviance": true, "scores": {"a": 1e400, "b": {}}}',
        "[" * 100_000,
    ],
    ids=str.__len__,
)
def test_damaged_metrics_are_missing(tmp_path, text):
    path = tmp_path / "metrics.json"
    path.write_text(text)
    assert list_measures(read_metrics(path)) == {}
    assert read_metrics(tmp_path / "none") == {}


def test_what_is_readable_of_metrics_is_taken(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"r_factor": 0.1, "poisson_deviance": null, "scores": {"a\\u001b[31m": 2}}')
    assert list_measures(read_metrics(path)) == {"r_factor": 0.1, "a\\x1b[31m": 2.0}


HOSTILE = "[red]\x1b[2J\n=cmd"


def make(**changes):
    values = {"variant": "v", "scan": "", "stage": "infer", "state": "fresh", "settings": {}}
    return Result(**{**values, "measures": {}, "differences": {}, **changes})


def test_the_deviance_is_compared_with_that_of_noise(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"poisson_deviance": 3.0, "noise": {"poisson_deviance": 1.5, "r_factor": 1}}')
    assert list_measures(read_metrics(path)) == {"poisson_deviance": 3.0, "noise_ratio": 2.0}
    for noise in ("7", "null", "{}", '{"poisson_deviance": "x"}'):
        path.write_text(f'{{"poisson_deviance": 3.0, "noise": {noise}}}')
        assert list_measures(read_metrics(path)) == {"poisson_deviance": 3.0}


def test_hostile_texts_are_shown_escaped():
    result = make(settings={"source.file": HOSTILE}, measures={"r_factor": 0.1})
    table = _draw_table(Comparison([result], ["variant"], ["source.file"], ["r_factor"]))
    assert "[red]\\x1b[2J\\n=cmd" in table
    assert len(table.splitlines()) == 2


@pytest.mark.parametrize(
    ("columns", "first", "last"),
    [
        (
            250,
            "variant state n_groups epochs R-factor deviance times noise amplitude_mae",
            "long not built unset 6",
        ),
        (110, "variant state n_groups epochs R-factor deviance times noise training", "too wide"),
        (75, "variant state n_groups epochs R-factor deviance times noise", "too wide for this"),
        (60, "variant state n_groups epochs R-factor deviance", "too wide for this terminal"),
        (30, "variant many", "memory"),
    ],
)
def test_a_narrow_terminal_shows_what_matters(compared, ours, monkeypatch, columns, first, last):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's way to take a pipe for a terminal
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = ours(compared, "compare")
    lines = [" ".join(line.split()) for line in re.sub("\x1b\\[[0-9]*m", "", out).splitlines()]
    assert lines[0].startswith(first)
    assert lines[-1].startswith(last)
    assert max(len(line) for line in lines if not line.startswith("too wide")) <= columns


def test_a_narrow_place_shows_a_paragraph_a_result():
    results = [make(variant=name, measures={"r_factor": 0.125}) for name in ("a", "b")]
    comparison = Comparison(results, ["variant"], [], ["r_factor", "memory_bytes"])
    text = _format_paragraphs(*_list_cells(comparison))
    assert text.split("\n\n")[0].splitlines() == [
        "variant   a",
        "state     fresh",
        "R-factor  0.125",
        "memory",
    ]


def test_programs_get_the_same_keys_of_every_result():
    results = [make(scan="s", measures={"r_factor": 1.0}), make(differences={"r_factor": 1.0})]
    records = list_records(Comparison(results, ["variant"], ["training.seed"], ["r_factor"]))
    assert records[0].keys() == records[1].keys()
    assert records[0]["training.seed"] is None


def test_numbers_in_names_count_as_numbers():
    results = [make(variant=v, scan=s) for v in ("steps10", "steps2") for s in ("s10", "s2")]
    sorted_results = _sort(Comparison(results, ["variant", "scan"], [], []), "variant", False)
    assert [(result.variant, result.scan) for result in sorted_results] == [
        ("steps2", "s2"),
        ("steps2", "s10"),
        ("steps10", "s2"),
        ("steps10", "s10"),
    ]


# --- several scans, and variants for once ------------------------------------------------------


def test_each_scan_has_a_line(built_project, ours, build):
    root = built_project
    shutil.rmtree(root / "runs")
    (root / "raw").mkdir()
    for name, source in (("one", "tiny_source"), ("two", "tiny")):
        shutil.copy(root / f"fixtures/{source}.npz", root / f"raw/{name}.npz")
    config = {"name": "beam", "backend": "epie", "training": {"epochs": 3}}
    config |= {"source": {"files": ["raw/*.npz"]}, "fixture": {"scans": ["one"]}}
    (root / "ptycho.yaml").write_text(yaml.safe_dump(config))
    build(root)
    records = ask(ours, root, "--baseline", "one", "--sort", "scan")
    assert [(record["variant"], record["scan"]) for record in records] == [
        ("default", "one"),
        ("default", "two"),
    ]
    one, two = records
    assert one["training_seconds"] == two["training_seconds"]
    assert two["r_factor_difference"] == two["r_factor"] - one["r_factor"]
    (two,) = ask(ours, root, "default/two")
    assert two["scan"] == "two"
    (root / "raw/two.npz").unlink()
    _, out, _ = ours(root, "prune", "--runs", "--json")
    runs = [item["path"] for item in json.loads(out) if item["kind"] == "runs"]
    assert runs == ["runs/default/inference/two"]


def test_a_variant_for_once_is_compared_and_kept(built_project, doit, ours, build, capsys):
    doit(built_project, "infer", "training.epochs=3")
    once, default = ask(ours, built_project, "--reverse")
    assert (once["variant"], once["state"], once["training.epochs"]) == ("epochs3", "fresh", 3)
    assert (default["variant"], default["training.epochs"]) == ("default", 5)
    _, out, _ = ours(built_project, "prune", "--runs")
    assert out.startswith("nothing to remove")
    _, out, _ = ours(built_project, "prune", "--runs", "--one-offs")
    assert "runs/epochs3 " in out
    for arguments in (["list"], ["list", "training.epochs=3"], ["why"]):
        capsys.readouterr()
        build(built_project, *arguments)
        assert capsys.readouterr().err == ""
    ours(built_project, "prune", "--runs", "--one-offs", "--yes")
    assert not (built_project / "runs/epochs3").exists()
    assert [record["variant"] for record in ask(ours, built_project)] == ["default"]
