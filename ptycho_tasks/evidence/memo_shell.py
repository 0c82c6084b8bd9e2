"""The commands of a memo: what plainly is one, what it sets and logs; a sentence never is one.

A command is what stands as one: a code span, a line of a fence, what follows `tests:`, or a line
that no sentence looks like. Whatever is not plain is left, and a finding says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from ptycho_tasks.evidence.shell import split_assignments, split_words

_TEE = re.compile(r"\s*(?:2>&1\s*)?\|&?\s*tee\s+(?:-a\s+)?(?P<log>\"[^\"]*\"\S*|\S+)\s*$")
_REDIRECT = re.compile(r"\s*(?:&>>?|>>?)\s*(?P<log>\S+\.(?:log|txt|out))\"?\s*(?:2>&1)?\s*$")
_ARROW = re.compile(r"(?<!`)\s+(?:->|=>|\u2192)\s*`?(?P<log>[\w./${}-]+\.log)`?\.?$")
"""How people write that the output goes to a log."""
_USUAL = re.compile(
    r"(?:.*/)?(?:python[0-9.]*|pytest|py\.test|bash|sh|make|doit|ptycho-tasks|uv|poetry|tox|nox|"
    r"ruff|mypy|coverage|torchrun|mpirun|srun|timeout|julia|Rscript|matlab)"
)
"""Programs that memos have run."""
_WITH_TARGETS = {"make": 1, "just": 1, "doit": 2, "nox": 2, "tox": 2, "ruff": 3, "mypy": 3,
                 "ptycho-tasks": 3, "coverage": 3}  # fmt: skip
"""Programs whose arguments are bare words, to the most that no sentence has."""
_BY_PEOPLE = {
    "git", "rm", "cp", "mv", "cat", "less", "more", "ls", "touch", "pip", "conda", "mamba", "sudo",
    "apt", "apt-get", "ssh", "scp", "rsync", "vim", "nano", "code", "open", "head", "tail", "kill",
    "chmod", "ln", "find", "grep", "rg", "sed", "awk", "diff", "which", "source", ".", "pushd",
    "popd", "curl", "wget", "tar", "unzip", "dd", "sleep", "exit", "read", "eval", "exec",
}  # fmt: skip
"""Programs with which people look, tidy up and set up: no log of theirs proves anything."""
_SETUP = {"mkdir", "set", "echo", "true", "printf", "date", "pwd", "umask", "trap", "export"}
_SCRIPTED = re.compile(r"\s*(?:for|while|until|if|case|function|do|done|then|else|fi|esac|[({])\b")
_BARE_SELECTOR = re.compile(
    r"(?P<path>(?:[\w.-]+/)*(?:test_[\w.-]*|[\w-]+_test)\.py(?:::[\w:.\[\]-]+)?|tests?/(?:[\w.-]+/)*)"
    r"(?P<options>(?:\s+.*)?)"
)
_SENTENCE = {
    "a", "an", "and", "are", "as", "be", "before", "but", "by", "for", "if", "in", "is", "it",
    "not", "of", "on", "once", "or", "should", "so", "the", "them", "then", "this", "to", "until",
    "when", "which", "while", "with",
}  # fmt: skip
"""Words that no command has, unless quoted."""
_ARGUMENT = re.compile(r"-\S*|\S*(?:/|::|=)\S*|\S+\.\w+")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))")
_ASSIGNED = re.compile(
    r"(?:^|[\s`;&])(?P<export>export\s+)?(?P<name>[A-Za-z_]\w*)="
    r"(?P<value>\"[^\"`]*\"[^\s`;&]*|'[^'`]*'[^\s`;&]*|\$\([^)]*\)|[^\s`;&]*)"
)
_NEGATED = re.compile(
    r"(?i:\b(?:not|never|avoid|instead of|rather than|"
    r"wait\s+with|stop\s+(?:using|running|calling)|as\s+soon\s+as|without\s+\w+ing|skip|previously|earlier|"
    r"yesterday|last\s+(?:time|week|month|night|year|loop|run)|used to|no longer|failed|formerly|"
    r"unlike|cannot|obsolete|deprecated|superseded|undo|roll\s*back|deferred|postponed|"
    r"old\s+(?:way|tool|script|command|runbook)|for\s+(?:reference|example|instance)|next\s+(?:turn|week|month|time|year)|"
    r"example\s+(?:of|output)|forbidden|prohibited|banned|dangerous|off[ -]limits|clean-?up|"
    r"frozen|hands\s+off|already\s+done|done\s+already|known\s+bad|broken|todo|wip|heads-?up|beware|tried|hold\s+off|wait(?:ing)?\s+for|"
    r"only\s+\w+\s+(?:may|can|should)|"
    r"danger|careful|caution|(?:strictly|reserved)\s+for|usage|help\s+text|message|"
    r"(?:they|he|she|we|who|it|staff|users?|others?|people|everybody|somebody)\s+(?:\w+\s+)?"
    r"(?:use|run|call|start|execute|launch)|alternatively|emergency|gone?\s+wrong|went\s+wrong|(?:ask|tell)\s+(?:\S+\s+){1,3}to|"
    r"(?:shows?|seen|crashes|reproduce[sd])\s+with)\b"
    r"|n[\u2019']t\b|\b(?:e\.g|i\.e)\.|\bwithout\s*$|^\W*examples?\b"
    r"|\b(?:said|says|reads|claimed|suggested|recommended|mention(?:s|ed)|listed|quoted)\s*:?\s*$)"
)
_CONDITION = re.compile(
    r"(?i:(?:^|[,:;(*\u2013\u2014]|\s-|\bbut|\band)\s*(?:\w+[.)]\s+)?(?:only\s+)?"
    r"(?:(?:if|unless|in\s+case|otherwise|on\s+(?:an?\s+)?(?:failure|error)|afterwards|"
    r"after\s+(?:that|review)|once|optionally|time\s+permitting|nice\s+to\s+have|maybe|perhaps)\b"
    r"|when\s+(?!done|finished|implemented|ready|green|it\b|all\b|that\b)[^,]*,"
    r"|optional\s*(?:[]:,)*\u2013\u2014-]|$))|^\W*on\s+the\s+\w+|\bonly\s+on\b"
    r"|(?-i:\b(?:If|Unless|Otherwise|Optional|Optionally|Maybe|Perhaps|Afterwards|In\s+case)\b)"
    r"|(?:(?<!run )(?<!use )|(?<=-run ))\bonly\s*:\s*$|\bdry[ -]?runs?\b)"
)
"""What makes a command one that is asked for only perhaps."""
_OTHER_WORK = (
    r"(?:histor\w*|previous\w*|past|old|background|appendix|archived?|context|known|examples?|"
    r"reproduc\w*|fail\w*|forbidden|prohibited|attempts?|outputs?|roll\s*back|clean-?up|deploy\w*|"
    r"releas\w*|done|completed|finished|ideas?|later|future|optional|backlog|results?|status|"
    r"so\s+far|chang\w*|risks?|questions?|decisions?|findings?|observ\w*|warnings?|cautions?|"
    r"already|before|may|could|backup|fallback|alternativ\w*|caveats?|dangers?|gotchas?|"
    r"troubleshoot\w*|faq|emergenc\w*)\b"
)
ABOUT_OTHER_WORK = re.compile(rf"(?i:\b{_OTHER_WORK})")
"""What the title of a section says whose commands are not to be run now."""
_OTHER_LABEL = re.compile(
    rf"(?i:(?:^|[:.;]\s)\W*(?:for\s+|the\s+|as\s+|an?\s+|\w+[\u2019']s\s+)?(?:{_OTHER_WORK}|(?:notes?|destructive|"
    r"review(?:ed)?|rejected|blocked|cancel\w*|skipp\w*|pending|needs|requires|cron\w*|ci|prod(?:uction)?|"
    r"was|were|hypothetical\w*|stretch|bonus|extra|human\w*|manual(?:ly)?|by\s+(?:hand|people)|v[0-9]+|wait\w*|"
    r"low\s+priority|as\s+soon\s+as|dropped|postponed)\b)(?:[^\w:]+\w+){0,5}[^\w:]*:[\s*_\"'(`]*$)"
)
"""What stands before a command that is not to be run now, as its label."""
_NOTE_AGAINST = re.compile(
    r"(?i:(?:n[\u2019']t|\bnot\s+(?:now|yet|today|here)|\bask\s+\w+\s+(?:first|before)|\bwaits?\b|"
    r"\bneeds?\s+(?:\w+\s+)?(?:approval|sudo|human|review|permission)|\bhas\s+to\s+wait|"
    r"\bif\s+(?:needed|necessary|possible)|\b[A-Z]?\w+\s+only\b|\bdestroys?\b|\bdeletes?\b|\bbroken\b|"
    r"(?:=>|->|\u2192|:)\s*(?:it\s+)?(?:fails|crashes|hangs)\b|\bafter\s+(?:the\s+)?(?:review|approval|sign)))"
)
"""What stands behind a command, in its sentence, that is not to run now."""
_ADVISED_AGAINST = re.compile(
    r"(?i:(?:(?!\.\s|[`;]).)*?\b(?:never|forbid(?:den|s)?|prohibited|banned|obsolete|outdated|"
    r"deprecated|superseded|retired|replaced\s+by|no\s+longer|not\s+any\s*more|dangerous|avoid(?:ed)?|"
    r"(?:deletes?|wipes?|destroys?|erases?)\s|leave\s+(?:it|that)\s+alone|"
    r"(?:must|may|should|can|shall|do|does|is|are)\s*(?:not|n[\u2019']t)\s+(?:\w+\s+)?(?:to\s+)?"
    r"(?:be\s+)?(?:run|ran|call|execut|start|us|touch|allow|permit|launch|invok)\w*)\b)"
)
"""What stands behind a command that is not to run."""
_FORBIDDING = {"never", "forbidden", "obsolete", "deprecated", "superseded"}
"""Words of a person that no command has, save as a value of an option, which is not worth it."""
_DOUBTFUL_NOTE = re.compile(r"(?i:\b(?:only|optional\w*|when|where|after|later|todo|tbd)\b|\?)")
"""What stands in a note behind a command that is asked for only perhaps."""
_RUN = (
    r"(?:(?:re-?)?run(?:ning)?|us(?:e|ing)|execut(?:e|ing)|call(?:ing)?|launch|start|invoke|do|try)"
)
_FORBIDDEN_BELOW = re.compile(
    r"(?i:(?:[*_`(\s]|note:|warning:|caution:|but\b|please\b|and\b)*(?:"
    r"(?:obsolete|deprecated|superseded|forbidden|outdated|retired|not\s+(?:yet|now|here|allowed|today))\b"
    r"|(?:never|do\s+not|don[\u2019']t|must\s+not|should\s+not|avoid)\b"
    rf"(?:\s+(?:ever|actually|yet)\b)?(?:\s+{_RUN}\b)?"
    r"(?:\s+(?:it|this|that|these|them|so|the\s+(?:command|script|above)))?(?:\s+(?:yet|now|here|today))?"
    r"(?=\s*[.!;,)]|\s*$|\s+(?:on|in(?!\s+parallel)|at|from|until|unless|before|while|during)\b)"
    r"|(?:this|it|that|these|they|the\s+(?:command|script)s?)\s+(?:command\s+|script\s+|one\s+)?"
    r"(?P<claim>(?:is|are|was|were|must|may|should|can|shall|has\s+been)\b.*)))"
)
"""How a sentence begins that may be about the command of the one before."""
_BY_OTHERS = re.compile(
    r"(?i:\b(?!you\b|we\b|then\b|and\b|please\b|engineer\b|it\b)\w+\s+(?:will|should|can|may|must|shall|would|could)"
    r"\s+(?:\w+\s+)?(?:run|call|use|execute|start|launch)\s*$)"
)
"""How a sentence orders a command of others."""
_DEFERRED = re.compile(r"(?i:\b(?:after|once|later|next|before|when|was|were|like|such as)\b)")
_ORDERED = re.compile(r"(?i:\b(?:run|rerun|execute|launch|call|use|using|via|with|and|then|:))\s*$")
_VERB = re.compile(
    r"(?i:\b(?:re-?run|run|execute|launch|call|use|start|invoke)(?:\s+(?:only|just))?\s*$"
    r"|\b(?:capture|save|record|keep|store|log)\s+the\s+(?:output|log|run)\s+of\s*$)"
)
_TO_PASS = re.compile(
    r"(?i:\b(?:ensure|make\s+sure|confirm|check|verify|prove|show|keep)(?:\s+that)?\s*$)"
)
_PASSES = re.compile(
    r"(?i:\s+(?:still\s+)?(?:passes|succeeds|exits\s+(?:with\s+)?0|(?:(?:is|stays|remains)\s+)?green)\b)"
)
"""How a sentence asks that a command be green."""
_FAILED = re.compile(
    r"(?i:[\s)]*(?:\w+\s+)?(?:failed|fails|crashed|crashes|passed|succeeded|worked|took|gave|"
    r"showed|would|could|might|was|is|no longer)\b"
    r"|[\s,(\u2013\u2014-]*only\s+(?:with|when|if|after|on|in|by|once|during|for|at)\b"
    r"|[\s:,(\u2013\u2014-]*(?:must|may|should|shall|can)\s*(?:not|n[\u2019']t)\b"
    r"|\s*(?:\(?(?:only\s+)?(?:if|unless)\b|\?)|\s*should\s+(?:be|read|say)\s+[`\"]"
    r"|[\s,\u2013\u2014-]*no\s*!"
    r"|[\s,;(\u2013\u2014-]*(?:optional\b|skip\s+(?:it\s+)?(?:if|unless|when|where)\b"
    r"|(?:if|unless|when)\s+(?:possible|time|there\s+is\s+time|you\b|at\s+hand)))"
)
"""What stands behind a command that is told of, or asked for only perhaps."""
_ASKED_BEFORE = re.compile(
    r"(?i:(?:^|[:;,.!\u2013\u2014\u2192>|\])&+-]|(?:^|:\s)\W*(?-i:[A-Z])[\w+-]*(?:\.\w|[0-9])[\w.+-]*"
    r"|\b(?:(?:re-?)?run(?:ning)?|execut(?:e|ing)|launch|call|invoke|start|us(?:e|ing)|via|with|"
    r"through|capture|then|and|or|first|finally|also|again|once|now|tests?|command|selectors?|do)\b)"
    r"\s*[*_\"'(]*\s*$)"
)
"""What stands before a code span that a sentence asks to run: it does not only speak of it."""
_DOES = re.compile(
    r"\s+(?!(?:as|always|passes|succeeds|exits|stays|remains|plus|this)\b)[a-z]{2,}s\b"
)
"""What stands behind a code span that a sentence says something about."""
_SAYS = re.compile(
    r"\s+(?!(?:a[lns]*|and|or|then|plus|to|into|in|on|at|of|by|via|using|with|without|from|for|through|"
    r"under|until|before|once|twice|again|first|now|here|so|must|should|shall|has|have|needs?|"
    r"passes|succeeds|exits|stays|remains|green|red|always|the|this|these|both|each|every|all)\b)"
    r"[a-z]{2,}\b"
)
"""The same, of one that no verb before it orders: all but what goes on with an order."""
_JOINT = re.compile(r"[\s,]*(?:and|or)?\s*")
_OUTCOME = re.compile(r"\b(?:RED|GREEN)\b[^`]*$")
_PROMPT = re.compile(
    r"(?:\([\w.-]+\)\s*)?(?:[$%\u276f\u279c]|\[?[\w.-]+@[\w.-]+[^$#%>`]*[$#%>]|"
    r"(?:PS )?[A-Z]:\\[^>`]*>|[~/\w][~/\w.-]*[$])\s+(?=\S)"
)
"""What a shell shows before a command."""
_CHANGE_FOLDER = re.compile(r"^\s*cd\s+\S+\s*(?:&&|;)\s*")
STAMP = "TIMESTAMP"
"""Stands for what a shell would make the time of."""

Leave = Callable[[str], None]
"""Notes what was not taken, and why."""


@dataclass(frozen=True)
class Command:
    """A command of the memo."""

    line: int
    text: str
    """Without the variables before it and the `tee` after it."""
    env: dict[str, str]
    log: str = ""
    """The file that `tee` writes."""
    context: str = ""
    """What stands beside it, which may name what it is for."""
    must_fail: bool = False
    """Whether the memo says so."""

    @property
    def is_red(self) -> bool:
        """Whether it is to be red, as the name of its log says, or the memo."""
        outcome = re.search(r"_(red|green)(?:\.\w+)?$", self.log)
        return outcome[1] == "red" if outcome else self.must_fail

    @property
    def key(self) -> tuple[str, tuple[tuple[str, str], ...], bool]:
        """The same for commands that do the same, and are to have the same outcome."""
        return self.text, tuple(sorted(self.env.items())), self.is_red

    def __str__(self) -> str:
        """As it is shown."""
        env = "".join(f", {name}={json.dumps(value)}" for name, value in self.env.items())
        log = f", log {PurePath(self.log).name}" if self.log else ""
        return f"`{self.text}`{env}{log}{', to be red' if self.is_red else ''}"


@dataclass
class Shell:
    """What a memo sets, by which its commands are read."""

    variables: dict[str, str] = field(default_factory=dict)
    used: frozenset[str] = frozenset()
    """Variables that the memo itself refers to."""
    root: Path | None = None
    """The project, in which a program may lie."""
    exported: dict[str, str] = field(default_factory=dict)
    """What commands from here on have in their environment."""

    @classmethod
    def of(cls, text: str, root: Path | None) -> Shell:
        """With every variable that a memo assigns."""
        used = (match["braced"] or match["plain"] for match in _VARIABLE.finditer(text))
        shell = cls(used=frozenset(used), root=root)
        for match in _ASSIGNED.finditer(text):
            value = re.sub(r"\$\([^)]*\)", STAMP, match["value"]).replace('"', "").replace("'", "")
            shell.variables.setdefault(match["name"], value)
        return shell

    def resolve(self, text: str) -> str:
        """A text with the memo's own variables replaced; others stay as they are."""
        for _ in range(3):
            text = re.sub(r"\$(?:\{PWD\}|PWD\b)/?", "", text)
            text = _VARIABLE.sub(self._replace, text)
        return text

    def _replace(self, match: re.Match[str]) -> str:
        return self.variables.get(match["braced"] or match["plain"], match[0])

    def is_there(self, program: str) -> bool:
        """Whether a program can be found, in the project or on this machine."""
        if "/" in program:
            return os.path.lexists((self.root or Path()) / program)
        return shutil.which(program) is not None

    # --- what stands as a command ----------------------------------------------------------

    def read_script(self, text: str, line: int, leave: Leave, context: str = "") -> list[Command]:
        """The commands of what a shell would read, as a fence or a code span holds it."""
        found: list[Command] = []
        folder = comment = ""
        for logical in _join_lines(text):
            if logical.startswith("#"):
                context = comment = logical  # it may say what the next command is for
                continue
            logical, _, note = logical.partition(" # ")
            is_doubtful = _is_doubtful(note) or not is_asked_for(comment)
            comment = ""
            if is_doubtful:
                leave(f"`{_shorten(logical)}`: its comment does not ask to run it; nothing runs it")
                continue
            if _SCRIPTED.match(logical) or "<<" in logical:
                leave(f"`{_shorten(logical)}`: is a script; save it as a file, and call that")
                return found
            taken: list[Command] = []
            parts = _split_list(logical)
            for part in parts:
                words = _split(part)
                if words[:1] == ["cd"] and len(words) == 2 and "$" not in self.resolve(words[1]):
                    folder = "" if words[1] in (".", "") else f"cd {self.resolve(words[1])} && "
                    continue
                own = (
                    f"{context if context[:1] == '#' else ''}\n{part} # {note}" if note else context
                )
                command = self._read_part(part, line, leave, own)
                if command is not None:
                    taken.append(replace(command, text=f"{folder}{command.text}"))
            found += self._join(taken)
        return found

    @staticmethod
    def _join(commands: list[Command]) -> list[Command]:
        """The commands of one line: each by itself where each has a log, or all call pytest."""
        if len(commands) < 2 or all(command.log for command in commands):
            return commands
        first = commands[0]
        if all("pytest" in c.text and c.env == first.env and not c.log for c in commands):
            return commands
        text = " && ".join(_prefix_env(command) for command in commands)
        return [Command(first.line, text, {}, commands[-1].log, first.context)]

    def _read_part(self, part: str, line: int, leave: Leave, context: str) -> Command | None:
        text, log = self.resolve(part.strip()), ""
        for pattern in (_TEE, _REDIRECT):
            match = pattern.search(text)
            if match and not log:
                log, text = match["log"].replace('"', ""), text[: match.start()]
        words = _split(text)
        if not words:
            leave(f"`{_shorten(text)}`: a quote is opened and not closed")
            return None
        if _drop_env(words) is not words:
            text, words = text.removeprefix(words[0]).strip(), words[1:]
        if words[0] == "export":
            self.exported.update(
                {
                    name: value
                    for name, value in split_assignments(words[1:])[0].items()
                    if name not in self.used and STAMP not in value
                }
            )
            return None
        env, rest = split_assignments(words)
        if not rest or rest[0] in _SETUP:
            return None
        if rest[0] in _BY_PEOPLE:
            leave(f"`{_shorten(text)}`: is left to people; nothing runs it")
            return None
        unknown = [name for name in self._list_variables(text) if name not in os.environ]
        if unknown or STAMP in text:
            what = f"${unknown[0]} is set nowhere" if unknown else "it names a time yet to come"
            leave(f"`{_shorten(text)}`: {what}; nothing runs it")
            return None
        if not (_USUAL.fullmatch(rest[0]) or self.is_there(rest[0])):
            leave(f"`{_shorten(text)}`: there is no program `{rest[0]}` here; nothing runs it")
            return None
        text = _without_assignments(text, len(env))
        return Command(line, text, {**self.exported, **env}, log, context)

    def only_sets(self, text: str) -> bool:
        """Whether a script only sets variables, and makes folders: it runs nothing."""
        parts = [
            part
            for line in _join_lines(text)
            if not line.startswith("#")
            for part in _split_list(line)
        ]
        words = [split_assignments(_split(part.partition(" # ")[0])) for part in parts]
        return bool(parts) and all(
            (rest[0] in _SETUP if rest else bool(env)) for env, rest in words
        )

    def _list_variables(self, text: str) -> list[str]:
        outside = re.sub(r"'[^']*'", "", text)
        return [match["braced"] or match["plain"] for match in _VARIABLE.finditer(outside)]

    def is_sensible(self, text: str) -> bool:
        """Whether a code span is a command with an argument, and not a name in a sentence."""
        words = split_assignments(_drop_env(_split(_CHANGE_FOLDER.sub("", text))))[1]
        if len(words) < 2:
            return False
        if words[0] in {"export", "mkdir", *_BY_PEOPLE}:
            return words[0] == "export"
        calls_all = words[0] == "pytest" and not any(map(_points_at, words[1:]))
        calls_all = calls_all and "--collect-only" not in words
        if _USUAL.fullmatch(words[0]):
            return not calls_all or bool(_TEE.search(text))
        return bool(_TEE.search(text) or _REDIRECT.search(text)) or (
            "/" in words[0] and words[0].endswith((".sh", ".py"))
        )

    def read_spans(
        self, text: str, line: int, leave: Leave, lead: str = "", sequel: str = ""
    ) -> list[Command]:
        """The commands in the code spans of a sentence that asks to run them.

        Args:
            text: the line.
            line: its number.
            leave: notes what was not taken.
            lead: what stands above, and the line goes on with.
            sequel: what stands below.
        """
        found: list[Command] = []
        end, is_taken = 0, True
        for match in re.finditer(r"(`+)(?P<span>[^`]+)\1", text):
            span = match["span"].strip()
            between, end = text[end : match.start()], match.end()
            # One of several is asked for as the first is.
            is_other = end and not is_taken and _JOINT.fullmatch(between)
            is_taken = False
            before = last_sentence(text[: match.start()])
            if not self.is_sensible(span):
                self._tell_of_span(span, before, leave)
                continue
            after = text[match.end() :]
            is_named = _OUTCOME.search(before)  # as RED, which asks for it whatever is said of it
            is_deferred = _DEFERRED.search(before) and not _ORDERED.search(before)
            is_said = (_DOES if _VERB.search(before) else _SAYS).match(after)
            own = re.split(r"[.;]\s|`", after, maxsplit=1)[0]
            is_against = _NOTE_AGAINST.search(own) or (
                not _VERB.search(before) and own[:1] != "," and _NEGATED.search(own)
            )
            is_told = is_deferred or _FAILED.match(after) or is_said or is_against
            is_told = is_told and not is_named
            whole = last_sentence(f"{lead} {text[: match.start()]}")
            asked = is_asked_for(whole, f"{after.rstrip('.')}. {sequel}")
            is_to_pass = _TO_PASS.search(before) and _PASSES.match(after)
            is_told = is_told and not is_to_pass
            is_ordered = _ASKED_BEFORE.search(whole) or _VERB.search(before) or is_to_pass
            asked = asked and bool(is_ordered) and not (is_other or _quotes(whole))
            if is_told or not asked:
                leave(f"`{_shorten(span)}`: the sentence does not ask to run it; nothing runs it")
                continue
            is_taken = True
            found += self.read_script(span, line, leave, text)
        return found

    def _tell_of_span(self, span: str, before: str, leave: Leave) -> None:
        """Say of a code span that looks like a command why it is none."""
        program, *arguments = split_assignments(_drop_env(_split(span)))[1] or [""]
        is_name = bool(re.fullmatch(r"[a-z./][\w./+-]*", program)) and "(" not in span
        is_like_one = is_name and (
            any(re.match(r"--?[A-Za-z]", word) for word in arguments)
            or (bool(arguments) and bool(_ORDERED.search(before)))
        )
        if program in _BY_PEOPLE and arguments:
            leave(f"`{_shorten(span)}`: is left to people; nothing runs it")
        elif is_like_one and not (_USUAL.fullmatch(program) or self.is_there(program)):
            leave(f"`{_shorten(span)}`: there is no program `{program}` here; nothing runs it")
        elif is_like_one:
            leave(f"`{_shorten(span)}`: nothing says that it is to be run; nothing runs it")

    def read_plain(self, text: str, line: int, leave: Leave, context: str = "") -> list[Command]:
        """The commands of a text that is nothing but commands, code spans with notes between them,
        or selectors of pytest; none of any other text, of which a finding says so."""
        text = text.strip()
        if is_none(text):
            return []
        spans = re.findall("`([^`]+)`", text)
        outside = re.sub("`[^`]+`", " ", text)
        if spans and not is_plain_command(text):
            if all(self.is_sensible(s) or _make_pytest(s) for s in spans if " " in s or "/" in s):
                wanted = [s for s in spans if self.is_sensible(s) or _make_pytest(s)]
                if is_asked_for(outside, outside):
                    return [
                        command
                        for span in wanted
                        for command in self.read_script(
                            _make_pytest(span) or span, line, leave, context
                        )
                    ]
            leave(f"`{_shorten(text)}`: is not plainly a command; nothing runs it")
            return []
        # No call of pytest reads what another one prints, or has it as a word: these separate.
        text = re.sub(r"(?:\s\||,)\s+(?=(?:\w+=\S*\s+)*(?:python\S* -m )?pytest\s)", " ; ", text)
        parts = [_trim(part) for part in _split_at_semicolons(text) if _trim(part)]
        commands: list[Command] = []
        for part in parts:
            if _FORBIDDING & {word.strip("().,!").casefold() for word in _split(part)}:
                leave(f"`{_shorten(part)}`: does not ask to run it; nothing runs it")
                continue
            if is_plain_command(part) or _calls_target(part):
                commands += self.read_script(part.strip("`"), line, leave, context)
                continue
            selectors = [*map(_make_pytest, re.split(r"\s*,\s+|\s+and\s+", _drop_notes(part)))]
            if not all(selectors):
                leave(f"`{_shorten(part)}`: is not plainly a command; nothing runs it")
                return []
            for selector in selectors:
                commands += self.read_script(selector, line, leave, context)
        return commands


