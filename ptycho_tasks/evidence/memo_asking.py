"""Whether what stands around a command in a memo asks to run it: now, of the reader, for sure.

What is forbidden, done, deferred, of others, asked for only if something happens, or only spoken
of, is not asked for. What is not sure is not, either.
"""

from __future__ import annotations

import re

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
    r"(?i:(?:n[\u2019']t|\bnot\s+(?:now|yet|today|here)|\bask\s+\w+\s+(?:first|before)|\bwaits?\s+(?:for|until|till)\s+(?!it\b)|"
    r"\bneeds?\s+(?:\w+\s+)?(?:approval|sudo|human|review|permission)|\bhas\s+to\s+wait|"
    r"\bif\s+(?:needed|necessary|possible)|(?-i:[(#,]\s*(?![CG]PU)[A-Z]\w+)\s+only\b|\bdestroys?\b|\bdeletes?\b|\bbroken\b|"
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
    r"\s+(?:\w+\s+)?(?:run|call|use|execute|start|launch)\s*$"
    r"|\b(?:ran|used|called|executed|launched|started)\s*$"
    r"|\b(?!let|it|that|here|there|what)\w+[\u2019']s\s+(?:\w+\s+){1,2}\(?$)"
)
"""How a sentence orders a command of others, or says that one was run."""
_DEFERRED = re.compile(r"(?i:\b(?:after|once|later|next|before|when|was|were|like|such as)\b)")
ORDERED = re.compile(r"(?i:\b(?:run|rerun|execute|launch|call|use|using|via|with|and|then|:))\s*$")
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
_LOGGED = re.compile(
    r"(?:\s*(?:[-=]>|\u2192)|[,;]?\s+\(?log:?)\s+`?[\w./-]+\.log`?[).;]*\s*$", re.MULTILINE
)
"""What stands behind a command whose output is to be kept."""
_ROW_BEFORE = re.compile(r"\W*[A-Z][\w+-]*(?:\.\w|[0-9])[\w.+-]*[:\s]")
"""How a line begins that is about a row."""
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
_OUTCOME = re.compile(r"\b(?:RED|GREEN)\b[^`]*$")


def asks_for(before: str, after: str, lead: str, sequel: str) -> bool:
    """Whether a sentence asks to run the command of one of its code spans.

    Args:
        before: what stands before it in its line.
        after: what stands behind it there.
        lead: what stands above, and the line goes on with.
        sequel: what stands below.
    """
    own = last_sentence(before)
    whole = last_sentence(f"{lead} {before}")
    note = re.split(r"[.;]\s|`", after, maxsplit=1)[0]
    is_order = bool(_VERB.search(own))
    is_to_pass = bool(_TO_PASS.search(own) and _PASSES.match(after))
    is_logged = _ROW_BEFORE.match(before) and _LOGGED.match(after)
    is_asked = is_order or is_to_pass or is_logged or _ASKED_BEFORE.search(whole)
    if not is_asked or _quotes(whole):
        return False
    if not is_asked_for(whole, f"{after.rstrip('.')}. {sequel}"):
        return False
    if _NOTE_AGAINST.search(note):
        return False
    # As RED, or to be green, which asks for it whatever else is said of it.
    if _OUTCOME.search(own) or is_to_pass:
        return True
    if _FAILED.match(after):
        return False
    if not is_order and note[:1] != "," and _NEGATED.search(note):
        return False
    is_deferred = _DEFERRED.search(own) and not ORDERED.search(own)
    return not (is_deferred or (_DOES if is_order else _SAYS).match(after))


_FORBIDS = re.compile(
    r"(?i:\b(?:do\s+not|don[\u2019']t|never|must\s+not|should\s+not|avoid)\s+(?:ever\s+)?(?:re-?)?"
    r"(?:run(?:ning)?|execut(?:e|ing)|call(?:ing)?|launch(?:ing)?|us(?:e|ing)|start(?:ing)?"
    r"|invok(?:e|ing))\s*:?\s*(?:`[^`]*`\s*(?:,\s*)?(?:(?:n?or|and)\s+)?)*`?$)"
)
"""What stands before a command that is forbidden by an order."""
_IS_FORBIDDEN = re.compile(
    r"(?i:`?\s+(?:(?:must|may|should|shall|can)\s*(?:not|never)\s+be\s+(?:run|used|called|executed|started)"
    r"|is\s+(?:forbidden|off[ -]limits))\b)"
)
_ON_CONDITION = re.compile(
    r"(?i:\b(?:without|unless|until|before|while|parallel|concurrently|twice|with|if|when|after|than"
    r"|except|during|outside|but|same\s+time|together)\b)"
)


def forbids(text: str, command: str, lead: str = "", *, is_listed: bool = False) -> bool | None:
    """Whether a line forbids a command word for word; None where it does on a condition only.

    Args:
        text: the line.
        command: the command.
        lead: what stands above, and the line goes on with.
        is_listed: whether the line is one of a list of what is forbidden.
    """
    text = text.replace("*", "")
    at = re.search(rf"(?<![\w./=-]){re.escape(command)}(?![\w/=-])", text)
    if at is None:
        return False
    before, after = f"{lead} {text[: at.start()]}", text[at.end() :]
    is_span = before.endswith("`")
    is_whole = after[:1] == "`" if is_span else re.match(r"\W*$|[.,;:)]\s|\s+[a-z]", after)
    is_bare = is_listed and re.fullmatch(r"(?i:\W*(?:run(?:ning)?\s+)?`?)", text[: at.start()])
    if not is_whole or not (_FORBIDS.search(before) or is_bare or _IS_FORBIDDEN.match(after)):
        return False
    own = re.split(r"[.;]\s", after, maxsplit=1)[0]
    return None if _ON_CONDITION.search(own) else True


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


def is_doubtful(note: str) -> bool:
    """Whether a note behind a command says that it is not asked for, or only perhaps."""
    against = _DOUBTFUL_NOTE.search(note) or _NOTE_AGAINST.search(note)
    return bool(against) or not is_asked_for(note)
