"""The `steadygrad` of a page's commands: a fork of `forking.py` does what it is asked.

It imports little, since it starts for each command.
"""

import json
import os
import socket
import sys

PLACE = "STEADYGRAD_TESTS_FORKING"

if __name__ == "__main__":
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[PLACE])
    socket.send_fds(connection, [b"!"], [0, 1, 2])
    request = [sys.argv[1:], os.getcwd(), dict(os.environ)]
    connection.sendall(json.dumps(request).encode())
    connection.shutdown(socket.SHUT_WR)
    code = int(connection.makefile("rb").read() or b"99")
    sys.exit(code if code >= 0 else 128 - code)
