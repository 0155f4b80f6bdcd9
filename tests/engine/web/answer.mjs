/** Answers cases with the web engine: node answer.mjs STUDENT CASES ANSWERS wasm|plain|no-subtle|restored */

import { readFileSync, writeFileSync } from "node:fs";

import { load } from "../../../web/dist/distilrec.js";

const [student, cases, answers, mode] = process.argv.slice(2);
// A page that is no secure context
if (mode === "no-subtle") Object.defineProperty(globalThis, "crypto", { value: undefined });
const recommender = await load(readFileSync(student), { wasm: mode !== "plain" });
if (recommender.wasm !== (mode !== "plain")) throw new Error("WebAssembly is missing");

const pairs = (list) => list.map(({ item_id, score }) => [item_id, score]);
const caught = (answer) => {
  try {
    return answer();
  } catch (error) {
    if (!error.code || !error.fix) throw error;
    return { error: error.code };
  }
};

const answered = JSON.parse(readFileSync(cases, "utf8")).map((one) => {
  const { user, events, features, item, where, k, exclude_seen, diversity, now } = one;
  const put = item && caught(() => recommender.putItem(item));
  const set = features && caught(() => recommender.setUser(user, features));
  const update = caught(() => {
    const { applied, unknown_items } = recommender.update(events);
    return [applied, unknown_items];
  });
  if (mode === "restored") recommender.restore(JSON.parse(JSON.stringify(recommender.state())));
  return {
    put: put ?? null,
    set: set ?? null,
    update,
    recommend: caught(() => pairs(recommender.recommend(user, { k, exclude_seen, where, now }))),
    diverse: caught(() => pairs(recommender.recommend(user, { k, where, diversity, now }))),
    rank: caught(() => pairs(recommender.rank(user, one.ranked, { now }))),
    explain: caught(() =>
      recommender.explain(user, one.ranked[0], 9_999, { now }).map(({ place, contribution }) => [place, contribution]),
    ),
    similar: caught(() => pairs(recommender.similar(one.ranked[0], k, where))),
    known: caught(() => [recommender.title(one.ranked[0]), recommender.item(one.ranked[0]).attributes]),
  };
});
writeFileSync(answers, JSON.stringify(answered));
