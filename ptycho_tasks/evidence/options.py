"""The evidence section of ptycho.yaml, or a whole evidence.yaml: what may stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from ptycho_tasks.config.document import ConfigFile, parse_config, shorten
from ptycho_tasks.config.fields import explain_fault
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.item import COLLECTED, GREEN, RED, Evidence, Item
from ptycho_tasks.evidence.plan import STATES, is_like_a_state
from ptycho_tasks.evidence.shell import (
    find_pytest,
    find_scripts,
    find_test_paths,
    format_pytest_command,
)
from ptycho_tasks.layout import CONFIG_NAME, EVIDENCE, EVIDENCE_NAME
from ptycho_tasks.options import (
    NAME_PATTERN,
    NAME_RULE,
    ROW_PATTERN,
    STAGES,
    TEXT_PATTERN,
    Section,
    Stages,
    doc,
    limits,
)

RowId = Annotated[str, limits(pattern=ROW_PATTERN)]
_LAST_STATUS = 255
Text = Annotated[str, limits(pattern=TEXT_PATTERN)]


class ItemOptions(Section, frozen=True, kw_only=True):
    """A command, and the rows of the plan that its log proves."""

    affects: ClassVar[Stages] = ()

    id: Annotated[RowId | None, doc("the row of the plan")] = None
    ids: Annotated[
        list[RowId] | None, doc("the rows, where one log proves several; `[]` for none")
    ] = None
    command: Annotated[Text | None, doc("what to run, as a shell reads it")] = None
    pytest: Annotated[list[Text], doc("or: what pytest is to run, and its options")] = (
        msgspec.field(default_factory=list)
    )
    stage: Annotated[
        Text | None, doc("or: the stage, or one task of it, whose output is the log, as train")
    ] = None
    by_hand: Annotated[Text | None, doc("or: what a person does and marks; nothing is run")] = None
    expect: Annotated[
        Literal["green", "red", "collected"] | dict[str, int],
        doc(
            "what proves the rows: that it is green or red, `{exit: N}`, or that it collects tests"
        ),
    ] = GREEN
    log: Annotated[str | None, doc("names the log: a plain file name")] = None
    env: Annotated[dict[str, str | int | float], doc("environment variables")] = msgspec.field(
        default_factory=dict
    )
    time_limit_s: Annotated[
        Annotated[float, limits(gt=0.0, le=1e7)] | None, doc("seconds after which it is ended")
    ] = None
    depends: Annotated[
        list[Text],
        doc("stages, files, folders and globs that it proves something about, besides its tests"),
    ] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if (self.id is None) == (self.ids is None):
            raise ValueError("give exactly one of `id` and `ids`")
        if not self.rows and self.by_hand is not None:
            raise ValueError("`by_hand` is about a row; give it an `id`")
        if len(set(self.rows)) < len(self.rows):
            raise ValueError("`ids` has one id twice; remove one")
        work = (self.command, self.pytest or None, self.stage, self.by_hand)
        if sum(one is not None for one in work) != 1:
            raise ValueError("give exactly one of `command`, `pytest`, `stage` and `by_hand`")
        if any("\0" in text for text in self._texts):
            raise ValueError("has a NUL character, which no command can hold; remove it")
        if self.by_hand is not None:
            if self.log is not None or self.env or self.time_limit_s or self.depends:
                raise ValueError("`by_hand` runs nothing, so that only `id` or `ids` go with it")
            if self.expect != GREEN:
                raise ValueError("`by_hand` runs nothing, so that it can expect nothing")
        elif self.log is None or not re.fullmatch(NAME_PATTERN, self.log):
            raise ValueError(
                f"`log` must be a plain file name, {NAME_RULE}, not {shorten(self.log)}; the "
                "report folder is chosen anew for each run"
            )
        if self.stage is not None:
            self._check_stage()
        if isinstance(self.expect, dict) and (
            self.expect.keys() != {"exit"} or not 0 <= self.expect["exit"] <= _LAST_STATUS
        ):
            raise ValueError("`expect` must be green, red, collected or {exit: N}, N at most 255")
        for name in self.env:
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"`env`: {shorten(name)} cannot name an environment variable")
        self._check_expected_outcome()

    def _check_stage(self) -> None:
        assert self.stage is not None
        if not _is_stage(self.stage):
            raise ValueError(
                f"`stage` must be one of {', '.join(STAGES)}, or a task of one, not "
                f"{shorten(self.stage)}"
            )
        if self.env or self.time_limit_s:
            raise ValueError("`stage` runs as ptycho.yaml says; leave `env` and `time_limit_s` out")
        if self.expect != GREEN:
            raise ValueError("`stage` is green or failed, so that it can expect nothing else")

    def _check_expected_outcome(self) -> None:
        """Refuse a log whose name says another outcome than is expected."""
        named = re.search(r"_(green|red)(\.log)?$", self.log or "")
        said = self.expect if isinstance(self.expect, str) else f"exit {self.expect['exit']}"
        # Another exit status is a failure that is wanted: it may be called either.
        is_either = said.startswith("exit ") and said != "exit 0"
        if named and not is_either and (named[1] == RED) != (said == RED):
            raise ValueError(
                f"`log` says {named[1]}, and `expect` {said}; give the log another name, or write "
                f"`expect: {named[1]}`"
            )

    @property
    def _texts(self) -> tuple[str, ...]:
        return (self.command or "", *self.pytest, *map(str, self.env.values()), *self.depends)

    @property
    def rows(self) -> tuple[str, ...]:
        """The ids, however they were given."""
        return (self.id,) if self.id is not None else tuple(self.ids or ())


class EvidenceOptions(Section, frozen=True, kw_only=True):
    """Which logs prove which rows of which plan."""

    affects: ClassVar[Stages] = ()

    initiative: Annotated[Text, doc("what the plan is part of; named in the ledger")]
    phase: Annotated[str, doc("names the folder of a report", pattern=NAME_PATTERN)]
    plan: Annotated[
        Text | None, doc("the Markdown file whose checklist is kept up to date; a run needs it")
    ] = None
    ledger: Annotated[
        Text | None, doc("the Markdown file that every attempt is appended to; a run needs it")
    ] = None
    reports: Annotated[Text, doc("the folder of the reports")] = "reports"
    states: Annotated[
        dict[str, Literal["open", "done", "blocked"]],
        doc("what other markers of the plan mean, as `{D: done}`"),
    ] = msgspec.field(default_factory=dict)
    items: Annotated[list[ItemOptions], doc("what is run, and what it proves", min_length=1)]


def parse_evidence(config: ConfigFile | None, own: ConfigFile | None) -> Evidence | None:
    """The evidence that a project asks for; None where it asks for none.

    Args:
        config: its ptycho.yaml, if it has one.
        own: its evidence.yaml, if it has one.

    Raises:
        ConfigError: one line with file and line, the key path, and what was expected.
    """
    section = None if config is None else config.data.get(EVIDENCE)
    is_asked = section not in (None, {})
    if own is None:
        return (
            _make_evidence(config, section, EVIDENCE) if config is not None and is_asked else None
        )
    if config is not None and is_asked:
        raise ConfigError(
            f"{config.where(EVIDENCE)}: {EVIDENCE}: there is {EVIDENCE_NAME} too; keep one of them"
        )
    return _make_evidence(own, own.data, "")


def parse_files(root: Path, config: bytes | None, own: bytes | None) -> Evidence | None:
    """As `parse_evidence`, of the files' bytes; None for a file that is not there."""
    return parse_evidence(
        None if config is None else parse_config(root / CONFIG_NAME, config),
        None if own is None else parse_config(root / EVIDENCE_NAME, own),
    )


