"""What a preparation would fetch: files, bytes, requests. Nothing is written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from mmm4rec.config import Config
from pipeline.domains import name_domain
from pipeline.download import free_bytes
from pipeline.inputs import plan_inputs
from pipeline.outcomes import OUTCOMES
from pipeline.tables import RAW_ITEMS


def plan_domain(domain: str, config: Config, *, source: str | None = None) -> dict[str, Any]:
    """Ask the servers for sizes, and the folder of an earlier run for what is there.

    Args:
        domain: name of the domain.
        config: the sections prepare, images and data.data_dir are used.
        source: as of `prepare_domain`.

    Returns:
        Plain data: domain, files (name, bytes, is_present, resumable_bytes, urls, problem),
        bytes_to_fetch, files_of_unknown_size, file_requests, free_bytes, and images (see
        `plan_images`).

    Raises:
        ConfigError: the domain is unknown.
        DataError: there are no files in the folder `source`, or a fetched file was changed.
    """
    settings = config.prepare
    named = name_domain(domain, settings.release)
    files = plan_inputs(domain, source, config.data.data_dir / "raw", settings.release)
    missing = [file for file in files if not file.is_present]
    work = config.data.data_dir / "work" / named.name
    expected = named.published.items if named.published else None
    return {
        "domain": named.name,
        "files": [
            {**asdict(file), "urls": list(file.urls), "target": str(file.target)} for file in files
        ],
        "bytes_to_fetch": sum(file.missing_bytes for file in missing),
        "files_of_unknown_size": sum(file.bytes is None for file in missing),
        "file_requests": len(missing),
        "free_bytes": free_bytes(config.data.data_dir),
        "images": plan_images(work, expected, config) if config.images.enabled else None,
    }


def plan_images(work: Path, expected_items: int | None, config: Config) -> dict[str, Any]:
    """Say how many requests the images would take.

    Args:
        work: work folder of the domain; after an earlier run it says what the items are.
        expected_items: published number of items, for the time before.
        config: images.rate_per_host.

    Returns:
        items (None: not known before the metadata has been read), is_estimate, least_requests
        (one per item whose image is not known yet), least_seconds at the allowed rate, and
        least_bytes by the mean size of the images at hand (None without any).
    """
    items = left = expected_items
    is_estimate = not (work / "tables" / RAW_ITEMS).is_file()
    known = _known_outcomes(work / "images" / OUTCOMES)
    if not is_estimate:
        table = pl.read_parquet(work / "tables" / RAW_ITEMS, columns=["asin", "image_urls"])
        items = len(table)
        open_items = table.filter(pl.col("image_urls").list.len() > 0)
        left = open_items.filter(~pl.col("asin").is_in(known["asin"].implode())).height
    size = known["bytes"].mean()
    return {
        "items": items,
        "is_estimate": is_estimate,
        "least_requests": left,
        "least_seconds": None if left is None else round(left / config.images.rate_per_host),
        "least_bytes": None if left is None or size is None else round(left * float(size)),  # type: ignore[arg-type]
    }


def _known_outcomes(path: Path) -> pl.DataFrame:
    """Return asin and bytes of the URLs that have been asked."""
    if not path.is_file():
        return pl.DataFrame(schema={"asin": pl.String, "bytes": pl.UInt32})
    asked = pl.read_parquet(path, columns=["asin", "bytes", "status"])
    return asked.filter(pl.col("status") != "skipped").select("asin", "bytes")


def format_plan(plan: dict[str, Any]) -> str:
    """Return a plan as lines for a terminal."""
    lines = [plan["domain"], *(_file_line(file) for file in plan["files"])]
    unknown = plan["files_of_unknown_size"]
    more = f", and {unknown} files of unknown size" if unknown else ""
    lines.append(
        f"  to fetch         {plan['bytes_to_fetch']:,} bytes{more} in {plan['file_requests']} "
        f"requests; {plan['free_bytes']:,} bytes are free"
    )
    if plan["images"]:
        lines.append(f"  images           {_image_text(plan['images'])}")
    return "\n".join(lines)


def _file_line(file: dict[str, Any]) -> str:
    size = "size unknown" if file["bytes"] is None else f"{file['bytes']:,} bytes"
    if file["is_present"]:
        return f"  there            {file['name']}: {size}, {file['target']}"
    kept = f", {file['resumable_bytes']:,} of them fetched" if file["resumable_bytes"] else ""
    return f"  missing          {file['name']}: {size}{kept}, {file['problem'] or file['urls'][0]}"


def _image_text(images: dict[str, Any]) -> str:
    if images["least_requests"] is None:
        return "how many is known once the metadata has been read"
    about = "about " if images["is_estimate"] else ""
    size = f", about {images['least_bytes']:,} bytes" if images["least_bytes"] else ""
    return (
        f"{about}{images['items']:,} items; at least {images['least_requests']:,} requests{size}, "
        f"{images['least_seconds']:,} s at the allowed rate"
    )
