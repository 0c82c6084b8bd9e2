"""The report in a real browser, used as a person would: Debian's `chromium`, where it is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import h5py
import numpy as np
import pytest
import yaml

from browser import find_browser, open_browser
from ptycho_tasks.physics.metrics import _deramped
from ptycho_tasks.system.cache import forget_all
from ptycho_tasks.testing.project import DOIT, run_command

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="there is no chromium here; apt-get install chromium"
)
NAME = "<img src=x onerror=alert(1)>\"'&\u202e\u05d0.npz"
ROW = '<script>alert(2)</script> "quotes" \u202e\u05e9'
UNBUILT = "unbuilt_" + "and_so_on_" * 9
NARROW = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
VARIANTS = [
    {"name": "few", "inference.n_groups": 20},
    {"name": "longer", "inference.n_groups": 30, "training.epochs": 7},
    {"name": "many", "inference.n_groups": 30},
    {"name": UNBUILT, "training.epochs": 6},
]


@pytest.fixture(scope="module")
def swept(_built, tmp_path_factory):
    root = tmp_path_factory.mktemp("swept") / "project"
    shutil.copytree(_built, root, ignore=shutil.ignore_patterns("runs", ".ptycho"))
    source = next(path for path in (root / "fixtures").glob("*.npz") if "source" in path.name)
    source.rename(root / NAME)
    config = yaml.safe_load((root / "ptycho.yaml").read_text())
    config |= {"source": {"file": NAME}, "variants": VARIANTS}
    (root / "ptycho.yaml").write_text(yaml.safe_dump(config))
    (root / "plan.md").write_text(f"- [ ] **A1:** {ROW}\n")
    (root / "ledger.md").write_text("# Ledger\n")
    item = {"id": "A1", "command": f"echo {shlex.quote(ROW)}", "log": "a.log"}
    evidence = {"initiative": "I", "phase": "p", "plan": "plan.md", "ledger": "ledger.md"}
    (root / "evidence.yaml").write_text(yaml.safe_dump({**evidence, "items": [item]}))
    done = run_command([*DOIT, "infer:few", "infer:longer", "infer:many", "evidence"], cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def page(swept, tmp_path_factory):
    """The browser with the report open."""
    forget_all()
    done = run_command(["ptycho-tasks", "report"], cwd=swept)
    assert done.returncode == 0, done.stderr
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open((swept / "report.html").as_uri())
        browser.wait("document.querySelectorAll('.panel[data-view]').length === 2")
        yield browser
        assert browser.console == []
        assert {*browser.requests} == {(swept / "report.html").as_uri()}


def names(page):
    shown = "[...document.querySelectorAll('#table tbody tr:not([hidden]) th bdi')]"
    return page.ask(f"{shown}.map(cell => cell.textContent.trim())")


def column(page, title):
    heads = page.ask(
        "[...document.querySelectorAll('#table thead button')].map(e => e.textContent)"
    )
    return [head.strip() for head in heads].index(title) + 1


def readout(page, panel=1):
    return page.ask(f"document.querySelector('.panel:nth-child({panel}) .readout').textContent")


def numbers(text):
    return [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def choose(page, panel, result, view):
    """Show a picture of a result in a panel."""
    place = f".panel:nth-child({panel})"
    page.choose(f"{place} select:nth-child(1)", result)
    page.choose(f"{place} select:nth-child(2)", view)
    page.wait(f"document.querySelector({json.dumps(place)}).dataset.view === {json.dumps(view)}")


def scale(page):
    return page.ask("spaces.object.scale")


def test_hostile_names_are_texts(page):
    assert page.ask("document.querySelectorAll('img').length") == 0
    assert page.ask("document.querySelectorAll('script').length") == 2
    assert ROW in page.ask("document.body.textContent")


def test_the_table_is_sorted_and_filtered(page):
    assert names(page) == ["few", "longer", "many", UNBUILT]
    head = f"#table thead th:nth-child({column(page, 'R-factor')})"
    page.click(f"{head} button")
    upwards = names(page)
    assert page.ask(f"document.querySelector('{head}').ariaSort") == "ascending"
    page.click(f"{head} button")
    assert names(page) == [*reversed(upwards[:3]), UNBUILT]
    assert upwards[3] == UNBUILT
    page.choose("#filter", "fresh man")
    assert names(page) == ["many"]
    page.choose("#filter", "")


def test_differences_are_those_of_the_files(page, swept):
    page.choose("#baseline", "0")
    few, many = (
        json.loads((swept / f"runs/{name}/inference/metrics.json").read_text())["r_factor"]
        for name in ("few", "many")
    )
    cell = f"tr[data-index='2'] td:nth-child({column(page, 'R-factor')}) .difference"
    text = page.ask(f"document.querySelector({json.dumps(cell)}).textContent")
    assert float(text.replace("\u2212", "-")) == pytest.approx(many - few, rel=0.06)
    head = page.ask("[...document.querySelectorAll('#table thead .difference')][0].textContent")
    assert head == "difference to few"
    page.choose("#baseline", "")
    assert page.ask("document.querySelectorAll('.difference').length") == 0


def test_the_baseline_is_that_of_the_comparison(page):
    """One result is that of all others, a variant is that of each result's own scan."""
    results = [
        {"variant": variant, "scan": scan, "stage": stage}
        for variant in ("base", "half")
        for scan in ("sim", "star")
        for stage in ("infer", "refine")
    ]

    def bases(chosen):
        return page.ask(
            f"(() => {{ const kept = report.results; report.results = {json.dumps(results)};"
            "const found = report.results.map((_, index) => findBase({dataset: {index}},"
            f" {chosen}) ?? null); report.results = kept; return found; }})()"
        )

    assert bases([0]) == [0, None] * 4
    assert bases([0, 2]) == [0, None, 2, None] * 2
    assert bases([0, 1, 2, 3]) == [0, 1, 2, 3] * 2


