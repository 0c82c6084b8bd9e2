"""`ptycho-tasks prune`, and what `doit list`, `why` and a run say of results."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from project_files import change_settings, list_stamps
from ptycho_tasks.builds.identity import Identity
from ptycho_tasks.builds.pruning import Inventory, Unused, choose_unused
from ptycho_tasks.builds.results import make_record
from ptycho_tasks.builds.store import Store
from ptycho_tasks.layout import STORE_NAME
from ptycho_tasks.testing.project import DOIT, run_command

BUNDLE = "runs/default/training/wts.h5.zip"


@pytest.fixture(scope="module")
def _changed(_built, tmp_path_factory):
    root = shutil.copytree(_built, tmp_path_factory.mktemp("changed") / "project")
    change_settings(root, training={"epochs": 4})
    assert run_command(DOIT, cwd=root).returncode == 0
    return root


@pytest.fixture
def changed(_changed, tmp_path):
    """A project in which what was made first is not named any more."""
    return shutil.copytree(_changed, tmp_path / "changed")


def listing(ours, root, *arguments):
    code, out, _ = ours(root, "prune", "--json", *arguments)
    assert code == 0
    return json.loads(out)


def test_a_project_that_uses_all_has_nothing_to_remove(built_project, ours):
    code, out, _ = ours(built_project, "prune", "--runs")
    assert code == 0
    assert re.fullmatch(r"nothing to remove; the store holds \d+ kB\n", out)


def test_what_no_variant_names_is_listed_and_removed(changed, ours, build):
    before = list_stamps(changed)
    assert {item["label"] for item in listing(ours, changed)} == {"train", "infer"}
    _, out, _ = ours(changed, "prune")
    assert list_stamps(changed) == before
    lines = out.splitlines()
    place = r"\.ptycho/store/\1/[0-9a-f]{12}"
    assert re.fullmatch(rf"(train|infer)  +\S+ kB  \S.* +{place}", lines[0])
    assert re.fullmatch(r"2 can be removed, \d+ kB; the store .* kB; --yes removes them", lines[-1])
    _, out, _ = ours(changed, "prune", "--yes")
    assert re.fullmatch(r"removed 2, \d+ kB; the store holds \d+ kB", out.splitlines()[-1])
    assert listing(ours, changed) == []
    assert build(changed) == []
    assert build(changed, "why") == []
    change_settings(changed, training={"epochs": 5})
    assert build(changed) == ["train", "infer"]


def test_what_lies_stale_in_its_place_is_kept(built_project, ours):
    change_settings(built_project, training={"epochs": 4})
    assert listing(ours, built_project) == []


def test_a_forgotten_result_is_named_all_the_same(built_project, ours, doit):
    doit(built_project, "forget", "train")
    assert listing(ours, built_project) == []


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["--older-than", "1d"], 0),
        (["--older-than", "0h"], 2),
        (["--max-size", "1GB"], 0),
        (["--max-size", "1kB"], 2),
    ],
)
def test_age_and_size_bound_what_is_removed(changed, ours, arguments, count):
    assert len(listing(ours, changed, *arguments)) == count


def test_a_size_that_cannot_be_reached_is_told(changed, ours):
    _, out, _ = ours(changed, "prune", "--max-size", "1kB")
    assert re.search(r"^\d+ kB stay: variants of this project name them", out, re.MULTILINE)


@pytest.mark.parametrize("command", [["prune", "--yes", "--runs"], ["compare"]])
@pytest.mark.parametrize("config", [None, "name: [", "name: tiny\nsource: {files: [no*.npz]}\n"])
def test_without_a_project_nothing_changes(tmp_path, ours, command, config):
    if config is not None:
        (tmp_path / "ptycho.yaml").write_text(config)
    before = {*tmp_path.rglob("*")}
    code, out, err = ours(tmp_path, *command)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "ptycho.yaml" in err
    assert {*tmp_path.rglob("*")} == before


@pytest.mark.parametrize("text", ["3", "d", "3 years", "-1d", "1e3d"])
def test_a_wrong_amount_is_a_mistake(built_project, ours, text):
    for option in ("--older-than", "--max-size"):
        code, out, err = ours(built_project, "prune", f"{option}={text}")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert f"got `{text}`" in err


NOW = datetime.now(timezone.utc)


def unused(age_h, size, kind="train"):
    moment = NOW - timedelta(hours=age_h)
    return Unused(kind, "train", Path(f"{age_h}"), size, moment)


@pytest.mark.parametrize(("most", "ages"), [(100, []), (99, [3]), (80, [3, 2]), (0, [3, 2, 1])])
def test_the_oldest_go_first(most, ages):
    items = [unused(3, 10), unused(3.5, 50, "runs"), unused(2, 20), unused(1, 30)]
    chosen = choose_unused(Inventory(items, 100, None), most_bytes=most)
    assert [int(str(item.path)) for item in chosen if item.kind != "runs"] == ages


def test_a_run_at_work_is_left_alone(changed, ours):
    before = list_stamps(changed)
    with (changed / ".ptycho/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for options in ([], ["--yes"]):
            code, out, err = ours(changed, "prune", *options)
            assert (code, out) == (1, "")
            assert "another run is at work" in err
    assert list_stamps(changed) == before


def test_what_killed_runs_and_damage_left_goes_too(built_project, ours):
    store = built_project / STORE_NAME
    old, new = store / "train/new-old", store / "train/new-new"
    damaged = store / "damaged/train-x"
    for folder in (old, new, damaged):
        folder.mkdir(parents=True)
        (folder / "part").write_text("x" * 1000)
    links = store / f"train/{'a' * 64}.links.json"
    links.write_text("[]")
    os.utime(old, times=(time.time() - 2 * 86400,) * 2)
    found = {item["kind"]: item["path"] for item in listing(ours, built_project)}
    assert {Path(path).name for path in found.values()} == {"new-old", "train-x", links.name}
    assert found.keys() == {"unfinished", "damaged", "links"}
    ours(built_project, "prune", "--yes")
    assert not any(path.exists() for path in (old, damaged, links))
    assert new.is_dir()


@pytest.mark.parametrize("text", ["", "{}", "[1]", None])
def test_a_damaged_record_is_no_obstacle(changed, ours, text):
    for record in [*(changed / STORE_NAME).glob("train/*/record.json")]:
        record.chmod(0o644)
        record.unlink() if text is None else record.write_text(text)
    kinds = sorted(item["kind"] for item in listing(ours, changed))
    assert kinds == ["damaged", "damaged", "infer"]
    ours(changed, "prune", "--yes")
    assert not [*(changed / STORE_NAME).glob("train/*")]


def test_trainings_of_variants_that_are_no_more_go_too(built_project, ours):
    for variant in ("default", "old"):
        folder = built_project / ".ptycho/work" / variant / ("a" * 16)
        folder.mkdir(parents=True)
        (folder / "state.npz").write_text("x")
    (item,) = listing(ours, built_project)
    assert (item["kind"], item["path"]) == ("work", ".ptycho/work/old")
    ours(built_project, "prune", "--yes")
    assert [path.name for path in (built_project / ".ptycho/work").iterdir()] == ["default"]


def test_links_stay_with_the_results_that_need_them(built_project, ours):
    store = Store(built_project / STORE_NAME)
    identity = Identity("{}", {}, {}, {}, {"linked.h5": "a" * 64})
    store.add("source", make_record(identity, "source:old", 1.0), {})
    kinds = sorted(item["kind"] for item in listing(ours, built_project))
    assert kinds == ["links", "source"]


def test_a_shared_store_needs_its_own_option(changed, tmp_path, ours):
    shared = tmp_path / "shared"
    shutil.copytree(changed / STORE_NAME, shared)
    change_settings(changed, store=str(shared))
    _, out, _ = ours(changed, "prune", "--yes")
    assert f"{shared}: other projects may use it; --shared looks there too" in out
    assert len([*shared.glob("train/*")]) == 2
    assert len(listing(ours, changed, "--shared")) == 2
    ours(changed, "prune", "--shared", "--yes")
    assert len([*shared.glob("train/*")]) == 1


# --- results in runs/ that nobody names --------------------------------------------------------


@pytest.fixture
def renamed(built_project, build):
    """A project whose variant has another name now."""
    change_settings(built_project, variants=[{"name": "base"}])
    build(built_project)
    return built_project


def test_results_without_a_name_are_told(renamed, build, ours, capsys):
    line = "runs/default: no variant or scan is called so; `ptycho-tasks prune --runs` lists"
    for command in ("list", "why"):
        capsys.readouterr()
        build(renamed, command)
        shown = capsys.readouterr()
        assert line in shown.err
        assert line not in shown.out
    shutil.rmtree(renamed / "runs/default")
    (renamed / "runs/my_notes").mkdir()
    capsys.readouterr()
    build(renamed, "list")
    assert capsys.readouterr().err == ""


def test_results_without_a_name_are_removed(renamed, build, ours):
    ours(renamed, "prune", "--yes")
    assert (renamed / "runs/default").is_dir()
    (item,) = listing(ours, renamed, "--runs")
    assert (item["kind"], item["path"]) == ("runs", "runs/default")
    ours(renamed, "prune", "--runs", "--yes")
    assert not (renamed / "runs/default").exists()
    assert (renamed / "runs/base").is_dir()
    assert build(renamed) == []


@pytest.mark.parametrize("name", ["notes.txt", BUNDLE.removeprefix("runs/default/")])
def test_a_folder_with_something_of_the_user_stays(renamed, ours, name):
    path = renamed / "runs/default" / name
    path.unlink(missing_ok=True)
    path.write_text("mine")
    _, out, _ = ours(renamed, "prune", "--runs", "--yes")
    assert f"keeping runs/default: no run made runs/default/{name}, or it was changed" in out
    assert path.read_text() == "mine"
    assert (renamed / "runs/default/inference/metrics.json").is_file()


def test_links_in_runs_are_not_followed(renamed, tmp_path, ours):
    outside = tmp_path / "outside"
    (outside / "training").mkdir(parents=True)
    (renamed / "runs/linked").symlink_to(outside)
    (renamed / "runs/default/training/more").symlink_to(outside)
    _, out, _ = ours(renamed, "prune", "--runs", "--yes")
    assert "keeping runs/default: no run made runs/default/training/more" in out
    assert (outside / "training").is_dir()


# --- what a run and the list say ---------------------------------------------------------------


def test_a_sweep_ends_with_what_it_did(built_project, build, doit):
    change_settings(built_project, matrix={"training.epochs": [5, 4, 3]})
    build(built_project, "infer:epochs4")
    shutil.rmtree(built_project / "runs/default")
    line = doit(built_project, "-n", "2").stdout.splitlines()[-1]
    assert line.startswith("made 2 (")
    assert set(re.findall(r"(\w+:epochs3) [\d.]+ s", line)) == {"train:epochs3", "infer:epochs3"}
    assert line.endswith("), taken from the store 2, up to date 4")


def test_a_run_mentions_a_large_store(built_project, doit):
    change_settings(built_project, training={"epochs": 4}, execution={"store_gb": 1e-4})
    line = doit(built_project, "-n", "2").stdout.splitlines()[-1]
    assert re.fullmatch(
        r"the store holds \d+ kB, and execution.store_gb is 0.0001; "
        r"`ptycho-tasks prune --max-size 0.0001GB` lists what can go",
        line,
    )
    assert "the store holds" not in doit(built_project).stdout
    change_settings(built_project, training={"epochs": 3}, execution={"store_gb": 1})
    assert "the store holds" not in doit(built_project, "train").stdout


@pytest.mark.parametrize("options", [[], ["train"], ["-v0", "-a", "infer"]])
def test_little_is_not_summed_up(built_project, doit, options):
    change_settings(built_project, inference={"n_groups": 30})
    done = doit(built_project, "run", *options)
    assert done.returncode == 0
    assert not re.search("^made ", done.stdout, re.MULTILINE)


def test_the_list_with_status_says_sizes_and_ages(built_project, build, capsys):
    (built_project / "runs/default/inference/metrics.json").unlink()
    build(built_project, "list", "--status")
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert re.match(r"U train +[\d.]+ kB, (just now|\d+ minutes? ago) +train the ", lines["train"])
    build(built_project, "list")
    assert "kB" not in capsys.readouterr().out


def test_the_list_of_other_projects_is_that_of_doit(tmp_path, doit):
    (tmp_path / "dodo.py").write_text("def task_a():\n    return {'actions': ['true']}\n")
    done = doit(tmp_path, "list", "--status")
    assert (done.stdout, done.stderr) == ("R a   \n", "")
