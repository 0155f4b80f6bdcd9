// What the pages of the service share: asking it, its errors, and elements.

const KEY = "distilrec-key"; // in the session of this tab, and nowhere else
let key = "";
try {
  key = sessionStorage.getItem(KEY) || "";
} catch {
  // A browser that keeps nothing for pages: the key lives as long as the page.
}

export const $ = (id) => document.getElementById(id);

export const hasKey = () => key !== "";

export function useKey(text) {
  key = text;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // as above
  }
}

// Why a request was not answered. status: 0 where nothing came back; wait: seconds until it makes sense to ask again.
export class Problem extends Error {
  constructor(status, code, message, wait) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

export async function call(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Problem(0, "unreachable", "The service does not answer.", 0);
  }
  const isJson = (response.headers.get("content-type") || "").startsWith("application/json");
  if (response.ok) return isJson ? response.json() : response.text();
  const answer = isJson ? await response.json().catch(() => ({})) : {};
  const { message = `The service answered with the status ${response.status}`, code = `status ${response.status}` } = answer.error || {};
  throw new Problem(response.status, code, `${message} (${code})`, Number(response.headers.get("retry-after")) || 0);
}

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// The same text has the same colour on all pages; neighbours in the alphabet are far apart.
function hueOf(text) {
  let hash = 0;
  for (const letter of text) hash = (hash * 31 + letter.codePointAt(0)) % 1_000_003;
  return Math.round(hash * 137.508) % 360;
}

export function chip(text, about = "") {
  const made = element("span", text, "chip");
  made.style.setProperty("--hue", hueOf(text));
  if (about) made.title = about;
  return made;
}

// The categories of an item in colour. most: how many of them.
export function chips(attributes, most) {
  const row = element("span", undefined, "chips");
  for (const [name, value] of Object.entries(attributes)) {
    if (!Array.isArray(value)) continue;
    for (const category of value) if (row.childElementCount < most) row.append(chip(category, name));
  }
  return row;
}
