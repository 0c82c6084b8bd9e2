// A run as it goes on: its scripts are loaded again and again, and call showRun and showStage.

const MOST_AT_WORK = 4, MOST_JOBS = 50, PATIENCE = 5, MOST_UNCHANGED = 3;
const ENDED = { finished: "Finished", failed: "Ended, with failures,", stopped: "Was stopped" };
const IF_SILENT = { running: "ran last", waiting: "not run" }; // what is left of a run that was killed
const folder = document.body.dataset.folder;
const run = makeSigns();
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

// The signs of life of what writes a script; seen: when a new one came, by this page's clock.
function makeSigns() { return { told: null, seen: 0, unchanged: 0, isAlive: false }; }

function noteSign(signs, told) {
  // Another run may begin to count anew.
  const isNew = !signs.told || ["beat", "started", "begun"].some((key) => told[key] !== signs.told[key]);
  if (isNew && signs.told) signs.isAlive = true;
  if (isNew) Object.assign(signs, { seen: performance.now(), unchanged: 0 });
  else signs.unchanged += 1;
  signs.told = told;
}

function showRun(told) { noteSign(run, told); }

function isAtWork(signs = run) { return ["running", "waiting"].includes(signs.told?.state); }

// Seconds without a sign of life; 0 as long as it may be late. Clocks of two machines may differ:
// only before the second sign is the other one's believed.
function silence(signs = run) {
  if (!isAtWork(signs)) return 0;
  const own = (performance.now() - signs.seen) / 1000, limit = PATIENCE * signs.told.every;
  const other = signs.isAlive ? 0 : Date.now() / 1000 - signs.told.time;
  if (other > limit) return other;
  return own > limit && signs.unchanged >= MOST_UNCHANGED ? own : 0;
}

// What a task is doing: of one that goes on as a job, by the job's own script.
function stateOf(task) {
  const parts = shown.get(task.file);
  if (task.state === "running" && silence() && parts?.isAlive && !silence(parts)) return parts.told.state;
  if (task.state !== "goes on") return silence() ? IF_SILENT[task.state] ?? task.state : task.state;
  if (!parts?.told) return task.state;
  return silence(parts) ? "no sign of life" : parts.told.state;
}

function listJobs() { return run.told.tasks.filter((task) => task.state === "goes on" && task.file).slice(0, MOST_JOBS); }

function describeJobs() {
  const states = listJobs().map(stateOf), ended = states.filter((state) => ["made", "failed"].includes(state)).length;
  if (!states.length) return "";
  // A job that never begins writes nothing: only the scheduler knows that it is gone.
  const queued = states.includes("queued") ? " What is queued was so when the run ended: of a job that was cancelled or died before it began, the next doit tells." : "";
  return ended < states.length ? ` ${states.length - ended === 1 ? "1 job goes" : `${states.length - ended} jobs go`} on.${queued}` : " Its jobs have ended: run doit again, to take what they made.";
}

function describeRun(silent) {
  const { told } = run, where = `process ${told.process} on ${told.machine}`;
  const since = formatSeconds(told.time - told.started);
  if (silent) return `No sign of life for ${formatSeconds(silent)}: ${where} was killed or suspended, or its machine is gone. It had run for ${since}. What was finished is kept: run it again, and it goes on from there.${told.jobs ? " Its jobs may go on: run doit again, to find them." : ""}`;
  if (told.state === "running") return `Runs for ${since}, ${where}.`;
  if (told.state === "waiting") return `${told.text}. Runs for ${since}, ${where}.`;
  return `${ENDED[told.state]} after ${since}, at ${new Date(told.time * 1000).toLocaleString(undefined, { timeZoneName: "short" })}.${describeJobs()}`;
}

function setText(id, text) {
  const place = document.getElementById(id);
  if (place.textContent !== text) place.textContent = text; // else it is read aloud again
}

function drawRun() {
  const { told } = run, silent = silence();
  const goesOn = listJobs().some((task) => ["queued", "running"].includes(stateOf(task)));
  const state = silent ? "no sign of life" : goesOn ? "jobs go on" : told.state;
  setText("title", told.title);
  setText("state", state);
  document.getElementById("state").className = `state ${silent ? "dead" : goesOn ? "running" : told.state}`;
  setText("status", describeRun(silent));
  document.getElementById("status").className = silent ? "problem" : "";
  document.body.classList.toggle("is-dead", silent > 0);
  document.title = `${told.title}: ${state}`;
  const listed = Object.entries(told.counts).map(([name, number]) => `${number} ${silent ? IF_SILENT[name] ?? name : name}`).join(", ");
  const left = Object.values(told.counts).reduce((a, b) => a + b, 0) - told.tasks.length;
  setText("counts", listed + (left > 0 ? `; ${left} are not listed` : ""));
  drawTasks(told);
}

const BAD = ["failed", "left out", "ran last", "not run", "no sign of life"];

