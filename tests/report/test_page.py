"""The report: what stands on the page, and what can be said of a project where little is there."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import pytest

from page_arrays import decode
from project_files import change_settings, list_stamps
from ptycho_tasks.errors import FileWriteError
from ptycho_tasks.evidence.summaries import Attempt
from ptycho_tasks.report.comparison import Comparison, Result
from ptycho_tasks.report.contents import _can_be_seen, _doubt_modes, collect_contents
from ptycho_tasks.report.graph import Graph
from ptycho_tasks.report.page import _list_problems, render_page, write_report
from ptycho_tasks.report.plan_page import write_plan_page
from ptycho_tasks.results import open_result

HOSTILE = "</script><script>alert(1)</script>\"'&\n\u202e<img src=x onerror=alert(1)>"


def read_data(text):
    """The JSON in the page."""
    return json.loads(re.search(r'id="report-data">(.*?)</script>', text, re.DOTALL)[1])


def report(ours, root):
    code, out, err = ours(root, "report")
    assert (code, err) == (0, "")
    assert out.startswith("report     report.html (")
    return (root / "report.html").read_text()


class Elements(HTMLParser):
    """What a browser would find."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_what_the_files_do(built_project, ours):
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    with h5py.File(built_project / "runs/default/inference/reconstruction.h5") as file:
        image, seen = file["object"][0], file["ptycho_tasks/seen"][()]
        residual = file["ptycho_tasks/residual"][()]
    amplitude = decode(result["object"]["amplitude"]).reshape(image.shape)
    assert np.array_equal(np.isnan(amplitude), ~seen)
    assert np.abs(amplitude - np.abs(image))[seen].max() < 1e-4
    phase = (
        decode(result["object"]["phase"]).reshape(image.shape) + result["object"]["phase_offset"]
    )
    assert np.abs(np.exp(1j * phase) - image / np.abs(image))[seen].max() < 1e-3
    assert np.allclose(decode(result["frames"]["residual"]), residual, atol=1e-4)
    metrics = json.loads((built_project / "runs/default/inference/metrics.json").read_text())
    assert result["measures"]["r_factor"] == metrics["r_factor"]
    assert result["measures"]["amplitude_ssim"] == metrics["scores"]["amplitude_ssim"]
    assert f"{metrics['r_factor']:.4g}" in text
    assert result["provenance"]["sha256 of what was read"] == metrics["made_from"]["inputs"]
    assert result["link"] == "./runs/default/inference/reconstruction.h5"


def test_truth_frame_and_curves(built_project, ours):
    data = read_data(report(ours, built_project))
    (result,) = data["results"]
    scan = data["scans"][result["scan_key"]]
    assert scan["truth"]["rows"] > 0
    assert scan["frame"]["of"] == 36
    assert np.isfinite(decode(scan["frame"]["mean"])).all()
    frc = result["curves"]["frc"]
    assert frc[0] > 0.9
    assert len(frc) == len(result["curves"]["psd"])
    assert result["curves"]["problem"] is None


def test_steps_are_those_that_were_taken_and_not_those_with_a_loss(built_project, ours):
    shutil.rmtree(built_project / ".ptycho")
    path = built_project / "runs/default/inference/metrics.json"
    metrics = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**metrics, "steps": 34}))
    (result,) = read_data(report(ours, built_project))["results"]
    assert (result["steps"], result["curves"]["first_loss"]) == (34, 0)
    # Of what was changed by hand nothing is believed, though no store knows better.
    assert result["state"] == "stale"
    assert result["reasons"] == ["how what is there was made is not known"]
    assert result["doubts"][0].startswith("metrics.json was changed by hand")
    assert not result["measures"]
    assert "note       metrics.json was changed by hand" in ours(built_project, "show")[1]


