"use strict";
// Class averages to choose from: sorted, chosen by mouse and keys, undone; the command is the server's.
const gallery = find("#gallery"), save = find("#save"), name = gallery.dataset.name;
const path = name.split("/").map(encodeURIComponent).join("/");
const tiles = new Map();  // number: tile
let classes = [], chosen = new Set(), history = [], anchor = null, version = "", scores = [];

function order() {
  const key = find("#sort").value;
  const score = (row) => (scores[row[0] - 1] ? scores[row[0] - 1][0] : -1);
  const by = {
    count: (a, b) => b[1] - a[1], number: () => 0, score: (a, b) => score(b) - score(a),
    resolution: (a, b) => (a[3] ?? Infinity) - (b[3] ?? Infinity) || 0,
  }[key];
  return [...classes].sort((a, b) => by(a, b) || a[0] - b[0]);
}

function span(kind, text) {
  const made = document.createElement("span");
  made.className = kind;
  made.textContent = text;
  return made;
}

function tileOf(number) {
  const tile = document.createElement("div");
  tile.className = "tile";
  tile.setAttribute("role", "option");
  tile.tabIndex = -1;
  tile.dataset.number = number;
  const frame = span("frame", ""), picture = document.createElement("img");
  picture.loading = "lazy";
  picture.alt = "";
  frame.append(picture);
  const head = span("pair", ""), foot = span("pair", "");
  head.append(document.createElement("b"), span("share", ""));
  head.firstChild.textContent = number;
  foot.append(span("coarse", ""), span("score", ""));
  tile.append(frame, head, foot, span("why", ""));
  tiles.set(number, tile);
  return tile;
}

function fill(row) {
  const [number, count, share, coarse] = row, tile = tiles.get(number), scored = scores[number - 1];
  const set = (kind, text) => { tile.querySelector(kind).textContent = text; };
  set(".share", `${count.toLocaleString("en")} · ${(100 * share).toFixed(1)} %`);
  set(".coarse", coarse === null ? "– Å" : `${coarse.toFixed(1)} Å`);
  set(".score", scored ? scored[0].toFixed(2) : "");
  set(".why", scored ? scored[1] : "");
  const picture = tile.querySelector("img"), source = `/average/${path}?n=${number}&v=${encodeURIComponent(version)}`;
  if (picture.getAttribute("src") !== source) picture.src = source;
  const words = [`class ${number}`, `${count} particles`, coarse === null ? "no resolution" : `${coarse.toFixed(1)} Å`];
  if (scored) words.push(`score ${scored[0].toFixed(2)}`, scored[1]);
  tile.setAttribute("aria-label", words.filter(Boolean).join(", "));
}

function lay() {
  const focused = document.activeElement && document.activeElement.dataset.number;
  const rows = order();
  for (const row of rows) {
    if (!tiles.has(row[0])) tileOf(row[0]);
    fill(row);
  }
  gallery.replaceChildren(...rows.map((row) => tiles.get(row[0])));
  if (focused) tiles.get(Number(focused)).focus({ preventScroll: true });
  else if (gallery.firstChild) gallery.firstChild.tabIndex = 0;
  mark();
}

function ranges(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b), parts = [];
  for (const number of sorted) {
    const last = parts[parts.length - 1];
    if (last && last[1] === number - 1) last[1] = number;
    else parts.push([number, number]);
  }
  return parts.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(",");
}

const check = later(WAIT_MS, async () => {
  if (!save || !chosen.size) return;
  const wanted = save.elements.classes.value;
  try {
    const told = await ask(save.dataset.check, save);
    if (wanted !== save.elements.classes.value) return;
    find("#faults").textContent = Object.values(told.faults).join("; ");
    save.querySelector("[data-command]").textContent = told.command;
    save.elements.command.value = told.command;
    find("#start").disabled = !told.command;
  } catch (error) { find("#faults").textContent = error.message; }
});

function mark() {
  for (const [number, tile] of tiles) tile.setAttribute("aria-selected", chosen.has(number));
  const count = classes.reduce((sum, row) => sum + (chosen.has(row[0]) ? row[1] : 0), 0);
  find("#chosen").textContent = chosen.size
    ? `${chosen.size} of ${classes.length} chosen, ${count.toLocaleString("en")} particles` : "none chosen";
  find("#undo").disabled = !history.length;
  if (!save) return;
  save.elements.classes.value = ranges(chosen);
  find("#start").disabled = true;
  if (!chosen.size) save.querySelector("[data-command]").textContent = "";
  check();
}

