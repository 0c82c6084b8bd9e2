"""Records and manifests of any other kind than ours."""

from __future__ import annotations

import json

import pytest

from ptycho_tasks.evidence.evaluation import ItemStatus
from ptycho_tasks.evidence.inputs import ProjectFiles
from ptycho_tasks.evidence.records import find_unpublished, read_records
from ptycho_tasks.evidence.staleness import find_log_problem, list_reasons
from ptycho_tasks.evidence.summaries import (
    format_attempt,
    format_blocker,
    format_manifest,
    format_summary,
)

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


@pytest.mark.parametrize("state", ["x", "P"])
def test_a_damaged_manifest_does_not_pass(small_proved, state):
    small = small_proved
    small.plan = small.plan.replace("[x] a.1", f"[{state}] a.1")
    for text in NO_MANIFESTS:
        (small.root / "reports/manifests/a.1.json").write_text(text)
        (problem,) = small.problems()
        assert "reports/manifests/a.1.json is damaged; " in problem, text


def test_a_damaged_manifest_is_written_anew(small_proved):
    small = small_proved
    manifest = small.root / "reports/manifests/a.1.json"
    before = manifest.read_text()
    manifest.write_text("{")
    small.run("one")
    small.publish()
    assert small.problems() == []
    assert json.loads(manifest.read_text()).keys() == json.loads(before).keys()


def test_a_record_without_what_later_versions_added_holds(small_proved):
    small = small_proved
    manifest = small.root / "reports/manifests/a.1.json"
    content = json.loads(manifest.read_text())
    for key in ("exit_status", "cuda_visible_devices"):
        del content["items"][0][key]
    content["items"][0] |= {"duration_s": 1, "something": "new"}
    manifest.write_text(json.dumps(content))
    assert small.check()["a.1"].evidence == "valid"
    (record,) = read_records(small.evidence, "a.1")
    written = format_manifest(
        small.evidence, "a.1", [ItemStatus(small.item("one"), record, "")], ""
    )
    del content["items"][0]["something"]
    assert json.loads(written)["items"] == content["items"]
    assert '"duration_s": 1,' in written


def test_a_result_of_any_other_kind_is_none_or_is_published(small_ran, damage):
    evidence, item = small_ran.evidence, small_ran.item("one")
    file, log = evidence.result_file(item), evidence.log_file(item)
    output = log.read_bytes()
    for text in damage(file.read_text()):
        log.write_bytes(output)
        file.write_text(text)
        record = find_unpublished(evidence, item)
        if record is not None:
            assert "one" in describe(evidence, item, record)


def describe(evidence, item, record):
    """All that a report says of a result."""
    time = record.started
    format_attempt(evidence, {record.log: record}, {}, "r", time)
    format_manifest(evidence, "a.1", [ItemStatus(item, record, "")], time).encode()
    format_blocker([record], [[]]).encode()
    find_log_problem(evidence, record.log, record.sha256)
    [*list_reasons(evidence, item, record, ProjectFiles(str, list))]
    return format_summary(evidence, {"one": record}, time).encode().decode()