def test_how_a_result_was_made_is_said(built_project, ours):
    (result,) = read_data(report(ours, built_project))["results"]
    made = result["provenance"]["how it was made"]
    assert {*made} == {"source", "fixture", "train", "infer"}
    assert "fixtures/tiny.npz (fixture" in made["train"]
    assert "; outside of git; ptycho-tasks " in made["infer"]
    assert f", numpy {version('numpy')}" in made["infer"]
    assert f", python {platform.python_version()}" in made["infer"]


def test_halves_of_the_frames_are_correlated(built_project, ours, build):
    variants = [{"name": frames, "inference.frames": frames} for frames in ("even", "odd")]
    change_settings(built_project, variants=variants)
    build(built_project, "infer")
    text = report(ours, built_project)
    data = read_data(text)
    (half,) = data["halves"]
    assert half["name"] == "even and odd"
    assert half["frc"][0] > 0.5
    assert 0 < half["fall"] <= 1
    assert data["common"]["settings of the project"]["name"] == "tiny"
    assert "<bdi>source.centre</bdi></dt><dd><bdi>unset</bdi>" in text
    assert not re.search("<bdi>(None|False|True)</bdi>", text)
    assert [one["settings"] for one in data["results"]] == [
        {"inference.frames": "even"},
        {"inference.frames": "odd"},
    ]
    # Without the store nothing is known of trainings, and bundles alone tell models apart.
    shutil.rmtree(built_project / ".ptycho")
    assert len(read_data(report(ours, built_project))["halves"]) == 1
    path = built_project / "runs/odd/inference/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["made_from"]["inputs"]["bundle"] = "0" * 64
    path.unlink()
    path.write_text(json.dumps(metrics))
    assert read_data(report(ours, built_project))["halves"] == []


def test_an_object_guess_that_does_not_explain_the_frames_is_no_truth(file_project, ours, build):
    def blur(array):
        return (array + np.roll(array, 2, 0) + np.roll(array, 2, 1)) / 3

    scan = dict(np.load(file_project / "scan.npz"))
    np.savez(file_project / "scan.npz", **{**scan, "objectGuess": blur(scan["objectGuess"])})
    variants = [{"name": frames, "inference.frames": frames} for frames in ("even", "odd")]
    change_settings(file_project, variants=variants)
    build(file_project, "infer")
    text = report(ours, file_project)
    data = read_data(text)
    note, orphans = data["notes"]
    assert orphans.startswith("runs/default: no variant")
    assert note.startswith("scan.npz: objectGuess is a guess and not the truth: with the scan's")
    assert note in Elements(text).text
    # What was measured when the results were made says so without the scan.
    assert ours(file_project, "compare")[2].startswith(note.partition(": with")[0])
    shown = ours(file_project, "show", "runs/even")[1]
    assert "note       objectGuess is a guess and not the truth: with the scan's" in shown
    for result in data["results"]:
        assert not result["has_truth"]
        assert result["measures"]["amplitude_ssim"] < 1
        assert result["curves"]["frc"] is None
        assert len(result["curves"]["frc_guess"]) > 5
        assert {*result["resolutions"]} == {"halves"}
    assert "resolution of halves" in Elements(text).text


def test_a_simulated_file_has_a_truth_too(file_project, ours):
    assert ours(file_project, "compare")[2] == ""
    data = read_data(report(ours, file_project))
    assert data["results"][0]["has_truth"]
    assert data["notes"] == []


def test_the_resolution_is_that_of_the_curve(built_project, ours):
    (result,) = read_data(report(ours, built_project))["results"]
    curve, fall = np.array(result["curves"]["frc"]), result["resolutions"]["truth"]["fall"]
    assert (curve[: int(fall * len(curve))] >= 0.5).all()
    assert fall == 1 or curve[int(fall * len(curve))] < 0.5


def test_numbers_in_names_are_counted(project, ours):
    change_settings(
        project, variants=[{"name": f"v{n}", "training.epochs": n} for n in (10, 9, 100)]
    )
    names = [result["name"] for result in read_data(report(ours, project))["results"]]
    assert names == ["v9", "v10", "v100"]


