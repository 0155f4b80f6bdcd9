/** Answers users with the web engine: node web.mjs STUDENT QUESTIONS LISTS */

import { readFileSync, writeFileSync } from "node:fs";

import { load } from "../web/dist/distilrec.js";

const [student, questions, lists] = process.argv.slice(2);
const recommender = await load(readFileSync(student));
const answered = JSON.parse(readFileSync(questions, "utf8")).map(([events, now], n) => {
  recommender.update(events.map(([item_id, event_type, timestamp]) => ({ user_id: n, item_id, event_type, timestamp })));
  return recommender.recommend(n, { now }).map(({ item_id }) => item_id);
});
writeFileSync(lists, JSON.stringify(answered));
