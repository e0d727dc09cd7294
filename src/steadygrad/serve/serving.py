"""Starting the server."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import uvicorn

from steadygrad.errors import UsageError
from steadygrad.serve.app import application
from steadygrad.serve.folder import Folder
from steadygrad.serve.guard import LOCAL
from steadygrad.text import printable


def serve(path: Path, host: str, port: int) -> None:
    """Serve a folder until interrupted; the address goes to standard output.

    Args:
        path: the folder with run files.
        host: the address to listen at; any but this machine's own needs a token, made here.
        port: 0 for a free one.

    Raises:
        UsageError: the address cannot be listened at.
    """
    token = "" if host in LOCAL else secrets.token_urlsafe(24)
    listener = _listener(host, port)
    shown = f"[{host}]" if ":" in host else host
    query = f"?token={token}" if token else ""
    address = f"http://{shown}:{listener.getsockname()[1]}/{query}"
    print(printable(f"steadygrad: {path.absolute()} is served at {address}"), flush=True)
    config = uvicorn.Config(
        application(Folder(path), token),
        log_level="error",  # not a line for whatever a stranger sends
        ws="none",
        access_log=False,  # an address may hold the token
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # whoever reads the printed address may ask at once
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen at {host}, port {port} ({error.strerror}): add --port 0 for a free one"
        ) from error
    return listener
