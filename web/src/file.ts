/** Reads `student.drec`: docs/web-file.md specifies it. Everything is checked before it is used. */

import { BundleVersionError, corrupted } from "./errors.js";
import { Encoder, type Encoding } from "./features.js";
import { sha256 } from "./sha256.js";

const MARK = [0x89, 0x44, 0x52, 0x45, 0x43, 0x0d, 0x0a, 0x1a];
/** The second is of students that know visits. */
const VERSIONS = [1, 2];
const START = 48;
const KINDS = ["recurrent"];
const SIZES: Record<string, number> = { I8: 1, U8: 1, U16: 2, U32: 4, F16: 2, F32: 4, F64: 8 };

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
  user_encoder: { encodings: Encoding[] };
  item_encoder: { encodings: Encoding[] };
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

interface Place {
  dtype: string;
  shape: number[];
  offset: number;
}

/** `Float16Array`, which older browsers and Node lack. */
const NativeHalves = (globalThis as { Float16Array?: NewHalves }).Float16Array;
type NewHalves = new (buffer: ArrayBufferLike, at: number, count: number) => ArrayLike<number>;
type Numbers = Int8Array | Uint8Array | Uint16Array | Uint32Array | Float32Array | Float64Array;

export class StudentFile {
  readonly manifest: Manifest;
  readonly rounding: Rounding;
  readonly userEncoder: Encoder;
  readonly itemEncoder: Encoder;
  readonly #places: Record<string, Place>;

  private constructor(
    private readonly buffer: ArrayBuffer,
    private readonly start: number,
    header: { manifest: Manifest; rounding: Rounding; arrays: Record<string, Place> },
  ) {
    this.manifest = header.manifest;
    this.rounding = header.rounding;
    this.#places = header.arrays;
    const m = this.manifest;
    this.userEncoder = new Encoder(m.user_encoder.encodings);
    this.itemEncoder = new Encoder(m.item_encoder.encodings);
    check(m.dim >= 1 && m.items >= 1 && m.event_types.length >= 1, "has sizes below 1");
    const gap = m.visit_gap;
    check(gap === undefined || (Number.isFinite(gap) && gap > 0), "has an impossible visit_gap");
    check(
      this.has("earlier_ages") === (gap !== undefined),
      "has a visit_gap or weights of earlier visits, not both",
    );
    const inside = (positions: number[], size: number): boolean =>
      positions.every((n) => Number.isInteger(n) && n >= 0 && n < size);
    for (const golden of m.golden) {
      check(
        golden.items.length === golden.events.length &&
          golden.top_items.length === golden.top_scores.length &&
          inside(golden.items, m.items) &&
          inside(golden.top_items, m.items) &&
          inside(golden.events, m.event_types.length) &&
          inside(golden.user_features.map(([column]) => column), this.userEncoder.width),
        "has golden questions about what it does not have",
      );
      const { times, now } = golden;
      check(
        gap === undefined ||
          (times?.length === golden.items.length && [...times, now].every(Number.isFinite)),
        "has golden questions without times",
      );
    }
  }

