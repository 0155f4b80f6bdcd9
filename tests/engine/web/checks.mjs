/** What the web engine does beyond answers: node checks.mjs STUDENT. Prints nothing where all is well. */

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { readFileSync } from "node:fs";

import * as distilrec from "../../../web/dist/distilrec.js";

const { load } = distilrec;
const bytes = readFileSync(process.argv[2]);
const clean = await load(bytes);
const knowsVisits = clean.manifest.visit_gap !== undefined;

/** Check that a call throws an error of ours, with a code and a fix, and that it changes no answer. */
async function refused(code, call, recommender = clean) {
  const before = JSON.stringify([recommender.state(), recommender.item_ids, recommender.recommend("u")]);
  await assert.rejects(
    async () => call(recommender),
    (error) => {
      assert.ok(error instanceof distilrec.DistilrecError, error.stack);
      assert.equal(error.code, code);
      assert.ok(error.fix && error.message.includes(error.fix) && distilrec[error.name], error.message);
      return true;
    },
  );
  assert.equal(JSON.stringify([recommender.state(), recommender.item_ids, recommender.recommend("u")]), before);
}

// Files
for (let n = 0; n < 60; n++) {
  const wrong = new Uint8Array(bytes);
  wrong[(n * 7919) % wrong.length] ^= 1 << n % 8;
  await assert.rejects(load(wrong), ({ code }) => ["bundle_corrupted", "bundle_version"].includes(code));
}
for (const length of [0, 7, 47, 48, 400, bytes.length - 1]) {
  await refused("bundle_corrupted", () => load(bytes.subarray(0, length)));
}
const newer = new Uint8Array(bytes);
newer[8] = 3;
await refused("bundle_version", () => load(newer));
await refused("config_invalid", () => load(7));
await refused("config_invalid", () => load(bytes, { max_events: 0 }));

// Files whose hash is right and whose content is not
const { createHash } = await import("node:crypto");
const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(12, true);
const header = () => JSON.parse(bytes.subarray(48, 48 + length).toString());
function forged(change) {
  const made = header();
  change(made);
  const text = Buffer.from(JSON.stringify(made));
  const whole = Buffer.concat([
    bytes.subarray(0, 16), Buffer.alloc(32), text, Buffer.alloc((16 - (text.length % 16)) % 16, " "),
    bytes.subarray(48 + length),
  ]);
  whole.writeUInt32LE(text.length + ((16 - (text.length % 16)) % 16), 12);
  createHash("sha256").update(whole).digest().copy(whole, 16);
  return whole;
}
await load(forged(() => {}));
const changes = {
  "another kind": [(made) => (made.manifest.kind = "mlp"), "bundle_version"],
  "golden scores": [(made) => (made.manifest.golden[0].top_scores[0] += 0.01)],
  "golden items": [(made) => (made.manifest.golden[0].top_items[0] = 10_000)],
  "golden types": [(made) => (made.manifest.golden[1].events[0] = -1)],
  "no manifest": [(made) => delete made.manifest],
  "no arrays": [(made) => delete made.arrays.mix],
  "no texts": [(made) => delete made.arrays["ids.lengths"]],
  "other shapes": [(made) => (made.arrays.mix.shape = [1, 1])],
  "other types": [(made) => (made.arrays.vectors.dtype = "U8")],
  "no such type": [(made) => (made.arrays.decay.dtype = "F128")],
  outside: [(made) => (made.arrays.biases.offset = 1 << 30)],
  odd: [(made) => (made.arrays.biases.offset += 1)],
  "too many items": [(made) => (made.manifest.items += 1)],
  "another dim": [(made) => (made.manifest.dim = 0)],
  "cut texts": [(made) => (made.arrays["titles.lengths"].shape[0] -= 1)],
  "visits or their weights, not both": [(made) => (made.manifest.visit_gap = knowsVisits ? undefined : 60)],
};
if (knowsVisits) {
  Object.assign(changes, {
    "no gap": [(made) => (made.manifest.visit_gap = 0)],
    "another gap": [(made) => (made.manifest.visit_gap = 1e9)],
    "no golden times": [(made) => delete made.manifest.golden[1].times],
    "a golden time too few": [(made) => made.manifest.golden[1].times.pop()],
    "no time of a golden question": [(made) => delete made.manifest.golden[1].now],
    "no inputs": [(made) => delete made.arrays.visit_inputs],
    "no earlier repeats": [(made) => delete made.arrays.earlier_repeats],
    "other earlier ages": [(made) => (made.arrays.earlier_ages.shape[1] -= 1)],
  });
}
for (const [name, [change, code = "bundle_corrupted"]] of Object.entries(changes)) {
  await assert.rejects(load(forged(change)), (error) => error.code === code || assert.fail(`${name}: ${error.stack.slice(-400)}`));
}

