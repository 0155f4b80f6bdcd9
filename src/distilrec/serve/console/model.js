// The model that answers, and changing it.

import { $, call, chip, element } from "/look/page.js";
import { number, percent, whole } from "./numbers.js";
import { fillFacts, isWanted } from "./panels.js";

export async function load() {
  const model = await call("GET", "/v1/model");
  const metrics = element("span", Object.entries(model.metrics).map(([name, value]) => `${name} ${value.toFixed(4)}`).join(", "));
  fillFacts($("model-facts"), [
    ["version", element("code", model.model_version)],
    ["before it", model.previous_version ? element("code", model.previous_version) : ""],
    ["bundle", element("code", model.bundle)],
    ["kind", model.kind],
    ["data", `${model.dataset}, ${whole(model.items)} items`],
    ["parameters", whole(model.parameters)],
    ["measured", metrics],
    ["events", row(model.event_types.map((name) => chip((model.event_roles || {})[name] ? `${name}: ${model.event_roles[name]}` : name)))],
    ["attributes", model.attributes.join(", ")],
    ["of users", model.user_features.join(", ")],
    ["temperature", model.calibration ? number(model.calibration.temperature) : ""],
  ]);
  $("rollback").disabled = !model.previous_version;
}

function row(parts) {
  const made = element("span", undefined, "chips");
  made.append(...parts);
  return made;
}

// Load the bundle that the form names.
export async function loadBundle() {
  const bundle = $("load-bundle").value.trim();
  const agreement = Number($("load-agreement").value) / 100;
  if (!(await isWanted(`Answer with the bundle ${bundle}, if at least ${percent(agreement)} of its items are those of today's model?`, "Load"))) return;
  $("load-result").textContent = "Loading, checking and comparing …";
  try {
    const answer = await call("POST", "/v1/model/load", { bundle, min_agreement: agreement });
    const { requests, agreement: found } = answer.shadow;
    const compared = requests ? ` ${percent(found)} of the items of ${whole(requests)} requests were the same.` : " There was no request to compare it with.";
    $("load-result").textContent = `${answer.switched ? `${answer.model_version} answers now.` : `Nothing changed: ${answer.reason}.`}${compared}`;
  } catch (problem) {
    $("load-result").textContent = "";
    throw problem;
  }
}

export async function rollback() {
  if (await isWanted("Answer with the model before this one?", "Roll back")) await call("POST", "/v1/model/rollback");
}
