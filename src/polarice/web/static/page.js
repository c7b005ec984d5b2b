"use strict";
// What all pages share: copying commands, states that follow their jobs, forms that are checked as they are filled in.
const POLL_MS = 2000, WAIT_MS = 300;
const find = (name) => document.querySelector(name);

function say(text) {
  const place = find("#said");
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { place.textContent = ""; }, 2500);
}

async function ask(address, form) {
  const options = form ? { method: "POST", body: new URLSearchParams(new FormData(form)) } : {};
  const answer = await fetch(address, options);
  if (!answer.ok) {
    const kind = answer.headers.get("Content-Type") || "";
    const text = await answer.text();
    const page = kind.startsWith("text/html") ? new DOMParser().parseFromString(text, "text/html") : null;
    throw new Error(page ? page.querySelector("main p").textContent : text.trim());
  }
  return answer.json();
}

function later(wait, work) {
  let timer;
  return (...given) => { clearTimeout(timer); timer = setTimeout(() => work(...given), wait); };
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const shown = button.parentElement.querySelector("[data-command]");
  try {
    await navigator.clipboard.writeText(shown.textContent);
    say("copied");
  } catch (error) {
    getSelection().selectAllChildren(shown);
    say("press Ctrl-C to copy");
  }
});

function follow(row, told) {
  const badge = row.querySelector("[data-state]"), bar = row.querySelector("[data-bar]");
  badge.textContent = told.word || "?";
  badge.className = "state " + (told.state || "none");
  row.querySelector("[data-said]").textContent = told.said;
  bar.hidden = !(told.state === "running" && told.total);
  if (told.total) { bar.max = told.total; bar.value = Math.min(told.done, told.total); }
}

function poll(work) {
  let failed = false;
  const once = async () => {
    if (!document.hidden) {
      try {
        await work();
        failed = false;
      } catch (error) {
        if (!failed) say("the page has lost its server: " + error.message);
        failed = true;
      }
    }
    setTimeout(once, failed ? 5 * POLL_MS : POLL_MS);
  };
  setTimeout(once, POLL_MS);
}

const tree = find("#tree");
if (tree) {
  const filter = find("#filter");
  const narrow = () => {
    const wanted = filter.value.trim().toLowerCase();
    for (const item of [...tree.querySelectorAll("li")].reverse()) {
      const own = item.querySelector(".row").textContent.toLowerCase().includes(wanted);
      item.hidden = !own && !item.querySelector("li:not([hidden])");
    }
  };
  filter.addEventListener("input", narrow);
  poll(async () => {
    const told = await ask("/status.json");
    if (told.version !== tree.dataset.version && !tree.contains(document.activeElement)) {
      tree.innerHTML = await (await fetch("/?part=tree")).text();
      tree.dataset.version = told.version;
      find("#count").textContent = told.count;
      narrow();
    }
    for (const row of tree.querySelectorAll("[data-name]"))
      if (told.jobs[row.dataset.name]) follow(row, told.jobs[row.dataset.name]);
  });
}

const row = find("#job");
if (row) {
  const state = row.querySelector("[data-state]"), section = find("#log"), log = find("[data-log]");
  let before = state.textContent;
  if (log) log.scrollTop = log.scrollHeight;
  poll(async () => {
    const told = await ask("/job.json/" + row.dataset.name.split("/").map(encodeURIComponent).join("/"));
    follow(row, told);
    if (log && log.textContent !== told.log) {
      const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
      log.textContent = told.log;
      section.hidden = !told.log;
      if (atEnd) log.scrollTop = log.scrollHeight;
    }
    if (state.textContent !== before) location.reload();
    before = state.textContent;
  });
}

const form = find("#form");
if (form) {
  const start = find("#start"), ready = find("#ready"), needing = [...form.querySelectorAll("[data-needs]")];
  const value = (name) => {
    const input = form.elements[name];
    return input ? (input.type === "checkbox" ? (input.checked ? "1" : "") : input.value) : "";
  };
  const dim = () => {
    for (const field of needing) {
      const [name, wanted] = field.dataset.needs.split("=");
      field.classList.toggle("off", wanted === "1" ? !value(name) : value(name) !== wanted);
    }
  };
  let asked = 0;
  const check = later(WAIT_MS, async () => {
    const number = ++asked;
    try {
      const told = await ask(form.dataset.check, form);
      if (number !== asked) return;
      for (const place of form.querySelectorAll(".field .fault")) {
        const name = place.id.slice(2), input = form.elements[name];
        place.textContent = touched.has(name) ? told.faults[name] || "" : "";
        if (told.faults[name] && touched.has(name)) input.setAttribute("aria-invalid", "true");
        else input.removeAttribute("aria-invalid");
      }
      find("#faults").textContent = told.faults[""] || "";
      ready.hidden = start.hidden = !told.command;
      ready.querySelector("[data-command]").textContent = told.command;
      form.elements.command.value = told.command;
    } catch (error) { say(error.message); }
  });
  const touched = new Set([...form.querySelectorAll("[aria-invalid]")].map((each) => each.name));
  form.addEventListener("input", (event) => { touched.add(event.target.name); start.hidden = true; dim(); check(); });
  dim();
  check();
}
