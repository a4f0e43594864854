"""Product images: URLs to files, with one outcome row per URL. A failure is data."""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue

import polars as pl
from PIL import Image, UnidentifiedImageError

from mmm4rec.config import ImagesConfig
from pipeline.fetching import Fetched, Fetcher
from pipeline.outcomes import Outcome, OutcomeLog, candidates, until_ok
from pipeline.schema import atomic_path

Progress = Callable[[int, int], None]  # called with the number of items done and of all items

# Decoders are attack surface: these four are what shops serve.
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp"}
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF")
# What Pillow's decoders are known to raise on malformed files.
DECODE_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
MAX_PIXELS = 89_478_485  # above this Pillow itself warns of a decompression bomb
FLUSH_ROWS = 64  # outcomes per part file, at most ...
FLUSH_S = 2.0  # ... and seconds until they are written


class ImageError(Exception):
    """Bytes that are no usable image; the message is the error class of the outcome."""


def fetch_images(
    items: pl.DataFrame,
    folder: Path,
    config: ImagesConfig,
    progress: Progress | None = None,
    *,
    retry_temporary: bool = False,
    sleep: Callable[[float], object] | None = None,
) -> pl.DataFrame:
    """Fetch one image per item, trying the item's URLs in order until one is ok.

    Can be killed at any moment and called again: a URL with a permanent outcome, or whose file is
    there, is not asked again. A URL that several items share is asked once.

    Args:
        items: item_id, asin, image_urls (list, may be null or empty).
        folder: gets `outcomes.parquet` and the files, as `<sha256[:2]>/<sha256>.<extension>`.
        config: limits and pace; where not `enabled`, nothing is asked and URLs are `skipped`.
        progress: called with items done and all items.
        retry_temporary: ask again where the last outcome was a temporary failure.
        sleep: waits that many seconds; None: really.

    Returns:
        `OUTCOME_SCHEMA`, a row per item and URL tried; URLs after the first ok have none.

    Raises:
        DataError: `folder` holds something else under the name of the outcomes.
        OSError: a file cannot be written; everything known by then is kept.
    """
    log = OutcomeLog(folder)
    if config.enabled:
        settled = {
            url: outcome
            for url, outcome in log.known.items()
            if _is_settled(outcome, folder, retry_temporary)
        }
        fetcher = _ImageFetcher(folder, Fetcher(config, sleep), config.max_pixels, settled)
        with bombs_are_errors():
            _run(items["image_urls"].to_list(), fetcher, log, config.connections, progress)
    return log.finish(items)


