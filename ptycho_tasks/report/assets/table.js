// The table of results: sorting, filter, difference to a baseline.

const table = document.getElementById("table");
const heads = [...table.tHead.rows[0].cells];
const lines = [...table.tBodies[0].rows];
const fields = listFields();
const BETTER = { r_factor: -1, poisson_deviance: -1, noise_ratio: -1, amplitude_ssim: 1, phase_ssim: 1, amplitude_psnr_db: 1,
  phase_psnr_db: 1, amplitude_mae: -1, phase_mae_rad: -1, frc50: 1, resolution: -1, "resolution of halves": -1 };

// 1 where a column is the better the larger it is, -1 the smaller; of all others, nothing is the best.
function wayOf(head) { return BETTER[head.dataset.key] ?? BETTER[head.querySelector("button").textContent.trim()]; }

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
    const way = wayOf(head);
    const isScore = head.classList.contains("score"); // which mean nothing against a guess
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

// What a condition may name, each with what it says of a row: labels, heads and settings; by a setting's
// last word and a head's first one only what nothing else is called.
function listFields() {
  const names = new Map(), shorter = new Map();
  const add = (map, name, read) => map.set(name.toLowerCase(), [...(map.get(name.toLowerCase()) ?? []), read]);
  const resultOf = (row) => report.results[row.dataset.index];
  for (const label of ["variant", "scan", "stage"])
    if (report.results.some((result) => result[label])) add(names, label, (row) => resultOf(row)[label]);
  const settingOf = (key) => (row) => ({ ...report.common["settings of the project"], ...resultOf(row).settings })[key];
  const known = [report.common["settings of the project"] ?? {}, ...report.results.map((result) => result.settings)];
  for (const key of new Set(known.flatMap(Object.keys))) {
    add(names, key, settingOf(key));
    add(shorter, key.split(".").pop(), settingOf(key));
  }
  heads.forEach((head, column) => {
    const title = head.textContent.trim(), read = (row) => row.cells[column].dataset.text;
    for (const name of new Set([title, head.dataset.key ?? title])) add(names, name, read);
    add(shorter, title.split(" ")[0], read);
  });
  return new Map([...shorter, ...names]);
}

const SIZES = { b: ["B", 1], kb: ["B", 1e3], mb: ["B", 1e6], gb: ["B", 1e9], tb: ["B", 1e12], s: ["s", 1], min: ["s", 60], h: ["s", 3600],
  pm: ["m", 1e-12], nm: ["m", 1e-9], "µm": ["m", 1e-6], um: ["m", 1e-6], "μm": ["m", 1e-6], mm: ["m", 1e-3], m: ["m", 1], px: ["px", 1], "": ["", 1] };

// A number as it is shown, `0.05`, `400 MB`, `≤ 12 nm`, `2 min 5 s`: in its base unit; null of other texts.
function readQuantity(text) {
  const parts = [...text.toLowerCase().replace(/^≤ */, "").matchAll(/(-?[\d.]+(?:e[+-]?\d+)?) *([a-zµμ]*) */gy)];
  const sizes = parts.map(([, , unit]) => SIZES[unit]);
  if (!parts.length || parts.map(([part]) => part).join("") !== text.toLowerCase().replace(/^≤ */, "")) return null;
  if (sizes.some((size) => !size || size[0] !== sizes[0][0]) || (parts.length > 1 && sizes[0][0] === "")) return null;
  const value = parts.reduce((sum, [, number], index) => sum + Number(number) * sizes[index][1], 0);
  return Number.isNaN(value) ? null : { value, kind: sizes[0][0], unit: parts[0][2] };
}

const COMPARE = { "=": (a, b) => Math.abs(a - b) <= 1e-9 * Math.abs(b), "<": (a, b) => a < b, ">": (a, b) => a > b,
  "<=": (a, b) => a <= b, ">=": (a, b) => a >= b };

// A number without a unit is in that in which most rows show theirs.
function addUnit(wanted, texts) {
  const number = readQuantity(wanted), units = texts.map(readQuantity).filter(Boolean).map((one) => one.unit);
  if (!number || number.kind !== "") return number;
  const count = (unit) => units.filter((one) => one === unit).length;
  return readQuantity(`${wanted} ${units.sort((a, b) => count(b) - count(a))[0] ?? ""}`.trim());
}

