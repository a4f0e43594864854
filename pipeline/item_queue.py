"""Which item is tried next, how far a run is, and whether it makes sense to go on.

Items that need a host which is silent wait until it answers or is given up.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mmm4rec.errors import DataError
from pipeline.hosts import Host

Urls = list[str]  # what one item lists, each once
STRANDED_ITEMS = 10
STRANDED_SHARE = 0.01  # of all items


class ItemQueue:
    """Items that are not under way; to be used by one thread."""

    def __init__(self, items: Iterable[Urls], wait: Callable[[float], object]) -> None:
        """Let all items be ready.

        Args:
            items: the URLs of each.
            wait: waits that many seconds.
        """
        self._ready = deque(items)
        self._held: dict[Host, deque[Urls]] = {}
        self._wait = wait

    def __len__(self) -> int:
        return len(self._ready) + sum(map(len, self._held.values()))

    @property
    def is_ready(self) -> bool:
        """Whether `pop` has an item."""
        return bool(self._ready)

    def pop(self) -> Urls:
        """Take the next item."""
        return self._ready.popleft()

    def hold(self, urls: Urls, host: Host) -> None:
        """Put an item back until it is known what becomes of a host."""
        self._held.setdefault(host, deque()).append(urls)

    def release(self, *, is_idle: bool) -> None:
        """Make ready what need not wait any longer; one item where a host may be probed.

        Args:
            is_idle: no item is under way: this waits for the next probe, if nothing else is ready.
        """
        for host in list(self._held):
            if host.is_well or host.is_given_up:
                self._release_all(host)
            elif host.is_open and time.monotonic() >= host.probe_at:
                self._release_one(host)
        if is_idle and self._held and not self._ready:
            self._release_idle()

    def _release_idle(self) -> None:
        closed = [host for host in self._held if not host.is_open]
        for host in closed:  # nobody else will tell what becomes of it
            self._release_all(host)
        if not closed:
            host = min(self._held, key=lambda host: host.probe_at)
            self._wait(max(0.0, host.probe_at - time.monotonic()))
            host.let_probe()
            self._release_one(host)

    def _release_all(self, host: Host) -> None:
        self._ready.extendleft(reversed(self._held.pop(host)))

    def _release_one(self, host: Host) -> None:
        held = self._held[host]
        self._ready.appendleft(held.popleft())
        if not held:
            del self._held[host]


@dataclass
class Tally:
    """How many items are done, and which hosts leave how many of them without a picture.

    A few dead hosts in a long catalogue do not matter. Where the hosts that were given up leave
    more than `STRANDED_ITEMS` items and more than `STRANDED_SHARE` of all without a picture, the
    run is to end.
    """

    num_items: int
    done: int
    stranded: Counter[Host] = field(default_factory=Counter)

    def count(self, stranding_host: Host | None) -> None:
        """Count an item that is done.

        Args:
            stranding_host: the host that was given up and for that leaves it without a picture.

        Raises:
            DataError: too many items are without a picture for hosts that do not answer.
        """
        self.done += 1
        if stranding_host is None:
            return
        self.stranded[stranding_host] += 1
        if self.stranded.total() > max(STRANDED_ITEMS, STRANDED_SHARE * self.num_items):
            raise DataError(self._describe())

    def _describe(self) -> str:
        ((host, _),) = self.stranded.most_common(1)
        done = self.done - self.stranded.total()
        name = host.name.removesuffix(":https").removesuffix(":http")
        return (
            f"images: {name} does not answer: {host.describe()}. {done:,} of "
            f"{self.num_items:,} items are done and kept, {self.num_items - done:,} remain. "
            "Next: the same command carries on later; --no-images goes on without; "
            "--set images.host_failures=N bears more requests in a row without an answer"
        )
