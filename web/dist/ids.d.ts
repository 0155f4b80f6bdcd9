/** One rule for ids, that of `distilrec.ids` in Python: 7 and "7" and " 7.0 " are one id. */
export type Id = string | number | bigint;
/** Return the text of an id. what: names the id in the error. */
export declare function asId(value: unknown, what: string): string;
/** Return ids as a list. Throws InvalidIdError for one id where a list belongs. */
export declare function listedIds(values: unknown, what: string): unknown[];
/** Return how a value is shown in a message: short. */
export declare function shown(value: unknown): string;