def test_only_what_is_named_is_shown(built_project, ours):
    code, _, err = ours(built_project, "report", "default")
    assert (code, err) == (
        2,
        "error: report.html shows all results; name another page with --output\n",
    )
    assert ours(built_project, "report", "default", "--output", "one.html")[0] == 0
    assert read_data((built_project / "one.html").read_text())["results"][0]["name"] == "default"
    code, _, err = ours(built_project, "report", "defalt", "--output", "two.html")
    assert code == 2
    assert "did you mean `default`?" in err
    assert not (built_project / "two.html").exists()
    code, _, err = ours(built_project, "report", "NOSUCH")
    assert (code, err) == (
        2,
        "error: no variant or scan is called `NOSUCH`; there are default\n",
    )


def test_a_folder_that_is_not_there_is_not_made(built_project, ours):
    for command in (["report"], ["plan", "show", "--html"]):
        if command[0] == "plan":
            (built_project / "evidence.yaml").write_text(PLAN)
            (built_project / "ledger.md").write_text("# Ledger\n")
            (built_project / "plan.md").write_text("- [ ] **A1:** one\n")
        option = ["--output"] if command == ["report"] else []
        code, _, err = ours(built_project, *command, *option, "nope/deep/x.html")
        assert code == 2
        assert "nope/deep/x.html: there is no folder " in err
        assert not (built_project / "nope").exists()


def test_equal_projects_give_equal_bytes_and_nothing_leaves_the_page(built_project, ours):
    text = report(ours, built_project)
    before = list_stamps(built_project)
    (built_project / "report.html").rename(built_project / "kept.html")
    assert report(ours, built_project) == text
    (built_project / "kept.html").unlink()
    assert {*list_stamps(built_project)} == {*before}
    addresses = Elements(text).addresses
    assert all(a.startswith(("#", "./", "data:")) for a in addresses)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_doit_writes_it_when_a_result_is_new(built_project, doit):
    assert "-- report" not in doit(built_project, "report").stdout
    assert "-- report" in doit(built_project, "report").stdout
    change_settings(built_project, inference={"n_groups": 20})
    why = doit(built_project, "why", "report").stdout
    assert "infer would run before" in why
    done = doit(built_project, "report").stdout
    assert ".  infer" in done
    assert ".  report" in done
    doit(built_project, "clean", "report")
    assert not (built_project / "report.html").exists()


PLAN = (
    "initiative: I\nphase: p\nplan: plan.md\nledger: ledger.md\nitems: [{id: A1, by_hand: look}]\n"
)


def test_doit_writes_it_when_only_evidence_is_new(built_project, doit):
    def is_written():
        return ".  report" in doit(built_project, "report").stdout

    (built_project / "evidence.yaml").write_text(PLAN)
    (built_project / "ledger.md").write_text("# Ledger\n")
    plan = built_project / "plan.md"
    plan.write_text("- [ ] **A1:** one\n")
    assert is_written()
    assert not is_written()
    plan.write_text("- [ ] **A1:** another\n")
    assert "are not what the page says" in doit(built_project, "why", "report").stdout
    assert is_written()
    assert not is_written()


def test_what_is_not_built_is_said_in_its_place(project, ours):
    text = report(ours, project)
    (result,) = read_data(text)["results"]
    assert result["state"] == "not built"
    assert result["reasons"] == []  # that it was not built yet is not said twice
    assert "it is not built yet; run `doit infer`" in Elements(text).text


def replace_object(root, change, *names):
    """Change arrays of the product, of which the store then knows nothing."""
    shutil.rmtree(root / ".ptycho")
    path = root / "runs/default/inference/reconstruction.h5"
    path.chmod(0o644)
    with h5py.File(path, "a") as file:
        for name in names:
            array = change(file[name][()])
            attributes = dict(file[name].attrs)
            del file[name]
            file[name] = array
            file[name].attrs.update(attributes)


