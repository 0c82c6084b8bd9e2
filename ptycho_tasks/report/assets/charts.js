// Curves as SVG.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 260, RIGHT = 14, TOP = 12, BOTTOM = 40, LETTER = 7, USUAL_WIDTH = 560;
const COLOURS = 6, DASHES = ["", "6 3", "2 3", "9 3 2 3"];

function draw(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// With as many digits as tell ticks apart that are a step from each other.
function writeTick(value, step = Math.abs(value)) {
  const digits = value === 0 ? 1 : Math.floor(Math.log10(Math.abs(value) / step) + 1e-9) + 2;
  return Number(value.toPrecision(Math.min(Math.max(digits, 4), 15))).toString().replace("+", "");
}

// Places on an axis with their texts; of an axis by powers of ten, by the logarithm.
function listTicks(low, high, { isLog, leastStep = 0 }) {
  if (isLog) {
    const every = Math.max(1, Math.ceil((high - low) / 5)), ticks = [];
    for (let power = Math.floor(low); power <= high; power += every)
      for (const digit of high - low < 1.5 ? [1, 2, 5] : [1]) ticks.push(power + Math.log10(digit));
    return ticks.filter((at) => at >= low - 1e-9 && at <= high + 1e-9).map((at) => [at, writeTick(Number((10 ** at).toPrecision(1)))]);
  }
  const step = Math.max(roundLength((high - low) / 3), leastStep), ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) ticks.push([i * step, writeTick(i * step, step)]);
  return ticks;
}

// The least and the largest value of some series.
function findRange(series) {
  let [low, high] = [Infinity, -Infinity];
  for (const one of series) for (const value of one.y) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return [low, high];
}

// Whether values are seen better by their logarithm: all are positive, and the largest is ten times the least.
function suitsLog(series) {
  const [low, high] = findRange(series);
  return low > 0 && high >= 10 * low;
}

// Series that can share an axis, on which none is flat for the others' sake: their values overlap,
// or are at most three times apart.
function groupByRange(series) {
  const groups = [];
  for (const one of series) {
    const [low, high] = findRange([one]);
    const found = groups.find((group) => { const [least, most] = findRange(group); return low > 0 && least > 0 ? low <= 3 * most && least <= 3 * high : low <= most && least <= high; });
    if (found) found.push(one); else groups.push([one]);
  }
  return groups;
}

// Charts are drawn as wide as they are shown, so that their texts can be read, and anew when that changes.
const drawings = new Map(); // of each place, how to draw it
const chartWidths = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (!target.isConnected) { drawings.delete(target); chartWidths.unobserve(target); } else drawings.get(target)?.(false);
  }
});

// series: [{name, x: [...], y: [...], slot: which colour it has}]; missing values are null.
function drawChart(place, series, options) {
  let width = 0;
  const drawAgain = (isNew) => {
    const wide = Math.max(place.clientWidth || USUAL_WIDTH, 240);
    if (isNew || wide !== width) place.replaceChildren(...makeChart(series, options, wide));
    width = wide;
  };
  drawings.set(place, drawAgain);
  chartWidths.observe(place);
  drawAgain(true);
}

