"""What it costs to do nothing: the same graph in ptycho-tasks, plain doit, make, snakemake, dvc.

    python benchmarks/noop.py                       # 1, 25 and 250 variants
    python benchmarks/noop.py --install             # snakemake and dvc too, in an environment here
    python benchmarks/noop.py -v 1 -v 25 --runs 9

A variant is a chain of four tasks, source -> fixture -> train -> infer, whose work is a stub that
writes some bytes. Measured: a cold build, a run with nothing to do, one after a change of one
training setting, one after a touch of a source. Each figure is the median of several runs, and
what counts is the ratio to plain doit in the same run. A tool that is not there is left out.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

OURS = """\
import hashlib
from pathlib import Path

from ptycho_tasks.builds import stage_tasks
from ptycho_tasks.builds.project import project_store, read_project_table
from ptycho_tasks.builds.results import make_result, name_outputs
from ptycho_tasks.builds.state import current_state
from ptycho_tasks.tasks import (DOIT_CONFIG, task_fixture, task_infer, task_source, task_train)


def stub(name):
    row = read_project_table().row(name)
    digest = hashlib.sha256(row.settings.encode())
    for path in row.inputs.values():
        digest.update(Path(path).read_bytes())

    def write(payload):
        for output in name_outputs(row).values():
            (payload.staging / output).write_text(digest.hexdigest())

    payload = read_project_table().payload(row)
    built = make_result(row, current_state(), project_store(), payload, write)
    return built.to_values()


stage_tasks.run_stage = stub
"""
PLAIN = """\
import hashlib
import json
from pathlib import Path

from doit.tools import config_changed

DOIT_CONFIG = {"backend": "sqlite3", "dep_file": ".doit.db", "default_tasks": ["infer"]}
VALUES = json.loads(Path("values.json").read_text())
FILES = ["reconstruction.h5", "amplitude.png", "phase.png", "metrics.json"]


def stub(settings, inputs, outputs):
    digest = hashlib.sha256(settings.encode())
    for path in inputs:
        digest.update(Path(path).read_bytes())
    for path in outputs:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(digest.hexdigest())


def task(name, settings, inputs, outputs):
    return {
        "name": name,
        "actions": [(stub, [settings, inputs, outputs])],
        "file_dep": inputs,
        "targets": outputs,
        "uptodate": [config_changed(settings)],
    }


def task_source():
    for name in VALUES:
        yield task(name, name, [], [f"data/{name}_source.npz"])


def task_fixture():
    for name in VALUES:
        outputs = [f"data/{name}.npz", f"data/{name}.json"]
        yield task(name, name, [f"data/{name}_source.npz"], outputs)


def task_train():
    for name, epochs in VALUES.items():
        yield task(name, str(epochs), [f"data/{name}.npz"], [f"runs/{name}/wts.h5.zip"])


def task_infer():
    for name in VALUES:
        inputs = [f"runs/{name}/wts.h5.zip", f"data/{name}_source.npz"]
        yield task(name, name, inputs, [f"runs/{name}/{file}" for file in FILES])
"""
MAKE = """\
NAMES := {names}
all: $(NAMES:%=runs/%/reconstruction.h5)
data/%_source.npz:
\t@echo $* > $@
data/%.npz: data/%_source.npz
\t@cat $< > $@; echo $* > data/$*.json
runs/%/wts.h5.zip: data/%.npz values/%
\t@mkdir -p $(@D); cat $^ > $@
runs/%/reconstruction.h5: runs/%/wts.h5.zip data/%_source.npz
\t@cat $^ > $@; cd $(@D); for f in amplitude.png phase.png metrics.json; do echo x > $$f; done
.SECONDARY:
"""
SNAKE = """\
import json
VALUES = json.load(open("values.json"))
FILES = ["reconstruction.h5", "amplitude.png", "phase.png", "metrics.json"]
rule all:
    input:
        expand("runs/{v}/reconstruction.h5", v=VALUES)
rule source:
    output:
        "data/{v}_source.npz"
    shell:
        "echo {wildcards.v} > {output}"
rule fixture:
    input:
        "data/{v}_source.npz"
    output:
        "data/{v}.npz", "data/{v}.json"
    shell:
        "cat {input} > {output[0]}; echo x > {output[1]}"
