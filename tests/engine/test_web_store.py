"""Users in IndexedDB, in a real Chromium: kept, restored, cleared, in several tabs, and where the browser refuses."""

from __future__ import annotations

import re

import pytest

from tests import ROOT
from tests.servers import PATIENCE, until

pytestmark = [pytest.mark.chromium, pytest.mark.slow]

BEGIN = """async () => {
  const d = globalThis.d = await import("./distilrec.js");
  globalThis.heard = 0;
  globalThis.event = (n, more) => ({ user_id: "me", item_id: `i${n}`, event_type: "buy", ...more });
  globalThis.r = await d.load("student.drec");
  globalThis.code = async (call) => {
    try { await call(); return null; } catch (error) {
      if (!(error instanceof d.DistilrecError) || !error.fix || !d[error.name]) throw error;
      return error.context.reason ? `${error.code} ${error.context.reason}` : error.code;
    }
  };
  // Everything that is known, and what follows from it.
  globalThis.known = () => JSON.stringify([r.state(), r.recommend("me", { k: 40 }), r.recommend("you")]);
  // The rows on disk, read without the package.
  globalThis.rows = () => new Promise((resolve, reject) => {
    const request = indexedDB.open("distilrec");
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const all = request.result.transaction("log").objectStore("log").getAll();
      all.onsuccess = () => { request.result.close(); resolve(all.result); };
    };
  });
}"""
OPEN = "async () => { globalThis.s = await d.openStore(r, { changed: () => { heard += 1; } }); }"


@pytest.fixture
def tabs(browser, site):
    """Open tabs of one browser profile, which nothing is stored in yet."""
    context = browser.new_context()
    context.set_default_timeout(1_000 * PATIENCE)

    def opened(path="index.html", store=True):
        page = context.new_page()
        page.goto(f"{site}/{path}")
        page.evaluate(BEGIN)
        if store:
            page.evaluate(OPEN)
        return page

    yield opened
    context.close()


def same(one, other):
    """Wait until two tabs know and answer the same."""
    until(lambda: one.evaluate("known()") == other.evaluate("known()"), "the tabs agree")


def test_users_are_there_again_when_the_page_is_loaded_again(tabs):
    page = tabs()
    assert page.evaluate("s.update([event(3), event(7), event('later'), event(9, { event_type: 'impression' }), event(5, { user_id: '__proto__' })])") == {
        "applied": 3, "unknown_items": 1,
    }  # fmt: skip
    page.evaluate("s.setUser('me', { age: 20 })")
    page.evaluate("s.setUser('me', { age: 33, country: 'de' })")
    before = page.evaluate("known()")
    assert '"__proto__"' in before
    page.reload()
    page.evaluate(BEGIN)
    assert page.evaluate("known()") != before
    page.evaluate(OPEN)
    assert page.evaluate("known()") == before
    # What a later student may know is kept; features are not kept twice.
    kept = page.evaluate("rows()")
    assert [row.get("item") for row in kept] == ["i3", "i7", "ilater", "i5", None]
    assert [row["features"] for row in kept if "features" in row] == [{"age": 33, "country": "de"}]
    assert all(type(row["time"]) is int for row in kept[:-1])
    assert page.evaluate("r.state().users.me.events") == [
        [row["item"], "buy", row["time"]] for row in kept[:2]
    ]
    # The answers are those of a recommender that was told the same.
    page.evaluate("""async () => {
      const other = await d.load("student.drec");
      other.update([event(3), event(7), event(5, { user_id: "__proto__" })]);
      other.setUser("me", { age: 33, country: "de" });
      globalThis.expected = JSON.stringify([other.recommend("me", { k: 40 }), other.recommend("__proto__")]);
    }""")
    assert page.evaluate(
        "expected === JSON.stringify([r.recommend('me', { k: 40 }), r.recommend('__proto__')])"
    )


def test_the_example_of_the_guide_runs(tabs):
    guide = (ROOT / "docs" / "web.md").read_text(encoding="utf-8")
    code = re.findall(r"```js\n(.*?)```", guide, re.DOTALL)[2]
    code = code.replace('"50"', '"i5"')
    code = re.sub(r"import (\{.*?\}) from", r"const \1 = await import(", code)
    code = code.replace('await import( "distilrec"', 'await import("./distilrec.js")')
    page = tabs(store=False)
    printed: list[str] = []
    page.on("console", lambda message: printed.append(message.text))
    page.evaluate(f"async () => {{ {code} globalThis.left = await rows(); }}")
    assert len(printed) == 1
    assert page.evaluate("left") == []


