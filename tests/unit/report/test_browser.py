"""The page in a real headless Chromium: drawn, quiet, offline, readable anywhere, and inert.

Everything a chart shows is made in the browser, so only a browser can tell
whether it is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadygrad.report import write_report
from steadygrad.runlog import Event, Run
from steadygrad.vocabulary import THROUGH_TIME

pytestmark = pytest.mark.browser

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(2)>',
    "<a href='javascript:alert(3)'>link</a>",
    "<b>%{y}</b> &lt;i&gt;",
)


class Page:
    """An open report, with everything it did that it should not have."""

    def __init__(
        self, browser: Any, path: Path, *, width: int = 1280, theme: str = "light"
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme
        )
        self.context.set_offline(True)
        self.context.set_default_timeout(120_000)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda m: self.complaints.append(m.text))
        self.tab.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.tab.on("dialog", lambda d: (self.complaints.append("dialog"), d.dismiss()))
        self.tab.on("request", lambda r: self.requests.append(r.url))
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector("html[data-ready=true]")

    def ask(self, script: str) -> Any:
        return self.tab.evaluate(script)

    def fetched(self) -> list[str]:
        """Requests for anything but the page itself."""
        return [u for u in self.requests[1:] if not u.startswith(("data:", "blob:"))]


@pytest.fixture(scope="module")
def pages(a_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run that broke, three compared, and one that is hostile; written once."""
    folder = tmp_path_factory.mktemp("pages")
    fading = [0.0, *np.geomspace(1e-9, 1.0, 7).tolist()]
    measured = {"tensor": 2, "length": 8, "positions": list(range(8)), "norms": fading}
    broken = a_run(
        nan_from=320,
        clip=2.0,
        info={"script": "train.py", "overhead_seconds": 0.1},
        events=tuple(Event(step, 0.0, THROUGH_TIME, measured) for step in (0, 1, 2, 4, 8)),
    )
    evil = a_run(
        nan_from=320,
        names=HOSTILE,
        info={
            "script": HOSTILE[0],
            "command": list(HOSTILE),
            "policy": HOSTILE[1],
            "optimizers": [{"class": HOSTILE[0], "index": 0}],
            "results": {HOSTILE[0]: HOSTILE[1]},
        },
    )
    tight = a_run(clip=0.002)
    made = {
        "one": [broken],
        "tight": [tight],
        "three": [a_run(), broken, a_run(clip=1.0)],
        "evil": [evil, evil],
    }
    return {name: write_report(runs, folder / f"{name}.html") for name, runs in made.items()}


@pytest.fixture(scope="module")
def tabs() -> Iterator[dict[Any, Page]]:
    """Pages that several tests may look at, since opening one takes a second."""
    opened: dict[Any, Page] = {}
    yield opened
    for page in opened.values():
        page.context.close()


@pytest.fixture
def look(
    chromium: Any, pages: dict[str, Path], tabs: dict[Any, Page]
) -> Iterator[Callable[..., Page]]:
    """Open a page by name (`fresh` to act on it); it must not have complained in the end."""
    seen: list[Page] = []
    own: list[Page] = []

    def open_page(name: str, *, fresh: bool = False, **how: Any) -> Page:
        key = (name, *sorted(how.items()))
        page = None if fresh else tabs.get(key)
        if page is None:
            page = Page(chromium, pages[name], **how)
            own.append(page) if fresh else tabs.setdefault(key, page)
        seen.append(page)
        return page

    yield open_page
    for page in seen:
        assert page.complaints == []
        assert page.fetched() == []
    for page in own:
        page.context.close()


MARKS = """() => {
  const box = e => e.getBoundingClientRect();
  const count = (plot, selector, good) => [...plot.querySelectorAll(selector)].filter(good).length;
  const shown = [...document.querySelectorAll('.plot')].filter(p => p.offsetWidth);
  return Object.fromEntries(shown.map(p => [p.dataset.chart, {
    lines: count(p, 'path.js-line', l => (l.getAttribute('d') || '').length > 40),
    bars: count(p, '.bars path', b => box(b).height > 1),
    cells: count(p, '.hm image', i => box(i).width > 50),
    points: count(p, '.points path', () => true),
    height: box(p).height,
  }]));
}"""


def test_every_chart_of_one_run_is_drawn(look: Callable[..., Page]) -> None:
    marks = look("one").ask(MARKS)
    assert set(marks) == {"curves", "thresholds", "heatmap", "through_time"}
    assert marks["through_time"]["cells"] >= 1
    assert marks["curves"]["lines"] >= 5  # loss and norm, each raw and smoothed, and the threshold
    assert marks["curves"]["points"] >= 4  # two spikes, clipped steps, NaN
    assert marks["thresholds"]["bars"] >= 5
    assert marks["thresholds"]["lines"] >= 1
    assert marks["heatmap"]["cells"] == 2  # norms and NaN
    assert all(m["height"] > 150 for m in marks.values())


