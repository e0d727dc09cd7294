"""Addresses that alerts go to: checked before a training starts, and never shown."""

from __future__ import annotations

from urllib.parse import urlsplit

from steadygrad.errors import UsageError


def check_address(address: str) -> None:
    """Refuse what can be no webhook's address; the message does not repeat it: it is a secret.

    Args:
        address: as the user typed it.

    Raises:
        UsageError: what is wrong with it.

    Example:
        >>> check_address("https://hooks.example.com/services/T0/B0/x")
        >>> check_address("hooks.example.com/x")
        Traceback (most recent call last):
        steadygrad.errors.UsageError: the address of a webhook begins with http:// or https://
    """
    if not address.startswith(("http://", "https://")):
        raise UsageError("the address of a webhook begins with http:// or https://")
    if any(not character.isprintable() or character.isspace() for character in address):
        raise UsageError("the address of a webhook holds a space or an unprintable character")
    try:
        parts = urlsplit(address)
        named, port = parts.hostname, parts.port
    except ValueError:
        named, port = None, None
    if not named or port == 0:
        raise UsageError("the address of a webhook names no host, or a port that cannot be")