def spoil(part):
    def change(array):
        array = array.copy()
        array[(..., *part)] = np.inf
        return array

    return change


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("change", "names", "doubt"),
    [
        (spoil(()), ["object"], "is NaN or infinite wherever it was seen, hatched"),
        (spoil((30, 30)), ["object"], "is NaN or infinite at 1 of "),
        (lambda seen: np.zeros_like(seen), ["ptycho_tasks/seen"], "was seen nowhere"),
        (
            lambda array: array[..., 30:31, 30:31],
            ["object", "ptycho_tasks/seen"],
            "has 1 x 1 pixels",
        ),
        (np.ones_like, ["object"], ""),
    ],
    ids=["NaN", "one NaN", "unseen", "1 x 1", "flat"],
)
def test_what_cannot_be_seen_of_an_object_is_said(built_project, ours, change, names, doubt):
    replace_object(built_project, change, *names)
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    doubts = [one for one in result["doubts"] if "photon noise" not in one]
    assert [doubt in one for one in doubts] == [True] * bool(doubt)
    assert doubt in Elements(text).text
    opened = open_result(built_project / "runs/default")
    assert _can_be_seen(opened) == ("where" not in doubt)
    is_lost = "NaN" in doubt
    assert result["object"]["has_lost"] == is_lost
    assert ("truth" in result["resolutions"]) == (not doubt)
    if not doubt or is_lost:
        assert result["curves"]["psd"] is None


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        (
            {"r_factor": 0.475, "poisson_deviance": 9.04, "noise": {"r_factor": 0.18,
             "poisson_deviance": 1.0}},
            "R-factor 0.475, where photon noise alone gives 0.18: the misfit is 9.04 times",
        ),
        ({"r_factor": float("nan")}, "metrics.json has r_factor NaN: how well the result"),
        ({"noise": "none"}, ""),
    ],
    ids=["poor", "NaN", "older"],
)  # fmt: skip
def test_how_good_a_result_is_is_said(built_project, ours, changes, doubt):
    shutil.rmtree(built_project / ".ptycho")
    path = built_project / "runs/default/inference/metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["made_from"]["metrics"]  # as of an older version
    path.unlink()
    path.write_text(json.dumps({**metrics, **changes}))
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    assert [doubt in one for one in result["doubts"]] == [True] * bool(doubt)
    assert doubt in Elements(text).text


def test_the_misfit_stands_beside_that_of_noise_and_of_a_flat_object(built_project, ours):
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    line = result["provenance"]["how good it is"]["R-factor"]
    assert re.fullmatch("the result .*, photon noise alone .*, a flat object .*", line)
    assert result["measures"]["noise_ratio"] > 0.5
    assert "times noise" in Elements(text).text


def test_modes_that_were_asked_for_in_vain_are_said(built_project):
    opened = open_result(built_project / "runs/default")
    assert _doubt_modes(opened, {"training.probe_modes": len(opened.probe)}) == []
    assert _doubt_modes(opened, {}) == []
    (doubt,) = _doubt_modes(opened, {"training.probe_modes": 3})
    assert doubt == "training.probe_modes is 3, but the probe has 1: the setting had no effect"


def damage_product(root: Path) -> None:
    (root / "runs/default/inference/reconstruction.h5").unlink()
    shutil.rmtree(root / ".ptycho")


def write_older(root: Path) -> None:
    shutil.rmtree(root / ".ptycho")
    path = root / "runs/default/inference/reconstruction.h5"
    path.chmod(0o644)
    with h5py.File(path, "a") as file:
        del file["ptycho_tasks/seen"]


def remove_scan(root: Path) -> None:
    for path in (root / "fixtures").glob("*"):
        path.unlink()


def damage_metrics(root: Path) -> None:
    path = root / "runs/default/inference/metrics.json"
    path.unlink()
    path.write_text("{")
    shutil.rmtree(root / ".ptycho")


