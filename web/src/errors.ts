/** Errors that a caller can meet. Classes and codes are those of the Python package. */

export interface Details {
  /** What to do about it. */
  fix?: string;
  /** Facts for programs, such as `parameter` or `item_id`. */
  [name: string]: unknown;
}

/** Base of all errors raised on purpose. */
export class DistilrecError extends Error {
  /** Stable; the same as in Python and over HTTP. */
  override readonly name: string = "DistilrecError";
  readonly code: string = "error";
  readonly fix: string;
  readonly context: Record<string, unknown>;

  constructor(message: string, details: Details = {}) {
    const { fix = "", ...context } = details;
    super(fix ? `${message}\n  how to fix: ${fix}` : message);
    this.fix = fix;
    this.context = context;
  }
}

/** A parameter that cannot be. */
export class ConfigError extends DistilrecError {
  override readonly name = "ConfigError";
  override readonly code = "config_invalid";
}

/** What cannot be the id of a user or an item. */
export class InvalidIdError extends DistilrecError {
  override readonly name = "InvalidIdError";
  override readonly code = "id_invalid";
}

/** An item id that the file does not know. */
export class UnknownItemError extends DistilrecError {
  override readonly name = "UnknownItemError";
  override readonly code = "item_unknown";
}

/** A feature that holds the wrong kind of value. */
export class ColumnTypeError extends DistilrecError {
  override readonly name = "ColumnTypeError";
  override readonly code = "column_type";
}

/** A feature that holds a value that no model can take. */
export class InvalidValueError extends DistilrecError {
  override readonly name = "InvalidValueError";
  override readonly code = "value_invalid";
}

/** There is no file at this address. */
export class BundleMissingError extends DistilrecError {
  override readonly name = "BundleMissingError";
  override readonly code = "bundle_missing";
}

/** The file is truncated, edited or inconsistent, or this machine does not reproduce its answers. */
export class BundleCorruptedError extends DistilrecError {
  override readonly name = "BundleCorruptedError";
  override readonly code = "bundle_corrupted";
}

/** The file is of a format, or holds a kind of student, that this version cannot run. */
export class BundleVersionError extends DistilrecError {
  override readonly name = "BundleVersionError";
  override readonly code = "bundle_version";
}

/** The file could not be fetched. */
export class DownloadError extends DistilrecError {
  override readonly name = "DownloadError";
  override readonly code = "download_failed";
}

/** Base of the errors of a store. */
export class StoreError extends DistilrecError {
  override readonly name: string = "StoreError";
  override readonly code: string = "store_failed";
}

/** The store is full, denied by the browser, or closed. `context.reason` says which. */
export class StoreUnavailableError extends StoreError {
  override readonly name = "StoreUnavailableError";
  override readonly code = "store_unavailable";
}

/** The store holds what this package cannot have written. */
export class StoreCorruptedError extends StoreError {
  override readonly name = "StoreCorruptedError";
  override readonly code = "store_corrupted";
}

/** The store was written by a newer version of this package. */
export class StoreVersionError extends StoreError {
  override readonly name = "StoreVersionError";
  override readonly code = "store_version";
}

export function corrupted(problem: string): BundleCorruptedError {
  return new BundleCorruptedError(`the file ${problem}`, {
    fix: "copy the file again, or export it again (distilrec export --web)",
  });
}