function makeChart(series, { x, y, mayBeLog = false, mark = null }, width) {
  const isLog = mayBeLog && suitsLog(series);
  const change = (value) => (isLog ? Math.log10(value) : value);
  const curves = series.map((one, index) => ({ slot: index, ...one, points: one.y.map((v, i) => [one.x[i], v === null ? NaN : change(v)]) }));
  const points = curves.flatMap((one) => one.points).filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
  if (!points.length) return [element("p", { class: "note" }, "no values")];
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [a, b] of points) { x0 = Math.min(x0, a); x1 = Math.max(x1, a); y0 = Math.min(y0, b); y1 = Math.max(y1, b); }
  const isWhole = points.every(([a]) => Number.isInteger(a));
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  if (y1 - y0 <= Math.abs(y0) * 1e-12) { const half = isLog ? 0.1 : Math.abs(y0) * 0.05 || 0.5; y0 -= half; y1 += half; }
  const ticks = listTicks(y0, y1, { isLog });
  const left = 12 + LETTER * Math.max(...ticks.map(([, text]) => text.length), 2);
  const toX = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - RIGHT);
  const toY = (v) => HEIGHT - BOTTOM - ((v - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const names = series.map((one) => one.name).join(", ");
  const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${y} by ${x}: ${names}` });
  for (const [at, text] of ticks) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - RIGHT, y1: toY(at), y2: toY(at) }));
    svg.append(draw("text", { x: left - 6, y: toY(at) + 4, "text-anchor": "end" }, text));
  }
  for (const [at, text] of listTicks(x0, x1, { leastStep: isWhole ? 1 : 0 })) {
    const half = (LETTER * text.length) / 2; // nothing is cut off at the right
    svg.append(draw("line", { class: "grid", y1: TOP, y2: HEIGHT - BOTTOM, x1: toX(at), x2: toX(at) }));
    svg.append(draw("text", { x: Math.min(toX(at), width - half), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, text));
  }
  svg.append(draw("text", { x: (left + width - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x));
  if (isLog) svg.append(draw("text", { x: 4, y: HEIGHT - 6 }, "log scale"));
  if (mark !== null && mark > y0 && mark < y1)
    svg.append(draw("line", { class: "grid", x1: left, x2: width - RIGHT, y1: toY(mark), y2: toY(mark), "stroke-dasharray": "4 4", style: "stroke:var(--text)" }));
  curves.forEach((one, index) => {
    let path = "", isDrawing = false;
    for (const [a, b] of one.points) {
      // A point without neighbours is a dot, which is to be seen where there is nothing else.
      if (Number.isFinite(b)) path += isDrawing ? `L${toX(a).toFixed(1)} ${toY(b).toFixed(1)}` : `M${toX(a).toFixed(1)} ${toY(b).toFixed(1)}h0`;
      isDrawing = Number.isFinite(b);
    }
    // Those below are wider, so that equal curves are seen to be several.
    const stroke = 2 + 2 * Math.min(Math.max(curves.length - 1 - index, 0), curves.length > 4 ? 1 : 3) + (path.includes("L") ? 0 : 4);
    const curve = draw("path", { class: "curve", d: path, style: `stroke-width:${stroke};${lookOf(one.slot)}` });
    if (series[index].slot !== undefined) curve.dataset.slot = one.slot;
    curve.append(draw("title", {}, one.name));
    svg.append(curve);
  });
  // Where each result has a colour of its own, one legend stands above all charts.
  return series.length < 2 || series.every((one) => one.slot !== undefined) ? [svg] : [svg, makeLegend(series)];
}

function lookOf(slot) {
  return `stroke:var(--c${slot % COLOURS});stroke-dasharray:${DASHES[Math.floor(slot / COLOURS) % DASHES.length]}`;
}

function makeLegend(series) {
  const legend = element("ul", { class: "legend" });
  series.forEach((one, index) => {
    const slot = one.slot ?? index, line = draw("svg", { viewBox: "0 0 28 8", width: 28, height: 8, "aria-hidden": "true" });
    line.append(draw("path", { class: "sample", d: "M0 4H28", style: `stroke-width:3;${lookOf(slot)}` }));
    const item = element("li", {}, line, breakable(one.name));
    item.addEventListener("mouseenter", () => pointOut(slot));
    item.addEventListener("mouseleave", () => pointOut(null));
    legend.append(item);
  });
  return legend;
}

// Show where one result is among the curves.
function pointOut(slot) {
  for (const curve of document.querySelectorAll("path[data-slot]")) curve.classList.toggle("dim", slot !== null && curve.dataset.slot !== String(slot));
}

function addChart(title, series, options, note = "") {
  if (!series.length) return;
  const chart = element("div", { class: "chart" });
  const figure = element("figure", {}, element("figcaption", {}, title), chart);
  if (note) figure.append(element("p", { class: "note" }, note));
  document.getElementById("charts").append(figure);
  drawChart(chart, series, options);
}

function count(length, first = 1) { return Array.from({ length }, (_, i) => i + first); }
function fractions(length) { return Array.from({ length }, (_, i) => (i + 1) / length); }

// What a metric of the training is; other backends may have others.
const TRAINING_NOTES = {
  loss: "What the training makes small, the mean over its steps.",
  val_loss: "The misfit of the frames that are held back from the training.",
  flat_loss: "The misfit of the frames held back where the object is flat: who learned something has a smaller val loss.",
  spread: "Standard deviation of the object over its mean, of the frames held back: 0 is a flat object.",
  learning_rate: "How large the steps of the optimizer are.",
};
const MOST_DRAWN = 12, MOST_LISTED = 4;

// The curves of the results that are chosen in the table, or else that it shows, in its order.
function drawCurves() {
  const charts = document.getElementById("charts"), all = report.results.filter((result) => result.curves).length;
  const able = drawnResults().filter((result) => result.curves), results = able.slice(0, MOST_DRAWN);
  charts.replaceChildren();
  document.getElementById("drawn").textContent = !shownRows().length ? "The filter of the table leaves no result." : results.length < all
    ? `Of ${results.length} of the ${all} results${able.length > MOST_DRAWN ? ": the first in the table above" : ""}. Choose rows of the table, or sort or filter it, to see others.` : "";
  const named = results.map((result, slot) => ({ result, name: result.name, slot }));
  const pick = (get, x, from = named) => from.map((one) => ({ name: one.name, slot: one.slot, y: get(one.result.curves) ?? [], first: one.result.curves.first_loss }))
    .filter((one) => one.y.length).map((one) => ({ ...one, x: x(one.y.length, one.first) }));
  if (named.length) charts.append(makeLegend(named));
  addChart("Loss of the reconstruction", pick((c) => c.losses, count), { x: "step or epoch", y: "loss", mayBeLog: true }, "What the backend makes small; losses of two backends need not be of the same kind.");
  // A network is trained once for all scans.
  const trained = named.filter((one, index) => named.findIndex((other) => other.result.variant === one.result.variant) === index)
    .map((one) => ({ ...one, name: one.result.variant }));
  const metrics = new Set(results.flatMap((result) => Object.keys(result.curves.training)));
  for (const metric of [...metrics].sort())
    addChart(`Training: ${metric.replaceAll("_", " ")}`, pick((c) => c.training[metric], (length) => count(length), trained), { x: "epoch", y: metric, mayBeLog: true }, TRAINING_NOTES[metric]);
  addChart("Fourier ring correlation with the truth", pick((c) => c.frc, fractions),
    { x: "frequency / Nyquist", y: "correlation", mark: 0.5 }, describeResolutions(results));
  addChart("Fourier ring correlation with objectGuess, a guess", pick((c) => c.frc_guess, fractions),
    { x: "frequency / Nyquist", y: "correlation" }, "It says how alike they are, and nothing of the resolution.");
  const halves = report.halves.filter((half) => half.frc && half.results.some((index) => results.includes(report.results[index])));
  addChart("Fourier ring correlation of two halves of the frames", halves.map((half) => ({ name: half.name, x: fractions(half.frc.length), y: half.frc })),
    { x: "frequency / Nyquist", y: "correlation", mark: 1 / 7 },
    `${describeHalves(halves)} Probe guess and network are the same in both, and half of the overlap is missing.`);
  addChart("Power spectrum", pick((c) => c.psd, fractions),
    { x: "frequency / Nyquist", y: "power", mayBeLog: true }, "Of the scanned box, mean off, Hann window, over that of the first ring.");
  for (const problem of [...results.filter((r) => r.curves.problem).map((r) => `${r.name}: ${r.curves.problem}`), ...report.halves.map((half) => half.problem).filter(Boolean)])
    charts.append(element("p", { class: "problem" }, element("bdi", {}, problem)));
  if (results.length && results.every((result) => !Object.keys(result.resolutions).length))
    charts.append(element("p", { class: "note" }, "No resolution: no truth is known, and there are no reconstructions of two halves of the frames. Two variants give them: {name: even, inference.frames: even} and {name: odd, inference.frames: odd}."));
  if (!charts.querySelector("figure") && results.length)
    charts.append(element("p", { class: "note" }, "There are none: nothing was trained, and no reconstruction kept its losses."));
}

function formatResolution(fall, size) {
  if (!fall) return "none";
  return `${fall >= 1 ? "≤ " : ""}${size ? formatLength(Math.max(...size) / fall) : `${Number((1 / fall).toPrecision(3))} px`}`;
}

function describeResolutions(results) {
  const found = results.filter((r) => r.resolutions.truth).map((r) => `${r.name} ${formatResolution(r.resolutions.truth.fall, r.pixel_size_m)}`);
  if (found.length > MOST_LISTED) return "Half-period resolution is where it falls under 0.5; it stands in the table.";
  return found.length ? `Half-period resolution, where it falls under 0.5: ${found.join(", ")}.` : "";
}

function describeHalves(halves) {
  const found = halves.map((half) => `${half.name} ${formatResolution(half.fall, report.results[half.results[0]].pixel_size_m)}`);
  return `Half-period resolution, where it falls under 1/7, as all frames together would fall under 0.5 with the truth: ${found.join(", ")}.`;
}
