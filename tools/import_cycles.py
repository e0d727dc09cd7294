"""Files of the package that import each other in a ring, wherever the import stands.

`python tools/import_cycles.py [FOLDER]` prints each ring, one a line. Imports inside functions
and under `TYPE_CHECKING` count too: they hide a ring and do not undo it.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "steadygrad"


def modules(package: Path) -> dict[str, Path]:
    """Every module below a package's folder, by its dotted name."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(name: str, path: Path, names: dict[str, Path]) -> set[str]:
    """The modules that one file names in an import, at any depth of its code."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    targets = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                member = f"{base}.{alias.name}"
                targets.add(member if member in names else base)
    return (targets & set(names)) - {name}


def rings(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files of which each reaches every other, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(edges.get(name, ())):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            cut = stack.index(name)
            groups.append(sorted(stack[cut:]))
            del stack[cut:]

    for name in sorted(edges):
        if name not in order:
            visit(name)
    return sorted(group for group in groups if len(group) > 1)


def find(package: Path = PACKAGE) -> list[list[str]]:
    """The rings of a package, each a sorted list of dotted names; none is what it should be."""
    names = modules(package)
    return rings({name: imported(name, path, names) for name, path in names.items()})


if __name__ == "__main__":
    package_rings = find(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
    for ring in package_rings:
        print(" ".join(ring))
    sys.exit(bool(package_rings))
