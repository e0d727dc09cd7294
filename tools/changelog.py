"""The changelog's fragments: ``python tools/changelog.py check [BASE]`` or ``collect``.

A change brings a file `changelog.d/NAME.md`, so that two branches never edit the same lines.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER, CHANGELOG = "changelog.d", "CHANGELOG.md"


def check(changed: list[str]) -> str:
    """What is missing from a branch; empty where nothing is.

    Args:
        changed: paths that the branch adds or changes, from the repository's root.

    Example:
        >>> check(["src/steadygrad/stats.py", "changelog.d/exact-norms.md"])
        ''
        >>> check(["src/steadygrad/stats.py"])[:39]
        'src/ changes and the changelog does not'
    """
    told = any(
        p == CHANGELOG or (p.startswith(f"{FOLDER}/") and p.endswith(".md")) for p in changed
    )
    if told or not any(path.startswith("src/") for path in changed):
        return ""
    return f"src/ changes and the changelog does not: add {FOLDER}/NAME.md with a line '- ...'"


def malformed(text: str) -> str:
    """What is wrong with a fragment; empty where nothing is.

    Example:
        >>> malformed("- Norms are exact.\\n"), malformed("Norms")[:21]
        ('', "must begin with '- ':")
    """
    return "" if text.startswith("- ") else f"must begin with '- ': {text[:40]!r}"


def merged(changelog: str, fragments: list[str]) -> str:
    """The changelog with fragments at the end of its newest version.

    Example:
        >>> merged("# C\\n\\n## 2\\n\\n- a\\n\\n## 1\\n\\n- z\\n", ["- b\\n"])
        '# C\\n\\n## 2\\n\\n- a\\n- b\\n\\n## 1\\n\\n- z\\n'
    """
    first = changelog.index("\n## ")
    end = changelog.find("\n## ", first + 1)
    newest, rest = (changelog, "") if end < 0 else (changelog[:end], "\n" + changelog[end + 1 :])
    return newest.rstrip("\n") + "\n" + "".join(fragments) + rest


def main() -> None:
    files = sorted(p for p in (ROOT / FOLDER).glob("*.md") if p.name != "README.md")
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    faults = [f"{path.name} {malformed(text)}" for path, text in texts.items() if malformed(text)]
    if sys.argv[1:2] == ["collect"] and not faults:
        log = ROOT / CHANGELOG
        log.write_text(merged(log.read_text(encoding="utf-8"), list(texts.values())), "utf-8")
        for path in files:
            path.unlink()
    elif sys.argv[1:2] == ["check"]:
        base = sys.argv[2] if len(sys.argv) > 2 else "main"
        command = ["git", "diff", "--name-only", "--diff-filter=AM", f"{base}...HEAD"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        faults += filter(None, [check(done.stdout.split())])
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
