/** The times of events and questions, and visits, as `distilrec.engine.moments` and `.visits` in Python say it. */

import { ConfigError } from "./errors.js";
import { shown } from "./ids.js";

/** Seconds that the clock of a sender may be ahead. */
const MAX_CLOCK_SKEW = 300;
/** The time of the last event of a user without events. */
export const NEVER = -Infinity;

/** Return the time of the clock in seconds since 1970. */
export function clock(): number {
  return Date.now() / 1_000;
}

/** Return a time in seconds since 1970, null where none is given. latest: the last one that is possible. */
export function asMoment(given: unknown, parameter: string, latest = clock() + MAX_CLOCK_SKEW): number | null {
  if (given === undefined || given === null) return null;
  if (typeof given === "number" && given >= 0 && given <= latest && given < Infinity) return given;
  throw new ConfigError(`${parameter} is ${shown(given)}, which is not a time between 1970 and now (seconds)`, {
    fix: "convert milliseconds to seconds, or leave it out: then it is the time of the clock",
    parameter,
  });
}

/** Throw for a question from before the last event of a user, by more than clocks may differ. */
export function checkNotBefore(now: number, last: number): void {
  if (now >= last - MAX_CLOCK_SKEW) return;
  throw new ConfigError(`now is ${now}, and the last event of this user happened later`, {
    fix: "give a time after the user's events, or leave now out: then it is the time of the clock",
    parameter: "now",
  });
}

/** Return whether what happens at a time belongs to the visit whose last event happened at another. */
export function goesOn(last: number, when: number, gap: number): boolean {
  return last !== NEVER && Math.floor(when) - Math.floor(last) < gap;
}

/** Return how many of the events at these times, oldest first, are those of the last visit. */
export function eventsOfVisit(times: number[], gap: number): number {
  let count = Math.min(times.length, 1);
  while (count < times.length && goesOn(times[times.length - count - 1], times[times.length - count], gap)) count++;
  return count;
}
