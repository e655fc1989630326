"""Pictures from the web: asked only where the process allows it, and never an address inside the network by accident.

*Naive:* hand the URL to a client that follows redirects. *Wrong because* a URL comes from whoever wrote the prompt, and
the client stands inside: it would read the cloud's metadata, or a neighbour's port, and a name may resolve to one
address when it is checked and to another when it is used. *So* the name is resolved once, each address is checked, the
connection goes to that very address, and redirects are refused.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .errors import RequestError

if TYPE_CHECKING:
    from .media import MediaLimits

PIECE = 1 << 16


def fetch(url: str, limits: MediaLimits, field: str) -> bytes:
    """The body of `url`. Raises RequestError where host, address, status or size are not what is allowed."""
    scheme, host, port, target = _parts(url, field)
    named = isinstance(limits.allow_urls, tuple)
    if isinstance(limits.allow_urls, tuple) and host not in limits.allow_urls:
        raise RequestError(f"the host {host!r} is not among allow_urls={limits.allow_urls}", field=field)
    address = _address(host, port, may_be_private=named, field=field)
    until = time.monotonic() + limits.url_timeout_s
    connection = _Pinned(host, port, address, limits.url_timeout_s, scheme == "https")
    try:
        connection.request("GET", target, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        reply = connection.getresponse()
        if reply.status != 200:
            reason = "redirects are not followed" if 300 <= reply.status < 400 else reply.reason
            raise RequestError(f"{url[:120]!r} answered {reply.status}: {reason}", field=field)
        data = bytearray()
        while piece := reply.read(PIECE):
            data += piece
            if len(data) > limits.max_bytes:
                raise RequestError(f"{url[:120]!r} holds more than max_bytes={limits.max_bytes}", field=field)
            if time.monotonic() > until:
                raise RequestError(f"{url[:120]!r} took longer than url_timeout_s={limits.url_timeout_s}", field=field)
        return bytes(data)
    except (OSError, http.client.HTTPException) as error:
        raise RequestError(f"{url[:120]!r} cannot be read: {type(error).__name__}: {error}", field=field) from None
    finally:
        connection.close()


def _parts(url: str, field: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and what is asked for; a URL that two readers could read in two ways is refused."""
    if "\\" in url or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise RequestError(f"{url[:120]!r} holds characters that no URL has", field=field)
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise RequestError(f"{url[:120]!r} is no URL: {error}", field=field) from None
    if parts.username is not None or not parts.hostname:
        raise RequestError(f"{url[:120]!r} must name a host, and no user", field=field)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.scheme, parts.hostname, port, target


def _address(host: str, port: int, *, may_be_private: bool, field: str) -> str:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise RequestError(f"the host {host!r} is not found: {error}", field=field) from None
    for address in sorted(found):
        if not may_be_private and not ipaddress.ip_address(address.partition("%")[0]).is_global:
            raise RequestError(
                f"the host {host!r} is at {address}, which is not a public address; name it in allow_urls to allow it",
                field=field,
            )
    return min(found)


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, whatever the name resolves to by now."""

    def __init__(self, host: str, port: int, address: str, timeout: float, is_tls: bool) -> None:
        super().__init__(host, port, timeout=timeout)
        self._address = address
        self._tls = ssl.create_default_context() if is_tls else None

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host)