@dataclass(frozen=True)
class _Place:
    """Where the section stands, for messages."""

    file: ConfigFile
    prefix: str
    """What its keys begin with; empty in a file of its own."""

    def where(self, key: str) -> str:
        """File and line of a key of the section."""
        return self.file.where(f"{self.prefix}.{key}".strip("."))

    def refuse(self, key: str, problem: str) -> ConfigError:
        """The error that a value is wrong."""
        whole_key = f"{self.prefix}.{key}".strip(".")
        return ConfigError(": ".join(filter(None, (self.where(key), whole_key, problem))))


def _make_evidence(file: ConfigFile, data: Any, prefix: str) -> Evidence:
    """The evidence in a section that begins with a prefix, or in a whole file."""
    place = _Place(file, prefix)
    try:
        options = msgspec.convert(data, EvidenceOptions)
    except msgspec.ValidationError as error:
        raise place.refuse(*explain_fault(error, EvidenceOptions, data)) from error
    for key in ("initiative", "plan", "ledger", "reports"):
        if not (getattr(options, key) or "").isprintable():
            raise place.refuse(key, "expected text without control characters")
    markers = _read_states(options.states, place)
    if set("()|") & set(options.reports):
        raise place.refuse("reports", "`(`, `)` and `|` cannot stand in a plan's pointer to a log")
    by_hand = {row: one.by_hand for one in options.items if one.by_hand for row in one.rows}
    return Evidence(
        root=file.root,
        file=file.path.name,
        initiative=options.initiative,
        phase=options.phase,
        plan=_spell(options.plan) if options.plan else "",
        ledger=_spell(options.ledger) if options.ledger else "",
        reports=_spell(options.reports),
        items=_pair([*_make_items(options.items, place)]),
        by_hand=by_hand,
        states=markers,
    )


