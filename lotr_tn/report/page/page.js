// The controls: what is chosen, and what is shown for it.

const record = JSON.parse(byId("record").textContent);
const titleOf = record.sources.length > 3 ? `${record.sources.length} adapters` : record.sources.join(", ");
const views = new Map();
const chosen = new Map();
const QUIET = 500; // milliseconds without a change before a screen reader is told

let group = 0;
let drawings = {};
let wholeChart = null;
let budgetAt = null;

const view = () => {
  if (!views.has(group)) views.set(group, unpacked(record.groups[group]));
  return views.get(group);
};

// A pair of the surface by its positions, with its numbers.
function pairAt(i, j) {
  const { surface, parameters } = view();
  const [r1, r2, at] = [surface.r1[i], surface.r2[j], i * surface.r2.length + j];
  return { r1, r2, params: parameters(r1, r2), error: surface.errors[at], lower: surface.lower[at], i, j };
}

// A point of the front; its ranks may lie between those that the surface lists.
function pairOfFront(index) {
  const { surface } = view();
  const point = view().group.front[index];
  const pair = { r1: point.r1, r2: point.r2, params: point.params, error: point.relative_error, lower: point.lower_bound, front: index };
  if (!surface) return pair;
  const [i, j] = [nearest(surface.r1, point.r1), nearest(surface.r2, point.r2)];
  if (surface.r1[i] === point.r1 && surface.r2[j] === point.r2) return { ...pairAt(i, j), front: index };
  return { ...pair, i, j };
}

function nearest(values, wanted) {
  let best = 0;
  for (let i = 1; i < values.length; i++) {
    if (Math.abs(values[i] - wanted) < Math.abs(values[best] - wanted)) best = i;
  }
  return best;
}

// Where a group begins: the LoTR that answers the question, or the middle of the surface.
function firstPair() {
  const { group: it, surface } = view();
  const lotr = it.candidates.find((c) => formOf(c.format).pairs);
  if (it.front.length) return pairOfFront(nearest(it.front.map((p) => p.params), lotr ? lotr.params : it.params));
  return surface ? pairAt((surface.r1.length - 1) >> 1, (surface.r2.length - 1) >> 1) : null;
}

function frontIndex(pair) {
  return pair.front ?? nearest(view().group.front.map((p) => p.params), pair.params);
}

// ---- one group ----

function showPair(pair) {
  if (!pair) return;
  chosen.set(group, pair);
  const { group: it, surface } = view();
  if (surface) {
    slide("r1", pair.i, `${pair.r1}`);
    slide("r2", pair.j, `${pair.r2}`);
  }
  say("r1-now", `${pair.r1}`);
  say("r2-now", `${pair.r2}`);
  say("now-error", error(pair.error));
  say("now-lower", error(pair.lower));
  say("now-params", thousands(pair.params));
  say("now-bytes", record.number_bytes ? byteSize(pair.params * record.number_bytes) : "-");
  say("now-ratio", times(pair.params, it.params));
  say("now-ranks", `${pair.r1}, ${pair.r2}`);
  if (drawings.front) drawings.front.move(drawnSize(pair.params), pair.error, pair.lower);
  if (drawings.spectra) {
    drawings.spectra.bar(0, pair.r1);
    drawings.spectra.bar(1, pair.r2);
  }
  if (drawings.surface) drawings.surface.cell(pair.j, pair.i);
  if (it.front.length) {
    const column = frontIndex(pair);
    const point = it.front[column];
    slide("front", column, `ranks ${point.r1}, ${point.r2}; ${thousands(point.params)} parameters`);
    if (drawings.layers) drawings.layers.column(column);
    showLayers(column);
  }
  pairCommand(pair);
  later("pair", () => tellPair(pair));
}

function slide(id, position, words) {
  const control = byId(id);
  if (Number(control.value) !== position) control.value = position;
  control.setAttribute("aria-valuetext", words);
}

function showLayers(column) {
  const { group: it, layers, layerErrors } = view();
  const point = it.front[column];
  say("layer-table-caption", `Relative error of each ${it.member} at ranks ${point.r1}, ${point.r2}`);
  const rows = byId("layer-rows").rows;
  for (let l = 0; l < rows.length; l++) {
    const words = error(layerErrors[column * layers + l]);
    if (rows[l].cells[2].textContent !== words) rows[l].cells[2].textContent = words;
  }
}

