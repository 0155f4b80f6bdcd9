/** The times of events and questions, and visits, as `distilrec.engine.moments` and `.visits` in Python say it. */
/** The time of the last event of a user without events. */
export declare const NEVER: number;
/** Return the time of the clock in seconds since 1970. */
export declare function clock(): number;
/** Return a time in seconds since 1970, null where none is given. latest: the last one that is possible. */
export declare function asMoment(given: unknown, parameter: string, latest?: number): number | null;
/** Throw for a question from before the last event of a user, by more than clocks may differ. */
export declare function checkNotBefore(now: number, last: number): void;
/** Return whether what happens at a time belongs to the visit whose last event happened at another. */
export declare function goesOn(last: number, when: number, gap: number): boolean;
/** Return how many of the events at these times, oldest first, are those of the last visit. */
export declare function eventsOfVisit(times: number[], gap: number): number;
