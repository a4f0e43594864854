"""The order of items around hosts that are silent, and when to end."""

import time

import pytest

from mmm4rec.errors import DataError
from pipeline.hosts import PROBES, Host
from pipeline.item_queue import ItemQueue, Tally


@pytest.fixture
def waits():
    return []


@pytest.fixture
def host():
    return Host("shop.example:https", rate=1, max_failures=2)


@pytest.fixture
def queue(waits):
    return ItemQueue([["a"], ["b"], ["c"]], waits.append)


def take(queue):
    taken = []
    while queue.is_ready:
        taken += queue.pop()
    return taken


def fail(host, *, is_probe=False):
    host.record_failure("timeout", time.monotonic(), is_first=True, is_probe=is_probe)


def shut(host):
    host.record_answer(time.monotonic())
    fail(host)
    fail(host)


def hold_all(queue, host):
    for url in take(queue):
        queue.hold([url], host)


def test_items_come_in_order(queue):
    assert len(queue) == 3
    assert take(queue) == ["a", "b", "c"]
    assert not queue


def test_held_items_come_back_first_and_in_order_when_the_host_answers(queue, host, waits):
    fail(host)
    held = [queue.pop(), queue.pop()]
    for urls in held:
        queue.hold(urls, host)
    assert len(queue) == 3
    queue.release(is_idle=False)
    assert len(queue) == 3
    host.record_answer(time.monotonic())
    queue.release(is_idle=False)
    assert take(queue) == ["a", "b", "c"]
    assert waits == []


def test_an_open_circuit_lets_one_item_out_when_its_pause_is_over(queue, host, waits):
    shut(host)
    hold_all(queue, host)
    queue.release(is_idle=False)
    assert not queue.is_ready
    host.let_probe()
    queue.release(is_idle=False)
    assert take(queue) == ["a"]
    assert len(queue) == 2
    assert waits == []


def test_who_is_idle_waits_for_the_next_probe(queue, host, waits):
    shut(host)
    other = Host("other.example:https", rate=1, max_failures=1)
    for url in take(queue):
        queue.hold([url], other if url == "a" else host)
    fail(other)
    other.let_probe()
    assert other.enter(1)
    fail(other, is_probe=True)  # its next pause is longer
    queue.release(is_idle=True)
    assert take(queue) == ["b"]
    assert waits == [pytest.approx(1, abs=0.1)]
    assert host.enter(0.0)  # lets it through now


def test_who_is_idle_does_not_wait_for_others_to_tell(queue, host, waits):
    fail(host)
    hold_all(queue, host)
    queue.release(is_idle=True)
    assert take(queue) == ["a", "b", "c"]
    assert waits == []


def test_others_that_become_ready_will_tell(queue, host):
    other = Host("other.example:https", rate=1, max_failures=2)
    shut(host)
    queue.hold(queue.pop(), other)
    fail(other)
    hold_all(queue, host)
    for _ in range(PROBES):
        fail(host, is_probe=True)
    queue.release(is_idle=True)
    assert take(queue) == ["b", "c"]
    queue.release(is_idle=True)
    assert take(queue) == ["a"]


def test_nothing_is_held_for_a_host_that_was_given_up(queue, host):
    shut(host)
    hold_all(queue, host)
    for _ in range(PROBES):
        fail(host, is_probe=True)
    queue.release(is_idle=False)
    assert take(queue) == ["a", "b", "c"]


@pytest.mark.parametrize(("num_items", "bearable"), [(12, 10), (1000, 10), (5000, 50)])
def test_a_few_items_that_depend_on_dead_hosts_do_not_matter(num_items, bearable, host):
    shut(host)
    tally = Tally(num_items, done=1)
    tally.count(None)
    for _ in range(bearable):
        tally.count(host)
    assert tally.done == 2 + bearable
    with pytest.raises(DataError, match=rf"2 of {num_items:,} items .* {num_items - 2:,} remain"):
        tally.count(host)


def test_the_host_that_matters_most_is_named(host):
    shut(host)
    tally = Tally(100, done=0)
    tally.count(Host("other.example:https", rate=1, max_failures=1))
    for _ in range(9):
        tally.count(host)
    with pytest.raises(
        DataError,
        match=r"images: shop\.example does not answer: 2 requests in a row without a useful "
        r"answer \(timeout\) since 20.*UTC\. 0 of 100 items are done and kept, 100 remain\. "
        r"Next: the same command carries on later; --no-images goes on without; "
        r"--set images\.host_failures=N",
    ):
        tally.count(host)
