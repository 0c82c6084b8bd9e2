"""What a program of ours puts off."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from ptycho_tasks.system.program import begin_program
begin_program(is_whole={is_whole})
import scipy.fft
print("numpy.f2py.f2py2e" in sys.modules)
import numpy
numpy.testing.assert_equal(numpy.f2py.get_include()[-3:], "src")
"""


@pytest.mark.parametrize("is_whole", [True, False])
def test_what_scipy_does_not_use_waits_where_the_process_is_ours(is_whole: bool) -> None:
    code = CODE.format(is_whole=is_whole)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(not is_whole)]
