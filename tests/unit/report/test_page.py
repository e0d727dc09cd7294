"""The page's text: escaped whatever it says, and nothing in it reaches for the network."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import steadygrad.report
from steadygrad.report import build
from steadygrad.report.page import overhead_sentence, plotly_script, render
from steadygrad.rules.finding import PAGES
from steadygrad.runlog import Run

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    '"><svg onload=alert(2)>',
    "<!--<script>",
    "\u2028</style><h1>x",
)


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


@pytest.fixture(scope="module")
def hostile_page(a_run: Callable[..., Run]) -> str:
    evil = HOSTILE[0]
    run = a_run(
        nan_from=300,
        names=HOSTILE,
        info={
            "script": evil,
            "command": [evil, HOSTILE[1]],
            "policy": evil,
            "device": evil,
            "optimizers": [{"class": evil, "index": 0}],
            "versions": {evil: evil},
            "results": {evil: evil},
            "exit": evil,
        },
    )
    return render(build([run, a_run(clip=1.0)], title=evil, notes=[evil]))


def test_hostile_strings_make_no_tag_and_no_attribute(hostile_page: str) -> None:
    tags = Tags(hostile_page)
    names = {tag for tag, _ in tags.seen}
    assert not names & {"img", "svg", "iframe", "object"}
    assert not [a for _, attributes in tags.seen for a in attributes if a.startswith("on")]
    assert len(tags.scripts) == 5
    assert hostile_page.count("</script>") == 5
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in hostile_page


def test_only_the_pages_own_scripts_are_allowed(hostile_page: str) -> None:
    tags = Tags(hostile_page)
    policy = next(
        a["content"] for t, a in tags.seen if t == "meta" and "content-security" in str(a).lower()
    )
    assert policy is not None
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    code = [
        text for attributes, text in tags.scripts if attributes.get("type") != "application/json"
    ]
    assert {base64.b64encode(hashlib.sha256(c.encode()).digest()).decode() for c in code} == allowed
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_nothing_is_loaded_from_elsewhere(hostile_page: str) -> None:
    for tag, attributes in Tags(hostile_page).seen:
        assert not attributes.get("src"), tag
        if tag == "link":
            assert attributes["href"] == "data:,"
        elif attributes.get("href"):
            # a rule's page is a link to follow, never something that is fetched
            assert attributes["href"].startswith(("#", PAGES)), attributes
            assert tag == "a"
    assert "@import" not in hostile_page.split("</style>")[0]


def test_the_footer_says_what_recording_cost(a_run: Callable[..., Run]) -> None:
    known = {"overhead_seconds": 0.42, "wall_seconds": 42.0}
    told = build([a_run(info=known)])
    assert overhead_sentence(told["runs"]) == "Recording took 0.42 s, 1 % of the run."
    assert "Recording took 0.42 s, 1 % of the run." in render(told)
    assert overhead_sentence(build([a_run()])["runs"]) == ""
    two = build([a_run(info=known), a_run(info=known)])["runs"]
    assert overhead_sentence(two).count("0.42 s, 1 % of the run") == 2


def test_plotly_is_wrapped_so_that_a_browser_compiles_it_once() -> None:
    script = plotly_script()
    assert script.count("this, (() => {\n") == 1  # the pinned version's one function
    assert script.endswith("return Plotly;\n})));")


def test_the_page_is_small_and_its_plotly_brings_its_licence() -> None:
    assert len(plotly_script()) < 1_600_000
    folder = Path(steadygrad.report.__file__).parent / "plotly"
    assert "MIT" in (folder / "LICENSE").read_text()
    assert "Licensed under the MIT license" in plotly_script()[:400]


def test_a_long_run_of_many_tensors_makes_a_small_page() -> None:
    steps, count = 3000, 150
    r = np.random.default_rng(0)
    norms = r.lognormal(size=(steps, count))
    table = {
        "step": 1_000_000 + 33 * np.arange(steps),
        "norm": np.sqrt((norms**2).sum(axis=1)),
        "loss": r.lognormal(size=steps),
        "threshold": np.full(steps, 1.0),
    }
    tensors = [f"model.layers.{i // 10}.self_attn.block{i % 10}.weight" for i in range(count)]
    run = Run.from_arrays(steps=table, tensors=tensors, tensor_norms=norms)
    assert 1_700_000 < len(render(build([run])).encode()) < 1_800_000
