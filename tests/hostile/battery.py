"""What a case is, and how those of one class are listed by name.

A case makes its inputs in the current folder, which is empty, and gives a `Trial`. Equal names
and seeds make equal inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

import numpy as np

Rng = np.random.Generator
Must = Literal["either", "succeed", "refuse", "speak"]
"""What may come of it: right or refused; right; refused; or right, refused, or a line of warning
whatever the result."""


def _no_complaint(result: Any) -> str:
    return ""


@dataclass
class Trial:
    """A call on inputs that were written, and what may come of it."""

    call: Callable[[], Any]
    names: tuple[str, ...]
    """Texts of which a refusal must hold one."""
    must: Must = "either"
    wrong: Callable[[Any], str] = _no_complaint
    """What is wrong with the result of a call that succeeded; empty where it is right."""
    may_change: tuple[str, ...] = ()
    """Prefixes of files that may be made or changed although the work is refused."""
    codes: tuple[int, ...] = (1, 2)
    """With which a refusal may end."""
    many: bool = False
    """Whether a refusal may have several lines, each of which counts as one."""


Maker = Callable[[Rng], Trial]


class Battery:
    """The cases of one class, by name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.makers: dict[str, Maker] = {}
        self.families: dict[str, Maker] = {}

    def case(self, maker: Maker) -> Maker:
        """Add one case, named after its function."""
        return self.add(maker.__name__.strip("_"), maker)

    def add(self, name: str, maker: Maker) -> Maker:
        """Add one case."""
        assert name not in self.makers, name
        self.makers[name] = maker
        return maker

    def family(self, maker: Maker) -> Maker:
        """Add as many cases as wanted, each with random numbers of its own."""
        self.families[maker.__name__.strip("_")] = maker
        return maker

    def cases(self, count: int, *, only_families: bool = False) -> Iterator[str]:
        """Names of some cases: each single one, then those of the families by turns."""
        singles = [] if only_families else list(self.makers)
        yield from singles[:count]
        families = list(self.families)
        for index in range(count - len(singles)) if families else ():
            turn, family = divmod(index, len(families))
            yield f"{families[family]}-{turn}"

    def sample(self, count: int) -> list[str]:
        """A few names, from the single cases and each family evenly; none that loads torch."""
        single = [name for name in self.makers if not name.startswith("torch_")]
        every = [*single, *(f"{family}-0" for family in self.families)]
        step = max(1, len(every) // count)
        return every[::step][:count]

    def trial(self, name: str, seed: int) -> Trial:
        """Make a case's inputs in the current folder.

        Raises:
            KeyError: there is no such case.
        """
        family = name.rpartition("-")[0]
        maker = self.makers.get(name) or self.families[family]
        return maker(np.random.default_rng([seed, crc32(f"{self.name}/{name}".encode())]))
