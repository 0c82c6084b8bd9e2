// Curves as SVG.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 560, HEIGHT = 260, LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 40;
const COLOURS = 6, DASHES = ["", "6 3", "2 3", "9 3 2 3"];

function draw(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function listTicks(low, high, isLog) {
  if (isLog) {
    const first = Math.ceil(low), last = Math.floor(high), step = Math.max(1, Math.ceil((last - first) / 5));
    const ticks = [];
    for (let power = first; power <= last; power += step) ticks.push([power, `1e${power}`]);
    if (ticks.length >= 2) return ticks;
    const places = [low, (low + high) / 2, high];
    const write = (digits) => places.map((at) => Number((10 ** at).toPrecision(digits)).toString());
    const texts = [2, 3, 4, 5, 6].map(write).find((found) => new Set(found).size === places.length) ?? write(6);
    return places.map((at, index) => [at, texts[index]]);
  }
  const step = roundLength((high - low) / 3), ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-6; i++)
    ticks.push([i * step, Number((i * step).toPrecision(4)).toString()]);
  return ticks;
}

// series: [{name, x: [...], y: [...]}]; missing values are null.
function drawChart(place, series, { x, y, isLog = false, mark = null }) {
  const change = (value) => (isLog ? (value > 0 ? Math.log10(value) : NaN) : value);
  const curves = series.map((one) => ({ ...one, points: one.y.map((v, i) => [one.x[i], v === null ? NaN : change(v)]) }));
  const points = curves.flatMap((one) => one.points).filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
  if (!points.length) { place.replaceChildren(element("p", { class: "note" }, "no values")); return; }
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const [a, b] of points) { x0 = Math.min(x0, a); x1 = Math.max(x1, a); y0 = Math.min(y0, b); y1 = Math.max(y1, b); }
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  if (y0 === y1) { const half = isLog ? 0.1 : Math.abs(y0) * 0.05 || 0.5; y0 -= half; y1 += half; }
  const toX = (v) => LEFT + ((v - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT);
  const toY = (v) => HEIGHT - BOTTOM - ((v - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const names = series.map((one) => one.name).join(", ");
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${y} by ${x}: ${names}` });
  for (const [at, text] of listTicks(y0, y1, isLog)) {
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: toY(at), y2: toY(at) }));
    svg.append(draw("text", { x: LEFT - 6, y: toY(at) + 4, "text-anchor": "end" }, text));
  }
  for (const [at, text] of listTicks(x0, x1, false)) {
    svg.append(draw("line", { class: "grid", y1: TOP, y2: HEIGHT - BOTTOM, x1: toX(at), x2: toX(at) }));
    svg.append(draw("text", { x: toX(at), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, text));
  }
  svg.append(draw("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x));
  if (mark !== null && mark > y0 && mark < y1)
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: toY(mark), y2: toY(mark), "stroke-dasharray": "4 4", style: "stroke:var(--text)" }));
  curves.forEach((one, index) => {
    let path = "", isDrawing = false;
    for (const [a, b] of one.points) {
      if (Number.isFinite(b)) path += `${isDrawing ? "L" : "M"}${toX(a).toFixed(1)} ${toY(b).toFixed(1)}`;
      isDrawing = Number.isFinite(b);
    }
    // Those below are wider, so that equal curves are seen to be several.
    const width = 2 + 2 * Math.min(Math.max(curves.length - 1 - index, 0), curves.length > 4 ? 1 : 3);
    const look = `stroke-width:${width};stroke:var(--c${index % COLOURS});stroke-dasharray:${DASHES[Math.floor(index / COLOURS) % DASHES.length]}`;
    const curve = draw("path", { class: "curve", d: path, style: look });
    curve.append(draw("title", {}, one.name));
    svg.append(curve);
  });
  const legend = element("ul", { class: "legend" });
  series.forEach((one, index) => {
    const line = element("i", { style: `border-color:var(--c${index % COLOURS});border-style:${index < COLOURS ? "solid" : "dashed"}` });
    legend.append(element("li", {}, line, element("bdi", {}, one.name)));
  });
  place.replaceChildren(svg, legend);
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

const MOST_DRAWN = 12;

// The curves of the results that the table shows, in its order.
function drawCurves() {
  const charts = document.getElementById("charts"), all = report.results.filter((result) => result.curves).length;
  const able = shownResults().filter((result) => result.curves), results = able.slice(0, MOST_DRAWN);
  charts.replaceChildren();
  document.getElementById("drawn").textContent = !shownResults().length ? "The filter of the table leaves no result." : results.length < all
    ? `Of ${results.length} of the ${all} results: the first in the table above. Sort or filter it to choose others.` : "";
  const pick = (get, x) => results.map((r) => ({ name: r.name, y: get(r.curves) ?? [], first: r.curves.first_loss }))
    .filter((one) => one.y.length).map((one) => ({ ...one, x: x(one.y.length, one.first) }));
  addChart("Loss of the reconstruction", pick((c) => c.losses, count), { x: "step or epoch", y: "loss", isLog: true });
  const metrics = new Set(results.flatMap((result) => Object.keys(result.curves.training)));
  for (const metric of [...metrics].sort()) {
    const series = pick((c) => c.training[metric], (length) => count(length));
    const isPositive = series.every((one) => one.y.every((v) => v === null || v > 0));
    addChart(`Training: ${metric.replaceAll("_", " ")}`, series, { x: "epoch", y: metric, isLog: isPositive });
  }
  addChart("Fourier ring correlation with the truth", pick((c) => c.frc, fractions),
    { x: "frequency / Nyquist", y: "correlation", mark: 0.5 }, describeResolutions(results));
  addChart("Fourier ring correlation with objectGuess, a guess", pick((c) => c.frc_guess, fractions),
    { x: "frequency / Nyquist", y: "correlation" }, "It says how alike they are, and nothing of the resolution.");
  const halves = report.halves.filter((half) => half.frc && half.results.some((index) => results.includes(report.results[index])));
  addChart("Fourier ring correlation of two halves of the frames", halves.map((half) => ({ name: half.name, x: fractions(half.frc.length), y: half.frc })),
    { x: "frequency / Nyquist", y: "correlation", mark: 1 / 7 },
    `${describeHalves(halves)} Probe guess and network are the same in both, and half of the overlap is missing.`);
  addChart("Power spectrum", pick((c) => c.psd, fractions),
    { x: "frequency / Nyquist", y: "power", isLog: true }, "Of the scanned box, mean off, Hann window, over that of the first ring.");
  for (const problem of [...results.filter((r) => r.curves.problem).map((r) => `${r.name}: ${r.curves.problem}`), ...report.halves.map((half) => half.problem).filter(Boolean)])
    charts.append(element("p", { class: "problem" }, element("bdi", {}, problem)));
  if (results.length && results.every((result) => !Object.keys(result.resolutions).length))
    charts.append(element("p", { class: "note" }, "No resolution: no truth is known, and there are no reconstructions of two halves of the frames. Two variants give them: {name: even, inference.frames: even} and {name: odd, inference.frames: odd}."));
  if (!charts.children.length && shownResults().length)
    charts.append(element("p", { class: "note" }, "There are none: nothing was trained, and no reconstruction kept its losses."));
}

function formatResolution(fall, size) {
  if (!fall) return "none";
  return `${fall >= 1 ? "≤ " : ""}${size ? formatLength(Math.max(...size) / fall) : `${Number((1 / fall).toPrecision(3))} px`}`;
}

function describeResolutions(results) {
  const found = results.filter((r) => r.resolutions.truth).map((r) => `${r.name} ${formatResolution(r.resolutions.truth.fall, r.pixel_size_m)}`);
  return found.length ? `Half-period resolution, where it falls under 0.5: ${found.join(", ")}.` : "";
}

function describeHalves(halves) {
  const found = halves.map((half) => `${half.name} ${formatResolution(half.fall, report.results[half.results[0]].pixel_size_m)}`);
  return `Half-period resolution, where it falls under 1/7, as all frames together would fall under 0.5 with the truth: ${found.join(", ")}.`;
}
