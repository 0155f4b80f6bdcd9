/** Answers for the users of a page or a device, who are known to nobody else. */
import { type Features } from "./features.js";
import { type Manifest, type Rounding, type StudentFile } from "./file.js";
import { type Attributes, type Filter, type Value } from "./filters.js";
import { type Id } from "./ids.js";
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
    users: Record<string, {
        events: StateEvent[];
        features?: Features;
    }>;
}
/** The type of events that say what was shown. */
export declare const IMPRESSION = "impression";
export declare class Recommender {
    #private;
    readonly manifest: Manifest;
    /** What the 8 bits of the file change. */
    readonly rounding: Rounding;
    /** Throws BundleCorruptedError for a file that makes no sense, and where the golden answers are
     * not reproduced. Callers use `load`.
     */
    constructor(file: StudentFile, options?: Options);
    /** Whether WebAssembly does the work. */
    get wasm(): boolean;
    /** All items, the most popular in training first. */
    get item_ids(): string[];
    /** What answers can be filtered by. */
    get attributes(): string[];
    /** Return the title of an item, or its id where the data had none. */
    title(item_id: Id): string;
    knowsItem(item_id: Id): boolean;
    item(item_id: Id): Item;
    /** Return items whose title or id contains a text, most popular first. */
    search(text: string, limit?: number): Item[];
    /** Return the k items that are most alike, by the cosine of their vectors. */
    similar(item_id: Id, k?: number, where?: Filter | null): Recommendation[];
    /** Add a new item, scored by its features alone. Throws ConfigError for an item that exists. */
    addItem(item_id: Id, features: Features, title?: string): void;
    /** Add an item, or change one: title, attributes, availability; of a new item also the features. */
    putItem(record: ItemRecord): void;
    /** Return whether anything is known of this user. */
    knowsUser(user_id: Id): boolean;
    /** Return the latest items of a user, latest first. */
    past(user_id: Id, limit?: number): string[];
    /** Set the features of a new or known user. Throws ConfigError for one that the file lacks. */
    setUser(user_id: Id, features: Features): void;
    /** Throw what `setUser` would throw, and change nothing. */
    checkFeatures(features: Features): void;
    /** Return those features of a user that this student can read. */
    knownFeatures(features: Features): Features;
    /** Forget a user. */
    forget(user_id: Id): void;
    /** Follow events, oldest first. All are checked before the first is followed. */
    update(events: Iterable<Event>): UpdateResult;
    /** Return events as ids, types and times, and follow none. Throws what `update` would throw. */
    checked(events: Iterable<Event>): CheckedEvent[];
    /** Follow events that were kept. A time may lie ahead of the clock, which may have been set back since; where there is
     * none, it is not known.
     */
    followKept(events: Iterable<Event>): void;
    /** Return the best items for a user, best first; fewer where fewer pass. */
    recommend(user_id: Id, options?: RecommendOptions): Recommendation[];
    /** Return exactly these items, each once, best first, seen or not. */
    rank(user_id: Id, item_ids: Iterable<Id>, options?: QuestionOptions): Recommendation[];
    /** Return the k past events that matter most for the score of an item, by the size of what they
     * did. Exact: the score minus the score had that one event not happened; of the latest 1,000.
     */
    explain(user_id: Id, item_id: Id, k?: number, options?: QuestionOptions): Contribution[];
    /** Return all that is known of the users, as plain JSON: what a page may keep. */
    state(): State;
    /** Replace all users by those of `state()`, also of another version of the student: events are
     * folded again; those on items that are gone, and features that the student cannot read, are left
     * out. Changes nothing where it throws.
     */
    restore(state: State): void;
}
