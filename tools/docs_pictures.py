"""The built documentation in a headless Chromium: what a search finds first, and pictures.

``python tools/docs_pictures.py [FOLDER]``, after ``make docs``, types words into the search of the
site and fails where the wrong page comes first, where outputs look like code, or where the
reference shows what is internal. With a folder it also puts pictures there, of one page of each
kind and of the search, light and dark, wide and narrow, and fails where a page is wider than its
window or a picture in it does not load.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

SITE = Path(__file__).parents[1] / "site"
FIRST = {
    "learning rate": "guide/",
    "exploding": "guide/",
    "gradient accumulation": "guide/",
    "SG201": "rules/SG201/",
    "AutoClip": "methods/",
    "choose a threshold": "guide/",
}
"""Words, and where the page that is found first stands."""

REFERENCE = {"detach": True, "diagnose": True, "makes_room": False}
"""Methods of PyTorch's handle, one of them inherited, and whether they are for users."""

PAGES = {
    "home": "",
    "guide": "guide/",
    "guide-clipping": "guide/clipping/",
    "rule": "rules/SG201/",
    "rules": "rules/",
    "method": "methods/AutoClip/",
    "reference": "reference/steadygrad.torch/",
    "diagnosis": "diagnosis/",
}
FORMS = [(theme, width) for theme in ("light", "dark") for width in (1400, 390)]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves without a word."""

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def search(tab: Any, address: str, words: str) -> list[str]:
    """Where the pages stand that are found, the best first."""
    tab.goto(address)
    narrow = tab.locator("label.md-header__button[for=__search]")
    if narrow.is_visible():
        narrow.click()
    tab.locator(".md-search__input").click()
    tab.keyboard.type(words)
    tab.wait_for_selector(".md-search-result__item")
    links = tab.locator(".md-search-result__item > a.md-search-result__link")
    hrefs = links.evaluate_all("links => links.map(link => link.href)")
    return [str(href).removeprefix(address).partition("?")[0] for href in hrefs]


def misled(tab: Any, address: str) -> list[str]:
    """The words whose first page is not the one that it should be."""
    wrong = []
    for words, place in FIRST.items():
        pages = search(tab, address, words)
        print(f"{words}: {', '.join(pages[:3])}", flush=True)
        if not pages[0].startswith(place):
            wrong.append(f"{words!r} finds {pages[0]} first, not {place}")
    return wrong


def outputs_like_code(tab: Any, address: str) -> list[str]:
    """A word where what a block printed does not look unlike what one types."""
    tab.goto(f"{address}guide/clipping/")
    marked = "blocks => blocks.filter(b => getComputedStyle(b).borderLeftWidth !== '0px').length"
    unlike = tab.locator("pre code").evaluate_all(marked)
    return [] if 0 < unlike < tab.locator("pre code").count() else ["outputs look like code"]


def wrongly_referred_to(tab: Any, address: str) -> list[str]:
    """The methods that the reference shows and should not, or the other way round."""
    tab.goto(f"{address}reference/steadygrad.torch/")
    shown = {n: tab.locator(f"[id='steadygrad.torch.Steady.{n}']").count() > 0 for n in REFERENCE}
    return [f"the reference shows {n}: {shown[n]}" for n in shown if shown[n] != REFERENCE[n]]


def pictured(browser: Any, address: str, folder: Path) -> list[str]:
    """What is wrong with the pages whose pictures are put into the folder."""
    wrong = []
    for theme, width in FORMS:
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        for name, place in PAGES.items():
            tab.goto(f"{address}{place}", wait_until="networkidle")
            tab.screenshot(path=folder / f"{name}-{theme}-{width}.png")
            if tab.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                wrong.append(f"{place} is wider than {width}")
            lost = "images => images.filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
            wrong += tab.locator("article img").evaluate_all(lost)
        search(tab, address, next(iter(FIRST)))
        tab.wait_for_timeout(500)
        tab.screenshot(path=folder / f"search-{theme}-{width}.png")
        tab.close()
    return wrong


def main() -> None:
    """Serve the site, look, say what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="for pictures; none by default")
    asked = parser.parse_args()
    with sync_playwright() as playwright, served(SITE) as address:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page()
        wrong = misled(tab, address) + outputs_like_code(tab, address)
        wrong += wrongly_referred_to(tab, address)
        if asked.folder:
            asked.folder.mkdir(parents=True, exist_ok=True)
            wrong += pictured(browser, address, asked.folder)
        browser.close()
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
