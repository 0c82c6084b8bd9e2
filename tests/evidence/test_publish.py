"""What a publication changes, and what it says of rows and results."""

from __future__ import annotations

import re
import shutil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptycho_tasks.evidence.publish import begin_evidence
from ptycho_tasks.evidence.records import find_unpublished

TEXTS = st.text(st.characters(exclude_characters="\n`~", exclude_categories=["Cs"]), max_size=20)


AROUND = st.lists(
    TEXTS
    | st.sampled_from(
        [
            "| x | y |",
            "|a\\|b|[x]|",
            "- [ ] other.1",
            "  * [P] nested.2: x  ",
            "> q",
            "\r",
            "\u0085 \f",
            "é ",
        ]
    ),
    max_size=5,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=AROUND,
    row=st.sampled_from(
        ["| a.1 | \\| `[ ]` | [ ] | é  |\r", "|a.1|[x]|", "  - [P] **a.1:** text  \r"]
    ),
    after=AROUND,
    ledger=st.binary(max_size=60),
)
def test_a_publication_changes_one_line_of_a_plan_and_the_end_of_a_ledger(
    small_ran, make_small, before, row, after, ledger
):
    plan = "\n".join([*before, row, *after, "| a.2 | | [ ] |"]).encode()
    root = small_ran.root.with_name("example")
    shutil.rmtree(root, ignore_errors=True)
    small = make_small("example", of=small_ran.root)
    (root / ".ptycho/evidence/two.json").unlink()
    (root / "plan.md").write_bytes(plan)
    small.ledger.write_bytes(ledger)
    begin_evidence(small.evidence)
    small.publish()
    assert small.ledger.read_bytes().startswith(ledger)
    old, new = plan.split(b"\n"), (root / "plan.md").read_bytes().split(b"\n")
    line = len(before)
    assert old[:line] + old[line + 1 :] == new[:line] + new[line + 1 :]
    note = rb" \(evidence 2026-01-01T12:00:00Z green: reports/2026-01-01T120000Z/p/one_green.log\)"
    bare = re.sub(note, b"", new[line])
    expected = row.replace("| [ ] |", "| [x] |").replace("[P]", "[x]").encode()
    assert bare.replace(b" ", b"") == expected.replace(b" ", b"")


def test_each_row_of_an_item_has_a_manifest_of_its_own(small):
    small.edit_config("id: a.1", "ids: [a.1, a.3]")
    small.run("one")
    small.publish()
    assert small.problems() == []
    manifest = small.root / "reports/manifests/a.3.json"
    before = manifest.read_bytes()
    manifest.unlink()
    assert small.problems() != []
    small.publish()  # which needs no run
    assert small.problems() == []
    assert manifest.read_bytes() == before


def test_a_row_that_is_proved_is_marked_again_without_a_run(small_proved):
    small = small_proved
    assert small.publish() is None
    small.plan = small.plan.replace("[x] a.1", "[ ] a.1")
    (log,) = small.check()["a.1"].logs
    begin_evidence(small.evidence)
    publication = small.publish()
    assert "[x] a.1" in small.plan
    assert small.check()["a.1"].logs == (log,)
    assert sorted(path.name for path in publication.folder.iterdir()) == [
        "plan_updates.md", "summary.md",
    ]  # fmt: skip
    assert f"\n- a.1: was proved already; `{log}`\n- Report: " in small.ledger.read_text()
    updates = (publication.folder / "plan_updates.md").read_text()
    assert "| a.1 | `[ ]` open | `[x]` done |" in updates
    assert small.publish() is None


def test_the_order_of_items_is_of_no_account(small):
    config = small.root / "evidence.yaml"
    (small.root / "ready").touch()
    small.edit_config("id: a.2", "id: a.1")
    small.run()
    small.publish()
    *head, one, two = config.read_text().splitlines()
    config.write_text("\n".join([*head, two, one]))
    assert small.publish() is None


def test_a_row_whose_evidence_is_stale_or_red_stays_open(small_ran):
    small = small_ran
    small.publish()
    small.plan = re.sub("\\[[xP]\\]", "[ ]", small.plan)
    (small.root / "data.txt").write_text("other\n")
    begin_evidence(small.evidence)
    assert small.publish() is None
    (small.root / "data.txt").write_text("data\n")
    small.publish()
    assert "[x] a.1" in small.plan
    assert "| [ ] |" in small.plan


def test_a_result_of_another_time_is_replaced(small_ran):
    small = small_ran
    assert find_unpublished(small.evidence, small.item("two")).outcome == "red"
    (small.root / "ready").touch()
    small.run("two")
    assert find_unpublished(small.evidence, small.item("two")).outcome == "green"
    small.publish()
    assert "| a.2 | second | [x] |" in small.plan
