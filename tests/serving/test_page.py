"""The page at `/`, in a headless Chromium with real clicks and keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from dylora_moe.build.pool import Pool
from dylora_moe.serving.served import Served
from tests import pools
from tests.serving.browser import chromium
from tests.serving.doubles import ENDLESS
from tests.serving.http.conftest import KEY, Live, settings
from tests.serving.live_engine import LiveEngine

PATIENCE = 60_000
"""Milliseconds: machines that run tests are slow and busy."""
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def pool(taught_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with pools.copied(taught_folder, tmp_path_factory.mktemp("page") / "pool") as opened:
        assert opened.live.revision.number == 2
        yield opened


@pytest.fixture(scope="module")
def serve(pool: Pool) -> Iterator[Callable[..., str]]:
    """Starts servers of the pool; returns where they are."""
    with ExitStack() as stack:

        def start(keys: list[str] | None = None, **options: Any) -> str:
            engine = LiveEngine(pool, **options)
            stack.callback(engine.drain, 0.1)
            served = Served(pool, engine, "tiny")
            return stack.enter_context(Live(served, settings(), keys or [])).url

        yield start


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    return serve()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Open]:
    """Opens the page, and fails where it complains in its console."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def make(
        at: str = url,
        loaded: bool = True,
        before: Callable[[Page], None] = lambda page: None,
        **options: Any,
    ) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        # A key that is refused or not enough, and a server that is not ready, are said by the
        # browser too.
        page.on(
            "console",
            lambda told: (
                complaints.append(told.text)
                if told.type == "error" and not re.search("401|403|503", told.text)
                else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        before(page)
        page.goto(at)
        if loaded:
            expect(page.locator("#status")).to_have_text("ready", timeout=PATIENCE)
            expect(page.locator("#map-body svg")).to_be_visible(timeout=PATIENCE)
        return page

    expect.set_options(timeout=PATIENCE)
    yield make
    for context in contexts:
        context.close()
    assert not complaints


def ask(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Send").click()


def last_answer(page: Page) -> Any:
    return page.locator("#log li").last


def test_the_pool_is_seen_at_a_glance(opened: Open) -> None:
    page = opened()
    expect(page.get_by_role("heading", level=1)).to_have_text("tiny")
    experts = page.get_by_role("table", name="Experts of the pool")
    expect(experts.get_by_role("rowheader")).to_have_text(
        [re.compile("letters"), re.compile("digits"), re.compile("base")]
    )
    scores = page.get_by_role("table", name=re.compile("after each change"))
    expect(scores.locator("tbody tr")).to_have_count(2)
    page.get_by_label("Show").select_option("loss")
    expect(scores.locator("tbody td").last).to_have_text(re.compile(r"^\d+\.\d\d$"))
    skills = page.get_by_role("img", name="Skills on a plane: letters, digits, no expert.")
    expect(skills).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^loss over updates"))).to_be_visible()
    expect(page.locator("#events li").first).to_contain_text("created digits v1")


def test_an_answer_says_which_expert_gave_it(opened: Open) -> None:
    page = opened()
    ask(page, "one two three")
    expect(last_answer(page).locator(".text")).to_have_text("one two three")
    expect(last_answer(page).locator(".tag.expert")).to_have_text("letters v1 · 97 %")
    last_answer(page).get_by_text("Provenance").click()
    provenance = last_answer(page).get_by_role("table", name="Where the answer came from")
    expect(provenance.get_by_role("row", name=re.compile("^revision"))).to_contain_text("2")
    page.get_by_label("Answered by").select_option("digits")
    ask(page, "four")
    expect(last_answer(page).locator(".tag.expert")).to_have_text("digits v1 · 100 %")
    page.get_by_label("Answered by").select_option("base")
    ask(page, "five")
    expect(last_answer(page).locator(".tag.expert")).to_have_text("base")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#log li")).to_have_count(0)


def test_a_prompt_is_routed_while_it_is_typed(opened: Open) -> None:
    page = opened()
    page.get_by_label("Prompt", exact=True).press_sequentially("654321")
    weights = page.get_by_role("table", name="Weights of the experts")
    expect(weights.get_by_role("row", name=re.compile("^digits"))).to_be_visible()
    expect(page.locator("#route-summary")).to_contain_text("Nearest skill digits")
    expect(page.locator("circle.prompt")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("")
    expect(weights).to_have_count(0)
    expect(page.locator("circle.prompt")).to_have_count(0)


def test_it_is_used_by_keyboard_alone(opened: Open, serve: Callable[..., str]) -> None:
    page = opened(serve(pause=0.05))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.type(ENDLESS)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(last_answer(page).locator(".text")).to_contain_text("on on")
    page.keyboard.press("Escape")
    expect(last_answer(page).locator(".tag")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_key_is_asked_for_once_and_kept_in_the_tab(
    opened: Open, serve: Callable[..., str]
) -> None:
    page = opened(serve(keys=[KEY]), loaded=False)
    dialog = page.get_by_role("dialog", name="An API key is needed")
    for key in ("wrong", KEY):
        dialog.get_by_label("API key").fill(key)
        dialog.get_by_role("button", name="Go on").click()
        if key != KEY:
            expect(dialog).to_contain_text("does not know this key")
    expect(dialog).to_be_hidden()
    expect(page.locator("#status")).to_have_text("ready")
    page.reload()
    expect(page.locator("#status")).to_have_text("ready")
    assert page.evaluate("sessionStorage.length + localStorage.length") == 1
    assert page.context.cookies() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1360])
def test_nothing_is_wider_than_the_screen(opened: Open, scheme: Any, width: int) -> None:
    page = opened(viewport={"width": width, "height": 780}, color_scheme=scheme)
    ask(page, "a" * 120)
    expect(last_answer(page).locator(".tag.expert")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("abcdef")
    expect(page.locator("#route-body table")).to_be_visible()
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page_colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (page_colour == "rgb(13, 17, 23)") == (scheme == "dark")


def test_what_a_model_writes_stays_text(opened: Open) -> None:
    page = opened()
    ask(page, "<img src=x onerror=alert(1)><b>bold</b>")
    expect(last_answer(page).locator(".text")).to_contain_text("<img src=x")
    assert page.locator("#log img, #log b").count() == 0


def test_an_error_is_said_where_the_answer_would_be(opened: Open) -> None:
    page = opened()
    ask(page, "break down")
    expect(last_answer(page).locator(".tag.bad")).to_contain_text("something went wrong")


def test_a_change_of_the_pool_is_seen_without_a_reload(opened: Open, pool: Pool) -> None:
    page = opened()
    pool.rename("digits", "numbers")
    try:
        expect(page.locator("#experts-body")).to_contain_text("numbers")
        expect(page.get_by_label("Answered by").locator("option")).to_have_text(
            ["the router's choice", "letters", "numbers", "base"]
        )
    finally:
        pool.rename("numbers", "digits")


def test_what_could_not_be_had_is_asked_for_again(opened: Open) -> None:
    refused = {"**/v1/pool/map", "**/v1/pool/scores"}

    def once(name: str) -> Callable[[Route], None]:
        def answer(route: Route) -> None:
            if name in refused:
                refused.remove(name)
                route.fulfill(status=503, json={"error": {"message": "not yet"}})
            else:
                route.continue_()

        return answer

    page = opened(before=lambda page: [page.route(name, once(name)) for name in list(refused)])
    assert not refused
    expect(page.get_by_role("table", name=re.compile("after each change"))).to_be_visible()
    expect(page.get_by_label("Answered by").locator("option")).to_have_count(4)


def test_a_key_that_no_header_takes_is_asked_for_again(
    opened: Open, serve: Callable[..., str]
) -> None:
    page = opened(serve(keys=[KEY]), loaded=False)
    dialog = page.get_by_role("dialog", name="An API key is needed")
    dialog.get_by_label("API key").fill("\u20ac")
    dialog.get_by_role("button", name="Go on").click()
    expect(dialog).to_contain_text("without accents")
    dialog.get_by_label("API key").fill(KEY)
    dialog.get_by_role("button", name="Go on").click()
    expect(page.locator("#status")).to_have_text("ready")


CLUSTER = {
    "id": "0a1b2c3d", "object": "inbox.cluster", "size": 2, "asked": 5,
    "examples": [{"messages": [{"role": "user", "content": "+-*/"}], "count": 4}],
    "nearest": [{"expert": "digits", "separability": 0.97}],
    "separability": {"value": 0.97, "low": 0.91, "high": 0.99}, "apart": True, "lacking": 30,
}  # fmt: skip
PROMPTS = [{"messages": [{"role": "user", "content": text}], "count": 1} for text in ("+-*/", "==")]
JOB = {"id": "job-1", "subject": "inbox-0a1b2c3d", "state": "running", "stage": "training",
       "progress": 0.25, "message": ""}  # fmt: skip


def with_inbox(page: Page, sent: list[Any]) -> None:
    """Puts an inbox of one cluster in front of the server."""

    def now(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), "inbox": True})

    def confirm(route: Route) -> None:
        sent.append(route.request.post_data_json)
        route.fulfill(status=202, json=JOB)

    page.route("**/v1/pool/now", now)
    page.route("**/v1/inbox", lambda route: route.fulfill(json={"data": [CLUSTER]}))
    page.route("**/v1/inbox/*", lambda route: route.fulfill(json={**CLUSTER, "prompts": PROMPTS}))
    page.route("**/v1/inbox/*/confirm", confirm)
    page.route("**/v1/jobs/*", lambda route: route.fulfill(json={**JOB, "state": "done"}))


def test_an_inbox_asks_for_an_admin_key_and_goes_on_without(opened: Open) -> None:
    error = {"message": "an admin key is needed", "code": "admin_key_needed"}

    def guarded(route: Route) -> None:
        if route.request.headers.get("authorization") == f"Bearer {KEY}":
            route.fulfill(json={"data": [CLUSTER]})
        else:
            route.fulfill(status=403, json={"error": error})

    def before(page: Page) -> None:
        with_inbox(page, [])
        page.route("**/v1/inbox", guarded)

    page = opened(before=before)
    inbox, dialog = page.locator("#inbox-body"), page.get_by_role("dialog")
    expect(inbox).to_contain_text("Not shown: an admin key is needed.")
    expect(page.locator("#alert")).to_be_hidden()
    inbox.get_by_role("button", name="Give an admin key").click()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    inbox.get_by_role("button", name="Give an admin key").click()
    dialog.get_by_label("API key").fill(KEY)
    dialog.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("article", name="Cluster 0a1b2c3d")).to_be_visible()


def test_an_inbox_that_is_off_says_how_it_is_turned_on(opened: Open) -> None:
    expect(opened().locator("#inbox-body")).to_contain_text("inbox.enabled set to true")


def test_a_cluster_that_is_gone_says_so(opened: Open) -> None:
    page = opened(before=lambda page: with_inbox(page, []))
    page.route(
        "**/v1/inbox/*",
        lambda route: route.fulfill(status=503, json={"error": {"message": "no such cluster"}}),
    )
    cluster = page.get_by_role("article", name="Cluster 0a1b2c3d")
    cluster.get_by_role("button", name="Answer and learn").click()
    expect(cluster.get_by_role("alert")).to_have_text("no such cluster")


def test_a_drop_that_fails_leaves_what_is_being_written(opened: Open) -> None:
    page = opened(before=lambda page: with_inbox(page, []))
    cluster = page.get_by_role("article", name="Cluster 0a1b2c3d")
    cluster.get_by_role("button", name="Answer and learn").click()
    cluster.get_by_label("+-*/").fill("half an answer")
    page.route(
        "**/v1/inbox/*",
        lambda route: route.fulfill(status=503, json={"error": {"message": "not now"}}),
    )
    cluster.get_by_role("button", name="Drop").click()
    cluster.get_by_role("button", name="Drop 2 prompts for good").click()
    expect(cluster.get_by_role("alert")).to_have_text("not now")
    expect(cluster.get_by_label("+-*/")).to_have_value("half an answer")


def test_a_cluster_of_the_inbox_is_answered_and_learned(opened: Open) -> None:
    sent: list[Any] = []
    page = opened(before=lambda page: with_inbox(page, sent))
    cluster = page.get_by_role("article", name="Cluster 0a1b2c3d")
    expect(cluster).to_contain_text("Another skill than digits (0.97, 0.91 to 0.99).")
    expect(cluster).to_contain_text("30 prompts are lacking for a verdict.")
    cluster.get_by_role("button", name="Answer and learn").click()
    cluster.get_by_role("button", name="Learn", exact=True).click()
    expect(cluster).to_contain_text("Give at least one answer.")
    cluster.get_by_label("+-*/").fill("+++")
    cluster.get_by_label("Name of a new expert").fill("signs")
    cluster.get_by_role("button", name="Learn", exact=True).click()
    expect(page.locator("#inbox-jobs")).to_contain_text("Learning inbox-0a1b2c3d")
    expect(page.locator("#inbox-jobs")).to_contain_text("done")
    answered = [*PROMPTS[0]["messages"], {"role": "assistant", "content": "+++"}]
    assert sent == [{"answers": [{"messages": answered}], "name": "signs"}]
