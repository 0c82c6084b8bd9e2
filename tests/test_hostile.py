"""A few hostile inputs of each class; `benchmarks/hostile.py` tries them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_sample_of_every_class_is_clean():
    """In a process of its own, from which each case is forked: here are threads of libraries."""
    command = [sys.executable, ROOT / "benchmarks" / "hostile.py", "--sample", "4"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