def test_the_value_under_the_cursor_is_that_of_the_file(page, swept):
    choose(page, 1, "0", "amplitude")
    choose(page, 2, "2", "phase")
    page.click("#reset")
    with h5py.File(swept / "runs/few/inference/reconstruction.h5") as file:
        few = np.abs(file["object"][0])
    with h5py.File(swept / "runs/many/inference/reconstruction.h5") as file:
        many = file["object"][0]
    note = page.ask("document.querySelector('.panel:nth-child(1) .note').textContent")
    (bound,) = numbers(note.partition("values to ±")[2].partition(" ")[0])
    assert 0 < bound < 1e-4 * few.max()
    left, top, width, height = page.box(".panel:nth-child(1) canvas.image")
    for x, y in ((0.5, 0.5), (0.4, 0.62), (0.55, 0.37)):
        page.mouse("mouseMoved", left + x * width, top + y * height)
        row, col, value = numbers(readout(page))
        assert abs(value - few[int(row), int(col)]) <= bound
        # Cursors are linked: the other panel reads at the same place.
        row, col, value = numbers(readout(page, 2))
        taken_off = page.ask("report.results[2].object.phase_offset")
        turned = np.exp(1j * (value + taken_off)) - many[int(row), int(col)] / abs(
            many[int(row), int(col)]
        )
        assert abs(turned) < 1e-3


