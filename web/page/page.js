/** The page: it loads the student, keeps what its user chooses on the device, and shows what follows from it. */

import { load, openStore } from "./distilrec.js";

const $ = (id) => document.getElementById(id);
const USER = "me";
const COUNT = 12;
const REASONS = 2;
const FOUND = 8;
const MOST_CATEGORIES = 60;
/** Of the meter: how many, and milliseconds. */
const [ROUNDS, ROUND] = [5, 1];

let recommender;
/** null where the browser keeps nothing. */
let store = null;
/** What can be chosen from: an attribute and its values. */
let categories = { name: "", values: [] };
/** Item ids in the order that is shown. */
let shown = [];

function report(problem) {
  $("problem").textContent = problem ? problem.message : "";
  $("problem").hidden = !problem;
}

function guarded(action) {
  return async (event) => {
    try {
      report(null);
      await action(event);
    } catch (problem) {
      report(problem);
    }
  };
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Figures

function size(bytes) {
  return bytes < 1_000 ? `${bytes} bytes` : `${(bytes / 1_000).toFixed(bytes < 100_000 ? 1 : 0)} kB`;
}

function duration(milliseconds) {
  return milliseconds < 1 ? `${Math.round(1_000 * milliseconds)} µs` : `${milliseconds.toFixed(1)} ms`;
}

/** Return milliseconds of a call: the median of rounds of calls, because the clock of a page is coarse. */
function timed(call) {
  const rounds = Array.from({ length: ROUNDS }, () => {
    const started = performance.now();
    let calls = 0;
    do {
      call();
      calls += 1;
    } while (performance.now() - started < ROUND);
    return (performance.now() - started) / calls;
  });
  return rounds.sort((a, b) => a - b)[(ROUNDS - 1) / 2];
}

function showBytes() {
  const entries = performance.getEntriesByType("resource");
  const of = (name) => entries.find((entry) => new URL(entry.name).pathname.endsWith(`/${name}`));
  const sum = (kind) => entries.reduce((total, entry) => total + entry[kind], 0);
  $("bytes").textContent = size(sum("decodedBodySize"));
  const [student, code] = ["student.drec", "distilrec.js"].map((name) => of(name)?.decodedBodySize ?? 0);
  const from = sum("transferSize") ? "" : "; all from this device";
  $("bytes-about").textContent = `student ${size(student)}, engine ${size(code)}${from}`;
}

function showNetwork() {
  $("network").textContent = navigator.onLine ? "online" : "offline";
}

// Answers

function textsOf(value) {
  return (Array.isArray(value) ? value : [value]).filter((text) => typeof text === "string");
}

/** Return the attribute with texts that sorts the catalogue best, with its values by frequency. */
function findCategories() {
  const counts = new Map();
  for (const id of recommender.item_ids) {
    for (const [name, value] of Object.entries(recommender.item(id).attributes)) {
      const of = counts.get(name) ?? new Map();
      counts.set(name, of);
      for (const text of textsOf(value)) of.set(text, (of.get(text) ?? 0) + 1);
    }
  }
  for (const [name, of] of counts) {
    if (of.size > 1 && of.size <= MOST_CATEGORIES) {
      return { name, values: [...of].sort((a, b) => b[1] - a[1]).map(([text]) => text) };
    }
  }
  return { name: "", values: [] };
}

function hueOf(attributes) {
  const [first] = textsOf(attributes[categories.name]);
  const place = categories.values.indexOf(first);
  return place < 0 ? 160 : Math.round(137.5 * place + 20) % 360; // the golden angle keeps neighbours apart
}

function answers() {
  const wanted = $("category").value;
  const where = wanted ? { attributes: { [categories.name]: { any_of: [wanted] } } } : null;
  const options = { k: COUNT, where, diversity: Number($("diversity").value) };
  const found = recommender.recommend(USER, options);
  const milliseconds = timed(() => recommender.recommend(USER, options));
  $("answer-time").textContent = duration(milliseconds);
  $("answer-about").textContent =
    `${recommender.item_ids.length.toLocaleString("en")} items scored, ${recommender.wasm ? "WebAssembly" : "JavaScript"}`;
  return found;
}

function reasonsOf(item_id) {
  const line = element("span", undefined, "why");
  const reasons = recommender.explain(USER, item_id, REASONS).filter(({ contribution }) => contribution > 0);
  reasons.forEach((reason, n) => {
    line.append(n ? ", " : "because of ", element("b", `+${reason.contribution.toFixed(2)}`));
    line.append(` ${recommender.title(reason.item_id)}`);
  });
  return reasons.length ? line : null;
}

function movement(item_id, place) {
  const before = shown.indexOf(item_id);
  if (!shown.length || before === place) return "";
  if (before < 0) return "new";
  return before > place ? `↑ ${before - place}` : `↓ ${place - before}`;
}

function card(item_id, place) {
  const { title, attributes } = recommender.item(item_id);
  const row = element("li");
  row.dataset.item = item_id;
  const button = element("button");
  button.type = "button";
  button.style.setProperty("--hue", hueOf(attributes));
  const top = element("span", undefined, "top");
  const moved = movement(item_id, place);
  top.append(element("span", `${place + 1}`));
  if (moved) top.append(element("span", moved, "moved"));
  button.append(top, element("span", title, "title"));
  const about = textsOf(attributes[categories.name]).join(" · ");
  if (about) button.append(element("span", about, "quiet"));
  const why = reasonsOf(item_id);
  if (why) button.append(why);
  button.addEventListener("click", guarded(() => choose(item_id)));
  row.append(button);
  return row;
}

/** Let rows glide from where they were to where they are (First, Last, Invert, Play). */
function glide(before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const row of $("answers").children) {
    const [old, now] = [before.get(row.dataset.item), row.getBoundingClientRect()];
    const frames = old
      ? [{ transform: `translate(${old.x - now.x}px, ${old.y - now.y}px)` }, { transform: "none" }]
      : [{ opacity: 0, transform: "scale(.92)" }, { opacity: 1, transform: "none" }];
    row.animate(frames, { duration: 380, easing: "cubic-bezier(.2, .8, .3, 1)" });
  }
}

