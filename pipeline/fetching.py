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

REDIRECTS = frozenset({301, 302, 303, 307, 308})
ERROR_NAMES = {403: "forbidden", 404: "not_found", 410: "gone", 429: "rate_limited"}
TEMPORARY_CODES = frozenset({408, 425, 429})  # and every 5xx
CHUNK = 65_536  # bytes
BURST_S = 0.25  # a host may be asked at once what its rate allows in this time, seconds
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
    """

    body: bytes
    error: str | None
    temporary: bool
    http_code: int | None
    attempts: int
    final_url: str
    seconds: float


class Host:
    """Pace and health of one host, shared by all threads.

    The pace is a token bucket that holds `BURST_S` seconds' worth of tokens, kept as the time at
    which it would be full again.
    """

    def __init__(self, rate: float, max_failures: int) -> None:
        """Args: rate in requests per second; failures in a row after which it is unreachable."""
        self._interval = 1 / rate
        self._max_failures = max_failures
        self._full_at = 0.0
        self._failures = 0
        self._lock = threading.Lock()

    @property
    def is_unreachable(self) -> bool:
        """Whether the host is left alone."""
        return self._failures >= self._max_failures

    def reserve(self, now: float) -> float:
        """Take a token; return the seconds to wait until it may be used."""
        with self._lock:
            starts_at = max(now, self._full_at)
            self._full_at = starts_at + self._interval
            return max(0.0, starts_at - BURST_S - now)

    def pause(self, now: float, seconds: float) -> None:
        """Let nobody ask for a while."""
        with self._lock:
            self._full_at = max(self._full_at, now + seconds + BURST_S)

    def record(self, *, answered: bool) -> None:
        """Count a failure to answer, or forget those before an answer."""
        with self._lock:
            self._failures = 0 if answered else self._failures + 1


class Fetcher:
    """Fetches URLs from any number of threads."""

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
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        self._hosts: dict[str, Host] = {}
        self._hosts_lock = threading.Lock()

    def stop(self) -> None:
        """Let no further request begin."""
        self._stopped.set()

    def close(self) -> None:
        """Close the idle connections."""
        self._session.close()

    def fetch(self, url: str) -> Fetched:
        """Ask for a URL, again where the failure is temporary; a failure is a result.

        Raises:
            InterruptedFetchError: `stop` was called.
        """
        started = time.monotonic()
        attempts = 0
        while True:
            attempts += 1
            try:
                body, final_url = self._follow(url)
            except FetchError as failure:
                if attempts < self._config.attempts and self._is_worth_repeating(failure):
                    self._wait(_backoff(url, attempts, failure.retry_after))
                    continue
                attempts -= failure.error == "host_unreachable"
                error, code, final_url = failure.error, failure.http_code, failure.url or url
                seconds = time.monotonic() - started
                return Fetched(b"", error, failure.temporary, code, attempts, final_url, seconds)
            seconds = time.monotonic() - started
            return Fetched(body, None, False, requests.codes.ok, attempts, final_url, seconds)

    def _is_worth_repeating(self, failure: FetchError) -> bool:
        too_long = (failure.retry_after or 0) > MAX_RETRY_AFTER_S
        unreachable = failure.host is not None and self._host(failure.host).is_unreachable
        return failure.temporary and not too_long and not unreachable

    def _follow(self, url: str) -> tuple[bytes, str]:
        for _ in range(self._config.max_redirects + 1):
            host = None
            try:
                host = check_url(url, self._config.allow_private_hosts)
                target, body = self._ask(url, self._host(host))
            except FetchError as failure:
                failure.url, failure.host = url, host
                raise
            if target is None:
                return body, url
            url = target
        raise FetchError("too_many_redirects")

    def _ask(self, url: str, host: Host) -> tuple[str | None, bytes]:
        """Make one request; return where it redirects to, or None and the body."""
        if host.is_unreachable:
            raise FetchError("host_unreachable", temporary=True)
        self._wait(host.reserve(time.monotonic()))
        deadline = time.monotonic() + self._config.timeout_s
        try:
            response = self._send(url, deadline)
        except FetchError as failure:
            if failure.unreachable:
                host.record(answered=False)
            raise
        host.record(answered=True)
        with response:
            location = response.headers.get("Location")
            if response.status_code in REDIRECTS and location:
                return _redirect_target(url, location), b""
            failed = _failure(response)
            if failed is None:
                return None, self._read(response, deadline)
        if failed.retry_after:
            host.pause(time.monotonic(), min(failed.retry_after, MAX_RETRY_AFTER_S))
        raise failed

    def _send(self, url: str, deadline: float) -> requests.Response:
        timeout = self._config.timeout_s
        try:
            return self._session.get(url, stream=True, timeout=timeout, allow_redirects=False)
        except (InvalidSchema, InvalidURL, MissingSchema, LocationValueError, UnicodeError):
            raise FetchError("bad_url") from None
        except (RequestException, HTTPError) as error:
            name = "connection"
            if isinstance(error, requests.Timeout) or time.monotonic() >= deadline:
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

    def _host(self, name: str) -> Host:
        with self._hosts_lock:
            if name not in self._hosts:
                config = self._config
                self._hosts[name] = Host(config.rate_per_host, config.host_failures)
            return self._hosts[name]

    def _wait(self, seconds: float) -> None:
        if seconds > 0:
            self._sleep(seconds)
        if self._stopped.is_set():
            raise InterruptedFetchError("stopped")


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
