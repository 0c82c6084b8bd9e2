"""Work is known by its content: what was made before is taken, whatever it is called."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from ptycho_tasks.builds.identity import Identity
from ptycho_tasks.builds.results import make_record
from ptycho_tasks.builds.store import RECORD, Store
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.layout import STORE_NAME
from ptycho_tasks.testing.project import DOIT, TIMEOUT_S, run_command
from started_commands import start_command

BUNDLE = "runs/default/training/wts.h5.zip"


@pytest.fixture
def change(built_project):
    """Change settings of the project: dotted keys, and what they become."""
    path = built_project / "ptycho.yaml"

    def change(**settings):
        config = yaml.safe_load(path.read_text())
        for key, value in settings.items():
            *sections, last = key.split("__")
            place = config
            for section in sections:
                place = place.setdefault(section, {})
            if value is None:
                place.pop(last)
            else:
                place[last] = value
        path.write_text(yaml.safe_dump(config, sort_keys=False))

    return change


def entries(root, stage="*"):
    return sorted((root / STORE_NAME).glob(f"{stage}/*/{RECORD}"))


# --- no work -----------------------------------------------------------------------------------

MATRIX = {"inference.n_groups": [20, 30]}


def test_variants_that_differ_after_training_share_it(built_project, change, build):
    change(matrix={"inference.n_groups": [20, 30, 25]}, training__epochs=4)
    assert build(built_project, "train") == ["train"]
    bundles = {path.read_bytes() for path in built_project.glob("runs/n*/training/wts.h5.zip")}
    assert len(bundles) == 1
    assert {path.name for path in (built_project / "runs").iterdir()} == {
        *("default", "n_groups20", "n_groups25", "n_groups30"),
    }


NO_WORK = {
    "values in another order": {"matrix": {"inference.n_groups": [30, 20]}},
    "an axis with the present value": {
        "matrix": {"training.epochs": [5], "inference.n_groups": [20, 30]}
    },
    "an axis with the default": {
        "matrix": {"inference.n_groups": [20, 30], "training.seed": [0]},
    },
    "the axis removed": {"matrix": None, "inference__n_groups": 20},
    "variants with names": {
        "matrix": None,
        "variants": [
            {"name": "few", "inference.n_groups": 20},
            {"name": "many", "inference": {"n_groups": 30}},
        ],
    },
    "one written otherwise": {"source__simulate__photons": 1000000},
    "another name of a part": {"matrix": {"inference.n_groups": [20]}},
}


@pytest.fixture(scope="module")
def _built_matrix(_built, tmp_path_factory):
    root = shutil.copytree(_built, tmp_path_factory.mktemp("matrix") / "project")
    with (root / "ptycho.yaml").open("a") as config:
        yaml.safe_dump({"matrix": MATRIX}, config)
    done = run_command(DOIT, cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def built_matrix(_built_matrix, built_project):
    """The project with its matrix built."""
    return shutil.copytree(_built_matrix, built_project, dirs_exist_ok=True)


@pytest.mark.parametrize("settings", NO_WORK.values(), ids=NO_WORK)
def test_what_only_looks_new_is_no_work(built_matrix, change, build, settings):
    change(**settings)
    assert build(built_matrix) == []
    assert build(built_matrix) == []


def test_a_plain_project_becomes_part_of_a_matrix(built_project, change, build, capsys):
    before = {path: path.stat().st_mtime_ns for path in built_project.glob("runs/**/*.*")}
    change(matrix={"training.seed": [0, 1]})
    assert build(built_project) == ["train", "infer"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    change(matrix=None, variants=[{"name": "base"}])
    capsys.readouterr()
    assert build(built_project) == []
    assert "train from the store, made " in capsys.readouterr().out
    assert (built_project / "runs/base/training/wts.h5.zip").is_file()


def test_an_earlier_value_is_no_work(built_project, change, build, capsys):
    before = (built_project / BUNDLE).read_bytes()
    for epochs, ran in ((3, ["train", "infer"]), (5, []), (3, []), (5, [])):
        change(training__epochs=epochs)
        capsys.readouterr()
        build(built_project, "why")
        shown = capsys.readouterr().out
        assert ("to be taken from the store" in shown) == (ran == [])
        assert build(built_project) == ran
    assert (built_project / BUNDLE).read_bytes() == before


@pytest.mark.parametrize(
    "spelling", ["./scan.npz", "sub/../scan.npz", "{root}/scan.npz", "copy.npz"]
)
def test_the_spelling_of_a_path_is_no_content(file_project, build, spelling):
    build(file_project)
    shutil.copy(file_project / "scan.npz", file_project / "copy.npz")
    config = file_project / "ptycho.yaml"
    name = spelling.format(root=file_project)
    config.write_text(config.read_text().replace("scan.npz", name))
    assert build(file_project) == []


@pytest.mark.parametrize("way", ["moved", "copied", "without the database", "cloned"])
def test_a_project_elsewhere_is_no_work(built_project, tmp_path, change, build, way):
    if way == "cloned":  # only what git would bring, and a store on a server
        change(store=str(tmp_path / "shared"))
        build(built_project, "-a")
    other = tmp_path / "elsewhere" / "project"
    shutil.copytree(built_project, other)
    if way == "moved":
        shutil.rmtree(built_project)
    if way == "without the database":
        (other / ".ptycho/state.sqlite").unlink()
    if way == "cloned":
        for name in (".ptycho", "runs", "fixtures"):
            shutil.rmtree(other / name)
    assert build(other) == []
    assert (other / BUNDLE).is_file()


def test_another_branch_and_back_is_no_work(built_project, build):
    backend = built_project / "backends/epie.py"
    text = backend.read_text()
    backend.write_text(text.replace("np.complex64)\n", "np.complex64) + 0\n"))
    assert build(built_project) == ["train", "infer"]
    backend.write_text(text)
    assert build(built_project) == []


def test_what_was_taken_as_made_by_the_code_as_it_is_stays_so(built_project, change, build):
    backend = built_project / "backends/epie.py"
    text = backend.read_text()
    backend.write_text(text.replace("x64)\n", "x64) + 0\n"))
    assert build(built_project, "infer", "--ignore-code") == []
    change(training__epochs=4)
    assert build(built_project) == ["train", "infer"]
    change(training__epochs=5)
    assert build(built_project) == []
    backend.write_text(text.replace("x64)\n", "x64) + 1\n"))
    assert build(built_project) == ["train", "infer"]


def test_a_copy_without_its_scan_infers_from_its_fixture(file_project, build, doit):
    config = file_project / "ptycho.yaml"
    config.write_text(config.read_text() + "inference: {scan: fixture}\n")
    build(file_project)
    (file_project / "scan.npz").unlink()
    assert build(file_project) == []
    shutil.rmtree(file_project / ".ptycho")
    shutil.rmtree(file_project / "runs/default/inference")
    config.write_text(config.read_text().replace("epochs: 5", "epochs: 4"))
    assert build(file_project) == ["train", "infer"]
    config.write_text(config.read_text().replace("subset_size: 25", "subset_size: 24"))
    done = doit(file_project)
    assert done.returncode == 2
    assert "there is no" in done.stderr


def test_what_the_user_asks_for_is_made_again(built_project, build, doit, capsys):
    doit(built_project, "forget", "train")
    assert build(built_project, "train") == ["train"]
    assert build(built_project, "-a", "train") == ["source", "fixture", "train"]
    shutil.rmtree(built_project / "runs")
    capsys.readouterr()
    assert build(built_project, "-a", "train") == ["source", "fixture", "train"]
    assert "from the store" not in capsys.readouterr().out


def test_variants_of_files_that_are_called_alike_are_not_mixed_up(file_project, doit, build):
    config = file_project / "ptycho.yaml"
    with np.load(file_project / "scan.npz") as arrays:
        other = dict(arrays)
    other["diff3d"] = other["diff3d"][::-1]
    np.savez(file_project / "other.npz", **other)
    (file_project / "other.npz").rename(file_project / "scan.dat")
    with config.open("a") as stream:
        stream.write("variants: [{name: one}, {name: two, source.file: scan.dat}]\n")
    assert build(file_project, "fixture") == ["source", "fixture"]
    assert len({path.read_bytes() for path in (file_project / "fixtures").glob("*.npz")}) == 2
    with config.open("a") as stream:
        stream.write("matrix: {source.file: [./scan.one, ./scan.two]}\n")
    done = doit(file_project, "list")
    assert done.returncode == 2
    assert "there is another one called" in done.stderr


# --- damage ------------------------------------------------------------------------------------


def damage(path):
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("files", [None, [], {"wts.h5.zip": 7}])
def test_a_record_of_another_shape_is_damage(built_project, build, files):
    (record,) = entries(built_project, "train")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"files": files}))
    (built_project / BUNDLE).unlink()
    assert build(built_project) == ["train"]


@pytest.mark.parametrize("name", ["wts.h5.zip", RECORD])
def test_a_damaged_entry_is_set_aside_and_made_again(built_project, build, capsys, name):
    before = (built_project / BUNDLE).read_bytes()
    (record,) = entries(built_project, "train")
    damage(record.parent / name)
    (built_project / BUNDLE).unlink()
    assert build(built_project) == ["train"]
    shown = capsys.readouterr().err
    assert f"{record.parent.relative_to(built_project)}: {name} is" in shown
    assert (built_project / BUNDLE).read_bytes() == before
    assert build(built_project) == []


@pytest.mark.parametrize("is_cut", [False, True])
def test_what_is_plainly_damaged_is_not_promised(built_project, doit, is_cut):
    (record,) = entries(built_project, "train")
    (built_project / BUNDLE).unlink()
    assert "to be taken from the store" in doit(built_project, "why", "train").stdout
    kept = record.parent / "wts.h5.zip"
    content = kept.read_bytes()
    kept.unlink()
    if is_cut:
        kept.write_bytes(content[:-1])
    said = doit(built_project, "why", "train").stdout
    assert "train    stale\n           runs/default/training/wts.h5.zip is missing\n" in said


def test_an_edited_output_never_changes_the_store(built_project, build):
    (record,) = entries(built_project, "train")
    kept = (record.parent / "wts.h5.zip").read_bytes()
    damage(built_project / BUNDLE)
    assert (record.parent / "wts.h5.zip").read_bytes() == kept
    assert build(built_project) == []
    assert (built_project / BUNDLE).read_bytes() == kept


def test_a_kept_checkpoint_that_was_removed_is_noticed(built_project, build, capsys):
    backend = built_project / "backends/epie.py"
    text, given = backend.read_text(), "TrainedModel(models={})"
    kept = f"TrainedModel(models={{}}, checkpoints={{'best': {given}}})"
    backend.write_text(text.replace(given, kept))
    build(built_project)
    checkpoint = built_project / "runs/default/training/checkpoints/best/wts.h5.zip"
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    capsys.readouterr()
    assert build(built_project) == []
    assert f"({checkpoint.relative_to(built_project)} is missing)" in capsys.readouterr().out
    assert checkpoint.read_bytes() == content
    assert build(built_project) == []
    assert "from the store" not in capsys.readouterr().out


def test_entries_are_read_only(built_project):
    for record in entries(built_project):
        for name in json.loads(record.read_text())["files"]:
            assert (record.parent / name).stat().st_mode & 0o222 == 0


def test_a_lost_store_is_filled_from_what_lies_in_its_place(built_project, build):
    shutil.rmtree(built_project / STORE_NAME)
    (built_project / ".ptycho/state.sqlite").unlink()
    assert build(built_project) == ["source"]
    assert len(entries(built_project)) == 4


def test_a_store_of_a_newer_format_is_refused(built_project, doit, change):
    (built_project / STORE_NAME / "store.json").write_text('{"format": 2}')
    change(training__epochs=4)
    done = doit(built_project)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "store: this store is of format 2, and this ptycho-tasks knows 1; update" in line


# --- shared ------------------------------------------------------------------------------------


def test_a_shared_store_serves_several_projects(built_project, tmp_path, change, build, capsys):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)  # more than any umask leaves
    change(store=str(shared))
    build(built_project, "-a")
    assert {folder.stat().st_mode & 0o777 for folder in shared.iterdir() if folder.is_dir()} == {
        0o777
    }
    other = tmp_path / "other"
    shutil.copytree(built_project, other, ignore=shutil.ignore_patterns(".ptycho", "runs", "*.npz"))
    capsys.readouterr()
    assert build(other) == []
    lines = capsys.readouterr().out
    for task in ("source", "fixture", "train", "infer"):
        assert f"{task} from the store, made " in lines


def test_a_store_that_cannot_be_written_is_read_all_the_same(
    built_project, tmp_path, change, build, capsys
):
    """Here because a file is in its way; what is made is kept in the project."""
    (tmp_path / "file").write_text("")
    change(store=str(tmp_path / "file/shared"), training__epochs=4)
    assert build(built_project) == ["train", "infer"]
    said = capsys.readouterr().err
    assert said.count(f"{tmp_path / 'file/shared'}: cannot be written") == 1
    assert build(built_project) == []
    assert len(entries(built_project, "train")) == 2


def test_two_projects_with_one_store_make_a_result_once(
    built_project, tmp_path, change, build, doit
):
    change(store=str(tmp_path / "shared"), training__epochs=4)
    other = tmp_path / "other"
    shutil.copytree(built_project, other, ignore=shutil.ignore_patterns(".ptycho", "runs"))
    (other / "hold").touch()
    text = (other / "backends/epie.py").read_text()
    wait = "import pathlib, time\n        while pathlib.Path('hold').exists(): time.sleep(0.05)"
    for root in (built_project, other):  # of the same code
        (root / "backends/epie.py").write_text(
            text.replace(
                "def train(self, request):", f"def train(self, request):\n        {wait}\n"
            )
        )
    begin = partial(
        start_command, [*DOIT, "train"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with begin(cwd=other) as first:
        place = tmp_path / "shared/train"
        while not [*place.glob("*.lock")]:
            assert first.poll() is None
            time.sleep(0.05)
        with begin(cwd=built_project) as second:
            waits = (
                f"waits for process {first.pid} on {socket.gethostname()}, which makes it in the"
            )
            said = ""
            while waits not in said:
                said = second.stdout.readline()
                assert said
            (other / "hold").unlink()
            assert second.wait(TIMEOUT_S) == 0
        assert first.wait(TIMEOUT_S) == 0
    (made,) = place.iterdir()
    record = json.loads((made / RECORD).read_text())
    bundle = (built_project / BUNDLE).read_bytes()
    assert hashlib.sha256(bundle).hexdigest() == record["files"]["wts.h5.zip"]


def test_the_lock_of_a_killed_run_goes(built_project, build, change):
    left = built_project / STORE_NAME / f"train/{'0' * 64}.lock"
    left.touch()
    change(training__epochs=4)
    build(built_project)
    assert not left.exists()


IDENTITY = Identity('{"a":1}', {"stage train": 1}, {}, {"fixture": "0" * 64})


def write_entry(root, content, barrier):
    store = Store(Path(root, "own"), Path(root, "shared"))
    for number in range(20):
        with store.begin("train") as folder:
            (folder / "wts.h5.zip").write_bytes(content)
            barrier.wait(TIMEOUT_S)
            now = IDENTITY._replace(settings=f'{{"a":{number}}}')
            entry = store.publish(folder, "train", make_record(now, "train", 1.0), replace=False)
            assert store.check(entry)


def test_two_writers_at_once_leave_one_whole_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [
        context.Process(target=write_entry, args=(tmp_path, bytes([n]) * 100_000, barrier))
        for n in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = Store(tmp_path / "own", tmp_path / "shared")
    every = list(store.entries())
    assert len(every) == 20
    assert all(store.check(entry) for entry in every)
    assert not list(tmp_path.glob("*/train/new-*"))


def test_a_result_knows_the_further_files_that_it_was_made_from(tmp_path):
    store = Store(tmp_path / "own")
    files = {"linked.h5": "a" * 64}
    record = make_record(IDENTITY._replace(read=files), "source", 0.0)
    store.add("source", record, {})
    found = store.find("source", IDENTITY, files.get)
    assert found is not None
    assert found.record.identity.read == files
    assert store.find("source", IDENTITY, lambda path: "b" * 64) is None


def test_a_record_that_says_something_else_than_its_name_is_damaged(tmp_path, capsys):
    store = Store(tmp_path / "own")
    entry = store.add("source", make_record(IDENTITY, "source", 0.0), {})
    other = entry.folder.with_name("f" * 64)
    entry.folder.rename(other)
    assert store.read("source", other.name) is None
    assert "set aside" in capsys.readouterr().err


def test_an_entry_reaches_no_file_outside_its_folder(tmp_path):
    store = Store(tmp_path / "own")
    entry = store.add("train", make_record(IDENTITY, "train", 0.0), {})
    record = json.loads((entry.folder / RECORD).read_text())
    record["files"] = {"checkpoints/../../../../out": "0" * 64}
    (entry.folder / RECORD).write_text(json.dumps(record))
    assert store.read("train", entry.key) is None


def test_a_newer_format_is_refused_by_who_writes_too(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/store.json").write_text('{"format": 99}')
    store = Store(tmp_path / "own")
    with pytest.raises(ConfigError, match="format 99"):
        store.add("source", make_record(IDENTITY, "source", 0.0), {})


# --- one-off variants --------------------------------------------------------------------------


def test_key_and_value_on_the_command_line_are_a_variant(built_project, doit):
    done = doit(built_project, "infer", "training.epochs=4", "training.seed=1")
    assert done.returncode == 0, done.stderr
    assert ".  train:epochs4-seed1\n" in done.stdout
    assert (built_project / "runs/epochs4-seed1/inference/metrics.json").is_file()
    again = doit(built_project, "infer", "training.seed=1", "training.epochs=4")
    assert ".  " not in again.stdout
    assert "train:epochs4-seed1" in doit(built_project, "list", "--all", *done.args[-2:]).stdout
    # The project itself is as it was.
    assert doit(built_project, "dry-run").stdout == "nothing would run: all is up to date\n"
    present = doit(built_project, "dry-run", "training.epochs=5")
    assert present.stdout == "nothing would run: all is up to date\n"


def test_info_says_of_a_variant_what_why_says(built_project, doit):
    said = doit(built_project, "info", "infer", "training.epochs=4")
    assert said.returncode == 1
    assert "\nstatus     : infer:epochs4 stale\n - it was not built yet\n - tr" in said.stdout
    doit(built_project, "train", "training.epochs=4")
    said = doit(built_project, "info", "train:epochs4", "training.epochs=4")
    assert said.returncode == 0
    assert said.stdout.endswith("status     : up to date\n")
    said = doit(built_project, "info", "train:epoch4", "training.epochs=4")
    assert "no task is called `train:epoch4`; did you mean `train:epochs4`?" in said.stderr
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("epochs=4", "epochs=4: no setting is called `epochs`; did you mean training.epochs=4?"),
        ("training.epoch=4", "training.epoch: backend `epie` does not know this key; did you mean"),
        ("training.epochs=few", "training.epochs: expected `int`, got 'few'"),
        ("training.epochs=[4", "training.epochs=[4:2: not valid YAML"),
        ("name=other", "`name` is the same in every variant"),
        ("matrix={}", "`matrix` is the same in every variant"),
    ],
)
def test_a_wrong_one_off_is_one_line_and_changes_nothing(built_project, doit, change, said):
    before = sorted(built_project.rglob("*"))
    done = doit(built_project, "infer", change)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line
    assert sorted(built_project.rglob("*")) == before


def test_a_one_off_leaves_what_is_known_of_the_project(built_project, doit):
    doit(built_project, "train", "training.epochs=4")
    backend = built_project / "backends/epie.py"
    backend.write_text(backend.read_text().replace("x64)\n", "x64) + 0\n"))
    assert "train  stale\n" in doit(built_project, "why", "train").stdout.replace("   ", " ")
    assert ".  train" not in doit(built_project, "train", "--ignore-code").stdout
    shutil.rmtree(built_project / "runs/default")
    assert ".  train" not in doit(built_project, "train").stdout
    doit(built_project, "clean", "train")
    assert not (built_project / "runs/default").exists()


def test_a_one_off_is_not_called_like_another_variant(built_project, change, doit):
    change(
        variants=[{"name": "epochs4", "training.seed": 9}, {"name": "Seed1", "training.seed": 1}]
    )
    done = doit(built_project, "train", "training.epochs=4")
    assert done.returncode == 2
    assert "there is a variant called `epochs4` that is another one" in done.stderr
    # One that is the same is that variant.
    assert doit(built_project, "dry-run", "training={seed: 2}").returncode == 0


def test_evidence_is_not_of_a_one_off(built_project, doit):
    (built_project / "plan.md").write_text("- [ ] a.1\n")
    with (built_project / "dodo.py").open("a") as stream:
        stream.write("from ptycho_tasks.tasks import task_evidence\n")
    with (built_project / "ptycho.yaml").open("a") as stream:
        stream.write(
            "evidence: {initiative: i, phase: p, plan: plan.md, ledger: l.md, "
            "items: [{id: a.1, command: 'true', log: a}]}\n"
        )
    done = doit(built_project, "evidence", "training.epochs=4")
    assert done.returncode == 2
    assert "training.epochs=4: evidence is of the project as it stands" in done.stderr


def test_a_dodo_with_variables_of_its_own_keeps_them(built_project, doit):
    with (built_project / "dodo.py").open("a") as stream:
        stream.write("from doit import get_var\nprint('colour', get_var('colour'))\n")
    done = doit(built_project, "infer", "colour=red", "training.epochs=5")
    assert done.returncode == 0, done.stderr
    assert "colour red" in done.stdout


# --- kills -------------------------------------------------------------------------------------


TRAIN = """
    def train(self, request):
        begun = request.work_dir / "begun"
        if not begun.exists():
            begun.write_text("")
            raise RuntimeError("stopped")
        return TrainedModel(models={})