def test_everything_that_is_used_has_a_name_and_is_reached_by_keys(page):
    used = {"button", "link", "combobox", "searchbox", "checkbox", "spinbutton", "image", "region"}
    page.send("Accessibility.enable")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in used]
    assert len(shown) > 30
    assert all(node["name"]["value"].strip() for node in shown)
    page.ask("document.querySelector('#table thead button').focus()")
    page.press("Tab", code="Tab", windowsVirtualKeyCode=9)
    assert page.ask("document.activeElement.textContent") == "state"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("epochs 7", {"longer"}),
        ("n_groups=30 epochs 5", {"many"}),
        ("training.epochs: 7", {"longer"}),
        ("epochs >= 6", {"longer", UNBUILT}),
        ("r-factor < 0.9", {"few", "longer", "many"}),
        ("state not", {UNBUILT}),
        ("n_groups 2", set()),
        ("backend epie <nothing", set()),
        ("strategy stratified few", {"few"}),
        ("stratified", set()),  # of a setting that the table does not show
        ("variant few", {"few"}),
        ("result long", {"longer"}),
        ("memory < 64000", {"few", "longer", "many"}),  # as MB or GB, which is shown
        ("memory < 64 TB", {"few", "longer", "many"}),
        ("memory < 5 s", set()),
        ("inference >= 0 inference < 2 h", {"few", "longer", "many"}),
        ("r-factor <", {"few", "longer", "many", UNBUILT}),  # somebody is typing
    ],
)
def test_the_filter_knows_names_with_their_values(page, wanted, found):
    page.choose("#filter", wanted)
    assert {*names(page)} == found
    page.choose("#filter", "")


def test_a_condition_on_an_unknown_name_is_a_mistake(page):
    page.choose("#filter", "foo > 3 few")
    assert names(page) == ["few"]
    assert "“foo”" in page.ask("document.getElementById('unknown').textContent")
    page.choose("#filter", "r-factor < abc few")
    assert names(page) == ["few"]
    said = page.ask("document.getElementById('unknown').textContent")
    assert said.startswith("“abc” after “r-factor <” is no number")
    page.choose("#filter", "(")
    assert names(page) == []
    said = page.ask("document.getElementById('unknown').textContent")
    assert said.startswith("No row shows “(”")
    page.choose("#filter", "epoc")  # somebody is typing
    assert page.ask("document.getElementById('unknown').textContent") == ""
    page.choose("#filter", "")
    assert page.ask("document.getElementById('unknown').textContent") == ""


def test_stars_are_of_all_results_whatever_is_filtered(page):
    best = "[...document.querySelectorAll('td.best')].map(e => e.parentElement.dataset.index)"
    stars = page.ask(best)
    assert {*stars} <= {"1", "2"}  # the other one has fewer frames
    assert stars
    for wanted in ("many", "few"):
        page.choose("#filter", wanted)
        assert page.ask(best) == stars
    page.choose("#filter", "")
    assert "those that the filter hides count too" in page.ask(
        "document.querySelector('#stars:not([hidden])').textContent"
    )


def test_rows_are_chosen_to_be_seen_side_by_side(page):
    for index in (1, 2):
        page.click(f"tr[data-index='{index}'] .choose")
    page.click("#only-chosen")
    assert {*names(page)} == {"longer", "many"}
    assert {*page.ask(CURVES)} == {"longer", "many"}
    page.click("#open-chosen")
    page.wait("panels.length === 2 && new Set([panels[0].result, panels[1].result, 0]).size === 3")
    page.click("#only-chosen")
    for index in (1, 2):
        page.click(f"tr[data-index='{index}'] .choose")
    assert len(names(page)) == 4
    assert page.ask("document.getElementById('open-chosen').hidden")


CURVES = "[...document.querySelector('#charts .legend').children].map(e => e.textContent)"


def test_what_is_filtered_out_has_no_curve(page):
    page.choose("#filter", "")
    assert {*page.ask(CURVES)} == {"few", "longer", "many"}
    page.choose("#filter", "many")
    assert page.ask(CURVES) == ["many"]
    page.choose("#filter", "nobody")
    assert "leaves no result" in page.ask("document.getElementById('drawn').textContent")
    page.choose("#filter", "")


