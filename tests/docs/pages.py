"""The code blocks of a page, and how each is run.

Blocks of the languages `python` and `bash` are run; output and sketches are `text`. In an HTML
comment right above a block stands what a reader need not see:

- ``<!-- not run: REASON -->`` leaves the next block out,
- ``<!-- setup`` ... ``-->`` is Python that runs before the next block; it may call
  `example("train.py")`, which copies that script of this folder, and `shell("commands")`.
- ``<!-- output -->`` says that this `text` is what the block before printed. Words must be the
  same and numbers within 5 %; ``python tests/docs/run_page.py PAGE --write`` fills it in.

`title="train.py"` writes the block into that file instead of running it. Blocks of a page share
one folder, empty at first, and one Python namespace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(
    r"(?:<!-- (?P<mark>not run|setup|output)(?::(?P<reason>[^\n]*?)|\n(?P<setup>.*?))?\s*-->\n\n?)?"
    r"^(?P<indent> *)```(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: path of the page.
        line: number of the code's first line.
        language: ``python``, ``bash``, ``text``, ...; empty where the fence has none.
        title: the file that the block is; empty where it is run.
        code: the text between the fences.
        setup: Python to run before it.
        reason: why it is not run; empty where it is.
        is_output: it is what the block before prints.
        span: where the code begins and ends in the page's text.
        whole: where the block begins and ends there, with its fences and its mark.
    """

    page: Path
    line: int
    language: str
    title: str
    code: str
    setup: str
    reason: str
    is_output: bool
    span: tuple[int, int]
    whole: tuple[int, int]

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in ("python", "bash") and not self.reason


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order.

    Args:
        page: a Markdown file.
    """
    text = page.read_text(encoding="utf-8")
    return [_block(page, text, match) for match in _FENCE.finditer(text)]


def _block(page: Path, text: str, match: re.Match[str]) -> Block:
    language, _, options = match["info"].strip().partition(" ")
    title = re.search(r'title="([^"]+)"', options)
    indent = len(match["indent"])
    return Block(
        page,
        1 + text.count("\n", 0, match.start("code")),
        language,
        title[1] if title else "",
        "".join(line[indent:] or "\n" for line in match["code"].splitlines(keepends=True)),
        match["setup"] or "",
        (match["reason"] or "").strip(),
        match["mark"] == "output",
        match.span("code"),
        match.span(),
    )
