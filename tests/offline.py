"""No test asks a network for anything: what would is refused, and the test fails even if the refusal is swallowed."""

from __future__ import annotations

import socket
import sys

asked: list[str] = []  # during a test, which `conftest.offline` looks at
_HERE = {None, "", "localhost", "::1", "0.0.0.0", socket.gethostname()}


def _watch(event: str, args: tuple) -> None:
    """Every socket of Python and every name that it resolves comes by here."""
    if event in ("socket.connect", "socket.sendto"):
        if not isinstance(args[1], tuple):  # a socket in the file system
            return
        host = args[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in _HERE and not host.startswith("127."):
        asked.append(f"{event} {host}")
        raise OSError(f"a test asks the network: {event} {host}")


sys.addaudithook(_watch)
