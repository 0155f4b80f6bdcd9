// The playground: a user, what they did, and the list that follows it.

import { $, call as ask, chips, element, useKey } from "/look/page.js";

const COUNT = 10;
const CATEGORIES = 4; // of a card
const MOVE = { duration: 450, easing: "cubic-bezier(.2, .7, .2, 1)" };
let user = "";
let shown = []; // item ids of the last answer to this user
let latest = 0; // number of the last refresh: answers that come late are dropped
const known = new Map(); // attributes of items, or the promise of them

async function call(method, path, body) {
  try {
    return await ask(method, path, body);
  } catch (problem) {
    if (problem.status === 401) $("key-form").hidden = false;
    throw problem;
  }
}

function report(problem) {
  $("problem").textContent = problem ? problem.message : "";
  $("problem").hidden = !problem;
}

function guarded(action) {
  return async (event) => {
    if (event) event.preventDefault();
    try {
      report(null);
      await action(event);
    } catch (problem) {
      report(problem);
    }
  };
}

function itemRow(item, className) {
  const row = element("li", undefined, className);
  row.dataset.item = item.item_id;
  const button = element("button", item.title || item.item_id, "plain");
  button.type = "button";
  button.addEventListener("click", guarded(() => act(item.item_id)));
  row.append(button);
  return row;
}

// Add the categories of an item to its row, when they are known.
async function addCategories(row) {
  const id = row.dataset.item;
  if (!known.has(id)) known.set(id, call("GET", `/v1/items/${encodeURIComponent(id)}`).then((item) => item.attributes));
  try {
    row.querySelector(".chips").replaceWith(chips(await known.get(id), CATEGORIES));
  } catch {
    known.delete(id); // the list says enough without them
  }
}

function chosenFilter() {
  const name = $("attribute").value;
  const value = $("value").value.trim();
  if (!name || !value) return undefined;
  const range = value.match(/^(-?[\d.]*)\.\.(-?[\d.]*)$/);
  if (!range) return { attributes: { [name]: { any_of: [value] } } };
  const condition = {};
  if (range[1] !== "") condition.min = Number(range[1]);
  if (range[2] !== "") condition.max = Number(range[2]);
  return { attributes: { [name]: condition } };
}

async function refresh() {
  if (!user) return;
  const number = ++latest;
  const request = { user_id: user, k: COUNT, titles: true, explain: true, diversity: Number($("diversity").value) };
  const filter = chosenFilter();
  if (filter) request.filter = filter;
  const started = performance.now();
  const answer = await call("POST", "/v1/recommend", request);
  const milliseconds = performance.now() - started;
  const about = await call("GET", `/v1/users/${encodeURIComponent(user)}`).catch((problem) => {
    if (problem.status === 404) return { recent: [], teacher: [] }; // somebody new
    throw problem;
  });
  if (number !== latest) return;
  showAnswers(answer, milliseconds);
  showHistory(about.recent);
  showTeacher(about.teacher, answer.items);
}

function showAnswers(answer, milliseconds) {
  $("latency").textContent = `${milliseconds.toFixed(1)} ms there and back, with explanations`;
  const list = $("answers");
  const before = new Map([...list.children].map((row) => [row.dataset.item, row.getBoundingClientRect().top]));
  const focused = [...list.children].findIndex((row) => row.contains(document.activeElement));
  const rows = answer.items.map((item, place) => {
    const from = shown.indexOf(item.item_id);
    const row = itemRow(item, shown.length && from < 0 ? "fresh" : "");
    const figures = element("span", undefined, "figures");
    if (shown.length && from !== place) figures.append(moved(from, place));
    figures.append(element("span", item.score.toFixed(2), "quiet number"));
    row.append(figures, element("span", undefined, "chips"));
    const reasons = (item.because || []).map((r) => `${r.contribution >= 0 ? "+" : ""}${r.contribution.toFixed(2)} ${r.title}`);
    if (reasons.length) row.append(element("span", reasons.join("; "), "why"));
    return row;
  });
  sayMoves(answer.items);
  list.replaceChildren(...rows);
  list.dataset.user = answer.user_id;
  rows.forEach(addCategories);
  if (focused >= 0 && rows.length) rows[Math.min(focused, rows.length - 1)].querySelector("button").focus({ preventScroll: true });
  if (shown.length) animate(rows, before);
  shown = answer.items.map((item) => item.item_id);
}

