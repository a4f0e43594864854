import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmm4rec.errors import DataError
from pipeline import download as download_module
from pipeline.download import download
from pipeline.download_plan import (
    PlannedFile,
    RemoteFile,
    check_room_for,
    plan_download,
    present_file,
)

BODY = b"0123456789" * 10


class _Handler(BaseHTTPRequestHandler):
    """What a server does is the first part of the path."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.server.asked.append(("HEAD", self.path, None))
        kind = self.path.split("/")[1]
        if kind in ("honest", "page", "moved"):
            self._answer(kind)
        elif kind == "chunked":
            self._send(200)
        else:
            self._send(405, Content_Length="0")

    def do_GET(self):
        self.server.asked.append(("GET", self.path, self.headers.get("Range")))
        kind = self.path.split("/")[1]
        if kind == "ranges":
            self._send(206, Content_Range=f"bytes 0-0/{len(BODY)}", Content_Length="1")
            self.wfile.write(b"0")
        elif kind == "liar":
            self._send(206, Content_Range="bytes */x", Content_Length="0")
        elif kind in ("whole", "honest"):
            self._send(200, Content_Length=str(len(BODY)), ETag='"v1"')
            self.wfile.write(BODY)
        elif kind == "cut":
            self._send(200, Content_Length=str(len(BODY)), ETag='"v1"')
            self.wfile.write(BODY[:30])
            self.close_connection = True
        else:
            self._send(404, Content_Length="0")

    def _answer(self, kind):
        if kind == "moved":
            self._send(302, Location="/honest/file.csv", Content_Length="0")
        else:
            content = "text/html" if kind == "page" else "text/csv"
            self._send(200, Content_Length=str(len(BODY)), Content_Type=content)

    def _send(self, status, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


@pytest.fixture
def shop():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _remote(shop, *kinds, name="file.csv"):
    return RemoteFile(name, tuple(f"{shop.url}/{kind}/{name}" for kind in kinds))


def test_the_size_is_asked_with_head_and_nothing_is_written(shop, tmp_path):
    planned = plan_download([_remote(shop, "honest")], tmp_path / "raw")
    target = tmp_path / "raw" / "file.csv"
    urls = (f"{shop.url}/honest/file.csv",)
    assert planned == PlannedFile("file.csv", urls, target, len(BODY), is_present=False)
    assert planned.missing_bytes == len(BODY)
    assert shop.asked == [("HEAD", "/honest/file.csv", None)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["ranges", "whole", "moved"])
def test_servers_that_do_not_answer_head_are_asked_for_a_byte(shop, tmp_path, kind):
    assert plan_download([_remote(shop, kind)], tmp_path).bytes == len(BODY)
    second = {"moved": ("HEAD", "/honest/file.csv", None)}
    expected = second.get(kind, ("GET", f"/{kind}/file.csv", "bytes=0-0"))
    assert shop.asked[1:] == [expected]


def test_the_next_mirror_is_asked_then_the_next_compression(shop, tmp_path):
    first, second = _remote(shop, "none", "page", "liar"), _remote(shop, "honest", name="file.gz")
    planned = plan_download([first, second], tmp_path)
    assert (planned.name, planned.bytes, planned.urls) == ("file.gz", len(BODY), second.urls)
    assert planned.problem == ""


def test_a_file_that_no_server_has_is_planned_with_the_reasons(shop, tmp_path):
    nobody = RemoteFile("b", ("http://127.0.0.1:9/b",))
    planned = plan_download([_remote(shop, "none", "page", "liar", "chunked"), nobody], tmp_path)
    assert (planned.name, planned.bytes, planned.missing_bytes) == ("file.csv", None, 0)
    reasons = ("HTTP 404", "answers with an HTML page", "HTTP 206", "HTTP 404", ":9/b: ")
    for found, reason in zip(planned.problem.split("; "), reasons, strict=True):
        assert reason in found


def test_a_file_on_disk_is_taken_in_whatever_compression(shop, tmp_path):
    (tmp_path / "file.gz").write_bytes(b"by hand")
    planned = plan_download(
        [_remote(shop, "honest"), RemoteFile("file.gz", ("http://x",))], tmp_path
    )
    assert planned == present_file(tmp_path / "file.gz")
    assert (planned.bytes, planned.is_present, planned.missing_bytes) == (7, True, 0)
    assert shop.asked == []


def test_a_fetched_file_is_present_and_a_changed_one_refused(shop, tmp_path):
    remote = _remote(shop, "whole")
    target = download(remote.urls, tmp_path / "file.csv", sha256=hashlib.sha256(BODY).hexdigest())
    assert plan_download([remote], tmp_path).is_present
    target.write_bytes(b"changed")
    with pytest.raises(DataError, match="was changed after it was fetched"):
        plan_download([remote], tmp_path)


def test_what_an_interrupted_download_left_need_not_be_fetched(shop, tmp_path):
    remote = _remote(shop, "cut")
    with pytest.raises(DataError, match=r"cut/file.csv: .*\(1 attempts\)"):
        download(remote.urls, tmp_path / "file.csv", attempts=1, backoff_s=0.001)
    planned = plan_download([remote], tmp_path)
    assert (planned.bytes, planned.resumable_bytes, planned.missing_bytes) == (100, 30, 70)


def _planned(name, size, **changed):
    fields = {"urls": ("http://a/x", "http://b/x"), "target": name, "is_present": False} | changed
    return PlannedFile(name, bytes=size, **fields)


def test_all_files_must_fit_on_the_disk_together(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "free_bytes", lambda folder: 100 + 2**28)
    files = [
        _planned("a", 60),
        _planned("b", 50, resumable_bytes=10),
        _planned("c", 10**9, is_present=True),
        _planned("d", None),
    ]
    check_room_for(files, tmp_path)
    with pytest.raises(
        DataError, match=r"fetching a and b needs 101 bytes more and 268,435,456 to spare"
    ):
        check_room_for([_planned("a", 61), *files[1:]], tmp_path)
    monkeypatch.setattr(download_module, "free_bytes", lambda folder: 0)
    check_room_for(files[2:], tmp_path)