rule train:
    input:
        "data/{v}.npz"
    output:
        "runs/{v}/wts.h5.zip"
    params:
        epochs=lambda w: VALUES[w.v]
    shell:
        "(cat {input}; echo {params.epochs}) > {output}"
rule infer:
    input:
        "runs/{v}/wts.h5.zip", "data/{v}_source.npz"
    output:
        expand("runs/{{v}}/{f}", f=FILES)
    shell:
        "for f in {output}; do cat {input} > $f; done"
ruleorder: source > fixture
wildcard_constraints: v="v[0-9]+"
"""
FILES = ("reconstruction.h5", "amplitude.png", "phase.png", "metrics.json")


@dataclass(frozen=True)
class Tool:
    """One build tool: how a graph is written, run, and told another value."""

    name: str
    command: list[str]
    write: Callable[[Path, dict[str, int]], None]
    source: str
    """Path of the source of the variant v0."""


def write_ours(root: Path, values: dict[str, int]) -> None:
    variants = [
        {"name": name, "source.simulate.seed": seed, "training.epochs": epochs}
        for seed, (name, epochs) in enumerate(values.items())
    ]
    config = {"source": {"simulate": {"size": 32, "grid": 6}}, "variants": variants}
    (root / "ptycho.yaml").write_text(json.dumps(config))
    (root / "dodo.py").write_text(OURS)


def write_plain(root: Path, values: dict[str, int]) -> None:
    (root / "values.json").write_text(json.dumps(values))
    (root / "dodo.py").write_text(PLAIN)


def write_make(root: Path, values: dict[str, int]) -> None:
    for folder in ("data", "values"):
        (root / folder).mkdir(exist_ok=True)
    for name, epochs in values.items():
        path = root / "values" / name
        if not path.exists() or path.read_text() != str(epochs):
            path.write_text(str(epochs))
    (root / "Makefile").write_text(MAKE.format(names=" ".join(values)))


def write_snake(root: Path, values: dict[str, int]) -> None:
    (root / "values.json").write_text(json.dumps(values))
    (root / "Snakefile").write_text(SNAKE)


def write_dvc(root: Path, values: dict[str, int]) -> None:
    if not (root / ".dvc").exists():
        run([str(dvc_of(root)), "init", "--no-scm", "-q"], root)
    stages: dict[str, object] = {}
    for name in values:
        outputs = [f"runs/{name}/{file}" for file in FILES]
        bundle, data = f"runs/{name}/wts.h5.zip", f"data/{name}"
        stages |= {
            f"source-{name}": {
                "cmd": f"mkdir -p data runs/{name}; echo {name} > {data}_source.npz",
                "outs": [f"{data}_source.npz"],
            },
            f"fixture-{name}": {
                "cmd": f"cat {data}_source.npz > {data}.npz; echo x > {data}.json",
                "deps": [f"{data}_source.npz"],
                "outs": [f"{data}.npz", f"{data}.json"],
            },
            f"train-{name}": {
                "cmd": f"cat {data}.npz params.yaml > {bundle}",
                "deps": [f"{data}.npz"],
                "params": [name],
                "outs": [bundle],
            },
            f"infer-{name}": {
                "cmd": f"for f in {' '.join(outputs)}; do cat {bundle} > $f; done",
                "deps": [bundle, f"{data}_source.npz"],
                "outs": outputs,
            },
        }
    (root / "params.yaml").write_text(json.dumps(values))
    (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))


def dvc_of(root: Path) -> Path:
    """The dvc to use; written beside the graph, since its `init` runs there too."""
    return Path((root / ".dvc-command").read_text())


def tools(extra: Path | None) -> list[Tool]:
    """The tools that are there; the first is what the others are compared with."""
    doit = [sys.executable, "-m", "doit"]
    found = [
        Tool("plain doit", doit, write_plain, "data/v0_source.npz"),
        Tool("ptycho-tasks", doit, write_ours, "fixtures/scan_source.npz"),
    ]
    options: dict[str, tuple[list[str], Callable[[Path, dict[str, int]], None]]] = {
        "make": (["-s"], write_make),
        "snakemake": (["-q", "all", "-c", "1"], write_snake),
        "dvc": (["repro", "-q"], write_dvc),
    }
    folders = os.pathsep.join([*([str(extra)] if extra else []), os.environ.get("PATH", "")])
    for name, (arguments, write) in options.items():
        path = shutil.which(name, path=folders)
        if path is None:
            click.echo(f"{name}: not installed, left out", err=True)
        else:
            found.append(Tool(name, [path, *arguments], write, "data/v0_source.npz"))
    return found


def run(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a command and its children."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(
    there: list[Tool], variants: int, runs: int, root: Path
) -> dict[str, dict[str, tuple[float, float]]]:
    """Median wall and CPU seconds, by tool and kind of run.

    The tools take turns, so that a busy minute of the machine falls on all of them.
    """
    values = {f"v{n}": 5 for n in range(variants)}
    result: dict[str, dict[str, tuple[float, float]]] = {tool.name: {} for tool in there}
    for tool in there:
        (root / tool.name).mkdir()
        (root / tool.name / ".dvc-command").write_text(tool.command[0])
        tool.write(root / tool.name, values)
        result[tool.name]["cold"] = run(tool.command, root / tool.name)
        run(tool.command, root / tool.name)

    def change(tool: Tool, turn: int) -> None:
        tool.write(root / tool.name, values | {"v0": 6 + turn})

    def touch(tool: Tool, turn: int) -> None:
        future = time.time() + 10 * (turn + 1)
        os.utime(root / tool.name / tool.source, (future, future))

    def nothing(tool: Tool, turn: int) -> None:
        pass

    for kind, prepare in (("no-op", nothing), ("one value", change), ("touch", touch)):
        figures: dict[str, list[tuple[float, float]]] = {tool.name: [] for tool in there}
        for turn in range(runs):
            for tool in there:
                prepare(tool, turn)
                figures[tool.name].append(run(tool.command, root / tool.name))
        for name, pairs in figures.items():
            wall, cpu = zip(*pairs, strict=True)
            result[name][kind] = (statistics.median(wall), statistics.median(cpu))
    return result


def installed(folder: Path) -> Path:
    """An environment with snakemake and dvc; gives its folder of commands."""
    commands = folder / "bin"
    if not (commands / "dvc").exists():
        venv.create(folder, with_pip=True)
        run([str(commands / "python"), "-m", "pip", "install", "-q", "snakemake", "dvc"], folder)
    return commands


@click.command()
@click.option("-v", "--variants", multiple=True, type=int, default=(1, 25, 250), show_default=True)
@click.option("--runs", default=5, show_default=True, help="Runs of each kind, but the cold one.")
@click.option("--install", is_flag=True, help="Install snakemake and dvc first, if need be.")
@click.option("--tools", "extra", type=click.Path(path_type=Path), help="A folder of commands.")
@click.option("--limit", default=120.0, show_default=True, help="Seconds that a cold run may take.")
def main(
    variants: tuple[int, ...], runs: int, install: bool, extra: Path | None, limit: float
) -> None:
    """Measure, and print wall and CPU seconds and the ratio of CPU to plain doit."""
    if install:
        extra = installed(Path(tempfile.gettempdir()) / "ptycho-tasks-bench")
    there, slow = tools(extra), set[str]()
    kinds = ("cold", "no-op", "one value", "touch")
    click.echo(f"{'variants':>8}  {'tool':<12}" + "".join(f"{kind:>26}" for kind in kinds))
    for count in variants:
        for tool in there:
            if tool.name in slow:
                click.echo(f"{count:>8}  {tool.name:<12}  left out: too slow")
        there = [tool for tool in there if tool.name not in slow]
        with tempfile.TemporaryDirectory() as folder:
            found = measure(there, count, runs, Path(folder))
        yardstick = found[there[0].name]
        for name, kind in found.items():
            cells = [
                f"{kind[k][0]:8.3f} {kind[k][1]:8.3f} {kind[k][1] / yardstick[k][1]:7.2f}x"
                for k in kinds
            ]
            click.echo(f"{count:>8}  {name:<12}" + "".join(cells))
            # Ten times the graph takes ten times as long, or worse.
            if kind["cold"][0] > limit / 10:
                slow.add(name)
    click.echo("wall s, CPU s, CPU as a multiple of plain doit's")


if __name__ == "__main__":
    main()