function moved(from, place) {
  if (from < 0) return element("span", "new", "move");
  const made = element("span", `${from > place ? "↑" : "↓"}${Math.abs(from - place)}`, `move ${from > place ? "up" : "down"}`);
  made.title = `was at ${from + 1}`;
  return made;
}

function sayMoves(items) {
  const places = shown.length ? items.map((item) => shown.indexOf(item.item_id)) : [];
  const fresh = places.filter((from) => from < 0).length;
  const other = places.filter((from, place) => from >= 0 && from !== place).length;
  $("moved").textContent = fresh || other ? `Since the last list: ${fresh} new, ${other} moved.` : "";
}

// Let rows slide from where they were, and new ones come in.
function animate(rows, before) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const row of rows) {
    const top = before.get(row.dataset.item);
    if (top === undefined) row.animate([{ opacity: 0, transform: "translateX(1.5rem)" }, { opacity: 1, transform: "none" }], MOVE);
    else row.animate([{ transform: `translateY(${top - row.getBoundingClientRect().top}px)` }, { transform: "none" }], MOVE);
  }
}

function showHistory(recent) {
  $("history").replaceChildren(...recent.slice(0, 30).map((item) => element("li", item.title)));
  $("no-history").hidden = recent.length > 0;
}

function showTeacher(teacher, items) {
  $("comparison").hidden = teacher.length === 0;
  const student = new Set(items.map((item) => item.item_id));
  const top = teacher.slice(0, COUNT);
  const common = top.filter((item) => student.has(item.item_id)).length;
  $("agreement").textContent =
    `The teacher's list after the history in the bundle, without later events. ${common} of ${top.length} are in the student's list now.`;
  $("teacher").replaceChildren(...top.map((item) => itemRow(item, student.has(item.item_id) ? "both" : "")));
}

async function act(item) {
  if (!user) startNew();
  await call("POST", "/v1/events", {
    events: [{ user_id: user, item_id: item, event_type: $("event-type").value, event_id: crypto.randomUUID() }],
  });
  await refresh();
}

function startNew() {
  user = `guest-${crypto.randomUUID().slice(0, 8)}`;
  shown = [];
  $("user").value = user;
}

async function search() {
  const text = $("search").value;
  const answer = await call("GET", `/v1/items?limit=20&search=${encodeURIComponent(text)}`);
  if (text !== $("search").value) return;
  $("found").replaceChildren(...answer.items.map((item) => {
    known.set(item.item_id, item.attributes);
    const row = itemRow(item);
    row.append(chips(item.attributes, CATEGORIES));
    return row;
  }));
}

async function begin() {
  const model = await call("GET", "/v1/model");
  $("model").textContent =
    `model ${model.model_version}: ${model.kind}, ${model.items.toLocaleString("en")} items of ${model.dataset}`;
  $("event-type").replaceChildren(...model.event_types.map((name) => element("option", name)));
  $("attribute").replaceChildren(
    ...["", ...model.attributes].map((name) => {
      const option = element("option", name || "(no filter)");
      option.value = name;
      return option;
    }),
  );
  await search();
  const { users } = await call("GET", "/v1/users?limit=50");
  $("users").replaceChildren(...users.map((id) => Object.assign(element("option"), { value: id })));
  if (!user && users.length) {
    user = users[0];
    $("user").value = user;
  }
  await refresh();
}

$("user-form").addEventListener("submit", guarded(async () => {
  user = $("user").value.trim();
  shown = [];
  await refresh();
}));
$("new-user").addEventListener("click", guarded(async () => {
  startNew();
  await refresh();
}));
$("erase").addEventListener("click", guarded(async () => {
  if (!user || !window.confirm(`Erase everything about ${user}?`)) return;
  await call("DELETE", `/v1/users/${encodeURIComponent(user)}`);
  shown = [];
  await refresh();
}));
$("key-form").addEventListener("submit", guarded(async () => {
  useKey($("key").value.trim());
  await begin();
  $("key-form").hidden = true;
}));
$("search").addEventListener("input", guarded(search));
for (const id of ["attribute", "value", "diversity"]) $(id).addEventListener("change", guarded(refresh));

guarded(begin)();
