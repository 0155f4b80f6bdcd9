/** Answers for the users of a page or a device, who are known to nobody else. */

import { BundleCorruptedError, ConfigError, UnknownItemError } from "./errors.js";
import { asCategory, asParts, type Features } from "./features.js";
import { asCorrupted, check, type Golden, type Manifest, type Rounding, type StudentFile } from "./file.js";
import { Filters, onlyKnown, type Attributes, type Filter, type Value } from "./filters.js";
import { asId, listedIds, shown, type Id } from "./ids.js";
import { Student } from "./student.js";
import { asMoment, checkNotBefore, clock, eventsOfVisit, goesOn, NEVER } from "./times.js";

export interface Recommendation {
  item_id: string;
  /** A logit: higher is better. */
  score: number;
}

/** What one past event did for a score: the score minus the score had the event not happened. */
export interface Contribution {
  item_id: string;
  contribution: number;
  /** Which of the remembered events it was, from 0, the oldest. */
  place: number;
}

export interface Item {
  item_id: string;
  title: string;
  attributes: Attributes;
  available: boolean;
  in_training: boolean;
}

export interface Event {
  user_id: Id;
  item_id: Id;
  /** "interaction" by default; a type that training did not know counts as the unknown type. Events of the type
   * "impression" say what was shown: they change nothing and are not kept.
   */
  event_type?: string;
  /** When it happened, in seconds since 1970; now by default. Students that know visits read it, and it is kept. */
  timestamp?: number | null;
}

/** An event as ids, type, and the time in seconds since 1970, null where it is not known. */
export type CheckedEvent = [user_id: string, item_id: string, event_type: string, time: number | null];

export interface UpdateResult {
  /** Events that changed a state. */
  applied: number;
  /** Events on items that are not in the catalogue: they changed nothing. Impressions are in neither number. */
  unknown_items: number;
}

export interface QuestionOptions {
  /** When is asked, in seconds since 1970; the time of the clock by default. Students that know visits read it. */
  now?: number | null;
}

export interface RecommendOptions extends QuestionOptions {
  /** How many; 10 by default. */
  k?: number;
  /** Leave out what the user has had; by default unless users of the training log took items again. */
  exclude_seen?: boolean | null;
  where?: Filter | null;
  /** From 0 (best first) to 1: trades score against likeness to the items before. */
  diversity?: number;
}

export interface ItemRecord {
  item_id: Id;
  title?: string;
  /** Of a new item: what it is scored by. */
  features?: Features;
  attributes?: Record<string, Value>;
  available?: boolean;
}

export interface Options {
  /** false: plain JavaScript, whatever the browser can. */
  wasm?: boolean;
  /** How many of the latest events of each user are remembered as seen; 10,000 by default, and never
   * fewer than those that a student's scores look at one by one.
   */
  max_events?: number;
}

/** An event of a user; the time is in seconds since 1970, and left out where it is not known. */
export type StateEvent = [item_id: string, event_type: string, time?: number];

/** Everything known of the users, as plain JSON. */
export interface State {
  format: 1;
  users: Record<string, { events: StateEvent[]; features?: Features }>;
}

interface User {
  state: Float32Array;
  vector: Float32Array | null;
  features?: Features;
  items: number[];
  events: number[];
  /** When they happened, in whole seconds since 1970; null where it is not known. */
  times: (number | null)[];
  /** Events that are in the state and no longer remembered. */
  forgotten: number;
  /** When the last event happened, and the one before. */
  last: number;
  before: number;
  /** How many of the latest events are those of the last visit. */
  visit: number;
}

/** The type of events that say what was shown. */
export const IMPRESSION = "impression";
const EXPLAINED = 1_000;
const POOL = 50;
const POOL_FACTOR = 5;
const TOLERANCE = 1e-4;

export class Recommender {
  readonly manifest: Manifest;
  /** What the 8 bits of the file change. */
  readonly rounding: Rounding;
  readonly #file: StudentFile;
  readonly #student: Student;
  readonly #filters: Filters;
  readonly #ids: string[];
  /** The titles of the file; an empty one stands for the id. */
  readonly #titles: () => string[];
  /** Titles that were given since. */
  readonly #newTitles = new Map<number, string>();
  readonly #index = new Map<string, number>();
  readonly #types: Map<string, number>;
  readonly #separators: Map<string, string>;
  readonly #categorical: Set<string>;
  readonly #live = new Map<string, Features>();
  readonly #users = new Map<string, User>();
  readonly #maxEvents: number;
  readonly #biasOfNew: number;
  /** Seconds without an event that end a visit; 0 for a student that does not know visits. */
  readonly #gap: number;

