"""A written page: a path that a notebook draws."""

from __future__ import annotations

import html
from pathlib import Path

_LARGEST = 4_000_000
"""A page above this many bytes is linked, not drawn: it would be saved inside the notebook."""


class Page(type(Path())):  # type: ignore[misc]
    """Path of an HTML file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "report.html")
        >>> _ = path.write_text("<p>hello</p>")
        >>> Page(path).name, "srcdoc=" in Page(path)._repr_html_()
        ('report.html', True)
    """

    def _repr_html_(self) -> str:
        name = html.escape(str(self), quote=True)
        link = f'<a href="{name}" target="_blank" rel="noopener">{name}</a>'
        if self.stat().st_size > _LARGEST:
            return link
        inside = html.escape(self.read_text(encoding="utf-8"), quote=True)
        frame = (
            f'<iframe srcdoc="{inside}" sandbox="allow-scripts" title="steadygrad report" '
            'style="width:100%;height:720px;border:0"></iframe>'
        )
        return link + frame
