// The console: signs in, asks the service again and again, and says what goes wrong.

import { $, call, hasKey, useKey } from "/look/page.js";
import * as experiments from "./experiments.js";
import * as figures from "./figures.js";
import * as lookup from "./lookup.js";
import * as model from "./model.js";
import * as outcomes from "./outcomes.js";
import { askAgain, fill, say } from "./panels.js";

const PERIOD = 5; // seconds between two rounds
const SELDOM = 12; // rounds after which what costs more is asked again
let rounds = 0;
let timer = 0;

const showFigures = () => fill(["overview", "requests", "errors", "drift"], "metrics", figures.load);
const showOutcomes = () => fill(["outcomes"], "admin", outcomes.load);
const showModel = () => fill(["model"], "recommend", model.load);
const showExperiments = async () => {
  const isAdmin = await fill(["experiments"], "admin", () => experiments.load(change));
  $("model-changes").hidden = !isAdmin;
};

const seldom = { model: showModel, outcomes: showOutcomes, experiments: showExperiments };
const due = new Set(); // of these, until they have been shown

// Show the figures, in some rounds everything, and come back in a while.
async function round(everything = false) {
  clearTimeout(timer);
  if (everything || rounds++ % SELDOM === 0) Object.keys(seldom).forEach((name) => due.add(name));
  let wait = PERIOD;
  try {
    await readiness();
    if (due.has("model")) await showDue("model"); // before the others: without a key one refusal is enough
    $("nav").hidden = $("all").hidden = false;
    $("key-form").hidden = true;
    $("forget-key").hidden = !hasKey();
    const asked = await Promise.allSettled([showFigures(), ...[...due].map(showDue)]);
    const failed = asked.find((one) => one.status === "rejected");
    if (failed) throw failed.reason;
    $("asked").textContent = `as of ${new Date().toLocaleTimeString("en-GB")}`;
    say($("problem"), "");
  } catch (problem) {
    if (problem.status === 401) return signIn(problem);
    wait = Math.max(PERIOD, problem.wait || 0);
    say($("problem"), `${problem.message}${$("live").checked ? ` Asking again in ${wait} s.` : ""}`);
  }
  clearTimeout(timer);
  if ($("live").checked && !document.hidden) timer = setTimeout(round, 1000 * wait);
}

async function showDue(name) {
  await seldom[name]();
  due.delete(name);
}

async function readiness() {
  let state = "ready";
  try {
    await call("GET", "/readyz");
  } catch (problem) {
    state = problem.status ? `not ready: ${problem.code}` : "does not answer";
    if (!problem.status) throw problem;
  } finally {
    say($("state"), state, state !== "ready");
  }
}

function signIn(problem) {
  clearTimeout(timer);
  say($("problem"), hasKey() ? problem.message : "");
  useKey("");
  $("nav").hidden = $("all").hidden = $("forget-key").hidden = true;
  $("asked").textContent = "";
  $("key-form").hidden = false;
  $("key").focus();
}

// What a button or a form does: its problem stays until the next one.
function change(action, thenAsk = true) {
  return async (event) => {
    event.preventDefault();
    say($("refusal"), "");
    try {
      await action();
    } catch (problem) {
      if (problem.status === 401) return signIn(problem);
      say($("refusal"), problem.message);
    }
    if (thenAsk) await round(true);
  };
}

async function begin() {
  askAgain();
  figures.forget();
  await round(true);
  if ($("key-form").hidden) await lookup.choices();
}

$("key-form").addEventListener("submit", change(async () => {
  useKey($("key").value.trim());
  $("key").value = "";
  await begin();
}, false));
$("forget-key").addEventListener("click", change(async () => {
  useKey("");
  await begin();
}, false));
$("start-form").addEventListener("submit", change(experiments.start));
$("load-form").addEventListener("submit", change(model.loadBundle));
$("rollback").addEventListener("click", change(model.rollback));
$("user-form").addEventListener("submit", change(lookup.user, false));
$("item-form").addEventListener("submit", change(lookup.search, false));
for (const id of ["measure", "by", "days"]) $(id).addEventListener("change", change(showOutcomes, false));
$("live").addEventListener("change", () => ($("live").checked ? round() : clearTimeout(timer)));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else if ($("live").checked && !$("all").hidden) round();
});

begin();
