"""Records and manifests of any other kind than ours."""

from __future__ import annotations

import pytest

WHOLE = {"item": "one", "ids": ["a.1"], "outcome": "green", "problem": "", "log": "", "sha256": "",
         "started": "2026-01-01T12:00:00Z", "settings": {}, "inputs": {}, "command": "", "env": {},
         "ended": "exit status 0", "mistake": "", "packages": {}, "commit": None, "dirty": None,
         "python": "3.11", "counts": None, "duration_s": 1.0}  # fmt: skip


NO_MANIFESTS = [
    "", "[]", "{", '{"items": 3}', '{"items": [1, {"item": "one"}]}', '{"id": "a.1", "items": []}',
    *(json.dumps({"id": "a.1", "items": [{**WHOLE, key: 1e99}]}) for key in WHOLE),
    json.dumps({"id": "a.1", "items": [{**WHOLE, "started": "at noon"}]}),
    json.dumps({"id": "a.2", "items": [WHOLE]}),
]  # fmt: skip


@pytest.mark.parametrize("text", NO_MANIFESTS)
@pytest.mark.parametrize("state", ["x", "P"])
def test_a_damaged_manifest_does_not_pass_and_is_written_anew(proved, text, state):
    (proved.root / "plan.md").write_text(proved.plan.replace("[x] a.1", f"[{state}] a.1"))
    (proved.root / "reports/manifests/a.1.json").write_text(text)
    (problem,) = proved.problems()
    assert "reports/manifests/a.1.json is damaged; " in problem
    proved.run("one")
    proved.publish()
    assert proved.problems() == []


def every_value_changed(content, values):
    """Copies of nested JSON of which one value at a time is another."""
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            for changed in every_value_changed(content[key], values):
                copy = content.copy()
                copy[key] = changed
                yield copy
    yield from values


HOSTILE = [None, 7, 1e400, True, "", "a\0b", "\ud800", "../../x", [], [None], {}, {"x": [1]}]


NESTED = ["[" * 100_000, '{"a":' * 100_000, "{", "[]", "\0", ""]


def test_a_result_of_any_other_kind_is_none_or_is_published(small):
    project.run()
    evidence = project.evidence
    item = evidence.find_item("one")
    file, log = evidence.result_file(item), evidence.log_file(item)
    content, output = json.loads(file.read_text()), log.read_bytes()
    for text in [*NESTED, *map(json.dumps, every_value_changed(content, HOSTILE))]:
        log.write_bytes(output)
        file.write_text(text)
        if find_unpublished(evidence, item):
            assert "one" in published_summary(evidence, item)


def published_summary(evidence, item):
    """All that a report says of a result."""
    record = find_unpublished(evidence, item)
    parts = [Evaluated(item, record, "")]
    attempt(evidence, {"one": record}, {}, {"one": record["log"], "": "r"}, record["started"])
    manifest(evidence, "a.1", parts, record["started"]).encode()
    blocker({"one": record}, {"one": []}).encode()
    log_problem(evidence, record)
    [*reasons_of(evidence, item, record, str, str.split)]
    text = summary(evidence, {"one": record}, record["started"])
    return text.encode().decode()
