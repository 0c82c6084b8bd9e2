"""Flags, values, names and files of every command, as people and programs mistype them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from hostile.battery import Battery, Must, Rng, Trial
from hostile.running import doit, ptycho
from hostile.scans import built_project, project, save

COMMAND = Battery("command")
_ODD_NAMES = {
    "escape": "red\x1b[31m.npz",
    "newline": "a\nerror: b.npz",
    "not_utf8": os.fsdecode(b"\xff\xfe.npz"),
    "dash": "-.npz",
    "spaces": " .npz",
    "bidi": "a\u202eb.npz",
    "quote": "a'b\"c.npz",
    "percent": "%s%n{x}.npz",
    "long": "a" * 240 + ".npz",
}


def _plain(_: Any) -> str:
    """No control character of a name reaches the terminal."""
    import sys

    sys.stdout.flush()
    text = Path("../stdout").read_bytes() + Path("../stderr").read_bytes()
    strange = [
        c for c in text.decode("utf-8", "replace") if not c.isprintable() and c not in "\n\ufffd"
    ]
    if strange:
        return f"{strange[0]!r} reaches the terminal"
    return "a line of the name's own" if b"\nerror: b" in text else ""


def _name_cases(label: str, name: str) -> None:
    quoted = f"./{name}"

    def tried(rng: Rng, *words: str, there: bool = True) -> Trial:
        if there:
            save("plain.npz")
            Path("plain.npz").rename(name)
        return Trial(ptycho(*words), (), "either", _plain)

    out = ("--output", "cut.npz")
    for suffix, words, there in (
        ("read", ("fixture", "--source", quoted, *out), True),
        ("missing", ("fixture", "--source", quoted, *out), False),
        ("written", ("simulate", quoted, "--size", "16", "--grid", "3"), False),
        ("bundle", ("bundle", "verify", quoted), False),
        ("init", ("init", "new", "--source", quoted, "--backend", "pinn"), True),
        ("init_folder", ("init", quoted, "--backend", "pinn"), False),
        ("memo", ("plan", "import", quoted), False),
        ("backend", ("backends", quoted), False),
        ("task", ("why", quoted), False),
    ):
        COMMAND.add(
            f"name_{label}_{suffix}",
            lambda rng, words=words, there=there: tried(rng, *words, there=there),
        )


for _label, _name in _ODD_NAMES.items():
    _name_cases(_label, _name)


def _fails(name: str, *words: str, must: Must = "refuse", setup: Any = None) -> None:
    def maker(rng: Rng) -> Trial:
        save()
        if setup is not None:
            setup()
        return Trial(ptycho(*words), (), must)

    COMMAND.add(name, maker)


_CUT = ("fixture", "--source", "scan.npz", "--output")
_fails("fixture_is_source", *_CUT, "scan.npz")
_fails("fixture_is_source_spelled", *_CUT, "./../work/scan.npz", "--force")
_fails("fixture_not_npz", *_CUT, "cut.h5")
_fails("fixture_there", *_CUT, "cut.npz", setup=lambda: Path("cut.npz").write_text("mine"))
_fails("fixture_sidecar_there", *_CUT, "cut.npz", setup=lambda: Path("cut.json").write_text("mine"))
_fails("fixture_folder_there", *_CUT, "cut.npz", "--force", setup=lambda: Path("cut.npz").mkdir())
_fails("fixture_in_a_file", *_CUT, "scan.npz/cut.npz")
_fails("fixture_no_folder", *_CUT, "nowhere/deep/cut.npz", must="either")
_fails("fixture_in_proc", *_CUT, "/proc/cut.npz")
_fails("fixture_on_a_device", *_CUT, "/dev/full.npz", must="either")
_fails("fixture_too_many", *_CUT, "cut.npz", "--subset-size", "1000")
_fails("fixture_huge", *_CUT, "cut.npz", "--subset-size", "9" * 30)
_fails("fixture_negative", *_CUT, "cut.npz", "--subset-size", "-5")
_fails("fixture_twice", *_CUT, "cut.npz", "--source", "nobody.npz")
_fails("simulate_there", "simulate", "scan.npz")
_fails("simulate_folder", "simulate", ".")
_fails("simulate_huge", "simulate", "a.npz", "--grid", "512", "--size", "1024")
_fails("simulate_nan", "simulate", "a.npz", "--photons", "nan")
_fails("simulate_inf", "simulate", "a.npz", "--step", "inf")
_fails(
    "simulate_few",
    "simulate",
    "a.npz",
    "--photons",
    "1e-300",
    "--size",
    "16",
    "--grid",
    "3",
    must="either",
)
_fails(
    "simulate_seed",
    "simulate",
    "a.npz",
    "--seed",
    "9" * 50,
    "--size",
    "16",
    "--grid",
    "3",
    must="either",
)
_fails("simulate_seed_negative", "simulate", "a.npz", "--seed", "-1")
_fails("init_there", "init", ".", setup=lambda: Path("ptycho.yaml").write_text("mine"))
_fails("init_a_file", "init", "scan.npz")
_fails("init_missing_source", "init", "new", "--source", "nobody.npz")
_fails("init_folder_source", "init", "new", "--source", ".")
_fails("init_unknown_backend", "init", "new", "--backend", "nobody")
_fails("init_name", "init", "new", "--name", "../x")
_fails(
    "infer_no_bundle", "infer", "--model-path", ".", "--test-data", "scan.npz", "--output-dir", "o"
)
_fails(
    "infer_garbage",
    "infer",
    "--model-path",
    ".",
    "--test-data",
    "scan.npz",
    "--output-dir",
    "o",
    setup=lambda: Path("wts.h5.zip").write_text("x"),
)
_fails("train_nothing", "train")
_fails("train_no_scan", "train", "--train-data-file", "nobody.npz", "--output-dir", "o")
_fails("train_over_the_scan", "train", "--train-data-file", "scan.npz", "--output-dir", "scan.npz")
_fails("config_folder", "train", "--config", ".", "--output-dir", "o")
_fails("no_project_why", "why")
_fails("no_project_compare", "compare", "--csv")
_fails("no_project_prune_store", "prune", "--yes", "--runs")
_fails("no_project_config", "config")
_fails("no_project_plan", "plan", "show")
_fails("no_project_prune", "evidence", "prune", "--keep", "1")
_fails("unknown_command", "trian")
_fails("help", "--help", must="succeed")
_fails("version", "--version", must="succeed")


def _own_dodo(name: str, dodo: str, *words: str, must: Must) -> None:
    def maker(rng: Rng) -> Trial:
        project()
        Path("dodo.py").write_text(dodo)
        return Trial(doit(*words), (), must, may_change=("fixtures", "runs"), codes=(1, 2, 3))

    COMMAND.add(f"doit_{name}", maker)


_IMPORT = "from ptycho_tasks.tasks import *\nfrom ptycho_tasks.tasks import DOIT_CONFIG\n"
_TASKS = "from ptycho_tasks.tasks import task_source, task_fixture, task_train, task_infer\n"
_OWN = "def task_own():\n    return {{'actions': ['true'], 'file_dep': [{}], 'targets': [{}]}}\n"
_own_dodo("own_task", _IMPORT + _OWN.format("'dodo.py'", ""), "own", must="succeed")
_own_dodo("own_missing_dependency", _IMPORT + _OWN.format("'nobody'", ""), "own", must="refuse")
_own_dodo("own_missing_target", _IMPORT + _OWN.format("'dodo.py'", "'gone'"), "own", must="either")
_own_dodo("without_config", _TASKS, "infer", must="either")
_own_dodo("without_config_list", _TASKS, "list", must="either")
_own_dodo("without_config_clean", _TASKS, "clean", "-n", must="either")
for _backend in ("sqlite3", "json", "dbm"):
    _own_dodo(f"backend_{_backend}", _IMPORT, "--backend", _backend, "infer", must="either")
    _own_dodo(f"backend_{_backend}_why", _IMPORT, "why", "--backend", _backend, must="either")
_own_dodo("reporter_json", _IMPORT, "-r", "json", "source", must="either")
_own_dodo("reporter_zero", _IMPORT, "-r", "zero", "source", must="succeed")
_own_dodo("continue", _IMPORT, "--continue", "source", must="succeed")
_own_dodo("quiet", _IMPORT, "-v0", "source", must="succeed")
_own_dodo("always", _IMPORT, "-a", "source", must="succeed")
_own_dodo("single", _IMPORT, "-s", "source", must="succeed")
_own_dodo("processes_0", _IMPORT, "-n", "0", "source", must="succeed")
_own_dodo("processes_2", _IMPORT, "-n", "2", "source", must="succeed")
_own_dodo("processes_text", _IMPORT, "-n", "two", "source", must="refuse")
_own_dodo("threads", _IMPORT, "-n", "2", "-P", "thread", "source", must="either")
_own_dodo("unknown_task", _IMPORT, "trian", must="refuse")
_own_dodo("unknown_variant", _IMPORT, "train:nobody", must="refuse")
_own_dodo("dumpdb", _IMPORT, "dumpdb", must="either")
_own_dodo("forget", _IMPORT, "forget", "source", must="either")
_own_dodo("ignore", _IMPORT, "ignore", "source", must="either")
_own_dodo("reset_dep", _IMPORT, "reset-dep", must="either")
_own_dodo("info_unknown", _IMPORT, "info", "trian", must="refuse")
_own_dodo("tabcompletion", _IMPORT, "tabcompletion", must="either")
_own_dodo("one_off", _IMPORT, "infer", "training.epochs=many", must="either")
_own_dodo("no_dodo", "", "list", must="either")


_WORDS = (
    "",
    "0",
    "-1",
    "1",
    "2",
    "16",
    "1e9",
    "nan",
    "inf",
    "x",
    "auto",
    "cpu",
    "none",
    "scan.npz",
    "nobody.npz",
    ".",
    "..",
    "/",
    "out",
    "model",
    "epie",
    "true",
    "--",
    "-",
    "default",
    "infer",
    "train:default",
    "é",
    "a b",
    "9" * 40,
    "first",
    "counts",
    "ptycho.yaml",
)


def _leaves(group: click.Group, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, one in sorted(group.commands.items()):
        path = (*above, name)
        found += _leaves(one, path) if isinstance(one, click.Group) else [(path, one)]
    return found


@COMMAND.family
def _flags(rng: Rng) -> Trial:
    """A command with flags of its own, any values, and sometimes one too many."""
    from ptycho_tasks.commands.cli import cli

    save()
    project("scan.npz")
    leaves = _leaves(cli)
    path, one = leaves[rng.integers(len(leaves))]
    words = list(path)
    options = [o for o in one.params if isinstance(o, click.Option)]
    required = [o for o in options if o.required] if rng.random() < 0.8 else []
    others = [options[n] for n in rng.permutation(len(options))[: rng.integers(0, 4)]]
    for option in {id(o): o for o in (*required, *others)}.values():
        words.append(str(rng.choice(option.opts)))
        if not option.is_flag:
            words.append(_fitting(rng, option.name or ""))
    for argument in one.params:
        if isinstance(argument, click.Argument) and rng.random() < 0.8:
            words.append(str(rng.choice(_WORDS)))
    if path == ("train",):  # the default trains for minutes
        words += ["--backend", str(rng.choice(["epie", "nobody", "../x"])), "--max-epochs", "1"]
    if path == ("simulate",):
        words += ["--size", "16", "--grid", str(rng.choice(["3", "4"]))]
    if rng.random() < 0.15:
        words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(["--nobody", "-z", "more"])))
    return Trial(ptycho(*words), (), may_change=("fixtures", "runs"), many=path[:1] == ("plan",))


def _fitting(rng: Rng, name: str) -> str:
    """A value that fits, more often than not."""
    right = {
        "source": "scan.npz",
        "train_data_file": "scan.npz",
        "test_data": "scan.npz",
        "output_dir": "out",
        "output": "cut.npz",
        "subset_size": "20",
    }.get(name)
    return right if right is not None and rng.random() < 0.7 else str(rng.choice(_WORDS))


@COMMAND.family
def _of_doit(rng: Rng) -> Trial:
    """A command of doit with flags and tasks, in a project with everything built."""
    built_project()
    name = str(
        rng.choice(
            [
                "run",
                "list",
                "why",
                "dry-run",
                "clean",
                "forget",
                "ignore",
                "reset-dep",
                "help",
                "tabcompletion",
            ]
        )
    )
    flags = [
        "--all",
        "-q",
        "-s",
        "-p",
        "--deps",
        "--json",
        "-n",
        "-v0",
        "-v2",
        "--status",
        "-a",
        "-c",
        "--sort",
        "--help",
        "--ignore-code",
        "-k",
        "--continue",
        "--process",
        "--template",
        "{name}\x1b",
        "--check_file_uptodate",
        "size",
    ]
    tasks = [
        "source",
        "fixture",
        "train",
        "infer",
        "infer:default",
        "refine",
        "evidence",
        "nobody",
        "t*",
        "*",
        "fixtures/tiny.npz",
        "training.epochs=4",
        "x=1",
    ]
    words = [name, *(str(rng.choice(flags)) for _ in range(rng.integers(0, 3)))]
    words += [str(rng.choice(tasks)) for _ in range(rng.integers(0, 3))]
    return Trial(doit(*words), (), may_change=("fixtures", "runs"), codes=(1, 2, 3))
