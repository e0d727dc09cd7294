"""Addresses that alerts go to: checked before a training starts, and never shown."""

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any
from urllib.parse import urlsplit

from steadygrad.errors import MissingExtraError, UsageError

CHOICES = ("error", "warning")
"""Severities that alerts may be asked for."""


def check_address(address: str) -> None:
    """Refuse what can be no webhook's address; the message does not repeat it: it is a secret.

    Args:
        address: as the user typed it.

    Raises:
        UsageError: what is wrong with it.
        MissingExtraError: it is one of Apprise's, which is not installed.

    Example:
        >>> check_address("https://hooks.example.com/services/T0/B0/x")
        >>> check_address("hooks.example.com/x")
        Traceback (most recent call last):
        steadygrad.errors.UsageError: an address begins with http://, https:// or a service of ...
    """
    if not is_web(address):
        apprise_of(address)
        return
    if any(not character.isprintable() or character.isspace() for character in address):
        raise UsageError("the address of a webhook holds a space or an unprintable character")
    try:
        parts = urlsplit(address)
        named, port = parts.hostname, parts.port
    except ValueError:
        named, port = None, None
    if not named or port == 0:
        raise UsageError("the address of a webhook names no host, or a port that cannot be")


def is_web(address: str) -> bool:
    """Whether an address is a webhook's, which needs no library."""
    return address.startswith(("http://", "https://"))


@functools.cache
def _apprise() -> Any:
    try:
        with warnings.catch_warnings():  # of modules of Python that its services load
            warnings.simplefilter("ignore")
            import apprise

            apprise.Apprise().add("json://localhost")
    except ImportError as error:
        raise MissingExtraError("apprise", "alerts", "an alert to this address") from error
    return apprise


def apprise_of(address: str) -> Any:
    """An `apprise.Apprise` for one address; the messages do not repeat it.

    Args:
        address: of a service that Apprise knows, such as ``slack://...``.

    Raises:
        UsageError: Apprise cannot read it.
        MissingExtraError: Apprise is not installed.
    """
    if "://" not in address:
        raise UsageError(
            "an address begins with http://, https:// or a service of Apprise's, as in slack://"
        )
    apprise = _apprise()
    log = logging.getLogger("apprise")
    before, log.disabled = log.disabled, True  # it would write the address that it cannot read
    try:
        services = apprise.Apprise(asset=_without_redirects(apprise))
        readable = services.add(address)
    finally:
        log.disabled = before
    if not readable:
        raise UsageError("Apprise cannot read this address: see its page of services")
    return services


def _without_redirects(apprise: Any) -> Any:
    """A redirect may lead to another host; a message is refused in its place."""
    asset = apprise.AppriseAsset()
    asset.http_redirects = False  # unknown to older versions
    return asset
