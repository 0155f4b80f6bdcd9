/** The recurrent student: state, query, scores. docs/bundle-format.md has the equations. */
import { type StudentFile } from "./file.js";
export declare class Student {
    #private;
    readonly dim: number;
    count: number;
    constructor(file: StudentFile, wasm: boolean);
    get wasm(): boolean;
    /** How many of a user's latest events are looked at one by one. */
    get latestEvents(): number;
    get biasOfNew(): number;
    newState(): Float32Array;
    /** Return the weighted sum of rows of a table. */
    embedded(bag: [number, number][], of: "user" | "item"): Float32Array;
    /** Update a state by one event. */
    fold(state: Float32Array, item: number, event: number): void;
    /** Return for each event the state without it, one after the other.
     *
     * state: the user's, where older events are in it than these.
     */
    withoutEach(items: number[], events: number[], state: Float32Array | null): Float32Array[];
    /** Make the query of a user, which `scores` and `scoreOf` then use.
     *
     * items, events: what the user has had, oldest first; visit: how many of the latest events, without the one that did
     * not happen, are of the visit in which is asked, for a student that knows visits; without: the event that did not
     * happen.
     */
    ask(state: Float32Array, user: Float32Array | null, items: number[], events: number[], visit: number, without?: number): void;
    /** Return the scores of all items for the query; overwritten by the next call. */
    scores(): Float32Array;
    scoreOf(item: number): number;
    vector(item: number): Float32Array;
    /** Set the vector of an item, or add one behind the last. */
    putItem(item: number, vector: Float32Array, bias: number): void;
}