def remove_probe(root: Path) -> None:
    shutil.rmtree(root / ".ptycho")
    path = root / "runs/default/inference/reconstruction.h5"
    path.chmod(0o644)
    with h5py.File(path, "a") as file:
        del file["probe"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (remove_probe, "probe is missing"),
        (damage_product, "holds no reconstruction.h5"),
        (write_older, "is no reconstruction of ptycho-tasks"),
        (damage_metrics, "metrics.json: cannot be read"),
    ],
)
def test_a_damaged_result_costs_only_its_own_place(built_project, ours, damage, problem):
    damage(built_project)
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    assert problem in result["problem"]
    assert problem in Elements(text).text


def test_a_scan_that_is_gone_leaves_the_reconstruction(built_project, ours):
    remove_scan(built_project)
    data = read_data(report(ours, built_project))
    (result,) = data["results"]
    assert result["object"]["rows"] > 0
    problem = data["scans"][result["scan_key"]]["problem"]
    assert problem == "the scan cannot be shown: it is not there; run `doit source`"
    assert [note.partition(": ")[2] for note in data["notes"]] == [problem]  # of a simulated truth


def test_scores_against_a_scan_that_is_gone_are_not_called_those_of_a_truth(file_project, ours):
    (file_project / "scan.npz").unlink()
    text = report(ours, file_project)
    data = read_data(text)
    (note,) = data["notes"]
    assert note.startswith("scan.npz: ")
    assert "; whether its objectGuess is the truth cannot be said; scores against it" in note
    assert note in Elements(text).text
    assert not data["results"][0]["has_truth"]


def test_files_whose_name_is_none_for_a_scan_are_left_out_with_a_line(file_project, ours, doit):
    strays = ["<img src=x onerror=alert(1)>.npz", "d" * 200 + ".npz"]
    for name in strays:
        shutil.copy(file_project / "scan.npz", file_project / name)
    change_settings(
        file_project,
        source={"files": ["*.npz"]},
        fixture={"subset_size": 25, "scans": ["scan"]},
        inference={"scan": "source"},
    )
    text = report(ours, file_project)
    notes = read_data(text)["notes"]
    (result,) = read_data(text)["results"]
    assert result["scan"] == "scan"
    assert sum(note.startswith("left out: ptycho.yaml:") for note in notes) == 2
    assert all(any(name in note for note in notes) for name in strays)
    code, out, err = ours(file_project, "compare")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err.count("left out: ") == 2
    for command in ("list", "report"):
        done = doit(file_project, command)
        assert (done.returncode, done.stderr.count("left out: ")) == (0, 2), done.stderr
    assert "cannot name a scan" in doit(file_project, "infer").stderr


def test_results_that_nothing_is_called_are_said(built_project, ours):
    shutil.copytree(built_project / "runs/default", built_project / "runs/old")
    text = report(ours, built_project)
    line = "runs/old: no variant or scan is called so; `ptycho-tasks prune --runs` lists what"
    assert line in Elements(text).text
    code, _, err = ours(built_project, "compare")
    assert code == 0
    assert err.startswith(line)


def test_what_is_wrong_alike_with_several_results_is_one_line():
    records = [
        {"name": name, "state": state, "problem": "not built yet", "reasons": why, "doubts": doubts}
        for name, state, why, doubts in [
            ("a", "failed", ["source failed: dark"], []),
            ("b", "failed", ["source failed: dark"], ["poor"]),
            ("c", "not built", [], []),
        ]
    ]
    assert _list_problems(records) == [
        ("a, b", "failed", None, ("source failed: dark",)),
        ("b", "failed", None, ("poor",)),
        ("c", "not built", "not built yet", ()),
    ]


def test_a_stale_result_has_the_settings_that_its_numbers_are_of(built_project, ours, build):
    change_settings(built_project, training={"epochs": 3}, fixture={"subset_size": 20})
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    assert result["state"] == "stale"
    assert result["settings"]["training.epochs"] == 5
    assert result["settings"]["fixture.subset_size"] == 25
    assert result["reasons"] == [
        "training.epochs 5 -> 3 (train)",
        "fixture.subset_size 25 -> 20 (fixture)",
    ]
    assert "training.epochs 5 -> 3 (train)" in Elements(text).text
    build(built_project, "train")  # of which the result does not know
    (result,) = read_data(report(ours, built_project))["results"]
    assert result["settings"]["training.epochs"] == 5
    assert result["settings"]["fixture.subset_size"] == 25
    assert result["provenance"]["settings of train"]["training.epochs"] == "5"


