"""The playground in a real Chromium, against a real service, with its strict content security policy in force."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from distilrec import load
from tests.pages import assert_readable, watched
from tests.servers import PATIENCE, Server, until

pytestmark = [pytest.mark.chromium, pytest.mark.server]


@pytest.fixture
def page(browser):
    """A page whose complaints (scripts, policy, missing files, foreign hosts) fail the test."""
    opened = browser.new_page()
    opened.set_default_timeout(1_000 * PATIENCE)
    opened.complaints, hosts = watched(opened)
    yield opened
    opened.close()
    assert hosts == {"127.0.0.1"}


@pytest.fixture(scope="module")
def server(finished_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("playground")
    shutil.copytree(finished_run.bundle, folder / "bundle")
    service = Server(folder / "bundle", f"sqlite:///{folder / 'store.db'}")
    yield service
    service.stop()


def listed(page, name):
    page.wait_for_selector(f"#{name} li")
    return page.eval_on_selector_all(f"#{name} li", "rows => rows.map(row => row.dataset.item)")


def visit(page, server, user):
    """Opens the page and shows a user."""
    page.goto(server.url)
    listed(page, "answers")
    page.fill("#user", user)
    page.press("#user", "Enter")
    expect(page.locator("#answers")).to_have_attribute("data-user", user)


def about(words):
    """Whether a response is that to a request whose body holds these words."""
    return lambda response: words in (response.request.post_data or "")


def shows(page, response):
    """Until the page lists what an answer of the service says."""
    items = [item["item_id"] for item in response.json()["items"]]
    until(lambda: listed(page, "answers") == items, f"the page lists {items}")


def test_it_can_be_read_by_everybody(page, server):
    page.goto(server.url)
    expect(page.locator("#answers .chip").first).to_be_visible()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert_readable(page, 1280)


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_the_list_visibly_reorders(page, server, finished_run, motion):
    library = load(finished_run.bundle)
    page.emulate_media(reduced_motion=motion)
    page.add_init_script(
        """window.moves = 0;
        const animate = Element.prototype.animate;
        Element.prototype.animate = function (...how) { window.moves += 1; return animate.apply(this, how); };"""
    )
    visit(page, server, "u5")
    before = listed(page, "answers")
    first = page.locator("#answers li").first
    expect(first.locator(".chip")).to_have_text(library.item(before[0]).attributes["genres"])
    assert page.locator("#answers .move").count() == 0
    first.locator("button").click()
    expect(page.locator(f"#answers li[data-item='{before[0]}']")).to_have_count(0)
    after = listed(page, "answers")
    for place, item in enumerate(after):
        row = page.locator(f"#answers li[data-item='{item}']")
        steps = before.index(item) - place if item in before else None
        words = "new" if steps is None else f"{'↑' if steps > 0 else '↓'}{abs(steps)}"
        expect(row.locator(".move")).to_have_text([words] if steps != 0 else [])
    assert f"{len(set(after) - set(before))} new" in page.inner_text("#moved")
    assert (page.evaluate("moves") > 0) == (motion == "no-preference")


def test_a_known_user_clicks_and_the_list_follows(page, server, finished_run):
    library = load(finished_run.bundle)
    user = "u3"
    visit(page, server, user)
    before = listed(page, "answers")
    assert before == [answer.item_id for answer in library.recommend(user)]
    assert "ms there and back" in page.inner_text("#latency")
    assert re.search(r"[+-]\d\.\d\d ", page.inner_text("#answers li:first-child .why"))
    with page.expect_response("**/v1/events"):
        page.click("#answers li:nth-child(1) button")
    expect(page.locator(f"#answers li[data-item='{before[0]}']")).to_have_count(0)
    assert before[0] not in listed(page, "answers")
    assert page.inner_text("#history li:first-child") == library.title(before[0])
    # The teacher's list is that of the bundle, and what both give is marked.
    teacher = listed(page, "teacher")
    assert teacher == library.teacher_items(user)[:10]
    common = set(teacher) & set(listed(page, "answers"))
    assert f"{len(common)} of {len(teacher)}" in page.inner_text("#agreement")
    assert page.locator("#teacher li.both").count() == len(common)
    assert page.complaints == []


def test_a_new_user_filter_diversity_and_search(page, server, finished_run):
    library = load(finished_run.bundle)
    page.goto(server.url)
    listed(page, "answers")
    with page.expect_response("**/v1/recommend"):
        page.click("#new-user")
    page.wait_for_selector("#no-history:visible")
    assert page.input_value("#user").startswith("guest-")
    expect(page.locator("#comparison")).to_be_hidden()
    page.fill("#search", "number 17")
    expect(page.locator("#found li")).to_have_count(1)
    assert listed(page, "found") == ["i17"]
    page.click("#found button")
    expect(page.locator("#history li")).to_have_count(1)
    assert page.inner_text("#history") == "Thing number 17"
    page.select_option("#attribute", "genres")
    with page.expect_response(about('"g1"')) as told:
        page.fill("#value", "g1")
        page.press("#value", "Tab")
    shows(page, told.value)
    assert all("g1" in library.item(item).attributes["genres"] for item in listed(page, "answers"))
    page.select_option("#attribute", "price")
    with page.expect_response(about('"max":5')) as told:
        page.fill("#value", "2..5")
        page.press("#value", "Tab")
    shows(page, told.value)
    assert all(2 <= library.item(item).attributes["price"] <= 5 for item in listed(page, "answers"))
    page.fill("#value", "cheap")
    page.press("#value", "Tab")
    page.wait_for_selector("#problem:visible")
    assert "'price' is numeric" in page.inner_text("#problem")
    page.on("dialog", lambda dialog: dialog.accept())
    page.select_option("#attribute", "")
    page.wait_for_selector("#problem", state="hidden")
    with page.expect_response(lambda response: response.request.method == "DELETE"):
        page.click("#erase")
    page.wait_for_selector("#no-history:visible")
    # Refused requests (the wrong filter, a user nobody knows yet) are all the browser has to say.
    assert all("status of 404" in text or "status of 422" in text for text in page.complaints)


def test_what_a_title_holds_is_text(page, server):
    server.client.put(
        "/v1/items/evil", json={"title": "<img src=x onerror=alert(1)>", "features": {"price": 3}}
    )
    page.on("dialog", lambda dialog: pytest.fail("a script of a title ran"))
    page.goto(server.url)
    page.fill("#search", "onerror")
    expect(page.locator("#found li")).to_have_count(1)
    assert page.inner_text("#found li") == "<img src=x onerror=alert(1)>"
    assert page.locator("main img").count() == 0


def test_with_keys_the_page_asks_for_one(page, bundle, tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "distilrec.cli", "key", "--name", "x", "--scopes", "recommend,events,users"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (tmp_path / "keys.toml").write_text(made.stdout)
    service = Server(bundle, f"sqlite:///{tmp_path / 'store.db'}", "--keys", tmp_path / "keys.toml")
    page.goto(service.url)
    page.wait_for_selector("#key-form:visible")
    page.fill("#key", made.stderr.split()[-1])
    page.press("#key", "Enter")
    assert listed(page, "answers")
    page.wait_for_selector("#key-form", state="hidden")
    service.stop()


def test_on_a_phone_with_the_keyboard_only(page, server):
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    page.goto(server.url)
    before = listed(page, "answers")
    expect(page.locator("#answers .chip").first).to_be_visible()
    assert_readable(page, 360)
    page.focus("#answers li:first-child button")
    page.keyboard.press("Enter")
    expect(page.locator(f"#answers li[data-item='{before[0]}']")).to_have_count(0)
    expect(page.locator("#answers li:first-child button")).to_be_focused()
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select')].filter(x => !x.labels.length).map(x => x.id)"
    )
    assert unnamed == []
