/** Which items may be recommended, as `distilrec.engine.filters` in Python says it. */
import { type StudentFile } from "./file.js";
/** A condition on one attribute: categories, or the closed range of a number. An item without the
 * attribute fulfils `none_of` only.
 */
export interface Condition {
    any_of?: readonly string[] | null;
    none_of?: readonly string[];
    min?: number | null;
    max?: number | null;
}
/** An item passes when it fulfils every condition, is in `allow` where that is given, and is not in
 * `deny`. Unknown ids and categories match nothing; an unknown attribute is an error.
 */
export interface Filter {
    attributes?: Readonly<Record<string, Condition>>;
    allow?: Iterable<string | number> | null;
    deny?: Iterable<string | number>;
}
export type Value = number | string | boolean | readonly unknown[] | null;
export type Attributes = Record<string, number | string[]>;
export declare class Filters {
    #private;
    private readonly index;
    readonly numbers: Map<string, number[]>;
    readonly categories: Map<string, Map<string, Set<number>>>;
    readonly separators: Map<string, string>;
    /** index: positions of the items by id, which the catalogue goes on changing. */
    constructor(file: StudentFile, index: Map<string, number>);
    get names(): string[];
    /** Return the attributes that an item has. */
    of(item: number): Attributes;
    append(): void;
    isAvailable(item: number): boolean;
    setAvailable(item: number, available: boolean): void;
    /** Throw the ConfigError that `change` would throw. */
    check(values: Record<string, Value>): void;
    /** Set attributes of an item; null removes one. */
    change(item: number, values: Record<string, Value>): void;
    /** Return 1 for every item that may be recommended; null where all may. */
    mask(chosen: Filter | null | undefined): Uint8Array | null;
}
/** Throw ConfigError for what is no object, or has a field that does not exist. */
export declare function onlyKnown(value: unknown, fields: string[], what: string): void;
