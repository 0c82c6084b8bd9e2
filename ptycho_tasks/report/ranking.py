"""Which results explain the data of their scan best, as the page says first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ptycho_tasks.report.comparison import R_FACTOR
from ptycho_tasks.report.wording import format_measure, natural_key

VALID = ("fresh", "stored")
"""States of results whose numbers are of the settings and data of today."""
_MOST_NAMED = 3
"""Scans, and results in a sentence."""
Records = Sequence[Mapping[str, Any]]
"""Of results, see `collect_contents`."""


def sum_up(records: Records) -> list[str]:
    """What a reader wants to know first, a sentence each."""
    counts = Counter(record["state"] for record in records)
    sentences = [", ".join(f"{count} {state}" for state, count in sorted(counts.items()))]
    groups = _group(records)
    if all(len(group) < 2 for group in groups.values()):
        return sentences  # nothing to choose from
    sentences += [_name_best(scan, group) for scan, group in groups.items() if len(group) > 1]
    shown, others = sentences[: 1 + _MOST_NAMED], sentences[1 + _MOST_NAMED :]
    more = f"of {len(others)} more scans, the table marks the best with a star"
    return [*shown, *([more] if others else [])]


def choose_first(records: Records, order: Sequence[int]) -> list[int]:
    """The results that the viewer shows first: the best of a scan, and the first one of the
    project that it can be compared with.

    Args:
        records: as they stand on the page.
        order: the place of each among the tasks of the project.

    Returns:
        Their indices, none where nothing can be shown.
    """
    shown = [index for index, record in enumerate(records) if record["object"] is not None]
    if not shown:
        return []
    best = [one for group in _group(records).values() for one in _find_best(group)]
    first = next((i for i in shown if any(records[i] is one for one in best)), shown[0])
    others = [i for i in shown if i != first]
    alike = [i for i in others if records[i]["scan"] == records[first]["scan"]]
    return [first, *sorted(alike or others, key=lambda index: order[index])[:1]]


def _group(records: Records) -> dict[str, list[Mapping[str, Any]]]:
    """The results of each scan."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: natural_key(record["scan"])):
        groups.setdefault(record["scan"], []).append(record)
    return groups


def _find_best(group: Records) -> list[Mapping[str, Any]]:
    """The results of a scan that miss the data least, alike by the digits that are shown; none
    where fewer than two can be compared."""
    # What is stale may be of other data; and less data are more easily explained.
    known = [one for one in group if one["can_be_best"] and R_FACTOR in one["measures"]]
    most = max((one["frame_count"] for one in known), default=0)
    alike = [one for one in known if one["frame_count"] == most]
    if len(alike) < 2:
        return []
    least = _format(min(alike, key=lambda one: one["measures"][R_FACTOR]))
    return [one for one in alike if _format(one) == least]


def _name_best(scan: str, group: Records) -> str:
    label = f" of {scan}" if scan else ""
    best = _find_best(group)
    if best:
        names = [one["name"].replace(f"/{scan}", "") for one in best]
        listed = ", ".join(names) if len(names) <= _MOST_NAMED else f"{len(names)} results"
        return f"least R-factor{label}: {_format(best[0])}, of {listed}"
    valid = [one["name"] for one in group if one["state"] in VALID]
    if not valid:
        why = "none of the results is up to date"
    elif len(valid) == 1:
        why = f"only {valid[0]} is up to date"
    elif sum(one["can_be_best"] and R_FACTOR in one["measures"] for one in group) < 2:
        why = "fewer than two are whole"
    else:
        why = "no two are of the same frames"
    return f"no best{label}: {why}"


def _format(record: Mapping[str, Any]) -> str:
    return format_measure(R_FACTOR, record["measures"][R_FACTOR], None)