def last_sentence(text: str) -> str:
    """The sentence, or the part of one, that a text ends with."""
    return re.split(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)[.;]\s", text)[-1].strip()


def is_asked_for(before: str, after: str = "") -> bool:
    """Whether a sentence asks for a command, and neither advises against it nor only perhaps.

    Args:
        before: what stands before the command in its sentence.
        after: what stands behind it.
    """
    is_doubtful = _NEGATED.search(before) or _CONDITION.search(before)
    is_doubtful = is_doubtful or _OTHER_LABEL.search(before) or _BY_OTHERS.search(before)
    return not (is_doubtful or _ADVISED_AGAINST.match(after) or _is_forbidden_below(after))


def _quotes(before: str) -> bool:
    """Whether a quotation is opened and not closed, in which nothing is asked for."""
    outside = re.sub("`[^`]*`", "", before)
    return outside.count('"') % 2 == 1 or outside.count("\u201c") > outside.count("\u201d")


def _is_forbidden_below(after: str) -> bool:
    """Whether the sentence that follows a command's own forbids that command."""
    own, *others = re.split(r"[.;!]\s+(?=\S)", after, maxsplit=1)
    match = _FORBIDDEN_BELOW.match(others[0]) if others and "`" not in own else None
    if match is None:
        return False
    return match["claim"] is None or bool(_ADVISED_AGAINST.match(match[0]))


