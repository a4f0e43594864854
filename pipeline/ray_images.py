"""The image stage over a Ray cluster whose machines share the data folder.

    RAY_ADDRESS=<head>:6379 mmm4rec prepare --domain Office \
        --set images.engine=ray --set images.workers=8

Each worker fetches a share (`pipeline.image_shares`) as the stage in one process fetches all; this
process puts together what they have found. They tell an actor how far they are, and learn from it
when the stage is to end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from mmm4rec.config import ImagesConfig
from mmm4rec.errors import DataError
from pipeline.fetching import Fetcher
from pipeline.hosts import HOST_UNREACHABLE, Host
from pipeline.image_shares import Share, plan_shares, take_over
from pipeline.images import ImageFetcher, Progress, fetch_items
from pipeline.item_queue import Tally
from pipeline.outcomes import Outcome, OutcomeLog
from pipeline.ray_jobs import FAILURES, ITEM, Row, ray_cluster, run_jobs
from pipeline.stages import watched

TELL_S = 1.0  # between two words of a worker


def fetch_with_ray(
    items: pl.DataFrame,
    folder: Path,
    config: ImagesConfig,
    progress: Progress | None = None,
    *,
    retry_temporary: bool = False,
) -> pl.DataFrame:
    """Fetch one image per item as `images.fetch_images` does, on a Ray cluster.

    Files and table are those of one process, but for the times in it, and so are resuming after a
    kill and the errors. A run of `fetch_images` that follows a run which was killed asks again
    what only that one had found.

    Args:
        items: as for `fetch_images`, like the other arguments.
        folder: shared by all machines.
        config: `workers` tasks share `rate_per_host` and `connections`.
        progress: called from another thread.
        retry_temporary: ask again where the last failure was temporary.

    Raises:
        ConfigError: Ray is not installed, or its cluster is not there.
        DataError: as `fetch_images`.
        OSError: as `fetch_images`.
    """
    log = OutcomeLog(folder)
    take_over(log, folder)
    if config.enabled:
        shares = plan_shares(items, folder, config, log.known, retry_temporary=retry_temporary)
        try:
            reports = _run_shares(shares, len(items), progress)
        finally:
            take_over(log, folder)
        _check(reports, len(items))
        for report in reports:
            for outcome in report.unreachable:
                log.add(outcome)
    return log.finish(items, config.size_variants)


@dataclass(frozen=True)
class _Report:
    """How far a worker is; plain data.

    Attributes:
        done: its items that are done.
        stranded: of them, those without a picture for a host that was given up, per host.
        words: on these hosts.
        unreachable: outcomes of what was not asked: only a finished run's table has them.
        failure: that has ended the work early.
    """

    done: int
    stranded: dict[str, int]
    words: dict[str, str]
    unreachable: tuple[Outcome, ...] = ()
    failure: Exception | None = None


def _run_shares(
    shares: Sequence[Share], num_items: int, progress: Progress | None
) -> list[_Report]:
    if not shares:
        return []
    with ray_cluster("images.engine", len(shares)):
        import ray

        board = ray.remote(_Board).options(num_cpus=0).remote(num_items)
        with watched(lambda: ray.get(board.count.remote()), num_items, progress):
            return list(run_jobs(_Fetching, (board,), shares, len(shares)))


class _Fetching:
    """A worker that fetches shares."""

    def __init__(self, board: Any) -> None:
        """board: the handle of a `_Board`."""
        self._board = board

    def __call__(self, row: Row) -> Row:
        share: Share = row[ITEM]
        log = share.open_log()
        fetcher = ImageFetcher(share.folder, Fetcher(share.config), share.config)
        fetcher.recall(log.known, share.retry_temporary)
        tally = Tally(share.num_items, 0)
        failure: Exception | None = None
        try:
            fetch_items(share.all_urls, fetcher, log, tally, self._teller(share, tally))
        except FAILURES as error:
            failure = error
        unreachable = (one for one in log.known.values() if one.error == HOST_UNREACHABLE)
        self._tell(share, _report(tally))
        return {ITEM: _report(tally, tuple(unreachable), failure)}

    def _tell(self, share: Share, report: _Report) -> bool:
        import ray

        return bool(ray.get(self._board.tell.remote(share.number, report)))

    def _teller(self, share: Share, tally: Tally) -> Progress:
        """Return what tells the board every now and then, and ends the work if all is to end."""
        told_at = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal told_at
            if time.monotonic() - told_at < TELL_S:
                return
            told_at = time.monotonic()
            if self._tell(share, _report(tally)):
                raise DataError(
                    "images: a host that another worker asks does not answer. "
                    "Next: the same command carries on later"
                )

        return tell


class _Board:
    """An actor that is told by all workers how far they are."""

    def __init__(self, num_items: int) -> None:
        self._num_items = num_items
        self._reports: dict[int, _Report] = {}

    def tell(self, number: int, report: _Report) -> bool:
        """Note how far a share is; return whether the stage is to end."""
        self._reports[number] = report
        try:
            _sum_up(self._reports.values(), self._num_items)
        except DataError:
            return True
        return False

    def count(self) -> int:
        """Return the number of items done."""
        return sum(report.done for report in self._reports.values())


class _SilentHost(Host):
    """A host that a worker has given up."""

    def __init__(self, name: str, words: str) -> None:
        super().__init__(name, rate=1.0, max_failures=1)
        self._words = words

    def describe(self) -> str:
        return self._words


def _report(
    tally: Tally, unreachable: tuple[Outcome, ...] = (), failure: Exception | None = None
) -> _Report:
    return _Report(
        tally.done,
        {host.name: count for host, count in tally.stranded.items()},
        {host.name: host.describe() for host in tally.stranded},
        unreachable,
        failure,
    )


def _check(reports: Sequence[_Report], num_items: int) -> None:
    """Raise what one process would have raised."""
    _sum_up(reports, num_items)
    for report in reports:
        if report.failure is not None:
            raise report.failure


def _sum_up(reports: Iterable[_Report], num_items: int) -> None:
    """Count the items of all shares as those of one.

    Raises:
        DataError: too many items are without a picture for hosts that do not answer.
    """
    stranded: Counter[str] = Counter()
    words: dict[str, str] = {}
    done = 0
    for report in reports:
        done += report.done
        stranded.update(report.stranded)
        words.update(report.words)
    tally = Tally(num_items, done - stranded.total())
    for name, count in stranded.most_common():
        host = _SilentHost(name, words[name])
        for _ in range(count):
            tally.count(host)
