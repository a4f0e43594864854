"""Image URLs to files and outcomes."""

import contextlib
import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmm4rec.errors import DataError
from pipeline.hosts import PROBES
from pipeline.images import (
    ImageError,
    bombs_are_errors,
    decode_image,
    to_rgb,
)
from pipeline.outcomes import (
    OUTCOME_SCHEMA,
    OUTCOMES,
    PARTS,
    OutcomeLog,
    image_status,
)


@pytest.mark.parametrize(
    ("kind", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"), ("WEBP", "webp")]
)
def test_an_image_is_kept_by_its_content(
    mirror, tmp_path, kind, extension, catalogue, fetch, picture
):
    body = mirror.bodies["a.exe"] = picture(kind=kind)
    url = f"{mirror.url}/200/a.exe"
    outcomes = fetch(catalogue([url]), tmp_path)
    sha256 = hashlib.sha256(body).hexdigest()
    assert outcomes.schema == OUTCOME_SCHEMA
    row = outcomes.row(0, named=True)
    assert 0 < row.pop("seconds") < 5
    assert 0 <= time.time() - row.pop("fetched_at") < 10
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


def test_urls_are_tried_in_order_until_one_is_ok(mirror, tmp_path, catalogue, fetch):
    urls = [f"{mirror.url}/{path}" for path in ("404/a", "200/0.png", "200/1.png")]
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
    assert mirror.requests == {"/404/a": 1, "/200/0.png": 1}  # shared URLs are asked once
    status = image_status(items, outcomes, 0)
    assert status["image_status"].to_list() == [
        "ok", "not_found", "missing", "missing", "not_found", "ok",
    ]  # fmt: skip
    assert status["item_id"].to_list() == [1, 2, 3, 4, 5, 6]
    assert status["file"].to_list() == [
        file if status == "ok" else None
        for file, status in zip([outcomes["file"][1]] * 6, status["image_status"], strict=True)
    ]


def test_equal_pictures_are_one_file(mirror, tmp_path, catalogue, fetch, picture):
    mirror.bodies |= {f"copy{n}.png": picture(7) for n in range(20)}
    items = catalogue(*([f"{mirror.url}/200/copy{n}.png"] for n in range(20)))
    outcomes = fetch(items, tmp_path, connections=16)
    assert outcomes["file"].n_unique() == 1
    assert len(list(tmp_path.glob("*/*"))) == 1


def test_a_second_run_asks_nothing(mirror, tmp_path, catalogue, fetch):
    items = catalogue(
        [f"{mirror.url}/200/0.png"], [f"{mirror.url}/404/a"], [f"{mirror.url}/503/a"], None
    )
    first = fetch(items, tmp_path, attempts=2)
    asked = mirror.requests.copy()
    assert asked == {"/200/0.png": 1, "/404/a": 1, "/503/a": 2}
    before = (tmp_path / OUTCOMES).read_bytes()
    assert fetch(items, tmp_path, attempts=2).equals(first)
    assert mirror.requests == asked
    assert (tmp_path / OUTCOMES).read_bytes() == before


def test_a_file_that_has_gone_is_fetched_again(mirror, tmp_path, catalogue, fetch, picture):
    items = catalogue([f"{mirror.url}/200/0.png"], [f"{mirror.url}/200/1.png"])
    outcomes = fetch(items, tmp_path)
    first, second = (tmp_path / file for file in outcomes["file"])
    first.unlink()
    second.write_bytes(b"")
    fetch(items, tmp_path)
    assert mirror.requests == {"/200/0.png": 2, "/200/1.png": 2}
    assert first.read_bytes() == picture(0)
    assert second.read_bytes() == picture(1)


def test_outcomes_follow_the_items(mirror, tmp_path, catalogue, fetch):
    urls = [f"{mirror.url}/200/{n}.png" for n in range(3)]
    fetch(catalogue(*([url] for url in urls)), tmp_path)
    items = catalogue([urls[2]], [urls[0]])
    assert fetch(items, tmp_path).select("item_id", "url").rows() == [(1, urls[2]), (2, urls[0])]
    stored = pl.read_parquet(tmp_path / OUTCOMES).select("item_id", "url").rows()
    assert stored == [(1, urls[2]), (2, urls[0]), (None, urls[1])]
    fetch(catalogue(*([url] for url in urls)), tmp_path)
    assert mirror.requests.total() == 3


def test_without_images_nothing_is_asked(mirror, tmp_path, catalogue, fetch):
    known, unknown = (f"{mirror.url}/200/{n}.png" for n in range(2))
    fetch(catalogue([known]), tmp_path)
    items = catalogue([known], [unknown], None)
    outcomes = fetch(items, tmp_path, enabled=False)
    assert outcomes["status"].to_list() == ["ok", "skipped"]
    assert image_status(items, outcomes, 0)["image_status"].to_list() == [
        "ok",
        "disabled",
        "missing",
    ]
    assert mirror.requests.total() == 1
    assert fetch(items, tmp_path)["status"].to_list() == ["ok", "ok"]  # not remembered as asked


def test_no_more_connections_than_allowed(mirror, tmp_path, catalogue, fetch):
    mirror.delay_s = 0.01
    items = catalogue(*([f"{mirror.url}/200/0.png?{n}"] for n in range(40)))
    assert set(fetch(items, tmp_path, connections=3)["status"]) == {"ok"}
    assert (mirror.most_under_way, mirror.num_connections) == (3, 3)


def test_what_is_known_is_on_disk_before_a_host_is_waited_for(mirror, tmp_path, catalogue, fetch):
    mirror.outage = range(20, 10**6)
    items, known = catalogue(*([f"{mirror.url}/200/0.png?{n}"] for n in range(60))), []

    class Waits(list):
        def append(self, seconds):
            if seconds > 0.9:  # before a probe
                known.append(len(OutcomeLog(tmp_path).known))

    with pytest.raises(DataError, match="does not answer"):
        fetch(items, tmp_path, waits=Waits(), attempts=2)
    assert known == [20] * PROBES


def test_progress_counts_items(mirror, tmp_path, catalogue, fetch):
    seen = []
    items = catalogue([f"{mirror.url}/200/0.png"], None, [f"{mirror.url}/404/a"])
    fetch(items, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (3, 3)


def test_an_interrupted_run_keeps_what_it_knows(mirror, tmp_path, catalogue, fetch):
    urls = [f"{mirror.url}/404/{n}" for n in range(40)]
    items = catalogue(*([url] for url in urls))

    def interrupt(done, total):
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(items, tmp_path, progress=interrupt)
    assert not (tmp_path / OUTCOMES).exists()
    known = OutcomeLog(tmp_path).known
    assert 10 <= len(known) < 40
    assert set(fetch(items, tmp_path)["error"]) == {"not_found"}
    assert set(mirror.requests.values()) == {1}
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


def test_a_killed_run_is_carried_on(mirror, tmp_path, monkeypatch, catalogue, fetch, picture):
    mirror.delay_s = 0.02
    mirror.bodies |= {f"{n}.png": picture(n) for n in range(300)}
    paths = [f"200/{n}.png" if n % 3 else f"404/{n}" for n in range(300)]
    items = catalogue(*([f"{mirror.url}/{path}"] for path in paths))
    items.write_parquet(tmp_path / "items.parquet")
    folder = tmp_path / "images"
    command = [sys.executable, "-c", RUN, str(tmp_path / "items.parquet"), str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while mirror.requests.total() < 150 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    known = OutcomeLog(folder).known
    assert 50 < len(known) < 300
    before = mirror.requests.copy()
    mirror.delay_s = 0
    outcomes = fetch(items, folder)
    assert outcomes["status"].to_list() == ["ok" if n % 3 else "permanent" for n in range(300)]
    asked_again = mirror.requests - before
    assert not set(asked_again) & {url.removeprefix(mirror.url) for url in known}
    assert max(mirror.requests.values()) <= 2
    for row in outcomes.filter(pl.col("status") == "ok").iter_rows(named=True):
        assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["sha256"]


def test_a_full_disk_keeps_what_is_known(mirror, tmp_path, monkeypatch, catalogue, fetch):
    def fill(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    items = catalogue([f"{mirror.url}/404/a"], [f"{mirror.url}/200/0.png"])
    with monkeypatch.context() as full:
        full.setattr("pipeline.images.atomic_path", fill)
        with pytest.raises(OSError, match="No space left"):
            fetch(items, tmp_path, connections=1)
    assert list(OutcomeLog(tmp_path).known) == [f"{mirror.url}/404/a"]
    assert fetch(items, tmp_path)["status"].to_list() == ["permanent", "ok"]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGB"])
def test_every_colour_mode_becomes_rgb(mode, picture):
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


def test_a_bomb_that_pillow_warns_of(png):
    with bombs_are_errors(), pytest.raises(ImageError, match="too_many_pixels"):
        decode_image(png(10_000, 10_000), max_pixels=10**9)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_damaged_bytes_never_escape(kind, picture):
    body = bytearray(picture(kind=kind, size=(64, 64)))
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = body.copy()
        for at in random.integers(0, len(body), random.integers(1, 30)):
            damaged[at] = random.integers(256)
        with bombs_are_errors(), contextlib.suppress(ImageError):
            assert decode_image(bytes(damaged), 10**6).size
