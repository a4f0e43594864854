"""The tables of `prepare` against plain Python, stage by stage, and how both grow.

    python -m benchmarks.bench_prepare [--ratings 500000 1600000 5000000] [--repeat 3]

Every run is a process of its own; the sides alternate, the medians are printed. Before: the floors,
reading the bytes once and decompressing once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Meter, Stage, in_process
from benchmarks.raw_dump import METADATA_FILE, NAME, RATINGS_FILE, write_raw_dump

SIDES = ("pipeline", "plain json", "plain eval")
BLOCK = 1 << 23


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parse(argv)
    if arguments.side:
        stages = measure_side(arguments.side, arguments.folder)
        print(json.dumps(stages))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        measured = {
            ratings: measure_size(Path(scratch), ratings, arguments.repeat)
            for ratings in arguments.ratings
        }
    print(format_growth(measured))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratings", type=int, nargs="+", default=[500_000, 1_600_000, 5_000_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where the dump is written")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure_size(scratch: Path, ratings: int, repeat: int) -> dict[str, list[Stage]]:
    """Measure all sides on a dump of that many ratings; print it; return the median stages."""
    folder = scratch / str(ratings)
    write_raw_dump(folder, ratings, ratings // 25)
    print(f"\n{ratings:,} ratings, {ratings // 25:,} metadata lines")
    for name, seconds in measure_floors(folder).items():
        print(f"  floor: {name:<52}{seconds:>8.2f} s")
    runs: dict[str, list[list[Stage]]] = {side: [] for side in SIDES}
    for number in range(repeat):
        for side in SIDES if number == 0 else SIDES[:2]:  # eval is slow, and only beside the point
            runs[side].append(
                in_process("benchmarks.bench_prepare", "--side", side, "--folder", folder)
            )
    medians = {side: _median(found) for side, found in runs.items()}
    for side, stages in medians.items():
        print(f"  {side}")
        for stage in [*stages, total(stages)]:
            print(f"    {stage.name:<26}{stage.seconds:>8.2f} s{stage.peak_mb:>10,.0f} MB")
    ours = total(medians["pipeline"])
    for side in SIDES[1:]:
        plain = total(medians[side])
        print(
            f"  {side} takes {plain.seconds / ours.seconds:.1f} times the time and "
            f"{plain.peak_mb / ours.peak_mb:.1f} times the memory of the pipeline"
        )
    return medians


def measure_floors(folder: Path) -> dict[str, float]:
    """Return seconds to read both files, and to decompress the one that is."""
    began = time.perf_counter()
    for name in (RATINGS_FILE, METADATA_FILE):
        with (folder / name).open("rb") as file:
            while file.read(BLOCK):
                pass
    read_at = time.perf_counter()
    with gzip.open(folder / METADATA_FILE) as file:
        while file.read(BLOCK):
            pass
    return {
        "reading both files once (from the page cache)": read_at - began,
        "decompressing the metadata once": time.perf_counter() - read_at,
    }


def measure_side(side: str, folder: Path) -> list[Stage]:
    """Prepare the tables one way in this process."""
    meter = Meter()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if side == "pipeline":
            _run_pipeline(meter, folder, Path(scratch))
        else:
            _run_plain(meter, folder, Path(scratch), side.removeprefix("plain "))
    return meter.stages


def _run_pipeline(meter: Meter, folder: Path, scratch: Path) -> None:
    from mmm4rec.config import PrepareConfig
    from pipeline import survivors
    from pipeline.inputs import AmazonFiles
    from pipeline.splitting import assign_ids
    from pipeline.tables import write_parquet

    def metered(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: meter(name, partial(work, *args, **kwargs))

    # The stages inside are called by the pipeline's own function, in its own order.
    survivors.collect_candidates = metered("read ratings", survivors.collect_candidates)
    survivors.read_metadata = metered("read metadata, texts", survivors.read_metadata)
    survivors.k_core = metered("k-core", survivors.k_core)
    files = AmazonFiles(folder / RATINGS_FILE, folder / METADATA_FILE)
    began = time.perf_counter()
    made = survivors.filter_amazon(NAME, files, PrepareConfig(), scratch)
    rest = time.perf_counter() - began - sum(stage.seconds for stage in meter.stages)
    meter.stages.append(Stage("join, counts", rest, 0.0))
    numbered = meter("order and ids", lambda: assign_ids(made.interactions, made.metadata))

    def write() -> None:
        write_parquet(numbered.interactions, scratch / "interactions.parquet")
        write_parquet(numbered.items, scratch / "items.parquet")

    meter("write", write)


def _run_plain(meter: Meter, folder: Path, scratch: Path, parser: Any) -> None:
    from benchmarks.plain_prepare import plain_prepare

    ratings, metadata = folder / RATINGS_FILE, folder / METADATA_FILE
    plain_prepare(ratings, metadata, scratch, parser=parser, measure=meter)


def _median(runs: list[list[Stage]]) -> list[Stage]:
    return [
        Stage(
            stages[0].name,
            statistics.median(stage.seconds for stage in stages),
            statistics.median(stage.peak_mb for stage in stages),
        )
        for stages in zip(*runs, strict=True)
    ]


def total(stages: list[Stage]) -> Stage:
    """Return all stages as one: the seconds add up, the peak is the highest."""
    return Stage("total", sum(s.seconds for s in stages), max(s.peak_mb for s in stages))


def format_growth(measured: dict[int, dict[str, list[Stage]]]) -> str:
    """Return how seconds and peak memory grow with the number of ratings."""
    lines = [f"\n{'ratings':>12}" + "".join(f"{side:>26}" for side in SIDES)]
    for ratings, sides in measured.items():
        cells = (total(sides[side]) for side in SIDES)
        row = "".join(f"{cell.seconds:>14.2f} s{cell.peak_mb:>7,.0f} MB" for cell in cells)
        lines.append(f"{ratings:>12,}{row}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
