"""Python source files as inputs."""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ptycho_tasks.system.cache import cached


@cached
def is_installed(path: Path) -> bool:
    """Whether a file lies where pip installs: only an upgrade changes it there."""
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return any(path.is_relative_to(folder) for folder in folders if folder)


def source_digest(path: Path) -> str:
    """sha256 of the code in a Python file: comments, docstrings and layout do not count.

    A file that is no valid Python counts with its bytes.
    """
    return _digest_of(path.read_bytes())


@functools.lru_cache(maxsize=512)
def _digest_of(source: bytes) -> str:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()
    _remove_texts(tree)
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def list_statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements of a tree, without the many nodes of their expressions."""
    for statements in _blocks_of(tree):
        for each in statements:
            yield each
            yield from list_statements(each)


def _remove_texts(node: ast.AST) -> None:
    """Remove docstrings, those of attributes too: any text that stands alone."""
    for statements in _blocks_of(node):
        statements[:] = [each for each in statements if not _is_text(each)]
        for each in statements:
            _remove_texts(each)


def _blocks_of(node: ast.AST) -> Iterator[list[ast.AST]]:
    """The statements that a statement holds, block by block."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        statements = getattr(node, name, None)
        # The body of a lambda, and the branches of a conditional expression, are no lists.
        if isinstance(statements, list):
            yield statements


def _is_text(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