def test_curves_share_an_axis_only_where_none_is_flat(page):
    flat = "[{name: 'loss', y: [0.9, 0.6]}, {name: 'val_loss', y: [0.002, 0.001]}]"
    assert page.ask(f"groupByRange({flat}).map(group => group.map(one => one.name))") == [
        ["loss"],
        ["val_loss"],
    ]
    alike = "[{name: 'loss', y: [0.9, 0.2]}, {name: 'val_loss', y: [1.2, null, 0.5]}]"
    assert page.ask(f"groupByRange({alike}).length") == 1
    assert page.ask("[[1, 20], [1, 5], [0, 20], [-1, 20]].map(y => suitsLog([{y}]))") == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0029384, 0.0029386), (-1e-7, 1e-7), (123456.1, 123456.4), (0, 34)]
)
def test_ticks_of_an_axis_differ_and_say_where_they_are(page, low, high):
    ticks = page.ask(f"listTicks({low}, {high}, {{}})")
    assert len({text for _, text in ticks}) == len(ticks) > 1
    for place, text in ticks:
        assert float(text) == pytest.approx(place, rel=1e-12, abs=1e-15)


def test_values_of_a_rounding_error_apart_are_a_flat_curve(page):
    chart = "makeChart([{name: 'a', x: [0, 1], y: [1, 1 + 2 ** -52]}], {x: 'x', y: 'y'}, 560)"
    assert page.ask(f"{chart}[0].querySelectorAll('text').length") < 20


def test_colour_limits_are_automatic_where_none_is_given_and_never_reversed(page):
    choose(page, 1, "0", "amplitude")
    panel = ".panel:nth-child(1)"
    low, high = (f"{panel} input[aria-label^={name}]" for name in ("Lowest", "Highest"))
    first = page.ask("panels[0].limits")
    problem = f"document.querySelector('{panel} .problem').textContent"
    page.choose(low, str(first[1] + 1))
    assert page.ask("panels[0].limits") == first
    assert "must be below the highest" in page.ask(problem)
    page.choose(low, str(first[0] - 1))
    assert page.ask("panels[0].limits")[0] == pytest.approx(first[0] - 1)
    assert page.ask(problem) == ""
    page.choose(low, "")
    page.choose(high, "")
    assert page.ask("panels[0].limits") == pytest.approx(first, rel=1e-4)
    assert page.ask(f"document.querySelector('{low}').value") != ""


def test_all_is_open_on_paper_and_as_before_after(page):
    choose(page, 1, "0", "amplitude")
    closed = "document.querySelectorAll('details:not([open])').length"
    before = page.ask(closed)
    assert before > 0
    page.ask("dispatchEvent(new Event('beforeprint'))")
    assert page.ask(closed) == 0
    page.ask("dispatchEvent(new Event('afterprint'))")
    assert page.ask(closed) == before
    captions = page.ask("panels.map(panel => panel.caption.textContent)")
    assert captions[0].startswith("few, object ")


def test_what_was_not_seen_looks_like_no_value(page):
    choose(page, 1, "0", "amplitude")
    page.click("#reset")
    colours = page.ask(
        "(() => { const c = panels[0].canvas; const copy = Object.assign("
        "document.createElement('canvas'), {width: 20, height: 20}).getContext('2d');"
        "copy.drawImage(c, 0, 0); const d = copy.getImageData(0, 0, 20, 20).data;"
        "const seen = new Set(); for (let i = 0; i < d.length; i += 4)"
        " seen.add(`${d[i]} ${d[i + 1]} ${d[i + 2]}`); return [...seen]; })()"
    )
    assert len(colours) > 1  # hatched
    assert all(len({*colour.split()}) > 1 for colour in colours)  # and not grey
    assert "not seen" in page.ask("document.querySelector('.panel .note').textContent")


def test_the_head_of_the_table_stays_in_view(page, swept):
    page.open((swept / "report.html").as_uri(), height=300)
    page.ask("document.querySelector('#table tbody tr:nth-child(2)').scrollIntoView()")
    page.wait("document.querySelector('thead').style.transform !== ''")
    gap = page.ask(
        "document.querySelector('thead').getBoundingClientRect().top"
        " - document.querySelector('nav').getBoundingClientRect().bottom"
    )
    assert abs(gap) < 2
    # Nothing but logs scrolls up and down in a box of its own.
    assert page.ask(
        "[...document.querySelectorAll('.scroll')].every(e => e.scrollHeight <= e.clientHeight)"
    )


