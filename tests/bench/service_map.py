"""Service map with 500 workloads and 5,000 edges: frame times of the page in Chromium, and the costs of its server.

    python -m tests.bench.service_map

Chromium is headless and renders in software, as on a machine without a graphics card. The page gets changes of some
hundred edges at a time while the pointer drags the map, then while the wheel zooms, then while nothing moves.
"""

import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from nfq_enforcer.observe.flow import Logged
from tests.support.map_agent import MapAgent, dropped, end, event, restamped
from tests.support.map_page import CHROMIUM, serving

WORKLOADS, EDGES = 500, 5_000
_CHANGED = 300  # flows a second while frames are measured
_MEASURED = 5.0  # s of each kind
_PATIENT = 120_000.0  # ms
_FRAMES = """
() => {
  window.frames_ = [];
  let last = performance.now();
  const next = (now) => { window.frames_.push(now - last); last = now; requestAnimationFrame(next); };
  requestAnimationFrame(next);
}
"""


def flows(chosen: random.Random) -> list[Logged]:
    """Return one flow for each edge, of workloads in ten namespaces with ten groups of five."""
    workloads = [end(f"team-{n % 10}", f"app-{n}", role=f"role-{n // 10 % 10}") for n in range(WORKLOADS)]
    made: dict[tuple[str, str, bool], Logged] = {}
    while len(made) < EDGES:
        source, destination = chosen.sample(workloads, 2)
        make, port = chosen.choices((event, dropped), (85, 15))[0], chosen.choice((80, 443, 5432))
        made[source.name, destination.name, make is event] = make(source, destination, port=port)
    return list(made.values())


def _load(agent: MapAgent, all_flows: list[Logged], stop: threading.Event, chosen: random.Random) -> None:
    while not stop.wait(0.25):
        agent.add(*restamped(chosen.sample(all_flows, _CHANGED // 4)))


def _drag(page: Page) -> None:
    box = page.locator("#map").bounding_box()
    assert box is not None
    x, y, until = box["x"] + 15, box["y"] + box["height"] - 60, time.monotonic() + _MEASURED
    page.mouse.move(x, y)
    page.mouse.down()
    step = 0
    while time.monotonic() < until:
        step += 1
        page.mouse.move(x + step % 60 * 4, y - step % 60 * 3)
    page.mouse.up()


def _zoom(page: Page) -> None:
    box = page.locator("#map").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    until, step = time.monotonic() + _MEASURED, 0
    while time.monotonic() < until:
        step += 1
        page.mouse.wheel(0, 60 if step // 8 % 2 else -60)


def _rest(page: Page) -> None:
    page.wait_for_timeout(_MEASURED * 1000)


def _report(name: str, frames: list[float]) -> None:
    ordered = sorted(frames)
    p95, worst = ordered[int(len(ordered) * 0.95)], ordered[-1]
    median = statistics.median(ordered)
    print(
        f"  {name:28} {len(frames) / sum(frames) * 1000:5.0f} frames/s  median {median:5.1f} ms"
        f"  95 % {p95:6.1f} ms  longest {worst:6.1f} ms"
    )


def _measure(url: str) -> Iterator[tuple[str, list[float]]]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        started = time.monotonic()
        page.goto(url)
        page.get_by_text(f"{EDGES:,} edges").wait_for(timeout=_PATIENT)
        print(f"  page complete after {time.monotonic() - started:.1f} s")
        page.wait_for_timeout(2000)
        page.evaluate(_FRAMES)
        for name, act in (("changes alone", _rest), ("changes, dragging the map", _drag), ("changes, zooming", _zoom)):
            page.evaluate("window.frames_.length = 0")
            act(page)
            yield name, page.evaluate("window.frames_.splice(0)")
        browser.close()


def main() -> None:
    """Print the figures."""
    chosen = random.Random(14)
    all_flows = flows(chosen)
    with TemporaryDirectory() as folder:
        agent = MapAgent(Path(folder) / "agent.sock", 2 * EDGES)
        with agent.running(*all_flows), serving(agent.path) as url:
            stop = threading.Event()
            load = threading.Thread(target=_load, args=(agent, all_flows, stop, chosen))
            print(
                f"{WORKLOADS} workloads, {EDGES} edges, {_CHANGED} new flows/s, Chromium in software,"
                f" load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
            )
            load.start()
            try:
                for name, frames in _measure(url):
                    _report(name, frames)
            finally:
                stop.set()
                load.join()


if __name__ == "__main__":
    main()