def test_a_result_of_another_scan_is_not_shown_with_that_of_today(built_project, ours, build):
    change_settings(built_project, source={"simulate": {"size": 32, "grid": 6, "seed": 8}})
    build(built_project, "source")
    data = read_data(report(ours, built_project))
    (result,) = data["results"]
    assert "has changed since" in data["scans"][result["scan_key"]]["problem"]
    assert "truth" not in data["scans"][result["scan_key"]]
    assert result["curves"]["frc"] is None
    assert result["object"]["rows"] > 0


def test_a_damaged_file_is_called_so_and_the_whole_one_is_linked(built_project, ours):
    place = built_project / "runs/default/inference/reconstruction.h5"
    place.unlink()
    place.write_bytes(b"torn")
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    assert result["state"] == "stored"
    made = json.loads(next(built_project.glob(".ptycho/store/infer/*/record.json")).read_text())
    assert result["reasons"][0] == f"the store has it, made {made['made']}"
    assert result["reasons"][1].startswith(
        "runs/default/inference/reconstruction.h5 is damaged, or was changed by hand: sha256 "
    )
    assert result["link"].startswith("./.ptycho/store/infer/")
    assert (built_project / result["link"]).read_bytes() != b"torn"
    assert result["place"] in Elements(text).text
    assert "is damaged" in Elements(text).text


def test_table_and_graph_name_the_same_state(built_project, ours):
    shutil.rmtree(built_project / ".ptycho")
    change_settings(built_project, training={"epochs": 3})
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    assert result["state"] == "stale"
    assert "infer: stale" in text
    assert "not built" not in Elements(text).text


def test_what_failed_says_so_until_it_is_right_again(built_project, ours, doit):
    code = (built_project / "backends/epie.py").read_text()
    broken = code.replace(
        "def infer(self, request):", "def infer(self, request):\n        1 / 0", 1
    )
    (built_project / "backends/epie.py").write_text(broken)
    assert broken != code
    assert doit(built_project, "infer").returncode == 1
    text = report(ours, built_project)
    (result,) = read_data(text)["results"]
    assert result["state"] == "failed"
    assert "infer failed: " in result["reasons"][0]
    assert "ZeroDivisionError" in Elements(text).text
    assert result["object"] is not None  # what was there before
    assert '<option value="0">' in text
    shutil.rmtree(built_project / "runs/default/inference")
    text = report(ours, built_project)
    assert read_data(text)["results"][0]["measures"] == {}  # nor those of the training
    assert '<option value="0">' not in text
    (built_project / "backends/epie.py").write_text(code)
    doit(built_project, "infer")
    assert read_data(report(ours, built_project))["results"][0]["state"] == "fresh"


def render(record=(), evidence=(), count=1):
    results = [
        Result(HOSTILE, "", "infer", "not built", {"name": HOSTILE, "a": HOSTILE + str(i)}, {}, {})
        for i in range(count)
    ]
    comparison = Comparison(results, ["variant"], ["a"], [])
    contents = collect_contents(comparison, Path())
    for one in contents["results"]:
        one |= {"reasons": [HOSTILE], **dict(record)}
    return render_page(comparison, contents, Graph(9, 9, [], []), evidence)


