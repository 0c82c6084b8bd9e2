"""The evidence section of ptycho.yaml, or a whole evidence.yaml: what may stand in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from ptycho_tasks.config.document import ConfigFile, parse_config, short
from ptycho_tasks.config.fields import fault
from ptycho_tasks.errors import ConfigError
from ptycho_tasks.evidence.item import Evidence, Item
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
Text = Annotated[str, limits(pattern=TEXT_PATTERN)]


class ItemOptions(Section, frozen=True, kw_only=True):
    """A command, and the rows of the plan that its log proves."""

    affects: ClassVar[Stages] = ()

    id: Annotated[RowId | None, doc("the row of the plan")] = None
    ids: Annotated[list[RowId], doc("the rows, where one log proves several")] = msgspec.field(
        default_factory=list
    )
    command: Annotated[Text | None, doc("what to run, as a shell reads it")] = None
    pytest: Annotated[list[Text], doc("or: what pytest is to run, and its options")] = (
        msgspec.field(default_factory=list)
    )
    by_hand: Annotated[Text | None, doc("or: what a person does and marks; nothing is run")] = None
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
        if (self.id is None) == (not self.ids):
            raise ValueError("give exactly one of `id` and `ids`")
        if len(set(self.rows)) < len(self.rows):
            raise ValueError("`ids` has one id twice; remove one")
        if sum((self.command is not None, bool(self.pytest), self.by_hand is not None)) != 1:
            raise ValueError("give exactly one of `command`, `pytest` and `by_hand`")
        if any("\0" in text for text in self._texts):
            raise ValueError("has a NUL character, which no command can hold; remove it")
        if self.by_hand is not None:
            if self.log is not None or self.env or self.time_limit_s or self.depends:
                raise ValueError("`by_hand` runs nothing, so that only `id` or `ids` go with it")
        elif self.log is None or not re.fullmatch(NAME_PATTERN, self.log):
            raise ValueError(
                f"`log` must be a plain file name, {NAME_RULE}, not {short(self.log)}; the "
                "report folder is chosen anew for each run"
            )
        for name in self.env:
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"`env`: {short(name)} cannot name an environment variable")

    @property
    def _texts(self) -> tuple[str, ...]:
        return (self.command or "", *self.pytest, *map(str, self.env.values()), *self.depends)

    @property
    def rows(self) -> tuple[str, ...]:
        """The ids, however they were given."""
        return (self.id,) if self.id is not None else tuple(self.ids)


class EvidenceOptions(Section, frozen=True, kw_only=True):
    """Which logs prove which rows of which plan."""

    affects: ClassVar[Stages] = ()

    initiative: Annotated[Text, doc("what the plan is part of; named in the ledger")]
    phase: Annotated[str, doc("names the folder of a report", pattern=NAME_PATTERN)]
    plan: Annotated[Text, doc("the Markdown file whose checklist is kept up to date")]
    ledger: Annotated[Text, doc("the Markdown file that every attempt is appended to")]
    reports: Annotated[Text, doc("the folder of the reports")] = "reports"
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


def _make_evidence(file: ConfigFile, data: Any, prefix: str) -> Evidence:
    """The evidence in a file.

    Args:
        file: says where each key stands.
        data: the section, or the whole file.
        prefix: what the keys of the section begin with, in messages.
    """

    def refuse(key: str, problem: str) -> ConfigError:
        key = f"{prefix}.{key}".strip(".")
        return ConfigError(": ".join(part for part in (file.where(key), key, problem) if part))

    try:
        options = msgspec.convert(data, EvidenceOptions)
    except msgspec.ValidationError as error:
        raise refuse(*fault(error, EvidenceOptions, data)) from error
    for key in ("initiative", "plan", "ledger", "reports"):
        if not getattr(options, key).isprintable():
            raise refuse(key, "expected text without control characters")
    if set("()|") & set(options.reports):
        raise refuse("reports", "`(`, `)` and `|` cannot stand in a plan's pointer to a log")
    items: list[Item] = []
    by_hand: dict[str, str] = {}
    places: dict[str, str] = {}
    for index, item_options in enumerate(options.items):
        key = f"items[{index}]"
        if item_options.by_hand is not None:
            by_hand |= dict.fromkeys(item_options.rows, item_options.by_hand)
            continue
        try:
            item = _make_item(item_options)
        except ValueError as error:
            culprit = "pytest" if item_options.pytest else "command"
            raise refuse(f"{key}.{culprit}", str(error)) from None
        name = item.name.casefold()  # some file systems know no other case
        if name in places:
            log = short(item_options.log)
            raise refuse(f"{key}.log", f"{log} names the log of {places[name]} too")
        places[name] = file.where(f"{prefix}.{key}.log".strip("."))
        items.append(item)
    return Evidence(
        root=file.root,
        file=file.path.name,
        initiative=options.initiative,
        phase=options.phase,
        plan=_spell(options.plan),
        ledger=_spell(options.ledger),
        reports=_spell(options.reports),
        items=tuple(items),
        by_hand=by_hand,
    )


def _make_item(options: ItemOptions) -> Item:
    """An item that runs something.

    Raises:
        ValueError: its command cannot be run, or not be counted.
    """
    assert options.log is not None
    command = options.command or format_pytest_command(options.pytest)
    if all(line.strip()[:1] in ("", "#") for line in command.splitlines()):
        raise ValueError("is only a comment, so that nothing would be run")
    calls = find_pytest(command)
    is_pytest = bool(options.pytest) or calls.is_plain
    arguments = options.pytest or calls.arguments
    if any(re.match("--junit-?xml", word) for word in arguments):
        raise ValueError("the program sets --junitxml itself, to count the tests; remove it")
    return Item(
        name=re.sub(r"(_green|_red)?(\.log)?$", "", options.log, count=1) or options.log,
        ids=options.rows,
        command=command,
        arguments=tuple(options.pytest),
        is_pytest=is_pytest,
        has_pytest=bool(options.pytest) or calls.mentions == 1,
        env={name: str(value) for name, value in options.env.items()},
        time_limit_s=options.time_limit_s,
        tests=tuple(find_test_paths(arguments)) if is_pytest else (),
        scripts=() if is_pytest else tuple(find_scripts(command)),
        stages=tuple(name for name in options.depends if _is_stage(name)),
        depends=tuple(_spell(name) for name in options.depends if not _is_stage(name)),
    )


def _is_stage(name: str) -> bool:
    return name.partition(":")[0] in STAGES


def _spell(text: str) -> str:
    """A path with one spelling, `~` expanded."""
    return str(Path(text).expanduser())