  /** Throws BundleCorruptedError for a file that makes no sense, and where the golden answers are
   * not reproduced. Callers use `load`.
   */
  constructor(file: StudentFile, options: Options = {}) {
    const maxEvents = options.max_events ?? 10_000;
    atLeastOne(maxEvents, "max_events");
    this.#file = file;
    this.manifest = file.manifest;
    this.rounding = file.rounding;
    this.#gap = file.manifest.visit_gap ?? 0;
    try {
      this.#student = new Student(file, options.wasm ?? true);
      this.#maxEvents = Math.max(maxEvents, this.#student.latestEvents);
      const items = this.manifest.items;
      this.#ids = file.texts("ids", items)();
      this.#titles = file.texts("titles", items);
      for (let n = 0; n < this.#ids.length; n++) this.#index.set(this.#ids[n], n);
      check(this.#index.size === items, "has an item twice");
    } catch (problem) {
      throw asCorrupted(problem);
    }
    this.#filters = new Filters(file, this.#index);
    this.#biasOfNew = this.#student.biasOfNew;
    this.#types = new Map(this.manifest.event_types.map((name, n) => [name, n]));
    const encodings = file.itemEncoder.encodings;
    this.#categorical = new Set(
      encodings.filter(({ kind }) => kind === "categorical").map(({ name }) => name),
    );
    this.#separators = new Map(
      encodings.flatMap((e) => (e.kind === "multi" ? [[e.name, e.separator ?? "|"]] : [])),
    );
    for (const [name, separator] of this.#filters.separators) this.#separators.set(name, separator);
    this.manifest.golden.forEach((golden) => this.#verify(golden));
  }

  /** Whether WebAssembly does the work. */
  get wasm(): boolean {
    return this.#student.wasm;
  }

  /** All items, the most popular in training first. */
  get item_ids(): string[] {
    return [...this.#ids];
  }

  /** What answers can be filtered by. */
  get attributes(): string[] {
    return this.#filters.names;
  }

  // Items

  /** Return the title of an item, or its id where the data had none. */
  title(item_id: Id): string {
    return this.#titleOf(this.#position(item_id));
  }

  #titleOf(place: number): string {
    return this.#newTitles.get(place) ?? (this.#titles()[place] || this.#ids[place]);
  }

  knowsItem(item_id: Id): boolean {
    return this.#index.has(asId(item_id, "item_id"));
  }

  item(item_id: Id): Item {
    const place = this.#position(item_id);
    const id = this.#ids[place];
    return {
      item_id: id,
      title: this.#titleOf(place),
      attributes: this.#filters.of(place),
      available: this.#filters.isAvailable(place),
      in_training: !this.#live.has(id),
    };
  }

  /** Return items whose title or id contains a text, most popular first. */
  search(text: string, limit = 20): Item[] {
    const wanted = text.toLowerCase();
    const found: Item[] = [];
    for (let n = 0; n < this.#ids.length && found.length < limit; n++) {
      if (
        this.#titleOf(n).toLowerCase().includes(wanted) || this.#ids[n].toLowerCase().includes(wanted)
      ) {
        found.push(this.item(this.#ids[n]));
      }
    }
    return found;
  }

  /** Return the k items that are most alike, by the cosine of their vectors. */
  similar(item_id: Id, k = 10, where: Filter | null = null): Recommendation[] {
    atLeastOne(k, "k");
    const place = this.#position(item_id);
    const count = this.#student.count;
    const own = this.#student.vector(place);
    const scores = new Float32Array(count);
    const size = length(own);
    for (let item = 0; item < count; item++) {
      const other = this.#student.vector(item);
      scores[item] = product(own, other) / (size * length(other));
    }
    return this.#best(scores, [place], this.#filters.mask(where), k).map((n) => this.#answer(n, scores[n]));
  }

  /** Add a new item, scored by its features alone. Throws ConfigError for an item that exists. */
  addItem(item_id: Id, features: Features, title?: string): void {
    if (this.knowsItem(item_id)) {
      throw new ConfigError(`item ${shown(item_id)} is already in the catalogue`, {
        fix: "choose another id",
        parameter: "item_id",
      });
    }
    this.putItem({ item_id, features, title });
  }

  /** Add an item, or change one: title, attributes, availability; of a new item also the features. */
  putItem(record: ItemRecord): void {
    onlyKnown(record, ["item_id", "title", "features", "attributes", "available"], "an item");
    const id = asId(record.item_id, "item_id");
    const features = this.#file.itemEncoder.check(record.features ?? {}, "item");
    const encoder = this.#file.itemEncoder;
    const whole = { ...this.#live.get(id), ...features };
    const bag = encoder.encode(encoder.withDerived(whole));
    const attributes = this.#attributesOf(features, record.attributes ?? {});
    this.#filters.check(attributes);
    let place = this.#index.get(id);
    if (place === undefined || this.#live.has(id)) {
      const vector = this.#student.embedded(bag, "item");
      place ??= this.#ids.length;
      this.#student.putItem(place, vector, this.#biasOfNew);
      this.#live.set(id, whole);
      if (place === this.#ids.length) {
        this.#index.set(id, place);
        this.#ids.push(id);
        this.#filters.append();
      }
    }
    if (record.title !== undefined) this.#newTitles.set(place, String(record.title));
    this.#filters.change(place, attributes);
    if (record.available !== undefined) this.#filters.setAvailable(place, record.available);
  }

  #attributesOf(features: Features, attributes: Record<string, Value>): Record<string, Value> {
    const names = new Set(this.#filters.names);
    const found: Record<string, Value> = {};
    for (const [name, value] of Object.entries(features)) {
      if (names.has(name)) found[name] = this.#asValue(name, value);
    }
    for (const [name, value] of Object.entries(attributes)) found[name] = this.#asValue(name, value);
    return found;
  }

  #asValue(name: string, value: unknown): Value {
    if (value === null || value === undefined) return null;
    const separator = this.#separators.get(name);
    if (separator !== undefined) return asParts(value, separator);
    if (this.#categorical.has(name)) return asCategory(value);
    const plain = ["number", "string", "boolean"].includes(typeof value) || Array.isArray(value);
    return plain ? (value as Value) : String(value);
  }

  // Users

  /** Return whether anything is known of this user. */
  knowsUser(user_id: Id): boolean {
    return this.#users.has(asId(user_id, "user_id"));
  }

  /** Return the latest items of a user, latest first. */
  past(user_id: Id, limit = 10): string[] {
    const items = this.#users.get(asId(user_id, "user_id"))?.items ?? [];
    return items.slice(-limit || items.length).reverse().map((place) => this.#ids[place]);
  }

  /** Set the features of a new or known user. Throws ConfigError for one that the file lacks. */
  setUser(user_id: Id, features: Features): void {
    const id = asId(user_id, "user_id");
    const vector = this.#vectorOf(features);
    const user = this.#user(id);
    user.vector = vector;
    user.features = { ...features };
  }

  /** Throw what `setUser` would throw, and change nothing. */
  checkFeatures(features: Features): void {
    this.#vectorOf(features);
  }

  /** Return those features of a user that this student can read. */
  knownFeatures(features: Features): Features {
    const readable = Object.entries(features).filter(([name, value]) => {
      try {
        this.checkFeatures({ [name]: value });
        return true;
      } catch {
        return false;
      }
    });
    return Object.fromEntries(readable);
  }

  #vectorOf(features: Features): Float32Array {
    const encoder = this.#file.userEncoder;
    return this.#student.embedded(encoder.encode(encoder.check(features, "user")), "user");
  }

  /** Forget a user. */
  forget(user_id: Id): void {
    this.#users.delete(asId(user_id, "user_id"));
  }

  /** Follow events, oldest first. All are checked before the first is followed. */
  update(events: Iterable<Event>): UpdateResult {
    return this.#followAll(this.checked(events));
  }

  /** Return events as ids, types and times, and follow none. Throws what `update` would throw. */
  checked(events: Iterable<Event>): CheckedEvent[] {
    const now = clock();
    return listedEvents(events).map((event) => {
      const [user, item, type, time] = checkedEvent(event);
      return [user, item, type, Math.floor(time ?? now)];
    });
  }

  /** Follow events that were kept. A time may lie ahead of the clock, which may have been set back since; where there is
   * none, it is not known.
   */
  followKept(events: Iterable<Event>): void {
    this.#followAll(listedEvents(events).map((event) => checkedEvent(event, Infinity)));
  }

  #followAll(events: CheckedEvent[]): UpdateResult {
    const result = { applied: 0, unknown_items: 0 };
    for (const [id, item, type, time] of events) {
      if (type === IMPRESSION) continue;
      const place = this.#index.get(item);
      if (place === undefined) {
        result.unknown_items += 1;
        continue;
      }
      this.#follow(this.#user(id), place, this.#kindOf(type), time);
      result.applied += 1;
    }
    return result;
  }

  #kindOf(event_type: string): number {
    return this.#types.get(event_type) ?? 0;
  }

  #user(id: string): User {
    let user = this.#users.get(id);
    if (!user) this.#users.set(id, (user = this.#stranger()));
    return user;
  }

  #stranger(): User {
    return {
      state: this.#student.newState(), vector: null, items: [], events: [], times: [], forgotten: 0,
      last: NEVER, before: NEVER, visit: 0,
    };
  }

  #follow(user: User, place: number, kind: number, time: number | null): void {
    this.#student.fold(user.state, place, kind);
    user.items.push(place);
    user.events.push(kind);
    user.times.push(time);
    if (user.items.length > this.#maxEvents) {
      for (const list of [user.items, user.events, user.times]) list.shift();
      user.forgotten += 1;
    }
    // As far as is known; a late event does not end the visit of later ones
    const when = Math.max(time ?? user.last, user.last);
    user.visit = goesOn(user.last, when, this.#gap) ? user.visit + 1 : 1;
    [user.last, user.before] = [when, user.last];
  }

  /** Return how many of the latest events are of the visit in which is asked. last, visit: of the user. */
  #visitAt(now: number, last: number, visit: number): number {
    return goesOn(last, now, this.#gap) ? visit : 0;
  }

  /** Make the query of a user, and return the time of the question. given: that time, null for the clock's. */
  #ask(user: User, given: number | null): number {
    if (given !== null && this.#gap) checkNotBefore(given, user.last);
    const now = given ?? clock();
    const visit = this.#visitAt(now, user.last, user.visit);
    this.#student.ask(user.state, user.vector, user.items, user.events, visit);
    return now;
  }

  // Answers

  /** Return the best items for a user, best first; fewer where fewer pass. */
  recommend(user_id: Id, options: RecommendOptions = {}): Recommendation[] {
    onlyKnown(options, ["k", "exclude_seen", "where", "diversity", "now"], "options");
    const { k = 10, where = null, diversity = 0 } = options;
    const excludeSeen = options.exclude_seen ?? !this.manifest.repeats;
    atLeastOne(k, "k");
    if (!(diversity >= 0 && diversity <= 1)) {
      throw new ConfigError(`diversity is ${diversity}`, {
        fix: "give a number from 0 to 1",
        parameter: "diversity",
      });
    }
    const now = asMoment(options.now, "now");
    const mask = this.#filters.mask(where);
    const user = this.#users.get(asId(user_id, "user_id")) ?? this.#stranger();
    this.#ask(user, now);
    const scores = this.#student.scores();
    const pool = diversity ? Math.max(POOL, POOL_FACTOR * k) : k;
    let places = this.#best(scores, excludeSeen ? user.items : [], mask, pool);
    if (diversity) places = this.#diversified(places, scores, k, diversity);
    return places.map((place) => this.#answer(place, scores[place]));
  }

  /** Return exactly these items, each once, best first, seen or not. */
  rank(user_id: Id, item_ids: Iterable<Id>, options: QuestionOptions = {}): Recommendation[] {
    const now = momentOf(options);
    const user = this.#users.get(asId(user_id, "user_id")) ?? this.#stranger();
    const asked = new Set(listedIds(item_ids, "item_ids").map((id) => this.#position(id as Id)));
    this.#ask(user, now);
    return [...asked]
      .map((place) => this.#answer(place, this.#student.scoreOf(place)))
      .sort((a, b) => b.score - a.score);
  }

  /** Return the k past events that matter most for the score of an item, by the size of what they
   * did. Exact: the score minus the score had that one event not happened; of the latest 1,000.
   */
  explain(user_id: Id, item_id: Id, k = 5, options: QuestionOptions = {}): Contribution[] {
    const given = momentOf(options);
    const place = this.#position(item_id);
    atLeastOne(k, "k");
    const user = this.#users.get(asId(user_id, "user_id"));
    if (!user?.items.length) return [];
    const count = user.items.length;
    const start = Math.max(0, count - EXPLAINED);
    const items = user.items.slice(start);
    const older = start > 0 || user.forgotten > 0;
    const now = this.#ask(user, given);
    const score = this.#student.scoreOf(place);
    // Without an event of the visit, which the others still are of, it is one shorter.
    const fewer = Math.max(user.visit - 1, 0);
    const [whole, shorter, withoutLast] = [
      this.#visitAt(now, user.last, user.visit),
      this.#visitAt(now, user.last, fewer),
      this.#visitAt(now, user.before, fewer),
    ];
    const states = this.#student.withoutEach(items, user.events.slice(start), older ? user.state : null);
    return states
      .map((state, n) => {
        const at = start + n;
        const visit = at === count - 1 ? withoutLast : at >= count - user.visit ? shorter : whole;
        this.#student.ask(state, user.vector, user.items, user.events, visit, at);
        const contribution = Math.fround(score - this.#student.scoreOf(place));
        return { item_id: this.#ids[items[n]], contribution, place: start + n };
      })
      .sort((a, b) => Math.abs(b.contribution) - Math.abs(a.contribution))
      .slice(0, k);
  }

  // State

  /** Return all that is known of the users, as plain JSON: what a page may keep. */
  state(): State {
    const names = this.manifest.event_types;
    const users = Array.from(this.#users, ([id, { items, events, times, features }]) => {
      const user: State["users"][string] = {
        events: items.map((place, n) => {
          const [item, type, time] = [this.#ids[place], names[events[n]], times[n]];
          return time === null ? [item, type] : [item, type, time];
        }),
      };
      if (features) user.features = features;
      return [id, user] as const;
    });
    return { format: 1, users: Object.fromEntries(users) };
  }

  /** Replace all users by those of `state()`, also of another version of the student: events are
   * folded again; those on items that are gone, and features that the student cannot read, are left
   * out. Changes nothing where it throws.
   */
  restore(state: State): void {
    if (state?.format !== 1 || typeof state.users !== "object" || state.users === null) {
      throw new ConfigError("the state is not one that this version wrote", {
        fix: "give what state() returned",
        parameter: "state",
      });
    }
    const users = new Map<string, User>();
    for (const [name, given] of Object.entries(state.users)) {
      const id = asId(name, "user_id");
      const user = this.#stranger();
      for (const event of listedEvents(given?.events)) {
        const [item_id, event_type, timestamp] = Array.isArray(event) ? event : [];
        const [, item, type, time] = checkedEvent({ user_id: id, item_id, event_type, timestamp }, Infinity);
        const place = this.#index.get(item);
        if (place !== undefined && type !== IMPRESSION) this.#follow(user, place, this.#kindOf(type), time);
      }
      if (given.features) {
        user.features = this.knownFeatures(given.features);
        user.vector = this.#vectorOf(user.features);
      }
      users.set(id, user);
    }
    this.#users.clear();
    for (const [id, user] of users) this.#users.set(id, user);
  }

  #position(item_id: unknown): number {
    const id = asId(item_id, "item_id");
    const place = this.#index.get(id);
    if (place === undefined) {
      throw new UnknownItemError(
        `item '${id}' is not in the catalogue (${this.#ids.length} items, such as ` +
          `${this.#ids.slice(0, 3).join(", ")})`,
        { fix: "check the id, or add the item with its features", item_id: id },
      );
    }
    return place;
  }

  #answer(place: number, score: number): Recommendation {
    return { item_id: this.#ids[place], score };
  }

  /** Return the k best places, best first, equal scores in the order of the items. Overwrites the
   * scores of what is left out.
   */
  #best(scores: Float32Array, seen: number[], mask: Uint8Array | null, k: number): number[] {
    for (const place of seen) scores[place] = -Infinity;
    if (mask) for (let n = 0; n < mask.length; n++) if (!mask[n]) scores[n] = -Infinity;
    const best: number[] = [];
    let worst = -Infinity;
    for (let n = 0; n < scores.length; n++) {
      const score = scores[n];
      if (!(score > worst)) continue;
      let at = best.length < k ? best.length : k - 1;
      for (; at > 0 && scores[best[at - 1]] < score; at--) best[at] = best[at - 1];
      best[at] = n;
      if (best.length === k) worst = scores[best[k - 1]];
    }
    return best;
  }

  /** Maximal marginal relevance (Carbonell and Goldstein 1998). */
  #diversified(places: number[], scores: Float32Array, k: number, diversity: number): number[] {
    if (!places.length) return [];
    const lowest = scores[places[places.length - 1]];
    const span = Math.max(scores[places[0]] - lowest, 1e-9);
    const left = places.map((place) => {
      const vector = this.#student.vector(place);
      const size = Math.sqrt(product(vector, vector) + 1e-12);
      return { place, unit: vector.map((c) => c / size), closest: -1, relevance: (scores[place] - lowest) / span };
    });
    const chosen: number[] = [];
    while (chosen.length < k && left.length) {
      let best = 0;
      let highest = -Infinity;
      left.forEach(({ relevance, closest }, n) => {
        const value = (1 - diversity) * relevance - diversity * (chosen.length ? closest : 0);
        if (value > highest) [best, highest] = [n, value];
      });
      const [{ place, unit }] = left.splice(best, 1);
      chosen.push(place);
      for (const other of left) other.closest = Math.max(other.closest, product(other.unit, unit));
    }
    return chosen;
  }

  #verify(golden: Golden): void {
    const student = this.#student;
    const state = student.newState();
    golden.items.forEach((item, n) => student.fold(state, item, golden.events[n]));
    const user = student.embedded(golden.user_features, "user");
    const { times = [], now = NEVER } = golden;
    const visit = this.#visitAt(now, times.at(-1) ?? NEVER, eventsOfVisit(times, this.#gap));
    student.ask(state, user, golden.items, golden.events, visit);
    const scores = student.scores();
    const of = golden.top_items.map((place) => scores[place]);
    const ones = golden.top_items.map((place) => student.scoreOf(place));
    const hidden = this.#file.has("repeat_weights") ? [] : golden.items;
    const best = this.#best(scores, hidden, null, golden.top_items.length).map((n) => scores[n]);
    const close = (ours: number[]): boolean =>
      ours.length === golden.top_scores.length &&
      golden.top_scores.every((score, n) => Math.abs(ours[n] - score) <= TOLERANCE * (1 + Math.abs(score)));
    if (close(of) && close(ones) && close(best)) return;
    throw new BundleCorruptedError(
      `this machine does not reproduce the golden answers of the file (${best.slice(0, 3)} instead ` +
        `of ${golden.top_scores.slice(0, 3)})`,
      { fix: "export the file again with this version of distilrec" },
    );
  }
}

/** latest: the last time that an event can have; in its place that of the clock. */
function checkedEvent(event: unknown, latest?: number): CheckedEvent {
  if (typeof event !== "object" || event === null) {
    throw invalidEvent(`it is ${shown(event)}`, "give a list of events, each with user_id and item_id");
  }
  const { user_id, item_id, event_type = "interaction", timestamp } = event as Event;
  for (const name of ["user_id", "item_id"]) {
    if (!(name in event)) throw invalidEvent(`it has no ${name}`, "give user_id and item_id");
  }
  if (typeof event_type !== "string") {
    throw invalidEvent(`its event_type is ${shown(event_type)}`, "give it as text, or leave it out");
  }
  const moment = asMoment(timestamp, "the timestamp of an event", latest);
  const time = moment === null ? null : Math.floor(moment);
  return [asId(user_id, "user_id"), asId(item_id, "item_id"), event_type, time];
}

function listedEvents(events: unknown): unknown[] {
  const iterable = Object(events)[Symbol.iterator];
  if (typeof events === "string" || typeof iterable !== "function") {
    throw invalidEvent(`they are ${shown(events)}`, "give a list of events");
  }
  return [...(events as Iterable<unknown>)];
}

function invalidEvent(problem: string, fix: string): ConfigError {
  return new ConfigError(`an event is not valid: ${problem}`, { fix, parameter: "events" });
}

function momentOf(options: QuestionOptions): number | null {
  onlyKnown(options, ["now"], "options");
  return asMoment(options.now, "now");
}

function atLeastOne(value: unknown, name: string): void {
  if (Number.isInteger(value) && (value as number) >= 1) return;
  throw new ConfigError(`${name} is ${shown(value)}`, {
    fix: "give a whole number of at least 1",
    parameter: name,
  });
}

function product(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let c = 0; c < a.length; c++) sum += a[c] * b[c];
  return sum;
}

function length(vector: Float32Array): number {
  return Math.max(Math.sqrt(product(vector, vector)), 1e-12);
}
