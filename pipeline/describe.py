"""What the times of a domain look like, from its interactions alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmm4rec.errors import DataError
from pipeline.domains import name_domain
from pipeline.schema import INTERACTIONS, prepared_dir, read_manifest
from pipeline.splitting import ambiguous_order_share
from pipeline.tables import INTERACTION_SCHEMA
from pipeline.time_statistics import (
    DAY,
    NUM_BUCKETS,
    SOLAR_YEAR,
    WEEK,
    Information,
    IntArray,
    Rhythm,
    burstiness,
    calendar_rhythm,
    entropy,
    gap_buckets,
    gap_information,
    item_groups,
    memory,
    periodicity,
    resolution,
)

BUCKET_NAMES = (
    "0 seconds",
    "under a minute",
    "under an hour",
    "under a day",
    "under a week",
    "under 30 days",
    "under a year",
    "a year or more",
)
QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
UNITS = {DAY: "days", 3_600: "hours", 60: "minutes", 1: "seconds"}


@dataclass(frozen=True)
class TimeStatistics:
    """When the users of a domain act. What no user can tell is None.

    Attributes:
        resolution_s: all times are whole multiples of so many seconds, 86,400 at most.
        gap_shares: share of the gaps between a user's neighbouring interactions in each bucket
            of `BUCKET_NAMES`.
        gap_entropy: of these shares, in bits; 0..3.
        gap_entropy_share: the same as a share of what it could be at most, 0..1.
        tie_share: share of the gaps that are 0 seconds.
        same_day_share: share of the gaps that begin and end on one day (UTC).
        ambiguous_order_share: share of the users whose last item depends on a tie.
        burstiness: -1..1, see `time_statistics.burstiness`.
        memory: -1..1, see `time_statistics.memory`; log(1 + gap in units of the resolution).
        periodicity: of the users' log gaps, see `time_statistics.periodicity`.
        weekly: how much all times gather in one part of the week.
        yearly: of the year; a span of years that are not whole counts as such a part.
        last_gap: what the gap between a user's last two interactions before the very last one
            tells about that one: for a model without the moment of recommending.
        query_gap: what the gap before the very last one tells: for a model with it.
    """

    resolution_s: int
    gap_shares: dict[str, float]
    gap_entropy: float
    gap_entropy_share: float
    tie_share: float
    same_day_share: float
    ambiguous_order_share: float
    burstiness: float | None
    memory: float | None
    periodicity: Rhythm | None
    weekly: Rhythm
    yearly: Rhythm
    last_gap: Information | None
    query_gap: Information | None


@dataclass(frozen=True)
class DomainStatistics:
    """A domain in numbers.

    Attributes:
        domain: its name.
        users: users with an interaction.
        items: items with an interaction.
        interactions: all of them.
        lengths: quantiles and mean of the interactions per user, see `QUANTILES`.
        max_len: most recent items that a model reads.
        longer_share: share of the users with more than `max_len` interactions.
        has_time: false where the domain has no timestamps at all; then `time` is None.
        time: when the users act; None also where no user has two interactions.
    """

    domain: str
    users: int
    items: int
    interactions: int
    lengths: dict[str, float]
    max_len: int
    longer_share: float
    has_time: bool
    time: TimeStatistics | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data (for JSON)."""
        return asdict(self)

    def predictors(self) -> dict[str, float]:
        """Return the numbers that may tell whether time helps a model; none without times.

        A rhythm counts by how far it is above chance, an information by its bits.
        """
        if self.time is None:
            return {}
        time = self.time
        numbers = {
            "gap entropy": time.gap_entropy,
            "tie share": time.tie_share,
            "same-day share": time.same_day_share,
            "ambiguous order": time.ambiguous_order_share,
            "burstiness": time.burstiness,
            "memory": time.memory,
            "periodicity": _above_chance(time.periodicity),
            "weekly rhythm": _above_chance(time.weekly),
            "yearly rhythm": _above_chance(time.yearly),
            "last gap": time.last_gap.bits if time.last_gap else None,
            "query gap": time.query_gap.bits if time.query_gap else None,
            "median length": self.lengths["median"],
            "longer than max_len": self.longer_share,
        }
        return {name: value for name, value in numbers.items() if value is not None}


def describe_domain(data_dir: Path, domain: str, max_len: int) -> DomainStatistics:
    """Describe a prepared domain.

    Args:
        data_dir: the folder that holds `prepared/`.
        domain: short or full name.
        max_len: most recent items that a model reads, at least 1.

    Raises:
        ConfigError: the name cannot be that of a folder.
        DataError: the domain is not prepared, or its interactions cannot be read.
    """
    name = name_domain(domain).name
    folder = prepared_dir(data_dir, name)
    has_time = read_manifest(folder).has_time
    return describe_interactions(
        name, _read_interactions(folder / INTERACTIONS), has_time=has_time, max_len=max_len
    )


def describe_interactions(
    name: str, interactions: pl.DataFrame, *, has_time: bool, max_len: int
) -> DomainStatistics:
    """Describe interactions.

    Args:
        name: of the domain.
        interactions: INTERACTION_SCHEMA, by user and then the total order.
        has_time: false: the timestamps mean nothing.
        max_len: most recent items that a model reads, at least 1.

    Raises:
        DataError: there is no interaction.
    """
    if interactions.is_empty():
        raise DataError(f"{name} has no interaction. Next: mmm4rec prepare --domain {name}")
    user_N, item_N, times_N = (
        interactions[column].cast(pl.Int64).to_numpy() for column in INTERACTION_SCHEMA
    )
    users, user_N = np.unique(user_N, return_inverse=True)  # ids from 0, none without a row
    length_U = np.bincount(user_N)
    lengths = {key: float(np.quantile(length_U, share)) for key, share in QUANTILES.items()}
    timed = has_time and len(users) < len(user_N)
    return DomainStatistics(
        domain=name,
        users=len(users),
        items=len(np.unique(item_N)),
        interactions=len(item_N),
        lengths={**lengths, "mean": float(length_U.mean())},
        max_len=max_len,
        longer_share=float((length_U > max_len).mean()),
        has_time=has_time,
        time=_describe_times(user_N, item_N, times_N) if timed else None,
    )


def format_statistics(statistics: DomainStatistics) -> str:
    """Return the statistics as lines for a terminal."""
    lengths = ", ".join(f"{name} {value:g}" for name, value in statistics.lengths.items())
    rows = {
        "users": f"{statistics.users:,}",
        "items": f"{statistics.items:,}",
        "interactions": f"{statistics.interactions:,}",
        "interactions a user": lengths,
        "longer than max_len": f"{statistics.longer_share:.1%} of users have more than "
        f"{statistics.max_len} interactions",
    }
    if not statistics.has_time:
        rows["time"] = "no timestamps: nothing can be said of time, and no model can use it"
    elif statistics.time is None:
        rows["time"] = "no user has two interactions: there is no gap"
    else:
        rows |= _time_rows(statistics.time)
    return "\n".join([statistics.domain, *(f"  {name:<22} {row}" for name, row in rows.items())])


def _read_interactions(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, columns=list(INTERACTION_SCHEMA))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} does not read as Parquet: {str(error).splitlines()[0]}. "
            f"Next: delete {path.parent} and run mmm4rec prepare again"
        ) from None


def _describe_times(user_N: IntArray, item_N: IntArray, times_N: IntArray) -> TimeStatistics:
    same_N = user_N[1:] == user_N[:-1]
    user_G, seconds_G = user_N[1:][same_N], np.diff(times_N)[same_N]
    day_N = times_N // DAY
    unit = resolution(times_N)
    log_G = np.log1p(seconds_G / unit)
    count_K = np.bincount(gap_buckets(seconds_G), minlength=NUM_BUCKETS)
    bits = entropy(count_K)
    events = pl.DataFrame({"user": user_N, "asin": item_N, "timestamp": times_N})
    return TimeStatistics(
        resolution_s=unit,
        gap_shares=dict(zip(BUCKET_NAMES, (count_K / count_K.sum()).tolist(), strict=True)),
        gap_entropy=bits,
        gap_entropy_share=bits / float(np.log2(NUM_BUCKETS)),
        tie_share=float((seconds_G == 0).mean()),
        same_day_share=float((day_N[1:] == day_N[:-1])[same_N].mean()),
        ambiguous_order_share=ambiguous_order_share(events),
        burstiness=burstiness(seconds_G, user_G),
        memory=memory(log_G, user_G),
        periodicity=periodicity(log_G, user_G),
        weekly=calendar_rhythm(times_N, user_N, WEEK),
        yearly=calendar_rhythm(times_N, user_N, SOLAR_YEAR),
        last_gap=_information(user_N, item_N, times_N, back=1),
        query_gap=_information(user_N, item_N, times_N, back=0),
    )


def _information(
    user_N: IntArray, item_N: IntArray, times_N: IntArray, *, back: int
) -> Information | None:
    """Ask of each user's last item, by the gap that ends so many interactions before it."""
    group_I = item_groups(item_N)
    length_U = np.bincount(user_N)
    last_R = (np.cumsum(length_U) - 1)[length_U >= 2 + back]
    seconds_R = times_N[last_R - back] - times_N[last_R - back - 1]
    return gap_information(seconds_R, group_I[item_N[last_R]], group_I[item_N[last_R - 1]])


def _above_chance(rhythm: Rhythm | None) -> float | None:
    return rhythm.strength - rhythm.by_chance if rhythm else None


def _time_rows(time: TimeStatistics) -> dict[str, str]:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in time.gap_shares.items() if share)
    return {
        "resolution of times": UNITS[time.resolution_s],
        "gaps": shares,
        "gap entropy": f"{time.gap_entropy:.2f} bits of {np.log2(NUM_BUCKETS):g}",
        "ties": f"{time.tie_share:.1%} of gaps are 0 seconds, {time.same_day_share:.1%} within a "
        f"day; the last item of {time.ambiguous_order_share:.1%} of users depends on a tie",
        "burstiness": _number(time.burstiness, "-1 regular, 0 at random, 1 all at once"),
        "memory": _number(time.memory, "correlation of a gap with the next one"),
        "periodicity": _rhythm(time.periodicity, "of a user's gaps in one frequency"),
        "weekly rhythm": _rhythm(time.weekly, "of 1"),
        "yearly rhythm": _rhythm(time.yearly, "of 1"),
        "the last gap tells": _told(time.last_gap),
        "the query gap tells": _told(time.query_gap),
    }


def _number(value: float | None, legend: str) -> str:
    return "no user has enough gaps" if value is None else f"{value:+.3f} ({legend})"


def _rhythm(rhythm: Rhythm | None, unit: str) -> str:
    if rhythm is None:
        return "no two users have enough gaps"
    return f"{rhythm.strength:.3f} {unit}, by chance {rhythm.by_chance:.3f}, p = {rhythm.p:.2g}"


def _told(information: Information | None) -> str:
    if information is None:
        return "no user has enough interactions"
    return (
        f"{information.bits:.3f} bits about the next item, p = {information.p:.2g} "
        f"({information.users:,} users)"
    )
