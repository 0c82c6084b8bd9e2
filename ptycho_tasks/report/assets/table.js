// The table of results: sorting, filter, difference to a baseline.

const table = document.getElementById("table");
const heads = [...table.tHead.rows[0].cells];
const lines = [...table.tBodies[0].rows];
const common = JSON.stringify(report.common["settings of the project"] ?? {});
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

// Of each measure, the best of the fresh results of a scan that are shown, where not all are as good.
function markBest() {
  // Less is easily explained: of results of some of the frames none is the best.
  const kinds = groupRows(lines.filter((row) => !row.hidden && ["fresh", "stored"].includes(report.results[row.dataset.index].state)));
  const frames = (row) => report.results[row.dataset.index].frame_count;
  const groups = [...kinds.values()].map((rows) => rows.filter((row) => frames(row) === Math.max(...rows.map(frames))));
  heads.forEach((head, column) => {
    lines.forEach((row) => row.cells[column].classList.remove("best"));
    const way = BETTER[head.dataset.key] ?? BETTER[head.textContent.trim()];
    const isScore = /^(amplitude|phase)_/.test(head.dataset.key ?? ""); // which mean nothing against a guess
    if (way) for (const rows of groups.map((rows) => rows.filter((row) => !isScore || report.results[row.dataset.index].has_truth))) markBestOf(rows.map((row) => row.cells[column]), (cell) => way * cellValue(cell.parentElement, column));
  });
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

// In the order of the table.
function shownResults() { return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => report.results[row.dataset.index]); }

function filterRows() {
  const wanted = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of lines) {
    const record = report.results[row.dataset.index];
    const text = `${row.textContent} ${JSON.stringify(record.settings)} ${common}`.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  for (const one of document.querySelectorAll("details.provenance"))
    one.hidden = lines.find((row) => row.dataset.index === one.dataset.index)?.hidden ?? false;
  markBest();
  drawCurves();
  document.getElementById("shown").textContent = wanted.length ? `${shown} of ${lines.length}` : "";
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

function beginTable() {
  for (const row of lines) for (const cell of row.cells) cell.dataset.text = cell.textContent.trim();
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () =>
    sortRows(column, head.getAttribute("aria-sort") === "ascending")));
  document.getElementById("filter").addEventListener("input", filterRows);
  document.getElementById("baseline").addEventListener("change", showDifferences);
  filterRows();
  showDifferences();
}
