"""Pace and health of one host, shared by all threads that ask it.

Pace: a token bucket. When a host refuses several requests in a row (`REFUSALS`), its rate is
halved; every useful answer gives a little of it back.

Health: a circuit breaker.

    closed --(too many in a row without a useful answer)-----------> open
    open   --(one request after a pause, the probe, is answered)---> closed
    open   --(as many probes failed as patience allows)------------> given up

While it is open nobody asks, except for the probe; each pause is twice as long as the one before.
Nothing is concluded about a URL from a host that is open: who wants it has to wait. A host that was
given up is left alone for the rest of the run.

What is in a row is told by when requests began, not by when they ended: a URL that is never
answered takes long to fail, and meanwhile others have been answered. Nor do repetitions count among
the failures: at the end of a run only such URLs are left.
"""

from __future__ import annotations

import math
import threading
import time
from datetime import UTC, datetime

from pipeline.connections import FetchError

# What a host with too much to do answers, or the gateway before it: nothing about the URL.
REFUSALS = frozenset({429, 502, 503, 504})
BURST_S = 0.25  # a host may be asked at once what its rate allows in this time, seconds
STORM = 5  # refusals in a row that halve the rate: a few among many answers are no storm
RECOVERY = 0.01  # share of the full rate that a useful answer gives back
SLOWEST = 1 / 16  # of the full rate
MAX_REFUSALS = 64  # in a row, after which the circuit opens
FIRST_PAUSE_S = 1.0  # before the first probe; doubles each time, seconds
LONGEST_PAUSE_S = 60.0
PROBES = 7  # to a host that has answered before: two minutes
STRANGER_PROBES = 3  # to one that never has: seven seconds
HOST_UNREACHABLE = "host_unreachable"  # error class of what is not asked: the host was given up