def test_a_phone_shows_numbers_and_whole_labels(page, swept):
    page.open((swept / "report.html").as_uri(), width=360, height=740)
    page.wait("document.querySelectorAll('.panel[data-view]').length === 2")
    cell = f"#table tbody td:nth-child({column(page, 'R-factor')})"
    left, _, width, _ = page.box(cell)
    assert width > 0
    assert left + width <= 360
    assert page.ask(
        "[...document.querySelectorAll('.chart svg')].every(svg => {"
        "const box = svg.getBoundingClientRect(); return [...svg.querySelectorAll('text')].every("
        "text => { const b = text.getBoundingClientRect(); return b.left >= box.left - 1"
        " && b.right <= box.right + 1 && b.height > 9; }); })"
    )
    page.open((swept / "report.html").as_uri())
    page.wait("document.querySelectorAll('.panel[data-view]').length === 2")
    settings = "document.querySelector('#columns [value=setting]').checked"
    assert page.ask(settings)
    page.send("Emulation.setDeviceMetricsOverride", **NARROW)
    page.wait(f"!{settings}")
    assert page.ask("document.querySelector('#table td.setting').offsetWidth") == 0
    width = "(panels[0].layer.box[1] - panels[0].layer.box[0]) * spaces.object.scale"
    page.wait(f"{width} <= panels[0].canvas.clientWidth + 1")
    page.ask("document.getElementById('charts').prepend(makeLegend([{name: 'x'.repeat(300)}]))")
    assert page.ask("document.documentElement.scrollWidth <= innerWidth")


def test_the_page_of_the_plan_holds_hostile_names(swept, tmp_path):
    done = run_command(["ptycho-tasks", "plan", "show", "--html", "plan.html"], cwd=swept)
    assert done.returncode == 0, done.stderr
    with open_browser(tmp_path / "profile") as browser:
        browser.open((swept / "plan.html").as_uri())
        assert ROW in browser.ask("document.body.textContent")
        assert browser.ask("document.querySelectorAll('img').length") == 0
        assert browser.console == []


def test_panels_zoom_together_and_swap(page):
    choose(page, 1, "0", "amplitude")
    choose(page, 2, "1", "amplitude")
    page.click("#reset")
    before = scale(page)
    left, top, width, height = page.box(".panel:nth-child(1) canvas.image")
    at = left + width * 0.3, top + height * 0.6
    page.mouse("mouseMoved", *at)
    seen = readout(page)
    page.mouse("mouseWheel", *at, deltaX=0, deltaY=-240)
    assert scale(page) > 1.5 * before
    assert readout(page) == seen  # what is under the mouse stays there
    page.click(".panel:nth-child(1) canvas.image")
    page.press("s")
    page.wait("panels[0].result === 1 && panels[1].result === 0")
    page.press("0")
    assert scale(page) == pytest.approx(before, rel=0.2)


