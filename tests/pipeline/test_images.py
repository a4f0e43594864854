"""Image URLs to files and outcomes."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmm4rec.config import ImagesConfig
from mmm4rec.errors import DataError
from pipeline.images import (
    ImageError,
    bombs_are_errors,
    decode_image,
    fetch_images,
    to_rgb,
)
from pipeline.outcomes import (
    OUTCOME_SCHEMA,
    OUTCOMES,
    PARTS,
    Outcome,
    OutcomeLog,
    image_status,
    item_outcomes,
)

FAST = {"allow_private_hosts": True, "rate_per_host": 1e6, "connections": 4, "timeout_s": 5}


def picture(seed=0, kind="PNG", size=(24, 16), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).convert(mode).save(file, kind)
    return file.getvalue()


def bomb(width=60_000, height=60_000):
    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class Handler(http.server.BaseHTTPRequestHandler):
    """`/200/<name>` answers with a body, `/<code>/...` with a code; requests are counted."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.lock:
            self.server.requests[self.path] += 1
        time.sleep(self.server.delay_s)
        code, name = self.path.strip("/").split("/")
        body = self.server.bodies.get(name, b"")
        if code == "once" and self.server.requests[self.path] > 1:
            code = 200
        self.send_response(503 if code == "once" else int(code))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args):  # clients are killed on purpose
        pass


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.requests, server.lock, server.delay_s = Counter(), threading.Lock(), 0
    server.bodies = {f"{seed}.png": picture(seed) for seed in range(3)}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def catalogue(*urls):
    return pl.DataFrame(
        {
            "item_id": range(1, len(urls) + 1),
            "asin": [f"B{n:03}" for n in range(1, len(urls) + 1)],
            "image_urls": urls,
        },
        schema={"item_id": pl.UInt32, "asin": pl.String, "image_urls": pl.List(pl.String)},
    )


def fetch(items, folder, **settings):
    retry_temporary = settings.pop("retry_temporary", False)
    config = ImagesConfig(**{**FAST, **settings})
    return fetch_images(
        items, folder, config, retry_temporary=retry_temporary, sleep=lambda seconds: None
    )


