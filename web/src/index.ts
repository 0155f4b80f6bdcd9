/** Runs a student that distilrec has distilled, in a browser, a worker or Node. */

import { BundleMissingError, ConfigError, DownloadError } from "./errors.js";
import { StudentFile } from "./file.js";
import { shown } from "./ids.js";
import { Recommender, type Options } from "./recommender.js";

export {
  BundleCorruptedError,
  BundleMissingError,
  BundleVersionError,
  ColumnTypeError,
  ConfigError,
  DistilrecError,
  DownloadError,
  InvalidIdError,
  InvalidValueError,
  StoreCorruptedError,
  StoreError,
  StoreUnavailableError,
  StoreVersionError,
  UnknownItemError,
} from "./errors.js";
export type { Features } from "./features.js";
export type { Manifest, Rounding } from "./file.js";
export type { Attributes, Condition, Filter, Value } from "./filters.js";
export type { Id } from "./ids.js";
export {
  Recommender,
  type Contribution,
  type Event,
  type Item,
  type ItemRecord,
  type Options,
  type QuestionOptions,
  type Recommendation,
  type RecommendOptions,
  type State,
  type UpdateResult,
} from "./recommender.js";
export { deleteStore, openStore, UserStore, type StoreOptions } from "./store.js";

/** Return a recommender from a file that `distilrec export --web` wrote: its address or its bytes.
 *
 * The hash is checked and the golden answers are reproduced before anything else. Throws
 * BundleMissingError, DownloadError, BundleCorruptedError and BundleVersionError.
 */
export async function load(
  source: string | URL | ArrayBuffer | Uint8Array, options: Options = {},
): Promise<Recommender> {
  const bytes =
    typeof source === "string" || source instanceof URL ? await fetched(source) : source;
  if (!(bytes instanceof ArrayBuffer) && !(bytes instanceof Uint8Array)) {
    throw new ConfigError(`the source is ${shown(bytes)}`, {
      fix: "give an address, an ArrayBuffer or a Uint8Array",
      parameter: "source",
    });
  }
  return new Recommender(await StudentFile.open(bytes), options);
}

async function fetched(address: string | URL): Promise<ArrayBuffer> {
  let response: Response;
  try {
    response = await fetch(address);
    if (response.ok) return await response.arrayBuffer();
  } catch (problem) {
    throw new DownloadError(`${address} cannot be fetched: ${problem}`, {
      fix: "check the address and the network; in Node give the bytes of the file",
    });
  }
  if (response.status === 404 || response.status === 410) {
    throw new BundleMissingError(`there is no file at ${address}`, { fix: "check the address" });
  }
  throw new DownloadError(`${address} answers ${response.status}`, { fix: "try again later" });
}
