// The overview, requests, errors and drift: all of them from /metrics.

import { $, call, chip, element } from "/look/page.js";
import { legend, lines, meter } from "./charts.js";
import { histogram, parse, quantile, since, sum } from "./metrics.js";
import { bytes, number, percent, seconds, whole } from "./numbers.js";
import { fillTable } from "./panels.js";

const REQUESTS = "distilrec_request_seconds";
// Probes, pages, and what those ask who run the service: not in the totals.
const WATCHING =
  /^(healthz|readyz|metrics|openapi|playground|console|kserve_(server|live|ready|model_ready|version_ready)|outcomes|experiments|(start|stop|promote)_experiment|model|load_model|rollback|rules|load_rules)$/;
const OF_THE_SERVICE = /^(error|store_.*|storage_failed|service_failed|not_ready|overloaded)$/; // as in deploy/alerts.yml
const UNKNOWN_LIMIT = 0.2; // as in deploy/alerts.yml
const KEPT = 120; // rounds
const history = [];
let first = null; // errors when the page was opened, by endpoint and code
let previous = null;

const asked = (labels) => !WATCHING.test(labels.endpoint);
const failed = (labels) => OF_THE_SERVICE.test(labels.code);

export function forget() {
  history.length = 0;
  first = previous = null;
}

export async function load() {
  const samples = parse(await call("GET", "/metrics"));
  const now = {
    time: performance.now() / 1000,
    clock: new Date().toLocaleTimeString("en-GB"),
    requests: sum(samples, `${REQUESTS}_count`, asked),
    failures: sum(samples, "distilrec_errors_total", failed),
    buckets: histogram(samples, REQUESTS, asked),
    byEndpoint: new Map((samples.get(`${REQUESTS}_count`) || []).map(({ labels, value }) => [labels.endpoint, value])),
  };
  if (previous && now.requests < previous.requests) forget(); // started again, or another service answered
  if (previous) {
    const span = now.time - previous.time;
    const buckets = since(now.buckets, previous.buckets);
    history.push({
      clock: now.clock,
      rate: (now.requests - previous.requests) / span,
      p50: quantile(buckets, 0.5),
      p99: quantile(buckets, 0.99),
      failures: now.failures - previous.failures,
    });
    if (history.length > KEPT) history.shift();
  }
  showTiles(samples, now);
  showRequests(samples, now);
  showErrors(samples);
  showDrift(samples);
  previous = now;
}

function showTiles(samples, now) {
  const total = (name, accepts) => sum(samples, name, accepts);
  const events = (outcome) => total("distilrec_events_total", (labels) => labels.outcome === outcome);
  const errors = total("distilrec_errors_total");
  const pending = total("distilrec_events_pending");
  const limit = total("distilrec_events_pending_limit");
  const commits = histogram(samples, "distilrec_commit_seconds");
  const storeErrors = total("distilrec_store_errors_total");
  const latest = history.at(-1);
  const models = (samples.get("distilrec_model_info") || []).filter(({ value }) => value).map(({ labels }) => labels.model_version);
  const tiles = [
    ["Requests", whole(now.requests), latest ? `${number(latest.rate)} per second now` : "without those of operators"],
    ["Half within", seconds(quantile(now.buckets, 0.5)), `99% within ${seconds(quantile(now.buckets, 0.99))}`],
    ["Refused or failed", whole(errors), `${whole(now.failures)} by fault of the service`, history.some((one) => one.failures > 0)],
    ["Events stored", whole(events("accepted")), `${whole(events("duplicate"))} sent again`],
    ["Events waiting", whole(pending), `of at most ${whole(limit)}`, limit > 0 && pending > limit / 2],
    ["Commit, 99% within", seconds(quantile(commits, 0.99)), `${whole(storeErrors)} failures of the store`, storeErrors > 0],
    ["Users in memory", whole(total("distilrec_users_in_memory")),
      `${bytes(total("distilrec_state_bytes"))}; ${whole(total("distilrec_users_evicted"))} have left`],
    [models.length > 1 ? "Models" : "Model", models.join(", ") || "–", `${whole(total("distilrec_model_swaps_total"))} changes`, models.length > 1],
  ];
  $("tiles").replaceChildren(
    ...tiles.map(([name, value, note, isBad]) => {
      const tile = element("div", undefined, isBad ? "bad" : "");
      tile.append(element("dt", name), element("dd", value, /^[\d.,]+( |%|$)|^(–|over)/.test(value) ? "" : "text"), element("dd", note, "note"));
      return tile;
    }),
  );
}

