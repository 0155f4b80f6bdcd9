/** Answers users with the web engine: node web.mjs STUDENT USERS LISTS */

import { readFileSync, writeFileSync } from "node:fs";

import { load } from "../web/dist/distilrec.js";

const [student, users, lists] = process.argv.slice(2);
const recommender = await load(readFileSync(student));
const answered = JSON.parse(readFileSync(users, "utf8")).map((events, n) => {
  recommender.update(events.map(([item_id, event_type]) => ({ user_id: n, item_id, event_type })));
  return recommender.recommend(n).map(({ item_id }) => item_id);
});
writeFileSync(lists, JSON.stringify(answered));
