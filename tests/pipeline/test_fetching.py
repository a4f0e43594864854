"""One URL to bytes, against a mirror that fails on purpose."""

import socket
import threading
import time

import pytest

from mmm4rec.config import ImagesConfig
from pipeline import fetching
from pipeline.fetching import Fetcher, InterruptedFetchError
from pipeline.hosts import STORM, STRANGER_PROBES, HostSilentError


@pytest.fixture
def make_fetcher():
    fetchers = []

    def make(**settings):
        waits = []
        defaults = {"allow_private_hosts": True, "rate_per_host": 1e6, "timeout_s": 5}
        fetcher = Fetcher(ImagesConfig(**{**defaults, **settings}), waits.append)
        fetcher.waits = waits
        fetchers.append(fetcher)
        return fetcher

    yield make
    for fetcher in fetchers:
        fetcher.close()


def outcome(fetched):
    return fetched.error, fetched.temporary, fetched.http_code, fetched.attempts


def test_a_good_answer_is_returned_whole(mirror, make_fetcher):
    fetched = make_fetcher().fetch(f"{mirror.url}/ok")
    assert fetched.body == mirror.bodies["0.png"]
    assert outcome(fetched) == (None, False, 200, 1)
    assert fetched.final_url == f"{mirror.url}/ok"
    assert 0 < fetched.seconds < 5


@pytest.mark.parametrize("path", ["limited_once", "broken_once"])
def test_a_temporary_failure_is_repeated(mirror, make_fetcher, path):
    fetched = make_fetcher().fetch(f"{mirror.url}/{path}")
    assert outcome(fetched) == (None, False, 200, 2)
    assert fetched.body == mirror.bodies["0.png"]


def test_retry_after_is_obeyed(mirror, make_fetcher):
    fetcher = make_fetcher(attempts=2)
    fetcher.fetch(f"{mirror.url}/limited_once")
    assert fetcher.waits[0] == 7
    assert 6 < fetcher.waits[1] <= 7  # the pause holds for everyone who asks this host

    fetcher = make_fetcher(attempts=2)
    fetcher.fetch(f"{mirror.url}/limited_by_date")
    assert 25 < fetcher.waits[0] <= 30


def test_a_server_that_asks_for_too_much_patience_is_left(mirror, make_fetcher):
    fetcher = make_fetcher()
    assert outcome(fetcher.fetch(f"{mirror.url}/limited_for_years")) == (
        "rate_limited", True, 429, 1,
    )  # fmt: skip
    assert fetcher.waits == []


@pytest.mark.parametrize(
    ("value", "expected"), [("12", 12), ("", None), ("soon", None), ("-1", None), ("Ⅻ", None)]
)
def test_retry_after_values(value, expected):
    assert fetching._retry_after(value) == expected


def test_a_date_in_the_past_asks_for_no_wait():
    assert fetching._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_backoff_doubles_and_is_spread(mirror, make_fetcher):
    fetcher = make_fetcher(attempts=4)
    fetcher.fetch(f"{mirror.url}/500")
    assert len(fetcher.waits) == 3
    for attempt, wait in enumerate(fetcher.waits, start=1):
        longest = 0.25 * 2**attempt
        drawn = {fetching._backoff(f"{n}", attempt, None) for n in range(20)}
        assert len(drawn) == 20
        assert longest / 2 <= min(drawn) <= max(drawn) <= longest
        # What is left to wait is less by the time that has passed since the answer.
        expected = fetching._backoff(f"{mirror.url}/500", attempt, None)
        assert expected - 0.25 < wait <= expected


def test_redirects_are_followed(mirror, make_fetcher):
    fetched = make_fetcher(max_redirects=1).fetch(f"{mirror.url}/hop")
    assert (fetched.body, fetched.final_url) == (mirror.bodies["0.png"], f"{mirror.url}/ok")
    assert make_fetcher(max_redirects=0).fetch(f"{mirror.url}/hop").error == "too_many_redirects"


def test_the_body_of_a_redirect_is_not_read(mirror, make_fetcher):
    assert make_fetcher().fetch(f"{mirror.url}/endless_redirect").body == mirror.bodies["0.png"]


def test_a_length_that_is_too_short_cuts_the_body(mirror, make_fetcher):
    assert make_fetcher().fetch(f"{mirror.url}/lying_length").body == mirror.bodies["0.png"]


def test_a_compressed_body_is_not_unpacked(mirror, make_fetcher):
    assert make_fetcher().fetch(f"{mirror.url}/zipped").body == mirror.bodies["0.png"]


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"]])
def test_a_name_that_resolves_to_a_private_address_is_refused(
    mirror, make_fetcher, monkeypatch, answers
):
    def resolve(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port)) for answer in answers]

    monkeypatch.setattr("pipeline.connections.socket.getaddrinfo", resolve)
    fetcher = make_fetcher(allow_private_hosts=False)
    fetched = fetcher.fetch(f"http://shop.example:{mirror.server_port}/ok")
    assert outcome(fetched) == ("private_address", False, None, 1)
    assert mirror.requests.total() == 0


def test_plain_http_on_a_tls_port(mirror, make_fetcher):
    url = mirror.url.replace("http:", "https:")
    fetched = make_fetcher(attempts=1).fetch(f"{url}/ok")
    assert (fetched.error, fetched.temporary) == ("tls", True)


