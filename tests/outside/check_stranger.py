"""How a stranger tests a backend; `tests/test_outside.py` runs it where only wheels are."""

from stranger_ptycho import StrangerOptions, backend

from ptycho_tasks.testing import BackendConformance


class TestStranger(BackendConformance):
    backend = backend
    options = StrangerOptions(epochs=4)
    refuses = ("another scan", "scans together")
