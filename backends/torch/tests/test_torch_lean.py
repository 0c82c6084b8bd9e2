"""What a reconstruction by the command line imports of torch, and that it changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ptycho_tasks_torch import lean

REPORT = (
    "import sys, torch\n"
    "print(*sorted(n for n in ('torch._decomp', 'torch._prims') if n in sys.modules))\n"
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.rstrip("\n")


@pytest.mark.skipif(any(map(os.path.exists, lean.GPUS)), reason="nothing waits beside a GPU")
def test_a_program_of_ours_does_without_the_compilers_tables() -> None:
    """Of the version that constraints.txt names: when that is raised, `lean.TRIED` is to follow."""
    begin = "from ptycho_tasks.system import program; program.begin_program(is_whole=True)\n"
    lean_import = "from ptycho_tasks_torch.lean import import_torch; import_torch()\n"
    # What is put off comes when it is asked for.
    on_demand = "print(torch._meta_registrations.register_meta.__name__, *torch.export.__all__[:0])"
    assert run(begin + lean_import + REPORT + on_demand).split("\n") == ["", "register_meta"]


def test_a_process_of_others_gets_all_of_torch() -> None:
    lean_import = "from ptycho_tasks_torch.lean import import_torch; import_torch()\n"
    assert run(lean_import + REPORT) == "torch._decomp torch._prims"
