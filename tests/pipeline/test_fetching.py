"""One URL to bytes, against a server that fails on purpose."""

import http.server
import socket
import threading
import time
from collections import Counter
from email.utils import formatdate

import pytest

from mmm4rec.config import ImagesConfig
from pipeline import fetching
from pipeline.connections import FetchError, check_url, open_session
from pipeline.fetching import BURST_S, Fetcher, Host, InterruptedFetchError

BODY = b"\x89PNG and so on"


class Handler(http.server.BaseHTTPRequestHandler):
    """`/name` calls the method `name`; requests are counted by path."""

    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.num_connections += 1

    def do_GET(self):
        self.server.requests[self.path] += 1
        self.server.headers.append(dict(self.headers))
        if self.path.startswith("http://"):  # asked as a proxy
            return self.answer(200, BODY)
        return getattr(self, self.path.strip("/").split("/")[0].split("?")[0])()

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def count(self):
        return self.server.requests[self.path]

    def ok(self):
        self.answer(200, BODY)

    def status(self):
        self.answer(int(self.path.split("/")[2]))

    def limited_once(self):
        if self.count() == 1:
            self.answer(429, Retry_After=7)
        else:
            self.answer(200, BODY)

    def limited_by_date(self):
        self.answer(429, Retry_After=formatdate(time.time() + 30, usegmt=True))

    def limited_for_years(self):
        self.answer(429, Retry_After="9" * 5000)

    def broken_once(self):
        self.answer(500 if self.count() == 1 else 200, BODY)

    def slow(self):
        time.sleep(1)

    def slow_header(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(20):
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(0.1)

    def slow_body(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(20):
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(0.1)

    def reset(self):
        self.close_connection = True

    def cut_header(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
        self.close_connection = True

    def half(self):
        self.answer(200, BODY[:5], Content_Length=len(BODY))
        self.close_connection = True

    def huge(self):
        self.answer(200, BODY, Content_Length=10**10)
        self.close_connection = True

    def endless(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    def lying_length(self):
        self.answer(200, BODY + b"much more", Content_Length=len(BODY))
        self.close_connection = True

    def zipped(self):
        self.answer(200, BODY, Content_Encoding="gzip")

    def hop(self):
        self.answer(302, b"moved", Location="/ok")

    def loop(self):
        self.answer(301, Location="/loop")

    def to_metadata(self):
        self.answer(302, Location="http://169.254.169.254/latest/meta-data")

    def to_file(self):
        self.answer(302, Location="file:///etc/passwd")

    def to_nowhere(self):
        self.answer(302, Location="http://[::1/")

    def endless_redirect(self):
        self.send_response(302)
        self.send_header("Location", "/ok")
        self.send_header("Content-Length", str(10**10))
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 4096)

    def cookie(self):
        self.answer(200, BODY, Set_Cookie="tracked=1; Path=/")

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args):  # clients hang up on purpose
        pass


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.headers, server.num_connections = Counter(), [], 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make_fetcher(server):
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


def test_a_good_answer_is_returned_whole(server, make_fetcher):
    fetched = make_fetcher().fetch(f"{server.url}/ok")
    assert fetched.body == BODY
    assert outcome(fetched) == (None, False, 200, 1)
    assert fetched.final_url == f"{server.url}/ok"
    assert 0 < fetched.seconds < 5


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("status/404", ("not_found", False, 404, 1)),
        ("status/410", ("gone", False, 410, 1)),
        ("status/403", ("forbidden", False, 403, 1)),
        ("status/451", ("http_4xx", False, 451, 1)),
        ("status/408", ("http_4xx", True, 408, 3)),
        ("status/206", ("http_2xx", False, 206, 1)),
        ("status/302", ("http_3xx", False, 302, 1)),  # a redirect without a target
        ("status/500", ("http_5xx", True, 500, 3)),
        ("status/503", ("http_5xx", True, 503, 3)),
        ("reset", ("connection", True, None, 3)),
        ("cut_header", ("truncated", True, 200, 3)),
        ("half", ("truncated", True, 200, 3)),
        ("huge", ("too_large", False, 200, 1)),
        ("endless", ("too_large", False, 200, 1)),
        ("loop", ("too_many_redirects", False, None, 1)),
        ("to_file", ("bad_url", False, None, 1)),
        ("to_nowhere", ("bad_url", False, None, 1)),
    ],
)
def test_each_failure_has_its_class(server, make_fetcher, path, expected):
    fetched = make_fetcher(max_bytes=100_000).fetch(f"{server.url}/{path}")
    assert outcome(fetched) == expected
    assert fetched.body == b""
    assert max(server.requests.values()) == (4 if path == "loop" else expected[-1])


