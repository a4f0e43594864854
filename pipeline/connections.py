"""Connections to hosts that nobody vouches for.

Image addresses come out of downloaded metadata: a link can point at the machine's own network, a
name can resolve to it, and a server can send one byte a second for ever. What is built here
connects only to addresses it has checked, and gives up in time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPResponse, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.connection import create_connection

MAX_URL_LENGTH = 2048  # characters; longer ones are not addresses of pictures


class FetchError(Exception):
    """One request that failed; becomes an outcome and never leaves the pipeline.

    Attributes:
        error: the error class of the outcome, such as `not_found`.
        temporary: asking again later may succeed.
        unreachable: the host did not answer, as opposed to an answer that is of no use.
        http_code: status of the answer, None where there was none.
        retry_after: seconds that the server asks to wait, None where it does not say.
        url: the URL that failed, which may be the target of a redirect.
        host: its host, None where the URL names none that may be asked.
    """

    def __init__(
        self,
        error: str,
        *,
        temporary: bool = False,
        unreachable: bool = False,
        http_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(error)
        self.error = error
        self.temporary = temporary
        self.unreachable = unreachable
        self.http_code = http_code
        self.retry_after = retry_after
        self.url: str | None = None
        self.host: str | None = None


def check_url(url: str, allow_private_hosts: bool) -> str:
    """Return the host (with port) of an address that may be asked.

    Raises:
        FetchError: `bad_url`: not http or https, malformed, too long, or with a user name or
            password in it; `private_address`: the host is written as an address that is not
            public. A host written as a name is checked when it has been resolved.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise FetchError("bad_url") from None
    printable = url.isprintable() and " " not in url and len(url) <= MAX_URL_LENGTH
    if parts.scheme not in ("http", "https") or not host or not printable or "@" in parts.netloc:
        raise FetchError("bad_url")
    if not allow_private_hosts and (host == "localhost" or _is_private(host)):
        raise FetchError("private_address")
    return f"{host}:{port or parts.scheme}"


def open_session(connections: int, allow_private_hosts: bool) -> requests.Session:
    """Return a session for hosts that nobody vouches for.

    It follows no redirects (each target must be checked first), sends no credentials
    and keeps no cookies, connects only to public addresses unless told otherwise, and bounds the
    time a server takes for its headers. Proxies and certificates are taken from the environment,
    as usual; behind a proxy, names are resolved (and must be guarded) by the proxy.

    Args:
        connections: requests under way at once.
        allow_private_hosts: also connect to private, loopback and link-local addresses.
    """
    session = _Session()
    session.auth = _no_credentials  # or requests would look them up in ~/.netrc
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers["Accept"] = "image/jpeg,image/png,image/webp,image/gif"
    session.headers["Accept-Encoding"] = "identity"  # a compressed body could unpack to any size
    session.headers["User-Agent"] = "mmm4rec"
    adapter = HTTPAdapter(pool_connections=connections, pool_maxsize=connections)
    adapter.poolmanager.pool_classes_by_scheme = _pool_classes(allow_private_hosts)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is none: requests would read the whole body of a redirect first."""


class _Guarded(HTTPConnection):
    """A connection that checks the very addresses it connects to, and bounds the header's time."""

    allow_private = False

    def _new_conn(self) -> socket.socket:
        failure = FetchError("dns", temporary=True, unreachable=True)
        for address in self._resolve():
            try:
                return create_connection(
                    (address, self.port), self.timeout, socket_options=self.socket_options
                )
            except TimeoutError:
                failure = FetchError("timeout", temporary=True, unreachable=True)
            except OSError:
                failure = FetchError("connection", temporary=True, unreachable=True)
        raise failure

    def _resolve(self) -> list[str]:
        try:
            answers = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise FetchError("dns", temporary=True, unreachable=True) from None
        addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        if not self.allow_private and any(map(_is_private, addresses)):
            raise FetchError("private_address")
        return addresses[:2]  # each may take the whole timeout

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as in urllib3
        # The timeout of a socket is that of one read; a header can take any number of reads.
        is_late = threading.Event()
        guard = threading.Timer(float(self.timeout or 0), self._hang_up, [is_late])
        guard.start()
        try:
            response = super().getresponse()
        finally:
            guard.cancel()
        if is_late.is_set():  # what came until then may look like a complete header
            response.close()
            raise TimeoutError
        return response

    def _hang_up(self, is_late: threading.Event) -> None:
        is_late.set()
        with contextlib.suppress(OSError, AttributeError):  # closed in the meantime
            self.sock.shutdown(socket.SHUT_RDWR)


def _pool_classes(allow_private: bool) -> dict[str, type[HTTPConnectionPool]]:
    class PlainConnection(_Guarded):
        pass

    class SecureConnection(_Guarded, HTTPSConnection):
        pass

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    for connection in (PlainConnection, SecureConnection):
        connection.allow_private = allow_private
    return {"http": PlainPool, "https": SecurePool}


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:  # old spellings, such as 127.1, that the system still resolves
            address = ipaddress.ip_address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    return not address.is_global or address.is_multicast


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
