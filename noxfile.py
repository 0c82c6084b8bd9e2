"""Named sessions: `nox -l` lists them, `nox -s test lint` runs two.

All but `versions` run in the environment that is active, the one that the README's second command
makes: a second copy of torch for each would cost minutes and gigabytes.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "test"]
nox.options.default_venv_backend = "uv|virtualenv"
PACKAGES = (
    "ptycho_tasks", "ptycho_tasks_torch", "ptycho_tasks_ptychi", "ptycho_tasks_ptychodus"
)  # fmt: skip
QUICK = ("tests/config", "tests/physics", "tests/scans/test_npz.py", "tests/docs/test_scan.py")
"""Tests that meet most of the language and of the libraries, in seconds."""


@nox.session(venv_backend="none")
def test(session: nox.Session) -> None:
    """The whole suite, or what is named: nox -s test -- tests/docs."""
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """The linter, the formatter and the type checker."""
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The site, into site/; a warning is an error."""
    session.run("sphinx-build", "-qW", "--keep-going", "docs", "site")


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """What it costs to do nothing, beside plain doit: nox -s bench -- -v 1."""
    session.run("python", "benchmarks/noop.py", *session.posargs)


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """The suite with the share of lines and branches that it runs; takes twice as long."""
    measured = [f"--cov={package}" for package in PACKAGES]
    session.run("pytest", "-n", "auto", *measured, "--cov-report=term:skip-covered",
                *session.posargs)  # fmt: skip


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def versions(session: nox.Session) -> None:
    """The core without torch on each Python that is there: a quick part, or what is named."""
    session.install("-c", "constraints.txt", "-e", ".[test]")
    session.run("pytest", "-q", *(session.posargs or QUICK))
