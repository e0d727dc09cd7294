"""Renew the copy of plotly.js that reports carry: ``python tools/renew_plotly.py [VERSION]``.

Takes the package `plotly.js-cartesian-dist-min` from npm, the smallest bundle of plotly.js that
draws scatter, bar and heat map, and puts its script and its licence into the package. Needs npm.
Run the browser tests afterwards: ``pytest tests/unit/report tests/unit/compare``.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "plotly.js-cartesian-dist-min"
TARGET = Path(__file__).parents[1] / "src" / "steadygrad" / "report" / "plotly"
FILES = ("plotly-cartesian.min.js", "LICENSE")


def main() -> None:
    version = sys.argv[1] if len(sys.argv) > 1 else "latest"
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{version}"], cwd=folder, check=True)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as members:
            for name in FILES:
                content = members.extractfile(f"package/{name}")
                assert content is not None, f"{archive.name} has no {name}"
                (TARGET / name).write_bytes(content.read())
    print(f"{TARGET}: {archive.stem}")


if __name__ == "__main__":
    main()
