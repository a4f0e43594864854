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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

import polars as pl
from PIL import Image, UnidentifiedImageError

from mmm4rec.config import ImagesConfig
from pipeline.fetching import Fetched, Fetcher
from pipeline.hosts import HOST_UNREACHABLE, Host, HostSilentError
from pipeline.item_queue import ItemQueue, Tally, Urls
from pipeline.outcomes import Outcome, OutcomeLog, candidates, listed, until_ok
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
THREADS_PER_CONNECTION = 2  # most of those that repeat a request are waiting to
MAX_ATTEMPTS = 255  # that an outcome can hold


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

    Where all of them failed, the size variants that Amazon serves of them are tried, if the
    settings say so. The first URL that is ok is an item's picture, whatever it shows: where it
    turns out to be a placeholder (`image_status`), the further ones have not been tried.

    Can be killed at any moment and called again: a URL with a permanent outcome, or whose file is
    there, is not asked again, nor is an item that has its picture. A URL that several items share
    is asked once.

    A host that stops answering, or answers nothing but refusals, is probed with growing pauses
    (`pipeline.hosts`). If it answers again, all goes on as if nothing had been. If not, its URLs
    are `host_unreachable`, which any later run asks again; and if many items are without a picture
    for that (`pipeline.item_queue.Tally`), the run ends.

    Args:
        items: item_id, asin, image_urls (list, may be null or empty).
        folder: gets `outcomes.parquet` and the files, as `<sha256[:2]>/<sha256>.<extension>`.
        config: limits and pace; where not `enabled`, nothing is asked and URLs are `skipped`.
        progress: called with items done and all items.
        retry_temporary: ask again where the last outcome was a temporary failure and the item has
            no picture.
        sleep: waits that many seconds; None: really.

    Returns:
        `OUTCOME_SCHEMA`, a row per item and URL tried; URLs after the first ok have none.

    Raises:
        DataError: `folder` holds something else under the name of the outcomes; or many items
            depend on a host that does not answer: everything known by then is kept.
        OSError: a file cannot be written; everything known by then is kept.
    """
    log = OutcomeLog(folder)
    if config.enabled:
        fetcher = ImageFetcher(folder, Fetcher(config, sleep), config)
        fetcher.recall(log.known, retry_temporary)
        tally = Tally(len(items), 0)
        fetch_items(items["image_urls"].to_list(), fetcher, log, tally, progress)
    return log.finish(items, config.size_variants)


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


class ImageFetcher:
    """Answers each URL once, whichever threads ask; new answers go into `fresh`."""

    def __init__(self, folder: Path, fetcher: Fetcher, config: ImagesConfig) -> None:
        """Know of no URL yet.

        Args:
            folder: gets the files.
            fetcher: of the bytes.
            config: limits.
        """
        self.fetcher = fetcher
        self.fresh: SimpleQueue[Outcome] = SimpleQueue()
        self._folder = folder
        self._config = config
        self._settled: dict[str, Outcome] = {}
        self._failed: set[str] = set()
        self._asked: dict[str, Future[Outcome]] = {}
        self._doubted: dict[str, _Doubted] = {}
        self._spent: Counter[str] = Counter()  # attempts that came to nothing as a host was silent
        self._asking = threading.Lock()
        self._storing = threading.Lock()

    @property
    def connections(self) -> int:
        """Requests under way at once."""
        return self._config.connections

    def recall(self, known: dict[str, Outcome], retry_temporary: bool) -> None:
        """Take over what earlier runs found, but for what is to be asked again."""
        for url, outcome in known.items():
            if _is_settled(outcome, self._folder, retry_temporary):
                self._settled[url] = outcome
            elif outcome.status == "temporary":
                self._failed.add(url)

    def try_urls(self, urls: Urls) -> list[Outcome]:
        """Ask for an item's URLs and variants in order until one is ok; return all outcomes.

        Raises:
            HostSilentError: what becomes of a host must be known first.
        """
        return list(until_ok(map(self._ask, candidates(urls, self._config.size_variants))))

    def is_settled(self, urls: Urls) -> bool:
        """Whether an item's outcome is known without asking: it has a picture, or never will."""
        is_known = True
        for url in candidates(urls, self._config.size_variants):
            outcome = self._settled.get(url)
            if outcome is None and url not in self._failed:
                return False
            if outcome is not None and outcome.status == "ok":
                return True
            is_known = is_known and outcome is not None
        return is_known

    def stranding_host(self, urls: Urls, outcomes: list[Outcome]) -> Host | None:
        """Return the host for whose silence an item has no picture, None where it is not that.

        The host of a size variant is none: nothing says that it has the picture.
        """
        if outcomes and outcomes[-1].status != "ok":
            for outcome in outcomes[: len(urls)]:
                if outcome.error == HOST_UNREACHABLE:
                    return self.fetcher.host_of(str(outcome.final_url))
        return None

    def _ask(self, url: str) -> Outcome:
        with self._asking:
            if url in self._settled:
                return self._settled[url]
            is_first = url not in self._asked
            future = self._asked.setdefault(url, Future())
        if is_first:
            self._answer(url, future)
        return future.result()

    def _answer(self, url: str, future: Future[Outcome]) -> None:
        """Fetch a URL for all who wait for it."""
        try:
            outcome = self._fetch(url)
        except BaseException as error:
            with self._asking:
                del self._asked[url]
            future.set_exception(error)
            return
        self.fresh.put(outcome)
        with self._asking:
            self._settled[url] = outcome
            del self._asked[url]
        future.set_result(outcome)

    def _fetch(self, url: str) -> Outcome:
        doubted = self._doubted.pop(url, None)
        if doubted is not None and not doubted.is_outdated:
            return doubted.outcome
        try:
            fetched = self.fetcher.fetch(url)
        except HostSilentError as silent:
            self._spent[url] += silent.attempts
            raise
        outcome = self._judge(url, fetched)
        if fetched.doubted is not None:
            self._doubted[url] = _Doubted.of(outcome, fetched.doubted)
            self._spent[url] = outcome.attempts
            raise HostSilentError(fetched.doubted)
        return outcome

    def _judge(self, url: str, fetched: Fetched) -> Outcome:
        attempts = min(self._spent[url] + fetched.attempts, MAX_ATTEMPTS)
        answer = Outcome(
            url,
            "temporary" if fetched.temporary else "permanent",
            http_code=fetched.http_code,
            attempts=attempts,
            error=fetched.error,
            final_url=fetched.final_url,
            seconds=fetched.seconds,
            fetched_at=int(time.time()) if attempts else None,
        )
        if fetched.error is not None:
            return answer
        try:
            image = decode_image(fetched.body, self._config.max_pixels)
        except ImageError as error:
            return replace(answer, error=str(error))
        sha256 = hashlib.sha256(fetched.body).hexdigest()
        file = f"{sha256[:2]}/{sha256}.{EXTENSIONS[image.format or '']}"
        self._store(fetched.body, self._folder / file)
        return replace(
            answer,
            status="ok",
            sha256=sha256,
            bytes=len(fetched.body),
            width=image.width,
            height=image.height,
            file=file,
        )

    def _store(self, body: bytes, path: Path) -> None:
        with self._storing:  # two URLs may lead to the same picture
            if not _is_stored(path, len(body)):
                with atomic_path(path) as temporary:
                    temporary.write_bytes(body)


