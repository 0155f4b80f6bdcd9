/** Features as numbers, as `distilrec.features.encoding` in Python encodes them. */
export type Features = Record<string, unknown>;
/** Pairs of a column and its weight. */
export type Bag = [number, number][];
export type Encoding = {
    kind: "categorical";
    name: string;
    values: string[];
} | {
    kind: "multi";
    name: string;
    values: string[];
    separator?: string;
} | {
    kind: "numeric";
    name: string;
    quantiles: number[];
} | {
    kind: "text";
    name: string;
    buckets: number;
} | {
    kind: "vector";
    name: string;
    width: number;
    separator?: string;
};
export declare function widthOf(encoding: Encoding): number;
/** The encodings of users or of items, side by side. */
export declare class Encoder {
    #private;
    readonly encodings: Encoding[];
    readonly names: Set<string>;
    constructor(encodings: Encoding[]);
    get width(): number;
    /** Throws ConfigError for a feature that the model does not have. */
    check(features: unknown, entity: string): Features;
    /** Return the features of a new item with those that a log would have given. */
    withDerived(features: Features): Features;
    encode(row: Features): Bag;
}
/** Return the text of a categorical value. */
export declare function asCategory(value: unknown): string;
/** Return the values of a cell that may hold several. */
export declare function asParts(value: unknown, separator?: string): string[];
