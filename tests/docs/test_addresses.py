"""The README is read on the package index too: its links are absolute, and their targets exist."""

from __future__ import annotations

import re

import pytest

from steadygrad.rules import REGISTRY
from steadygrad.rules.finding import PAGES

from .pages import ROOT

(HOME,) = re.findall(r'^Homepage = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
README = (ROOT / "README.md").read_text()
LINKS = re.findall(r"\]\(([^)\s]+)\)", README)


def test_every_link_of_the_readme_is_absolute() -> None:
    assert len(LINKS) > 10
    assert [link for link in LINKS if not link.startswith("https://")] == []


def test_what_the_readme_links_to_in_this_repository_exists() -> None:
    here = [link for link in LINKS if "steadygrad/steadygrad" in link]
    assert len(here) > 10
    for link in here:
        path = re.split(r"/(?:blob/)?main/", link, maxsplit=1)[1]
        assert (ROOT / path.partition("#")[0]).exists(), link


@pytest.mark.parametrize("name", ["mkdocs.yml", "CITATION.cff", "README.md"])
def test_one_address_of_the_repository_everywhere(name: str) -> None:
    assert HOME in (ROOT / name).read_text()
    others = re.findall(r"https://github\.com/[\w.-]+/steadygrad", (ROOT / name).read_text())
    assert set(others) == {HOME}


def test_every_rule_has_the_page_that_its_findings_name() -> None:
    (site,) = re.findall(r"^site_url: (.+)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert f"{site}rules/" == PAGES
    assert f'Documentation = "{site}"' in (ROOT / "pyproject.toml").read_text()
    pages = {path.stem for path in (ROOT / "src/steadygrad/rules/pages").glob("*.md")}
    assert set(REGISTRY) <= pages
