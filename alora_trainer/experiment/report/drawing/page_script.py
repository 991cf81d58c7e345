"""The few lines of JavaScript in a page: other axes, zoom, the tip under the pointer, filters, sorting.

The drawing is there without it (see `chart`); this moves what is drawn. Its arithmetic stands in functions that touch no
page, so that they can be tried in any JavaScript engine.
"""

from __future__ import annotations

# Pure functions: ticks and scale.
ARITHMETIC = """
function ticks(low, high) {
  const span = high - low, raw = span / 5, power = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 5, 10].map(n => n * power).find(n => n >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(+(k * step).toPrecision(12));
  return found;
}
function logTicks(low, high) {
  const factors = high - low < 2.2 ? [1, 2, 5] : [1], found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++)
    for (const factor of factors) {
      const value = +(factor * Math.pow(10, power)).toPrecision(6), at = Math.log10(value);
      if (at >= low - 1e-9 && at <= high + 1e-9) found.push(value);
    }
  const every = Math.max(1, Math.ceil(found.length / 7));
  return found.filter((_, k) => k % every === 0);
}
function spread(wanted, gap, low, high) {
  const order = wanted.map((_, k) => k).sort((a, b) => wanted[a] - wanted[b] || a - b), blocks = [];
  for (const index of order) {
    let centre = Math.min(Math.max(wanted[index], low), high), members = 1;
    while (blocks.length && centre - blocks.at(-1)[0] < gap * (members + blocks.at(-1)[1]) / 2) {
      const [before, others] = blocks.pop();
      centre = (centre * members + before * others) / (members + others);
      members += others;
      const half = gap * (members - 1) / 2;
      centre = Math.max(Math.min(centre, high - half), low + half);
    }
    blocks.push([centre, members]);
  }
  const placed = blocks.flatMap(([centre, n]) => Array.from({ length: n }, (_, k) => centre + gap * (k - (n - 1) / 2)));
  const found = [];
  order.forEach((index, k) => { found[index] = placed[k]; });
  return found;
}
function place(value, low, high, start, end) { return start + (value - low) / (high - low) * (end - start); }
function extent(values) {
  const low = Math.min(...values), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * 0.07;
  return [low - pad, high + pad];
}
function zoomed(domain, factor, centre) { return domain.map(edge => centre + (edge - centre) * factor); }
function compare(a, b, down) {
  if (a === b) return 0;
  if (a === "") return 1;
  if (b === "") return -1;
  const x = Number(a), y = Number(b), numbers = !isNaN(x) && !isNaN(y);
  const order = numbers ? x - y : (a < b ? -1 : 1);
  return down ? -order : order;
}
"""

