"""A conformance suite for backends. A backend's tests subclass it in two lines:

    class TestMine(BackendConformance):
        backend = mine.backend

pytest then collects every check. What a check asks for stands in its docstring; class attributes
say what is special about a backend.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ptycho_tasks.backends import BackendEntry
from ptycho_tasks.testing.progress import ProgressChecks
from ptycho_tasks.testing.reconstruction import ReconstructionChecks
from ptycho_tasks.testing.refinement import RefinementChecks
from ptycho_tasks.testing.suite import FEATURES, Suite
from ptycho_tasks.testing.together import TogetherChecks
from ptycho_tasks.testing.training import TrainingChecks


class BackendConformance(
    ReconstructionChecks, RefinementChecks, TrainingChecks, TogetherChecks, ProgressChecks, Suite
):
    """Checks that a backend keeps what `ptycho_tasks.backend` says of backends.

    `Suite` says what a subclass may declare.
    """

    def test_can_be_loaded(self) -> None:
        """It has what a backend must have, and documented options with valid defaults."""
        name = getattr(self.backend, "name", "")
        BackendEntry(name, "as given to the suite", lambda: self.backend).load()

    def test_options_are_frozen(self) -> None:
        """Options are values: nothing may change them between two stages."""
        kind = self.backend.options_type
        with pytest.raises(AttributeError):
            kind().seed = 1  # type: ignore[misc]

    def test_files_are_named_by_options(self) -> None:
        """What `files` names is a path under the name of an option, and the same each time."""
        files = self._files(self._options())
        known = {field.name for field in msgspec.structs.fields(type(self._options()))}
        assert set(files) <= known, f"`files` names {sorted(set(files) - known)}: no such options"
        wrong = [name for name, path in files.items() if not isinstance(path, Path)]
        assert not wrong, f"`files` gives no Path for {wrong}"
        assert files == self._files(self._options()), "`files` gives other paths when asked again"

    def test_declares_what_the_suite_knows(self) -> None:
        """A misspelt feature in `refuses` would refuse nothing."""
        unknown = sorted(set(self.refuses) - set(FEATURES))
        assert not unknown, f"`refuses` names {unknown}; known: {', '.join(FEATURES)}"
