// Sections that are filled from the service, tables, and questions before a change.

import { $, element } from "/look/page.js";

const refused = new Set(); // sections that the key may not see: they are not asked for again

export const askAgain = () => refused.clear();

// Fill sections that are loaded together. A key that may not see them is said there; other problems are said there too, and raised.
export async function fill(ids, scope, load) {
  if (refused.has(ids[0])) return false;
  let [text, isBad, raised] = ["", false, null];
  try {
    await load();
  } catch (problem) {
    if (problem.status === 403) {
      refused.add(ids[0]);
      text = problem.code === "forbidden" ? `This needs a key with the scope ${scope}.` : problem.message;
    } else {
      raised = problem;
      if (problem.status && problem.status !== 401) [text, isBad] = [problem.message, true];
    }
  }
  for (const id of ids) {
    $(id).classList.toggle("stale", Boolean(raised));
    say($(id).querySelector(".says"), text, isBad);
    $(id).querySelector(".shown").hidden = refused.has(ids[0]);
  }
  if (raised) throw raised;
  return !refused.has(ids[0]);
}

export function say(place, text, isBad = false) {
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
  place.classList.toggle("bad", isBad);
}

// Fill a table. columns: names, those that begin with # are of numbers; cells: texts or elements.
export function fillTable(table, columns, rows) {
  const head = element("tr");
  const isNumber = columns.map((name) => name.startsWith("#"));
  columns.forEach((name, at) => {
    const cell = element("th", name.replace("#", ""), isNumber[at] ? "number" : "");
    cell.scope = "col";
    head.append(cell);
  });
  const body = rows.map((cells) => {
    const row = element("tr");
    cells.forEach((cell, at) => {
      const made = element("td", undefined, isNumber[at] ? "number" : "");
      made.append(cell);
      row.append(made);
    });
    return row;
  });
  const [top, rest] = [element("thead"), element("tbody")];
  top.append(head);
  rest.append(...body);
  table.replaceChildren(top, rest);
}

// Fill a list of facts; those that are null or empty are left out.
export function fillFacts(list, facts) {
  list.replaceChildren();
  for (const [name, value] of facts) {
    if (value === null || value === undefined || value === "") continue;
    const text = element("dd");
    text.append(value);
    list.append(element("dt", name), text);
  }
}

// Whether a change is wanted: a dialog that says what it does.
export function isWanted(text, verb) {
  const dialog = $("sure");
  $("sure-text").textContent = text;
  $("sure-yes").textContent = verb;
  return new Promise((resolve) => {
    let answer = false;
    $("sure-yes").onclick = () => {
      answer = true;
      dialog.close();
    };
    $("sure-no").onclick = () => dialog.close();
    dialog.onclose = () => resolve(answer);
    dialog.showModal();
  });
}