def test_a_difference_to_the_baseline_is_without_what_the_data_do_not_tell(page, swept):
    page.choose("#baseline", "2")
    choose(page, 1, "1", "difference-phase")
    page.click("#reset")
    left, top, width, height = page.box(".panel:nth-child(1) canvas.image")
    page.mouse("mouseMoved", left + 0.55 * width, top + 0.5 * height)
    row, col, value = numbers(readout(page))
    found = []
    for name in ("longer", "many"):
        with h5py.File(swept / f"runs/{name}/inference/reconstruction.h5") as file:
            found.append(np.where(file["ptycho_tasks/seen"], file["object"][0], 0).astype(complex))
    whole = tuple(slice(0, side) for side in found[0].shape)
    ratio = _deramped(found[0], whole, found[1]) * found[1].conj()
    ratio /= np.exp(1j * np.angle(ratio.sum()))
    assert value == pytest.approx(np.angle(ratio[int(row), int(col)]), abs=1e-4)
    assert " rad" in readout(page)
    assert page.ask("panels[0].maps.value") == "difference"
    page.choose("#baseline", "0")  # which is of fewer frames, and not of the same pixels
    page.wait("panels[0].missing.length === 1 && panels[0].root.dataset.view === 'amplitude'")
    assert "no difference to few: " in page.ask("panels[0].note.textContent")
    page.choose("#baseline", "")
    page.wait("panels[0].missing.length === 0")
    # A scan that is gone has a line in the place of its pictures.
    page.ask("globalThis.kept = {...report.scans}")
    page.ask(
        "report.scans[report.results[1].scan_key] = {problem: 'it <b>left</b>'};panels[0].choose(1)"
    )
    page.wait("panels[0].missing.length === 1")
    line = "no truth, probe guess or mean frame: it <b>left</b>"
    assert line in page.ask("panels[0].note.textContent")
    page.ask("Object.assign(report.scans, kept); panels[0].choose(1)")
    page.wait("panels[0].missing.length === 0")


def test_two_fingers_zoom_and_one_scrolls_the_whole_page(page):
    choose(page, 1, "0", "amplitude")
    page.click("#reset")
    action = "panels[0].canvas.style.touchAction"
    assert page.ask(action) == "pan-y"
    before = scale(page)
    left, top, width, height = page.box(".panel:nth-child(1) canvas.image")
    x, y = left + width / 2, top + height / 2
    for kind, apart in (("touchStart", 20), ("touchMove", 40), ("touchMove", 60)):
        points = [{"x": x - apart, "y": y, "id": 1}, {"x": x + apart, "y": y, "id": 2}]
        page.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    page.wait(f"spaces.object.scale > {1.5 * before}")
    assert page.ask(action) == "none"
    page.click("#reset")


def test_keys_move_the_cursor_and_draw_a_profile(page):
    page.click(".panel:nth-child(1) canvas.image")
    row, col, _ = numbers(readout(page))
    page.press("ArrowRight")
    assert numbers(readout(page))[:2] == [row, col + 1]
    page.press("l")
    for _ in range(8):
        page.press("ArrowDown")
    page.press("l")
    assert page.ask("!document.getElementById('profile').hidden")
    assert page.ask("document.querySelectorAll('#profile path.curve').length") == 2
    assert page.ask("document.querySelector('#profile .legend svg').clientWidth") == 28


def test_every_picture_of_every_result_is_drawn(page):
    views = page.ask("listViews(report.results[0]).map(view => view.id)")
    assert {"amplitude", "complex", "truth-phase", "residual", "probe-1-complex", "frame"} <= {
        *views
    }
    for view in views:
        choose(page, 1, "0", view)
        colours = page.ask(
            "(() => { const c = panels[0].canvas; panels[0].draw();"
            "const copy = Object.assign(document.createElement('canvas'), {width: c.width,"
            "height: c.height}).getContext('2d', {willReadFrequently: true});"
            "copy.drawImage(c, 0, 0); const seen = new Set();"
            "const d = copy.getImageData(0, 0, c.width, c.height).data;"
            "for (let i = 0; i < d.length; i += 4) seen.add(d[i] * 65536 + d[i + 1] * 256 +"
            " d[i + 2]); return seen.size; })()"
        )
        assert colours > 10, view


@pytest.mark.parametrize(("width", "dark"), [(1300, False), (1300, True), (400, False)])
def test_it_fits_the_screen(page, swept, tmp_path, width, dark):
    page.open((swept / "report.html").as_uri(), width=width, dark=dark)
    page.wait("document.querySelectorAll('.panel[data-view]').length === 2")
    assert page.ask("document.documentElement.scrollWidth <= innerWidth")
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000