@dataclass(frozen=True)
class _Doubted:
    """What a URL came to while its host answered nobody.

    It holds if the host answers others later on, or if there are no others; not if the circuit
    opens: then it was the host.
    """

    outcome: Outcome
    host: Host
    outage: int | None

    @classmethod
    def of(cls, outcome: Outcome, host: Host) -> _Doubted:
        outage = host.num_outages
        return cls(outcome, host, None if host.is_open else outage)

    @property
    def is_outdated(self) -> bool:
        return self.outage != self.host.num_outages


@bombs_are_errors()
def fetch_items(
    all_urls: Sequence[list[str] | None],
    fetcher: ImageFetcher,
    log: OutcomeLog,
    tally: Tally,
    progress: Progress | None = None,
) -> None:
    """Ask for the URLs of some items or of all, a bounded number of items at a time.

    Args:
        all_urls: of each item; null: none.
        fetcher: knows what need not be asked; it is closed at the end.
        log: gets what becomes known, and writes it.
        tally: counts the items, those that need not be asked as well.
        progress: called with items done and all items of the tally.

    Raises:
        DataError: many items depend on a host that does not answer: the log has what is known.
        OSError: a file cannot be written; the log has what is known.
    """
    num_threads = THREADS_PER_CONNECTION * fetcher.connections
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="images")
    waiting = [urls for urls in map(listed, all_urls) if not fetcher.is_settled(urls)]
    queue = ItemQueue(waiting, fetcher.fetcher.wait)
    tally.done += len(all_urls) - len(waiting)
    under_way: dict[Future[list[Outcome]], Urls] = {}
    finished: SimpleQueue[Future[list[Outcome]]] = SimpleQueue()
    written_at = time.monotonic()
    try:
        while queue or under_way:
            _collect(fetcher, log)
            is_due = time.monotonic() - written_at > FLUSH_S or not under_way
            if log.num_unwritten >= FLUSH_ROWS or is_due:
                log.flush()
                written_at = time.monotonic()
            queue.release(is_idle=not under_way)
            while queue.is_ready and len(under_way) < 2 * num_threads:
                urls = queue.pop()
                future = executor.submit(fetcher.try_urls, urls)
                under_way[future] = urls
                future.add_done_callback(finished.put)
            future = finished.get()
            urls = under_way.pop(future)
            try:
                tally.count(fetcher.stranding_host(urls, future.result()))
            except HostSilentError as silent:
                queue.hold(urls, silent.host)
            else:
                if progress:
                    progress(tally.done, tally.num_items)
    finally:
        fetcher.fetcher.stop()
        executor.shutdown(cancel_futures=True)
        fetcher.fetcher.close()
        _collect(fetcher, log)
        log.flush()


def _collect(fetcher: ImageFetcher, log: OutcomeLog) -> None:
    while not fetcher.fresh.empty():
        log.add(fetcher.fresh.get())


def _is_settled(outcome: Outcome, folder: Path, retry_temporary: bool) -> bool:
    if outcome.status == "ok":
        return _is_stored(folder / str(outcome.file), outcome.bytes)
    if outcome.error == HOST_UNREACHABLE:  # it was never asked
        return False
    return outcome.status == "permanent" or not retry_temporary


def _is_stored(path: Path, num_bytes: int | None) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes
