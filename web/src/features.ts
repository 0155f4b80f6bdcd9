/** Features as numbers, as `distilrec.features.encoding` in Python encodes them. */

import { ColumnTypeError, ConfigError, InvalidValueError } from "./errors.js";
import { shown } from "./ids.js";
import { parseList } from "./lists.js";

export type Features = Record<string, unknown>;
/** Pairs of a column and its weight. */
export type Bag = [number, number][];

export type Encoding =
  | { kind: "categorical"; name: string; values: string[] }
  | { kind: "multi"; name: string; values: string[]; separator?: string }
  | { kind: "numeric"; name: string; quantiles: number[] }
  | { kind: "text"; name: string; buckets: number }
  | { kind: "vector"; name: string; width: number; separator?: string };

const DERIVED = ["popularity", "sales_volume"];
const WHITE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
const AT_ENDS = new RegExp(`^${WHITE}|${WHITE}$`, "g");
const FLOAT = /^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$/;
const NOT_FINITE = /^[-+]?(?:inf|infinity|nan)$/i;

export function widthOf(encoding: Encoding): number {
  switch (encoding.kind) {
    case "categorical":
    case "multi":
      return 1 + encoding.values.length;
    case "numeric":
      return 2;
    case "text":
      return encoding.buckets;
    case "vector":
      return encoding.width;
  }
}

/** The encodings of users or of items, side by side. */
export class Encoder {
  readonly names: Set<string>;
  readonly #slots = new Map<string, Map<string, number>>();

  constructor(readonly encodings: Encoding[]) {
    this.names = new Set(encodings.map((encoding) => encoding.name));
    for (const encoding of encodings) {
      if (encoding.kind !== "categorical" && encoding.kind !== "multi") continue;
      const slots = new Map<string, number>();
      encoding.values.forEach((value, n) => {
        if (value === "True" || value === "False") slots.set(value.toLowerCase(), n + 1);
      });
      encoding.values.forEach((value, n) => slots.set(value, n + 1));
      this.#slots.set(encoding.name, slots);
    }
  }

  get width(): number {
    return this.encodings.reduce((sum, encoding) => sum + widthOf(encoding), 0);
  }

  /** Throws ConfigError for a feature that the model does not have. */
  check(features: unknown, entity: string): Features {
    if (typeof features !== "object" || features === null || Array.isArray(features)) {
      throw new ConfigError(`the features of the ${entity} are ${shown(features)}`, {
        fix: "give an object of values by name",
        parameter: "features",
      });
    }
    const wrong = Object.keys(features).filter(
      (name) => !this.names.has(name) && !DERIVED.includes(name),
    );
    if (wrong.length) {
      const known = [...this.names].sort().join(", ") || "none";
      throw new ConfigError(`the file has no ${entity} feature '${wrong.sort()[0]}'; it has: ${known}`, {
        fix: "correct the name",
        parameter: wrong[0],
      });
    }
    return features as Features;
  }

  /** Return the features of a new item with those that a log would have given. */
  withDerived(features: Features): Features {
    const derived: Features = {};
    for (const name of DERIVED) {
      derived[this.names.has(`${name}_in_log`) ? `${name}_in_log` : name] = 0;
    }
    return { ...derived, ...features };
  }

  encode(row: Features): Bag {
    const bag: Bag = [];
    let start = 0;
    for (const encoding of this.encodings) {
      const given = Object.hasOwn(row, encoding.name) ? row[encoding.name] : null;
      this.#encode(encoding, given === undefined ? null : given, start, bag);
      start += widthOf(encoding);
    }
    return bag;
  }