def test_features_that_a_later_student_cannot_read_are_left_out(tabs):
    """And events without a time, which earlier versions of the package wrote, are read."""
    page = tabs()
    page.evaluate("s.setUser('me', { age: 33 })")
    page.evaluate("s.update([event(3)])")
    page.evaluate("""new Promise((resolve) => {
      const request = indexedDB.open("distilrec");
      request.onsuccess = () => {
        const t = request.result.transaction("log", "readwrite");
        t.objectStore("log").put({ place: 1, user: "me", features: { age: "old", shoes: 42, country: "de" } });
        t.objectStore("log").put({ place: 2, user: "me", item: "i3", type: "buy" });
        t.oncomplete = resolve;
      };
    })""")
    page.reload()
    page.evaluate(BEGIN)
    page.evaluate(OPEN)
    assert page.evaluate("r.state().users.me") == {
        "events": [["i3", "buy"]],
        "features": {"country": "de"},
    }


def test_one_call_deletes_a_user_and_one_deletes_everything(tabs):
    first, second = tabs(), tabs()
    first.evaluate(
        "s.update([event(3), event(4, { user_id: 'you' }), event(5)]).then(() => s.setUser('me', { age: 33 }))"
    )
    same(first, second)
    first.evaluate("s.forget('me')")
    assert [row["user"] for row in first.evaluate("rows()")] == ["you"]
    assert first.evaluate("[r.knowsUser('me'), r.knowsUser('you')]") == [False, True]
    same(first, second)
    first.evaluate("s.clear()")
    assert first.evaluate("rows()") == []
    assert first.evaluate("r.state().users") == {}
    same(first, second)
    # What comes after is kept and followed by both.
    second.evaluate("s.update([event(9)])")
    assert len(first.evaluate("rows()")) == 1
    same(first, second)
    assert second.evaluate("r.past('me')") == ["i9"]
    assert second.evaluate("heard") >= 1
    assert first.evaluate("heard") == 1


def test_tabs_that_write_together_fold_the_same_events_in_the_same_order(tabs):
    first, second = tabs(), tabs()
    write = """(from) => {
      globalThis.writing = Promise.all(Array.from({ length: 25 }, (_, n) => s.update([event(from + n % 20, { event_type: n % 2 ? "buy" : "view" })])));
    }"""
    first.evaluate(write, 0)
    second.evaluate(write, 20)
    for page in (first, second):
        page.evaluate("writing")
    assert len(first.evaluate("rows()")) == 50
    same(first, second)
    assert first.evaluate("r.past('me', 99).length") == 50
    in_order = [row["item"] for row in first.evaluate("rows()")]
    assert second.evaluate("r.past('me', 99).reverse()") == in_order
    same(first, tabs())  # and one that comes later


