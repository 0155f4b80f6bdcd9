// What became of answers, by day and group.

import { $, call } from "/look/page.js";
import { legend, lines } from "./charts.js";
import { between, number, percent, whole } from "./numbers.js";
import { fillTable } from "./panels.js";

const MOST = 6; // lines in a picture
const DAY = 86_400_000;
const NOTHING = { placement: "(no placement)", variant: "(no experiment)", rules: "(no rules)" };
const WRITE = { value_per_answer: number, answers: whole };
let latest = 0; // number of the last question: answers that come late are dropped

export async function load() {
  const [measure, by, days] = ["measure", "by", "days"].map((id) => $(id).value);
  const question = ++latest;
  const today = Date.now();
  const labels = Array.from({ length: Number(days) }, (_, back) => new Date(today - (days - 1 - back) * DAY).toISOString().slice(0, 10));
  const period = `from=${labels[0]}&to=${labels.at(-1)}`;
  const [daily, total] = await Promise.all(
    [`day${by && `,${by}`}`, by || "endpoint"].map((groups) => call("GET", `/v1/outcomes?by=${groups}&${period}`)),
  );
  if (question !== latest) return;
  show(measure, by, labels, daily.groups, by ? total.groups : []);
}

function show(measure, by, labels, daily, totals) {
  const write = WRITE[measure] || percent;
  const nameOf = (group) => (by ? group[by] || NOTHING[by] || "(none)" : "all answers");
  const names = [...new Set([...(by ? totals : daily)].sort((a, b) => b.answers - a.answers).map(nameOf))];
  const drawn = names.slice(0, MOST);
  const byDay = new Map(daily.map((group) => [`${nameOf(group)}\n${group.day}`, group]));
  const point = (group) => (group ? (measure === "answers" ? { mean: group.answers } : group[measure] || null) : null);
  const series = drawn.map((name) => ({ name, points: labels.map((day) => point(byDay.get(`${name}\n${day}`))) }));
  $("no-outcomes").hidden = names.length > 0;
  $("outcomes-chart").hidden = !names.length;
  const title = `${$("measure").selectedOptions[0].textContent}, by day${by ? ` and ${$("by").selectedOptions[0].textContent}` : ""}`;
  if (names.length) lines($("outcomes-chart"), { title, labels: labels.map((day) => day.slice(5)), series, write });
  const left = names.length - drawn.length;
  $("outcomes-legend").replaceChildren(...legend(drawn));
  if (left) $("outcomes-legend").append(Object.assign(document.createElement("li"), { textContent: `and ${left} more, in the numbers only` }));
  const row = (day, group) => [
    day, nameOf(group), ...["answers", "shown", "clicked"].map((name) => whole(group[name] || 0)), between(group.click_rate, percent),
    whole(group.converted || 0), between(group.conversion_rate, percent), between(group.value_per_answer, number),
  ];
  fillTable(
    $("outcomes-table"),
    ["Day", "Group", "#Answers", "#Shown", "#Clicked", "#Of answers (95%)", "#Converted", "#Of answers (95%)", "#Value per answer (95%)"],
    [...totals.map((group) => row("all", group)), ...[...daily].reverse().map((group) => row(group.day, group))],
  );
  $("outcomes-numbers").hidden = !names.length;
}
