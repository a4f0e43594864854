"""Pace and health of a host."""

import math
import re
import time

import pytest

from pipeline import hosts
from pipeline.connections import FetchError
from pipeline.hosts import (
    BURST_S,
    MAX_REFUSALS,
    PROBES,
    SLOWEST,
    STORM,
    STRANGER_PROBES,
    Host,
    HostSilentError,
)


@pytest.fixture
def host():
    return Host("shop.example:https", rate=100, max_failures=3)


def refuse(host, times, began=None):
    for _ in range(times):
        host.record_refusal(503, began or time.monotonic(), is_probe=False)


def fail(host, times=3, *, began=None, is_first=True, is_probe=False):
    for _ in range(times):
        began_at = began or time.monotonic()
        host.record_failure("timeout", began_at, is_first=is_first, is_probe=is_probe)


def test_the_rate_is_that_of_a_token_bucket():
    host = Host("shop.example", rate=10, max_failures=1)
    waits = [host.reserve(100.0) for _ in range(10)]
    assert waits[:3] == [0, 0, 0]  # 0.25 s worth of tokens
    assert waits[3:] == pytest.approx([n / 10 - BURST_S for n in range(3, 10)])
    assert host.reserve(200.0) == 0
    host.pause(200.0, 5)
    assert host.reserve(200.0) == pytest.approx(5)


def test_refusals_in_a_row_halve_the_rate_and_answers_give_it_back(host):
    refuse(host, STORM - 1)
    assert host.rate == 100
    refuse(host, 1)
    assert host.rate == 50
    for _ in range(20):
        host.record_answer(time.monotonic())
    assert host.rate == pytest.approx(70)
    refuse(host, STORM - 1)  # the answers have broken the row
    assert host.rate == pytest.approx(70)
    for _ in range(50):
        host.record_answer(time.monotonic())
    assert host.rate == 100


def test_the_bucket_fills_at_the_present_rate(host):
    refuse(host, STORM)
    waits = [host.reserve(1000.0) for _ in range(20)]
    assert waits[-1] - waits[-2] == pytest.approx(1 / 50)


def test_requests_from_before_the_rate_was_halved_do_not_halve_it_again(host):
    before = time.monotonic()
    refuse(host, 30, began=before)
    assert host.rate == 50
    refuse(host, STORM, began=time.monotonic())
    assert host.rate == 25


def test_the_rate_has_a_floor(host):
    refuse(host, 60)
    assert host.rate == 100 * SLOWEST


@pytest.mark.parametrize(
    ("break_off", "limit", "reason"),
    [
        (lambda host, n: fail(host, n), 3, r"3 requests in a row .*\(timeout\)"),
        (refuse, MAX_REFUSALS, rf"{MAX_REFUSALS} requests in a row .*\(refused, HTTP 503\)"),
    ],
)
def test_the_circuit_opens_after_so_many_in_a_row(host, break_off, limit, reason):
    break_off(host, limit - 1)
    host.record_answer(time.monotonic())
    break_off(host, limit - 1)
    assert (host.is_open, host.is_well, host.num_outages) == (False, False, 0)
    assert not host.enter(time.monotonic())
    break_off(host, 1)
    assert (host.is_open, host.num_outages) == (True, 1)
    with pytest.raises(HostSilentError, match=r"shop\.example:https") as silent:
        host.enter(time.monotonic())
    assert silent.value.host is host
    assert re.match(reason, host.describe())


def test_an_outage_is_described(host, monkeypatch):
    monkeypatch.setattr(hosts.time, "time", lambda: 1_700_000_000)
    fail(host, 1)
    monkeypatch.setattr(hosts.time, "time", lambda: 1_800_000_000)
    fail(host, 2)
    assert host.describe() == (
        "3 requests in a row without a useful answer (timeout) since 2023-11-14 22:13:20 UTC"
    )


def test_one_probe_at_a_time_after_its_pause(host):
    fail(host)
    assert 0.9 < host.probe_at - time.monotonic() <= 1
    assert host.enter(host.probe_at)
    with pytest.raises(HostSilentError):
        host.enter(time.monotonic() + 1e6)
    fail(host, 5)  # stragglers from before the circuit opened are no probes
    assert host.probe_at == math.inf
    fail(host, 1, is_probe=True)
    assert 1.9 < host.probe_at - time.monotonic() <= 2
    assert host.num_outages == 1


def test_an_answer_closes_the_circuit(host):
    fail(host)
    host.let_probe()
    assert host.enter(time.monotonic())
    host.record_answer(time.monotonic())
    assert (host.is_open, host.is_well, host.is_given_up) == (False, True, False)
    assert not host.enter(time.monotonic())
    fail(host)
    assert host.num_outages == 2


def test_an_answer_to_a_request_from_before_does_not_end_the_silence(host):
    before = time.monotonic()
    fail(host, 2)
    host.record_answer(before)
    assert not host.is_well
    fail(host, 1)
    assert host.is_open
    host.record_answer(before)
    assert host.is_open
    host.record_answer(time.monotonic())
    assert (host.is_open, host.is_well) == (False, True)


@pytest.mark.parametrize(("has_answered", "probes"), [(False, STRANGER_PROBES), (True, PROBES)])
def test_a_host_is_given_up_after_so_many_probes(host, has_answered, probes):
    if has_answered:
        host.record_answer(time.monotonic())
    fail(host)
    pauses = []
    for _ in range(probes):
        assert not host.is_given_up
        pauses.append(round(host.probe_at - time.monotonic()))
        host.let_probe()
        assert host.enter(time.monotonic())
        fail(host, 1, is_probe=True)
    assert pauses == [1, 2, 4, 8, 16, 32, 60][:probes]
    assert host.is_given_up
    host.record_answer(time.monotonic())  # too late
    with pytest.raises(FetchError, match="host_unreachable") as left:
        host.enter(time.monotonic())
    assert left.value.temporary


def test_repetitions_do_not_open_the_circuit(host):
    fail(host, 2)
    fail(host, 20, is_first=False)
    assert (host.is_open, host.is_well) == (False, False)
    assert host.describe().startswith("22 requests in a row")
    fail(host, 1)
    assert host.is_open


def test_what_failed_does_not_count_where_a_later_request_was_answered(host):
    began = time.monotonic()
    host.record_answer(time.monotonic())
    fail(host, 20, began=began)
    refuse(host, 20, began=began)
    assert (host.is_well, host.rate) == (True, 100)
    fail(host, 1, began=time.monotonic())
    assert not host.is_well


def test_a_request_that_was_not_sent_is_no_probe(host):
    fail(host)
    host.let_probe()
    assert host.enter(time.monotonic())
    host.record_nothing(is_probe=True)
    assert host.enter(time.monotonic())
    assert not host.is_given_up
