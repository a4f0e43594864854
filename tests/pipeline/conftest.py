"""A local mirror that fails on purpose in every way, and what is fetched from it."""

import http.server
import io
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from email.utils import formatdate

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmm4rec.config import ImagesConfig
from pipeline.images import fetch_images

FAST = {"allow_private_hosts": True, "rate_per_host": 1e6, "connections": 4, "timeout_s": 5}


def make_picture(seed=0, kind="PNG", size=(24, 16), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, kind)
    return file.getvalue()


def make_png(width, height, pixels=b"", *chunks):
    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey
    body = [("IHDR", header), *chunks, ("IDAT", zlib.compress(pixels)), ("IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name.encode(), data) for name, data in body)


class Handler(http.server.BaseHTTPRequestHandler):
    """`/<code>/<name>` answers with a code and a body, `/<method>/...` calls the method.

    Requests are counted by path. Those whose number is in `outage` are hung up on, and those whose
    number is in `storm` get a 503.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body would wait for the acknowledgement of its header

    def setup(self):
        super().setup()
        self.server.num_connections += 1

    def do_GET(self):
        with self.server.lock:
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
            number = self.server.requests.total()
            self.server.requests[self.path] += 1
            self.number = self.server.requests[self.path]
            self.server.headers.append(dict(self.headers))
        time.sleep(self.server.delay_s)
        with self.server.lock:
            self.server.under_way -= 1
        kind, _, name = self.path.split("?")[0].strip("/").partition("/")
        if number in self.server.outage:
            self.reset()
        elif number in self.server.storm:
            self.answer(503)
        elif self.path.startswith("http://"):  # asked as a proxy
            self.ok()
        elif kind.isdecimal():
            self.answer(int(kind), self.server.bodies.get(name, b""))
        else:
            getattr(self, kind)(name)

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def trickle(self, head):
        self.wfile.write(head)
        for _ in range(20):
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(0.1)

    def ok(self, name="0.png"):
        self.answer(200, self.server.bodies["0.png"])

    def images(self, name):  # as Amazon's servers: what is there by its path
        body = self.server.bodies.get(f"images/{name}")
        self.answer(200 if body else 404, body or b"")

    def once(self, name):
        self.answer(503 if self.number == 1 else 200, self.server.bodies.get(name, b""))

    def broken_once(self, name):
        self.answer(500 if self.number == 1 else 200, self.server.bodies["0.png"])

    def limited_once(self, name):
        if self.number == 1:
            self.answer(429, Retry_After=7)
        else:
            self.ok()

    def limited_by_date(self, name):
        self.answer(429, Retry_After=formatdate(time.time() + 30, usegmt=True))

    def limited_for_years(self, name):
        self.answer(429, Retry_After="9" * 5000)

    def slow(self, name):
        time.sleep(1)

    def slow_header(self, name):
        self.trickle(b"HTTP/1.1 200 OK\r\nX: ")

    def slow_body(self, name):
        self.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")

    def reset(self, name=""):
        if name == "hard":  # without lingering: the client sees a reset, not an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def cut_header(self, name):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
        self.close_connection = True

    def half(self, name):
        body = self.server.bodies["0.png"]
        self.answer(200, body[:50], Content_Length=len(body))
        self.close_connection = True

    def lying_length(self, name):
        body = self.server.bodies["0.png"]
        self.answer(200, body + b"much more", Content_Length=len(body))
        self.close_connection = True

    def short_length(self, name):
        body = self.server.bodies["0.png"]
        self.answer(200, body, Content_Length=50)
        self.close_connection = True

    def huge(self, name):
        self.answer(200, self.server.bodies["0.png"], Content_Length=10**10)
        self.close_connection = True

    def endless(self, name):
        self.answer_head("Transfer-Encoding: chunked")
        while True:
            self.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    def zipped(self, name):
        self.answer(200, self.server.bodies["0.png"], Content_Encoding="gzip")

    def hop(self, name):
        self.answer(302, b"moved", Location="/ok")

    def loop(self, name):
        self.answer(301, Location="/loop")

    def to_metadata(self, name):
        self.answer(302, Location="http://169.254.169.254/latest/meta-data")

    def to_file(self, name):
        self.answer(302, Location="file:///etc/passwd")

    def to_nowhere(self, name):
        self.answer(302, Location="http://[::1/")

    def endless_redirect(self, name):
        self.answer_head("Location: /ok", "Content-Length: 10000000000", code=302)
        while True:
            self.wfile.write(b"x" * 4096)

    def cookie(self, name):
        self.answer(200, self.server.bodies["0.png"], Set_Cookie="tracked=1; Path=/")

    def answer_head(self, *headers, code=200):
        self.wfile.write("\r\n".join([f"HTTP/1.1 {code} X", *headers, "\r\n"]).encode())

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args):  # clients hang up on purpose, or are killed
        pass


@pytest.fixture
def mirror():
    """A server of this machine that fails on purpose; `bodies` by the name in the path."""
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.headers, server.num_connections = Counter(), [], 0
    server.lock, server.delay_s, server.outage, server.storm = threading.Lock(), 0, (), ()
    server.under_way = server.most_under_way = 0
    server.bodies = {f"{seed}.png": make_picture(seed) for seed in range(3)}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def picture():
    """Make the bytes of a picture of noise."""
    return make_picture


@pytest.fixture(scope="session")
def png():
    """Make a PNG of a width, a height, raw pixels and further chunks, whether they fit or not."""
    return make_png


@pytest.fixture(scope="session")
def catalogue():
    """Make an item table of the URLs of each item."""

    def make(*urls):
        return pl.DataFrame(
            {
                "item_id": range(1, len(urls) + 1),
                "asin": [f"B{n:03}" for n in range(1, len(urls) + 1)],
                "image_urls": urls,
            },
            schema={"item_id": pl.UInt32, "asin": pl.String, "image_urls": pl.List(pl.String)},
        )

    return make


@pytest.fixture(scope="session")
def fetch():
    """Fetch images with settings for tests, without really waiting; `waits` gets the waits."""

    def run(items, folder, *, progress=None, retry_temporary=False, waits=None, **settings):
        config = ImagesConfig(**{**FAST, **settings})
        return fetch_images(
            items,
            folder,
            config,
            progress,
            retry_temporary=retry_temporary,
            sleep=(lambda seconds: None) if waits is None else waits.append,
        )

    return run
