/* Lists of recommendations in a web page. docs/serving.md says how it is used.

   <div data-distilrec="home" data-k="6" data-href="/films/{id}"></div>
   <script src="https://recs.shop.example/distilrec.js" data-key="dr_…" data-user="7" defer></script>
*/
"use strict";

(() => {
  const script = document.currentScript;
  const service = new URL(script.src).origin;
  const { key, visitor, clickType = "click" } = script.dataset;
  const SEEN_MS = 1000; // an item is shown when half of it has been in view for this long
  const SEND_MS = 1000; // events wait for others at most this long
  const MOST = 100; // events of a request, and clicks that are remembered
  const CLICKED = "distilrec-clicked";
  let waiting = [];
  let timer = 0;

  /* The user of the page; with data-visitor a random id that this browser keeps; else nobody. */
  function user() {
    if (script.dataset.user) return script.dataset.user;
    if (visitor === undefined) return null;
    try {
      const kept = localStorage.getItem("distilrec-visitor") || `visitor-${randomId()}`;
      localStorage.setItem("distilrec-visitor", kept);
      return kept;
    } catch {
      return null; // this browser keeps nothing
    }
  }

  function randomId() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  async function post(path, body, keepalive = false) {
    const headers = { "content-type": "application/json" };
    if (key) headers.authorization = `Bearer ${key}`;
    const response = await fetch(service + path, { method: "POST", headers, keepalive, body: JSON.stringify(body) });
    const answer = await response.json();
    if (!response.ok) throw new Error(`${answer.error.message} (${answer.error.code})`);
    return answer;
  }

  /* Events */

  /* Sends an event of the user: {item_id, event_type, value}. It names the answer in which the item was clicked last in
     this tab, if any. Without a user it is not sent. */
  function event(told) {
    const user_id = user();
    if (!user_id) return;
    const from = clicked()[told.item_id] || {};
    waiting.push({ user_id, event_id: randomId(), timestamp: Date.now() / 1000, ...from, ...told });
    if (waiting.length >= MOST) send();
    else timer = timer || setTimeout(send, SEND_MS);
  }

  /* Sends what waits; what cannot be sent for a moment is sent with the next events, under the same ids. */
  async function send(leaving = false) {
    clearTimeout(timer);
    timer = 0;
    const events = waiting.splice(0, MOST);
    if (!events.length) return;
    try {
      await post("/v1/events", { events }, leaving === true);
    } catch (problem) {
      if (problem instanceof TypeError) waiting = [...events, ...waiting].slice(0, 10 * MOST);
      console.warn(`distilrec: ${problem.message}`);
    }
  }

  function clicked() {
    try {
      return JSON.parse(sessionStorage.getItem(CLICKED)) || {};
    } catch {
      return {};
    }
  }

  function rememberClick(item, from) {
    const others = Object.entries(clicked()).filter(([id]) => id !== item);
    try {
      sessionStorage.setItem(CLICKED, JSON.stringify(Object.fromEntries([...others.slice(1 - MOST), [item, from]])));
    } catch {
      // this browser keeps nothing: later events of the item name no answer
    }
  }

  /* Lists */

  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        clearTimeout(target.distilrecTimer);
        if (!isIntersecting) continue;
        target.distilrecTimer = setTimeout(() => {
          seen.unobserve(target);
          event({ ...target.distilrecFrom, item_id: target.dataset.item, event_type: "impression" });
        }, SEEN_MS);
      }
    },
    { threshold: 0.5 },
  );

  /* Counts impressions and clicks of an element that shows an item of an answer. */
  function track(element, item, answer) {
    const from = { recommendation_id: answer.recommendation_id ?? undefined, position: item.rank };
    element.dataset.item = item.item_id;
    element.distilrecFrom = from;
    element.addEventListener("click", (click) => {
      if (!click.target.closest("a, button")) return;
      rememberClick(item.item_id, from);
      event({ ...from, item_id: item.item_id, event_type: clickType });
    });
    seen.observe(element);
  }

  function row(item, template, href) {
    const made = template ? template.content.firstElementChild.cloneNode(true) : document.createElement("li");
    if (!template) made.append(document.createElement("a"));
    const link = made.matches("a") ? made : made.querySelector("a");
    if (link && href) link.href = href.replaceAll("{id}", encodeURIComponent(item.item_id));
    const title = template ? made.querySelector("[data-title]") : link;
    if (title) title.textContent = item.title || item.item_id;
    return made;
  }

  /* Fills an element with a list. What is in it stays where the service does not answer. */
  async function render(element) {
    const { distilrec: placement, k = "10", href, history } = element.dataset;
    const user_id = user();
    const asked = { k: Number(k), titles: true };
    if (placement) asked.placement = placement;
    if (user_id) asked.user_id = user_id;
    if (history || !user_id) asked.history = (history || "").split(",").filter(Boolean);
    try {
      const answer = await post("/v1/recommend", asked);
      const wanted = new CustomEvent("distilrec", { detail: answer, bubbles: true, cancelable: true });
      if (!element.dispatchEvent(wanted)) return; // the page makes the list itself
      const template = element.querySelector("template");
      const list = document.createElement(template ? "div" : "ol");
      for (const item of answer.items) {
        const made = row(item, template, href);
        list.append(made);
        track(made, item, answer);
      }
      element.replaceChildren(...(template ? [template] : []), list);
    } catch (problem) {
      element.dataset.distilrecProblem = problem.message;
      console.warn(`distilrec: ${problem.message}`);
    }
  }

  document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && send(true));
  globalThis.distilrec = { render, track, event };
  document.querySelectorAll("[data-distilrec]").forEach(render);
})();
