"""A mirror that fails on purpose in every way: what becomes of each URL, item and run."""

import socket
import zlib
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from mmm4rec.errors import DataError
from pipeline import hosts
from pipeline.hosts import MAX_REFUSALS
from pipeline.outcomes import OutcomeLog, image_status

OK, PERMANENT, TEMPORARY = "ok", "permanent", "temporary"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
LARGE = {"size": (200, 200)}


def answers(picture, png):
    """What `/200/<name>` answers with, and what becomes of it."""
    grey = bytes(201) * 200  # 200 lines of 200 pixels, each after the byte of its filter
    zeros = zlib.compress(bytes(50_000_000))
    return {
        "one_pixel.png": (picture(size=(1, 1)), OK, None),
        "page.jpg": (b"<!doctype html><html>Sorry</html>", PERMANENT, "not_an_image"),
        "drawing.svg": (SVG, PERMANENT, "not_an_image"),
        "bitmap.bmp": (picture(kind="BMP"), PERMANENT, "not_an_image"),
        "scan.tiff": (picture(kind="TIFF"), PERMANENT, "not_an_image"),
        "half.jpg": (picture(kind="JPEG", **LARGE)[:-3000], PERMANENT, "truncated"),
        "half.png": (picture(**LARGE)[:-3000], PERMANENT, "truncated"),
        "half.gif": (picture(kind="GIF", **LARGE)[:-3000], PERMANENT, "truncated"),
        "half.webp": (picture(kind="WEBP", **LARGE)[:-3000], PERMANENT, "truncated"),
        "head.jpg": (picture(kind="JPEG")[:20], PERMANENT, "truncated"),
        "wide.png": (png(60_000, 60_000), PERMANENT, "too_many_pixels"),
        "large.png": (picture(size=(300, 300), mode="L"), PERMANENT, "too_many_pixels"),
        "long.png": (picture(size=(10, 10)) + bytes(300_000), PERMANENT, "too_large"),
        # Few bytes that unpack to many: only what the picture needs is unpacked.
        "bomb.png": (png(200, 200, bytes(50_000_000)), OK, None),
        "comment.png": (
            png(200, 200, grey, ("zTXt", b"c\0\0" + zeros)), PERMANENT, "truncated",
        ),
        "empty.jpg": (b"", TEMPORARY, "truncated"),
    }  # fmt: skip


# Path on the mirror, or a whole URL: status, error class, HTTP code, attempts.
FAULTS = {
    "ok": (OK, None, 200, 1),
    "404/a": (PERMANENT, "not_found", 404, 1),
    "410/a": (PERMANENT, "gone", 410, 1),
    "403/a": (PERMANENT, "forbidden", 403, 1),
    "451/a": (PERMANENT, "http_4xx", 451, 1),
    "408/a": (TEMPORARY, "http_4xx", 408, 3),
    "206/a": (PERMANENT, "http_2xx", 206, 1),
    "302/a": (PERMANENT, "http_3xx", 302, 1),  # a redirect without a target
    "500/a": (TEMPORARY, "http_5xx", 500, 3),
    "429/a": (TEMPORARY, "rate_limited", 429, 3),
    "limited_once": (OK, None, 200, 2),
    "limited_for_years": (TEMPORARY, "rate_limited", 429, 1),
    "503/a": (TEMPORARY, "http_5xx", 503, 3),
    "once/0.png": (OK, None, 200, 2),
    "broken_once": (OK, None, 200, 2),
    "reset": (TEMPORARY, "connection", None, 3),
    "reset/hard": (TEMPORARY, "connection", None, 3),
    "cut_header": (TEMPORARY, "truncated", 200, 3),
    "half": (TEMPORARY, "truncated", 200, 3),
    "short_length": (PERMANENT, "truncated", 200, 1),
    "lying_length": (OK, None, 200, 1),
    "huge": (PERMANENT, "too_large", 200, 1),
    "endless": (PERMANENT, "too_large", 200, 1),
    "zipped": (OK, None, 200, 1),
    "hop": (OK, None, 200, 1),
    "loop": (PERMANENT, "too_many_redirects", None, 1),
    "to_file": (PERMANENT, "bad_url", None, 1),
    "to_nowhere": (PERMANENT, "bad_url", None, 1),
    "endless_redirect": (OK, None, 200, 1),
    "http://nowhere.invalid/a.jpg": (TEMPORARY, "dns", None, 3),
    "ftp://127.0.0.1/a.jpg": (PERMANENT, "bad_url", None, 1),
    "a.jpg?": (PERMANENT, "bad_url", None, 1),
}
SLOW = {"slow": None, "slow_header": None, "slow_body": 200}  # HTTP code