def test_hostile_texts_stay_texts(tmp_path):
    provenance = {"settings": {HOSTILE: HOSTILE}}
    row = {"id": HOSTILE, "evidence": "valid", "state": "done", "text": HOSTILE, "reason": HOSTILE,
           "time": None, "problem": None, "logs": [{"path": HOSTILE, "end": HOSTILE}],
           "runs": [{"item": HOSTILE, "command": HOSTILE, "outcome": "red", "expected": HOSTILE,
           "counts": HOSTILE,
                     "started": HOSTILE, "ended": HOSTILE, "duration_s": 1, "commit": HOSTILE,
                     "dirty": True, "inputs": {"no\n<b>.png": None}}],
           "attempts": [dict.fromkeys(Attempt._fields, HOSTILE)], "attempt_count": 1}  # fmt: skip
    text = render({"provenance": provenance, "problem": None}, [row])
    found = Elements(text)
    assert found.tags.count("script") == 2
    assert "img" not in found.tags
    assert HOSTILE in found.text
    assert read_data(text)["results"][0]["reasons"] == [HOSTILE]
    assert read_data(text)["evidence"][0]["text"] == HOSTILE
    page = tmp_path / "plan.html"
    write_plan_page(page, tmp_path, HOSTILE, [row])
    found = Elements(page.read_text())
    assert found.tags.count("script") == 1
    assert not {"img", "b"} & {*found.tags}
    assert HOSTILE in found.text


def test_a_picture_of_several_rows_stands_once_in_the_page_of_a_plan(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "b.png").write_bytes(b"picture")
    digest = hashlib.sha256(b"picture").hexdigest()
    run = {"item": "i", "command": "c", "outcome": "green", "expected": "",
           "counts": "3 passed", "started": "then",
           "ended": "exit status 0", "duration_s": 1, "commit": None, "dirty": None}  # fmt: skip
    inputs = [{"a.png": digest, "x.txt": digest}, {"a.png": "other", "b.png": digest, "c.png": "-"}]
    rows = [
        {"id": f"A{i}", "evidence": "valid", "state": "done", "text": "", "reason": "",
         "problem": None, "logs": [], "attempts": [], "attempt_count": 0,
         "runs": [run | {"inputs": inputs[i], "expected": ("", "red")[i]}]}
        for i in range(2)
    ]  # fmt: skip
    page = tmp_path / "plan.html"
    write_plan_page(page, tmp_path, "plan.md", rows)
    text = page.read_text()
    assert text.count("url(data:image/png;base64,") == 1
    assert text.count('class="picture picture-0"') == 3
    assert text.partition("report-data")[0].count("changed since the item ran") == 1
    shown = Elements(text).text
    assert "3 passed" in shown
    assert shown.count("red as expected") == 1
    assert "c.png" in shown
    assert "it cannot be shown" in shown


def test_evidence_that_cannot_be_read_is_said():
    assert "plan.md: no such file" in render(evidence=[{"problem": "plan.md: no such file"}])


def test_a_project_without_results_is_one_line(tmp_path, ours):
    code, out, err = ours(tmp_path, "report")
    assert (code, out) == (2, "")
    assert re.match(r"error: \S+ptycho\.yaml: no such file; run `ptycho-tasks init`", err)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_page_before(built_project, ours, monkeypatch):
    before = report(ours, built_project)
    place = built_project / "report.html"
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(FileWriteError):
        write_report(place)
    assert place.read_text() == before


def test_a_link_to_a_report_stays_one(built_project, ours):
    report(ours, built_project)
    place = built_project / "report.html"
    link = built_project / "link.html"
    link.symlink_to(place)
    place.write_text(place.read_text()[:300])
    assert ours(built_project, "report", "--output", "link.html")[0] == 0
    assert link.is_symlink()
    assert len(place.read_text()) > 300


def test_only_a_report_is_replaced_or_removed(built_project, ours, doit):
    place = built_project / "report.html"
    place.write_text("my own page")
    code, out, err = ours(built_project, "report")
    assert (code, out) == (2, "")
    assert "report.html is there and is no page of a report; choose another path" in err
    assert doit(built_project, "report").returncode != 0
    doit(built_project, "clean", "report")
    assert place.read_text() == "my own page"
    code, _, err = ours(built_project, "report", "--output", "/dev/null")
    assert code == 2
    assert "/dev/null is there and is no page of a report" in err
