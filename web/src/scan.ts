/** The module of scan.wat in base64. build.mjs puts it here; without it plain JavaScript works. */
export const SCAN: string = "";
