/** Lists that were written as text, as `distilrec.features.lists` in Python reads them. */
/** Return the texts of a list that was printed; null for any other text. */
export declare function parseList(given: string): string[] | null;
