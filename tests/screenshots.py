"""Screenshots of the service map for the documentation, of real traffic in a lab (root).

python -m tests.screenshots        writes service-map.png and its like into docs/images/
"""

import asyncio
import io
from pathlib import Path

from PIL import Image
from playwright.async_api import Page, expect

from nfq_enforcer.lab.lab import Lab
from nfq_enforcer.lab.network import new_run_id
from nfq_enforcer.lab.topology import Topology
from tests.support.labs import serve
from tests.support.map_page import chromium, opened, serving

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
_NODE = "n2"
_TCP = (
    *(("front1", "back2", 80), ("front1", "back2", 443), ("front2", "back2", 80), ("front3", "back2", 80)),
    *(("front2", "back1", 443), ("back2", "db3", 8080), ("db3", "back2", 8080), ("n3", "front2", 80)),
    *(("back1", "front2", 80), ("world", "back2", 80), ("front2", "db3", 8080), ("back2", "world", 443)),
)


async def _traffic(lab: Lab) -> None:
    for _ in range(5):
        attempts = (lab.host(source).connect(lab.address(target), port, 1.0) for source, target, port in _TCP)
        await asyncio.gather(*attempts)


async def _take(page: Page, name: str) -> None:
    await page.wait_for_timeout(500)  # the drawing follows the size of its place
    file = IMAGES / f"{name}.png"
    with Image.open(io.BytesIO(await page.screenshot())) as image:
        image.convert("RGB").quantize(128).save(file, optimize=True)
    print(f"{file.name}: {file.stat().st_size // 1000} kB")


async def _shoot(lab: Lab) -> None:
    with serving(lab.nodes[_NODE].socket) as url:
        async with chromium() as browser:
            async with opened(browser, url, color_scheme="light") as page:
                await _traffic(lab)
                await expect(page.locator("#edges button")).to_have_count(11)
                await _take(page, "service-map")
                await page.locator("#edges button", has_text="db3 → back2").click()
                await expect(page.locator("#details .why")).to_contain_text("smallest change")
                await _take(page, "service-map-edge")
            async with opened(browser, url, color_scheme="dark") as page:
                await page.locator("#tab-nodes").click()
                await page.locator("#nodes button", has_text="back2").click()
                await expect(page.get_by_role("table", name="Ingress: may connect to it")).to_be_visible()
                await _take(page, "service-map-workload")


async def main() -> None:
    """Build a lab, and take the screenshots."""
    IMAGES.mkdir(exist_ok=True)
    async with Lab(Topology(new_run_id())) as lab:
        await serve(lab)
        lab.start_agents()
        await lab.apply("frontend-to-backend", (ROOT / "policies" / "frontend-to-backend.yaml").read_text())
        await _shoot(lab)


if __name__ == "__main__":
    asyncio.run(main())