def drop_prompt(line: str) -> str:
    """A line without what a shell shows before a command."""
    return _PROMPT.sub("", line, count=1) if _PROMPT.match(line) else line


def is_none(text: str) -> bool:
    """Whether a text says that there are no tests."""
    return bool(re.match(r"(?i:(?:none|n/?a|nothing)\b[^`]*$)|[-\u2013\u2014. ]*$", text.strip()))


def _points_at(word: str) -> bool:
    """Whether a word of a call of pytest selects something."""
    return "/" in word or "::" in word or word.endswith(".py") or word in ("-k", "-m", "--lf")


def _make_pytest(text: str) -> str:
    """The call of pytest that a bare selector means; empty where it is none."""
    match = _BARE_SELECTOR.fullmatch(_drop_notes(text.strip().strip("`")).strip())
    if match is None or any(word in _SENTENCE for word in match["options"].split()):
        return ""
    command = f"pytest {match['path']}{match['options']}"
    return command if is_plain_command(command) else ""


def is_plain_command(text: str, *, is_marked: bool = False) -> bool:
    """Whether a text is a command, and cannot be a sentence.

    Args:
        text: that may be one.
        is_marked: whether what stands before it says that it is one, as a prompt does.
    """
    text = _trim(text).strip()
    is_span = is_marked or bool(_TEE.search(text)) or (len(text) > 2 and text[0] == text[-1] == "`")
    text = text.strip("`").strip()
    if "`" in text or "$(" in text:
        return False
    words = _split(text)
    if not words:
        return bool(text) and bool(_USUAL.match(text.split()[0]))  # it is said where it is read
    simple: list[list[str]] = [[]]
    for before, word in zip(["", *words], words, strict=False):
        if re.fullmatch(r"[();|&]+", word):
            simple.append([])
        elif not re.fullmatch(r"[<>&|]*[<>][<>&|]*", word) and not re.search("[<>]", before):
            simple[-1].append(word)
    return any(simple) and all(_calls_program(part, is_span=is_span) for part in simple if part)


