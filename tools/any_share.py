"""How much of the package's types is `Any`: `python tools/any_share.py` prints a table.

A slot is an annotated parameter, a return type or an annotated variable. A slot counts as
`Any` where the name stands anywhere in its annotation: `dict[str, Any]` does too.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "steadygrad"


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Every annotation of a module, in no order that matters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield node.returns
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def is_any(annotation: ast.expr) -> bool:
    """Whether `Any` stands in an annotation, also in one that is written as a string."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    return any(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(annotation))


def count(source: Path = SOURCE) -> dict[str, tuple[int, int]]:
    """Slots of every room under a package folder.

    Args:
        source: the package's folder.

    Returns:
        Room (a folder or a top-level file) -> (slots with `Any`, all slots).
    """
    with_any: Counter[str] = Counter()
    slots: Counter[str] = Counter()
    for path in source.rglob("*.py"):
        room = path.relative_to(source).parts[0]
        for annotation in annotations(ast.parse(path.read_text(encoding="utf-8"))):
            slots[room] += 1
            with_any[room] += is_any(annotation)
    return {room: (with_any[room], slots[room]) for room in sorted(slots)}


def main() -> None:
    """Print the share of every room, and of all together."""
    rooms = count()
    for room, (with_any, slots) in rooms.items():
        print(f"{room:16s} {with_any:5d} of {slots:5d}  {with_any / slots:6.1%}")
    with_any, slots = (sum(figures) for figures in zip(*rooms.values(), strict=True))
    print(f"{'all':16s} {with_any:5d} of {slots:5d}  {with_any / slots:6.1%}")


if __name__ == "__main__":
    main()
