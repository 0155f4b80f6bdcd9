/** Runs a student that distilrec has distilled, in a browser, a worker or Node. */
import { Recommender, type Options } from "./recommender.js";
export { BundleCorruptedError, BundleMissingError, BundleVersionError, ColumnTypeError, ConfigError, DistilrecError, DownloadError, InvalidIdError, InvalidValueError, StoreCorruptedError, StoreError, StoreUnavailableError, StoreVersionError, UnknownItemError, } from "./errors.js";
export type { Features } from "./features.js";
export type { Manifest, Rounding } from "./file.js";
export type { Attributes, Condition, Filter, Value } from "./filters.js";
export type { Id } from "./ids.js";
export { Recommender, type Contribution, type Event, type Item, type ItemRecord, type Options, type QuestionOptions, type Recommendation, type RecommendOptions, type State, type UpdateResult, } from "./recommender.js";
export { deleteStore, openStore, UserStore, type StoreOptions } from "./store.js";
/** Return a recommender from a file that `distilrec export --web` wrote: its address or its bytes.
 *
 * The hash is checked and the golden answers are reproduced before anything else. Throws
 * BundleMissingError, DownloadError, BundleCorruptedError and BundleVersionError.
 */
export declare function load(source: string | URL | ArrayBuffer | Uint8Array, options?: Options): Promise<Recommender>;
