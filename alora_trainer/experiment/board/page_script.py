"""The few lines of JavaScript in a board's page: other axes, zoom, the tip under the pointer, filters, sorting.

The drawing is there without it (see `page_chart`); this moves what is drawn. Its arithmetic stands in functions that touch no
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

function chart(figure) {
  const svg = figure.querySelector("svg"), box = DATA.box, tip = figure.querySelector(".tip");
  const marks = [...svg.querySelectorAll(".point")].map(node => ({
    node, row: node.dataset.row, values: JSON.parse(node.dataset.values) }));
  const lines = [...svg.querySelectorAll(".curve")].map(node => ({
    node, row: node.dataset.row, points: marks.filter(m => m.row === node.dataset.row && m.node.dataset.curve) }));
  const shares = [...svg.querySelectorAll(".share")];
  const pick = name => figure.querySelector(`select[name=${name}]`).value;
  let view = null;

  function shown() {
    const x = pick("x"), y = pick("y");
    return marks.filter(m => !hidden.has(m.row) && m.values[x] && m.values[y]);
  }
  function fitted() {
    const own = shown(), x = pick("x"), y = pick("y");
    if (!own.length) return [0, 1, 0, 1];
    return [...extent(own.map(m => m.values[x][0])), ...extent(own.map(m => m.values[y][0]))];
  }
  function label(name) { const m = DATA.measures[name]; return m ? m.label : name; }
  function draw() {
    const x = pick("x"), y = pick("y"), own = new Set(shown());
    const [x0, x1, y0, y1] = view || fitted();
    const fx = DATA.measures[x].factor, fy = DATA.measures[y].factor;
    const down = y !== "learned" && DATA.measures[y].less_is_better;
    const at = v => place(v, x0, x1, box.left, box.right);
    const up = v => down ? place(v, y0, y1, box.top, box.bottom) : place(v, y0, y1, box.bottom, box.top);
    for (const m of marks) {
      m.node.classList.toggle("off", !own.has(m));
      m.node.style.display = own.has(m) ? "" : "none";
      if (!own.has(m)) continue;
      const [vx, ex] = m.values[x], [vy, ey] = m.values[y];
      m.node.setAttribute("transform", `translate(${at(vx).toFixed(2)} ${up(vy).toFixed(2)})`);
      const bars = m.node.querySelectorAll(".bar");
      const wide = (ex || 0) / (x1 - x0) * (box.right - box.left), high = (ey || 0) / (y1 - y0) * (box.bottom - box.top);
      if (bars.length) { bars[0].setAttribute("d", `M${-wide} 0H${wide}`); bars[1].setAttribute("d", `M0 ${-high}V${high}`); }
    }
    for (const line of lines) {
      const own = line.points.filter(m => m.values[x] && m.values[y]).map(m => [at(m.values[x][0]), up(m.values[y][0])]);
      line.node.style.display = hidden.has(line.row) ? "none" : "";
      line.node.setAttribute("points", own.map(p => p.map(v => v.toFixed(2)).join(",")).join(" "));
    }
    for (const one of shares) {
      const value = Number(one.dataset.value), inside = y === "learned" && value >= y0 && value <= y1;
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
    for (const t of ticks(x0 * fx, x1 * fx)) {
      add("path", { class: "grid", d: `M${at(t / fx)} ${box.top}V${box.bottom}` });
      add("text", { class: "quiet", x: at(t / fx), y: box.bottom + 14, "text-anchor": "middle" }, String(t));
    }
    for (const t of ticks(y0 * fy, y1 * fy)) {
      add("path", { class: "grid", d: `M${box.left} ${up(t / fy)}H${box.right}` });
      add("text", { class: "quiet", x: box.left - 5, y: up(t / fy) + 3.5, "text-anchor": "end" }, String(t));
    }
    add("path", { class: "axis", fill: "none", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` });
    svg.querySelector(".x").textContent = label(x);
    svg.querySelector(".y").textContent = label(y) + (down ? " (downwards)" : "");
  }
  function zoom(factor, cx, cy) {
    const [x0, x1, y0, y1] = view || fitted(), y = pick("y");
    const down = y !== "learned" && DATA.measures[y].less_is_better;
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
    const [fx, fy] = fraction(event), [[gx, gy], [x0, x1, y0, y1]] = held, y = pick("y");
    const turn = y !== "learned" && DATA.measures[y].less_is_better ? -1 : 1;
    const mx = (gx - fx) * (x1 - x0), my = turn * (fy - gy) * (y1 - y0);
    view = [x0 + mx, x1 + mx, y0 + my, y1 + my];
    draw();
  });
  figure.querySelector(".in").onclick = () => zoom(0.7);
  figure.querySelector(".out").onclick = () => zoom(1 / 0.7);
  figure.querySelector(".all").onclick = () => { view = null; draw(); };
  for (const select of figure.querySelectorAll("select")) select.onchange = () => { view = null; draw(); };
  const show = node => {
    tip.textContent = node.querySelector("title").textContent;
    tip.hidden = false;
    const f = figure.getBoundingClientRect(), r = node.getBoundingClientRect();
    const left = r.left + r.width / 2 - f.left + 12;
    tip.style.top = `${r.top - f.top + 14}px`;
    tip.style.left = `${Math.max(0, Math.min(left, f.width - tip.offsetWidth))}px`;
  };
  for (const { node } of marks) {
    node.addEventListener("pointerenter", () => show(node));
    node.addEventListener("focus", () => show(node));
    for (const end of ["pointerleave", "blur"]) node.addEventListener(end, () => { tip.hidden = true; });
  }
  for (const tools of figure.querySelectorAll(".tools")) tools.hidden = false;
  draw();
  return draw;
}

const charts = [...document.querySelectorAll("figure.chart")].map(chart);
for (const tools of document.querySelectorAll(".methods")) tools.hidden = false;
for (const box of document.querySelectorAll(".methods input[data-row]")) {
  box.onchange = () => {
    if (box.checked) hidden.delete(box.dataset.row); else hidden.add(box.dataset.row);
    for (const line of document.querySelectorAll("tr[data-row]")) line.hidden = hidden.has(line.dataset.row);
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