function tellPair(pair) {
  const { group: it, layers, layerErrors } = view();
  const words =
    `Ranks ${pair.r1}, ${pair.r2}: relative error ${error(pair.error)}, ` +
    `${thousands(pair.params)} parameters, ${times(pair.params, it.params)} the LoRA`;
  say("now-said", words);
  if (drawings.front) drawings.front.describe(`${words}. No LoTR of these ranks goes below ${error(pair.lower)}.`);
  if (drawings.surface) drawings.surface.describe(words + ".");
  if (drawings.layers) {
    const column = frontIndex(pair);
    const errors = [...layerErrors.slice(column * layers, (column + 1) * layers)].filter((x) => !Number.isNaN(x));
    const [low, high] = [Math.min(...errors), Math.max(...errors)];
    drawings.layers.describe(
      errors.length ? `At ${thousands(it.front[column].params)} parameters the ${it.member}s' errors lie between ${error(low)} and ${error(high)}.` : "No errors.",
    );
  }
}

function showGroup(index) {
  group = index;
  const { group: it, surface } = view();
  byId("group").value = String(index);
  document.querySelectorAll("section.group").forEach((section, i) => section.classList.toggle("away", i !== index));
  byId("rank-sliders").hidden = byId("finders").hidden = !surface;
  byId("front-slider").hidden = it.front.length < 2;
  if (surface) {
    byId("r1").max = surface.r1.length - 1;
    byId("r2").max = surface.r2.length - 1;
    byId("r1").disabled = surface.r1.length < 2;
    byId("r2").disabled = surface.r2.length < 2;
  }
  byId("front").max = Math.max(it.front.length - 1, 0);
  byId("room").value = it.params;
  say("found", "");
  const notice = noticeOf(it, surface);
  say("group-notice", notice);
  byId("group-notice").hidden = !notice;
  for (const id of ["now-error", "now-lower", "now-params", "now-bytes", "now-ratio", "now-ranks"]) say(id, "-");
  pairCommand(null);
  say("layer-summary", `Errors of the ${it.member}s as a table`);
  say("layer-head", it.member[0].toUpperCase() + it.member.slice(1));
  say("worst-head", `Worst ${it.member}`);
  byId("layer-rows").replaceChildren(
    ...it.labels.map((label, i) => tableRow(element("th", { scope: "row" }, label), [it.modules[i] ?? "", ""], 1)),
  );
  frontTable(view());
  drawGroup();
  showPair(chosen.get(index) || firstPair());
}

function noticeOf(it, surface) {
  if (!it.norm || (surface && surface.r1.length < 2 && surface.r2.length < 2)) {
    return "All updates of this group are zero: there is nothing to keep, and every form is exact.";
  }
  if (surface) {
    const every = surface.r1.every((r, i) => r === i) && surface.r2.every((r, i) => r === i);
    return every ? "" : "The sliders stop at some ranks only, since this group has very many.";
  }
  const best = it.front.length ? ", so only its best pairs can be chosen" : " and no best pairs";
  return `This page holds no errors of every pair of ranks for this group${best}.`;
}

function drawGroup() {
  const it = view();
  const subject = `group ${it.group.name} of ${titleOf}`;
  const wanted = {
    front: [it.group.front.length > 0, () => drawFront(it, record, subject)],
    layers: [it.group.front.length > 0, () => drawLayers(it, subject)],
    surface: [it.surface && it.surface.errors.length > 1, () => drawSurface(it, subject, (i, j) => showPair(pairAt(i, j)))],
    spectra: [it.group.norm > 0 && it.group.spectra, () => drawSpectra(it, subject)],
    overlap: [it.group.overlap && it.layers > 1, () => drawOverlap(it, subject)],
  };
  drawings = {};
  for (const [name, [there, draw]] of Object.entries(wanted)) {
    const host = name === "overlap" ? byId("overlap") : byId(HOSTS[name]).parentElement;
    host.hidden = !there;
    if (there) drawings[name] = draw();
  }
}