def test_a_malformed_host_is_a_bad_url(make_fetcher):
    assert outcome(make_fetcher().fetch("http://*.example.com/a.jpg"))[0] == "bad_url"


def test_neither_credentials_nor_cookies_are_sent(mirror, make_fetcher, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    fetcher = make_fetcher()
    for _ in range(2):
        fetcher.fetch(f"{mirror.url}/cookie")
    assert all({"Authorization", "Cookie"}.isdisjoint(headers) for headers in mirror.headers)
    assert len(mirror.headers) == 2


def test_a_proxy_of_the_environment_is_used(mirror, make_fetcher, monkeypatch):
    monkeypatch.setenv("http_proxy", mirror.url)
    monkeypatch.setenv("no_proxy", "")
    fetcher = make_fetcher(allow_private_hosts=False)
    assert fetcher.fetch("http://shop.example/a.png").body == mirror.bodies["0.png"]
    assert mirror.requests == {"http://shop.example/a.png": 1}


def test_a_host_that_does_not_answer_is_left_alone(mirror, make_fetcher):
    fetcher = make_fetcher(attempts=2, host_failures=2)
    host = fetcher.host_of(mirror.url)
    first = fetcher.fetch(f"{mirror.url}/reset?0")
    assert outcome(first) == ("connection", True, None, 2)
    assert (first.doubted, host.is_open) == (host, False)
    for n, attempts in ((1, 1), (2, 0), (3, 0)):
        with pytest.raises(HostSilentError, match=r"127\.0\.0\.1") as silent:
            fetcher.fetch(f"{mirror.url}/reset?{n}")
        assert (silent.value.host, silent.value.attempts) == (host, attempts)
    assert mirror.requests.total() == 3


def test_a_probe_that_is_answered_ends_the_outage(mirror, make_fetcher):
    fetcher = make_fetcher(attempts=1, host_failures=1)
    assert fetcher.fetch(f"{mirror.url}/reset").doubted.is_open
    fetcher.host_of(mirror.url).let_probe()
    assert fetcher.fetch(f"{mirror.url}/ok").error is None
    assert fetcher.fetch(f"{mirror.url}/ok").attempts == 1


def test_a_probe_of_a_url_that_is_not_asked_leaves_it_to_the_next(mirror, make_fetcher):
    fetcher = make_fetcher(attempts=1, host_failures=1)
    url = mirror.url.replace("127.0.0.1", "*.example.com")
    host = fetcher.host_of(url)
    host.record_failure("timeout", time.monotonic(), is_first=True, is_probe=False)
    host.let_probe()
    assert fetcher.fetch(f"{url}/a").error == "bad_url"
    assert host.probe_at == 0


def test_a_host_that_was_given_up_is_not_asked(mirror, make_fetcher):
    fetcher = make_fetcher(attempts=1, host_failures=1)
    fetcher.fetch(f"{mirror.url}/reset")
    for _ in range(STRANGER_PROBES):
        fetcher.host_of(mirror.url).let_probe()
        fetcher.fetch(f"{mirror.url}/reset")
    asked = mirror.requests.total()
    assert outcome(fetcher.fetch(f"{mirror.url}/ok")) == ("host_unreachable", True, None, 0)
    assert mirror.requests.total() == asked == 1 + STRANGER_PROBES
    assert fetcher.waits == []


@pytest.mark.parametrize("path", ["reset", "503/a", "429/a"])
def test_a_failure_is_doubted_until_the_host_answers(mirror, make_fetcher, path):
    fetcher = make_fetcher(attempts=1)
    assert fetcher.fetch(f"{mirror.url}/{path}").doubted is fetcher.host_of(mirror.url)
    for certain in ("404/a", "500/a", "half", "ok"):
        assert fetcher.fetch(f"{mirror.url}/{certain}").doubted is None


def test_refusals_slow_the_pace(mirror, make_fetcher):
    fetcher = make_fetcher(attempts=STORM, rate_per_host=1000)
    for _ in range(2):
        fetcher.fetch(f"{mirror.url}/503/a")
    assert fetcher.host_of(mirror.url).rate == 250
    fetcher.fetch(f"{mirror.url}/ok")
    assert fetcher.host_of(mirror.url).rate == 260


def test_an_answer_of_any_kind_forgets_failures(mirror, make_fetcher):
    fetcher = make_fetcher(attempts=1, host_failures=2)
    for path in ["reset", "404"] * 3:
        fetcher.fetch(f"{mirror.url}/{path}")
    assert mirror.requests.total() == 6


def test_connections_are_used_again(mirror, make_fetcher):
    fetcher = make_fetcher()
    for n in range(5):
        fetcher.fetch(f"{mirror.url}/ok?{n}")
    assert mirror.num_connections == 1


def test_a_stopped_fetcher_asks_no_more(mirror, make_fetcher):
    fetcher = make_fetcher()
    fetcher.stop()
    with pytest.raises(InterruptedFetchError, match="stopped"):
        fetcher.fetch(f"{mirror.url}/ok")
    assert mirror.requests.total() == 0


def test_stopping_ends_the_waiting(mirror):
    config = ImagesConfig(allow_private_hosts=True, attempts=2)
    fetcher = Fetcher(config)
    threading.Timer(0.2, fetcher.stop).start()
    started = time.monotonic()
    with pytest.raises(InterruptedFetchError, match="stopped"):
        fetcher.fetch(f"{mirror.url}/limited_once")
    fetcher.close()
    assert time.monotonic() - started < 2
