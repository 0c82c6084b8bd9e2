"""What a command's words say."""

from __future__ import annotations

import pytest

from ptycho_tasks.evidence.shell import find_pytest, find_scripts, find_test_paths


@pytest.mark.parametrize(
    ("command", "is_plain", "paths"),
    [
        ("pytest tests/a.py::T -vv", True, ["tests/a.py"]),
        ('A="" B=1 python3 -m pytest -k x tests', True, ["tests"]),
        ("pytest -q", True, ["."]),
        ("pytest tests/a.py --seeds 5", True, ["tests/a.py"]),
        ("cd sub && pytest tests", False, []),
        ("pytest a | tee b", False, []),
        ("echo pytest", False, []),
        ("python run.py", False, []),
    ],
)
def test_a_plain_call_of_pytest_is_known(command, is_plain, paths):
    calls = find_pytest(command)
    assert calls.is_plain == is_plain
    assert not is_plain or [*find_test_paths(calls.arguments)] == paths


@pytest.mark.parametrize(
    ("command", "scripts"),
    [
        ("python -u check.py a.json > b.py", ["check.py"]),
        ("A=1 ./run x.txt | tee out/x.log && sh go.sh", ["./run", "go.sh"]),
        ("python gen.py > b.py && python b.py", ["gen.py"]),
        ("python -m a.b -x", ["a/b.py", "a/b/__main__.py"]),
        ("pytest tests/a.py::T 2>&1 | cat", ["tests/a.py"]),
        ("cat data.txt", []),
        ('echo "', []),
    ],
)
def test_scripts_in_a_command_are_known(command, scripts):
    assert [*find_scripts(command)] == scripts
