"""Python source files as inputs."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
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
    data = path.read_bytes()
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return hashlib.sha256(data).hexdigest()
    code = _WithoutTexts().visit(tree)
    return hashlib.sha256(ast.unparse(code).encode()).hexdigest()


class _WithoutTexts(ast.NodeTransformer):
    """Removes docstrings, those of attributes too: any text that stands alone."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node
