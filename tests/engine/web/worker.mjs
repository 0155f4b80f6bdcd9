/** Answers in a worker, of a browser or of Node, with package and file beside it. In a browser it keeps the events. */

import { load, openStore } from "./distilrec.js";

const file = new URL("student.drec", import.meta.url);
const inNode = file.protocol === "file:";
const recommender = await load(inNode ? await (await import("node:fs/promises")).readFile(file) : file);
const events = [3, 7, 9].map((n) => ({ user_id: "me", item_id: `i${n}`, event_type: "buy" }));
const target = inNode ? recommender : await openStore(recommender);
await target.update(events);
const found = { page: typeof document, wasm: recommender.wasm, answers: recommender.recommend("me", { k: 10 }) };
const port = inNode ? (await import("node:worker_threads")).parentPort : globalThis;
port.postMessage(found);