def _calls_program(words: list[str], *, is_span: bool) -> bool:
    rest = split_assignments(_drop_env(words))[1]
    if not rest:
        return bool(words)
    program, *arguments = rest
    if program in {"tee", *_SETUP} and arguments:
        return not any(word in _SENTENCE for word in arguments) or program == "echo"
    if not _USUAL.fullmatch(program):
        return is_span and ("/" in program or shutil.which(program) is not None)
    if is_span:
        return bool(arguments)
    # `make sure` and `python is slow` are sentences.
    return not arguments or (
        bool(_ARGUMENT.fullmatch(arguments[0]) or program == "uv" or program == "poetry")
        and not any(word in _SENTENCE for word in arguments)
    )


def _calls_target(text: str) -> bool:
    """Whether a text that stands for a command is the bare name of a target: `make check`."""
    program, *words = split_assignments(_split(text))[1] or [""]
    bare = [word for word in words if not _ARGUMENT.fullmatch(word)]
    return (
        0 < len(bare) <= _WITH_TARGETS.get(program, 0)
        and all(re.fullmatch(r"[a-z][\w:-]*", word) for word in bare)
        and not {"sure", "certain", *_SENTENCE} & {*bare}
        and shutil.which(program) is not None
    )


def _drop_env(words: list[str]) -> list[str]:
    return words[1:] if words[:1] in (["env"], ["/usr/bin/env"]) else words