BEHAVIOUR = """
const DATA = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();
const SVG = "http://www.w3.org/2000/svg";

function tips(figure) {
  const tip = figure.querySelector(".tip");
  if (!tip) return;
  const show = node => {
    tip.textContent = node.querySelector("title").textContent;
    tip.hidden = false;
    const f = figure.getBoundingClientRect(), r = node.getBoundingClientRect();
    const left = r.left + r.width / 2 - f.left + 12;
    tip.style.top = `${r.top - f.top + 14}px`;
    tip.style.left = `${Math.max(0, Math.min(left, f.width - tip.offsetWidth))}px`;
  };
  for (const node of figure.querySelectorAll(".point")) {
    node.addEventListener("pointerenter", () => show(node));
    node.addEventListener("focus", () => show(node));
    for (const end of ["pointerleave", "blur"]) node.addEventListener(end, () => { tip.hidden = true; });
  }
}

function chart(figure) {
  const svg = figure.querySelector("svg"), box = JSON.parse(figure.dataset.box);
  const marks = [...svg.querySelectorAll(".point")].map(node => ({
    node, row: node.dataset.row, curve: node.dataset.curve, values: JSON.parse(node.dataset.values) }));
  const lines = [...svg.querySelectorAll(".curve")].map(node => ({
    node, row: node.dataset.row, points: marks.filter(m => m.curve === node.dataset.curve) }));
  const labels = [...svg.querySelectorAll(".label")].map(node => ({
    node, row: node.dataset.row, points: marks.filter(m => m.curve === node.dataset.curve) }));
  const shares = [...svg.querySelectorAll(".share")];
  const pick = name => (figure.querySelector(`select[name=${name}]`) || { value: figure.dataset[name] }).value;
  let view = null;

  const measure = name => DATA.measures[name];
  const has = (m, name) => m.values[name] && (!measure(name).log || m.values[name][0] > 0);
  const t = (name, value) => measure(name).log ? Math.log10(value) : value;
  function shown() {
    const x = pick("x"), y = pick("y");
    return marks.filter(m => !hidden.has(m.row) && has(m, x) && has(m, y));
  }
  function fitted() {
    const own = shown(), x = pick("x"), y = pick("y");
    if (!own.length) return [0, 1, 0, 1];
    const reach = (name, m) => {
      const [value, sd] = m.values[name], low = measure(name).log && value <= sd ? value : value - sd;
      return [t(name, low), t(name, value + sd)];
    };
    return [...extent(own.flatMap(m => reach(x, m))), ...extent(own.flatMap(m => reach(y, m)))];
  }
  function draw() {
    const x = pick("x"), y = pick("y"), own = new Set(shown());
    const [x0, x1, y0, y1] = view || fitted(), down = measure(y).downwards;
    const at = v => place(t(x, v), x0, x1, box.left, box.right);
    const up = v => down ? place(t(y, v), y0, y1, box.top, box.bottom) : place(t(y, v), y0, y1, box.bottom, box.top);
    const side = (to, name, value, sd) => measure(name).log && value + sd <= 0 ? 0 : to(value + sd) - to(value);
    for (const m of marks) {
      m.node.classList.toggle("off", !own.has(m));
      m.node.style.display = own.has(m) ? "" : "none";
      if (!own.has(m)) continue;
      const [vx, ex] = m.values[x], [vy, ey] = m.values[y];
      m.node.setAttribute("transform", `translate(${at(vx).toFixed(2)} ${up(vy).toFixed(2)})`);
      const bars = m.node.querySelectorAll(".bar");
      bars[0].setAttribute("d", `M${side(at, x, vx, -ex)} 0H${side(at, x, vx, ex || 0)}`);
      bars[1].setAttribute("d", `M0 ${side(up, y, vy, -ey)}V${side(up, y, vy, ey || 0)}`);
    }
    const ends = line => line.points.filter(m => own.has(m)).map(m => [at(m.values[x][0]), up(m.values[y][0])]);
    for (const line of lines) {
      line.node.style.display = hidden.has(line.row) ? "none" : "";
      line.node.setAttribute("points", ends(line).map(p => p.map(v => v.toFixed(2)).join(",")).join(" "));
    }
    const named = labels.map(label => [label, ends(label)]).filter(pair => {
      pair[0].node.style.display = pair[1].length ? "" : "none";
      return pair[1].length;
    }).map(([label, points]) => [label, points.reduce((a, b) => a[0] > b[0] || a[0] === b[0] && a[1] > b[1] ? a : b)]);
    const heights = spread(named.map(([, end]) => end[1]), DATA.gap, box.top, box.bottom + 14);
    named.forEach(([label, [left, top]], k) => {
      const line = `M${left + 6} ${top}L${box.labels - 8} ${heights[k]}H${box.labels - 3}`;
      label.node.querySelector(".leader").setAttribute("d", line);
      label.node.querySelector(".name").setAttribute("transform", `translate(${box.labels + 5} ${heights[k]})`);
    });
    for (const one of shares) {
      const value = Number(one.dataset.value), inside = y === one.dataset.measure && value >= y0 && value <= y1;
      one.style.display = inside ? "" : "none";
      if (inside) one.setAttribute("d", `M${box.left} ${up(value)}H${box.right}`);
    }
    const axes = svg.querySelector(".axes");
    axes.replaceChildren();
    const add = (kind, attributes, text) => {
      const node = document.createElementNS(SVG, kind);
      for (const key in attributes) node.setAttribute(key, attributes[key]);
      if (text !== undefined) node.textContent = text;
      axes.append(node);
    };
    const round = (name, low, high) => {
      const factor = measure(name).factor, shift = Math.log10(factor);
      const found = measure(name).log ? logTicks(low + shift, high + shift) : ticks(low * factor, high * factor);
      return found.map(value => [value, value / factor]);
    };
    for (const [text, value] of round(x, x0, x1)) {
      add("path", { class: "grid", d: `M${at(value)} ${box.top}V${box.bottom}` });
      add("text", { class: "quiet", x: at(value), y: box.bottom + 14, "text-anchor": "middle" }, String(text));
    }
    for (const [text, value] of round(y, y0, y1)) {
      add("path", { class: "grid", d: `M${box.left} ${up(value)}H${box.right}` });
      add("text", { class: "quiet", x: box.left - 5, y: up(value) + 3.5, "text-anchor": "end" }, String(text));
    }
    add("path", { class: "axis", fill: "none", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` });
    svg.querySelector(".x").textContent = measure(x).label;
    svg.querySelector(".y").textContent = measure(y).label + (down ? " (downwards)" : "");
  }
  function zoom(factor, cx, cy) {
    const [x0, x1, y0, y1] = view || fitted(), down = measure(pick("y")).downwards;
    const px = cx === undefined ? 0.5 : cx, py = cy === undefined ? 0.5 : (down ? cy : 1 - cy);
    view = [...zoomed([x0, x1], factor, x0 + px * (x1 - x0)), ...zoomed([y0, y1], factor, y0 + py * (y1 - y0))];
    draw();
  }
  function fraction(event) {
    const r = svg.getBoundingClientRect(), scale = box.width / r.width;
    return [((event.clientX - r.left) * scale - box.left) / (box.right - box.left),
            ((event.clientY - r.top) * scale - box.top) / (box.bottom - box.top)];
  }
  svg.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.shiftKey) return;
    event.preventDefault(); zoom(event.deltaY + event.deltaX > 0 ? 1.25 : 0.8, ...fraction(event));
  }, { passive: false });
  svg.addEventListener("dblclick", event => zoom(0.5, ...fraction(event)));
  let held = null;
  svg.addEventListener("pointerdown", event => { if (view && event.isPrimary) held = [fraction(event), view]; });
  addEventListener("pointerup", () => { held = null; });
  svg.addEventListener("pointermove", event => {
    if (!held) return;
    const [fx, fy] = fraction(event), [[gx, gy], [x0, x1, y0, y1]] = held;
    const turn = measure(pick("y")).downwards ? -1 : 1;
    const mx = (gx - fx) * (x1 - x0), my = turn * (fy - gy) * (y1 - y0);
    view = [x0 + mx, x1 + mx, y0 + my, y1 + my];
    draw();
  });
  const press = (name, what) => { const button = figure.querySelector(name); if (button) button.onclick = what; };
  press(".in", () => zoom(0.7));
  press(".out", () => zoom(1 / 0.7));
  press(".all", () => { view = null; draw(); });
  for (const select of figure.querySelectorAll("select")) select.onchange = () => { view = null; draw(); };
  draw();
  return draw;
}

const charts = [...document.querySelectorAll("figure.chart")].map(chart);
document.querySelectorAll("figure").forEach(tips);
for (const box of document.querySelectorAll(".methods input[data-row]")) {
  box.onchange = () => {
    if (box.checked) hidden.delete(box.dataset.row); else hidden.add(box.dataset.row);
    for (const line of document.querySelectorAll("tr[data-row]")) line.hidden = hidden.has(line.dataset.row);
    for (const part of document.querySelectorAll("figure.rows .row"))
      part.style.display = hidden.has(part.dataset.row) ? "none" : "";
    charts.forEach(draw => draw());
  };
}
for (const button of document.querySelectorAll("button.every")) {
  button.onclick = () => {
    const on = button.dataset.on === "1";
    for (const box of document.querySelectorAll(".methods input[data-row]")) { box.checked = on; box.onchange(); }
  };
}
for (const table of document.querySelectorAll("table.sorted")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.querySelector("button").onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const key = line => line.cells[column].dataset.value ?? line.cells[column].textContent;
      body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b), down)));
    };
  });
}
"""