def test_several_runs_are_overlaid_with_a_legend_and_a_table(look: Callable[..., Page]) -> None:
    page = look("three")
    marks = page.ask(MARKS)
    assert marks["overlay"]["lines"] >= 12
    legend = page.ask("() => [...document.querySelectorAll('.legendtext')].map(t => t.textContent)")
    assert legend == ["run 1", "run 2", "run 3"]
    assert page.tab.locator("table.compare tbody tr").count() == 3
    assert page.tab.locator("[role=tabpanel]:visible").count() == 1


def test_nan_is_marked_where_it_began(look: Callable[..., Page]) -> None:
    page = look("one")
    crosses = page.ask("""() => document.querySelector('.plot[data-chart=curves]').data
      .filter(t => t.marker && t.marker.symbol === 'x-thin-open').map(t => [t.x[0], t.text[0]])""")
    assert crosses == [
        [321, "NaN, steps 321 to 399, 79 of them"],
        [320, "NaN, steps 320 to 399, 80 of them"],
    ]


def test_each_finding_has_a_card_and_its_colour_on_the_curves(look: Callable[..., Page]) -> None:
    page = look("one")
    cards = page.tab.locator("article.card")
    assert cards.count() >= 1
    assert "SG101" in cards.first.inner_text()
    assert cards.first.locator("pre code").count() >= 1
    on_card = page.ask("() => getComputedStyle(document.querySelector('.letter')).backgroundColor")
    on_curve = page.ask("""() => {
      const badge = document.querySelector('.plot[data-chart=curves]').layout.annotations
        .find(a => a.text === '<b>A</b>');
      const probe = document.createElement('i');
      probe.style.color = badge.bgcolor;
      document.body.append(probe);
      return getComputedStyle(probe).color;
    }""")
    assert on_card == on_curve


def test_a_threshold_far_from_the_norms_is_on_the_chart_with_its_finding(
    look: Callable[..., Page],
) -> None:
    page = look("tight")
    assert "SG401" in page.tab.locator("article.card").first.inner_text()
    drawn = page.ask("""() => {
      const plot = document.querySelector('.plot[data-chart=curves]');
      const line = plot.data.find(t => (t.hovertemplate || '').startsWith('threshold'));
      return line && [line.y[0], plot._fullLayout.yaxis.range[0]];
    }""")
    assert drawn[0] == 0.002
    assert 10 ** drawn[1] < 0.002


def test_the_zoom_button_leads_to_the_findings_steps(look: Callable[..., Page]) -> None:
    page = look("one")
    page.tab.locator("article.card .zoom").first.click()
    page.tab.wait_for_timeout(100)
    low, high = page.ask(
        "() => document.querySelector('.plot[data-chart=curves]').layout.xaxis.range"
    )
    assert 250 < low < 320 < high
    assert high - low < 200


def test_copy_says_that_it_copied(look: Callable[..., Page]) -> None:
    page = look("one")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.tab.locator("article.card .copy").first.click()
    page.tab.wait_for_selector("text=Copied")
    code = page.tab.locator("article.card pre code").first.text_content()
    assert page.ask("() => navigator.clipboard.readText()") == code


PAINT = """() => [getComputedStyle(document.body).backgroundColor,
  getComputedStyle(document.querySelector('.plot text')).fill]"""


def brightness(colour: str) -> float:
    return sum(float(v) for v in re.findall(r"[\d.]+", colour)[:3]) / 3


def test_the_theme_follows_the_system_and_the_button(look: Callable[..., Page]) -> None:
    light, dark = look("one"), look("one", fresh=True, theme="dark")
    for page, is_dark in ((light, False), (dark, True)):
        background, text = map(brightness, page.ask(PAINT))
        assert (background < 60) is is_dark
        assert abs(background - text) > 60
    dark.tab.click("#theme")
    dark.tab.wait_for_function(
        "() => document.querySelector('.plot').dataset.drawn.startsWith('light')"
    )
    assert dark.ask(PAINT) == light.ask(PAINT)
    assert dark.tab.get_attribute("#theme", "aria-pressed") == "false"


@pytest.mark.parametrize(
    ("name", "width"), [("one", 390), ("three", 390), ("evil", 390), ("evil", 1280)]
)
def test_nothing_scrolls_sideways(look: Callable[..., Page], name: str, width: int) -> None:
    page = look(name, width=width)
    assert page.ask("() => document.documentElement.scrollWidth") <= width
    inside = page.ask("""() => [...document.querySelectorAll('.plot')].filter(p => p.offsetWidth)
      .every(p => p.querySelector('.main-svg').getBoundingClientRect().right <= innerWidth)""")
    assert inside