  #encode(e: Encoding, value: unknown, start: number, bag: Bag): void {
    switch (e.kind) {
      case "categorical":
        bag.push([start + (value === null ? 0 : this.#slot(e.name, asCategory(value))), 1]);
        return;
      case "multi": {
        const slots = new Set(asParts(value, e.separator).map((part) => this.#slot(e.name, part)));
        if (!slots.size) slots.add(0);
        spread(slots, start, bag);
        return;
      }
      case "numeric":
        bag.push(value === null ? [start + 1, 1] : [start, quantile(e.quantiles, asNumber(e.name, value))]);
        return;
      case "text": {
        const words = printed(value || "").toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [];
        spread(new Set(words.map((word) => crc32(word) % e.buckets)), start, bag);
        return;
      }
      case "vector":
        if (e.width) asVector(e, value).forEach((number, n) => bag.push([start + n, number]));
    }
  }

  #slot(name: string, value: string): number {
    return this.#slots.get(name)!.get(value) ?? 0;
  }
}

function spread(columns: Set<number>, start: number, bag: Bag): void {
  const weight = 1 / Math.sqrt(columns.size);
  for (const column of [...columns].sort((a, b) => a - b)) bag.push([start + column, weight]);
}

/** Return what Python prints of a value. */
function printed(value: unknown): string {
  if (Array.isArray(value)) return value.map(printed).join(", ");
  if (value === null || value === undefined) return "None";
  return typeof value === "number" ? floatText(value) : String(value);
}

/** Return a number as Python writes a float that is no whole number. */
function floatText(value: number): string {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-4 && size < 1e16)) return String(value);
  const [digits, exponent] = value.toExponential().split("e");
  return `${digits}e${exponent.replace(/^([-+])(\d)$/, "$10$2")}`;
}

/** Return the text of a categorical value. */
export function asCategory(value: unknown): string {
  if (typeof value === "number") {
    return Number.isInteger(value) ? BigInt(value).toString() : floatText(value);
  }
  return String(value).replace(AT_ENDS, "");
}

/** Return the values of a cell that may hold several. */
export function asParts(value: unknown, separator = "|"): string[] {
  if (value === null || value === undefined) return [];
  const raw = typeof value === "string" ? split(value, separator) : value;
  const parts = Array.isArray(raw) || raw instanceof Set ? [...raw] : [raw];
  return parts
    .filter((part) => part !== null && part !== undefined)
    .map(asCategory)
    .filter((text) => text !== "");
}

function split(text: string, separator: string): string[] {
  return parseList(text) ?? text.split(separator);
}

function asNumber(name: string, value: unknown): number {
  let number = typeof value === "number" || typeof value === "boolean" ? Number(value) : null;
  if (typeof value === "string") {
    const text = value.replace(AT_ENDS, "");
    number = FLOAT.test(text) ? Number(text) : NOT_FINITE.test(text) ? NaN : null;
  }
  if (number === null) {
    throw new ColumnTypeError(`feature '${name}' is numeric, but holds ${shown(value)}`, {
      fix: "give a number",
      column: name,
      value,
    });
  }
  if (!Number.isFinite(number)) {
    throw new InvalidValueError(`feature '${name}' holds ${number}`, {
      fix: "leave the value out where it is not known",
      column: name,
    });
  }
  return number;
}

function asVector(e: { name: string; width: number; separator?: string }, given: unknown): number[] {
  if (given === null) return [];
  const value = typeof given === "string" ? split(given, e.separator ?? "|") : given;
  if (!Array.isArray(value)) {
    throw new ColumnTypeError(`feature '${e.name}' is a vector, but holds ${shown(value)}`, {
      fix: "give a list of numbers",
      column: e.name,
    });
  }
  if (value.length !== e.width) {
    throw new InvalidValueError(
      `feature '${e.name}' holds a vector of ${value.length} numbers, others hold ${e.width}`,
      { fix: "give vectors of one length", column: e.name },
    );
  }
  return value.map((part) => asNumber(e.name, part));
}

/** Linear interpolation from the quantiles to equally spaced levels from -1 to 1. */
function quantile(quantiles: number[], number: number): number {
  const last = quantiles.length - 1;
  const level = (n: number): number => (last === 0 ? -1 : n === last ? 1 : -1 + (n * 2) / last);
  if (number < quantiles[0]) return level(0);
  if (number >= quantiles[last]) return level(last);
  let [low, high] = [0, last];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (quantiles[middle] <= number) low = middle;
    else high = middle;
  }
  const slope = (level(low + 1) - level(low)) / (quantiles[low + 1] - quantiles[low]);
  return slope * (number - quantiles[low]) + level(low);
}

function crc32(text: string): number {
  let crc = ~0;
  for (const byte of new TextEncoder().encode(text)) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
