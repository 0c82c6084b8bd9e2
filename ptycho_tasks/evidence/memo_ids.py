"""The rows of a plan that a memo names: `C4.D1`, `A1`, `E2.C1+C2+C3`, `R.1-R.4`, `F1.{A,B}`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

_DOTTED = r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:\.[A-Za-z0-9]+)+"
_PLAIN = r"[A-Z]{1,3}[0-9]{1,3}[a-z]?|[A-Z]{1,2}-[0-9]{1,2}"
_HYPHEN = "\u2011"
"""Stands for the hyphen within an id: others stand for a range."""
_WITH_HYPHEN = re.compile(
    r"(?<![\w-])(?P<stem>[A-Z]{1,3}[0-9]{1,3})-(?P<number>[0-9]{1,3})(?![\w-])"
)
_OF_TWO_KINDS = re.compile(
    r"(?<![\w-])(?P<stem>(?P<kind>[A-Z]{1,3})[0-9]{1,3})-(?P<part>(?!(?P=kind)[0-9])[A-Z]{1,2}[0-9]{1,3})"
    r"(?![\w-])"
)
"""As `P3-T2`, task 2 of phase 3: no range goes from one letter to another."""
_HYPHENATED_RANGE = re.compile(
    r"([A-Z]{1,3}[0-9]{1,3})-[0-9]{1,3}\s*(?:\.\.+|to|through)\s*\1-[0-9]"
)
_TOKEN = re.compile(
    rf"(?P<id>(?<!\w)(?<![a-z]{{2}}-)"
    rf"(?:[A-Z]{{1,3}}[0-9]{{1,3}}{_HYPHEN}[A-Z]{{0,2}}[0-9]{{1,3}}|{_DOTTED}|{_PLAIN})(?![\w]|-[A-Za-z]{{2}}))"
    r"|(?P<join>\s*(?:\+|,|/|&)\s*(?:and\s+)?|\s+and\s+)"
    r"|(?P<range>\s*(?:-|\.\.+)\s*|\s+(?:to|through)\s+)"
    r"|(?P<number>[0-9]{1,3}\b|(?<=-)[a-z]\b)"
    r"|(?P<other>\w[\w-]*|.)"
)
_ENDING = re.compile(r"[\w-]+\.(?:py|md|txt|log|npz|npy|h5|hdf5|json|ya?ml|toml|csv|sh|ipynb)\b")
_ONE = r"[A-Z]{0,3}[0-9]{0,3}\.[A-Z]{0,2}[0-9]{0,3}[a-z]?"
_JOINED = re.compile(rf"\W*{_ONE}(?:/(?:{_ONE}|\w{{1,3}}))+\W*")
"""Ids that a slash joins, as `C4.D1/C4.D2`, which is no path."""
_BRACES = re.compile(r"(?P<stem>[\w.-]*)\{(?P<parts>[\w, ]+)\}")
_COUNTED = re.compile(r"(?P<stem>.*?)(?P<at>[0-9]{1,3}|(?<=[0-9.])[a-zA-Z]|^[a-z])")
_LONGEST_RANGE = 100


def find_ids(text: str, initiative: str = "", known: Collection[str] = ()) -> list[str]:
    """The ids that a text names, in its order.

    Args:
        text: what stands before the description of the work.
        initiative: whose name is no id.
        known: the rows of the plan, where it is there: an id of another form is found by it.
    """
    text = text.replace("\u2013", "-").replace("\u2014", " ; ").replace("`", " ").replace("*", " ")
    text = (
        re.sub(rf"(?<![\w-]){re.escape(initiative)}(?![\w-])", " ; ", text) if initiative else text
    )
    text = _mark_hyphens(text, known)
    text = _BRACES.sub(_expand_braces, re.sub(r"\S+", _drop_file, text))
    ids: list[str] = []
    for chain in _list_chains(text):
        ids += [id.replace(_HYPHEN, "-") for id in _spread(chain, known)]
    if known:
        ids += [word for word in re.findall(r"[\w.-]*\w", text) if word in known]
    return [*dict.fromkeys(ids)]


def is_unsure(text: str) -> bool:
    """Whether a text has what is the name of a row, or the same as a range of rows."""
    return bool(_WITH_HYPHEN.search(text))


def _mark_hyphens(text: str, known: Collection[str]) -> str:
    """Tell `A1-2`, the name of a row, from the same as a range of rows: by the plan, and by ranges
    of such names, as `A1-2..A1-4`. Where neither says so, it is not sure, and left out."""
    stems = {*_HYPHENATED_RANGE.findall(text)}

    def mark(match: re.Match[str]) -> str:
        # No range goes down.
        is_range = int(match["number"]) > int(re.sub("[A-Z]+", "", match["stem"]))
        if match["stem"] in stems or match[0] in known or not is_range:
            return f"{match['stem']}{_HYPHEN}{match['number']}"
        return match[0] if known else " ; "

    text = _OF_TWO_KINDS.sub(rf"\g<stem>{_HYPHEN}\g<part>", text)
    return re.sub(rf"(?<={_HYPHEN}[0-9])(\.\.+)(?=[A-Z])", " to ", _WITH_HYPHEN.sub(mark, text))


def _drop_file(match: re.Match[str]) -> str:
    word = match[0]
    has_path = "/" in word and "." in word[word.index("/") :]
    is_file = (has_path and not _JOINED.fullmatch(word)) or _ENDING.search(word)
    return " ; " if is_file else word


def _expand_braces(match: re.Match[str]) -> str:
    return "+".join(f"{match['stem']}{part.strip()}" for part in match["parts"].split(","))


def _list_chains(text: str) -> Iterator[list[str]]:
    """Ids that stand together, with what joins them: `+` or `-`."""
    chain: list[str] = []
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        is_open = bool(chain) and chain[-1] in "+-"
        is_end_of_range = kind == "number" and bool(chain) and chain[-1] == "-"
        if is_end_of_range or (kind == "id" and (not chain or is_open)):
            chain.append(token[0])
        elif kind in ("join", "range") and chain and not is_open:
            chain.append("+" if kind == "join" else "-")
        else:
            if chain:
                yield chain
            chain = [token[0]] if kind == "id" else []
    if chain:
        yield chain


def _spread(chain: list[str], known: Collection[str]) -> Iterator[str]:
    first = chain[0]
    if not _is_like_an_id(first, known):
        return
    stem = first.rpartition(".")[0]
    last = ""
    for joint, word in zip(["+", *chain[1::2]], chain[::2], strict=False):
        whole = f"{stem}.{word}" if stem and "." not in word and word not in known else word
        if joint == "-" and last:
            is_part = word.isdigit() or (len(word) == 1 and word.islower())
            yield from list_range(last, word if is_part else whole)
        elif _is_like_an_id(whole, known):
            yield whole
        last = whole


def list_range(first: str, last: str) -> list[str]:
    """The ids after the first one, up to the last; none where they are no range."""
    begin, end = _COUNTED.fullmatch(first), _COUNTED.fullmatch(last)
    if begin is None or end is None or end["stem"] not in ("", begin["stem"]):
        return []
    is_number = begin["at"].isdigit()
    if is_number != end["at"].isdigit():
        return []
    low, high = (int(m["at"]) if is_number else ord(m["at"]) for m in (begin, end))
    if not low < high < low + _LONGEST_RANGE:
        return []
    spell = str if is_number else chr
    return [f"{begin['stem']}{spell(at)}" for at in range(low + 1, high + 1)]


def _is_like_an_id(word: str, known: Collection[str]) -> bool:
    # `e.g` and `torch.cuda` are words; a plan may have such rows all the same.
    return word in known or bool(re.search("[A-Z]", word)) or bool(re.fullmatch(r"\d+\.\d+", word))
