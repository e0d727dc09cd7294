"""Addresses that alerts go to: checked before a training starts, and never shown."""

from __future__ import annotations

import functools
import logging
import re
import string
import warnings
from base64 import b64encode
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit, urlunsplit

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
    webhook_of(address)


class Webhook(NamedTuple):
    """What is asked of a webhook.

    Attributes:
        url: as it is sent: ASCII, and without a user.
        headers: what the user and the password of the address become.
    """

    url: str
    headers: dict[str, str]


def webhook_of(address: str) -> Webhook:
    """Take a webhook's address apart; the messages do not repeat it.

    Args:
        address: of http or https; letters of any script, a user and a password may be in it.

    Raises:
        UsageError: what is wrong with it.

    Example:
        >>> webhook_of("https://me:secret@bücher.example/café").url
        'https://xn--bcher-kva.example/caf%C3%A9'
    """
    if any(not character.isprintable() or character.isspace() for character in address):
        raise UsageError("the address of a webhook holds a space or an unprintable character")
    try:
        parts = urlsplit(address)
        named, port = _host(parts.hostname or ""), parts.port
    except ValueError:  # half an IPv6 address, a label that is too long
        named, port = "", None
    if not named or port == 0:
        raise UsageError("the address of a webhook names no host, or a port that cannot be")
    host = named if port is None else f"{named}:{port}"
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    headers: dict[str, str] = {}
    if "@" in parts.netloc:
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    return Webhook(urlunsplit((parts.scheme, host, path or "/", query, "")), headers)


def _host(name: str) -> str:
    """A host as it is asked for, in ASCII; empty for one that cannot be."""
    if ":" in name:
        return f"[{name}]"
    spelt = name.encode("idna").decode()
    return spelt if re.fullmatch(r"[A-Za-z0-9._-]*", spelt) else ""


def is_web(address: str) -> bool:
    """Whether an address is a webhook's, which needs no library."""
    return address.lower().startswith(("http://", "https://"))


@functools.cache
def _apprise() -> Any:
    try:
        with warnings.catch_warnings():  # of modules of Python that its services load
            warnings.simplefilter("ignore")
            import apprise

            apprise.Apprise().add("json://localhost")
    except ImportError as error:
        raise MissingExtraError("apprise", "alerts", "an alert to this address") from error
    if not hasattr(apprise.AppriseAsset, "http_redirects"):
        raise UsageError(
            f"Apprise {apprise.__version__} sends messages wherever a redirect leads: "
            'pip install --upgrade "steadygrad[alerts]"'
        )
    return apprise


def apprise_of(address: str) -> Any:
    """An `apprise.Apprise` for one address; the messages do not repeat it.

    Args:
        address: of a service that Apprise knows, such as ``slack://...``.

    Raises:
        UsageError: Apprise cannot read it, or is too old to be kept from redirects.
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
    asset.http_redirects = False
    return asset