function showRequests(samples, now) {
  const labels = history.map((one) => one.clock);
  const points = (name, scale) => history.map((one) => (Number.isFinite(one[name]) && one[name] !== null ? { mean: one[name] * scale } : null));
  lines($("rate-chart"), {
    title: $("rate-title").textContent, labels, height: 150, write: number,
    series: [{ name: "Requests per second", points: points("rate", 1) }],
  });
  const names = ["half within", "99% within"];
  lines($("latency-chart"), {
    title: $("latency-title").textContent, labels, height: 150, write: number,
    series: [{ name: names[0], points: points("p50", 1e3) }, { name: names[1], points: points("p99", 1e3) }],
  });
  $("latency-legend").replaceChildren(...legend(names));
  const counts = [...now.byEndpoint].filter(([, count]) => count > 0);
  counts.sort(([a, m], [b, n]) => WATCHING.test(a) - WATCHING.test(b) || n - m || a.localeCompare(b));
  const rows = counts.map(([endpoint, count]) => {
    const here = (labels) => labels.endpoint === endpoint;
    const buckets = histogram(samples, REQUESTS, here);
    const rate = previous ? (count - (previous.byEndpoint.get(endpoint) || 0)) / (now.time - previous.time) : null;
    return [
      endpoint, whole(count), rate === null ? "–" : number(rate), ...[0.5, 0.95, 0.99].map((q) => seconds(quantile(buckets, q))),
      whole(sum(samples, "distilrec_errors_total", here)),
    ];
  });
  fillTable($("requests-table"), ["Endpoint", "#Requests", "#Per second", "#50% within", "#95%", "#99%", "#Refused or failed"], rows);
}

function showErrors(samples) {
  const found = (samples.get("distilrec_errors_total") || []).filter(({ value }) => value > 0);
  const keyOf = ({ endpoint, code }) => `${endpoint} ${code}`;
  first = first || new Map(found.map(({ labels, value }) => [keyOf(labels), value]));
  found.sort((a, b) => failed(b.labels) - failed(a.labels) || b.value - a.value);
  const rows = found.map(({ labels, value }) => [
    labels.code, labels.endpoint, failed(labels) ? "the service" : "the request", whole(value), whole(value - (first.get(keyOf(labels)) || 0)),
  ]);
  fillTable($("errors-table"), ["Code", "Endpoint", "Fault of", "#Since the start", "#Since this page"], rows);
  $("errors-table").hidden = !rows.length;
  $("no-errors").hidden = rows.length > 0;
}

function showDrift(samples) {
  const events = (outcome) => sum(samples, "distilrec_events_total", (labels) => labels.outcome === outcome);
  const accepted = events("accepted");
  const shares = [
    ["Events on items that the model does not know", events("unknown_item"), UNKNOWN_LIMIT],
    ["Events of a type that the model does not know", events("unknown_type"), 0],
  ];
  const rows = shares.map(([name, count, limit]) => {
    const row = element("li");
    const line = element("p");
    const share = accepted ? count / accepted : 0;
    const text = accepted ? `${percent(share)} (${whole(count)} of ${whole(accepted)})` : "no events yet";
    line.append(element("span", name), element("span", text, "number"));
    row.append(line, meter(share, limit));
    if (limit && share > limit) row.append(element("p", `More than ${percent(limit)}: add these items, or train again.`, "says bad"));
    return row;
  });
  const context = (samples.get("distilrec_context_unknown_total") || []).filter(({ value }) => value > 0);
  if (context.length) {
    const row = element("li");
    row.append(element("p", "Values of context features that no training event had"));
    const line = element("div", undefined, "chips");
    line.append(...context.map(({ labels, value }) => chip(`${labels.feature}: ${whole(value)}`)));
    row.append(line);
    rows.push(row);
  }
  $("drift-list").replaceChildren(...rows);
}