  /** Throws BundleCorruptedError and BundleVersionError. */
  static async open(given: ArrayBuffer | Uint8Array): Promise<StudentFile> {
    // A copy: typed arrays need even places, and nobody else may change what has been checked.
    const bytes = new Uint8Array(given.byteLength);
    bytes.set(given instanceof Uint8Array ? given : new Uint8Array(given));
    check(
      bytes.length >= START && MARK.every((byte, n) => bytes[n] === byte),
      "is not a student in one file",
    );
    const view = new DataView(bytes.buffer);
    const version = view.getUint32(8, true);
    if (!VERSIONS.includes(version)) {
      throw new BundleVersionError(`the file has format ${version}; this package reads ${VERSIONS.join(" and ")}`, {
        fix: "upgrade the npm package distilrec, or export the file again",
      });
    }
    const told = bytes.slice(16, START);
    bytes.fill(0, 16, START);
    const found = await sha256(bytes);
    check(
      found.every((byte, n) => byte === told[n]),
      "is truncated or has been edited: its hash is another one",
    );
    const start = START + view.getUint32(12, true);
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(START, start));
      const header = JSON.parse(text);
      const kind = header.manifest.kind;
      if (!KINDS.includes(kind)) {
        throw new BundleVersionError(
          `the file has a student of kind '${kind}'; this package runs: ${KINDS.join(", ")}`,
          { fix: "upgrade the npm package distilrec" },
        );
      }
      return new StudentFile(bytes.buffer, start, header);
    } catch (problem) {
      throw asCorrupted(problem);
    }
  }

  get names(): string[] {
    return Object.keys(this.#places);
  }

  has(name: string): boolean {
    return Object.hasOwn(this.#places, name);
  }

  shape(name: string): number[] {
    check(this.has(name), `has no array '${name}'`);
    return this.#places[name].shape;
  }

  /** Return the numbers of an array. shape: what it must be. */
  array(name: string, shape?: number[]): Numbers {
    const { dtype, shape: own, offset } = (this.shape(name), this.#places[name]);
    const count = own.reduce((product, length) => product * length, 1);
    const at = this.start + offset;
    check(
      own.every((n) => Number.isInteger(n) && n >= 0) &&
        Number.isInteger(offset) && offset >= 0 && offset % 8 === 0 && this.start % 8 === 0 &&
        at + count * SIZES[dtype] <= this.buffer.byteLength,
      `has an impossible array '${name}'`,
    );
    check(
      shape === undefined || (shape.length === own.length && shape.every((n, i) => n === own[i])),
      `has an array '${name}' of another shape`,
    );
    switch (dtype) {
      case "I8":
        return new Int8Array(this.buffer, at, count);
      case "U8":
        return new Uint8Array(this.buffer, at, count);
      case "U16":
        return new Uint16Array(this.buffer, at, count);
      case "U32":
        return new Uint32Array(this.buffer, at, count);
      case "F16":
        return fromHalves(new Uint16Array(this.buffer, at, count));
      case "F32":
        return new Float32Array(this.buffer, at, count);
      case "F64":
        return new Float64Array(this.buffer, at, count);
      default:
        throw corrupted(`has an array of type ${dtype}`);
    }
  }

  /** Return finite weights of a shape. */
  weights(name: string, shape: number[]): Float32Array {
    const found = this.array(name, shape);
    check(found instanceof Float32Array, `has an array '${name}' of another type`);
    let nothing = 0; // NaN once there is a number that is not finite
    for (let n = 0; n < found.length; n++) nothing += 0 * found[n];
    check(nothing === 0, `holds NaN or infinity in '${name}'`);
    return found as Float32Array;
  }

  /** Return how to get the texts of an array, which are checked now and cut at the first call.
   * count: how many there must be.
   */
  texts(name: string, count?: number): () => string[] {
    const bytes = this.array(`${name}.text`) as Uint8Array;
    const lengths = this.array(`${name}.lengths`, count === undefined ? undefined : [count]);
    const whole = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    let [at, inside] = [0, false];
    for (let n = 0; n < lengths.length; n++) {
      inside ||= (bytes[at] & 0xc0) === 0x80; // not where a character begins
      at += lengths[n];
    }
    check(at === bytes.length && !inside, `cuts the texts '${name}' at the wrong places`);
    let cut: string[] | undefined;
    return () => (cut ??= cutTexts(whole, bytes, lengths));
  }
}

/** Return the texts that lie one after the other in `whole`. lengths: in bytes of UTF-8. */
function cutTexts(whole: string, bytes: Uint8Array, lengths: Numbers): string[] {
  const found: string[] = new Array(lengths.length);
  const ascii = whole.length === bytes.length;
  for (let n = 0, at = 0, from = 0; n < found.length; n++) {
    let to = from + lengths[n];
    if (!ascii) {
      to = from;
      for (const stop = at + lengths[n]; at < stop; at++) {
        const byte = bytes[at];
        if ((byte & 0xc0) !== 0x80) to += byte < 0xf0 ? 1 : 2; // of UTF-16
      }
    }
    found[n] = whole.slice(from, to);
    from = to;
  }
  return found;
}

export function check(holds: boolean, problem: string): void {
  if (!holds) throw corrupted(problem);
}

/** Return an error of ours as it is, and any other as one about the file. */
export function asCorrupted(problem: unknown): Error {
  if (problem instanceof Error && "code" in problem && "fix" in problem) return problem;
  return corrupted(`cannot be read: ${problem instanceof Error ? problem.message : problem}`);
}

/** Return the numbers of 16 bits (IEEE 754 binary16). */
function fromHalves(halves: Uint16Array): Float32Array {
  if (NativeHalves) return new Float32Array(new NativeHalves(halves.buffer, halves.byteOffset, halves.length));
  const numbers = new Float32Array(halves.length);
  const bits = new Uint32Array(numbers.buffer);
  for (let n = 0; n < halves.length; n++) {
    const half = halves[n];
    const finite = (half & 0x7c00) !== 0x7c00;
    bits[n] = finite ? ((half & 0x8000) << 16) | ((half & 0x7fff) << 13) : 0x7fc00000; // else NaN
  }
  // The exponent of a float32 counts from 112 further down.
  for (let n = 0; n < numbers.length; n++) numbers[n] *= 2 ** 112;
  return numbers;
}
