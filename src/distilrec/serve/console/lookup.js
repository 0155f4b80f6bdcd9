// One user or one item, and why it is recommended.

import { $, call, chip, chips, element } from "/look/page.js";
import { signedBar } from "./charts.js";
import { moment, number } from "./numbers.js";
import { fillFacts, say } from "./panels.js";

const COUNT = 10;
let latestUser = 0; // numbers of the last questions: answers that come late are dropped
let latestItem = 0;

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
const path = (kind, id) => `/v1/${kind}/${encodeURIComponent(id)}`;

const option = (value, text = value) => Object.assign(element("option", text), { value });

// What there is to choose from, for those who may see it: ids of users, and placements with rules.
export async function choices() {
  const nothing = () => ({});
  const [{ users = [] }, { placements = {} }] = await Promise.all(
    ["/v1/users?limit=50", "/v1/rules"].map((path) => call("GET", path).catch(nothing)),
  );
  $("users").replaceChildren(...users.map((id) => option(id)));
  $("user-placement").replaceChildren(option("", "(no placement)"), ...Object.keys(placements).map((name) => option(name)));
  $("user-rules").hidden = !Object.keys(placements).length;
}

function itemButton(item) {
  const button = element("button", item.title || item.item_id, "plain");
  button.type = "button";
  button.addEventListener("click", () => showItem(item.item_id, true));
  return button;
}

function row(item, ...more) {
  const made = element("li");
  made.dataset.item = item.item_id;
  const head = element("div", undefined, "head");
  head.append(itemButton(item), ...more);
  made.append(head);
  return made;
}

export async function user() {
  const id = $("user-id").value.trim();
  if (!id) return;
  const question = ++latestUser;
  say($("user-says"), "");
  try {
    const [answer, known] = await Promise.all([
      call("POST", "/v1/recommend", { user_id: id, k: COUNT, titles: true, explain: true, placement: $("user-placement").value || undefined, record: false }),
      call("GET", path("users", id)).catch((problem) => {
        if (problem.status === 404 || problem.status === 403) return { problem };
        throw problem;
      }),
    ]);
    if (question === latestUser) showUser(answer, known);
  } catch (problem) {
    if (question !== latestUser) return;
    $("user-shown").hidden = true;
    say($("user-says"), problem.status === 403 ? "Recommendations need a key with the scope recommend." : problem.message, true);
    if (problem.status === 401) throw problem;
  }
}

function showUser(answer, known) {
  const arm = answer.variant ? `, in ${answer.variant}` : "";
  $("user-who").textContent = `of ${answer.model_version}${arm}${answer.known_user ? "" : ": those for everybody, nothing is known of this user"}`;
  const moves = answer.rules ? answer.rules.moved : [];
  const left = moves.filter((move) => move.rank === null || move.rank === undefined);
  $("user-left").hidden = !left.length;
  $("user-left-list").replaceChildren(...left.map((move) => row(move, element("span", told(move), "quiet"))));
  const reasons = answer.items.flatMap((item) => item.because || []);
  const most = Math.max(0, ...reasons.map((reason) => Math.abs(reason.contribution)));
  $("user-answers").replaceChildren(...answer.items.map((item) => {
    const made = row(item, element("span", item.score.toFixed(2), "quiet number"));
    for (const move of moves.filter(({ item_id: id }) => id === item.item_id)) made.append(element("div", told(move), "quiet moved"));
    for (const reason of item.because || []) {
      const why = element("div", undefined, "why");
      why.append(
        element("span", signed(reason.contribution), "number"), signedBar(reason.contribution, most),
        element("span", `because of ${reason.title || reason.item_id}`),
      );
      made.append(why);
    }
    return made;
  }));
  const { problem, recent = [], events = [], teacher = [], features = {} } = known;
  if (problem && problem.status === 403) say($("user-says"), "What the user did needs a key with the scope users.");
  $("user-known").hidden = Boolean(problem);
  $("user-features").replaceChildren(...Object.entries(features || {}).map(([name, value]) => chip(`${name}: ${value}`)));
  const titles = new Map(recent.map((item) => [item.item_id, item.title]));
  const stored = events.map((event) => {
    const made = row({ item_id: event.item_id, title: titles.get(event.item_id) }, element("span", moment(event.timestamp), "quiet"));
    made.append(element("span", event.event_type, "quiet"));
    return made;
  });
  const more = new Set(events.map((event) => event.item_id));
  const older = recent.filter((item) => !more.has(item.item_id)).map((item) => row(item, element("span", "in the training log", "quiet")));
  $("user-events").replaceChildren(...stored, ...older);
  $("user-teacher").hidden = !teacher.length;
  const both = new Set(answer.items.map((item) => item.item_id));
  $("user-teacher-list").replaceChildren(
    ...teacher.slice(0, COUNT).map((item) => row(item, element("span", both.has(item.item_id) ? "in both lists" : "", "quiet"))),
  );
  $("user-shown").hidden = false;
}

function told({ rule, before, rank, reason }) {
  const from = before ? `was ${before}` : "was far down";
  return `${rule}: ${reason ? `not at its slot, ${reason}` : rank ? from : `${from}, left out`}`;
}

export async function search() {
  const text = $("item-text").value.trim();
  const question = ++latestItem;
  say($("item-says"), "");
  const { items } = await call("GET", `/v1/items?limit=20&search=${encodeURIComponent(text)}`).catch(failed);
  if (question !== latestItem || !items) return;
  $("item-found").replaceChildren(...items.map((item) => {
    const made = element("li");
    made.append(itemButton(item));
    return made;
  }));
  if (!items.length) say($("item-says"), `No item has “${text}” in its title or id.`);
  const exact = items.length === 1 ? items[0] : items.find((item) => item.item_id === text);
  if (exact) await showItem(exact.item_id, false);
  else $("item-shown").hidden = true;
}

function failed(problem) {
  say($("item-says"), problem.status === 403 ? "Items need a key with the scope recommend." : problem.message, true);
  $("item-shown").hidden = true;
  if (problem.status === 401) throw problem;
  return {};
}

async function showItem(id, moves) {
  const question = ++latestItem;
  say($("item-says"), "");
  const [item, similar] = await Promise.all([
    call("GET", path("items", id)),
    call("POST", "/v1/similar", { item_ids: [id], k: COUNT, titles: true, record: false }),
  ]).catch((problem) => [failed(problem)]);
  if (question !== latestItem || !similar) return;
  $("item-name").textContent = item.title || item.item_id;
  const categories = Object.entries(item.attributes).map(([name, value]) => [
    name, Array.isArray(value) ? chips({ [name]: value }, 50) : write(value),
  ]);
  fillFacts($("item-facts"), [
    ["id", element("code", item.item_id)],
    ["available", item.available ? "yes" : "no: it is in no list"],
    ["in training", item.in_training ? "yes" : "no: known by its features only"],
    ...categories,
  ]);
  $("item-similar").replaceChildren(...similar.items.map((one) => row(one, element("span", one.score.toFixed(2), "quiet number"))));
  $("item-shown").hidden = false;
  if (moves) {
    $("item-name").focus({ preventScroll: true });
    $("item").scrollIntoView();
  }
}

const write = (value) => (Number.isInteger(value) ? String(value) : number(value));