def summary(row):
    return row["status"], row["error"], row["http_code"], row["attempts"]


def test_what_an_answer_holds_decides(mirror, tmp_path, picture, png, catalogue, fetch):
    cases = answers(picture, png)
    mirror.bodies |= {name: body for name, (body, *_) in cases.items()}
    items = catalogue(*([f"{mirror.url}/200/{name}"] for name in cases))
    outcomes = fetch(items, tmp_path, max_pixels=50_000, max_bytes=250_000)
    found = dict(zip(cases, outcomes.select("status", "error").rows(), strict=True))
    assert found == {name: (status, error) for name, (_, status, error) in cases.items()}
    num_files = sum(status == OK for _, status, _ in cases.values())
    assert outcomes["file"].null_count() == len(cases) - num_files
    assert len(list(tmp_path.glob("*/*"))) == num_files


@pytest.mark.parametrize("path", FAULTS)
def test_how_a_server_answers_decides(mirror, tmp_path, catalogue, fetch, path):
    url = path.rstrip("?") if ":" in path or "?" in path else f"{mirror.url}/{path}"
    (row,) = fetch(catalogue([url]), tmp_path, max_bytes=100_000).iter_rows(named=True)
    assert summary(row) == FAULTS[path]
    assert (row["url"], row["item_id"], row["asin"]) == (url, 1, "B001")
    assert (row["file"] is not None) == (row["status"] == OK)
    assert row["fetched_at"] > 1_700_000_000
    assert 0 <= row["seconds"] < 5
    if url.startswith(mirror.url):
        num_hops = {"loop": 4, "hop": 2, "endless_redirect": 2}
        assert mirror.requests.total() == num_hops.get(path, row["attempts"])


def test_slow_servers_are_left_in_time(mirror, tmp_path, catalogue, fetch):
    items = catalogue(*([f"{mirror.url}/{path}"] for path in SLOW))
    outcomes = fetch(items, tmp_path, timeout_s=0.3, attempts=1)
    assert [summary(row) for row in outcomes.iter_rows(named=True)] == [
        (TEMPORARY, "timeout", code, 1) for code in SLOW.values()
    ]
    assert outcomes["seconds"].max() < 0.9


def test_private_addresses_are_not_asked(mirror, tmp_path, catalogue, fetch):
    hosts = ("127.0.0.1", "localhost", "127.1", "2130706433", "10.0.0.1", "[::1]")
    urls = [f"http://{host}:{mirror.server_port}/ok" for host in hosts]
    outcomes = fetch(catalogue(*([url] for url in urls)), tmp_path, allow_private_hosts=False)
    assert set(outcomes["error"]) == {"private_address"}
    assert set(outcomes["status"]) == {PERMANENT}
    assert mirror.requests.total() == 0


def test_a_redirect_to_a_private_address_is_not_followed(
    mirror, tmp_path, catalogue, fetch, monkeypatch
):
    # The mirror itself is on a private address: here only the target counts as one.
    monkeypatch.setattr("pipeline.connections._is_private", lambda host: host.startswith("169."))
    items = catalogue([f"{mirror.url}/to_metadata"])
    (row,) = fetch(items, tmp_path, allow_private_hosts=False).iter_rows(named=True)
    assert summary(row) == (PERMANENT, "private_address", None, 1)
    assert row["final_url"] == "http://169.254.169.254/latest/meta-data"


def test_size_variants_rescue_an_item(mirror, tmp_path, catalogue, fetch, picture):
    mirror.bodies |= {
        "images/I/gone._SL500_.jpg": picture(kind="JPEG"),
        "images/I/fine._SS40_.jpg": picture(1, kind="JPEG"),
        "images/I/fine.jpg": picture(2, kind="JPEG"),
    }
    site = f"{mirror.url}/images/I"
    urls = [[f"{site}/gone._SS40_.jpg"], [f"{site}/fine._SS40_.jpg"], [f"{site}/none.jpg"]]
    items = catalogue(*urls)
    without = fetch(items, tmp_path, size_variants=False)
    assert without["error"].to_list() == ["not_found", None, "not_found"]
    outcomes = fetch(items, tmp_path)
    assert outcomes.select("item_id", "url", "status").rows() == [
        (1, f"{site}/gone._SS40_.jpg", PERMANENT),
        (1, f"{site}/gone.jpg", PERMANENT),
        (1, f"{site}/gone._SL500_.jpg", OK),
        (2, f"{site}/fine._SS40_.jpg", OK),  # the original is not asked
        (3, f"{site}/none.jpg", PERMANENT),
        (3, f"{site}/none._SL500_.jpg", PERMANENT),
    ]
    assert set(mirror.requests.values()) == {1}
    status = image_status(items, outcomes, 0)
    assert status["image_status"].to_list() == [OK, OK, "not_found"]
    assert (tmp_path / status["file"][0]).read_bytes() == picture(kind="JPEG")
    off = fetch(catalogue([f"{site}/new.jpg"]), tmp_path, enabled=False)
    assert off.select("url", "status").rows() == [(f"{site}/new.jpg", "skipped")]


def test_a_placeholder_is_a_missing_image(mirror, tmp_path, catalogue, fetch, picture):
    mirror.bodies |= {f"none{n}.jpg": picture(9, kind="JPEG") for n in range(4)}
    shared = [[f"{mirror.url}/200/none{n}.jpg", f"{mirror.url}/200/1.png"] for n in range(4)]
    items = catalogue(*shared, [f"{mirror.url}/200/0.png"])
    outcomes = fetch(items, tmp_path)
    assert outcomes["status"].to_list() == [OK] * 5  # the second URLs are not tried
    assert outcomes["sha256"].n_unique() == 2
    status = image_status(items, outcomes, 4)
    assert status["image_status"].to_list() == ["placeholder"] * 4 + [OK]
    assert status["file"].null_count() == 4
    assert image_status(items, outcomes, 5)["file"].null_count() == 0


@pytest.fixture
def many(mirror, catalogue):
    """Items of one URL each on the mirror, all of which are there."""

    def make(number, path="200/0.png"):
        return catalogue(*([f"{mirror.url}/{path}?{n}"] for n in range(number)))

    return make


@pytest.fixture
def dead_url():
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def pauses(monkeypatch):
    """The pauses before probes among the waits, in first pauses.

    Nobody waits really, and what has passed of a pause when the waiting begins is left out: pauses
    are made so long that this is nothing beside them.
    """
    scale = 1000
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
        monkeypatch.setattr(hosts, name, scale * getattr(hosts, name))
    return lambda waits: [round(wait / scale, 1) for wait in waits if wait > 0.9 * scale]


@pytest.mark.parametrize("connections", [1, 4, 16])
def test_nothing_is_lost_in_an_outage_that_ends(mirror, many, tmp_path, fetch, pauses, connections):
    class Waits(list):
        def append(self, seconds):
            super().append(seconds)
            if seconds > 3000:  # before the third probe
                mirror.outage = ()

    mirror.outage, waits = range(20, 10**6), Waits()
    outcomes = fetch(many(120), tmp_path, connections=connections, attempts=2, waits=waits)
    assert outcomes["status"].to_list() == [OK] * 120
    assert outcomes["attempts"].sum() == mirror.requests.total() >= 120 + 8 + 2
    assert pauses(waits) == [1, 2, 4]


def test_a_host_that_stops_answering_ends_the_run(mirror, many, tmp_path, fetch, pauses):
    mirror.outage = range(20, 10**6)
    items, waits = many(120), []
    with pytest.raises(
        DataError,
        match=r"images: 127\.0\.0\.1:\d+ does not answer: \d+ requests in a row without a useful "
        r"answer \(connection\) since .* UTC\. 20 of 120 items are done and kept, 100 remain\. "
        r"Next: the same command carries on later",
    ):
        fetch(items, tmp_path, attempts=2, waits=waits)
    assert pauses(waits) == [1, 2, 4, 8, 16, 32, 60]  # it had answered before
    assert mirror.requests.total() < 20 + 2 * 8 + 40
    known = OutcomeLog(tmp_path).known
    assert Counter(outcome.status for outcome in known.values())[OK] == 20
    assert len(known) == 20  # what was not answered is not known

    mirror.outage = ()
    asked = mirror.requests.copy()
    done = {url.removeprefix(mirror.url) for url, o in known.items() if o.status == OK}
    assert fetch(items, tmp_path)["status"].to_list() == [OK] * 120
    assert not done & set(mirror.requests - asked)


def test_a_host_that_never_answers_ends_the_run_soon(dead_url, catalogue, tmp_path, fetch, pauses):
    items, waits = catalogue(*([f"{dead_url}/{n}"] for n in range(30))), []
    with pytest.raises(DataError, match=r"\(connection\) .* 0 of 30 items are done and kept"):
        fetch(items, tmp_path, attempts=1, waits=waits)
    assert pauses(waits) == [1, 2, 4]