"""


def test_a_training_under_way_goes_on_under_another_name(built_project, change, build, doit):
    backend = built_project / "backends/epie.py"
    text = backend.read_text()
    begin, end = text.index("    def train"), text.index("    def infer")
    backend.write_text(f"{text[:begin]}{TRAIN.strip(chr(10))}\n\n{text[end:]}")
    variants = [{"name": "one", "training.seed": 1}, {"name": "two", "training.epochs": 6}]
    change(variants=variants)
    assert doit(built_project, "train:one").returncode == 1
    # Of the same key but for `epochs`, yet of a variant that is still there.
    change(variants=[*variants, {"name": "more", "training.seed": 1, "training.epochs": 9}])
    assert doit(built_project, "train:more").returncode == 1
    change(variants=[{"name": "first", "training.seed": 1}, *variants[1:]])
    assert build(built_project, "train:first") == ["train"]
    assert not (built_project / ".ptycho/work/one").exists()


def test_what_a_killed_run_left_in_the_store_goes(built_project, build, change):
    left = built_project / STORE_NAME / "train/new-999999999-abc"
    left.mkdir()
    change(training__epochs=4)
    build(built_project)
    assert not left.exists()


@pytest.mark.parametrize("store", [".", "runs", "fixtures/shared", "ptycho.yaml"])
def test_a_store_among_the_project_s_own_files_is_refused(built_project, change, doit, store):
    change(store=store)
    done = doit(built_project)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert ": store: " in line