@pytest.mark.parametrize("path", ["slow", "slow_header", "slow_body"])
def test_a_slow_server_is_left_in_time(server, make_fetcher, path):
    fetcher = make_fetcher(timeout_s=0.3, attempts=1)
    started = time.monotonic()
    fetched = fetcher.fetch(f"{server.url}/{path}")
    assert time.monotonic() - started < 0.9
    assert (fetched.error, fetched.temporary) == ("timeout", True)


@pytest.mark.parametrize("path", ["limited_once", "broken_once"])
def test_a_temporary_failure_is_repeated(server, make_fetcher, path):
    fetched = make_fetcher().fetch(f"{server.url}/{path}")
    assert outcome(fetched) == (None, False, 200, 2)
    assert fetched.body == BODY


def test_retry_after_is_obeyed(server, make_fetcher):
    fetcher = make_fetcher(attempts=2)
    fetcher.fetch(f"{server.url}/limited_once")
    assert fetcher.waits[0] == 7
    assert 6 < fetcher.waits[1] <= 7  # the pause holds for everyone who asks this host

    fetcher = make_fetcher(attempts=2)
    fetcher.fetch(f"{server.url}/limited_by_date")
    assert 25 < fetcher.waits[0] <= 30


def test_a_server_that_asks_for_too_much_patience_is_left(server, make_fetcher):
    fetcher = make_fetcher()
    assert outcome(fetcher.fetch(f"{server.url}/limited_for_years")) == (
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


def test_backoff_doubles_and_is_spread(server, make_fetcher):
    fetcher = make_fetcher(attempts=4)
    fetcher.fetch(f"{server.url}/status/500")
    assert len(fetcher.waits) == 3
    for attempt, wait in enumerate(fetcher.waits, start=1):
        longest = 0.25 * 2**attempt
        drawn = {fetching._backoff(f"{n}", attempt, None) for n in range(20)}
        assert len(drawn) == 20
        assert longest / 2 <= min(drawn) <= max(drawn) <= longest
        # What is left to wait is less by the time that has passed since the answer.
        expected = fetching._backoff(f"{server.url}/status/500", attempt, None)
        assert expected - 0.25 < wait <= expected


def test_redirects_are_followed(server, make_fetcher):
    fetched = make_fetcher(max_redirects=1).fetch(f"{server.url}/hop")
    assert (fetched.body, fetched.final_url) == (BODY, f"{server.url}/ok")
    assert make_fetcher(max_redirects=0).fetch(f"{server.url}/hop").error == "too_many_redirects"


def test_the_body_of_a_redirect_is_not_read(server, make_fetcher):
    assert make_fetcher().fetch(f"{server.url}/endless_redirect").body == BODY


def test_a_length_that_is_too_short_cuts_the_body(server, make_fetcher):
    assert make_fetcher().fetch(f"{server.url}/lying_length").body == BODY


def test_a_compressed_body_is_not_unpacked(server, make_fetcher):
    assert make_fetcher().fetch(f"{server.url}/zipped").body == BODY


def test_private_hosts_are_not_asked(server, make_fetcher):
    fetcher = make_fetcher(allow_private_hosts=False)
    assert outcome(fetcher.fetch(f"{server.url}/ok")) == ("private_address", False, None, 1)
    assert server.requests.total() == 0


def test_a_redirect_to_a_private_host_is_not_followed(server, make_fetcher, monkeypatch):
    monkeypatch.setattr("pipeline.connections._is_private", lambda host: host.startswith("169."))
    fetched = make_fetcher(allow_private_hosts=False).fetch(f"{server.url}/to_metadata")
    assert fetched.error == "private_address"
    assert fetched.final_url == "http://169.254.169.254/latest/meta-data"


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"]])
def test_a_name_that_resolves_to_a_private_address_is_refused(
    server, make_fetcher, monkeypatch, answers
):
    def resolve(host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, port)) for answer in answers]

    monkeypatch.setattr("pipeline.connections.socket.getaddrinfo", resolve)
    fetcher = make_fetcher(allow_private_hosts=False)
    fetched = fetcher.fetch(f"http://shop.example:{server.server_port}/ok")
    assert outcome(fetched) == ("private_address", False, None, 1)
    assert server.requests.total() == 0


def test_a_name_that_does_not_resolve(make_fetcher):
    fetched = make_fetcher(attempts=2).fetch("http://nowhere.invalid/a.jpg")
    assert outcome(fetched) == ("dns", True, None, 2)


def test_a_closed_port(make_fetcher):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.jpg"
    assert outcome(make_fetcher(attempts=1).fetch(url)) == ("connection", True, None, 1)