def _drop_notes(text: str) -> str:
    """A text without the notes that people put after a selector."""
    return re.sub(r"\s+(?:\([^()]*\)|#\s.*|[\u2014\u2013-]+\s+.*)$", "", text.strip())


def _trim(text: str) -> str:
    """A part of a line without bullets, notes, and the full stop of its sentence."""
    text, mark, comment = _ARROW.sub(r" > \g<log>", text.strip()).partition(" # ")
    if _is_doubtful(comment):
        return f"{text}{mark}{comment}"
    # Nothing that a shell reads ends so, unless an operator stands before it.
    note = re.search(r"[^\s;|&(]\s+\((?P<note>[^()]*)\)[.;]?$", text)
    if note and not _is_doubtful(note["note"]):
        text = text[: note.start() + 1]
    if text.endswith(".") and not text.endswith((" .", "..")):
        text = text[:-1]
    return text.strip()


def _is_doubtful(note: str) -> bool:
    """Whether a note behind a command says that it is not asked for, or only perhaps."""
    against = _DOUBTFUL_NOTE.search(note) or _NOTE_AGAINST.search(note)
    return bool(against) or not is_asked_for(note)


def _shorten(text: str) -> str:
    text = " ".join(text.replace("`", "").split())
    return text if len(text) <= 70 else f"{text[:67]}..."