def test_nothing_is_known_of_urls_on_hosts_that_never_answer(
    catalogue, tmp_path, fetch, monkeypatch
):
    def resolve(*_, **__):
        raise OSError("no such name")

    monkeypatch.setattr("pipeline.connections.socket.getaddrinfo", resolve)
    urls = [[f"http://{host}.invalid/images/I/{n}.jpg" for host in "ab"] for n in range(99)]
    items = catalogue(*urls)
    with pytest.raises(DataError, match=r"a\.invalid does not answer: .*\(dns\).* 0 of 99 items"):
        fetch(items, tmp_path)
    assert OutcomeLog(tmp_path).known == {}


def test_a_dead_host_that_few_items_need_does_not_end_the_run(
    mirror, dead_url, catalogue, tmp_path, fetch
):
    alive = [[f"{mirror.url}/200/0.png?{n}"] for n in range(100)]
    dead = [[f"{dead_url}/{n}"] for n in range(10)]
    rescued = [f"{dead_url}/10", f"{mirror.url}/200/1.png"]
    items = catalogue(*alive[:50], *dead, rescued, *alive[50:])
    outcomes = fetch(items, tmp_path)
    assert outcomes.filter(pl.col("status") == OK)["item_id"].n_unique() == 101
    failed = outcomes.filter(pl.col("status") != OK)
    assert set(failed["status"]) == {TEMPORARY}
    assert set(failed["error"]) == {"host_unreachable"}
    assert failed["fetched_at"].is_null().to_list() == (failed["attempts"] == 0).to_list()
    assert set(image_status(items, outcomes, 0)["image_status"]) == {OK, "host_unreachable"}
    asked = mirror.requests.copy()
    assert fetch(items, tmp_path).height == outcomes.height
    assert mirror.requests == asked


def test_urls_that_are_never_answered_do_not_stand_for_their_host(
    mirror, catalogue, tmp_path, fetch
):
    paths = ["reset" if n % 5 == 0 else "200/0.png" for n in range(150)]
    items, waits = catalogue(*([f"{mirror.url}/{path}?{n}"] for n, path in enumerate(paths))), []
    outcomes = fetch(items, tmp_path, attempts=2, waits=waits)
    failed = outcomes.filter(pl.col("status") != OK)
    assert failed.select("error", "attempts").rows() == [("connection", 2)] * 30
    assert max(waits) < 0.9  # nobody was probed


def test_nothing_is_lost_in_a_storm_that_ends(mirror, many, tmp_path, fetch):
    mirror.storm = range(50, 50 + MAX_REFUSALS + 8)
    outcomes = fetch(many(150), tmp_path)
    assert outcomes["status"].to_list() == [OK] * 150
    assert mirror.requests.total() == 150 + MAX_REFUSALS + 8


def test_a_storm_without_end_ends_the_run(mirror, many, tmp_path, fetch):
    mirror.storm = range(50, 10**6)
    with pytest.raises(DataError, match=r"\(refused, HTTP 503\) .* 50 of 200 items .* 150 remain"):
        fetch(many(200), tmp_path)
    assert mirror.requests.total() < 50 + MAX_REFUSALS + 40


def test_only_temporary_failures_without_a_picture_are_asked_again(
    mirror, catalogue, tmp_path, fetch
):
    paths = [["once/0.png"], ["404/a"], ["200/0.png"], ["503/a", "200/1.png"], ["503/b", "404/b"]]
    items = catalogue(*([f"{mirror.url}/{path}" for path in item] for item in paths))
    fetch(items, tmp_path, attempts=1)
    asked = mirror.requests.copy()
    fetch(items, tmp_path, attempts=1)
    assert mirror.requests == asked
    outcomes = fetch(items, tmp_path, attempts=1, retry_temporary=True)
    assert mirror.requests - asked == {"/once/0.png": 1, "/503/b": 1}
    assert outcomes["status"].to_list() == [
        OK, PERMANENT, OK, TEMPORARY, OK, TEMPORARY, PERMANENT,
    ]  # fmt: skip


def test_a_variant_on_a_dead_host_does_not_end_the_run(
    mirror, dead_url, catalogue, tmp_path, fetch, monkeypatch
):
    monkeypatch.setattr(
        "pipeline.outcomes.size_variants", lambda urls: [f"{dead_url}/{Path(urls[0]).name}"]
    )
    items = catalogue(*([f"{mirror.url}/404/{n}"] for n in range(40)))
    outcomes = fetch(items, tmp_path)
    assert outcomes["error"].to_list() == ["not_found", "host_unreachable"] * 40
    assert set(image_status(items, outcomes, 0)["image_status"]) == {"not_found"}
