/** Errors that a caller can meet. Classes and codes are those of the Python package. */
export interface Details {
    /** What to do about it. */
    fix?: string;
    /** Facts for programs, such as `parameter` or `item_id`. */
    [name: string]: unknown;
}
/** Base of all errors raised on purpose. */
export declare class DistilrecError extends Error {
    /** Stable; the same as in Python and over HTTP. */
    readonly name: string;
    readonly code: string;
    readonly fix: string;
    readonly context: Record<string, unknown>;
    constructor(message: string, details?: Details);
}
/** A parameter that cannot be. */
export declare class ConfigError extends DistilrecError {
    readonly name = "ConfigError";
    readonly code = "config_invalid";
}
/** What cannot be the id of a user or an item. */
export declare class InvalidIdError extends DistilrecError {
    readonly name = "InvalidIdError";
    readonly code = "id_invalid";
}
/** An item id that the file does not know. */
export declare class UnknownItemError extends DistilrecError {
    readonly name = "UnknownItemError";
    readonly code = "item_unknown";
}
/** A feature that holds the wrong kind of value. */
export declare class ColumnTypeError extends DistilrecError {
    readonly name = "ColumnTypeError";
    readonly code = "column_type";
}
/** A feature that holds a value that no model can take. */
export declare class InvalidValueError extends DistilrecError {
    readonly name = "InvalidValueError";
    readonly code = "value_invalid";
}
/** There is no file at this address. */
export declare class BundleMissingError extends DistilrecError {
    readonly name = "BundleMissingError";
    readonly code = "bundle_missing";
}
/** The file is truncated, edited or inconsistent, or this machine does not reproduce its answers. */
export declare class BundleCorruptedError extends DistilrecError {
    readonly name = "BundleCorruptedError";
    readonly code = "bundle_corrupted";
}
/** The file is of a format, or holds a kind of student, that this version cannot run. */
export declare class BundleVersionError extends DistilrecError {
    readonly name = "BundleVersionError";
    readonly code = "bundle_version";
}
/** The file could not be fetched. */
export declare class DownloadError extends DistilrecError {
    readonly name = "DownloadError";
    readonly code = "download_failed";
}
/** Base of the errors of a store. */
export declare class StoreError extends DistilrecError {
    readonly name: string;
    readonly code: string;
}
/** The store is full, denied by the browser, or closed. `context.reason` says which. */
export declare class StoreUnavailableError extends StoreError {
    readonly name = "StoreUnavailableError";
    readonly code = "store_unavailable";
}
/** The store holds what this package cannot have written. */
export declare class StoreCorruptedError extends StoreError {
    readonly name = "StoreCorruptedError";
    readonly code = "store_corrupted";
}
/** The store was written by a newer version of this package. */
export declare class StoreVersionError extends StoreError {
    readonly name = "StoreVersionError";
    readonly code = "store_version";
}
export declare function corrupted(problem: string): BundleCorruptedError;