def _split(text: str) -> list[str]:
    """The words of a command; none where it cannot be read."""
    try:
        return split_words(text)
    except ValueError:
        return []


def _prefix_env(command: Command) -> str:
    env = "".join(f"{name}={json.dumps(value)} " for name, value in command.env.items())
    return f"{env}{command.text}"


def _without_assignments(text: str, count: int) -> str:
    """The command as written, after the variables that are set before it."""
    for _ in range(count):
        text = re.sub(r"""^[A-Za-z_]\w*=(?:"[^"]*"|'[^']*'|[^\s"'])*\s+""", "", text)
    return text.strip()


def _split_at_semicolons(line: str) -> list[str]:
    """The parts of a line between semicolons; those in quotes separate nothing."""
    return re.findall(r"""(?:"[^"]*"|'[^']*'|`[^`]*`|\([^()`"']*\)|[^;])+""", line)


def _join_lines(text: str) -> Iterator[str]:
    """The lines that a shell would read, and comments: continued ones are one, without prompts."""
    text = re.sub(r"[ \t]*\\\r?\n[ \t]*", " ", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Where some lines have a prompt, the others are what these printed.
    shown = [line for line in lines if _PROMPT.match(line) or line.startswith("#")]
    has_prompts = any(map(_PROMPT.match, lines))
    for line in shown if has_prompts else lines:
        yield re.sub(r"\s+#\s", " # ", drop_prompt(line))


def _split_list(line: str) -> list[str]:
    """The commands of one line, as `&&` and `;` separate them; those in quotes do not."""
    quoted = r"\"(?:\\.|[^\"\\])*\"|'[^']*'|\$\([^)]*\)"
    pieces = re.split(rf"({quoted})", line)
    parts = [""]
    for index, piece in enumerate(pieces):
        if index % 2:
            parts[-1] += piece
            continue
        first, *others = re.split(r"&&|;", piece)
        parts[-1] += first
        parts += others
    return [part.strip() for part in parts if part.strip()]


_AROUND = re.compile(
    r"^(?:(?:timeout(?:\s+-\S+)*\s+[0-9.]+[smhd]?|time|nice(?:\s+-\S+)*|"
    r"(?:uv|poetry|pdm|hatch|pixi)\s+run(?!\s+-))\s+)+"
)
"""What stands before a command and does not change what it does."""


def is_same_test(one: Command, other: Command) -> bool:
    """Whether two calls of pytest select the same, however much they say of it."""
    words = [
        [word for word in _split(text) if not re.fullmatch("-[qvxs]+|--maxfail=.*", word)]
        for text in (_AROUND.sub("", command.text) for command in (one, other))
    ]
    return "pytest" in words[0] and words[0] == words[1]


def list_selectors(command: Command) -> Iterable[str]:
    """The words of a command by which a sentence may name it: tests, scripts and files."""
    for word in _split(command.text):
        if "::" in word or (word.endswith(".py") and "/" in word):
            yield word
            yield word.rpartition("::")[2]
