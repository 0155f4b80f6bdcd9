/** Times the web engine, in Node (node web_speed.mjs STUDENT USERS, prints JSON) and in a page, which imports `measured`. */

const [WARM, CALLS] = [500, 3_000];

function percentiles(call, users) {
  for (let n = 0; n < WARM; n++) call(n % users);
  const times = Float64Array.from({ length: CALLS }, (_, n) => {
    const started = performance.now();
    call(n % users);
    return performance.now() - started;
  }).sort();
  return { p50_us: 1_000 * times[CALLS / 2], p99_us: 1_000 * times[Math.floor(CALLS * 0.99)] };
}

/** Return the time of a first answer in milliseconds; this process or page has loaded nothing before.
 *
 * beside: whether the file is fetched beside the package instead of after it.
 */
export async function cold(address, source, beside = false) {
  const started = performance.now();
  const early = beside ? source() : null;
  const { load } = await import(address);
  const recommender = await load(await (early ?? source()));
  recommender.recommend("a stranger");
  return performance.now() - started;
}

export async function measured(address, source, users) {
  const { load } = await import(address);
  const bytes = await source();
  const found = {};
  for (const wasm of [true, false]) {
    const recommender = await load(bytes, { wasm });
    if (recommender.wasm !== wasm) throw new Error("WebAssembly is missing");
    users.forEach((items, user) => recommender.update(items.map((item_id) => ({ user_id: user, item_id }))));
    const name = wasm ? "WebAssembly" : "plain JavaScript";
    found[`recommend, ${name}`] = percentiles((user) => recommender.recommend(user), users.length);
    if (!wasm) continue;
    const [item_id] = recommender.item_ids;
    found["explain one item"] = percentiles((user) => recommender.explain(user, item_id), users.length);
    found["update by one event"] = percentiles((user) => recommender.update([{ user_id: user, item_id }]), users.length);
  }
  return found;
}

if (typeof process === "object" && process.argv[1]?.endsWith("web_speed.mjs")) {
  const { readFile } = await import("node:fs/promises");
  const [student, users] = process.argv.slice(2);
  const address = new URL("../web/dist/distilrec.js", import.meta.url).href;
  const source = () => readFile(student);
  const found = users ? await measured(address, source, JSON.parse(await readFile(users, "utf8"))) : await cold(address, source);
  console.log(JSON.stringify(found));
}
