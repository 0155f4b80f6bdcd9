/** Keeps the users of a recommender in IndexedDB: one log, in one order for all tabs.
 *
 * Every change is one transaction, which also reads what other tabs have written since. So a change is written whole or
 * not at all, and every tab folds the same events in the same order.
 */
import type { Features } from "./features.js";
import { type Id } from "./ids.js";
import { type Event, type Recommender, type UpdateResult } from "./recommender.js";
export interface StoreOptions {
    /** Of the database; "distilrec" by default. */
    name?: string;
    /** Called after the recommender has followed what another tab has written. */
    changed?: () => void;
}
/** Return a store for the users of a recommender, which are from now on those of the store.
 *
 * Throws StoreUnavailableError where the browser keeps nothing for this page, StoreVersionError and StoreCorruptedError.
 */
export declare function openStore(recommender: Recommender, options?: StoreOptions): Promise<UserStore>;
/** Delete a store with all users, also one that cannot be opened. Stores that are open are closed. */
export declare function deleteStore(name?: string): Promise<void>;
export declare class UserStore {
    #private;
    /** Callers use `openStore`. */
    constructor(recommender: Recommender, database: IDBDatabase, changed?: () => void);
    /** Write events, oldest first, and follow them once they are on disk: all or none.
     *
     * Events on items that the student does not know are kept for a later student, impressions are not kept.
     */
    update(events: Iterable<Event>): Promise<UpdateResult>;
    /** Write the features of a user in place of those before. */
    setUser(user_id: Id, features: Features): Promise<void>;
    /** Delete all that is kept of a user. */
    forget(user_id: Id): Promise<void>;
    /** Delete all that is kept of all users. */
    clear(): Promise<void>;
    /** Follow what other tabs have written; return whether there was anything. It also happens by itself. */
    refresh(): Promise<boolean>;
    /** Keep nothing from now on; later calls throw StoreUnavailableError. What is written stays. */
    close(): void;
}