def _read_states(states: Mapping[str, str], place: _Place) -> dict[str, str]:
    """The markers that a project has besides ours, to ours."""
    ours = {meaning: marker for marker, meaning in STATES.items()}
    seen: dict[str, str] = {}
    for marker, meaning in states.items():
        key = f"states.{marker}"
        if marker.strip() in ("", "x", "X", "P") or not is_like_a_state(f"[{marker}]"):
            problem = (
                "expected one or two characters, or a word as `done`, but none of ` `, x and P"
            )
            raise place.refuse("states", f"{shorten(marker)}: {problem}")
        if seen.setdefault(marker.strip().casefold(), meaning) != meaning:
            problem = f"means {meaning}, and written otherwise something else; use one"
            raise place.refuse(key, problem)
    return {marker: ours[meaning] for marker, meaning in states.items()}


def _make_items(all_options: list[ItemOptions], place: _Place) -> Iterator[Item]:
    """The items that run something, each with a log of its own."""
    places: dict[str, str] = {}
    for index, options in enumerate(all_options):
        key = f"items[{index}]"
        if options.by_hand is not None:
            continue
        try:
            item = _make_item(options)
        except ValueError as error:
            culprit = "pytest" if options.pytest else "command"
            raise place.refuse(f"{key}.{culprit}", str(error)) from None
        name = item.name.casefold()  # some file systems know no other case
        if name in places:
            problem = f"{shorten(options.log)} names the log of {places[name]} too"
            raise place.refuse(f"{key}.log", problem)
        places[name] = place.where(f"{key}.log")
        yield item


def _pair(items: Sequence[Item]) -> tuple[Item, ...]:
    """Items of which those know of each other that are one test before and after its code."""
    green = {_key(item) for item in items if item.expect == GREEN}
    names = {item.name for item in items}
    return tuple(
        replace(
            item,
            is_past=item.expect == RED and _key(item) in green,
            has_red_twin=f"{item.name}_{RED}" in names,
        )
        for item in items
    )


def _key(item: Item) -> tuple[object, ...]:
    return item.command, *sorted(item.env.items())


def _make_item(options: ItemOptions) -> Item:
    """An item that runs something.

    Raises:
        ValueError: its command cannot be run, or not be counted.
    """
    assert options.log is not None
    if options.stage is not None:
        return Item(
            name=_name_item(options.log, GREEN),
            ids=options.rows,
            command=f"doit {options.stage}",
            stage=options.stage,
            stages=(options.stage, *_list_stages(options)),
            depends=_list_files(options),
        )
    command = options.command or format_pytest_command(options.pytest)
    if all(line.strip()[:1] in ("", "#") for line in command.splitlines()):
        raise ValueError("is only a comment, so that nothing would be run")
    calls = find_pytest(command)
    is_pytest = bool(options.pytest) or calls.is_plain
    arguments = options.pytest or calls.arguments
    if any(re.match("--junit-?xml", word) for word in arguments):
        raise ValueError("the program sets --junitxml itself, to count the tests; remove it")
    expect = options.expect if isinstance(options.expect, str) else f"exit {options.expect['exit']}"
    if bool(re.search(r"--co(?:llect-only)?\b", command)) != (expect == COLLECTED):
        raise ValueError("`expect: collected` and pytest's `--collect-only` go together; add one")
    return Item(
        # Memos name a log by the outcome that they hope for: `cli_green.log`.
        name=_name_item(options.log, expect),
        expect=expect,
        ids=options.rows,
        command=command,
        arguments=tuple(options.pytest),
        is_pytest=is_pytest,
        has_pytest=bool(options.pytest) or calls.mentions == 1,
        env={name: str(value) for name, value in options.env.items()},
        time_limit_s=options.time_limit_s,
        tests=tuple(find_test_paths(arguments)) if is_pytest else (),
        scripts=() if is_pytest else tuple(find_scripts(command)),
        stages=_list_stages(options),
        depends=_list_files(options),
    )


def _list_stages(options: ItemOptions) -> tuple[str, ...]:
    return tuple(name for name in options.depends if _is_stage(name))


def _list_files(options: ItemOptions) -> tuple[str, ...]:
    return tuple(_spell(name) for name in options.depends if not _is_stage(name))


def _name_item(log: str, expect: str) -> str:
    """What an item is called: its log without outcome and ending; but one that is to be red keeps
    that, so that the green one of the same test may stand beside it."""
    name = re.sub(r"(_green|_red)?(\.log)?$", "", log, count=1) or log
    return f"{name}_{RED}" if expect == RED else name


def _is_stage(name: str) -> bool:
    return name.partition(":")[0] in STAGES


def _spell(text: str) -> str:
    """A path with one spelling, `~` expanded."""
    return str(Path(text).expanduser())
