// Experiments: what their arms brought, and starting, stopping and promoting them.

import { $, call, element } from "/look/page.js";
import { interval } from "./charts.js";
import { moment, number, percent, whole } from "./numbers.js";
import { fillTable, isWanted } from "./panels.js";

const BRINGS = { clicks: "answers with a click", conversions: "answers with a conversion", value: "value per answer" };
const points = (share) => `${number(100 * share)} points`;
const chance = (p) => (p < 0.0001 ? "p < 0.0001" : `p ${number(p)}`);

// change: makes a change, says its problem, and asks again.
export async function load(change) {
  const { experiments } = await call("GET", "/v1/experiments");
  const isOpen = (one) => one.state === "running" || one.state === "promoting";
  const open = experiments.filter(isOpen);
  const ended = experiments.filter((one) => !isOpen(one));
  const list = $("experiment-list");
  const wasOpen = Boolean(list.querySelector("details[open]"));
  list.replaceChildren();
  for (const one of open) show(list, one, change);
  if (ended.length) {
    const earlier = element("details");
    earlier.open = wasOpen;
    earlier.append(element("summary", `Earlier experiments (${ended.length})`));
    list.append(earlier);
    for (const one of ended) show(earlier, one, change);
    earlier.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")));
  }
  $("no-experiments").hidden = experiments.length > 0;
  $("start").hidden = open.length > 0;
}

function show(parent, one, change) {
  const card = element("article", undefined, "card experiment");
  const write = one.metric === "value" ? number : percent;
  card.append(element("h3", one.name));
  const arms = one.control_version === one.variant_version ? "other rules" : `${one.variant_version} against ${one.control_version}`;
  card.append(
    element("p", `${one.state}, ${percent(one.share)} of users since ${moment(one.started)}: ${arms}${one.rules ? ", with rules of its own" : ""}.`, "quiet"),
  );
  if (one.problem) card.append(element("p", `In the process that answered: ${one.problem}.`, "says bad"));
  parent.append(card);
  if (one.result) showResult(card, one, write);
  else card.append(element("p", "Answers have no ids here (--no-outcomes), so there is no result.", "quiet"));
  if (one.state === "running") card.append(changes(one, change));
}

function showResult(card, one, write) {
  const { control, variant, difference, low, high, p_value: p } = one.result;
  const known = low !== undefined && low !== null;
  const apart = one.metric === "value" ? number : points;
  const found = one.result.different ? `The variant brings ${difference > 0 ? "more" : "less"}` : "No difference can be shown so far";
  const verdict = known
    ? `${found}, ${BRINGS[one.metric]}: ${difference > 0 ? "+" : ""}${apart(difference)} (95% interval ${apart(low)} to ${apart(high)}, ${chance(p)}).`
    : "Too little is known for an interval yet.";
  card.append(element("p", verdict));
  if (known) {
    const place = element("div", undefined, "place");
    card.append(place);
    interval(place, { title: `Difference, variant minus control: ${verdict}`, mean: difference, low, high, write: apart });
  }
  const table = element("table");
  const around = element("div", undefined, "scroll");
  Object.assign(around, { tabIndex: 0, role: "region", ariaLabel: `Arms of ${one.name}` });
  around.append(table);
  const row = (name, arm) => [
    name, whole(arm.answers), whole(arm.clicked), whole(arm.converted), number(arm.value),
    arm.per_answer === undefined || arm.per_answer === null ? "–" : write(arm.per_answer),
  ];
  fillTable(table, ["Arm", "#Answers", "#Clicked", "#Converted", "#Value", `#${one.metric} per answer`], [row("control", control), row("variant", variant)]);
  card.append(around);
  const done = control.answers + variant.answers;
  card.append(element("p", `${whole(done)} answers, planned for ${whole(one.planned)}. The interval holds however often one looks.`, "quiet"));
}

function changes(one, change) {
  const row = element("div", undefined, "controls");
  const button = (text, path, question, className) => {
    const made = element("button", text, className);
    made.type = "button";
    made.addEventListener("click", change(async () => {
      if (await isWanted(question, text.replace(" …", ""))) await call("POST", path, { name: one.name });
    }));
    row.append(made);
  };
  button("Promote …", "/v1/experiments/promote", `Answer everybody with the variant of ${one.name}? The experiment ends.`, "");
  button("Stop …", "/v1/experiments/stop", `Stop ${one.name}, and answer everybody with the control? A name is used once.`, "danger");
  return row;
}

// Start the experiment that the form describes.
export async function start() {
  const [name, bundle, rules, metric] = ["name", "bundle", "rules", "metric"].map((id) => $(`start-${id}`).value.trim());
  const request = { name, metric, share: Number($("start-share").value) / 100, planned: Number($("start-planned").value) };
  if (bundle) request.bundle = bundle;
  if (rules) request.rules = { file: rules };
  const what = [bundle && `the bundle ${bundle}`, rules && `the rules ${rules}`].filter(Boolean).join(" and ") || "the same";
  if (!(await isWanted(`Answer ${percent(request.share)} of users with ${what}?`, "Start"))) return;
  await call("POST", "/v1/experiments/start", request);
  $("start").open = false;
  $("start-form").reset();
}
