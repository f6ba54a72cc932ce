"""The service map in a real Chromium: real traffic of a lab, hostile names, keyboard, time, token, reconnection.

The page may cause no error on its console in any test: a violation of its Content-Security-Policy is one.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from nfq_enforcer.cluster.names import End
from nfq_enforcer.core.events import DnsMessage, HttpMessage
from nfq_enforcer.core.labels import Label, Labels
from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.node import LabNode
from tests.integration.conftest import MakeLab
from tests.support.labs import BRIEF, FRONT_TO_BACK, HTTP, PATIENT, start
from tests.support.map_agent import MapAgent, dropped, end, event, restamped
from tests.support.map_page import MISSING, brightness, chromium, opened, place_on_canvas, serving

pytestmark = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")

expect.set_options(timeout=20_000)
WEB, DB = end("shop", "web-1", role="web"), end("shop", "db-1", role="db")
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'`${alert(3)}"
HOSTILE = Labels(
    [Label("k8s", "role", MARKUP), Label("k8s", "rtl", "\u202egnp.exe"), Label("container", "\x1b[2J", "\x00")]
)


def hostile_policy() -> dict[str, object]:
    """Return the policy of an endpoint in which every text is markup."""
    rule = {"kind": "CiliumNetworkPolicy", "namespace": "shop", "name": MARKUP, "rule": "ingress[0]", "text": MARKUP}
    row = {
        **{"action": "allow", "rule": rule, "any_peer": False, "peers": [{"identity": 1, "labels": [MARKUP]}]},
        **{"peers_total": 1, "ports": [MARKUP], "requests": [f"GET {MARKUP}"], "requests_total": 1},
    }
    side = {"enforced": True, "enforced_by": [rule], "rows": [row], "rows_total": 1}
    labels = [str(label) for label in HOSTILE]
    return {"endpoint": MARKUP, "revision": 1, "labels": labels, "ingress": side, "egress": side}


@pytest.fixture(scope="module")
def browser(runner: asyncio.Runner) -> Iterator[Browser]:
    """Run one Chromium for the module."""
    stack = AsyncExitStack()
    yield runner.run(stack.enter_async_context(chromium()))
    runner.run(stack.aclose())


@pytest.fixture(scope="module")
def lab(make_served: MakeLab) -> Lab:
    """Build the module's lab, with servers on its hosts."""
    return make_served(memory=True)


@pytest.fixture(scope="module")
def node(lab: Lab) -> LabNode:
    """Start the agent of n1, which has front1 and back1: frontends may connect to backends."""
    return start(lab, "n1", documents=FRONT_TO_BACK)


@pytest.fixture
def agent(tmp_path: Path) -> MapAgent:
    return MapAgent(tmp_path / "agent.sock")


@asynccontextmanager
async def of_lab(browser: Browser, node: LabNode) -> AsyncIterator[Page]:
    with serving(node.socket) as url:
        async with opened(browser, url) as page:
            yield page


async def connect(lab: Lab, source: str, target: str, *, passes: bool) -> None:
    """Make a real connection, or one that is refused."""
    result = await lab.host(source).connect(lab.address(target), HTTP, PATIENT if passes else BRIEF)
    assert result.status == ("ok" if passes else "timeout")


def flow_row(page: Page, source: str, destination: str, verdict: str) -> Locator:
    return page.locator("#edges button", has_text=re.compile(f"^{source} → {destination} {verdict}"))


async def test_real_traffic_appears_while_the_page_is_open(browser: Browser, lab: Lab, node: LabNode) -> None:
    async with of_lab(browser, node) as page:
        await connect(lab, "front1", "back1", passes=True)
        await connect(lab, "back1", "front1", passes=False)
        await connect(lab, "world", "back1", passes=False)

        await expect(flow_row(page, "front1", "back1", "FORWARDED")).to_contain_text("80/TCP")
        await expect(flow_row(page, "back1", "front1", "DROPPED")).to_contain_text("80/TCP")
        await expect(flow_row(page, "world", "back1", "DROPPED")).to_be_visible()
        await expect(page.locator("#counts")).to_contain_text(re.compile(r"^3 workloads, \d+ edges$"))
        await page.locator("#tab-nodes").click()
        await expect(page.locator("#nodes button")).to_have_text(
            ["back1default · role=backend", "front1default · role=frontend", "worldreserved"]
        )
        drawn = await page.evaluate("window.graphOfTest.cy.nodes('.workload').map((node) => node.id()).sort()")
        assert drawn == ["default/back1", "default/front1", "reserved:world"]


