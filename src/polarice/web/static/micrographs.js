"use strict";
// Two columns against each other; bounds on both make the conditions of polarice select.
const scatter = find("#scatter"), canvas = scatter.querySelector("canvas"), save = find("#save");
const name = scatter.dataset.name, path = name.split("/").map(encodeURIComponent).join("/");
const FIRST = ["rlnDefocusU", "rlnCtfMaxResolution", "rlnAccumMotionTotal", "rlnCtfFigureOfMerit"];
const MARGIN = 40, AXES = ["x", "y"];
let table = null;
const bounds = {};  // column: [low, high] where moved

const part = (axis, what) => find(`#${axis}-${what}`);
const label = (axis) => find(`#${axis}`).value;
const finite = (values) => values.filter((value) => value !== null);
const span = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
const tidy = (value) => Number(value.toPrecision(5));

function isKept(place) {
  for (const column of Object.keys(bounds)) {
    const value = table.columns[column][place], [low, high] = bounds[column];
    if (value === null || value < low || value > high) return false;
  }
  return true;
}

function spot(place) {
  const at = AXES.map((axis) => {
    const values = table.columns[label(axis)], [low, high] = table.spans[label(axis)];
    return values[place] === null ? null : (values[place] - low) / (high - low || 1);
  });
  if (at.includes(null)) return null;
  return [MARGIN + at[0] * (canvas.width - 2 * MARGIN), canvas.height - MARGIN - at[1] * (canvas.height - 2 * MARGIN)];
}

function draw() {
  canvas.width = Math.max(320, canvas.clientWidth);
  canvas.height = Math.max(240, Math.round(canvas.width / 2));
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
  const colour = (word) => style.getPropertyValue(`--${word}`).trim();
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = colour("soft");
  const [x, y] = AXES.map((axis) => table.spans[label(axis)]);
  pen.textAlign = "center";
  pen.fillText(table.titles[label("x")], canvas.width / 2, canvas.height - 8);
  pen.fillText(tidy(x[0]), MARGIN, canvas.height - 22);
  pen.fillText(tidy(x[1]), canvas.width - MARGIN, canvas.height - 22);
  pen.textAlign = "left";
  pen.fillText(`${table.titles[label("y")]}: ${tidy(y[0])} to ${tidy(y[1])}`, MARGIN, 16);
  pen.strokeStyle = colour("faint");
  pen.strokeRect(MARGIN - 8, 24, canvas.width - 2 * MARGIN + 16, canvas.height - MARGIN - 16);
  let kept = 0;
  for (let place = 0; place < table.names.length; place += 1) {
    const at = spot(place), on = isKept(place);
    kept += on;
    if (!at) continue;
    pen.beginPath();
    pen.arc(at[0], at[1], 4, 0, 2 * Math.PI);
    pen.fillStyle = pen.strokeStyle = colour(on ? "accent" : "bad");
    on ? pen.fill() : pen.stroke();
  }
  find("#chosen").textContent = `${kept.toLocaleString("en")} of ${table.names.length.toLocaleString("en")} chosen`;
}

function conditions() {
  const said = [];
  for (const [column, [low, high]] of Object.entries(bounds)) {
    const [least, most] = table.spans[column];
    if (low > least) said.push(`'${column}>=${tidy(low)}'`);
    if (high < most) said.push(`'${column}<=${tidy(high)}'`);
  }
  return said.join(" ");
}

const check = later(WAIT_MS, async () => {
  if (!save || !save.elements.where.value) return;
  try {
    const told = await ask(save.dataset.check, save);
    find("#faults").textContent = Object.values(told.faults).join("; ");
    save.querySelector("[data-command]").textContent = told.command;
    save.elements.command.value = told.command;
    find("#start").disabled = !told.command;
  } catch (error) { find("#faults").textContent = error.message; }
});

function changed() {
  draw();
  if (!save) return;
  save.elements.where.value = conditions();
  find("#start").disabled = true;
  if (!save.elements.where.value) save.querySelector("[data-command]").textContent = "";
  check();
}

function stepOf(low, high) {  // 1, 2 or 5 times a power of ten, some 200 in the span
  const rough = (high - low) / 200 || 1, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
}

function pick(axis) {
  const column = label(axis), [low, high] = table.spans[column], now = bounds[column] || [low, high];
  const step = stepOf(low, high);
  for (const [end, value] of [["low", now[0]], ["high", now[1]]]) {
    const slider = part(axis, end);
    slider.min = tidy(Math.floor(low / step) * step);
    slider.max = tidy(Math.ceil(high / step) * step);
    slider.step = tidy(step);
    slider.value = value;
  }
  part(axis, "said").textContent = `${tidy(now[0])} to ${tidy(now[1])}`;
}

function move(axis) {
  const column = label(axis), [least, most] = table.spans[column];
  const low = Number(part(axis, "low").value), high = Number(part(axis, "high").value);
  bounds[column] = [low <= least ? least : tidy(low), high >= most ? most : tidy(high)];
  part(axis, "said").textContent = `${tidy(low)} to ${tidy(high)}`;
  if (label("x") === label("y")) pick(axis === "x" ? "y" : "x");
  changed();
}

canvas.addEventListener("click", (event) => {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  let best = null, nearest = 20;
  for (let place = 0; place < table.names.length; place += 1) {
    const at = spot(place), far = at ? Math.hypot(at[0] - x, at[1] - y) : Infinity;
    if (far < nearest) [best, nearest] = [place, far];
  }
  if (best === null) return;
  const values = AXES.map((axis) => `${table.titles[label(axis)]} ${table.columns[label(axis)][best]}`);
  find("#picked").textContent = `${table.names[best]}: ${values.join(", ")}`;
  const picture = find("#picture"), file = table.pictures[best];
  picture.hidden = !file;
  picture.alt = table.names[best];
  if (file) picture.src = `/file/${path}/${file.split("/").map(encodeURIComponent).join("/")}`;
});

(async () => {
  table = await ask("/micrographs.json/" + path);
  const columns = Object.keys(table.columns);
  if (!columns.length) { scatter.hidden = true; if (save) save.hidden = true; return; }
  table.spans = Object.fromEntries(columns.map((column) => [column, span(finite(table.columns[column]))]));
  const wanted = [...FIRST.filter((column) => columns.includes(column)), ...columns];
  for (const [place, axis] of AXES.entries()) {
    const choice = find(`#${axis}`);
    for (const column of columns) choice.add(new Option(table.titles[column], column));
    choice.value = wanted[Math.min(place, wanted.length - 1)];
    choice.addEventListener("change", () => { pick(axis); draw(); });
    for (const end of ["low", "high"]) part(axis, end).addEventListener("input", () => move(axis));
    pick(axis);
  }
  if (save) save.elements.o.addEventListener("input", () => { find("#start").disabled = true; check(); });
  addEventListener("resize", later(100, draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})().catch((error) => say(error.message));
