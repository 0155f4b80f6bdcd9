"""Every list of a shop's page from one bundle: every command of docs/shop.md, in order, and what it answers."""

from __future__ import annotations

import json
import re
from collections import Counter

import polars as pl
import pytest
from playwright.sync_api import expect

from tests import films
from tests.servers import PATIENCE
from tests.walkthrough import steps, walked

pytestmark = [pytest.mark.slow, pytest.mark.server]

PAGE = steps("shop.md")
GENRES = {
    str(item): genres.split("|")
    for item, genres in films.tables()["items"].select("item_id", "genres").iter_rows()
} | {"9000": ["Comedy"]}


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The page on a stand-in for MovieLens 100K, with its service and its web server."""
    folder = tmp_path_factory.mktemp("shop")
    films.write_cache(folder / "cache")
    films.export_demo(folder)
    chosen = [step for step in PAGE if step.text != "make demo"]
    assert len(PAGE) - len(chosen) == 1
    cache = {"DISTILREC_CACHE": str(folder / "cache")}
    with walked(chosen, folder, "8000", "8080", env=cache) as walk:
        yield walk
    assert {path.stat().st_mode & 0o077 for path in folder.glob("*.key")} == {0}


@pytest.fixture
def page(browser):
    """A new page in a browser."""
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(1_000 * PATIENCE)
    yield opened
    context.close()


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def scores(answer):
    """By item; best first."""
    found = {item["item_id"]: item["score"] for item in answer["items"]}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    return found


def printed(walk, command):
    """What the one step that begins like this has printed."""
    [text] = [text for step, text in walk.printed if step.text.startswith(command)]
    return text


def bought(walk):
    """The item that user 123 has clicked and bought."""
    *_, after = walk.below("What the user does")
    [first] = walk.below("The home page")
    return ids(first)[0], ids(after)


def secret(walk, name):
    return re.findall(r"dr_[\w-]+", (walk.folder / f"{name}.key").read_text())[-1]


def test_the_home_page_has_a_list(walk):
    [answer] = walk.below("The home page")
    assert answer["known_user"] is True and len(answer["recommendation_id"]) == 32
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
    assert all(item["title"] == f"Film {item['item_id']}" for item in answer["items"])


def test_events_are_attributed_and_followed(walk):
    *stored, _ = walk.below("What the user does")
    assert [(one["accepted"], one["attributed"]) for one in stored] == [(1, 1)] * 3
    item, after = bought(walk)
    assert item not in after and len(after) == 5


def test_what_is_disliked_is_not_shown_again(walk):
    load, before, stored, after = walk.below("What the user does not want")
    assert load["switched"] is True and load["model_version"] == before["model_version"]
    assert "'dislike': 'negative'" in printed(walk, "ask /v1/model")
    assert stored["accepted"] == 1 and "unknown_types" not in stored
    log = films.tables()["interactions"].filter(user_id=123)
    disliked = {ids(before)[0], *map(str, log.filter(pl.col("rating") <= 2)["item_id"])}
    assert set(ids(after)) == set(map(str, films.ITEMS)) - disliked


def test_the_session_of_a_visitor_becomes_the_users(walk):
    visitor, first, again, _, other, user = walk.below("A visitor, and the login")
    assert visitor["user_id"] is None and not {"50", "172"} & set(ids(visitor))
    assert [one["events"] for one in (first, again, other)] == [2, 0, 1]
    assert [event["item_id"] for event in user["events"]] == ["101", "172", "50"]


def test_what_is_like_the_cart_is_new_to_the_user(walk):
    [answer] = walk.below("The cart")
    assert len(scores(answer)) == 5 and not {"50", "172", bought(walk)[0]} & set(ids(answer))


def test_what_is_popular_is_counted_by_type(walk):
    popular, trending, latest = walk.below("Popular, trending, latest")
    item, _ = bought(walk)
    # Targets only: the purchases, and the event without a type, but no click and no dislike
    assert scores(popular) == Counter([item, "172", "50"])
    assert scores(trending) == pytest.approx(Counter([item, item, "172", "101"]), rel=0.2)
    years = films.tables()["items"]["release_year"].sort(descending=True)
    assert [one["value"] for one in latest["items"]] == years.head(5).to_list()


def test_strangers_get_what_is_popular(walk):
    [answer] = walk.below("Strangers")
    added = {one["item_id"]: one.get("popular") for one in answer["items"]}
    assert answer["known_user"] is False
    assert added.pop(bought(walk)[0]) > 0 and added == {"789": None}


def test_rules_are_followed(walk):
    item, loaded, home, asked = walk.below("Rules")
    assert item["in_training"] is False
    assert printed(walk, "distilrec rules check").count(": ok") == 2
    assert set(loaded["placements"]) == {"home", "mail"} and "problems" not in loaded
    assert home["rules"]["version"] == loaded["version"]
    assert ids(home)[1] == "456" and "9000" in ids(home)
    assert not [item for item in ids(home) if "Horror" in GENRES[item]]
    assert ids(asked)[0] == "789" and "version" not in asked["rules"]
    for answer, most in ((home, 4), (asked, 2)):
        shown = [genre for item in ids(answer) for genre in GENRES[item]]
        assert len(set(ids(answer))) == 5 and max(map(shown.count, shown)) <= most
        assert {one["rule"] for one in answer["rules"]["moved"]} & {"film of the week", "pin 1"}


def test_pages_and_letters_do_not_overlap(walk):
    first, second, *letters = walk.below("The next page, and no repetition")
    assert len(first) == 5 and not set(first) & set(ids(second))
    assert [item["rank"] for item in second["items"]] == [6, 7, 8, 9, 10]
    assert [len(ids(letter)) for letter in letters] == [5, 5]
    assert not set(ids(letters[0])) & set(ids(letters[1]))


def test_outcomes_have_the_click_and_the_purchase(walk):
    by_placement, by_position = (
        {group[name]: group for group in answer["groups"]}
        for name, answer in zip(("placement", "position"), walk.below("Outcomes"), strict=True)
    )
    home = by_placement["home"]
    assert [home[name] for name in ("shown", "clicked", "converted", "value")] == [1, 1, 1, 19.9]
    assert home["click_rate"]["low"] < 1 / home["answers"] < home["click_rate"]["high"]
    assert by_placement["cart"]["clicked"] == 0
    assert by_position[1]["clicks"] == by_position[1]["conversions"] == 1


def test_the_experiment_ends_with_the_variant(walk):
    begun, listed, promoted, other, stopped, answer = walk.below("An experiment")
    [running] = listed["experiments"]
    arms = dict(
        reversed(line.split()) for line in printed(walk, "for user in").splitlines() if line.strip()
    )
    assert arms == {
        f"plain/{arm}": str(running["result"][arm]["answers"]) for arm in ("control", "variant")
    }
    assert [one["state"] for one in (begun, running, promoted)] == [
        "running",
        "running",
        "promoted",
    ]
    assert (other["rules"], stopped["state"]) == ({}, "stopped")
    assert answer["model_version"] == begun["variant_version"] != begun["control_version"]
    assert ids(answer)[1] == "456" and "variant" not in answer


def test_a_public_key_may_not_list_users(walk):
    text = printed(walk, "curl --silent --include")
    assert f"access-control-allow-origin: http://localhost:{walk.ports['8080']}" in text
    assert json.loads(text.splitlines()[-1])["error"]["code"] == "forbidden"


def test_the_page_has_a_list_and_says_what_was_shown(walk, page):
    with page.expect_response("**/v1/events") as sent:
        page.goto(f"http://localhost:{walk.ports['8080']}")
        expect(page.locator("[data-distilrec] li")).to_have_count(4)
    assert sent.value.json()["attributed"] == 4


def test_probabilities_and_worth_order_lists(walk):
    *priced, likely, worth = walk.below("Probabilities, and what a list is worth")[:5]
    assert [item["attributes"]["price"] for item in priced] == [9.5] * 3
    chances = [item["probability"] for item in likely["items"]]
    assert chances == sorted(chances, reverse=True) and 0 < sum(chances) < 1
    values = [item["value"] for item in worth["items"]]
    assert values == sorted(values, reverse=True)
    assert values == [pytest.approx(sum(item["parts"].values())) for item in worth["items"]]
    assert any("price" in item["parts"] for item in worth["items"]) and ids(worth) != ids(likely)
    for command in ("distilrec recommend", "from distilrec import load"):
        assert len(printed(walk, command).strip().splitlines()) >= 5


def test_the_console_shows_all_of_it(walk, page):
    page.goto(f"http://localhost:{walk.ports['8000']}/console")
    page.fill("#key", secret(walk, "staff"))
    page.press("#key", "Enter")
    *_, answer = walk.below("An experiment")
    expect(page.locator("#model-facts")).to_contain_text(answer["model_version"])
    expect(page.locator("#outcomes-table")).to_contain_text("home")
    expect(page.locator("#experiments")).to_contain_text("no pin")