function makeCondition(fields, sign, wanted) {
  const textsOf = (row) => fields.map((read) => read(row)).filter((value) => value !== undefined)
    .map((value) => (typeof value === "string" ? value : JSON.stringify(value)));
  const number = addUnit(wanted, lines.flatMap(textsOf));
  if (!number && sign !== "=") return null;
  return (row) => textsOf(row).some((text) => {
    const own = number && readQuantity(text);
    if (own) return own.kind === number.kind && COMPARE[sign](own.value, number.value);
    return sign === "=" && text.toLowerCase().includes(wanted);
  });
}

// A test for each part of a filter: a name with its value (`epochs 2`, `epochs=2`, `memory < 400 MB`), or a
// word that stands in a column that is shown. A name that nothing has is a problem, and no test; so is what
// is no number after `<`. A word that no row shows leaves none, and is a problem unless a name begins so.
function readFilter(text) {
  const tests = [], problems = [], shown = heads.map((head) => head.offsetWidth > 0);
  const names = [...fields.keys()].sort((a, b) => b.length - a.length);
  let rest = text.toLowerCase().replace(/\s+/g, " ").trim();
  const take = (pattern) => { const found = rest.match(pattern); if (found) rest = rest.slice(found[0].length).trimStart(); return found; };
  while (rest) {
    const name = names.find((one) => rest.startsWith(one) && /^(?: ?[<>=:]| [^<>=: ])/.test(rest.slice(one.length)));
    if (name) {
      rest = rest.slice(name.length).trimStart();
      const sign = (take(/^(?:<=|>=|[<>=:])/)?.[0] ?? "=").replace(":", "=");
      const wanted = take(/^(?:[-\d.]+(?:e[+-]?\d+)? ?(?:[kmgt]?b|s|min|h|[pnuµμm]?m|px)(?= |$)|[^ <>=]+)/)?.[0];
      const condition = wanted && makeCondition(fields.get(name), sign, wanted);
      if (condition) tests.push(condition);
      else if (wanted) problems.push(`“${wanted}” after “${name} ${sign}” is no number: that part is left out`);
      continue;
    }
    const unknown = take(/^([^ <>=:]+) ?(?:<=|>=|[<>=]|:(?= |$)) ?[^ <>=]*/);
    if (unknown) problems.push(`No column and no setting is called “${unknown[1]}”: that part is left out`);
    else {
      const [word] = take(/^[^ ]+/), test = (row) => [...row.cells].some((cell, column) => shown[column] && cell.dataset.text.toLowerCase().includes(word));
      tests.push(test);
      if (!lines.some(test) && !names.some((one) => one.startsWith(word))) problems.push(`No row shows “${word}”; a condition is a name and a value, as “epochs 2” or “r-factor < 0.05”`);
    }
  }
  return { tests, problems };
}

function filterRows() {
  const { tests, problems } = readFilter(document.getElementById("filter").value), chosen = chosenRows();
  const only = document.getElementById("only-chosen");
  only.checked &&= chosen.length > 0;
  document.getElementById("of-chosen").hidden = document.getElementById("open-chosen").hidden = !chosen.length;
  for (const row of lines) row.hidden = !tests.every((test) => test(row)) || (only.checked && !isChosen(row));
  for (const one of document.querySelectorAll("details.provenance"))
    one.hidden = lines.find((row) => row.dataset.index === one.dataset.index)?.hidden ?? false;
  const shown = shownRows().length;
  document.getElementById("shown").textContent = [shown < lines.length ? `${shown} of ${lines.length} shown` : "",
    chosen.length ? `${chosen.length} chosen` : ""].filter(Boolean).join(", ");
  document.getElementById("unknown").textContent = problems.join(". ");
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
  filterRows();
}

const UNITS = {
  bytes: (v) => { const [s, u] = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([x]) => Math.abs(v) >= x) ?? [1, "B"]; return `${Number((v / s).toPrecision(3))} ${u}`; },
  seconds: (v) => `${Number(v.toPrecision(2))} s`,
};