// Calls
await refused("id_invalid", (r) => r.recommend(""));
await refused("id_invalid", (r) => r.recommend(undefined));
await refused("id_invalid", (r) => r.rank("u", "i1"));
await refused("item_unknown", (r) => r.rank("u", ["i1", "nothing"]));
await refused("item_unknown", (r) => r.explain("u", "nothing"));
await refused("item_unknown", (r) => r.similar("nothing"));
for (const k of [0, -1, 1.5, "3", NaN]) await refused("config_invalid", (r) => r.recommend("u", { k }));
for (const diversity of [-0.1, 1.1, NaN, "x"]) await refused("config_invalid", (r) => r.recommend("u", { diversity }));
await refused("config_invalid", (r) => r.recommend("u", { count: 3 }));
await refused("config_invalid", (r) => r.recommend("u", { where: { attributes: { colour: {} } } }));
await refused("config_invalid", (r) => r.recommend("u", { where: { attributes: { genres: { any_of: "g1" } } } }));
await refused("config_invalid", (r) => r.recommend("u", { where: { attributes: { price: { min: "1" } } } }));
await refused("config_invalid", (r) => r.recommend("u", { where: { price: { min: 1 } } }));
await refused("id_invalid", (r) => r.recommend("u", { where: { allow: "i1" } }));
await refused("config_invalid", (r) => r.update("u"));
await refused("config_invalid", (r) => r.update([{ user_id: "u", item_id: "i1" }, { user_id: "u" }]));
await refused("config_invalid", (r) => r.update([{ user_id: "u", item_id: "i1" }, null]));
await refused("config_invalid", (r) => r.update([{ user_id: "u", item_id: "i1", event_type: 7 }]));
await refused("id_invalid", (r) => r.update([{ user_id: "u", item_id: "i1" }, { user_id: "u", item_id: null }]));
for (const wrong of [Date.now(), -1, NaN, "1650000000", true]) {
  await refused("config_invalid", (r) => r.update([{ user_id: "u", item_id: "i1", timestamp: wrong }]));
  await refused("config_invalid", (r) => r.recommend("u", { now: wrong }));
  await refused("config_invalid", (r) => r.rank("u", ["i1"], { now: wrong }));
  await refused("config_invalid", (r) => r.explain("u", "i1", 5, { now: wrong }));
}
await refused("config_invalid", (r) => r.rank("u", ["i1"], { k: 5 }));
await refused("config_invalid", (r) => r.setUser("u", { colour: "red" }));
await refused("config_invalid", (r) => r.setUser("u", null));
await refused("column_type", (r) => r.setUser("u", { age: "old" }));
await refused("value_invalid", (r) => r.setUser("u", { age: Infinity }));
await refused("config_invalid", (r) => r.addItem("i1", {}));
await refused("config_invalid", (r) => r.addItem("new", { colour: "red" }));
await refused("config_invalid", (r) => r.putItem({ item_id: "i1", attributes: { price: "dear" } }));
await refused("config_invalid", (r) => r.putItem({ item_id: "i1", colour: "red" }));
for (const state of [null, {}, { format: 2, users: {} }, { format: 1, users: { u: {} } }, { format: 1, users: { u: { events: [["i1", "buy", "now"]] } } }]) {
  await refused("config_invalid", (r) => r.restore(state));
}

// State
const first = await load(bytes);
first.update(Array.from({ length: 30 }, (_, n) => ({ user_id: `u${n % 2}`, item_id: `i${n}`, event_type: "buy" })));
first.setUser("u0", { age: 33 });
const second = await load(bytes, { wasm: false });
second.restore(JSON.parse(JSON.stringify(first.state())));
for (const user of ["u0", "u1"]) {
  assert.deepEqual(first.past(user, 99), second.past(user, 99));
  const [a, b] = [first, second].map((each) => each.recommend(user, { k: 99 }));
  assert.deepEqual(a.map(({ item_id }) => item_id), b.map(({ item_id }) => item_id));
}
assert.deepEqual(second.state(), first.state());
second.forget("u0");
assert.ok(!second.knowsUser("u0") && second.knowsUser("u1"));
assert.deepEqual(second.recommend("u0"), second.recommend("a stranger"));

