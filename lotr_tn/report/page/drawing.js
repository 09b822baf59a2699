// Elements, scales and colours.

// Asked of the browser, so that this file holds no address at all.
const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Text is only written where it changed, so that a drag touches as little as it can.
function say(id, text) {
  const place = byId(id);
  if (place.textContent !== text) place.textContent = text;
}

let pictures = 0;

// An SVG that a screen reader reads as one image: a name and a description.
function picture(width, height, name, description) {
  const id = "picture-" + ++pictures;
  return drawn(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${id}-t`, "aria-describedby": `${id}-d` },
    drawn("title", { id: `${id}-t` }, name),
    drawn("desc", { id: `${id}-d` }, description),
  );
}

function text(x, y, words, attributes = {}) {
  return drawn("text", { x: round(x), y: round(y), ...attributes }, words);
}

function line(x1, y1, x2, y2, kind) {
  return drawn("line", { x1: round(x1), y1: round(y1), x2: round(x2), y2: round(y2), class: kind });
}

const round = (x) => Math.round(x * 10) / 10;
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// A logarithmic scale from values to pixels; what lies outside is drawn at the edge.
function logScale(low, high, start, end) {
  const [a, b] = [Math.log(low), Math.log(high)];
  const scale = (x) => start + ((Math.log(clamp(x, low, high)) - a) / (b - a || 1)) * (end - start);
  return Object.assign(scale, { low, high });
}

function linearScale(low, high, start, end) {
  const scale = (x) => start + ((clamp(x, low, high) - low) / (high - low || 1)) * (end - start);
  return Object.assign(scale, { low, high });
}

// At most so many round values within a range of some decades.
function logTicks(low, high, most) {
  const first = Math.floor(Math.log10(low) + 1e-9);
  const last = Math.ceil(Math.log10(high) - 1e-9);
  for (const steps of [[1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let k = first; k <= last; k++) {
      for (const step of steps) found.push(Number(`${step}e${k}`));
    }
    const inside = found.filter((x) => x >= low * 0.999 && x <= high * 1.001);
    if (inside.length <= most) return inside;
    if (steps.length === 1) return inside.filter((_, i) => i % Math.ceil(inside.length / most) === 0);
  }
  return [];
}

function linearTicks(low, high, most) {
  const raw = (high - low) / most || 1;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = Math.max(1, [1, 2, 5, 10].find((s) => s * size >= raw) * size);
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high; x += step) found.push(x);
  return found;
}

// Cividis (Nuñez, Anderton and Renslow 2018): even steps also without red and green.
const CIVIDIS = [
  [0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115],
  [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56],
];
const MISSING = [150, 150, 150];

function colour(share) {
  if (!(share >= 0)) return MISSING;
  const place = Math.min(share, 1) * (CIVIDIS.length - 1);
  const index = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const [a, b] = [CIVIDIS[index], CIVIDIS[index + 1]];
  return a.map((x, i) => Math.round(x + (b[i] - x) * (place - index)));
}

// The marks of forms, told apart by shape as well as by colour: as figures have them.
const MARKS = {
  o: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0",
  s: "M-4-4H4V4H-4Z",
  "^": "M0-5L5 4H-5Z",
  v: "M0 5L5-4H-5Z",
  D: "M0-6L5 0L0 6L-5 0Z",
  P: "M-5 0H5M0-5V5",
  X: "M-4-4L4 4M-4 4L4-4",
};
const formOf = (form) => record.forms[form] || { label: form, marker: "X", kept: false, pairs: false };
const formClass = (form) => "form form-" + (form in record.forms ? form : "other");
const markClass = (form) => formClass(form) + ("PX".includes(formOf(form).marker) ? " mark open" : " mark");
const shape = (form) => MARKS[formOf(form).marker];

// The key of a form: a piece of its line with its mark.
function formKey(form, withLine) {
  const key = drawn("svg", { viewBox: "0 0 34 14", class: "form-key", "aria-hidden": "true" });
  if (withLine) key.append(drawn("path", { d: "M1 7H33", class: formClass(form) + " curve" }));
  key.append(drawn("path", { d: shape(form), transform: "translate(17 7)", class: markClass(form) }));
  return key;
}

function lineKey(form) {
  return drawn("svg", { viewBox: "0 0 34 14", class: "form-key", "aria-hidden": "true" }, drawn("path", { d: "M1 7H33", class: formClass(form) + " curve" }));
}

function legend(host, entries) {
  const list = element("ul", { class: "legend" });
  for (const [key, words] of entries) list.append(element("li", {}, key, words));
  host.replaceChildren(list);
}

function decode(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

// Little-endian floats of 32 or 64 bits.
function numbers(packed) {
  const bytes = decode(packed.data);
  const view = new DataView(bytes.buffer);
  const size = packed.bits / 8;
  const found = new Float64Array(bytes.length / size);
  for (let i = 0; i < found.length; i++) {
    found[i] = size === 4 ? view.getFloat32(4 * i, true) : view.getFloat64(8 * i, true);
  }
  return found;
}