def test_a_narrowed_window_redraws_its_charts(look: Callable[..., Page]) -> None:
    page = look("one", fresh=True)
    page.tab.set_viewport_size({"width": 500, "height": 800})
    page.tab.wait_for_function(
        "() => document.querySelector('.plot .main-svg').getBoundingClientRect().width < 500"
    )
    assert page.ask("() => document.documentElement.scrollWidth") <= 500


def test_tabs_work_by_mouse_and_by_keyboard(look: Callable[..., Page]) -> None:
    page = look("three", fresh=True)
    page.tab.click("#tab-1")
    assert page.tab.locator("[role=tabpanel]:visible").get_attribute("id") == "run-1"
    page.tab.keyboard.press("ArrowRight")
    assert page.tab.locator("[role=tabpanel]:visible").get_attribute("id") == "run-2"
    assert page.ask("() => document.activeElement.id") == "tab-2"
    page.tab.wait_for_function("() => document.querySelector('#run-2 .plot').dataset.drawn")
    assert page.ask(MARKS)["curves"]["lines"] >= 5


def test_every_control_has_a_name_and_every_chart_a_description(look: Callable[..., Page]) -> None:
    page = look("three")
    nameless = page.ask("""() => [...document.querySelectorAll('button')]
      .filter(b => !(b.getAttribute('aria-label') || b.textContent).trim()).length""")
    assert nameless == 0
    described = page.ask("""() => [...document.querySelectorAll('.plot')]
      .every(p => p.getAttribute('role') === 'img' && p.getAttribute('aria-label').length > 20)""")
    assert described
    assert page.tab.locator("h1").count() == 1
    assert page.ask("() => document.documentElement.lang") == "en"


def test_a_print_shows_every_run_on_white(look: Callable[..., Page]) -> None:
    page = look("three", fresh=True, theme="dark")
    page.ask("() => dispatchEvent(new Event('beforeprint'))")
    page.tab.emulate_media(media="print")
    assert page.tab.locator("[role=tabpanel]:visible").count() == 3
    assert page.tab.locator("#theme:visible").count() == 0
    assert brightness(page.ask(PAINT)[0]) == 255
    assert page.ask("() => document.querySelector('#run-2 .plot .main-svg').clientWidth") < 700
    page.ask("() => dispatchEvent(new Event('afterprint'))")
    page.tab.emulate_media(media="screen")
    assert page.tab.locator("[role=tabpanel]:visible").count() == 1
    assert brightness(page.ask(PAINT)[0]) < 60


PLANTED = """() => document.querySelectorAll(
  'img, svg[onload], a[href^="javascript"], iframe, .plot a, article b').length"""


@pytest.mark.parametrize("protected", [True, False])
def test_hostile_names_stay_text(
    chromium: Any, pages: dict[str, Path], tmp_path: Path, protected: bool
) -> None:
    """With the content policy, and without it: escaping must hold on its own."""
    text = pages["evil"].read_text(encoding="utf-8")
    if not protected:
        text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert count == 1
    copy = tmp_path / "evil.html"
    copy.write_text(text, encoding="utf-8")
    page = Page(chromium, copy)
    page.tab.hover(".plot[data-chart=heatmap] .nsewdrag", position={"x": 60, "y": 8})
    page.tab.wait_for_selector(".plot[data-chart=heatmap] .hoverlayer text")
    hover = page.ask(
        "() => document.querySelector('.plot[data-chart=heatmap] .hoverlayer').textContent"
    )
    selector = ".plot[data-chart=heatmap] .ytick text"
    ticks = page.ask(f"() => [...document.querySelectorAll('{selector}')].map(t => t.textContent)")
    assert HOSTILE[0] in hover
    assert HOSTILE[3] in ticks
    assert page.ask(PLANTED) == 0
    assert page.complaints == []
    assert page.fetched() == []
    page.context.close()


def test_without_javascript_the_words_are_all_there(chromium: Any, pages: dict[str, Path]) -> None:
    context = chromium.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(pages["three"].as_uri())
    assert tab.locator("[role=tabpanel]:visible").count() == 3
    assert tab.locator("noscript").inner_text().startswith("The charts need JavaScript")
    assert "--clip" in tab.locator("main").inner_text()
    context.close()


def test_the_checks_on_errors_and_requests_can_fail(chromium: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<html data-ready="true"><img src="https://example.invalid/x.png">'
        "<script>console.error('oh'); missing()</script>"
    )
    page = Page(chromium, bad)
    page.tab.wait_for_timeout(100)
    assert page.fetched() == ["https://example.invalid/x.png"]
    assert len(page.complaints) >= 2
    page.context.close()