function drawTasks(told) {
  const lines = told.tasks.map((task) => {
    const state = stateOf(task), job = task.state === "goes on" ? shown.get(task.file)?.told : null;
    const seconds = job && job.state !== "queued" ? job.time - job.begun : task.state === "running" ? told.time - task.begun : task.seconds;
    const note = [task.text, job?.text].filter(Boolean).join(" · ");
    return element("tr", {},
      element("th", { scope: "row" }, breakable(task.name), note ? element("div", { class: BAD.includes(state) ? "problem" : "note" }, element("bdi", {}, note)) : ""),
      element("td", {}, element("span", { class: `state ${BAD.includes(state) ? "failed" : className(state)}` }, state)),
      element("td", { class: "measure" }, seconds === undefined ? "" : formatSeconds(seconds)));
  });
  document.getElementById("tasks").replaceChildren(...lines);
}

function makeStage() {
  const parts = {
    head: element("h2"), bar: element("progress"), line: element("p"), pictures: [],
    note: element("p", { class: "note" }), charts: [], ...makeSigns(),
  };
  const figures = ["amplitude", "phase"].map((kind) => {
    const image = element("img", { class: "hatched" }), caption = element("figcaption");
    parts.pictures.push({ kind, image, caption });
    const figure = element("figure", {}, caption, image);
    figure.hidden = true;
    return figure;
  });
  parts.figures = figures;
  parts.curves = element("div");
  parts.section = element("section", {}, parts.head, parts.bar, parts.line, parts.note,
    element("div", { class: "work" }, ...figures, parts.curves));
  return parts;
}

function showStage(told) {
  const parts = shown.get(run.loading);
  if (!parts) return;
  noteSign(parts, told);
  parts.head.replaceChildren(breakable(told.task));
  const isBegun = told.total !== 0, isCounted = told.total !== null;
  const steps = !isBegun ? "begins" : isCounted ? `${told.done} of ${told.total}` : `${told.done} steps`;
  parts.bar.max = Math.max(told.total, 1);
  if (isCounted) parts.bar.value = told.done;
  else parts.bar.removeAttribute("value");
  parts.bar.setAttribute("aria-label", `${told.task}: ${steps}`);
  const values = Object.entries(told.curves).map(([name, points]) => `${name} ${digits(points.at(-1)[1])}`);
  const isDone = told.total > 0 && told.done >= told.total;
  const isJob = listJobs().some((task) => task.file === run.loading), writer = isJob ? parts : run;
  const left = told.ends === null || isDone || !isAtWork(writer) || silence(writer) ? [] : [`about ${formatSeconds(told.ends - told.time)} left`];
  parts.line.textContent = [steps, ...values, ...left].join(" \u00b7 ");
  drawPictures(parts, told.pictures);
  drawLosses(parts, told.curves);
}

function drawPictures(parts, pictures) {
  parts.note.textContent = pictures.problem
    ?? (pictures.rows ? `Object, ${pictures.rows} × ${pictures.columns} pixels, after step ${pictures.step}; what was not seen is hatched.` : "");
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
  const series = Object.keys(curves).sort().map((name) => ({ name, x: curves[name].map((p) => p[0]), y: curves[name].map((p) => p[1]) }));
  const groups = groupByRange(series);
  while (parts.charts.length > groups.length) parts.charts.pop().remove();
  groups.forEach((group, index) => {
    const title = group.map((one) => one.name).join(", ");
    if (!parts.charts[index]) {
      parts.charts.push(element("figure", {}, element("figcaption"), element("div", { class: "chart" })));
      parts.curves.append(parts.charts[index]);
    }
    const [caption, chart] = parts.charts[index].children;
    caption.textContent = title;
    drawChart(chart, group, { x: "step", y: title, mayBeLog: true });
  });
}

// The stages at work, or the last one that ran.
function chooseStages() {
  const known = run.told.tasks.filter((task) => task.file), jobs = listJobs();
  const running = [...known.filter((task) => task.state === "running"), ...jobs.filter((task) => stateOf(task) === "running")];
  const ran = [...known.filter((task) => task.seconds !== undefined), ...jobs.filter((task) => shown.get(task.file)?.told?.total)];
  return (running.length ? running : ran.slice(-1)).slice(0, MOST_AT_WORK).map((task) => task.file);
}

async function loadStages(files) {
  for (const file of files) {
    if (!shown.has(file)) shown.set(file, makeStage());
    run.loading = file;
    await load(file); // one after the other, so that each knows whose it is
  }
}

async function drawStages() {
  const place = document.getElementById("stages"), jobs = listJobs().map((task) => task.file);
  await loadStages(jobs);
  const files = chooseStages();
  await loadStages(files.filter((file) => !jobs.includes(file)));
  for (const file of [...shown.keys()]) if (![...files, ...jobs].includes(file)) shown.delete(file);
  const sections = files.map((file) => shown.get(file)).filter((parts) => parts.told);
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
