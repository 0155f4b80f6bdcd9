/** Where the numbers lie, and the loops that take time: a product of a matrix with a vector, and the
 * item vectors from their 8 bits.
 *
 * They run in WebAssembly with SIMD (scan.wat) where that is there, else in plain JavaScript.
 */

import { SCAN } from "./scan.js";

const PAGE = 65_536;

/** Some float32 numbers. `data` is another object after memory has grown: never keep it. */
export interface Block {
  readonly at: number;
  readonly length: number;
  data: Float32Array;
}

interface Loops {
  dot(rows: number, vector: number, bias: number, out: number, count: number, width: number): void;
  scale(rows: number, steps: number, count: number, width: number): void;
}

export class Memory {
  #next = 0;
  readonly #blocks: Block[] = [];
  readonly #memory: WebAssembly.Memory | null = null;
  readonly #loops: Loops | null = null;

  /** wasm: false for plain JavaScript, whatever the browser can. */
  constructor(wasm: boolean) {
    if (!wasm) return;
    try {
      const memory = new WebAssembly.Memory({ initial: 1 });
      const bytes = Uint8Array.from(atob(SCAN), (character) => character.charCodeAt(0));
      const made = new WebAssembly.Instance(new WebAssembly.Module(bytes), { m: { m: memory } });
      this.#loops = made.exports as unknown as Loops;
      this.#memory = memory;
    } catch {
      // No WebAssembly, no SIMD, or a page that forbids it.
    }
  }

  get wasm(): boolean {
    return this.#memory !== null;
  }

  /** Return room for this many numbers, all 0. */
  block(length: number): Block {
    const room = length + (-length & 3);
    if (!this.#memory) return { at: 0, length: room, data: new Float32Array(room) };
    const block = { at: this.#next, length: room, data: new Float32Array(0) };
    this.#next += 4 * room;
    this.#blocks.push(block);
    const missing = this.#next - this.#memory.buffer.byteLength;
    if (missing > 0) this.#memory.grow(Math.ceil(missing / PAGE));
    for (const each of missing > 0 ? this.#blocks : [block]) {
      each.data = new Float32Array(this.#memory.buffer, each.at, each.length);
    }
    return block;
  }

  /** out[n] = rows[n] . vector + bias[n]; count rows of `width` numbers, a multiple of 4.
   *
   * All have room for a multiple of 4 rows.
   */
  dot(rows: Block, vector: Block, bias: Block, out: Block, count: number, width: number): void {
    if (this.#loops) {
      this.#loops.dot(rows.at, vector.at, bias.at, out.at, count + (-count & 3), 4 * width);
      return;
    }
    const [a, x, b, y] = [rows.data, vector.data, bias.data, out.data];
    for (let n = 0, at = 0; n < count; n++) {
      let value = b[n];
      for (let c = 0; c < width; c++) value += a[at++] * x[c];
      y[n] = value;
    }
  }

  /** rows[n] *= steps[n]; count rows of `width` numbers, a multiple of 4. */
  scale(rows: Block, steps: Block, count: number, width: number): void {
    if (this.#loops) {
      this.#loops.scale(rows.at, steps.at, count, 4 * width);
      return;
    }
    const [a, b] = [rows.data, steps.data];
    for (let n = 0, at = 0; n < count; n++) {
      const step = b[n];
      for (const stop = at + width; at < stop; at++) a[at] *= step;
    }
  }
}
