"""Image fetching against a local server that fails: the share of the allowed rate it achieves.

    python -m benchmarks.bench_images [--urls 18000 --rate 600 --connections 64 --failures 0.3]

The server is a process of its own. Of the URLs that fail, half are not found, a third get a 503 and
then the picture, and of the rest most break off half-way, while some never get an answer. All
requests count, repeated ones too. The floor is the time that the first requests alone take at the
allowed rate. When every URL has been asked once, only repetitions are left, which have to wait: the
shorter a run, the more of it is that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from PIL import Image

from benchmarks.measure import Meter
from mmm4rec.config import ImagesConfig
from pipeline.images import fetch_images

TIMEOUT_S = 0.5
FATES = {"gone": 0.5, "flaky": 0.33, "half": 0.14, "silent": 0.03}  # shares of what fails
NUM_PICTURES = 50


class Measured(NamedTuple):
    """One run."""

    counts: Counts
    seconds: float
    peak_mb: float
    outcomes: dict[str, int]


class Counts(NamedTuple):
    """What the server saw, until the last request for a new URL too."""

    requests: int
    requests_until_new: int
    seconds_until_new: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a run and print it."""
    options = _parse(arguments)
    config = ImagesConfig(
        connections=options.connections,
        rate_per_host=options.rate,
        timeout_s=TIMEOUT_S,
        allow_private_hosts=True,
        placeholder_items=0,
    )
    print(format_run(measure(options.urls, options.failures, config), options.urls, config))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--urls", type=int, default=18_000)
    parser.add_argument("--rate", type=float, default=600.0, help="requests per second")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--failures", type=float, default=0.3, help="share of URLs that fail")
    return parser.parse_args(arguments)


def measure(num_urls: int, failures: float, config: ImagesConfig) -> Measured:
    """Fetch a generated item table of one URL each."""
    meter = Meter()
    with tempfile.TemporaryDirectory() as folder, served() as (url, count):
        items = make_items(url, num_urls, failures)
        outcomes = meter("images", lambda: fetch_images(items, Path(folder), config))
        stage = meter.stages[0]
        tally = Counter(outcomes["error"].fill_null("ok"))
        return Measured(count(), stage.seconds, stage.peak_mb, dict(tally.most_common()))


def make_items(url: str, num_urls: int, failures: float, seed: int = 0) -> pl.DataFrame:
    """Make an item table; what becomes of a URL stands in its path."""
    rng = np.random.default_rng(seed)
    shares = [1 - failures, *(failures * share for share in FATES.values())]
    fates = rng.choice(["ok", *FATES], size=num_urls, p=shares)
    return pl.DataFrame(
        {
            "item_id": range(1, num_urls + 1),
            "asin": [f"B{n:09}" for n in range(num_urls)],
            "image_urls": [[f"{url}/{fate}/{n}"] for n, fate in enumerate(fates)],
        },
        schema={"item_id": pl.UInt32, "asin": pl.String, "image_urls": pl.List(pl.String)},
    )


def format_run(run: Measured, num_urls: int, config: ImagesConfig) -> str:
    """Return the run as a table."""
    allowed = config.rate_per_host
    achieved = run.counts.requests / run.seconds
    at_first = run.counts.requests_until_new / run.counts.seconds_until_new
    rows = [
        ("connections", f"{config.connections}"),
        ("allowed rate", f"{allowed:,.0f} requests/s"),
        ("until all URLs were asked", f"{at_first:,.0f} requests/s, {at_first / allowed:.1%}"),
        ("to the end", f"{achieved:,.0f} requests/s, {achieved / allowed:.1%}"),
        ("requests", f"{run.counts.requests:,} for {num_urls:,} URLs"),
        ("seconds", f"{run.seconds:.1f} (floor: {num_urls / allowed:.1f})"),
        ("peak memory", f"{run.peak_mb:,.0f} MB"),
        *((f"outcome {error}", f"{number:,}") for error, number in run.outcomes.items()),
    ]
    return "\n".join(f"{name:<28}{value}" for name, value in rows)


@contextlib.contextmanager
def served() -> Iterator[tuple[str, Callable[[], Counts]]]:
    """Serve from another process; yield the base URL and what returns the counts."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()

    def count() -> Counts:
        ours.send("count")
        return Counts(*ours.recv())

    try:
        yield f"http://127.0.0.1:{ours.recv()}", count
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection) -> None:
    asyncio.run(_Server(pipe).run())


class _Server:
    """As little HTTP as the client needs, so that the client is what is measured."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._num_requests = self._num_until_new = 0
        self._began = self._new_at = 0.0
        self._seen: set[int] = set()
        self._pictures = [_picture(seed) for seed in range(NUM_PICTURES)]

    async def run(self) -> None:
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, backlog=1024)
        self._pipe.send(server.sockets[0].getsockname()[1])
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._tell)
        await server.serve_forever()

    def _tell(self) -> None:
        self._pipe.recv()
        self._pipe.send((self._num_requests, self._num_until_new, self._new_at - self._began))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fate, name = head.split(b" ", 2)[1].decode().strip("/").split("/")
                is_new = self._count(int(name))
                if fate == "silent":
                    await reader.read()  # until the client has had enough
                    break
                writer.write(self._answer(fate, int(name), is_new))
                await writer.drain()
                if fate == "half":
                    break
        writer.close()

    def _count(self, number: int) -> bool:
        """Count a request; return whether it is the first for its URL."""
        now = time.perf_counter()
        self._began = self._began or now
        self._num_requests += 1
        if number in self._seen:
            return False
        self._seen.add(number)
        self._num_until_new, self._new_at = self._num_requests, now
        return True

    def _answer(self, fate: str, number: int, is_new: bool) -> bytes:
        code = 404 if fate == "gone" else 503 if fate == "flaky" and is_new else 200
        body = self._pictures[number % NUM_PICTURES] if code == 200 else b""
        head = f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        return head + (body[: len(body) // 2] if fate == "half" else body)


def _picture(seed: int) -> bytes:
    """Return a small JPEG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (96, 96, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


if __name__ == "__main__":
    main()
