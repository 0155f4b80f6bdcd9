/** Lists that were written as text, as `distilrec.features.lists` in Python reads them. */

const NUMBER = String.raw`[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?`;
const ELEMENT = new RegExp(
  String.raw`\s*(?:(?<json>"(?:[^"\\]|\\.)*")|(?<python>'(?:[^'\\]|\\.)*')|(?<number>${NUMBER})` +
    String.raw`|(?<missing>None|null|nan|NaN)|(?<flag>True|False|true|false))\s*`,
  "sy",
);
const NUMBERS = new RegExp(String.raw`^\s*${NUMBER}(?:\s+${NUMBER})*\s*$`);
const PAIRS: Record<string, string> = { "[": "]", "(": ")", "{": "}" };
const WRAPPERS = /^(?:frozenset|set|array|list|tuple)\((.*)\)$/s;

/** Return the texts of a list that was printed; null for any other text. */
export function parseList(given: string): string[] | null {
  let text = given.trim();
  const wrapped = WRAPPERS.exec(text);
  if (wrapped) {
    text = wrapped[1].trim();
    if (!text) return [];
  }
  if (text.length < 2 || PAIRS[text[0]] !== text[text.length - 1]) return null;
  const inside = text.slice(1, -1);
  const words = inside.trim().split(/\s+/);
  if (!inside.trim()) return [];
  if (text[0] === "[" && NUMBERS.test(inside) && words.length > 1) return words;
  const found: string[] = [];
  ELEMENT.lastIndex = 0;
  for (;;) {
    const element = ELEMENT.exec(inside);
    if (!element) return null;
    const parts = element.groups!;
    if (parts.missing === undefined) found.push(read(parts, element[0]));
    let position = element.index + element[0].length;
    if (position === inside.length) return found;
    if (inside[position] !== ",") return null;
    position += 1;
    if (!inside.slice(position).trim()) return found;
    ELEMENT.lastIndex = position;
  }
}

function read(parts: Record<string, string | undefined>, whole: string): string {
  if (parts.json !== undefined) {
    const control = /[\x00-\x1f]/g;
    const escaped = parts.json.replace(
      control, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
    );
    try {
      return JSON.parse(escaped) as string;
    } catch {
      return unescaped(parts.json.slice(1, -1));
    }
  }
  return parts.python === undefined ? whole.trim() : unescaped(parts.python.slice(1, -1));
}

function unescaped(text: string): string {
  const named: Record<string, string> = { n: "\n", t: "\t", r: "\r" };
  const escape = /\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})|(.))/gs;
  return text.replace(escape, (_, x, u, long, other) => {
    const code = x || u || long;
    return code ? String.fromCodePoint(parseInt(code, 16)) : (named[other] ?? other);
  });
}