class HostSilentError(Exception):
    """A host does not answer for now; the URL has to wait until it is known what it does.

    Attributes:
        host: the host.
        attempts: how often the URL was asked before.
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host.name)
        self.host = host
        self.attempts = 0


class Host:
    """Pace and health of one host.

    Attributes:
        name: as `check_url` returns it.
        num_outages: how often the circuit has opened.
    """

    def __init__(self, name: str, rate: float, max_failures: int) -> None:
        """Let a host be asked.

        Args:
            name: as `check_url` returns it.
            rate: requests per second, at most.
            max_failures: URLs in a row that got no answer after which the circuit opens.
        """
        self.name = name
        self.num_outages = 0
        self._full_rate = self._rate = rate
        self._max_failures = max_failures
        self._full_at = 0.0  # when the bucket would be full again
        self._slowed_at = 0.0
        self._failures = self._refusals = self._num_silent = 0  # in a row; URLs, requests, all
        self._refusals_at_rate = 0  # in a row, by requests since the rate was halved
        self._reason = ""
        self._answered_from = 0.0  # monotonic time at which the latest that was answered began ...
        self._failed_from = 0.0  # ... and the latest that was not
        self._silent_since = 0.0  # Unix seconds
        self._has_answered = False
        self._is_open = self._is_given_up = False
        self._probes = 0
        self._probe_at = math.inf
        self._lock = threading.Lock()

    @property
    def rate(self) -> float:
        """Requests per second that it is asked at most, at present."""
        return self._rate

    @property
    def is_well(self) -> bool:
        """Whether no request has failed since the latest useful answer."""
        return not self._num_silent

    @property
    def is_open(self) -> bool:
        """Whether nobody asks for now: the circuit is open."""
        return self._is_open

    @property
    def is_given_up(self) -> bool:
        """Whether it is left alone for the rest of the run."""
        return self._is_given_up

    @property
    def probe_at(self) -> float:
        """Monotonic time at which an open circuit lets a probe through; infinite: one is on."""
        return self._probe_at

    def reserve(self, now: float) -> float:
        """Take a token; return the seconds to wait until it may be used."""
        with self._lock:
            starts_at = max(now, self._full_at)
            self._full_at = starts_at + 1 / self._rate
            return max(0.0, starts_at - BURST_S - now)

    def pause(self, now: float, seconds: float) -> None:
        """Let nobody ask for a while."""
        with self._lock:
            self._full_at = max(self._full_at, now + seconds + BURST_S)

    def enter(self, now: float) -> bool:
        """Ask to make a request; to be followed by one of the `record` methods.

        Returns:
            Whether the request is a probe.

        Raises:
            HostSilentError: the circuit is open.
            FetchError: `host_unreachable`, temporary: the host was given up.
        """
        with self._lock:
            if self._is_given_up:
                raise FetchError(HOST_UNREACHABLE, temporary=True)
            if not self._is_open:
                return False
            if now < self._probe_at:
                raise HostSilentError(self)
            self._probe_at = math.inf
            return True

    def let_probe(self) -> None:
        """Let the next request through as a probe: its pause is over."""
        with self._lock:
            self._probe_at = 0.0

    def record_answer(self, began: float) -> None:
        """Forget what went wrong before a useful answer, and ask a little faster.

        Args:
            began: monotonic time of the request: where a later one failed, this says nothing.
        """
        with self._lock:
            self._has_answered = True
            if began < self._failed_from:
                return
            self._answered_from = max(self._answered_from, began)
            self._failures = self._refusals = self._refusals_at_rate = self._num_silent = 0
            self._is_open = False
            self._rate = min(self._full_rate, self._rate + RECOVERY * self._full_rate)

    def record_refusal(self, code: int, began: float, *, is_probe: bool) -> None:
        """Count one of `REFUSALS`, and ask more slowly if there were several.

        Args:
            code: status of the answer.
            began: monotonic time of the request.
            is_probe: as `enter` returned it.
        """
        with self._lock:
            self._has_answered = True
            if self._is_in_row(f"refused, HTTP {code}", began, is_probe):
                self._failures = 0
                self._refusals += 1
                self._slow_down(began)
                self._judge(is_probe)

    def record_failure(self, error: str, began: float, *, is_first: bool, is_probe: bool) -> None:
        """Count a request that got no answer.

        Args:
            error: its error class.
            began: monotonic time of the request.
            is_first: whether the URL was asked for the first time.
            is_probe: as `enter` returned it.
        """
        with self._lock:
            if self._is_in_row(error, began, is_probe):
                self._failures += is_first
                self._judge(is_probe)

    def record_nothing(self, *, is_probe: bool) -> None:
        """Let another request be the probe: this one was not sent, for a reason of its own."""
        if is_probe:
            self.let_probe()

    def describe(self) -> str:
        """Say what its latest requests came to, and since when."""
        since = datetime.fromtimestamp(self._silent_since, UTC)
        return (
            f"{self._num_silent} requests in a row without a useful answer "
            f"({self._reason}) since {since:%Y-%m-%d %H:%M:%S} UTC"
        )

    def _is_in_row(self, reason: str, began: float, is_probe: bool) -> bool:
        """Note what failed, unless a later request was answered: then it is not the host."""
        if began < self._answered_from and not is_probe:
            return False
        if self.is_well:
            self._silent_since = time.time()
        self._failed_from = max(self._failed_from, began)
        self._num_silent += 1
        self._reason = reason
        return True

    def _slow_down(self, began: float) -> None:
        """Halve the rate after several refusals; those from before say nothing about the new."""
        self._refusals_at_rate += began >= self._slowed_at
        if self._refusals_at_rate >= STORM:
            self._rate = max(self._rate / 2, SLOWEST * self._full_rate)
            self._refusals_at_rate = 0
            self._slowed_at = time.monotonic()

    def _judge(self, is_probe: bool) -> None:
        """Open the circuit where it is time, or count a probe that failed."""
        is_too_much = self._failures >= self._max_failures or self._refusals >= MAX_REFUSALS
        if self._is_open and is_probe:
            self._probes += 1
            patience = PROBES if self._has_answered else STRANGER_PROBES
            self._is_given_up = self._probes >= patience
        elif not self._is_open and is_too_much:
            self._is_open = True
            self._probes = 0
            self.num_outages += 1
        else:
            return
        self._probe_at = time.monotonic() + min(FIRST_PAUSE_S * 2**self._probes, LONGEST_PAUSE_S)
