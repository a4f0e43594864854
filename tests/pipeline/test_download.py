import contextlib
import hashlib
import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmm4rec.errors import DataError
from pipeline import download as module
from pipeline.download import UnavailableError, download, is_fetched, resumable_bytes
from pipeline.lockfile import LOCK, read_lock

BODY = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BODY).hexdigest()


class _Shop(ThreadingHTTPServer):
    """Serves BODY at every path; `script` holds one behaviour per request, then it is honest."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = deque()
        self.etag = '"v1"'
        self.body = BODY
        self.asked = []  # path and Range of each request
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        behave = server.script.popleft() if server.script else _honest
        with contextlib.suppress(ConnectionError):
            behave(self)


def _answer(handler, status, body=b"", send=None, **headers):
    handler.send_response(status)
    headers = {"Content_Length": str(len(body)), "ETag": handler.server.etag} | headers
    for name, value in headers.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body if send is None else send)
    if send is not None:
        handler.close_connection = True


def _honest(handler, cut=None):
    body, etag = handler.server.body, handler.server.etag
    wanted = handler.headers.get("Range")
    if wanted is None or handler.headers.get("If-Range") != etag:
        return _answer(handler, 200, body, send=None if cut is None else body[:cut])
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(body):
        return _answer(handler, 416, Content_Range=f"bytes */{len(body)}")
    rest = body[start:]
    span = f"bytes {start}-{len(body) - 1}/{len(body)}"
    return _answer(handler, 206, rest, send=None if cut is None else rest[:cut], Content_Range=span)


def _cut(count):
    return lambda handler: _honest(handler, count)


def _status(code, **headers):
    return lambda handler: _answer(handler, code, b"no", **headers)


@pytest.fixture
def shop():
    with _Shop() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "GAIN_BYTES", 1000)


def _get(shop, folder, *paths, **kwargs):
    urls = [shop.url + path for path in paths or ("/file.csv",)]
    return download(urls, folder / "file.csv", attempts=2, backoff_s=0.001, **kwargs)


def _hidden(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_a_file_is_fetched_once_with_a_lock_and_progress(shop, tmp_path):
    said = []
    target = _get(shop, tmp_path, progress=lambda *args: said.append(args))
    assert target.read_bytes() == BODY
    assert said[-1] == ("file.csv", len(BODY), len(BODY))
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)
    entry = json.loads((tmp_path / LOCK).read_text())["file.csv"]
    modified_ns = target.stat().st_mtime_ns
    locked = {"url": shop.url + "/file.csv", "bytes": len(BODY), "sha256": SHA256}
    assert entry == locked | {"modified_ns": modified_ns}
    assert not [name for name in _hidden(tmp_path) if "part" in name]
    _get(shop, tmp_path, sha256=SHA256)
    assert len(shop.asked) == 1


def test_several_files_of_a_folder_share_a_lock(shop, tmp_path):
    for name in ("b", "a"):
        download([shop.url + "/" + name], tmp_path / name)
    assert {name: entry.url for name, entry in read_lock(tmp_path).items()} == {
        "a": shop.url + "/a",
        "b": shop.url + "/b",
    }


def test_a_file_from_elsewhere_is_fetched_again_and_must_be_the_same(shop, tmp_path):
    _get(shop, tmp_path)
    _get(shop, tmp_path, "/other")
    assert [path for path, _ in shop.asked] == ["/file.csv", "/other"]
    assert read_lock(tmp_path)["file.csv"].url == shop.url + "/other"


@pytest.mark.parametrize("is_deleted", [True, False])
def test_another_file_than_the_locked_one_is_refused(shop, tmp_path, is_deleted):
    target = _get(shop, tmp_path)
    if is_deleted:
        target.unlink()
    shop.body = BODY[::-1]
    other = hashlib.sha256(shop.body).hexdigest()
    message = (
        f"/other: its sha256 is {other}, not {SHA256} as of the file fetched earlier from "
        rf"{shop.url}/file.csv \(to accept the other file remove the entry 'file.csv' from "
    )
    with pytest.raises(UnavailableError, match=message):
        _get(shop, tmp_path, "/other")
    assert target.exists() != is_deleted
    assert not (tmp_path / ".file.csv.part").exists()
    (tmp_path / LOCK).unlink()
    target.unlink(missing_ok=True)
    assert _get(shop, tmp_path, "/other").read_bytes() == shop.body


def test_a_mirror_with_the_locked_file_is_found_behind_one_with_another(shop, tmp_path):
    _get(shop, tmp_path).unlink()
    shop.script.append(lambda handler: _answer(handler, 200, BODY[::-1]))
    assert _get(shop, tmp_path, "/changed", "/same").read_bytes() == BODY


def test_a_file_changed_in_place_is_refused_until_accepted(shop, tmp_path):
    target = _get(shop, tmp_path)
    target.write_bytes(b"cut")
    with pytest.raises(DataError, match=r"file.csv was changed after it was fetched: it has 3 byt"):
        _get(shop, tmp_path)
    (tmp_path / LOCK).write_text("{}")
    assert _get(shop, tmp_path).read_bytes() == b"cut"
    assert len(shop.asked) == 1


def test_a_wrong_pin_yields_to_the_lock(shop, tmp_path):
    _get(shop, tmp_path).unlink()
    assert _get(shop, tmp_path, sha256="00").read_bytes() == BODY


def test_two_that_want_the_same_file_fetch_it_once(shop, tmp_path):
    begun = threading.Event()

    def slow(handler):
        begun.set()
        time.sleep(0.1)
        _honest(handler)

    shop.script.append(slow)
    first = threading.Thread(target=_get, args=(shop, tmp_path))
    first.start()
    assert begun.wait(5)
    assert _get(shop, tmp_path).read_bytes() == BODY
    first.join()
    assert len(shop.asked) == 1


def test_a_file_put_there_by_hand_is_used(shop, tmp_path):
    (tmp_path / "file.csv").write_bytes(b"by hand")
    assert _get(shop, tmp_path).read_bytes() == b"by hand"
    assert shop.asked == []


def test_an_interrupted_transfer_goes_on_where_it_stopped(shop, tmp_path):
    shop.script.extend([_cut(2000), _cut(1500), _cut(1200)])
    assert _get(shop, tmp_path).read_bytes() == BODY
    assert [span for _, span in shop.asked] == [None, "bytes=2000-", "bytes=3500-", "bytes=4700-"]


def test_an_interrupted_run_goes_on_where_it_stopped(shop, tmp_path):
    def interrupt(name, done, total):
        raise KeyboardInterrupt

    shop.script.append(_cut(3000))
    with pytest.raises(KeyboardInterrupt):
        _get(shop, tmp_path, progress=interrupt)
    assert not (tmp_path / "file.csv").exists()
    kept = (tmp_path / ".file.csv.part").stat().st_size
    target = tmp_path / "file.csv"
    assert resumable_bytes(target, [shop.url, shop.url + "/file.csv"]) == kept > 0
    assert resumable_bytes(target, [shop.url + "/other"]) == 0
    assert not is_fetched(target, [shop.url + "/file.csv"])
    assert _get(shop, tmp_path).read_bytes() == BODY
    assert shop.asked[-1] == ("/file.csv", f"bytes={kept}-")


def test_a_file_that_changed_on_the_server_is_fetched_from_the_beginning(shop, tmp_path):
    shop.script.append(_cut(2000))

    def change(handler):
        shop.etag, shop.body = '"v2"', b"new" * 1000
        _honest(handler)

    shop.script.append(change)
    assert _get(shop, tmp_path).read_bytes() == b"new" * 1000


def test_without_a_strong_validator_nothing_is_resumed(shop, tmp_path):
    shop.etag = 'W/"weak"'
    shop.script.append(_cut(2000))
    assert _get(shop, tmp_path).read_bytes() == BODY
    assert [span for _, span in shop.asked] == [None, None]


def test_a_part_of_another_address_is_not_continued(shop, tmp_path):
    shop.script.extend([_cut(500), _cut(0)])
    assert _get(shop, tmp_path, "/first", "/second").read_bytes() == BODY
    assert shop.asked == [("/first", None), ("/first", "bytes=500-"), ("/second", None)]


def test_a_part_that_is_already_whole_only_gets_its_name(shop, tmp_path):
    _get(shop, tmp_path).rename(tmp_path / ".file.csv.part")
    source = {"url": shop.url + "/file.csv", "validator": shop.etag}
    (tmp_path / ".file.csv.part.json").write_text(json.dumps(source))
    assert _get(shop, tmp_path).read_bytes() == BODY
    assert shop.asked[-1] == ("/file.csv", f"bytes={len(BODY)}-")


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_record_of_a_part_means_from_the_beginning(shop, tmp_path, damage):
    (tmp_path / ".file.csv.part").write_bytes(b"old")
    (tmp_path / ".file.csv.part.json").write_bytes(damage)
    assert _get(shop, tmp_path).read_bytes() == BODY


def test_a_wrong_range_is_not_appended(shop, tmp_path):
    shop.script.extend(
        [_cut(2000), lambda h: _answer(h, 206, BODY[7:], Content_Range="bytes 7-10239/10240")]
    )
    assert _get(shop, tmp_path).read_bytes() == BODY


def test_temporary_answers_are_asked_again(shop, tmp_path):
    shop.script.extend([_status(503), _status(429, Retry_After="0")])
    assert _get(shop, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (_status(404), "HTTP 404"),
        (_status(403), "HTTP 403"),
        (_status(503), "HTTP 503"),
        (_status(200, Content_Type="text/html; charset=utf-8"), "answers with an HTML page"),
        (_status(200, Content_Encoding="br"), "sends the encoding 'br'"),
        (_status(200, Content_Length=None, Connection="close"), "does not say how long"),
        (_cut(10), r"2 attempts"),
        (_status(206, Content_Range="bytes 5-6/9"), "answers with the range 'bytes 5-6/9'"),
        (lambda handler: _answer(handler, 302, Location=handler.path), "redirects"),
    ],
)
def test_a_mirror_that_does_not_deliver_is_left_for_the_next(shop, tmp_path, behaviour, reason):
    def by_path(handler):
        shop.script.append(by_path)
        behaviour(handler) if handler.path == "/bad" else _honest(handler)

    shop.script.append(by_path)
    assert _get(shop, tmp_path, "/bad", "/good").read_bytes() == BODY
    message = f"cannot fetch file.csv: {shop.url}/bad: .*{reason}.*--source DIR"
    with pytest.raises(DataError, match=message):
        download([f"{shop.url}/bad"], tmp_path / "x" / "file.csv", attempts=2, backoff_s=0.001)


def test_nobody_at_the_address_is_a_reason_like_any_other(shop, tmp_path):
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/x: .*refused.*attempts"):
        download(["http://127.0.0.1:9/x"], tmp_path / "file.csv", attempts=2, backoff_s=0.001)


def test_a_wrong_sha256_is_refused_and_nothing_is_left(shop, tmp_path):
    with pytest.raises(DataError, match=f"its sha256 is {SHA256}, expected 00"):
        _get(shop, tmp_path, sha256="00")
    assert not (tmp_path / "file.csv").exists()
    assert not (tmp_path / ".file.csv.part").exists()


def test_a_file_without_announced_size_is_read_to_its_marked_end(shop, tmp_path):
    def chunked(handler):
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (BODY[:99], BODY[99:]))
        headers = {"Content_Length": None, "Transfer_Encoding": "chunked"}
        _answer(handler, 200, chunks + b"0\r\n\r\n", **headers)

    shop.script.append(chunked)
    assert _get(shop, tmp_path).read_bytes() == BODY


def test_a_file_larger_than_the_disk_is_refused_before_it_is_written(shop, tmp_path):
    shop.script.append(lambda h: _answer(h, 200, send=b"x", Content_Length=str(10**16)))
    with pytest.raises(DataError, match=r"file.csv needs 10,000,000,000,000,000 bytes more"):
        _get(shop, tmp_path)
    assert not (tmp_path / ".file.csv.part").exists()


def test_a_full_disk_is_an_error_and_the_next_run_resumes(shop, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, piece):
            self.file.write(piece[:100])
            raise OSError(28, "No space left on device")

    opened = type(tmp_path).open

    def open_on_a_full_disk(path, mode="r", *args, **kwargs):
        file = opened(path, mode, *args, **kwargs)
        return Full(file) if mode == "wb" and path.suffix == ".part" else file

    monkeypatch.setattr(type(tmp_path), "open", open_on_a_full_disk)
    with pytest.raises(DataError, match=r"cannot write .*part: No space left.*it resumes"):
        _get(shop, tmp_path)
    monkeypatch.undo()
    assert _get(shop, tmp_path).read_bytes() == BODY
    assert shop.asked[-1] == ("/file.csv", "bytes=100-")


def test_a_trickle_is_given_up(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    stop = threading.Event()

    def trickle(handler):
        _answer(handler, 200, send=b"x", Content_Length="100000")
        while not stop.wait(0.02):
            handler.wfile.write(b"x")

    shop.script.extend([trickle] * 2)
    with pytest.raises(DataError, match="fewer than 65536 bytes in"):
        _get(shop, tmp_path)
    stop.set()