def test_plain_http_on_a_tls_port(server, make_fetcher):
    url = server.url.replace("http:", "https:")
    fetched = make_fetcher(attempts=1).fetch(f"{url}/ok")
    assert (fetched.error, fetched.temporary) == ("tls", True)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://example.com/a.jpg", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("data:image/png;base64,AAAA", "bad_url"),
        ("https://user:secret@example.com/a.jpg", "bad_url"),
        ("https://example.com:port/a.jpg", "bad_url"),
        ("https://[::1/a.jpg", "bad_url"),
        ("https:///a.jpg", "bad_url"),
        ("not a url", "bad_url"),
        ("https://example.com/a b.jpg", "bad_url"),
        ("https://example.com/a\nHost: other", "bad_url"),
        ("https://example.com/" + "a" * 3000, "bad_url"),
        ("http://localhost/a.jpg", "private_address"),
        ("http://127.0.0.1/a.jpg", "private_address"),
        ("http://127.1/a.jpg", "private_address"),
        ("http://2130706433/a.jpg", "private_address"),
        ("http://10.1.2.3/a.jpg", "private_address"),
        ("http://169.254.169.254/latest", "private_address"),
        ("http://0.0.0.0/a.jpg", "private_address"),
        ("http://224.0.0.1/a.jpg", "private_address"),
        ("http://[::1]/a.jpg", "private_address"),
        ("http://[fe80::1]/a.jpg", "private_address"),
        ("http://[::ffff:192.168.0.1]/a.jpg", "private_address"),
        ("http://[2002:7f00:1::]/a.jpg", "private_address"),
    ],
)
def test_urls_that_are_not_asked(url, error):
    with pytest.raises(FetchError, match=error):
        check_url(url, allow_private_hosts=False)


def test_urls_that_may_be_asked():
    assert check_url("https://example.com/a.jpg", False) == "example.com:https"
    assert check_url("http://8.8.8.8:8080/a.jpg", False) == "8.8.8.8:8080"
    assert check_url("http://127.0.0.1/a.jpg", True) == "127.0.0.1:http"


def test_a_malformed_host_is_a_bad_url(make_fetcher):
    assert outcome(make_fetcher().fetch("http://*.example.com/a.jpg"))[0] == "bad_url"


def test_neither_credentials_nor_cookies_are_sent(server, make_fetcher, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    fetcher = make_fetcher()
    for _ in range(2):
        fetcher.fetch(f"{server.url}/cookie")
    assert all({"Authorization", "Cookie"}.isdisjoint(headers) for headers in server.headers)
    assert len(server.headers) == 2


def test_a_proxy_of_the_environment_is_used(server, make_fetcher, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    fetcher = make_fetcher(allow_private_hosts=False)
    assert fetcher.fetch("http://shop.example/a.png").body == BODY
    assert server.requests == {"http://shop.example/a.png": 1}


def test_a_host_that_does_not_answer_is_left_alone(server, make_fetcher):
    fetcher = make_fetcher(attempts=2, host_failures=3)
    outcomes = [outcome(fetcher.fetch(f"{server.url}/reset?{n}")) for n in range(6)]
    assert outcomes[:2] == [("connection", True, None, 2), ("connection", True, None, 1)]
    assert outcomes[2:] == [("host_unreachable", True, None, 0)] * 4
    assert server.requests.total() == 3
    assert len(fetcher.waits) == 1  # no waiting for a host that is left alone


def test_an_answer_of_any_kind_forgets_failures(server, make_fetcher):
    fetcher = make_fetcher(attempts=1, host_failures=2)
    for path in ["reset", "status/404"] * 3:
        fetcher.fetch(f"{server.url}/{path}")
    assert server.requests.total() == 6


def test_connections_are_used_again(server, make_fetcher):
    fetcher = make_fetcher()
    for n in range(5):
        fetcher.fetch(f"{server.url}/ok?{n}")
    assert server.num_connections == 1


def test_the_rate_is_that_of_a_token_bucket():
    host = Host(rate=10, max_failures=1)
    waits = [host.reserve(100.0) for _ in range(10)]
    assert waits[:3] == [0, 0, 0]  # 0.25 s worth of tokens
    assert waits[3:] == pytest.approx([n / 10 - BURST_S for n in range(3, 10)])
    assert host.reserve(200.0) == 0
    host.pause(200.0, 5)
    assert host.reserve(200.0) == pytest.approx(5)


def test_a_stopped_fetcher_asks_no_more(server, make_fetcher):
    fetcher = make_fetcher()
    fetcher.stop()
    with pytest.raises(InterruptedFetchError, match="stopped"):
        fetcher.fetch(f"{server.url}/ok")
    assert server.requests.total() == 0


def test_stopping_ends_the_waiting(server):
    config = ImagesConfig(allow_private_hosts=True, attempts=2)
    fetcher = Fetcher(config)
    threading.Timer(0.2, fetcher.stop).start()
    started = time.monotonic()
    with pytest.raises(InterruptedFetchError, match="stopped"):
        fetcher.fetch(f"{server.url}/limited_once")
    fetcher.close()
    assert time.monotonic() - started < 2


def test_the_session_asks_for_pictures_only():
    with open_session(1, allow_private_hosts=False) as session:
        assert set(session.headers["Accept"].split(",")) == {
            "image/jpeg", "image/png", "image/webp", "image/gif",
        }  # fmt: skip