def test_a_tab_that_dies_leaves_whole_calls(tabs):
    page, acknowledged = tabs(), []
    page.on("console", lambda message: acknowledged.append(message.text))
    page.evaluate("""() => { (async () => {
      for (let n = 0; ; n++) { await s.update([event(n % 40), event(1), event(2)]); console.log("written"); }
    })(); }""")
    until(lambda: page.evaluate("1") and len(acknowledged) >= 3, "three calls are acknowledged")
    page.close()
    kept = tabs().evaluate("rows()")
    assert len(kept) % 3 == 0
    assert len(kept) >= 3 * len(acknowledged)
    assert set(acknowledged) == {"written"}
    assert [row["item"] for row in kept[1::3]] == ["i1"] * (len(kept) // 3)


def test_where_there_is_no_room_nothing_is_written_and_nothing_changes(tabs, site):
    page = tabs(store=False)
    # Before the first write, after which Chromium does not ask for a while how much room is left.
    quota = page.context.new_cdp_session(page)
    quota.send("Storage.overrideQuotaForOrigin", {"origin": site, "quotaSize": 10_000_000})
    page.evaluate(OPEN)
    page.evaluate("s.update([event(3)])")
    before = page.evaluate("known()")
    many = "Array.from({ length: 60_000 }, (_, n) => event(n % 40, { user_id: `${n}`.repeat(50) }))"
    assert page.evaluate(f"code(() => s.update({many}))") == "store_unavailable full"
    assert page.evaluate("known()") == before
    assert len(page.evaluate("rows()")) == 1
    quota.send("Storage.overrideQuotaForOrigin", {"origin": site})
    until(lambda: page.evaluate("code(() => s.update([event(4)]))") is None, "there is room again")
    assert page.evaluate("r.past('me')") == ["i4", "i3"]


@pytest.mark.parametrize("path", ["sandboxed.html", "index.html"])
def test_where_the_browser_keeps_nothing_the_recommender_works_on(tabs, path):
    page = tabs(path, store=False)
    if path == "index.html":
        page.evaluate(
            "() => { Object.defineProperty(globalThis, 'indexedDB', { value: undefined }); }"
        )
    page.evaluate("r.update([event(3)]) && undefined")
    before = page.evaluate("known()")
    assert page.evaluate("code(() => d.openStore(r))") == "store_unavailable denied"
    assert page.evaluate("code(() => d.deleteStore())") == "store_unavailable denied"
    assert page.evaluate("known()") == before


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ("o.onupgradeneeded = () => o.result.createObjectStore('log')", "store_corrupted"),
        ("o = indexedDB.open('distilrec', 2)", "store_version"),
        ("o.onupgradeneeded = () => make([{ user: 'me', item: 'i1', type: 7 }])", "store_corrupted"),
        ("o.onupgradeneeded = () => make([{ user: '', item: 'i1', type: 'buy' }])", "store_corrupted"),
        ("o.onupgradeneeded = () => make([{ user: 'me', item: 'i1', type: 'buy', time: 'x' }])", "store_corrupted"),
        ("o.onupgradeneeded = () => make([{ hello: 1 }])", "store_corrupted"),
    ],
)  # fmt: skip
def test_a_foreign_newer_or_edited_database_is_refused_and_can_be_deleted(tabs, made, code):
    page = tabs(store=False)
    page.evaluate("r.update([event(3)]) && undefined")
    before = page.evaluate("known()")
    page.evaluate(f"""new Promise((resolve) => {{
      let o = indexedDB.open("distilrec", "{made}".includes("2)") ? undefined : 1);
      const make = (rows) => {{
        const log = o.result.createObjectStore("log", {{ keyPath: "place", autoIncrement: true }});
        log.createIndex("user", "user");
        o.result.createObjectStore("meta");
        rows.forEach((row) => log.add(row));
      }};
      const done = () => {{ o.result.close(); resolve(); }};
      {made};
      o.onsuccess = done;
    }})""")
    assert page.evaluate("code(() => d.openStore(r))") == code
    assert page.evaluate("known()") == before
    page.evaluate("d.deleteStore()")
    page.evaluate(OPEN)
    assert page.evaluate("r.state().users") == {}


def test_a_store_that_was_closed_or_deleted_says_so(tabs):
    first, second = tabs(), tabs()
    first.evaluate("s.update([event(3)])")
    first.evaluate("s.close()")
    assert first.evaluate("code(() => s.update([event(4)]))") == "store_unavailable closed"
    first.evaluate("d.deleteStore()")  # closes that of the other tab
    assert second.evaluate("code(() => s.update([event(4)]))") == "store_unavailable closed"
    second.evaluate(OPEN)
    second.evaluate("s.update([event(5)])")
    assert second.evaluate("r.past('me')") == ["i5"]


def test_impossible_calls_write_nothing(tabs):
    page = tabs()
    page.evaluate("s.update([event(3)])")
    before = page.evaluate("known()")
    calls = {
        "s.update('me')": "config_invalid",
        "s.update([event(4), { user_id: 'me' }])": "config_invalid",
        "s.update([event(4), null])": "config_invalid",
        "s.update([event(4), event(5, { event_type: 7 })])": "config_invalid",
        "s.update([event(4), event(5, { user_id: '' })])": "id_invalid",
        "s.setUser('me', { colour: 'red' })": "config_invalid",
        "s.setUser('me', { age: 'old' })": "column_type",
        "s.setUser('me', { country: () => 1 })": "config_invalid",
        "s.setUser(1.5, { age: 3 })": "id_invalid",
        "s.forget('')": "id_invalid",
        "d.openStore(r, { name: '' })": "id_invalid",
        "d.deleteStore('')": "id_invalid",
    }
    assert {call: page.evaluate(f"code(() => {call})") for call in calls} == calls
    assert page.evaluate("known()") == before
    assert len(page.evaluate("rows()")) == 1
    page.evaluate("s.update([event(4)])")
    assert page.evaluate("r.past('me')") == ["i4", "i3"]
