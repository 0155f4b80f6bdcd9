/** Which items may be recommended, as `distilrec.engine.filters` in Python says it. */

import { ConfigError } from "./errors.js";
import { asCategory, asParts } from "./features.js";
import { asCorrupted, check, type StudentFile } from "./file.js";
import { asId, listedIds, shown } from "./ids.js";

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

const CONDITION = ["any_of", "none_of", "min", "max"];
const FILTER = ["attributes", "allow", "deny"];

export class Filters {
  readonly numbers = new Map<string, number[]>();
  readonly categories = new Map<string, Map<string, Set<number>>>();
  readonly separators = new Map<string, string>();
  readonly #blocked = new Set<number>();
  #count: number;

  /** index: positions of the items by id, which the catalogue goes on changing. */
  constructor(file: StudentFile, private readonly index: Map<string, number>) {
    this.#count = file.manifest.items;
    try {
      for (const key of file.names) this.#read(file, key);
    } catch (problem) {
      throw asCorrupted(problem);
    }
  }

  #read(file: StudentFile, key: string): void {
    const at = key.indexOf(":");
    const [kind, name] = [key.slice(0, at), key.slice(at + 1)];
    if (kind === "number") {
      this.numbers.set(name, Array.from(file.array(key, [this.#count])));
    } else if (kind === "separator") {
      this.separators.set(name, new TextDecoder().decode(file.array(key) as Uint8Array));
    } else if (kind === "members") {
      const members = file.array(key);
      const sizes = file.array(`sizes:${name}`);
      const texts = file.texts(`category:${name}`)();
      check(
        texts.length === sizes.length && members.every((item) => item < this.#count),
        `holds attributes that do not fit: ${name}`,
      );
      let stop = 0;
      const index = new Map<string, Set<number>>();
      texts.forEach((text, n) => {
        index.set(text, new Set(members.subarray(stop, (stop += sizes[n]))));
      });
      check(stop === members.length, `cuts attribute '${name}' at the wrong places`);
      this.categories.set(name, index);
    }
  }

  get names(): string[] {
    return [...this.numbers.keys(), ...this.categories.keys()].sort();
  }

  /** Return the attributes that an item has. */
  of(item: number): Attributes {
    const found: Attributes = {};
    for (const [name, column] of this.numbers) {
      if (!Number.isNaN(column[item])) found[name] = column[item];
    }
    for (const [name, index] of this.categories) {
      const has = [...index].filter(([, members]) => members.has(item)).map(([text]) => text);
      if (has.length) found[name] = has;
    }
    return found;
  }

  append(): void {
    this.#count += 1;
    for (const column of this.numbers.values()) column.push(NaN);
  }

  isAvailable(item: number): boolean {
    return !this.#blocked.has(item);
  }

  setAvailable(item: number, available: boolean): void {
    if (available) this.#blocked.delete(item);
    else this.#blocked.add(item);
  }

  /** Throw the ConfigError that `change` would throw. */
  check(values: Record<string, Value>): void {
    for (const [name, value] of Object.entries(values)) {
      if (value === null) continue;
      const number = typeof value === "number";
      if (number && !Number.isFinite(value)) {
        throw new ConfigError(`attribute '${name}' is ${value}`, {
          fix: "give a finite number or null",
          parameter: name,
        });
      }
      if ((this.numbers.has(name) && !number) || (this.categories.has(name) && number)) {
        const [kind, other] = number ? ["categorical", "a number"] : ["numeric", "text"];
        throw new ConfigError(
          `attribute '${name}' is ${kind}, but the value is ${other}: ${shown(value)}`,
          { fix: "give a value of that kind, or use another name", parameter: name },
        );
      }
    }
  }

  /** Set attributes of an item; null removes one. */
  change(item: number, values: Record<string, Value>): void {
    this.check(values);
    for (const [name, value] of Object.entries(values)) {
      if (this.numbers.has(name) || (typeof value === "number" && !this.categories.has(name))) {
        let column = this.numbers.get(name);
        if (!column) this.numbers.set(name, (column = new Array(this.#count).fill(NaN)));
        column[item] = value === null ? NaN : (value as number);
        continue;
      }
      let index = this.categories.get(name);
      if (!index) this.categories.set(name, (index = new Map()));
      for (const members of index.values()) members.delete(item);
      const wanted = value === null ? [] : Array.isArray(value) ? asParts(value) : [asCategory(value)];
      for (const category of wanted) {
        const members = index.get(category);
        if (members) members.add(item);
        else index.set(category, new Set([item]));
      }
    }
  }

  /** Return 1 for every item that may be recommended; null where all may. */
  mask(chosen: Filter | null | undefined): Uint8Array | null {
    if ((chosen === null || chosen === undefined) && !this.#blocked.size) return null;
    const mask = new Uint8Array(this.#count).fill(1);
    for (const item of this.#blocked) mask[item] = 0;
    if (chosen === null || chosen === undefined) return mask;
    onlyKnown(chosen, FILTER, "filter");
    for (const [name, condition] of Object.entries(chosen.attributes ?? {})) {
      const where = `filter.attributes.${name}`;
      onlyKnown(condition, CONDITION, where);
      if (this.numbers.has(name)) this.#inRange(mask, name, condition);
      else if (this.categories.has(name)) this.#inCategories(mask, name, condition);
      else {
        const known = this.names.join(", ") || "none";
        throw new ConfigError(`no item has an attribute '${name}'; known: ${known}`, {
          fix: "correct the name",
          parameter: where,
        });
      }
    }
    if (chosen.allow !== null && chosen.allow !== undefined) {
      const allowed = new Set(this.#places(chosen.allow, "filter.allow"));
      for (let item = 0; item < mask.length; item++) if (!allowed.has(item)) mask[item] = 0;
    }
    for (const item of this.#places(chosen.deny ?? [], "filter.deny")) mask[item] = 0;
    return mask;
  }

  #inRange(mask: Uint8Array, name: string, condition: Condition): void {
    if (given(condition.any_of) || condition.none_of?.length) {
      throw wrongKind(name, "numeric", "min and max");
    }
    const [low, high] = [limit(name, condition.min, -Infinity), limit(name, condition.max, Infinity)];
    this.numbers.get(name)!.forEach((value, item) => {
      if (!(value >= low && value <= high)) mask[item] = 0;
    });
  }

  #inCategories(mask: Uint8Array, name: string, condition: Condition): void {
    if (given(condition.min) || given(condition.max)) {
      throw wrongKind(name, "categorical", "any_of and none_of");
    }
    const index = this.categories.get(name)!;
    const members = (chosen: unknown): Set<number> => {
      if (!Array.isArray(chosen)) {
        throw new ConfigError(
          `the condition on '${name}' has ${shown(chosen)} where a list of categories belongs`,
          { fix: `give a list: [${shown(chosen)}]`, parameter: `filter.attributes.${name}` },
        );
      }
      const found = new Set<number>();
      for (const category of chosen.map(asCategory)) {
        for (const item of index.get(category) ?? []) found.add(item);
      }
      return found;
    };
    if (given(condition.any_of)) {
      const passing = members(condition.any_of);
      for (let item = 0; item < mask.length; item++) if (!passing.has(item)) mask[item] = 0;
    }
    for (const item of members(condition.none_of ?? [])) mask[item] = 0;
  }

  #places(ids: unknown, what: string): number[] {
    return listedIds(ids, what)
      .map((id) => this.index.get(asId(id, what)))
      .filter((place) => place !== undefined);
  }
}

function given(value: unknown): boolean {
  return value !== null && value !== undefined;
}

function limit(name: string, value: number | null | undefined, none: number): number {
  if (!given(value)) return none;
  if (typeof value === "number" && !Number.isNaN(value)) return value;
  throw new ConfigError(`the condition on '${name}' has ${shown(value)} where a number belongs`, {
    fix: "give a number",
    parameter: `filter.attributes.${name}`,
  });
}

/** Throw ConfigError for what is no object, or has a field that does not exist. */
export function onlyKnown(value: unknown, fields: string[], what: string): void {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new ConfigError(`${what} is ${shown(value)}`, { fix: "give an object", parameter: what });
  }
  const wrong = Object.keys(value).find((name) => !fields.includes(name));
  if (wrong === undefined) return;
  throw new ConfigError(`${what} has no field '${wrong}'; it has: ${fields.join(", ")}`, {
    fix: "correct the name",
    parameter: what,
  });
}

function wrongKind(name: string, kind: string, allowed: string): ConfigError {
  return new ConfigError(`attribute '${name}' is ${kind}: it can be filtered by ${allowed} only`, {
    fix: "use a condition of that kind",
    parameter: `filter.attributes.${name}`,
  });
}
