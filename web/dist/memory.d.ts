/** Where the numbers lie, and the loops that take time: a product of a matrix with a vector, and the
 * item vectors from their 8 bits.
 *
 * They run in WebAssembly with SIMD (scan.wat) where that is there, else in plain JavaScript.
 */
/** Some float32 numbers. `data` is another object after memory has grown: never keep it. */
export interface Block {
    readonly at: number;
    readonly length: number;
    data: Float32Array;
}
export declare class Memory {
    #private;
    /** wasm: false for plain JavaScript, whatever the browser can. */
    constructor(wasm: boolean);
    get wasm(): boolean;
    /** Return room for this many numbers, all 0. */
    block(length: number): Block;
    /** out[n] = rows[n] . vector + bias[n]; count rows of `width` numbers, a multiple of 4.
     *
     * All have room for a multiple of 4 rows.
     */
    dot(rows: Block, vector: Block, bias: Block, out: Block, count: number, width: number): void;
    /** rows[n] *= steps[n]; count rows of `width` numbers, a multiple of 4. */
    scale(rows: Block, steps: Block, count: number, width: number): void;
}
