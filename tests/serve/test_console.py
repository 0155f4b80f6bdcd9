"""The console in a real Chromium, against real services, with its strict content security policy in force."""

from __future__ import annotations

import re
import shutil
from collections import Counter

import pytest
from playwright.sync_api import expect
from prometheus_client.parser import text_string_to_metric_families

from distilrec import load
from distilrec.serve.keys import SCOPES, new_key
from tests.pages import assert_readable, watched
from tests.servers import PATIENCE, Server, free_port, served, until

pytestmark = [pytest.mark.chromium, pytest.mark.server]

KEYS = {
    name: new_key(name, scopes, rate)
    for name, scopes, rate in (
        ("admin", SCOPES, None),
        ("reader", ["recommend"], None),
        ("slow", SCOPES, 0.01),
    )
}
EVIL = "<img src=x onerror=alert(1)>"
PEOPLE = [f"p{n}" for n in range(400)]


@pytest.fixture(scope="module")
def service(finished_run, tmp_path_factory):
    """A service with keys that has answered, and been refused, a little."""
    folder = tmp_path_factory.mktemp("console")
    for name, source in (("one", finished_run.bundle), ("two", finished_run.bundle_baseline)):
        shutil.copytree(source, folder / name)
    entries = [entry.replace("rate = 0.01", "rate = 0.01\nburst = 1") for _, entry in KEYS.values()]
    (folder / "keys.toml").write_text("".join(entries))
    with served(folder / "one", "--keys", folder / "keys.toml") as running:
        running.client.headers["authorization"] = f"Bearer {KEYS['admin'][0]}"
        running.client.put("/v1/items/evil", json={"title": EVIL, "features": {"price": 3}})
        running.client.put(f"/v1/items/{'long' * 60}", json={"title": "long" * 200})
        ask(running, PEOPLE[:30], placements=("cart", "home", "home"))
        running.event("u3", "nothing")
        running.event("u3", "i1")
        assert running.client.get("/v1/items/none").status_code == 404
        yield running


