"""The data card: what a researcher wants to know of a prepared domain before using it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from pipeline.schema import Count, FeatureSet


def data_card(
    domain: str,
    counts: list[Count],
    tables: dict[str, Any],
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    outcomes: pl.DataFrame,
    published: dict[str, Any] | None = None,
    features: Sequence[FeatureSet] = (),
) -> dict[str, Any]:
    """Describe a prepared domain as plain data.

    Args:
        domain: its name.
        counts: what was left after each step.
        tables: result of the tables stage: bad_lines, has_time, ambiguous_order_share, cut_users.
        interactions: as in the prepared folder.
        items: as in the prepared folder.
        outcomes: one row per image URL that was asked, with `status` and `error`.
        published: as `compare_counts` returns it; None for a set that others have processed.
        features: made by this preparation.
    """
    lengths = items["text"].str.len_chars()
    sequence_lengths = interactions.group_by("user_id").len()["len"]
    ok = int((items["image_status"] == "ok").sum())
    return {
        "domain": domain,
        "counts": [count.model_dump() for count in counts],
        "published": published,
        "bad_lines": tables["bad_lines"],
        "cut_users": tables["cut_users"],
        "interactions_per_user": _spread(sequence_lengths),
        "ambiguous_order_share": tables["ambiguous_order_share"],
        "images": {
            "items": len(items),
            "with_url": int((items["image_urls"].list.len() > 0).sum()),
            "ok": ok,
            "coverage": round(ok / len(items), 4),
            "placeholder": int((items["image_status"] == "placeholder").sum()),
            "urls": _tally(outcomes, "error"),
        },
        "text_characters": _spread(lengths),
        "features": {made.modality: {made.key: made.present} for made in features},
        "time": _time_range(interactions) if tables["has_time"] else None,
    }


def format_card(card: dict[str, Any]) -> str:
    """Return the card as lines for a terminal."""
    images, text, users = card["images"], card["text_characters"], card["interactions_per_user"]
    lines = [card["domain"], f"  {'':<24}{'users':>10}{'items':>10}{'interactions':>14}"]
    lines += [
        f"  {count['step']:<24}{count['users']:>10,}{count['items']:>10,}"
        f"{count['interactions']:>14,}"
        for count in card["counts"]
    ]
    lines += [f"  {line}" for line in _compared_lines(card["published"])]
    lines += [
        f"  set aside                {bad:,} malformed lines of {name}"
        for name, bad in card["bad_lines"].items()
        if bad
    ]
    if card["cut_users"]:
        lines.append(
            f"  cut sequences            {card['cut_users']:,} users: as long as the format "
            "allows, older events may be missing"
        )
    urls = ", ".join(f"{error} {count:,}" for error, count in images["urls"].items())
    lines += [
        f"  interactions a user      median {users['median']:g}, most {users['max']:,}",
        f"  images                   {images['ok']:,} of {images['items']:,} items "
        f"({images['coverage']:.1%}); {images['with_url']:,} have a URL"
        + (f", {images['placeholder']:,} a placeholder" if images["placeholder"] else ""),
        f"  image URLs               {urls or 'none asked'}",
        f"  text                     characters: least {text['min']:,}, median {text['median']:g}, "
        f"most {text['max']:,}",
    ]
    lines += [
        f"  {f'{modality} features':<24} {present:,} of {images['items']:,} items ({key})"
        for modality, made in card["features"].items()
        for key, present in made.items()
    ]
    if card["time"]:
        lines += [
            f"  time                     {card['time']['first']} to {card['time']['last']}",
            f"  ambiguous order          {card['ambiguous_order_share']:.1%} of users: their last "
            "two items share a timestamp, file order decides",
        ]
    else:
        lines.append("  time                     no timestamps: training turns time off")
    return "\n".join(lines)


def _compared_lines(published: dict[str, Any] | None) -> list[str]:
    if published is None or not published["rows"]:
        return []
    first = published["first_difference"]
    if first is None:
        steps = dict.fromkeys(row["step"] for row in published["rows"])
        return [f"published counts         equal: {', '.join(steps)}"]
    different = [
        f"{row['quantity']} {row['found']:,} ({row['difference']:+,} against {row['published']:,})"
        for row in published["rows"]
        if row["step"] == first and row["difference"]
    ]
    return [f"published counts         a difference begins at {first!r}: {', '.join(different)}"]


def _spread(values: pl.Series) -> dict[str, float]:
    return {
        "min": int(values.min()),  # type: ignore[arg-type]
        "median": float(values.median()),  # type: ignore[arg-type]
        "max": int(values.max()),  # type: ignore[arg-type]
    }


def _tally(table: pl.DataFrame, column: str) -> dict[str, int]:
    counted = table.with_columns(pl.col(column).fill_null("ok")).group_by(column).len()
    return dict(counted.sort("len", column, descending=[True, False]).iter_rows())


def _time_range(interactions: pl.DataFrame) -> dict[str, str]:
    times = interactions["timestamp"]
    first, last = (
        datetime.fromtimestamp(int(stamp), UTC).date().isoformat()  # type: ignore[arg-type]
        for stamp in (times.min(), times.max())
    )
    return {"first": first, "last": last}