// Times are kept in whole seconds; an event whose time is not known happened with the one before, or long ago
const kept = (...events) => ({ format: 1, users: { u: { events } } });
second.restore(kept(["i1", "buy"], ["i2", "buy"]));
const longAgo = await load(bytes, { wasm: false });
longAgo.restore(kept(["i1", "buy", 1], ["i2", "buy", 2]));
for (const events of [[], [{ user_id: "u", item_id: "i3", timestamp: 1e9 + 0.7 }]]) {
  for (const recommender of [second, longAgo]) recommender.update(events);
  assert.deepEqual(second.recommend("u", { now: 1e9 + 60 }), longAgo.recommend("u", { now: 1e9 + 60 }));
}
assert.deepEqual(second.state(), kept(["i1", "buy"], ["i2", "buy"], ["i3", first.manifest.event_types[0], 1e9]));
second.restore(kept(["i1", "buy", 1e9], ["i2", "buy"]));
longAgo.restore(kept(["i1", "buy", 1e9], ["i2", "buy", 1e9]));
const [sameVisit, next] = [1e9 + 60, 1e9 + 1e6].map((now) => [second, longAgo].map((r) => r.recommend("u", { now })));
assert.deepEqual(...sameVisit);
assert.deepEqual(...next);
(knowsVisits ? assert.notDeepEqual : assert.deepEqual)(sameVisit[0], next[0]);

// More items than the tables have room for; memory of WebAssembly that grows; events that are forgotten
const grown = await load(bytes, { max_events: 5 });
const places = grown.item_ids.length;
for (let n = 0; n < 3_000; n++) grown.addItem(`new ${n}`, { genres: ["g1"], price: n % 9 }, `Title ${n}`);
grown.update(Array.from({ length: 12 }, (_, n) => ({ user_id: "u", item_id: n % 2 ? `new ${n}` : `i${n}` })));
assert.equal(grown.item_ids.length, places + 3_000);
assert.equal(grown.recommend("u", { k: 99_999, exclude_seen: false }).length, places + 3_000);
const [one, other] = grown.rank("u", ["new 0", "new 9"]); // the same features
assert.equal(one.score, other.score);
const before = await load(bytes, { max_events: 55 });
before.update(Array.from({ length: 120 }, (_, n) => ({ user_id: "u", item_id: n % 2 ? "nothing" : `i${n % 24}` })));
const scores = new Map(before.recommend("u", { k: 999, exclude_seen: false }).map((a) => [a.item_id, a.score]));
assert.equal(scores.size, places);
assert.equal(before.explain("u", "i3", 99).length, 55);
// However few are remembered as seen: scores stay
const [few, all] = await Promise.all([{ max_events: 1 }, {}].map((options) => load(bytes, options)));
for (const one of [few, all]) one.update(["i1", "i2", "i4"].map((item_id) => ({ user_id: "u", item_id })));
const every = (one) => one.recommend("u", { k: 999, exclude_seen: false });
assert.deepEqual(every(few), every(all));
before.putItem({ item_id: "i3", available: false, title: "Gone" });
assert.ok(!before.recommend("u", { k: 999, exclude_seen: false }).some(({ item_id }) => item_id === "i3"));
assert.equal(before.title("i3"), "Gone");

// By address
const server = createServer((request, response) => {
  const status = Number(request.url.slice(1)) || 200;
  response.writeHead(status).end(status === 200 ? bytes : "");
}).listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));
const address = `http://127.0.0.1:${server.address().port}`;
assert.deepEqual((await load(address)).recommend("u"), clean.recommend("u"));
assert.deepEqual((await load(new URL(address))).recommend("u"), clean.recommend("u"));
await refused("bundle_missing", () => load(`${address}/404`));
await refused("download_failed", () => load(`${address}/500`));
server.closeAllConnections();
server.close();
await refused("download_failed", () => load(address));
