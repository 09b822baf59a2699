// Lines over two axes: error against parameters, and singular values.

const FLOOR = 1e-6;

// The range of a logarithmic error axis: whole decades, from the least error that is worth a look.
function errorRange(values, goal) {
  const shown = values.filter((x) => x > FLOOR);
  let low = shown.reduce((a, b) => Math.min(a, b), 0.1);
  if (goal > 0) low = Math.min(low, goal / 2);
  const useful = goal > 0 ? goal / 20 : 1e-3;
  low = Math.max(low, Math.min(useful, 1e-3));
  return [10 ** Math.floor(Math.log10(low) + 1e-9), 1];
}

// Draws a chart and returns a function that moves its mark.
//   series: [{form, x, y, dots}], points: [{form, x, y, words}], verticals and horizontals: [{at, words}]
function chart(host, spec) {
  const width = Math.max(host.clientWidth, 260);
  const height = Math.round(clamp(width * 0.6, 240, spec.height || 380));
  const [left, right, top, bottom] = [58, 14, 22, 46];
  const svg = picture(width, height, spec.name, spec.description);
  const scaleX = spec.linearX ? linearScale : logScale;
  const x = scaleX(...spec.rangeX, left, width - right);
  const y = logScale(...spec.rangeY, height - bottom, top);
  const ticksX = (spec.linearX ? linearTicks : logTicks)(...spec.rangeX, Math.floor(width / 75));
  for (const tick of ticksX) {
    svg.append(line(x(tick), top, x(tick), height - bottom, "grid"));
    svg.append(text(x(tick), height - bottom + 16, shortCount(tick), { class: "tick middle" }));
  }
  for (const tick of logTicks(...spec.rangeY, 9)) {
    svg.append(line(left, y(tick), width - right, y(tick), "grid"));
    svg.append(text(left - 7, y(tick) + 4, error(tick), { class: "tick end" }));
  }
  svg.append(line(left, height - bottom, width - right, height - bottom, "axis"));
  svg.append(line(left, top, left, height - bottom, "axis"));
  svg.append(text((left + width - right) / 2, height - 8, spec.labelX, { class: "name middle" }));
  const middle = (top + height - bottom) / 2;
  svg.append(text(13, middle, spec.labelY, { class: "name middle", transform: `rotate(-90 13 ${middle})` }));
  for (const { at, words } of spec.horizontals || []) {
    svg.append(line(left, y(at), width - right, y(at), "rule"));
    svg.append(text(left + 6, y(at) - 5, words, { class: "note" }));
  }
  for (const { at, words } of spec.verticals || []) {
    svg.append(line(x(at), top, x(at), height - bottom, "rule strong"));
    const room = x(at) > (left + width) / 2;
    svg.append(text(x(at) + (room ? -5 : 5), top - 7, words, { class: room ? "note end" : "note" }));
  }
  for (const series of spec.series) svg.append(drawn("path", { d: path(series, x, y), class: series.kind || formClass(series.form) + " curve" }));
  for (const { form, x: px, y: py, dots } of spec.series) {
    if (!dots) continue;
    for (let i = 0; i < px.length; i++) {
      if (px[i] > 0) svg.append(drawn("circle", { cx: round(x(px[i])), cy: round(y(py[i] || 0)), r: 2, class: formClass(form) + " dot" }));
    }
  }
  for (const point of spec.points || []) {
    const place = `translate(${round(x(point.x))} ${round(y(point.y))})`;
    svg.append(drawn("path", { d: shape(point.form), transform: place, class: markClass(point.form) }, drawn("title", {}, point.words)));
  }
  const whisker = line(0, 0, 0, 0, "whisker");
  const foot = line(0, 0, 0, 0, "whisker");
  const mark = drawn("g", { class: "current" }, drawn("circle", { r: 8 }), drawn("circle", { r: 2.5, class: "centre" }));
  const bars = (spec.bars || []).map((kind) => line(0, top, 0, height - bottom, "whisker " + kind));
  if (spec.marked) svg.append(whisker, foot, mark);
  svg.append(...bars);
  host.replaceChildren(svg);
  return {
    move(px, py, lower) {
      const [cx, cy, low] = [round(x(px)), round(y(py)), round(y(lower))];
      mark.setAttribute("transform", `translate(${cx} ${cy})`);
      place(whisker, cx, cy, cx, low);
      place(foot, cx - 5, low, cx + 5, low);
    },
    bar(index, at) {
      place(bars[index], round(x(at)), top, round(x(at)), height - bottom);
    },
    describe(words) {
      svg.querySelector("desc").textContent = words;
    },
  };
}

function place(mark, x1, y1, x2, y2) {
  mark.setAttribute("x1", x1);
  mark.setAttribute("y1", y1);
  mark.setAttribute("x2", x2);
  mark.setAttribute("y2", y2);
}

function path({ x: px, y: py }, x, y) {
  let found = "";
  for (let i = 0; i < px.length; i++) {
    if (px[i] > 0 && py[i] !== null) found += `${found ? "L" : "M"}${round(x(px[i]))} ${round(y(py[i]))}`;
  }
  return found;
}

// The range of a parameter axis that holds all these counts.
function countRange(values) {
  const counts = values.filter((x) => x > 0);
  const low = counts.reduce((a, b) => Math.min(a, b), Infinity);
  const high = counts.reduce((a, b) => Math.max(a, b), 0);
  return counts.length ? [low * 0.85, high * 1.18] : [1, 10];
}
