/** Reads `student.drec`: docs/web-file.md specifies it. Everything is checked before it is used. */
import { Encoder, type Encoding } from "./features.js";
export interface Golden {
    items: number[];
    events: number[];
    user_features: [number, number][];
    top_items: number[];
    top_scores: number[];
    /** Of a student that knows visits: when the events happened and when is asked, seconds since 1970. */
    times?: number[];
    now?: number;
}
export interface Manifest {
    kind: string;
    dim: number;
    items: number;
    parameters: number;
    event_types: string[];
    user_encoder: {
        encodings: Encoding[];
    };
    item_encoder: {
        encodings: Encoding[];
    };
    repeats: boolean;
    /** Seconds without an event that end a visit, for a student that knows visits. */
    visit_gap?: number;
    dataset: string;
    teacher: string;
    metrics: Record<string, number>;
    golden: Golden[];
    distilrec: string;
    model_version: string;
}
/** What the 8 bits change, measured when the file was written. */
export interface Rounding {
    questions: number;
    overlap: number;
    largest: number;
}
type Numbers = Int8Array | Uint8Array | Uint16Array | Uint32Array | Float32Array | Float64Array;
export declare class StudentFile {
    #private;
    private readonly buffer;
    private readonly start;
    readonly manifest: Manifest;
    readonly rounding: Rounding;
    readonly userEncoder: Encoder;
    readonly itemEncoder: Encoder;
    private constructor();
    /** Throws BundleCorruptedError and BundleVersionError. */
    static open(given: ArrayBuffer | Uint8Array): Promise<StudentFile>;
    get names(): string[];
    has(name: string): boolean;
    shape(name: string): number[];
    /** Return the numbers of an array. shape: what it must be. */
    array(name: string, shape?: number[]): Numbers;
    /** Return finite weights of a shape. */
    weights(name: string, shape: number[]): Float32Array;
    /** Return how to get the texts of an array, which are checked now and cut at the first call.
     * count: how many there must be.
     */
    texts(name: string, count?: number): () => string[];
}
export declare function check(holds: boolean, problem: string): void;
/** Return an error of ours as it is, and any other as one about the file. */
export declare function asCorrupted(problem: unknown): Error;
export {};