@pytest.mark.parametrize(
    ("kind", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"), ("WEBP", "webp")]
)
def test_an_image_is_kept_by_its_content(server, tmp_path, kind, extension):
    body = server.bodies["a.exe"] = picture(kind=kind)
    url = f"{server.url}/200/a.exe"
    outcomes = fetch(catalogue([url]), tmp_path)
    sha256 = hashlib.sha256(body).hexdigest()
    assert outcomes.schema == OUTCOME_SCHEMA
    row = outcomes.row(0, named=True)
    assert 0 < row.pop("seconds") < 5
    assert row == {
        "item_id": 1,
        "asin": "B001",
        "url": url,
        "status": "ok",
        "http_code": 200,
        "attempts": 1,
        "error": None,
        "sha256": sha256,
        "bytes": len(body),
        "width": 24,
        "height": 16,
        "final_url": url,
        "file": f"{sha256[:2]}/{sha256}.{extension}",
    }
    assert (tmp_path / row["file"]).read_bytes() == body
    assert pl.read_parquet(tmp_path / OUTCOMES).equals(outcomes)


def test_unusable_answers_are_outcomes(server, tmp_path):
    server.bodies |= {
        "page.jpg": b"<html>Sorry</html>",
        "half.jpg": picture(kind="JPEG", size=(200, 200))[:-3000],
        "half.png": picture(size=(200, 200))[:-3000],
        "half.gif": picture(kind="GIF", size=(200, 200))[:-3000],
        "half.webp": picture(kind="WEBP", size=(200, 200))[:-3000],
        "head.jpg": picture(kind="JPEG")[:20],
        "bomb.png": bomb(),
        "large.png": picture(size=(300, 300), mode="L"),
        "bitmap.bmp": picture(kind="BMP"),
        "long.png": picture(size=(400, 400)),
    }
    expected = {
        "page.jpg": "not_an_image",
        "half.jpg": "truncated",
        "half.png": "truncated",
        "half.gif": "truncated",
        "half.webp": "truncated",
        "head.jpg": "truncated",
        "bomb.png": "too_many_pixels",
        "large.png": "too_many_pixels",
        "bitmap.bmp": "not_an_image",
        "long.png": "too_large",
    }
    items = catalogue(*([f"{server.url}/200/{name}"] for name in expected))
    outcomes = fetch(items, tmp_path, max_pixels=50_000, max_bytes=400_000)
    assert outcomes["error"].to_list() == list(expected.values())
    assert set(outcomes["status"]) == {"permanent"}
    assert outcomes["file"].null_count() == len(expected)
    assert [path.name for path in tmp_path.iterdir()] == [OUTCOMES]


def test_urls_are_tried_in_order_until_one_is_ok(server, tmp_path):
    urls = [f"{server.url}/{path}" for path in ("404/a", "200/0.png", "200/1.png")]
    items = catalogue(urls, urls[:1], [], None, ["", *urls[:1]], ["nonsense", urls[1]])
    outcomes = fetch(items, tmp_path)
    assert outcomes.select("item_id", "url", "status").rows() == [
        (1, urls[0], "permanent"),
        (1, urls[1], "ok"),
        (2, urls[0], "permanent"),
        (5, urls[0], "permanent"),
        (6, "nonsense", "permanent"),
        (6, urls[1], "ok"),
    ]
    assert server.requests == {"/404/a": 1, "/200/0.png": 1}  # shared URLs are asked once
    status = image_status(items, outcomes)
    assert status["image_status"].to_list() == [
        "ok", "not_found", "missing", "missing", "not_found", "ok",
    ]  # fmt: skip
    assert status["item_id"].to_list() == [1, 2, 3, 4, 5, 6]
    assert status["file"].to_list() == [
        file if status == "ok" else None
        for file, status in zip([outcomes["file"][1]] * 6, status["image_status"], strict=True)
    ]


def test_equal_pictures_are_one_file(server, tmp_path):
    server.bodies |= {f"copy{n}.png": picture(7) for n in range(20)}
    items = catalogue(*([f"{server.url}/200/copy{n}.png"] for n in range(20)))
    outcomes = fetch(items, tmp_path, connections=16)
    assert outcomes["file"].n_unique() == 1
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_a_second_run_asks_nothing(server, tmp_path):
    items = catalogue(
        [f"{server.url}/200/0.png"], [f"{server.url}/404/a"], [f"{server.url}/503/a"], None
    )
    first = fetch(items, tmp_path, attempts=2)
    asked = server.requests.copy()
    assert asked == {"/200/0.png": 1, "/404/a": 1, "/503/a": 2}
    before = (tmp_path / OUTCOMES).read_bytes()
    assert fetch(items, tmp_path, attempts=2).equals(first)
    assert server.requests == asked
    assert (tmp_path / OUTCOMES).read_bytes() == before


def test_temporary_failures_are_asked_again_on_request(server, tmp_path):
    urls = [f"{server.url}/{path}" for path in ("once/0.png", "404/a")]
    items = catalogue(*([url] for url in urls))
    assert fetch(items, tmp_path, attempts=1)["status"].to_list() == ["temporary", "permanent"]
    again = fetch(items, tmp_path, attempts=1, retry_temporary=True)
    assert again["status"].to_list() == ["ok", "permanent"]
    assert server.requests == {"/once/0.png": 2, "/404/a": 1}


def test_a_file_that_has_gone_is_fetched_again(server, tmp_path):
    items = catalogue([f"{server.url}/200/0.png"], [f"{server.url}/200/1.png"])
    outcomes = fetch(items, tmp_path)
    first, second = (tmp_path / file for file in outcomes["file"])
    first.unlink()
    second.write_bytes(b"")
    fetch(items, tmp_path)
    assert server.requests == {"/200/0.png": 2, "/200/1.png": 2}
    assert first.read_bytes() == picture(0)
    assert second.read_bytes() == picture(1)


def test_outcomes_follow_the_items(server, tmp_path):
    urls = [f"{server.url}/200/{n}.png" for n in range(3)]
    fetch(catalogue(*([url] for url in urls)), tmp_path)
    items = catalogue([urls[2]], [urls[0]])
    assert fetch(items, tmp_path).select("item_id", "url").rows() == [(1, urls[2]), (2, urls[0])]
    stored = pl.read_parquet(tmp_path / OUTCOMES).select("item_id", "url").rows()
    assert stored == [(1, urls[2]), (2, urls[0]), (None, urls[1])]
    fetch(catalogue(*([url] for url in urls)), tmp_path)
    assert server.requests.total() == 3


def test_without_images_nothing_is_asked(server, tmp_path):
    known, unknown = (f"{server.url}/200/{n}.png" for n in range(2))
    fetch(catalogue([known]), tmp_path)
    items = catalogue([known], [unknown], None)
    outcomes = fetch(items, tmp_path, enabled=False)
    assert outcomes["status"].to_list() == ["ok", "skipped"]
    assert image_status(items, outcomes)["image_status"].to_list() == ["ok", "disabled", "missing"]
    assert server.requests.total() == 1
    assert fetch(items, tmp_path)["status"].to_list() == ["ok", "ok"]  # not remembered as asked


def test_a_host_out_of_reach_ends_quickly(tmp_path):
    items = catalogue(
        *([f"https://images.invalid/{n}/{k}.jpg" for k in range(4)] for n in range(126))
    )
    started = time.monotonic()
    outcomes = fetch_images(items, tmp_path, ImagesConfig())  # with real waiting
    assert time.monotonic() - started < 5
    assert len(outcomes) == 126 * 4
    assert set(outcomes["status"]) == {"temporary"}
    counts = dict(outcomes["error"].value_counts().iter_rows())
    assert set(counts) == {"dns", "host_unreachable"}
    assert counts["dns"] <= 32
    assert outcomes["attempts"].sum() <= 48
    # whatever the threads' timing was
    assert set(image_status(items, outcomes)["image_status"]) == {"host_unreachable"}


def test_progress_counts_items(server, tmp_path):
    seen = []
    items = catalogue([f"{server.url}/200/0.png"], None, [f"{server.url}/404/a"])
    fetch_images(
        items,
        tmp_path,
        ImagesConfig(**FAST),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (3, 3)


def test_an_interrupted_run_keeps_what_it_knows(server, tmp_path):
    urls = [f"{server.url}/404/{n}" for n in range(40)]
    items = catalogue(*([url] for url in urls))

    def interrupt(done, total):
        if done >= 10:
            raise KeyboardInterrupt

    config = ImagesConfig(**FAST)
    with pytest.raises(KeyboardInterrupt):
        fetch_images(items, tmp_path, config, progress=interrupt)
    assert not (tmp_path / OUTCOMES).exists()
    known = OutcomeLog(tmp_path).known
    assert 10 <= len(known) < 40
    assert set(fetch(items, tmp_path)["error"]) == {"not_found"}
    assert set(server.requests.values()) == {1}
    assert not (tmp_path / PARTS).exists()


RUN = """
import sys, polars as pl
from pathlib import Path
from mmm4rec.config import ImagesConfig
from pipeline.images import fetch_images
items = pl.read_parquet(sys.argv[1])
config = ImagesConfig(allow_private_hosts=True, rate_per_host=1e6, connections=4)
fetch_images(items, Path(sys.argv[2]), config)
"""


def test_a_killed_run_is_carried_on(server, tmp_path, monkeypatch):
    server.delay_s = 0.02
    server.bodies |= {f"{n}.png": picture(n) for n in range(300)}
    paths = [f"200/{n}.png" if n % 3 else f"404/{n}" for n in range(300)]
    items = catalogue(*([f"{server.url}/{path}"] for path in paths))
    items.write_parquet(tmp_path / "items.parquet")
    folder = tmp_path / "images"
    command = [sys.executable, "-c", RUN, str(tmp_path / "items.parquet"), str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while server.requests.total() < 150 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    known = OutcomeLog(folder).known
    assert 50 < len(known) < 300
    before = server.requests.copy()
    server.delay_s = 0
    outcomes = fetch(items, folder)
    assert outcomes["status"].to_list() == ["ok" if n % 3 else "permanent" for n in range(300)]
    asked_again = server.requests - before
    assert not set(asked_again) & {url.removeprefix(server.url) for url in known}
    assert max(server.requests.values()) <= 2
    for row in outcomes.filter(pl.col("status") == "ok").iter_rows(named=True):
        assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["sha256"]


def test_a_full_disk_keeps_what_is_known(server, tmp_path, monkeypatch):
    def fill(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    items = catalogue([f"{server.url}/404/a"], [f"{server.url}/200/0.png"])
    with monkeypatch.context() as full:
        full.setattr("pipeline.images.atomic_path", fill)
        with pytest.raises(OSError, match="No space left"):
            fetch(items, tmp_path, connections=1)
    assert list(OutcomeLog(tmp_path).known) == [f"{server.url}/404/a"]
    assert fetch(items, tmp_path)["status"].to_list() == ["permanent", "ok"]


def test_the_latest_outcome_counts(tmp_path):
    log = OutcomeLog(tmp_path)
    log.add(Outcome("u", "temporary", error="timeout"))
    log.flush()
    log.flush()  # nothing new: no part
    log = OutcomeLog(tmp_path)
    log.add(Outcome("u", "ok", file="aa/a.png", bytes=3))
    assert log.num_unwritten == 1
    log.flush()
    assert len(list((tmp_path / PARTS).iterdir())) == 2
    assert OutcomeLog(tmp_path).known == {"u": Outcome("u", "ok", file="aa/a.png", bytes=3)}


def test_rows_of_an_item_end_at_the_first_ok():
    known = {"b": Outcome("b", "ok"), "a": Outcome("a", "permanent", error="gone")}
    table = item_outcomes(catalogue(["a", "a", "b", "c"], ["c"]), known)
    assert table.select("item_id", "url", "status").rows() == [
        (1, "a", "permanent"),
        (1, "b", "ok"),
        (2, "c", "skipped"),
    ]


def test_something_else_under_the_outcomes_name(tmp_path):
    (tmp_path / OUTCOMES).write_text("hello")
    with pytest.raises(DataError, match=r"outcomes\.parquet is not a table .*Next: delete it"):
        fetch(catalogue(["a"]), tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGB"])
def test_every_colour_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.open(io.BytesIO(picture(mode=mode, kind=kind)))
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).size == (24, 16)


def test_transparency_shows_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert list(to_rgb(image).get_flattened_data()) == [(255, 255, 255), (10, 20, 30)]
    palette = image.convert("P")
    palette.info["transparency"] = bytes([0] * 256)
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_a_bomb_that_pillow_warns_of():
    with bombs_are_errors(), pytest.raises(ImageError, match="too_many_pixels"):
        decode_image(bomb(10_000, 10_000), max_pixels=10**9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_damaged_bytes_never_escape(kind):
    body = bytearray(picture(kind=kind, size=(64, 64)))
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = body.copy()
        for at in random.integers(0, len(body), random.integers(1, 30)):
            damaged[at] = random.integers(256)
        with bombs_are_errors(), contextlib.suppress(ImageError):
            assert decode_image(bytes(damaged), 10**6).size
