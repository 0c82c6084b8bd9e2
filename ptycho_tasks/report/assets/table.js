// The table of results: sorting, filter, difference to a baseline.

const table = document.getElementById("table");
const heads = [...table.tHead.rows[0].cells];
const lines = [...table.tBodies[0].rows];
const BETTER = { r_factor: -1, poisson_deviance: -1, amplitude_ssim: 1, phase_ssim: 1, amplitude_psnr_db: 1,
  phase_psnr_db: 1, amplitude_mae: -1, phase_mae_rad: -1, resolution: -1, "resolution of halves": -1 };

function cellValue(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value !== "" ? Number(cell.dataset.value) : (cell.dataset.text ?? "");
}

// Numbers before texts, nothing last, whichever way is sorted.
function sortRows(column, isDown) {
  const rank = (value) => (value === "" ? 2 : typeof value === "number" ? 0 : 1);
  const order = [...lines].sort((a, b) => {
    const [x, y] = [cellValue(a, column), cellValue(b, column)];
    if (rank(x) !== rank(y) || rank(x) === 2) return rank(x) - rank(y);
    const before = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
    return isDown ? -before : before;
  });
  table.tBodies[0].append(...order);
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", isDown ? "descending" : "ascending");
  drawCurves();
}

// Of each measure, the best of all fresh results of a scan, where not all are as good: what a filter
// hides counts too, so that a star means the same whatever is shown.
function markBest() {
  // Less is easily explained: of results of some of the frames none is the best.
  const kinds = groupRows(lines.filter((row) => report.results[row.dataset.index].can_be_best));
  const frames = (row) => report.results[row.dataset.index].frame_count;
  const groups = [...kinds.values()].map((rows) => rows.filter((row) => frames(row) === Math.max(...rows.map(frames))));
  heads.forEach((head, column) => {
    const way = BETTER[head.dataset.key] ?? BETTER[head.textContent.trim()];
    const isScore = /^(amplitude|phase)_/.test(head.dataset.key ?? ""); // which mean nothing against a guess
    if (way) for (const rows of groups.map((rows) => rows.filter((row) => !isScore || report.results[row.dataset.index].has_truth))) markBestOf(rows.map((row) => row.cells[column]), (cell) => way * cellValue(cell.parentElement, column));
  });
  document.getElementById("stars").hidden = !table.querySelector(".best");
}

function groupRows(rows) {
  const groups = new Map();
  for (const row of rows) {
    const { scan } = report.results[row.dataset.index];
    groups.set(scan, [...(groups.get(scan) ?? []), row]);
  }
  return groups;
}

function markBestOf(cells, rate) {
  const known = cells.filter((cell) => cell.dataset.value !== "");
  const best = known.find((cell) => rate(cell) === Math.max(...known.map(rate)));
  if (!best) return;
  const equal = known.filter((cell) => cell.dataset.text === best.dataset.text);
  if (equal.length < known.length) equal.forEach((cell) => cell.classList.add("best"));
}

// ------------------------------------------------------------------------------ what is shown

// In the order of the table.
function shownRows() { return [...table.tBodies[0].rows].filter((row) => !row.hidden); }
function isChosen(row) { return row.cells[0].querySelector(".choose").checked; }
function chosenRows() { return [...table.tBodies[0].rows].filter(isChosen); }

// The results whose curves are drawn: those that are chosen, or all that are shown.
function drawnResults() {
  const rows = shownRows(), chosen = rows.filter(isChosen);
  return (chosen.length ? chosen : rows).map((row) => report.results[row.dataset.index]);
}

// What a row says under a name: a head of the table, a measure, or a setting by its key or last word.
function valuesOf(row, name) {
  const { settings, measures } = report.results[row.dataset.index], found = [];
  const known = { ...report.common["settings of the project"], ...settings, ...measures };
  for (const [key, value] of Object.entries(known))
    if ([key, key.split(".").pop(), report.titles[key]].some((one) => one?.toLowerCase() === name)) found.push(value);
  if (name === "state") found.push(report.results[row.dataset.index].state);
  return found;
}

const COMPARE = { "=": (a, b) => a === b || Number(a.toPrecision(4)) === b, "<": (a, b) => a < b, ">": (a, b) => a > b,
  "<=": (a, b) => a <= b, ">=": (a, b) => a >= b };

function fits(value, sign, wanted) {
  const number = Number(wanted);
  if (typeof value === "number") return COMPARE[sign](value, number);
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return sign === "=" && text.toLowerCase().includes(wanted);
}

