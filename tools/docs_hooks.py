"""Pages of the documentation that are made from the package: nothing is listed by hand.

One page a rule and one a lint check, from their Markdown; one page a clipping method and one a
public package, from docstrings. mkdocs calls `on_files` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

GUIDE_BOOST = 4
ROOMS = ("rules", "lint")
ALL = {
    "rules": "All rules",
    "lint": "All lint checks",
    "methods": "All methods",
    "reference": "All packages",
}
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`|\]\([^)\n]+\)", re.DOTALL | re.MULTILINE)
_ID = re.compile(r"(?<![\w\[])SG\d{3}\b")
PACKAGE = Path(__file__).parents[1] / "src" / "steadygrad"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages to those that lie in docs/."""
    for address, text in pages():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the guide come first in a search: who looks for a word wants it explained."""
    room, _, name = page.file.src_uri.partition("/")
    if room == "guide":
        page.meta.setdefault("search", {})["boost"] = GUIDE_BOOST
    if room in ALL and name != "index.md":  # the navigation has none of these pages
        heading, _, rest = linked(markdown, room, name).partition("\n")
        return f"{heading}\n\n[{ALL[room]}](index.md)\n{rest}"
    return markdown


def linked(markdown: str, room: str, name: str) -> str:
    """A page of a rule or check, where the ids of others lead to their pages.

    Example:
        >>> linked("# SG201\\nNot SG202, nor SG201; `explain SG202`.", "rules", "SG201.md")
        '# SG201\\nNot [SG202](SG202.md), nor SG201; `explain SG202`.'
    """
    rooms = {path.stem: room for room in ROOMS for path in _sources(room)}

    def link(match: re.Match[str]) -> str:
        at = rooms.get(match[0])
        if at is None or f"{match[0]}.md" == name:
            return match[0]
        return f"[{match[0]}]({'' if at == room else f'../{at}/'}{match[0]}.md)"

    end = markdown.index("\n")  # of the heading
    parts = [markdown[:end]]
    for code in _CODE.finditer(markdown, end):
        parts += [_ID.sub(link, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _ID.sub(link, markdown[end:])])


def pages() -> Iterator[tuple[str, str]]:
    """Address and Markdown of every made page."""
    for room in ROOMS:
        sources = _sources(room)
        for source in sources:
            yield f"{room}/{source.name}", source.read_text(encoding="utf-8")
        if sources:
            yield f"{room}/index.md", _index(room, sources)
    methods = sorted(
        (name, path.stem)
        for path in (PACKAGE / "policies" / "methods").glob("*.py")
        for name in _policies(path)
    )
    for name, module in methods:
        text = f"# {name}\n\n::: steadygrad.policies.methods.{module}.{name}\n"
        yield f"methods/{name}.md", text
    yield "methods/index.md", _links("Methods, one page each", [name for name, _ in methods])
    packages = dict(_packages())
    for name, exported in packages.items():
        yield f"reference/{name}.md", _package(name, exported)
    yield "reference/index.md", _links("Reference", sorted(packages))


def _sources(room: str) -> list[Path]:
    return sorted((PACKAGE / room / "pages").glob("*.md"))


def _index(room: str, sources: list[Path]) -> str:
    titles = {"rules": "Rules", "lint": "Lint checks"}
    lines = [f"# {titles[room]}", "", f"`steadygrad explain {sources[0].stem}` prints a page.", ""]
    for source in sources:
        heading = source.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{heading}]({source.name})")
    return "\n".join(lines) + "\n"


def _links(title: str, names: list[str]) -> str:
    return f"# {title}\n\n" + "".join(f"- [{name}]({name}.md)\n" for name in names)


def _policies(path: Path) -> list[str]:
    """The classes that say by what word a spec names them: it makes them methods."""
    classes = [
        n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)
    ]
    return [n.name for n in classes if any(_sets_name(statement) for statement in n.body)]


def _sets_name(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "name"


def _packages() -> Iterator[tuple[str, list[str]]]:
    """Every module that says what it exports, and the names that it exports."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        exported = _exported(path)
        is_public = path.name == "__init__.py" or parts[1] in ("integrations", "errors")
        if exported and is_public and parts[1] != "cli":  # the commands have pages of their own
            yield module, exported


def _exported(path: Path) -> list[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            assert isinstance(node.value, ast.List)
            names = [item.value for item in node.value.elts if isinstance(item, ast.Constant)]
            return [str(name) for name in names if not str(name).startswith("_")]
    return []


def _package(name: str, exported: list[str]) -> str:
    parts = [f"# {name}", ""]
    for member in exported:
        parts += [f"::: {name}.{member}", "    options:", "      inherited_members: true", ""]
    return "\n".join(parts)
