/** Keeps the users of a recommender in IndexedDB: one log, in one order for all tabs.
 *
 * Every change is one transaction, which also reads what other tabs have written since. So a change is written whole or
 * not at all, and every tab folds the same events in the same order.
 */

import {
  ConfigError,
  DistilrecError,
  StoreCorruptedError,
  StoreUnavailableError,
  StoreVersionError,
} from "./errors.js";
import type { Features } from "./features.js";
import { asId, shown, type Id } from "./ids.js";
import { IMPRESSION, type Event, type Recommender, type State, type UpdateResult } from "./recommender.js";

const VERSION = 1;
const [LOG, META, CLEARED] = ["log", "meta", "cleared"];

export interface StoreOptions {
  /** Of the database; "distilrec" by default. */
  name?: string;
  /** Called after the recommender has followed what another tab has written. */
  changed?: () => void;
}

/** A row of the log: an event, which earlier versions wrote without its time, or the features of a user, of which the
 * latest count.
 */
type Entry = { place: number; user: string } & (
  | { item: string; type: string; time?: number }
  | { features: Features }
);
type Write = (log: IDBObjectStore, meta: IDBObjectStore) => Promise<unknown> | void;

/** Return a store for the users of a recommender, which are from now on those of the store.
 *
 * Throws StoreUnavailableError where the browser keeps nothing for this page, StoreVersionError and StoreCorruptedError.
 */
export async function openStore(
  recommender: Recommender, options: StoreOptions = {},
): Promise<UserStore> {
  const name = asId(options.name ?? "distilrec", "name");
  const store = new UserStore(recommender, await opened(name), options.changed);
  try {
    await store.refresh();
  } catch (problem) {
    store.close();
    throw problem;
  }
  return store;
}

/** Delete a store with all users, also one that cannot be opened. Stores that are open are closed. */
export async function deleteStore(name: string = "distilrec"): Promise<void> {
  try {
    const request = factory().deleteDatabase(asId(name, "name"));
    await new Promise((resolve, reject) => {
      request.onsuccess = resolve;
      request.onerror = () => reject(request.error);
    });
  } catch (problem) {
    throw typed(problem, name);
  }
}

export class UserStore {
  readonly #recommender: Recommender;
  readonly #database: IDBDatabase;
  readonly #channel: BroadcastChannel | null;
  /** Calls wait for those before them. */
  #queue: Promise<unknown> = Promise.resolve();
  /** The last row of the log that the recommender has followed. */
  #last = 0;
  /** How often rows were deleted; another number than before: all rows are read again. */
  #cleared = -1;

  /** Callers use `openStore`. */
  constructor(recommender: Recommender, database: IDBDatabase, changed?: () => void) {
    this.#recommender = recommender;
    this.#database = database;
    // Another tab deletes the database, or replaces it by one of a newer version.
    database.onversionchange = () => this.close();
    this.#channel =
      typeof BroadcastChannel === "function" ? new BroadcastChannel(`distilrec ${database.name}`) : null;
    if (this.#channel) {
      this.#channel.onmessage = async () => {
        try {
          if (await this.refresh()) changed?.();
        } catch {
          // The next call of the page meets the same problem and throws it.
        }
      };
    }
  }

  /** Write events, oldest first, and follow them once they are on disk: all or none.
   *
   * Events on items that the student does not know are kept for a later student, impressions are not kept.
   */
  async update(events: Iterable<Event>): Promise<UpdateResult> {
    const rows = this.#recommender.checked(events).filter(([, , type]) => type !== IMPRESSION);
    const applied = rows.filter(([, item]) => this.#recommender.knowsItem(item)).length;
    await this.#change((log) => {
      for (const [user, item, type, time] of rows) log.add({ user, item, type, time });
    });
    return { applied, unknown_items: rows.length - applied };
  }

  /** Write the features of a user in place of those before. */
  async setUser(user_id: Id, features: Features): Promise<void> {
    const user = asId(user_id, "user_id");
    this.#recommender.checkFeatures(features);
    const kept = copied(features);
    await this.#change(async (log) => {
      const rows: Entry[] = await answered(log.index("user").getAll(user));
      for (const row of rows) if ("features" in row) log.delete(row.place);
      log.add({ user, features: kept });
    });
  }

  /** Delete all that is kept of a user. */
  async forget(user_id: Id): Promise<void> {
    const user = asId(user_id, "user_id");
    await this.#change(async (log, meta) => {
      for (const place of await answered(log.index("user").getAllKeys(user))) log.delete(place);
      await noteCleared(meta);
    });
  }

  /** Delete all that is kept of all users. */
  async clear(): Promise<void> {
    await this.#change(async (log, meta) => {
      log.clear();
      await noteCleared(meta);
    });
  }

  /** Follow what other tabs have written; return whether there was anything. It also happens by itself. */
  refresh(): Promise<boolean> {
    return this.#queued(() => this.#transact(null));
  }

  /** Keep nothing from now on; later calls throw StoreUnavailableError. What is written stays. */
  close(): void {
    this.#channel?.close();
    this.#database.close();
  }

  async #change(write: Write): Promise<void> {
    await this.#queued(() => this.#transact(write));
    this.#channel?.postMessage(null);
  }

  #queued<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(action);
    this.#queue = result.catch(() => {});
    return result;
  }

  /** Write, read what is new in the log, and follow it after the commit; return whether there was anything. */
  async #transact(write: Write | null): Promise<boolean> {
    const name = this.#database.name;
    let rows: Entry[];
    let cleared: number;
    try {
      const mode = write ? "readwrite" : "readonly";
      const transaction = this.#database.transaction([LOG, META], mode, { durability: "strict" });
      const committed = completion(transaction);
      try {
        const [log, meta] = [transaction.objectStore(LOG), transaction.objectStore(META)];
        if (write) await write(log, meta);
        cleared = (await answered(meta.get(CLEARED))) ?? 0;
        const after = cleared === this.#cleared ? IDBKeyRange.lowerBound(this.#last, true) : null;
        rows = await answered(log.getAll(after));
      } catch (problem) {
        // Where the transaction failed by itself, its own error says why.
        abort(transaction);
        await committed;
        throw problem;
      }
      await committed;
    } catch (problem) {
      throw typed(problem, name);
    }
    return this.#follow(rows, cleared);
  }

  #follow(rows: Entry[], cleared: number): boolean {
    const all = cleared !== this.#cleared;
    if (!all && !rows.length) return false;
    try {
      if (all) this.#recommender.restore(stateOf(rows));
      else this.#followNew(rows);
    } catch (problem) {
      throw new StoreCorruptedError(
        `the store '${this.#database.name}' holds rows that this package did not write: ${problem}`,
        { fix: "delete it (deleteStore) and open it again" },
      );
    }
    this.#cleared = cleared;
    this.#last = rows.at(-1)?.place ?? this.#last;
    return true;
  }

  #followNew(rows: Entry[]): void {
    const events = rows.flatMap((row) =>
      "features" in row
        ? []
        : [{ user_id: row.user, item_id: row.item, event_type: row.type, timestamp: row.time }],
    );
    this.#recommender.followKept(events);
    for (const row of rows) {
      if ("features" in row) {
        this.#recommender.setUser(row.user, this.#recommender.knownFeatures(row.features));
      }
    }
  }
}