const HOSTS = { front: "front-chart", layers: "layer-heat", surface: "surface-heat", spectra: "spectra-chart" };

// The cheapest pair whose error is small enough, or the best of those that are small enough.
function find(allowed, first, second) {
  const { surface } = view();
  let best = null;
  for (let i = 0; i < surface.r1.length; i++) {
    for (let j = 0; j < surface.r2.length; j++) {
      const pair = pairAt(i, j);
      if (!allowed(pair)) continue;
      if (!best || pair[first] < best[first] || (pair[first] === best[first] && pair[second] < best[second])) best = pair;
    }
  }
  return best;
}

function findCheapest() {
  const most = byId("within").valueAsNumber;
  if (!(most >= 0)) return say("found", "Give an error between 0 and 1, such as 0.05.");
  const pair = find((p) => p.error <= most, "params", "error");
  return found(pair, `the cheapest within an error of ${most}`, `No pair listed here has an error of ${most} or less.`);
}

function findBest() {
  const most = byId("room").valueAsNumber;
  if (!(most >= 0)) return say("found", "Give a number of parameters, 0 or more.");
  const pair = find((p) => p.params <= most, "error", "params");
  return found(pair, `the best within ${thousands(most)} parameters`, `No pair listed here has ${thousands(most)} parameters or fewer.`);
}

function found(pair, words, none) {
  if (pair) showPair(pair);
  say("found", pair ? `Ranks ${pair.r1}, ${pair.r2}: ${words}.` : none);
}

// ---- the whole adapter ----

function drawWhole() {
  const budgets = record.budgets;
  const goal = goalOf(record.question, "total_error");
  const errors = budgets.map((b) => b.relative_error);
  const rangeY = errorRange(errors, goal);
  const lines = [{ form: "best", x: budgets.map(sizeOf), y: errors, dots: true }];
  const bits = [];
  if (inBytes()) {
    const { update_bytes, relative_error } = record.in_bits;
    lines.push(...besideForms(record.in_bits.curve));
    bits.push({ form: "in-bits", x: update_bytes, y: relative_error, words: `in bits: ${byteSize(update_bytes)}, error ${error(relative_error)}` });
    legend(byId("whole-legend"), [[lineKey("best"), "in numbers"], [formKey("in-bits", true), "in bits"], [lineKey("gaussian-rate"), formOf("gaussian-rate").label]]);
  }
  wholeChart = chart(byId("whole-chart"), {
    name: `Error of the whole adapter against its ${inBytes() ? "bytes" : "parameters"}`,
    description: "",
    rangeX: countRange([...lines.flatMap((s) => s.x), sizeOf(record)]),
    rangeY,
    labelX: labelOfSize(),
    labelY: LABEL_ERROR,
    series: lines,
    points: bits,
    verticals: record.params > 0 ? [{ at: sizeOf(record), words: "LoRA as it is" }] : [],
    horizontals: goal ? [{ at: goal, words: `asked: ${error(goal)}` }] : [],
    marked: true,
    height: 320,
  });
  say("whole-caption", `Relative error of all groups together against ${inBytes() ? "bytes of the updates" : "parameters"}, ${titleOf}: the best form of each group for every budget${inBytes() ? ", and all groups in bits by one step; the mark was made and measured, and ≈ is off by 2% at most, beyond an error of 0.3 by 6%" : ""}. Errors below ${error(rangeY[0])} are drawn at the lower edge.`);
}

// What is recommended, as a point between the budgets.
function recommended() {
  const groups = record.groups.map((it) => it.candidates.find((c) => c.format === it.recommended));
  const found = { ...record.recommended, bytes: record.recommended.update_bytes, groups };
  const { update_bytes, relative_error } = record.in_bits || {};
  return inBytes() ? { ...found, relative_error, in_bits: { bytes: update_bytes } } : found;
}