function choose(next) {
  history.push(chosen);
  if (history.length > 200) history.shift();
  chosen = next;
  mark();
}

function toggle(number, extend) {
  const next = new Set(chosen), shown = [...gallery.children].map((tile) => Number(tile.dataset.number));
  if (extend && anchor !== null) {
    const [from, to] = [shown.indexOf(anchor), shown.indexOf(number)].sort((a, b) => a - b);
    const on = chosen.has(anchor);
    for (const each of shown.slice(from, to + 1)) on ? next.add(each) : next.delete(each);
  } else {
    next.has(number) ? next.delete(number) : next.add(number);
    anchor = number;
  }
  choose(next);
}

const everything = () => new Set(classes.map((row) => row[0]));
const acts = {
  all: () => choose(everything()),
  none: () => choose(new Set()),
  invert: () => choose(new Set([...everything()].filter((number) => !chosen.has(number)))),
  undo: () => { if (history.length) { chosen = history.pop(); mark(); } },
  byscore: () => {
    const least = Number(find("#least").value);
    choose(new Set([...everything()].filter((number) => scores[number - 1] && scores[number - 1][0] >= least)));
  },
};
for (const [id, act] of Object.entries(acts)) find("#" + id).addEventListener("click", act);
find("#sort").addEventListener("change", lay);
find("#contrast").addEventListener("input", (event) => gallery.style.setProperty("--contrast", event.target.value));
find("#size").addEventListener("input", (event) => gallery.style.setProperty("--side", event.target.value + "px"));
if (save) save.elements.o.addEventListener("input", () => { find("#start").disabled = true; check(); });

gallery.addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  tile.focus();
  toggle(Number(tile.dataset.number), event.shiftKey);
});

function columns() {
  const top = gallery.firstChild.offsetTop;
  let count = 0;
  for (const tile of gallery.children) {
    if (tile.offsetTop !== top) break;
    count += 1;
  }
  return Math.max(1, count);
}

gallery.addEventListener("keydown", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
  const shown = [...gallery.children], place = shown.indexOf(tile);
  const steps = {
    ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -place, End: shown.length - 1 - place,
  };
  const keys = { a: acts.all, i: acts.invert, u: acts.undo, n: acts.none };
  if (event.key in steps) {
    const next = shown[Math.max(0, Math.min(shown.length - 1, place + steps[event.key]))];
    next.focus();
    if (event.shiftKey) toggle(Number(next.dataset.number), true);
  } else if (event.key === " ") toggle(Number(tile.dataset.number), event.shiftKey);
  else if (event.key === "p" || event.key === "Enter") {
    find("#particles").open = true;
    look(tile);
    find("#particles").scrollIntoView({ block: "nearest" });
  } else if (event.key in keys) keys[event.key]();
  else return;
  event.preventDefault();
});

const look = (tile) => {
  if (!tile || !find("#particles").open) return;
  const number = Number(tile.dataset.number), strip = find("#strip");
  find("#which").textContent = `class ${number}: the first images`;
  strip.alt = `first particles of class ${number}`;
  strip.src = `/particles/${path}?n=${number}&v=${encodeURIComponent(version)}`;
  strip.hidden = false;
};
let last = null;
const lookLater = later(150, look);
gallery.addEventListener("focusin", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  if (last && last !== tile) last.tabIndex = -1;
  tile.tabIndex = 0;
  last = tile;
  lookLater(tile);
});
find("#particles").addEventListener("toggle", () => look(last || gallery.firstChild));
find("#strip").addEventListener("error", async () => {
  if (find("#strip").hidden) return;
  find("#strip").hidden = true;
  try { await ask(find("#strip").getAttribute("src")); } catch (error) { find("#which").textContent = error.message; }
});

async function load() {
  const told = await ask("/classes.json/" + path);
  if (told.version === version) return;
  version = told.version;
  classes = told.classes;
  scores = [];
  for (const [number, tile] of tiles) if (number > classes.length) { tile.remove(); tiles.delete(number); }
  chosen = new Set([...chosen].filter((number) => number <= classes.length));
  lay();
  const judged = await ask("/scores.json/" + path);
  if (judged.version === version) { scores = judged.scores; lay(); }
}
load().catch((error) => say(error.message));
poll(load);
