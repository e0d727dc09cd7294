"""One method as a spec string, or several chained: what stands inside a group as well.

``name``, ``name:main``, ``name:main,key=value`` and ``name:key=value,...``; the main value is the
policy's first parameter. Methods are chained by ``+`` before a letter (``1e+5`` stays a
number). One grammar for every method, read off the dataclass fields, so that a new method needs
no parsing code.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable

from steadygrad.errors import SpecError
from steadygrad.policies.base import Policy
from steadygrad.policies.chain import Chain
from steadygrad.policies.registry import REGISTRY


def parse_methods(spec: str) -> Policy:
    """The policy that a spec without groups names.

    Args:
        spec: for example ``"norm:1.0"`` or ``"skip+norm:1.0"``.

    Returns:
        A policy; a `Chain` where there are several.

    Raises:
        SpecError: says which part was not understood, and lists what exists.

    Example:
        >>> parse_methods("norm:0.5,p=inf")
        ClipNorm(max_norm=0.5, p=inf)
    """
    links = re.split(r"\+(?=\s*[A-Za-z])", spec.strip())
    if len(links) > 1:
        return Chain(tuple(parse_methods(link) for link in links))
    return _parse_one(spec.strip())


def _parse_one(spec: str) -> Policy:
    name, _, rest = spec.partition(":")
    policy = _find(name.strip(), spec)
    arguments: dict[str, bool | int | float | str] = {}
    by_key = {f.metadata.get("spec", f.name): f for f in dataclasses.fields(policy)}
    for index, part in enumerate(p.strip() for p in rest.split(",") if p.strip()):
        key, equals, text = (s.strip() for s in part.partition("="))
        if not equals:
            if index > 0 or not by_key:
                raise SpecError(f"clip spec {spec!r}: {part!r} is not key=value; {usage(policy)}")
            key, text = next(iter(by_key)), key
        if key not in by_key:
            raise SpecError(f"clip spec {spec!r}: {name} has no parameter {key!r}; {usage(policy)}")
        field = by_key[key]
        arguments[field.name] = _convert(policy, field, text, spec)
    try:
        return policy(**arguments)
    except TypeError:
        raise SpecError(f"clip spec {spec!r} lacks its threshold; {usage(policy)}") from None


def usage(policy: type[Policy]) -> str:
    """How the spec of a policy class is written, for error messages.

    Example:
        >>> from steadygrad.policies import ClipNorm
        >>> usage(ClipNorm)
        'type norm:MAX_NORM[,p=2.0]'
    """
    main, optional = "", []
    for index, field in enumerate(dataclasses.fields(policy)):
        key = field.metadata.get("spec", field.name)
        if index == 0 and field.default is dataclasses.MISSING:
            main = f":{field.name.upper()}"
        else:
            optional.append(f"{key}={field.default}")
    tail = f"[{',' if main else ':'}{','.join(optional)}]" if optional else ""
    return f"type {policy.name}{main}{tail}"


def _find(name: str, spec: str) -> type[Policy]:
    if name not in REGISTRY:
        names = ", ".join(sorted(REGISTRY))
        hint = " For a threshold of that size type norm:" + name if _is_number(name) else ""
        raise SpecError(f"clip spec {spec!r}: no method named {name!r}; there are: {names}.{hint}")
    return REGISTRY[name]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _converted(convert: Callable[[str], int | float | str], text: str) -> int | float | str | None:
    try:
        return convert(text)
    except ValueError:
        return None


def _convert(
    policy: type[Policy], field: dataclasses.Field[object], text: str, spec: str
) -> bool | int | float | str:
    kind = typing.get_type_hints(policy)[field.name]
    kinds = typing.get_args(kind) or (kind,)
    if bool in kinds:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    else:
        for convert in (k for k in (int, float, str) if k in kinds):
            value = _converted(convert, text)
            if value is not None:
                return value
    wanted = " or ".join(k.__name__ for k in kinds if k is not type(None))
    raise SpecError(
        f"clip spec {spec!r}: {field.name} must be a {wanted}, got {text!r}; {usage(policy)}"
    )
