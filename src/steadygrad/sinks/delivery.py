"""Sending a finding to an address: a webhook of one's own, or a service that Apprise knows.

An address is a secret: it is in no name, message, log line or run file. Libraries on the way write
addresses into their logs: while something is delivered, those lines are dropped.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from steadygrad.rules import Finding
from steadygrad.runlog.hidden import HiddenThread
from steadygrad.runlog.notice import warn
from steadygrad.sinks.addresses import apprise_of, is_web, webhook_of

if TYPE_CHECKING:
    from http.client import HTTPMessage
    from typing import IO

WEBHOOK_SECONDS = 5.0
DELIVERY_SECONDS = 10.0
"""How long one alert may take, whatever its server does: each byte has `WEBHOOK_SECONDS` alone."""
LOGGERS = ("apprise", "urllib3.connectionpool", "requests", "requests_oauthlib", "httpx")
"""What may write an address into a log while a message is sent."""


class Address:
    """Where findings are sent; says nothing of itself.

    Args:
        text: the address; empty for none.

    Example:
        >>> Address("https://hooks.example.com/secret"), bool(Address(""))
        (<Address ***>, False)
    """

    def __init__(self, text: str) -> None:
        self.__text = text
        self.__wires: list[HTTPConnection] = []

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __repr__(self) -> str:
        return "<Address ***>"

    def __reduce__(self) -> tuple[type[Address], tuple[str]]:
        return Address, ("",)  # not into a pickle either

    def send(self, finding: Finding) -> None:
        """Deliver a finding.

        Raises:
            OSError: it cannot be reached, or does not take it.
        """
        with _no_logs_of(self.__text):
            if is_web(self.__text):
                self.__wires = []
                post(self.__text, finding.to_dict(), self.__wires)
            else:
                _notify(self.__text, finding)

    def hang_up(self) -> None:
        """End a delivery to a webhook that goes on and on: its thread would never end."""
        for wire in self.__wires:
            if wire.sock is not None:
                with suppress(OSError):  # it has just ended by itself
                    wire.sock.shutdown(socket.SHUT_RDWR)


class Post:
    """Delivers findings to one address, each in a thread of its own; what fails costs a warning.

    Args:
        address: where to.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._thread: HiddenThread | None = None

    def send(self, finding: Finding) -> None:
        """Deliver a finding, for no longer than `DELIVERY_SECONDS`."""
        if self._thread is not None and self._thread.alive:
            warn(f"an alert ({finding.id}) was not sent: the webhook still holds the one before")
            return
        failures: list[str] = []

        def deliver() -> None:
            try:
                self._address.send(finding)
            except Exception as error:  # whatever a network raises; messages may hold the address
                failures.append(_why(error))

        self._thread = HiddenThread(deliver, deaf=False)
        if not self._thread.join(DELIVERY_SECONDS):
            failures.append(f"the webhook has not answered within {DELIVERY_SECONDS:.0f} s")
            self._address.hang_up()
        if failures:
            warn(f"an alert ({finding.id}) did not arrive: {failures[0]}")


class DeliveryRefused(OSError):
    """A service did not take a message; says nothing of its address."""


def _why(error: Exception) -> str:
    if isinstance(error, DeliveryRefused):
        return str(error)
    if isinstance(error, urllib.error.HTTPError):
        return f"the webhook answered HTTP {error.code}"
    if isinstance(error, TimeoutError):
        return "the webhook is too slow"
    reason = getattr(error, "reason", None)
    detail = reason.strerror if isinstance(reason, OSError) and reason.strerror else ""
    return f"{type(error).__name__}{f': {detail}' if detail else ''}"


def _notify(address: str, finding: Finding) -> None:
    apprise = apprise_of(address)
    kind = {"error": "failure", "warning": "warning"}.get(finding.severity, "info")
    where = f" at step {finding.steps[0]}" if finding.steps else ""
    body = [*finding.evidence[:1], *finding.fixes[:1], f"More: {finding.explain}"]
    title = f"{finding.id}{where}: {finding.title}"
    if not apprise.notify("\n".join(body), title, notify_type=kind, interpret_escapes=False):
        raise DeliveryRefused("the service did not take it")


@contextmanager
def _no_logs_of(address: str) -> Iterator[None]:
    """Libraries drop what this thread has them write into logs, and what holds a piece of it."""
    here = threading.get_ident()
    pieces = {piece for piece in re.split(r"[/:@?&=#]+", unquote(address)) if len(piece) > 5}

    def harmless(record: logging.LogRecord) -> bool:
        if record.thread == here:
            return False
        text = unquote(record.getMessage())
        return not any(piece in text for piece in pieces)

    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addFilter(harmless)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(harmless)


def post(
    address: str, data: Mapping[str, object], wires: list[HTTPConnection] | None = None
) -> None:
    """Post JSON to a webhook; the answer's body is not read.

    Args:
        address: where to.
        data: what to say.
        wires: the connections that are made are added, for whoever wants to hang up.

    Raises:
        OSError: it cannot be reached, or answers with an error, or with a redirect to elsewhere.
        UsageError: an address that cannot be.
    """
    webhook = webhook_of(address)
    text = f"{data.get('id')}: {data.get('title')}"  # what chat services show
    body = json.dumps({"text": text, **data}).encode()
    headers = {"Content-Type": "application/json", **webhook.headers}
    request = urllib.request.Request(webhook.url, body, headers)
    made = [] if wires is None else wires
    opener = urllib.request.build_opener(_SamePlace, _Http(made), _Https(made))
    try:
        with opener.open(request, timeout=WEBHOOK_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        error.close()  # the answer, whose socket it holds
        raise


class _Listed(urllib.request.AbstractHTTPHandler):
    """Tells of the connections that it makes."""

    def __init__(self, wires: list[HTTPConnection]) -> None:
        super().__init__()
        self._wires = wires

    def do_open(
        self, http_class: Callable[..., HTTPConnection], req: urllib.request.Request, **options: Any
    ) -> HTTPResponse:
        """Ask for something, over a connection that is listed."""

        def listed(host: str, **how: Any) -> HTTPConnection:
            self._wires.append(http_class(host, **how))
            return self._wires[-1]

        return super().do_open(listed, req, **options)


class _Http(_Listed, urllib.request.HTTPHandler):
    pass


class _Https(_Listed, urllib.request.HTTPSHandler):
    pass


class _SamePlace(urllib.request.HTTPRedirectHandler):
    """Follows a redirect that keeps scheme, host, port and method, and no other."""

    max_redirections = 3

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to send next, or None: the redirect is then an error."""
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if code not in (307, 308) or (before.scheme, before.netloc) != (after.scheme, after.netloc):
            return None
        fp.close()  # urllib reads the body of a redirect whole, and it may have no end
        return urllib.request.Request(newurl, req.data, dict(req.header_items()))
