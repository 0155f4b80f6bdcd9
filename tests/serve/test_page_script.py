"""The script for pages of a shop: lists, impressions, clicks and conversions, from another origin in a real Chromium."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from playwright.sync_api import expect

from tests.engine.conftest import hosted
from tests.serve.test_other_pages import made_key
from tests.servers import PATIENCE, served, until

pytestmark = [pytest.mark.chromium, pytest.mark.server]

PAGE = """<!doctype html><title>shop</title>
<div id="list" data-distilrec="home" data-k="3" data-href="#{{id}}">{inside}</div>
<script src="{service}/distilrec.js" {data} defer></script>
"""
CARDS = "<p>Sold well</p><template><article><a><b data-title></b></a></article></template>"


@pytest.fixture
def shop(bundle_copy, tmp_path, browser):
    """Opens pages of a shop with the script of a service, which is returned too."""
    with ExitStack() as stack:
        folder = tmp_path / "site"
        folder.mkdir()
        site = stack.enter_context(hosted(folder))

        def start(*options: str):
            return stack.enter_context(
                served(
                    bundle_copy,
                    "--allowed-origins",
                    site,
                    *options,
                    store=str(tmp_path / "page.db"),
                )
            )

        def visit(service, data="", inside=""):
            (folder / "index.html").write_text(
                PAGE.format(service=service.url, data=data, inside=inside)
            )
            page = browser.new_context().new_page()
            stack.callback(page.context.close)
            page.set_default_timeout(1_000 * PATIENCE)
            page.goto(site)
            return page

        yield start, visit


def outcomes(service):
    """What became of the lists in the placement of the page."""
    groups = service.client.get("/v1/outcomes?by=placement").json()["groups"]
    return next((group for group in groups if group["placement"] == "home"), None)


def test_what_is_shown_clicked_and_bought_is_counted_with_its_answer(shop):
    start, visit = shop
    service = start()
    page = visit(service, 'data-user="u3"')
    rows = page.locator("#list ol > li")
    expect(rows).to_have_count(3)
    asked = {"user_id": "u3", "k": 3}
    best = [
        one["item_id"] for one in service.client.post("/v1/recommend", json=asked).json()["items"]
    ]
    assert rows.evaluate_all("rows => rows.map(row => row.dataset.item)") == best
    link = rows.nth(1).locator("a")
    assert link.get_attribute("href") == f"#{best[1]}"
    link.dblclick()
    page.evaluate(
        "item => distilrec.event({item_id: item, event_type: 'buy', value: 9.5})", best[1]
    )

    def counted():
        found = outcomes(service) or {}
        names = ("answers", "impressions", "clicks", "conversions", "value")
        return [found.get(name) for name in names] == [1, 3, 1, 1, 9.5]

    until(counted, "three impressions, a click and a conversion are counted")


def test_a_public_key_is_enough(shop, tmp_path):
    start, visit = shop
    made, keys = made_key("--public", "--rate", "1000"), tmp_path / "keys.toml"
    keys.write_text(made.stdout)
    service = start("--keys", str(keys))
    page = visit(service, f'data-user="u3" data-key="{made.stderr.split()[-1]}"')
    with page.expect_response("**/v1/events") as sent:
        expect(page.locator("#list li")).to_have_count(3)
    assert sent.value.json()["attributed"] == 3


def test_cards_of_the_page_show_titles_as_text(shop):
    start, visit = shop
    service = start()
    title = "<img src=x onerror=alert(1)>"
    for item in service.client.get("/v1/items?limit=100").json()["items"]:
        service.client.put(f"/v1/items/{item['item_id']}", json={"title": title})
    page = visit(service, 'data-user="u3"', CARDS)
    cards = page.locator("#list article[data-item]")
    expect(cards).to_have_count(3)
    assert page.locator("#list p").count() == 0  # what stood there before
    assert cards.first.locator("b").inner_text() == title
    assert page.locator("#list img").count() == 0


def test_what_stood_there_stays_where_the_service_refuses(shop):
    start, visit = shop
    service = start()
    page = visit(service, 'data-user="u3"', CARDS)
    expect(page.locator("#list article")).to_have_count(3)
    page.evaluate(
        """() => {
          const list = document.createElement("div");
          Object.assign(list.dataset, {distilrec: "home", k: "0"});
          list.id = "other";
          list.textContent = "Sold well";
          document.body.append(list);
          return distilrec.render(list);
        }"""
    )
    other = page.locator("#other")
    assert other.inner_text() == "Sold well"
    assert "k" in other.get_attribute("data-distilrec-problem")


@pytest.mark.parametrize("kept", [False, True])
def test_only_a_page_that_says_so_keeps_an_id_of_its_visitors(shop, kept):
    start, visit = shop
    service = start()
    page = visit(service, "data-visitor" if kept else "")
    expect(page.locator("#list li")).to_have_count(3)
    first = page.evaluate("localStorage.getItem('distilrec-visitor')")
    assert bool(first) == kept
    assert page.evaluate("[localStorage.length, sessionStorage.length]") == [int(kept), 0]
    if kept:
        with page.expect_response("**/v1/events") as sent:
            page.reload()
        assert sent.value.json()["attributed"] == 3
    page.reload()
    expect(page.locator("#list li")).to_have_count(3)
    assert page.evaluate("localStorage.getItem('distilrec-visitor')") == first


def test_a_page_can_make_the_list_itself(shop):
    start, visit = shop
    service = start()
    page = visit(service, 'data-user="u3"')
    page.evaluate(
        """() => {
          const list = document.querySelector("#list");
          list.addEventListener("distilrec", (wanted) => {
            wanted.preventDefault();
            list.replaceChildren(...wanted.detail.items.map((item) => {
              const button = document.createElement("button");
              button.textContent = item.item_id;
              distilrec.track(button, item, wanted.detail);
              return button;
            }));
          });
          return distilrec.render(list);
        }"""
    )
    page.locator("#list button").first.click()
    until(lambda: (outcomes(service) or {}).get("clicks") == 1, "the click is counted")
