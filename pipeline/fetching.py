"""One URL to bytes: paced per host, retried where that can help, under limits throughout."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

import requests
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema, RequestException
from urllib3.exceptions import (
    HTTPError,
    IncompleteRead,
    LocationValueError,
    ReadTimeoutError,
)

from mmm4rec.config import ImagesConfig
from pipeline.connections import FetchError, check_url, open_session
from pipeline.hosts import HOST_UNREACHABLE, REFUSALS, Host, HostSilentError

REDIRECTS = frozenset({301, 302, 303, 307, 308})
ERROR_NAMES = {403: "forbidden", 404: "not_found", 410: "gone", 429: "rate_limited"}
TEMPORARY_CODES = frozenset({408, 425, 429})  # and every 5xx
CHUNK = 65_536  # bytes
BACKOFF_S = 0.5  # before the first repetition; doubles each time, seconds
MAX_RETRY_AFTER_S = 60.0  # a server that wants more is left for another run, seconds


class InterruptedFetchError(Exception):
    """The fetcher was stopped while a request was waiting for its turn."""


@dataclass(frozen=True)
class Fetched:
    """What became of one URL.

    Attributes:
        body: the bytes; empty where there is an error.
        error: error class, None where the body is there.
        temporary: asking again later may succeed.
        http_code: status of the last answer, None where there was none.
        attempts: how often the URL was asked.
        final_url: the URL after redirects.
        seconds: how long it took, waiting included.
        doubted: the host, where it may be the host that failed and not the URL: nobody else has
            had a useful answer from it since. None where it is certain.
    """

    body: bytes
    error: str | None
    temporary: bool
    http_code: int | None
    attempts: int
    final_url: str
    seconds: float
    doubted: Host | None = None


class Fetcher:
    """Fetches URLs from any number of threads, on no more than so many connections at once."""

    def __init__(
        self, config: ImagesConfig, sleep: Callable[[float], object] | None = None
    ) -> None:
        """Open no connection yet.

        Args:
            config: limits and pace.
            sleep: waits that many seconds; None: `stop` ends the waiting.
        """
        self._config = config
        self._session = open_session(config.connections, config.allow_private_hosts)
        # Who waits for its turn or before a repetition has no connection.
        self._slots = threading.BoundedSemaphore(config.connections)
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._hosts: dict[str, Host] = {}
        self._hosts_lock = threading.Lock()

    def stop(self) -> None:
        """Let no further request begin."""
        self._stopped.set()

    def wait(self, seconds: float) -> None:
        """Wait, unless and until `stop` is called.

        Raises:
            InterruptedFetchError: `stop` was called.
        """
        if seconds > 0:
            self._sleep(seconds)
        if self._stopped.is_set():
            raise InterruptedFetchError("stopped")

    def close(self) -> None:
        """Close the idle connections."""
        self._session.close()

    def host_of(self, url: str) -> Host:
        """Return pace and health of the host that a URL names."""
        return self._named(check_url(url, allow_private_hosts=True))

    def fetch(self, url: str) -> Fetched:
        """Ask for a URL, again where the failure is temporary; a failure is a result.

        Raises:
            InterruptedFetchError: `stop` was called.
            HostSilentError: a host that must be asked is left alone for now.
        """
        started = time.monotonic()
        attempts = 0
        while True:
            try:
                body, final_url = self._follow(url, is_first=attempts == 0)
            except HostSilentError as silent:
                silent.attempts = attempts
                raise
            except FetchError as failure:
                attempts += failure.error != HOST_UNREACHABLE
                if attempts < self._config.attempts and _is_worth_repeating(failure):
                    self.wait(_backoff(url, attempts, failure.retry_after))
                    continue
                seconds = time.monotonic() - started
                return self._failed(failure, url, attempts, seconds)
            seconds = time.monotonic() - started
            return Fetched(body, None, False, requests.codes.ok, attempts + 1, final_url, seconds)

    def _failed(self, failure: FetchError, url: str, attempts: int, seconds: float) -> Fetched:
        doubted = None
        if failure.host is not None and (failure.unreachable or failure.http_code in REFUSALS):
            host = self._named(failure.host)
            doubted = None if host.is_well else host
        return Fetched(
            b"",
            failure.error,
            failure.temporary,
            failure.http_code,
            attempts,
            failure.url or url,
            seconds,
            doubted,
        )

    def _follow(self, url: str, is_first: bool) -> tuple[bytes, str]:
        for _ in range(self._config.max_redirects + 1):
            host = None
            try:
                host = check_url(url, self._config.allow_private_hosts)
                target, body = self._ask(url, self._named(host), is_first)
            except FetchError as failure:
                failure.url, failure.host = url, host
                raise
            if target is None:
                return body, url
            url = target
        raise FetchError("too_many_redirects")

    def _ask(self, url: str, host: Host, is_first: bool) -> tuple[str | None, bytes]:
        """Make one request; return where it redirects to, or None and the body."""
        is_probe = host.enter(time.monotonic())
        self.wait(host.reserve(time.monotonic()))
        with self._slots:
            self.wait(0)  # the slot may have come after `stop`
            began = time.monotonic()
            try:
                response = self._send(url, began)
            except FetchError as failure:
                if not failure.unreachable:
                    host.record_nothing(is_probe=is_probe)
                else:
                    host.record_failure(failure.error, began, is_first=is_first, is_probe=is_probe)
                raise
            with response:
                if response.status_code in REFUSALS:
                    host.record_refusal(response.status_code, began, is_probe=is_probe)
                else:
                    host.record_answer(began)
                return self._take(url, response, host, began)

    def _take(
        self, url: str, response: requests.Response, host: Host, began: float
    ) -> tuple[str | None, bytes]:
        location = response.headers.get("Location")
        if response.status_code in REDIRECTS and location:
            return _redirect_target(url, location), b""
        failed = _failure(response)
        if failed is None:
            return None, self._read(response, began + self._config.timeout_s)
        if failed.retry_after:
            host.pause(time.monotonic(), min(failed.retry_after, MAX_RETRY_AFTER_S))
        raise failed

    def _send(self, url: str, began: float) -> requests.Response:
        timeout = self._config.timeout_s
        try:
            return self._session.get(url, stream=True, timeout=timeout, allow_redirects=False)
        except (InvalidSchema, InvalidURL, MissingSchema, LocationValueError, UnicodeError):
            raise FetchError("bad_url") from None
        except (RequestException, HTTPError) as error:
            name = "connection"
            if isinstance(error, requests.Timeout) or time.monotonic() >= began + timeout:
                name = "timeout"
            elif isinstance(error, requests.exceptions.SSLError):
                name = "tls"
            raise FetchError(name, temporary=True, unreachable=True) from None

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        raw, limit = response.raw, self._config.max_bytes
        code = response.status_code
        body = bytearray()
        try:
            if (raw.length_remaining or 0) > limit:
                raise FetchError("too_large", http_code=code)
            # read1 returns what is there: a byte a second cannot hold a thread past the deadline.
            while chunk := raw.read1(CHUNK):
                body += chunk
                if len(body) > limit:
                    raise FetchError("too_large", http_code=code)
                if time.monotonic() > deadline:
                    raise FetchError("timeout", temporary=True, http_code=code)
        except HTTPError as error:
            raise FetchError(_read_error(error), temporary=True, http_code=code) from None
        if not body:  # also what is left of an answer that was cut within its header
            raise FetchError("truncated", temporary=True, http_code=code)
        return bytes(body)

    def _named(self, name: str) -> Host:
        with self._hosts_lock:
            if name not in self._hosts:
                config = self._config
                self._hosts[name] = Host(name, config.rate_per_host, config.host_failures)
            return self._hosts[name]


def _is_worth_repeating(failure: FetchError) -> bool:
    is_too_long = (failure.retry_after or 0) > MAX_RETRY_AFTER_S
    return failure.temporary and not is_too_long and failure.error != HOST_UNREACHABLE


def _redirect_target(url: str, location: str) -> str:
    try:
        return urljoin(url, location.encode("latin-1").decode("utf-8", "replace"))
    except ValueError:
        raise FetchError("bad_url") from None


def _failure(response: requests.Response) -> FetchError | None:
    code = response.status_code
    if code == requests.codes.ok:
        return None
    return FetchError(
        ERROR_NAMES.get(code, f"http_{code // 100}xx"),
        temporary=code in TEMPORARY_CODES or code >= requests.codes.server_error,
        http_code=code,
        retry_after=_retry_after(response.headers.get("Retry-After", "")),
    )


def _read_error(error: HTTPError) -> str:
    if isinstance(error, ReadTimeoutError):
        return "timeout"
    incomplete = isinstance(error, IncompleteRead) or any(
        isinstance(part, IncompleteRead) for part in error.args
    )
    return "truncated" if incomplete else "connection"


def _retry_after(value: str) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    if value.isdecimal() and value.isascii():
        return float(value[:9])
    try:
        wait = parsedate_to_datetime(value) - datetime.now(UTC)
    except (TypeError, ValueError):  # not a date, or one without a time zone
        return None
    return max(0.0, wait.total_seconds())


def _backoff(url: str, attempt: int, retry_after: float | None) -> float:
    """Return seconds to wait: doubling, spread over half to all of it, by the URL."""
    spread = zlib.crc32(f"{attempt} {url}".encode()) / 2**32
    longest: float = BACKOFF_S * 2 ** (attempt - 1)
    return max(retry_after or 0.0, longest * (0.5 + 0.5 * spread))
