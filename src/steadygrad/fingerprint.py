"""A fingerprint of the compiled parts' sources, for what builds them and for what loads them.

An extension carries the fingerprint of the sources that it was built from. The sources lie in every
install, so one that was built from others is told. `setup.py` runs this file by its path.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDERS = ("kernels", "jax")
VERSION_FILE = "_version.py"


def source_files(package: Path) -> list[Path]:
    """What an extension is built from, in one order.

    Args:
        package: the folder ``steadygrad``.

    Returns:
        The C files and headers, then the file that holds the version.
    """
    paths = (path for folder in FOLDERS for path in (package / folder).glob("*.[ch]"))
    return [*sorted(paths), package / VERSION_FILE]


def of_sources(package: Path) -> str:
    """Hash the names and the bytes of the sources.

    Args:
        package: the folder ``steadygrad``.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> import steadygrad
        >>> len(of_sources(Path(steadygrad.__file__).parent))
        16
    """
    digest = hashlib.sha256()
    for path in source_files(package):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
