"""The miniature shop's image server, with links that die as Amazon's do."""

from __future__ import annotations

import contextlib
import mimetypes
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.synthetic.items import deal, random_codes
from pipeline.synthetic.pictures import NOT_AN_IMAGE, encode_picture, thumbnail

HOST = "127.0.0.1"
# Image URLs stand in the metadata. The same port every time means the same bytes every time, so
# that a second run finds its inputs unchanged.
PREFERRED_PORT = 18_765
NEXT_PORTS = 20
IMAGE_PATH = "/images/I"
PNG_SHARE = 0.15
SLOW_SECONDS = 0.3

Fate = Literal[
    "ok",
    "second_url",  # the large picture is gone, the thumbnail still there
    "slow",  # answers after SLOW_SECONDS
    "flaky",  # answers 500 once, then well
    "no_url",
    "not_found",  # 404
    "gone",  # 410
    "truncated",  # the file breaks off half-way
    "not_an_image",  # a page of HTML named .jpg
]
Fault = Literal["gone", "slow", "flaky"]
FATE_SHARES: dict[Fate, float] = {
    "no_url": 0.06,
    "not_found": 0.05,
    "gone": 0.04,
    "truncated": 0.04,
    "not_an_image": 0.04,
    "second_url": 0.05,
}
WITHOUT_IMAGE: tuple[Fate, ...] = ("no_url", "not_found", "gone", "truncated", "not_an_image")


@dataclass(frozen=True)
class Listing:
    """Where an item's pictures are said to be: URL paths, and what is wrong with them."""

    large: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    faults: Mapping[str, Fault] = field(default_factory=dict)


def draw_fates(rng: np.random.Generator, num_items: int) -> list[Fate]:
    """Deal out fates in fixed proportions, independent of everything else; one slow, one flaky."""
    counts: dict[Fate, int] = {"slow": 1, "flaky": 1}
    counts |= {fate: max(1, round(share * num_items)) for fate, share in FATE_SHARES.items()}
    return deal(rng, counts, "ok", num_items)


def list_item(rng: np.random.Generator, www: Path, picture: Image.Image, fate: Fate) -> Listing:
    """Write what the server has of an item's pictures under `www`, and list them."""
    file_format, extension = ("PNG", "png") if rng.random() < PNG_SHARE else ("JPEG", "jpg")
    quality = int(rng.integers(60, 96))
    (name,) = random_codes(rng, 1, "", 11)
    large, small = f"{IMAGE_PATH}/{name}.{extension}", f"{IMAGE_PATH}/{name}._SS48_.{extension}"
    if fate == "no_url":
        return Listing()
    if fate in ("not_found", "gone"):
        faults: dict[str, Fault] = {large: "gone", small: "gone"} if fate == "gone" else {}
        return Listing((large,), (small,), faults)
    for path, view in ((large, picture), (small, thumbnail(picture))):
        if fate == "second_url" and path == large:
            continue
        body = _spoil(encode_picture(view, file_format, quality), fate)
        www.joinpath(path.lstrip("/")).write_bytes(body)
    return Listing((large,), (small,), {large: fate} if fate in ("slow", "flaky") else {})


@contextlib.contextmanager
def serve_folder(www: Path, faults: Mapping[str, Fault]) -> Iterator[str]:
    """Serve the files under `www` on this machine only; yield the base URL.

    The port is PREFERRED_PORT, or the next one that is free.
    """
    server = _bind(_handler(www, faults))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield base_url(server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def base_url(port: int) -> str:
    """Return the server's base URL, without a slash at the end."""
    return f"http://{HOST}:{port}"


def _spoil(body: bytes, fate: Fate) -> bytes:
    if fate == "truncated":
        return body[: len(body) // 2]
    return NOT_AN_IMAGE if fate == "not_an_image" else body


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the usual 5 make clients with many connections wait a second


def _bind(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    # The next ports in turn: while another server keeps the first, ours is the same every time.
    for port in (*range(PREFERRED_PORT, PREFERRED_PORT + NEXT_PORTS), 0):
        with contextlib.suppress(OSError):
            return _Server((HOST, port), handler)
    raise OSError(f"no port of {HOST} is free")


def _handler(www: Path, faults: Mapping[str, Fault]) -> type[BaseHTTPRequestHandler]:
    # A request can name only what is listed here: no path of it ever reaches the file system.
    files = {f"{IMAGE_PATH}/{file.name}": file for file in www.joinpath(IMAGE_PATH[1:]).iterdir()}
    failed: set[str] = set()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open
        timeout = 30  # seconds an idle connection may stay

        def do_GET(self) -> None:
            fault = faults.get(self.path)
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            if fault == "gone":
                self._answer(HTTPStatus.GONE)
            elif fault == "flaky" and self._is_first():
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR)
            elif self.path in files:
                self._answer(HTTPStatus.OK, files[self.path].read_bytes())
            else:
                self._answer(HTTPStatus.NOT_FOUND)

        def _is_first(self) -> bool:
            with lock:
                first = self.path not in failed
                failed.add(self.path)
            return first

        def _answer(self, status: HTTPStatus, body: bytes = b"") -> None:
            kind = mimetypes.guess_type(self.path)[0] if body else None
            self.send_response(status)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the client records every outcome."""

    return Handler