function stateOf(rows: Entry[]): State {
  const users = new Map<string, State["users"][string]>();
  for (const row of rows) {
    const user = users.get(row.user) ?? { events: [] };
    users.set(row.user, user);
    if ("features" in row) user.features = row.features;
    else user.events.push(row.time === undefined ? [row.item, row.type] : [row.item, row.type, row.time]);
  }
  return { format: 1, users: Object.fromEntries(users) };
}

async function noteCleared(meta: IDBObjectStore): Promise<void> {
  meta.put(((await answered(meta.get(CLEARED))) ?? 0) + 1, CLEARED);
}

function copied(features: Features): Features {
  try {
    return structuredClone(features);
  } catch {
    throw new ConfigError("the features hold what cannot be kept, such as a function", {
      fix: "give numbers, texts and lists",
      parameter: "features",
    });
  }
}

function factory(): IDBFactory {
  const found = globalThis.indexedDB;
  if (!found) throw new DOMException("there is no IndexedDB here", "SecurityError");
  return found;
}

async function opened(name: string): Promise<IDBDatabase> {
  try {
    const request = factory().open(name, VERSION);
    request.onupgradeneeded = () => {
      const log = request.result.createObjectStore(LOG, { keyPath: "place", autoIncrement: true });
      log.createIndex("user", "user");
      request.result.createObjectStore(META);
    };
    const database = await answered(request);
    const names = database.objectStoreNames;
    if (names.contains(LOG) && names.contains(META)) return database;
    database.close();
  } catch (problem) {
    throw typed(problem, name);
  }
  throw new StoreCorruptedError(`the database '${name}' was not made by distilrec`, {
    fix: "choose another name",
    parameter: "name",
  });
}

function answered<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function completion(transaction: IDBTransaction): Promise<void> {
  const committed = new Promise<void>((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new DOMException("aborted", "AbortError"));
  });
  committed.catch(() => {}); // It is awaited later.
  return committed;
}

function abort(transaction: IDBTransaction): void {
  try {
    transaction.abort();
  } catch {
    // It has failed already.
  }
}

/** Return an error of ours as it is, and one of IndexedDB as one of ours. */
function typed(problem: unknown, name: string): Error {
  if (problem instanceof DistilrecError) return problem;
  const what = problem instanceof Error ? problem.name : shown(problem);
  if (what === "VersionError") {
    return new StoreVersionError(`the store '${name}' was written by a newer version of the package`, {
      fix: "upgrade the npm package distilrec, or delete the store (deleteStore)",
    });
  }
  const [reason, fix] = REASONS[what] ?? ["failed", "try again, or load the page again"];
  const details = problem instanceof Error ? problem.message : what;
  return new StoreUnavailableError(`the store '${name}' cannot be used (${reason}): ${details}`, {
    fix: `${fix}; nothing was written`,
    reason,
  });
}

const REASONS: Record<string, [reason: string, fix: string]> = {
  QuotaExceededError: ["full", "free space on the device, or clear the store"],
  SecurityError: ["denied", "allow the page to keep data, or use the recommender without a store"],
  InvalidStateError: ["closed", "open the store again"],
};
