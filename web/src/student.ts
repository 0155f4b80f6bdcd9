/** The recurrent student: state, query, scores. docs/bundle-format.md has the equations. */

import { check, type StudentFile } from "./file.js";
import { Memory, type Block } from "./memory.js";

const EPSILON = 1e-6;

export class Student {
  readonly dim: number;
  count: number;
  readonly #memory: Memory;
  readonly #scales: number;
  /** Numbers of a row of `vectors`. */
  readonly #stride: number;
  readonly #widths: { mix: number; widen: number; narrow: number };
  readonly #decay: Float32Array;
  readonly #scale: Float32Array;
  readonly #gain: Float32Array;
  readonly #outer: Float32Array;
  readonly #userTable: Float32Array;
  readonly #itemTable: Float32Array;
  /** What a user's vector gets in the visit of the last event, and where a visit begins. */
  readonly #visitInputs: Float32Array | null;
  readonly #weights: { mix: Block; widen: Block; widenBias: Block; narrow: Block; narrowBias: Block };
  readonly #work: { known: Block; first: Block; hidden: Block; raw: Block; query: Block };
  readonly #zero: Block;
  readonly #neighbours: Neighbours | null;
  /** Positions of the latest events of the user who is asked for, and rows of their weights; the latest first. */
  #latest: [item: number, row: number][] = [];
  #vectors: Block;
  #biases: Block;
  #scores: Block;
  #room: number;

  constructor(file: StudentFile, wasm: boolean) {
    const m = file.manifest;
    const memory = new Memory(wasm);
    const dim = m.dim;
    const scales = file.shape("decay")[0];
    const wide = file.shape("widen")[0];
    const known = (scales + 1) * dim;
    this.#memory = memory;
    this.dim = dim;
    this.count = m.items;
    this.#scales = scales;
    this.#stride = padded(dim);
    this.#widths = { mix: padded(scales * dim), widen: padded(known), narrow: padded(wide) };
    this.#decay = file.weights("decay", [scales, dim]);
    check(this.#decay.every((a) => a >= 0 && a <= 1), "has a decay outside 0 to 1");
    this.#scale = this.#decay.map((a) => Math.sqrt(1 - a * a));
    this.#gain = file.weights("gain", [m.event_types.length, dim]);
    this.#outer = file.weights("outer_norm", [dim]);
    this.#userTable = file.weights("user_table", [file.userEncoder.width, dim]);
    this.#itemTable = file.weights("item_table", [file.itemEncoder.width, dim]);
    this.#visitInputs = m.visit_gap === undefined ? null : file.weights("visit_inputs", [2, dim]);
    const inner = file.weights("inner_norm", [known]);
    const widen = file.weights("widen", [wide, known]).slice();
    for (let n = 0, c = 0; n < widen.length; n++, c = c + 1 === known ? 0 : c + 1) widen[n] *= inner[c];
    this.#weights = {
      mix: this.#rows(file.weights("mix", [dim, scales * dim]), scales * dim),
      widen: this.#rows(widen, known),
      widenBias: this.#row(file.weights("widen_bias", [wide])),
      narrow: this.#rows(file.weights("narrow", [dim, wide]), wide),
      narrowBias: this.#row(file.weights("narrow_bias", [dim])),
    };
    this.#work = {
      known: memory.block(known),
      first: memory.block(dim),
      hidden: memory.block(wide),
      raw: memory.block(dim),
      query: memory.block(dim),
    };
    this.#zero = memory.block(wide);
    this.#neighbours = file.has("neighbours") ? neighboursOf(file) : null;
    this.#room = padded(m.items) + 64;
    this.#vectors = memory.block(this.#room * this.#stride);
    this.#biases = memory.block(this.#room);
    this.#scores = memory.block(this.#room);
    const integers = file.array("vectors", [m.items, dim]);
    check(integers instanceof Int8Array, "has item vectors of another type");
    const steps = file.weights("scales", [m.items]);
    if (dim === this.#stride) this.#vectors.data.set(integers);
    else {
      for (let item = 0; item < m.items; item++) {
        this.#vectors.data.set(integers.subarray(item * dim, (item + 1) * dim), item * this.#stride);
      }
    }
    this.#scores.data.set(steps); // which is free until somebody asks
    memory.scale(this.#vectors, this.#scores, m.items, this.#stride);
    this.#biases.data.set(file.weights("biases", [m.items]));
  }

  get wasm(): boolean {
    return this.#memory.wasm;
  }

  /** How many of a user's latest events are looked at one by one. */
  get latestEvents(): number {
    return this.#neighbours?.number ?? 0;
  }

  get biasOfNew(): number {
    return this.#biases.data.subarray(0, this.count).reduce((a, b) => Math.min(a, b));
  }

  /** Return rows of `length` numbers with room for a multiple of 4 rows and numbers. */
  #rows(numbers: Float32Array, length: number): Block {
    const rows = length ? numbers.length / length : 0;
    const width = padded(length);
    const block = this.#memory.block(padded(rows) * width);
    for (let n = 0; n < rows; n++) {
      block.data.set(numbers.subarray(n * length, (n + 1) * length), n * width);
    }
    return block;
  }

