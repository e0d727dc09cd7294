"""Docstrings' ``Example:`` as a section of code: the parser knows the plural alone."""

from __future__ import annotations

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(\s*)Example:[ ]*$", re.MULTILINE)


class Examples(griffe.Extension):
    """Calls the section by the name that the parser knows."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _HEADING.sub(r"\1Examples:", obj.docstring.value)
