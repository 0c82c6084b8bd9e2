// A run as it goes on: its scripts are loaded again and again, and call showRun and showStage.

const MOST_AT_WORK = 4, PATIENCE = 5, MOST_UNCHANGED = 3;
const folder = document.body.dataset.folder;
const run = { told: null, seen: 0, unchanged: 0 }; // seen: when a new one came, by this page's clock
const shown = new Map(); // of each stage on the page, by its script

function formatSeconds(seconds) {
  const whole = Math.max(0, Math.round(seconds)), two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function className(state) { return state.replaceAll(" ", "-"); }

// Scripts are all that a page may load which is a file.
function load(name) {
  return new Promise((resolve) => {
    const script = element("script", { src: `${folder}/${name}?${Date.now()}` });
    script.onload = script.onerror = () => { script.remove(); resolve(); };
    document.head.append(script);
  });
}

function showRun(told) {
  // Another run may begin to count anew.
  const isNew = !run.told || told.beat !== run.told.beat || told.started !== run.told.started;
  if (isNew && run.told) run.isAlive = true;
  if (isNew) Object.assign(run, { seen: performance.now(), unchanged: 0 });
  else run.unchanged += 1;
  run.told = told;
}

function isAtWork() { return ["running", "waiting"].includes(run.told?.state); }

// Seconds without a sign of life; 0 as long as it may be late. Clocks of two machines may differ:
// only before the second sign is the other one's believed.
function silence() {
  if (!isAtWork()) return 0;
  const own = (performance.now() - run.seen) / 1000, limit = PATIENCE * run.told.every;
  const other = run.isAlive ? 0 : Date.now() / 1000 - run.told.time;
  if (other > limit) return other;
  return own > limit && run.unchanged >= MOST_UNCHANGED ? own : 0;
}

function describeRun(silent) {
  const { told } = run, where = `process ${told.process} on ${told.machine}`;
  const since = formatSeconds(told.time - told.started);
  if (silent) return `No sign of life for ${formatSeconds(silent)}: ${where} was killed or suspended, or its machine is gone. It had run for ${since}. What was finished is kept: run it again, and it goes on from there.`;
  if (told.state === "running") return `Runs for ${since}, ${where}.`;
  if (told.state === "waiting") return `${told.text}. Runs for ${since}, ${where}.`;
  const ended = { finished: "Finished", failed: "Ended, with failures,", stopped: "Was stopped" }[told.state];
  return `${ended} after ${since}, at ${new Date(told.time * 1000).toLocaleString()}.`;
}

function setText(id, text) {
  const place = document.getElementById(id);
  if (place.textContent !== text) place.textContent = text; // else it is read aloud again
}

function drawRun() {
  const { told } = run, silent = silence();
  const state = silent ? "dead" : told.state;
  setText("title", told.title);
  setText("state", silent ? "no sign of life" : told.state);
  document.getElementById("state").className = `state ${state}`;
  setText("status", describeRun(silent));
  document.getElementById("status").className = silent ? "problem" : "";
  document.body.classList.toggle("is-dead", silent > 0);
  document.title = `${told.title}: ${silent ? "no sign of life" : told.state}`;
  const listed = Object.entries(told.counts).map(([name, number]) => `${number} ${name}`).join(", ");
  const left = Object.values(told.counts).reduce((a, b) => a + b, 0) - told.tasks.length;
  setText("counts", listed + (left > 0 ? `; ${left} are not listed` : ""));
  drawTasks(told, silent);
}

function drawTasks(told, silent) {
  const lines = told.tasks.map((task) => {
    const state = silent && task.state === "running" ? "dead" : task.state;
    const text = state === "dead" ? "ran last" : task.state;
    const seconds = task.state === "running" ? told.time - task.begun : task.seconds;
    return element("tr", {},
      element("th", { scope: "row" }, element("bdi", {}, task.name)),
      element("td", {}, element("span", { class: `state ${className(state)}` }, text)),
      element("td", { class: "measure" }, seconds === undefined ? "" : formatSeconds(seconds)),
      element("td", { class: "problem" }, element("bdi", {}, task.text ?? "")));
  });
  document.getElementById("tasks").replaceChildren(...lines);
}

function makeStage() {
  const parts = {
    head: element("h2"), bar: element("progress"), line: element("p"), pictures: [],
    note: element("p", { class: "note" }), chart: element("div", { class: "chart" }),
  };
  const figures = ["amplitude", "phase"].map((kind) => {
    const image = element("img"), caption = element("figcaption");
    parts.pictures.push({ kind, image, caption });
    const figure = element("figure", {}, caption, image);
    figure.hidden = true;
    return figure;
  });
  parts.figures = figures;
  const curves = element("figure", {}, element("figcaption", {}, "Curves"), parts.chart);
  parts.section = element("section", {}, parts.head, parts.bar, parts.line, parts.note,
    element("div", { class: "work" }, ...figures, curves));
  parts.curves = curves;
  return parts;
}

function showStage(told) {
  const parts = shown.get(run.loading);
  if (!parts) return;
  parts.head.replaceChildren(element("bdi", {}, told.task));
  parts.bar.max = Math.max(told.total, 1);
  parts.bar.value = told.done;
  parts.bar.setAttribute("aria-label", `${told.task}: ${told.done} of ${told.total}`);
  const values = Object.entries(told.curves).map(([name, points]) => `${name} ${digits(points.at(-1)[1])}`);
  const isDone = told.total > 0 && told.done >= told.total;
  const left = told.ends === null || isDone || !isAtWork() || silence() ? [] : [`about ${formatSeconds(told.ends - told.time)} left`];
  const steps = told.total ? `${told.done} of ${told.total}` : "begins";
  parts.line.textContent = [steps, ...values, ...left].join(" \u00b7 ");
  drawPictures(parts, told.pictures);
  drawLosses(parts, told.curves);
}

function drawPictures(parts, pictures) {
  parts.note.textContent = pictures.problem
    ?? (pictures.rows ? `Object, ${pictures.rows} × ${pictures.columns} pixels, after step ${pictures.step}; what was not seen is grey.` : "");
  parts.pictures.forEach(({ kind, image, caption }, index) => {
    const picture = pictures[kind];
    parts.figures[index].hidden = !picture;
    if (!picture) return;
    const source = `data:image/png;base64,${picture.png}`;
    if (image.src !== source) image.src = source;
    caption.textContent = `${kind}${kind === "phase" ? " (rad)" : ""}, ${digits(picture.low)} to ${digits(picture.high)}`;
    image.alt = `${kind} of the object as it is now`;
  });
}

function drawLosses(parts, curves) {
  const names = Object.keys(curves).sort();
  parts.curves.hidden = !names.length;
  if (!names.length) return;
  const series = names.map((name) => ({ name, x: curves[name].map((p) => p[0]), y: curves[name].map((p) => p[1]) }));
  const isPositive = series.every((one) => one.y.every((value) => value === null || value > 0));
  drawChart(parts.chart, series, { x: "step", y: "value", isLog: isPositive });
}

// The stages at work, or the last one of a run that has ended.
function chooseStages(told) {
  const known = told.tasks.filter((task) => task.file);
  const ran = known.filter((task) => task.seconds !== undefined);
  const running = known.filter((task) => task.state === "running");
  return (running.length ? running : ran.slice(-1)).slice(0, MOST_AT_WORK).map((task) => task.file);
}

async function drawStages() {
  const files = chooseStages(run.told), place = document.getElementById("stages");
  for (const file of files) {
    if (!shown.has(file)) shown.set(file, makeStage());
    run.loading = file;
    await load(file); // one after the other, so that each knows whose it is
  }
  for (const file of [...shown.keys()]) if (!files.includes(file)) shown.delete(file);
  const sections = files.map((file) => shown.get(file)).filter((parts) => parts.head.textContent);
  const isSame = sections.length === place.children.length && sections.every((parts, i) => parts.section === place.children[i]);
  if (!isSame) place.replaceChildren(...sections.map((parts) => parts.section));
}

async function look() {
  await load("run.js");
  if (run.told) {
    await drawStages();
    drawRun();
  }
  setTimeout(look, 1000 * (run.told?.every ?? 2));
}

look();