def decode_image(data: bytes, max_pixels: int) -> Image.Image:
    """Decode an image completely.

    Args:
        data: a file of one of the formats in `EXTENSIONS`.
        max_pixels: larger ones are refused before they are decoded.

    Raises:
        ImageError: `not_an_image`, `too_many_pixels`, or `truncated`: it begins like an image but
            cannot be decoded to its end.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=list(EXTENSIONS))
        if image.width * image.height > max_pixels:
            raise ImageError("too_many_pixels")
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("too_many_pixels") from None
    except UnidentifiedImageError:
        known = data.startswith(SIGNATURES)
        raise ImageError("truncated" if known else "not_an_image") from None
    except DECODE_ERRORS:
        raise ImageError("truncated") from None
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture as RGB; what is transparent shows white, as in a shop."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


@contextlib.contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Let Pillow refuse what it would warn of; to be entered outside of any thread pool."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


class _ImageFetcher:
    """Answers each URL once, whichever threads ask; new answers go into `fresh`."""

    def __init__(
        self, folder: Path, fetcher: Fetcher, max_pixels: int, settled: dict[str, Outcome]
    ) -> None:
        self.fetcher = fetcher
        self.fresh: SimpleQueue[Outcome] = SimpleQueue()
        self._folder = folder
        self._max_pixels = max_pixels
        self._settled = settled
        self._asked: dict[str, Future[Outcome]] = {}
        self._asking = threading.Lock()
        self._storing = threading.Lock()

    def try_urls(self, urls: list[str]) -> None:
        """Ask for URLs in order until one is ok."""
        for _ in until_ok(map(self._ask, urls)):
            pass

    def is_settled(self, urls: list[str]) -> bool:
        """Whether an item's outcome is known without asking."""
        for url in urls:
            outcome = self._settled.get(url)
            if outcome is None or outcome.status == "ok":
                return outcome is not None
        return True

    def _ask(self, url: str) -> Outcome:
        if url in self._settled:
            return self._settled[url]
        with self._asking:
            is_first = url not in self._asked
            future = self._asked.setdefault(url, Future())
        if is_first:
            try:
                outcome = self._fetch(url)
            except BaseException as error:  # for those who wait for the same URL
                future.set_exception(error)
                raise
            self.fresh.put(outcome)
            future.set_result(outcome)
        return future.result()

    def _fetch(self, url: str) -> Outcome:
        fetched = self.fetcher.fetch(url)
        if fetched.error is not None:
            return _failed(url, fetched, fetched.error)
        try:
            image = decode_image(fetched.body, self._max_pixels)
        except ImageError as error:
            return _failed(url, fetched, str(error))
        sha256 = hashlib.sha256(fetched.body).hexdigest()
        file = f"{sha256[:2]}/{sha256}.{EXTENSIONS[image.format or '']}"
        self._store(fetched.body, self._folder / file)
        return Outcome(
            url,
            "ok",
            http_code=fetched.http_code,
            attempts=fetched.attempts,
            sha256=sha256,
            bytes=len(fetched.body),
            width=image.width,
            height=image.height,
            final_url=fetched.final_url,
            seconds=fetched.seconds,
            file=file,
        )

    def _store(self, body: bytes, path: Path) -> None:
        with self._storing:  # two URLs may lead to the same picture
            if not _is_stored(path, len(body)):
                with atomic_path(path) as temporary:
                    temporary.write_bytes(body)


def _run(
    all_urls: list[list[str] | None],
    fetcher: _ImageFetcher,
    log: OutcomeLog,
    connections: int,
    progress: Progress | None,
) -> None:
    """Ask for all items' URLs, a bounded number of items at a time; write what becomes known."""
    executor = ThreadPoolExecutor(connections, thread_name_prefix="images")
    waiting = deque(urls for urls in map(candidates, all_urls) if not fetcher.is_settled(urls))
    done = len(all_urls) - len(waiting)
    pending: set[Future[None]] = set()
    written_at = time.monotonic()
    try:
        while waiting or pending:
            while waiting and len(pending) < 2 * connections:
                pending.add(executor.submit(fetcher.try_urls, waiting.popleft()))
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
            done += len(finished)
            _collect(fetcher, log)
            if log.num_unwritten >= FLUSH_ROWS or time.monotonic() - written_at > FLUSH_S:
                log.flush()
                written_at = time.monotonic()
            if progress:
                progress(done, len(all_urls))
    finally:
        fetcher.fetcher.stop()
        executor.shutdown(cancel_futures=True)
        fetcher.fetcher.close()
        _collect(fetcher, log)
        log.flush()


def _collect(fetcher: _ImageFetcher, log: OutcomeLog) -> None:
    while not fetcher.fresh.empty():
        log.add(fetcher.fresh.get())


def _failed(url: str, fetched: Fetched, error: str) -> Outcome:
    return Outcome(
        url,
        "temporary" if fetched.temporary else "permanent",
        http_code=fetched.http_code,
        attempts=fetched.attempts,
        error=error,
        final_url=fetched.final_url,
        seconds=fetched.seconds,
    )


def _is_settled(outcome: Outcome, folder: Path, retry_temporary: bool) -> bool:
    if outcome.status == "ok":
        return _is_stored(folder / str(outcome.file), outcome.bytes)
    return outcome.status == "permanent" or not retry_temporary


def _is_stored(path: Path, num_bytes: int | None) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes
