"""The image stage split into shares that several processes fetch, each on its own.

Items that may ask for the same address are in one share, so that an address is asked once. A host
can be asked from every share, be it for a redirect: each gets an equal part of the allowed rate and
of the connections, and all of them together keep to what is allowed.

    <folder>/<sha256[:2]>/<sha256>.<extension>                     pictures, whoever fetches them
    <folder>/outcomes/share-<run>-<number>/outcomes/part-*.parquet what a share has brought so far
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl

from mmm4rec.config import ImagesConfig
from pipeline.item_queue import Urls
from pipeline.outcomes import PARTS, Outcome, OutcomeLog, candidates, listed

SHARES = "share-"  # prefix of folders


@dataclass(frozen=True)
class Share:
    """Some of the items and all that it takes to fetch them; can be pickled.

    Attributes:
        number: from 0.
        all_urls: of each item.
        num_items: of all shares.
        known: outcomes of its addresses that earlier runs found.
        folder: gets the pictures.
        own_folder: gets its outcomes.
        config: with its part of the pace.
        retry_temporary: ask again where the last failure was temporary.
    """

    number: int
    all_urls: list[Urls]
    num_items: int
    known: dict[str, Outcome]
    folder: Path
    own_folder: Path
    config: ImagesConfig
    retry_temporary: bool

    def open_log(self) -> OutcomeLog:
        """Return what is known of its addresses, a broken-off attempt at it included."""
        log = OutcomeLog(self.own_folder)
        log.known = self.known | log.known
        return log


def plan_shares(
    items: pl.DataFrame,
    folder: Path,
    config: ImagesConfig,
    known: dict[str, Outcome],
    *,
    retry_temporary: bool,
) -> list[Share]:
    """Split a catalogue into at most as many shares as there are workers and connections.

    Args:
        items: image_urls.
        folder: gets pictures and outcomes.
        config: workers, and the pace of all of them together.
        known: outcome per URL.
        retry_temporary: ask again where the last failure was temporary.
    """
    all_urls = [listed(urls) for urls in items["image_urls"].to_list()]
    most = min(config.workers, config.connections)
    split = split_items(all_urls, most, config.size_variants)
    run = uuid4().hex[:8]  # a worker of a killed run may live a little longer than that
    part = config.model_copy(
        update={
            "rate_per_host": config.rate_per_host / max(1, len(split)),
            "connections": config.connections // max(1, len(split)),
        }
    )
    return [
        Share(
            number,
            urls,
            len(items),
            _select(known, urls, config.size_variants),
            folder.absolute(),
            folder.absolute() / PARTS / f"{SHARES}{run}-{number:04}",
            part,
            retry_temporary,
        )
        for number, urls in enumerate(split)
    ]


def take_over(log: OutcomeLog, folder: Path) -> None:
    """Put into the log what shares have brought, those of a killed run included.

    Args:
        log: of `folder`.
        folder: as for `plan_shares`.
    """
    shares = sorted((folder / PARTS).glob(f"{SHARES}*"))
    for share in shares:
        for outcome in OutcomeLog(share).known.values():
            log.add(outcome)
    log.flush()
    for share in shares:
        shutil.rmtree(share, ignore_errors=True)


def split_items(all_urls: Sequence[Urls], num_shares: int, with_variants: bool) -> list[list[Urls]]:
    """Split items so that an address which several may ask for is in one share.

    Args:
        all_urls: of each item.
        num_shares: at most; each is as large as the others, if the items allow it.
        with_variants: size variants are addresses, too.

    >>> split_items([["a"], ["b"], ["c", "a"], ["d"]], 2, with_variants=False)
    [[['a'], ['c', 'a']], [['b'], ['d']]]
    """
    above: dict[str, str] = {}  # from an address towards the one that stands for its group

    def top(url: str) -> str:
        while above.setdefault(url, url) != url:
            above[url] = url = above[above[url]]
        return url

    for urls in all_urls:
        for url in candidates(urls, with_variants):
            above[top(url)] = top(urls[0])
    groups: dict[Any, list[Urls]] = {}
    for place, urls in enumerate(all_urls):
        groups.setdefault(top(urls[0]) if urls else place, []).append(urls)
    shares: list[list[Urls]] = [[] for _ in range(num_shares)]
    for group in groups.values():
        min(shares, key=len).extend(group)
    return [share for share in shares if share]


def _select(
    known: dict[str, Outcome], all_urls: Sequence[Urls], with_variants: bool
) -> dict[str, Outcome]:
    asked = (url for urls in all_urls for url in candidates(urls, with_variants))
    return {url: known[url] for url in asked if url in known}
