"use strict";
// Arrays of the page, and colours for them.

const report = JSON.parse(document.getElementById("report-data").textContent);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// A name that may go on in another line where one of its words ends.
function breakable(name) {
  return element("bdi", {}, ...name.split(/(?<=[/_:])/).flatMap((part) => [part, element("wbr")]));
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Values of an encoded array; NaN where there is none. Decoded once.
function decode(array) {
  array.promise ??= inflate(array.data).then((bytes) => {
    const values = new Float32Array(array.count);
    const scale = (array.high - array.low) / (2 ** array.bits - 2);
    for (let i = 0; i < array.count; i++) {
      const code = array.bits === 16 ? bytes[i] * 256 + bytes[i + array.count] : bytes[i];
      values[i] = code ? array.low + (code - 1) * scale : NaN;
    }
    return values;
  });
  return array.promise;
}

// How far a value may be from the one that was encoded: half a step of the codes, and what single
// precision loses here and there.
function boundOf(array) {
  return (array.high - array.low) / (2 ** array.bits - 2) / 2 + 2 ** -22 * Math.max(Math.abs(array.low), Math.abs(array.high));
}

// With so many digits that rounding adds at most a twentieth of an error, see `writeBound`.
function writeExact(value, error) {
  if (!Number.isFinite(value)) return "no value";
  const decimals = error > 0 ? 1 - Math.floor(Math.log10(error)) : 5;
  return decimals > 0 && decimals < 100 ? Number(value.toFixed(decimals)).toString() : digits(value, 15);
}

// One digit, rounded up, of an error of values that are written with `writeExact`.
function writeBound(error) {
  if (!(error > 0)) return "0";
  const unit = 10 ** Math.floor(Math.log10(1.05 * error));
  return Number((Math.ceil(1.05 * error / unit) * unit).toPrecision(1)).toString();
}

// Anchors of colour maps, evenly spaced.
const MAPS = {
  viridis: ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"],
  grey: ["000000", "ffffff"],
  difference: ["053061", "2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7", "fddbc7", "f4a582", "d6604d", "b2182b", "67001f"],
  phase: ["e2d9e2", "9ebbc9", "6785be", "5e43a5", "421257", "2f1436", "701a4a", "a9445c", "c68f78", "d9ccc4", "e2d9e2"],
};

function makeTable(name) {
  const anchors = MAPS[name].map((text) => [0, 2, 4].map((at) => parseInt(text.slice(at, at + 2), 16)));
  const table = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (anchors.length - 1), low = Math.min(Math.floor(at), anchors.length - 2);
    for (let c = 0; c < 3; c++)
      table[3 * i + c] = anchors[low][c] + (at - low) * (anchors[low + 1][c] - anchors[low][c]);
  }
  return table;
}
const TABLES = Object.fromEntries(Object.keys(MAPS).map((name) => [name, makeTable(name)]));

function colour(table, value, low, high) {
  const place = high > low ? (value - low) / (high - low) : 0.5;
  const index = 3 * Math.round(255 * Math.min(Math.max(place, 0), 1));
  return [table[index], table[index + 1], table[index + 2]];
}

// Hue by phase, brightness by amplitude.
function complexColour(phase, brightness) {
  const hue = ((phase / (2 * Math.PI) + 1) % 1) * 6;
  return [5, 3, 1].map((shift) => {
    const k = (shift + hue) % 6;
    return 255 * brightness * (1 - Math.max(0, Math.min(k, 4 - k, 1)));
  });
}

function digits(value, most = 5) {
  if (!Number.isFinite(value)) return "no value";
  return Number(value.toPrecision(most)).toString();
}

// The largest of 1, 2 and 5 times a power of ten that is at most `most`.
function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return Math.max(...[1, 2, 5].filter((step) => step * power <= most * (1 + 1e-9))) * power;
}

const PREFIXES = [[1, "m"], [1e-3, "mm"], [1e-6, "µm"], [1e-9, "nm"], [1e-12, "pm"]];
function formatLength(metres) {
  const [scale, unit] = PREFIXES.find(([size]) => metres >= size * (1 - 1e-9)) ?? PREFIXES.at(-1);
  return `${Number((metres / scale).toPrecision(4))} ${unit}`;
}
