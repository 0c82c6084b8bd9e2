"""The house: every import runs down, those inside functions included.

python tests/test_house.py      # modules, wings, circles, longest import path, functions
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import quantiles

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ptycho_tasks": ROOT / "ptycho_tasks",
    "ptycho_tasks_torch": ROOT / "backends/torch/ptycho_tasks_torch",
    "ptycho_tasks_ptychi": ROOT / "backends/ptychi/ptycho_tasks_ptychi",
    "ptycho_tasks_ptychodus": ROOT / "readers/ptychodus/ptycho_tasks_ptychodus",
}
ORDER = {
    "ptycho_tasks": (
        "testing",
        "commands tasks",
        "report evidence",
        "builds",
        "config",
        "results",
        "reader",
        "scans",
        "backends executors",
        "backend",
        "physics",
        "scan options",
        "layout",
        "system",
        "errors",
    ),
    "ptycho_tasks_torch": (
        "load prior",
        "pinn unrolled",
        "training",
        "physics frames",
        "device threads helpers lean",
        "execution launched",
        "options unet",
    ),
}
"""Top to bottom. Wings on one line do not import one another."""
PUBLIC = {
    "backend": {
        "API_VERSION", "Backend", "InferRequest", "Progress",
        "ROUGH_PROBE", "Reconstruction", "RefineRequest",
        "SEEN_LEVEL", "Show", "TrainRequest", "TrainedModel", "Trial", "checked_model",
        "checked_reconstruction",
        "no_progress", "say_nothing", "show_nothing",
    },
    "backends": {
        "BackendEntry", "KIND", "api_version", "available", "check_bad_pixels", "check_scans",
        "describe", "describe_all", "execution_type", "find_backend", "sections_of",
    },
    "errors": {
        "BackendError", "BundleError", "ConfigError", "DEBUG", "FileWriteError", "PlanError",
        "PtychoTasksError", "ReaderError", "ScanError", "TrainingError", "one_line",
    },
    "executors": {
        "Executor", "ExecutorEntry", "Job", "KIND", "LOCAL", "NoOptions", "State", "Status",
        "find_executor",
    },
    "options": {
        "ExecutionOptions", "FixtureOptions", "ID_PATTERN", "NAME_PATTERN", "NAME_RULE",
        "OrientationOptions", "ROW_PATTERN", "RULES", "Resources", "STAGES", "Section",
        "SimulationOptions",
        "Stages", "TEXT_PATTERN",
        "TrainingOptions", "default_of", "description_of", "doc", "limits", "text_of",
    },
    "scan": {
        "Canvas", "ScanData", "canvas_of", "canvas_sides", "corners_and_fractions",
        "evenly_spaced", "release_pages", "scan_numbers", "take_frames",
    },
    "reader": set(),  # all of it stands in scans/
    "tasks": {
        "DOIT_CONFIG", "DefaultContinue", "Reporter", "task_evidence", "task_fixture",
        "task_infer", "task_report", "task_source", "task_train",
    },
}  # fmt: skip
"""What stands at the root of the core is for others to import: all of its public names."""


@cache
def imports(package: str) -> Mapping[str, frozenset[str]]:
    """Each module of a package, to the modules of it that it imports anywhere."""
    folder = PACKAGES[package]
    files = {name_of(path, folder): path for path in sorted(folder.rglob("*.py"))}
    return {name: frozenset(found(path, package, files)) - {name} for name, path in files.items()}


def name_of(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def found(path: Path, package: str, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their module in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == package:
                yield rest if rest in files else rest.rpartition(".")[0]


def circles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Groups of modules that reach one another."""
    reach = {name: reached(graph, name) for name in graph}
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in graph if a in reach[a]}
    return sorted(map(list, groups))


def reached(graph: Mapping[str, frozenset[str]], start: str) -> set[str]:
    seen: set[str] = set()
    left = [*graph[start]]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += graph[name]
    return seen


def upward(package: str) -> list[str]:
    """Imports that run up, or sideways."""
    levels = {name: level for level, names in enumerate(ORDER[package]) for name in names.split()}
    return [
        f"{name} imports {other}"
        for name, others in imports(package).items()
        for other in sorted(others)
        if name
        and other
        and name.partition(".")[0] != other.partition(".")[0]
        and levels[name.partition(".")[0]] >= levels[other.partition(".")[0]]
    ]


def longest_path(graph: Mapping[str, frozenset[str]]) -> int:
    """How many modules the longest chain of imports has; the graph has no circle."""

    @cache
    def height(name: str) -> int:
        return 1 + max(map(height, graph[name]), default=0)

    return max(map(height, graph))


def function_lengths(package: str) -> list[int]:
    """Lines of each function and method, from `def` to its last."""
    return [
        node.end_lineno - node.lineno + 1
        for path in PACKAGES[package].rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_imports_go_in_circles(package: str) -> None:
    assert circles(imports(package)) == []


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_down(package: str) -> None:
    assert upward(package) == []


def test_what_stands_at_the_root_is_for_others_to_import() -> None:
    root = PACKAGES["ptycho_tasks"]
    modules = {path.stem for path in root.glob("*.py")} - {"__init__"}
    assert modules == {*PUBLIC, "layout"}
    assert {name: public_names(root / f"{name}.py") for name in PUBLIC} == PUBLIC


def public_names(path: Path) -> set[str]:
    """The names that a module defines, and that do not begin with an underscore."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def report(package: str) -> Iterator[str]:
    graph, lengths = imports(package), function_lengths(package)
    modules = [len(path.read_text().splitlines()) for path in PACKAGES[package].rglob("*.py")]
    wings = {name.partition(".")[0] for name in graph if "." in name}
    tall = "endless" if circles(graph) else longest_path(graph)
    deciles = quantiles(lengths, n=10)
    yield f"{package}: {len(graph)} modules in {len(wings)} wings, longest import path {tall}"
    yield f"  functions: median {deciles[4]:.0f} lines, 90 % below {deciles[8]:.0f}"
    yield f"  longest function {max(lengths)}, longest module {max(modules)}"
    yield from (f"  circle of {len(names)}: {', '.join(names)}" for names in circles(graph))
    if wings and package in ORDER:
        yield from (f"  up: {text}" for text in upward(package))


if __name__ == "__main__":
    for package in PACKAGES:
        print(*report(package), sep="\n")