@pytest.fixture
def page(browser):
    """A page whose complaints, but those of refused requests, fail the test; it asks one host only."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(1_000 * PATIENCE)
    complaints, hosts = watched(opened)
    opened.on("dialog", lambda dialog: pytest.fail("a script of a title ran"))
    yield opened
    context.close()
    assert hosts == {"127.0.0.1"}
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def ask(service, users, placements=(None,)):
    """One answer for each user, whose first item is clicked by every third."""
    requests = [
        {"user_id": user, "k": 3, "placement": placements[n % len(placements)]}
        for n, user in enumerate(users)
    ]
    answers = [
        answer
        for first in range(0, len(requests), 50)
        for answer in service.post("/v1/recommend/batch", requests=requests[first : first + 50])[
            "results"
        ]
    ]
    clicks = [
        {"user_id": answer["user_id"], "item_id": answer["items"][0]["item_id"], "event_type": "click",
         "recommendation_id": answer["recommendation_id"]}
        for answer in answers[::3]
    ]  # fmt: skip
    service.post("/v1/events", events=clicks)


def sign_in(page, service, name):
    page.goto(f"{service.url}/console")
    page.fill("#key", KEYS[name][0])
    page.press("#key", "Enter")
    expect(page.locator("#model-facts")).to_contain_text("recurrent")


def table(page, name):
    """The texts of the cells of a table."""
    page.wait_for_selector(f"#{name} td", state="attached")
    return page.eval_on_selector_all(
        f"#{name} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )


def test_it_asks_for_a_key_and_says_what_that_may_not_see(page, service):
    page.goto(f"{service.url}/console")
    expect(page.locator("#key")).to_be_focused()
    expect(page.locator("#all")).to_be_hidden()
    page.fill("#key", "dr_wrong")
    page.press("#key", "Enter")
    expect(page.locator("#problem")).to_contain_text("not valid")
    sign_in(page, service, "reader")
    for section, scope in (
        ("requests", "metrics"),
        ("outcomes", "admin"),
        ("experiments", "admin"),
    ):
        expect(page.locator(f"#{section} .says")).to_contain_text(f"the scope {scope}")
        expect(page.locator(f"#{section} .shown")).to_be_hidden()
    expect(page.locator("#model-changes")).to_be_hidden()
    page.fill("#user-id", "u3")
    page.press("#user-id", "Enter")
    expect(page.locator("#user-answers li")).to_have_count(10)
    expect(page.locator("#user-says")).to_contain_text("the scope users")
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [
        1,
        0,
        "",
    ]
    assert_readable(page, 1280)
    page.reload()
    expect(page.locator("#model-facts")).to_contain_text("recurrent")
    page.click("#forget-key")
    expect(page.locator("#key-form")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_figures_are_those_of_the_service(page, service):
    def groups():
        return service.client.get("/v1/outcomes?by=placement").json()["groups"]

    until(lambda: sum(group["answers"] for group in groups()) >= 30, "answers are counted")
    sign_in(page, service, "admin")
    rows = {cells[1]: cells for cells in table(page, "outcomes-table") if cells[0] == "all"}
    for group in groups():
        cells = rows[group["placement"] or "(no placement)"]
        assert [cells[2], cells[4]] == [str(group["answers"]), str(group["clicked"])]
        low = float(re.search(r"\(([\d.]+)%", cells[5])[1])
        assert low == pytest.approx(100 * group["click_rate"]["low"], rel=0.01)
    assert page.locator("#outcomes-chart .line").count() == len(rows)
    errors = {(cells[0], cells[1]): cells[2:4] for cells in table(page, "errors-table")}
    assert errors["item_unknown", "get_item"] == ["the request", "1"]
    drift = page.locator("#drift-list li").first
    assert re.search(r"\(1 of \d+\)", drift.inner_text())
    endpoints = {cells[0]: int(cells[1]) for cells in table(page, "requests-table")}
    assert endpoints["recommend_batch"] == 1
    ask(service, PEOPLE[:3])  # the page follows
    row = page.locator("#requests-table tr").filter(has_text="recommend_batch")
    expect(row.locator("td").nth(1)).to_have_text("2")
    for scheme, width in (("light", 1280), ("dark", 1280), ("dark", 375)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 740})
        assert_readable(page, width)


def test_sums_and_quantiles(page, service):
    text = service.client.get("/metrics").text
    wanted = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            wanted[sample.name] += sample.value
    page.goto(f"{service.url}/console")
    found = page.evaluate(
        """async (text) => {
          const {parse, sum} = await import("/console/metrics.js");
          const samples = parse(text);
          return [...samples.keys()].map((name) => [name, sum(samples, name)]);
        }""",
        text,
    )
    assert dict(found) == pytest.approx(dict(wanted))
    quantiles = page.evaluate(
        """async () => {
          const {parse, quantile} = await import("/console/metrics.js");
          const buckets = [[1, 10], [2, 30], [Infinity, 40]];
          const labels = parse('a{b="x\\\\"y,z=",c="\\\\\\\\"} 2').get("a")[0].labels;
          return [labels.b, labels.c, quantile(buckets, 0.5), quantile(buckets, 0.9), quantile([], 0.5)];
        }"""
    )
    assert quantiles == ['x"y,z=', "\\", 1.5, float("inf"), None]


def counted(service):
    """Return how many answers were counted so far."""
    groups = service.client.get("/v1/outcomes").json()["groups"]
    return sum(group["answers"] for group in groups)


def test_a_user_and_an_item_and_why(page, service):
    sign_in(page, service, "admin")
    before = counted(service)
    page.fill("#user-id", "u3")
    page.press("#user-id", "Enter")
    expect(page.locator("#user-answers li")).to_have_count(10)
    wanted = service.post("/v1/recommend", user_id="u3", k=10, explain=True)["items"]
    rows = page.locator("#user-answers li")
    assert rows.evaluate_all("rows => rows.map(row => row.dataset.item)") == [
        item["item_id"] for item in wanted
    ]
    reasons = rows.first.locator(".why .number").all_inner_texts()
    contributions = [reason["contribution"] for reason in wanted[0]["because"]]
    assert [float(reason.replace("−", "-")) for reason in reasons] == pytest.approx(
        contributions, abs=0.006
    )
    expect(page.locator("#user-events li").first).to_contain_text("interaction")
    expect(page.locator("#user-rules")).to_be_hidden()
    rows.first.locator("button").click()
    expect(page.locator("#item-name")).to_be_focused()
    expect(page.locator("#item-facts")).to_contain_text(wanted[0]["item_id"])
    similar = service.post("/v1/similar", item_ids=[wanted[0]["item_id"]], k=10)["items"]
    assert page.locator("#item-similar li").evaluate_all(
        "rows => rows.map(row => row.dataset.item)"
    ) == [item["item_id"] for item in similar]
    page.fill("#item-text", "onerror")
    page.press("#item-text", "Enter")
    expect(page.locator("#item-name")).to_have_text(EVIL)
    assert page.locator("main img").count() == 0
    page.fill("#item-text", "no such title")
    page.press("#item-text", "Enter")
    expect(page.locator("#item-says")).to_contain_text("No item")
    page.fill("#user-id", "somebody else")
    page.press("#user-id", "Enter")
    expect(page.locator("#user-who")).to_contain_text("for everybody")
    page.set_viewport_size({"width": 375, "height": 740})
    page.fill("#item-text", "longlong")
    page.press("#item-text", "Enter")
    expect(page.locator("#item-name")).to_contain_text("longlong")
    assert counted(service) == before + 2  # those of this test itself
    assert_readable(page, 375)


def test_what_the_rules_of_a_placement_do(page, service):
    rules = {
        "pin": [{"item_id": "i41", "slot": 1, "name": "of the week"}],
        "tired": {"impressions": 1, "answers": True},
    }
    service.post("/v1/rules/load", placements={"home": rules})
    sign_in(page, service, "admin")
    plain = service.items("u7", k=10)
    page.fill("#user-id", "u7")
    page.select_option("#user-placement", "home")
    for _ in range(2):  # looking tires no item
        with page.expect_response("**/v1/recommend"):
            page.click("#user-form button")
        rows = page.locator("#user-answers li")
        expect(rows.first).to_contain_text("of the week: was")
        assert (
            rows.evaluate_all("rows => rows.map(row => row.dataset.item)") == ["i41", *plain][:10]
        )
    service.post("/v1/rules/load", placements={})


@pytest.mark.slow
def test_experiments_with_the_keyboard(page, service):
    one, two = (load(service.log.parent / name).model_version for name in ("one", "two"))

    def answered():
        (found,) = service.client.get("/v1/experiments").json()["experiments"][:1]
        return found

    sign_in(page, service, "admin")
    page.focus("#start summary")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("summer")
    page.keyboard.press("Tab")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator("#sure-text")).to_have_text("Answer 50% of users with the bundle two?")
    assert_readable(page, 1280)
    page.keyboard.press("Escape")
    expect(page.locator("#sure")).to_be_hidden()
    assert service.client.get("/v1/experiments").json()["experiments"] == []
    expect(page.locator("#start-bundle")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#sure-no")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    card = page.locator(".experiment")
    expect(card).to_contain_text("Too little is known")
    expect(page.locator("#start")).to_be_hidden()
    ask(service, PEOPLE)
    card.get_by_role("button", name="Stop").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("Earlier experiments (1)").click()
    found = answered()
    assert found["state"] == "stopped" and found["variant_version"] == two
    for arm in ("control", "variant"):
        row = card.locator("tr").filter(has_text=re.compile(f"^{arm}"))
        expect(row).to_contain_text(f"{found['result'][arm]['answers']}")
    expect(card).to_contain_text("answers with a click: ")
    assert card.locator("svg[role=img]").count() == 1
    assert_readable(page, 1280)
    service.post("/v1/experiments/start", name="winter", bundle="two", share=0.1)
    page.reload()
    page.get_by_role("button", name="Promote").click()
    page.click("#sure-yes")
    expect(page.locator("#model-facts dd").first).to_have_text(two)
    page.click("#rollback")
    page.click("#sure-yes")
    expect(page.locator("#model-facts dd").first).to_have_text(one)
    page.fill("#load-bundle", "nowhere")
    page.press("#load-bundle", "Enter")
    page.click("#sure-yes")
    expect(page.locator("#refusal")).to_contain_text("nowhere")


def test_a_key_that_asks_too_often(page, service):
    sign_in(page, service, "slow")
    expect(page.locator("#problem")).to_contain_text("requests per second")
    expect(page.locator("#problem")).to_contain_text("Asking again in")


@pytest.mark.slow
def test_a_service_that_is_away_comes_back(page, bundle, tmp_path):
    address, port = f"sqlite:///{tmp_path / 'store.db'}", free_port()
    service = Server(bundle, address, port=port)
    page.goto(f"{service.url}/console")
    expect(page.locator("#no-outcomes")).to_be_visible()
    expect(page.locator("#no-errors")).to_be_visible()
    expect(page.locator("#no-experiments")).to_be_visible()
    expect(page.locator("#key-form")).to_be_hidden()
    assert_readable(page, 1280)
    service.kill()
    expect(page.locator("#state")).to_have_text("does not answer")
    expect(page.locator("#problem")).to_contain_text("Asking again")
    service = Server(bundle, address, port=port)
    expect(page.locator("#state")).to_have_text("ready")
    expect(page.locator("#problem")).to_be_hidden()
    assert service.stop() == 0
