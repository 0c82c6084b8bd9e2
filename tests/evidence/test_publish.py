"""What a publication says of rows and results."""

from __future__ import annotations

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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=AROUND,
    row=st.sampled_from(
        ["| a.1 | \\| `[ ]` | [ ] | é  |\r", "|a.1|[x]|", "  - [P] **a.1:** text  \r"]
    ),
    after=AROUND,
    ledger=st.binary(max_size=60),
)
def test_a_publication_changes_one_line_of_a_plan_and_the_end_of_a_ledger(
    ran, tmp_path, before, row, after, ledger
):
    plan = "\n".join([*before, row, *after, "| a.2 | | [ ] |"]).encode()
    root = tmp_path / "example"
    shutil.rmtree(root, ignore_errors=True)
    project = Project(root, of=ran.root)
    (root / ".ptycho/evidence/two.json").unlink()
    (root / "plan.md").write_bytes(plan)
    project.ledger.write_bytes(ledger)
    begin_evidence(project.evidence)
    project.publish()
    assert project.ledger.read_bytes().startswith(ledger)
    old, new = plan.split(b"\n"), (root / "plan.md").read_bytes().split(b"\n")
    line = len(before)
    assert old[:line] + old[line + 1 :] == new[:line] + new[line + 1 :]
    note = rb" \(evidence 2026-01-01T12:00:00Z green: reports/2026-01-01T120000Z/p/one_green.log\)"
    kept = re.sub(note, b"", new[line])
    expected = row.replace("| [ ] |", "| [x] |").replace("[P]", "[x]").encode()
    assert kept.replace(b" ", b"") == expected.replace(b" ", b"")


def test_each_row_of_an_item_has_a_manifest_of_its_own(small):
    project.share("[a.1, a.3]")
    project.run("one")
    project.publish()
    assert project.problems() == []
    manifest = project.root / "reports/manifests/a.3.json"
    before = manifest.read_bytes()
    manifest.unlink()
    assert project.problems() != []
    project.publish()  # which needs no run
    assert project.problems() == []
    assert manifest.read_bytes() == before


def test_a_row_that_is_proved_is_marked_again_without_a_run(proved):
    report = proved.publish(noon)
    assert report is None
    (proved.root / "plan.md").write_text(proved.plan.replace("[x] a.1", "[ ] a.1"))
    (log,) = proved.lines()["a.1"].logs
    begin_evidence(proved.evidence)
    report = proved.publish()
    assert "[x] a.1" in proved.plan
    assert proved.lines()["a.1"].logs == (log,)
    assert sorted(path.name for path in report.folder.iterdir()) == [
        "plan_updates.md", "summary.md",
    ]  # fmt: skip
    assert f"\n- a.1: was proved already; `{log}`\n- Report: " in proved.ledger.read_text()
    assert "| a.1 | `[ ]` open | `[x]` done |" in (report.folder / "plan_updates.md").read_text()
    assert proved.publish() is None


def test_the_order_of_items_is_of_no_account(small):
    config = project.root / "evidence.yaml"
    (project.root / "ready").touch()
    config.write_text(config.read_text().replace("id: a.2", "id: a.1"))
    project.run()
    project.publish()
    *head, one, two = config.read_text().splitlines()
    config.write_text("\n".join([*head, two, one]))
    assert project.publish() is None


def test_a_row_whose_evidence_is_stale_or_red_stays_open(small):
    project.run()
    project.publish()
    (project.root / "plan.md").write_text(re.sub("\\[[xP]\\]", "[ ]", project.plan))
    (project.root / "data.txt").write_text("other\n")
    begin_evidence(project.evidence)
    assert project.publish() is None
    (project.root / "data.txt").write_text("data\n")
    project.publish()
    assert "[x] a.1" in project.plan
    assert "| [ ] |" in project.plan


def test_a_result_of_another_time_is_replaced(small):
    project.run("two")
    assert find_unpublished(project.evidence, project.evidence.find_item("two"))["outcome"] == "red"
    (project.root / "ready").touch()
    project.run("two")
    assert (
        find_unpublished(project.evidence, project.evidence.find_item("two"))["outcome"] == "green"
    )
    project.publish()
    assert Plan(project.plan.encode(), "").row("a.2").state == "x"