async def test_an_edge_of_the_drawing_shows_its_flows_its_rule_and_why(
    browser: Browser, lab: Lab, node: LabNode
) -> None:
    await connect(lab, "back1", "front1", passes=False)
    async with of_lab(browser, node) as page:
        await expect(flow_row(page, "back1", "front1", "DROPPED")).to_be_visible()
        await page.mouse.click(*await place_on_canvas(page, '["default/back1","default/front1","DROPPED"]'))

        details = page.locator("#details")
        await expect(details.locator("h2")).to_have_text("back1 → front1 DROPPED")
        await expect(details.get_by_role("table", name="Rules that decided")).to_contain_text("default/front-to-back")
        flows = details.get_by_role("table", name="Newest flows")
        await expect(flows).to_contain_text(f"{lab.address('back1')} → {lab.address('front1')}")
        await expect(flows).to_contain_text("POLICY_DENIED")
        await expect(details.locator(".why")).to_contain_text("ingress of default/front1: deny")
        await expect(details.locator(".why")).to_contain_text("The smallest change with which it passes:")


async def test_a_workload_of_the_drawing_shows_its_compiled_policy(browser: Browser, lab: Lab, node: LabNode) -> None:
    await connect(lab, "front1", "back1", passes=True)
    async with of_lab(browser, node) as page:
        await expect(flow_row(page, "front1", "back1", "FORWARDED")).to_be_visible()
        await page.mouse.click(*await place_on_canvas(page, "default/back1"))

        details = page.locator("#details")
        await expect(details.locator("h2")).to_have_text("default/back1")
        ingress = details.get_by_role("table", name="Ingress: may connect to it")
        await expect(ingress.locator("tbody tr")).to_have_count(1)
        await expect(ingress).to_contain_text("allow")
        await expect(ingress).to_contain_text("role=frontend")
        await expect(ingress).to_contain_text("default/front-to-back")
        await expect(details).to_contain_text("Egress: it may connect to")
        await expect(details).to_contain_text("Not enforced: everything passes that no row denies.")


async def test_the_filter_narrows_the_map_and_explains_a_mistake(browser: Browser, lab: Lab, node: LabNode) -> None:
    await connect(lab, "front1", "back1", passes=True)
    await connect(lab, "back1", "front1", passes=False)
    async with of_lab(browser, node) as page:
        await expect(flow_row(page, "front1", "back1", "FORWARDED")).to_be_visible()
        await page.fill("#filter", "--from-label role=backend --verdict DROPPED")
        await page.keyboard.press("Enter")

        await expect(flow_row(page, "front1", "back1", "FORWARDED")).to_have_count(0)
        await expect(page.locator("#edges button")).to_have_count(1)
        await expect(flow_row(page, "back1", "front1", "DROPPED")).to_be_visible()
        assert "filter=--from-label" in page.url
        await page.reload()
        await expect(page.locator("#edges button")).to_have_count(1)


async def test_a_mistake_in_the_filter_is_one_sentence(browser: Browser, agent: MapAgent) -> None:
    with agent.running(event(WEB, DB)), serving(agent.path) as url:
        troubles: list[str] = []
        page = await browser.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        await page.goto(url)
        await expect(page.locator("#edges button")).to_have_count(1)
        await page.fill("#filter", "--verdict NONE")
        await page.keyboard.press("Enter")

        await expect(page.locator("#filter-error")).to_contain_text("--verdict 'NONE': allowed: FORWARDED, DROPPED")
        await expect(page.locator("#edges button")).to_have_count(1)  # the map stays
        assert troubles == []
        await page.close()


