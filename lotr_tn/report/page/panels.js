// What is drawn once for a group, and the tables that stand beside it.

const LABEL_ERROR = "relative error (Frobenius)";
const LABEL_PARAMS = "parameters (stored numbers)";
const LABEL_BYTES = "bytes of the updates";

// Sizes are drawn in bytes where bits stand beside numbers, and else in numbers.
const inBytes = () => Boolean(record.in_bits && record.in_bits.curve && record.number_bytes);
const labelOfSize = () => (inBytes() ? LABEL_BYTES : LABEL_PARAMS);
const drawnSize = (params) => (inBytes() ? params * record.number_bytes : params);
const sizeOf = (part) => (inBytes() ? part.bytes : part.params);

// The curves of bits and of a Gaussian model, as those of forms are.
function besideForms(found) {
  if (!found || !inBytes()) return [];
  return [found.bytes, found.rate].map((x, i) => ({ form: BESIDE[i], x, y: found.relative_error }));
}
const BESIDE = ["in-bits", "gaussian-rate"];

// A group with its packed numbers unpacked.
function unpacked(group) {
  const [layers, m, n] = group.shape;
  const view = { group, layers, m, n, layerErrors: numbers(group.layer_errors), surface: null };
  view.parameters = (r1, r2) => m * r1 + n * r2 + layers * r1 * r2;
  if (group.surface) {
    const { r1, r2 } = group.surface;
    view.surface = { r1, r2, errors: numbers(group.surface.errors), lower: numbers(group.surface.lower) };
  }
  return view;
}

// Error bound asked of each group or of all together, or null.
function goalOf(question, kind) {
  return question.kind === kind && question.value > 0 ? question.value : null;
}

function drawFront(view, record, subject) {
  const { group } = view;
  const front = group.front;
  const pairs = Object.keys(record.forms).find((form) => record.forms[form].pairs);
  const curves = group.curves.filter((curve) => !formOf(curve.format).pairs);
  const lines = [
    ...curves.map((curve) => ({ form: curve.format, x: curve.params.map(drawnSize), y: curve.relative_error })),
    ...besideForms(group.in_bits),
    { form: pairs, x: front.map((p) => drawnSize(p.params)), y: front.map((p) => p.relative_error), dots: true },
  ];
  const points = group.candidates
    .filter((c) => c.params > 0 && c.relative_error !== null)
    .map((c) => ({ form: c.format, x: sizeOf(c), y: c.relative_error, words: `${c.label}: ${thousands(c.params)} parameters, error ${error(c.relative_error)}` }));
  const goal = goalOf(record.question, "rel_error");
  const known = view.surface ? extremes(view) : [];
  const rangeY = errorRange([...lines.flatMap((s) => s.y), ...points.map((p) => p.y)], goal);
  const drawnChart = chart(byId("front-chart"), {
    name: `Error against ${inBytes() ? "bytes" : "parameters"} of ${group.name}`,
    description: "",
    rangeX: countRange([...lines.flatMap((s) => s.x), ...points.map((p) => p.x), sizeOf(group), ...known]),
    rangeY,
    labelX: labelOfSize(),
    labelY: LABEL_ERROR,
    series: lines,
    points,
    verticals: group.params > 0 ? [{ at: sizeOf(group), words: "LoRA as it is" }] : [],
    horizontals: goal ? [{ at: goal, words: `asked: ${error(goal)}` }] : [],
    marked: true,
  });
  const forms = [...new Set([...lines, ...points].map((s) => s.form))];
  const label = (form) => (group.candidates.find((c) => c.format === form) || {}).label || formOf(form).label;
  const current = drawn("svg", { viewBox: "-17 -10 34 20", class: "form-key current", "aria-hidden": "true" }, drawn("circle", { r: 8 }), drawn("circle", { r: 2.5, class: "centre" }));
  const key = (form) => (BESIDE.includes(form) ? lineKey(form) : formKey(form, !formOf(form).kept));
  legend(byId("front-legend"), [...forms.map((form) => [key(form), label(form)]), [current, "the pair chosen, with its lower bound"]]);
  say("front-caption", `Relative error against ${inBytes() ? "bytes of the updates" : "parameters"}, ${subject}. Lines: the best of every form; marks: the candidates. Errors below ${error(rangeY[0])} are drawn at the lower edge.`);
  return drawnChart;
}

// Parameters of the cheapest and of the dearest pair of a surface.
function extremes(view) {
  const { r1, r2 } = view.surface;
  return [drawnSize(view.parameters(r1[r1.length - 1], r2[r2.length - 1]))];
}

function drawLayers(view, subject) {
  const { group, layers, layerErrors } = view;
  const map = heatMap(byId("layer-heat"), {
    name: `Error of each ${group.member} of ${group.name} along the best pairs`,
    description: "",
    rows: layers,
    columns: group.front.length,
    value: (r, c) => errorShare(layerErrors[c * layers + r]),
    rowName: (i) => group.labels[i],
    columnName: (i) => shortCount(group.front[i].params),
    labelX: LABEL_PARAMS + " of the best pairs",
    labelY: group.member,
    labelKey: `relative error of the ${group.member}`,
    ticks: ERROR_TICKS,
    marked: "column",
  });
  say("layer-caption", `Relative error of each ${group.member}, ${subject}: one column for each of the best pairs, cheapest first. The framed column is nearest to the parameters chosen.`);
  return map;
}

