// Maps of coloured cells: error by layer, error by pair of ranks, overlap of layers.

const SMALL = 11;

// Draws a map and returns functions that move its marks.
//   rows, columns: counts; value(row, column): share of 0 … 1 for the colour, NaN where there is none
//   rowName(i), columnName(i): what stands at the axes; up: row 0 is at the bottom
//   ticks: [[share, words]] of the legend; curve: [[column, row]] of a line over the cells
function heatMap(host, spec) {
  const width = Math.max(host.clientWidth, 200);
  const names = Array.from({ length: spec.rows }, (_, i) => short(spec.rowName(i), spec.nameLength || 12));
  const longest = names.reduce((most, name) => Math.max(most, name.length), 1);
  const left = 26 + longest * SMALL * 0.6;
  const [right, top, bottom] = [10, 16, 92];
  const inner = width - left - right;
  const tall = spec.square ? inner * (spec.rows / spec.columns) : spec.rows * clamp(360 / spec.rows, 2, 18);
  const high = clamp(tall, Math.min(18 * spec.rows, 60), 440);
  const height = Math.round(top + high + bottom);
  const svg = picture(width, height, spec.name, spec.description);
  const cell = [inner / spec.columns, high / spec.rows];
  const middleX = (i) => left + (i + 0.5) * cell[0];
  const middleY = (i) => top + ((spec.up ? spec.rows - 1 - i : i) + 0.5) * cell[1];
  for (const i of spread(spec.rows, cell[1], SMALL + 3)) {
    const label = text(left - 5, middleY(i) + 4, names[i], { class: "tick end" });
    if (names[i] !== spec.rowName(i)) label.append(drawn("title", {}, spec.rowName(i)));
    svg.append(label);
  }
  const wide = 10 + SMALL * 0.62 * Math.max(...[0, spec.columns - 1].map((i) => String(spec.columnName(i)).length), 3);
  for (const i of spread(spec.columns, cell[0], wide)) {
    svg.append(text(middleX(i), top + high + 15, spec.columnName(i), { class: "tick middle" }));
  }
  svg.append(text(left + inner / 2, top + high + 33, spec.labelX, { class: "name middle" }));
  const middle = top + high / 2;
  svg.append(text(12, middle, spec.labelY, { class: "name middle", transform: `rotate(-90 12 ${middle})` }));
  if (spec.curve && spec.curve.length > 1) {
    const d = spec.curve.map(([c, r], i) => `${i ? "L" : "M"}${round(middleX(c))} ${round(middleY(r))}`).join("");
    svg.append(drawn("path", { d, class: "over wide" }), drawn("path", { d, class: "over" }));
  }
  key(svg, left, top + high + 46, Math.min(inner, 320), spec);
  const column = drawn("rect", { y: top - 1, height: round(high + 2), class: "column" });
  const arrow = drawn("path", { d: "M-6-9H6L0-1Z", class: "arrow" });
  const ring = drawn("g", { class: "ring" }, drawn("circle", { r: 8, class: "wide" }), drawn("circle", { r: 8 }));
  if (spec.marked === "column") svg.append(column, arrow);
  if (spec.marked === "cell") svg.append(ring);
  const canvas = paint(spec);
  // in shares of the picture, so that both keep together when it is printed at another width
  for (const [side, part] of [["left", left / width], ["top", top / height], ["width", inner / width], ["height", high / height]]) {
    canvas.style.setProperty(side, 100 * part + "%");
  }
  const frame = element("div", { class: "heat" }, canvas, svg);
  host.replaceChildren(frame);
  return {
    column(i) {
      column.setAttribute("x", round(left + i * cell[0] - 1));
      column.setAttribute("width", round(cell[0] + 2));
      arrow.setAttribute("transform", `translate(${round(middleX(i))} ${top})`);
    },
    cell(r, c) {
      ring.setAttribute("transform", `translate(${round(middleX(c))} ${round(middleY(r))})`);
    },
    describe(words) {
      svg.querySelector("desc").textContent = words;
    },
    // The row and the column under a pointer.
    at(event) {
      const box = svg.getBoundingClientRect();
      const c = Math.floor((((event.clientX - box.left) / box.width) * width - left) / cell[0]);
      const r = Math.floor((((event.clientY - box.top) / box.height) * height - top) / cell[1]);
      const inside = c >= 0 && c < spec.columns && r >= 0 && r < spec.rows;
      return inside ? [spec.up ? spec.rows - 1 - r : r, c] : null;
    },
    frame,
  };
}

// One pixel for each cell; the style sheet stretches it.
function paint(spec) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  canvas.width = spec.columns;
  canvas.height = spec.rows;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(spec.columns, spec.rows);
  for (let r = 0; r < spec.rows; r++) {
    const row = spec.up ? spec.rows - 1 - r : r;
    for (let c = 0; c < spec.columns; c++) {
      image.data.set([...colour(spec.value(r, c)), 255], 4 * (row * spec.columns + c));
    }
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

// What the colours mean.
function key(svg, left, top, width, spec) {
  const id = `ramp-${pictures}`;
  const ramp = drawn("linearGradient", { id });
  for (let i = 0; i <= 9; i++) {
    ramp.append(drawn("stop", { offset: i / 9, "stop-color": `rgb(${colour(i / 9).join(",")})` }));
  }
  svg.append(drawn("defs", {}, ramp), drawn("rect", { x: left, y: top, width, height: 9, fill: `url(#${id})` }));
  const last = spec.ticks.length - 1;
  spec.ticks.forEach(([share, words], i) => {
    const side = i === 0 ? "" : i === last ? " end" : " middle";
    svg.append(text(left + share * width, top + 22, words, { class: "tick" + side }));
  });
  svg.append(text(left, top + 38, spec.labelKey, { class: "name" }));
}

// Positions so far apart that their labels do not touch, the first and the last where they fit.
function spread(count, size, room) {
  const step = Math.max(1, Math.ceil(room / size));
  return Array.from({ length: Math.ceil(count / step) }, (_, i) => i * step);
}

function short(name, most) {
  const words = String(name);
  return words.length <= most ? words : words.slice(0, most - 1) + "…";
}

// Errors as shares of a logarithmic ramp over three decades.
const errorShare = (x) => (x === null || Number.isNaN(x) ? NaN : clamp(1 + Math.log10(Math.max(x, 1e-3)) / 3, 0, 1));
const ERROR_TICKS = [[0, "≤ 0.001"], [1 / 3, "0.01"], [2 / 3, "0.1"], [1, "1"]];