// A test for each part of a filter: a name with its value (`epochs 2`, `epochs=2`, `r-factor < 0.05`),
// or a word that stands anywhere in the row.
function readFilter(text) {
  const parts = text.toLowerCase().match(/<=|>=|[<>=]|[^\s<>=]+/g) ?? [], tests = [];
  while (parts.length) {
    const word = parts.shift(), name = word.replace(/:$/, "");
    if (parts.length && lines.some((row) => valuesOf(row, name).length)) {
      const sign = parts[0] in COMPARE && parts.length > 1 ? parts.shift() : "=", wanted = parts.shift();
      tests.push((row) => valuesOf(row, name).some((value) => fits(value, sign, wanted)));
    } else tests.push((row) => row.dataset.words.includes(word));
  }
  return tests;
}

function filterRows() {
  const tests = readFilter(document.getElementById("filter").value), chosen = chosenRows();
  const only = document.getElementById("only-chosen");
  only.checked &&= chosen.length > 0;
  document.getElementById("of-chosen").hidden = document.getElementById("open-chosen").hidden = !chosen.length;
  for (const row of lines) row.hidden = !tests.every((test) => test(row)) || (only.checked && !isChosen(row));
  for (const one of document.querySelectorAll("details.provenance"))
    one.hidden = lines.find((row) => row.dataset.index === one.dataset.index)?.hidden ?? false;
  const shown = shownRows().length;
  document.getElementById("shown").textContent = [shown < lines.length ? `${shown} of ${lines.length} shown` : "",
    chosen.length ? `${chosen.length} chosen` : ""].filter(Boolean).join(", ");
  drawCurves();
  floatHead();
}

// The head stays in view while the page is scrolled over the table, which scrolls only sideways.
function floatHead() {
  const box = table.getBoundingClientRect(), above = document.querySelector("nav").getBoundingClientRect().bottom;
  const way = Math.min(Math.max(above - box.top, 0), Math.max(box.height - table.tHead.offsetHeight - lines.at(-1).offsetHeight, 0));
  table.tHead.style.transform = way ? `translateY(${way}px)` : "";
}

function chooseColumns() {
  for (const box of document.querySelectorAll("#columns input")) table.classList.toggle(`no-${box.value}`, !box.checked);
  floatHead();
}

const UNITS = {
  bytes: (v) => { const [s, u] = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([x]) => Math.abs(v) >= x) ?? [1, "B"]; return `${Number((v / s).toPrecision(3))} ${u}`; },
  seconds: (v) => `${Number(v.toPrecision(2))} s`,
};

function formatDifference(key, value) {
  const write = UNITS[key.split("_").pop()] ?? ((v) => Number(v.toPrecision(2)).toString());
  return `${value < 0 ? "−" : "+"}${write(Math.abs(value))}`;
}

// What a row is compared with: the baseline's variant on the same scan, where there is one.
function findBase(row, chosen) {
  const own = report.results[row.dataset.index], base = report.results[chosen];
  const isAlike = (r) => r.variant === base.variant && r.scan === own.scan && r.stage === own.stage;
  const found = own.variant === base.variant ? -1 : report.results.findIndex(isAlike);
  return lines[found < 0 ? chosen : found];
}

function showDifferences() {
  const chosen = document.getElementById("baseline").value;
  for (const row of lines) {
    row.classList.toggle("base", row.dataset.index === chosen);
    heads.forEach((head, column) => {
      const cell = row.cells[column];
      cell.querySelector(".difference")?.remove();
      if (chosen === "" || row.dataset.index === chosen || !head.dataset.key) return;
      const base = cellValue(findBase(row, chosen), column), own = cellValue(row, column);
      if (typeof base === "number" && typeof own === "number")
        cell.append(element("span", { class: "difference" }, formatDifference(head.dataset.key, own - base)));
    });
  }
}

function addChooser(row) {
  const { name } = report.results[row.dataset.index];
  const box = element("input", { type: "checkbox", class: "choose", "aria-label": `Choose ${name}` });
  box.addEventListener("change", filterRows);
  row.cells[0].prepend(box);
}

function beginTable() {
  const everywhere = JSON.stringify(report.common["settings of the project"] ?? {});
  for (const row of lines) {
    for (const cell of row.cells) cell.dataset.text = cell.textContent.trim();
    row.dataset.words = `${row.textContent} ${JSON.stringify(report.results[row.dataset.index].settings)} ${everywhere}`.toLowerCase();
    addChooser(row);
  }
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () =>
    sortRows(column, head.getAttribute("aria-sort") === "ascending")));
  document.getElementById("filter").addEventListener("input", filterRows);
  document.getElementById("only-chosen").addEventListener("change", filterRows);
  document.getElementById("baseline").addEventListener("change", showDifferences);
  document.getElementById("columns").addEventListener("change", chooseColumns);
  // Of a small screen, what was found is the first to be seen.
  if (matchMedia("(max-width: 40rem)").matches) document.querySelector("#columns [value=setting]").checked = false;
  addEventListener("scroll", floatHead, { passive: true });
  addEventListener("resize", floatHead);
  chooseColumns();
  markBest();
  filterRows();
  showDifferences();
}
