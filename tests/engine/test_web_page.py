"""The page of `make web` in a real Chromium: online, offline, after an update, on a phone, with the keyboard, for everybody."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from distilrec import load
from tests import ROOT
from tests.engine.conftest import hosted
from tests.pages import watched
from tests.servers import PATIENCE, until

pytestmark = [pytest.mark.chromium, pytest.mark.slow]


def made(bundle: Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "web" / "make_page.py"), "--bundle", str(bundle), "--folder", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """A folder with the page in a folder below, as static hosts have it."""
    found = tmp_path_factory.mktemp("host")
    printed = made(trained, found / "films")
    size = sum(path.stat().st_size for path in (found / "films").iterdir())
    assert printed == f"{found / 'films'}: {size:,} bytes, for any static host\n"
    return found


@pytest.fixture(scope="module")
def host(folder):
    with hosted(folder) as address:
        yield f"{address}/films/"


@pytest.fixture
def page(browser):
    """A page of a new profile, whose complaints (scripts, policy, missing files, foreign hosts) fail the test."""
    context = browser.new_context()
    context.set_default_timeout(1_000 * PATIENCE)
    opened = context.new_page()
    complaints, hosts = watched(opened)
    yield opened
    context.close()
    assert complaints == []
    assert hosts == {"127.0.0.1"}


def listed(page):
    page.wait_for_selector("#answers li")
    return page.eval_on_selector_all("#answers li", "rows => rows.map(row => row.dataset.item)")


def works_offline(page):
    """Wait until the service worker has kept the page."""
    until(lambda: page.evaluate("navigator.serviceWorker.controller !== null"), "the page is kept")


@pytest.fixture
def library(folder):
    """The same student in Python."""
    return load(folder / "films" / "student.drec", runtime="numpy")


def best(library, **options):
    return [answer.item_id for answer in library.recommend("me", k=12, **options)]


def test_clicks_move_the_list_as_in_python_and_send_nothing(page, host, library):
    page.goto(host)
    assert listed(page) == best(library)
    expect(page.locator("#no-history")).to_be_visible()
    works_offline(page)
    sent: list[str] = []
    page.context.on("request", lambda request: sent.append(request.url))
    chosen = []
    for place in (1, 4):
        chosen.append(listed(page)[place - 1])
        page.click(f"#answers li:nth-child({place}) button")
        expect(page.locator("#history li")).to_have_count(len(chosen))
        library.update([{"user_id": "me", "item_id": chosen[-1]}])
        assert listed(page) == best(library)
    assert page.locator("#history li").all_inner_texts() == [
        library.title(item) for item in reversed(chosen)
    ]
    assert page.locator(".moved").count() > 0
    assert "of 12 recommendations are new" in page.inner_text("#spoken")
    # The reasons are those of the engine, the largest first.
    shown = {
        item: page.locator(f"#answers li[data-item='{item}'] .why").all_inner_texts()
        for item in listed(page)
    }
    for item, texts in shown.items():
        reasons = [one for one in library.explain("me", item, k=2) if one.contribution > 0]
        assert [re.findall(r"\+\d+\.\d\d", text) for text in texts] == (
            [[f"+{one.contribution:.2f}" for one in reasons]] if reasons else []
        )
    assert any(shown.values())
    assert sent == []


def test_the_meter_tells_times_and_bytes(page, host, folder):
    page.goto(host)
    listed(page)
    assert re.fullmatch(r"\d+ µs|\d+\.\d ms", page.inner_text("#answer-time"))
    assert page.inner_text("#answer-about") == "42 items scored, WebAssembly"
    assert re.fullmatch(r"\d+ µs|\d+\.\d ms", page.inner_text("#start-time"))
    size = (folder / "films" / "student.drec").stat().st_size
    assert f"student {size / 1_000:.1f} kB" in page.inner_text("#bytes-about")
    assert page.inner_text("#network") == "online"


def test_filter_variety_and_search(page, host, library):
    from distilrec.engine.filters import Condition, Filter

    page.goto(host)
    listed(page)
    page.select_option("#category", "g1")
    assert listed(page) == best(
        library, where=Filter(attributes={"genres": Condition(any_of=("g1",))})
    )
    page.select_option("#category", "")
    page.fill("#diversity", "0.5")
    page.dispatch_event("#diversity", "change")
    assert listed(page) == best(library, diversity=0.5)
    page.fill("#search", "number 17")
    expect(page.locator("#found li")).to_have_count(1)
    page.click("#found button")
    expect(page.locator("#history li")).to_have_text(["Thing number 17"])


def test_it_is_there_again_and_forgotten_by_one_click(page, host):
    page.goto(host)
    first = listed(page)
    page.click("#answers li:first-child button")
    expect(page.locator("#history li")).to_have_count(1)
    after = listed(page)
    page.reload()
    assert listed(page) == after
    other = page.context.new_page()
    other.goto(host)
    assert listed(other) == after
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    expect(page.locator("#no-history")).to_be_visible()
    assert listed(page) == first
    # The other tab follows by itself.
    expect(other.locator("#no-history")).to_be_visible()
    assert listed(other) == first
    other.close()


def test_it_works_when_the_host_is_gone(page, folder):
    with hosted(folder) as address:
        page.goto(f"{address}/films/")
        page.click("#answers li:first-child button")
        works_offline(page)
    page.reload()
    expect(page.locator("#history li")).to_have_count(1)
    assert "from this device" in page.inner_text("#bytes-about")
    page.click("#answers li:first-child button")
    expect(page.locator("#history li")).to_have_count(2)
    assert page.inner_text("#network-about") == "works offline"
    page.context.set_offline(True)
    expect(page.locator("#network")).to_have_text("offline")


def test_a_newer_version_is_offered_and_taken_whole(page, trained, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "host")
    with hosted(tmp_path / "host") as address:
        page.goto(f"{address}/films/")
        page.click("#answers li:first-child button")
        works_offline(page)
        style = tmp_path / "host" / "films" / "page.css"
        made(trained, tmp_path / "host" / "films")  # the same files: nothing to offer
        page.reload()
        listed(page)
        page.evaluate(
            "navigator.serviceWorker.ready.then((found) => found.update()).then(() => null)"
        )
        expect(page.locator("#update")).to_be_hidden()
        style.write_text(style.read_text() + "h1 { color: rgb(1, 2, 3); }\n")
        worker = style.with_name("worker.js")
        worker.write_text(re.sub(r'VERSION = "\w+"', 'VERSION = "newer"', worker.read_text()))
        page.reload()
        expect(page.locator("#update")).to_be_visible()
        colour = "getComputedStyle(document.querySelector('h1')).color"
        assert (
            page.evaluate(colour) != "rgb(1, 2, 3)"
        )  # all files are still those of the old version
        page.click("#use-update")
        expect(page.locator("h1")).to_have_css("color", "rgb(1, 2, 3)")
        expect(page.locator("#history li")).to_have_count(1)
        until(
            lambda: [name.split()[-1] for name in page.evaluate("caches.keys()")] == ["newer"],
            "the files of the old version are gone",
        )


def test_where_the_browser_keeps_nothing_the_page_says_so_and_works(page, host):
    page.add_init_script("Object.defineProperty(globalThis, 'indexedDB', { value: undefined })")
    page.goto(host)
    page.click("#answers li:first-child button")
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator("#forgetful")).to_be_visible()
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    expect(page.locator("#no-history")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_everybody(page, host, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(host)
    page.click("#answers li:nth-child(2) button")
    expect(page.locator("#history li")).to_have_count(1)
    # axe is a script from outside, which the policy of the page refuses to evaluate in the page
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_on_a_phone_with_the_keyboard_only(page, host):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(host)
    before = listed(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#answers') !== null"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(1)
    assert before[0] not in listed(page)
    # The focus stays in the list, so that the next choice is one key away.
    assert page.evaluate("document.activeElement.closest('li').dataset.item") == listed(page)[0]
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(2)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select')].filter(x => !x.labels.length).map(x => x.id)"
    )
    assert unnamed == []


def test_the_policy_allows_files_of_the_host_only(folder):
    page = (folder / "films" / "index.html").read_text()
    policy = re.search(r'content-security-policy" content="([^"]+)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"
    assert rules.pop("script-src") == "'self' 'wasm-unsafe-eval'"
    assert set(rules.values()) == {"'self'"}
    # The service worker keeps all files but itself.
    worker = (folder / "films" / "worker.js").read_text()
    kept = set(re.findall(r'"([^"]+)"', re.search(r"FILES = (\[.*\])", worker)[1]))
    assert kept == {"./", *(path.name for path in (folder / "films").iterdir())} - {"worker.js"}
