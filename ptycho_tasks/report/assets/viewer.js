// The viewer: panels with an image each; those with the same grid share zoom, place and cursor.

const MOST_PANELS = 4;
const panels = [];
const spaces = {}; // of each grid: {x, y: what is in the middle; scale: screen pixels a pixel; isWhole: nobody zoomed}
const shared = { cursor: null, line: null }; // {space, x, y}; {space, from, to}
const GROUND = [119, 119, 119]; // of dots

// What was not seen is hatched, which no colour of a value is.
function makeHatch(context, ratio) {
  const tile = document.createElement("canvas"), side = (tile.width = tile.height = Math.round(8 * ratio)), pen = tile.getContext("2d");
  const look = getComputedStyle(document.documentElement);
  pen.fillStyle = look.getPropertyValue("--unseen");
  pen.fillRect(0, 0, side, side);
  pen.strokeStyle = look.getPropertyValue("--hatch");
  pen.lineWidth = 1.5 * ratio;
  for (const at of [-side / 2, side / 2, 1.5 * side]) { pen.moveTo(at - side, side * 1.5); pen.lineTo(at + side, -side / 2); }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

// ---------------------------------------------------------------- what there is to see of a result

function listViews(result) {
  const views = [];
  const addComplex = (id, label, image, space, origin) => {
    for (const [kind, name] of [["amplitude", "amplitude"], ["phase", "phase"], ["complex", "complex (hue is phase)"]])
      views.push({ id: `${id}${kind}`, label: `${label} ${name}`, kind, image, space, origin });
  };
  if (!result.object) return views;
  addComplex("", "object", result.object, "object", result.origin);
  const base = baseOf(result);
  if (base && base !== result && isComparable(base, result))
    for (const kind of ["amplitude", "phase"])
      views.push({ id: `difference-${kind}`, label: `${kind}, difference to ${base.name}`, kind: "difference", part: kind, base, image: result.object, space: "object", origin: result.origin });
  const scan = report.scans[result.scan_key] ?? {};
  if (scan.truth) addComplex("truth-", scan.is_truth ? "truth" : "object guess", scan.truth, "object", [0, 0]);
  views.push({ id: "residual", label: "residual of each frame", kind: "dots", array: result.frames.residual, space: "object", unit: "" });
  if (result.frames.shift)
    views.push({ id: "shift", label: "positions, and how each was moved", kind: "dots", array: result.frames.shift, space: "object", unit: " px moved", before: true });
  result.probe.forEach((image, mode) => {
    const label = result.probe.length > 1 ? `probe mode ${mode + 1}` : "probe";
    addComplex(`probe-${mode + 1}-`, label, image, `probe ${image.rows}`, [0, 0]);
  });
  (scan.probe ?? []).forEach((image, mode) =>
    addComplex(`guess-${mode + 1}-`, scan.probe.length > 1 ? `probe guess, mode ${mode + 1},` : "probe guess", image, `probe ${image.rows}`, [0, 0]));
  if (scan.frame) {
    const frame = { rows: scan.frame.rows, columns: scan.frame.columns, amplitude: scan.frame.mean };
    views.push({ id: "frame", label: "mean frame, log", kind: "log", image: frame, space: `frame ${frame.rows}`, origin: [0, 0] });
  }
  return views;
}

// What else there would be to see of a result, and why there is not.
function listMissing(result) {
  const missing = [], { problem } = report.scans[result.scan_key] ?? {}, base = baseOf(result);
  if (problem) missing.push({ name: "truth, probe guess or mean frame", why: problem });
  if (base && base !== result && !isComparable(base, result))
    missing.push({ name: `difference to ${base.name}`, why: base.object ? "it is of another scan, or its object has not the same pixels" : "there is nothing to see of it" });
  return missing;
}

// The baseline of the table that is a result's own, if there is one.
function baseOf(result) {
  const index = findBase({ dataset: { index: report.results.indexOf(result) } }, chosenBases());
  return index === undefined ? null : report.results[index];
}

function isComparable(a, b) {
  const grid = ({ scan_key, origin, object }) => JSON.stringify([scan_key, origin, object?.rows, object?.columns, object?.amplitude.step]);
  return a.object !== null && grid(a) === grid(b);
}

function arrayOf(view) {
  if (["dots", "difference"].includes(view.kind)) return view.array;
  return view.kind === "phase" ? view.image.phase : view.image.amplitude;
}

async function loadLayer(result, view) {
  if (view.kind === "dots") {
    const { x, y } = result.frames;
    const [xs, ys, values] = await Promise.all([decode(x), decode(y), decode(view.array)]);
    const before = view.before ? await Promise.all([decode(result.frames.x_before), decode(result.frames.y_before)]) : null;
    const half = result.probe[0].rows / 2, magnified = before ? magnify(xs, ys, view.array.high) : 1;
    const ends = (a) => [Math.min(...a) - half, Math.max(...a) + half];
    return { xs, ys, values, before, magnified, box: [...ends(xs), ...ends(ys)] };
  }
  if (view.kind === "difference") view.array ??= await makeDifference(result.object, view.base.object, view.part);
  const array = arrayOf(view), { rows, columns, step } = array;
  const values = await decode(array);
  const phases = view.kind === "complex" ? await decode(view.image.phase) : null;
  const [top, left] = view.origin;
  return { rows, columns, step, values, phases, top, left, box: [left, left + view.image.columns, top, top + view.image.rows] };
}

// The amplitude, or the phase, of an object less that of another one, from which it differs by what
// the data do not tell: a phase ramp and a complex factor, which are taken off.
async function makeDifference(object, base, part) {
  const parts = [object, base].flatMap((image) => [image.amplitude, image.phase]);
  const [amplitude, phase, wanted, wantedPhase] = await Promise.all(parts.map(decode));
  const { rows, columns, step } = object.amplitude, turn = makeTurn(amplitude, phase, wanted, wantedPhase, rows, columns);
  const values = amplitude.map((modulus, i) => (part === "amplitude" ? turn.scale * modulus - wanted[i] : wrap(phase[i] - wantedPhase[i] + turn.at(i))));
  const found = values.filter(Number.isFinite).map(Math.abs).sort(), [high, shown] = [1, 0.98].map((share) => found[Math.ceil(share * found.length) - 1] || 1e-12);
  const error = boundOf(object[part]) + boundOf(base[part]);
  return { rows, columns, step, error, low: -high, high, shown: [-shown, shown], promise: Promise.resolve(values) };
}

function wrap(angle) { return angle - 2 * Math.PI * Math.round(angle / (2 * Math.PI)); }

// What makes one image as like another as it can be: at(i), to be added to its phase, a plane of least
// squares weighted by modulus, as scores take it off; and scale, of its amplitude.
function makeTurn(amplitude, phase, wanted, wantedPhase, rows, columns) {
  const weights = amplitude.map((modulus, i) => modulus * wanted[i]), places = Uint32Array.from(weights.keys()).filter((i) => weights[i] > 0);
  const turn = { y: 0, x: 0, constant: 0, at(i) { return this.constant + this.y * Math.floor(i / columns) + this.x * (i % columns); } };
  const rest = (i) => phase[i] - wantedPhase[i] + turn.at(i);
  const mean = (of, list = places) => { let [re, im] = [0, 0]; for (const i of list) { const angle = of(i); re += weights[i] * Math.cos(angle); im += weights[i] * Math.sin(angle); } return Math.atan2(im, re); };
  // The mean step from a pixel to the next, which no wrapped phase disturbs; then planes.
  turn.y -= mean((i) => rest(i + columns) - rest(i), places.filter((i) => weights[i + columns] > 0));
  turn.x -= mean((i) => rest(i + 1) - rest(i), places.filter((i) => (i + 1) % columns && weights[i + 1] > 0));
  for (let round = 0; round < 3; round++) {
    turn.constant -= mean(rest);
    let [s, sy, sx, syy, syx, sxx, sr, syr, sxr] = Array(9).fill(0);
    for (const i of places) {
      const w = weights[i], y = Math.floor(i / columns), x = i % columns, r = w * wrap(rest(i));
      s += w; sy += w * y; sx += w * x; syy += w * y * y; syx += w * y * x; sxx += w * x * x; sr += r; syr += r * y; sxr += r * x;
    }
    const [constant, y, x] = solve([[s, sy, sx, sr], [sy, syy, syx, syr], [sx, syx, sxx, sxr]]);
    turn.constant -= constant; turn.y -= y; turn.x -= x;
  }
  turn.constant -= mean(rest);
  let [cross, energy] = [0, 0];
  for (const i of places) { cross += weights[i] * Math.cos(rest(i)); energy += amplitude[i] ** 2; }
  turn.scale = energy > 0 ? cross / energy : 1;
  return turn;
}

// Of three linear equations, each its factors and its right side; zeros where they do not tell.
function solve(equations) {
  const rows = equations.map((row) => [...row]);
  for (let k = 0; k < 3; k++) {
    const best = count(3 - k, k).reduce((a, b) => (Math.abs(rows[b][k]) > Math.abs(rows[a][k]) ? b : a));
    [rows[k], rows[best]] = [rows[best], rows[k]];
    if (Math.abs(rows[k][k]) < 1e-12) return [0, 0, 0];
    for (let i = 0; i < 3; i++) if (i !== k) { const factor = rows[i][k] / rows[k][k]; rows[i] = rows[i].map((value, j) => value - factor * rows[k][j]); }
  }
  return rows.map((row, k) => row[3] / row[k]);
}

// How many times longer moves are drawn, so that the longest is about as long as frames are apart.
function magnify(xs, ys, longest) {
  const extent = (a) => Math.max(...a) - Math.min(...a);
  const apart = Math.sqrt((extent(xs) * extent(ys)) / xs.length);
  return Math.max(1, apart > 0 && longest > 0 ? roundLength(apart / longest) : 1);
}

// ------------------------------------------------------------------------------------ one panel

class Panel {
  constructor(number) {
    this.number = number;
    this.result = 0;
    this.views = [];
    this.view = null;
    this.layer = null;
    this.limits = null;
    this.turn = 0;
    this.fingers = new Map(); // where each is, by its pointer
    this.build();
  }

  build() {
    const name = (what) => `${what}, panel ${this.number + 1}`;
    this.results = element("select", { "aria-label": name("Result") });
    report.results.forEach((result, index) => {
      const option = element("option", { value: index, disabled: !result.object }, result.name);
      this.results.append(option);
    });
    this.choices = element("select", { "aria-label": name("Picture") });
    this.maps = element("select", { "aria-label": name("Colours") }, ...Object.keys(MAPS).map((map) => element("option", {}, map)));
    this.canvas = element("canvas", { class: "image", tabindex: "0", role: "img" });
    this.low = element("input", { type: "number", step: "any", "aria-label": name("Lowest colour") });
    this.high = element("input", { type: "number", step: "any", "aria-label": name("Highest colour") });
    this.auto = element("button", { type: "button", title: "98 % of the values" }, "auto");
    this.full = element("button", { type: "button", title: "from the lowest value to the highest" }, "full");
    this.bar = element("canvas", { width: "256", height: "1", "aria-hidden": "true" });
    this.problem = element("p", { class: "problem", role: "status", "aria-label": name("Colours that cannot be") });
    this.readout = element("p", { class: "readout", role: "status", "aria-label": name("Value under the cursor") });
    this.note = element("p", { class: "note" });
    this.caption = element("figcaption", { class: "on-paper" }); // what the menus say, which cut it off
    this.root = element("article", { class: "panel", "aria-label": `Panel ${this.number + 1}` },
      this.caption, element("div", { class: "controls" }, this.results, this.choices, this.maps),
      element("div", { class: "stage" }, this.canvas),
      element("div", { class: "bar" }, this.low, this.bar, this.high, this.auto, this.full), this.problem, this.readout, this.note);
    this.listen();
  }

  listen() {
    this.results.addEventListener("change", () => this.choose(Number(this.results.value)));
    this.choices.addEventListener("change", () => this.choose(this.result, this.choices.value));
    this.maps.addEventListener("change", () => { this.paint(); this.draw(); });
    for (const input of [this.low, this.high]) input.addEventListener("change", () => this.typeLimits());
    this.auto.addEventListener("click", () => this.setLimits(this.firstLimits()));
    this.full.addEventListener("click", () => this.setLimits([arrayOf(this.view).low, arrayOf(this.view).high]));
    this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(this, Math.exp(-event.deltaY / 400), this.toGrid(event)); }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => this.beginDrag(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"])
      this.canvas.addEventListener(end, (event) => { this.drag = null; this.fingers.delete(event.pointerId); });
    this.canvas.addEventListener("keydown", (event) => pressKey(this, event));
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  get record() { return report.results[this.result]; }
  get space() { return spaces[this.view.space]; }
  get aspect() { const size = this.record.pixel_size_m; return size && this.view.space === "object" ? size[0] / size[1] : 1; }
  firstLimits() { return this.view.kind === "log" ? [0, arrayOf(this.view).high] : [...arrayOf(this.view).shown]; }

  async choose(result, view = this.view?.id) {
    const turn = ++this.turn;
    this.result = result;
    this.views = listViews(this.record);
    const found = this.views.find((one) => one.id === view) ?? this.views[0];
    this.missing = listMissing(this.record);
    this.choices.replaceChildren(...this.views.map((one) => element("option", { value: one.id }, one.label)),
      ...this.missing.map(({ name }) => element("option", { disabled: true }, `no ${name}`)));
    this.results.value = result;
    this.choices.value = found.id;
    const layer = await loadLayer(this.record, found);
    if (turn !== this.turn) return; // another one was chosen meanwhile
    const isOfOtherKind = this.view?.kind !== found.kind;
    [this.view, this.layer] = [found, layer];
    if (isOfOtherKind) this.maps.value = { phase: "viridis", log: "viridis", dots: "viridis", difference: "difference" }[found.kind] ?? "grey";
    const shown = this.firstLimits();
    if (found.kind === "phase" && shown[1] - shown[0] >= 2 * Math.PI - 1e-6) this.maps.value = "phase";
    this.maps.hidden = found.kind === "complex";
    this.canvas.setAttribute("aria-label", `${found.label} of ${this.record.name}; arrows move the cursor`);
    this.root.dataset.view = found.id;
    if (spaces[found.space]?.isWhole ?? true) fit(found.space);
    this.setLimits(shown);
    this.describe();
    drawAll();
  }

  error() { const array = arrayOf(this.view); return array.error ?? boundOf(array); }
  write(value) { return writeExact(value, this.error()); }

  describe() {
    this.caption.textContent = `${this.record.name}, ${this.view.label}`;
    const array = arrayOf(this.view), parts = this.view.image === this.record.object ? [...this.record.doubts] : [];
    if (this.view.kind === "dots") {
      const { shown, count: all } = this.record.frames;
      parts.push(shown < all ? `${shown} of ${all} frames, evenly spread` : `${all} frames`);
      if (this.layer.before) parts.push(`each line goes from where the position was to the dot where it is, drawn ${this.layer.magnified} times as long`);
    } else {
      parts.push(`${this.view.image.rows} × ${this.view.image.columns} pixels`);
      if (array.step > 1) parts.push(this.view.kind === "log" ? `every ${array.step}th pixel is shown` : `each value is the mean of ${array.step} × ${array.step} pixels`);
    }
    if (this.layer.values.some(Number.isFinite)) parts.push(`values to ±${writeBound(this.error())}${this.layer.phases ? `, phase to ±${writeBound(boundOf(this.view.image.phase))} rad` : ""}`);
    if (this.view.kind === "difference") parts.push("a phase ramp and a complex factor, which the data do not tell, are taken off");
    if (this.view.kind === "complex") parts.push("hue is phase from −π to π, brightness is amplitude");
    if (this.view.kind === "phase") parts.push(`${digits(this.view.image.phase_offset, 8)} rad is taken off, so that the median is 0`);
    if (this.view.kind === "log") { const { of, bad } = report.scans[this.record.scan_key].frame; parts.push(`mean of ${of} frames, ${bad} bad pixels`); }
    this.note.textContent = parts.join(" · ");
    if (this.layer.values.some(Number.isNaN)) this.note.append(" · ", element("i", { class: "hatched" }), this.view.kind === "log" ? " bad" : this.view.image.has_lost ? " not seen, NaN or infinite" : " not seen");
    for (const { name, why } of this.missing) this.note.append(` · no ${name}: ${why}`);
    if (this.record.link && this.view.space === "object") this.note.append(" · ", element("a", { href: this.record.link }, "HDF5"));
  }

  // Limits as somebody types them: an emptied one is automatic.
  typeLimits() {
    const wanted = [this.low, this.high].map((input, end) => (input.value === "" ? this.firstLimits()[end] : Number(input.value)));
    if (wanted[0] < wanted[1]) this.setLimits(wanted);
    else this.refuseLimits(`The lowest colour, ${digits(wanted[0])}, must be below the highest, ${digits(wanted[1])}: the colours are as before.`);
  }

  refuseLimits(problem) {
    this.problem.textContent = problem;
    for (const input of [this.low, this.high]) input.setAttribute("aria-invalid", String(problem !== ""));
  }

  setLimits(limits) {
    if (!limits.every(Number.isFinite)) return;
    this.refuseLimits("");
    this.limits = limits;
    this.low.value = digits(limits[0]);
    this.high.value = digits(limits[1]);
    if (document.getElementById("same-limits").checked)
      for (const other of panels) if (other !== this && other.view?.kind === this.view.kind && other.view.part === this.view.part && other.limits) { other.refuseLimits(""); other.limits = limits; other.low.value = this.low.value; other.high.value = this.high.value; other.paint(); other.draw(); }
    this.paint();
    this.draw();
  }

  colourOf(index) {
    const value = this.layer.values[index], [low, high] = this.limits;
    if (Number.isNaN(value)) return this.view.kind === "dots" ? GROUND : null;
    if (this.view.kind === "complex") return complexColour(this.layer.phases[index], Math.min(Math.max(value / (high || 1), 0), 1));
    const table = TABLES[this.maps.value];
    if (this.view.kind === "log") { const top = Math.max(high, 1e-12), floor = top * 1e-4; return colour(table, Math.log(Math.max(value, floor)), Math.log(Math.max(low, floor)), Math.log(top)); }
    return colour(table, value, low, high);
  }

  // The image in its colours, one pixel a value.
  paint() {
    if (!this.layer) return;
    this.paintBar();
    if (this.view.kind === "dots") return;
    const { rows, columns } = this.layer;
    this.picture ??= document.createElement("canvas");
    [this.picture.width, this.picture.height] = [columns, rows];
    const context = this.picture.getContext("2d"), data = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i++) {
      const rgb = this.colourOf(i);
      if (rgb) data.data.set([...rgb, 255], 4 * i);
    }
    context.putImageData(data, 0, 0);
  }

  paintBar() {
    const context = this.bar.getContext("2d"), data = context.createImageData(256, 1);
    for (let i = 0; i < 256; i++) {
      const rgb = this.view.kind === "complex" ? complexColour((i / 255) * 2 * Math.PI - Math.PI, 1) : colour(TABLES[this.maps.value], i, 0, 255);
      data.data.set([...rgb, 255], 4 * i);
    }
    context.putImageData(data, 0, 0);
    this.bar.title = this.view.kind === "complex" ? "phase from −π to π" : "";
  }

  toScreen(x, y) {
    const ratio = this.canvas.width / Math.max(this.canvas.clientWidth, 1), { scale } = this.space;
    return [((x - this.space.x) * scale + this.canvas.clientWidth / 2) * ratio, ((y - this.space.y) * scale * this.aspect + this.canvas.clientHeight / 2) * ratio];
  }

  toGrid(event) {
    const box = this.canvas.getBoundingClientRect(), { scale } = this.space;
    return [(event.clientX - box.left - box.width / 2) / scale + this.space.x, (event.clientY - box.top - box.height / 2) / scale / this.aspect + this.space.y];
  }

  draw() {
    if (!this.layer || !this.canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1, side = Math.round(this.canvas.clientWidth * ratio);
    // A finger on the whole image scrolls the page; on a part of it, it moves the image.
    this.canvas.style.touchAction = this.space.isWhole ? "pan-y" : "none";
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    const context = this.canvas.getContext("2d");
    context.fillStyle = this.view.kind === "dots" ? `rgb(${GROUND})` : makeHatch(context, ratio);
    context.fillRect(0, 0, side, side);
    context.imageSmoothingEnabled = false;
    if (this.view.kind === "dots") this.drawDots(context, ratio);
    else {
      const { left, top, columns, rows, step } = this.layer;
      const [x0, y0] = this.toScreen(left, top), [x1, y1] = this.toScreen(left + columns * step, top + rows * step);
      context.drawImage(this.picture, x0, y0, x1 - x0, y1 - y0);
    }
    this.drawMarks(context, ratio, side);
    this.read();
  }

  // What is whole stays whole.
  resize() {
    if (this.layer && this.space.isWhole) fit(this.view.space);
    this.draw();
  }

  drawDots(context, ratio) {
    const { xs, ys, before, magnified } = this.layer;
    const radius = before ? 3 * ratio : Math.max(2 * ratio, Math.min(9 * ratio, (this.canvas.width / Math.sqrt(xs.length)) * 0.3));
    for (let i = 0; i < xs.length; i++) {
      const [x, y] = this.toScreen(xs[i] + 0.5, ys[i] + 0.5);
      context.fillStyle = `rgb(${this.colourOf(i).map(Math.round)})`;
      if (before) {
        const path = new Path2D();
        path.moveTo(...this.toScreen(xs[i] + 0.5 + (before[0][i] - xs[i]) * magnified, ys[i] + 0.5 + (before[1][i] - ys[i]) * magnified));
        path.lineTo(x, y);
        context.lineWidth = 1.5 * ratio;
        context.strokeStyle = context.fillStyle;
        context.stroke(path);
      }
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    }
  }

  drawMarks(context, ratio, side) {
    const stroke = (path, width, colour) => { context.lineWidth = width * ratio; context.strokeStyle = colour; context.stroke(path); };
    const path = new Path2D(), { cursor, line } = shared;
    if (cursor?.space === this.view.space) {
      const [x, y] = this.toScreen(Math.floor(cursor.x) + 0.5, Math.floor(cursor.y) + 0.5), arm = 9 * ratio;
      path.moveTo(x - arm, y); path.lineTo(x + arm, y); path.moveTo(x, y - arm); path.lineTo(x, y + arm);
    }
    if (line?.space === this.view.space && line.to) { path.moveTo(...this.toScreen(...line.from)); path.lineTo(...this.toScreen(...line.to)); }
    stroke(path, 3, "#000"); stroke(path, 1.2, "#fff");
    if (!this.view.space.startsWith("frame")) this.drawScale(context, ratio, side);
  }

  drawScale(context, ratio, side) {
    const size = this.record.pixel_size_m, wide = this.canvas.clientWidth / 4 / this.space.scale; // pixels of the grid
    const length = roundLength(wide * (size ? size[1] : 1)), pixels = (size ? length / size[1] : length) * this.space.scale * ratio;
    const text = size ? formatLength(length) : `${Number(length.toPrecision(3))} px`;
    const [x, y] = [12 * ratio, side - 12 * ratio];
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    const width = Math.max(pixels, context.measureText(text).width) + 12 * ratio;
    context.fillStyle = "rgba(0,0,0,.6)";
    context.fillRect(x - 6 * ratio, y - 24 * ratio, width, 30 * ratio);
    context.fillStyle = "#fff";
    context.fillRect(x, y - 3 * ratio, pixels, 3 * ratio);
    context.fillText(text, x, y - 8 * ratio);
  }

  // ------------------------------------------------------------------------------ value and line

  indexAt(x, y) {
    const { left, top, columns, rows, step } = this.layer;
    const column = Math.floor((Math.floor(x) - left) / step), row = Math.floor((Math.floor(y) - top) / step);
    return column >= 0 && row >= 0 && column < columns && row < rows ? row * columns + column : -1;
  }

  nearestDot(x, y) {
    let best = 0, least = Infinity;
    for (let i = 0; i < this.layer.xs.length; i++) {
      const distance = (this.layer.xs[i] - x) ** 2 + (this.layer.ys[i] - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  read() {
    const { cursor } = shared;
    this.readout.classList.toggle("prompt", cursor?.space !== this.view.space);
    if (cursor?.space !== this.view.space) { this.readout.textContent = "Point at the image, or use the arrows on it, to read a value."; return; }
    if (this.view.kind === "dots") {
      const i = this.nearestDot(cursor.x, cursor.y);
      this.readout.textContent = `nearest frame, at row ${digits(this.layer.ys[i])}, column ${digits(this.layer.xs[i])}: ${this.write(this.layer.values[i])}${this.view.unit}`;
      return;
    }
    const row = Math.floor(cursor.y) - this.layer.top, column = Math.floor(cursor.x) - this.layer.left, i = this.indexAt(cursor.x, cursor.y);
    const unit = (this.view.part ?? this.view.kind) === "phase" ? " rad" : "", size = this.record.pixel_size_m;
    let value = i < 0 ? "outside" : this.write(this.layer.values[i]) + (Number.isNaN(this.layer.values[i]) ? "" : unit);
    if (i >= 0 && this.layer.phases && !Number.isNaN(this.layer.values[i])) value += `, phase ${writeExact(this.layer.phases[i], boundOf(this.view.image.phase))} rad`;
    const place = size && this.view.space === "object" ? ` (${formatSigned(row * size[0])}, ${formatSigned(column * size[1])})` : "";
    this.readout.textContent = `row ${row}, column ${column}${place}: ${value}`;
  }

  sample({ from, to }) {
    const count = 256;
    return Array.from({ length: count }, (_, k) => {
      const t = k / (count - 1), x = from[0] + t * (to[0] - from[0]), y = from[1] + t * (to[1] - from[1]);
      const i = this.view.kind === "dots" ? this.nearestDot(x, y) : this.indexAt(x, y);
      return i < 0 || Number.isNaN(this.layer.values[i]) ? null : this.layer.values[i];
    });
  }

  beginDrag(event) {
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.toGrid(event);
    this.drag = { at, isLine: event.shiftKey };
    this.fingers.set(event.pointerId, event);
    if (event.shiftKey) shared.line = { space: this.view.space, from: at, to: null };
  }

  // Whether two fingers zoom.
  pinch(event) {
    const spread = () => { const [a, b] = [...this.fingers.values()]; return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY); };
    if (this.fingers.size !== 2 || !this.fingers.has(event.pointerId)) return false;
    const before = spread();
    this.fingers.set(event.pointerId, event);
    const [a, b] = [...this.fingers.values()], middle = { clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 };
    if (before > 0) zoom(this, spread() / before, this.toGrid(middle));
    return true;
  }

  move(event) {
    if (!this.layer || this.pinch(event)) return;
    const at = this.toGrid(event);
    if (this.drag?.isLine) { shared.line.to = at; drawProfile(); }
    else if (this.drag) { this.space.isWhole = false; this.space.x += this.drag.at[0] - at[0]; this.space.y += this.drag.at[1] - at[1]; }
    const [x, y] = this.toGrid(event);
    shared.cursor = { space: this.view.space, x, y };
    drawAll();
  }
}

function formatSigned(metres) { return metres < 0 ? `−${formatLength(-metres)}` : metres === 0 ? "0" : formatLength(metres); }

// ---------------------------------------------------------------------------------- all panels

function drawAll() { for (const panel of panels) panel.draw(); }

function fit(space) {
  const shown = panels.filter((panel) => panel.view?.space === space && panel.layer);
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const { layer: { box } } of shown) { x0 = Math.min(x0, box[0]); x1 = Math.max(x1, box[1]); y0 = Math.min(y0, box[2]); y1 = Math.max(y1, box[3]); }
  if (!shown.length) return;
  const side = shown[0].canvas.clientWidth || 400;
  spaces[space] = { x: (x0 + x1) / 2, y: (y0 + y1) / 2, scale: side / Math.max(x1 - x0, (y1 - y0) * shown[0].aspect), isWhole: true };
}

function fitAll() { for (const panel of panels) if (panel.view) fit(panel.view.space); drawAll(); }

function zoom(panel, factor, [x, y] = [panel.space.x, panel.space.y]) {
  const { space } = panel, scale = Math.min(Math.max(space.scale * factor, 1e-3), 200), change = space.scale / scale;
  Object.assign(space, { isWhole: false, scale, x: x + (space.x - x) * change, y: y + (space.y - y) * change });
  drawAll();
}

async function swap() {
  if (panels.length < 2) return;
  const [a, b] = panels, [first, second] = [a, b].map((panel) => [panel.result, panel.view.id]);
  await Promise.all([a.choose(...second), b.choose(...first)]);
}

function step(panel, direction) {
  const able = report.results.flatMap((result, index) => (result.object ? [index] : []));
  const at = able.indexOf(panel.result);
  panel.choose(able[(at + direction + able.length) % able.length]);
}

function moveCursor(panel, dx, dy) {
  const { cursor } = shared, size = panel.layer.step ?? 1;
  const at = cursor?.space === panel.view.space ? cursor : panel.space;
  shared.cursor = { space: panel.view.space, x: Math.floor(at.x) + 0.5 + dx * size, y: Math.floor(at.y) + 0.5 + dy * size };
  drawAll();
}

function markLine(panel) {
  const { cursor, line } = shared;
  if (cursor?.space !== panel.view.space) return;
  const at = [cursor.x, cursor.y];
  if (line?.space === panel.view.space && !line.to) { line.to = at; drawProfile(); } else shared.line = { space: panel.view.space, from: at, to: null };
  drawAll();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
function pressKey(panel, event) {
  if (event.ctrlKey || event.altKey || event.metaKey || !panel.layer) return;
  const arrow = ARROWS[event.key], far = panel.canvas.clientWidth / 10 / panel.space.scale;
  const next = () => panel.views[(panel.views.findIndex((v) => v.id === panel.view.id) + 1) % panel.views.length].id;
  const actions = { "+": () => zoom(panel, 1.25), "=": () => zoom(panel, 1.25), "-": () => zoom(panel, 0.8), 0: fitAll, s: swap, n: () => step(panel, 1), p: () => step(panel, -1), v: () => panel.choose(panel.result, next()), l: () => markLine(panel) };
  const act = arrow ? () => { if (event.shiftKey) { panel.space.isWhole = false; panel.space.x += arrow[0] * far; panel.space.y += arrow[1] * far; drawAll(); } else moveCursor(panel, ...arrow); } : actions[event.key];
  if (act) { event.preventDefault(); act(); }
}

function drawProfile() {
  const figure = document.getElementById("profile"), { line } = shared;
  const shown = panels.filter((panel) => panel.layer && panel.view.space === line?.space);
  figure.hidden = !line?.to || !shown.length;
  if (figure.hidden) return;
  const size = shown[0].record.pixel_size_m, inMetres = size && line.space === "object";
  const [dx, dy] = [line.to[0] - line.from[0], line.to[1] - line.from[1]];
  const length = inMetres ? Math.hypot(dx * size[1], dy * size[0]) * 1e6 : Math.hypot(dx, dy);
  const x = count(256, 0).map((i) => (i / 255) * length);
  const series = shown.map((panel) => ({ name: `${panel.record.name}, ${panel.view.label}`, x, y: panel.sample(line) }));
  drawChart(figure.querySelector(".chart"), series, { x: inMetres ? "µm along the line" : "pixels along the line", y: "value" });
}

// What the next panel shows at first: the best result and the baseline, then others of their scan.
function findNext() {
  const all = report.results.flatMap((result, index) => (result.object ? [index] : []));
  const able = [...report.first, ...all.filter((index) => !report.first.includes(index))];
  const taken = panels.map((panel) => panel.result), free = able.filter((index) => !taken.includes(index));
  const alike = free.filter((index) => panels.length && report.results[index].scan_key === panels[0].record.scan_key);
  return alike[0] ?? free[0] ?? able[0];
}

function setPanels(number) {
  while (panels.length > number) panels.pop().root.remove();
  while (panels.length < number) {
    const next = findNext(), isOnly = panels.some((panel) => panel.result === next), panel = new Panel(panels.length);
    const view = isOnly && panel.number === 1 ? "phase" : panels[0]?.view && !isOnly ? panels[0].view.id : "amplitude";
    panels.push(panel);
    document.getElementById("panels").append(panel.root);
    panel.choose(next, view);
    panel.result = next;
  }
  requestAnimationFrame(fitAll);
}

// The rows that are chosen in the table, in as many panels.
function openChosen() {
  const chosen = chosenRows().map((row) => Number(row.dataset.index)).filter((index) => report.results[index].object).slice(0, MOST_PANELS);
  if (!chosen.length) return;
  const number = document.getElementById("panel-count");
  number.value = Math.max(chosen.length, 1);
  setPanels(Number(number.value));
  panels.forEach((panel, index) => panel.choose(chosen[index], panels[0].view?.id));
  document.getElementById("images").scrollIntoView();
}

function beginViewer() {
  if (!report.results.some((result) => result.object)) {
    document.getElementById("no-images").hidden = false;
    document.querySelector("#images .controls").hidden = true;
    document.querySelector("#images details").hidden = true;
    return;
  }
  const number = document.getElementById("panel-count");
  number.addEventListener("change", () => setPanels(Number(number.value)));
  document.getElementById("swap").addEventListener("click", swap);
  document.getElementById("reset").addEventListener("click", fitAll);
  document.getElementById("same-limits").addEventListener("change", () => panels[0].setLimits(panels[0].limits));
  document.getElementById("open-chosen").addEventListener("click", openChosen);
  document.getElementById("baseline").addEventListener("change", () => { for (const panel of panels) panel.choose(panel.result); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  for (const link of document.querySelectorAll("[data-open]"))
    link.addEventListener("click", () => { if (report.results[link.dataset.open].object) panels[0].choose(Number(link.dataset.open)); });
  setPanels(Number(number.value));
}