  #row(numbers: Float32Array): Block {
    const block = this.#memory.block(numbers.length);
    block.data.set(numbers);
    return block;
  }

  newState(): Float32Array {
    return new Float32Array((this.#scales + 1) * this.dim);
  }

  /** Return the weighted sum of rows of a table. */
  embedded(bag: [number, number][], of: "user" | "item"): Float32Array {
    const { dim } = this;
    const table = of === "user" ? this.#userTable : this.#itemTable;
    const out = new Float32Array(dim);
    for (const [column, weight] of bag) {
      const factor = Math.fround(weight);
      for (let c = 0; c < dim; c++) out[c] += factor * table[column * dim + c];
    }
    return out;
  }

  /** Update a state by one event. */
  fold(state: Float32Array, item: number, event: number): void {
    const { dim } = this;
    const at = item * this.#stride;
    const vectors = this.#vectors.data;
    const all = this.#scales * dim;
    const [decay, scale, gain, type] = [this.#decay, this.#scale, this.#gain, event * dim];
    for (let n = 0, c = 0; n < all; n++, c = c + 1 === dim ? 0 : c + 1) {
      state[n] = decay[n] * state[n] + scale[n] * (gain[type + c] * vectors[at + c]);
    }
    for (let c = 0; c < dim; c++) state[all + c] = vectors[at + c];
  }

  /** Return for each event the state without it, one after the other.
   *
   * state: the user's, where older events are in it than these.
   */
  withoutEach(items: number[], events: number[], state: Float32Array | null): Float32Array[] {
    const { dim } = this;
    const all = this.#scales * dim;
    const steps: Float64Array[] = [];
    const now = new Float64Array(all);
    items.forEach((item, j) => {
      const step = new Float64Array(all);
      for (let n = 0; n < all; n++) {
        const c = n % dim;
        const input = this.#gain[events[j] * dim + c] * this.#vectors.data[item * this.#stride + c];
        const next = this.#decay[n] * now[n] + this.#scale[n] * input;
        step[n] = next - now[n];
        now[n] = next;
      }
      steps.push(step);
    });
    const later = new Float64Array(all).fill(1);
    const found: Float32Array[] = new Array(items.length);
    for (let j = items.length - 1; j >= 0; j--) {
      const out = this.newState();
      for (let n = 0; n < all; n++) {
        out[n] = now[n] - later[n] * steps[j][n];
        later[n] *= this.#decay[n];
        // What is older decays once less.
        if (state) out[n] += (state[n] - now[n]) / this.#decay[n];
      }
      const last = j < items.length - 1 ? items.length - 1 : items.length - 2;
      if (last >= 0) out.set(this.vector(items[last]), all);
      found[j] = out;
    }
    return found;
  }

  /** Make the query of a user, which `scores` and `scoreOf` then use.
   *
   * items, events: what the user has had, oldest first; visit: how many of the latest events, without the one that did
   * not happen, are of the visit in which is asked, for a student that knows visits; without: the event that did not
   * happen.
   */
  ask(
    state: Float32Array, user: Float32Array | null, items: number[], events: number[], visit: number, without = -1,
  ): void {
    const { dim } = this;
    this.#latest = [];
    const [kept, types] = [this.latestEvents, this.#visitInputs ? this.#gain.length / dim : 0];
    for (let n = items.length - 1; n >= 0 && this.#latest.length < kept; n--) {
      if (n !== without) this.#latest.push([items[n], events[n] + (this.#latest.length < visit ? 0 : types)]);
    }
    const memory = this.#memory;
    const { mix, widen, widenBias, narrow, narrowBias } = this.#weights;
    const work = this.#work;
    const known = work.known.data;
    const latest = this.#scales * dim;
    known.set(state);
    if (user) for (let c = 0; c < dim; c++) known[latest + c] += user[c];
    const [told, row] = [this.#visitInputs, visit ? 0 : dim];
    if (told) for (let c = 0; c < dim; c++) known[latest + c] += told[row + c];
    const norm = 1 / Math.sqrt(meanSquare(known, latest + dim) + EPSILON);
    memory.dot(mix, work.known, narrowBias, work.first, dim, this.#widths.mix);
    const wide = widenBias.length;
    memory.dot(widen, work.known, this.#zero, work.hidden, wide, this.#widths.widen);
    const [hidden, bias] = [work.hidden.data, widenBias.data];
    for (let w = 0; w < wide; w++) {
      const value = bias[w] + norm * hidden[w];
      hidden[w] = value / (1 + Math.exp(-value));
    }
    for (let c = 0; c < dim; c++) work.first.data[c] += known[latest + c];
    memory.dot(narrow, work.hidden, work.first, work.raw, dim, this.#widths.narrow);
    const raw = work.raw.data;
    const length = 1 / Math.sqrt(meanSquare(raw, dim) + EPSILON);
    for (let c = 0; c < dim; c++) work.query.data[c] = raw[c] * length * this.#outer[c];
  }

  /** Return the scores of all items for the query; overwritten by the next call. */
  scores(): Float32Array {
    this.#memory.dot(
      this.#vectors, this.#work.query, this.#biases, this.#scores, this.count, this.#stride,
    );
    const scores = this.#scores.data.subarray(0, this.count);
    this.#add((item, value) => (scores[item] += value));
    return scores;
  }

  /** Tell what the neighbours of the latest events add to which items. */
  #add(tell: (item: number, value: number) => void): void {
    const near = this.#neighbours;
    if (!near) return;
    this.#latest.forEach(([item, row], age) => {
      if (item >= near.units.length) return;
      tell(item, near.repeats[row * near.number + age]);
      const weight = near.ages[row * near.number + age] * near.units[item];
      for (let n = item * near.width; n < (item + 1) * near.width; n++) {
        tell(near.items[n], weight * near.values[n]);
      }
    });
  }

  scoreOf(item: number): number {
    const vector = this.vector(item);
    const query = this.#work.query.data;
    let score = this.#biases.data[item];
    for (let c = 0; c < this.dim; c++) score += query[c] * vector[c];
    this.#add((other, value) => (score += other === item ? value : 0));
    return Math.fround(score);
  }

  vector(item: number): Float32Array {
    return this.#vectors.data.subarray(item * this.#stride, item * this.#stride + this.dim);
  }

  /** Set the vector of an item, or add one behind the last. */
  putItem(item: number, vector: Float32Array, bias: number): void {
    if (item === this.#room) {
      const old = [this.#vectors, this.#biases];
      this.#room = padded(2 * this.#room);
      this.#vectors = this.#memory.block(this.#room * this.#stride);
      this.#biases = this.#memory.block(this.#room);
      this.#scores = this.#memory.block(this.#room);
      this.#vectors.data.set(old[0].data);
      this.#biases.data.set(old[1].data);
    }
    this.#vectors.data.set(vector, item * this.#stride);
    this.#biases.data[item] = bias;
    this.count = Math.max(this.count, item + 1);
  }
}

/** Which items the latest events speak for: rows of items with values in units of the row. */
interface Neighbours {
  items: ArrayLike<number>;
  values: ArrayLike<number>;
  units: Float32Array;
  /** Rows of event types; behind them, for a student that knows visits, rows for events of earlier visits. */
  ages: Float32Array;
  /** What an event adds to the score of its own item; rows as in `ages`. */
  repeats: Float32Array;
  /** Items of a row. */
  width: number;
  /** Latest events that count. */
  number: number;
}

function neighboursOf(file: StudentFile): Neighbours {
  const [rows, width] = file.shape("neighbours");
  const types = file.manifest.event_types.length;
  const tables = [["neighbour_ages"], ["repeat_weights"]];
  if (file.manifest.visit_gap !== undefined) {
    tables[0].push("earlier_ages");
    tables[1].push("earlier_repeats");
  }
  const weighed = tables.map((names) => {
    const columns = file.has(names[0]) ? file.shape(names[0])[1] : 0;
    return { columns, parts: columns ? names.map((name) => file.weights(name, [types, columns])) : [] };
  });
  const number = Math.max(...weighed.map(({ columns }) => columns));
  const [ages, repeats] = weighed.map(({ columns, parts }) => {
    const wide = new Float32Array(tables[0].length * types * number);
    parts.forEach((rows, part) => {
      for (let n = 0; n < rows.length; n++) {
        wide[(part * types + Math.floor(n / columns)) * number + (n % columns)] = rows[n];
      }
    });
    return wide;
  });
  const items = file.array("neighbours", [rows, width]);
  const count = file.manifest.items;
  check(rows <= count && items.every((item) => item >= 0 && item < count), "has impossible neighbours");
  return {
    items,
    values: file.array("neighbour_values", [rows, width]),
    units: file.weights("neighbour_units", [rows]),
    ages,
    repeats,
    width,
    number,
  };
}

function padded(length: number): number {
  return length + (-length & 3);
}

function meanSquare(numbers: Float32Array, count: number): number {
  let sum = 0;
  for (let n = 0; n < count; n++) sum += numbers[n] * numbers[n];
  return sum / count;
}
