"use strict";

const $ = (id) => document.getElementById(id);
const COUNT = 10;
let key = "";
let user = "";
let shown = []; // item ids of the last answer
let latest = 0; // number of the last refresh: answers that come late are dropped

async function call(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key) headers.authorization = `Bearer ${key}`;
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const answer = await response.json();
  if (response.status === 401) $("key-form").hidden = false;
  if (!response.ok) {
    const problem = new Error(`${answer.error.message} (${answer.error.code})`);
    problem.status = response.status;
    throw problem;
  }
  return answer;
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

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function itemRow(item, className) {
  const row = element("li", undefined, className);
  row.dataset.item = item.item_id;
  const button = element("button", item.title || item.item_id);
  button.type = "button";
  button.addEventListener("click", guarded(() => act(item.item_id)));
  row.append(button);
  return row;
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
  const before = new Set(shown);
  const rows = answer.items.map((item) => {
    const row = itemRow(item, before.size && !before.has(item.item_id) ? "fresh" : "");
    row.append(element("span", ` ${item.score.toFixed(2)}`, "quiet"));
    const reasons = (item.because || []).map((r) => `${r.contribution >= 0 ? "+" : ""}${r.contribution.toFixed(2)} ${r.title}`);
    if (reasons.length) row.append(element("span", reasons.join("; "), "why"));
    return row;
  });
  $("answers").replaceChildren(...rows);
  $("answers").dataset.user = answer.user_id;
  shown = answer.items.map((item) => item.item_id);
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
  if (text === $("search").value) $("found").replaceChildren(...answer.items.map((item) => itemRow(item)));
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
  key = $("key").value.trim();
  await begin();
  $("key-form").hidden = true;
}));
$("search").addEventListener("input", guarded(search));
for (const id of ["attribute", "value", "diversity"]) $(id).addEventListener("change", guarded(refresh));

guarded(begin)();
