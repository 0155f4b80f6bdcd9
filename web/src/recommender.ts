/** Answers for the users of a page or a device, who are known to nobody else. */

import { BundleCorruptedError, ConfigError, UnknownItemError } from "./errors.js";
import { asCategory, asParts, type Features } from "./features.js";
import { asCorrupted, check, type Golden, type Manifest, type Rounding, type StudentFile } from "./file.js";
import { Filters, onlyKnown, type Attributes, type Filter, type Value } from "./filters.js";
import { asId, listedIds, shown, type Id } from "./ids.js";
import { Student } from "./student.js";

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
  /** "interaction" by default; a type that training did not know counts as the unknown type. */
  event_type?: string;
}

export interface UpdateResult {
  /** Events that changed a state. */
  applied: number;
  /** Events on items that are not in the catalogue: they changed nothing. */
  unknown_items: number;
}

export interface RecommendOptions {
  /** How many; 10 by default. */
  k?: number;
  /** Leave out what the user has had; true by default. */
  exclude_seen?: boolean;
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
  /** How many of the latest events of each user are remembered as seen; 10,000 by default. */
  max_events?: number;
}

/** Everything known of the users, as plain JSON. */
export interface State {
  format: 1;
  users: Record<string, { events: [item_id: string, event_type: string][]; features?: Features }>;
}

interface User {
  state: Float32Array;
  vector: Float32Array | null;
  features?: Features;
  items: number[];
  events: number[];
  /** Events that are in the state and no longer remembered. */
  forgotten: number;
}

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

  /** Throws BundleCorruptedError for a file that makes no sense, and where the golden answers are
   * not reproduced. Callers use `load`.
   */
  constructor(file: StudentFile, options: Options = {}) {
    const maxEvents = options.max_events ?? 10_000;
    atLeastOne(maxEvents, "max_events");
    this.#maxEvents = maxEvents;
    this.#file = file;
    this.manifest = file.manifest;
    this.rounding = file.rounding;
    try {
      this.#student = new Student(file, options.wasm ?? true);
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
    const checked = this.checked(events);
    let applied = 0;
    for (const [id, item, type] of checked) {
      const place = this.#index.get(item);
      if (place === undefined) continue;
      this.#follow(this.#user(id), place, this.#kindOf(type));
      applied += 1;
    }
    return { applied, unknown_items: checked.length - applied };
  }

  /** Return events as ids and types, and follow none. Throws what `update` would throw. */
  checked(events: Iterable<Event>): [user_id: string, item_id: string, event_type: string][] {
    return listedEvents(events).map(checkedEvent);
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
    return { state: this.#student.newState(), vector: null, items: [], events: [], forgotten: 0 };
  }

  #follow(user: User, place: number, kind: number): void {
    this.#student.fold(user.state, place, kind);
    user.items.push(place);
    user.events.push(kind);
    if (user.items.length > this.#maxEvents) {
      user.items.shift();
      user.events.shift();
      user.forgotten += 1;
    }
  }

  // Answers

  /** Return the best items for a user, best first; fewer where fewer pass. */
  recommend(user_id: Id, options: RecommendOptions = {}): Recommendation[] {
    onlyKnown(options, ["k", "exclude_seen", "where", "diversity"], "options");
    const { k = 10, exclude_seen = true, where = null, diversity = 0 } = options;
    atLeastOne(k, "k");
    if (!(diversity >= 0 && diversity <= 1)) {
      throw new ConfigError(`diversity is ${diversity}`, {
        fix: "give a number from 0 to 1",
        parameter: "diversity",
      });
    }
    const mask = this.#filters.mask(where);
    const user = this.#users.get(asId(user_id, "user_id")) ?? this.#stranger();
    this.#student.ask(user.state, user.vector, user.items, user.events);
    const scores = this.#student.scores();
    const pool = diversity ? Math.max(POOL, POOL_FACTOR * k) : k;
    let places = this.#best(scores, exclude_seen ? user.items : [], mask, pool);
    if (diversity) places = this.#diversified(places, scores, k, diversity);
    return places.map((place) => this.#answer(place, scores[place]));
  }

  /** Return exactly these items, each once, best first, seen or not. */
  rank(user_id: Id, item_ids: Iterable<Id>): Recommendation[] {
    const user = this.#users.get(asId(user_id, "user_id")) ?? this.#stranger();
    const asked = new Set(listedIds(item_ids, "item_ids").map((id) => this.#position(id as Id)));
    this.#student.ask(user.state, user.vector, user.items, user.events);
    return [...asked]
      .map((place) => this.#answer(place, this.#student.scoreOf(place)))
      .sort((a, b) => b.score - a.score);
  }

  /** Return the k past events that matter most for the score of an item, by the size of what they
   * did. Exact: the score minus the score had that one event not happened; of the latest 1,000.
   */
  explain(user_id: Id, item_id: Id, k = 5): Contribution[] {
    const place = this.#position(item_id);
    atLeastOne(k, "k");
    const user = this.#users.get(asId(user_id, "user_id"));
    if (!user?.items.length) return [];
    const start = Math.max(0, user.items.length - EXPLAINED);
    const items = user.items.slice(start);
    const older = start > 0 || user.forgotten > 0;
    this.#student.ask(user.state, user.vector, user.items, user.events);
    const score = this.#student.scoreOf(place);
    const states = this.#student.withoutEach(items, user.events.slice(start), older ? user.state : null);
    return states
      .map((state, n) => {
        this.#student.ask(state, user.vector, user.items, user.events, start + n);
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
    const users = Array.from(this.#users, ([id, { items, events, features }]) => {
      const user: State["users"][string] = {
        events: items.map((place, n) => [this.#ids[place], names[events[n]]]),
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
        const [item_id, event_type] = Array.isArray(event) ? event : [];
        const [, item, type] = checkedEvent({ user_id: id, item_id, event_type });
        const place = this.#index.get(item);
        if (place !== undefined) this.#follow(user, place, this.#kindOf(type));
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
    student.ask(state, user, golden.items, golden.events);
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

function checkedEvent(event: unknown): [user_id: string, item_id: string, event_type: string] {
  if (typeof event !== "object" || event === null) {
    throw invalidEvent(`it is ${shown(event)}`, "give a list of events, each with user_id and item_id");
  }
  const { user_id, item_id, event_type = "interaction" } = event as Event;
  for (const name of ["user_id", "item_id"]) {
    if (!(name in event)) throw invalidEvent(`it has no ${name}`, "give user_id and item_id");
  }
  if (typeof event_type !== "string") {
    throw invalidEvent(`its event_type is ${shown(event_type)}`, "give it as text, or leave it out");
  }
  return [asId(user_id, "user_id"), asId(item_id, "item_id"), event_type];
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