async def test_everything_can_be_reached_by_the_keyboard(browser: Browser, agent: MapAgent) -> None:
    with agent.running(event(WEB, DB), dropped(DB, WEB)), serving(agent.path) as url:
        async with opened(browser, url) as page:
            await expect(page.locator("#edges button")).to_have_count(2)
            await page.keyboard.press("/")
            await expect(page.locator("#filter")).to_be_focused()
            await page.keyboard.type("--namespace shop")
            await page.keyboard.press("Enter")
            while not await page.evaluate("document.activeElement.matches('#edges button')"):
                await page.keyboard.press("Tab")
            await expect(page.locator("#edges button").first).to_be_focused()
            await page.keyboard.press("ArrowDown")
            await expect(page.locator("#edges button").nth(1)).to_be_focused()
            await page.keyboard.press("Enter")
            await expect(page.locator("#details")).to_be_focused()
            await expect(page.locator("#details h2")).to_have_text("web-1 → db-1 FORWARDED")
            await page.keyboard.press("Escape")
            await expect(page.locator("#details")).to_be_hidden()
            await expect(page.locator("#edges button").nth(1)).to_be_focused()
            await page.locator("#tab-edges").focus()
            await page.keyboard.press("ArrowRight")
            await expect(page.locator("#nodes button")).to_have_count(2)
            await page.locator("#map").focus()
            before = await page.evaluate("window.graphOfTest.cy.zoom()")
            await page.keyboard.press("+")
            assert await page.evaluate("window.graphOfTest.cy.zoom()") > before


async def test_names_of_the_network_neither_run_nor_break_the_page(browser: Browser, agent: MapAgent) -> None:
    hostile = End(HOSTILE, "sh\u202eop", f"web-{MARKUP}")
    path = HttpMessage(False, "GET", f"http://x/{MARKUP}\u202e", "HTTP/1.1")
    query = DnsMessage(False, f"{MARKUP}.example", 1)
    agent.policy = hostile_policy()
    flows = event(hostile, DB, l7=path), event(DB, hostile, l7=query), dropped(hostile, DB)
    with agent.running(*flows), serving(agent.path) as url:
        async with opened(browser, url) as page:
            await expect(page.locator("#edges button")).to_have_count(3)
            for number in range(3):
                await page.locator("#edges button").nth(number).click()
                await expect(page.get_by_role("table", name="Newest flows")).to_contain_text("192.0.2.")
                await expect(page.locator("#details .why")).not_to_contain_text("Looking for")
            await page.locator("#tab-nodes").click()
            await page.locator("#nodes button", has_text="web-<img").click()
            await expect(page.locator("#details")).to_contain_text("<script>alert(2)</script>")
            await expect(page.locator("#details")).to_contain_text("rtl=\\u202egnp.exe")
            content = await page.evaluate("document.body.innerText")
            assert await page.locator("#details img, #nodes img, #edges img, body script").count() == 0

    assert not set(content) & {"\u202e", "\x1b", "\x00"}


async def test_an_agent_that_is_started_anew_is_followed_again(browser: Browser, lab: Lab, node: LabNode) -> None:
    await connect(lab, "front1", "back1", passes=True)
    async with of_lab(browser, node) as page:
        await expect(flow_row(page, "front1", "back1", "FORWARDED")).to_be_visible()
        node.stop()
        await expect(page.locator("#state")).to_contain_text("The agent is away since")
        await expect(flow_row(page, "front1", "back1", "FORWARDED")).to_be_visible()
        start(lab, "n1", documents=FRONT_TO_BACK)
        await expect(page.locator("#state")).to_be_empty()
        await connect(lab, "world", "front1", passes=False)
        await expect(flow_row(page, "world", "front1", "DROPPED")).to_be_visible()