// A budget by its place; null for what is recommended.
function showBudget(index) {
  const budget = index === null ? recommended() : record.budgets[index];
  const place = index === null ? nearest(record.budgets.map((b) => b.params), budget.params) : index;
  const bits = inBytes() ? budget.in_bits : null;
  const about = index === null ? "" : "≈\u00a0";
  const inBits = bits ? about + byteSize(bits.bytes).replace(" ", "\u00a0") : "-";
  slide("budget", place, inBytes() ? `relative error ${error(budget.relative_error)}` : `${thousands(budget.params)} parameters`);
  say("all-error", error(budget.relative_error));
  say("all-params", inBytes() ? byteSize(budget.bytes) : thousands(budget.params));
  say("all-bytes", inBytes() ? inBits : byteSize(budget.bytes));
  say("all-ratio", bits ? times(bits.bytes, record.bytes) : times(budget.params, record.params));
  wholeChart.move(bits ? bits.bytes : sizeOf(budget), budget.relative_error, budget.relative_error);
  const rows = byId("whole-rows").rows;
  budget.groups.forEach((part, i) => {
    const words = [formOf(part.format).label, String(part.ranks), thousands(part.params), error(part.relative_error)];
    words.forEach((cell, c) => {
      const place = rows[i].cells[c + 1];
      if (place.textContent !== cell) place.textContent = cell;
    });
  });
  budgetCommand(index === null ? null : budget);
  byId("whole-groups").hidden = index === null;
  budgetAt = index;
  later("budget", () => {
    const numbers = `${thousands(budget.params)} parameters, ${times(budget.params, record.params)} the LoRA: relative error ${error(budget.relative_error)}`;
    const words = bits ? `${inBits} in bits, ${byteSize(budget.bytes)} in numbers: relative error ${error(budget.relative_error)}` : numbers;
    say("all-said", words);
    wholeChart.describe(words + ".");
  });
}

// ---- beginning ----

const waiting = new Map();

function later(name, act) {
  clearTimeout(waiting.get(name));
  waiting.set(name, setTimeout(act, QUIET));
}

function onEnter(id, act) {
  byId(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter") act();
  });
}

function start() {
  document.documentElement.classList.add("js");
  watchFrames();
  for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button.dataset.copies));
  for (const place of document.querySelectorAll(".key[data-form]")) place.append(formKey(place.dataset.form, false));
  if (record.budgets.length) {
    byId("whole").hidden = false;
    byId("budget").max = record.budgets.length - 1;
    byId("whole-rows").replaceChildren(
      ...record.groups.map((it) => tableRow(element("th", { scope: "row" }, it.name), ["", "", "", ""], 2)),
    );
    byId("budget").addEventListener("input", (event) => showBudget(Number(event.target.value)));
    byId("recommended").addEventListener("click", () => {
      showBudget(null);
      byId("budget").focus();
    });
    if (inBytes()) {
      const names = { "budget-name": "Error, and what it takes", "all-params-name": "In numbers", "all-bytes-name": "In bits" };
      for (const [id, words] of Object.entries(names)) say(id, words);
    }
    drawWhole();
    showBudget(null);
  }
  if (record.groups.length) {
    byId("one").hidden = false;
    byId("group").append(...record.groups.map((it, i) => element("option", { value: String(i) }, it.name)));
    byId("group").addEventListener("change", (event) => showGroup(Number(event.target.value)));
    const moved = () => showPair(pairAt(Number(byId("r1").value), Number(byId("r2").value)));
    byId("r1").addEventListener("input", moved);
    byId("r2").addEventListener("input", moved);
    byId("front").addEventListener("input", (event) => showPair(pairOfFront(Number(event.target.value))));
    byId("find-cheapest").addEventListener("click", findCheapest);
    byId("find-best").addEventListener("click", findBest);
    onEnter("within", findCheapest);
    onEnter("room", findBest);
    const { kind, value } = record.question;
    byId("within").value = kind.endsWith("_error") ? value : 0.05;
    showGroup(0);
  }
  let drawnAt = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === drawnAt) return;
    drawnAt = innerWidth;
    later("resize", () => {
      if (record.budgets.length) {
        drawWhole();
        showBudget(budgetAt);
      }
      if (record.groups.length) {
        drawGroup();
        showPair(chosen.get(group));
      }
    });
  });
}

// For the browser's console and for tests.
globalThis.lotrPage = { byteSize, error, fixed, general, shortCount, thousands, times };
start();
