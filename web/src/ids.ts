/** One rule for ids, that of `distilrec.ids` in Python: 7 and "7" and " 7.0 " are one id. */

import { InvalidIdError } from "./errors.js";

export type Id = string | number | bigint;

const MAX_CHARACTERS = 256;
const SPACES = "[ \\u00a0\\u1680\\u2000-\\u200a\\u202f\\u205f\\u3000]+";
const AT_ENDS = new RegExp(`^${SPACES}|${SPACES}$`, "g");
const REFUSED = /[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]|\p{Surrogate}/u;
const WHOLE_FLOAT = /^(-?(?:0|[1-9][0-9]*))\.0+$/;
const LARGEST = 2n ** 53n;

/** Return the text of an id. what: names the id in the error. */
export function asId(value: unknown, what: string): string {
  if (typeof value === "string") return checked(value, what);
  if (typeof value === "bigint") return checked(String(value), what);
  if (typeof value === "number") {
    if (!Number.isInteger(value)) throw invalid(value, what, "is not a whole number");
    if (!Number.isSafeInteger(value)) {
      throw invalid(value, what, "is so large that several integers are the same");
    }
    return String(value === 0 ? 0 : value);
  }
  const is = value === null || value === undefined ? "is missing" : `is a ${typeof value}`;
  throw invalid(value, what, is);
}

/** Return ids as a list. Throws InvalidIdError for one id where a list belongs. */
export function listedIds(values: unknown, what: string): unknown[] {
  const iterable = Object(values)[Symbol.iterator];
  if (typeof values === "string" || typeof iterable !== "function") {
    throw new InvalidIdError(`${what} is ${shown(values)}, not a list of ids`, {
      fix: `give a list, such as [${shown(values)}]`,
      parameter: what,
    });
  }
  return [...(values as Iterable<unknown>)];
}

function checked(given: string, what: string): string {
  const found = REFUSED.exec(given);
  if (found) {
    const code = found[0].codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0");
    throw invalid(given, what, `holds the character U+${code}`);
  }
  const text = given.replace(AT_ENDS, "");
  if (!text) throw invalid(text, what, "is empty");
  const length = [...text].length;
  if (length > MAX_CHARACTERS) throw invalid(text, what, `has ${length} characters`);
  const whole = WHOLE_FLOAT.exec(text);
  if (!whole) return text;
  const number = BigInt(whole[1]);
  if (number >= LARGEST || number <= -LARGEST) {
    throw invalid(text, what, "is so large that several integers are the same");
  }
  return String(number);
}

/** Return how a value is shown in a message: short. */
export function shown(value: unknown): string {
  const text = typeof value === "string" ? `'${value}'` : String(value);
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}

function invalid(value: unknown, what: string, problem: string): InvalidIdError {
  return new InvalidIdError(`the ${what} ${shown(value)} ${problem}`, {
    fix: `give a whole number, or text of 1 to ${MAX_CHARACTERS} characters without control characters`,
    parameter: what,
  });
}