function drawSurface(view, subject, choose) {
  const { group, surface } = view;
  const [n1, n2] = [surface.r1.length, surface.r2.length];
  const map = heatMap(byId("surface-heat"), {
    name: `Error of every pair of ranks of ${group.name}`,
    description: "",
    rows: n2,
    columns: n1,
    up: true,
    square: true,
    value: (r, c) => errorShare(surface.errors[c * n2 + r]),
    rowName: (i) => surface.r2[i],
    columnName: (i) => surface.r1[i],
    labelX: "r1, output directions",
    labelY: "r2, input directions",
    labelKey: LABEL_ERROR,
    ticks: ERROR_TICKS,
    curve: sameSize(view),
    marked: "cell",
  });
  const pick = (event) => {
    const cell = map.at(event);
    if (cell) choose(cell[1], cell[0]);
  };
  map.frame.addEventListener("click", pick);
  map.frame.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && event.buttons === 1) pick(event);
  });
  say("surface-caption", `Relative error of every pair of ranks, ${subject}. On the line a LoTR is as large as the LoRA; above and to the right of it, larger. Click to choose a pair.`);
  return map;
}

// Where a LoTR stores as much as the LoRA, in positions of the surface.
function sameSize(view) {
  const { r1, r2 } = view.surface;
  const found = [];
  for (let c = 0; c < r1.length; c++) {
    const rank = (view.group.params - view.m * r1[c]) / (view.n + view.layers * r1[c]);
    const after = r2.findIndex((r) => r >= rank);
    if (rank < r2[0] || after < 0) continue;
    const before = Math.max(after - 1, 0);
    const share = r2[after] > r2[before] ? (rank - r2[before]) / (r2[after] - r2[before]) : 0;
    found.push([c, before + share]);
  }
  return found;
}

function drawSpectra(view, subject) {
  const { group } = view;
  const norm = group.norm;
  const shares = (values) => values.map((value) => value / norm);
  const whole = (values) => ({ x: values.map((_, i) => i + 1), y: shares(values) });
  const { left, right, layers } = group.spectra;
  const lines = [
    ...(layers || []).map((values) => ({ ...whole(values), kind: "layer-line" })),
    { ...whole(left), kind: "curve outputs" },
    { ...whole(right), kind: "curve inputs" },
  ];
  const most = Math.max(left.length, right.length, 2);
  const drawnChart = chart(byId("spectra-chart"), {
    name: `Singular values of ${group.name}`,
    description: `Of the stack, output side: ${left.length} values; input side: ${right.length}; the largest is ${error(left.length ? left[0] / norm : 0)} of the norm.`,
    rangeX: [1, most],
    rangeY: errorRange(lines.flatMap((s) => s.y), null),
    linearX: true,
    labelX: "number of the direction",
    labelY: "singular value / norm",
    series: lines,
    bars: ["bar-r1", "bar-r2"],
    height: 300,
  });
  const sample = (kind) => drawn("svg", { viewBox: "0 0 34 14", class: "form-key", "aria-hidden": "true" }, drawn("path", { d: "M1 7H33", class: kind }));
  legend(byId("spectra-legend"), [
    [sample("curve outputs"), "output side of the stack; upright: r1"],
    [sample("curve inputs"), "input side of the stack; upright: r2"],
    [sample("layer-line"), `single ${group.member}s`],
  ]);
  say("spectra-caption", `Singular values over the norm of the updates, ${subject}.`);
  return drawnChart;
}

function drawOverlap(view, subject) {
  const { overlap, labels, name, member } = view.group;
  const count = view.layers;
  for (const [side, words] of [["left", "Output"], ["right", "Input"]]) {
    const hundredths = decode(overlap[side]);
    const at = (r, c) => hundredths[r >= c ? (r * (r + 1)) / 2 + c : (c * (c + 1)) / 2 + r];
    heatMap(byId("overlap-" + side), {
      name: `Overlap of the ${words.toLowerCase()} subspaces of the ${member}s of ${name}`,
      description: overlapWords(count, labels, at, member),
      rows: count,
      columns: count,
      square: true,
      value: (r, c) => (at(r, c) === 255 ? NaN : at(r, c) / 100),
      rowName: (i) => labels[i],
      columnName: (i) => short(labels[i], 6),
      nameLength: 8,
      labelX: `${words} side: ${member}`,
      labelY: member,
      labelKey: "mean squared cosine",
      ticks: [[0, "0"], [0.5, "0.5"], [1, "1"]],
    });
  }
  const chance = overlap.chance.map((x) => error(x)).join(" and ");
  say("overlap-caption", `Overlap of the ${member}s' subspaces, ${subject}: mean squared cosine of the principal angles. 1: the same subspace; by chance: ${chance} (output and input side).`);
}

function overlapWords(count, labels, at, member) {
  let [best, pair] = [-1, null];
  for (let r = 0; r < count; r++) {
    for (let c = 0; c < r; c++) {
      if (at(r, c) < 255 && at(r, c) > best) [best, pair] = [at(r, c), [labels[c], labels[r]]];
    }
  }
  return pair ? `Largest between two ${member}s: ${error(best / 100)}, of ${pair[0]} and ${pair[1]}.` : `There is one ${member} only.`;
}

function frontTable(view) {
  const { group, layers, layerErrors } = view;
  const rows = group.front.map((point, i) => {
    let worst = 0;
    for (let l = 1; l < layers; l++) {
      if (layerErrors[i * layers + l] > layerErrors[i * layers + worst]) worst = l;
    }
    const name = element("th", { scope: "row" }, `${point.r1}, ${point.r2}`);
    return tableRow(name, [thousands(point.params), error(point.relative_error), error(point.lower_bound), `${group.labels[worst]}: ${error(layerErrors[i * layers + worst])}`], 0);
  });
  byId("front-rows").replaceChildren(...rows);
}

function tableRow(name, cells, figures) {
  const made = element("tr", {}, name);
  cells.forEach((words, i) => made.append(element("td", i >= figures ? { class: "figure" } : {}, words)));
  return made;
}