async def test_losses_are_shown(browser: Browser, agent: MapAgent) -> None:
    with agent.running(event(WEB, DB)), serving(agent.path) as url:
        async with opened(browser, url) as page:
            await expect(page.locator("#edges button")).to_have_count(1)
            agent.add(*restamped([dropped(DB, WEB)] * 10_500))
            await expect(page.locator("#state")).to_contain_text("flows lost: they came faster than they were read")


async def test_the_slider_goes_through_the_time_of_the_log(browser: Browser, agent: MapAgent) -> None:
    now = time.time()
    flows = [event(end("shop", f"web-{age}", role="web"), DB, at=now - age) for age in (3000, 2000, 1000)]
    with agent.running(*flows), serving(agent.path) as url:
        async with opened(browser, url) as page:
            await expect(page.locator("#edges button")).to_have_count(3)
            await page.locator("#time").focus()
            await page.keyboard.press("Home")
            await page.keyboard.press("ArrowRight")
            await expect(page.locator("#edges button")).to_have_count(1)
            await expect(flow_row(page, "web-3000", "db-1", "FORWARDED")).to_be_visible()
            await expect(page.locator("#live")).to_have_attribute("aria-pressed", "false")
            await page.locator("#time").fill(str(round(now - 1500)))
            await expect(page.locator("#edges button")).to_have_count(2)
            await page.locator("#window").select_option("900")
            await expect(flow_row(page, "web-2000", "db-1", "FORWARDED")).to_be_visible()
            await expect(page.locator("#edges button")).to_have_count(1)
            await page.locator("#window").select_option("")
            await page.locator("#live").click()
            await expect(page.locator("#edges button")).to_have_count(3)


async def test_light_and_dark_follow_the_system_and_the_user(browser: Browser, agent: MapAgent) -> None:
    with agent.running(event(WEB, DB)), serving(agent.path) as url:
        for scheme, other in (("light", "dark"), ("dark", "light")):
            async with opened(browser, url, color_scheme=scheme) as page:
                await expect(page.locator("#edges button")).to_have_count(1)
                assert (await brightness(page) > 0.5) is (scheme == "light")
                while await page.locator("#theme").text_content() != f"Theme: {other}":
                    await page.locator("#theme").click()
                assert (await brightness(page) > 0.5) is (scheme == "dark")
                await page.reload()
                await expect(page.locator("html")).to_have_attribute("data-theme", other)


async def test_an_address_other_than_loopback_opens_with_its_token_only(browser: Browser, agent: MapAgent) -> None:
    with agent.running(event(WEB, DB)), serving(agent.path, listen="0.0.0.0:0") as printed:
        page_url, _, fragment = printed.replace("0.0.0.0", "127.0.0.1").partition("#")
        page = await browser.new_page()
        await page.goto(page_url)
        await expect(page.locator("#token")).to_be_visible()
        await page.fill("#token-text", "wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#token-error")).to_contain_text("needs the token")
        await page.fill("#token-text", fragment.removeprefix("token="))
        await page.keyboard.press("Enter")
        await expect(page.locator("#edges button")).to_have_count(1)
        await page.context.clear_cookies()
        await page.close()
        async with opened(browser, f"{page_url}#{fragment}") as by_link:
            await expect(by_link.locator("#edges button")).to_have_count(1)
            assert by_link.url == page_url  # the token does not stay in the history
            assert await by_link.evaluate("document.cookie") == ""


async def test_workloads_stay_at_their_places_while_flows_come(browser: Browser, agent: MapAgent) -> None:
    places = "window.graphOfTest.cy.nodes('.workload').map((node) => [node.id(), node.position()])"
    flows = [event(end("shop", f"web-{number}", role="web"), DB) for number in range(5)]
    with agent.running(*flows), serving(agent.path) as url:
        async with opened(browser, url) as page:
            await expect(page.locator("#edges button")).to_have_count(5)
            before = dict(await page.evaluate(places))
            agent.add(dropped(DB, flows[0].names.source), event(end("shop", "web-5", role="web"), DB))
            await expect(page.locator("#edges button")).to_have_count(7)
            after = dict(await page.evaluate(places))

    assert {key: after[key] for key in before} == before
    assert len(after) == 7
