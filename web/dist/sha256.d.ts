/** SHA-256 (FIPS 180-4) for pages that are not a secure context and so have no `crypto.subtle`. */
export declare function plainSha256(data: Uint8Array): Uint8Array;
/** Return the hash of some bytes, by the browser where it can. */
export declare function sha256(data: Uint8Array): Promise<Uint8Array>;
