"""The executor `queue`, and the one that the page shows, keep what every executor keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from ptycho_tasks.builds import queue
from ptycho_tasks.options import Resources
from ptycho_tasks.testing import ExecutorConformance

PAGE = Path(__file__).parents[2] / "docs/executors.md"
QUEUE = """\
#!/bin/sh
case $1 in
submit) setsid "$2" >/dev/null 2>&1 & echo "Your job $! has been submitted" ;;
poll) ps -o state= -p "$2" 2>/dev/null | grep -v Z ;;  # a number may be too large for it
cancel) kill -- "-$2" ;;
esac
"""


def page_executor():
    """What the page's example of an executor defines."""
    text = PAGE.read_text().partition("```python executors/shell.py\n")[2].partition("```")[0]
    module: dict[str, Any] = {}
    exec(text, module)
    return module["executor"]


# Python warns that the example does not wait for what it starts, as is meant.
@pytest.mark.filterwarnings("ignore")
class TestShell(ExecutorConformance):
    executor = page_executor()
    many = 3


class TestQueue(ExecutorConformance):
    executor = queue.executor
    options: ClassVar[dict[str, Any]] = {
        "submit": "./queue submit {script}",
        "poll": "./queue poll {id}",
        "cancel": "./queue cancel {id}",
        "states": {"running": "[RSD]"},
    }
    refused = Resources(memory_gb=None)
    many = 3

    def prepare(self, root):
        (root / "job.sh").write_text("#!/bin/sh\n# {memory_gb}\ncd {root}\n{command}\n")
        (root / "queue").write_text(QUEUE)
        (root / "queue").chmod(0o755)