function formatDifference(key, value) {
  const write = UNITS[key.split("_").pop()] ?? ((v) => Number(v.toPrecision(2)).toString());
  return `${value < 0 ? "−" : "+"}${write(Math.abs(value))}`;
}

// The baseline as `compare` takes it: one result, or all those of a variant.
function listBaselines() {
  const group = element("optgroup", { label: "for each scan, that of" });
  for (const variant of new Set(report.results.map((result) => result.variant))) {
    const own = report.results.flatMap((result, index) => (result.variant === variant && result.scan && Object.keys(result.measures).length ? [index] : []));
    if (own.length > 1) group.append(element("option", { value: own.join() }, variant));
  }
  if (group.children.length) document.getElementById("baseline").append(group);
}

// What a row is compared with, by the rule of `compare`: of the results of the baseline that are of
// its stage, that of its scan, else that of its variant, else the only one.
function findBase(row, chosen) {
  const own = report.results[row.dataset.index];
  const alike = chosen.filter((index) => report.results[index].stage === own.stage);
  const isLike = (key) => (index) => report.results[index][key] === own[key];
  return alike.find(isLike("scan")) ?? alike.find(isLike("variant")) ?? (alike.length === 1 ? alike[0] : undefined);
}

// The results that are the baseline of others.
function chosenBases() {
  const { value } = document.getElementById("baseline");
  return value === "" ? [] : value.split(",").map(Number);
}

function showDifferences() {
  const menu = document.getElementById("baseline"), chosen = chosenBases();
  const name = `difference to ${menu.selectedOptions[0].textContent}${chosen.length > 1 ? " of the same scan" : ""}`;
  for (const difference of table.querySelectorAll(".difference")) difference.remove();
  for (const row of lines) {
    row.classList.toggle("base", chosen.includes(Number(row.dataset.index)));
    const base = findBase(row, chosen);
    if (base === undefined || base === Number(row.dataset.index)) continue;
    const baseLine = lines.find((line) => line.dataset.index === String(base)), title = `difference to ${report.results[base].name}`;
    heads.forEach((head, column) => {
      const [from, own] = [baseLine, row].map((line) => cellValue(line, column));
      if (head.dataset.key && typeof from === "number" && typeof own === "number")
        row.cells[column].append(element("span", { class: "difference", title }, formatDifference(head.dataset.key, own - from)));
    });
  }
  heads.forEach((head, column) => {
    if (lines.some((row) => row.cells[column].querySelector(".difference"))) head.append(element("span", { class: "difference" }, breakable(name)));
  });
  floatHead();
}

function addChooser(row) {
  const { name } = report.results[row.dataset.index];
  const box = element("input", { type: "checkbox", class: "choose", "aria-label": `Choose ${name}` });
  box.addEventListener("change", filterRows);
  row.cells[0].prepend(box);
}

// Of a small screen, what was found is the first to be seen, until somebody says otherwise.
function hideSettingsIfSmall() {
  const small = matchMedia("(max-width: 40rem)"), box = document.querySelector("#columns [value=setting]");
  const follow = () => { box.checked = !small.matches; chooseColumns(); };
  small.addEventListener("change", follow);
  box.addEventListener("change", () => small.removeEventListener("change", follow));
  box.checked = !small.matches;
}

function beginTable() {
  for (const row of lines) {
    for (const cell of row.cells) cell.dataset.text = (cell.querySelector("bdi") ?? cell).textContent.trim();
    addChooser(row);
  }
  heads.forEach((head, column) => {
    const button = head.querySelector("button"), way = wayOf(head);
    if (way) button.title = way > 0 ? "larger is better" : "smaller is better";
    button.addEventListener("click", () => sortRows(column, head.getAttribute("aria-sort") === "ascending"));
  });
  document.getElementById("filter").addEventListener("input", filterRows);
  document.getElementById("only-chosen").addEventListener("change", filterRows);
  document.getElementById("baseline").addEventListener("change", showDifferences);
  document.getElementById("columns").addEventListener("change", chooseColumns);
  hideSettingsIfSmall();
  addEventListener("scroll", floatHead, { passive: true });
  addEventListener("resize", floatHead);
  markBest();
  listBaselines();
  chooseColumns();
  showDifferences();
}