function show() {
  const before = new Map([...$("answers").children].map((row) => [row.dataset.item, row.getBoundingClientRect()]));
  const found = answers().map(({ item_id }) => item_id);
  const fresh = found.filter((id) => !shown.includes(id)).length;
  $("answers").replaceChildren(...found.map(card));
  glide(before);
  if (shown.length) $("spoken").textContent = `${fresh} of ${found.length} recommendations are new.`;
  shown = found;
  const past = recommender.past(USER, 30);
  $("history").replaceChildren(...past.map((id) => element("li", recommender.title(id))));
  $("no-history").hidden = past.length > 0;
  $("forget").hidden = past.length === 0;
  $("network-about").textContent = navigator.serviceWorker?.controller ? "works offline" : "nothing is sent";
  showBytes();
}

async function choose(item_id) {
  const place = [...$("answers").children].findIndex((row) => row.contains(document.activeElement));
  const events = [{ user_id: USER, item_id }];
  if (store) await store.update(events);
  else recommender.update(events);
  show();
  // The chosen card is gone: the focus goes to the one in its place.
  if (place >= 0) $("answers").children[Math.min(place, shown.length - 1)]?.firstChild.focus();
}

async function forget() {
  if (!confirm("Forget everything that you chose?")) return;
  if (store) await store.clear();
  else recommender.forget(USER);
  show();
  $("search").focus();
}

function search() {
  const rows = recommender.search($("search").value, FOUND).map(({ item_id, title }) => {
    const row = element("li");
    const button = element("button", title);
    button.type = "button";
    button.addEventListener("click", guarded(() => choose(item_id)));
    row.append(button);
    return row;
  });
  $("found").replaceChildren(...rows);
}

// Start

async function keep() {
  try {
    store = await openStore(recommender, { changed: show });
  } catch (problem) {
    if (problem.code !== "store_unavailable") throw problem;
    $("forgetful").hidden = false;
  }
}

async function begin() {
  const started = performance.now();
  recommender = await load("student.drec");
  recommender.recommend(USER, { k: COUNT });
  $("start-time").textContent = duration(performance.now() - started);
  $("start-about").textContent = "read, checked, answered";
  await keep();
  categories = findCategories();
  for (const text of categories.values) {
    $("category").append(Object.assign(element("option", text), { value: text }));
  }
  const { dataset, dim, parameters, model_version } = recommender.manifest;
  $("model").textContent =
    `Student ${model_version} of ${dataset}: ${parameters.toLocaleString("en")} parameters, ${dim} numbers for each item. Made with distilrec.`;
  search();
  show();
}

async function workOffline() {
  const workers = navigator.serviceWorker;
  if (!workers) return;
  const registration = await workers.register("worker.js", { updateViaCache: "none" });
  const offer = () => ($("update").hidden = !(registration.waiting && workers.controller));
  registration.addEventListener("updatefound", () => {
    registration.installing?.addEventListener("statechange", offer);
  });
  offer();
  $("use-update").addEventListener("click", () => {
    workers.addEventListener("controllerchange", () => location.reload());
    registration.waiting?.postMessage("use");
  });
  workers.addEventListener("controllerchange", () => ($("network-about").textContent = "works offline"));
}

$("forget").addEventListener("click", guarded(forget));
$("search").addEventListener("input", guarded(search));
for (const id of ["category", "diversity"]) $(id).addEventListener("change", guarded(show));
for (const change of ["online", "offline"]) addEventListener(change, showNetwork);
showNetwork();
await guarded(begin)();
await workOffline().catch(() => {}); // The page works without it, online.
